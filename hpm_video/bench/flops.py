"""Multiply-adds of a pre-training step, counted by PyTorch on the meta device.

Only matrix products count, including those of attention. A backward pass counts as two forward
passes. The teacher runs forward only, without reconstructor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.steps import build_student, grid_of
from hpm_video.bench.variants import PLAIN, step_config, variants
from hpm_video.config import PretrainConfig
from hpm_video.config.values import PredictorInput, Size
from hpm_video.method.masking import num_visible_tokens
from hpm_video.method.teacher import teacher_of
from hpm_video.method.unit_counts import num_reconstructed_tokens, num_remasked_tokens
from hpm_video.weights.targets import load_target


@dataclass(frozen=True)
class StepCost:
    """Multiply-adds per clip of one forward pass each.

    teacher: of the teacher, or of another source of scores for the mask. target: of the model whose
    features are reconstructed, beyond what the teacher computes anyway.
    """

    student: float
    teacher: float
    target: float = 0

    @property
    def step(self) -> float:
        return 3 * self.student + self.teacher + self.target


def multiply_adds(function: Callable[[], object]) -> float:
    """Multiply-adds of a call's matrix products; tensors may be on the meta device."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2


@torch.no_grad()
def step_cost(config: PretrainConfig) -> StepCost:
    """Count one step of the config, for one clip."""
    config, frozen = load_target(config)
    grid, masking, data = grid_of(config), config.masking, config.data
    tube_length, num_tokens = masking.unit_length(grid.time), grid.num_tokens
    visible = num_visible_tokens(grid, mask_ratio=masking.mask_ratio, tube_length=tube_length)
    reconstructed, again = (
        count(grid, masking) for count in (num_reconstructed_tokens, num_remasked_tokens)
    )
    token_ratio = config.teacher.token_ratio

    def index(share: float, count: int) -> Tensor:
        return torch.zeros(1, max(1, round(share * count)), dtype=torch.long)

    with torch.device("meta"):
        student = build_student(config)
        patch = config.model.tubelet_size * config.model.patch_size**2 * 3
        patches = torch.zeros(1, num_tokens, patch)
        mask = torch.zeros(1, num_tokens, dtype=torch.bool)
        # Tokens that a predictor from pixels learns from; the other kind always sees all tokens
        kept, ranked = index(1, reconstructed), index(token_ratio, reconstructed)
        remasked = torch.zeros(1, again, dtype=torch.long)
        of_student = multiply_adds(
            lambda: student(patches, mask, visible, kept, ranked, remasked=remasked)
        )
        of_scores = of_target = 0.0
        teacher, seen = teacher_of(student, config), index(token_ratio, num_tokens)
        layers = list(config.loss.target_layers)
        if frozen is not None:
            clips = torch.zeros(1, 3, data.num_frames, data.crop_size, data.crop_size)
            of_target = multiply_adds(lambda: frozen.to("meta")(clips))
        elif config.loss.target == "ema":
            assert teacher is not None
            of_target = multiply_adds(lambda: teacher(patches, layers=layers))
        if masking.mines and masking.source == "measured":
            of_scores = multiply_adds(lambda: student(patches, mask, visible, predicts=False))
        elif teacher is not None and teacher.predicts:
            draws = config.teacher.draws
            of_scores = draws * multiply_adds(lambda: teacher(patches, seen))
            # A teacher that sees the whole clip gives scores and targets in one pass
            if of_target and token_ratio == 1 and teacher.decoder_input is not None:
                of_target = 0.0
    return StepCost(of_student, of_scores, of_target)


def bench_flops(
    *,
    sizes: Sequence[Size],
    predictor_inputs: Sequence[PredictorInput],
    token_ratios: Sequence[float],
    predictor_depths: Sequence[int],
    **shape: Any,
) -> Report:
    """A table over sizes and variants, by default with tubes at mask_ratio 0.9; ratios are relative
    to plain VideoMAE. ``shape``: other arguments of `step_config`."""
    rows: list[dict[str, Cell]] = []
    for size in sizes:
        base = step_config(size=size, **shape)
        asked = variants(base, predictor_inputs, token_ratios, predictor_depths)
        costs = {name: step_cost(config) for name, config in asked.items()}
        rows += [
            {
                "size": size,
                "variant": name,
                "student_forward_g": round(cost.student / 1e9, 2),
                "teacher_forward_g": round(cost.teacher / 1e9, 2),
                "target_forward_g": round(cost.target / 1e9, 2),
                "step_g": round(cost.step / 1e9, 1),
                "ratio": round(cost.step / costs[PLAIN].step, 3),
            }
            for name, cost in costs.items()
        ]
    return Report(
        "flops",
        machine_facts(torch.device("cpu")),
        shape,
        rows,
        ["10^9 multiply-adds per clip; step = 3 x student + teacher + target"],
    )
