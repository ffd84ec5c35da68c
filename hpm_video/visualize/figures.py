"""Figures of clips: rows of frames under a heat of losses, with outlined tubes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

Floats = npt.NDArray[np.float32]

GREY = 0.5  # masked pixels


@dataclass(frozen=True)
class Row:
    """A row of a figure: images (K, S, S, 3) in [0, 1]; outlined tokens (K, rows, columns)."""

    label: str
    images: Floats
    outlined: npt.NDArray[np.bool_] | None = None


def figure(rows: Sequence[Row], *, title: str, columns: Sequence[str]) -> Figure:
    """Draw rows of K images, each row under its label; the names of the columns are at the end."""
    size = max(1.3 * len(columns), 7.0), 1.6 * len(rows) + 0.6  # inches
    result = Figure(figsize=size, dpi=150, layout="constrained")
    result.suptitle(title, x=0.01, ha="left", size=10, parse_math=False)
    for axes, row in zip(result.subplots(len(rows), squeeze=False).flat, rows, strict=True):
        side = row.images.shape[1]
        step = side + max(1, side // 24)  # from image to image
        strip = np.pad(row.images, ((0, 0), (0, 0), (0, step - side), (0, 0)), constant_values=1)
        axes.imshow(np.concatenate(list(strip), axis=1).clip(0, 1), interpolation="nearest")
        axes.set_anchor("W")
        axes.set_title(row.label, loc="left", size=8, parse_math=False)
        axes.set_frame_on(False)
        axes.set_yticks([])
        ticks = range(side // 2, strip.shape[2] * len(strip), step) if row is rows[-1] else []
        axes.set_xticks(list(ticks), columns if ticks else [], size=7)
        axes.tick_params(length=0)
        if row.outlined is not None:
            for x, cells in enumerate(row.outlined):
                lines = np.add(outline(cells, patch_size=side // len(cells)), (x * step, 0))
                axes.add_collection(LineCollection(list(lines), colors="#ffd400", linewidths=1))
    return result


def heat(frames: Floats, values: npt.NDArray[np.generic]) -> Floats:
    """Blend frames (K, S, S, 3) with the colours of values in [0, 1], (K, rows, columns)."""
    colours = colormaps["inferno"](enlarge(values, frames)[..., 0])[..., :3]
    return np.asarray(0.4 * frames.mean(axis=-1, keepdims=True) + 0.6 * colours, dtype=np.float32)


def outline(cells: npt.NDArray[np.generic], *, patch_size: int) -> npt.NDArray[np.float64]:
    """Where cells (rows, columns) differ: line segments (L, 2 ends, x and y), in pixels."""
    padded = np.pad(cells, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, None, ::-1]  # (L, 1, 2)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, None, ::-1]
    ends = np.concatenate([np.add(upright, [[0, 0], [0, 1]]), np.add(level, [[0, 0], [1, 0]])])
    return np.asarray(ends * patch_size - 0.5)  # the border before pixel 0 is at -0.5


def shares(values: Tensor) -> Tensor:
    """The share of its clip's tokens below each value, in [0, 1]: (B, N) -> (B, N)."""
    return values.argsort(dim=1).argsort(dim=1) / max(1, values.shape[1] - 1)


def enlarge(cells: npt.NDArray[np.generic], frames: Floats) -> npt.NDArray[np.generic]:
    """Cells (K, rows, columns) enlarged to the size of frames (K, S, S, 3) -> (K, S, S, 1)."""
    patch = frames.shape[1] // cells.shape[1]
    return cells.repeat(patch, axis=1).repeat(patch, axis=2)[..., None]
