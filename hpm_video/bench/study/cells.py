"""What a study consists of: its data sets and cells, with all their settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hpm_video.config import (
    BaseRunConfig,
    DataSetConfig,
    FinetuneConfig,
    PretrainConfig,
    StudyConfig,
)
from hpm_video.config.settings import load_config
from hpm_video.config.study import words_of
from hpm_video.models.build import SIZES, heads_of

Rates = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Lists:
    """Lists of one data set, as absolute paths."""

    pretrain: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]
    hard_train: tuple[str, ...]
    hard_val: tuple[str, ...]
    root: str | None


@dataclass(frozen=True)
class Cell:
    """One training of the study: pre-training (or none), fine-tuning from it, evaluation.

    comparisons: those it counts in. Where the number of epochs is the same at equal epochs and at
        equal time, one training serves both.
    epochs: of pre-training; 0 from scratch.
    """

    data_set: str
    variant: str
    seed: int
    epochs: int
    comparisons: tuple[str, ...]
    folder: Path
    pretrain: PretrainConfig | None
    finetune: FinetuneConfig
    lists: Lists

    @property
    def name(self) -> str:
        """As it is called on screen, and its place within the study's cells."""
        return "/".join(self.folder.parts[-4:])


class Study:
    """A study file, its folder of results, and the settings of every run.

    Args:
        config: the study's settings.
        home: where relative paths of its files of settings start.
        folder: of results.
    """

    def __init__(self, config: StudyConfig, *, home: Path, folder: Path) -> None:
        self.config, self.folder = _resolved(config, home), Path(os.path.abspath(folder))
        for group in ("sets", "variants"):
            if not getattr(config, group):
                raise ValueError(f"{group} ({{}}) must name at least one")
        self.base = next(iter(config.variants))
        base = config.variants[self.base]
        if not base.pretrain or base.settings or base.comparisons:
            raise ValueError(
                f"variants ({self.base}) must be pre-trained and without settings or comparisons "
                "of its own: the first is the base of comparison"
            )
        self.lists = {name: self._lists(name) for name in config.sets}

    def cells(self, rates: Rates | None = None) -> list[Cell]:
        """All cells: those of variants with the most seeds, which the study is about, come first;
        among these, seed by seed, so that an unfinished study has few seeds of all of them.

        rates: (data set, variant) -> epochs that take as long as the base's; cells that need one
        that is not known yet are left out.
        """
        counts = {variant: self.config.num_seeds(variant) for variant in self.config.variants}
        return [
            cell
            for count in sorted(set(counts.values()), reverse=True)
            for seed in range(count)
            for data_set in self.config.sets
            for variant in counts
            if counts[variant] == count
            for cell in self._cells(data_set, variant, seed, rates)
        ]

    @cache  # noqa: B019 - there is one study, and it takes as long as the process
    def pretraining(self, data_set: str, variant: str) -> PretrainConfig:
        """Settings of a variant's pre-training on a data set, but for what sets cells apart."""
        lists, base = self.lists[data_set], self.config.pretrain
        words = [*words_of(base.settings), *words_of(self.config.variants[variant].settings)]
        words += [_listing("data.manifest", lists.pretrain), *_root(lists)]
        words += ["run.keep_checkpoints=1", "run.picture_every=0"]
        try:
            return load_config(PretrainConfig, base.config, words)
        except ValueError as error:
            raise ValueError(f"variants.{variant}: {error}") from error

    def _cells(self, data_set: str, variant: str, seed: int, rates: Rates | None) -> Iterator[Cell]:
        """One or two of a variant and seed."""
        of_study, own = self.config.comparisons, self.config.variants[variant].comparisons
        wanted = [kind for kind in of_study if not own or kind in own]
        if not self.config.variants[variant].pretrain:
            yield self._cell(data_set, variant, seed, 0, ("epochs",))
            return
        equal = self.pretraining(data_set, variant).optim.epochs
        at_equal_time = (rates or {}).get((data_set, variant))
        both = "time" in wanted and at_equal_time == equal
        if "epochs" in wanted or both:
            comparisons = ("epochs", "time") if both else ("epochs",)
            yield self._cell(
                data_set, variant, seed, equal, tuple(c for c in comparisons if c in wanted)
            )
        if "time" in wanted and at_equal_time is not None and not both:
            yield self._cell(data_set, variant, seed, int(at_equal_time), ("time",))

    def _cell(
        self, data_set: str, variant: str, seed: int, epochs: int, comparisons: tuple[str, ...]
    ) -> Cell:
        lists = self.lists[data_set]
        folder = self.folder / "cells" / data_set / comparisons[0] / variant / f"seed{seed}"
        pretrain = self._with_seed(data_set, variant, seed, epochs, folder) if epochs else None
        finetune = self._finetuning(data_set)
        run = replace(finetune.run, seed=seed, output_dir=str(folder / "finetune"))
        if pretrain is not None:
            self._check_same_encoder(variant, pretrain, finetune)
        init = None if pretrain is None else pretrain.run.output_dir
        finetune = replace(finetune, run=run, model=replace(finetune.model, init=init))
        return Cell(data_set, variant, seed, epochs, comparisons, folder, pretrain, finetune, lists)

    @staticmethod
    def _check_same_encoder(
        variant: str, pretrain: PretrainConfig, finetune: FinetuneConfig
    ) -> None:
        """Raise ValueError now for what fine-tuning would refuse after hours of pre-training."""
        if finetune.model.allow_missing:
            return
        for name, of in (
            ("width", lambda model: model.width or SIZES[model.size].width),
            ("depth", lambda model: model.depth or SIZES[model.size].depth),
            ("heads", lambda model: heads_of(model.size, model.heads)),
            ("positions", lambda model: model.positions),
        ):
            if (mine := of(finetune.model)) != (theirs := of(pretrain.model)):
                raise ValueError(
                    f"model.{name} ({mine}) of finetune must be {theirs}, as in the pre-training "
                    f"of variants.{variant}"
                )

    @cache  # noqa: B019 - as above
    def _finetuning(self, data_set: str) -> FinetuneConfig:
        lists, base = self.lists[data_set], self.config.finetune
        words = [*words_of(base.settings), _listing("data.manifest", lists.train)]
        words += [_listing("data.val_manifest", lists.val), *_root(lists)]
        return load_config(FinetuneConfig, base.config, [*words, "run.keep_checkpoints=1"])

    def _with_seed(
        self, data_set: str, variant: str, seed: int, epochs: int, folder: Path
    ) -> PretrainConfig:
        config, lists = self.pretraining(data_set, variant), self.lists[data_set]
        run = replace(config.run, seed=seed, output_dir=str(folder / "pretrain"))
        probe = config.probe
        if self.config.probes:
            # Once before the first step and once after the last one, whatever is between
            run = replace(run, probe_every=self.config.probe_every or epochs)
            probe = replace(
                probe,
                kinds=list(self.config.probes),
                train_manifest=list(lists.train),
                val_manifest=list(lists.val),
            )
        return replace(config, run=run, probe=probe, optim=replace(config.optim, epochs=epochs))

    def check_lists(self) -> None:
        """Raise FileNotFoundError for a list that is not there."""
        for name, lists in self.lists.items():
            if self.config.sets[name].toy.unlabelled:
                continue  # still to be made
            labelled = (*lists.train, *lists.val, *lists.hard_train, *lists.hard_val)
            for path in (*lists.pretrain, *labelled):
                if not os.path.exists(path):
                    raise FileNotFoundError(f"list ({path}) of sets.{name} does not exist")

    def _lists(self, name: str) -> Lists:
        """The lists of a data set; those of toy videos are still to be made."""
        given = self.config.sets[name]
        if given.toy.unlabelled:
            for kind in ("pretrain", "train", "val", "hard_train", "hard_val"):
                if paths := getattr(given, kind):
                    raise ValueError(
                        f"sets.{name}.{kind} ({paths}) must be left out with toy videos, "
                        f"sets.{name}.toy.unlabelled={given.toy.unlabelled}"
                    )
            folder = self.folder / "data" / name
            whole, held_out = (
                folder / "train" / "manifest.csv",
                folder / "held_out" / "manifest.csv",
            )
            labelled = folder / f"labelled_{given.toy.labelled}.csv"
            return Lists((str(whole),), (str(labelled),), (str(held_out),), (), (), None)
        for kind in ("pretrain", "train", "val"):
            if not getattr(given, kind):
                raise ValueError(f"sets.{name}.{kind} ([]) must name a list of videos")
        return Lists(
            tuple(given.pretrain),
            tuple(given.train),
            tuple(given.val),
            tuple(given.hard_train),
            tuple(given.hard_val),
            given.root,
        )


