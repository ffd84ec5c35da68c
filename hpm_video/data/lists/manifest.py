"""Lists of videos: reads all common formats and writes our own.

A `Manifest` keeps its rows in NumPy buffers instead of Python objects. Data-loading workers are
forked, and reading a Python object changes its reference count. With two million strings, every
worker would slowly copy the whole list, page by page.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpm_video.config import LabelsConfig
from hpm_video.data.lists.classes import ClassNames, Labels, classes_beside, similar_classes
from hpm_video.data.lists.columns import COLUMNS, SPLITS, Columns
from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.frame_index import FrameIndex, find_frame_index, index_fault
from hpm_video.data.lists.label_sets import LabelCells, LabelSets
from hpm_video.data.lists.moved import is_absolute, root_of, way_to_missing, way_to_moved
from hpm_video.data.lists.parts import check_is_inside, part_columns, part_of
from hpm_video.data.lists.places import is_shards, list_root
from hpm_video.data.lists.rows import first_few, read_videos, shown
from hpm_video.data.lists.shards import index_tars, shard_note, shard_rows, tar_of
from hpm_video.data.lists.spelling import as_on_disk
from hpm_video.data.remote.urls import is_url, joined, split_tar, system_of
from hpm_video.data.video.frames import NO_SUCH_FILE
from hpm_video.data.video.limits import READING
from hpm_video.data.video.part import FRAME_COLUMNS, Part, split_part
from hpm_video.data.video.source import locate
from hpm_video.runtime.files import shell_path, write_csv
from hpm_video.runtime.workers import run_killable

_NUM_ASKED = 8  # videos whose number of frames is checked in their files
_MOST_ASKED_S = 10.0  # per video
_MOST_READ = 2**26  # bytes of a file read for this check
_LOOKED_FOR = 20  # videos of a list, to see whether its root is right
_MOST_OF_A_FRAME = 2**22  # bytes, even for uncompressed video
_UNLABELLED = (
    "must have labels, but has none in a column label, nor columns of 0 and 1 that labels.columns "
    "names; "
)
_MOST_NAMED = 3  # videos that are left out, in a message
MAX_LABEL_GAP = 10  # consecutive unused labels that are accepted without class names


class Names:
    """File names as bytes, concatenated in one buffer; they need not be UTF-8."""

    def __init__(self, data: bytearray, ends: array[int]) -> None:
        """``data``: the bytes of all names, at least one. ``ends``: int64 end offsets of names."""
        self._data = np.frombuffer(data, dtype=np.uint8)
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        name = self._data[start : int(self._ends[index])].tobytes()
        return name.decode("utf-8", "surrogateescape")

    def update(self, digest: hashlib._Hash) -> None:
        """Add all names to a hash."""
        digest.update(self._data.tobytes())
        digest.update(self._ends.tobytes())


@dataclass(frozen=True, eq=False)
class Manifest:
    """An immutable list of videos with labels; made by `read_manifest`."""

    names: tuple[Names, ...]  # one block per list
    roots: tuple[str, ...]  # base folder of block k
    labels: npt.NDArray[np.int64]  # (number of videos,), -1: no label
    frame_counts: npt.NDArray[np.int64]  # (number of videos,), 0: unknown
    classes: tuple[str, ...] | None  # in the order of their labels; None: unknown
    largest_label_where: str  # file and line of the first occurrence of the largest label
    num_repeated: int  # rows that repeat a video of an earlier row
    notes: tuple[str, ...] = ()  # lines to show the user, about possible mistakes
    lists: tuple[Path, ...] = ()  # the files that were read, one per block
    # (number of videos, 2): start and end of each part, NaN for a whole video; None: all are whole
    bounds: npt.NDArray[np.float64] | None = None
    in_frames: tuple[bool, ...] = ()  # whether block k's are frame numbers, not seconds
    # Set if videos may have several labels; `labels` are then all -1, so that none is used by
    # mistake
    label_sets: LabelSets | None = None

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([len(block) for block in self.names])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        assert 0 <= index < len(self), f"video {index} of {len(self)}"
        block = int(np.searchsorted(self._ends, index, side="right"))
        return block, index - (int(self._ends[block - 1]) if block else 0)

    def name(self, index: int) -> str:
        """Return the path as written in the list; for a part, the name of the part."""
        block, row = self._locate(index)
        return self.names[block][row] + str(self.part(index) or "")

    def path(self, index: int) -> str:
        """Return the path to open: of the file, with the suffix of the part if it is one."""
        return self.file(index) + str(self.part(index) or "")

    def file(self, index: int) -> str:
        """Return the path of the file, joined to the root of its list; see `as_on_disk`."""
        block, row = self._locate(index)
        return as_on_disk(self.roots[block], self.names[block][row])

    def part(self, index: int) -> Part | None:
        """Return which part of its file a video is, or None for a whole file."""
        if self.bounds is None or np.isnan(self.bounds[index, 0]):
            return None
        block, _ = self._locate(index)
        start, end = self.bounds[index].tolist()
        return Part(start, end, in_frames=self.in_frames[block])

    def row(self, index: int) -> dict[str, object]:
        """Return the list columns that identify a video: its file and, for a part, its range."""
        part = self.part(index)
        return {"path": self.file(index), **(part.columns if part else {})}

    def label(self, index: int) -> int:
        """Return the class index, or -1 without a label."""
        return int(self.labels[index])

    def num_frames(self, index: int) -> int:
        """Return the number of frames according to the list, or 0 if unknown."""
        return int(self.frame_counts[index])

    @cached_property
    def _indices(self) -> tuple[FrameIndex | None, ...]:
        return tuple(find_frame_index(file) for file in self.lists) or (None,) * len(self.names)

    def table(self, index: int) -> bytes | None:
        """Return the frame table of a video from the index beside its list, or None."""
        block, row = self._locate(index)
        beside = self._indices[block]
        return None if beside is None else beside.get(self.names[block][row])

    def digest(self) -> str:
        """Return a SHA-256 of videos (names and order as in the lists), labels and parts."""
        digest = hashlib.sha256()
        for names in self.names:
            names.update(digest)
        digest.update(self.labels.tobytes())
        if self.label_sets is not None:
            self.label_sets.update(digest)
        digest.update("\n".join(self.classes or ()).encode(errors="surrogateescape"))
        if self.bounds is not None:
            digest.update(self.bounds.tobytes())
            digest.update(bytes(self.in_frames))
        return digest.hexdigest()

    @property
    def used_labels(self) -> npt.NDArray[np.int64]:
        """The distinct labels, in ascending order."""
        labels = self.labels if self.label_sets is None else self.label_sets.labels
        return np.unique(labels[labels >= 0])

    @property
    def class_names(self) -> ClassNames | None:
        """The class names with their source, for lists that must have the same ones."""
        if self.classes is None:
            return None
        file = self.lists[0] if self.lists else Path("the other list")
        beside = file.with_name("classes.txt")
        source = f"the classes of {file}"
        return ClassNames(self.classes, source, file=str(beside) if beside.is_file() else "")

    def targets(
        self, indices: npt.NDArray[np.int64], num_classes: int | None = None
    ) -> npt.NDArray[Any]:
        """The labels of these videos: (B,) int64, or (B, classes) float32 if they may have several.

        The latter has 1 for each class of a video. ``num_classes``: overrides the list's own.
        """
        if self.label_sets is None:
            return self.labels[indices]
        return self.label_sets.targets(indices, num_classes or self.num_classes)

    @cached_property
    def num_classes(self) -> int:
        """The number of class names, else the largest label + 1 (0 without labels).

        Raises ValueError if there are no class names and more than `MAX_LABEL_GAP` consecutive
        labels are unused: a single mistyped number would silently add that many classes.
        """
        if self.classes is not None:
            return len(self.classes)
        used = np.append(-1, self.used_labels)
        for before, after in itertools.pairwise(used):
            if after - before - 1 > MAX_LABEL_GAP:
                raise ValueError(
                    f"{self.largest_label_where}: label ({used[-1]}) must follow at most "
                    f"{MAX_LABEL_GAP} unused labels in a row, but {before + 1} to {after - 1} do "
                    "not occur; correct it, or name all classes in classes.txt beside the list"
                )
        return int(used[-1]) + 1


def read_manifest(
    paths: str | Path | Sequence[str | Path],
    *,
    root: str | None = None,
    classes: Sequence[str] | ClassNames | None = None,
    labels: bool = True,
    numbers_only: bool = False,
    max_damage: float = 1.0,
    several: LabelsConfig | None = None,
) -> Manifest:
    """Read one list of videos, or several, joined in the order given.

    These are the formats of a list:

    - our CSV (see `COLUMNS`). Rows whose status is not empty, `ok` or `damaged` are skipped;
      rows with ``start_s,end_s`` or ``start_frame,end_frame`` are parts of videos.
    - lines `path`, `path label` or `path num_frames label`, separated by spaces, a comma or a tab,
      with or without a header.
    - tars, see `read_shards`.

    Labels are integers (-1 or empty: no label) or class names. Names are numbered by `classes`,
    else by the `classes.txt` beside the list (one name per line), else in sorted order. Sorted
    order depends on which names occur, so read a validation list with the `classes` of its training
    list.

    Args:
        paths: the lists; files or URLs.
        root: base folder or URL of relative paths; by default the folder of each list.
        classes: class names in the order of their labels.
        labels: False ignores all labels, as in pre-training; lists with different classes can then
            be joined.
        numbers_only: refuse class names that only their sorted order would number. Use it for a
            list whose labels must match those of another list without class names.
        max_damage: skip videos of status damaged with a larger share of damaged frames.
        several: how lists give several labels per video, if they may.

    Raises FileNotFoundError if a list does not exist, and ValueError if a list is a folder or has
    no videos, a row is malformed, or a label is not among the classes; the message names file and
    line.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise ValueError("data.manifest ([]) must name at least one list of videos")
    read = partial(
        _read_files,
        roots=[list_root(path, root) for path in given],
        classes=classes,
        labels=labels,
        numbers_only=numbers_only,
        max_damage=max_damage,
        several=several,
    )
    if not any(map(is_url, given)):
        return read(list(map(Path, given)))
    from hpm_video.data.remote.lists import copy_list, name_urls  # noqa: PLC0415 - rarely needed

    files = [
        copy_list(path, shard_rows(path) if is_shards(path) else None)
        if isinstance(path, str) and is_url(path)
        else Path(path)
        for path in given
    ]
    copies = [(str(path), file) for path, file in zip(given, files, strict=True) if is_url(path)]
    try:
        manifest = read(files)
    except ValueError as error:
        raise ValueError(name_urls(error, copies)) from error
    where = name_urls(manifest.largest_label_where, copies)
    notes = tuple(name_urls(note, copies) for note in manifest.notes)
    notes += tuple(filter(None, (shard_note(url) for url, _ in copies)))
    return replace(manifest, largest_label_where=where, notes=notes)


