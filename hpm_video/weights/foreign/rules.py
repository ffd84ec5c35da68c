"""How tensors of ours become those of others and back: each rule is declared once, for both ways.

Ours are named as in `hpm_video.models.hpm.HPM` and `hpm_video.models.classifier.Classifier`. A
``{}`` in a name stands for the number of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hpm_video.config import values
from hpm_video.models.tokens import TokenGrid

# head: the norm before it, too. norm: what an encoder ends with, in pre-training.
Part = Literal["encoder", "norm", "decoder", "head"]
Inflation = values.Inflation


@dataclass(frozen=True)
class Shape:
    """What names and tensors do not say themselves: the tokens, and how images become clips."""

    grid: TokenGrid
    tubelet_size: int
    patch_size: int
    inflation: Inflation = "mean"


class Change(Protocol):
    """Tensors of one rule, theirs to ours and ours to theirs; each is the other's inverse.

    note: what is to be said of it.
    """

    note: str

    def to_ours(self, theirs: Sequence[Tensor], shape: Shape) -> list[Tensor]: ...

    def to_theirs(self, ours: Sequence[Tensor], shape: Shape) -> list[Tensor]: ...


class Same:
    """The same tensors, perhaps by another name."""

    note = ""

    def to_ours(self, theirs: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        return list(theirs)

    def to_theirs(self, ours: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        return list(ours)


SAME = Same()


class Convolution:
    """Theirs (D, 3, t, y, x), of a Conv3d; ours (D, t * y * x * 3), of a matrix product."""

    note = "Conv3d as a matrix"

    def to_ours(self, theirs: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        return [theirs[0].permute(0, 2, 3, 4, 1).flatten(1)]

    def to_theirs(self, ours: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        side = shape.patch_size
        volume = ours[0].reshape(len(ours[0]), shape.tubelet_size, side, side, 3)
        return [volume.permute(0, 4, 1, 2, 3)]


class ImageConvolution:
    """Theirs (D, 3, y, x), of a Conv2d: what ours makes of a clip that stands still.

    It becomes ours by its share of every frame of a token (mean), or by all of the middle one.
    """

    note = "Conv2d, spread over the frames of a token"

    def to_ours(self, theirs: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        frames = theirs[0].new_zeros(shape.tubelet_size)
        if shape.inflation == "mean":
            frames += 1 / shape.tubelet_size
        else:
            frames[shape.tubelet_size // 2] = 1
        volume = theirs[0][:, :, None] * frames[:, None, None]
        return Convolution().to_ours([volume], shape)

    def to_theirs(self, ours: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        return [Convolution().to_theirs(ours, shape)[0].sum(dim=2)]


class ThreeMatrices:
    """Theirs: q, k and v apart; ours: one below the other."""

    note = ""

    def to_ours(self, theirs: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        return [torch.cat(list(theirs))]

    def to_theirs(self, ours: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        return list(ours[0].chunk(3))


class ThreeBiases:
    """Theirs (3 * D,) of q, k and v; ours of q and v alone.

    k's adds the same number to all scores of a query, which a softmax does not see: without it the
    outputs are the same.
    """

    note = "k's part left out: it changes no output"

    def to_ours(self, theirs: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        q, _, v = theirs[0].chunk(3)
        return [q, v]

    def to_theirs(self, ours: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        q, v = ours
        return [torch.cat([q, torch.zeros_like(q), v])]


class ImagePositions:
    """Theirs (1, rows * columns, D), of an image; ours (N, D): the same at every step in time."""

    note = "repeated over time"

    def to_ours(self, theirs: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        return [theirs[0][0].repeat(shape.grid.time, 1)]

    def to_theirs(self, ours: Sequence[Tensor], shape: Shape) -> list[Tensor]:
        # (time * rows * columns, D) -> (1, rows * columns, D)
        return [ours[0].unflatten(0, (shape.grid.time, -1)).mean(dim=0)[None]]


@dataclass(frozen=True)
class Rule:
    """Some of our tensors, and those of theirs that hold the same."""

    part: Part
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    change: Change = SAME

    def of_block(self, number: int) -> Rule:
        """The rule of one block."""
        return Rule(
            self.part,
            tuple(name.replace("{}", str(number)) for name in self.ours),
            tuple(name.replace("{}", str(number)) for name in self.theirs),
            self.change,
        )

    @property
    def is_of_blocks(self) -> bool:
        return "{}" in self.ours[0]


def both(name: str, *, ours: str = "", theirs: str = "", part: Part = "encoder") -> list[Rule]:
    """A weight and a bias, of a layer that is called ``ours + name`` and ``theirs + name``."""
    return renamed([(name, name)], ours=ours, theirs=theirs, part=part)


def renamed(
    names: Iterable[tuple[str, str]], *, ours: str = "", theirs: str = "", part: Part = "encoder"
) -> list[Rule]:
    """Weights and biases of layers, named (ours, theirs), behind a prefix each."""
    return [
        Rule(part, (f"{ours}{mine}.{kind}",), (f"{theirs}{other}.{kind}",))
        for mine, other in names
        for kind in ("weight", "bias")
    ]


def placed(rules: Iterable[Rule], *, ours: str, theirs: str, part: Part = "encoder") -> list[Rule]:
    """The same rules behind prefixes, as those of a block are behind that of a stack."""
    return [
        Rule(
            part,
            tuple(ours + name for name in rule.ours),
            tuple(theirs + name for name in rule.theirs),
            rule.change,
        )
        for rule in rules
    ]
