"""Fine-tuning steps that train all of a classifier, or parts of it: time, memory, parameters."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import peak_extra_bytes, round_seconds, spread
from hpm_video.config import ClassifierConfig, FinetuneConfig, FinetuneDataConfig, RunConfig
from hpm_video.config.limits import at_least
from hpm_video.config.values import Precision, Size
from hpm_video.models.adapters import train_less
from hpm_video.models.build import Baseline, Classifier, build
from hpm_video.models.parallel import clip_gradients
from hpm_video.models.parallel import spread as spread_out
from hpm_video.models.precision import autocast, choose_precision
from hpm_video.runtime.distributed import World, pick_device
from hpm_video.train.batch_size import step_memory
from hpm_video.train.class_loss import classification_loss
from hpm_video.train.live_bytes import LiveBytes
from hpm_video.train.optim import finetune_optimizer

_CLASSES = 174  # of Something-Something V2


def bench_finetune(
    *,
    rounds: int,
    batch_size: int,
    frames: int,
    crop_size: int,
    size: Size,
    lora_rank: int,
    device: str,
    precision: Precision = "auto",
) -> Report:
    """Time forward, loss, backward and optimizer with 174 classes and clips on the device.

    Ratios are relative to training all weights. ``peak_gb``: peak memory of a step including
    weights and optimizer state; allocations on CUDA, live tensors on a CPU. ``cuda_fixed_gb``,
    ``cuda_clip_mb``: modelled memory on CUDA, fixed and per clip.
    """
    at_least("--rounds", rounds, 1)
    at_least("--batch-size", batch_size, 1)
    at_least("--lora-rank", lora_rank, 1)
    place = pick_device(device, setting="--device")
    alone = World(0, 1, place)
    chosen, _ = choose_precision(precision, alone, setting="--precision")

    def of(**less: Any) -> FinetuneConfig:
        return FinetuneConfig(
            run=RunConfig(precision=chosen),
            data=FinetuneDataConfig(num_frames=frames, crop_size=crop_size, batch_size=batch_size),
            model=ClassifierConfig(size=size, **less),
        )

    depth = _depth(of())
    asked = {
        "all": of(),
        f"model.freeze={depth // 2}": of(freeze=max(depth // 2, 1)),
        f"model.lora_rank={lora_rank}": of(lora_rank=lora_rank),
        f"model.lora_rank={lora_rank} model.lora_targets=[qkv]": of(
            lora_rank=lora_rank, lora_targets=["qkv"]
        ),
        "model.freeze=encoder": of(freeze="encoder"),
    }
    clips = torch.rand(batch_size, 3, frames, crop_size, crop_size, device=place)
    models = {name: classifier_of(config) for name, config in asked.items()}
    learning = {
        name: sum(each.numel() for each in model.parameters() if each.requires_grad)
        for name, model in models.items()
    }
    total = sum(each.numel() for each in models["all"].parameters())
    peaks = {name: _peak(config, clips, alone) for name, config in asked.items()}
    steps = {name: step_of(models[name], config, clips, alone) for name, config in asked.items()}
    times = round_seconds(steps, rounds=rounds, warmup=2, device=place)
    rows: list[dict[str, Cell]] = []
    for name, config in asked.items():
        memory, median = step_memory(config, num_classes=_CLASSES), statistics.median(times[name])
        rows.append(
            {
                "learns": name,
                "parameters_m": learning[name] / 1e6,
                "share": learning[name] / total,
                "median_s": median,
                "spread": spread(times[name]),
                "ratio": median / statistics.median(times["all"]),
                "peak_gb": peaks[name] / 1e9,
                "cuda_fixed_gb": memory.fixed / 1e9,
                "cuda_clip_mb": memory.per_clip / 1e6,
            }
        )
    shape = {"batch_size": batch_size, "frames": frames, "crop_size": crop_size}
    settings: dict[str, object] = {"size": size, **shape, "precision": chosen, "rounds": rounds}
    notes = [
        "parameters_m: trained parameters, with adapters; share: relative to the classifier "
        "without adapters",
        "cuda_...: modelled from the tensors alive during a step, without running it",
    ]
    return Report("finetune", machine_facts(place), settings, rows, notes)


def _depth(config: FinetuneConfig) -> int:
    with torch.device("meta"):
        model = build(config, num_classes=_CLASSES)
    assert isinstance(model, Classifier)
    return len(model.encoder.blocks)


def classifier_of(config: FinetuneConfig) -> Classifier | Baseline:
    """A classifier of 174 classes with fresh weights, on the CPU or the device of a context."""
    torch.manual_seed(0)
    model = build(config, num_classes=_CLASSES)
    train_less(model, config.model)
    return model.train()


def step_of(
    model: Classifier | Baseline, config: FinetuneConfig, clips: Tensor, world: World
) -> Callable[[], object]:
    """A step of the model on the world's device, like that of `hpm_video.train.finetune`."""
    called = spread_out(model, world, config.run)
    optimizer = finetune_optimizer(model, config.optim)
    targets = torch.arange(len(clips), device=clips.device) % _CLASSES

    def step() -> None:
        with autocast(clips.device, config.run.precision):
            logits = called(clips)
        smoothing = config.optim.label_smoothing
        classification_loss(logits, targets, label_smoothing=smoothing).backward()
        clip_gradients(model, config.optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _peak(config: FinetuneConfig, clips: Tensor, world: World) -> int:
    """Peak memory in bytes of a model's second step, when the optimizer state exists."""

    def two_steps(after: Callable[[], None] = lambda: None) -> None:
        step = step_of(classifier_of(config), config, clips, world)
        step()
        after()
        step()

    if clips.is_cuda:
        return peak_extra_bytes(two_steps, world.device)
    live = LiveBytes()

    def forget() -> None:
        live.peak = live.live

    with live:
        two_steps(forget)
    return live.peak
