"""``hpm-video bench ablation``: its statistics against scipy, its plan, and tiny studies run for
real: finished, failed, stopped, shared with another process."""

import csv
import errno
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assert_same_run
from scipy import stats

from hpm_video.bench.study import calibration, cell, runner
from hpm_video.bench.study.cells import Study
from hpm_video.bench.study.comparison import Comparison, corrected, estimate, pairs_needed
from hpm_video.bench.study.few_labels import area
from hpm_video.bench.study.plots import write_plots
from hpm_video.bench.study.runner import check_study
from hpm_video.bench.study.summary import _document
from hpm_video.cli.main import main
from hpm_video.config import StudyConfig
from hpm_video.config.settings import load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.prepare.toy_drawing import CLASSES
from hpm_video.slurm.command import make_plan, read_command
from hpm_video.train.run.logs import read_records

CONFIGS = Path(__file__).parents[2] / "configs"

_SHARED = (
    "run.device=cpu run.precision=float32 run.log_every=2 run.save_in_background=false "
    "data.num_frames=4 data.frame_stride=1 data.crop_size=32 data.batch_size=8 data.num_workers=0 "
    "model.width=32 model.depth=1 model.heads=2 model.patch_size=8 optim.epochs=2 "
    "optim.warmup_epochs=0"
)
_PRETRAIN = (
    f"{_SHARED} model.decoder_width=32 model.decoder_heads=2 model.decoder_depth=1 "
    "masking.mask_ratio=0.75 masking.hard_ratio_end=1"
)
_FINETUNE = (
    f"{_SHARED} model.drop_path=0 augment.num_operations=0 augment.erasing=0 mixing.mixup=0 "
    "mixing.cutmix=0 evaluation.num_clips=1 evaluation.num_crops=1"
)
_VIDEOMAE = "loss.prediction=none masking.hard_ratio_end=0"


def _settings(toy: Path, **others: Any) -> dict[str, Any]:
    """Of a study with the list ``toy`` for everything, two variants and one seed."""
    lists = {"pretrain": str(toy), "train": str(toy), "val": str(toy)}
    return {
        "pretrain": {"settings": _PRETRAIN},
        "finetune": {"settings": _FINETUNE},
        "sets": {"toy": lists},
        "variants": {"hpm": {}, "plain": {"settings": _VIDEOMAE}},
        "seeds": 1,
        "probes": ["knn"],
        "mining_videos": 6,
        "calibration_rounds": 1,
        **others,
    }


