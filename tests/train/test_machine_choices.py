"""Settings that say ``auto``: chosen at the first start of a run, and kept by what continues it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from runs import assert_same_run, run_until_stopped, untimed

from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.runtime import machine
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import find_checkpoint, load_checkpoint, write_checkpoint

Arguments = Callable[..., list[str]]
WITHOUT = "flags: avx2\n"
WITH = "flags: avx2 avx512f avx512_bf16\n"


def _on(cpuinfo: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine, "_cpuinfo", lambda: cpuinfo)


def _precision(folder: Path) -> tuple[str, str]:
    """Of a run folder's config.yaml, and of its checkpoint."""
    stored = load_config(PretrainConfig, folder / "config.yaml").run.precision
    return stored, load_checkpoint(folder)["config"]["run"]["precision"]


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_auto_is_the_machines_precision_and_said(
    job: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments: Arguments = request.getfixturevalue(f"{job}_arguments")
    _on(WITHOUT, monkeypatch)
    assert main(arguments(tmp_path / "auto", "run.precision=auto", "optim.epochs=1")) == 0
    assert load_checkpoint(tmp_path / "auto")["config"]["run"]["precision"] == "float32"
    lines = (tmp_path / "auto" / "log.txt").read_text()
    assert "run.precision=auto: float32 (the CPU has no bfloat16 units" in lines


def test_a_run_keeps_its_precision_on_another_machine(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["optim.epochs=2", "run.checkpoint_every_minutes=0"]
    assert main(pretrain_arguments(tmp_path / "whole", *settings, "run.precision=bfloat16")) == 0

    settings.append("run.precision=auto")
    _on(WITH, monkeypatch)
    run_until_stopped(pretrain_arguments(tmp_path / "moved", *settings), at=4)
    assert _precision(tmp_path / "moved") == ("bfloat16", "bfloat16")
    _on(WITHOUT, monkeypatch)
    assert main(pretrain_arguments(tmp_path / "moved", *settings)) == 0
    assert "bfloat16 (as before; a new run here would use float32, because the CPU has no" in (
        (tmp_path / "moved" / "log.txt").read_text()
    )
    assert _precision(tmp_path / "moved") == ("bfloat16", "bfloat16")
    assert_same_run(tmp_path / "whole", tmp_path / "moved")


def test_a_run_of_before_auto_was_the_default_goes_on(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command says nothing about precision; its config.yaml says bfloat16, then the default."""
    _on(WITHOUT, monkeypatch)
    run_until_stopped(pretrain_arguments(tmp_path, "run.precision=bfloat16"), at=2)
    assert main(pretrain_arguments(tmp_path, "run.precision=auto")) == 0
    assert _precision(tmp_path) == ("bfloat16", "bfloat16")


def test_a_precision_that_is_asked_for_must_be_the_chosen_one(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _on(WITHOUT, monkeypatch)
    run_until_stopped(pretrain_arguments(tmp_path, "run.precision=auto"), at=2)
    capsys.readouterr()
    assert main(pretrain_arguments(tmp_path, "run.precision=bfloat16")) == 2
    assert "other settings (run.precision)" in capsys.readouterr().err
    assert main(pretrain_arguments(tmp_path, "run.precision=float32")) == 0


def test_a_fine_tuning_of_before_keeps_how_its_frames_are_moved(
    tmp_path: Path, finetune_arguments: Arguments
) -> None:
    """Settings that were stored before augment.interpolation was one do not name it: bilinear."""
    settings = ["augment.num_operations=9", "optim.epochs=2", "run.checkpoint_every_minutes=0"]
    bilinear, name = "augment.interpolation=bilinear", "augment.interpolation"
    assert main(finetune_arguments(tmp_path / "bilinear", *settings, bilinear)) == 0
    assert main(finetune_arguments(tmp_path / "new", *settings)) == 0
    run_until_stopped(finetune_arguments(tmp_path / "old", *settings, bilinear), at=4)
    checkpoint = (tmp_path / "old" / "checkpoints" / "last").resolve()
    state = load_checkpoint(checkpoint)
    del state["config"]["augment"]["interpolation"]
    torch.save(state, checkpoint)
    file = tmp_path / "old" / "config.yaml"
    file.write_text(file.read_text().replace("  interpolation: bilinear\n", ""))
    assert "interpolation" not in file.read_text()

    assert main(finetune_arguments(tmp_path / "old", *settings)) == 0
    assert untimed(tmp_path / "old") == untimed(tmp_path / "bilinear") != untimed(tmp_path / "new")
    mine, theirs = (load_checkpoint(tmp_path / which)["model"] for which in ("old", "bilinear"))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert f"{name}=auto: bilinear (as before)" in (tmp_path / "old" / "log.txt").read_text()
    assert f"{name}=auto: bicubic (as published)" in (tmp_path / "new" / "log.txt").read_text()


def test_an_absolute_loss_of_before_keeps_its_variance(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """Settings that were stored before loss.variance was one do not name it: biased, then."""
    settings = ["loss.prediction=absolute", "optim.epochs=2", "run.checkpoint_every_minutes=0"]
    assert main(pretrain_arguments(tmp_path / "biased", *settings, "loss.variance=biased")) == 0
    assert main(pretrain_arguments(tmp_path / "new", *settings)) == 0
    run_until_stopped(pretrain_arguments(tmp_path / "old", *settings, "loss.variance=biased"), at=4)
    checkpoint = (tmp_path / "old" / "checkpoints" / "last").resolve()
    state = load_checkpoint(checkpoint)
    del state["config"]["loss"]["variance"]
    torch.save(state, checkpoint)
    file = tmp_path / "old" / "config.yaml"
    file.write_text(file.read_text().replace("  variance: biased\n", ""))
    assert "variance" not in file.read_text()

    assert main(pretrain_arguments(tmp_path / "old", *settings)) == 0
    assert_same_run(tmp_path / "biased", tmp_path / "old")
    assert "loss.variance=auto: biased (as before)" in (tmp_path / "old" / "log.txt").read_text()
    variances = {
        name: load_checkpoint(tmp_path / name)["config"]["loss"]["variance"]
        for name in ("new", "old")
    }
    assert variances == {"new": "unbiased", "old": "biased"}
    losses = [
        [record["prediction_loss"] for record in read_records(tmp_path / name) if "loss" in record]
        for name in ("new", "old")
    ]
    assert losses[0] != losses[1]


def test_an_old_run_keeps_its_warm_up_and_its_disk(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """Both settings were other defaults before they were automatic: the command says nothing."""
    arguments = [word for word in pretrain_arguments(tmp_path) if "warmup" not in word]
    old = ["optim.epochs=5", "optim.warmup_epochs=4"]
    run_until_stopped([*arguments, *old], at=4)
    checkpoint = find_checkpoint(tmp_path).resolve()
    state = load_checkpoint(checkpoint, optimizer=True)
    del state["config"]["run"]["history_checkpoints"]
    write_checkpoint(checkpoint, state)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(state["config"]))
    shutil.rmtree(tmp_path / "checkpoints" / "history")

    assert main([*arguments, "optim.epochs=5"]) == 0
    text = (tmp_path / "log.txt").read_text()
    assert "optim.warmup_epochs=auto: 4 (as before)" in text
    assert "run.history_checkpoints=auto: 0 (as before)" in text
    assert not (tmp_path / "checkpoints" / "history").exists()
    rates = {record["step"]: record["lr"] for record in read_records(tmp_path)}
    peak = max(rates.values())
    assert rates[24] == pytest.approx(peak, rel=0.05) and rates[12] < 0.6 * peak


def test_a_new_run_stores_the_warm_up_that_it_has(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    arguments = [word for word in pretrain_arguments(tmp_path) if "warmup" not in word]
    assert main([*arguments, "optim.epochs=20"]) == 0
    assert load_config(PretrainConfig, tmp_path / "config.yaml").optim.warmup_epochs == 1
    assert main([*arguments, "optim.epochs=40"]) == 0  # goes further, with what it began with
    assert load_config(PretrainConfig, tmp_path / "config.yaml").optim.warmup_epochs == 1
