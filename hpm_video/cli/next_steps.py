"""Message at the end of a training: its results, and the commands to run next."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.recipe import find_recipe, for_a_gpu
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


def notes_on_hardware(kind: str, recipe: str, config: PretrainConfig | FinetuneConfig) -> list[str]:
    """Log lines at the start of a run: its recipe is for a GPU, but the CPU computes unasked."""
    import torch

    if config.run.device != "auto" or torch.cuda.is_available():
        return []
    note = for_a_gpu(kind, recipe)
    return [f"warning: {note}"] if note else []


def say_end(recipe: str, config: PretrainConfig | FinetuneConfig, manifest: Manifest) -> None:
    """Print the results of a run and what to type next; only rank 0 prints."""
    if find_place().rank != 0:
        return
    from hpm_video.train.run.logs import read_records

    folder = str(config.run.output_dir)
    records = read_records(Path(folder))
    print(printable(_reached(config, manifest, records)))
    commands = (
        _after_finetuning(config, manifest, records)
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
    epochs = f"{config.optim.epochs:,} epoch{'' if config.optim.epochs == 1 else 's'}"
    said = [f"{steps:,} steps, {epochs} of {videos:,} videos"]
    for name, words in (("loss", "loss"), ("rank_accuracy", "rank accuracy"), ("top1", "top-1")):
        values = [value for one in records if (value := one.get(name)) is not None]
        if name == "loss":
            values = [*values[:-1], *_last_loss(records)]
        if values:
            first = f"{values[0]:.3f} -> " if len(values) > 1 else ""
            said.append(f"{words} {first}{values[-1]:.3f}")
    if isinstance(config, FinetuneConfig) and any("top1" in one for one in records):
        of = manifest.num_classes
        said[-1] += f" (chance {1 / of:.3f}, 1 of {of:,} classes)"
    return f"done: {config.run.output_dir}: {', '.join(said)}"


def _last_loss(records: Sequence[Mapping[str, float | None]]) -> list[float]:
    """The last record's mean loss, joined with the record before if it covers fewer steps."""
    ends = [(one["step"] or 0, loss) for one in records if (loss := one.get("loss")) is not None]
    if len(ends) < 3:
        return [loss for _, loss in ends[-1:]]
    (first, _), (middle, before), (last, loss) = ends[-3:]
    if (few := last - middle) >= (many := middle - first):
        return [loss]
    return [(before * many + loss * few) / (many + few)]


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
        sizes = _shared(load_config(FinetuneConfig, beside), config)
        yield ["finetune", beside, *sizes], "a classifier"
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
    config: FinetuneConfig,
    manifest: Manifest,
    records: Sequence[Mapping[str, float | None]],
) -> Iterator[tuple[list[str], str]]:
    folder, init = str(config.run.output_dir), config.model.init
    judged = [] if config.data.val_manifest else ["--manifest", *config.data.manifest]
    on = "" if config.data.val_manifest else "; better: a list that it was not trained on"
    best = _best(config, records)
    which = " for the last epoch" if best else ""
    yield ["evaluate", folder, *judged], f"figures, predictions and a page{which}{on}"
    if best is not None:
        yield ["evaluate", folder, *judged, "checkpoint=best"], f"the same for {best}"
    video = manifest.path(0)
    yield ["predict", folder, video, "-o", f"{folder}/classes.csv"], "classes of any videos"
    if init is not None and (Path(init) / "config.yaml").is_file():
        pictures = ["visualize", init, video, "--classifier", folder, "-o", f"{folder}/pictures"]
        yield pictures, "what is hard, beside what the classifier attends to"


def _best(config: FinetuneConfig, records: Sequence[Mapping[str, float | None]]) -> str | None:
    """The epoch of the run's best checkpoint, in words; None if it keeps none or the last one."""
    from hpm_video.weights.checkpoint import BEST

    if not (Path(str(config.run.output_dir)) / "checkpoints" / BEST).is_file():
        return None
    usual, by = "mean_ap" if config.data.labels.are_several else "top1", config.evaluation.best_by
    name = {"auto": usual, "first_top1": "top1", "loss": "val_loss"}.get(by, by)
    found = [(value, one.get("epoch") or 0) for one in records if (value := one.get(name))]
    if not found:
        return f"the epoch with the best {name} on data.val_manifest"
    sign, order = -1 if by == "loss" else 1, -1 if by == "first_top1" else 1
    value, epoch = max(found, key=lambda pair: (sign * pair[0], order * pair[1]))
    if epoch == found[-1][1]:
        return None
    return f"epoch {epoch:g}, with the best {name} ({value:.3f}) on data.val_manifest"


def _recipe(recipe: str, config: PretrainConfig, manifest: Manifest) -> list[str]:
    """Recipe for the fine-tuning, and the settings that it must share with the pre-training."""
    try:
        file = find_recipe("finetune", name := Path(recipe).stem)
    except FileNotFoundError:
        file = find_recipe("finetune", name := "own_videos")
    there = load_config(FinetuneConfig, file)
    words = _shared(there, config)
    data, optim = there.data, there.optim
    at_once = 1 if isinstance(data.batch_size, str) else data.batch_size
    accumulation = micro_batches(optim, batch_size=at_once, num_processes=1)
    if at_once * accumulation > len(manifest):
        words += fitting(data, optim, num_videos=len(manifest), num_processes=1)
    return [name, *words]


def _shared(there: FinetuneConfig, config: PretrainConfig) -> list[str]:
    """Settings that make a fine-tuning agree with the pre-training."""
    theirs, ours = config_to_dict(there), config_to_dict(config)
    return [
        f"{group}.{key}={_word(ours[group][key])}"
        for group, keys in _SHARED.items()
        for key in keys
        if ours[group][key] != theirs[group][key]
    ]


def _word(value: Any) -> str:
    return "null" if value is None else str(value)
