"""data.batch_size=auto: what it becomes, that results stay, and what if memory is short."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import run_until_stopped

from hpm_video.bench.live_bytes import modelled_bytes
from hpm_video.bench.variants import plain, step_config, with_batch
from hpm_video.cli.main import main
from hpm_video.config import FinetuneConfig, MixingConfig, PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.runtime.distributed import World
from hpm_video.train import batch_size, pretrain
from hpm_video.train.batch_size import StepMemory, choose_batch_size, step_memory
from hpm_video.train.run.logs import read_records

Arguments = Callable[..., list[str]]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def _auto(total: int, *settings: str, kind: Any = PretrainConfig) -> Any:
    words = ["data.batch_size=auto", f"optim.total_batch={total}", "run.precision=float32"]
    return load_config(kind, None, [*words, *settings])


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What other ranks say; their number is that of a world."""
    others: list[Any] = []
    monkeypatch.setattr(batch_size, "gather_objects", lambda mine, world: [mine, *others])
    return others


@pytest.mark.parametrize(
    ("total", "processes", "kind", "expected"),
    [
        (1024, 1, PretrainConfig, 8),
        (12, 1, PretrainConfig, 6),
        (12, 2, PretrainConfig, 6),
        (7, 1, PretrainConfig, 7),
        (11, 1, PretrainConfig, 1),
        (384, 4, FinetuneConfig, 8),
        (18, 3, FinetuneConfig, 6),
        (22, 1, FinetuneConfig, 2),  # pairs are mixed
    ],
)
def test_on_cpus_it_is_small_and_divides_the_step(
    total: int, processes: int, kind: Any, expected: int
) -> None:
    found = choose_batch_size(_auto(total, kind=kind), World(0, processes, CPU))
    assert found == (expected, "on a CPU")


def test_a_number_is_a_number() -> None:
    config = load_config(PretrainConfig, None, ["data.batch_size=5"])
    assert choose_batch_size(config, World(0, 1, CPU), kept=3) == (5, None)


def test_a_run_keeps_its_batch_size_while_it_divides() -> None:
    config = _auto(24)
    assert choose_batch_size(config, World(0, 2, CPU), kept=3) == (3, "as before")
    assert choose_batch_size(config, World(0, 8, CPU), kept=12) == (3, "on a CPU")
    assert choose_batch_size(config, World(0, 2, CPU), kept="auto").size == 6


def test_on_gpus_it_is_the_largest_that_fits_on_all(
    ranks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2 GB, and half a GB a clip; of 32 GB, 0.9 x 32 - 2 are usable: room for 49 clips
    monkeypatch.setattr(batch_size, "step_memory", lambda *_, **__: StepMemory(2e9, 0.5e9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(32e9), int(40e9)))
    one = World(0, 1, CUDA)
    assert choose_batch_size(_auto(1024), one) == (32, "about 18.0 of 32.0 GB of GPU memory")
    assert choose_batch_size(_auto(45), one).size == 45
    assert choose_batch_size(_auto(1024, "data.repeats=4"), one).size == 8
    ranks.append((None, 12e9))  # another one has less
    assert choose_batch_size(_auto(1024), World(0, 2, CUDA)).size == 8
    ranks.clear()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(1e13), int(1e13)))
    assert choose_batch_size(_auto(4096), one).size == 256
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(3e9), int(3e9)))
    size, why = choose_batch_size(_auto(1024), one)
    assert size == 1 and why is not None and "activation_checkpointing" in why


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optim.total_batch \(null\) must be given"):
        load_config(PretrainConfig, None, ["data.batch_size=auto"])
    with pytest.raises(ValueError, match=r"optim.total_batch \(10\) must be a multiple of 4"):
        choose_batch_size(_auto(10), World(0, 4, CPU))
    with pytest.raises(ValueError, match=r"optim.total_batch \(12\) must be a multiple of 8"):
        choose_batch_size(_auto(12, kind=FinetuneConfig), World(0, 4, CPU))
    for value in ("0", "-1", "some", "2.5", "[1]"):
        with pytest.raises(ValueError, match=r"data.batch_size \(.*\) must be a whole number"):
            load_config(PretrainConfig, None, [f"data.batch_size={value}"])


