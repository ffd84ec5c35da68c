"""Pre-training: the step, which is the method, and the loop around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import parameter_count
from torch import Tensor, nn

from hpm_video import losses
from hpm_video.bad_steps import step_unless
from hpm_video.checkpoint import load_weights
from hpm_video.config import LossConfig, MaskingConfig, PretrainConfig, config_to_dict
from hpm_video.data.bad_videos import BadVideos
from hpm_video.data.loader import clip_batches, steps_per_epoch, to_clips
from hpm_video.data.manifest import read_manifest
from hpm_video.distributed import World, join_world, replicate, sync_gradients
from hpm_video.health import ema_distance, mask_figures, mean_figures
from hpm_video.loop import Run, autocast, seed_of
from hpm_video.masking import (
    Rows,
    hard_mask,
    hard_ratio_at,
    num_hard_units,
    num_reconstructed_tokens,
    num_visible_tokens,
    random_mask,
    reconstructed_tokens,
    unit_scores,
)
from hpm_video.models import build_model, token_grid
from hpm_video.models.hpm import HPM
from hpm_video.optim import describe_lr, lr_schedule, pretrain_optimizer, set_lr
from hpm_video.pictures import Pictures
from hpm_video.run_folder import check_run_folder, claim_run_folder, find_start
from hpm_video.teacher import View, make_teacher, momentum_at, score_tokens, update_teacher
from hpm_video.tokens import (
    TokenGrid,
    gather_tokens,
    normalize_targets,
    patchify,
    scatter_tokens,
    split_mask,
)

METRICS = ("loss", "reconstruction_loss", "prediction_loss", "grad_norm")


@dataclass(frozen=True)
class PretrainStep:
    """One forward pass: scalars with gradient, and what was compared for the prediction.

    prediction_loss: 0 without a predictor.
    predicted, measured (B, K): predicted and measured loss of the K masked tokens (or units) that
    are ranked; None without a predictor.
    mask (B, N): True = masked; made from the teacher's scores (B, N), None for a random mask.
    masked (B, M): the tokens whose loss was measured, token_losses (B, M), and predicted,
    token_predictions (B, M), None without a predictor.
    """

    loss: Tensor
    reconstruction_loss: Tensor
    prediction_loss: Tensor
    predicted: Tensor | None
    measured: Tensor | None
    mask: Tensor
    scores: Tensor | None
    masked: Tensor
    token_losses: Tensor
    token_predictions: Tensor | None


def pretrain_step(
    student: nn.Module,
    teacher: HPM | None,
    clips: Tensor,
    *,
    grid: TokenGrid,
    masking: MaskingConfig,
    loss: LossConfig,
    hard_ratio: float,
    token_ratio: float,
    view: View = "tokens",
    draws: int = 1,
    generator: torch.Generator,
    precision: str = "float32",
    rows: Rows | None = None,
) -> PretrainStep:
    """Score, mask, reconstruct, compare: clips (B, 3, T, H, W) in [0, 1] -> `PretrainStep`.

    The teacher, if there is one, predicts which tokens will be hard, the mask takes the hardest
    share ``hard_ratio`` of them, the student reconstructs what is masked (with decoder masking, a
    share of it) and predicts its own loss on it. ``token_ratio``, ``view`` and ``draws`` say what
    the teacher sees, see `score_tokens`. Pure compute: no optimizer, no global random state.
    ``rows`` as in `random_mask`.
    """
    tube_length = masking.tube_length or grid.time
    mask_ratio = masking.mask_ratio
    scores = None
    with autocast(clips.device, precision):
        if teacher is not None and hard_ratio > 0:
            scores = score_tokens(
                teacher,
                clips,
                token_ratio=token_ratio,
                view=view,
                draws=draws,
                generator=generator,
                rows=rows,
            )
            mask = hard_mask(
                scores,
                grid,
                mask_ratio=mask_ratio,
                hard_ratio=hard_ratio,
                tube_length=tube_length,
                generator=generator,
                rows=rows,
            )
        else:
            mask = random_mask(
                len(clips),
                grid,
                mask_ratio=mask_ratio,
                tube_length=tube_length,
                generator=generator,
                device=clips.device,
                rows=rows,
            )
        num_visible = num_visible_tokens(grid, mask_ratio=mask_ratio, tube_length=tube_length)
        kept = None
        if masking.decoder_mask_ratio > 0:
            kept = reconstructed_tokens(
                mask,
                grid,
                num_kept=num_reconstructed_tokens(
                    grid,
                    mask_ratio=mask_ratio,
                    tube_length=tube_length,
                    decoder_mask_ratio=masking.decoder_mask_ratio,
                ),
                pattern=masking.decoder_mask,
                generator=generator,
                rows=rows,
            )
        output = student(clips, mask, num_visible, kept)

    targets = gather_tokens(patchify(clips, grid), output.masked)
    if loss.normalize_targets:
        targets = normalize_targets(targets)
    token_losses = losses.reconstruction_loss(output.reconstruction, targets)  # (B, M)
    reconstruction = token_losses.mean()
    if output.predicted_loss is None or loss.prediction == "none":
        return PretrainStep(
            loss=reconstruction,
            reconstruction_loss=reconstruction,
            prediction_loss=torch.zeros_like(reconstruction),
            predicted=None,
            measured=None,
            mask=mask,
            scores=scores,
            masked=output.masked,
            token_losses=token_losses.detach(),
            token_predictions=None,
        )

    measured = token_losses.detach()
    predicted = token_predictions = output.predicted_loss.gather(1, output.masked)
    if loss.ranking_level == "unit":
        assert kept is None, "units are not compared by parts"
        measured = _mean_per_masked_unit(measured, output.masked, mask, grid, tube_length)
        predicted = _mean_per_masked_unit(predicted, output.masked, mask, grid, tube_length)
    objective = losses.ranking_loss if loss.prediction == "ranking" else losses.absolute_loss
    prediction = objective(predicted, measured)
    total = reconstruction + loss.prediction_weight * prediction
    return PretrainStep(
        loss=total,
        reconstruction_loss=reconstruction,
        prediction_loss=prediction,
        predicted=predicted.detach(),
        measured=measured,
        mask=mask,
        scores=scores,
        masked=output.masked,
        token_losses=token_losses.detach(),
        token_predictions=token_predictions.detach(),
    )


def _mean_per_masked_unit(
    values: Tensor, masked: Tensor, mask: Tensor, grid: TokenGrid, tube_length: int
) -> Tensor:
    """Mean over each masked mining unit: (B, M) at index masked -> (B, masked units)."""
    canvas = values.new_zeros(mask.shape)
    per_token = scatter_tokens(canvas[..., None], masked, values[..., None]).squeeze(-1)
    unit_is_masked = unit_scores(mask.float(), grid, tube_length) > 0.5
    visible_units = unit_is_masked.shape[1] - values.shape[1] // tube_length
    _, units = split_mask(unit_is_masked, visible_units)
    return unit_scores(per_token, grid, tube_length).gather(1, units)


def step_figures(
    step: PretrainStep, *, grid: TokenGrid, masking: MaskingConfig, hard_ratio: float
) -> dict[str, Tensor | None]:
    """Rank accuracy and `mask_figures` of a step: scalars on its device."""
    tube_length = masking.tube_length or grid.time
    accuracy = None
    if step.predicted is not None and step.measured is not None:
        accuracy = losses.rank_accuracy(step.predicted, step.measured)
    figures = mask_figures(
        mask=step.mask,
        scores=step.scores,
        index=step.masked,
        measured=step.token_losses,
        predicted=step.token_predictions,
        grid=grid,
        tube_length=tube_length,
        num_hard=num_hard_units(
            grid,
            mask_ratio=masking.mask_ratio,
            tube_length=tube_length,
            hard_ratio=hard_ratio,
        ),
    )
    return {"rank_accuracy": accuracy, **figures}


def pretrain(config: PretrainConfig) -> bool:
    """Run, or continue, the pre-training of a config; returns whether it is complete."""
    with join_world(config.run.device) as world:
        return _pretrain(config, world)


def _pretrain(config: PretrainConfig, world: World) -> bool:
    data, optim, masking = config.data, config.optim, config.masking
    folder = check_run_folder(config)
    grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
    tube_length = masking.tube_length or grid.time
    num_reconstructed_tokens(  # or refuse
        grid,
        mask_ratio=masking.mask_ratio,
        tube_length=tube_length,
        decoder_mask_ratio=masking.decoder_mask_ratio,
    )
    manifest = read_manifest(data.manifest, root=data.root, labels=False)
    videos_per_step = data.batch_size * optim.accumulation * world.size
    clips_per_step = videos_per_step * data.repeats
    epoch_steps = steps_per_epoch(len(manifest), videos_per_step)
    total_steps = optim.epochs * epoch_steps
    lr_at = lr_schedule(
        optim, videos=videos_per_step, clips=clips_per_step, steps_per_epoch=epoch_steps
    )

    torch.manual_seed(config.run.seed)
    student = build_model(config.model, grid, predict_loss=config.loss.prediction != "none")
    start = find_start(config, folder, kind="pretrain", total_steps=total_steps)
    if (start.trained_grid() or grid) != grid:
        raise ValueError(
            f"checkpoint ({start.source}) was trained on a grid of {start.trained_grid()}: "
            f"pre-training can only go on with the same one, not {grid}"
        )
    start.load_into(student)
    if start.state is not None and masking.mines and start.state["teacher"] is None:
        raise ValueError(f"checkpoint ({start.source}) has no teacher: this run mines hard tubes")
    claim_run_folder(folder, config, world)
    student.to(world.device)
    teacher = make_teacher(student) if masking.mines else None
    optimizer = pretrain_optimizer(student, optim)
    if start.state is not None:
        optimizer.load_state_dict(start.state["optimizer"])
        if teacher is not None:
            load_weights(teacher, start.state["teacher"], source="teacher")
    if config.run.compile:
        student.compile()
    model = replicate(student, world)

    def checkpoint() -> dict[str, Any]:
        return {
            "kind": "pretrain",
            "config": config_to_dict(config),
            "model": student.state_dict(),
            "teacher": None if teacher is None else teacher.state_dict(),
            "optimizer": optimizer.state_dict(),
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
        run.log.line(
            f"{parameter_count(student)[''] / 1e6:.1f} M parameters, {len(manifest)} videos, "
            f"{epoch_steps} steps per epoch, {total_steps} steps in all"
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
        )
        generator = torch.Generator(world.device)
        pictures = Pictures(config, manifest, grid)
        for step in run.steps():
            progress = (step + 1) / total_steps
            hard_ratio = hard_ratio_at(progress, masking.hard_ratio_start, masking.hard_ratio_end)
            set_lr(optimizer, lr := lr_at(step))
            # Stochastic depth, the one user of the global generator, follows (seed, step, rank).
            torch.manual_seed(seed_of(config.run.seed, step, world.rank))
            sums = torch.zeros(3, device=world.device)
            parts = []
            for micro_batch in range(optim.accumulation):
                batch = run.next(batches, clips_per_step // optim.accumulation)
                clips = to_clips(batch.clips, world.device)
                # Masks follow (seed, step) and the clip's place in the step's whole batch.
                generator.manual_seed(seed_of(config.run.seed, step))
                first = (micro_batch * world.size + world.rank) * len(clips)
                with sync_gradients(model, micro_batch + 1 == optim.accumulation):
                    result = pretrain_step(
                        model,
                        teacher,
                        clips,
                        grid=grid,
                        masking=masking,
                        loss=config.loss,
                        hard_ratio=hard_ratio,
                        token_ratio=config.teacher.token_ratio,
                        view=config.teacher.view,
                        draws=config.teacher.draws,
                        generator=generator,
                        precision=config.run.precision,
                        rows=(first, clips_per_step),
                    )
                    (result.loss / optim.accumulation).backward()
                scalars = [result.loss, result.reconstruction_loss, result.prediction_loss]
                sums += torch.stack(scalars).detach() / optim.accumulation
                if run.is_log_step:
                    part = step_figures(result, grid=grid, masking=masking, hard_ratio=hard_ratio)
                    parts.append(part)
            norm = nn.utils.clip_grad_norm_(student.parameters(), optim.clip_grad or float("inf"))
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
            run.end_step(checkpoint)
        return run.is_complete