def _read_files(
    files: Sequence[Path],
    *,
    roots: Sequence[str],
    classes: Sequence[str] | ClassNames | None,
    labels: bool,
    numbers_only: bool,
    max_damage: float,
    several: LabelsConfig | None,
) -> Manifest:
    """See `read_manifest`; ``roots[k]`` is the base folder of list k."""
    beside = classes_beside(files) if labels else None
    given = None
    if labels and classes:
        given = (
            classes
            if isinstance(classes, ClassNames)
            else ClassNames(tuple(classes), "the classes given")
        )
    noted, faults = Labels(given or beside), Faults()
    cells = None
    if labels and several is not None and several.are_several:
        cells = LabelCells(several, noted, faults, given or beside)
    num_damaged = num_left_out = 0
    other_status: Counter[str] = Counter()
    names: list[Names] = []
    notes: list[str] = []
    frame_counts, codes, hashes, bounds = array("q"), array("q"), array("q"), array("d")
    in_frames: list[bool] = []
    tars: set[str] = set()
    urls: dict[str, str] = {}  # scheme -> its first URL
    for file, start in zip(files, roots, strict=True):
        data, ends, columns = bytearray(), array("q"), None
        left_out: list[str] = []  # the first videos, with the reason
        gone: list[str] = []  # the first videos that were missing when the list was checked
        for where, row in read_videos(file, faults):
            if (status := row.get("status", "").strip()) not in ("", "ok", "damaged"):
                other_status[status] += 1
                reason = row.get("reason", "").strip()
                if len(gone) < _LOOKED_FOR and (status == "missing" or reason == NO_SUCH_FILE):
                    gone.append(row["path"])
                if len(left_out) < _MOST_NAMED:
                    why = reason or f"status {status}"
                    left_out.append(f"{shown(row['path'])}: {shown(why)}")
                continue
            if status == "damaged":
                is_used = damaged_share(row, where, faults) <= max_damage
                num_damaged, num_left_out = num_damaged + is_used, num_left_out + (not is_used)
                if not is_used:
                    if len(left_out) < _MOST_NAMED:
                        more = f"more is damaged than data.max_damage ({max_damage:g}) allows"
                        left_out.append(f"{shown(row['path'])}: {more}")
                    continue
            if cells is not None:
                if columns is None:
                    cells.begin(file, row)
                cells.take(row, where)
            if columns is None:
                columns = Columns(file, start, row)
                of_part = part_columns(row, str(file), faults)
            if columns.is_watched:
                columns.note(row, where)
            name = row["path"]
            path = joined(start, name)
            if "://" in path and is_url(path):
                urls.setdefault(path.partition("://")[0], path)
                if (split := split_tar(path)) is not None and split[1]:
                    tars.add(split[0])
            elif (tar := tar_of(name)) is not None:
                tars.add(joined(start, tar))
            data += name.encode("utf-8", "surrogateescape")
            ends.append(len(data))
            if "#" in name:
                _check_is_no_part(path, where, faults)
            key = os.path.normpath(path) if "./" in path or "//" in path else path
            part = part_of(row, of_part, where, faults)
            if part is not None:
                check_is_inside(part, row, where, faults)
            if of_part or bounds:
                bounds.extend([math.nan] * (2 * len(hashes) - len(bounds)))
                bounds.extend((math.nan, math.nan) if part is None else (part.start, part.end))
            hashes.append(hash(key + str(part or "")))
            frame_counts.append(frame_count(row, where, faults))
            label = row.get("label", "").strip() if labels and cells is None else ""
            codes.append(noted.add(name, label, where))
        if columns is None:
            faults.check()
            said = f": {_counted(other_status)}" if other_status else ""
            raise ValueError(
                f"{file} lists no videos (or none with status ok or damaged){said}; the first: "
                f"{'; '.join(left_out)}. {_way_to_use(file, other_status, gone, start)}"
            )
        columns.find_faults(faults, labels=labels)
        if columns.has_bare_counts:
            claims = np.array(frame_counts[-len(ends) :], dtype=np.int64)
            check_counts(file, start, Names(data, ends), claims, faults)
        notes += filter(None, (columns.unused(), index_fault(file), shard_note(file)))
        names.append(Names(data, ends))
        in_frames.append(of_part == FRAME_COLUMNS)
    for url in urls.values():
        system_of(url)
    index_tars((tar for tar in sorted(tars) if is_url(tar) or os.path.isfile(tar)), faults)
    if other_status:
        number, said = other_status.total(), _counted(other_status)
        notes.append(f"{number} videos are left out because of their status: {said}")

    values, class_names = noted.values(
        beside, numbers_only=numbers_only, faults=faults, file=files[0]
    )
    sets = None if cells is None else cells.sets(values)
    if cells is not None and sets is not None:
        notes += [*cells.notes, *sets.notes()]
    hashed = np.frombuffer(hashes, dtype=np.int64)
    # If all cells are empty, the list is the same as one without part columns
    has_parts = any(map(math.isfinite, bounds))
    return Manifest(
        tuple(names),
        tuple(roots),
        values[np.frombuffer(codes, dtype=np.int64)],
        np.frombuffer(frame_counts, dtype=np.int64),
        classes=class_names,
        largest_label_where=[where for _, where in noted.vocabulary.values()][values.argmax()],
        num_repeated=len(hashed) - len(np.unique(hashed)),
        notes=(*notes, *_damage_notes(num_damaged, num_left_out, max_damage), *noted.notes()),
        lists=tuple(files),
        bounds=np.frombuffer(bounds, dtype=np.float64).reshape(-1, 2) if has_parts else None,
        in_frames=tuple(in_frames),
        label_sets=sets,
    )


