"""The videos of an epoch and their order: each once, or according to the weight of its list."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpm_video.data.lists.manifest import Manifest


@dataclass(frozen=True)
class Mixture:
    """Joined lists of videos; an epoch shows the videos of each list ``weight`` times.

    With 100 videos and weight 2.3, an epoch shows each video twice, and 30 of them a third time.
    These rotate, so that all videos appear equally often in the long run.
    """

    sizes: tuple[int, ...]  # videos of each list
    weights: tuple[float, ...] = ()  # of each list; empty: each video once

    @property
    def counts(self) -> tuple[int, ...]:
        """How many videos of each list an epoch shows, at least one."""
        weights = self.weights or (1.0,) * len(self.sizes)
        return tuple(max(1, round(n * w)) for n, w in zip(self.sizes, weights, strict=True))

    @property
    def num_videos(self) -> int:
        """How many videos an epoch shows, repetitions included."""
        return sum(self.counts)

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Return an epoch's videos, shuffled: (num_videos,) int64 indices into the joined lists.

        The k-th repetition of a video has index + k * (number of all videos). Depends on the seed
        and the epoch alone.
        """
        total, start = sum(self.sizes), 0
        shown: list[npt.NDArray[np.int64]] = []
        for number, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            whole, rest = divmod(count, size)
            shown += [start + total * k + np.arange(size) for k in range(whole)]
            shown += [
                start + total * (whole + again) + row
                for again, row in self._turn(seed, epoch, number, size, rest)
            ]
            start += size
        every = np.concatenate(shown)
        return every[_permutation(self.num_videos, seed, epoch)]

    @staticmethod
    def _turn(
        seed: int, epoch: int, number: int, size: int, count: int
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """The next ``count`` videos in a list's rotation, each with its repetition (0 or 1).

        The rotation goes through one permutation of the list after the other; a video may come
        again if the epoch spans two of them.
        """
        if not count:
            return
        cycle, first = divmod(epoch * count, size)
        orders = [_permutation(size, seed, cycle + k, number + 1) for k in range(2)]
        chosen = orders[0][first : first + count]
        yield 0, chosen
        more = orders[1][: count - len(chosen)]
        again = np.isin(more, chosen)
        yield 0, more[~again]
        yield 1, more[again]

    def lines(self, lists: Sequence[str]) -> list[str]:
        """Log lines about weights; empty without weights."""
        if not self.weights:
            return []
        each = zip(lists, self.sizes, self.weights, self.counts, strict=True)
        parts = [f"{name}: {size} x {weight:g} = {count}" for name, size, weight, count in each]
        return [f"{self.num_videos} videos per epoch by data.weights ({'; '.join(parts)})"]


def mixture_of(manifest: Manifest, weights: Sequence[float]) -> Mixture:
    """The mixture of a manifest's lists with `DataConfig.weights`."""
    return Mixture(tuple(len(names) for names in manifest.names), tuple(weights))


def _permutation(size: int, *key: int) -> npt.NDArray[np.int64]:
    import torch  # noqa: PLC0415 - takes seconds, and how many videos there are is asked before

    # SeedSequence mixes its numbers; with seed + epoch, run 0's epoch 1 would equal run 1's epoch 0
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    shuffled: npt.NDArray[np.int64]
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(int(seed))).numpy()
    return shuffled
