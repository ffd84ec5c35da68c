"""Tables as CSV beside our pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hpm_video.runtime.files import quoted


def check_table(path: Path, columns: Sequence[str], *, name: str) -> None:
    """Raise ValueError where a table, the setting ``name``, would replace another file."""
    if not path.exists():
        return
    head = (",".join(columns) + "\n").encode()
    if not (path.is_file() and path.open("rb").read(len(head)) == head):
        raise ValueError(f"{name} ({path}) must be a new file or one of hpm-video's: is another")


def csv_lines(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a table, with None as an empty field."""
    for row in (head, *rows):
        yield ",".join(map(quoted, row)) + "\n"
