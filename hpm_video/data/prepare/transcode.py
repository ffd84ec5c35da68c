"""``hpm-video data transcode``: encodes the videos of a list for training, and writes a new list.

Each video is encoded in a process that can be killed, see `transcode_video`. A journal in the
folder lets the next run resume.
"""

import json
import os
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from hpm_video.config.values import Decoder
from hpm_video.data.lists.classes import read_classes, write_classes
from hpm_video.data.lists.columns import Columns
from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.frame_index import (
    FrameIndex,
    find_frame_index,
    index_beside,
    write_frame_index,
)
from hpm_video.data.lists.manifest import write_manifest
from hpm_video.data.lists.parts import part_columns, part_of
from hpm_video.data.lists.places import list_root, list_stem
from hpm_video.data.lists.rows import read_videos
from hpm_video.data.lists.spelling import as_on_disk
from hpm_video.data.prepare.check import Rows, check_settings, failure_reason, verdict_columns
from hpm_video.data.prepare.encode import Encoding
from hpm_video.data.prepare.pack import Packed, Shards
from hpm_video.data.prepare.transcode_video import TimeReading, Transcode, Work, part_name
from hpm_video.data.prepare.verdict import BAD, USED, Verdict, file_identity
from hpm_video.data.remote.urls import check_is_local
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.limits import READING, WRITING
from hpm_video.data.video.part import PART_COLUMNS, Part
from hpm_video.runtime.files import write_atomically
from hpm_video.runtime.journal import Journal, read_journal
from hpm_video.runtime.progress import Progress
from hpm_video.runtime.reading import read_json
from hpm_video.runtime.workers import ItemTimeout, run_killable

_SETTINGS = "transcode.json"
_SAMPLE = 8  # videos whose reading is timed


@dataclass(frozen=True)
class Gain:
    """The benefit of encoding, over the encoded videos."""

    source_bytes: int  # total of the sources
    num_bytes: int  # total of the encoded videos
    clip_s: tuple[float, float]  # mean time to read a clip: source, encoded
    num_timed: int  # videos that were timed


@dataclass(frozen=True)
class Transcoded:
    """The result for a list."""

    rows: Rows  # of the new list, in the old order; empty for a part of the job
    manifest: Path  # the new list, which a part of the job does not write
    num_before: int  # videos encoded by earlier runs
    num_new: int  # videos that this run had to encode
    gain: Gain | None  # None for a part of the job, or if no video is ok


