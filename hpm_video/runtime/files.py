"""Files that appear whole or not at all, and text for people from names of files."""

import filecmp
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

OURS = "hpm-video"  # in all pages and pictures that may replace each other


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the place of ``path`` when it is complete and on disk.
    It has the permissions of any new file there. Raises ValueError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            usual = temporary.stat().st_mode  # follows the umask, or the folder's ACL
            yield temporary
            if temporary.stat().st_mode != usual:  # safetensors lets only the owner read
                temporary.chmod(stat.S_IMODE(usual))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system has against writing a file (a full disk, a quota), as a ValueError that names
    ``path``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save says of a failed write only that the file has not the length it should have
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise ValueError(f"{path} cannot be written: {cause.strerror or cause}") from error


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write a UTF-8 file (names that are not UTF-8 keep their bytes), replacing an older one.
    Raises ValueError where its folder cannot be written to, or a text is not Unicode."""
    try:
        with (
            whole_file(path) as temporary,
            open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            file.writelines(lines)
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: {error.object!r} is not text") from error


def write_csv(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV with a header, as `write_atomically` does; None is an empty field."""
    write_atomically(path, (",".join(map(quoted, row)) + "\n" for row in chain([header], rows)))


def keep_original(path: Path) -> Path:
    """Copy a file beside itself as NAME.orig, else NAME.orig2, ...; an equal copy will do.

    Raises ValueError where it cannot be written.
    """
    copy, number = path.with_name(f"{path.name}.orig"), 1
    while copy.exists():
        if filecmp.cmp(copy, path, shallow=False):
            return copy
        copy = path.with_name(f"{path.name}.orig{(number := number + 1)}")
    with writing(copy):
        try:
            shutil.copy2(path, copy)
        except OSError:  # the disk is full: half a copy is none
            copy.unlink(missing_ok=True)
            raise
    return copy


def check_is_ours(path: Path, *, name: str, columns: Sequence[str] = ()) -> None:
    """Raise ValueError where a page or picture or, with ``columns``, a table, the setting ``name``,
    would replace a file that is none of ours: those say so near their beginning, films at their
    end, and tables have these columns."""
    try:
        if path.exists() and not (path.is_file() and _says_ours(path, columns)):
            raise ValueError(f"{name} ({path}) must be a new file or one of {OURS}'s: is another")
    except OSError as error:
        raise ValueError(f"{name} ({path}) cannot be read: {error.strerror}") from error


def _says_ours(path: Path, columns: Sequence[str]) -> bool:
    with path.open("rb") as file:
        head = file.read(1024)
        if columns:
            return head.startswith((",".join(columns) + "\n").encode())
        file.seek(max(0, path.stat().st_size - 1024))
        return OURS.encode() in head or OURS.encode() in file.read()


def printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be shown: names of files hold any byte."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_can_be_folder(folder: Path, *, name: str) -> None:
    """Raise ValueError when a path, the setting ``name``, is a file or lies under one."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            place = "is a file" if path == folder else f"lies under a file ({path})"
            raise ValueError(f"{name} ({folder}) {place}: must be a folder")


def make_folder(path: str | Path, *, name: str) -> Path:
    """Make the folder that the setting ``name`` means; ValueError if it cannot be written to."""
    folder = Path(path)
    check_can_be_folder(folder, name=name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{name} ({folder}): {error.strerror}; must be writable") from error
    return folder


@contextmanager
def not_left_empty(folder: Path | None) -> Iterator[None]:
    """Remove a folder that an error leaves empty."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it is not empty, or not there
            if folder is not None:
                folder.rmdir()
        raise


def quoted(value: object) -> str:
    """A value as a field of our CSV; nothing for None."""
    # Not csv.writer: with "\n" as line end it leaves "\r" unquoted, which its reader then splits at
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r'[,"\r\n]', text) else text
