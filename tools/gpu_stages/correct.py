"""Does the device compute what the CPU computes? A step of every variant, its parts, its loop."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from gpu_stages.formulas import plain_patch_loss, plain_ranking_loss
from gpu_stages.stage import Stage
from gpu_stages.states import saved_tensors
from hpm_video.bench.steps import grid_of, random_frames
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import clip_batches, to_clips
from hpm_video.method import decoder_masking, masking, teacher_views
from hpm_video.method import step as method_step
from hpm_video.method import targets as method_targets
from hpm_video.method.losses import (
    patch_loss,
    ranking_loss,
    reconstruction_loss,
)
from hpm_video.method.step import PretrainStep, configured_step
from hpm_video.method.teacher import Teacher, teacher_of
from hpm_video.models.build import HPM, build
from hpm_video.models.tokens import gather_tokens, normalize_targets
from hpm_video.runtime.distributed import World
from hpm_video.train.pretrain import pretrain
from hpm_video.train.run import Run

FLOAT32, BFLOAT16 = 1e-4, 2e-2  # largest relative differences from float64
CROP = 2 / 255  # torchvision rounds to whole levels after each of two directions
CPU = torch.device("cpu")
_OTHER_PARTS_S = 25  # what follows the variants

# Of configs/ablation/variants.yaml; others differ in numbers only
VARIANTS = (
    "videomae", "hpm_ranking", "literal", "loss_prediction_only", "pixels", "hpm_absolute",
    "ranking_units", "all_hard", "tube_length_2", "decoder_mask", "decoder_mask_random",
    "both_fast", "motion", "measured", "blocks", "target_ema",
)  # fmt: skip


def run(stage: Stage) -> None:
    with stage.measuring("variants"):
        variants(stage)
    with stage.measuring("ranking loss"):
        ranking(stage)
    with stage.measuring("patch loss"):
        patches(stage)
    with stage.measuring("crops on the device"):
        crops(stage)
    with stage.measuring("three steps of the loop"):
        loop_without_waiting(stage)
    with stage.measuring("a step with a NaN"):
        step_with_nan(stage)


def variants(stage: Stage) -> None:
    """One step of each variant: masks, losses and gradients, the worst of all variants."""
    names = stage.either(
        VARIANTS,
        (
            "videomae",
            "hpm_ranking",
            "pixels",
            "both_fast",
            "motion",
            "measured",
            "blocks",
            "target_ema",
        ),
    )
    found = {}
    for name in names:
        if stage.seconds_left > _OTHER_PARTS_S or not found:
            found[name] = compare(variant(stage, name), stage.device)
    differ = [name for name, of in found.items() if of["masks"]]
    note = f"differ: {', '.join(differ)}" if differ else ""
    stage.row(
        "masks of the same noise",
        ok=not differ,
        variants=f"{len(found)} of {len(names)}",
        note=note,
    )
    for precision, limit in (("float32", FLOAT32), ("bfloat16", BFLOAT16)):
        worst: dict[str, float] = {}
        for what in ("losses", "gradients", "scores"):
            values = [of[key] for of in found.values() if (key := f"{precision} {what}") in of]
            if values:
                worst[what] = max(values)
        ok = max(worst.values()) <= limit
        stage.row(f"{precision} against float64", ok=ok, **worst, limit=limit)


def variant(stage: Stage, name: str) -> PretrainConfig:
    """A variant with a tiny model on small clips, halfway through its mining."""
    file = Path(__file__).resolve().parents[2] / "configs" / "ablation" / "variants.yaml"
    settings = stage.either(
        ["model.size=tiny", "data.num_frames=16", "data.crop_size=112"],
        [
            *("model.width=32", "model.heads=2", "model.depth=2", "data.num_frames=8"),
            *("model.decoder_width=32", "model.decoder_heads=2", "data.crop_size=64"),
        ],
    )
    return load_config(
        PretrainConfig, f"{file}:{name}", [*settings, "data.batch_size=2", "run.precision=float32"]
    )


def compare(config: PretrainConfig, device: torch.device) -> dict[str, float]:
    """Relative differences of a step on the device from the CPU's, in float32 and bfloat16."""
    student, clips = build_here(config), to_clips(random_frames(config), CPU)
    teacher = teacher_of(student, config)
    exact, gradient, scores = exact_step(config, student, teacher, clips)
    student.to(device)
    if teacher is not None:
        teacher.to(device)
    found: dict[str, float] = {"masks": 0}
    for precision in ("float32", "bfloat16"):
        run = replace(config.run, precision=precision)
        with order_of(exact):
            result = step_with(replace(config, run=run), student, teacher, clips.to(device), scores)
        found["masks"] += not result.mask.cpu().equal(exact.mask)
        losses = [relative(result.losses[name], exact.losses[name]) for name in exact.losses]
        losses.append(relative(result.token_losses, exact.token_losses))
        student.zero_grad()
        result.loss.backward()
        found[f"{precision} losses"] = max(losses)
        found[f"{precision} gradients"] = relative(gradient_of(student), gradient)
    if scores is not None:
        with cpu_noise():
            own = run_step(config, student, teacher, clips.to(device))
        assert own.scores is not None
        found["float32 scores"] = relative(own.scores.nan_to_num(), scores.nan_to_num())
    return found


