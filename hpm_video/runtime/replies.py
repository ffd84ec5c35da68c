"""What workers answer, as bytes that can be read whoever wrote them: a decoder that is taken over
by a file may send anything. JSON, with the bytes of arrays behind it; nothing in it runs code."""

import builtins
import json
import math
import struct
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

Kind = TypeVar("Kind", bound=type)

_LENGTH = struct.Struct("<Q")  # of the JSON
_NUMBERS = "biuf"  # kinds of arrays: of Python's objects, bytes would be addresses
_records: dict[str, type] = {}


def answer(kind: Kind) -> Kind:
    """A decorator: workers may answer with this dataclass, NamedTuple or error, which only holds
    values and does nothing when it is made."""
    _records[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return kind


def write_reply(value: Any) -> bytes:
    """None, numbers, text, bytes, arrays of numbers, classes marked by `answer`, errors of Python's
    own, and lists, tuples and dicts of these; numbers of NumPy become Python's. TypeError for other
    types, and for classes derived from these."""
    parts: list[bytes | memoryview] = []
    text = json.dumps(_plain(value, parts)).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def read_reply(data: bytes) -> Any:
    """What `write_reply` was given. ValueError for other bytes."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        value, rest = _value(json.loads(data[_LENGTH.size : end]), memoryview(data)[end:])
    except Exception as error:  # what is made of values not meant for it may raise anything
        raise ValueError(f"no reply: {error}") from error
    if len(rest):
        raise ValueError(f"no reply: {len(rest)} bytes too many")
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
    """What a sequence, a record or an error is made of."""
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return list(value.__reduce__()[1] if isinstance(value, Exception) else value)


def _error(name: str) -> type[Exception] | None:
    kind = getattr(builtins, name.removeprefix("builtins."), None)
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else None


def _value(plain: Any, rest: memoryview) -> tuple[Any, memoryview]:
    """A value, and the bytes of those that come after it."""
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
    """A size that may be one, and is not more than there are bytes."""
    if type(size) is not int or size < 0 or (rest is not None and size > len(rest)):
        raise ValueError(f"size {size}")
    return size
