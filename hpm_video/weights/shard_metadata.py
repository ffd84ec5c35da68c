"""Reads the ``.metadata`` of a sharded checkpoint, a pickle, without importing or calling anything.

Python's unpickler sets attributes on whatever the allowed names refer to, so an allow list is not
safe. Here names and calls are only recorded. `read_metadata` then builds the few objects that
torch.distributed.checkpoint needs from these records.
"""

import io
import math
import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from hpm_video.runtime.reading import open_regular
from hpm_video.weights.torch_files import ClaimError

METADATA = ".metadata"

_MOST_BYTES = 1 << 28
_MODULE = "torch.distributed.checkpoint.metadata"
_DTYPES = {
    f"torch {str(kind).removeprefix('torch.')}": kind
    for kind in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.bool),
    )
}


@dataclass(frozen=True)
class _Name:
    """A class or function named in a pickle: module and name."""

    text: str


@dataclass(eq=False)
class _Made:
    """A recorded call: the callable's name, its arguments, and the state set on the result."""

    maker: str
    arguments: tuple[Any, ...]
    state: dict[str, Any] | tuple[Any, ...] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.state.get(name) if isinstance(self.state, dict) else None


def read_metadata(folder: Path) -> Metadata:
    """The tensors of a sharded checkpoint and the places of their parts.

    Raises OSError, or ValueError if the metadata is damaged, describes anything but tensors, names
    files in other folders, or claims more bytes than its files have.
    """
    with open_regular(folder / METADATA) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ClaimError(f"{METADATA} must have at most {_MOST_BYTES} bytes")
    found = _of(_parsed(data), f"{_MODULE} Metadata")
    entries, places = found["state_dict_metadata"], found["storage_data"]
    if not isinstance(entries, dict) or not isinstance(places, dict):
        raise ValueError(f"{METADATA} holds no tensors")
    tensors = {_text(name): _tensor(entry) for name, entry in entries.items()}
    stored = {_index(index): _place(place) for index, place in places.items()}
    files = {place.relative_path for place in stored.values()}
    held = sum((folder / name).stat().st_size for name in files)
    sizes = (math.prod(entry.size) * entry.properties.dtype.itemsize for entry in tensors.values())
    if (claimed := sum(sizes)) > held:
        raise ClaimError(f"{METADATA} claims {claimed} bytes of tensors, but its files have {held}")
    return Metadata(dict(tensors), storage_data=stored)


def _parsed(data: bytes) -> Any:
    """The value of a pickle, with `_Name` and `_Made` in place of classes and calls."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
        if opcode.name == "STOP":
            return machine.top()
        machine.do(opcode.name, argument)
    raise ValueError(f"{METADATA} is truncated")


class _Machine:
    """The stack, marks and memo of an interpreter of pickle instructions."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def top(self) -> Any:
        if not self._stack:
            raise ValueError(f"{METADATA} is damaged")
        return self._stack[-1]

    def do(self, name: str, argument: Any) -> None:
        """Execute one instruction. Raises ValueError for unsupported ones."""
        push = self._stack.append
        if name in _VALUES:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if argument is None else argument] = self.top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError(f"{METADATA} is damaged")
            push(self._memo[argument])
        elif name == "GLOBAL":
            push(_Name(argument))
        elif name == "STACK_GLOBAL":
            module, of_module = self._take(2)
            push(_Name(f"{_text(module)} {_text(of_module)}"))
        elif name in _TUPLES:
            push(tuple(self._take(_TUPLES[name])))
        elif name == "TUPLE":
            push(tuple(self._take_marked()))
        else:
            self._build(name)

    def _build(self, name: str) -> None:
        """Execute an instruction that builds or extends a value on the stack."""
        if name in ("REDUCE", "NEWOBJ"):
            maker, arguments = self._take(2)
            if not isinstance(maker, _Name) or not isinstance(arguments, tuple):
                raise ValueError(f"{METADATA} calls something that is not a name")
            self._stack.append(_Made(maker.text, arguments))
        elif name == "BUILD":
            (state,) = self._take(1)
            if not isinstance(self.top(), _Made) or not isinstance(state, dict | tuple):
                raise ValueError(f"{METADATA} changes an object that it did not create")
            self.top().state = state
        elif name in ("SETITEM", "SETITEMS"):
            items = self._take(2) if name == "SETITEM" else self._take_marked()
            if not isinstance(self.top(), dict) or len(items) % 2:
                raise ValueError(f"{METADATA} is damaged")
            # Deeply nested keys would overflow the C stack when hashed
            if not all(isinstance(key, str | _Made) for key in items[::2]):
                raise ValueError(f"{METADATA} has a key that is neither a name nor an index")
            self.top().update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = self._take(1) if name == "APPEND" else self._take_marked()
            if not isinstance(self.top(), list):
                raise ValueError(f"{METADATA} is damaged")
            self.top().extend(items)
        else:
            raise ValueError(f"{METADATA} has an unexpected instruction: {name}")

    def _take(self, count: int) -> list[Any]:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise ValueError(f"{METADATA} is damaged")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _take_marked(self) -> list[Any]:
        if not self._marks:
            raise ValueError(f"{METADATA} is damaged")
        return self._take(len(self._stack) - self._marks.pop())


_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _of(value: Any, maker: str) -> _Made:
    if not isinstance(value, _Made) or value.maker != maker:
        found = value.maker if isinstance(value, _Made) else type(value).__name__
        raise ValueError(f"{METADATA} has {found} instead of {maker}".replace(" torch.", " "))
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{METADATA} has a {type(value).__name__} instead of a name")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{METADATA} has an invalid size or index")
    return value


def _shape(value: Any) -> torch.Size:
    arguments = _of(value, "torch Size").arguments
    if len(arguments) != 1 or not isinstance(arguments[0], tuple):
        raise ValueError(f"{METADATA} has an invalid shape")
    return torch.Size([_count(entry) for entry in arguments[0]])


def _tensor(value: Any) -> TensorStorageMetadata:
    entry = _of(value, f"{_MODULE} TensorStorageMetadata")
    state, chunks = _of(entry["properties"], f"{_MODULE} TensorProperties").state, entry["chunks"]
    kind = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(kind, _Name) or kind.text not in _DTYPES or not isinstance(chunks, list):
        raise ValueError(f"{METADATA} has a tensor of an unknown type")
    return TensorStorageMetadata(
        TensorProperties(dtype=_DTYPES[kind.text]), _shape(entry["size"]), [*map(_chunk, chunks)]
    )


def _chunk(value: Any) -> ChunkStorageMetadata:
    chunk = _of(value, f"{_MODULE} ChunkStorageMetadata")
    return ChunkStorageMetadata(_shape(chunk["offsets"]), _shape(chunk["sizes"]))


def _index(value: Any) -> MetadataIndex:
    index = _of(value, f"{_MODULE} MetadataIndex")
    number = index["index"]
    return MetadataIndex(
        _text(index["fqn"]), _shape(index["offset"]), None if number is None else _count(number)
    )


def _place(value: Any) -> _StorageInfo:
    place = _of(value, "torch.distributed.checkpoint.filesystem _StorageInfo")
    name = _text(place["relative_path"])
    if Path(name).name != name:
        raise ValueError(f"{METADATA} points to another folder: {name}")
    if place["transform_descriptors"]:
        raise ValueError(f"{METADATA} stores {name} compressed or encoded, which is not supported")
    return _StorageInfo(name, _count(place["offset"]), _count(place["length"]))
