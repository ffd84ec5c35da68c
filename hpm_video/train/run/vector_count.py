"""Counts videos without motion vectors, in runs whose masks need them."""

import numpy as np

from hpm_video.config import PretrainConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.clip import read_codec_scores
from hpm_video.data.loading.loader import ClipBatch
from hpm_video.data.samples.scores import scored_tubelet
from hpm_video.data.video.frames import VideoReadError
from hpm_video.data.video.motion import NO_VECTORS

_ENOUGH = 64  # videos without vectors after which a list counts as having none


def check_vectors(config: PretrainConfig, manifest: Manifest) -> None:
    """Raise ValueError if masks need motion vectors and no video has any.

    Tries videos from all over the list until one has vectors, usually the first. Unreadable videos
    do not count; the run itself reports them.
    """
    if scored_tubelet(config) is None:
        return
    count, num_lacking = min(_ENOUGH, len(manifest)), 0
    for index in np.linspace(0, len(manifest) - 1, count).round().astype(int).tolist():
        path, table = manifest.path(index), manifest.table(index)
        try:
            _, has_vectors = read_codec_scores(path, config, table=table)
        except VideoReadError:
            continue
        if has_vectors:
            return
        num_lacking += 1
    if num_lacking:
        raise ValueError(
            "masking.source (codec) needs motion vectors, but none of "
            f"{num_lacking} videos from all over data.manifest has any: encode the videos as H.264 "
            "with hpm-video data transcode, or set masking.source=motion"
        )


class VectorCount:
    """Counts clips, and those without vectors, over all ranks."""

    def __init__(self) -> None:
        self._fresh = [0, 0]  # this rank's counts not yet shared
        self._read = self._lacking = 0

    def note(self, batch: ClipBatch, *, repeats: int) -> None:
        """Count the videos of a batch."""
        self._fresh[0] += len(batch.indices) // repeats
        self._fresh[1] += sum(NO_VECTORS in note for _, note in batch.notes)

    def take(self) -> list[int]:
        """This rank's counts since the last call, to be shared with all ranks."""
        fresh, self._fresh = self._fresh, [0, 0]
        return fresh

    def add(self, counts: list[list[int]]) -> None:
        """Add the counts of all ranks."""
        self._read += sum(read for read, _ in counts)
        self._lacking += sum(lacking for _, lacking in counts)

    def describe(self) -> str | None:
        """One log line on clips without vectors; None if all have them."""
        if not self._lacking:
            return None
        return (
            f"{self._lacking} of the {self._read} clips come from videos without motion vectors: "
            "their masks are random"
        )
