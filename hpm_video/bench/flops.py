"""Multiply-adds of a pre-training step, counted with fvcore on models without memory.

Counted are matrix products, attention's included; a backward pass counts as two forward ones. The
teacher runs forward only, and never a reconstructor.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, starmap
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import at_least
from hpm_video.config import MaskingConfig, ModelConfig, TeacherConfig
from hpm_video.config.values import PredictorInput
from hpm_video.method.decoder_masking import num_reconstructed_tokens
from hpm_video.method.masking import num_visible_tokens
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import HPM, build_model, token_grid
from hpm_video.models.tokens import TokenGrid


@dataclass(frozen=True)
class Variant:
    """A form of hard patches mining by what decides its cost: what the predictor looks at
    (``model.predictor_input``), the share of the tokens that the teacher sees
    (``teacher.token_ratio``), and how many blocks the predictor has."""

    predictor_input: PredictorInput
    token_ratio: float
    predictor_depth: int

    @property
    def name(self) -> str:
        is_default = self == default_variant()
        name = f"{self.predictor_input} r={self.token_ratio:g} predictor {self.predictor_depth}"
        name = f"HPM literal ({name})" if self == LITERAL else f"HPM {name}"
        return f"{name} = default" if is_default else name


# The paper's: the teacher sees everything, the predictor has the reconstructor's four blocks.
LITERAL = Variant("encoded", 1.0, 4)


def default_variant() -> Variant:
    """What the settings' defaults give."""
    model = ModelConfig()
    return Variant(model.predictor_input, TeacherConfig().token_ratio, model.predictor_depth)


def variants(
    predictor_inputs: Sequence[PredictorInput],
    token_ratios: Sequence[float],
    predictor_depths: Sequence[int],
) -> list[Variant]:
    """The literal form, every combination of what was asked for, and the default, each once."""
    for ratio in token_ratios:
        TeacherConfig(token_ratio=ratio)  # or refuse
    for depth in predictor_depths:
        ModelConfig(predictor_depth=depth)
    asked = starmap(Variant, product(predictor_inputs, token_ratios, predictor_depths))
    return list(dict.fromkeys([LITERAL, *asked, default_variant()]))


@dataclass(frozen=True)
class StepCost:
    """Multiply-adds per clip of one forward pass each: of the student, and of the teacher."""

    student: float
    teacher: float

    @property
    def step(self) -> float:
        return 3 * self.student + self.teacher


def step_cost(
    model: ModelConfig,
    grid: TokenGrid,
    *,
    mask_ratio: float,
    token_ratio: float | None,
    tube_length: int | None = None,
    decoder_mask_ratio: float = 0.0,
    has_teacher: bool = True,
    draws: int = 1,
) -> StepCost:
    """Count one step; ``token_ratio`` None: plain VideoMAE, without predictor and teacher."""
    tube_length = tube_length or grid.time
    visible = num_visible_tokens(grid, mask_ratio=mask_ratio, tube_length=tube_length)
    reconstructed = num_reconstructed_tokens(
        grid,
        mask_ratio=mask_ratio,
        tube_length=tube_length,
        decoder_mask_ratio=decoder_mask_ratio,
    )

    def index(share: float, count: int) -> Tensor:
        return torch.zeros(1, max(1, round(share * count)), dtype=torch.long)

    with torch.device("meta"):
        student = build_model(model, grid, predict_loss=token_ratio is not None)
        side = model.patch_size
        clips = torch.zeros(1, 3, grid.time * model.tubelet_size, *_pixels(grid, side))
        mask = torch.zeros(1, grid.num_tokens, dtype=torch.bool)
        # What a predictor from pixels learns from; the other kind looks at all tokens anyway.
        kept, ranked = index(1, reconstructed), index(token_ratio or 1, reconstructed)
        student_cost = count_multiply_adds(_Student(student, visible), clips, mask, kept, ranked)
        if token_ratio is None or not has_teacher:
            return StepCost(student_cost, 0)
        values = model.tubelet_size * side * side * 3
        patches = torch.zeros(1, grid.num_tokens, values)
        seen = index(token_ratio, grid.num_tokens)
        teacher_cost = draws * count_multiply_adds(Teacher(student), patches, seen)
    return StepCost(student_cost, teacher_cost)


def count_multiply_adds(module: nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of the matrix products of ``module(*inputs)``, by fvcore."""
    counter = FlopCountAnalysis(module, inputs)
    # fvcore knows no fused attention, and counts norms, which are no matrix products.
    counter.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
    counter.set_op_handle("aten::layer_norm", lambda inputs, outputs: 0)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counter.tracer_warnings("none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(counter.total())


def bench_flops(
    *,
    sizes: Sequence[str],
    num_frames: int,
    crop_size: int,
    decoder_depth: int,
    predictor_inputs: Sequence[PredictorInput],
    token_ratios: Sequence[float],
    predictor_depths: Sequence[int],
) -> Report:
    """A table over sizes and variants, with mask_ratio .9 tubes; ratios are to plain VideoMAE."""
    at_least("frames", num_frames, 1)
    at_least("crop-size", crop_size, 1)
    mask_ratio = MaskingConfig().mask_ratio
    rows: list[dict[str, Cell]] = []
    for size in sizes:
        plain: float | None = None
        for variant in [None, *variants(predictor_inputs, token_ratios, predictor_depths)]:
            model = ModelConfig(
                size=size,  # type: ignore[arg-type]
                decoder_depth=decoder_depth,
                predictor_input=variant.predictor_input if variant else "pixels",
                predictor_depth=variant.predictor_depth if variant else 1,
            )
            grid = token_grid(model, num_frames=num_frames, crop_size=crop_size)
            ratio = variant.token_ratio if variant else None
            cost = step_cost(model, grid, mask_ratio=mask_ratio, token_ratio=ratio)
            plain = plain or cost.step
            rows.append(
                {
                    "size": size,
                    "variant": variant.name if variant else "VideoMAE",
                    "student_forward_g": round(cost.student / 1e9, 2),
                    "teacher_forward_g": round(cost.teacher / 1e9, 2),
                    "step_g": round(cost.step / 1e9, 1),
                    "ratio": round(cost.step / plain, 3),
                }
            )
    return Report(
        "flops",
        machine_facts(torch.device("cpu")),
        {"frames": num_frames, "crop_size": crop_size, "decoder_depth": decoder_depth},
        rows,
        ["10^9 multiply-adds per clip; step = 3 x student + teacher"],
    )


class _Student(nn.Module):
    """The student's forward pass with what a trace can return."""

    def __init__(self, model: HPM, num_visible: int) -> None:
        super().__init__()
        self.model, self.num_visible = model, num_visible

    def forward(
        self, clips: Tensor, mask: Tensor, kept: Tensor, ranked: Tensor
    ) -> tuple[Tensor, ...]:
        output = self.model(clips, mask, self.num_visible, kept, ranked)
        if output.predicted_loss is None:
            return (output.reconstruction,)
        return output.reconstruction, output.predicted_loss


def _attention_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    """Of q k^T and of the weights times v: (B, heads, N, head width) each."""
    query, key, value = (list(entry.type().sizes()) for entry in inputs[:3])
    return prod(query) * key[2] + prod(query[:3]) * prod(value[2:])


def _pixels(grid: TokenGrid, patch_size: int) -> tuple[int, int]:
    return grid.height * patch_size, grid.width * patch_size
