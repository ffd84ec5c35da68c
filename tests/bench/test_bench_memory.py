"""Memory of a step: what is counted against formulas, real steps, and the process's own memory."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from hpm_video.bench import memory
from hpm_video.bench.live_bytes import modelled_bytes
from hpm_video.bench.memory import Line, largest_that
from hpm_video.bench.steps import build_student, random_frames, step_on
from hpm_video.bench.variants import PLAIN, plain, step_config, variant_name, with_batch
from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.method.teacher import Teacher
from hpm_video.train.live_bytes import LiveBytes


def _config(batch_size: int, precision: str = "bfloat16", crop_size: int = 64) -> PretrainConfig:
    clip = {"frames": 4, "crop_size": crop_size, "precision": precision}
    config = step_config(size="tiny", batch_size=batch_size, **clip)  # type: ignore[arg-type]
    return replace(config, model=replace(config.model, depth=2, decoder_depth=1))


def test_live_bytes_are_those_of_tensors_alive() -> None:
    with LiveBytes() as live:
        one = torch.ones(1000)  # 4000 bytes
        view = one.view(10, 100)[:3]
        assert (live.live, live.peak) == (4000, 4000)
        other = one.double() + 1  # 8000 twice, of which one stays
        assert (live.live, live.peak) == (12000, 20000)
        del one
        assert live.live == 12000  # the view still needs it
        del view, other
    assert (live.live, live.peak) == (0, 20000)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_model_of_memory_is_that_of_a_real_step(precision: str) -> None:
    config = _config(3, precision)
    modelled = modelled_bytes(config, as_on_gpu=False)
    frames = random_frames(config)
    with LiveBytes() as live:
        live.count(frames)
        step = step_on(config, frames)
        step()
        live.peak = live.live
        step()
    assert modelled == pytest.approx(live.peak, rel=1e-3)


def test_the_fixed_part_is_weights_gradients_moments_and_teacher() -> None:
    """Of so small a clip that gradients are what there is most of: at the optimizer's step."""
    config = _config(1)
    student = build_student(config)
    teacher = Teacher(student)
    weights, averaged = (sum(p.numel() for p in part.parameters()) for part in (student, teacher))
    buffers = sum(b.nbytes for part in (student, teacher) for b in part.buffers())
    expected = 16 * weights + 4 * averaged + buffers + random_frames(config).nbytes
    assert modelled_bytes(config, as_on_gpu=True) >= expected
    expected = 16 * sum(p.numel() for p in build_student(plain(config)).parameters())
    # Beyond it only what a clip of 32 tokens leaves in the end: little
    assert expected <= modelled_bytes(plain(config), as_on_gpu=True) < 1.2 * expected


def test_memory_is_linear_in_the_batch_and_less_when_fused() -> None:
    def peak(batch: int, *, as_on_gpu: bool) -> int:
        return modelled_bytes(plain(_config(batch, crop_size=128)), as_on_gpu=as_on_gpu)

    line = Line.through((8, 16), partial(peak, as_on_gpu=True))
    there = peak(64, as_on_gpu=True)
    assert line.fixed + 64 * line.per_clip == pytest.approx(there, rel=0.01)
    assert line.largest_batch(there) in (63, 64, 65)
    assert line.largest_batch(line.fixed / 2) == 0


@pytest.mark.parametrize("size", [0, 1, 2, 5, 63, 64, 1000])
@pytest.mark.parametrize("guess", [0, 1, 7, 64, 3000])
def test_the_largest_is_found_by_trying(size: int, guess: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= size

    found = largest_that(fits, guess=guess)
    assert found <= size and size - found <= max(0, size // 64)
    assert 0 not in tried and len(tried) < 80


def test_a_process_grows_by_what_is_counted() -> None:
    config = step_config(size="tiny", frames=16, crop_size=112)
    # With few clips, what was there before shows
    modelled = modelled_bytes(with_batch(config, 16), as_on_gpu=False)
    resident = memory._in_own_process(config, 16, is_ours=True)
    assert modelled == pytest.approx(resident, rel=0.2)


def test_bench_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "_in_own_process", lambda config, batch, is_ours: 3e9 + 2e6 * batch)
    monkeypatch.setattr(
        memory,
        "modelled_bytes",
        lambda config, as_on_gpu: 4e9 + (1e6 + 2e6 * as_on_gpu) * config.data.batch_size,
    )
    file = tmp_path / "result.json"
    settings = ["--size=tiny", "--measured-size=tiny", "--frames=2", "--crop-size=64"]
    assert main(["bench", "memory", *settings, "--device=cpu", "--json", str(file)]) == 0
    rows = {(row["step"], row["how"]): row for row in json.loads(file.read_text())["rows"]}
    for form in (PLAIN, variant_name(PretrainConfig())):
        gpu = rows[form, "modelled, CUDA"]
        assert (gpu["fixed_gb"], gpu["clip_mb"]) == pytest.approx((4, 3))
        assert (gpu["batch_24_gb"], gpu["batch_141_gb"]) == (18e9 // 3e6, 135e9 // 3e6)
        measured = rows[form, "measured, CPU"]
        assert (measured["fixed_gb"], measured["clip_mb"]) == pytest.approx((3, 2))
        assert measured["batch_24_gb"] is rows[form, "modelled, CPU"]["batch_24_gb"] is None
    printed = capsys.readouterr().out
    assert "modelled, CUDA" in printed and "measured, CUDA" not in printed


@pytest.mark.parametrize("value", ["-1.0", "inf", "nan"])
def test_bench_memory_refuses(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", f"--reserve-gb={value}"]) == 2
    assert f"--reserve-gb ({value}) must be at least 0" in capsys.readouterr().err
