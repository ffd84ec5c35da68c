"""What a worker answers arrives as it was, and can be nothing but values, whoever wrote it."""

import json
import os
import pickle
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from hpm_video.runtime.replies import answer, read_reply, write_reply
from hpm_video.runtime.workers import KillableWorker, WorkerDied, run_killable


@answer
class Pair(NamedTuple):
    first: object
    second: object


@answer
@dataclass(frozen=True)
class Record:
    name: str
    data: bytes | None = None


class Unmarked(NamedTuple):
    first: int


class Opens:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def taken_over(item: tuple[str, Path], *files: int) -> str:
    """Answers by itself, as code that a file brings into a worker can do."""
    kind, folder = item
    answers = {
        "pickle": pickle.dumps(Opens(folder)),
        "pickle in a reply": pickle.dumps((True, Opens(folder))),
        "unknown class": _message(["os.mkdir", [str(folder)]]),
        "no reply": _message("text"),
    }
    if kind in answers:
        sys._getframe(1).f_locals["connection"].send_bytes(answers[kind])
    return kind


def _message(plain: object, rest: bytes = b"") -> bytes:
    text = json.dumps(plain).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize("kind", ["pickle", "pickle in a reply", "unknown class", "no reply"])
def test_what_a_worker_answers_runs_nothing(kind: str, tmp_path: Path) -> None:
    """Else a file that takes a decoder over would be out of the worker's limits at once."""
    worker, made = KillableWorker(taken_over), tmp_path / "made"
    try:
        worker.submit((kind, made))
        worker.submit(("harmless", made))
        with pytest.raises(WorkerDied):
            worker.result()
        assert worker.result() == "harmless"  # of a new process
    finally:
        worker.kill()
    assert not made.exists()


def test_such_an_answer_is_the_outcome_of_its_item(tmp_path: Path) -> None:
    items = [("pickle", tmp_path / "made"), ("a", tmp_path), ("b", tmp_path)]
    outcomes = dict(run_killable(taken_over, items, num_workers=2, timeout_s=60))
    assert isinstance(outcomes.pop(items[0]), WorkerDied)
    assert list(map(str, sorted(outcomes.values(), key=str))) == ["a", "b"]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "value",
    [
        None, True, -(2**70), 0.1, "a\udcff\0\n", b"", b"\0\xff", [], (), {}, [1, (2.0, [None])],
        {"list": "dict", 7: {"array": [b"a"]}}, Pair(1, (2, "a")), Record("a"), Record("b", b"c"),
    ],
)  # fmt: skip
def test_values_keep_value_and_type(value: object) -> None:
    found = read_reply(write_reply((value, b"behind it")))
    assert found == (value, b"behind it") and type(found[0]) is type(value)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", ["u1", "?", "<f4", ">i8"])
def test_arrays_are_ones_own(shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape).T
    found, text = read_reply(write_reply((array, "a")))
    assert found.dtype == array.dtype and found.shape == array.shape and text == "a"
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable


@pytest.mark.parametrize("value", [object(), {1, 2}, Unmarked(1), np.array([None]), type])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be sent by a worker"):
        write_reply([value])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        pickle.dumps(1),
        _message({}),
        _message([]),
        _message(["bytes", -1], b"abc"),
        _message(["bytes", 4], b"abc"),
        _message(["bytes", True], b"a"),
        _message(["array", "|u1", 2**62, 2**62], b"abc"),
        _message(["array", "|u1", -1, -3], b"abc"),
        _message(["array", "|O", 1], b"12345678"),
        _message(["array", "|V8", 1], b"12345678"),
        _message(["array", "u1,O", 1], b"123456789"),
        _message(["builtins.eval", ["1"]]),
        _message(["builtins.SystemExit", [1]]),
        _message(["os.system", ["true"]]),
        _message([["os"], ["true"]]),
        _message([f"{__name__}.Pair", [1, 2, 3]]),
        _message([f"{__name__}.Unmarked", [1]]),
        _message(1, b"behind"),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 5000) + b"1" * 5000,
    ],
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="invalid reply"):
        read_reply(data)
