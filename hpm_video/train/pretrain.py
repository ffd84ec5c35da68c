"""Pre-training: the loop around the steps."""

from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fvcore.nn import parameter_count
from torch import Tensor

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.mixture import mixture_of
from hpm_video.data.samples.scores import scored_tubelet
from hpm_video.method.competence import competence_of, student_accuracy
from hpm_video.method.diagnostics import Figures, ema_distance, mean_figures, step_figures
from hpm_video.method.masking import num_hard_units, planned_hard_ratio
from hpm_video.method.step import PretrainStep, configured_step
from hpm_video.method.teacher import momentum_at, teacher_of, update_teacher
from hpm_video.method.teacher_views import describe_view
from hpm_video.method.unit_counts import num_reconstructed_tokens
from hpm_video.models.build import build, token_grid
from hpm_video.models.compiling import compile_parts
from hpm_video.models.cuda_graphs import Replayed
from hpm_video.models.parallel import clip_gradients, spread
from hpm_video.runtime.distributed import World, seed_of, sync_gradients
from hpm_video.train.admission import read_videos
from hpm_video.train.optim import describe_lr, plan_steps, pretrain_optimizer, set_lr
from hpm_video.train.run import (
    CollapseWatch,
    Pictures,
    Run,
    RunProbe,
    check_vectors,
    choose_for_machine,
    claim_run_folder,
    describe_changes,
    describe_checkpoints,
    describe_data,
    find_start,
    join_run,
    optimizer_state,
    step_unless,
)
from hpm_video.weights.checkpoint import tokens_of
from hpm_video.weights.targets import check_digest, load_target


def pretrain(config: PretrainConfig, *, manifest: Manifest | None = None) -> bool:
    """Run or continue a pre-training; returns whether it is complete.

    ``manifest``: the training list, if already read.
    """
    with join_run(config) as (folder, world):
        return _pretrain(config, folder, world, manifest)


