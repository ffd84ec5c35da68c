"""Steps that the GPU repeats by itself: the same numbers, and where there are none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import assert_same_run, untimed
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.models.cuda_graphs import Replayed, choose_cuda_graphs
from hpm_video.runtime.distributed import World

Arguments = Callable[..., list[str]]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_graphs_where_one_process_trains_on_cuda() -> None:
    alone, pair = World(0, 1, CUDA), World(0, 2, CUDA)
    assert choose_cuda_graphs("auto", alone, compiled=False)[0] == "true"
    assert choose_cuda_graphs("auto", alone, compiled=True) == ("false", "compiled")
    assert choose_cuda_graphs("true", alone, compiled=True) == ("true", None)
    assert choose_cuda_graphs("auto", World(0, 1, CPU), compiled=False) == ("false", "on a CPU")
    assert choose_cuda_graphs("auto", pair, compiled=False) == ("false", "2 processes")
    assert choose_cuda_graphs("false", alone, compiled=False) == ("false", None)
    with pytest.raises(ValueError, match=r"run.cuda_graphs \(true\) .* 2 processes"):
        choose_cuda_graphs("true", pair, compiled=False)


def test_the_bench_refuses_graphs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--cuda-graphs", "--device", "cpu"]) != 0
    assert "--cuda-graphs needs a CUDA device" in capsys.readouterr().err


def test_what_cannot_be_captured_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *given: Tensor, **named: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(Replayed, "_capture", refuse)
    monkeypatch.setattr(Replayed, "_beside", lambda self, x, **named: self._function(x, **named))
    said: list[str] = []
    double = Replayed(lambda x: 2 * x, capture=True, say=said.append)
    assert [double(torch.tensor(k)).item() for k in range(6)] == [0, 2, 4, 6, 8, 10]
    assert len(said) == 1 and said[0].endswith("RuntimeError: operation not permitted")


@pytest.mark.gpu
def test_a_replay_adds_to_what_is_there_and_follows_its_form(gpu: torch.device) -> None:
    total = torch.zeros((), device=gpu)
    calls = 0

    def add(x: Tensor, *, factor: int) -> Tensor:
        nonlocal calls
        calls += 1
        total.add_(factor * x.sum())
        return factor * x

    added = Replayed(add, capture=True, say=pytest.fail)
    expected = 0.0
    for step in range(12):
        factor = 1 + step // 6
        for part in range(2):
            given = torch.full((2,), step + 10.0 * part, device=gpu)
            result = added(given, form=factor, part=part, factor=factor)
            assert result.equal(factor * given)
            expected += factor * 2 * (step + 10 * part)
    assert total.item() == expected
    assert calls == 3 + 2 + 2  # warm-up, and each part in both forms


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["predicted", "motion", "measured"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_pre_training_of_graphs_is_the_same(
    tmp_path: Path, pretrain_arguments: Arguments, gpu: torch.device, precision: str, source: str
) -> None:
    """Bit for bit, while hard_ratio rises and micro-batches take turns."""
    pattern = "blocks" if source == "motion" else "auto"
    settings = (
        *(f"masking.source={source}", f"masking.pattern={pattern}"),
        *("run.device=cuda", f"run.precision={precision}", "run.deterministic=true"),
        *("run.compile=false", "run.log_every=1", "optim.accumulation=2", "optim.epochs=6"),
        *("masking.hard_ratio_start=0", "masking.hard_ratio_end=1"),
    )
    for graphs in ("true", "false"):
        choice = f"run.cuda_graphs={graphs}"
        assert main(pretrain_arguments(tmp_path / graphs, *settings, choice)) == 0
    assert "steps run without" not in (tmp_path / "true" / "log.txt").read_text()
    has_teacher = source == "predicted"
    assert_same_run(tmp_path / "true", tmp_path / "false", has_teacher=has_teacher)


@pytest.mark.gpu
def test_a_fine_tuning_of_graphs_is_the_same(
    tmp_path: Path, finetune_arguments: Arguments, gpu: torch.device
) -> None:
    settings = (
        *("run.device=cuda", "run.precision=float32", "run.deterministic=true"),
        *("run.compile=false", "run.log_every=1", "model.drop_path=0.2", "optim.epochs=4"),
    )
    for graphs in ("true", "false"):
        choice = f"run.cuda_graphs={graphs}"
        assert main(finetune_arguments(tmp_path / graphs, *settings, choice)) == 0
    assert "steps run without" not in (tmp_path / "true" / "log.txt").read_text()
    assert untimed(tmp_path / "true") == untimed(tmp_path / "false")
