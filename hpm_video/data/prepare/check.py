"""``hpm-video data check``: decodes every video of a list and adds the results to the list.

Videos are decoded in processes that can be killed. Verdicts are written to a journal beside the
list as they arrive, so that an interrupted run can resume. The list and its index are written
atomically at the end. Neither the rows nor the verdicts of a long list are ever all in memory.
"""

import csv
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hpm_video.config.values import Decoder
from hpm_video.data.lists.columns import COLUMNS, Columns
from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.frame_index import (
    FrameIndex,
    FrameIndexWriter,
    check_is_index,
    index_beside,
    new_frame_index,
)
from hpm_video.data.lists.parts import part_columns, part_of
from hpm_video.data.lists.places import is_shards, list_root
from hpm_video.data.lists.rows import read_videos
from hpm_video.data.lists.spelling import as_on_disk
from hpm_video.data.prepare.verdict import (
    BAD,
    USED,
    Verdict,
    file_identity,
    inspect_video,
    silence,
)
from hpm_video.data.remote.cache import Held
from hpm_video.data.remote.fetching import fetch_each
from hpm_video.data.remote.urls import check_is_local, is_url, joined
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.frames import check_decoder
from hpm_video.data.video.limits import READING
from hpm_video.data.video.part import Part
from hpm_video.data.video.readers import UnreadableError
from hpm_video.data.video.timeline import frames_of
from hpm_video.runtime.files import free_place, keep_original, shell_path, write_csv
from hpm_video.runtime.journal import Journal
from hpm_video.runtime.progress import Progress
from hpm_video.runtime.workers import ItemTimeout, WorkerDied, run_killable

Rows = list[dict[str, str]]
_CheckedRow = tuple[dict[str, str], bytes | None]  # with its frame table
Video = tuple[str, bytes | None]  # path, and frame table from an index

# Any other status is the user's own mark for a video to skip, and is kept
_OURS = ("", *USED, BAD, "missing")
_SLACK = 0.1  # seconds by which a part may exceed its video without a note
_LONGEST_HEADER = 100_000  # characters, below the csv module's limit for a field
_FOUND = (
    "num_frames", "fps", "width", "height", "status", "num_bytes", "duration_s", "damaged",
    "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Inspect:
    """`inspect_video` as a function of a `Video` alone, for a worker process."""

    quick: bool

    def __call__(self, video: Video) -> Verdict:
        silence()
        path, table = video
        return inspect_video(path, quick=self.quick, table=table)


@dataclass(frozen=True)
class Checked:
    """The result of checking a list."""

    manifest: Path  # the written list
    original: Path | None  # copy of a list that had another format
    num_before: int  # videos checked by an interrupted run
    num_outdated: int  # videos checked again, as an older version had checked them


def check_manifest(
    manifest: str | Path,
    *,
    output: str | Path | None = None,
    root: str | Path | None = None,
    quick: bool = False,
    num_workers: int = 1,
    timeout_s: float = 120.0,
) -> Checked:
    """Decode every video of a list, and write the list with the results, and its index.

    Sets the columns `num_frames`, `fps`, `width`, `height`, `num_bytes`, `duration_s`, `status`,
    `damaged` and `reason`, see `inspect_video`. Other columns, and the order of rows and columns,
    stay. A row that is a part gets the values of its video, and is bad if the part has no frame.
    Rows with a status other than `ok`, `damaged`, `bad`, `missing` or nothing are not changed. A
    list that is not a CSV with a header is converted to one; the original is kept as `<name>.orig`.

    Args:
        manifest: any list that `read_rows` reads.
        output: path to write; by default the list itself. In another folder, and without ``root``,
            paths are rewritten to lead to the same files.
        root: base folder of relative paths, by default that of the list.
        quick: decode only the head, the tail and a few places between.
        num_workers: videos decoded in parallel.
        timeout_s: time limit per video; a video that exceeds it is bad.

    Raises FileNotFoundError if the list does not exist, and ValueError if a setting is out of
    range, the list is malformed, has no videos, changes during the check or is already being
    checked, or the output cannot be written.
    """
    check_settings(num_workers=num_workers, timeout_s=timeout_s)
    if is_url(manifest) and is_shards(manifest):
        raise ValueError(
            f"list ({manifest}) must be a file for data check; make one with `hpm-video data list "
            f"--manifest {shlex.quote(str(manifest))} -o FILE.csv`"
        )
    check_is_local(manifest, job="data check")
    inspect, manifest = Inspect(quick), Path(manifest)
    if manifest.exists() and not (manifest.is_file() or manifest.is_dir()):
        raise ValueError(
            f"{manifest} must be a file, as it is read again at the end; make one with "
            f"`hpm-video data list --manifest {manifest} -o FILE`"
        )
    identity = file_identity(str(manifest))
    start = list_root(manifest, root)
    columns: dict[str, None] = {}
    due: dict[str, str] = {}  # path -> the video's name in the list
    spelled: dict[str, str] = {}  # name in the list -> path, if spelled differently
    first: list[str] = []
    faults = Faults()
    for where, row in read_videos(manifest, faults):
        if not first:
            first, of_part = list(row), part_columns(row, str(manifest), faults)
            meant = Columns(manifest, start, row)
        meant.note(row, where)
        columns |= dict.fromkeys(row)
        part_of(row, of_part, where, faults)
        if _is_due(row):
            name = row["path"]
            if (path := as_on_disk(start, name)) != joined(start, name):
                spelled[name] = path
            due.setdefault(path, name)
    if first:
        meant.find_faults(faults, chosen=True, labels=False)
    faults.check()
    output = Path(output) if output is not None else manifest
    if is_shards(output):
        raise ValueError(
            f"output ({output}) must be a list, as tars are not changed; use -o FILE.csv"
        )
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"output ({output}) must be a file in a folder that exists")
    is_over = output.exists() and output.samefile(manifest)
    if output.exists() and not (is_over or (output.is_file() and _is_ours(output))):
        raise ValueError(
            f"output ({output}) must be a new file or a list of videos, not another file: "
            f"add -o {shell_path(free_place(output.with_suffix('.csv')))}"
        )
    check_is_index(index_beside(output))
    columns |= dict.fromkeys(_FOUND) if due else {}
    header = list(dict.fromkeys([*first, *(c for c in COLUMNS if c in columns), *columns]))

    with Journal(output.with_name(f".{output.name}.check.jsonl")) as journal:
        is_known = {path: _known(journal, path, inspect, timeout_s) for path in due}
        num_outdated = sum(_is_outdated(journal, path) for path in due)
        num_before = sum(is_known.values())
        tables = _tables_of(manifest) if quick else None
        new = (
            (path, tables.get(name) if tables is not None else None)
            for path, name in due.items()
            if not is_known[path]
        )
        with Progress("checked", total=len(due), done=num_before) as progress:
            for path, verdict, limit_s in _inspect_all(inspect, new, num_workers, timeout_s):
                entry = {**verdict.to_entry(), "quick": quick, "timeout_s": limit_s}
                journal.add(path, entry)
                progress.step(bad=verdict.status == BAD)
        if file_identity(str(manifest)) != identity:
            raise ValueError(
                f"{manifest} changed during the check; run the command again to continue from here"
            )
        original = keep_original(manifest) if is_over and not _is_ours(manifest) else None
        with new_frame_index(index_beside(output)) as index:
            rows = _checked_rows(manifest, start, spelled, journal)
            if root is None and not output.parent.samefile(manifest.parent):
                rows = _moved(rows, start, output.parent)
            write_csv(output, header, _with_tables(rows, header, index))
        journal.remove()
    return Checked(output, original, num_before, num_outdated)


