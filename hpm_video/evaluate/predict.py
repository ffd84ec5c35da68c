"""Predict classes of unlabelled videos; write a table (CSV) or JSON."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpm_video.config import DataConfig, EvaluateConfig
from hpm_video.config.limits import at_least
from hpm_video.data.lists.manifest import Manifest, check_some_exist, read_manifest
from hpm_video.data.lists.named_videos import list_of_videos
from hpm_video.data.lists.places import is_shards
from hpm_video.data.prepare.tree import VideoTree
from hpm_video.data.remote.urls import is_url
from hpm_video.data.video.part import file_of
from hpm_video.data.video.source import exists
from hpm_video.evaluate.classification import load_finetuned, score_videos, thresholds_of
from hpm_video.evaluate.predictions import Evaluation, SeveralLabels
from hpm_video.models.build import Baseline, Classifier
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, join_world
from hpm_video.runtime.files import (
    OURS,
    check_can_be_folder,
    check_is_ours,
    printable,
    quoted,
    similar_path,
    write_atomically,
)
from hpm_video.weights.load import classifier_of

COLUMNS = ("path", "class", "score", "error")
_NAME = "predictions"  # stem of the files in a folder


@dataclass(frozen=True)
class Shown:
    """Output per video or window: the ``top`` likeliest classes and, with ``all_scores``, the score
    of every class."""

    top: int = 1
    all_scores: bool = False

    def __post_init__(self) -> None:
        at_least("--top", self.top, 1)


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier on its device, with its clip sampling, class names and a description.

    config: of the command, with precision=auto resolved. thresholds: one per class for multi-label
    classifiers, else None. separator: between several classes in a cell.
    """

    model: Classifier | Baseline
    data: DataConfig
    config: EvaluateConfig
    classes: tuple[str, ...]
    about: Mapping[str, str]
    thresholds: tuple[float, ...] | None = None
    separator: str = ";"


def load_for(
    checkpoint: str | Path, config: EvaluateConfig, world: World, *, views: str, top: int = 1
) -> LoadedClassifier:
    """Load the classifier of a checkpoint or run folder. Classes without names get their number.

    ``views``: views per video, in words. ``top``: number of likeliest classes to show. Raises
    ValueError if it is more than 1 for a multi-label classifier.
    """
    found = load_finetuned(checkpoint, config)
    model, trained, names = classifier_of(found.state, source=found.file, clip=config.clip)
    precision, why = choose_precision(config.precision, world, setting="precision")
    data = trained.data
    about = {
        "checkpoint": found.words,
        "views": views,
        "clips": f"{data.num_frames} frames of {data.crop_size} x {data.crop_size} pixels",
        "precision": precision if why is None else f"{precision} (auto: {why})",
    }
    if found.notes:
        about["warning"] = "; ".join(found.notes)
    model.requires_grad_(False).eval().to(world.device)
    classes = tuple(names or map(str, range(model.num_classes)))
    config = replace(config, precision=precision)
    thresholds, about_them = thresholds_of(found.state, model, config, source=found.file)
    if thresholds is not None:
        about["thresholds"] = about_them
        if top > 1:
            raise ValueError(
                f"--top ({top}) must be left out: {found.file} predicts several labels per video, "
                "all that reach their thresholds; use --all-scores to see all scores"
            )
    separator = trained.data.labels.separator or LoadedClassifier.separator
    return LoadedClassifier(model, data, config, classes, about, thresholds, separator)


