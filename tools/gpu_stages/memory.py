"""The models of memory and of kernels against what the device does."""

from gpu_stages.stage import Stage
from gpu_stages.step import ours
from gpu_stages.timing import peak_gb
from hpm_video.bench.live_bytes import modelled_bytes


def run(stage: Stage) -> None:
    for batch in stage.either((16, 64), (2, 4)):
        for name, config in stage.pair(batch).items():
            what = f"{name}, {batch}"
            if not stage.has_time(what, seconds=stage.either(5, 0)):
                continue
            with stage.measuring(what):
                modelled = modelled_bytes(config, as_on_gpu=stage.on_gpu) / 1e9
                with peak_gb(stage) as peak:
                    step = ours(stage, config)
                    for _ in range(2):  # the second has what the first makes, the optimizer's state
                        step()
                measured = peak.get("gb")
                stage.row(
                    what,
                    modelled_gb=modelled,
                    peak_gb=measured,
                    ratio=None if measured is None else measured / modelled,
                )
