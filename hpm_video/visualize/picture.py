"""The figure of a clip: what is hard in it, and how it is reconstructed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torchvision.transforms.v2 import functional

from hpm_video.method.diagnostics import shares
from hpm_video.runtime.pages import Frames
from hpm_video.visualize.figures import GREY, Floats, Row, figure, heat_at, spread, within
from hpm_video.visualize.geometry import Place
from hpm_video.visualize.reading import shrunk
from hpm_video.visualize.scores import HardTubes, Scores

MAX_COLUMNS = 8
MOST_SHORT_SIDE = 320  # pixels of a frame in a figure: enough for print, at any size of the video
_DIM = 0.25  # brightness of what is not chosen


def picture(tubes: HardTubes, *, title: str) -> Figure:
    """Rows of at most MAX_COLUMNS frames, evenly picked, scaled down to MOST_SHORT_SIDE."""
    count = len(tubes.indices)
    shown = np.linspace(0, count - 1, min(count, MAX_COLUMNS)).round().astype(int)
    steps = shown // (count // tubes.grid.time)
    place = tubes.place
    frames = shrunk(tubes.frames[shown], MOST_SHORT_SIDE).astype(np.float32) / np.float32(255)
    rows = [Row("the video", frames)]
    if tubes.predicted is not None:
        title += f"  (rank accuracy {tubes.rank_accuracy:.3f}, Spearman {tubes.spearman:.3f})"
        label = "loss predicted: dark = easiest, yellow = hardest tokens of the clip"
        rows.append(Row(label, heat_at(frames, ranks(tubes.predicted)[steps], place)))
    label = "loss measured: mean over random masks, same colours"
    rows.append(Row(label, heat_at(frames, ranks(tubes.measured)[steps], place)))

    hard = tubes.hard[steps]
    by = "measured, as there is no predictor" if tubes.predicted is None else "predicted"
    label = (
        f"hard tubes: what a mask of hard ratio {tubes.hard_ratio:g} hides first, by the loss {by}"
    )
    chosen = np.where(spread(hard, place, frames), frames, _DIM * frames)
    rows.append(Row(label, within(place, frames, chosen), outlined=hard, place=place))

    label = f"a random mask of ratio {tubes.mask_ratio:g}: what the model sees"
    hidden = spread(tubes.random_mask[steps], place, frames)
    rows.append(Row(label, within(place, frames, np.where(hidden, np.float32(GREY), frames))))
    label = "reconstruction under that mask, from the model alone"
    if tubes.flattering is not None:
        label += " (mean and contrast: average of the visible patches)"
    rows.append(Row(label, placed(frames, tubes.honest[shown], place)))
    if tubes.flattering is not None:
        label = "adds the true mean and variance of every patch: flatters any model"
        rows.append(Row(label, placed(frames, tubes.flattering[shown], place)))
    columns = [f"frame {index}" for index in tubes.indices[shown]]
    return figure(rows, title=title, columns=columns)


def ranks(values: Scores) -> npt.NDArray[np.float64]:
    """The share of the clip's tokens below each value, in [0, 1], of the same shape."""
    return shares(torch.from_numpy(values).reshape(1, -1)).reshape(values.shape).numpy()


def placed(frames: Floats, crops: Frames, place: Place) -> Floats:
    """Crops (K, S, S, 3), scaled to their place in frames (K, H, W, 3), which are darker around."""
    top, left, height, width = place.pixels(*frames.shape[1:3])
    planes = torch.from_numpy(crops).permute(0, 3, 1, 2)
    scaled = functional.resize(planes, [height, width], antialias=True)
    inner = frames.copy()
    inner[:, top : top + height, left : left + width] = scaled.permute(
        0, 2, 3, 1
    ).numpy() / np.float32(255)
    return within(place, frames, inner)
