"""The period since a run's last record: the numbers of its steps, their videos, and its pace."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hpm_video.runtime.distributed import World, mean_over_processes


class Period:
    """What a run keeps of the steps since its last record.

    rows: one (M + 1,) a step, on the device: its M metrics, then 1. where it was skipped, else 0.
    skipped: the same of those steps that the host has looked at.
    videos: which each step was of, on this process; not known of steps before a resume.
    first_step: steps done before the first of them.
    """

    def __init__(self, steps_done: int, rows: Sequence[Tensor] = ()) -> None:
        self.rows = list(rows)
        self.skipped = [bool(row[-1]) for row in rows]
        self.videos: list[list[int]] = [[] for _ in rows]
        self.first_step = steps_done - len(rows)
        self._step_videos: list[int] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Rates are from here on."""
        self._started_s = time.monotonic()
        self._waited_s, self._clips = 0.0, 0

    def note_batch(self, videos: list[int], *, num_clips: int, waited_s: float) -> None:
        """A batch of this process's videos has come, of ``num_clips`` over all processes."""
        self._waited_s += waited_s
        self._clips += num_clips
        self._step_videos += videos

    def end_step(self, row: Tensor) -> None:
        """Count the step whose batches were noted."""
        self.rows.append(row)
        self.videos.append(self._step_videos)
        self._step_videos = []

    def means(
        self, metrics: tuple[str, ...], figures: Mapping[str, Tensor | None], world: World
    ) -> dict[str, float | None]:
        """Means over processes of the metrics, over the steps that were not skipped; the highest
        ``grad_norm``; figures of the last step. None where that is not a number, and figures where
        the last step was skipped. Waits for the device and for the other processes."""
        steps = zip(self.rows, self.skipped, strict=True)
        rows = [row for row, skipped in steps if not skipped]
        table = torch.stack(rows or [torch.full_like(self.rows[0], math.nan)])[:, :-1]
        highest_norm = table[:, metrics.index("grad_norm")].max()
        known = {name: value for name, value in figures.items() if value is not None}
        numbers = torch.stack([*table.mean(dim=0), highest_norm, *known.values()])
        means = {
            name: number if math.isfinite(number) else None
            for name, number in zip(
                [*metrics, "grad_norm_max", *known],
                mean_over_processes(numbers, world).tolist(),
                strict=True,
            )
        }
        if self.skipped[-1]:
            known = {}
        return {**means, **{name: means[name] if name in known else None for name in figures}}

    def rates(self) -> dict[str, float]:
        """Clips per second and the share of the time that went into waiting for them."""
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        return {
            "clips_per_second": round(self._clips / elapsed_s, 2),
            "data_wait_fraction": round(self._waited_s / elapsed_s, 4),
        }


def own_rows(window: list[list[Tensor]], world: World) -> list[Tensor]:
    """A period's rows of this process, from a checkpoint's of all; their means if there were more
    or fewer processes. (P, steps) x (M + 1,) -> steps x (M + 1,), on this process's device."""
    if len(window) == world.size:
        rows = window[world.rank]
    else:
        rows = [torch.stack(rows).mean(dim=0) for rows in zip(*window, strict=True)]
    return [row.to(world.device) for row in rows]