def _way_to_use(file: Path, other_status: Mapping[str, int], gone: Sequence[str], root: str) -> str:
    """How to use a list whose videos are all left out, ``gone`` as missing."""
    if not other_status:
        return "data.max_damage=1 uses videos however damaged they are"
    are_gone = 0 < len(gone) >= min(sum(other_status.values()), _LOOKED_FOR)  # not bad ones
    are_gone = are_gone and all(_is_missing(as_on_disk(root, name)) for name in gone)
    if are_gone and (way := way_to_missing(file, gone, root)):
        return f"The videos are missing: {way}"
    if {"bad", "missing"} & other_status.keys():
        return f"Replace the files, then: hpm-video data check {shell_path(file)}"
    return "Clear the column status to use them"


def _check_is_no_part(path: str, where: str, faults: Faults) -> None:
    """Record a fault if a path in a list is the name of a part."""
    try:
        is_part = split_part(path)[1] is not None
        rule = "names a part; write it in the columns path,start_s,end_s"
    except ValueError as error:
        is_part, rule = True, f"cannot be used: {error}"
    if is_part:
        faults.add("named part", where, f"path ({shown(path)}) {rule}")


def _counted(words: Counter[str]) -> str:
    return ", ".join(f"{shown(word)} ({count})" for word, count in words.most_common(5))


