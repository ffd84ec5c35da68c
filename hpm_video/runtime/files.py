"""Atomic writing of files, and printable file names."""

import difflib
import errno
import filecmp
import os
import re
import secrets
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count, islice
from pathlib import Path

from hpm_video.runtime.reading import check_regular

_MOST_COMPARED = 10_000  # names of a folder, with a missing one
OURS = "hpm-video"  # marks pages and pictures that we may replace


@contextmanager
def whole_file(path: Path, *, ending: str = ".tmp") -> Iterator[Path]:
    """Yield a temporary file to write, which replaces ``path`` once it is complete and on disk.

    Its name is hidden, starts with that of ``path`` and ends with ``ending``. It gets the usual
    permissions of new files. Raises ValueError if it cannot be written.
    """
    # A random name, so that nobody can have placed a link or file there
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{ending}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new_file(temporary)
        try:
            usual = temporary.stat().st_mode  # from the umask or the folder's ACL
            yield temporary
            if temporary.stat().st_mode != usual:  # safetensors makes files private
                temporary.chmod(stat.S_IMODE(usual))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def new_file(path: str | Path) -> None:
    """Create an empty file, replacing an existing one; a link is removed, not followed."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def own_file(path: str | Path, flags: int) -> int:
    """An opener for `open`, for files that are appended to.

    Follows links only if this user or root made them. Raises PermissionError for another user's
    link, which could point to any of our files, and ValueError for a pipe, which could block
    forever.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISCHR(mode := os.stat(path).st_mode):  # allow /dev/null
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
            raise PermissionError(
                errno.EPERM, "is a link that another user made", str(path)
            ) from error
        return os.open(path, flags, 0o666)


def own_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Create a folder for our files only, or use an existing one.

    Raises ValueError for a link, a file, or another user's folder.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode)
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode):
            kind = "a link" if stat.S_ISLNK(about.st_mode) else "not a folder"
            raise ValueError(f"{folder} is {kind}: must be a folder that you own; remove it")
        if about.st_uid != owner_of_new_files(folder.parent):
            raise ValueError(
                f"{folder} belongs to another user ({about.st_uid}): must be a folder that you "
                "own; remove it, or choose another place"
            )
    except OSError as error:
        raise ValueError(f"{folder} cannot be created: {error.strerror}") from error


def owner_of_new_files(folder: Path) -> int:
    """The owner of files that we create in a folder; some network drives report another user."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn system errors of writing (full disk, quota) into a ValueError that names ``path``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write only as an unexpected file length
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise ValueError(f"{path} cannot be written: {cause.strerror or cause}") from error


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write a UTF-8 file atomically; file names that are not UTF-8 keep their bytes.

    Raises ValueError if the folder is not writable or a text is not Unicode.
    """
    try:
        with (
            whole_file(path) as temporary,
            open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            file.writelines(lines)
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: {error.object!r} is not valid Unicode") from error


def write_csv(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV with a header, see `write_atomically`; None is an empty field."""
    write_atomically(path, (",".join(map(quoted, row)) + "\n" for row in chain([header], rows)))


def keep_original(path: Path) -> Path:
    """Copy a file to NAME.orig, else NAME.orig2, ..., unless an equal copy exists.

    Raises ValueError if the copy cannot be written.
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


def check_is_ours(
    path: Path, *, name: str, columns: Sequence[str] = (), folder: Path | None = None
) -> None:
    """Raise ValueError if writing ``path`` (the setting ``name``) would replace a foreign file.

    Our pages and pictures have a mark near their start, films at their end, and tables start with
    these ``columns``. ``folder``: what the setting names, if not the file itself.
    """
    try:
        if path.exists() and not (path.is_file() and _says_ours(path, columns)):
            option = "--page" if name == "page" else "-o"
            raise ValueError(
                f"{name} ({path}) must be a new file or one that {OURS} wrote: move this file, or "
                f"choose another place: {option} {shell_path(free_place(folder or path))}"
            )
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
    """The text on one line, with escapes for bytes that cannot be shown in file names."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shell_path(path: str | Path) -> str:
    """A path as a word of a command to paste, which is no option."""
    text = os.fspath(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def free_place(path: Path) -> Path:
    """A path beside this one that does not exist: its name with a number."""
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))
    ending = "" if path.is_dir() else path.suffix
    stem = re.sub(r"_\d$", "", path.name.removesuffix(ending))
    free = (path.with_name(f"{stem}_{number}{ending}") for number in count(2))
    return next(place for place in free if not os.path.lexists(place))


def similar_path(path: str | Path) -> str:
    """A question that names existing paths like a missing one, quoted for a shell, to add to a
    message; empty if there is none.

    Paths of the same name that lie one folder below come first, newest first; then the one whose
    first missing part is most similar; last the path without its leading folders.
    """
    path = Path(path)
    if "{" in path.name:  # a pattern of several files
        return ""
    above = reversed((path, *path.parents))
    missing = next((one for one in above if not os.path.exists(one)), path)
    folder, rest = missing.parent, path.relative_to(missing.parent)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MOST_COMPARED)]
    except (OSError, ValueError):
        return ""
    # Not below the root: a look into folders such as /net may ask other hosts
    is_root = os.path.abspath(folder) == os.path.abspath(os.sep)
    below = [name for name in names if not (is_root or name.startswith("."))]
    found = _existing(folder / name / rest for name in below)
    found.sort(key=os.path.getmtime, reverse=True)
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.7)
    found = found or _existing(folder / name / path.relative_to(missing) for name in close)
    if not found and folder == Path():  # relative, perhaps to the folder above
        found = _existing(Path(*rest.parts[k:]) for k in range(1, len(rest.parts)))[:1]
    meant = [printable(shell_path(one)) for one in found[:3]]
    return f"; did you mean {' or '.join(meant)}?" if meant else ""


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if os.path.exists(path)]


def check_can_be_folder(folder: Path, *, name: str) -> None:
    """Raise ValueError if a path (the setting ``name``) is a file or lies under one."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            place = "is a file" if path == folder else f"lies under a file ({path})"
            raise ValueError(f"{name} ({folder}) {place}: must be a folder")


def make_folder(path: str | Path, *, name: str) -> Path:
    """Create the folder of the setting ``name``; raises ValueError if it is not writable."""
    folder = Path(path)
    check_can_be_folder(folder, name=name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        option = name if name.startswith("--") else "-o"
        raise ValueError(
            f"{name} ({folder}) must be writable: {error.strerror}; choose another with "
            f"{option} DIR"
        ) from error
    return folder


def state_folder() -> Path:
    """The folder for this package's state of the user, in the home."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "hpm_video"


@contextmanager
def not_left_empty(folder: Path | None) -> Iterator[None]:
    """Remove a folder that an error leaves empty."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty, or does not exist
            if folder is not None:
                folder.rmdir()
        raise


def quoted(value: object) -> str:
    """A value as a CSV field; empty for None."""
    # Not csv.writer: with "\n" as line end it leaves "\r" unquoted, at which its reader splits
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r'[,"\r\n]', text) else text
