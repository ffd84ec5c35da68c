"""Fine-tuning for action recognition, from a pre-trained encoder or from scratch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpm_video.bad_steps import step_unless
from hpm_video.best import BEST, BestCheckpoint
from hpm_video.config import FinetuneConfig
from hpm_video.data.bad_videos import BadVideos
from hpm_video.data.loader import clip_batches, steps_per_epoch, to_clips
from hpm_video.data.manifest import read_manifest
from hpm_video.distributed import World, join_world, replicate, sync_gradients
from hpm_video.evaluate import check_labels, evaluate_classifier
from hpm_video.loop import Run, autocast, seed_of
from hpm_video.losses import balancing_weights, classification_loss
from hpm_video.models import build_classifier, token_grid
from hpm_video.optim import describe_lr, finetune_optimizer, lr_schedule, set_lr
from hpm_video.run_folder import check_run_folder, claim_run_folder, find_start
from hpm_video.settings import config_to_dict


def finetune(config: FinetuneConfig) -> bool:
    """Run, or continue, the fine-tuning of a config; returns whether it is complete."""
    with join_world(config.run.device) as world:
        return _finetune(config, world)


def _finetune(config: FinetuneConfig, world: World) -> bool:
    data, optim = config.data, config.optim
    folder = check_run_folder(config)
    grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
    manifest = read_manifest(data.manifest, root=data.root)
    num_classes = manifest.num_classes
    if num_classes == 0:
        raise ValueError(f"data.manifest ({', '.join(data.manifest)}) must have labels: has none")
    check_labels(manifest, num_classes)
    validation = None
    if data.val_manifest:
        validation = read_manifest(data.val_manifest, root=data.root, classes=manifest.classes)
        check_labels(validation, num_classes)
    videos_per_step = data.batch_size * optim.accumulation * world.size
    clips_per_step = videos_per_step * data.repeats
    epoch_steps = steps_per_epoch(len(manifest), videos_per_step)
    total_steps = optim.epochs * epoch_steps
    lr_at = lr_schedule(
        optim, videos=videos_per_step, clips=clips_per_step, steps_per_epoch=epoch_steps
    )

    torch.manual_seed(config.run.seed)
    start = find_start(config, folder, kind="finetune", total_steps=total_steps)
    trained_grid = start.trained_grid() or grid
    model = build_classifier(config.model, grid, num_classes=num_classes, trained_grid=trained_grid)
    start.load_into(model)
    claim_run_folder(folder, config, world)
    model.to(world.device)
    optimizer = finetune_optimizer(model, optim)
    if start.state is not None:
        optimizer.load_state_dict(start.state["optimizer"])
    if config.run.compile:
        model.compile()
    replica = replicate(model, world)
    class_weights = None
    if optim.class_balance == "weights":
        weights = balancing_weights(torch.from_numpy(manifest.labels), num_classes)
        class_weights = weights.to(world.device)
    best = None
    if world.is_main and config.evaluation.every_epochs:
        best = BestCheckpoint(folder / "checkpoints", is_new=start.state is None)

    def checkpoint() -> dict[str, Any]:
        return {
            "kind": "finetune",
            "config": config_to_dict(config),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "num_classes": num_classes,
            "classes": None if manifest.classes is None else list(manifest.classes),
            "trained_grid": [trained_grid.time, trained_grid.height, trained_grid.width],
        }

    with Run(
        config.run,
        folder,
        world,
        metrics=("loss", "grad_norm"),
        manifest=manifest,
        bad_videos=BadVideos(folder, manifest, max_fraction=data.max_bad_fraction),
        total_steps=total_steps,
        state=start.state,
    ) as run:
        run.log.line(start.line)
        run.log.line(
            f"{num_classes} classes, {len(manifest)} videos, {epoch_steps} steps per epoch, "
            f"{total_steps} steps in all"
        )
        run.log.line(describe_lr(optim, videos=videos_per_step, clips=clips_per_step))
        batches = clip_batches(
            manifest,
            data,
            accumulation=optim.accumulation,
            world=world,
            seed=config.run.seed,
            start_step=run.steps_done,
            num_steps=total_steps,
            given_up=run.bad_videos.given_up,
        )
        model.train()
        for step in run.steps():
            set_lr(optimizer, lr := lr_at(step))
            # Dropout and stochastic depth follow (seed, step, rank): nothing to save for a resume.
            torch.manual_seed(seed_of(config.run.seed, step, world.rank))
            total = torch.zeros((), device=world.device)
            for micro_batch in range(optim.accumulation):
                batch = run.next(batches, clips_per_step // optim.accumulation)
                clips = to_clips(batch.clips, world.device)
                labels = batch.labels.to(world.device, non_blocking=True)
                with sync_gradients(replica, micro_batch + 1 == optim.accumulation):
                    with autocast(world.device, config.run.precision):
                        logits = replica(clips)
                    loss = classification_loss(
                        logits,
                        labels,
                        label_smoothing=optim.label_smoothing,
                        class_weights=class_weights,
                    )
                    (loss / optim.accumulation).backward()
                total += loss.detach() / optim.accumulation
            norm = nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad or float("inf"))
            step_unless(run.add([total, norm]), optimizer)
            optimizer.zero_grad()
            epoch = (step + 1) / epoch_steps
            if run.is_log_step:
                run.record({"epoch": round(epoch, 4), "lr": lr}, prefix="finetune")
            every = config.evaluation.every_epochs
            is_last = step + 1 == total_steps
            if validation is not None and (is_last or (every and epoch % every == 0)):
                result = evaluate_classifier(
                    model,
                    validation,
                    data=data,
                    evaluation=config.evaluation,
                    precision=config.run.precision,
                    num_workers=data.num_workers,
                    decode_timeout_s=data.decode_timeout_s,
                    world=world,
                )
                for index, reason in result.bad:
                    run.log.line(f"unreadable, counts as wrong: {validation.path(index)}: {reason}")
                done = {"step": step + 1, "epoch": round(epoch, 4)}
                run.log.record({**done, **result.figures()}, prefix="evaluation")
                if best and best.offer(checkpoint(), step=step + 1, top1=result.top(1)):
                    run.log.line(f"the best so far, kept: checkpoints/{BEST}")
            run.end_step(checkpoint)
        return run.is_complete