def transcode_manifest(
    manifest: str | Path,
    output_dir: str | Path,
    encoding: Encoding,
    *,
    root: str | Path | None = None,
    decoder: Decoder = "decord",
    num_workers: int = 1,
    timeout_s: float = 600.0,
    part: tuple[int, int] = (1, 1),
    cut: bool = False,
    per_shard: int | None = None,
) -> Transcoded:
    """Encode every video of a list into a folder, and write a list of the results there.

    The new list has the old one's name, rows, labels and order, and a column `source`; `status` and
    `reason` say which videos could not be encoded. Rows that are not ok in the old list stay
    excluded. A classes.txt beside the old list is copied. Videos that an earlier run encoded with
    the same settings are kept if their sources have not changed.

    Args:
        manifest: any list that `read_rows` reads.
        output_dir: folder to fill. Relative paths are kept, with the ending mp4.
        encoding: encoder settings.
        root: base folder of relative paths, by default that of the list.
        decoder: training's decoder, used to time reading.
        num_workers: videos encoded in parallel.
        timeout_s: time limit per video; a video that exceeds it is bad.
        part: (k, n) encodes the k-th of n parts of the list, and writes no list. When all parts are
            done, (1, 1) finds nothing left to encode, and writes it.
        cut: write a file for each row that is a part of a video; in the new list these are whole
            videos.
        per_shard: videos per tar, in list order; None: files.

    Raises FileNotFoundError if the list does not exist, and ValueError if a setting is out of
    range, the list is malformed or without videos, or the folder holds the sources or videos of
    other settings, is in use or cannot be written.
    """
    check_settings(decoder=decoder, num_workers=num_workers, timeout_s=timeout_s)
    if not 1 <= part[0] <= part[1]:
        raise ValueError(f"part ({part[0]}/{part[1]}) must be K/N with 1 <= K <= N")
    if per_shard is not None and per_shard < 1:
        raise ValueError(f"per_shard ({per_shard}) must be at least 1")
    is_whole = part[1] == 1
    check_is_local(manifest, job="data transcode")
    manifest, output_dir = Path(manifest), Path(output_dir).absolute()
    rows, parts = _rows_and_parts(manifest, has_rate=encoding.fps is not None, cut=cut)
    start = list_root(manifest, root)
    names = target_names(_cut_names(rows, parts, start), start)
    index = find_frame_index(manifest)
    shards = None
    if per_shard is not None:
        shards = Shards(output_dir, list_stem(manifest), per_shard)
        names = shards.staged(names)
    works = [
        replace(_work(row, name, start, output_dir, index=index, shards=shards), part=of_row)
        for row, name, of_row in zip(rows, names, parts, strict=True)
    ]
    check_is_local(manifest, (work.source for work in works), job="data transcode")
    is_due = [row.get("status", "").strip() in ("", *USED) for row in rows]
    due = {work.target: work for work in compress(works, is_due)}
    new_manifest = output_dir / f"{list_stem(manifest)}.csv"
    settings = {**asdict(encoding), "per_shard": per_shard}
    _prepare(output_dir, settings, manifest, new_manifest, works)

    suffix = "" if is_whole else f"-{part[0]}-of-{part[1]}"
    with Journal(output_dir / f".transcode{suffix}.jsonl") as journal:
        journals = sorted(output_dir.glob(".transcode*.jsonl"), reverse=True)
        known = ChainMap[str, Any](*map(read_journal, journals))  # type: ignore[arg-type]
        verdicts = {
            work.target: verdict
            for name, work in zip(names, works, strict=True)
            if work.target in due and (verdict := _known(known.get(name), work, timeout_s))
        }
        num_before = len(verdicts)
        mine = _share(due.values(), part, shards)
        new = [work for work in mine if work.target not in verdicts]
        packing = None if shards is None else _Packing(shards, mine, rows, works, verdicts)
        encode = Transcode(encoding)
        outcomes = run_killable(
            encode, new, num_workers=num_workers, timeout_s=timeout_s, limits=WRITING
        )
        progress = Progress("encoded", total=len(mine), done=len(mine) - len(new))
        try:
            with progress, closing(outcomes):  # stops jobs under way
                for work, outcome in outcomes:
                    if isinstance(outcome, Verdict):
                        verdict = outcome
                    else:
                        _delete_part(work)
                        verdict = Verdict(BAD, failure_reason(outcome))
                    limit_s = timeout_s if isinstance(outcome, ItemTimeout) else None
                    identity = file_identity(work.source)
                    entry = {"source": work.source, "identity": identity, "timeout_s": limit_s}
                    name = os.path.relpath(work.target, output_dir)
                    journal.add(name, {**entry, **verdict.to_entry()})
                    verdicts[work.target] = verdict
                    if packing is not None:
                        packing.add(work)
                    progress.step(bad=verdict.status == BAD)
        finally:
            for work in new:
                if work.target not in verdicts:  # interrupted
                    _delete_part(work)
    if shards is not None:
        shards.finish()
        names = [shards.name(name) for name in names]
    if not is_whole:
        return Transcoded([], new_manifest, num_before, len(new), None)
    found = {target: verdict_columns(verdict) for target, verdict in verdicts.items()}
    new_rows: Rows = [
        {**row, **found.get(work.target, {}), "path": name, "source": f"{row['path']}{part or ''}"}
        for row, name, part, work in zip(rows, names, parts, works, strict=True)
    ]
    write_frame_index(
        index_beside(new_manifest),
        (
            (name, table)
            for name, work in zip(names, works, strict=True)
            if (table := _table(verdicts.get(work.target), work)) is not None
        ),
    )
    header = [name for name in rows[0] if not (cut and name in PART_COLUMNS)]
    for row in new_rows if cut else ():
        for name in PART_COLUMNS:
            row.pop(name, None)
    write_manifest(new_manifest, new_rows, columns=header)
    good = [work for work in due.values() if verdicts[work.target].status in USED]
    tables = {work.target: _table(verdicts[work.target], work) for work in good}
    gain = _gain(good, tables, decoder, timeout_s)
    return Transcoded(new_rows, new_manifest, num_before, len(new), gain)


def _rows_and_parts(manifest: Path, *, has_rate: bool, cut: bool) -> tuple[Rows, list[Part | None]]:
    """The rows of a list, and the parts to cut out.

    Raises ValueError also if a new frame rate would change the meaning of frame numbers, or there
    is nothing to cut.
    """
    faults, rows, parts = Faults(), list[dict[str, str]](), list[Part | None]()
    for where, row in read_videos(manifest, faults):
        if not rows:
            columns = part_columns(row, str(manifest), faults)
            meant = Columns(manifest, os.path.abspath(manifest.parent), row)
        meant.note(row, where)
        rows.append(row)
        parts.append(part_of(row, columns, where, faults))
        if has_rate and not cut and parts[-1] is not None and parts[-1].in_frames:
            rule = "must come with --cut, as --fps renumbers frames; or use start_s,end_s"
            faults.add("rate", where, f"start_frame ({row['start_frame']}) {rule}")
    if rows:
        meant.find_faults(faults, chosen=True, labels=False)
    faults.check()
    if cut and not any(parts):
        raise ValueError(
            f"--cut must come with a list of parts, but no row of {manifest} is a part (columns "
            "start_s,end_s or start_frame,end_frame)"
        )
    return rows, parts if cut else [None] * len(rows)