def videos_of(
    places: Sequence[str],
    manifests: Sequence[str],
    *,
    root: str | None = None,
    way: Callable[[Sequence[str]], str] = lambda texts: "",
) -> Manifest:
    """Find the named videos: files, frame folders, all videos in and below folders, or lists.

    Labels in lists are not read. ``way``: words after the refusal of a folder without videos, given
    the texts in it. Raises ValueError if neither or both are named, or if a folder has
    no video; FileNotFoundError if a path does not exist.
    """
    if places and manifests:
        raise ValueError(f"--manifest ({manifests[0]}) must come without VIDEO ({places[0]})")
    if manifests:
        manifest = read_manifest(list(manifests), root=root, labels=False)
        check_some_exist(manifest)
        return manifest
    if not places:
        raise ValueError(
            "VIDEO (none) must name at least one file or folder, unless --manifest names a list"
            f"{way(())}"
        )
    paths: list[str] = []
    for place in places:
        if os.path.isdir(place):
            found = VideoTree(place)
            paths += [*found.videos, *found.dangling]
            if not (found.videos or found.dangling):
                images = f", but images ({found.num_images}); give these by name" * bool(
                    found.num_images
                )
                raise ValueError(
                    f"VIDEO ({printable(place)}) must hold videos: has none"
                    f"{images or way(found.texts)}"
                )
        elif is_shards(place):
            raise ValueError(f"VIDEO ({printable(place)}) must be a video; give tars to --manifest")
        elif is_url(place) or os.path.lexists(file_of(place)) or exists(file_of(place)):
            paths.append(place)
        else:
            what = f"VIDEO ({printable(place)}) does not exist"
            raise FileNotFoundError(what + similar_path(place))
    return list_of_videos(paths)


def predict(
    checkpoint: str | Path,
    videos: Manifest,
    config: EvaluateConfig,
    *,
    output: Path | None = None,
    shown: Shown | None = None,
) -> Evaluation | SeveralLabels:
    """Score videos with the views of ``config``; labels are not needed.

    Rank 0 writes ``output``: a .csv or .json file, or a folder for both. Unreadable videos are
    listed with the reason. Raises ValueError rather than overwrite a file that is not ours.
    """
    files = _output_files(output)
    views = f"{config.evaluation.num_clips} x {config.evaluation.num_crops} (clips x crops)"
    with join_world(config.device, setting="device") as world:
        shown = shown or Shown()
        loaded = load_for(checkpoint, config, world, views=views, top=shown.top)
        result = score_videos(loaded.model, videos, loaded.data, loaded.config, world)
        result = replace(result, classes=loaded.classes, about=loaded.about)
        if isinstance(result, SeveralLabels):
            thresholds, separator = loaded.thresholds or (), loaded.separator
            result = replace(result, thresholds=thresholds, separator=separator)
        if world.is_main:
            for file in files:
                lines = json_lines if file.suffix == ".json" else csv_lines
                write_atomically(file, lines(result, shown))
    return result


def csv_lines(result: Evaluation | SeveralLabels, shown: Shown) -> Iterator[str]:
    """Rows of the CSV, one per video, in list order. Multi-label rows hold all classes that reach
    their thresholds, joined with the separator."""
    assert result.classes is not None
    thresholds, separator = _several(result)
    columns = score_columns(result.classes, shown, thresholds)
    yield _csv_line([*COLUMNS, *columns])
    errors = dict(result.bad)
    for index, path in enumerate(result.paths):
        if (error := errors.get(index)) is not None:
            yield _csv_line([path, None, None, error, *[None] * len(columns)])
            continue
        scores = result.scores[index]
        found = class_cells(scores, result.classes, thresholds, separator)
        cells = score_cells(scores, result.classes, shown, thresholds)
        yield _csv_line([path, *found, None, *cells])


def json_lines(result: Evaluation | SeveralLabels, shown: Shown) -> Iterator[str]:
    """The same results as JSON, one line per video."""
    assert result.classes is not None
    thresholds, _ = _several(result)
    yield json_head(result.about, result.classes, thresholds) + ',\n "videos": [\n'
    errors = dict(result.bad)
    for index, path in enumerate(result.paths):
        entry: dict[str, Any] = {"path": path}
        if (error := errors.get(index)) is not None:
            entry["error"] = error
        else:
            entry |= scores_in_words(result.scores[index], result.classes, shown, thresholds)
        yield ("" if index == 0 else ",\n") + "  " + json.dumps(entry)
    yield "\n ]}\n"


def _several(result: Evaluation | SeveralLabels) -> tuple[tuple[float, ...] | None, str]:
    """Thresholds and separator of multi-label results; None and "" for single-label ones."""
    if isinstance(result, SeveralLabels):
        return result.thresholds, result.separator
    return None, ""


def json_head(
    about: Mapping[str, str], classes: Sequence[str], thresholds: Sequence[float] | None = None
) -> str:
    """Opening lines of our JSON; the object is not closed."""
    head: dict[str, Any] = {"made_by": OURS, **about, "classes": list(classes)}
    if thresholds is not None:
        # `about` describes them in words
        head["thresholds_of_classes"] = list(thresholds)
    return json.dumps(head, indent=1).removesuffix("\n}")


