"""Averages of a run's checkpoints, and the moving average that it keeps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpm_video.cli.main import main
from hpm_video.evaluate.frozen_encoder import load_backbone
from hpm_video.weights.checkpoint import load_checkpoint, save_checkpoint, save_sharded

Arguments = Callable[..., list[str]]

STEPS = (2, 4, 7)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """A run with three checkpoints, the middle one in shards; their weights are s, 2s and 6s."""
    folder = tmp_path_factory.mktemp("several") / "run"
    state = load_checkpoint(pretrained, optimizer=True)
    for step, factor in zip(STEPS, (1, 2, 6), strict=True):
        model = {name: factor * value for name, value in state["model"].items()}
        each = {**state, "model": model, "step": step}
        if step == STEPS[1]:
            save_sharded(folder / "checkpoints", each, keep=0, group=None)
        else:
            save_checkpoint(folder / "checkpoints", each, keep=0)
    return folder


@pytest.mark.parametrize(
    ("arguments", "steps", "factor"),
    [([], [2, 4, 7], 3.0), (["--first", "3"], [4, 7], 4.0), (["--last", "4"], [2, 4], 1.5)],
)
def test_the_mean_of_a_range(
    run: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    steps: list[int],
    factor: float,
) -> None:
    output = tmp_path / "mean.pt"
    assert main(["weights", "average", str(run), *arguments, "-o", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"average of steps {', '.join(map(str, steps))}", str(output)]
    state, of_one = load_checkpoint(output), load_checkpoint(pretrained)
    assert state["averaged"] == steps and state["step"] == steps[-1]
    assert state.keys() == {"kind", "config", "step", "model", "averaged"} | (
        state.keys() & {"epoch", "log"}
    )
    for name, value in of_one["model"].items():
        torch.testing.assert_close(state["model"][name], factor * value)
        assert state["model"][name].dtype == value.dtype
    load_backbone(output, precision="float32")


def test_counters_are_the_last_ones(tmp_path: Path, pretrained: Path) -> None:
    state = load_checkpoint(pretrained)
    for step in (1, 2):
        model = {"count": torch.tensor(step), "half": torch.tensor([step], dtype=torch.bfloat16)}
        save_checkpoint(tmp_path, {**state, "model": model, "step": step}, keep=0)
    assert main(["weights", "average", str(tmp_path), "-o", str(tmp_path / "mean.pt")]) == 0
    model = load_checkpoint(tmp_path / "mean.pt")["model"]
    assert model["count"].item() == 2 and model["count"].dtype == torch.int64
    assert model["half"].item() == 1.5 and model["half"].dtype == torch.bfloat16


def test_what_cannot_be_averaged_gets_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    state = load_checkpoint(run)
    save_checkpoint(other, state, keep=0)
    model = {name: value[..., :1] for name, value in state["model"].items()}
    save_checkpoint(other, {**state, "model": model, "step": 9}, keep=0)
    output = ["-o", str(tmp_path / "mean.pt")]
    for arguments, words in (
        ([str(run), "--first", "5"], "steps to average (7) must be at least two"),
        ([str(tmp_path / "none")], "none) does not exist"),
        ([str(other)], "must hold the same model as the earlier checkpoints"),
    ):
        assert main(["weights", "average", *arguments, *output]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
        assert not (tmp_path / "mean.pt").exists()


def test_the_moving_average_of_a_pretraining_is_its_teachers_encoder(
    tmp_path: Path, pretrained: Path, finetune_arguments: Arguments
) -> None:
    state = load_checkpoint(pretrained)
    moved = {f"encoder.{n}": v for n, v in _encoder(state["model"]).items()}
    teacher = {**state["teacher"], **{name: value + 1 for name, value in moved.items()}}
    torch.save({**state, "teacher": teacher}, tmp_path / "with.pt")
    output = tmp_path / "ema.pt"
    assert main(["weights", "ema", str(tmp_path / "with.pt"), "-o", str(output)]) == 0
    found = load_checkpoint(output)["model"]
    assert found.keys() == moved.keys()
    assert all(torch.equal(value, moved[name] + 1) for name, value in found.items())
    load_backbone(output, precision="float32")


def test_the_moving_average_of_a_fine_tuning_is_its_model(
    tmp_path: Path, finetune_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("optim.ema_momentum=0.5", "optim.epochs=1")
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    output = tmp_path / "ema.pt"
    assert main(["weights", "ema", str(tmp_path / "run"), "-o", str(output)]) == 0
    found, state = load_checkpoint(output), load_checkpoint(tmp_path / "run")
    assert "trained_model" not in found and "optimizer" not in found
    name = "head.weight"
    assert torch.equal(found["model"][name], state["model"][name])
    assert not torch.equal(found["model"][name], state["trained_model"][name])
    state["config"]["optim"]["ema_momentum"] = None
    torch.save(state, tmp_path / "without.pt")
    capsys.readouterr()
    assert main(["weights", "ema", str(tmp_path / "without.pt"), "-o", str(output)]) == 2
    assert "must come from a run with optim.ema_momentum" in capsys.readouterr().err


def test_a_pretraining_without_an_average_of_its_encoder_gets_one_line(
    tmp_path: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(pretrained)
    teacher = {n: v for n, v in (state["teacher"] or {}).items() if not n.startswith("encoder.")}
    torch.save({**state, "teacher": teacher}, tmp_path / "without.pt")
    output = tmp_path / "ema.pt"
    assert main(["weights", "ema", str(tmp_path / "without.pt"), "-o", str(output)]) == 2
    said = capsys.readouterr().err
    assert "must have a teacher with an encoder" in said and said.count("\n") == 1


def _encoder(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("encoder."): value
        for name, value in model.items()
        if name.startswith("encoder.")
    }
