"""Draw the pictures of docs into docs/images/: ``python docs/figures.py``.

Masks, views and schedules come from the functions that training uses.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from torch import Tensor

from hpm_video.config import MaskingConfig, PretrainConfig
from hpm_video.data.prepare.toy import FORMATS, object_mask, read_positions, write_toy_videos
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.video.crops import Box
from hpm_video.data.video.frames import open_video
from hpm_video.method.masking import hard_ratio_at, make_mask, num_masked_units
from hpm_video.method.sources import motion_scores
from hpm_video.method.teacher import momentum_at
from hpm_video.method.teacher_views import View, draw_tokens
from hpm_video.models.tokens import TokenGrid, patchify

# Okabe and Ito's colours, which suit colour-blind readers; one meaning each in all pictures.
VISIBLE, RANDOM, HARD = "#F3F3F3", "#8FBFDF", "#E69F00"
STUDENT, TEACHER, LOSS, INK = "#0072B2", "#009E73", "#D55E00", "#333333"
MASK_COLOURS = ListedColormap([VISIBLE, RANDOM, HARD])

mpl.use("Agg")  # no window
mpl.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#AAAAAA",
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


def step() -> Figure:
    """Data flow of a training step."""
    figure, axes = _canvas(12, 5.6)

    _lane(axes, (2.2, 3.72, 7.35, 1.75), TEACHER, "teacher: no gradient, no reconstructor")
    _lane(axes, (2.2, 0.12, 9.7, 3.28), STUDENT, "student", at_bottom=True)

    _box(axes, (0.15, 2.65, 1.55, 1.0), "clip\n16 frames,\n1,568 tokens", INK)
    _box(axes, (2.45, 4.1, 2.1, 0.9), "encoder\nsees a random\ntenth", TEACHER)
    _box(axes, (5.1, 4.1, 1.75, 0.9), "predictor", TEACHER)
    _box(axes, (7.4, 4.1, 1.9, 0.9), "predicted loss\nof every token", INK)
    _box(axes, (9.85, 4.1, 1.85, 0.9), "mask\nhardest units,\nand random ones", HARD)

    _box(axes, (2.45, 1.95, 2.1, 0.9), "encoder\nsees the visible\ntenth", STUDENT)
    _box(axes, (5.1, 1.95, 1.75, 0.9), "encoded tokens,\nmask tokens,\npositions", INK)
    _box(axes, (7.4, 2.0, 1.75, 0.8), "reconstructor", STUDENT)
    _box(axes, (9.75, 2.0, 1.95, 0.8), "reconstruction\nloss of each token", LOSS)
    _box(axes, (7.4, 0.7, 1.75, 0.8), "predictor", STUDENT)
    _box(axes, (9.75, 0.7, 1.95, 0.8), "ranking loss", LOSS)

    _arrow(axes, (1.7, 3.3), (2.45, 4.4), INK)
    _arrow(axes, (1.7, 3.0), (2.45, 2.4), INK)
    _arrow(axes, (4.55, 4.55), (5.1, 4.55), TEACHER)
    _arrow(axes, (6.85, 4.55), (7.4, 4.55), TEACHER)
    _arrow(axes, (9.3, 4.55), (9.85, 4.55), INK)
    # The mask arrow runs back to the left between the lanes, to select the student's tokens.
    axes.plot([10.78, 10.78, 3.5], [4.1, 3.1, 3.1], color=HARD, lw=2.2, solid_joinstyle="round")
    _arrow(axes, (3.5, 3.12), (3.5, 2.85), HARD)
    axes.text(8.9, 3.14, "which tokens are visible", ha="center", va="bottom", fontsize=9)
    _arrow(axes, (4.55, 2.4), (5.1, 2.4), STUDENT)
    _arrow(axes, (6.85, 2.4), (7.4, 2.4), STUDENT)
    _arrow(axes, (6.85, 2.15), (7.4, 1.3), STUDENT)
    _arrow(axes, (9.15, 2.4), (9.75, 2.4), STUDENT)
    _arrow(axes, (9.15, 1.1), (9.75, 1.1), STUDENT)
    _arrow(axes, (10.72, 2.0), (10.72, 1.5), LOSS, dashed=True)
    axes.text(10.62, 1.75, "measured order", ha="right", va="center", fontsize=9)
    # Arrow between lanes: the EMA covers all weights that the teacher has.
    _arrow(axes, (6.2, 3.32), (6.2, 3.86), TEACHER, dashed=True)
    axes.text(6.1, 3.56, "EMA, after each step", ha="right", va="center", fontsize=9)
    axes.text(
        7.05,
        0.3,
        "gradients flow back along the blue arrows, so the encoder also learns what is hard",
        ha="center",
        va="center",
        fontsize=9,
    )
    return figure


def mining_units() -> Figure:
    """Mining units: tubes, windows of time, single tokens."""
    grid, mask_ratio, hard_ratio = TokenGrid(4, 7, 7), 0.75, 0.5
    scores = _moving_object(grid)
    rows = {"whole tubes": 4, "windows": 2, "tokens": 1}
    figure, axes = plt.subplots(4, grid.time, figsize=(6.6, 6.3))
    for time, panel in enumerate(axes[0]):
        panel.imshow(_frames(scores, grid)[time].numpy(), cmap="Greys", vmin=0, vmax=1.3)
        panel.set_title(f"time step {time + 1}", fontsize=10)
        _as_grid(panel, grid)
    for row, (name, tube_length) in zip(axes[1:], rows.items(), strict=True):
        masking = MaskingConfig(mask_ratio=mask_ratio, tube_length=tube_length)
        kinds = _mask_kinds(scores, grid, masking, hard_ratio)
        for time, panel in enumerate(row):
            panel.imshow(_frames(kinds, grid)[time].numpy(), cmap=MASK_COLOURS, vmin=0, vmax=2)
            _as_grid(panel, grid)
        _label(row[0], f"{name}\ntube_length {tube_length}")
    _label(axes[0, 0], "predicted loss\nof an object that\nmoves right")
    _legend(figure, {"visible": VISIBLE, "masked at random": RANDOM, "masked as hard": HARD})
    figure.subplots_adjust(left=0.22, right=0.985, top=0.955, bottom=0.075, wspace=0.08, hspace=0.1)
    return figure


def teacher_views() -> Figure:
    """Tokens that a sparse teacher sees, and their share per tube and time step."""
    grid, token_ratio, draws = TokenGrid(8, 6, 6), 0.25, 2
    views: tuple[View, ...] = ("tokens", "tubes", "frames", "spread")
    figure, axes = plt.subplots(
        len(views),
        grid.time + 1,
        figsize=(10.4, 4.6),
        width_ratios=[*[1] * grid.time, 2.3],
    )
    for row, view in zip(axes, views, strict=True):
        generator = torch.Generator().manual_seed(3)
        drawn = draw_tokens(
            1,
            grid,
            token_ratio=token_ratio,
            view=view,
            draws=draws,
            generator=generator,
            device="cpu",
        )[0]
        kinds = torch.zeros(grid.num_tokens)
        kinds[drawn[1]] = 2
        kinds[drawn[0]] = 1
        for time, panel in enumerate(row[:-1]):
            panel.imshow(
                _frames(kinds, grid)[time].numpy(),
                cmap=ListedColormap([VISIBLE, TEACHER, "#A6DCCB"]),
                vmin=0,
                vmax=2,
            )
            _as_grid(panel, grid)
            if view == views[0]:
                panel.set_title(f"time {time + 1}", fontsize=10)
        _label(row[0], f"teacher.view\n{view}")
        seen = (_frames(kinds, grid) == 1).float()
        per_tube = seen.sum(0)
        fewest_to_most = sorted({int(per_tube.min()), int(per_tube.max())})
        row[-1].text(
            0.1,
            0.5,
            f"first draw: {int((per_tube > 0).sum())} of {grid.num_tubes} tubes,\n"
            f"{' to '.join(map(str, fewest_to_most))} tokens of each,\n"
            f"{int(seen.flatten(1).any(1).sum())} of {grid.time} time steps",
            va="center",
            fontsize=9.5,
        )
        row[-1].axis("off")
    _legend(
        figure,
        {"first draw": TEACHER, "second draw (teacher.draws=2)": "#A6DCCB", "not seen": VISIBLE},
    )
    figure.subplots_adjust(left=0.115, right=0.985, top=0.94, bottom=0.09, wspace=0.1, hspace=0.1)
    return figure


def schedule() -> Figure:
    """Easy to hard: composition of masks over the run, and the teacher's momentum."""
    config = PretrainConfig()
    masking, average = config.masking, config.teacher
    grid = TokenGrid(8, 14, 14)
    figure = plt.figure(figsize=(10.2, 5.6))
    parts = figure.add_gridspec(2, 1, height_ratios=[1.25, 1], hspace=0.42)
    top = parts[0].subgridspec(1, 2, wspace=0.2, width_ratios=[1.5, 1])
    left, right = figure.add_subplot(top[0]), figure.add_subplot(top[1])

    progress = torch.linspace(0, 1, 177).tolist()
    start, end = masking.hard_ratio_start, masking.hard_ratio_end
    masked = num_masked_units(grid, mask_ratio=masking.mask_ratio, tube_length=grid.time)
    hard = [int(hard_ratio_at(e, start, end) * masked + 1e-9) for e in progress]
    left.stackplot(
        progress,
        [hard, [masked - h for h in hard], [grid.num_tubes - masked] * len(progress)],
        colors=[HARD, RANDOM, VISIBLE],
    )
    for x, y, text in [(0.8, 34, "hard"), (0.4, 115, "random"), (0.4, 186, "visible")]:
        left.text(x, y, text, ha="center", va="center")
    left.set(xlim=(0, 1), ylim=(0, grid.num_tubes), ylabel="tubes of a clip", yticks=[0, 88, 176])
    left.set_title("What a mask is made of", fontsize=11, loc="left")
    momentum = [
        momentum_at(e, start=average.momentum_start, end=average.momentum_end, ramp=average.ramp)
        for e in progress
    ]
    right.plot(progress, momentum, color=TEACHER, lw=2.2)
    right.set(xlim=(0, 1), ylim=(0.9988, 1.0), yticks=[0.999, 0.9999])
    right.set_yticklabels(["0.999", "0.9999"])
    right.set_title("Momentum of the teacher", fontsize=11, loc="left")
    for panel in (left, right):
        panel.set_xlabel("progress of the run")
        panel.set_xticks([0, 0.125, 0.25, 0.5, 0.75, 1], ["0", "⅛", "¼", "½", "¾", "1"])
        panel.spines[["top", "right"]].set_visible(False)

    moments = (0.0, 0.25, 0.5, 0.75, 1.0)
    bottom = parts[1].subgridspec(1, 1 + len(moments), wspace=0.12)
    scores = _moving_object(grid, width=2.2)
    panel = figure.add_subplot(bottom[0])
    panel.imshow(_frames(scores, grid).mean(0).numpy(), cmap="Greys", vmin=0)
    _as_grid(panel, grid)
    panel.set_title("predicted loss", fontsize=10)
    for place, moment in enumerate(moments):
        ratio = hard_ratio_at(moment, start, end)
        kinds = _mask_kinds(scores, grid, masking, ratio)
        panel = figure.add_subplot(bottom[1 + place])
        panel.imshow(_frames(kinds, grid)[0].numpy(), cmap=MASK_COLOURS, vmin=0, vmax=2)
        _as_grid(panel, grid)
        panel.set_title(f"hard ratio {ratio:g}", fontsize=10)
        panel.set_xlabel(f"at {moment:.0%}" if place else "at the start")
    figure.subplots_adjust(left=0.06, right=0.99, top=0.94, bottom=0.06)
    return figure


