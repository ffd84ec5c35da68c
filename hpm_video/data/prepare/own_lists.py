"""Lists of your own videos: one for training and, if there are labels, one for validation."""

import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpm_video.data.lists.frame_index import FrameIndex, index_beside, write_frame_index
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.lists.overlap import find_shared
from hpm_video.data.lists.places import is_shards, list_root
from hpm_video.data.lists.rows import first_few, read_rows, shown
from hpm_video.data.prepare.listing import (
    Listed,
    list_folder,
    list_own,
    shared_folders,
    splits_of_folder,
    splits_of_list,
)
from hpm_video.data.prepare.tree import Images, VideoTree
from hpm_video.data.prepare.verdict import USED
from hpm_video.runtime.files import shell_path

Row = dict[str, str]


def list_own_videos(
    source: str,
    output_dir: Path,
    *,
    val: str | None = None,
    root: str | None = None,
    labels: bool = True,
    images: Images | None = None,
) -> tuple[dict[str, Path], list[str]]:
    """Write lists of "train", "val" and "test", as far as there are such videos.

    Args:
        source: a folder of videos or of class folders, or one with such a folder per split; or a
            list.
        output_dir: the folder for train.csv, val.csv, test.csv and classes.txt.
        val: a folder or list for validation.
        root: base folder of a list's relative paths.
        labels: whether folders are classes.
        images: meaning of images, see `VideoTree`.

    Returns the lists, and lines to show. Raises as `list_folder` and `list_own` do.
    """
    classes, notes = output_dir / "classes.txt", list[str]()
    folders = splits_of_folder(source) if os.path.isdir(source) else {}

    def listed(what: str, part: str, *, split: str | None = None, command: str = "") -> Path:
        """Make the list of a folder, or of a split of a list, with the classes known so far.

        ``command``: see `list_folder`.
        """
        known, output = classes if classes.is_file() else None, output_dir / f"{part}.csv"
        if os.path.isdir(what):
            found = list_folder(
                what, output, classes=known, images=images, labels=labels, command=command
            )
            if part == "train":
                judged = folders.get("val") or folders.get("test")
                _refuse_parent(found, what, output_dir, val=val or judged, images=images)
        else:
            found = list_own(
                what, output, root=root, classes=known, split=split, say_of_labels=labels
            )
        notes.extend([found.summary()] if found.num_missing else [])
        notes.extend(found.notes)
        return output

    if os.path.isdir(source):
        lists = {part: listed(folder, part) for part, folder in folders.items()}
        if not lists:
            _refuse_tars(source)
    else:
        splits = [] if is_shards(source) else splits_of_list(source, root=root)
        lists = {part: listed(source, part, split=part) for part in splits}
    if not lists:
        command = f"hpm-video start{_option('--val', val)}"
        lists["train"] = listed(source, "train", command=command)
    if val is not None:
        lists["val"] = listed(val, "val", command=f"hpm-video start {shell_path(source)} --val")
    names = set(filter(None, map(label_of, rows_of(lists["train"]))))
    _check_judged(lists, notes, has_labels=labels and len(names) > 1, has_val=val is not None)
    if not labels or len(names) == 1:
        if labels:
            notes.append("all videos are of one class: there is nothing to classify")
        for file in lists.values() if names else ():
            write_manifest(file, [{**row, "label": None} for row in rows_of(file)])
        classes.unlink(missing_ok=True)
        names = set()
    if not names:
        notes.append("no labels: pre-training only, on all videos")
    return lists, notes


def hold_out_of(lists: dict[str, Path], share: float, *, start: str) -> list[str]:
    """Move a share of each class from the list "train" to a new list "val", if it is the only one.

    Call it after the check of the list: unreadable videos are never held out, and both lists keep
    an index. ``start``: see `hold_out`. Returns lines to show.
    """
    train, output = lists["train"], lists["train"].with_name("val.csv")
    rows = rows_of(train)
    if lists.keys() != {"train"} or not share or len(labels_of(rows)) < 2:
        return []
    learnt, held = hold_out(rows, share, start=start)
    if not held:
        return [
            "nothing is held out for evaluation, as no class has enough videos: choose some with "
            "--val"
        ]
    index = FrameIndex(index_beside(train))
    write_part(output, held, index)
    write_part(train, learnt, index)
    lists["val"] = output
    return [
        f"held out for evaluation: {len(held)} videos, {share:.0%} of each class, chosen by a hash "
        "of their paths; choose your own with --val, to keep clips of one recording together"
    ]


def write_part(output: Path, rows: Sequence[Row], index: FrameIndex) -> None:
    """Write some rows of a checked list as a list of its own, with its index."""
    tables = ((row["path"], index.get(row["path"])) for row in rows)
    write_frame_index(index_beside(output), ((name, table) for name, table in tables if table))
    write_manifest(output, rows)


def start_of(source: str, root: str | None) -> str:
    """The folder where the relative paths of a folder or list of videos start."""
    return os.path.abspath(source) if os.path.isdir(source) else list_root(source, root)


