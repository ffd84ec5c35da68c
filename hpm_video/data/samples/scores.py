"""Token scores of a clip: how fast its content moves, from the file's motion vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpm_video.config import DataConfig, PretrainConfig
from hpm_video.data.video.crops import Box
from hpm_video.data.video.motion import Speeds


@dataclass(frozen=True)
class Tubelet:
    """The part of a clip behind one token; a clip has N of them, in raster order."""

    frames: int
    side: int  # in pixels

    def count(self, data: DataConfig) -> int:
        """N, the number of tokens of a clip."""
        return data.num_frames // self.frames * (data.crop_size // self.side) ** 2

    def scores(
        self, speeds: Speeds, box: Box, crop_size: int, *, size: Sequence[int], flip: bool
    ) -> npt.NDArray[np.float32]:
        """Scores (N,) of a crop: mean speeds, in pixels of the file per frame.

        All are 0 if no frame has vectors. ``size``: height and width of the frames from which the
        box is cut.
        """
        tokens = crop_size // self.side
        height, width = size
        found = speeds.in_blocks(box, height=height, width=width, blocks=tokens, flip=flip)
        return found.reshape(-1, self.frames, tokens * tokens).mean(axis=1).reshape(-1)


def scored_tubelet(config: PretrainConfig) -> Tubelet | None:
    """The tubelet of a run's tokens if clips need scores (masking.source=codec), else None."""
    if not (config.masking.mines and config.masking.source == "codec"):
        return None
    return Tubelet(config.model.tubelet_size, config.model.patch_size)