def _pretrain(
    config: PretrainConfig, folder: Path, world: World, manifest: Manifest | None
) -> bool:
    config, frozen = load_target(config, world.device)
    digest = None if frozen is None else frozen.digest()
    data, optim, masking, sight = config.data, config.optim, config.masking, config.teacher
    grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
    tube_length = masking.unit_length(grid.time)
    num_reconstructed_tokens(grid, masking)  # or refuse
    if manifest is None:
        manifest = read_videos(config)
    check_vectors(config, manifest)
    videos = mixture_of(manifest, data.weights)
    steps = plan_steps(data, optim, num_videos=videos.num_videos, num_processes=world.size)

    data_of_steps = describe_data(manifest, videos, videos_per_step=steps.videos)
    start = find_start(config, folder, kind="pretrain", total_steps=steps.total, data=data_of_steps)
    if start.state is not None and (before := tokens_of(start.state).grid) != grid:
        raise ValueError(
            f"checkpoint ({start.source}) was trained on clips of {before}: must be {grid} to "
            f"continue; to start a new run from its weights, set model.init={start.source} "
            "instead of run.resume"
        )
    config, choices = choose_for_machine(config, world, state=start.state)
    optim = config.optim
    steps = plan_steps(config.data, optim, num_videos=videos.num_videos, num_processes=world.size)
    torch.manual_seed(config.run.seed)
    student = build(config, trained_grid=start.trained_grid())
    start.load_into(student)
    teacher = teacher_of(student, config)
    start.load_teacher(teacher)
    if start.state is not None:
        check_digest(config.loss, digest, start.state, source=start.source)
    probe = RunProbe(config, student.encoder, world)
    claim_run_folder(folder, config, world, last=start.last)
    if world.is_main:
        start.write_table(folder, student)
    if teacher is not None:
        spread(teacher, world, config.run)
    trained = student.trained_grid
    model = spread(student, world, config.run)
    optimizer = pretrain_optimizer(student, optim)
    start.load_optimizer(optimizer, student)
    kept = {name: (start.state or {}).get(name) for name in ("competence", "collapsed_records")}
    competence = competence_of(masking, world, kept["competence"])
    collapse = CollapseWatch(config.run.collapse_records, kept["collapsed_records"] or 0)
    changes = describe_changes(config, start.state, steps=steps)
    start.forget_weights()

    def checkpoint() -> dict[str, Any]:
        return {
            "kind": "pretrain",
            "config": config_to_dict(config),
            "data": data_of_steps,
            "model": student.state_dict(),
            "teacher": None if teacher is None else teacher.state_dict(),
            "optimizer": optimizer_state(optimizer, student),
            "competence": None if competence is None else competence.value,
            "collapsed_records": collapse.in_a_row,
            "target_digest": digest,
            **({} if trained == grid else {"trained_grid": list(astuple(trained))}),
        }

    with Run(config, folder, world, manifest=manifest, steps=steps, state=start.state) as run:
        for line in (*start.lines(), *changes, *choices):
            run.log.line(line)
        run.log.line(
            f"{parameter_count(student)[''] / 1e6:.1f} M parameters, {len(manifest)} videos, "
            f"{steps.per_epoch} steps per epoch, {steps.total} steps in all"
        )
        for line in videos.lines(data.manifest):
            run.log.line(line)
        if frozen is not None:
            run.log.line(f"targets are features of {config.loss.target_model}: {frozen.describe()}")
        if teacher is not None and teacher.predicts:
            run.log.line(describe_view(grid, sight))
        if competence is not None:
            run.log.line(competence.describe(is_new=kept["competence"] is None))
        run.log.line(describe_lr(optim, videos=steps.videos, clips=steps.clips))
        run.log.line(describe_checkpoints(config.run, steps.total, student, teacher))
        tubelet = scored_tubelet(config)
        batches = run.batches(tubelet=tubelet)
        parts = {"student": student, "teacher": teacher, "target": frozen}
        compile_parts(parts, config.run, world, run.log.line)
        compute = configured_step(config, grid, frozen)
        generator = torch.Generator(world.device)

        # Further tensors that change from step to step, by argument name
        names = (("hard_ratio",) if competence else ()) + (("given",) if tubelet else ())

        def learn(clips: Tensor, *tensors: Tensor, **how: Any) -> PretrainStep:
            """Forward and backward pass of a micro-batch; adds its gradients."""
            how |= zip(names, tensors, strict=True)
            result = compute(model, teacher, clips, generator=generator, **how)
            run.scaled(result.loss / steps.accumulation).backward()
            return result.detached()

        uses_graphs = config.run.cuda_graphs == "true"
        replayed = Replayed(learn, generator, capture=uses_graphs, say=run.log.line)
        pictures = Pictures(config, manifest, grid, frozen)
        if run.steps_done == 0 and config.run.probe_every:
            probe.run(student.encoder, step=0, epoch=0, log=run.log)
        for step in run.steps():
            progress, epoch = (step + 1) / steps.total, (step + 1) / steps.per_epoch
            hard_ratio = planned_hard_ratio(masking, progress)
            num_hard = num_hard_units(
                grid, mask_ratio=masking.mask_ratio, tube_length=tube_length, hard_ratio=hard_ratio
            )
            # masking.ramp=competence: on the device, where it may change at every step
            learnt = None if competence is None else competence.value
            on_device = () if competence is None else (competence.hard_ratio,)
            form = None if on_device else (num_hard, hard_ratio > 0)
            used = partial(float, *(on_device or (hard_ratio,)))  # synchronises when called
            set_lr(optimizer, lr := steps.lr_at(step))
            # Stochastic depth, the one user of the global generator, follows (seed, step, rank).
            torch.manual_seed(seed_of(config.run.seed, step, world.rank))
            losses: dict[str, Tensor] = {}
            figures: list[Figures] = []
            accuracies: list[Tensor] = []
            for micro_batch in range(steps.accumulation):
                batch = run.next(batches)
                clips = batch.on(world.device, as_floats=False)
                scores = batch.scores(world.device)
                # Masks follow (seed, step) and the clip's place in the step's whole batch.
                generator.manual_seed(seed_of(config.run.seed, step))
                first = (micro_batch * world.size + world.rank) * len(clips)
                with sync_gradients(model, micro_batch + 1 == steps.accumulation):
                    result = replayed(
                        clips,
                        *on_device,
                        *(() if scores is None else (scores,)),
                        form=form,
                        part=micro_batch,
                        hard_ratio=hard_ratio,
                        rows=(first, steps.clips),
                    )
                for name, loss in result.losses.items():
                    losses[name] = losses.get(name, 0) + loss / steps.accumulation
                if competence is not None:
                    accuracies.append(student_accuracy(result))
                if run.is_log_step:
                    figures.append(step_figures(result, grid, tube_length))
            run.unscale(student)
            norm = clip_gradients(student, optim.clip_grad)
            skip = run.add({**losses, "grad_norm": norm})
            step_unless(skip, optimizer)
            if competence is not None:
                competence.follow(torch.stack(accuracies).mean(), skip=skip)
            optimizer.zero_grad(set_to_none=not uses_graphs)  # graphs add to what is there
            momentum = None
            if teacher is not None:
                momentum = momentum_at(
                    progress, start=sight.momentum_start, end=sight.momentum_end, ramp=sight.ramp
                )
                update_teacher(teacher, student, momentum, skip=skip)
            if run.is_log_step:
                distance = None if teacher is None else ema_distance(teacher, student)
                about = {"epoch": round(epoch, 4), "hard_ratio": used(), "momentum": momentum}
                about |= {"lr": lr} if learnt is None else {"lr": lr, "competence": learnt.item()}
                found = {**mean_figures(figures), "ema_distance": distance}
                collapse.note(run.record(about, figures=found, prefix="pretrain"), run.log)
            if pictures.are_due(steps_done=step + 1, total_steps=steps.total):
                pictures.draw(student, teacher, hard_ratio=used(), step=step + 1, log=run.log)
            if steps.are_due(step + 1, every_epochs=config.run.probe_every):
                probe.run(student.encoder, step=step + 1, epoch=epoch, log=run.log)
            run.end_step(checkpoint)
        return run.is_complete