def two_predictors() -> Figure:
    """What trains and what selects masks, with `model.predictor_input=both`."""
    figure, axes = _canvas(12, 5.6)
    _lane(axes, (2.2, 4.0, 7.35, 1.45), TEACHER, "teacher: no gradient, no encoder")
    _lane(axes, (2.2, 0.12, 9.7, 3.28), STUDENT, "student", at_bottom=True)

    _box(axes, (0.15, 2.65, 1.55, 1.0), "clip\n16 frames,\n1,568 tokens", INK)
    _box(
        axes, (2.45, 4.15, 3.4, 0.8), "predictor from pixels\nsees a quarter of the tokens", TEACHER
    )
    _box(axes, (6.6, 4.15, 2.7, 0.8), "predicted loss\nof every token", INK)
    _box(axes, (9.85, 4.15, 1.85, 0.8), "mask\nhardest units,\nand random ones", HARD)

    _box(axes, (2.45, 2.0, 1.7, 0.8), "encoder\nvisible tenth", STUDENT)
    _box(axes, (4.75, 2.15, 1.95, 0.65), "reconstructor", STUDENT)
    _box(axes, (7.3, 2.15, 2.1, 0.65), "loss of each token", LOSS)
    _box(axes, (4.75, 1.2, 1.95, 0.65), "encoded predictor", STUDENT)
    _box(axes, (7.3, 1.2, 2.1, 0.65), "ranking loss", LOSS)
    _box(axes, (2.45, 0.52, 4.25, 0.5), "predictor from pixels, a network of its own", STUDENT)
    _box(axes, (7.3, 0.52, 2.1, 0.5), "ranking loss", LOSS)

    _arrow(axes, (1.7, 3.35), (2.45, 4.45), INK)
    _arrow(axes, (1.7, 3.0), (2.45, 2.45), INK)
    _arrow(axes, (1.7, 2.75), (2.45, 0.82), INK)
    _arrow(axes, (5.85, 4.55), (6.6, 4.55), TEACHER)
    _arrow(axes, (9.3, 4.55), (9.85, 4.55), INK)
    axes.plot([10.78, 10.78, 3.3], [4.15, 3.1, 3.1], color=HARD, lw=2.2, solid_joinstyle="round")
    _arrow(axes, (3.3, 3.12), (3.3, 2.8), HARD)
    axes.text(8.9, 3.14, "which tokens are visible", ha="center", va="bottom", fontsize=9)
    _arrow(axes, (4.15, 2.47), (4.75, 2.47), STUDENT)
    _arrow(axes, (4.15, 2.2), (4.75, 1.6), STUDENT)
    for height in (2.47, 1.52, 0.77):
        _arrow(axes, (6.7, height), (7.3, height), STUDENT)
    axes.plot([9.4, 9.85, 9.85], [2.47, 2.47, 0.77], color=LOSS, lw=2.2, linestyle=(0, (3, 1.5)))
    _arrow(axes, (9.85, 1.52), (9.4, 1.52), LOSS, dashed=True)
    _arrow(axes, (9.85, 0.77), (9.4, 0.77), LOSS, dashed=True)
    axes.text(9.97, 1.5, "measured\norder", ha="left", va="center", fontsize=9)
    _arrow(axes, (5.9, 3.44), (5.9, 3.96), TEACHER, dashed=True)
    axes.text(5.8, 3.7, "EMA of the predictor from pixels", ha="right", va="center", fontsize=9)
    axes.text(9.97, 0.45, "no gradient\nto the encoder", ha="left", va="center", fontsize=9)
    return figure


