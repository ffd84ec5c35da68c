"""Motion vectors exported by FFmpeg's decoders: recorded per frame, then converted to speeds.

Decoders of the MPEG-1, 2 and 4 families, H.263, WMV and H.264 export them; those of HEVC, VP8, VP9
and AV1 do not. A vector says whether it points to the past or the future, not to which frame.

Decode with one thread: with frame threads, FFmpeg exports the vectors of B-frames before they are
complete, with varying results.
"""

from collections.abc import Sequence

import av
import numpy as np
from av.video.frame import PictureType

from hpm_video.data.video.motion import FrameVectors, Speeds, edges, speeds_of
from hpm_video.data.video.orientation import UPRIGHT, Orientation
from hpm_video.data.video.readers.demux import orientation_of

OPTION = {"flags2": "+export_mvs"}  # decoder option
_BETWEEN = (PictureType.B, PictureType.BI)  # these refer to the past and the future


class VectorLog:
    """The vectors and picture types of frames that were decoded together."""

    def __init__(self) -> None:
        self._anchors: list[int] = []  # reference frames, ascending
        self._vectors: dict[int, bytes] = {}
        self._record: np.dtype[np.void] | None = None  # record type of a vector
        self._turn: Orientation = UPRIGHT
        self.ends_between = False  # whether the last frame's second reference is still to come

    def note(self, index: int, frame: av.VideoFrame) -> None:
        """Record a decoded frame, requested or not; call in frame order."""
        self.ends_between = frame.pict_type in _BETWEEN
        if not self.ends_between:
            self._anchors.append(index)

    def keep(self, index: int, frame: av.VideoFrame, size: tuple[int, int]) -> None:
        """Keep the vectors of a requested frame, unless its size differs from the first frame's.

        Such a frame is scaled, so its vectors do not match.
        """
        self._turn = orientation_of(frame)
        data = frame.side_data.get("MOTION_VECTORS")
        if data is not None and (frame.height, frame.width) == size:
            self._record = self._record or data.to_ndarray().dtype
            self._vectors[index] = bytes(data)  # a copy: the data are freed with the frame

    def speeds(self, indices: Sequence[int], height: int, width: int) -> Speeds:
        """Speeds of these frames, of this height and width as stored, oriented as displayed."""
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
