"""The page and CSV tables of an evaluation, with what the classifier confuses."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from hpm_video.data.loading.batches import read_guarded
from hpm_video.data.video.frame_indices import uniform_view_indices
from hpm_video.data.video.frames import VideoReadError, open_frames
from hpm_video.evaluate.predictions import Evaluation, SeveralLabels, write_predictions
from hpm_video.evaluate.several_labels_page import (
    MAX_WORST,
    NUM_CLIPS,
    both_ends,
    clip_shown,
    heading,
    several_labels_page,
    videos_shown,
    write_class_table,
)
from hpm_video.runtime.files import write_atomically, write_csv
from hpm_video.runtime.pages import address, jpeg_bytes, page

MAX_CELLS = 30  # maximum classes for a written matrix; larger ones are drawn as a picture
MAX_CONFUSED = 20  # classes in the written matrix if there are more than MAX_CELLS
_MAX_PAIRS = 50  # pairs of classes listed
_MAX_BAD = 2000  # unreadable videos on the page; the CSV has all of them
_STRIP_FRAMES = 8
_STRIP_HEIGHT = 96  # pixels
_CELL = (42, 147, 166, 0)  # RGBA, readable on the light and on the dark page


@dataclass(frozen=True)
class ClassResult:
    """Counts of one class: videos, right, unreadable, and the most frequent wrong class.

    confused_with: that class (ties go to the first; None if no video is wrong). confused: its
    count.
    """

    label: int
    videos: int
    right: int
    unreadable: int
    confused_with: int | None
    confused: int

    @property
    def accuracy(self) -> float | None:
        """Share of right videos; None without videos."""
        return self.right / self.videos if self.videos else None


def class_results(confusion: npt.NDArray[np.int64]) -> list[ClassResult]:
    """One result per class, from `Evaluation.confusion`."""
    wrong = _wrong(confusion)
    columns = (confusion.sum(axis=1), confusion.diagonal(), confusion[:, -1])
    numbers = zip(*columns, wrong.argmax(axis=1), wrong.max(axis=1), strict=True)
    return [
        ClassResult(
            label, int(videos), int(right), int(bad), int(other) if often else None, int(often)
        )
        for label, (videos, right, bad, other, often) in enumerate(numbers)
    ]


def confused_pairs(confusion: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(class, predicted class, count) of all confusions, most frequent first, then by class."""
    wrong = _wrong(confusion)
    pairs = [(int(i), int(j), int(wrong[i, j])) for i, j in np.argwhere(wrong)]
    return sorted(pairs, key=lambda pair: -pair[2])