def _resolved(config: StudyConfig, home: Path) -> StudyConfig:
    """The same with absolute paths: of files of settings, which start at ``home``, and lists."""

    def shared(run: BaseRunConfig) -> BaseRunConfig:
        path = None if run.config is None else os.path.abspath(home / run.config)
        return replace(run, config=path)

    def of_set(data_set: DataSetConfig) -> DataSetConfig:
        return replace(
            data_set,
            pretrain=absolute(data_set.pretrain),
            train=absolute(data_set.train),
            val=absolute(data_set.val),
            hard_train=absolute(data_set.hard_train),
            hard_val=absolute(data_set.hard_val),
            root=None if data_set.root is None else os.path.abspath(data_set.root),
        )

    def absolute(paths: Sequence[str]) -> list[str]:
        return [os.path.abspath(path) for path in paths]

    sets = {name: of_set(data_set) for name, data_set in config.sets.items()}
    return replace(
        config, pretrain=shared(config.pretrain), finetune=shared(config.finetune), sets=sets
    )


def _listing(key: str, paths: Sequence[str]) -> str:
    """A setting whose value is a list of texts, whatever they contain."""
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    return f"{key}=[{quoted}]"


def _root(lists: Lists) -> list[str]:
    return [] if lists.root is None else [f"data.root={lists.root}"]
