"""What one process sends another arrives as it was, and can be nothing but values."""

import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from hpm_video.runtime.messages import read_message, write_message


class _Pair(NamedTuple):
    first: int
    second: int


_ROWS = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**70),
        0.1,
        math.inf,
        "a\udcff\0\n",  # names of files are any bytes
        [],
        (),
        {},
        [1, (2.0, [None])],
        {"tensor": "0", 7: {"list": [1]}},
    ],
)
def test_plain_values_keep_value_and_type(value: object) -> None:
    found = read_message(write_message(value))
    assert repr(found) == repr(value)


def test_what_is_no_number_arrives() -> None:
    assert math.isnan(read_message(write_message(math.nan)))


@pytest.mark.parametrize(
    "tensor",
    [
        _ROWS,
        _ROWS.t(),
        _ROWS[1],
        torch.tensor(3.0, dtype=torch.bfloat16),
        torch.empty(0, 4, dtype=torch.float16),
        torch.tensor([True, False]),
        torch.nn.Parameter(torch.tensor([math.nan, -0.0])),
    ],
)
def test_tensors_keep_bits_shape_and_type(tensor: torch.Tensor) -> None:
    (found,) = read_message(write_message([tensor]))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    torch.testing.assert_close(found, tensor.detach(), rtol=0, atol=0, equal_nan=True)
    found.zero_()  # it is the receiver's own


@pytest.mark.parametrize(
    "array",
    [np.array(5), np.arange(6).reshape(2, 3)[:, ::-1], np.zeros((2, 0), np.float32), np.uint8([7])],
)
def test_arrays_keep_values_shape_and_type(array: np.ndarray) -> None:
    found = read_message(write_message({"x": (array, array)}))["x"]
    for each in found:
        assert (each.dtype, each.shape, each.tolist()) == (array.dtype, array.shape, array.tolist())
        each.fill(0)


@pytest.mark.parametrize("value", [_Pair(1, 2), np.float64(1), Path("x"), b"x", {1}, np.array("x")])
def test_what_would_arrive_as_something_else_is_not_sent(value: object) -> None:
    with pytest.raises(TypeError):
        write_message([value])


class _Code:
    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.file, "w")


def test_other_bytes_are_refused_and_run_nothing(tmp_path: Path) -> None:
    file = tmp_path / "code has run"
    whole = write_message({"x": _ROWS})
    length = (2).to_bytes(8, "little")
    for data in (
        pickle.dumps(_Code(file)),
        b"",
        whole[:-1],
        whole[:7],
        b"\xff" * 8 + whole[8:],
        length + b"{}" + whole[-100:],
        write_message(None).replace(b"null", b'{"tuple": 1}'),
        *(
            len(text).to_bytes(8, "little") + text + write_message(0)[9:]
            for text in (
                b'{"tensor": "0"}',
                b'{"code": []}',
                b'{"list": [], "tuple": []}',
                b'{"dict": [[{"list": []}, 1]]}',
                b'{"dict": [1]}',
                b'{"list":[' * 10**5,
            )
        ),
    ):
        with pytest.raises(ValueError):
            read_message(data)
    assert not file.exists()
