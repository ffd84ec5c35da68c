"""Log lines on settings that changed when a run is resumed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.method.competence import CHANCE, competent_hard_ratio
from hpm_video.method.masking import planned_hard_ratio
from hpm_video.method.teacher import momentum_at
from hpm_video.train.optim import Steps, divided
from hpm_video.train.output_folder import free_folder
from hpm_video.train.run.folder import changed_settings
from hpm_video.weights.checkpoint import linked_checkpoint, settings_of


def describe_changes(
    config: PretrainConfig | FinetuneConfig, state: Mapping[str, Any] | None, *, steps: Steps
) -> list[str]:
    """Log lines: each setting that affects results and differs from the checkpoint ``state``, and
    the schedules that jump at the next step. None without a checkpoint."""
    if state is None or state["step"] >= steps.total:
        return []
    before = settings_of(state)
    old, new = config_to_dict(before), config_to_dict(config)
    lines = [
        f"changed: {key}: {_value(old, key)} -> {_value(new, key)}"
        for key in changed_settings(config, state["config"])
    ]
    data = state.get("data") or {}
    there = divided(
        before.data,
        before.optim,
        videos=data.get("videos_per_step", steps.videos),
        num_videos=data.get("videos_per_epoch")
        or data.get("num_videos", steps.per_epoch * steps.videos),
    )
    then, now = (
        _course(of, plan, step=state["step"], competence=state.get("competence"))
        for of, plan in ((before, there), (config, steps))
    )
    jumps = [
        f"{name} {then[name]:.4g} -> {value:.4g}"
        for name, value in now.items()
        if name in then and not math.isclose(value, then[name], rel_tol=1e-6)
    ]
    if jumps:
        lines.append(f"jumps at step {state['step'] + 1}: {', '.join(jumps)}")
    folder, done = Path(config.run.output_dir or ""), state["step"]
    if done >= there.total and linked_checkpoint(folder) is not None:  # not by run.resume
        lines.insert(
            0,
            f"warning: this run had finished its {before.optim.epochs} epochs, and now continues "
            f"to optim.epochs={config.optim.epochs}: the learning rate jumps from "
            f"{there.lr_at(done - 1):.2g} to {steps.lr_at(done):.2g}. To train anew instead, stop "
            f"this run (Ctrl-C) and add {free_folder(folder)} to the command",
        )
    return lines


def _course(
    config: PretrainConfig | FinetuneConfig,
    steps: Steps,
    *,
    step: int,
    competence: torch.Tensor | None,
) -> dict[str, float]:
    """Values of all schedules after ``step`` steps, or at the last step."""
    step = min(step, steps.total - 1)
    found = {"learning rate": steps.lr_at(step), "weight decay": config.optim.weight_decay}
    if isinstance(config, PretrainConfig):
        masking, sight, progress = config.masking, config.teacher, (step + 1) / steps.total
        found["hard ratio"] = planned_hard_ratio(masking, progress)
        if masking.mines and masking.ramp == "competence":
            value = torch.tensor(CHANCE) if competence is None else competence
            found["hard ratio"] = competent_hard_ratio(masking, value).item()
        if masking.needs_teacher or config.loss.target == "ema":
            found["EMA momentum"] = momentum_at(
                progress, start=sight.momentum_start, end=sight.momentum_end, ramp=sight.ramp
            )
    return found


def _value(values: Mapping[str, Any], key: str) -> str:
    value: Any = values
    for name in key.split("."):  # groups lie in groups
        value = value[name]
    return value if isinstance(value, str) else json.dumps(value)