def check_settings(*, num_workers: int, timeout_s: float, decoder: Decoder = "pyav") -> None:
    """Raise ValueError for a decoder that is not available, or a number out of range."""
    check_decoder(decoder)
    if num_workers < 1:
        raise ValueError(f"workers ({num_workers}) must be at least 1")
    if not timeout_s > 0:
        raise ValueError(f"timeout ({timeout_s:g}) must be above 0 seconds")


def failure_reason(outcome: ItemTimeout | WorkerDied) -> str:
    """The reason, in one line, for a video whose process timed out or died."""
    if isinstance(outcome, ItemTimeout):
        return f"took longer than {outcome.timeout_s:g} s"
    return f"crashed its decoder: {outcome}"


def verdict_columns(verdict: Verdict) -> dict[str, str]:
    """A verdict as columns of a list; unknown values are empty."""
    values = {**vars(verdict), "duration_s": verdict.duration_s}
    for name in ("fps", "duration_s"):
        values[name] = values[name] and float(f"{values[name]:.6g}")
    return {name: "" if values[name] is None else str(values[name]) for name in _FOUND}


def _is_due(row: Mapping[str, str]) -> bool:
    return row.get("status", "").strip() in _OURS


def _checked_rows(
    manifest: Path, start: str, spelled: Mapping[str, str], journal: Journal
) -> Iterator[_CheckedRow]:
    """The rows of a list with their results."""
    of_part, faults = None, Faults()
    for where, row in read_videos(manifest):
        if of_part is None:
            of_part = part_columns(row, str(manifest), faults)
        if not _is_due(row):
            yield row, None
            continue
        path = spelled.get(row["path"]) or joined(start, row["path"])
        verdict = Verdict.from_entry(journal.entries[path])
        found = verdict_columns(verdict)
        if (part := part_of(row, of_part, where, faults)) is not None:
            found |= _said_of_part(part, verdict)
        yield {**row, **found}, verdict.table


