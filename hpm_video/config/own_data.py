"""Settings for a user's own videos, chosen for their number, length and the machine.

The base is a recipe for own videos; values that depend on the videos or the machine replace its
own. Every setting comes with a reason.
"""

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from hpm_video.config.finetune import FinetuneConfig
from hpm_video.config.pretrain import PretrainConfig
from hpm_video.config.recipe import find_named
from hpm_video.config.settings import (
    config_to_dict,
    differing_keys,
    load_config,
    without_interpolations,
)

Job = Literal["pretrain", "finetune"]
_SCHEMAS: dict[Job, type[Any]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}

_MANY = 10_000  # number of videos from which a GPU trains a larger model
_LARGE_GB, _LARGE_PIXELS = 16, 160  # which also needs this GPU memory and short side
_SHORT_S = 5.0  # if three quarters of the videos are that short, a clip spans all of one
_WINDOW_S = 2.0
_LEAST_STEPS, _MOST_EPOCHS = 500, 2000
_LEAST_EPOCHS = {"pretrain": 20, "finetune": 10}
# Steps per square root of the number of videos. On GPUs that is 2,000 steps for 100 videos and
# 28,000 for 20,000; on CPUs the 1,800 steps for 316 clips of docs/results.md.
_STEPS = {("pretrain", True): 200, ("pretrain", False): 100}
_STEPS |= {("finetune", True): 100, ("finetune", False): 130}
_GB_OF_A_WORKER = 2
# Settings that a fine-tuning shares with its pre-training
_AS_PRETRAINED = (
    "model.size", "model.depth", "data.num_frames", "data.crop_size", "data.sampling", "data.fps",
    "data.frame_stride",
)  # fmt: skip

# Reasons for the recipes' values
_WHY = {
    "data.crop": "no squeezed crops, as in pre-training",
    "data.decoder": "reads most formats, and is the fastest on small files",
    "data.batch_size": "videos per micro-batch; a step consists of one or more",
    "data.crop_size": "height and width of a clip in pixels; time grows with their square",
    "data.num_frames": "frames per clip; time grows with their number",
    "model.size": "larger models need more videos and more time",
    "model.depth": "blocks of the encoder: half as many as usual for the size, for speed",
    "model.decoder_width": "as wide as the encoder",
    "model.decoder_depth": "one block, for speed",
    "masking.mask_ratio": "with so few tokens per frame, 0.9 would leave too little context",
    "masking.hard_ratio_end": "share of the mask that mining chooses at the end of the run. 0: "
    "random masks, and a step takes a quarter less compute. Accuracy did not differ significantly: "
    "docs/results.md",
    "teacher.token_ratio": "with mining: 0.1 of so few tokens would show the teacher too little",
    "teacher.momentum_start": "with mining: makes the teacher follow fast enough for a short run",
    "teacher.momentum_end": "with mining: the same, at the end of the run",
    "loss.prediction_weight": "as in the runs of docs/results.md",
    "optim.base_lr": "learning rate at 256 videos per step; the rate in use is proportional to the "
    "videos per step",
    "augment.num_operations": "no RandAugment, as in the runs of docs/results.md",
    "augment.erasing": "no erased rectangles, as in the runs of docs/results.md",
    "mixing.mixup": "no blended clips, as in the runs of docs/results.md",
    "mixing.cutmix": "no pasted boxes, as in the runs of docs/results.md",
    "evaluation.batch_size": "videos to evaluate at a time",
    "run.checkpoint_every_minutes": "most minutes of training that an interruption can lose",
}


@dataclass(frozen=True)
class Videos:
    """Summary of the readable videos of a list.

    seconds: quartiles of their length. fps: the lowest tenth is below it. Both None if unknown.
    """

    number: int
    num_classes: int  # 0 without labels
    frames: float  # mean
    seconds: tuple[float, float, float] | None
    fps: float | None
    short_side: int  # median, pixels


@dataclass(frozen=True)
class Computer:
    """A machine. gpu_gb: memory of its GPU; None for a CPU."""

    words: str
    cores: int
    memory_gb: float
    gpu_gb: float | None = None


