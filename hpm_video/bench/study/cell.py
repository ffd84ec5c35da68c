"""Runs one cell of a study: pre-training, fine-tuning, and a row of all measurements."""

import json
import math
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from itertools import chain
from typing import Any

from hpm_video.bench.report import machine_facts
from hpm_video.bench.study.cells import Cell
from hpm_video.bench.study.few_labels import area
from hpm_video.config import PretrainConfig, ProbeJobConfig, StudyConfig
from hpm_video.config.settings import config_to_dict, words_of
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.evaluate.mining_quality import measure_videos
from hpm_video.evaluate.probe import probe
from hpm_video.runtime.distributed import pick_device
from hpm_video.runtime.files import write_atomically
from hpm_video.runtime.reading import read_json
from hpm_video.train.finetune import finetune
from hpm_video.train.pretrain import pretrain
from hpm_video.train.run.folder import changed_settings
from hpm_video.train.run.logs import read_records

Row = dict[str, Any]
_FOLLOWED = ("rank_accuracy", "hard_ratio")  # training figures for which curves are kept


class Stopped(Exception):  # noqa: N818 - it is an answer
    """Raised if a signal stops a cell, after its run has saved."""


def read_row(cell: Cell) -> Row | None:
    """The row of a cell; None if it is not finished. Raises ValueError if the file is damaged."""
    file = cell.folder / "row.json"
    if not file.is_file():
        return None
    try:
        row: Row = read_json(file)
    except ValueError:
        row = {}
    if not isinstance(row, dict) or not _is_row_of(cell, row):
        rule = f"must be the row of {cell.name}; if you remove it, the cell runs again"
        raise ValueError(f"{file} is damaged: {rule}")
    return row


def _is_row_of(cell: Cell, row: Row) -> bool:
    """Whether a row names its cell, and its other values have the types that `_measure` writes."""
    names = {"data_set": cell.data_set, "variant": cell.variant, "seed": cell.seed}
    names["folder"] = cell.name
    if any(row.get(key) != value for key, value in names.items()):
        return False
    curves = [key for key in row if key == "probe_epochs" or key.endswith("_curve")]
    lists = [row[key] for key in curves]
    if not all(isinstance(values, list) for values in lists):
        return False
    needed = ["epochs", "top1", "balanced_accuracy", *(["steps"] if cell.pretrain else [])]
    needed += ["labels_area"] if cell.few else []
    others = row.keys() - {*names, *curves, "settings", "finetune", "machine"}
    # Figures that could not be measured are None
    figures = [row.get(key) for key in needed]
    figures += [row[key] for key in others if row[key] is not None]
    has_one_length = len(set(map(len, lists))) <= 1
    return has_one_length and all(map(_is_finite, chain(figures, *lists)))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def check_cell(cell: Cell, study: StudyConfig, *, before: Cell | None = None) -> None:
    """Raise ValueError if a finished cell was run with other settings than the study has now.

    Its run folders may have been removed or be on another machine. Then the epochs and the
    variant's settings in its row are compared. The other settings are compared with ``before``, the
    cell according to the stored study, if known.
    """
    if (row := read_row(cell)) is None:
        return  # its runs check their own settings
    changed = [] if row["epochs"] == cell.epochs else ["optim.epochs"]
    for name, own in _own_settings(cell, study).items():
        if sorted(words_of(row.get(name, own))) != sorted(words_of(own)):
            changed.append(f"variants.{cell.variant}.{name}")
    known = {} if before is None else before.jobs
    for job, config in cell.jobs.items():
        if (cell.folder / job / "config.yaml").is_file():
            changed += changed_settings(config)
        elif (other := known.get(job)) is not None:
            changed += changed_settings(config, config_to_dict(other))
    if changed:
        names = ", ".join(dict.fromkeys(changed))
        given = f"the cell {cell.name} of a study with other settings ({names})"
        raise ValueError(f"--output-dir holds {given}: choose another folder")


def run_cell(cell: Cell, study: StudyConfig) -> None:
    """Run what is left of a cell and write its row. Raises Stopped, and errors of its runs."""
    # The output of runs is in their log.txt
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        is_done = cell.pretrain is None or pretrain(cell.pretrain)
        if not (is_done and all(map(finetune, cell.finetunings.values()))):
            raise Stopped
        row = _measure(cell, study)
    write_atomically(cell.folder / "row.json", [json.dumps(row, indent=1) + "\n"])
    if not study.keep_checkpoints:
        remove_checkpoints(cell)


def has_checkpoints(cell: Cell) -> bool:
    return any((cell.folder / job / "checkpoints").is_dir() for job in cell.jobs)


def remove_checkpoints(cell: Cell) -> None:
    """Remove the checkpoints of a finished cell."""
    for job in cell.jobs:
        shutil.rmtree(cell.folder / job / "checkpoints", ignore_errors=True)


