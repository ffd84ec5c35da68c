"""Write classes along long videos as files: windows, events, and a page with score curves."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hpm_video.config import EvaluateConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.video.frames import VideoReadError
from hpm_video.data.video.part import stem_of
from hpm_video.evaluate import predict
from hpm_video.evaluate.along import Along, Event, check_stride, score_along
from hpm_video.evaluate.predict import LoadedClassifier, Shown
from hpm_video.runtime.distributed import gather_objects, join_world
from hpm_video.runtime.files import (
    check_can_be_folder,
    check_is_ours,
    make_folder,
    printable,
    write_atomically,
    write_csv,
)
from hpm_video.runtime.pages import address, page, short

EVENTS = "events.csv"
EVENT_COLUMNS = ("path", "start_s", "end_s", "class", "score", "windows", "page", "error")
WINDOW_COLUMNS = ("start_s", "end_s", "class", "score")
_ENDINGS = ("html", "csv", "json")
_MOST_CURVES = 6  # classes drawn on a page
_MOST_EVENTS = 2000  # rows on a page; the CSV has all of them
_WIDTH, _HEIGHT = 1000, 200  # of the curves, in SVG units


@dataclass(frozen=True)
class Events:
    """The table of events, the number of videos, and (path, reason) of unreadable ones."""

    table: Path
    num_videos: int
    bad: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def predict_along(
    checkpoint: str | Path,
    videos: Manifest,
    folder: Path,
    config: EvaluateConfig,
    *,
    stride_s: float,
    shown: Shown,
) -> Events:
    """Score windows of each video every ``stride_s`` seconds; write the files of the folder.

    Each video gets a table of its windows, the same with events as JSON, and a page. events.csv
    lists the events of all videos, and the reasons for unreadable ones. Processes share the videos.
    Raises ValueError if the folder holds files that are not ours.
    """
    check_stride(stride_s)
    check_can_be_folder(folder, name="--output")
    stems = unique_stems([videos.name(index) for index in range(len(videos))])
    ours = partial(check_is_ours, name="--output", folder=folder)
    ours(folder / EVENTS, columns=EVENT_COLUMNS)
    for stem in stems:
        for ending in _ENDINGS:
            columns = WINDOW_COLUMNS if ending == "csv" else ()
            ours(folder / f"{stem}.{ending}", columns=columns)
    with join_world(config.device, setting="device") as world:
        views = f"windows every {stride_s:g} s, {config.evaluation.num_crops} crops"
        loaded = predict.load_for(checkpoint, config, world, views=views, top=shown.top)
        make_folder(folder, name="--output")
        mine: list[tuple[int, list[dict[str, float]], str]] = []
        for index in range(len(videos))[world.rank :: world.size]:
            path = videos.path(index)
            try:
                along = score_along(loaded, path, stride_s=stride_s, table=videos.table(index))
            except VideoReadError as error:
                mine.append((index, [], error.reason))
                continue
            _write_video(along, loaded, shown, folder / stems[index])
            mine.append((index, [asdict(event) for event in along.events()], ""))
        found = sorted((row for part in gather_objects(mine, world) for row in part), key=_first)
        if world.is_main:
            rows = _event_rows(found, videos, loaded.classes, stems)
            write_csv(folder / EVENTS, EVENT_COLUMNS, rows)
    bad = tuple((videos.path(index), reason) for index, _, reason in found if reason)
    notes = [*videos.notes, *filter(None, [loaded.about.get("warning")])]
    if loaded.data.sampling in ("uniform", "videomae_ssv2"):
        notes.append(
            f"the model was trained on clips that span whole videos ({loaded.data.sampling}), but "
            f"a window is {loaded.data.num_frames} frames, {loaded.data.frame_stride} apart: set "
            "clip.frame_stride so that a window is about as long as a training video"
        )
    return Events(folder / EVENTS, len(videos), bad, tuple(notes))


def _first(row: tuple[int, list[dict[str, float]], str]) -> int:
    return row[0]


def _event_rows(
    found: Sequence[tuple[int, list[dict[str, float]], str]],
    videos: Manifest,
    classes: Sequence[str],
    stems: Sequence[str],
) -> Iterator[tuple[object, ...]]:
    for index, events, reason in found:
        path = videos.path(index)
        if reason:
            yield (path, None, None, None, None, None, None, reason)
        for values in events:
            event = _event(values)
            yield (path, *event_cells(event, classes), f"{stems[index]}.html", None)


def _event(values: dict[str, float]) -> Event:
    label, num_windows = int(values["label"]), int(values["num_windows"])
    return Event(values["start_s"], values["end_s"], label, values["score"], num_windows)


def event_cells(event: Event, classes: Sequence[str]) -> tuple[str, str, str, str, int]:
    """start_s, end_s, class, score, windows."""
    times = f"{event.start_s:.3f}", f"{event.end_s:.3f}"
    return (*times, classes[event.label], f"{event.score:.4f}", event.num_windows)


def _write_video(along: Along, loaded: LoadedClassifier, shown: Shown, place: Path) -> None:
    """Write a video's files, whose names start with ``place``."""
    classes, thresholds = loaded.classes, loaded.thresholds
    files = {ending: place.with_name(f"{place.name}.{ending}") for ending in _ENDINGS}
    times = list(zip(along.start_s.tolist(), along.end_s.tolist(), strict=True))
    rows = []
    for (start, end), scores in zip(times, along.scores, strict=True):
        found = predict.class_cells(scores, classes, thresholds, loaded.separator)
        cells = predict.score_cells(scores, classes, shown, thresholds)
        rows.append([f"{start:.3f}", f"{end:.3f}", *found, *cells])
    columns = [*WINDOW_COLUMNS, *predict.score_columns(classes, shown, thresholds)]
    write_csv(files["csv"], columns, rows)
    write_atomically(files["json"], _json(along, loaded, shown, times))
    write_atomically(files["html"], [video_page(along, loaded)])


