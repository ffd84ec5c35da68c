"""What says which tokens are hard, beside a teacher: scores (B, N), higher is harder.

`hpm_video.method.masking.make_mask` makes masks of them, whatever their source. They never get a
gradient, and only their order within a clip counts. NaN: not known.
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
    """How much each token's pixels change: patches (B, N, P), floats in [0, 1] or bytes -> (B, N)
    float32, mean absolute difference, in [0, 1], of consecutive frames in the token's place.

    A token counts the steps to each of its frames from the one before, its first frame included. At
    the start of a clip, which has no frame before, a token has one step less. If that leaves none,
    with tubelets of one frame, it scores what the next token of its tube does; in a clip of one
    frame all score 0.
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
    """Mean absolute difference of pixels (..., K), as if in [0, 1] -> (...)."""
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
    """The losses themselves, by one more pass of the student, under a random mask of the same
    settings: patches (B, N, P) -> (B, N) float32. NaN for tokens that this mask leaves visible.

    As many are masked as any mask takes, so that it can take all that is hard from them. Without
    stochastic depth, predictors, decoder masking and gradient. ``losses_of`` gives the losses
    (B, M) of an output's masked tokens; ``rows`` as in `make_mask`.
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
        # PyTorch 2.10 (its issue 158232) would go on with the copies of weights that autocast made
        # without gradient, so that the student's own pass gave most weights none
        torch.clear_autocast_cache()
    unknown = losses.new_full(mask.shape, torch.nan)
    return unknown.scatter(1, output.masked, losses)