def _said_of_part(part: Part, verdict: Verdict) -> dict[str, str]:
    """The results of a part that differ from those of its video."""
    table = _table(verdict.table) if verdict.table is not None else None
    if table is None:
        return {}
    try:
        frames_of(table, part)
    except UnreadableError as error:
        return {"status": BAD, "reason": str(error)}
    begin, *_, end = table.seconds()
    if (after := part.end - (table.num_frames if part.in_frames else end - begin)) > _SLACK:
        said = f"ends {after:.4g} {'frames' if part.in_frames else 's'} after its video"
        return {"reason": "; ".join(filter(None, (verdict.reason, said)))}
    return {}


@lru_cache(maxsize=1)
def _table(data: bytes) -> FrameTable | None:
    return FrameTable.from_bytes(data)  # cached for the parts of a video, whose rows are adjacent


def _moved(rows: Iterable[_CheckedRow], start: str, folder: Path) -> Iterator[_CheckedRow]:
    """The rows, with paths changed to lead to the same files from the list's new folder."""
    base = os.path.join(os.path.abspath(folder), "")
    for row, table in rows:
        yield {**row, "path": joined(start, row["path"]).removeprefix(base)}, table


def _with_tables(
    rows: Iterable[_CheckedRow], header: Sequence[str], index: FrameIndexWriter
) -> Iterator[list[str | None]]:
    """The values of the rows; adds their frame tables to the index."""
    for row, table in rows:
        if table is not None:
            index.add(row["path"], table)
        yield [row.get(column) for column in header]


def _inspect_all(
    inspect: Inspect, videos: Iterable[Video], num_workers: int, timeout_s: float
) -> Iterator[tuple[str, Verdict, float | None]]:
    """Yield (path, verdict, the time limit if it was exceeded) in order of completion."""
    urls: dict[str, tuple[str, Held]] = {}  # cached file -> its URL
    lost: list[tuple[str, Verdict, None]] = []  # could not be fetched
    outcomes = run_killable(
        inspect,
        _on_this_machine(videos, urls, lost),
        num_workers=num_workers,
        timeout_s=timeout_s,
        limits=READING,
    )
    for (path, _), outcome in outcomes:
        if isinstance(outcome, Verdict):
            verdict, limit_s = outcome, None
        else:
            size, changed_ns = file_identity(path)
            verdict = Verdict(BAD, failure_reason(outcome), num_bytes=size, mtime_ns=changed_ns)
            limit_s = getattr(outcome, "timeout_s", None)
        url, held = urls.pop(path, (path, None))
        if held is not None:
            held.close()
        yield url, verdict, limit_s
        while lost:
            yield lost.pop()
    yield from lost


def _on_this_machine(
    videos: Iterable[Video],
    urls: dict[str, tuple[str, Held]],
    lost: list[tuple[str, Verdict, None]],
) -> Iterator[Video]:
    """The videos, with URLs replaced by cached files, which are recorded in ``urls``."""
    elsewhere: list[Video] = []
    for video in videos:
        if is_url(video[0]):
            elsewhere.append(video)
        else:
            yield video
    for found in fetch_each(elsewhere, lambda video: video[0]) if elsewhere else ():
        url, table = found.item
        if found.held is None:
            lost.append((url, Verdict(BAD, found.reason), None))
        else:
            urls[found.held.path] = url, found.held
            yield found.held.path, table


def _known(journal: Journal, path: str, inspect: Inspect, timeout_s: float) -> bool:
    """Whether an earlier verdict is still valid: same file, thoroughness and time limit."""
    entry = journal.entries.get(path)
    if entry is None or "table" not in entry or entry.get("quick") != inspect.quick:
        return False
    try:
        found = Verdict.from_entry(entry)
    except ValueError:
        return False
    if is_url(path):  # assumed unchanged; without a size it was not fetched
        return found.num_bytes is not None
    same = (found.num_bytes, found.mtime_ns) == file_identity(path)
    return same and entry.get("timeout_s", 0) in (None, timeout_s)


def _is_outdated(journal: Journal, path: str) -> bool:
    """Whether an older version wrote the verdict."""
    return path in journal.entries and "table" not in journal.entries[path]


def _tables_of(manifest: Path) -> FrameIndex | None:
    """The index of a list, or None if unusable; no warning, as it is about to be rewritten."""
    with suppress(FileNotFoundError, ValueError):
        return FrameIndex(index_beside(manifest))
    return None


def _is_ours(manifest: Path) -> bool:
    """Whether a list is a CSV with a header in our column names."""
    with open(manifest, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        line = file.readline(_LONGEST_HEADER)
        while line.isspace():
            line = file.readline(_LONGEST_HEADER)
    return "path" in next(csv.reader([line.strip()]), [])