def damaged_share(row: Mapping[str, str], where: str, faults: Faults) -> float:
    """The share of damaged frames that `hpm-video data check` found; 1 if the list does not say."""
    damaged, frames = (row.get(name, "").strip() for name in ("damaged", "num_frames"))
    if damaged and not (damaged.isascii() and damaged.isdigit()):
        faults.add("damaged", where, f"damaged ({shown(damaged)}) must be an integer of at least 0")
    elif damaged and frames.isascii() and frames.isdigit() and int(frames):
        return min(1.0, int(damaged) / int(frames))
    return 1.0


def _damage_notes(num_damaged: int, num_left_out: int, most: float) -> list[str]:
    notes = []
    if num_damaged:
        notes.append(f"{num_damaged} videos have damaged frames (status damaged) and are used")
    if num_left_out:
        rule = f"their share of damaged frames is above data.max_damage ({most:g})"
        notes.append(f"{num_left_out} videos are left out: {rule}")
    return notes


def frame_count(row: Mapping[str, str], where: str, faults: Faults) -> int:
    """The number of frames in a row of a list, or 0 if unknown."""
    text = row.get("num_frames", "").strip() or "0"
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    rule = f"num_frames ({shown(text)}) must be an integer of at least 0"
    faults.add("num_frames", where, rule)
    return 0


