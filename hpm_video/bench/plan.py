"""``hpm-video bench plan``: applies the cost model to a config and measured figures."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hpm_video.bench.cost_model import Job, Machine, predict
from hpm_video.bench.flops import step_cost
from hpm_video.bench.here import devices_here, measure_here
from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.steps import build_student
from hpm_video.bench.variants import variant_name
from hpm_video.config import PretrainConfig
from hpm_video.config.limits import at_least
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.mixture import mixture_of
from hpm_video.method.teacher import teacher_of
from hpm_video.runtime.distributed import World
from hpm_video.runtime.reading import read_json
from hpm_video.train.batch_size import choose_batch_size
from hpm_video.weights.targets import load_target

_GPU_BYTES = 80e9  # GPU memory assumed for data.batch_size=auto
COUNTS = tuple(2**power for power in range(10))  # default numbers of GPUs


def bench_plan(
    config: PretrainConfig,
    *,
    gpus: Sequence[int] | None,
    num_videos: int | None,
    clips_per_s: float | None,
    step_json: str | None,
    teraflops: float,
    utilisation: float,
    clips_per_core: float,
    loader_json: str | None,
    like: str,
    files: str,
    cores_per_gpu: float | None,
    here: bool = False,
    **assumed: Any,
) -> Report:
    """Predict pre-training on each number of GPUs, by default 1 to 512, or this machine's with
    ``here``.

    The rate of one GPU is the first available of: ``clips_per_s``, ``step_json`` (from `bench step`
    or `bench train`), a measurement on this machine (``here``), ``utilisation`` x ``teraflops``.

    The rate of a core is the first available of: ``loader_json`` (from `bench loader`, for the
    config's decoder and repeats, videos ``like`` those of a data set, and ``files`` raw or
    transcoded), a measurement on data.manifest (``here``), ``clips_per_core``.

    ``assumed``: the other fields of `Machine`.
    """
    for count in gpus or ():
        at_least("--gpus", count, 1)
    if not 0 < teraflops < math.inf:
        raise ValueError(f"--teraflops ({teraflops}) must be above 0, and finite")
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation ({utilisation}) must be in (0, 1]")
    source = "--clips-per-s"
    if clips_per_s is None and step_json is not None:
        clips_per_s, source = measured_rate(config, step_json), step_json
    measured = measure_here(config) if here else None
    if measured is not None:
        gpus = gpus or [measured.devices]
        if cores_per_gpu is None:
            cores_per_gpu = _cores() / measured.devices
        if clips_per_s is None:
            clips_per_s, source = measured.clips_per_s, measured.said
    if clips_per_s is None:
        clips_per_s = teraflops * 1e12 * utilisation / (2 * step_cost(config).step)
        source = (
            f"assumed, not measured: {utilisation:.0%} of {teraflops:g} TFLOP/s; --here measures "
            f"this machine ({devices_here(config)[2]})"
        )
    source_of_core = "--clips-per-core"
    if measured is not None and measured.clips_per_core is not None:
        clips_per_core, source_of_core = measured.clips_per_core, "videos of data.manifest"
    if loader_json is not None:
        clips_per_core = measured_core(config, loader_json, like=like, files=files)
        source_of_core = loader_json
    machine = Machine(
        clips_per_s=clips_per_s,
        clips_per_core=clips_per_core,
        cores_per_gpu=max(1, config.data.num_workers) if cores_per_gpu is None else cores_per_gpu,
        **assumed,
    )
    job = job_of(config, num_videos)
    if gpus is None:
        gpus = [count for count in COUNTS if job.has_steps(count)]
    return Report(
        "plan",
        machine_facts(torch.device("cpu")),
        {**asdict(job), **asdict(machine)},
        [asdict(predict(job, machine, count)) for count in sorted(set(gpus))],
        [
            f"clips_per_s of one GPU: {source}; clips_per_core: {source_of_core}",
            "times are per step; waited_ms: the part of the all-reduce that is not hidden; "
            "..._needed: what keeps loader and gradients from being the bottleneck; all settings "
            "above come from options or the config",
        ],
    )


def _cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def job_of(config: PretrainConfig, num_videos: int | None) -> Job:
    """The job of a config; raises ValueError if the number of videos is unknown."""
    data, optim, run = config.data, config.optim, config.run
    if num_videos is None:
        if not data.manifest:
            raise ValueError(
                "--videos (none) must be the number of videos, unless data.manifest names a list"
            )
        manifest = read_manifest(data.manifest, root=data.root, labels=False)
        num_videos = mixture_of(manifest, data.weights).num_videos
    config, _ = load_target(config)
    at_once = data.batch_size
    if isinstance(at_once, str):  # auto: assume GPUs with the memory of an H100
        one = World(0, 1, torch.device("cuda"))
        at_once = choose_batch_size(config, one, free_bytes=_GPU_BYTES).size
    at_least("--videos", num_videos, optim.total_batch or at_once * optim.accumulation)
    with torch.device("meta"):
        student = build_student(config)
        models = [m for m in (student, teacher_of(student, config)) if m is not None]
    weights, *averaged = (sum(p.numel() for p in model.parameters()) for model in models)
    return Job(
        num_videos=num_videos,
        epochs=optim.epochs,
        repeats=data.repeats,
        batch_size=at_once,
        accumulation=optim.accumulation,
        total_batch=optim.total_batch,
        gradient_bytes=4 * weights,
        checkpoint_bytes=4 * (3 * weights + sum(averaged)),
        checkpoint_minutes=run.checkpoint_every_minutes,
        saves_in_background=run.save_in_background,
        is_sharded=run.parallel == "fsdp",
    )


def measured_rate(config: PretrainConfig, path: str) -> float:
    """Clips per second of one device, from the JSON of `bench step` or `bench train`."""
    report = _read(path, ("step", "train"), option="--step-json")
    settings, model, data = report["settings"], config.model, config.data
    wanted = {"size": model.size, "frames": data.num_frames, "crop_size": data.crop_size}
    for name, value in wanted.items():
        if settings.get(name) != value:
            raise ValueError(
                f"--step-json ({path}) has {name} {settings.get(name)}: must have {value}, as in "
                "the config"
            )
    column, name = "what", "step alone"
    if report["bench"] == "step":
        column, name = "step", variant_name(config)
        masking, default = config.masking, PretrainConfig()
        # Settings that affect the cost of a step besides the variant -> whether bench step times
        # their value
        for key, is_timed in {
            "masking.hard_ratio_end": masking.mines or config.loss.prediction == "none",
            "masking.pattern": masking.pattern != "blocks",
            "masking.mask_ratio": masking.mask_ratio == default.masking.mask_ratio,
            "masking.decoder_mask_ratio": masking.decoder_mask_ratio == 0,
            "teacher.draws": config.teacher.draws == 1,
        }.items():
            if not is_timed:
                raise ValueError(
                    f"--step-json ({path}) must come from bench train: bench step does not time "
                    f"the config's {key}"
                )
    named = f"{name!r}, as the config requires"
    return _rate(report["rows"], {column: name}, f"--step-json ({path})", named)


def measured_core(config: PretrainConfig, path: str, *, like: str, files: str) -> float:
    """Clips per second of a core, from the JSON of `bench loader`."""
    report, data = _read(path, ("loader",), option="--loader-json"), config.data
    wanted = {
        "videos": like,
        "files": files,
        "loader": "ours, device crops" if data.crop_on == "device" else "ours",
        "decoder": data.decoder,
        "repeats": data.repeats,
    }
    named = ", ".join(f"{key} {value}" for key, value in wanted.items())
    return _rate(report["rows"], wanted, f"--loader-json ({path})", f"with {named}")


def _read(path: str, benches: Sequence[str], *, option: str) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option} ({path}) does not exist")
    rule = f"must be a file that bench {' or '.join(benches)} wrote with --json"
    try:
        report = read_json(path)
    except ValueError as error:
        raise ValueError(f"{option} ({path}) is not JSON: {rule}") from error
    if not isinstance(report, dict) or report.get("bench") not in benches:
        raise ValueError(f"{option} ({path}) {rule}")
    rows = report.get("rows")
    has_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not has_rows or not isinstance(report.get("settings"), dict):
        raise ValueError(f"{option} ({path}) lacks settings or rows: {rule}")
    return report


def _rate(
    rows: Sequence[dict[str, Any]], wanted: Mapping[str, object], source: str, named: str
) -> float:
    """clips_per_s of the first row that has the ``wanted`` values."""
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            rate = row.get("clips_per_s")
            if not isinstance(rate, int | float) or not 0 < rate < math.inf:
                raise ValueError(f"{source} has clips_per_s {rate}: must be a number above 0")
            return float(rate)
    raise ValueError(f"{source} must have a row {named}")
