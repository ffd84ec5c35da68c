"""Figures of clips: rows of frames with loss heat maps and outlined tubes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from hpm_video.runtime.pages import Frames, number
from hpm_video.visualize.geometry import Place, token_pixels
from hpm_video.visualize.hard_tubes import KINDS, HardTubes, Scores
from hpm_video.visualize.hardness import rank_shares
from hpm_video.visualize.windows import resized, shrunk

Floats = npt.NDArray[np.float32]

GREY = 0.5  # masked pixels
WHOLE = Place(0, 0, 1, 1)
OUTSIDE = 0.5  # brightness outside the model's crop
MAX_COLUMNS = 8
MOST_SHORT_SIDE = 320  # pixels of a frame in a figure: enough for print
_DIM = 0.25  # brightness of tokens that are not selected


@dataclass(frozen=True)
class Row:
    """A row of a figure: images (K, H, W, 3) in [0, 1] and outlined tokens (K, rows, columns).

    The tokens belong to the clip at ``place`` in the images, by default the whole image.
    """

    label: str
    images: Floats
    outlined: npt.NDArray[np.bool_] | None = None
    place: Place = WHOLE


def picture(tubes: HardTubes, *, title: str) -> Figure:
    """A figure of up to MAX_COLUMNS evenly spaced frames, scaled down to MOST_SHORT_SIDE."""
    count = len(tubes.indices)
    shown = np.linspace(0, count - 1, min(count, MAX_COLUMNS)).round().astype(int)
    steps = shown // (count // tubes.grid.time)
    place = tubes.place
    frames = shrunk(tubes.frames[shown], MOST_SHORT_SIDE).astype(np.float32) / np.float32(255)
    rows = [Row("the video", frames)]
    if tubes.seen_as is not None:
        title += "  (class {}, score {:.2f})".format(*tubes.seen_as)
    if tubes.predicted is not None:
        title += f"  (rank accuracy {number(tubes.rank_accuracy, '.2f')}, "
        title += f"Spearman {number(tubes.spearman, '.2f')})"
    colours = ": dark = easiest, yellow = hardest tokens of the clip"
    for kind, scores in tubes.kinds.items():
        label, colours = f"{KINDS[kind]}{colours}", ", same colours"
        if kind in tubes.agreement:
            label += f" (Spearman {number(tubes.agreement[kind], '.2f')} with the measured loss)"
        rows.append(Row(label, heat_at(frames, ranks(scores)[steps], place)))

    hard = tubes.hard[steps]
    label = f"hard tubes: those that a mask with hard ratio {tubes.hard_ratio:g} hides first, by "
    label += KINDS[tubes.scored_by]
    chosen = np.where(spread(hard[..., None], place, frames), frames, _DIM * frames)
    rows.append(Row(label, within(place, frames, chosen), outlined=hard, place=place))

    label = f"random mask with ratio {tubes.mask_ratio:g}: what the model sees"
    if tubes.honest is None:
        label += " (it reconstructs features, which cannot be shown)"
    hidden = spread(tubes.random_mask[steps, ..., None], place, frames)
    rows.append(Row(label, within(place, frames, np.where(hidden, np.float32(GREY), frames))))
    label = "reconstruction under this mask, by the model alone"
    if tubes.flattering is not None:
        label += " (mean and contrast: average of the visible patches)"
    if tubes.honest is not None:
        rows.append(Row(label, placed(frames, tubes.honest[shown], place)))
    if tubes.flattering is not None:
        label = "with the true mean and variance of every patch: flatters any model"
        rows.append(Row(label, placed(frames, tubes.flattering[shown], place)))
    return figure(rows, title=title, columns=frame_names(tubes.indices[shown]))


def frame_names(indices: Iterable[int]) -> list[str]:
    """What pictures call frames at these places of a video: like our pages, they count from 1."""
    return [f"frame {index + 1}" for index in indices]


def figure(rows: Sequence[Row], *, title: str, columns: Sequence[str]) -> Figure:
    """Draw rows of K images, each below its label; column names are at the bottom."""
    height, width = rows[0].images.shape[1:3]
    size = max(1.3 * len(columns), 7.0), (1.3 * height / width + 0.3) * len(rows) + 0.6  # inches
    result = Figure(figsize=size, dpi=150, layout="constrained")
    result.suptitle(drawable(title), x=0.01, ha="left", size=10, parse_math=False)
    for axes, row in zip(result.subplots(len(rows), squeeze=False).flat, rows, strict=True):
        height, width = row.images.shape[1:3]
        step = width + max(1, width // 24)  # from image to image
        strip = np.pad(row.images, ((0, 0), (0, 0), (0, step - width), (0, 0)), constant_values=1)
        drawn = (np.concatenate(list(strip), axis=1).clip(0, 1) * 255).round().astype(np.uint8)
        axes.imshow(drawn, interpolation="nearest")
        axes.set_anchor("W")
        axes.set_title(row.label, loc="left", size=8, parse_math=False)
        axes.set_frame_on(False)
        axes.set_yticks([])
        ticks = range(width // 2, strip.shape[2] * len(strip), step) if row is rows[-1] else []
        axes.set_xticks(list(ticks), columns if ticks else [], size=7)
        axes.tick_params(length=0)
        if row.outlined is not None:
            for x, cells in enumerate(row.outlined):
                lines = np.add(lines_at(row.place, cells, height, width), (x * step, 0))
                axes.add_collection(LineCollection(list(lines), colors="#ffd400", linewidths=1))
    return result


def drawable(text: str) -> str:
    """The text with a box for each character that the font lacks, which would cause warnings."""
    return "".join(letter if ord(letter) in _letters() else "□" for letter in text)


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def heat(frames: Floats, values: npt.NDArray[np.generic]) -> Floats:
    """Blend frames (K, S, S, 3) with the colours of values (K, rows, columns) in [0, 1]."""
    colours = colormaps["inferno"](enlarge(values, frames)[..., 0])[..., :3]
    return np.asarray(0.4 * frames.mean(axis=-1, keepdims=True) + 0.6 * colours, dtype=np.float32)


def outline(cells: npt.NDArray[np.generic], *, patch_size: int) -> npt.NDArray[np.float64]:
    """Borders between different cells (rows, columns): segments (L, 2 ends, x and y) in pixels."""
    padded = np.pad(cells, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, None, ::-1]  # (L, 1, 2)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, None, ::-1]
    ends = np.concatenate([np.add(upright, [[0, 0], [0, 1]]), np.add(level, [[0, 0], [1, 0]])])
    return np.asarray(ends * patch_size - 0.5)  # pixel 0 starts at -0.5


def lines_at(
    place: Place, cells: npt.NDArray[np.generic], height: int, width: int
) -> npt.NDArray[np.float64]:
    """`outline` of a clip's cells at its place in a picture (height, width)."""
    rows, columns = cells.shape
    token = place.width * width / columns, place.height * height / rows
    corner = place.left * width - 0.5, place.top * height - 0.5
    return (outline(cells, patch_size=1) + 0.5) * token + corner


