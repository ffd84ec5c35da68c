"""Message at the end of a training: its results, and the commands to run next."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.recipe import find_recipe
from hpm_video.config.settings import config_to_dict, load_config
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.lists.rows import read_videos
from hpm_video.data.loading.mixture import mixture_of
from hpm_video.runtime.files import printable
from hpm_video.runtime.rendezvous import find_place
from hpm_video.train.step_videos import fitting, micro_batches

# Settings of a pre-training that a fine-tuning from it must share
_SHARED = {
    "model": ("size", "width", "depth", "heads", "patch_size", "tubelet_size"),
    "data": ("num_frames", "crop_size", "root", "decoder"),
}


def say_end(recipe: str, config: PretrainConfig | FinetuneConfig, manifest: Manifest) -> None:
    """Print the results of a run and what to type next; only rank 0 prints."""
    if find_place().rank != 0:
        return
    from hpm_video.train.run.logs import read_records

    folder = str(config.run.output_dir)
    print(printable(_reached(config, manifest, read_records(Path(folder)))))
    commands = (
        _after_finetuning(config, manifest)
        if isinstance(config, FinetuneConfig)
        else _after_pretraining(recipe, config, manifest)
    )
    print("next:")
    # The run is complete: missing recipes only cost a suggestion
    with suppress(OSError, ValueError):
        for words, what in commands:
            print(printable(f"  {shlex.join(['hpm-video', *words])}  # {what}"))


def _reached(
    config: PretrainConfig | FinetuneConfig,
    manifest: Manifest,
    records: Sequence[Mapping[str, float | None]],
) -> str:
    steps = int(records[-1]["step"] or 0) if records else 0
    videos = mixture_of(manifest, config.data.weights).num_videos
    said = [f"{steps:,} steps, {config.optim.epochs:,} epochs of {videos:,} videos"]
    for name, words in (("loss", "loss"), ("rank_accuracy", "rank accuracy"), ("top1", "top-1")):
        values = [value for one in records if (value := one.get(name)) is not None]
        if values:
            first = f"{values[0]:.3f} -> " if len(values) > 1 else ""
            said.append(f"{words} {first}{values[-1]:.3f}")
    if isinstance(config, FinetuneConfig) and any("top1" in one for one in records):
        of = manifest.num_classes
        said[-1] += f" (chance {1 / of:.3f}, 1 of {of:,} classes)"
    return f"done: {config.run.output_dir}: {', '.join(said)}"


def _after_pretraining(
    recipe: str, config: PretrainConfig, manifest: Manifest
) -> Iterator[tuple[list[str], str]]:
    folder = str(config.run.output_dir)
    video = manifest.path(0)
    pictures = ["visualize", folder, video, "-o"]
    yield [*pictures, f"{folder}/pictures"], "a page of what the model finds hard"
    through = [*pictures, f"{folder}/through_training", "--through-training"]
    yield through, "the same page through the checkpoints of the run"
    if (beside := _made_with(recipe, folder)) is not None:
        yield ["finetune", beside], "a classifier"
        return
    is_labelled = False
    with suppress(OSError, ValueError):  # the list may have changed since the start
        _, row = next(read_videos(Path(config.data.manifest[0])))
        is_labelled = row.get("label", "").strip() not in ("", "-1")
    lists = config.data.manifest if is_labelled else ["LABELLED.csv"]
    command = [
        *("finetune", *_recipe(recipe, config, manifest)),
        f"data.manifest={lists[0] if len(lists) == 1 else '[' + ','.join(lists) + ']'}",
        *(f"model.init={folder}", f"run.output_dir={folder}_finetuned"),
    ]
    how = (
        "add data.val_manifest=LIST to evaluate it"
        if is_labelled
        else "`hpm-video data list --folder` makes LABELLED.csv from one folder per class"
    )
    yield command, f"a classifier; {how}"


def _made_with(recipe: str, folder: str) -> str | None:
    """Path of the fine-tuning settings that `hpm-video start` wrote for this run, if any."""
    beside = Path(recipe).with_name("finetune.yaml")
    if not (Path(recipe).is_file() and beside.is_file()):
        return None
    init = load_config(FinetuneConfig, beside).model.init
    return str(beside) if init and os.path.realpath(init) == os.path.realpath(folder) else None


def _after_finetuning(
    config: FinetuneConfig, manifest: Manifest
) -> Iterator[tuple[list[str], str]]:
    folder, init = str(config.run.output_dir), config.model.init
    judged = [] if config.data.val_manifest else ["--manifest", *config.data.manifest]
    on = "" if config.data.val_manifest else "; better: a list that it was not trained on"
    yield ["evaluate", folder, *judged], f"figures, predictions and a page{on}"
    video = manifest.path(0)
    yield ["predict", folder, video, "-o", f"{folder}/classes.csv"], "classes of any videos"
    if init is not None and (Path(init) / "config.yaml").is_file():
        pictures = ["visualize", init, video, "--classifier", folder, "-o", f"{folder}/pictures"]
        yield pictures, "what is hard, beside what the classifier attends to"


def _recipe(recipe: str, config: PretrainConfig, manifest: Manifest) -> list[str]:
    """Recipe for the fine-tuning, and the settings that it must share with the pre-training."""
    try:
        file = find_recipe("finetune", name := Path(recipe).stem)
    except FileNotFoundError:
        file = find_recipe("finetune", name := "own_videos")
    there = load_config(FinetuneConfig, file)
    theirs, ours = config_to_dict(there), config_to_dict(config)
    words = [
        f"{group}.{key}={_word(ours[group][key])}"
        for group, keys in _SHARED.items()
        for key in keys
        if ours[group][key] != theirs[group][key]
    ]
    data, optim = there.data, there.optim
    at_once = 1 if isinstance(data.batch_size, str) else data.batch_size
    accumulation = micro_batches(optim, batch_size=at_once, num_processes=1)
    if at_once * accumulation > len(manifest):
        words += fitting(data, optim, num_videos=len(manifest), num_processes=1)
    return [name, *words]


def _word(value: Any) -> str:
    return "null" if value is None else str(value)
