"""Conversion rules between our tensors and those of other formats, each declared for both ways.

Our names are those of `hpm_video.models.hpm.HPM` and `hpm_video.models.classifier.Classifier`. A
``{}`` in a name stands for the index of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hpm_video.config.values import Inflation
from hpm_video.models.resample import Tokens

# head: includes the norm before it. norm: the encoder's final norm in pre-training.
Part = Literal["encoder", "norm", "decoder", "head"]


@dataclass(frozen=True)
class Shape(Tokens):
    """Facts that conversions need besides the tensors: the tokens, and how images become clips."""

    inflation: Inflation = "mean"


@dataclass(frozen=True)
class Change:
    """A conversion of one rule's tensors and its inverse. note: remark for the account."""

    to_ours: Callable[[list[Tensor], Shape], list[Tensor]]
    to_theirs: Callable[[list[Tensor], Tokens], list[Tensor]]
    note: str = ""


def _matrix(convolution: Tensor) -> Tensor:
    """Conv3d weight (D, 3, t, y, x) -> matrix (D, t * y * x * 3)."""
    return convolution.permute(0, 2, 3, 4, 1).flatten(1)


def _convolution(matrix: Tensor, tokens: Tokens) -> Tensor:
    """The inverse of `_matrix`."""
    frames, side = tokens.shape.tubelet_size, tokens.shape.patch_size
    return matrix.reshape(len(matrix), frames, side, side, 3).permute(0, 4, 1, 2, 3)


def _spread(image: Tensor, shape: Shape) -> Tensor:
    """Conv2d weight (D, 3, y, x) -> Conv3d weight (D, 3, t, y, x) with equal output on still clips.

    The inflation spreads it evenly over the frames of a token (mean), or puts it on the middle one.
    """
    num_frames = shape.shape.tubelet_size
    shares = image.new_zeros(num_frames)
    if shape.inflation == "mean":
        shares += 1 / num_frames
    elif shape.inflation == "centre":
        shares[num_frames // 2] = 1
    else:
        raise ValueError(f"inflation ({shape.inflation}) must be mean or centre")
    return image[:, :, None] * shares[:, None, None]


SAME = Change(lambda theirs, _: theirs, lambda ours, _: ours)
CONVOLUTION = Change(
    lambda theirs, _: [_matrix(theirs[0])],
    lambda ours, tokens: [_convolution(ours[0], tokens)],
    note="Conv3d as a matrix",
)
IMAGE_CONVOLUTION = Change(
    lambda theirs, shape: [_matrix(_spread(theirs[0], shape))],
    lambda ours, tokens: [_convolution(ours[0], tokens).sum(dim=2)],
    note="Conv2d, spread over the frames of a token",
)
# Theirs: separate q, k and v; ours: stacked
THREE_MATRICES = Change(
    lambda theirs, _: [torch.cat(theirs)], lambda ours, _: list(ours[0].chunk(3))
)
# Theirs: (3 * D,) for q, k and v; ours: q and v only. The bias of k adds the same number to all
# scores of a query, which does not change the softmax.
THREE_BIASES = Change(
    lambda theirs, _: list(theirs[0].chunk(3)[::2]),
    lambda ours, _: [torch.cat([ours[0], torch.zeros_like(ours[0]), ours[1]])],
    note="bias of k dropped: it does not change the output",
)
# Theirs: (1, rows * columns, D) for an image; ours: (N, D), repeated over time. The inverse is the
# mean over time.
IMAGE_POSITIONS = Change(
    lambda theirs, shape: [theirs[0][0].repeat(shape.grid.time, 1)],
    lambda ours, tokens: [ours[0].unflatten(0, (tokens.grid.time, -1)).mean(dim=0)[None]],
    note="repeated over time",
)


@dataclass(frozen=True)
class Rule:
    """Some of our tensors and the corresponding ones of another format."""

    part: Part
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    change: Change = SAME

    def of_blocks(self, number: int) -> list[Rule]:
        """The rules for each of ``number`` blocks; the rule itself if it has no block index."""
        if "{}" not in self.ours[0]:
            return [self]
        return [
            replace(
                self,
                ours=tuple(name.format(block) for name in self.ours),
                theirs=tuple(name.format(block) for name in self.theirs),
            )
            for block in range(number)
        ]


def renamed(names: Iterable[tuple[str, str]], *, part: Part = "encoder") -> list[Rule]:
    """Rules for weights and biases of layers that only differ in name: (ours, theirs)."""
    return [
        Rule(part, (f"{ours}.{kind}",), (f"{theirs}.{kind}",))
        for ours, theirs in names
        for kind in ("weight", "bias")
    ]


def placed(rules: Iterable[Rule], *, ours: str, theirs: str, part: Part = "encoder") -> list[Rule]:
    """The rules with prefixes added to all names, for example that of a stack of blocks."""
    return [
        Rule(
            part,
            tuple(ours + n for n in each.ours),
            tuple(theirs + n for n in each.theirs),
            each.change,
        )
        for each in rules
    ]