def _cut_names(rows: Rows, parts: Sequence[Part | None], root: str) -> list[str]:
    """The path of each row; for a part that is cut out, a new name beside its video."""
    names, whole = [], {os.path.normpath(os.path.join(root, row["path"])) for row in rows}
    for row, part in zip(rows, parts, strict=True):
        stem, ending = os.path.splitext(row["path"])
        names.append(name := f"{stem}{part.suffix}{ending}" if part else row["path"])
        if part and os.path.normpath(os.path.join(root, name)) in whole:
            raise ValueError(
                f"path ({name}) has the name of a part of {row['path']}; rename the file"
            )
    return names


def target_names(names: Sequence[str], root: str) -> list[str]:
    """The relative path of each encoded video.

    It is the video's own path with the ending mp4. Videos outside of `root` are named relative to
    their common folder. If two videos would get the same name, those with other endings keep these
    before the new one. Names are paths as in the list, `root` is the absolute base folder of
    relative ones.
    """
    paths = [os.path.normpath(os.path.join(root, name)) for name in names]
    outside = {path for path in paths if os.path.commonpath([root, path]) != root}
    common = os.path.commonpath([os.path.dirname(path) for path in outside]) if outside else root
    relative = {
        # A tar counts as a folder of its name
        path: os.path.relpath(path, common if path in outside else root).replace(".tar/", "/")
        for path in paths
    }
    parts = {path: os.path.splitext(name) for path, name in relative.items()}
    uses = Counter(stem for stem, _ in parts.values())
    targets: dict[str, str] = {}
    taken: set[str] = set()
    for path, (name, ending) in parts.items():
        stem = name if uses[name] == 1 or ending == ".mp4" else name + ending
        target, number = f"{stem}.mp4", 1
        while target in taken:
            target = f"{stem}_{(number := number + 1)}.mp4"
        taken.add(target)
        targets[path] = target
    return [targets[path] for path in paths]


@dataclass
class _Packing:
    """Tars, each written once its videos have been encoded."""

    shards: Shards
    mine: Sequence[Work]
    rows: Sequence[Mapping[str, str]]
    works: Sequence[Work]
    verdicts: Mapping[str, Verdict]

    def __post_init__(self) -> None:
        self._row_of: dict[str, Mapping[str, str]] = {}
        for row, work in zip(self.rows, self.works, strict=True):
            known = self._row_of.setdefault(work.target, row)
            # A part's label does not apply to its whole video, and labels of rows may differ
            is_part = work.part is None and any(row.get(name) for name in PART_COLUMNS)
            if is_part or known.get("label") != row.get("label"):
                self._row_of[work.target] = {**known, "label": ""}
        self._videos: dict[int, list[Work]] = {}
        for work in self.mine:
            self._videos.setdefault(self.shards.shard(work.target), []).append(work)
        self._left = {
            number: sum(work.target not in self.verdicts for work in works)
            for number, works in self._videos.items()
        }
        for number, left in self._left.items():  # left by an interrupted run
            if not left and any(os.path.isfile(work.target) for work in self._videos[number]):
                self._pack(number)

    def add(self, work: Work) -> None:
        """Record that a video is done."""
        self._left[number := self.shards.shard(work.target)] -= 1
        if not self._left[number]:
            self._pack(number)

    def _pack(self, number: int) -> None:
        good = (w for w in self._videos[number] if self.verdicts[w.target].status in USED)
        self.shards.pack(
            number,
            (
                Packed(
                    work.result,
                    os.path.basename(work.target),
                    self._row_of[work.target],
                    self.verdicts[work.target],
                )
                for work in good
            ),
        )


def _share(works: Iterable[Work], part: tuple[int, int], shards: Shards | None) -> list[Work]:
    """The videos of this part of the job: every n-th, or whole tars."""
    if shards is None:
        return list(works)[part[0] - 1 :: part[1]]
    return [work for work in works if shards.shard(work.target) % part[1] == part[0] - 1]


