"""The data sets and cells of a study, with all their settings."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hpm_video.bench.study.few_labels import FewLabels
from hpm_video.config import (
    BaseRunConfig,
    DataSetConfig,
    FinetuneConfig,
    PretrainConfig,
    StudyConfig,
    VariantConfig,
)
from hpm_video.config.recipe import FOLDER
from hpm_video.config.settings import find_config, load_config, variant_settings, words_of
from hpm_video.data.lists.places import list_exists
from hpm_video.models.sizes import SIZES, heads_of

# Lists of videos of a data set; the last two are optional
_LISTS = ("pretrain", "train", "val", "hard_train", "hard_val")


@dataclass(frozen=True)
class Cell:
    """One training of the study: pre-training (or none), fine-tuning from it, evaluation.

    comparisons: the comparisons in which it counts. If equal epochs and equal time give the same
        number of epochs, one training serves both.
    epochs: of pre-training; 0 from scratch.
    lists: absolute paths of the data set's lists, including those of toy videos.
    few: fine-tuning runs on parts of the labelled videos, from the same pre-training.
    """

    data_set: str
    variant: str
    seed: int
    epochs: int
    comparisons: tuple[str, ...]
    folder: Path
    pretrain: PretrainConfig | None
    finetune: FinetuneConfig
    lists: DataSetConfig
    few: tuple[FewLabels, ...] = ()

    @property
    def finetunings(self) -> dict[str, FinetuneConfig]:
        """Folder name -> settings of fine-tuning; the run on all labels comes first."""
        few = {f"finetune_{part.name}": part.finetune for part in self.few}
        return {"finetune": self.finetune, **few}

    @property
    def jobs(self) -> dict[str, PretrainConfig | FinetuneConfig]:
        """Folder name -> settings of all runs of the cell, in order."""
        first = {} if self.pretrain is None else {"pretrain": self.pretrain}
        return {**first, **self.finetunings}

    @property
    def name(self) -> str:
        """Its name in messages, which is also its path below the study's cells folder."""
        return "/".join(self.folder.parts[-4:])


