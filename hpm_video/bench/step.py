"""One whole pre-training step: VideoMAE, hard patches mining in several forms, `transformers`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hpm_video.bench.flops import Variant, step_cost, variants
from hpm_video.bench.measure import at_least, matmul, pick_device, round_seconds, spread
from hpm_video.bench.report import Report, machine_facts
from hpm_video.config import LossConfig, MaskingConfig, ModelConfig, OptimConfig, TeacherConfig
from hpm_video.data.loader import to_clips
from hpm_video.loop import autocast
from hpm_video.masking import random_mask
from hpm_video.models import SIZES, build_model, token_grid
from hpm_video.models.hpm import PredictorInput
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.optim import pretrain_optimizer
from hpm_video.step import pretrain_step
from hpm_video.teacher import Teacher, update_teacher
from hpm_video.tokens import TokenGrid

HARD_RATIO = 0.5  # the default's at the end of a run; above 0 its value costs nothing
MOMENTUM = 0.999
# Largest relative difference of a first step's loss from that of float32, not compiled. Rounding
# moves scores too, and with them the masks.
_TOLERANCE = 0.01
_MATMUL = "a matrix product"


@dataclass(frozen=True)
class Setting:
    """What all sides share: frames (B, T, H, W, 3) uint8, made once, on the host."""

    model: ModelConfig
    grid: TokenGrid
    frames: Tensor
    device: torch.device
    precision: str
    compile: bool


def bench_step(
    *,
    size: str,
    batch_size: int,
    num_frames: int,
    crop_size: int,
    rounds: int,
    precision: str,
    compile_models: bool,
    predictor_inputs: Sequence[PredictorInput],
    token_ratios: Sequence[float],
    predictor_depths: Sequence[int],
    device: str,
) -> Report:
    """Frames to the device, scores, mask, forward, loss, backward, optimizer, EMA; ratios are to
    our plain VideoMAE. Masks are tubes of ratio .9, AdamW is the same for all.

    Our first losses are checked against float32 before anything is timed. ``utilisation``: the
    rate of a step's multiply-adds, as `hpm_video.bench.flops` counts them, as a share of the rate
    of a large matrix product timed in the same rounds.
    """
    for name, value in [("batch-size", batch_size), ("frames", num_frames)]:
        at_least(name, value, 1)
    at_least("crop-size", crop_size, 1)
    at_least("rounds", rounds, 1)
    model = ModelConfig(size=size)  # type: ignore[arg-type]
    grid = token_grid(model, num_frames=num_frames, crop_size=crop_size)
    wanted = variants(predictor_inputs, token_ratios, predictor_depths)
    place = pick_device(device)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, num_frames, crop_size, crop_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    setting = Setting(model, grid, frames, place, precision, compile_models)

    sides = {"VideoMAE": None, **{variant.name: variant for variant in wanted}}
    steps: dict[str, Callable[[], object]] = {}
    furthest = 0.0
    for name, variant in sides.items():
        steps[name] = step = our_step(setting, variant)
        furthest = max(furthest, _check(name, step(), setting, variant))
    costs = {name: _multiply_adds(model, grid, variant) for name, variant in sides.items()}
    notes = [
        f"hard_ratio {HARD_RATIO}; ratio to our VideoMAE",
        f"first losses are within {furthest:.1e} of float32's, not compiled",
    ]
    try:
        steps["transformers VideoMAE"], attention = transformers_step(setting)
        costs["transformers VideoMAE"] = costs["VideoMAE"]
        notes.append(f"transformers' attention: {attention}")
    except ImportError:
        notes.append("transformers is not installed: left out")
    steps[_MATMUL], product_cost = matmul(place, precision)
    times = round_seconds(steps, rounds=rounds, warmup=2, device=place)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    plain = seconds["VideoMAE"]
    rate = product_cost / seconds.pop(_MATMUL)
    notes.append(f"rate of {_MATMUL}: {rate / 1e9:.4g} x 10^9 multiply-adds a second")
    return Report(
        "step",
        machine_facts(place),
        {
            "size": size,
            "batch_size": batch_size,
            "frames": num_frames,
            "crop_size": crop_size,
            "precision": precision,
            "compile": compile_models,
            "rounds": rounds,
        },
        [
            {
                "step": name,
                "median_s": value,
                "spread": spread(times[name]),
                "ratio": value / plain,
                "clips_per_s": batch_size / value,
                "multiply_adds_g": costs[name] / 1e9,
                "utilisation": costs[name] * batch_size / value / rate,
            }
            for name, value in seconds.items()
        ],
        notes,
    )


def _check(name: str, loss: float, setting: Setting, variant: Variant | None) -> float:
    """Relative difference of a first step's loss from that of float32, not compiled.

    Raises RuntimeError where they are further apart than rounding explains.
    """
    expected = our_step(replace(setting, precision="float32", compile=False), variant)()
    difference = abs(loss - expected) / expected
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{name}: first loss {loss:.6g}, but {expected:.6g} in float32")
    return difference


def _multiply_adds(model: ModelConfig, grid: TokenGrid, variant: Variant | None) -> float:
    """Of one step, per clip."""
    return step_cost(
        _model_of(model, variant),
        grid,
        mask_ratio=MaskingConfig().mask_ratio,
        token_ratio=None if variant is None else variant.token_ratio,
    ).step


def _model_of(model: ModelConfig, variant: Variant | None) -> ModelConfig:
    if variant is None:
        return model
    return replace(
        model,
        predictor_input=variant.predictor_input,
        predictor_depth=variant.predictor_depth,
    )


def our_step(setting: Setting, variant: Variant | None) -> Callable[[], float]:
    """A function that does one step, in the order of the pre-training loop, and returns its loss.

    ``variant`` None: plain VideoMAE.
    """
    torch.manual_seed(0)
    model = _model_of(setting.model, variant)
    student = build_model(model, setting.grid, predict_loss=variant is not None)
    student.to(setting.device)
    teacher = None if variant is None else Teacher(student)
    loss_config = LossConfig(prediction="none" if variant is None else "ranking")
    generator = torch.Generator(setting.device).manual_seed(0)
    optimizer = pretrain_optimizer(student, OptimConfig())
    if setting.compile:
        student.compile()

    def step() -> float:
        result = pretrain_step(
            student,
            teacher,
            to_clips(setting.frames, setting.device),
            grid=setting.grid,
            masking=MaskingConfig(),
            loss=loss_config,
            hard_ratio=0.0 if variant is None else HARD_RATIO,
            predictor_input=model.predictor_input,
            token_ratio=1.0 if variant is None else variant.token_ratio,
            view=TeacherConfig().view,
            generator=generator,
            precision=setting.precision,
        )
        result.loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        if teacher is not None:
            update_teacher(teacher, student, MOMENTUM)
        return result.loss.item()

    return step


def transformers_step(setting: Setting) -> tuple[Callable[[], float], str]:
    """One step of `transformers`' plain VideoMAE, and the attention it uses."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(0)
    size, grid = SIZES[setting.model.size], setting.grid
    model = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=setting.frames.shape[2],
            num_frames=setting.frames.shape[1],
            patch_size=setting.model.patch_size,
            tubelet_size=setting.model.tubelet_size,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=round(size.width * size.mlp_ratio),
            decoder_hidden_size=size.decoder_width,
            decoder_num_hidden_layers=setting.model.decoder_depth,
            decoder_num_attention_heads=size.decoder_heads,
            decoder_intermediate_size=4 * size.decoder_width,
            layer_norm_eps=1e-6,
            attn_implementation="sdpa",  # type: ignore[call-arg]  # of every config
        )
    )
    nn.Module.to(model, setting.device).train()
    optimizer = pretrain_optimizer(model, OptimConfig())
    attention = str(model.config._attn_implementation)
    if setting.compile:
        model.compile()
    generator = torch.Generator(setting.device).manual_seed(0)
    mean, std = (
        torch.tensor(values, device=setting.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )

    def step() -> float:
        # Its processor's work: frames first (B, T, C, H, W), normalised.
        clips = to_clips(setting.frames, setting.device).transpose(1, 2)
        mask = random_mask(
            len(clips),
            grid,
            mask_ratio=MaskingConfig().mask_ratio,
            tube_length=grid.time,
            generator=generator,
            device=setting.device,
        )
        with autocast(setting.device, setting.precision):
            loss: Tensor = model((clips - mean) / std, bool_masked_pos=mask).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, attention
