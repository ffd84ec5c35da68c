"""Page and CSV table of a multi-label evaluation, with the classifier's mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hpm_video.evaluate.predictions import Scores, SeveralLabels
from hpm_video.runtime.files import write_csv
from hpm_video.runtime.pages import address, page, short

COLUMNS = (
    *("label", "name", "videos", "average_precision", "f1", "precision", "recall", "threshold"),
    "predicted",
)
_MAX_NAMED = 12  # classes named per video
_MAX_BAD = 2000  # unreadable videos on the page; the CSV has all of them


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


def several_labels_page(result: SeveralLabels, strips: Mapping[int, bytes | str]) -> str:
    """Render the page; ``strips``: video -> a strip of frames, or the reason for having none."""
    rows = [
        (
            *(str(row[3]), row[2], result.class_name(label), *row[4:7]),
            *(_figure(result.thresholds[label]), row[8]),
        )
        for label, row in enumerate(class_rows(result))
    ]
    return page(
        __package__,
        "several_labels.html",
        **heading(result),
        tiles=_tiles(result),
        without=int((~result.labels.any(axis=0)).sum()),
        classes=sorted(rows, key=lambda row: (not row[0], row[0])),
        worst=[
            clip_shown(result.paths[index], _in_words(result, index), strip)
            for index, strip in strips.items()
        ],
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


def _tiles(result: SeveralLabels) -> list[tuple[str, str, str]]:
    """Tiles at the top of the page. The average precision of chance is the share of videos with the
    class."""
    figures, shares = result.figures(), result.labels.mean(axis=0)
    of = len(result.labels)
    chance = float(shares[shares > 0].mean()) if shares.any() else None
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