def best_of(scores: npt.NDArray[np.float32], top: int) -> list[tuple[int, float]]:
    """(class, score) of the highest scores (C,); ties go to the lower class."""
    best = np.argsort(-scores, kind="stable")[:top]
    return [(int(label), float(scores[label])) for label in best]


def called(
    scores: npt.NDArray[np.float32], thresholds: Sequence[float] | None
) -> list[tuple[int, float]]:
    """(class, score) of the likeliest class or, with thresholds, of all that reach theirs."""
    if thresholds is None:
        return best_of(scores, 1)
    return [(n, score) for n, score in best_of(scores, len(scores)) if score >= thresholds[n]]


def class_cells(
    scores: npt.NDArray[np.float32],
    classes: Sequence[str],
    thresholds: Sequence[float] | None,
    separator: str,
) -> tuple[str, str]:
    """The cells class and score, from the classes of `called`."""
    found = called(scores, thresholds)
    names, numbers = ([classes[n] for n, _ in found], [digits(score) for _, score in found])
    return separator.join(names), separator.join(numbers)


def score_columns(
    classes: Sequence[str], shown: Shown, thresholds: Sequence[float] | None = None
) -> list[str]:
    """Names of the columns of `score_cells`."""
    ranks = range(2, min(shown.top, len(classes)) + 1)
    columns = [name for rank in ranks for name in (f"class_{rank}", f"score_{rank}")]
    kinds = ("score",) if thresholds is None else ("score", "threshold")
    named = [f"{kind} of {name}" for kind in kinds for name in classes if shown.all_scores]
    return [*columns, *named]


def score_cells(
    scores: npt.NDArray[np.float32],
    classes: Sequence[str],
    shown: Shown,
    thresholds: Sequence[float] | None = None,
) -> list[str]:
    """Cells of the second likeliest class, its score, the third ...; then all scores if asked for,
    and the thresholds if there are any."""
    ranked = best_of(scores, shown.top)[1:]
    cells = [cell for label, score in ranked for cell in (classes[label], digits(score))]
    if shown.all_scores:
        cells += map(digits, scores.tolist())
        cells += map(str, thresholds or ())
    return cells


def scores_in_words(
    scores: npt.NDArray[np.float32],
    classes: Sequence[str],
    shown: Shown,
    thresholds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """JSON entry: the likeliest class, the ``top`` ones if more, all scores if asked for. With
    thresholds: a list of all classes that reach theirs."""
    entry: dict[str, Any]
    if thresholds is None:
        (label, score), *_ = best_of(scores, 1)
        entry = {"class": classes[label], "score": float(digits(score))}
    else:
        entry = {"found": _pairs(called(scores, thresholds), classes)}
    if shown.top > 1:
        entry["top"] = _pairs(best_of(scores, shown.top), classes)
    if shown.all_scores:
        entry["scores"] = [float(digits(score)) for score in scores.tolist()]
    return entry


def _pairs(found: Sequence[tuple[int, float]], classes: Sequence[str]) -> list[list[str | float]]:
    return [[classes[label], float(digits(score))] for label, score in found]


def digits(score: float) -> str:
    """A score with 9 significant digits, which round-trip a float32."""
    return f"{score:.9g}"


def _csv_line(cells: Sequence[object]) -> str:
    return ",".join(map(quoted, cells)) + "\n"


def _output_files(output: Path | None) -> list[Path]:
    """Files that an output stands for; each must be new or ours."""
    if output is None:
        return []
    folder = None
    if output.is_dir() or not output.suffix:
        check_can_be_folder(folder := output, name="--output")
        files = [output / f"{_NAME}{ending}" for ending in (".csv", ".json")]
    elif output.suffix in (".csv", ".json"):
        files = [output]
    else:
        raise ValueError(
            f"--output ({output}) must end in .csv or .json, or be a folder for both: an existing "
            "one, or a name without a suffix"
        )
    for file in files:
        columns = COLUMNS if file.suffix == ".csv" else ()
        check_is_ours(file, name="--output", columns=columns, folder=folder)
    return files