def _measure(cell: Cell, study: StudyConfig) -> Row:
    """The row of a cell whose runs are complete. Figures without unit in the name are fractions."""
    evaluation = _evaluation(cell, "finetune")
    row: Row = {
        "data_set": cell.data_set,
        "variant": cell.variant,
        "seed": cell.seed,
        "epochs": cell.epochs,
        "folder": cell.name,
        **_own_settings(cell, study),
        "machine": machine_facts(pick_device(cell.finetune.run.device, setting="run.device")),
        "finetune_step": evaluation["step"],
        **{name: evaluation[name] for name in ("top1", "balanced_accuracy", "unreadable")},
    }
    if cell.pretrain is None:
        return row | _few_labels(cell, row, ())
    row |= _of_pretraining(cell, cell.pretrain)
    lists = cell.lists
    if lists.hard_val and study.probes:
        hard = _probe(cell, cell.pretrain, lists.hard_train, lists.hard_val, study.probes)
        row |= {f"hard_{name}": value for name, value in hard.items()}
    row |= _few_labels(cell, row, study.probes)
    report = measure_videos(
        cell.folder / "pretrain", cell.lists.val, root=cell.lists.root, most=study.mining_videos
    )
    if report.rank_accuracy is not None:
        row["rank_accuracy"] = report.rank_accuracy
        row["spearman"] = report.spearman
        row["object_coverage"] = report.coverage
    for source, found in report.sources.items():
        if source != "predicted":
            row[f"{source}_spearman"] = found.spearman
            row[f"{source}_object_coverage"] = found.coverage
    row["mining_videos"] = len(report.measured)
    return row


def _own_settings(cell: Cell, study: StudyConfig) -> dict[str, list[str]]:
    """The variant's own settings, with their keys in a study file."""
    variant = study.variants[cell.variant]
    settings = [] if cell.pretrain is None else list(variant.settings)
    return {"settings": settings, **({"finetune": variant.finetune} if variant.finetune else {})}


def _of_pretraining(cell: Cell, config: PretrainConfig) -> Row:
    """The part of the row that comes from the records of pre-training."""
    records = read_records(cell.folder / "pretrain")
    training = [record for record in records if "loss" in record]
    last = training[-1]
    # The median, as some periods include a probe or the start of the loader
    rate = statistics.median(record["clips_per_second"] for record in training)
    optim, data = config.optim, config.data
    videos = optim.total_batch or data.videos_at_once * optim.accumulation
    row: Row = {
        "steps": last["step"],
        **{name: last[name] for name in ("reconstruction_loss", "feature_variation")},
        "clips_per_second": rate,
        "training_seconds": last["step"] * videos * data.repeats / rate,
    }
    probes = [record for record in records if "unreadable" in record]
    accuracies = [name for name in probes[-1] if _is_accuracy(name)] if probes else []
    row |= {name: probes[-1][name] for name in accuracies}
    row["probe_epochs"] = [record["epoch"] for record in probes]
    row |= {f"{name}_curve": [record[name] for record in probes] for name in accuracies}
    if probes:
        row |= {f"{name}_curve": _course(name, training, probes) for name in _FOLLOWED}
    return row


def _course(
    name: str, training: Sequence[Mapping[str, Any]], probes: Sequence[Mapping[str, Any]]
) -> list[float]:
    """A training figure at each probe: the mean of the records since the previous probe.

    Without such records, as before the first step, the first record counts. Records without the
    figure count as 0.
    """
    values, since = [], 0
    for asked in probes:
        passed = [record for record in training if since < record["step"] <= asked["step"]]
        values.append(statistics.mean(r.get(name) or 0 for r in passed or training[:1]))
        since = asked["step"]
    return values


def _probe(
    cell: Cell,
    config: PretrainConfig,
    train: Sequence[str],
    val: Sequence[str],
    kinds: Sequence[str],
) -> Row:
    """Accuracies of probes on a cell's pre-trained encoder, with the given lists."""
    run, data = config.run, config.data
    job = ProbeJobConfig(
        root=cell.lists.root,
        device=run.device,
        precision=run.precision,
        num_workers=data.num_workers,
        decode_timeout_s=data.decode_timeout_s,
        probe=config.probe,
    )
    report = probe(cell.folder / "pretrain", train=train, val=val, kinds=kinds, config=job)
    assert report is not None
    return {name: value for name, value in report.record().items() if _is_accuracy(name)}


def _few_labels(cell: Cell, whole: Row, kinds: Sequence[str]) -> Row:
    """Accuracies with fewer labels, and the areas under the curves up to all labels (``whole``)."""
    row: Row = {}
    counts = {part.count: f"labels_{part.count}_" for part in cell.few}
    for part in cell.few:
        found: Row = dict(_evaluation(cell, f"finetune_{part.name}"))
        if cell.pretrain is not None and kinds:
            found |= _probe(cell, cell.pretrain, [str(part.manifest)], cell.lists.val, kinds)
        row |= {f"{counts[part.count]}{n}": v for n, v in found.items() if _is_balanced(n)}
    if counts:
        all_labels = len(read_manifest(cell.lists.train, root=cell.lists.root))
        for name in filter(_is_balanced, whole):
            known = {count: row[f"{prefix}{name}"] for count, prefix in counts.items()}
            stem = name.removesuffix("balanced_accuracy")
            row[f"{stem}labels_area"] = area({**known, all_labels: whole[name]})
    return row


def _evaluation(cell: Cell, job: str) -> Mapping[str, Any]:
    """The last evaluation of a fine-tuning run."""
    records = read_records(cell.folder / job)
    return next(record for record in reversed(records) if "top1" in record)


def _is_balanced(name: str) -> bool:
    return name.endswith("balanced_accuracy") and not name.startswith(("hard_", "best_", "labels_"))


def _is_accuracy(name: str) -> bool:
    return name.endswith(("_top1", "_balanced_accuracy"))
