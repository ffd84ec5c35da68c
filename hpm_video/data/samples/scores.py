"""A score for each block of a clip: how fast what it shows moves, by the file's motion vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpm_video.config import DataConfig
from hpm_video.data.video.crops import Box
from hpm_video.data.video.motion import Speeds


@dataclass(frozen=True)
class Blocks:
    """Parts of a clip that get a score each, N in all, in raster order (time, row, column)."""

    frames: int  # of a part
    side: int  # of a part in pixels

    def count(self, data: DataConfig) -> int:
        """N, of a clip."""
        return data.num_frames // self.frames * (data.crop_size // self.side) ** 2

    def scores(
        self, speeds: Speeds, box: Box, crop_size: int, *, size: Sequence[int], flip: bool
    ) -> npt.NDArray[np.float32]:
        """Scores (N,) of a crop: mean speeds, in pixels of the file a frame. All 0 where no frame
        has vectors.

        ``size``: height and width of the frames that the box is cut out of.
        """
        side = crop_size // self.side
        found = speeds.in_blocks(box, height=size[0], width=size[1], blocks=side, flip=flip)
        return found.reshape(-1, self.frames, side * side).mean(axis=1).reshape(-1)
