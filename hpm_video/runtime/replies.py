"""Safe serialisation of workers' replies, as a decoder taken over by a malicious file may send
anything. JSON followed by the bytes of arrays; reading cannot run code."""

import builtins
import json
import math
import struct
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

Kind = TypeVar("Kind", bound=type)

_LENGTH = struct.Struct("<Q")  # length of the JSON
_NUMBERS = "biuf"  # kinds of arrays; the bytes of object arrays would be addresses
_records: dict[str, type] = {}


def answer(kind: Kind) -> Kind:
    """A decorator for dataclasses, NamedTuples and errors that workers may send. They must only
    hold values and have no effects when created."""
    _records[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return kind


def write_reply(value: Any) -> bytes:
    """Serialise None, numbers, text, bytes, numeric arrays, classes marked by `answer`, built-in
    errors, and lists, tuples and dicts of these. NumPy scalars become Python numbers. Raises
    TypeError for other types and for subclasses."""
    parts: list[bytes | memoryview] = []
    text = json.dumps(_plain(value, parts)).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def read_reply(data: bytes) -> Any:
    """The value given to `write_reply`. Raises ValueError for other bytes."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        value, rest = _value(json.loads(data[_LENGTH.size : end]), memoryview(data)[end:])
    except Exception as error:  # constructors may raise anything for unexpected values
        raise ValueError(f"invalid reply: {error}") from error
    if len(rest):
        raise ValueError(f"invalid reply: {len(rest)} bytes too many")
    return value


def _plain(value: Any, parts: list[bytes | memoryview]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if kind is dict:
        return ["dict", [[_plain(k, parts), _plain(v, parts)] for k, v in value.items()]]
    if kind is bytes:
        parts.append(value)
        return ["bytes", len(value)]
    if kind is np.ndarray and value.dtype.kind in _NUMBERS:
        parts.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return ["array", value.dtype.str, *value.shape]
    name = kind.__name__ if kind in (list, tuple) else f"{kind.__module__}.{kind.__qualname__}"
    if kind in (list, tuple, _records.get(name), _error(name)):
        return [name, [_plain(entry, parts) for entry in _contents(value)]]
    raise TypeError(f"a {kind.__name__} cannot be sent by a worker")


def _contents(value: Any) -> list[Any]:
    """The contents of a sequence, a record or an error."""
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return list(value.__reduce__()[1] if isinstance(value, Exception) else value)


def _error(name: str) -> type[Exception] | None:
    kind = getattr(builtins, name.removeprefix("builtins."), None)
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else None


def _value(plain: Any, rest: memoryview) -> tuple[Any, memoryview]:
    """A value, and the bytes after it."""
    if not isinstance(plain, list):
        if isinstance(plain, dict):
            raise TypeError("an object")
        return plain, rest
    kind, *content = plain
    if kind == "bytes":
        (size,) = content
        return rest[:size].tobytes(), rest[_checked(size, rest) :]
    if kind == "array":
        dtype, shape = np.dtype(str(content[0])), content[1:]
        if dtype.kind not in _NUMBERS:
            raise TypeError(f"an array of {dtype}")
        size = _checked(math.prod([dtype.itemsize, *map(_checked, shape)]), rest)
        return np.ndarray(shape, dtype, rest[:size]).copy(), rest[size:]
    values: list[Any] = []
    for entry in content[0]:
        pair: list[Any] = []
        for part in entry if kind == "dict" else (entry,):
            found, rest = _value(part, rest)
            pair.append(found)
        values.append(pair if kind == "dict" else pair[0])
    if kind in ("list", "tuple"):
        return values if kind == "list" else tuple(values), rest
    if kind == "dict":
        return dict(values), rest
    make = _records.get(kind) or _error(kind)
    if make is None:
        raise TypeError(f"a {kind}")
    return make(*values), rest


def _checked(size: Any, rest: memoryview | None = None) -> int:
    """A valid size that does not exceed the remaining bytes."""
    if type(size) is not int or size < 0 or (rest is not None and size > len(rest)):
        raise ValueError(f"size {size}")
    return size
