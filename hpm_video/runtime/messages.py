"""Safe serialisation of values for other ranks: JSON followed by tensors and arrays. Reading cannot
run code."""

import json
import struct
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_LENGTH = struct.Struct("<Q")  # length of the JSON


def write_message(value: Any) -> bytes:
    """Serialise None, booleans, numbers, text, tensors, numeric arrays, and lists, tuples and dicts
    of these. Raises TypeError for other types and for subclasses."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(value, tensors)).encode()
    return _LENGTH.pack(len(text)) + text + save(tensors)


def read_message(data: bytes) -> Any:
    """The value given to `write_message`, with tensors on the CPU. Raises ValueError for other
    bytes."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        return _value(json.loads(data[_LENGTH.size : end]), load(data[end:]))
    except (struct.error, SafetensorError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"invalid message: {error}") from error


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return {kind.__name__: [_plain(entry, tensors) for entry in value]}
    if kind is dict:
        return {"dict": [[_plain(k, tensors), _plain(v, tensors)] for k, v in value.items()]}
    name = str(len(tensors))
    if isinstance(value, Tensor):  # a copy, as safetensors refuses tensors that share memory
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.array(value, order="C"))
        return {"array": name}
    raise TypeError(f"a {kind.__name__} cannot be sent to other processes")


def _value(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind in ("tensor", "array"):
        tensor = tensors[content]
        return tensor if kind == "tensor" else tensor.numpy()
    entries = [_value(entry, tensors) for entry in content] if kind != "dict" else content
    if kind == "list":
        return entries
    if kind == "tuple":
        return tuple(entries)
    if kind == "dict":
        return {_value(k, tensors): _value(v, tensors) for k, v in entries}
    raise ValueError(f"invalid message: {kind}")