def sources() -> Figure:
    """Token scores that need no model, beside the true object, on one toy video."""
    size, stride, steps = 128, 2, (1, 3, 5, 7)
    grid, tubelet = TokenGrid(8, 8, 8), Tubelet(2, 16)
    indices = stride * np.arange(16)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_toy_videos(
            folder, num_videos=1, size=size, num_frames=32, formats=FORMATS[:1]
        )
        (name, places), *_ = read_positions(manifest.with_name("positions.csv")).items()
        pixels, speeds = open_video(manifest.parent / name, motion=True).read_motion(indices)
    clip = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None]
    box = Box(0, 0, size, size)
    share = object_mask(
        places[indices], size, grid_time=grid.time, grid_height=grid.height, grid_width=grid.width
    )
    rows = {
        "masking.source\nmotion": motion_scores(patchify(clip, grid), grid, tubelet_size=2)[0],
        "masking.source\ncodec": torch.from_numpy(
            tubelet.scores(speeds, box, size, size=(size, size), flip=False)
        ).flatten(),
        "the moving object\n(share of a token)": torch.from_numpy(share).flatten(),
    }
    figure, axes = plt.subplots(4, len(steps) + 1, figsize=(8.6, 6.6))
    for panel, step_ in zip(axes[0], steps, strict=False):
        panel.imshow(pixels[2 * step_ + 1])
        panel.set(title=f"time step {step_ + 1}", xticks=[], yticks=[])
    _label(axes[0, 0], "frame")
    axes[0, -1].axis("off")
    masking = MaskingConfig(mask_ratio=0.75)
    for row, (name, scores) in zip(axes[1:], rows.items(), strict=True):
        for panel, step_ in zip(row, steps, strict=False):
            panel.imshow(_frames(scores, grid)[step_].numpy(), cmap="Greys", vmin=0)
            _as_grid(panel, grid)
        kinds = _mask_kinds(scores, grid, masking, 0.5)
        row[-1].imshow(_frames(kinds, grid)[0].numpy(), cmap=MASK_COLOURS, vmin=0, vmax=2)
        _as_grid(row[-1], grid)
        _label(row[0], name)
    axes[1, -1].set_title("mask of tubes", fontsize=10)
    _legend(figure, {"visible": VISIBLE, "masked at random": RANDOM, "masked as hard": HARD})
    figure.subplots_adjust(left=0.2, right=0.985, top=0.955, bottom=0.075, wspace=0.08, hspace=0.1)
    return figure


