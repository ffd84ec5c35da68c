"""One name, spelled in several ways: labels, and paths of lists that other machines wrote.

macOS writes é as two characters (NFD), other systems as one (NFC). Windows separates folders by
backslashes. Older programs write the bytes of Windows-1252.
"""

import os
from collections.abc import Iterator
from unicodedata import normalize

from hpm_video.data.remote.urls import is_url, joined


def same_name(text: str) -> str:
    """What is equal for two spellings of one name: in NFC, and text where it was other bytes."""
    if text.isascii():
        return text
    return normalize("NFC", as_text(text))


def as_on_disk(folder: str, name: str) -> str:
    """The path of a list's ``name`` below ``folder``, spelled as the file that is there.

    As written where such a file exists, or none of any spelling does. Asks the file system only
    about names that have more than one spelling.
    """
    path = joined(folder, name)
    is_plain = is_url(path) or (name.isascii() and "\\" not in name and name == name.strip())
    if is_plain or os.path.lexists(path):
        return path
    found = (_found(folder, spelled) for spelled in _spellings(name))
    return next(filter(None, found), path)


def as_text(text: str) -> str:
    """The text itself, or what bytes that are not UTF-8 are in Windows-1252 (else in Latin-1)."""
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
    """Other spellings of a path, the likelier first; forms of Unicode are left to `_found`."""
    yield name
    yield name.strip()
    yield name.strip("\ufeff")  # before the first row of a list that was joined to another
    slashed = name.strip().replace("\\", "/")
    yield slashed
    yield as_text(slashed)


def _found(folder: str, name: str) -> str | None:
    """The path of a name below a folder, each part of it in either form of Unicode, if there."""
    path = "/" if name.startswith("/") else folder
    for part in name.split("/"):
        forms = dict.fromkeys((part, normalize("NFC", part), normalize("NFD", part)))
        paths = (os.path.join(path, form) if part else path for form in forms)
        if (known := next(filter(os.path.lexists, paths), None)) is None:
            return None
        path = known
    return path
