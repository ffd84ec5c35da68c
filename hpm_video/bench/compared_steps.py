"""The steps that benches compare, as calls: ours in its forms, and that of `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hpm_video.bench.config_step import config_step
from hpm_video.bench.flops import Variant, step_cost
from hpm_video.config import (
    DataConfig,
    LossConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    PretrainRunConfig,
    TeacherConfig,
)
from hpm_video.data.loading.loader import to_clips
from hpm_video.method.masking import random_mask
from hpm_video.models.build import HPM, SIZES, build_model, token_grid
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.runtime.distributed import World
from hpm_video.train.optim import pretrain_optimizer


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


def config_of(setting: Setting, variant: Variant | None) -> PretrainConfig:
    """The settings that a side stands for; ``variant`` None: plain VideoMAE."""
    batch_size, num_frames, crop_size = setting.frames.shape[:3]
    config = PretrainConfig(
        run=PretrainRunConfig(
            precision=setting.precision,  # type: ignore[arg-type]
            compile=setting.compile,
        ),
        data=DataConfig(batch_size=batch_size, num_frames=num_frames, crop_size=crop_size),
        model=setting.model,
        masking=MaskingConfig(mask_ratio=setting.mask_ratio),
    )
    if variant is None:
        return replace(
            config,
            masking=replace(config.masking, hard_ratio_end=0),
            loss=LossConfig(prediction="none"),
        )
    return replace(
        config,
        model=replace(
            config.model,
            predictor_input=variant.predictor_input,
            predictor_depth=variant.predictor_depth,
        ),
        teacher=TeacherConfig(token_ratio=variant.token_ratio),
    )


def multiply_adds(setting: Setting, variant: Variant | None) -> float:
    """Of one step, per clip."""
    config = config_of(setting, variant)
    return step_cost(
        config.model,
        setting.grid,
        mask_ratio=setting.mask_ratio,
        token_ratio=None if variant is None else variant.token_ratio,
    ).step


def build_student(setting: Setting, variant: Variant | None) -> HPM:
    """The model of a side, on the CPU or the device of a context."""
    config = config_of(setting, variant)
    return build_model(config.model, setting.grid, predict_loss=variant is not None)


def our_step(
    setting: Setting,
    variant: Variant | None,
    student: HPM | None = None,
    *,
    world: World | None = None,
) -> Callable[[], Tensor]:
    """A function that does one step of pre-training and returns its loss, as `config_step`.

    ``student``: where it is there already. ``world``: processes that share the step under DDP.
    """
    return config_step(
        config_of(setting, variant),
        lambda: to_clips(setting.frames, setting.device),
        world or World(rank=0, size=1, device=setting.device),
        student,
    )


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