def build_here(config: PretrainConfig) -> HPM:
    torch.manual_seed(0)
    student = build(config)
    with torch.no_grad():  # predictions of a fresh head are all but equal
        for name, parameter in student.named_parameters():
            if "predictor.head" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return student


def exact_step(
    config: PretrainConfig, student: HPM, teacher: Teacher | None, clips: Tensor
) -> tuple[PretrainStep, Tensor, Tensor | None]:
    """The step on the CPU in float64, its gradient, and the scores, of float32, behind its mask."""
    with cpu_noise():
        scores = run_step(config, student, teacher, clips).scores
    models = [student, *([] if teacher is None else [teacher])]
    with in_float64():
        for model in models:
            model.double()
        result = step_with(config, student, teacher, clips.double(), scores)
        student.zero_grad()
        result.loss.backward()
    gradient = gradient_of(student)
    for model in models:
        model.float()
    return result, gradient, scores


def step_with(
    config: PretrainConfig,
    student: HPM,
    teacher: Teacher | None,
    clips: Tensor,
    scores: Tensor | None,
    **how: Any,
) -> PretrainStep:
    """A step whose source of masks gives these scores, so that rounding changes no mask."""
    given = None if scores is None else scores.to(clips.device)
    with cpu_noise(), ExitStack() as patches:
        for source in ("score_tokens", "motion_scores", "measured_scores"):
            patches.enter_context(patch.object(method_step, source, lambda *_, **__: given))
        return run_step(config, student, teacher, clips, **how)


def run_step(
    config: PretrainConfig, student: HPM, teacher: Teacher | None, clips: Tensor, **how: Any
) -> PretrainStep:
    compute = configured_step(config, grid_of(config))
    generator = torch.Generator().manual_seed(0)
    return compute(student, teacher, clips, hard_ratio=0.5, generator=generator, **how)


@contextmanager
def cpu_noise() -> Iterator[None]:
    """All noise is drawn on the CPU, whose generator gives other numbers than the device's."""
    draw = masking.batch_noise

    def drawn(*sizes: int, device: torch.device, **how: Any) -> Tensor:
        return draw(*sizes, device="cpu", **how).to(device)

    with ExitStack() as patches:
        for module in (masking, decoder_masking, teacher_views):
            patches.enter_context(patch.object(module, "batch_noise", drawn))
        yield


@contextmanager
def order_of(exact: PretrainStep) -> Iterator[None]:
    """Predictors learn from the losses that the exact step measured: of near ones rounding changes
    the order, which with few tokens shows in the gradient."""
    parts = (exact, *([] if exact.pixels is None else [exact.pixels]))
    by_shape = {part.measured.shape: part.measured for part in parts if part.measured is not None}
    objectives = {
        name: lambda predicted, _, loss=loss: loss(
            predicted, by_shape[predicted.shape].to(predicted.device)
        )
        for name, loss in method_step.OBJECTIVES.items()
    }
    with patch.dict(method_step.OBJECTIVES, objectives):
        yield


@contextmanager
def in_float64() -> Iterator[None]:
    """What the method computes in float32 is computed in float64, by the plain formulas."""
    with (
        patch.object(Tensor, "float", Tensor.double),
        patch.object(method_targets, "patch_loss", plain_patch_loss),
        patch.dict(method_step.OBJECTIVES, ranking=plain_ranking_loss),
    ):
        yield


def gradient_of(model: torch.nn.Module) -> Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts).double().cpu()


def relative(found: Tensor, exact: Tensor | None) -> float:
    """|found - exact| / |exact|, L2 norms; infinite where something is not a number."""
    assert exact is not None
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    difference = float((found - exact).norm() / exact.norm().clamp(min=1e-12))
    return difference if math.isfinite(difference) else math.inf


def with_gradient(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[Tensor, Tensor]:
    leaf = leaf.detach().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value.mean(), leaf)
    return value, gradient