def _wrong(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return confusion[:, :-1] * ~np.eye(len(confusion), dtype=bool)


def worst(result: Evaluation, most: int) -> list[int]:
    """Wrong videos with the most confident predictions, in order; unreadable ones are left out."""
    predicted = result.predicted
    wrong = np.flatnonzero((predicted >= 0) & (predicted != result.labels))
    sure = result.scores[wrong, predicted[wrong]]
    return [int(index) for index in wrong[np.argsort(-sure, kind="stable")][:most]]


def clips_of(result: Evaluation, of: ClassResult, *, right: bool) -> list[int]:
    """A few videos of a class that are right, or wrong, those with the highest scores."""
    predicted = result.predicted
    is_right = predicted == result.labels
    mine = np.flatnonzero((result.labels == of.label) & (predicted >= 0) & (is_right == right))
    sure = result.scores[mine, predicted[mine]]
    return [int(index) for index in mine[np.argsort(-sure, kind="stable")][:NUM_CLIPS]]


def ends(results: list[ClassResult]) -> tuple[list[ClassResult], list[ClassResult]]:
    """From ordered classes, the worst with a wrong video and the best with a right one; no class is
    in both lists."""
    return both_ends(
        results,
        is_wrong=lambda r: r.videos > r.right + r.unreadable,
        is_right=lambda r: r.right > 0,
    )


def worst_first(results: list[ClassResult]) -> list[ClassResult]:
    """Classes by accuracy; ties go to the larger class. Classes without videos come last."""
    return sorted(results, key=lambda r: (r.accuracy is None, r.accuracy, -r.videos))


def _shown_classes(result: Evaluation) -> dict[str, list[tuple[ClassResult, list[int]]]]:
    """Best and worst classes with the videos to show for each, by heading."""
    low, high = ends(worst_first(class_results(result.confusion())))
    return {
        "Worst classes": [(r, clips_of(result, r, right=False)) for r in low],
        "Best classes": [(r, clips_of(result, r, right=True)) for r in high],
    }


def most_confused(confusion: npt.NDArray[np.int64], most: int) -> list[int]:
    """Classes of the most frequent confusions, in class order."""
    found: set[int] = set()
    for one, other, _ in confused_pairs(confusion):
        if len(found | {one, other}) > most:
            break
        found |= {one, other}
    return sorted(found)


def write_evaluation(
    result: Evaluation | SeveralLabels, folder: Path, *, num_workers: int, timeout_s: float | None
) -> Path:
    """Write predictions.csv, per_class.csv, index.html and, for single-label results,
    confusion.csv.

    Returns the page. The worst clips are decoded again for it, in a subprocess unless `num_workers`
    is 0. Raises ValueError if a file cannot be written.
    """
    write_predictions(result, folder)
    if isinstance(result, SeveralLabels):
        write_class_table(result, folder)
        shown = videos_shown(result)
    else:
        _write_tables(result, folder)
        of_classes = [clips for found in _shown_classes(result).values() for _, clips in found]
        shown = list(dict.fromkeys(chain(worst(result, MAX_WORST), *of_classes)))
    read = partial(read_guarded, num_workers=num_workers, timeout_s=timeout_s)
    strips: dict[int, bytes | str] = {}
    for index in shown:
        try:
            strips[index] = read(frame_strip, result.paths[index])
        except VideoReadError as error:
            strips[index] = f"can no longer be read: {error.reason}"
    if isinstance(result, SeveralLabels):
        text = several_labels_page(result, strips)
    else:
        text = evaluation_page(result, strips)
    write_atomically(folder / "index.html", [text])
    return folder / "index.html"


def _write_tables(result: Evaluation, folder: Path) -> None:
    confusion = result.confusion()
    names = [result.class_name(label) for label in range(result.num_classes)]
    head = ["label", "name", "videos", "right", "accuracy", "unreadable", "confused_with", "times"]
    rows = [
        (
            *(r.label, result.classes[r.label] if result.classes else "", r.videos, r.right),
            *(_share(r.accuracy), r.unreadable, r.confused_with, r.confused or None),
        )
        for r in class_results(confusion)
    ]
    write_csv(folder / "per_class.csv", head, rows)
    head = ["class", *(f"called {name}" for name in names), "unreadable"]
    write_csv(folder / "confusion.csv", head, zip(names, *confusion.T.tolist(), strict=True))


def evaluation_page(result: Evaluation, strips: Mapping[int, bytes | str]) -> str:
    """Render the page; ``strips``: video -> `frame_strip`, or the reason for having none."""
    named, confusion = result.class_name, result.confusion()
    per_class = worst_first(class_results(confusion))
    is_large = len(confusion) > MAX_CELLS
    counts = confusion if confusion[:, -1].any() else confusion[:, :-1]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    rows = most_confused(confusion, MAX_CONFUSED) if is_large else list(range(len(confusion)))
    columns = [*rows, *range(len(confusion), counts.shape[1])]

    def clips(indices: list[int]) -> list[dict[str, object]]:
        return [_clip(result, index, strips[index]) for index in indices if index in strips]

    return page(
        __package__,
        "evaluation.html",
        **heading(result),
        **_first_words(result, confusion),
        picture=address(matrix_picture(shares), "png") if is_large else None,
        num_classes=result.num_classes,
        num_columns=counts.shape[1],
        ends_of_order=(named(0), named(len(confusion) - 1)),
        columns=[*map(named, rows), *["unreadable"] * (len(columns) - len(rows))],
        matrix_rows=[
            (named(row), list(zip(counts[row, columns], shares[row, columns], strict=True)))
            for row in rows
        ],
        pairs=[
            (count, confusion[one].sum(), named(one), named(other))
            for one, other, count in confused_pairs(confusion)[:_MAX_PAIRS]
        ],
        classes=[_class(result, r) for r in per_class],
        ends=[
            (title, [_class(result, r) | {"clips": clips(indices)} for r, indices in found])
            for title, found in _shown_classes(result).items()
        ],
        worst=clips(worst(result, MAX_WORST)),
        bad=[(result.paths[index], reason) for index, reason in result.bad[:_MAX_BAD]],
    )


def _first_words(result: Evaluation, confusion: npt.NDArray[np.int64]) -> dict[str, object]:
    """The verdict and the tiles at the top of the page."""
    figures, of = result.figures(), len(result.labels)
    right, chance = int(confusion.diagonal().sum()), 1 / result.num_classes
    sizes = confusion.sum(axis=1)
    always = float(sizes.max() / of)
    top1 = right / of
    guess = f"always answering {_most_frequent(result, sizes)} ({always:.1%})"
    if 2 * (1 - top1) <= 1 - always and always < 1:
        level, says = "good", f"It makes at most half the errors of {guess}."
    elif top1 > always:
        level, says = "fair", f"That is better than {guess}."
    else:
        level, says = "poor", f"That is no better than {guess}."
    judged = int((confusion.sum(axis=1) > 0).sum())
    balanced = "mean over classes"
    if judged < result.num_classes:  # chance differs from that of top-1
        balanced = f"mean over the {judged:,} classes with videos; chance {1 / judged:.1%}"
    unreadable = f"{len(result.bad):,} unreadable" + ", counted as wrong" * bool(result.bad)
    tiles = [
        ("accuracy (top-1)", f"{top1:.1%}", f"{right:,} of {of:,} videos"),
        ("chance", f"{chance:.1%}", f"1 of {result.num_classes:,} classes"),
        ("videos", f"{of:,}", unreadable),
        ("balanced accuracy", f"{figures['balanced_accuracy']:.1%}", balanced),
    ]
    if figures["top5"] is not None:
        tiles.append(
            ("top-5 accuracy", f"{figures['top5']:.1%}", "label among the 5 highest scores")
        )
    if figures["loss"] is not None:
        tiles.append(("loss", f"{figures['loss']:.3f}", "cross-entropy"))
    words = f"The classifier is right on {right:,} of {of:,} videos. {says}"
    return {"verdict": words, "level": level, "tiles": tiles}


def _most_frequent(result: Evaluation, sizes: npt.NDArray[np.int64]) -> str:
    """The class that guessing would choose, in words."""
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) == result.num_classes > 1:
        return "one class"
    if len(largest) > 1:
        return f"one of the {len(largest):,} most frequent classes"
    return f"{result.class_name(int(largest[0]))}, the most frequent class"


