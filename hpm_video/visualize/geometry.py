"""Position of a square clip in the picture of its video."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.crops import Box
from hpm_video.runtime.replies import answer


@answer
class Place(NamedTuple):
    """A rectangle in shares of a picture's height and width, valid at any scale."""

    top: float
    left: float
    height: float
    width: float

    @classmethod
    def of_box(cls, box: Box, height: int, width: int) -> Place:
        """From a box in pixels of a picture (height, width)."""
        return cls(box.top / height, box.left / width, box.height / height, box.width / width)

    def pixels(self, height: int, width: int) -> Box:
        """The nearest box in whole pixels of a picture (height, width)."""
        top, left = round(self.top * height), round(self.left * width)
        bottom = round((self.top + self.height) * height)
        right = round((self.left + self.width) * width)
        return Box(top, left, bottom - top, right - left)


def token_pixels(
    place: Place, height: int, width: int, rows: int, columns: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token row and token column that the centre of each pixel lies in.

    For a picture (height, width): arrays (height,) and (width,), -1 outside the clip's place.
    """

    def tokens(size: int, start: float, length: float, count: int) -> npt.NDArray[np.int64]:
        position = ((np.arange(size) + 0.5) / size - start) / length  # 0 to 1 within the place
        inside = (position >= 0) & (position < 1)
        return np.where(inside, np.floor(position * count), -1).astype(np.int64)

    return (
        tokens(height, place.top, place.height, rows),
        tokens(width, place.left, place.width, columns),
    )


def owned(places: list[Place]) -> list[Place]:
    """The part of each place to show: overlapping places meet half-way.

    Places are spread along one axis, in order.
    """
    axis = 0 if len(places) > 1 and places[0].top != places[1].top else 1
    start_name, size_name = (("top", "height"), ("left", "width"))[axis]
    starts, ends = [p[axis] for p in places], [p[axis] + p[axis + 2] for p in places]
    middles = [(end + start) / 2 for end, start in zip(ends[:-1], starts[1:], strict=True)]
    starts[1:] = map(max, starts[1:], middles)
    ends[:-1] = map(min, ends[:-1], middles)
    return [
        place._replace(**{start_name: start, size_name: end - start})
        for place, start, end in zip(places, starts, ends, strict=True)
    ]
