"""Pre-training: the loop around the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fvcore.nn import parameter_count

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.bad_videos import BadVideos
from hpm_video.data.loading.loader import clip_batches, steps_per_epoch
from hpm_video.method.diagnostics import ema_distance, mean_figures
from hpm_video.method.masking import (
    hard_ratio_at,
    num_reconstructed_tokens,
)
from hpm_video.method.step import configured_step, step_figures
from hpm_video.method.teacher import Teacher, describe_view, momentum_at, update_teacher
from hpm_video.models.build import build_model, token_grid
from hpm_video.models.parallel import clip_gradients, spread
from hpm_video.runtime.distributed import World, join_world, seed_of, sync_gradients
from hpm_video.train.optim import (
    describe_lr,
    lr_schedule,
    micro_batches,
    pretrain_optimizer,
    set_lr,
)
from hpm_video.train.run.bad_steps import step_unless
from hpm_video.train.run.folder import claim_run_folder, run_folder
from hpm_video.train.run.loop import Run
from hpm_video.train.run.optimizer_state import optimizer_state
from hpm_video.train.run.pictures import Pictures
from hpm_video.train.run.probes import RunProbe
from hpm_video.train.run.start import describe_data, find_start
from hpm_video.weights.checkpoint import load_weights

METRICS = ("loss", "reconstruction_loss", "prediction_loss", "grad_norm")


def pretrain(config: PretrainConfig) -> bool:
    """Run, or continue, the pre-training of a config; returns whether it is complete."""
    with (
        join_world(config.run.device, timeout_s=config.run.collective_timeout_s) as world,
        run_folder(config) as folder,
    ):
        return _pretrain(config, folder, world)


def _pretrain(config: PretrainConfig, folder: Path, world: World) -> bool:
    data, optim, masking = config.data, config.optim, config.masking
    grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
    tube_length = masking.tube_length or grid.time
    num_reconstructed_tokens(  # or refuse
        grid,
        mask_ratio=masking.mask_ratio,
        tube_length=tube_length,
        decoder_mask_ratio=masking.decoder_mask_ratio,
    )
    manifest = read_manifest(data.manifest, root=data.root, labels=False)
    accumulation = micro_batches(optim, batch_size=data.batch_size, num_processes=world.size)
    videos_per_step = data.batch_size * accumulation * world.size
    clips_per_step = videos_per_step * data.repeats
    epoch_steps = steps_per_epoch(len(manifest), videos_per_step)
    total_steps = optim.epochs * epoch_steps
    lr_at = lr_schedule(
        optim, videos=videos_per_step, clips=clips_per_step, steps_per_epoch=epoch_steps
    )

    torch.manual_seed(config.run.seed)
    student = build_model(config.model, grid, predict_loss=config.loss.prediction != "none")
    data_of_steps = describe_data(manifest, videos_per_step=videos_per_step)
    start = find_start(config, folder, kind="pretrain", total_steps=total_steps, data=data_of_steps)
    if (start.trained_grid() or grid) != grid:
        raise ValueError(
            f"checkpoint ({start.source}) was trained on a grid of {start.trained_grid()}: "
            f"pre-training can only go on with the same one, not {grid}"
        )
    initialised = start.load_into(student)
    if start.state is not None and masking.mines and start.state["teacher"] is None:
        raise ValueError(f"checkpoint ({start.source}) has no teacher: this run mines hard tubes")
    probe = RunProbe(config, student.encoder, world)
    claim_run_folder(folder, config, world, last=start.last)
    if world.is_main:
        start.write_table(folder, student, initialised)
    teacher = Teacher(student) if masking.mines else None
    if teacher is not None:
        if start.state is not None:
            load_weights(teacher, start.state["teacher"], source="teacher")
        spread(teacher, world, config.run)
    model = spread(student, world, config.run)
    optimizer = pretrain_optimizer(student, optim)
    start.load_optimizer(optimizer, student)
    start.forget_weights()

    def checkpoint() -> dict[str, Any]:
        return {
            "kind": "pretrain",
            "config": config_to_dict(config),
            "data": data_of_steps,
            "model": student.state_dict(),
            "teacher": None if teacher is None else teacher.state_dict(),
            "optimizer": optimizer_state(optimizer, student),
        }

    bad_videos = BadVideos(folder, manifest, max_fraction=data.max_bad_fraction)
    with Run(
        config.run,
        folder,
        world,
        metrics=METRICS,
        manifest=manifest,
        bad_videos=bad_videos,
        total_steps=total_steps,
        state=start.state,
    ) as run:
        run.log.line(start.line)
        if initialised:
            run.log.line(f"not in it, so as initialised: {', '.join(initialised)}")
        run.log.line(
            f"{parameter_count(student)[''] / 1e6:.1f} M parameters, {len(manifest)} videos, "
            f"{epoch_steps} steps per epoch, {total_steps} steps in all"
        )
        if teacher is not None:
            sight = config.teacher
            run.log.line(
                describe_view(
                    grid, token_ratio=sight.token_ratio, view=sight.view, draws=sight.draws
                )
            )
        run.log.line(describe_lr(optim, videos=videos_per_step, clips=clips_per_step))
        batches = clip_batches(
            manifest,
            data,
            accumulation=accumulation,
            world=world,
            seed=config.run.seed,
            start_step=run.steps_done,
            num_steps=total_steps,
            given_up=run.bad_videos.given_up,
        )
        compute = configured_step(config, grid)
        generator = torch.Generator(world.device)
        pictures = Pictures(config, manifest, grid)
        if run.steps_done == 0 and config.run.probe_every:
            probe.run(student.encoder, step=0, epoch=0, log=run.log)
        for step in run.steps():
            progress = (step + 1) / total_steps
            hard_ratio = hard_ratio_at(progress, masking.hard_ratio_start, masking.hard_ratio_end)
            set_lr(optimizer, lr := lr_at(step))
            # Stochastic depth, the one user of the global generator, follows (seed, step, rank).
            torch.manual_seed(seed_of(config.run.seed, step, world.rank))
            sums = torch.zeros(3, device=world.device)
            parts = []
            for micro_batch in range(accumulation):
                batch = run.next(batches, clips_per_step // accumulation)
                clips = batch.on(world.device)
                # Masks follow (seed, step) and the clip's place in the step's whole batch.
                generator.manual_seed(seed_of(config.run.seed, step))
                first = (micro_batch * world.size + world.rank) * len(clips)
                with sync_gradients(model, micro_batch + 1 == accumulation):
                    result = compute(
                        model,
                        teacher,
                        clips,
                        hard_ratio=hard_ratio,
                        generator=generator,
                        rows=(first, clips_per_step),
                    )
                    (result.loss / accumulation).backward()
                scalars = [result.loss, result.reconstruction_loss, result.prediction_loss]
                sums += torch.stack(scalars).detach() / accumulation
                if run.is_log_step:
                    part = step_figures(result, grid=grid, masking=masking, hard_ratio=hard_ratio)
                    parts.append(part)
            norm = clip_gradients(student, optim.clip_grad)
            skip = run.add([*sums, norm])
            step_unless(skip, optimizer)
            optimizer.zero_grad()
            momentum = None
            if teacher is not None:
                momentum = momentum_at(
                    progress,
                    start=config.teacher.momentum_start,
                    end=config.teacher.momentum_end,
                    ramp=config.teacher.ramp,
                )
                update_teacher(teacher, student, momentum, skip=skip)
            if run.is_log_step:
                distance = None if teacher is None else ema_distance(teacher, student)
                run.record(
                    {
                        "epoch": round((step + 1) / epoch_steps, 4),
                        "hard_ratio": hard_ratio,
                        "momentum": momentum,
                        "lr": lr,
                    },
                    figures={**mean_figures(parts), "ema_distance": distance},
                    prefix="pretrain",
                )
            if pictures.are_due(steps_done=step + 1, total_steps=total_steps):
                pictures.draw(student, teacher, hard_ratio=hard_ratio, step=step + 1, log=run.log)
            if probe.is_due(
                steps_done=step + 1, steps_per_epoch=epoch_steps, total_steps=total_steps
            ):
                epoch = (step + 1) / epoch_steps
                probe.run(student.encoder, step=step + 1, epoch=epoch, log=run.log)
            run.end_step(checkpoint)
        return run.is_complete