def check_counts(
    file: Path,
    root: str,
    names: Names | Sequence[str],
    claims: npt.NDArray[np.int64],
    faults: Faults,
) -> None:
    """Record a fault if a list's frame counts are far too small, as they are probably labels.

    Checks only the few files with the smallest counts, as these give the clearest evidence.
    """
    known = np.flatnonzero(claims)
    shortest = known[np.argsort(claims[known], kind="stable")[:_NUM_ASKED]]
    said = [(names[row], int(claims[row])) for row in shortest.tolist()]
    counts = _frames_of_all([as_on_disk(root, name) for name, _ in said])
    there = [(*of, count) for of, count in zip(said, counts, strict=True) if count]
    wrong = [(name, claim, count) for name, claim, count in there if claim < count / 2]
    if 2 * len(wrong) > len(there):
        name, claim, count = wrong[0]
        faults.add(
            "counts",
            str(file),
            f"num_frames ({claim}) of {shown(name)} must be about {count}, as in the file, and is "
            f"too small for {len(wrong)} of the {len(there)} videos opened; if it is a label, "
            "write `path label` (several labels go into one cell; set labels.separator), else "
            "remove the column",
        )


def _frames_of_all(paths: Sequence[str]) -> list[int | None]:
    """`_frames_of` for each path, in a process that may hang or crash."""
    outcomes = run_killable(
        _frames_of, paths, num_workers=1, timeout_s=_MOST_ASKED_S, limits=READING
    )
    known = {path: count for path, count in outcomes if isinstance(count, int)}
    return [known.get(path) for path in paths]


