"""Profiles some steps of a run: a trace of host and device, and a table of the slowest kernels."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from hpm_video.runtime.files import whole_file, write_atomically

# Steps skipped after every start: they allocate memory, choose kernels or compile. One more warms
# up the profiler.
_UNLIKE_OTHERS, _WARMUP = 2, 1
_MOST_KERNELS = 30


class StepProfile:
    """Profiles ``num_steps`` steps with torch.profiler, from the fourth of a start on; 0: none.

    ``steps_done``: steps of the run before this start. Writes a trace for Perfetto or Chrome
    (steps_FIRST-LAST.json.gz) and a table of kernels to ``folder``; ``say`` gets a line with the
    path. Results do not change, but steps take longer.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_steps: int,
        steps_done: int,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._num_steps, self._say = folder, num_steps, say
        self._on_gpu = device.type == "cuda"
        self._steps_done = steps_done
        self._first = steps_done + _UNLIKE_OTHERS + _WARMUP + 1
        self._profile: profile | None = None

    def start(self) -> None:
        """Call before the first step."""
        if self._num_steps == 0:
            return
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * self._on_gpu)],
            schedule=schedule(
                wait=_UNLIKE_OTHERS, warmup=_WARMUP, active=self._num_steps, repeat=1
            ),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def end_step(self) -> None:
        """Call after every step."""
        if self._profile is None:
            return
        self._steps_done += 1
        self._profile.step()
        if self._steps_done == self._first + self._num_steps - 1:
            self._profile = None

    def close(self) -> None:
        """Call at the end of the run; writes an incomplete trace as far as it goes."""
        if self._profile is None:
            return
        if self._steps_done < self._first:
            self._say(f"run.profile_steps: no trace, as the run ended before step {self._first}")
        self._profile.stop()
        self._profile = None

    def _write(self, traced: profile) -> None:
        """Write trace and table, each atomically."""
        if self._steps_done < self._first:
            return  # not even one step was traced
        self._folder.mkdir(exist_ok=True)
        name = f"steps_{self._first}-{self._steps_done}"
        trace, table = self._folder / f"{name}.json.gz", self._folder / f"{name}.txt"
        with whole_file(trace, ending=".json.gz") as part:  # the profiler compresses by ending
            traced.export_chrome_trace(str(part))
        text = traced.key_averages().table(
            sort_by="self_device_time_total" if self._on_gpu else "self_cpu_time_total",
            row_limit=_MOST_KERNELS,
            max_name_column_width=80,
        )
        write_atomically(table, [text])
        self._say(
            f"steps {self._first} to {self._steps_done} traced: {trace} (open it in "
            f"https://ui.perfetto.dev or chrome://tracing); slowest kernels: {table.name}"
        )
