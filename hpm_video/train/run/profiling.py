"""A trace of some steps of a run: what host and device did when, and which kernels took longest."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from hpm_video.runtime.files import whole_file, write_atomically

# Of every start: the first steps take memory, choose kernels or compile. One more warms up the
# profiler itself.
_UNLIKE_OTHERS, _WARMUP = 2, 1
_MOST_KERNELS = 30


class StepProfile:
    """Traces ``num_steps`` steps with torch.profiler, from the fourth on; none if that is 0.

    ``steps_done``: steps of the run before the first one here. Into ``folder`` go, once they are
    over, a trace for Perfetto or Chrome (steps_FIRST-LAST.json.gz) and a table of kernels as text;
    ``say`` gets a line that tells where. What is computed does not change, but takes longer.
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
        """Before the first step."""
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
        """After every step."""
        if self._profile is None:
            return
        self._steps_done += 1
        self._profile.step()
        if self._steps_done == self._first + self._num_steps - 1:
            self._profile = None

    def close(self) -> None:
        """At the end of the run; a trace cut short is written as far as it goes."""
        if self._profile is None:
            return
        if self._steps_done < self._first:
            self._say(f"run.profile_steps: nothing traced, as step {self._first} was not reached")
        self._profile.stop()
        self._profile = None

    def _write(self, traced: profile) -> None:
        """Write trace and table; each appears whole or not at all."""
        if self._steps_done < self._first:
            return  # cut short within its first step
        self._folder.mkdir(exist_ok=True)
        name = f"steps_{self._first}-{self._steps_done}"
        trace, table = self._folder / f"{name}.json.gz", self._folder / f"{name}.txt"
        with whole_file(trace, ending=".json.gz") as part:  # whose ending says in which form
            traced.export_chrome_trace(str(part))
        text = traced.key_averages().table(
            sort_by="self_device_time_total" if self._on_gpu else "self_cpu_time_total",
            row_limit=_MOST_KERNELS,
            max_name_column_width=80,
        )
        write_atomically(table, [text])
        self._say(
            f"steps {self._first} to {self._steps_done} traced: {trace} (open it in "
            f"https://ui.perfetto.dev or chrome://tracing); the longest kernels: {table.name}"
        )