def _frames_of(path: str) -> int | None:
    """The least number of frames in a file; None if it cannot be determined cheaply."""
    from hpm_video.data.video.frames import VideoReadError, open_video  # noqa: PLC0415

    try:
        if (size := locate(path).size) > _MOST_READ:
            return size // _MOST_OF_A_FRAME
        return open_video(path, "pyav").num_frames
    except (OSError, ValueError, VideoReadError):
        return None


def require_labels(manifest: Manifest, *, name: str, lists: Sequence[str]) -> int:
    """Return the number of classes; ``name`` is the setting that names the ``lists``.

    Raises ValueError if the lists have no labels, or as `Manifest.num_classes` does.
    """
    if not (num_classes := manifest.num_classes):
        raise ValueError(f"{name} ({', '.join(lists)}) {_UNLABELLED}{_way_to_labels(manifest)}")
    sets = manifest.label_sets
    if sets is not None and sets.separator is not None and sets.counts.max() < 2:
        raise ValueError(
            f"labels.separator ({sets.separator!r}) must occur in a label of {name} "
            f"({', '.join(lists)}), but no video has several labels; unset it if each has one"
        )
    return num_classes


def label_notes(manifest: Manifest) -> list[str]:
    """Lines about labels that are probably mistakes, such as one class only."""
    names = manifest.classes
    notes = [
        f"classes '{shown(one)}' and '{shown(other)}' differ only in case or spaces; give them one "
        "spelling if they are the same class"
        for one, other in similar_classes(names or ())[:3]
    ]
    if several := _with_several_labels(manifest):
        notes.append(
            f"{len(several)} videos have several rows with different labels; keep one row per "
            f"video, or join the labels in one cell (labels.separator): {first_few(several, 3)}"
        )
    used = manifest.used_labels
    if len(used) == 1:
        notes.append(f"all videos have the same label ({used[0]}): there is nothing to classify")
    elif names is None and len(used) and used[0] == 1:
        notes.append("the smallest label is 1, but labels count from 0: class 0 has no video")
    without = np.setdiff1d(np.arange(len(names or ())), used)
    if len(without) and len(used):
        few = first_few([names[label] for label in without.tolist()[:4]] if names else [], 3)
        notes.append(f"{len(without)} of {len(names or ())} classes have no video: {few}")
    return notes


def _with_several_labels(manifest: Manifest) -> list[str]:
    """Paths of videos that occur in rows with different labels."""
    if not manifest.num_repeated:
        return []
    paths = (os.path.normpath(manifest.path(index)) for index in range(len(manifest)))
    hashes = np.fromiter(map(hash, paths), np.int64, len(manifest))
    order = np.argsort(hashes, kind="stable")
    same, labels = np.diff(hashes[order]) == 0, manifest.labels[order]
    wrong = order[1:][same & (np.diff(labels) != 0)].tolist()
    return list(dict.fromkeys(manifest.path(index) for index in wrong))


