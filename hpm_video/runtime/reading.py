"""Safe reading of files from anywhere: regular files only, texts and JSON of bounded size.

A pipe in place of a file would block forever, and /dev/zero never ends. JSON can be nested deeper
than Python's stack, and contain numbers that Python refuses to convert.
"""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_DEPTH = 100  # nesting of JSON; ours has less than 10
_MOST_CHARACTERS = 1 << 30
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
}  # fmt: skip


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading. Raises OSError, or ValueError if it is not a regular file."""
    # Opening a device can have effects, and opening a pipe waits for a writer
    check_regular(path, os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    file = open(descriptor, "rb")  # noqa: SIM115 - the caller closes it
    try:
        check_regular(path, os.fstat(descriptor).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def check_regular(path: str | Path, mode: int) -> None:
    """Raise ValueError if a file's mode is not that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise ValueError(f"{path} must be a regular file, but is {kind}")


def read_text(
    path: str | Path, *, encoding: str = "utf-8", errors: str = "strict", most: int | None = None
) -> str:
    """The text of a regular file, with "\\n" as line end. ``most``: size limit in bytes.

    Raises OSError, UnicodeDecodeError, or ValueError if it is not a regular file or is too long.
    """
    most = most or _MOST_CHARACTERS
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"{path} has {size} bytes: must have at most {most}")
        # Read one byte more, in case the file grows meanwhile
        text = file.read(most + 1)
    if len(text) > most:
        raise ValueError(f"{path} must have at most {most} bytes")
    return text.decode(encoding, errors).replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises JSONDecodeError for anything that is wrong with it."""
    text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(error.msg, error.doc, error.pos) from None
    except RecursionError:
        raise json.JSONDecodeError(_TOO_DEEP, text, 0) from None
    except ValueError:  # Python's limit on digits of an integer
        raise json.JSONDecodeError("a number has too many digits", text, 0) from None
    # Python's own recursion limit depends on the caller, and values just below it cannot be written
    if text.count("[") + text.count("{") > MAX_DEPTH and not _is_shallow(value):
        raise json.JSONDecodeError(_TOO_DEEP, text, 0)
    return value


def read_json(path: str | Path) -> Any:
    """Read a JSON file in UTF-8. Raises OSError, or ValueError, which names the file."""
    try:
        return parse_json(read_text(path, encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text: {error.reason}") from error


_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep"


def _is_shallow(value: Any) -> bool:
    """Whether lists and objects are nested at most MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            entry
            for outer in level
            if isinstance(outer, list | dict)
            for entry in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return not level
