"""``hpm-video data check``: every video of a list decoded, and what came of it written into it.

Videos are decoded in processes that can be killed. Verdicts go to a journal beside the list as they
come, so that a run that was killed goes on where it was; the list is written at the end, at once.
"""

import csv
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpm_video.config.values import Decoder
from hpm_video.data.lists.manifest import write_manifest
from hpm_video.data.lists.rows import read_videos
from hpm_video.data.lists.spelling import as_on_disk
from hpm_video.data.prepare.encode import count_frames
from hpm_video.data.prepare.verdict import BAD, OK, Verdict, file_identity, inspect_video, silence
from hpm_video.data.video.frames import check_decoder
from hpm_video.runtime.files import keep_original
from hpm_video.runtime.journal import Journal
from hpm_video.runtime.progress import Progress
from hpm_video.runtime.workers import ItemTimeout, WorkerDied, run_killable

Rows = list[dict[str, str]]

# Any other status is the user's own word for a video to be left out, and stays
_OURS = ("", OK, BAD, "missing")
_LONGEST_HEADER = 100_000  # characters, fewer than the csv module's limit of a field
_FOUND = ("num_frames", "fps", "width", "height", "num_bytes", "duration_s", "status", "reason")


@dataclass(frozen=True)
class Inspect:
    """`inspect_video` as a function of the path alone, for a process of its own."""

    quick: bool
    decoder: Decoder

    def __call__(self, path: str) -> Verdict:
        silence()
        return inspect_video(path, quick=self.quick, decoder=self.decoder)


def _count_frames(path: str) -> int:
    silence()
    return count_frames(path)


@dataclass(frozen=True)
class Checked:
    """A checked list."""

    rows: Rows  # those of the list in its order, with what was found out
    manifest: Path  # where they were written
    original: Path | None  # the list as it was, where it had another format
    num_before: int  # videos that an interrupted run had checked


def check_manifest(
    manifest: str | Path,
    *,
    output: str | Path | None = None,
    root: str | Path | None = None,
    quick: bool = False,
    decoder: Decoder = "decord",
    num_workers: int = 1,
    timeout_s: float = 120.0,
) -> Checked:
    """Decode every video of a list and write the list with what was found out.

    Columns `num_frames`, `fps`, `width`, `height`, `num_bytes`, `duration_s`, `status` and `reason`
    are set, see `inspect_video`; all others, and the order of rows and columns, stay. Rows with a
    status other than `ok`, `bad`, `missing` or nothing are left as they are. A list that is no CSV
    with a header becomes one, and is kept beside it as `<name>.orig`.

    Args:
        manifest: any list that `read_rows` reads.
        output: where to write, by default over the list itself.
        root: folder where relative paths start, by default that of the list.
        quick: decode only the head, the tail and a few places between.
        decoder: of training's reader, see `open_video`.
        num_workers: videos decoded at once.
        timeout_s: how long a video may take; one that takes longer is bad.

    Raises FileNotFoundError: the list does not exist; ValueError: a setting is out of range, the
    list is malformed, without videos, was changed meanwhile or is being checked already, or the
    output cannot be written.
    """
    check_settings(decoder=decoder, num_workers=num_workers, timeout_s=timeout_s)
    inspect = Inspect(quick, decoder)
    manifest = Path(manifest)
    rows = [row for _, row in read_videos(manifest)]
    identity = file_identity(str(manifest))
    output = Path(output) if output is not None else manifest
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"output ({output}) must be a file in a folder that exists")
    is_over = output.exists() and output.samefile(manifest)
    if output.exists() and not (is_over or (output.is_file() and _is_ours(output))):
        raise ValueError(f"output ({output}) must be a new file or a manifest: is another")
    start = os.path.abspath(root if root is not None else manifest.parent)
    paths = [as_on_disk(start, row["path"]) for row in rows]
    is_ours = [row.get("status", "").strip() in _OURS for row in rows]
    due = list(dict.fromkeys(itertools.compress(paths, is_ours)))

    with Journal(output.with_name(f".{output.name}.check.jsonl")) as journal:
        known = {path: _known(journal, path, inspect, timeout_s) for path in due}
        verdicts = {path: verdict for path, verdict in known.items() if verdict is not None}
        num_before = len(verdicts)
        new = [path for path in due if path not in verdicts]
        with Progress("checked", total=len(due), done=num_before) as progress:
            for path, verdict, limit_s in _inspect_all(inspect, new, num_workers, timeout_s):
                journal.add(path, {**asdict(verdict), **asdict(inspect), "timeout_s": limit_s})
                verdicts[path] = verdict
                progress.step(bad=verdict.status == BAD)
        if file_identity(str(manifest)) != identity:
            raise ValueError(
                f"{manifest} was changed while it was checked: run again, which goes on from here"
            )
        original = keep_original(manifest) if is_over and not _is_ours(manifest) else None
        checked = [
            {**row, **verdict_columns(verdicts[path])} if path in verdicts else row
            for path, row in zip(paths, rows, strict=True)
        ]
        write_manifest(output, checked, columns=list(rows[0]))
        journal.remove()
    return Checked(checked, output, original, num_before)