def _check_judged(
    lists: dict[str, Path], notes: list[str], *, has_labels: bool, has_val: bool
) -> None:
    """Raise ValueError for lists to evaluate on that have the training videos or lack labels; note
    videos that both have. ``has_val``: whether the user named the list "val"."""
    learnt = read_manifest(lists["train"], labels=False)
    for part, file in lists.items():
        if part == "train":
            continue
        rows = rows_of(file)
        if has_labels and not any(map(label_of, rows)):
            raise ValueError(
                f"the {part} videos must have labels, like the training videos: put them into a "
                "folder per class, or add --no-labels to pre-train only"
            )
        shared = find_shared(learnt, read_manifest(file, labels=False))
        if shared.num_named + shared.num_linked == shared.num_videos:
            way = f"move other videos into the {part} split"
            if part == "val" and has_val:
                way = "without --val, a share of the videos is held out"
            raise ValueError(
                f"the {part} videos must differ from the training videos, but {shared} are in "
                f"both; {way}"
            )
        if shared.num_shared:
            notes.append(f"{shared} of {file} are also training videos")


def hold_out(rows: Sequence[Row], share: float, *, start: str) -> tuple[list[Row], list[Row]]:
    """Split rows into training rows and held-out rows, a share of each class.

    The choice depends only on the videos' paths relative to ``start``, so it is the same on every
    machine. At least one video is held out of each class with two or more readable ones. Parts of
    a video stay together.
    """
    classes: dict[str, dict[str, bytes]] = {}
    seen: set[str] = set()
    for row in rows:
        path = row["path"]
        if path not in seen and (label := label_of(row)) and is_readable(row):
            seen.add(path)
            name = os.path.relpath(path, start) if os.path.isabs(path) else path
            digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
            classes.setdefault(label, {})[path] = digest
    held: set[str] = set()
    for digests in classes.values():
        least = 1 if share > 0 and len(digests) > 1 else 0
        most = max(least, round(share * len(digests)))
        held.update(sorted(digests, key=digests.__getitem__)[:most])
    learnt = [row for row in rows if row["path"] not in held]
    return learnt, [row for row in rows if row["path"] in held]


def rows_of(file: Path) -> list[Row]:
    """The rows of a list."""
    return [row for _, row in read_rows(file)]


def is_readable(row: Row) -> bool:
    """Whether no check found the video of a row unreadable."""
    return (row.get("status") or USED[0]) in USED


def labels_of(rows: Iterable[Row]) -> set[str]:
    """The labels of the readable videos."""
    return set(filter(None, map(label_of, filter(is_readable, rows))))


def label_of(row: Row) -> str:
    """The label of a row, "" without one."""
    label = row.get("label", "").strip()
    return "" if label == "-1" else label


def _refuse_parent(
    found: Listed, folder: str, output_dir: Path, *, val: str | None, images: Images | None
) -> None:
    """Raise ValueError for a folder of what seem to be sets with class folders of their own: if
    they have folders of the same names, or if the only one has several folders.

    ``val``: the videos to evaluate on, if the user has some.
    """
    shared = shared_folders(found.inside)
    sets = {
        top: names for top, names in found.inside.items() if not names.keys().isdisjoint(shared)
    }
    if found.num_classes == 1 and not shared:
        sets = {top: names for top, names in found.inside.items() if len(names) > 1}
    tops = sorted(sets, key=lambda top: (-len(sets[top]), -sets[top].total(), top))
    places = [
        top if folder.rstrip(os.sep) == os.curdir else os.path.join(folder, top) for top in tops
    ]
    if len(tops) == 1:
        raise ValueError(
            f"{folder} must hold a folder per class, but holds only {shown(tops[0])}, with folders "
            f"in it ({first_few(sorted(sets[tops[0]]), 3)}); if these are the classes: hpm-video "
            f"start {shell_path(places[0])}{_option('--val', val)}; if there are no classes: "
            f"hpm-video start {shell_path(folder)}{_option('--val', val)} --no-labels"
        )
    if not tops:
        return
    judged = val
    if val is None and len(tops) == 2 and sets[tops[1]].keys() <= sets[tops[0]].keys():
        judged = places[1]
    one = f"hpm-video start {shell_path(places[0])}{_option('--val', judged)}"
    listing = shell_path(os.path.join(f"{output_dir}_list", "list.csv"))
    both = (
        f"hpm-video data list --folder {shell_path(folder)}{_option('--images', images)} "
        f"-o {listing} && hpm-video start {listing}{_option('--val', val)} "
        f"-o {shell_path(output_dir)}"
    )
    few, inner = first_few(sorted(tops), 3), first_few(shared, 3)
    start = ", start with one of these folders" if len(tops) > 2 else ""
    raise ValueError(
        f"{folder} must hold a folder per class, but {few} have folders of the same names "
        f"({inner}); if the classes are {inner}{start}: {one}; if they are {few}: {both}"
    )


def _option(name: str, value: str | None) -> str:
    return "" if value is None else f" {name} {shell_path(value)}"


def _refuse_tars(folder: str) -> None:
    """Raise ValueError for a folder of tars without videos."""
    tars = [name for name in sorted(os.listdir(folder)) if is_shards(name)]
    if tars and not VideoTree(folder).videos:
        raise ValueError(
            f"{folder} must hold videos, but holds tars; name one, or a pattern for several "
            f"such as train-{{0000..0123}}.tar: `hpm-video start "
            f"{shlex.quote(os.path.join(folder, tars[0]))}`"
        )
