"""Motion vectors that FFmpeg's decoders tell of frames: noted as frames come, made speeds at last.

Decoders of the MPEG-1, 2 and 4 families, H.263, WMV and H.264 do; those of HEVC, VP8, VP9 and AV1
do not. FFmpeg says of a vector whether it points to the past or to the future, not to which frame.

One thread decodes: with threads for several frames FFmpeg tells of B-frames before they are done,
other vectors each time.
"""

from collections.abc import Sequence

import av
import numpy as np
from av.video.frame import PictureType

from hpm_video.data.video.motion import FrameVectors, Speeds, edges, speeds_of
from hpm_video.data.video.orientation import UPRIGHT, Orientation
from hpm_video.data.video.readers.demux import orientation_of

OPTION = {"flags2": "+export_mvs"}  # of a decoder
_BETWEEN = (PictureType.B, PictureType.BI)  # refers to the past and the future


class VectorLog:
    """What is known of a file's frames that were decoded together."""

    def __init__(self) -> None:
        self._anchors: list[int] = []  # frames others refer to, rising
        self._vectors: dict[int, bytes] = {}
        self._record: np.dtype[np.void] | None = None  # of a vector
        self._turn: Orientation = UPRIGHT
        self.ends_between = False  # whether the latest frame's second reference is still to come

    def note(self, index: int, frame: av.VideoFrame) -> None:
        """Take note of a frame that came, asked for or not, in the order of frames."""
        self.ends_between = frame.pict_type in _BETWEEN
        if not self.ends_between:
            self._anchors.append(index)

    def keep(self, index: int, frame: av.VideoFrame, size: tuple[int, int]) -> None:
        """Keep the vectors of a frame that was asked for. None are kept of one that has another
        size than the file's first, as it is shown smaller or larger than they say."""
        self._turn = orientation_of(frame)
        data = frame.side_data.get("MOTION_VECTORS")
        if data is not None and (frame.height, frame.width) == size:
            self._record = self._record or data.to_ndarray().dtype
            self._vectors[index] = bytes(data)  # the frame's own memory ends with it

    def speeds(self, indices: Sequence[int], height: int, width: int) -> Speeds:
        """Speeds of frames of such a height and width, as stored, in these frames as shown."""
        rows, columns = edges(height), edges(width)
        cells = np.full((len(indices), len(rows) - 1, len(columns) - 1), np.nan, np.float32)
        anchors = np.array(self._anchors, dtype=np.int64)
        known = {place: index for place, index in enumerate(indices) if index in self._vectors}
        found = []
        for index in known.values():
            past, future = anchors[anchors < index], anchors[anchors > index]
            before = index - int(past[-1]) if len(past) else 1
            after = int(future[0]) - index if len(future) else 1
            found.append(FrameVectors(self._vectors[index], before, after))
        if self._record is not None and found:
            cells[list(known)] = speeds_of(found, self._record, height, width)
        return Speeds(cells, rows, columns).turned(self._turn)
