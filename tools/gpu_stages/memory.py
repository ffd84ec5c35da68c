"""The models of memory and of kernels against what the device does."""

from gpu_stages.stage import Stage
from gpu_stages.step import ours
from gpu_stages.timing import kernel_seconds, num_kernels, peak_gb
from hpm_video.bench.kernels import count_step
from hpm_video.bench.live_bytes import modelled_bytes
from hpm_video.bench.variants import with_batch


def run(stage: Stage) -> None:
    batches = stage.either((16, 64), (2, 4))
    for name, config in stage.pair(1).items():
        if not stage.has_time(name, seconds=stage.either(10, 0)):
            continue
        with stage.measuring(name):
            found: dict[str, float | None] = {}
            for batch in batches:
                asked = with_batch(config, batch)
                modelled = modelled_bytes(asked, as_on_gpu=stage.on_gpu) / 1e9
                with peak_gb(stage) as peak:
                    step = ours(stage, asked)
                    for _ in range(2):  # the second has what the first makes, the optimizer's state
                        step()
                measured = peak.get("gb")
                found[f"batch {batch}, modelled"], found[f"batch {batch}, peak"] = (
                    modelled,
                    measured,
                )
                found[f"batch {batch}, ratio"] = None if measured is None else measured / modelled
            stage.row(f"{name}, GB", **found)
            modelled = sum(operation.kernels for operation in count_step(asked))
            launches = num_kernels(kernel_seconds(stage, step))
            what = f"{name}, kernels, {batches[-1]}"
            stage.row(what, modelled=modelled, launches=launches)