def _table(verdict: Verdict | None, work: Work) -> bytes | None:
    """The frame table of an encoded video; for one in a tar, with the tar's modification time."""
    if verdict is None or verdict.table is None or work.packed is None:
        return None if verdict is None else verdict.table
    table, (_, mtime_ns) = FrameTable.from_bytes(verdict.table), file_identity(work.packed)
    if table is None or mtime_ns is None:
        return None
    return replace(table, mtime_ns=mtime_ns).to_bytes()


def _work(
    row: Mapping[str, str],
    name: str,
    root: str,
    output_dir: Path,
    *,
    index: FrameIndex | None,
    shards: Shards | None,
) -> Work:
    is_checked = row.get("status", "").strip() in USED and row.get("num_frames", "").isdigit()
    num_frames = int(row["num_frames"]) if is_checked else None
    table = None if index is None else index.get(row["path"])
    source, target = as_on_disk(root, row["path"]), os.path.join(output_dir, name)
    packed = None if shards is None else os.path.join(output_dir, shards.name(name))
    return Work(source, target, num_frames, table, packed=packed)


def _prepare(
    folder: Path,
    described: Mapping[str, Any],
    manifest: Path,
    new_manifest: Path,
    works: Sequence[Work],
) -> None:
    """Create the folder; refuse one whose content would be lost or mixed with ours."""
    sources = {os.path.realpath(work.source) for work in works}
    if new_manifest.resolve() == manifest.resolve() or any(
        os.path.realpath(work.target) in sources for work in works
    ):
        raise ValueError(
            f"output_dir ({folder}) must not be the folder of the videos; choose another"
        )
    classes, stored = manifest.parent / "classes.txt", folder / _SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Another part of the job may start concurrently; it writes its settings first. So list the
        # folder before looking for settings: files without settings are then not from such a part.
        names = [path.name for path in folder.iterdir()]
        if stored.exists():
            # Defaults for settings that older versions lack
            usual = {**asdict(Encoding()), "per_shard": None}
            found = {**usual, **read_json(stored)}
            if other := {k: v for k, v in described.items() if found[k] != v}:
                texts = (f"{name} {found[name]}, not {value}" for name, value in other.items())
                raise ValueError(
                    f"output_dir ({folder}) holds videos with other settings ({', '.join(texts)}); "
                    "choose another folder"
                )
        elif any(not fnmatch(name, f".{_SETTINGS}.*.tmp") for name in names):
            raise ValueError(f"output_dir ({folder}) must be new or empty, but holds other files")
        write_atomically(stored, [json.dumps(dict(described)) + "\n"])
        if classes.is_file():
            write_classes(folder / "classes.txt", read_classes(classes).names)
    except OSError as error:
        raise ValueError(f"output_dir ({folder}) cannot be written: {error.strerror}") from error


def _known(entry: Mapping[str, Any] | None, work: Work, timeout_s: float) -> Verdict | None:
    """The verdict of an earlier run on a video, if it is still valid."""
    if entry is None or entry.get("timeout_s", 0) not in (None, timeout_s):
        return None
    try:
        verdict = Verdict.from_entry(entry)
    except ValueError:
        return None
    is_there = verdict.status in USED and file_identity(work.result)[0] == verdict.num_bytes
    if entry.get("identity") == list(file_identity(work.source)):  # moved is the same
        return verdict if is_there or verdict.status not in USED else None
    if is_there and entry.get("source") != work.source:
        raise ValueError(
            f"{work.target} was made from {entry.get('source')}, not from {work.source}: "
            "lists that give different videos the same name must not share a folder"
        )
    return None


def _delete_part(work: Work) -> None:
    """Delete the temporary file of a video."""
    with suppress(OSError):
        os.unlink(part_name(work.target))


def _gain(
    good: Sequence[Work], tables: Mapping[str, bytes | None], decoder: Decoder, timeout_s: float
) -> Gain | None:
    """Compare the encoded videos, with their frame tables, with their sources."""
    if not good:
        return None
    chosen = np.unique(np.linspace(0, len(good) - 1, _SAMPLE).astype(int))
    pairs = [
        ((good[k].source, good[k].table), (good[k].result, tables[good[k].target])) for k in chosen
    ]
    timed = run_killable(
        TimeReading(decoder), pairs, num_workers=1, timeout_s=timeout_s, limits=READING
    )
    seconds = [outcome for _, outcome in timed if isinstance(outcome, tuple)]
    means = np.mean(seconds, axis=0) if seconds else (np.nan, np.nan)
    return Gain(
        source_bytes=sum(file_identity(path)[0] or 0 for path in {work.source for work in good}),
        num_bytes=sum(file_identity(work.result)[0] or 0 for work in good),
        clip_s=(float(means[0]), float(means[1])),
        num_timed=len(seconds),
    )
