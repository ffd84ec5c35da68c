"""Evaluation of a classifier: several views per video, decoded once, one verdict per video."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpm_video.config import DataConfig, EvaluateConfig
from hpm_video.config.values import StoredCheckpoint
from hpm_video.data.lists.manifest import Manifest, check_fits_model, read_manifest
from hpm_video.data.lists.shards import list_stem
from hpm_video.data.loading.bad_videos import none_readable
from hpm_video.data.loading.loader import view_loader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.evaluate.classification_page import write_evaluation
from hpm_video.evaluate.predictions import Evaluation, make_results_folder, read_predictions
from hpm_video.models.build import Baseline, Classifier
from hpm_video.models.precision import autocast, choose_precision
from hpm_video.runtime.distributed import World, gather_objects, join_world
from hpm_video.runtime.files import not_left_empty
from hpm_video.weights.checkpoint import BEST, find_checkpoint, load_checkpoint
from hpm_video.weights.foreign.to_ours import import_weights
from hpm_video.weights.hub import local_model
from hpm_video.weights.load import classifier_of

_FILES = {"last": "last", "best": BEST}  # of the checkpoints of a run


def evaluate_classifier(
    model: Classifier | Baseline,
    manifest: Manifest,
    data: DataConfig,
    config: EvaluateConfig,
    world: World,
) -> Evaluation:
    """`score_videos` of a manifest whose labels are the model's."""
    check_fits_model(manifest, model.num_classes)
    return score_videos(model, manifest, data, config, world)


@torch.no_grad()
def score_videos(
    model: Classifier | Baseline,
    manifest: Manifest,
    data: DataConfig,
    config: EvaluateConfig,
    world: World,
) -> Evaluation:
    """Score every video of a manifest; the result does not depend on the number of processes.

    Clips are those of ``data``; views, precision and workers are those of ``config``. Raises
    FloatingPointError for a score that is not finite: the weights are not of a working model.
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
    for batch in loader:
        num_videos, num_views = batch.views.shape[:2]
        # A smaller last batch is filled up: kernels round differently for another shape, and how
        # many videos the last batch has depends on the number of processes
        views = batch.on(world.device, num_videos=batch_size)
        with autocast(world.device, config.precision):
            logits = model(views)[: num_videos * num_views]
        probability = logits.float().softmax(dim=-1).unflatten(0, (num_videos, num_views))
        indices += batch.indices.tolist()
        means.append(probability.mean(dim=1).cpu())
        errors += batch.errors
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
        raise FloatingPointError(f"the model's scores of {paths[index]} are not finite")
    labels = np.asarray(manifest.labels)
    return Evaluation(scores, labels, paths, tuple(sorted(bad)), manifest.classes)


def checkpoint_file(checkpoint: str | Path, which: StoredCheckpoint) -> Path:
    """A checkpoint by its own path, or the last or the best one of a run folder."""
    return find_checkpoint(checkpoint, _FILES[which])


def load_finetuned(
    checkpoint: str | Path, which: StoredCheckpoint
) -> tuple[Path, Mapping[str, Any]]:
    """A checkpoint of a fine-tuning, and where it lies. A classifier in a folder of Hugging Face
    becomes one.

    Raises FileNotFoundError or ValueError where it is missing, or is none.
    """
    folder = local_model(checkpoint)
    if not (folder / "config.json").is_file():
        file = checkpoint_file(checkpoint, which)
        return file, load_checkpoint(file, kind="finetune")
    state = import_weights(folder).state
    if state["kind"] != "finetune":
        raise ValueError(f"checkpoint ({checkpoint}) is no classifier: must be one")
    return folder, state


def evaluate(
    checkpoint: str | Path,
    manifests: Sequence[str],
    config: EvaluateConfig,
    *,
    output_dir: str | Path | None = None,
) -> Evaluation:
    """Evaluate a fine-tuning checkpoint on lists of videos, with the views of ``config``.

    Of a run folder it is the last checkpoint, or the best one; ``Evaluation.about`` says which.
    With ``output_dir`` the main process writes there what `write_evaluation` does.
    """
    file, state = load_finetuned(checkpoint, config.checkpoint)
    model, trained, classes = classifier_of(state, source=file, clip=config.clip)
    manifest = read_manifest(
        list(manifests), root=config.root, classes=classes, numbers_only=classes is None
    )
    check_fits_model(manifest, model.num_classes)
    views, data = config.evaluation, trained.data
    about = {
        "checkpoint": f"{file}, step {state['step']}",
        "lists": ", ".join(manifests),
        "views": f"{views.num_clips} x {views.num_crops} (clips x crops)",
        "clips": f"{data.num_frames} frames of {data.crop_size} x {data.crop_size} pixels",
    }
    warnings = list(manifest.notes)
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
        if folder is not None and world.is_main:
            _write(result, folder, config)
    return result


def recompute(folder: str | Path, config: EvaluateConfig, *, output_dir: str | Path) -> Evaluation:
    """The evaluation whose results are in a folder, without a model; pages and tables anew."""
    result = read_predictions(folder)
    _write(result, make_results_folder(output_dir, name="--output-dir"), config)
    return result


def results_folder(
    checkpoint: str | Path, manifests: Sequence[str], which: StoredCheckpoint
) -> Path:
    """Where results are put unless one says otherwise: evaluation/<first list>[_best] in the run
    folder, or beside a checkpoint that lies in none."""
    if (local_model(checkpoint) / "config.json").is_file():
        raise ValueError(
            f"--output-dir (none) must name a folder for results: {checkpoint} is no run"
        )
    folder = checkpoint_file(checkpoint, which).parent
    if folder.name == "checkpoints":
        folder = folder.parent
    name = list_stem(manifests[0])
    return folder / "evaluation" / (f"{name}_best" if which == "best" else name)


def _write(result: Evaluation, folder: Path, config: EvaluateConfig) -> None:
    timeout_s = config.decode_timeout_s or None
    write_evaluation(result, folder, num_workers=config.num_workers, timeout_s=timeout_s)