def _file(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(json.dumps(settings))  # which is YAML too
    return path


def _study(folder: Path, settings: dict[str, Any]) -> Study:
    folder.mkdir(exist_ok=True)
    config = load_config(StudyConfig, _file(folder, settings))
    return Study(config, home=folder, folder=folder / "out")


def _calibrated(study: Study, data_set: str, seconds: dict[str, float]) -> None:
    """As if steps had been measured."""
    base = seconds[study.base]
    file = calibration.calibration_file(study, data_set)
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = {
        name: {"seconds_per_step": value, "base_seconds_per_step": base}
        for name, value in seconds.items()
    }
    file.write_text(json.dumps(entries))


# Statistics


def test_intervals_are_those_of_scipy() -> None:
    values = [0.52, 0.61, 0.47, 0.58, 0.55]
    found = estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.spread == pytest.approx(statistics.stdev(values))
    assert found.count == 5
    assert found.excludes_zero


def test_an_interval_by_hand() -> None:
    # t(.975) of 2 degrees of freedom is 4.3027; mean 2, deviation 1, so 4.3027 / sqrt(3) each way
    found = estimate([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert not found.excludes_zero


def test_p_values_are_those_of_scipy_and_corrected_as_holm_has_it() -> None:
    values = [0.52, -0.61, 0.47, 0.58, 0.55]
    assert estimate(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    # As R's p.adjust(c(.01, .04, .03, .005), "holm") has them
    assert corrected([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = corrected([0.02, math.nan, 0.9])
    assert (found[0], found[2]) == pytest.approx((0.04, 0.9)) and math.isnan(found[1])


@pytest.mark.parametrize(("ratio", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (2.0, 5)])
def test_pairs_needed_are_those_of_published_tables(ratio: float, pairs: int) -> None:
    """Of a paired t-test of two sides, 5 %, power 80 %, as G*Power and R's pwr have them."""
    assert pairs_needed(0.3, 0.3 * ratio) == pairs


def test_the_summary_marks_what_the_correction_leaves() -> None:
    """One of three variants differs far more than its seeds spread, one barely."""
    base = dict.fromkeys(range(4), 0.5)
    rows = [{"variant": "base", "seed": s, "balanced_accuracy": v} for s, v in base.items()]
    for name, gains in {
        "far": (0.2, 0.21, 0.2, 0.19), "barely": (0.01, 0.05, 0.06, 0.08), "not": (0.1, -0.1, 0, 0),
    }.items():  # fmt: skip
        rows += [
            {"variant": name, "seed": s, "balanced_accuracy": 0.5 + g} for s, g in enumerate(gains)
        ]
    text = "\n".join(_document([Comparison("toy", "epochs", "base", tuple(rows))], [], []))
    assert "| far | 4 | **+0.200 [+0.187, +0.213] †** |" in text
    assert "| barely | 4 | **+0.050 [+0.003, +0.097]** |" in text
    needed = pairs_needed(statistics.stdev((0.01, 0.05, 0.06, 0.08)), 0.05)
    assert "in 80% of studies" in text and f"barely {needed}" in text


def _compared(ours: dict[int, float], base: dict[int, float]) -> Comparison:
    """A comparison of two variants, whose figures are given by seed."""
    rows = [
        {"variant": variant, "seed": seed, "top1": value}
        for variant, values in (("base", base), ("ours", ours))
        for seed, value in values.items()
    ]
    return Comparison("toy", "epochs", "base", tuple(rows))


def test_differences_are_paired_by_seed() -> None:
    ours = {0: 0.9, 1: 0.5, 2: 0.7, 7: 0.1}
    base = {2: 0.66, 1: 0.44, 0: 0.85, 3: 0.0}
    found = _compared(ours, base).difference("ours", "top1")
    assert found is not None
    shared = ([0.9, 0.5, 0.7], [0.85, 0.44, 0.66])
    expected = stats.ttest_rel(*shared).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.count == 3
    # The seeds' own spread is large: unpaired, nothing would be seen
    assert found.excludes_zero
    assert not stats.ttest_ind(*shared).confidence_interval(0.95).low > 0


def test_names_of_variants_are_no_formulas(tmp_path: Path) -> None:
    """What matplotlib takes for one may be none that it can draw."""
    variants = ("base", r"$\frac{$", "a$b^^$")
    rows = tuple(
        {"variant": name, "seed": seed, "top1": seed} for name in variants for seed in (0, 1)
    )
    assert len(write_plots(Comparison("$_$", "epochs", "base", rows), tmp_path)) == 2


def test_one_value_has_no_interval_and_none_no_difference() -> None:
    found = estimate([0.3])
    assert (found.count, found.mean) == (1, 0.3)
    assert math.isnan(found.low) and math.isnan(found.spread) and not found.excludes_zero
    assert not _compared({0: 1.0}, {1: 1.0}).differences("ours", "top1")


def test_values_that_are_all_the_same_have_an_interval_of_no_width() -> None:
    found = estimate([36, 36, 36])
    assert (found.mean, found.spread, found.low, found.high) == (36, 0, 36, 36)


def test_a_comparison_leaves_out_what_a_cell_does_not_have() -> None:
    rows = tuple(
        {"variant": variant, "seed": seed, "spearman": value}
        for variant, seed, value in (("a", 0, 0.2), ("a", 1, 0.4), ("b", 0, None), ("b", 1, 0.5))
    )
    comparison = Comparison("toy", "epochs", "a", rows)
    assert comparison.values("b", "spearman") == {1: 0.5}
    difference = comparison.difference("b", "spearman")
    assert difference is not None and difference.mean == pytest.approx(0.1)
    assert comparison.difference("a", "spearman") is None
    assert comparison.estimate("b", "top1") is None


# The plan


def test_rows_of_many_seeds_come_first_and_at_equal_time_with_other_epochs(
    toy: Path, tmp_path: Path
) -> None:
    variants = {
        "hpm": {"seeds": 2},
        "plain": {"settings": _VIDEOMAE},
        "same": {"settings": "teacher.draws=2"},
        "scratch": {"pretrain": False, "seeds": 2},
        "epochs_only": {"settings": _VIDEOMAE, "comparisons": ["epochs"]},
        "time_only": {"settings": _VIDEOMAE, "comparisons": ["time"]},
    }
    settings = _settings(toy, variants=variants, comparisons=["epochs", "time"])
    settings["pretrain"] = {"settings": f"{_PRETRAIN} optim.epochs=20"}
    study = _study(tmp_path, settings)
    seconds = {"hpm": 0.2, "plain": 0.15, "same": 0.207, "epochs_only": 0.15, "time_only": 0.15}
    _calibrated(study, "toy", seconds)
    cells = study.cells(calibration.epochs_of_equal_time(study))
    assert [(one.variant, one.seed, one.epochs, one.comparisons) for one in cells] == [
        ("hpm", 0, 20, ("epochs", "time")),
        ("scratch", 0, 0, ("epochs",)),
        ("hpm", 1, 20, ("epochs", "time")),
        ("scratch", 1, 0, ("epochs",)),
        ("plain", 0, 20, ("epochs",)),
        ("plain", 0, 27, ("time",)),  # 20 * .2 / .15
        ("same", 0, 20, ("epochs", "time")),
        ("epochs_only", 0, 20, ("epochs",)),
        ("time_only", 0, 27, ("time",)),
    ]
    assert len({one.folder for one in cells}) == len(cells)
    for one in cells:
        assert one.finetune.run.seed == one.seed
        init = one.finetune.model.init
        assert (init is None) == (one.pretrain is None)
        if one.pretrain is not None:
            assert init == one.pretrain.run.output_dir == str(one.folder / "pretrain")
            assert one.pretrain.optim.epochs == one.epochs
            assert one.pretrain.run.seed == one.seed
            assert one.pretrain.probe.val_manifest == [str(toy)]
    assert cells[4].pretrain and cells[4].pretrain.loss.prediction == "none"


def test_a_dear_variant_still_gets_past_its_warm_up(toy: Path, tmp_path: Path) -> None:
    settings = _settings(toy)
    settings["pretrain"] = {"settings": f"{_PRETRAIN} optim.epochs=20 optim.warmup_epochs=4"}
    study = _study(tmp_path, settings)
    _calibrated(study, "toy", {"hpm": 0.1, "plain": 1.0})
    assert calibration.epochs_of_equal_time(study) == {("toy", "hpm"): 20, ("toy", "plain"): 5}


def test_what_was_calibrated_is_not_measured_again(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(tmp_path, _settings(toy))
    _calibrated(study, "toy", {"hpm": 0.1, "plain": 0.2})
    measured: list[list[str]] = []

    def measure(study: Study, data_set: str, names: list[str], say: object) -> dict[str, Any]:
        measured.append(names)
        return {name: {"seconds_per_step": 1.0, "base_seconds_per_step": 2.0} for name in names}

    monkeypatch.setattr(calibration, "_measure", measure)
    calibration.calibrate(study, print)
    assert not measured
    # A variant that comes later is measured beside the base, and leaves the others alone
    variants = {"hpm": {}, "plain": {"settings": _VIDEOMAE}, "new": {"settings": "teacher.draws=2"}}
    study = _study(tmp_path, _settings(toy, variants=variants))
    calibration.calibrate(study, print)
    assert measured == [["new"]]
    epochs = calibration.epochs_of_equal_time(study)
    assert epochs == {("toy", "hpm"): 2, ("toy", "plain"): 1, ("toy", "new"): 4}
    # On a machine ten times as slow by then, it took half as long as the base
    seconds = calibration.seconds_per_step(study)
    assert seconds == {("toy", "hpm"): 0.1, ("toy", "plain"): 0.2, ("toy", "new"): 0.05}


def test_loading_counts_for_every_micro_batch(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(toy)
    pretraining = {**settings["pretrain"]}
    pretraining["settings"] = f"{pretraining['settings']} optim.accumulation=3"
    study = _study(tmp_path, {**settings, "pretrain": pretraining})

    def seconds(functions: dict[str, Callable[[], object]], **_: Any) -> dict[str, list[float]]:
        return {name: [0.5 if name == calibration._LOADING else 1.0] for name in functions}

    monkeypatch.setattr(calibration, "round_seconds", seconds)
    monkeypatch.setattr(calibration, "config_step", lambda *_: lambda: None)
    entry = calibration._measure(study, "toy", ["plain"], print)["plain"]
    assert (entry["loading_seconds_per_step"], entry["seconds_per_step"]) == (1.5, 2.5)


def test_several_processes_of_one_job_are_refused(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    file = _file(tmp_path, _settings(toy))
    assert main(["bench", "ablation", str(file), "-o", str(tmp_path / "out")]) == 2
    assert "number of processes in one job (2) must be 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variants": {}}, ["variants", "at least one"]),
        ({"variants": {"hpm": {"settings": "teacher.draws=2"}}}, ["hpm", "base"]),
        ({"variants": {"hpm": {}, "x": {"settings": "data.repeats=2"}}}, ["data.repeats=2"]),
        (
            {"variants": {"hpm": {}, "x": {"settings": "optim.epochs=9"}}},
            ["variants.x.settings (optim.epochs=9)", "share"],
        ),
        (
            {"variants": {"hpm": {}, "x": {"settings": "loss.prediction='none"}}},
            ["variants.x.settings (loss.prediction='none)", "quotation marks"],
        ),
        (
            {"variants": {"hpm": {}, "x": {"settings": "loss.predicton=none"}}},
            ["variants.x", "loss.predicton", "loss.prediction"],
        ),
        (
            {"variants": {"hpm": {}, "x": {"settings": "none.yaml:x"}}},
            ["variants.x.settings: config (", "none.yaml:x) does not exist"],
        ),
        ({"variants": {"hpm": {}, "x": {"seeds": 0}}}, ["variants.x.seeds (0)"]),
        ({"comparisons": ["epochs", "epochs"]}, ["comparisons (epochs, epochs)", "each once"]),
        ({"comparisons": []}, ["comparisons ()", "epochs, time"]),
        (
            {"comparisons": ["epochs"], "variants": {"hpm": {}, "x": {"comparisons": ["time"]}}},
            ["variants.x.comparisons (time)", "chosen from epochs"],
        ),
        ({"variants": {"hpm": {}, "x": {"settings": "run.seed=2"}}}, ["run.seed=2", "left out"]),
        ({"variants": {"hpm": {}, "a/b": {}}}, ["a/b", "a folder name"]),
        ({"variants": {"hpm": {"seedz": 2}}}, ["variants.hpm.seedz", "unknown", "seeds"]),
        ({"variants": {"hpm": 3}}, ["variants.hpm (3)", "group"]),
        ({"variants": {"hpm": {}, "x": {"settings": "masking.mask_ratio=2"}}}, ["mask_ratio (2"]),
        (
            {"variants": {"hpm": {}, "odd": {"settings": "masking.tube_length=3"}}},
            ["variants.odd", "masking.tube_length (3)"],  # found by calibrating
        ),
        ({"sets": {"toy": {"train": "x.csv"}}}, ["sets.toy.pretrain"]),
        ({"comparisons": ["epoch"]}, ["comparisons (epoch)", "epochs, time"]),
        (
            {"variants": {"hpm": {}, "x": {"comparisons": ["speed"]}}},
            ["variants.x.comparisons (speed)", "must be chosen from epochs"],
        ),
        (
            {"variants": {"hpm": {}, "x": {"pretrain": False, "comparisons": ["epochs"]}}},
            ["variants.x.comparisons (epochs)", "pretrain: false"],
        ),
        (
            {"variants": {"hpm": {"comparisons": ["epochs"]}}},
            ["variants (hpm)", "have no settings of its own"],
        ),
        ({"seeds": 0}, ["seeds (0)"]),
        ({"few_labels": {"a": {"count": 0}}}, ["few_labels.count (0)"]),
        ({"few_labels": {"a": {"count": 99}}}, ["few_labels.a", "count (99)", "sets.toy"]),
        ({"few_labels": {"a": {"count": 3}, "b": {"count": 3}}}, ["different counts"]),
        ({"probes": ["svm"]}, ["probes (svm)"]),
    ],
)
def test_mistakes_are_one_line(
    change: dict[str, Any],
    words: list[str],
    toy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = _file(tmp_path, _settings(toy, **change))
    assert main(["bench", "ablation", str(file), "-o", str(tmp_path / "out")]) == 2
    complaint = capsys.readouterr().err.strip()
    assert len(complaint.splitlines()) == 1
    assert all(word in complaint for word in words), complaint
    assert not (tmp_path / "out" / "cells").exists()


def test_lists_are_given_on_the_command_line(toy: Path, tmp_path: Path) -> None:
    words = [f"sets.signs.{name}={toy}" for name in ("pretrain", "train", "val")]
    path = CONFIGS / "ablation" / "study_signs.yaml"
    study = Study(load_config(StudyConfig, path, words), home=path.parent, folder=tmp_path)
    study.check_lists()
    assert study.lists["signs"].train == [str(toy)]


def test_a_variant_of_a_study_takes_its_settings_from_a_list(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"base: {{optim: {{epochs: 7}}}}\nvariants: {{plain: {{settings: {_VIDEOMAE}}}}}\n"
    )
    settings = ["mine.yaml:plain", "teacher.draws=2"]
    variants = {"hpm": {}, "own": {"settings": settings}}
    study = _study(tmp_path, _settings(toy, variants=variants))
    assert study.config.variants["own"].settings == [_VIDEOMAE, "teacher.draws=2"]
    config = study.pretraining("toy", "own")
    assert (config.loss.prediction, config.teacher.draws) == ("none", 2)
    assert config.optim.epochs == 2  # the base of the list is not that of the study


@pytest.mark.parametrize("name", ["study_toy", "study_signs", "study_gpu"])
def test_the_committed_studies_have_the_seeds_that_evidence_needs(
    name: str, tmp_path: Path
) -> None:
    study = _committed(CONFIGS / "ablation" / f"{name}.yaml", tmp_path)
    config = study.config
    assert study.base == "hpm"
    assert config.comparisons == ["epochs", "time"]
    for variant in config.variants:
        is_main = variant in ("hpm", "videomae", "loss_prediction", "scratch")
        assert config.num_seeds(variant) >= (5 if is_main else 3)


def _committed(path: Path, folder: Path) -> Study:
    parts = ("pretrain", "train", "val") if "signs" in path.stem else ()
    words = [f"sets.signs.{part}=list.csv" for part in parts]
    words += ["init=pre"] if path.stem == "study_adapt" else []
    return Study(load_config(StudyConfig, path, words), home=path.parent, folder=folder)


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "ablation").glob("study_*.yaml")), ids=lambda path: path.stem
)
def test_all_cells_of_the_committed_studies_are_valid(path: Path, tmp_path: Path) -> None:
    for one in _committed(path, tmp_path).cells():
        if "signs" in path.stem and one.pretrain is not None:
            optim, data = one.pretrain.optim, one.pretrain.data
            # A learning rate with which encoders do not collapse (docs/results.md)
            assert optim.base_lr * data.batch_size / 256 < 5e-4
            assert one.pretrain.loss.normalize_targets


def test_parts_of_an_array_are_tasks_that_run_each_cell_once(toy: Path, tmp_path: Path) -> None:
    file = _file(tmp_path, _settings(toy))
    words = ["bench", "ablation", str(file), "-o", str(tmp_path / "out")]
    plan = make_plan(read_command(words), num_parts=3)
    assert [task.arguments for task in plan.tasks] == [
        (*words, "--part", f"{part}/3") for part in (1, 2, 3)
    ]
    with pytest.raises(ValueError, match=r"job \(bench flops\)"):
        read_command(["bench", "flops"])


def test_parts_hold_all_cells_once_and_all_variants(toy: Path, tmp_path: Path) -> None:
    cells = _study(tmp_path, _settings(toy, seeds=4)).cells()
    for num_parts in (1, 2, 3, 5):
        parts = [runner._of_part(cells, part + 1, num_parts) for part in range(num_parts)]
        assert sorted(cell.name for part in parts for cell in part) == sorted(
            cell.name for cell in cells
        )
    for part in (1, 2):
        found = {cell.variant for cell in runner._of_part(cells, part, 2)}
        assert found == {"hpm", "plain"}


def test_a_variant_that_cannot_do_a_step_is_said_and_left_out(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(tmp_path, _settings(toy, comparisons=["epochs", "time"]))

    def too_large(config: Any, *_: Any) -> Callable[[], object]:
        if config.loss.prediction == "none":
            raise RuntimeError("can't allocate memory")
        return lambda: None

    said: list[str] = []
    monkeypatch.setattr(calibration, "config_step", too_large)
    monkeypatch.setattr(
        calibration, "round_seconds", lambda functions, **_: {name: [1.0] for name in functions}
    )
    calibration.calibrate(study, said.append)
    assert said == ["variants.plain: cannot measure a step on sets.toy: can't allocate memory"]
    assert calibration.epochs_of_equal_time(study) == {("toy", "hpm"): 2}


def test_what_an_interrupted_start_left_is_no_foreign_file(tmp_path: Path) -> None:
    for name in (".study.yaml.123.tmp", "tmpabc"):
        (tmp_path / name).touch()
    (tmp_path / "preparation").mkdir()
    runner._claim(tmp_path)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        runner._claim(tmp_path)


def test_a_full_disk_is_one_line_and_no_lock_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with (
            pytest.raises(ValueError, match=r"run.lock cannot be written: No space left"),
            runner._holding(tmp_path),
        ):
            pass
    claim = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", claim, str(tmp_path / "run.lock")]
    assert subprocess.run(command, check=False).returncode == 0


# Studies that run


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A study file, its folder and the exit code; one of its variants cannot run."""
    folder = tmp_path_factory.mktemp("study")
    variants = {
        "hpm": {},
        "broken": {"settings": "masking.tube_length=3"},  # of 2 time steps
        "plain": {"settings": _VIDEOMAE},
        "scratch": {"pretrain": False},
    }
    toys = {"toy": {"unlabelled": 16, "labelled": 8, "held_out": 8, "size": 32, "num_frames": 8}}
    file = _file(folder, _settings(toy, variants=variants, sets={"made": toys}))
    # The broken one cannot be calibrated either: as if it had been
    study = Study(load_config(StudyConfig, file), home=folder, folder=folder / "out")
    _calibrated(study, "made", {"hpm": 0.1, "broken": 0.1, "plain": 0.1})
    return file, folder / "out", main(["bench", "ablation", str(file), "-o", str(folder / "out")])


def test_few_labels_are_points_of_one_figure(toy: Path, tmp_path: Path) -> None:
    """Of each class the first videos; a fine-tuning and probes of each part, from the same
    pre-training, and the area under them."""
    toys = {"unlabelled": 48, "labelled": 48, "held_out": 8, "size": 32, "num_frames": 8}
    parts = {"few": {"count": 12, "settings": "optim.epochs=1"}, "more": {"count": 24}}
    settings = _settings(toy, sets={"made": {"toy": toys}}, few_labels=parts, variants={"hpm": {}})
    study = _study(tmp_path / "a", settings)
    _calibrated(study, "made", {"hpm": 0.1})
    asked = ["bench", "ablation", str(_file(tmp_path, settings)), "-o", str(study.folder)]
    assert main(asked) == 0
    folder = study.folder / "cells" / "made" / "epochs" / "hpm" / "seed0"
    row = json.loads((folder / "row.json").read_text())
    whole = read_manifest(study.folder / "data" / "made" / "labelled_48.csv")
    known = {}
    for name, count in (("few", 12), ("more", 24)):
        part = study.folder / "data" / "made" / "few_labels" / f"{name}.csv"
        videos = read_manifest(part)
        assert len(videos) == count
        for label in range(8):
            paths = [p for p in map(whole.path, range(48)) if f"/{CLASSES[label]}/" in p]
            number = count // 8 + (label < count % 8)
            mine = [videos.path(i) for i in np.flatnonzero(videos.labels == label)]
            assert mine == paths[:number]
        records = read_records(folder / f"finetune_{name}")
        evaluation = next(r for r in reversed(records) if "top1" in r)
        assert evaluation["epoch"] == (1 if name == "few" else 2)
        known[count] = row[f"labels_{count}_balanced_accuracy"]
        assert known[count] == evaluation["balanced_accuracy"]
        assert 0 <= row[f"labels_{count}_knn_balanced_accuracy"] <= 1
    a, b, c = known[12], known[24], row["balanced_accuracy"]
    assert row["labels_area"] == pytest.approx(((a + b) / 2 + (b + c) / 2) / 2)
    text = (study.folder / "summary.md").read_text()
    assert "fine-tuned, area over labels" in text and "nearest neighbours, area" in text
    assert not list(folder.rglob("*.pt"))
    # Another part is another figure
    settings["few_labels"] = {**parts, "few": {"count": 16, "settings": "optim.epochs=1"}}
    with pytest.raises(ValueError, match="few_labels"):
        check_study(_study(tmp_path / "a", settings))


def test_the_area_is_over_the_logarithm() -> None:
    assert area({10: 0.2, 40: 0.6}) == pytest.approx(0.4)
    assert area({40: 0.6, 10: 0.2, 20: 0.6}) == pytest.approx(0.5)
    assert area({10: 0.3, 20: 0.3, 480: 0.3}) == pytest.approx(0.3)


@pytest.fixture
def copied(finished: tuple[Path, Path, int], tmp_path: Path) -> tuple[Path, Path]:
    """The same study file, and a copy of its folder to change."""
    file, out, _ = finished
    return file, shutil.copytree(out, tmp_path / "out")


def test_a_cell_that_fails_is_named_and_the_others_run(finished: tuple[Path, Path, int]) -> None:
    _, out, code = finished
    assert code == 1
    cells = out / "cells" / "made" / "epochs"
    assert sorted(path.parent.parent.name for path in cells.rglob("row.json")) == [
        *("hpm", "plain", "scratch")
    ]
    assert "tube_length" in (cells / "broken" / "seed0" / "failed.txt").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["missing"] == ["made/epochs/broken/seed0"]


def test_every_figure_is_that_of_a_run_folder(finished: tuple[Path, Path, int]) -> None:
    _, out, _ = finished
    with (out / "summary.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["variant"] for row in rows] == ["hpm", "plain", "scratch", "before training"]
    first = next(r for r in read_records(out / "cells" / rows[-1]["folder"] / "pretrain"))
    assert float(rows[-1]["knn_top1"]) == first["knn_top1"] and not rows[-1]["top1"]
    for row in rows[:-1]:
        cell_folder = out / "cells" / row["folder"]
        evaluation = read_records(cell_folder / "finetune")[-1]
        assert float(row["top1"]) == evaluation["top1"]
        assert float(row["balanced_accuracy"]) == evaluation["balanced_accuracy"]
        if row["variant"] == "scratch":
            assert row["knn_top1"] == row["feature_variation"] == ""
            continue
        records = read_records(cell_folder / "pretrain")
        probes = [record for record in records if "knn_top1" in record]
        assert [record["epoch"] for record in probes] == [0, 2]
        assert float(row["knn_top1"]) == probes[-1]["knn_top1"]
        training = [record for record in records if "loss" in record]
        assert float(row["feature_variation"]) == training[-1]["feature_variation"]
        rates = [record["clips_per_second"] for record in training]
        assert float(row["clips_per_second"]) == statistics.median(rates)
        assert float(row["training_seconds"]) == pytest.approx(4 * 8 / statistics.median(rates))
        assert float(row["compute_seconds"]) == pytest.approx(4 * 0.1)
        # Only who predicts loss can be asked how well, and toy videos say where the object is
        for name in ("rank_accuracy", "spearman", "object_coverage"):
            assert (row[name] == "") == (row["variant"] == "plain")


def test_the_summary_has_paired_differences_and_pictures(finished: tuple[Path, Path, int]) -> None:
    _, out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    found = summary["comparisons"][0]["estimates"]
    top1 = {row["variant"]: row.get("top1") for row in summary["comparisons"][0]["rows"]}
    difference = found["plain"]["top1"]["difference"]
    assert difference["mean"] == pytest.approx(top1["plain"] - top1["hpm"])
    assert difference["count"] == 1 and difference["low"] is None
    text = (out / "summary.md").read_text()
    assert "Difference from `hpm`" in text and "| plain |" in text
    pictures = sorted(path.name for path in (out / "plots").iterdir())
    kinds = ("curves", "differences", "values")
    assert pictures == [f"made_epochs.{kind}.png" for kind in kinds]
    assert all(f"plots/{name}" in text for name in pictures)


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a tiny study."""
    monkeypatch.setattr("hpm_video.bench.study.plots.write_plots", lambda comparison, folder: [])


@pytest.mark.usefixtures("_no_pictures")
def test_what_is_finished_is_never_done_again(
    finished: tuple[Path, Path, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out, _ = finished
    done: list[str] = []
    monkeypatch.setattr(cell, "pretrain", lambda config: done.append(config.run.output_dir))
    monkeypatch.setattr(cell, "finetune", lambda config: done.append(config.run.output_dir))
    # The file in the folder is the same study, wherever it is started from
    assert main(["bench", "ablation", str(out / "study.yaml"), "-o", str(out)]) == 1
    assert [Path(folder).parts[-3:] for folder in done] == [("broken", "seed0", "pretrain")]
    assert "stopped" in capsys.readouterr().out  # the double ends before it is done
    before = (out / "summary.csv").read_text()
    assert main(["bench", "ablation", str(file), "-o", str(out), "--summary"]) == 0
    assert (out / "summary.csv").read_text() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["sets.made.val=x.csv"],
            "sets.made.val (['{here}/x.csv']) must be left out with toy videos",
        ),
        (["sets.made.toy.size=30"], "sets.made.toy: size (30) must be at least 32"),
        (
            ["variants.deep.settings=model.depth=2"],
            "model.depth (1) of finetune must be 2, as in the pre-training of variants.deep",
        ),
        (
            ["variants.own.settings=model.positions=stored"],
            "model.positions (sinusoid) of finetune must be stored, as in the pre-training of",
        ),
    ],
)
def test_what_a_study_cannot_do_is_said_before_it_begins(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.yaml"
    jobs = f"pretrain: {{settings: {_PRETRAIN}}}\nfinetune: {{settings: {_FINETUNE}}}\n"
    file.write_text(
        f"{jobs}sets: {{made: {{toy: {{unlabelled: 500}}}}}}\nvariants: {{hpm: {{}}}}\n"
    )
    assert main(["bench", "ablation", str(file), "-o", str(tmp_path / "out"), *words]) == 2
    assert said.format(here=tmp_path) in capsys.readouterr().err


def test_a_variant_named_by_a_number_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("variants: {hpm: {}, 0.1: {settings: teacher.token_ratio=0.1}}\n")
    assert main(["bench", "ablation", str(file), "-o", str(tmp_path / "out")]) == 2
    said = f"config ({file}): variants (0.1) must be a name, not a number"
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("_no_pictures")
def test_a_row_that_does_not_fit_a_new_calibration_is_refused(
    copied: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A start that measures steps anew must not take a row of other epochs for the cell's."""
    file, out = copied
    command = ["bench", "ablation", str(file), "-o", str(out), "comparisons=[epochs,time]"]
    row = json.loads(
        (out / "cells" / "made" / "epochs" / "plain" / "seed0" / "row.json").read_text()
    )
    at_equal_time = out / "cells" / "made" / "time" / "plain" / "seed0"
    at_equal_time.mkdir(parents=True)
    row |= {"folder": "made/time/plain/seed0", "epochs": 3}
    (at_equal_time / "row.json").write_text(json.dumps(row))
    (out / "preparation" / "calibration_made.json").unlink()

    def measured(study: Study, say: object) -> None:
        _calibrated(study, "made", {"hpm": 0.2, "broken": 0.2, "plain": 0.1})  # 4 epochs of plain

    monkeypatch.setattr(runner, "calibrate", measured)
    assert main(command) == 2
    said = "holds the cell made/time/plain/seed0 of a study with other settings (optim.epochs)"
    assert said in capsys.readouterr().err


def test_a_study_with_other_settings_needs_another_folder(
    finished: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, _ = finished
    words = [f"pretrain.settings={_PRETRAIN} optim.base_lr=0.5"]
    assert main(["bench", "ablation", str(file), "-o", str(out), *words]) == 2
    assert "optim.base_lr" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_pictures")
def test_a_finished_cell_needs_only_its_row(
    copied: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = copied
    for job in ("pretrain", "finetune"):
        for folder in list((out / "cells").rglob(job)):
            shutil.rmtree(folder)
    left = out / "cells" / "made" / "epochs" / "plain" / "seed0" / "pretrain" / "checkpoints"
    left.mkdir(parents=True)  # as a kill leaves it right after the row was written
    done: list[str] = []
    monkeypatch.setattr(cell, "pretrain", lambda config: done.append(config.run.output_dir))
    command = ["bench", "ablation", str(file), "-o", str(out)]
    assert main(command) == 1
    assert [Path(folder).parts[-3] for folder in done] == ["broken"]
    assert not left.exists()
    for words, said in (
        (f"pretrain.settings={_PRETRAIN} optim.epochs=3", "other settings (optim.epochs)"),
        (
            "variants.plain.settings=model.predictor_depth=2",
            "settings (variants.plain.settings, model.predictor_depth",
        ),
        ("probes=[linear]", "probes (['linear']) must stay ['knn']"),
        ("mining_videos=2", "mining_videos (2) must stay 6"),
        ("probe_every=3", "probe_every (3) must stay"),
        (f"pretrain.settings={_PRETRAIN} optim.base_lr=0.5", "other settings (optim.base_lr)"),
        (f"finetune.settings={_FINETUNE} optim.epochs=9", "other settings (optim.epochs)"),
        ("sets.made.toy.held_out=16", "sets.made.toy ({'unlabelled': 16"),
    ):
        before = (out / "study.yaml").read_bytes()
        for summary in ([], ["--summary"]):
            assert main([*command, words, *summary]) == 2
            assert said in capsys.readouterr().err
        assert (out / "study.yaml").read_bytes() == before


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("text", ["", "{}", "[]", '{"variant": "hpm"', "\x80"])
@pytest.mark.parametrize("name", ["row.json", "calibration_made.json"])
def test_a_damaged_file_is_named(
    name: str,
    text: str,
    copied: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = copied
    damaged = next(out.rglob(name))
    damaged.write_bytes(text.encode("latin-1"))
    if name.startswith("calibration") and text == "{}":
        # Nothing is known yet; and a study may be looked at wherever it was copied to
        assert main(["bench", "ablation", str(file), "-o", str(out), "--summary"]) == 0
        return
    for summary in ([], ["--summary"]):
        assert main(["bench", "ablation", str(file), "-o", str(out), *summary]) == 2
        said = capsys.readouterr().err
        assert f"{damaged} is damaged" in said and "if you remove it" in said
        assert said.count("\n") == 1


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"variant": "another"},
        {"data_set": "another"},
        {"folder": "made/epochs/hpm/seed7"},
        {"steps": None},
        {"top1": "0.5"},
        {"spearman": math.nan},
        {"probe_epochs": 0},
        {"linear_top1_curve": []},
        {"linear_top1_curve": [None, 0.5]},
    ],
    ids=str,
)
def test_a_row_of_something_else_is_named(
    change: dict[str, object],
    copied: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = copied
    damaged = next(path for path in out.rglob("row.json") if "/hpm/" in str(path))
    row = json.loads(damaged.read_text())
    damaged.write_text(json.dumps({**row, "probe_epochs": [0, 2], **change}))
    assert main(["bench", "ablation", str(file), "-o", str(out), "--summary"]) == 2
    said = capsys.readouterr().err
    assert f"{damaged} is damaged: must be the row of" in said and said.count("\n") == 1


_HOLD = """
import sys
from pathlib import Path
from hpm_video.runtime.lock import lock_folder

lock_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("_no_pictures")
def test_a_cell_in_work_by_another_process_is_left_to_it(
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = _study(tmp_path, _settings(toy))
    _calibrated(study, "toy", {"hpm": 0.1, "plain": 0.2})
    tried: list[str] = []

    def runs(one: cell.Cell, config: StudyConfig) -> None:
        tried.append(one.variant)
        row = {"data_set": "toy", "variant": one.variant, "seed": 0, "folder": one.name}
        row |= {"epochs": 2, "steps": 4, "top1": 0.5, "balanced_accuracy": 0.5}
        (one.folder / "row.json").write_text(json.dumps(row))

    monkeypatch.setattr("hpm_video.bench.study.runner.run_cell", runs)
    monkeypatch.setattr("hpm_video.bench.study.runner.check_cell", lambda cell, study, before: None)
    held = study.folder / "cells" / "toy" / "epochs" / "hpm" / "seed0"
    held.mkdir(parents=True)
    (study.folder / "study.yaml").touch()
    command = ["bench", "ablation", str(tmp_path / "study.yaml"), "-o", str(study.folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(held)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        assert main(command) == 0
        assert tried == ["plain"]
        assert "running in another process: toy/epochs/hpm/seed0" in capsys.readouterr().out
        other.stdin.close()
    assert main(command) == 0
    assert tried == ["plain", "hpm"]


def _stop_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process get SIGTERM in the n-th step of pre-training from now."""
    from hpm_video.method import step as step_module

    steps, step = iter(range(number)), step_module.pretrain_step

    def stopping(*arguments: Any, **settings: Any) -> Any:
        if next(steps, None) == number - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **settings)

    monkeypatch.setattr(step_module, "pretrain_step", stopping)


@pytest.mark.usefixtures("_no_pictures")
def test_a_stopped_study_goes_on_where_it_stopped(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with the same runs, bit for bit, as one that nothing stopped."""
    settings = _settings(toy, variants={"hpm": {}}, keep_checkpoints=True, probes=[])
    run: Callable[[str], int] = lambda name: main(  # noqa: E731
        ["bench", "ablation", str(_file(tmp_path, settings)), "-o", str(tmp_path / name)]
    )
    for name in ("whole", "stopped"):
        study = Study(
            load_config(StudyConfig, _file(tmp_path, settings)),
            home=tmp_path,
            folder=tmp_path / name,
        )
        _calibrated(study, "toy", {"hpm": 0.1})
    assert run("whole") == 0
    _stop_in_step(4, monkeypatch)
    assert run("stopped") == 1
    cells = {name: tmp_path / name / "cells/toy/epochs/hpm/seed0" for name in ("whole", "stopped")}
    assert not (cells["stopped"] / "row.json").exists()
    (tmp_path / "stopped").rename(tmp_path / "moved")
    assert run("moved") == 0
    cells["stopped"] = tmp_path / "moved/cells/toy/epochs/hpm/seed0"
    rows = {name: json.loads((cells[name] / "row.json").read_text()) for name in cells}
    for key in ("top1", "spearman", "steps", "feature_variation"):
        assert rows["whole"][key] == rows["stopped"][key]
    assert_same_run(*(cells[name] / "pretrain" for name in cells))


def test_the_course_of_training_has_a_value_for_each_probe() -> None:
    """Means of the records between two probes; before training the first record's."""
    training = [{"step": step, "rank_accuracy": step / 100} for step in (10, 20, 30, 40)]
    probes = [{"step": step} for step in (0, 20, 40)]
    course = partial(cell._course, training=training, probes=probes)
    assert course("rank_accuracy") == [0.1, (0.1 + 0.2) / 2, (0.3 + 0.4) / 2]
    assert course("hard_ratio") == [0, 0, 0]
