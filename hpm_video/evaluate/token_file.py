"""Tokens of a list of videos on disk, for when memory is too small.

A later probe of the same encoder, clips and list reuses them instead of encoding.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.evaluate.feature_file import fingerprint, read_features, write_features
from hpm_video.runtime.files import own_folder, whole_file

_DTYPE = torch.float16


@dataclass(frozen=True)
class TokenFile:
    """FOLDER/KEY.tokens with float16 tokens, and FOLDER/KEY.npz, written last, with the rest."""

    path: Path

    @classmethod
    def of(cls, folder: str, described: Any) -> "TokenFile":
        """The file for ``described`` (JSON values), whose hash is the key."""
        place = Path(folder)
        own_folder(place)
        return cls(place / f"{fingerprint(described)}.tokens")

    @property
    def _index(self) -> Path:
        return self.path.with_suffix(".npz")

    @property
    def is_there(self) -> bool:
        return self.path.is_file() and self._index.is_file()

    @contextmanager
    def new(self, *shape: int) -> Iterator[Tensor]:
        """A tensor to fill, which becomes the file. Raises ValueError if the disk is too small,
        because writing through the mapping would kill the process."""
        with whole_file(self.path) as temporary:
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * _DTYPE.itemsize)
            yield _mapped(temporary, shape)

    def finish(self, shape: tuple[int, ...], **arrays: npt.NDArray[Any]) -> None:
        """Store the arrays that go with the tokens; ``shape``: the part of the tokens in use."""
        write_features(self._index, arrays, {"shape": list(shape)})

    def read(self) -> tuple[Tensor, dict[str, npt.NDArray[Any]]]:
        """The tokens, memory-mapped, and the arrays that go with them."""
        arrays, metadata = read_features(self._index)
        shape = metadata["shape"]
        needed = math.prod(shape) * _DTYPE.itemsize
        if self.path.stat().st_size < needed:
            raise ValueError(f"{self.path} must have {needed} bytes, but is shorter; remove it")
        return _mapped(self.path, shape), arrays


def _mapped(path: Path, shape: Any) -> Tensor:
    size = math.prod(shape)
    return torch.from_file(str(path), shared=True, size=size, dtype=_DTYPE).reshape(*shape)


def as_text(bad: list[tuple[int, str]]) -> dict[str, npt.NDArray[Any]]:
    """Indices and reasons of unreadable videos, as arrays."""
    numbers = np.array([number for number, _ in bad], dtype=np.int64)
    return {"bad": numbers, "reasons": np.array([reason for _, reason in bad], dtype=np.str_)}
