"""Does the loader keep up? A run on real clips, and one whose reader costs nothing."""

import os
from dataclasses import replace
from unittest.mock import patch

from torch import Tensor

from gpu_stages.stage import Stage
from hpm_video.bench.train import bench_train
from hpm_video.data.loading import loader
from hpm_video.data.samples.clips import ClipReader, Request


class FreeReader(ClipReader):
    """A reader that decodes nothing: what is left is what the loader itself costs."""

    def read(self, request: Request, out: Tensor) -> str | None:
        return None


def run(stage: Stage) -> None:
    config = stage.config(stage.either(64, 4))
    workers = stage.either(max(2, len(os.sched_getaffinity(0)) - 2), 2)
    data = replace(config.data, manifest=[stage.manifest()], num_workers=workers, decoder="pyav")
    config = replace(config, data=data, run=replace(config.run, device=stage.kind))
    steps = stage.either(30, 6)
    for reader, form in {"clips": ClipReader, "no decoding": FreeReader}.items():
        if not stage.has_time(reader, seconds=stage.either(10, 0)):
            continue
        with stage.measuring(reader), patch.object(loader, "ClipReader", form):
            report = bench_train(config, steps=steps, num_videos=1)
            rates = {str(row["what"]): row["clips_per_s"] for row in report.rows}
            waited = report.rows[0]["data_wait_fraction"]
            # In the order of the table: the run, the step alone, the loader alone
            stage.row(
                f"{reader}, {workers} workers", **{f"{k}, clips/s": v for k, v in rates.items()},
                data_wait_fraction=waited,
            )  # fmt: skip
