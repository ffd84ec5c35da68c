"""How tensors of ours become those of others and back: each rule is declared once, for both ways.

Ours are named as in `hpm_video.models.hpm.HPM` and `hpm_video.models.classifier.Classifier`. A
``{}`` in a name stands for the number of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hpm_video.config.values import Inflation
from hpm_video.models.resample import Tokens

# head: the norm before it, too. norm: what an encoder ends with, in pre-training.
Part = Literal["encoder", "norm", "decoder", "head"]


@dataclass(frozen=True)
class Shape(Tokens):
    """What names and tensors do not say themselves: the tokens, and how images become clips."""

    inflation: Inflation = "mean"


@dataclass(frozen=True)
class Change:
    """Tensors of one rule, theirs to ours and ours to theirs; each is the other's inverse.

    note: what is to be said of it.
    """

    to_ours: Callable[[list[Tensor], Shape], list[Tensor]]
    to_theirs: Callable[[list[Tensor], Tokens], list[Tensor]]
    note: str = ""


def _matrix(convolution: Tensor) -> Tensor:
    """(D, 3, t, y, x), of a Conv3d -> (D, t * y * x * 3), of a matrix product."""
    return convolution.permute(0, 2, 3, 4, 1).flatten(1)


def _convolution(matrix: Tensor, tokens: Tokens) -> Tensor:
    """The inverse of `_matrix`."""
    frames, side = tokens.shape.tubelet_size, tokens.shape.patch_size
    return matrix.reshape(len(matrix), frames, side, side, 3).permute(0, 4, 1, 2, 3)


def _spread(image: Tensor, shape: Shape) -> Tensor:
    """(D, 3, y, x), of a Conv2d -> (D, 3, t, y, x), which gives the same of a clip that stands
    still: by its share of every frame of a token (mean), or by all of the middle one."""
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
# Theirs: q, k and v apart; ours: one below the other
THREE_MATRICES = Change(
    lambda theirs, _: [torch.cat(theirs)], lambda ours, _: list(ours[0].chunk(3))
)
# Theirs (3 * D,) of q, k and v; ours of q and v alone. k's adds the same number to all scores of a
# query, which a softmax does not see: without it the outputs are the same.
THREE_BIASES = Change(
    lambda theirs, _: list(theirs[0].chunk(3)[::2]),
    lambda ours, _: [torch.cat([ours[0], torch.zeros_like(ours[0]), ours[1]])],
    note="k's part left out: it changes no output",
)
# Theirs (1, rows * columns, D), of an image; ours (N, D): the same at every step in time, of which
# the mean goes back
IMAGE_POSITIONS = Change(
    lambda theirs, shape: [theirs[0][0].repeat(shape.grid.time, 1)],
    lambda ours, tokens: [ours[0].unflatten(0, (tokens.grid.time, -1)).mean(dim=0)[None]],
    note="repeated over time",
)


@dataclass(frozen=True)
class Rule:
    """Some of our tensors, and those of theirs that hold the same."""

    part: Part
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    change: Change = SAME

    def of_blocks(self, number: int) -> list[Rule]:
        """The rule of each of so many blocks; alone where it is of none."""
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
    """Weights and biases of layers, named (ours, theirs)."""
    return [
        Rule(part, (f"{ours}.{kind}",), (f"{theirs}.{kind}",))
        for ours, theirs in names
        for kind in ("weight", "bias")
    ]


def placed(rules: Iterable[Rule], *, ours: str, theirs: str, part: Part = "encoder") -> list[Rule]:
    """The same rules behind prefixes, as those of a block are behind that of a stack."""
    return [
        Rule(
            part,
            tuple(ours + n for n in each.ours),
            tuple(theirs + n for n in each.theirs),
            each.change,
        )
        for each in rules
    ]
