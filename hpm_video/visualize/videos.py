"""Pictures and a page of videos, as a pre-training checkpoint sees them."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from hpm_video import mining
from hpm_video.config import MaskingConfig
from hpm_video.data.files import OURS, check_is_ours, printable
from hpm_video.data.video import VideoReadError
from hpm_video.distributed import join_world
from hpm_video.mining import Pretrained
from hpm_video.run_folder import check_can_be_folder, make_folder
from hpm_video.settings import config_to_yaml
from hpm_video.visualize.figures import GREY, Floats, Row, enlarge, figure, heat, shares
from hpm_video.visualize.reading import read_clip

MAX_COLUMNS = 8
NUM_MASKS = 8  # random masks behind a measured loss
NUM_VIEWS = 4  # draws of a sparse teacher's tokens behind a predicted loss
_DIM = 0.25  # brightness of what is not chosen


@dataclass(frozen=True)
class Result:
    """Of one video: its picture and numbers (None without a predictor), or why it is unreadable."""

    name: str
    png: Path | None = None
    rank_accuracy: float | None = None
    spearman: float | None = None
    error: str | None = None


def picture(
    pretrained: Pretrained,
    clips: Tensor,
    indices: npt.NDArray[np.int64],
    *,
    name: str,
    seed: int = 0,
) -> tuple[Figure, Result]:
    """Ask a checkpoint about what `read_clip` gave -> figure and numbers of the video ``name``."""
    grid, config = pretrained.grid, pretrained.config
    clips = clips.to(pretrained.student.encoder.mean.device)
    result, predicted, title = Result(name), None, Path(name).name[:60]
    if pretrained.scorer is not None:
        report = mining.measure_mining(
            pretrained, clips, num_masks=NUM_MASKS, num_views=NUM_VIEWS, seed=seed
        )
        predicted, measured = report.predicted, report.measured
        result = Result(name, rank_accuracy=report.rank_accuracy, spearman=report.spearman)
        title += f"  (rank accuracy {report.rank_accuracy:.3f}, Spearman {report.spearman:.3f})"
    else:
        measured = mining.measured_loss(pretrained, clips, num_masks=NUM_MASKS, seed=seed)
    mask = next(mining.even_masks(pretrained, clips, num_masks=1, seed=seed))

    # At most MAX_COLUMNS tubelets, evenly picked, each shown by its first frame.
    steps = np.linspace(0, grid.time - 1, min(grid.time, MAX_COLUMNS)).round().astype(int)
    shown = steps * config.model.tubelet_size

    def images(clips: Tensor) -> Floats:
        """(1, 3, T, S, S) -> (K, S, S, 3)."""
        return clips[0].permute(1, 2, 3, 0).cpu().numpy()[shown]

    def cells(tokens: Tensor) -> npt.NDArray[np.generic]:
        """(1, N) -> (K, rows, columns)."""
        return tokens.reshape(grid.time, grid.height, grid.width).cpu().numpy()[steps]

    frames = images(clips)
    rows = [Row("frames", frames)]
    if predicted is not None:
        what = "teacher" if config.masking.mines else "student"
        label = f"loss predicted by the {what}: dark = easiest, yellow = hardest tokens of the clip"
        rows.append(Row(label, heat(frames, cells(shares(predicted)))))
    label = "loss measured: mean over random masks, same colours"
    rows.append(Row(label, heat(frames, cells(shares(measured)))))

    ratio = config.masking.hard_ratio_end or MaskingConfig().hard_ratio_end
    scores = measured if predicted is None else predicted
    hard = cells(mining.hardest_tokens(pretrained, scores, hard_ratio=ratio)).astype(bool)
    by = "measured, as there is no predictor" if predicted is None else "predicted"
    label = f"hard tubes: what a mask of hard ratio {ratio:g} hides first, by the loss {by}"
    rows.append(Row(label, np.where(enlarge(hard, frames), frames, _DIM * frames), outlined=hard))

    hidden = cells(mask).astype(bool)
    label = f"a random mask of ratio {config.masking.mask_ratio:g}: what the model sees"
    rows.append(Row(label, np.where(enlarge(hidden, frames), np.float32(GREY), frames)))
    label = "reconstruction under that mask, from the model alone"
    if config.loss.normalize_targets:
        label += " (mean and contrast: average of the visible patches)"
    rows.append(Row(label, images(mining.reconstruct(pretrained, clips, mask))))
    if config.loss.normalize_targets:
        label = "adds the true mean and variance of every patch: flatters any model"
        filled = mining.reconstruct(pretrained, clips, mask, true_statistics=True)
        rows.append(Row(label, images(filled)))
    columns = [f"frame {index}" for index in indices[shown]]
    return figure(rows, title=title, columns=columns), result


def visualize(
    checkpoint: str | Path,
    videos: Sequence[str | Path],
    output_dir: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
) -> tuple[Path | None, list[Result]]:
    """Write a PNG per video, and index.html, which holds them all, to ``output_dir``.

    Returns page and results in order; a video that cannot be read has an ``error`` in both. When
    none can be read there is no page. Raises ValueError (or FileNotFoundError) for a wrong
    checkpoint, no videos or one that does not exist, a seed out of range, no place to write, or
    other files of the same names there.
    """
    if not videos:
        raise ValueError("videos (none) must name at least one file")
    for video in videos:
        if not os.path.exists(video):
            raise FileNotFoundError(f"video ({printable(str(video))}) does not exist")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed ({seed}) must be in [0, {2**63 - 1}]")
    folder, stems = Path(output_dir), _unique_stems(videos)
    check_can_be_folder(folder, name="output_dir")
    for file in ("index.html", *(f"{stem}.png" for stem in stems)):
        check_is_ours(folder / file, name="output_dir")
    with join_world(device, setting="device") as world:
        pretrained = mining.load_pretrained(checkpoint, device=world.device)
        make_folder(output_dir, name="output_dir")
        results: list[Result] = []
        for video, stem in zip(videos, stems, strict=True):
            name = printable(str(video))
            try:
                clip, indices = read_clip(video, pretrained.config)
            except VideoReadError as error:
                results.append(Result(name, error=printable(error.reason)))
                continue
            image, result = picture(pretrained, clip, indices, name=name, seed=seed)
            image.savefig(folder / f"{stem}.png", metadata={"Software": OURS})
            results.append(replace(result, png=folder / f"{stem}.png"))
    if all(result.png is None for result in results):
        return None, results
    text = render_page(pretrained, results, checkpoint=printable(str(checkpoint)))
    (folder / "index.html").write_text(text, encoding="utf-8")
    return folder / "index.html", results


def render_page(pretrained: Pretrained, results: Sequence[Result], *, checkpoint: str) -> str:
    """The HTML page: settings, how to read it, numbers and pictures; it needs no other file."""
    rows, figures, bad = [], [], []
    for result in results:
        name = html.escape(result.name)
        if result.png is None:
            bad.append(f"<li>{name}: {html.escape(result.error or '')}")
            continue
        if result.rank_accuracy is not None:
            rows.append(f"<tr><td>{name}<td>{result.rank_accuracy:.3f}<td>{result.spearman:.3f}")
        data = base64.b64encode(result.png.read_bytes()).decode()
        figures.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    return _PAGE.format(
        checkpoint=html.escape(checkpoint),
        step=pretrained.step,
        settings=html.escape(config_to_yaml(pretrained.config)),
        plain=_PLAIN if pretrained.scorer is None else "",
        bad=f"<h2>Unreadable</h2><ul>{''.join(bad)}</ul>" if bad else "",
        numbers=f"<table>{_HEAD}{''.join(rows)}</table>" if rows else "",
        figures="\n".join(figures),
    )


def _unique_stems(videos: Sequence[str | Path]) -> list[str]:
    """File names without ending, told apart by a number where they repeat."""
    stems: list[str] = []
    for video in videos:
        stem, number = Path(video).stem[:50] or "video", 1
        name = stem
        while name.casefold() in {taken.casefold() for taken in stems}:
            name = f"{stem}_{(number := number + 1)}"
        stems.append(name)
    return stems


_HEAD = "<tr><th>video<th>rank accuracy<th>Spearman"
_PLAIN = """<p><b>This checkpoint is a plain VideoMAE, without a loss predictor: there is nothing to
compare, and shown is the measured loss instead of the predicted one.</b></p>"""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="hpm-video">
<title>What {checkpoint} finds hard</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100%; height: auto }} h1, h2, td {{ overflow-wrap: anywhere }}
h2 {{ font-size: 1em }} td, th {{ padding-right: 1em; text-align: left }}
</style>
<h1>What {checkpoint} finds hard</h1>
<details><summary>Step {step}; settings</summary><pre>{settings}</pre></details>
{plain}
<p>Each picture follows one clip from the middle of a video, in frames from left to right; yellow
patches are the hardest of the clip and dark ones the easiest. Rank accuracy is the share of pairs
of masked patches whose losses the model orders right (0.5 is chance). Spearman is the rank
correlation of predicted with measured losses over tubes (0 is chance, 1 perfect). Judge
reconstructions by the row made by the model alone; one that adds true statistics flatters any
model.</p>
{numbers}
{bad}
{figures}
"""