def check_settings(*, decoder: Decoder, num_workers: int, timeout_s: float) -> None:
    """Raise ValueError for a decoder that is not here, or a number out of range."""
    check_decoder(decoder)
    if num_workers < 1:
        raise ValueError(f"workers ({num_workers}) must be at least 1")
    if not timeout_s > 0:
        raise ValueError(f"timeout ({timeout_s:g}) must be above 0 seconds")


def failure_reason(outcome: ItemTimeout | WorkerDied) -> str:
    """In one line, what became of a process that was lost over a video."""
    if isinstance(outcome, ItemTimeout):
        return f"took longer than {outcome.timeout_s:g} s"
    return f"crashed its decoder: {outcome}"


def verdict_columns(verdict: Verdict) -> dict[str, str]:
    """A verdict as columns of a list; what is not known is empty."""
    values = {**asdict(verdict), "duration_s": verdict.duration_s}
    for name in ("fps", "duration_s"):
        values[name] = values[name] and float(f"{values[name]:.6g}")
    return {name: "" if values[name] is None else str(values[name]) for name in _FOUND}


def _inspect_all(
    inspect: Inspect, paths: Sequence[str], num_workers: int, timeout_s: float
) -> Iterator[tuple[str, Verdict, float | None]]:
    """Yield (path, verdict, the time limit if it was reached) as they come."""
    lost: dict[str, ItemTimeout | WorkerDied] = {}
    for path, outcome in run_killable(inspect, paths, num_workers=num_workers, timeout_s=timeout_s):
        if isinstance(outcome, Verdict):
            yield path, outcome, None
        else:
            lost[path] = outcome
    # A reader that never comes back leaves open how many frames there are; another may tell
    counts = run_killable(_count_frames, lost, num_workers=num_workers, timeout_s=timeout_s)
    for path, count in counts:
        num_frames = count if isinstance(count, int) else None
        reason = failure_reason(lost[path])
        verdict = Verdict(BAD, reason, num_frames, None, None, None, *file_identity(path))
        yield path, verdict, getattr(lost[path], "timeout_s", None)


def _known(journal: Journal, path: str, inspect: Inspect, timeout_s: float) -> Verdict | None:
    """The verdict of an earlier run, if it still holds: same file, as thorough, as patient."""
    entry: dict[str, Any] = dict(journal.entries.get(path, {}))
    if not entry or any(entry.pop(name) != value for name, value in asdict(inspect).items()):
        return None
    if entry.pop("timeout_s") not in (None, timeout_s):
        return None
    verdict = Verdict(**entry)
    same = (verdict.num_bytes, verdict.mtime_ns) == file_identity(path)
    return verdict if same else None


def _is_ours(manifest: Path) -> bool:
    """Whether a list is a CSV with a header of the names that are written."""
    with open(manifest, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        line = file.readline(_LONGEST_HEADER)
        while line.isspace():
            line = file.readline(_LONGEST_HEADER)
    return "path" in next(csv.reader([line.strip()]), [])