@pytest.mark.parametrize("mines", [True, False])
def test_memory_is_that_of_the_benchs_model(mines: bool) -> None:
    """Which counts a whole step, optimizer and average included, at the batch itself."""
    config = step_config(size="tiny", frames=8, crop_size=64, precision="bfloat16")
    config = config if mines else plain(config)
    found = step_memory(config)
    waiting = 2 * 8 * 64 * 64 * 3  # of a clip: bytes that come in advance
    for clips in (4, 48):
        expected = modelled_bytes(with_batch(config, clips), as_on_gpu=True)
        mine = found.fixed + clips * (found.per_clip - waiting)
        assert 0.95 * expected < mine < 1.15 * expected, clips


def test_what_needs_less_memory_is_counted_so() -> None:
    config = step_config(size="tiny", frames=8, crop_size=64, precision="bfloat16")
    whole = step_memory(config)
    run = replace(config.run, activation_checkpointing=True)
    assert step_memory(replace(config, run=run)).per_clip < 0.7 * whole.per_clip
    shared = replace(config, run=replace(config.run, parallel="fsdp"))
    assert step_memory(shared, num_ranks=8).fixed < whole.fixed
    graphs = step_memory(replace(config, run=replace(config.run, cuda_graphs="true")))
    assert graphs.fixed > whole.fixed  # gradients stay, and a micro-batch is copied
    assert graphs.per_clip - whole.per_clip == pytest.approx(8 * 64 * 64 * 3)
    tuned = FinetuneConfig(mixing=MixingConfig(mixup=0, cutmix=0))
    data = replace(tuned.data, num_frames=8, crop_size=64)
    tuned = replace(tuned, data=data, model=replace(tuned.model, size="tiny"))
    averaged = replace(tuned, optim=replace(tuned.optim, ema_momentum=0.99))
    costs = [step_memory(each, num_classes=5) for each in (tuned, averaged)]
    assert costs[0].per_clip == costs[1].per_clip > whole.per_clip  # nothing is masked
    assert 4 * 5.3e6 < costs[1].fixed - costs[0].fixed < 4 * 6e6  # the average's weights


def test_it_changes_no_result_and_is_kept(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    settings = ("optim.total_batch=12", "run.log_every=1", "masking.hard_ratio_start=0.5")
    for size in ("3", "auto"):
        words = pretrain_arguments(tmp_path / size, *settings, f"data.batch_size={size}")
        assert main(words) == 0
    losses = [[r["loss"] for r in read_records(tmp_path / name)] for name in ("3", "auto")]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert (
        yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["data"]["batch_size"] == 6
    )
    said = "data.batch_size=auto: 6 videos per process and micro-batch (on a CPU)"
    assert said in (tmp_path / "auto" / "log.txt").read_text()

    run_until_stopped(pretrain_arguments(tmp_path / "parts", *settings, "data.batch_size=3"), at=1)
    assert main(pretrain_arguments(tmp_path / "parts", *settings, "data.batch_size=auto")) == 0
    assert (
        "auto: 3 videos per process and micro-batch (as before)"
        in (tmp_path / "parts" / "log.txt").read_text()
    )
    again = [record["loss"] for record in read_records(tmp_path / "parts")]
    assert again == losses[0]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (["optim.total_batch=12"], "set data.batch_size below 6 (the step stays the same)"),
        (["data.batch_size=4"], "set data.batch_size below 4 (with more optim.accumulation)"),
    ],
)
def test_without_memory_a_run_says_what_to_set(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    advice: str,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand more")

    monkeypatch.setattr(pretrain, "clip_gradients", fails)
    auto = [] if "data.batch_size=4" in settings else ["data.batch_size=auto"]
    assert main(pretrain_arguments(tmp_path / "run", *auto, *settings)) == 1
    said = capsys.readouterr().err
    assert f"out of GPU memory after step 0 (CUDA out of memory): {advice}, or set run.act" in said
    assert "Traceback" not in said and len(said.strip().splitlines()) == 1
