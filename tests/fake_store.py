"""An object store for tests: files of a folder, slow and unreliable as ``store.json`` there says.

``fake:///tmp/folder/a.mp4`` is the file /tmp/folder/a.mp4. All requests are noted, by the names of
files, in ``requests.txt`` there.
"""

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem


class FakeStore(AbstractFileSystem):
    """What each request does: waits, perhaps fails or stalls, then finds out or copies."""

    protocol = "fake"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("fake://")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        self._ask(path, "info")
        status = os.stat(path)
        kind = "directory" if os.path.isdir(path) else "file"
        tag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
        return {"name": path, "size": status.st_size, "type": kind, "ETag": tag}

    def get_file(self, rpath: str, lpath: str, callback: Any = None, **_: Any) -> None:
        path = self._strip_protocol(rpath)
        rules = self._ask(path, "get")
        shutil.copyfile(path, lpath)
        if _is_among(path, rules, "cut"):
            os.truncate(lpath, 100)

    def cat_file(self, path: str, start: int, end: int, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        rules = self._ask(path, "read")
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(end - start)
        return content[:100] if _is_among(path, rules, "cut") else content

    def _ask(self, path: str, what: str) -> dict[str, Any]:
        folder = next(p for p in Path(path).parents if (p / "store.json").exists())
        rules: dict[str, Any] = json.loads((folder / "store.json").read_text())
        notes = folder / "requests.txt"
        name = os.path.relpath(path, folder)
        with notes.open("a+") as file:
            file.write(f"{what} {name}\n")
            file.flush()
            file.seek(0)
            count = file.read().split("\n").count(f"{what} {name}")
        time.sleep(rules.get("latency_s", 0))
        if _is_among(path, rules, "stalls") and count <= rules.get("times", 10**9):
            time.sleep(3600)
        if _is_among(path, rules, "fails") and count <= rules.get("times", 10**9):
            raise OSError("503 Slow Down")
        if _is_among(path, rules, "forbidden"):
            raise PermissionError("403 Forbidden")
        if random.Random(f"{what} {name} {count}").random() < rules.get("failures", 0):
            raise OSError("503 Slow Down")
        return rules


def _is_among(path: str, rules: dict[str, Any], key: str) -> bool:
    return os.path.basename(path) in rules.get(key, ())


def make_store(folder: Path, **rules: Any) -> str:
    """Make a folder a store with these rules; returns its URL."""
    fsspec.register_implementation("fake", FakeStore, clobber=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store.json").write_text(json.dumps(rules))
    return f"fake://{folder}"


def requests_of(folder: Path) -> list[str]:
    """What was asked of a store: "info NAME", "get NAME", and "read NAME" for a range."""
    notes = folder / "requests.txt"
    return notes.read_text().splitlines() if notes.exists() else []