class Study:
    """A study's settings, its result folder, and the settings of every run.

    Relative paths of files of settings refer to ``home``.
    """

    def __init__(self, config: StudyConfig, *, home: Path, folder: Path) -> None:
        self.config, self.folder = _resolved(config, home), Path(os.path.abspath(folder))
        for group in ("sets", "variants"):
            if not getattr(config, group):
                raise ValueError(f"{group} ({{}}) must have at least one entry")
        self.base = next(iter(config.variants))
        base = config.variants[self.base]
        has_start = base.pretrain or config.init is not None
        if not has_start or base.settings or base.finetune or base.comparisons:
            rule = "must be pre-trained (or the study needs init) and have no settings of its own"
            raise ValueError(f"variants ({self.base}) {rule}: the first variant is the baseline")
        self.lists = {name: self._lists(name) for name in config.sets}

    def cells(self, rates: Mapping[tuple[str, str], int] | None = None) -> list[Cell]:
        """All cells in the order in which to run them.

        Variants with the most seeds, the main ones, come first. Cells are ordered by seed, so that
        an unfinished study has a few seeds of all variants.

        rates: (data set, variant) -> epochs that take as long as the base's; cells at equal time
        without an entry are left out.
        """
        counts = {variant: self.config.num_seeds(variant) for variant in self.config.variants}
        return [
            cell
            for count in sorted(set(counts.values()), reverse=True)
            for seed in range(count)
            for data_set in self.config.sets
            for variant in counts
            if counts[variant] == count
            for cell in self._cells(data_set, variant, seed, rates or {})
        ]

    @cache  # noqa: B019 - there is one study, and it takes as long as the process
    def pretraining(self, data_set: str, variant: str) -> PretrainConfig:
        """Settings of a variant's pre-training on a data set, without those that differ by cell."""
        lists, base = self.lists[data_set], self.config.pretrain
        words = [*words_of(base.settings), *words_of(self.config.variants[variant].settings)]
        words += _data(lists.root, manifest=lists.pretrain)
        words += ["run.keep_checkpoints=1", "run.picture_every=0", "run.history_checkpoints=0"]
        try:
            return load_config(PretrainConfig, base.config, words)
        except ValueError as error:
            raise ValueError(f"variants.{variant}: {error}") from error

    @cache  # noqa: B019 - as above
    def _finetuning(
        self, data_set: str, variant: str, part: tuple[str, ...] = ()
    ) -> FinetuneConfig:
        """Settings of a variant's fine-tuning, with those for a part of the labels, if any."""
        lists, base = self.lists[data_set], self.config.finetune
        words = [*words_of(base.settings), *words_of(self.config.variants[variant].finetune)]
        words += [*words_of(part), "run.keep_checkpoints=1"]
        words += _data(lists.root, manifest=lists.train, val_manifest=lists.val)
        try:
            config = load_config(FinetuneConfig, base.config, words)
        except ValueError as error:
            raise ValueError(f"finetune of variants.{variant}: {error}") from error
        if config.data.labels.are_several:
            raise ValueError(
                f"finetune of variants.{variant}: data.labels must be left out: studies compare "
                "top-1 accuracy, which needs one label per video"
            )
        return config

    def _cells(
        self, data_set: str, variant: str, seed: int, rates: Mapping[tuple[str, str], int]
    ) -> Iterator[Cell]:
        """The one or two cells of a variant and seed."""
        own = self.config.variants[variant]
        if not own.pretrain:
            yield self._cell(data_set, variant, seed, 0, ("epochs",))
            return
        wanted = own.comparisons or self.config.comparisons
        equal = self.pretraining(data_set, variant).optim.epochs
        trainings: dict[int, tuple[str, ...]] = {}  # epochs -> comparisons that they serve
        for kind, epochs in (("epochs", equal), ("time", rates.get((data_set, variant)))):
            if kind in wanted and epochs is not None:
                trainings[epochs] = (*trainings.get(epochs, ()), kind)
        for epochs, kinds in trainings.items():
            yield self._cell(data_set, variant, seed, epochs, kinds)

    def _cell(
        self, data_set: str, variant: str, seed: int, epochs: int, comparisons: tuple[str, ...]
    ) -> Cell:
        lists, finetune = self.lists[data_set], self._finetuning(data_set, variant)
        folder = self.folder / "cells" / data_set / comparisons[0] / variant / f"seed{seed}"
        pretrain, init = None, self.config.init
        if epochs:
            given, kinds = self.pretraining(data_set, variant), self.config.probes
            run = replace(given.run, seed=seed, output_dir=str(folder / "pretrain"))
            probe = given.probe
            if kinds:
                # At least before the first and after the last step
                run = replace(run, probe_every=self.config.probe_every or epochs)
                train, val = lists.train, lists.val
                probe = replace(probe, kinds=kinds, train_manifest=train, val_manifest=val)
            optim = replace(given.optim, epochs=epochs)
            pretrain = replace(given, run=run, probe=probe, optim=optim)
            init = run.output_dir
            _check_same_encoder(variant, pretrain, finetune)

        def of_cell(config: FinetuneConfig, name: str) -> FinetuneConfig:
            run = replace(config.run, seed=seed, output_dir=str(folder / name))
            return replace(config, run=run, model=replace(config.model, init=init))

        few = []
        for name, part in self.config.few_labels.items():
            manifest = self.folder / "data" / data_set / "few_labels" / f"{name}.csv"
            tuned = self._finetuning(data_set, variant, tuple(part.settings))
            tuned = replace(tuned, data=replace(tuned.data, manifest=[str(manifest)], weights=[]))
            own = of_cell(tuned, f"finetune_{name}")
            few.append(FewLabels(name, part.count, manifest, own))
        return Cell(
            data_set,
            variant,
            seed,
            epochs,
            comparisons,
            folder,
            pretrain,
            of_cell(finetune, "finetune"),
            lists,
            tuple(few),
        )

    def check_lists(self) -> None:
        """Raise FileNotFoundError for a missing list."""
        for name, lists in self.lists.items():
            if lists.toy.unlabelled:
                continue  # not created yet
            for path in (path for kind in _LISTS for path in getattr(lists, kind)):
                if not list_exists(path):
                    raise FileNotFoundError(f"list ({path}) of sets.{name} does not exist")

    def _lists(self, name: str) -> DataSetConfig:
        """A data set with its lists; those of toy videos may not exist yet."""
        given = self.config.sets[name]
        if not given.toy.unlabelled:
            for kind in _LISTS[:3]:
                if not getattr(given, kind):
                    raise ValueError(f"sets.{name}.{kind} ([]) must name a list of videos")
            return given
        for kind in _LISTS:
            if paths := getattr(given, kind):
                toys = f"toy videos, sets.{name}.toy.unlabelled={given.toy.unlabelled}"
                raise ValueError(f"sets.{name}.{kind} ({paths}) must be left out with {toys}")
        folder = self.folder / "data" / name
        return replace(
            given,
            pretrain=[str(folder / "train" / "manifest.csv")],
            train=[str(folder / f"labelled_{given.toy.labelled}.csv")],
            val=[str(folder / "held_out" / "manifest.csv")],
            root=None,
        )


