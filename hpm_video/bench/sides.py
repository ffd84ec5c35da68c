"""The steps that benches compare, as calls: ours in its forms, and that of `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hpm_video.bench.flops import Variant, step_cost
from hpm_video.config import LossConfig, MaskingConfig, ModelConfig, OptimConfig, TeacherConfig
from hpm_video.data.loader import to_clips
from hpm_video.distributed import World, replicate
from hpm_video.masking import random_mask
from hpm_video.models import HPM, SIZES, build_model, token_grid
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.optim import pretrain_optimizer
from hpm_video.precision import autocast
from hpm_video.step import pretrain_step
from hpm_video.teacher import Teacher, update_teacher
from hpm_video.tokens import TokenGrid

HARD_RATIO = 0.5  # the default's at the end of a run; above 0 its value costs nothing
MOMENTUM = 0.999


@dataclass(frozen=True)
class Setting:
    """What all sides share: frames (B, T, H, W, 3) uint8, made once, on the host."""

    model: ModelConfig
    grid: TokenGrid
    frames: Tensor
    device: torch.device
    precision: str
    compile: bool = False
    mask_ratio: float = MaskingConfig().mask_ratio


def make_setting(
    *,
    size: str,
    batch_size: int,
    num_frames: int,
    crop_size: int,
    device: torch.device,
    precision: str,
    compile_models: bool = False,
    mask_ratio: float = MaskingConfig().mask_ratio,
) -> Setting:
    """A setting with random frames; ValueError for a clip that tokens do not divide."""
    model = ModelConfig(size=size)  # type: ignore[arg-type]
    grid = token_grid(model, num_frames=num_frames, crop_size=crop_size)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, num_frames, crop_size, crop_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Setting(model, grid, frames, device, precision, compile_models, mask_ratio)


def multiply_adds(setting: Setting, variant: Variant | None) -> float:
    """Of one step, per clip."""
    return step_cost(
        _model_of(setting.model, variant),
        setting.grid,
        mask_ratio=setting.mask_ratio,
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


def build_student(setting: Setting, variant: Variant | None) -> HPM:
    """The model of a side, on the CPU or the device of a context."""
    model = _model_of(setting.model, variant)
    return build_model(model, setting.grid, predict_loss=variant is not None)


def our_step(
    setting: Setting,
    variant: Variant | None,
    student: HPM | None = None,
    *,
    world: World | None = None,
) -> Callable[[], Tensor]:
    """A function that does one step, in the order of the pre-training loop, and returns its loss,
    a scalar, for which nobody waits.

    ``variant`` None: plain VideoMAE. ``student``: where it is built already, on the device.
    ``world``: processes that share the step under DDP.
    """
    torch.manual_seed(0)
    model = _model_of(setting.model, variant)
    if student is None:
        student = build_student(setting, variant).to(setting.device)
    teacher = None if variant is None else Teacher(student)
    loss_config = LossConfig(prediction="none" if variant is None else "ranking")
    generator = torch.Generator(setting.device).manual_seed(0)
    optimizer = pretrain_optimizer(student, OptimConfig())
    if setting.compile:
        student.compile()
    called = student if world is None else replicate(student, world)

    def step() -> Tensor:
        result = pretrain_step(
            called,
            teacher,
            to_clips(setting.frames, setting.device),
            grid=setting.grid,
            masking=MaskingConfig(mask_ratio=setting.mask_ratio),
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
        return result.loss.detach()

    return step


def transformers_step(setting: Setting) -> tuple[Callable[[], Tensor], str]:
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

    def step() -> Tensor:
        # Its processor's work: frames first (B, T, C, H, W), normalised.
        clips = to_clips(setting.frames, setting.device).transpose(1, 2)
        mask = random_mask(
            len(clips),
            grid,
            mask_ratio=setting.mask_ratio,
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
        return loss.detach()

    return step, attention