def ranking(stage: Stage) -> None:
    shape = stage.either((64, 1408), (4, 176))
    predicted, measured = torch.rand(2, *shape, device=stage.device).unbind()
    measured = (measured * 500).round() / 500  # with ties
    value, gradient = with_gradient(partial(ranking_loss, measured=measured), predicted)
    parts = [
        with_gradient(partial(plain_ranking_loss, measured=m.double()), p.double())
        for p, m in zip(predicted.split(4), measured.split(4), strict=True)  # pairs take memory
    ]
    exact = torch.stack([part for part, _ in parts]).mean()
    exact_gradient = torch.cat([part for _, part in parts]) / len(parts)
    found = max(relative(value, exact), relative(gradient, exact_gradient))
    stage.check(f"ranking loss, {shape[0]} x {shape[1]}", found, FLOAT32)


def patches(stage: Stage) -> None:
    batch, masked, tokens, values = stage.either((64, 1408, 1568, 1536), (4, 176, 196, 384))
    every = torch.rand(batch, tokens, values, device=stage.device)
    index = torch.rand(batch, tokens, device=stage.device).argsort(dim=1)[:, :masked]
    reconstruction = torch.randn(batch, masked, values, device=stage.device)
    found = 0.0
    loss = partial(patch_loss, patches=every, index=index, normalize=True)
    value, gradient = with_gradient(loss, reconstruction)
    for clips in torch.arange(batch).split(8):
        targets = normalize_targets(gather_tokens(every[clips], index[clips]))
        with patch.object(Tensor, "float", Tensor.double):
            exact, exact_gradient = with_gradient(
                partial(reconstruction_loss, targets=targets), reconstruction[clips].double()
            )
        exact_gradient *= len(clips) / batch
        found = max(found, relative(value[clips], exact), relative(gradient[clips], exact_gradient))
    stage.check(f"patch loss, {batch} x {masked}", found, FLOAT32)


def crops(stage: Stage) -> None:
    """Crops that the device makes of whole frames, against those that workers make."""
    manifest = read_manifest(stage.manifest(), labels=False)
    made = []
    for place in ("workers", "device"):
        data = stage.crop_data(place, batch_size=4)
        batches = clip_batches(
            manifest,
            data,
            accumulation=1,
            world=World(0, 1, CPU),
            seed=0,
            start_step=0,
            num_steps=2,
        )
        made.append([batch.on(stage.device).cpu() for batch in batches])
    pairs = list(zip(*made, strict=True))
    furthest = max(float((one - other).abs().max()) for one, other in pairs)
    mean = sum(float((one - other).abs().mean()) for one, other in pairs) / len(pairs)
    stage.check("crops on the device", furthest, CROP, mean=mean)


def loop_without_waiting(stage: Stage) -> None:
    """Steps 5 to 7 of a run must not wait for the device: PyTorch raises an error if one does."""
    steps, watched = Run.steps, range(4, 7)

    def watched_steps(run: Run) -> Iterator[int]:
        for step in steps(run):
            if stage.on_gpu:
                mode = "error" if step in watched else "default"
                torch.cuda.set_sync_debug_mode(mode)
            yield step

    config = stage.run(Path(stage.folder) / "loop", steps=8)
    try:
        with patch.object(Run, "steps", watched_steps):
            complete = pretrain(config)
    finally:
        if stage.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    note = "" if stage.on_gpu else "ran without the check for waits, which needs CUDA"
    stage.row("three steps of the loop", ok=complete, waits=0 if stage.on_gpu else None, note=note)


def step_with_nan(stage: Stage) -> None:
    """A last step whose loss is NaN leaves weights, moments and teacher as they are."""
    compute, count = method_step.pretrain_step, itertools.count(1)

    def spoiled(*given: Any, **named: Any) -> PretrainStep:
        step = compute(*given, **named)
        factor = torch.nan if next(count) == 3 else 1.0
        return replace(step, losses={name: loss * factor for name, loss in step.losses.items()})

    folder = Path(stage.folder) / "nan"
    config = stage.run(folder, "run.checkpoint_every_minutes=0", "run.keep_checkpoints=0", steps=3)
    with patch.object(method_step, "pretrain_step", spoiled):
        pretrain(config)
    before, after = (saved_tensors(folder / "checkpoints" / f"step_{k:08d}.pt") for k in (2, 3))
    changed = [name for name in before if not before[name].equal(after[name])]
    note = f"changed: {', '.join(changed[:3])}" if changed else ""
    stage.row(
        "a step with a NaN", ok=not changed, tensors=len(before), changed=len(changed), note=note
    )
