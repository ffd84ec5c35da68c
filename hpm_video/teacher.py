"""The EMA teacher: predicts, before each step, which tokens will be hard."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hpm_video.masking import Rows, batch_noise
from hpm_video.models.hpm import HPM
from hpm_video.tokens import patchify


def make_teacher(student: HPM) -> HPM:
    """A frozen copy of the student without its reconstructor, which scoring does not need."""
    teacher = copy.deepcopy(student)
    teacher.reconstructor = None
    return teacher.requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(
    teacher: HPM, student: HPM, momentum: float, *, skip: Tensor | None = None
) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, over the parameters both have.

    ``skip``: scalar on the device, 1 leaves the teacher as it is, 0 updates it.
    """
    source = dict(student.named_parameters())
    pairs = [(mine, source[name]) for name, mine in teacher.named_parameters()]
    mine, theirs = [list(side) for side in zip(*pairs, strict=True)]
    if skip is None:
        torch._foreach_lerp_(mine, theirs, 1 - momentum)
    else:  # a weight that only the device knows has to come as a list
        torch._foreach_lerp_(mine, theirs, [(1 - momentum) * (1 - skip)] * len(mine))


def momentum_at(progress: float, *, start: float, end: float, ramp: float) -> float:
    """Momentum at progress in [0, 1] of the run: linear from start to end over the share ``ramp``,
    then constant."""
    return start + (end - start) * (min(progress / ramp, 1.0) if ramp > 0 else 1.0)


@torch.no_grad()
def score_tokens(
    teacher: HPM,
    clips: Tensor,
    *,
    token_ratio: float,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """Predicted loss of every token: clips (B, 3, T, H, W) in [0, 1] -> (B, N) float32.

    At ``token_ratio`` 1 the teacher sees the whole clip, as in the paper. Below, it encodes only
    that share of the tokens, drawn at random for each clip and call, and the predictor scores the
    others through mask tokens: the cost falls, and the teacher's input looks more like what the
    predictor was trained on. ``rows`` as in `hpm_video.masking.random_mask`.
    """
    patches = patchify(clips, teacher.grid)
    batch, num_tokens, _ = patches.shape
    seen = max(1, round(token_ratio * num_tokens))
    if seen == num_tokens:
        visible = torch.arange(num_tokens, device=clips.device).expand(batch, -1)
    else:
        noise = batch_noise(batch, num_tokens, generator=generator, device=clips.device, rows=rows)
        visible = noise.argsort(dim=1)[:, :seen].sort(dim=1).values
    return teacher.predicted_loss(teacher.sequence(patches, visible))