def check_some_exist(manifest: Manifest, *, option: str = "root=") -> None:
    """Raises ValueError if none of a few videos of a list exists, for example under a wrong root.

    Looks for `_LOOKED_FOR` videos at most, spread over each list; not at URLs. ``option``: how a
    user sets the root.
    """
    faults = []
    start = 0
    for block, (names, root) in enumerate(zip(manifest.names, manifest.roots, strict=True)):
        rows = range(0, len(names), -(-len(names) // _LOOKED_FOR))
        files = [manifest.file(start + row) for row in rows]
        start += len(names)
        if not all(map(_is_missing, files)):
            continue
        first = names[0]
        if is_absolute(first):
            way = way_to_moved(manifest.lists[block], [names[row] for row in rows], root)
        elif found := root_of([names[row] for row in rows], root):
            way = f"set {option}{shell_path(found)}"
        else:
            way = f"add {option}DIR, with the folder that contains {first}"
        faults.append(
            f"list ({manifest.lists[block]}) must name videos that exist, but none of the "
            f"{len(files)} checked exists, for example {files[0]}; {way}"
        )
    if faults:
        raise ValueError("; ".join(faults))


def _is_missing(file: str) -> bool:
    try:
        os.stat(file)
    except FileNotFoundError:
        return not is_url(file)
    except (OSError, ValueError):  # for example a member of a tar
        return False
    return False


def _way_to_labels(manifest: Manifest) -> str:
    """How to get labels: from the folders of the videos, if these lie in several."""
    videos = range(0, len(manifest), -(-len(manifest) // _LOOKED_FOR))
    folders = {os.path.dirname(os.path.abspath(manifest.file(index))) for index in videos}
    are_there = all(map(os.path.isdir, folders))
    if are_there and (above := _folder_of_classes(folders)) is not None:
        how = "makes a list whose classes are the folders of these videos"
        return f"hpm-video data list --folder {shell_path(above)} -o labelled.csv {how}"
    folder = shell_path(folders.pop()) if are_there and len(folders) == 1 else "DIR"
    return (
        "write them into a column label, or move the videos into a folder per class: "
        f"hpm-video data list --folder {folder} -o labelled.csv"
    )


def _folder_of_classes(folders: Collection[str]) -> str | None:
    """The folder whose subfolders seem to be the classes of videos in these folders: the one above
    them, or, as in class/recording/clip.mp4, the one above that. None if in doubt."""
    tops = set(folders)
    # Names that recur below several tops, as in subject1/wave and subject2/wave, may be the classes
    are_below = len(set(map(os.path.basename, folders))) == len(folders)
    for _ in range(2 if are_below else 1):
        above = set(map(os.path.dirname, tops))
        if len(tops) > 1 and len(above) == 1:
            splits = set(itertools.chain.from_iterable(SPLITS.values()))
            names = {os.path.basename(top).lower() for top in tops}
            return above.pop() if splits.isdisjoint(names) else None
        tops = above
    return None


def check_labels(
    manifest: Manifest, num_classes: int, *, classes_of: str = "the model", place: str = ""
) -> None:
    """Raise ValueError with the first video whose label is not in [0, num_classes).

    Also raises it if no video has a label. ``classes_of`` and ``place`` (such as " in --val") say
    in the message what is compared.
    """
    labels, sets = manifest.labels, manifest.label_sets
    videos = np.arange(len(labels))
    if sets is not None:
        labels, videos = sets.labels, np.repeat(videos, sets.counts)
    if not (labels >= 0).any():
        said = f"{', '.join(map(str, manifest.lists))}{place} {_UNLABELLED}"
        raise ValueError(f"{said}{_way_to_labels(manifest)}")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    for index in wrong[:1].tolist():
        if labels[index] < 0:
            label, advice = "none", "give it a label, or remove its row"
        else:
            label, advice = (
                str(labels[index]),
                "labels count from 0" + ", but no label is 0" * (0 not in labels),
            )
        more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        raise ValueError(
            f"label ({label}) of {manifest.path(int(videos[index]))}{place} must be in "
            f"[0, {num_classes - 1}], the classes of {classes_of}: {advice}{more}"
        )


def check_fits_model(manifest: Manifest, num_classes: int) -> None:
    """Raise ValueError if labels, or the number of class names, do not match a model's classes."""
    check_labels(manifest, num_classes)
    if manifest.classes is not None and len(manifest.classes) != num_classes:
        raise ValueError(
            f"number of class names ({len(manifest.classes)}, for the list of {manifest.path(0)}) "
            f"must be {num_classes}, the number of classes of the model"
        )


def write_manifest(
    path: str | Path, rows: Iterable[Mapping[str, object]], *, columns: Sequence[str] = ("path",)
) -> None:
    """Write `rows` as our CSV, atomically: `path`, the other `COLUMNS` in use, then others.

    `columns`, if given, come first, in that order. None values count as absent. Names that are not
    UTF-8 are written as their original bytes.

    Raises ValueError if the file cannot be written, or a path is not a valid file name.
    """
    rows = list(rows)
    seen = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    for row in rows:
        if not (name := str(row["path"])).strip() or "\0" in name:
            raise ValueError(
                f"{path}: path ({shown(name)}) must be a file name: not empty, without NUL"
            )
    known = [c for c in COLUMNS if c in seen]
    columns = list(dict.fromkeys([*columns, *known, *seen]))
    write_csv(Path(path), columns, ([row.get(c) for c in columns] for row in rows))
