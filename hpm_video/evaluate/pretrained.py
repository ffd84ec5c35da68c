"""What a pre-training checkpoint makes of masked clips: outputs of its student, and pixels."""

import torch
from torch import Tensor

from hpm_video.method.teacher import Teacher
from hpm_video.models.build import HPMOutput
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import gather_tokens, patchify, scatter_tokens, unpatchify
from hpm_video.weights.load import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained", "reconstruct", "require_scorer",
           "run_student"]  # fmt: skip


def require_scorer(pretrained: Pretrained) -> Teacher:
    """The scorer; raises ValueError for a checkpoint without a predictor."""
    if pretrained.scorer is None:
        raise ValueError(
            "checkpoint has no loss predictor (loss.prediction none): "
            "loss.prediction must be ranking or absolute"
        )
    return pretrained.scorer


@torch.no_grad()
def run_student(pretrained: Pretrained, clips: Tensor, mask: Tensor) -> HPMOutput:
    """One forward pass in the run's precision: clips (B, 3, T, H, W), mask (B, N)."""
    with autocast(clips.device, pretrained.config.run.precision):
        output: HPMOutput = pretrained.student(clips, mask)
    return output


def reconstruct(
    pretrained: Pretrained,
    clips: Tensor,
    mask: Tensor,
    *,
    true_statistics: bool = False,
    output: HPMOutput | None = None,
) -> Tensor:
    """Clips (B, 3, T, H, W) with the tokens of mask (B, N) replaced by what the student predicts.

    A student of normalised targets predicts no brightness, colour and contrast. They are taken
    from the clip's visible tokens, per channel the mean of their means and of their deviations,
    or, with ``true_statistics``, from each masked token itself, which no model can know.
    ``output``: what `run_student` gave for these clips, where it is known.
    """
    config, grid = pretrained.config, pretrained.grid
    output = output or run_student(pretrained, clips, mask)
    predicted, patches = output.reconstruction.float(), patchify(clips, grid)
    if config.loss.normalize_targets:
        index = output.masked if true_statistics else output.visible
        pixels = gather_tokens(patches, index).unflatten(-1, (-1, 3))  # (B, K, pixels, 3)
        mean, std = pixels.mean(dim=2, keepdim=True), pixels.std(dim=2, keepdim=True)
        if not true_statistics:
            mean, std = mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
        predicted = (predicted.unflatten(-1, (-1, 3)) * std + mean).flatten(2)
    patches = scatter_tokens(patches, output.masked, predicted.clamp(0, 1))
    return unpatchify(patches, grid, tubelet_size=config.model.tubelet_size)