def _json(
    along: Along, loaded: LoadedClassifier, shown: Shown, times: Sequence[tuple[float, float]]
) -> Iterator[str]:
    about = {**loaded.about, "path": along.path}
    yield predict.json_head(about, loaded.classes, loaded.thresholds) + ',\n "events": [\n'
    events = [
        {
            **{"start_s": round(event.start_s, 3), "end_s": round(event.end_s, 3)},
            **{"class": loaded.classes[event.label], "score": round(event.score, 4)},
            "windows": event.num_windows,
        }
        for event in along.events()
    ]
    yield ",\n".join(f"  {json.dumps(event)}" for event in events) + '\n ],\n "windows": [\n'
    for number, ((start, end), scores) in enumerate(zip(times, along.scores, strict=True)):
        entry = {"start_s": round(start, 3), "end_s": round(end, 3)}
        entry |= predict.scores_in_words(scores, loaded.classes, shown, loaded.thresholds)
        yield (",\n" if number else "") + f"  {json.dumps(entry)}"
    yield "\n ]}\n"


def video_page(along: Along, loaded: LoadedClassifier) -> str:
    """The page of one video: a player of its pictures, above the curves of its scores."""
    curves = curves_of(along)
    middles = (along.start_s + along.end_s) / 2
    begin, end = float(along.start_s[0]), float(along.end_s.max())
    across = (middles - begin) / max(end - begin, 1e-9) * _WIDTH
    events, scores = along.events(), along.scores.astype(np.float64)
    lines = [
        " ".join(
            f"{x:.1f},{(1 - y) * _HEIGHT:.1f}"
            for x, y in zip(across.tolist(), scores[:, label].tolist(), strict=True)
        )
        for label in curves
    ]
    return page(
        __package__,
        "along.html",
        title=f"{short(printable(along.path))}: classes over time",
        title_path=along.path,
        about={"video": along.path, **loaded.about},
        tiles=_tiles(along, loaded, events, duration_s=end - begin),
        names=[loaded.classes[label] for label in curves],
        lines=lines,
        box=(_WIDTH, _HEIGHT),
        events=[event_cells(event, loaded.classes) for event in events[:_MOST_EVENTS]],
        num_events=len(events),
        num_windows=len(along.scores),
        data={
            "begin": begin,
            "end": end,
            "middles": np.round(middles, 3).tolist(),
            "scores": [np.round(scores[:, label], 3).tolist() for label in curves],
            "times": [round(time, 3) for time, _ in along.pictures],
            "pictures": [str(address(picture, "jpeg")) for _, picture in along.pictures],
        },
    )


def _tiles(
    along: Along, loaded: LoadedClassifier, events: Sequence[Event], *, duration_s: float
) -> list[tuple[str, object, str]]:
    """Tiles at the top of the page."""
    most, of = curves_of(along)[0], len(along.scores)
    share = float(along.called.sum(axis=0)[most]) / of
    return [
        ("most frequent class", loaded.classes[most], f"in {share:.0%} of the windows"),
        ("events", f"{len(events):,}", "consecutive windows with the same top class"),
        ("windows", f"{of:,}", f"over {duration_s:.1f} s"),
    ]


def curves_of(along: Along) -> list[int]:
    """Classes to draw: most windows first, then highest score."""
    tops = along.called.sum(axis=0)
    order = np.lexsort((-along.scores.max(axis=0), -tops))
    return [int(label) for label in order[:_MOST_CURVES]]


def unique_stems(names: Sequence[str]) -> list[str]:
    """File stem for each video: its name without suffix, numbered if it repeats."""
    taken = {"events"}
    stems = []
    for name in names:
        plain = printable(stem_of(name)).replace(os.sep, "_")[:80].lstrip(".") or "video"
        stem, number = plain, 1
        while stem.casefold() in taken:
            stem = f"{plain}_{(number := number + 1)}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