def blocks() -> Figure:
    """Block masks of both kinds, random and scored."""
    grid = TokenGrid(8, 14, 14)
    scores = _moving_object(grid, width=2.2)
    masking = MaskingConfig(mask_ratio=0.75, pattern="blocks")
    rows: dict[str, Tensor | None] = {"hard ratio 0": None, "hard ratio 0.5": scores}
    figure, axes = plt.subplots(len(rows), 6, figsize=(10.4, 3.9))
    for row, (name, given) in zip(axes, rows.items(), strict=True):
        for seed, panel in enumerate(row[1:]):
            kinds = _mask_kinds(given, grid, masking, 0.5 if given is not None else 0, seed)
            panel.imshow(_frames(kinds, grid)[0].numpy(), cmap=MASK_COLOURS, vmin=0, vmax=2)
            _as_grid(panel, grid)
            if given is None:
                panel.set_title(f"clip {seed + 1}", fontsize=10)
        row[1].set_ylabel(name)
        row[0].axis("off")
    axes[1, 0].axis("on")
    axes[1, 0].imshow(_frames(scores, grid).mean(0).numpy(), cmap="Greys", vmin=0)
    _as_grid(axes[1, 0], grid)
    axes[1, 0].set_title("predicted loss", fontsize=10)
    _legend(figure, {"visible": VISIBLE, "masked at random": RANDOM, "masked as hard": HARD})
    figure.subplots_adjust(left=0.015, right=0.99, top=0.92, bottom=0.11, wspace=0.12, hspace=0.1)
    return figure


