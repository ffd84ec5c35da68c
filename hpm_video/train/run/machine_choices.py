"""Resolves settings that are ``auto``, from the machine or the checkpoint that a run continues."""

from collections.abc import Mapping
from dataclasses import replace
from socket import gethostname
from typing import Any, TypeVar

from hpm_video.config import FinetuneConfig, PretrainConfig, as_then
from hpm_video.data.loading.batches import readers_in_words
from hpm_video.models.compiling import choose_compile
from hpm_video.models.cuda_graphs import choose_cuda_graphs
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, gather_objects
from hpm_video.runtime.machine import describe_machine, device_words
from hpm_video.train.batch_size import choose_batch_size, kept_batch_size

_WHY = {
    "evaluation": "the default",
    "run": "the default",
    "optim": "a share of optim.epochs",
}

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


def choose_for_machine(
    config: Config, world: World, *, state: Mapping[str, Any] | None, num_classes: int = 0
) -> tuple[Config, list[str]]:
    """The config with ``auto`` resolved in settings that affect results, and log lines on the
    machine and the choices.

    ``state``: the checkpoint that the run continues; the choices in its config are kept, on
    whatever machine. ``num_classes``: for classifiers. All ranks call and get the same answer.
    """
    kept = state["config"]["run"] if state else {}
    precision, why = choose_precision(config.run.precision, world, kept=kept.get("precision"))
    ranks = gather_objects((gethostname(), device_words(world.device)), world)
    lines = describe_machine(ranks, world.device)
    lines.append(f"video readers: {readers_in_words(config.data.num_workers)}")
    if why is not None:
        lines.append(f"run.precision=auto: {precision} ({why})")
    compiled, why = choose_compile(config.run.compile, world.device, kept=kept.get("compile"))
    if why is not None:
        lines.append(f"run.compile=auto: {compiled} ({why})")
    graphs, why = choose_cuda_graphs(config.run.cuda_graphs, world, compiled=compiled == "true")
    if why is not None and world.device.type == "cuda":
        lines.append(f"run.cuda_graphs=auto: {graphs} ({why})")
    run = replace(config.run, precision=precision, compile=compiled, cuda_graphs=graphs)
    config = replace(config, run=run)
    config, more = _as_begun(config, state=state)
    lines += more
    kept_size = kept_batch_size(state)
    size, why = choose_batch_size(config, world, kept=kept_size, num_classes=num_classes)
    if why is not None:
        lines.append(f"data.batch_size=auto: {size} videos per process and micro-batch ({why})")
    return replace(config, data=replace(config.data, batch_size=size)), lines


def _as_begun(config: Config, *, state: Mapping[str, Any] | None) -> tuple[Config, list[str]]:
    """The config with ``auto`` resolved in settings that stay as a run began, and log lines.

    Runs from before a setting existed keep its effect at the time, see `as_then`.
    """
    choices: list[tuple[str, str, str | int, bool]]
    if isinstance(config, PretrainConfig):
        choices = [
            ("loss", "variance", "unbiased", config.loss.prediction == "absolute"),
            ("run", "history_checkpoints", 10, True),
        ]
    else:
        best_by = "mean_ap" if config.data.labels.are_several else "top1"
        choices = [
            ("augment", "interpolation", "bicubic", config.augment.num_operations > 0),
            ("evaluation", "best_by", best_by, config.evaluation.every_epochs > 0),
        ]
    choices.append(("optim", "warmup_epochs", config.optim.warmup, True))
    lines = []
    for group, name, usual, matters in choices:
        settings = getattr(config, group)
        if not matters or getattr(settings, name) != "auto":
            continue
        value = as_then(state["config"])[group][name] if state else usual
        why = "as before" if state else _WHY.get(group, "as published")
        lines.append(f"{group}.{name}=auto: {value} ({why})")
        config = replace(config, **{group: replace(settings, **{name: value})})
    return config, lines
