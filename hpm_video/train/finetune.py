"""Fine-tuning for action recognition, from a pre-trained encoder or from scratch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.nn import parameter_count
from torch import Tensor

from hpm_video.config import FinetuneConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.data.lists.directions import check_flip
from hpm_video.data.lists.manifest import (
    Manifest,
    check_fits_model,
    label_notes,
    require_labels,
)
from hpm_video.data.loading.mixture import mixture_of
from hpm_video.models.adapters import train_less
from hpm_video.models.build import Classifier, build
from hpm_video.models.compiling import compile_parts
from hpm_video.models.cuda_graphs import Replayed
from hpm_video.models.ema import average_of, follow
from hpm_video.models.parallel import clip_gradients, spread
from hpm_video.models.precision import autocast
from hpm_video.runtime.distributed import World, seed_of, sync_gradients
from hpm_video.train.admission import read_videos
from hpm_video.train.class_loss import balancing_weights, classification_loss, several_labels_loss
from hpm_video.train.mixing import mix_batch
from hpm_video.train.optim import (
    describe_learning,
    describe_lr,
    finetune_optimizer,
    plan_steps,
    set_lr,
)
from hpm_video.train.run import (
    Run,
    RunEvaluation,
    choose_for_machine,
    claim_run_folder,
    describe_changes,
    describe_data,
    find_start,
    join_run,
    optimizer_state,
    restore_if,
    running_means,
    step_unless,
)
from hpm_video.weights.checkpoint import load_weights


def finetune(
    config: FinetuneConfig, *, notes: Sequence[str] = (), manifest: Manifest | None = None
) -> bool:
    """Run or continue a fine-tuning; returns whether it is complete.

    ``notes``: log lines about the settings. ``manifest``: the training list, if already read.
    """
    with join_run(config) as (folder, world):
        return _finetune(config, folder, world, notes, manifest)


def _finetune(
    config: FinetuneConfig,
    folder: Path,
    world: World,
    notes: Sequence[str],
    manifest: Manifest | None,
) -> bool:
    data, optim, mixing = config.data, config.optim, config.mixing
    several = data.labels.are_several
    if manifest is None:
        manifest = read_videos(config)
    num_classes = require_labels(manifest, name="data.manifest", lists=data.manifest)
    check_fits_model(manifest, num_classes)
    directed = check_flip(manifest.classes or ()) if data.flip else []
    videos = mixture_of(manifest, data.weights)
    steps = plan_steps(data, optim, num_videos=videos.num_videos, num_processes=world.size)

    torch.manual_seed(config.run.seed)
    data_of_steps = describe_data(manifest, videos, videos_per_step=steps.videos)
    start = find_start(config, folder, kind="finetune", total_steps=steps.total, data=data_of_steps)
    start.check_labels(data.labels)
    start.check_classes(manifest.classes)
    config, choices = choose_for_machine(config, world, state=start.state, num_classes=num_classes)
    optim = config.optim
    steps = plan_steps(config.data, optim, num_videos=videos.num_videos, num_processes=world.size)
    evaluation = RunEvaluation(config, manifest, num_classes=num_classes, world=world)
    model = build(config, num_classes=num_classes, trained_grid=start.trained_grid())
    trained_grid = start.trained_grid() or (model.grid if isinstance(model, Classifier) else None)
    # Initial weights have no adapters; a run's own checkpoints do
    if start.state is None:
        start.load_into(model)
    train_less(model, config.model)
    start.check_what_learns(model, config.model)
    if start.state is not None:
        start.load_into(model)
    claim_run_folder(folder, config, world, last=start.last)
    if world.is_main:
        start.write_table(folder, model)
    average = average_of(model) if optim.ema_momentum is not None else None
    if average is not None:
        if start.state is not None:
            load_weights(average, start.state["model"], source=start.source or "")
        spread(average, world, config.run)
    replica = spread(model, world, config.run)
    optimizer = finetune_optimizer(model, optim)
    start.load_optimizer(optimizer, model)
    fit = start.describe_fit(model.encoder) if isinstance(model, Classifier) else []
    evaluation.keep_best(folder / "checkpoints", state=start.state)
    changes = describe_changes(config, start.state, steps=steps)
    start.forget_weights()
    moving = running_means(model)  # batch norms of baselines
    class_weights = None
    if optim.class_balance == "weights":
        shown = manifest.labels[videos.order(0, 0) % len(manifest)]  # as in an epoch
        weights = balancing_weights(torch.from_numpy(shown), num_classes)
        class_weights = weights.to(world.device)

    def checkpoint() -> dict[str, Any]:
        return {
            "kind": "finetune",
            "config": config_to_dict(config),
            "data": data_of_steps,
            "model": (model if average is None else average).state_dict(),
            "trained_model": None if average is None else model.state_dict(),
            "optimizer": optimizer_state(optimizer, model),
            "num_classes": num_classes,
            "classes": None if manifest.classes is None else list(manifest.classes),
            **evaluation.state(),
            "trained_grid": trained_grid
            and [trained_grid.time, trained_grid.height, trained_grid.width],
        }

    with Run(config, folder, world, manifest=manifest, steps=steps, state=start.state) as run:
        said, *missing = start.lines()
        for line in (said, *changes, *notes, *choices, *fit, *missing):
            run.log.line(line)
        run.log.line(
            f"{parameter_count(model)[''] / 1e6:.1f} M parameters, {num_classes} classes, "
            f"{len(manifest)} videos, {steps.per_epoch} steps per epoch, {steps.total} steps in all"
        )
        if manifest.label_sets is not None:
            run.log.line(manifest.label_sets.in_words())
        for line in videos.lines(data.manifest):
            run.log.line(line)
        for line in evaluation.lines:
            run.log.line(line)
        for warning in (*label_notes(manifest), *evaluation.warnings):
            run.log.line(f"warning: {warning}")
        if (learning := describe_learning(model)) is not None:
            run.log.line(learning)
        run.log.line(describe_lr(optim, videos=steps.videos, clips=steps.clips))
        if data.flip and manifest.classes is None:
            run.log.line(
                "data.flip: the list has no class names, so check that mirroring a video never "
                "changes its class; if it does, set data.flip=false"
            )
        if directed:
            run.log.line(
                f"data.flip: {len(directed)} class names mention a direction: {directed[0]}, ..."
            )
        batches = run.batches(config.augment)
        compile_parts({"classifier": model}, config.run, world, run.log.line)

        def learn(clips: Tensor, targets: Tensor) -> Tensor:
            """Loss of a micro-batch; adds its gradients."""
            with autocast(world.device, config.run.precision):
                logits = replica(clips)
            smoothing = optim.label_smoothing
            if several:
                loss = several_labels_loss(logits, targets, label_smoothing=smoothing)
            else:
                loss = classification_loss(
                    logits, targets, label_smoothing=smoothing, class_weights=class_weights
                )
            run.scaled(loss / steps.accumulation).backward()
            return loss.detach()

        uses_graphs = config.run.cuda_graphs == "true"
        replayed = Replayed(learn, capture=uses_graphs, say=run.log.line)
        model.train()
        if evaluation.is_over:
            run.end_early()
        for step in run.steps():
            set_lr(optimizer, lr := steps.lr_at(step))
            # Seed dropout and stochastic depth by (seed, step, rank), so a resume needs no state
            torch.manual_seed(seed_of(config.run.seed, step, world.rank))
            before = [value.clone() for value in moving]
            total = torch.zeros((), device=world.device)
            for micro_batch in range(steps.accumulation):
                batch = run.next(batches)
                clips = batch.on(world.device)
                targets = batch.labels.to(world.device, non_blocking=True)
                if mixing.is_on:
                    # Seeded by (seed, step) and the clips' place in the step's whole batch
                    first = (micro_batch * world.size + world.rank) * len(clips)
                    clips, targets = mix_batch(
                        clips,
                        targets,
                        mixing=mixing,
                        repeats=data.repeats,
                        num_classes=num_classes,
                        rng=np.random.default_rng((config.run.seed, step)),
                        rows=(first, steps.clips),
                    )
                with sync_gradients(replica, micro_batch + 1 == steps.accumulation):
                    total += replayed(clips, targets) / steps.accumulation
            run.unscale(model)
            norm = clip_gradients(model, optim.clip_grad)
            skip = run.add({"loss": total, "grad_norm": norm})
            step_unless(skip, optimizer)
            restore_if(skip, moving, before)
            optimizer.zero_grad(set_to_none=not uses_graphs)  # graphs need the same tensors
            if average is not None and optim.ema_momentum is not None:
                follow(average, model, optim.ema_momentum, skip=skip)
            epoch = (step + 1) / steps.per_epoch
            if run.is_log_step:
                run.record({"epoch": round(epoch, 4), "lr": lr}, prefix="finetune")
            if evaluation.is_due(step + 1, steps):
                evaluated = model if average is None else average
                evaluation.run(evaluated, checkpoint, step=step + 1, epoch=epoch, log=run.log)
                if evaluation.is_over:
                    run.end_early()
            run.end_step(checkpoint)
        if evaluation.is_over and run.steps_done < steps.total:
            run.log.line(evaluation.why_over())
        return run.is_complete