def _check_same_encoder(variant: str, pretrain: PretrainConfig, finetune: FinetuneConfig) -> None:
    """Raise ValueError early for mismatches that fine-tuning would find after pre-training."""
    if finetune.model.allow_missing:
        return
    for name, of in (
        ("width", lambda model: model.width or SIZES[model.size].width),
        ("depth", lambda model: model.depth or SIZES[model.size].depth),
        ("heads", lambda model: heads_of(model.size, model.heads)),
        ("positions", lambda model: model.positions),
    ):
        if (mine := of(finetune.model)) != (theirs := of(pretrain.model)):
            rule = f"must be {theirs}, as in the pre-training of variants.{variant}"
            raise ValueError(f"model.{name} ({mine}) of finetune {rule}")


def _resolved(config: StudyConfig, home: Path) -> StudyConfig:
    """The config with absolute paths, and with the settings that variants take from other files.

    Paths of files of settings refer to ``home``, those of lists to the working directory.
    """

    def found(path: str) -> str:
        """A file beside the study or, for a copy of one of our studies, beside the original."""
        for folder in (home, FOLDER / "ablation"):
            with suppress(FileNotFoundError):
                find_config(folder / path)
                return os.path.abspath(folder / path)
        return os.path.abspath(home / path)

    def shared(run: BaseRunConfig) -> BaseRunConfig:
        return replace(run, config=run.config and found(run.config))

    def with_paths(given: DataSetConfig) -> DataSetConfig:
        changed: dict[str, Any] = {k: [*map(os.path.abspath, getattr(given, k))] for k in _LISTS}
        root = None if given.root is None else os.path.abspath(given.root)
        return replace(given, **changed, root=root)

    def with_settings(name: str, given: VariantConfig) -> VariantConfig:
        settings = []
        for text in given.settings:
            try:
                is_plain = "=" in text or not text.strip()
                settings += [text] if is_plain else variant_settings(found(text))
            except (ValueError, FileNotFoundError) as error:
                raise ValueError(f"variants.{name}.settings: {error}") from error
        return replace(given, settings=settings)

    return replace(
        config,
        init=config.init and os.path.abspath(config.init),
        pretrain=shared(config.pretrain),
        finetune=shared(config.finetune),
        sets={name: with_paths(given) for name, given in config.sets.items()},
        variants={name: with_settings(name, given) for name, given in config.variants.items()},
    )


def _data(root: str | None, **lists: Sequence[str]) -> list[str]:
    """Settings of the group data for the root and lists of paths, quoted for YAML."""
    words = [] if root is None else [f"data.root={root}"]
    for key, paths in lists.items():
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        words.append(f"data.{key}=[{quoted}]")
    return words
