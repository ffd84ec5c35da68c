"""run.deterministic is in force while a run trains, and no longer."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import assert_same_run
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.method import targets as targets_module
from hpm_video.runtime.determinism import deterministic

Arguments = Callable[..., list[str]]


def _flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set is undone
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_it_ends_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(KeyError), deterministic(True):
        assert _flags() == (True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert _flags() == (False, False, True)
    with deterministic(False):
        assert _flags() == (False, False, True)


def test_what_the_user_gave_cublas_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_what_cannot_repeat_is_refused() -> None:
    with deterministic(True), pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))


@pytest.mark.parametrize("is_on", [True, False])
def test_it_is_in_force_in_every_step(
    tmp_path: Path, pretrain_arguments: Arguments, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step, seen = targets_module.patch_loss, []

    def spy(*arguments: Tensor, **named: bool) -> Tensor:
        seen.append(_flags()[:2])
        return run_step(*arguments, **named)

    monkeypatch.setattr(targets_module, "patch_loss", spy)
    word = f"run.deterministic={str(is_on).lower()}"
    assert main(pretrain_arguments(tmp_path / "run", word, "optim.epochs=1")) == 0
    assert seen == [(is_on, is_on)] * 6
    assert ("deterministic algorithms" in (tmp_path / "run" / "log.txt").read_text()) == is_on
    assert load_config(PretrainConfig, tmp_path / "run" / "config.yaml").run.deterministic == is_on


def test_deterministic_runs_train_and_repeat(
    tmp_path: Path, pretrain_arguments: Arguments, finetune_arguments: Arguments
) -> None:
    settings = ["run.deterministic=true", "masking.hard_ratio_start=0.5", "optim.clip_grad=1.0"]
    for name in ("one", "other"):
        assert main(pretrain_arguments(tmp_path / name, *settings)) == 0
    assert_same_run(tmp_path / "one", tmp_path / "other")
    assert main(finetune_arguments(tmp_path / "fine", "run.deterministic=true")) == 0
    assert _flags()[0] is False
