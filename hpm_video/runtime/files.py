"""Files that appear whole or not at all, and text for people from names of files."""

import errno
import filecmp
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from hpm_video.runtime.reading import check_regular

OURS = "hpm-video"  # in all pages and pictures that may replace each other


@contextmanager
def whole_file(path: Path, *, ending: str = ".tmp") -> Iterator[Path]:
    """A temporary file to write, which takes the place of ``path`` when it is complete and on disk.
    It has the permissions of any new file there. Its name is hidden, begins with that of ``path``,
    and ends with ``ending``. Raises ValueError where it cannot be written."""
    # Nobody else can have put a link, or a file of theirs, where it will be
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{ending}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new_file(temporary)
        try:
            usual = temporary.stat().st_mode  # follows the umask, or the folder's ACL
            yield temporary
            if temporary.stat().st_mode != usual:  # safetensors lets only the owner read
                temporary.chmod(stat.S_IMODE(usual))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def new_file(path: str | Path) -> None:
    """Make an empty file in place of what lies there; a link is removed, and not followed."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def own_file(path: str | Path, flags: int) -> int:
    """An opener, as `open` takes it, of files that stay and are added to.

    A link leads there only where this user or the administrator made it. Raises PermissionError for
    one of another user's, who could let us write to any file of ours; ValueError for a pipe, which
    would wait for ever.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISCHR(mode := os.stat(path).st_mode):  # /dev/null takes a log
            check_regular(path, mode)
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        owner = os.lstat(path).st_uid
        ours = (0, os.geteuid())
        if owner not in ours and owner != owner_of_new_files(Path(path).parent):
            raise PermissionError(errno.EPERM, "is a link of another user's", str(path)) from error
        return os.open(path, flags, 0o666)


def own_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder whose content is ours alone, or go on with one that is there.

    Raises ValueError for a link, a file, or a folder of another user's.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode)
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode):
            kind = "a link" if stat.S_ISLNK(about.st_mode) else "no folder"
            raise ValueError(f"{folder} is {kind}: remove it, as it must be a folder of yours")
        if about.st_uid != owner_of_new_files(folder.parent):
            raise ValueError(
                f"{folder} belongs to another user ({about.st_uid}): must be yours; remove it, or "
                "choose another place"
            )
    except OSError as error:
        raise ValueError(f"{folder} cannot be made: {error.strerror}") from error


def owner_of_new_files(folder: Path) -> int:
    """Whose the files are that we make in a folder: some network drives name another owner."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid


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
    while os.path.lexists(copy):
        if copy.is_file() and filecmp.cmp(copy, path, shallow=False):
            return copy
        copy = path.with_name(f"{path.name}.orig{(number := number + 1)}")
    with whole_file(copy) as temporary:
        shutil.copyfile(path, temporary)
    shutil.copystat(path, copy)
    return copy


def check_is_ours(path: Path, *, name: str, columns: Sequence[str] = ()) -> None:
    """Raise ValueError where a page or picture or, with ``columns``, a table, the setting ``name``,
    would replace a file that is none of ours: those say so near their beginning, films at their
    end, and tables begin with these columns."""
    try:
        if path.exists() and not (path.is_file() and _says_ours(path, columns)):
            raise ValueError(f"{name} ({path}) must be a new file or one of {OURS}'s: is another")
    except OSError as error:
        raise ValueError(f"{name} ({path}) cannot be read: {error.strerror}") from error


def _says_ours(path: Path, columns: Sequence[str]) -> bool:
    with path.open("rb") as file:
        head = file.read(1024)
        if columns:
            return head.startswith(tuple((",".join(columns) + after).encode() for after in ",\n"))
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


def state_folder() -> Path:
    """Where this package keeps what it knows of the user, on any machine with the same home."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "hpm_video"


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