@dataclass
class Choices:
    """Settings of a job, each with its reason. hours: estimate; timed: source of the estimate.

    uncut_epochs: epochs before a limit of hours reduced them; None if it did not.
    """

    job: Job
    recipe: str
    why_recipe: str
    num_videos: int
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    hours: float = 0.0
    timed: str = ""
    uncut_epochs: int | None = None

    def change(self, key: str, value: Any, why: str) -> None:
        self.settings[key] = (value, why)

    def __getitem__(self, key: str) -> Any:
        return self.settings[key][0]

    def config(self, *more: str) -> Any:
        """Build the config; ``more`` override some settings. Raises like `load_config`."""
        nested: dict[str, dict[str, Any]] = {}
        for key, (value, _) in self.settings.items():
            group, name = key.split(".", 1)
            nested.setdefault(group, {})[name] = without_interpolations(value)
        return load_config(_SCHEMAS[self.job], None, more, known=nested)

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return int(self.num_videos // self["optim.total_batch"] * self["optim.epochs"])

    def yaml(self, head: Sequence[str]) -> str:
        """YAML with the reason above each setting; ``head``: comment lines at its top."""
        lines = [_comment(line) for line in head]
        groups = dict.fromkeys(key.partition(".")[0] for key in self.settings)
        for group in [name for name in config_to_dict(_SCHEMAS[self.job]()) if name in groups]:
            lines.append(f"{group}:")
            for key, (value, why) in self.settings.items():
                if key.partition(".")[0] == group:
                    lines.append(_comment(why, indent="  "))
                    escaped = without_interpolations(value)
                    lines.append(f"  {key.partition('.')[2]}: {_as_text(escaped)}")
        return "\n".join(lines) + "\n"


def choose_pretraining(videos: Videos, computer: Computer) -> Choices:
    """Choose the settings of a pre-training."""
    number, gb = videos.number, computer.gpu_gb
    if gb is None:
        recipe, why = "own_videos_cpu", "there is no GPU"
    elif number >= _MANY and gb >= _LARGE_GB and videos.short_side >= _LARGE_PIXELS:
        recipe = "own_videos_base"
        why = f"at least {_MANY:,} videos, and a GPU of at least {_LARGE_GB} GB"
    else:
        recipe, why = "own_videos", "one GPU"
        if number >= _MANY:
            fits = gb >= _LARGE_GB
            lacks = f"videos of {_LARGE_PIXELS} pixels" if fits else f"a GPU of {_LARGE_GB} GB"
            why += f"; own_videos_base would need {lacks}"
    chosen = _of_recipe("pretrain", recipe, why, videos, computer)
    if videos.frames < chosen["data.num_frames"] > 8:
        why = f"the videos have {videos.frames:.0f} frames on average"
        chosen.change("data.num_frames", 8, why)
    _take_frames(chosen, videos)
    return chosen


def choose_finetuning(videos: Videos, computer: Computer, pretraining: Choices) -> Choices:
    """Choose the settings of a fine-tuning that starts from a pre-training."""
    why = "the same as for pre-training"
    chosen = _of_recipe("finetune", pretraining.recipe, why, videos, computer)
    for key in _AS_PRETRAINED:
        if key in pretraining.settings:
            chosen.change(key, pretraining[key], "as in pre-training")
        else:
            chosen.settings.pop(key, None)
    return chosen


def fit_hours(choices: Choices, most: float) -> None:
    """Reduce the epochs of a run that would take more than ``most`` hours."""
    epochs = choices["optim.epochs"]
    if choices.hours <= most or epochs == 1:
        return
    fitting = max(1, math.floor(epochs * most / choices.hours))
    would = f"{epochs:,} epochs would take {hours_in_words(choices.hours)}"
    limit = f"{most:.3g} h" if most >= 1 else hours_in_words(most)
    why = f"as many as fit into {limit}; {would}"
    choices.change("optim.epochs", fitting, why)
    choices.hours *= fitting / epochs
    choices.uncut_epochs = epochs
    _follow_epochs(choices)


def hours_in_words(hours: float) -> str:
    """Hours with two digits or more, in a unit in which they are not zero."""
    units = (("h", hours), ("min", 60 * hours), ("s", 3600 * hours))
    unit, value = next((one for one in units if one[1] >= 1), units[-1])
    return f"{value:.2g} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def _of_recipe(job: Job, recipe: str, why: str, videos: Videos, computer: Computer) -> Choices:
    """Settings of a recipe, with steps for the number of videos and workers for the machine."""
    schema = _SCHEMAS[job]
    there = config_to_dict(load_config(schema, find_named(f"{job}/{recipe}")))
    usual = config_to_dict(schema())
    chosen = Choices(job, recipe, why, videos.number)
    # Users change the clip and the model size first, so these are always written
    shown = ["model.size", "data.num_frames", "data.crop_size"]
    shown += ["masking.hard_ratio_end"] if job == "pretrain" else []
    for key in dict.fromkeys([*shown, *differing_keys(usual, there)]):
        group, name = key.split(".", 1)
        chosen.change(key, there[group][name], _WHY.get(key, f"as in the recipe {recipe}"))

    number, total = videos.number, there["optim"]["total_batch"]
    at_once, said = there["data"]["batch_size"], "videos per step; the learning rate follows"
    is_small = number < 4 * total
    if job == "pretrain":
        at_once = "auto"
        why = "videos per micro-batch: as many as memory allows; results do not depend on it"
        chosen.change("data.batch_size", at_once, why)
    if is_small:  # four steps per epoch; even, as mixing in fine-tuning needs pairs
        total = min(number, max(2, number // 4 // 2 * 2))
        said += ". Chosen for four steps per epoch"
        if at_once != "auto":
            total = min(total, at_once)
            chosen.change("data.batch_size", total, "videos per micro-batch: all of a step")
    chosen.change("optim.total_batch", total, said)
    steps_per_epoch = number // total
    factor = _STEPS[job, computer.gpu_gb is not None]
    wanted = max(_LEAST_STEPS, round(factor * math.sqrt(number)))
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS[job], math.ceil(wanted / steps_per_epoch)))
    steps = epochs * steps_per_epoch
    chosen.change(
        "optim.epochs", epochs,
        f"{steps:,} steps of {total} videos. Rule: {factor} x the square root of the number of "
        f"videos ({number:,}), but at least {_LEAST_STEPS} steps and {_LEAST_EPOCHS[job]} epochs",
    )  # fmt: skip
    share = "a twentieth" if job == "pretrain" else "a quarter"
    most_warm = 40 if job == "pretrain" else 5
    chosen.change(
        "optim.warmup_epochs", "auto", f"auto: {share} of the epochs, at most {most_warm}"
    )
    _follow_epochs(chosen)
    wanted_workers = computer.cores - 1 if computer.gpu_gb is not None else computer.cores // 4
    affordable = int(computer.memory_gb // _GB_OF_A_WORKER)
    workers = max(1, min(16, wanted_workers, affordable))
    why = f"decoding processes, for {computer.cores} cores and {computer.memory_gb:.0f} GB memory"
    chosen.change("data.num_workers", workers, why)
    return chosen


def _follow_epochs(chosen: Choices) -> None:
    """Choose the settings that depend on the number of epochs or steps."""
    steps, epochs = chosen.steps, chosen["optim.epochs"]
    every = min(50, max(1, steps // 100))
    records = _counted(math.ceil(steps / every), "record")
    chosen.change("run.log_every", every, f"steps between log records, for {records}")
    if chosen.job == "finetune":
        every = max(1, round(epochs / 10))
        evaluations = _counted(math.ceil(epochs / every), "evaluation")
        why = f"epochs between evaluations, for {evaluations}; the best epoch is kept"
        chosen.change("evaluation.every_epochs", every, why)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _take_frames(chosen: Choices, videos: Videos) -> None:
    """Choose the frames of a video that form a clip."""
    count, seconds, fps = chosen["data.num_frames"], videos.seconds, videos.fps
    for key in ("data.sampling", "data.fps", "data.frame_stride"):
        chosen.settings.pop(key, None)
    if seconds is not None and seconds[2] <= _SHORT_S:
        why = (
            f"three quarters of the videos last at most {seconds[2]:.1f} s: a clip takes one "
            f"frame from each of {count} segments of the whole video. For windows in time: dense"
        )
        chosen.change("data.sampling", "uniform", why)
        return
    chosen.change("data.sampling", "dense", "a window at a random time, as videos may be long")
    if fps is None:
        why = "step from frame to frame; the files do not state their frame rate"
        chosen.change("data.frame_stride", 32 // count, why)
        return
    rate = min(count / _WINDOW_S, math.floor(fps) or fps)
    why = f"frames per second: a clip of {count} frames shows {count / rate:.1f} s"
    chosen.change("data.fps", float(rate), why)
    chosen.change("data.frame_stride", 1, "every frame at that rate")


def computer_here(words: str, *, gpu_gb: float | None) -> Computer:
    """This machine; ``words``: name of its device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Computer(words, cores or 1, memory / 1e9, gpu_gb)


def _comment(text: str, indent: str = "") -> str:
    """A text as YAML comments, in lines of at most 100 characters."""
    if not text or text.startswith("  "):  # never wrap a command
        return f"{indent}# {text}".rstrip()
    width = 98 - len(indent)
    wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"{indent}# {line}" for line in wrapped)


def _as_text(value: Any) -> str:
    """A value as YAML on one line."""
    dumped: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")