def targets() -> Figure:
    """Targets of a masked token, by kind."""
    figure, axes = _canvas(12, 4.3)
    _box(axes, (0.15, 1.75, 1.45, 0.9), "clip\nall tokens", INK)
    rows = {
        "pixels": ("pixels of the token, normalised by\ntheir mean and deviation", INK),
        "ema": ("moving average of the student's\nown encoder", TEACHER),
        "frozen": (
            "a trained model that does not change:\nours, VideoMAE, V-JEPA 2, DINOv2 …",
            HARD,
        ),
    }
    for number, (name, (text, colour)) in enumerate(rows.items()):
        height = 3.1 - 1.35 * number
        _box(axes, (2.6, height, 3.6, 0.9), text, colour)
        axes.text(2.6, height + 1.0, f"loss.target={name}", fontsize=9.5, family="monospace")
        _arrow(axes, (1.6, 2.2), (2.6, height + 0.45), INK)
        _arrow(axes, (6.2, height + 0.45), (7.1, 2.2), colour)
    _box(axes, (7.1, 1.75, 1.7, 0.9), "target of each\nmasked token", INK)
    _box(axes, (10.2, 1.75, 1.65, 0.9), "loss\nof each token", LOSS)
    _box(axes, (10.2, 0.25, 1.65, 0.9), "student's\nprediction", STUDENT)
    _arrow(axes, (8.8, 2.2), (10.2, 2.2), INK)
    _arrow(axes, (11.02, 1.15), (11.02, 1.75), STUDENT)
    axes.text(9.5, 2.3, "no gradient", ha="center", va="bottom", fontsize=9)
    _box(axes, (10.2, 3.2, 1.65, 0.9), "ranked, predicted,\nmined", LOSS)
    _arrow(axes, (11.02, 2.65), (11.02, 3.2), LOSS)
    return figure