def _class(result: Evaluation, found: ClassResult) -> dict[str, object]:
    """One class as the template shows it."""
    other = found.confused_with
    confused = "" if other is None else f"{result.class_name(other)} ({found.confused})"
    return {
        "name": result.class_name(found.label),
        "accuracy": "" if found.accuracy is None else f"{found.accuracy:.1%}",
        "share": found.accuracy or 0.0,
        "says": f"{found.right:,} of {found.videos:,} videos right"
        + f"; most often confused with {confused}" * bool(confused),
        "videos": found.videos,
        "unreadable": found.unreadable,
        "confused": confused,
    }


def _clip(result: Evaluation, index: int, strip: bytes | str) -> dict[str, object]:
    label, predicted = int(result.labels[index]), int(result.predicted[index])
    scores = result.scores[index]
    words = f"predicted {result.class_name(predicted)} ({scores[predicted]:.3f})"
    if label != predicted:
        words += f", labelled {result.class_name(label)} ({scores[label]:.3f})"
    return clip_shown(result.paths[index], [words], strip)


def matrix_picture(shares: npt.NDArray[np.float64]) -> bytes:
    """PNG of the matrix: one colour on any background, with square cells of whole pixels."""
    # The square root keeps rare confusions visible
    pixels = np.full((*shares.shape, 4), _CELL, np.uint8)
    pixels[..., 3] = np.round(255 * shares**0.5)
    side = max(2, 800 // len(shares))
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(side, 0).repeat(side, 1)).save(file, format="png")
    return file.getvalue()


def frame_strip(path: str) -> bytes:
    """JPEG of frames spread evenly over a video; raises VideoReadError."""
    video = open_frames(path)
    indices = uniform_view_indices(video.num_frames, clip_frames=_STRIP_FRAMES, num_clips=1)[0]
    frames = torch.from_numpy(video.read(indices)).permute(0, 3, 1, 2)  # (T, 3, H, W)
    width = max(1, round(frames.shape[3] * _STRIP_HEIGHT / frames.shape[2]))
    small = functional.resize(frames, [_STRIP_HEIGHT, width], antialias=True)
    # (T, 3, H, W) -> (H, T, W, 3) -> frames side by side
    strip = small.permute(2, 0, 3, 1).reshape(_STRIP_HEIGHT, -1, 3).contiguous()
    return jpeg_bytes(strip.numpy(), quality=80)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
