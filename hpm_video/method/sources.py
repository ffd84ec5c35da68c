"""Hardness scores that need no teacher: (B, N), higher is harder, NaN if unknown.

`hpm_video.method.masking.make_mask` turns scores of any source into masks. Scores have no
gradient, and only their order within a clip matters.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hpm_video.config import MaskingConfig
from hpm_video.method.masking import Rows, make_mask, num_visible_tokens
from hpm_video.models.hpm import HPMOutput
from hpm_video.models.precision import no_autocast
from hpm_video.models.tokens import TokenGrid


@torch.no_grad()
def motion_scores(patches: Tensor, grid: TokenGrid, *, tubelet_size: int) -> Tensor:
    """Mean absolute frame difference in each token's place: patches (B, N, P) -> (B, N) float32.

    Patches are floats in [0, 1] or bytes; scores are in [0, 1]. A token averages the differences of
    each of its frames from the previous one. The first token of a tube lacks a frame before it and
    averages one difference less; with tubelets of one frame it takes the next token's score. A clip
    of one frame scores 0.
    """
    # (B, N, P) -> (B, time, rows * columns, t, y * x * C)
    pixels = patches.unflatten(1, (grid.time, -1)).unflatten(-1, (tubelet_size, -1))
    total = patches.new_zeros(pixels.shape[:3], dtype=torch.float32)
    for frame in range(tubelet_size):
        if frame:
            total += _change(pixels[..., frame - 1, :], pixels[..., frame, :])
        else:
            total[:, 1:] += _change(pixels[:, :-1, :, -1], pixels[:, 1:, :, 0])
    total[:, 1:] /= tubelet_size
    total[:, 0] /= max(1, tubelet_size - 1)
    if tubelet_size == 1 and grid.time > 1:
        total[:, 0] = total[:, 1]
    return total.flatten(1)


def _change(before: Tensor, after: Tensor) -> Tensor:
    """Mean absolute difference of pixels (..., K) on the scale [0, 1] -> (...)."""
    if before.dtype != torch.uint8:
        return (after.float() - before.float()).abs().mean(dim=-1)
    apart = torch.maximum(before, after) - torch.minimum(before, after)  # stays a byte
    return apart.sum(dim=-1, dtype=torch.int32).float() / (255 * before.shape[-1])


def measured_scores(
    student: nn.Module,
    patches: Tensor,
    losses_of: Callable[[HPMOutput], Tensor],
    grid: TokenGrid,
    masking: MaskingConfig,
    *,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """The loss itself, measured by one more pass of the student: patches (B, N, P) -> (B, N).

    The pass uses a random mask with the same settings, so it scores as many tokens as a mask takes;
    tokens that it leaves visible are NaN. It runs without gradient, stochastic depth, predictors
    and decoder masking. Scores are float32.

    Args:
        losses_of: losses (B, M) of the masked tokens of the student's output.
        rows: see `make_mask`.
    """
    mask = make_mask(
        None,
        grid,
        masking,
        hard_ratio=0.0,
        batch_size=len(patches),
        generator=generator,
        device=patches.device,
        rows=rows,
    ).mask
    num_visible = num_visible_tokens(
        grid, mask_ratio=masking.mask_ratio, tube_length=masking.unit_length(grid.time)
    )
    was_training = student.training
    student.eval()
    try:
        with torch.no_grad():
            output: HPMOutput = student(patches, mask, num_visible, predicts=False)
            with no_autocast(patches):  # as in the step, whose losses are in float32
                losses = losses_of(output)
    finally:
        student.train(was_training)
        # PyTorch issue 158232 (2.10): autocast would reuse its copies of the weights made without
        # gradient, and most weights would get none in the student's own pass
        torch.clear_autocast_cache()
    unknown = losses.new_full(mask.shape, torch.nan)
    return unknown.scatter(1, output.masked, losses)