def heat_at(
    frames: Floats, values: npt.NDArray[np.generic], place: Place, *, opacity: float = 0.6
) -> Floats:
    """Grey frames (K, H, W, 3) under the colours of a clip's values (K, rows, columns) in [0, 1].

    The area outside the clip's place is darker.
    """
    # Colouring tokens and enlarging them is much cheaper than colouring pixels
    colours = spread(colormaps["inferno"](values)[..., :3].astype(np.float32), place, frames)
    grey = frames.mean(axis=-1, keepdims=True)
    return within(place, frames, (1 - opacity) * grey + opacity * colours)


def within(place: Place, frames: Floats, inner: npt.NDArray[np.generic]) -> Floats:
    """Put pictures ``inner`` at a clip's place in darkened frames, all (K, H, W, 3)."""
    return np.where(inside(place, frames), inner, OUTSIDE * frames).astype(np.float32)


def inside(place: Place, frames: Floats) -> npt.NDArray[np.bool_]:
    """Pixels (H, W, 1) of frames (K, H, W, 3) that lie inside a place."""
    rows, columns = token_pixels(place, frames.shape[1], frames.shape[2], 1, 1)
    return (rows >= 0)[:, None, None] & (columns >= 0)[:, None]


def spread(cells: npt.NDArray[Any], place: Place, frames: Floats) -> npt.NDArray[Any]:
    """Enlarge a clip's cells (K, rows, columns, C) to frames (K, H, W, 3) -> (K, H, W, C).

    Values outside the clip's place are undefined.
    """
    rows, columns = token_pixels(place, *frames.shape[1:3], *cells.shape[1:3])
    return cells[:, rows.clip(0)][:, :, columns.clip(0)]


def enlarge(cells: npt.NDArray[np.generic], frames: Floats) -> npt.NDArray[np.generic]:
    """Enlarge cells (K, rows, columns) to the size of frames (K, S, S, 3) -> (K, S, S, 1)."""
    patch = frames.shape[1] // cells.shape[1]
    return cells.repeat(patch, axis=1).repeat(patch, axis=2)[..., None]


def ranks(values: Scores) -> npt.NDArray[np.float64]:
    """Share of the clip's tokens below each value, in [0, 1]; same shape."""
    return rank_shares(values[None])[0]


def placed(frames: Floats, crops: Frames, place: Place) -> Floats:
    """Put crops (K, S, S, 3), scaled, at their place in darkened frames (K, H, W, 3)."""
    top, left, height, width = place.pixels(*frames.shape[1:3])
    inner = frames.copy()
    scaled = resized(crops, height, width) / np.float32(255)
    inner[:, top : top + height, left : left + width] = scaled
    return within(place, frames, inner)
