"""Page and CSV table of a multi-label evaluation, with the classifier's mistakes."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hpm_video.evaluate.predictions import Scores, SeveralLabels
from hpm_video.runtime.files import write_csv
from hpm_video.runtime.pages import address, page, short

COLUMNS = (
    *("label", "name", "videos", "average_precision", "f1", "precision", "recall", "threshold"),
    "predicted",
)
MAX_WORST = 20  # wrong clips shown
NUM_CLIPS = 2  # clips shown of each of the best and worst classes
_NUM_ENDS = 3  # best and worst classes whose clips are shown
_MAX_NAMED = 12  # classes named per video
_MAX_BAD = 2000  # unreadable videos on the page; the CSV has all of them
_Class = TypeVar("_Class")


def both_ends(
    ordered: Sequence[_Class],
    *,
    is_wrong: Callable[[_Class], bool],
    is_right: Callable[[_Class], bool],
) -> tuple[list[_Class], list[_Class]]:
    """From classes, the worst first: the worst that have something wrong, and the best that have
    something right; none is in both lists."""
    most = min(_NUM_ENDS, (len(ordered) + 1) // 2)
    worst = [one for one in ordered if is_wrong(one)][:most]
    best = [one for one in reversed(ordered) if is_right(one) and one not in worst][:most]
    return worst, best


def class_rows(result: SeveralLabels) -> list[tuple[object, ...]]:
    """A row of `COLUMNS` per class; classes without videos have no average precision, F1 and
    recall."""
    predicted, labels = result.predicted, result.labels
    right, called, videos = (
        of.sum(axis=0).tolist() for of in (predicted & labels, predicted, labels)
    )
    precisions, f1s = result.average_precisions().tolist(), result.f1s().tolist()
    return [
        (
            *(label, result.classes[label] if result.classes else "", videos[label]),
            *((_figure(precisions[label]), _figure(f1s[label])) if videos[label] else ("", "")),
            _figure(right[label] / called[label]) if called[label] else "",
            _figure(right[label] / videos[label]) if videos[label] else "",
            f"{result.thresholds[label]:.6g}",
            called[label],
        )
        for label in range(result.num_classes)
    ]


def write_class_table(result: SeveralLabels, folder: Path) -> None:
    """Write per_class.csv."""
    write_csv(folder / "per_class.csv", COLUMNS, class_rows(result))


def worst_videos(result: SeveralLabels, most: int) -> list[int]:
    """Readable videos with the most confident mistakes.

    Confidence is the score of a predicted class without a label, or 1 - score of a labelled class
    that is not predicted.
    """
    wrong = (result.predicted != result.labels) & result.readable[:, None]
    sure = np.where(result.labels, 1 - result.scores, result.scores)
    worst = np.where(wrong, sure, -1).max(axis=1, initial=-1)
    order = np.argsort(-worst, kind="stable")
    return [int(index) for index in order[:most] if worst[index] >= 0]


def videos_shown(result: SeveralLabels) -> list[int]:
    """The videos whose frames the page shows."""
    of_classes = [clips for found in _shown_classes(result).values() for _, clips in found]
    return list(dict.fromkeys(chain(worst_videos(result, MAX_WORST), *of_classes)))


def _worst_first(result: SeveralLabels) -> list[int]:
    """Classes by average precision; classes without videos come last."""
    precisions, has_videos = result.average_precisions(), result.labels.any(axis=0)
    return [int(label) for label in np.lexsort((precisions, ~has_videos))]


def _shown_classes(result: SeveralLabels) -> dict[str, list[tuple[int, list[int]]]]:
    """Best and worst classes with the videos to show for each, by heading."""
    predicted, labels, readable = result.predicted, result.labels, result.readable[:, None]
    right, wrong = predicted & labels, (predicted != labels) & readable
    ordered = [label for label in _worst_first(result) if labels[:, label].any()]
    low, high = both_ends(
        ordered,
        is_wrong=lambda label: bool(wrong[:, label].any()),
        is_right=lambda label: bool(right[:, label].any()),
    )
    mistakes = np.where(labels, 1 - result.scores, result.scores)
    return {
        "Worst classes": [(k, _surest(wrong[:, k], mistakes[:, k])) for k in low],
        "Best classes": [(k, _surest(right[:, k], result.scores[:, k])) for k in high],
    }


def _surest(of: npt.NDArray[np.bool_], sure: npt.NDArray[np.float32]) -> list[int]:
    """Those of the videos that are marked with the highest values."""
    marked = np.flatnonzero(of)
    return marked[np.argsort(-sure[marked], kind="stable")][:NUM_CLIPS].tolist()


def several_labels_page(result: SeveralLabels, strips: Mapping[int, bytes | str]) -> str:
    """Render the page; ``strips``: video -> a strip of frames, or the reason for having none."""
    table, order = class_rows(result), _worst_first(result)
    level, words = _verdict(result)

    def clips(indices: Sequence[int]) -> list[dict[str, object]]:
        return [
            clip_shown(result.paths[index], _in_words(result, index), strips[index])
            for index in indices
            if index in strips
        ]

    return page(
        __package__,
        "several_labels.html",
        **heading(result),
        level=level,
        verdict=words,
        tiles=_tiles(result),
        without=int((~result.labels.any(axis=0)).sum()),
        ends=[
            (title, [_class(result, label) | {"clips": clips(shown)} for label, shown in found])
            for title, found in _shown_classes(result).items()
        ],
        classes=[_row(result.class_name(label), table[label]) for label in order],
        worst=clips(worst_videos(result, MAX_WORST)),
        bad=[(result.paths[index], reason) for index, reason in result.bad[:_MAX_BAD]],
    )


def heading(result: Scores) -> dict[str, object]:
    """Template values for the top of any evaluation's page."""
    checkpoint = result.about.get("checkpoint", "a classifier")
    name = short(checkpoint.rpartition(", step ")[0] or checkpoint)
    return {"title": f"Evaluation of {name}", "title_path": checkpoint, "about": result.about}


