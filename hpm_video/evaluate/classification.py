"""Evaluation of a classifier: decode each video once, average the scores of its views."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpm_video.config import DataConfig, EvaluateConfig, FinetuneDataConfig, LabelsConfig
from hpm_video.config.values import StoredCheckpoint
from hpm_video.data.lists.classes import ClassNames, read_classes
from hpm_video.data.lists.manifest import (
    Manifest,
    check_fits_model,
    check_some_exist,
    read_manifest,
)
from hpm_video.data.lists.places import list_stem
from hpm_video.data.loading.bad_videos import none_readable
from hpm_video.data.loading.loader import view_loader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.evaluate.classification_page import write_evaluation
from hpm_video.evaluate.predictions import (
    Evaluation,
    SeveralLabels,
    make_results_folder,
    read_predictions,
)
from hpm_video.models.build import Baseline, Classifier
from hpm_video.models.precision import autocast, choose_precision
from hpm_video.runtime.distributed import World, gather_objects, join_world
from hpm_video.runtime.files import not_left_empty
from hpm_video.runtime.progress import Progress
from hpm_video.weights.checkpoint import BEST, find_checkpoint
from hpm_video.weights.foreign.stored_model import StoredModel, is_of_others, read_model
from hpm_video.weights.hub import local_model
from hpm_video.weights.load import classifier_of
from hpm_video.weights.run_folders import run_of

_NO_VALUE = 1e30
_FILES = {"last": "last", "best": BEST}  # checkpoint names in a run folder


def evaluate_classifier(
    model: Classifier | Baseline,
    manifest: Manifest,
    data: DataConfig,
    config: EvaluateConfig,
    world: World,
) -> Evaluation | SeveralLabels:
    """Run `score_videos` on a manifest labelled with the model's classes."""
    assert model.several_labels == (manifest.label_sets is not None)
    check_fits_model(manifest, model.num_classes)
    return score_videos(model, manifest, data, config, world)


@torch.no_grad()
def score_videos(
    model: Classifier | Baseline,
    manifest: Manifest,
    data: DataConfig,
    config: EvaluateConfig,
    world: World,
) -> Evaluation | SeveralLabels:
    """Score every video of a manifest; the result does not depend on the number of processes.

    ``data`` sets the clips; ``config`` sets views, precision and workers. The threshold of a
    multi-label model comes from ``config``, else it is 1/2. Raises FloatingPointError if a score is
    not finite: the weights do not form a working model.
    """
    settings, num_classes = config.evaluation, model.num_classes
    batch_size = min(settings.batch_size, len(manifest))
    loader = view_loader(
        ViewDataset(manifest, data, num_clips=settings.num_clips, num_crops=settings.num_crops),
        batch_size=batch_size,
        num_workers=config.num_workers,
        rank=world.rank,
        world_size=world.size,
        timeout_s=config.decode_timeout_s or None,
        device=world.device,
    )
    was_training = model.training
    model.eval()
    indices: list[int] = []
    means: list[Tensor] = [torch.empty(0, num_classes)]
    errors: list[str | None] = []
    share = range(world.rank, len(manifest), world.size)
    with Progress("evaluated" if world.is_main else "", total=len(share)) as progress:
        for batch in loader:
            num_videos, num_views = batch.views.shape[:2]
            # Pad the last batch: kernels round differently for other shapes, and the size of the
            # last batch depends on the number of processes
            views = batch.on(world.device, num_videos=batch_size)
            with autocast(world.device, config.precision):
                logits = model(views)[: num_videos * num_views]
            probability = model.scores(logits).unflatten(0, (num_videos, num_views))
            indices += batch.indices.tolist()
            means.append(probability.mean(dim=1).cpu())
            errors += batch.errors
            for error in batch.errors:
                progress.step(bad=error is not None)
    model.train(was_training)

    scores = np.zeros((len(manifest), num_classes), dtype=np.float32)
    bad: list[tuple[int, str]] = []
    for part in gather_objects((indices, torch.cat(means).numpy(), errors), world):
        for index, row, error in zip(*part, strict=True):
            if error is None:
                scores[index] = row
            else:
                bad.append((index, error))
    paths = tuple(manifest.path(index) for index in range(len(manifest)))
    for index in np.flatnonzero(~np.isfinite(scores).all(axis=1))[:1]:
        raise FloatingPointError(f"the model's scores for {paths[index]} are not finite")
    found = (paths, tuple(sorted(bad)), manifest.classes)
    if not model.several_labels:
        return Evaluation(scores, np.asarray(manifest.labels), *found)
    labels = np.zeros_like(scores, dtype=bool)
    if manifest.label_sets is not None:  # predict reads no labels
        labels = manifest.targets(np.arange(len(manifest)), num_classes) > 0
    threshold = 0.5 if settings.threshold is None else settings.threshold
    return SeveralLabels(scores, labels, *found, thresholds=(float(threshold),) * num_classes)


