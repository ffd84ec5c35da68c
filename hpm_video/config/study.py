"""Settings of ``hpm-video bench ablation``: a study of variants over data sets and seeds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpm_video.config.evaluation import check_probe_kinds
from hpm_video.config.limits import all_at_least, at_least
from hpm_video.config.schema import setting
from hpm_video.config.settings import words_of
from hpm_video.config.values import Clock, Comparison, values_of

COMPARISONS = values_of(Comparison)

# Settings that the study sets for each cell.
_OF_THE_STUDY = (
    "run.output_dir", "run.seed", "run.probe_every", "data.manifest", "data.val_manifest",
    "data.root", "model.init", "probe.kinds", "probe.train_manifest", "probe.val_manifest",
)  # fmt: skip
# Settings that variants must share with the baseline to be comparable.
_SHARED = ("data", "optim.epochs", "optim.accumulation", "optim.total_batch", "run.device")


@dataclass(frozen=True)
class BaseRunConfig:
    """Settings shared by all runs of a kind."""

    config: str | None = setting(None, "file of settings, relative to the study file")
    settings: list[str] = setting([], "settings that override the file's, as group.key=value")

    def __post_init__(self) -> None:
        _check_words("settings", self.settings)


@dataclass(frozen=True)
class ToySetConfig:
    unlabelled: int = setting(
        0, "toy videos to make for pre-training; 0: the set has lists instead"
    )
    labelled: int = setting(
        480, "toy videos of pre-training that also get labels, for fine-tuning and probes"
    )
    held_out: int = setting(400, "further toy videos to evaluate on")
    size: int = setting(64, "height and width of a toy video in pixels")
    num_frames: int = setting(16, "frames per toy video")

    def __post_init__(self) -> None:
        all_at_least("toy.", self, unlabelled=0, labelled=1, held_out=1)
        if self.unlabelled and self.labelled > self.unlabelled:
            most = f"toy.unlabelled ({self.unlabelled})"
            raise ValueError(f"toy.labelled ({self.labelled}) must be at most {most}")


@dataclass(frozen=True)
class DataSetConfig:
    toy: ToySetConfig = field(default_factory=ToySetConfig)
    pretrain: list[str] = setting([], "lists of videos to pre-train on")
    train: list[str] = setting([], "lists of labelled videos for fine-tuning and probes")
    val: list[str] = setting([], "lists of labelled videos to evaluate on")
    hard_train: list[str] = setting([], "lists of labelled videos for a second, harder probe")
    hard_val: list[str] = setting([], "lists of labelled videos to evaluate the second probe on")
    root: str | None = setting(
        None, "folder where relative paths start; null: the folder of each list"
    )

    def __post_init__(self) -> None:
        if bool(self.hard_train) != bool(self.hard_val):
            raise ValueError("hard_train and hard_val of a data set must both be given, or neither")


@dataclass(frozen=True)
class FewLabelsConfig:
    count: int = setting(
        1, "number of labelled videos: the first of each class, equally many per class"
    )
    settings: list[str] = setting([], "further settings of fine-tuning on few labels")

    def __post_init__(self) -> None:
        at_least("few_labels.count", self.count, 1)
        _check_words("few_labels.settings", self.settings, shared=("run.device",))


@dataclass(frozen=True)
class VariantConfig:
    settings: list[str] = setting(
        [], "settings of pre-training that differ from the baseline, or LIST.yaml:NAME"
    )
    seeds: int | None = setting(None, "number of seeds of this variant; null: as in the study")
    finetune: list[str] = setting([], "further settings of fine-tuning for this variant")
    pretrain: bool = setting(
        True, "pre-train this variant; false: fine-tune it from `init`, at equal epochs only"
    )
    comparisons: list[str] = setting([], "comparisons of this variant; []: those of the study")


@dataclass(frozen=True)
class StudyConfig:
    """Settings of ``hpm-video bench ablation``; the first variant is the baseline."""

    pretrain: BaseRunConfig = field(default_factory=BaseRunConfig)
    finetune: BaseRunConfig = field(default_factory=BaseRunConfig)
    init: str | None = setting(
        None, "run or weights from which variants with pretrain=false start; null: from scratch"
    )
    sets: dict[str, DataSetConfig] = setting({}, "data sets by name")
    variants: dict[str, VariantConfig] = setting({}, "variants by name; the first is the baseline")
    seeds: int = setting(3, "number of seeds per variant: 0, 1, ...")
    comparisons: list[str] = setting(
        ["epochs"], "what variants have in common with the baseline: epochs, time, or both"
    )
    probes: list[str] = setting(["linear"], "kinds of probe: knn, linear, attentive")
    few_labels: dict[str, FewLabelsConfig] = setting(
        {}, "parts of the labelled videos, by name, to fine-tune and probe on as well"
    )
    probe_every: int = setting(0, "epochs between probes; 0: only before and after")
    mining_videos: int = setting(
        128, "number of videos from the lists `val` that measure how well losses are predicted"
    )
    clock: Clock = setting(
        "process", "clock of the calibration; process: processor time; wall: for GPUs"
    )
    calibration_rounds: int = setting(
        9, "steps of each variant in the calibration, in turns; the median counts"
    )
    keep_checkpoints: bool = setting(False, "keep the checkpoints of finished cells")

    def __post_init__(self) -> None:
        all_at_least("", self, seeds=1, mining_videos=1, calibration_rounds=1, probe_every=0)
        if self.probes:
            check_probe_kinds("probes", self.probes)
        _check_comparisons("comparisons", self.comparisons, of=COMPARISONS)
        named: dict[str, dict[str, Any]] = {
            "sets": self.sets, "variants": self.variants, "few_labels": self.few_labels,
        }  # fmt: skip
        for group, names in named.items():
            for name in names:
                if not re.fullmatch(r"\w[\w.+-]*", name):
                    rule = (
                        "must consist of letters, digits, _, ., + and -: it becomes a folder name"
                    )
                    raise ValueError(f"{group} ({name}) {rule}")
        counts = [part.count for part in self.few_labels.values()]
        if len(set(counts)) < len(counts):
            raise ValueError(f"few_labels must have different counts, not {counts}")
        for name, variant in self.variants.items():
            self._check_variant(f"variants.{name}", variant)

    def _check_variant(self, name: str, variant: VariantConfig) -> None:
        _check_words(f"{name}.settings", variant.settings, shared=_SHARED)
        _check_words(f"{name}.finetune", variant.finetune, shared=_SHARED)
        at_least(f"{name}.seeds", variant.seeds, 1)
        if variant.comparisons:
            _check_comparisons(f"{name}.comparisons", variant.comparisons, of=self.comparisons)
        for key, given in (("settings", variant.settings), ("comparisons", variant.comparisons)):
            if given and not variant.pretrain:
                rule = "must be left out with pretrain: false"
                raise ValueError(f"{name}.{key} ({' '.join(given)}) {rule}")

    def num_seeds(self, variant: str) -> int:
        """Number of seeds of a variant."""
        return self.variants[variant].seeds or self.seeds


def _check_comparisons(name: str, comparisons: list[str], *, of: Sequence[str]) -> None:
    if not comparisons or set(comparisons) - set(of) or len(set(comparisons)) < len(comparisons):
        given = ", ".join(comparisons)
        raise ValueError(f"{name} ({given}) must be chosen from {', '.join(of)}, each once")


def _check_words(name: str, settings: list[str], *, shared: Sequence[str] = ()) -> None:
    for word in words_of(settings, name=name):
        key = word.partition("=")[0]
        if key in _OF_THE_STUDY:
            raise ValueError(f"{name} ({word}) must be left out: the study sets it for each cell")
        if any(f"{key}.".startswith(f"{group}.") for group in shared):
            raise ValueError(f"{name} ({word}) must be left out: all variants share it")
