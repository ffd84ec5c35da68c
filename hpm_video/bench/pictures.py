"""What the pictures of a pre-training in progress cost, against its steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure

from hpm_video.bench.compared_steps import Setting, our_step
from hpm_video.bench.flops import default_variant
from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.timing import at_least, median_seconds
from hpm_video.config import DataConfig, ModelConfig, PretrainConfig, PretrainRunConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import build_model, token_grid
from hpm_video.runtime.distributed import pick_device
from hpm_video.train.run.logs import RunLog
from hpm_video.train.run.pictures import NUM_CLIPS, Pictures

_NAMES = {
    "step": "a step",
    "pictures": "all pictures and histograms",
    "figures": "of these, drawing figures and writing them",
}


class _TimedLog(RunLog):
    """The log of a run that notes how long it takes to draw and write pictures."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        super().__init__(folder, is_main=True, start_step=0, total_steps=1)
        self.seconds: list[float] = []
        self._clock = clock

    def pictures(self, figures: Mapping[str, Figure], *, step: int) -> None:
        start = self._clock()
        super().pictures(figures, step=step)
        self.seconds.append(self._clock() - start)


def bench_pictures(
    *,
    size: str,
    batch_size: int,
    num_frames: int,
    crop_size: int,
    rounds: int,
    precision: str,
    device: str,
) -> Report:
    """A step of the default settings, and the drawing of all pictures, TensorBoard's file included.

    On a CPU seconds are those of the process at work, which other processes do not lengthen; where
    a GPU computes, drawing the figures is what remains with the CPU.
    """
    for name, value in [("batch-size", batch_size), ("frames", num_frames), ("rounds", rounds)]:
        at_least(name, value, 1)
    at_least("crop-size", crop_size, 1)
    place = pick_device(device, setting="--device")
    config = PretrainConfig(
        run=PretrainRunConfig(precision=precision),  # type: ignore[arg-type]
        data=DataConfig(
            num_frames=num_frames, crop_size=crop_size, sampling="uniform", num_workers=0
        ),
        model=ModelConfig(size=size),  # type: ignore[arg-type]
    )
    grid = token_grid(config.model, num_frames=num_frames, crop_size=crop_size)
    frames = torch.randint(
        0,
        256,
        (batch_size, num_frames, crop_size, crop_size, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    setting = Setting(config.model, grid, frames, place, precision, compile=False)
    clock = time.process_time if place.type == "cpu" else time.perf_counter
    torch.manual_seed(0)
    student = build_model(config.model, grid, predict_loss=True).to(place)
    teacher = Teacher(student)
    with tempfile.TemporaryDirectory() as name:
        manifest = write_toy_videos(
            Path(name) / "videos", num_videos=NUM_CLIPS, num_frames=16, formats=("mp4",)
        )
        pictures = Pictures(config, read_manifest(manifest), grid)
        log = _TimedLog(Path(name) / "run", clock)
        with log:
            seconds = median_seconds(
                {
                    "step": our_step(setting, default_variant()),
                    "pictures": lambda: pictures.draw(
                        student, teacher, hard_ratio=config.masking.hard_ratio_end, step=1, log=log
                    ),
                },
                rounds=rounds,
                device=place,
                clock=clock,
            )
            seconds["figures"] = statistics.median(log.seconds[-rounds:])
    every = config.run.picture_every
    share = seconds["pictures"] / (every * seconds["step"])
    return Report(
        "pictures",
        machine_facts(place),
        {
            "size": size,
            "batch_size": batch_size,
            "frames": num_frames,
            "crop_size": crop_size,
            "precision": precision,
            "rounds": rounds,
        },
        [
            {"what": name, "median_s": seconds[key], "steps": seconds[key] / seconds["step"]}
            for key, name in _NAMES.items()
        ],
        [
            f"pictures every {every} steps (run.picture_every) take {share:.2%} of the time of "
            "those steps; their clips are read once, which is not counted"
        ],
    )