def thresholds_of(
    state: Mapping[str, Any], model: Classifier | Baseline, config: EvaluateConfig, *, source: Path
) -> tuple[tuple[float, ...] | None, str]:
    """Threshold of each class, and its source in words: the settings, else ``state``, else 1/2.

    ``state`` is the checkpoint. None for a single-label model. Raises ValueError if the settings
    have a threshold for such a model.
    """
    given, kept, count = config.evaluation.threshold, state.get("thresholds"), model.num_classes
    if not model.several_labels:
        if given is not None:
            raise ValueError(
                f"evaluation.threshold ({given}) must be left out: {source} was trained with one "
                "label per video"
            )
        return None, ""
    if given is not None:
        return (given,) * count, f"{given:g} for each class (evaluation.threshold)"
    if not kept:
        return (0.5,) * count, "0.5 for each class, as the checkpoint stores none"
    if len(kept) != count:
        raise ValueError(f"{source} has {len(kept)} thresholds: must have {count}, one per class")
    if (own := state["config"]["evaluation"].get("threshold")) is not None:
        return tuple(kept), f"{own:g} for each class, as in training"
    return tuple(kept), "per class, with the best F1 on data.val_manifest in training"


def best_in_words(found: StoredModel) -> str | None:
    """What to know about the best checkpoint of the model's run, whether this is it or the last
    one; None for other models, and for runs that keep none."""
    settings, state = found.state["config"]["evaluation"], found.state
    is_best = found.file.name == BEST and not {"best_by", "top1"}.isdisjoint(state)
    if not is_best and not (found.file.name == "last" and found.file.with_name(BEST).is_file()):
        return None
    is_both = not is_best and state.get("best_step") == state["step"]
    metric = state.get("best_by") or settings.get("best_by", "top1")
    metric = "top1" if metric == "first_top1" else metric  # of runs of older versions
    value = state.get("best_value" if is_best else "best_so_far")
    # The loss is kept with a minus; it is huge where no video was readable
    size = abs(value) if isinstance(value, float) else _NO_VALUE
    figure = f" ({size:.3f})" if size < _NO_VALUE else ""
    chosen = f"the best {metric}{figure} on data.val_manifest"
    if is_best or is_both:
        return f"it has {chosen}; that list chose it, so its figures there are too high"
    return f"this is the last checkpoint; checkpoint=best evaluates the one with {chosen}"


def labels_of(
    trained: LabelsConfig, given: LabelsConfig, *, checkpoint: str | Path
) -> LabelsConfig:
    """Label format of lists for a classifier: as given, else as in its training.

    Raises ValueError for multi-label lists if the classifier is single-label.
    """
    if given.are_several and not trained.are_several:
        raise ValueError(
            f"labels.separator and labels.columns must be left out: {checkpoint} was trained with "
            "one label per video"
        )
    return given if given.are_several else trained


def checkpoint_file(checkpoint: str | Path, which: StoredCheckpoint) -> Path:
    """Path of a checkpoint: the file itself, or the last or best one of a run folder."""
    return find_checkpoint(checkpoint, _FILES[which])


def load_finetuned(checkpoint: str | Path, config: EvaluateConfig) -> StoredModel:
    """Load a classifier of any origin; for a run folder, the checkpoint that the settings name.

    Raises FileNotFoundError if it is missing, ValueError if it is not a classifier.
    """
    return read_model(
        checkpoint, kind="finetune", which=_FILES[config.checkpoint], clip=config.clip
    )