def clip_shown(path: str, words: Sequence[str], strip: bytes | str) -> dict[str, object]:
    """Template values of a clip: a strip of frames (or why there is none), and lines of text."""
    is_picture = isinstance(strip, bytes)
    shown = address(strip, "jpeg") if isinstance(strip, bytes) else strip
    return {"path": path, "words": words, "strip": shown, "is_picture": is_picture}


def _chance(result: SeveralLabels) -> float | None:
    """Mean AP of random scores: that of a class is its share of the videos. None without labels."""
    shares = result.labels.mean(axis=0)
    return float(shares[shares > 0].mean()) if shares.any() else None


def _verdict(result: SeveralLabels) -> tuple[str, str]:
    """How good the classifier is: a level and a sentence."""
    found, chance = result.mean_ap(), _chance(result)
    if found is None or chance is None:
        return "fair", "No video of the list has a class, so mean AP cannot be computed."
    if 2 * (1 - found) <= 1 - chance and chance < 1:
        level, says = "good", "It closes at least half of the gap from random scores to 1"
    elif found > chance:
        level, says = "fair", "That is better than random scores"
    else:
        level, says = "poor", "That is no better than random scores"
    words = f"The classifier's mean AP is {found:.3f}; random scores would have {chance:.3f}."
    return level, f"{words} {says}."


def _class(result: SeveralLabels, label: int) -> dict[str, object]:
    """One class as the template shows it."""
    predicted, labels = result.predicted[:, label], result.labels[:, label]
    missed, extra = int((labels & ~predicted).sum()), int((predicted & ~labels).sum())
    return {
        "name": result.class_name(label),
        "accuracy": f"average precision {result.average_precisions()[label]:.3f}",
        "says": f"found in {labels.sum() - missed:,} of its {labels.sum():,} videos, "
        f"and in {extra:,} without it",
    }


def _tiles(result: SeveralLabels) -> list[tuple[str, str, str]]:
    """Tiles at the top of the page."""
    figures, chance, of = result.figures(), _chance(result), len(result.labels)
    values = {
        "mean AP": (figures["mean_ap"], "higher is better, at most 1"),
        "chance": (chance, "mean AP of random scores"),
        "mean F1": (figures["mean_f1"], "at the thresholds"),
        "loss": (figures["loss"], "binary cross-entropy"),
    }
    tiles = [(k, f"{value:.3f}", more) for k, (value, more) in values.items() if value is not None]
    unreadable = f"{len(result.bad):,} unreadable" + ", scored 0" * bool(result.bad)
    return [*tiles, ("videos", f"{of:,}", unreadable)]


def _in_words(result: SeveralLabels, index: int) -> list[str]:
    """Predicted and labelled classes of a video as text, highest scores first."""
    scores, found = result.scores[index], []
    for verb, of in (("predicted", result.predicted[index]), ("labelled", result.labels[index])):
        labels = sorted(np.flatnonzero(of).tolist(), key=lambda label: -scores[label])
        words = [f"{result.class_name(label)} ({scores[label]:.3f})" for label in labels]
        more = ", ..." if len(words) > _MAX_NAMED else ""
        found.append(f"{verb} {', '.join(words[:_MAX_NAMED]) + more if words else 'nothing'}")
    return found


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _row(name: str, cells: Sequence[object]) -> list[object]:
    """A row of `COLUMNS` as the page shows it: with fewer digits than a CSV."""
    _, _, videos, precision, *rest = (
        f"{float(cell):.3f}" if isinstance(cell, str) and place > 1 and cell else cell
        for place, cell in enumerate(cells)
    )
    return [precision, videos, name, *rest]
