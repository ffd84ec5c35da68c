"""Different spellings of one name: in labels, and in paths of lists from other machines.

macOS writes é as two characters (NFD), other systems as one (NFC). Windows separates folders by
backslashes. Older programs write Windows-1252.
"""

import os
from collections.abc import Iterator
from unicodedata import normalize

from hpm_video.data.remote.urls import is_url, joined


def same_name(text: str) -> str:
    """A key that is equal for all spellings of a name: in NFC, and decoded if not UTF-8."""
    if text.isascii():
        return text
    return normalize("NFC", as_text(text))


def as_on_disk(folder: str, name: str) -> str:
    """The path of a list's ``name`` below ``folder``, spelled like the existing file.

    As written if such a file exists, or if none exists in any spelling. Accesses the file system
    only for names that have more than one spelling.
    """
    path = joined(folder, name)
    is_plain = is_url(path) or (name.isascii() and "\\" not in name and name == name.strip())
    if is_plain or os.path.lexists(path):
        return path
    found = (_found(folder, spelled) for spelled in _spellings(name))
    return next(filter(None, found), path)


def as_text(text: str) -> str:
    """The text; bytes that are not UTF-8 are decoded as Windows-1252, else as Latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogateescape")
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            return data.decode("latin-1")
    return text


def _spellings(name: str) -> Iterator[str]:
    """Other spellings of a path, most likely first; `_found` handles Unicode normalization."""
    yield name
    yield name.strip()
    yield name.strip("\ufeff")  # BOM of a list that was appended to another
    slashed = name.strip().replace("\\", "/")
    yield slashed
    yield as_text(slashed)


def _found(folder: str, name: str) -> str | None:
    """The existing path of a name below a folder, in any mix of Unicode normalizations."""
    path = "/" if name.startswith("/") else folder
    for part in name.split("/"):
        forms = dict.fromkeys((part, normalize("NFC", part), normalize("NFD", part)))
        paths = (os.path.join(path, form) if part else path for form in forms)
        if (known := next(filter(os.path.lexists, paths), None)) is None:
            return None
        path = known
    return path
