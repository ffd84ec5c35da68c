"""How many videos of a run have no motion vectors, where its masks are made of them."""

from hpm_video.data.loading.loader import ClipBatch
from hpm_video.data.video.motion import NO_VECTORS

_ENOUGH = 64  # videos; a list of which so many lack them has none, or hardly any


class VectorCount:
    """Counts the videos read, and those without vectors, over all processes.

    ``num_videos``: of the list. `is_open`: whether it is not yet known if any video has vectors.
    """

    def __init__(self, num_videos: int) -> None:
        self._enough = min(_ENOUGH, num_videos)
        self._fresh = [0, 0]  # of this process, of which the others do not know
        self._read = self._lacking = 0
        self.is_open = True

    def note(self, batch: ClipBatch, *, repeats: int) -> None:
        """Count the videos of a batch."""
        self._fresh[0] += len(batch.indices) // repeats
        self._fresh[1] += sum(NO_VECTORS in note for _, note in batch.notes)

    def take(self) -> list[int]:
        """What was counted since the last call, to be told to all."""
        fresh, self._fresh = self._fresh, [0, 0]
        return fresh

    def add(self, counts: list[list[int]]) -> str | None:
        """Take in what all processes counted, the same in each; returns what to say, once.

        Raises ValueError: no video has any.
        """
        self._read += sum(read for read, _ in counts)
        self._lacking += sum(lacking for _, lacking in counts)
        if not self.is_open or (self._read == self._lacking and self._read < self._enough):
            return None
        if self._read == self._lacking:
            raise ValueError(
                "masking.source (codec) needs motion vectors in the videos, and none of the first "
                f"{self._read} clips has any: encode the videos as H.264 with hpm-video data "
                "transcode, or set masking.source=motion"
            )
        self.is_open = False
        return self.describe("first ")

    def describe(self, which: str = "") -> str | None:
        """How many lack vectors, in words; None where none does."""
        if not self._lacking:
            return None
        return (
            f"{self._lacking} of the {which}{self._read} clips come from videos without motion "
            "vectors: their masks are random"
        )