FIGURES = {
    "step": step,
    "mining_units": mining_units,
    "teacher_views": teacher_views,
    "schedule": schedule,
    "two_predictors": two_predictors,
    "sources": sources,
    "blocks": blocks,
    "targets": targets,
}


def _moving_object(grid: TokenGrid, width: float = 1.2) -> Tensor:
    """Scores (N,) in [0, 1] of a blob that crosses the grid from left to right."""
    t, y, x = torch.meshgrid(
        *(torch.arange(float(size)) for size in (grid.time, grid.height, grid.width)),
        indexing="ij",
    )
    centre = 1 + (grid.width - 3) * t / (grid.time - 1)
    distance = (x - centre).square() + (y - grid.height // 2).square()
    return (-distance / (2 * width**2)).exp().flatten()


def _mask_kinds(
    scores: Tensor | None, grid: TokenGrid, masking: MaskingConfig, hard_ratio: float, seed: int = 1
) -> Tensor:
    """Kind of each token: 0 visible, 1 random, 2 hard; scores (N,) -> (N,)."""
    made = make_mask(
        None if scores is None else scores[None],
        grid,
        masking,
        hard_ratio=hard_ratio,
        batch_size=1,
        generator=torch.Generator().manual_seed(seed),
    )
    return (made.mask.long() + made.hard.long())[0]


def _frames(values: Tensor, grid: TokenGrid) -> Tensor:
    """(N,) -> (time, rows, columns)."""
    return values.reshape(grid.time, grid.height, grid.width)


def _as_grid(panel: Axes, grid: TokenGrid) -> None:
    """Draw white lines between tokens and a thin frame, without tick labels."""
    width, height, gap = grid.width, grid.height, float("nan")
    # One line with gaps is faster than many lines.
    lines = [(x - 0.5, y) for x in range(1, width) for y in (-0.5, height - 0.5, gap)]
    lines += [(x, y - 0.5) for y in range(1, height) for x in (-0.5, width - 0.5, gap)]
    panel.plot(*zip(*lines, strict=True), color="white", lw=0.9, scalex=False, scaley=False)
    panel.set(xticks=[], yticks=[])


def _label(panel: Axes, text: str) -> None:
    panel.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=8)


def _legend(figure: Figure, colours: dict[str, str]) -> None:
    figure.legend(
        handles=[Patch(fc=colour, ec="#AAAAAA", label=name) for name, colour in colours.items()],
        loc="lower center",
        ncols=len(colours),
        frameon=False,
    )


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Empty axes whose units are inches."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


Rectangle = tuple[float, float, float, float]  # left, bottom, width, height
Point = tuple[float, float]


def _box(axes: Axes, where: Rectangle, text: str, colour: str) -> None:
    left, bottom, width, height = where
    style = "round,pad=0,rounding_size=0.1"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, style, fc="white", ec=colour, lw=1.8)
    )
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center")


def _lane(axes: Axes, where: Rectangle, colour: str, name: str, *, at_bottom: bool = False) -> None:
    left, bottom, width, height = where
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, style, fc=colour, alpha=0.09, lw=0)
    )
    axes.text(
        left + 0.15,
        bottom + (0.2 if at_bottom else height - 0.2),
        name,
        color=colour,
        fontweight="bold",
        va="center",
    )


def _arrow(axes: Axes, start: Point, end: Point, colour: str, *, dashed: bool = False) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=14,
            shrinkA=1,
            shrinkB=1,
            lw=2.2,
            color=colour,
            linestyle=(0, (3, 1.5)) if dashed else "solid",
        )
    )


def draw(folder: Path) -> None:
    """Write all pictures as PNG into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        figure = make()
        figure.savefig(folder / f"{name}.png", facecolor="white", dpi=120)
        plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    images = Path(__file__).parent / "images"
    parser.add_argument(
        "folder", nargs="?", type=Path, default=images, help="folder for the pictures"
    )
    draw(parser.parse_args().folder)