def evaluate(
    checkpoint: str | Path,
    manifests: Sequence[str],
    config: EvaluateConfig,
    *,
    output_dir: str | Path | None = None,
) -> Evaluation | SeveralLabels:
    """Evaluate a fine-tuning checkpoint on lists of videos, with the views of ``config``.

    For a run folder ``config`` selects the last or best checkpoint; ``Evaluation.about`` records
    which. With ``output_dir``, rank 0 writes the files of `write_evaluation` there.
    """
    found = load_finetuned(checkpoint, config)
    model, trained, classes = classifier_of(found.state, source=found.file, clip=config.clip)
    manifest = read_manifest(
        list(manifests),
        root=config.root,
        classes=classes and _names(classes, found.file, trained.data, manifests),
        numbers_only=classes is None,
        several=labels_of(trained.data.labels, config.labels, checkpoint=found.file),
    )
    check_some_exist(manifest)
    check_fits_model(manifest, model.num_classes)
    views, data = config.evaluation, trained.data
    about = {
        "checkpoint": found.words,
        "lists": ", ".join(manifests),
        "views": f"{views.num_clips} x {views.num_crops} (clips x crops)",
        "clips": f"{data.num_frames} frames of {data.crop_size} x {data.crop_size} pixels",
    }
    thresholds, about_them = thresholds_of(found.state, model, config, source=found.file)
    if thresholds is not None:
        about["thresholds"] = about_them
    if (about_best := best_in_words(found)) is not None:
        about["best epoch"] = about_best
    warnings = [*found.notes, *manifest.notes]
    if again := manifest.num_repeated:
        warnings.append(f"rows that repeat a video: {again}; all of them count")
    if warnings:
        about["warning"] = "; ".join(warnings)
    folder = None
    if output_dir is not None:
        folder = make_results_folder(output_dir, name="--output-dir")
    with not_left_empty(folder), join_world(config.device, setting="device") as world:
        precision, why = choose_precision(config.precision, world, setting="precision")
        config = replace(config, precision=precision)
        about["precision"] = precision if why is None else f"{precision} (auto: {why})"
        result = evaluate_classifier(model.to(world.device), manifest, data, config, world)
        if len(result.bad) == len(result.labels):
            raise none_readable([(result.paths[index], reason) for index, reason in result.bad])
        result = replace(result, about=about)
        if isinstance(result, SeveralLabels) and thresholds is not None:
            result = replace(result, thresholds=thresholds)
        if folder is not None and world.is_main:
            _write(result, folder, config)
    return result


def _names(
    classes: Sequence[str], file: Path, data: FinetuneDataConfig, lists: Sequence[str]
) -> ClassNames:
    """A checkpoint's classes, with what to do if those of the ``lists`` differ."""
    folders = [Path(path).parent for path in (*data.manifest, *data.val_manifest)]
    if (run := run_of(file)) is not None:
        folders.append(run.above)
    same = (place / "classes.txt" for place in folders if _has_classes(place, classes))
    command = ["hpm-video", "predict", str(file), "--manifest", *lists]
    return ClassNames(
        tuple(classes),
        f"the classes of checkpoint {file}",
        file=str(next(same, "")),
        instead=f"; to predict the checkpoint's classes without labels: {shlex.join(command)}",
    )


def _has_classes(folder: Path, classes: Sequence[str]) -> bool:
    with suppress(OSError, ValueError):
        return read_classes(folder / "classes.txt").names == tuple(classes)
    return False


def recompute(
    folder: str | Path, config: EvaluateConfig, *, output_dir: str | Path
) -> Evaluation | SeveralLabels:
    """Rebuild pages and tables of an evaluation from the results in a folder, without a model."""
    result = read_predictions(folder)
    _write(result, make_results_folder(output_dir, name="--output-dir"), config)
    return result


def results_folder(
    checkpoint: str | Path, manifests: Sequence[str], which: StoredCheckpoint
) -> Path:
    """Default results folder: evaluation/<first list>[_best] in the run folder, or beside a
    checkpoint outside one."""
    if is_of_others(local_model(checkpoint)):
        raise ValueError(
            f"--output-dir (none) must name a folder for results, as {checkpoint} is not a run"
        )
    folder = checkpoint_file(checkpoint, which).parent
    if folder.name == "checkpoints":
        folder = folder.parent
    name = list_stem(manifests[0])
    return folder / "evaluation" / (f"{name}_best" if which == "best" else name)


def _write(result: Evaluation | SeveralLabels, folder: Path, config: EvaluateConfig) -> None:
    timeout_s = config.decode_timeout_s or None
    write_evaluation(result, folder, num_workers=config.num_workers, timeout_s=timeout_s)
