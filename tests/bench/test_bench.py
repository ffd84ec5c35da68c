"""The benches: their numbers against formulas written by hand, and that each runs and refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numbered_videos import Recipe, write_video

from hpm_video.bench import loader
from hpm_video.bench import step as step_bench
from hpm_video.bench.flops import StepCost, step_cost
from hpm_video.bench.loader import classic_clip
from hpm_video.bench.timing import median_seconds, spread
from hpm_video.bench.variants import plain, variant_name, variants
from hpm_video.cli.main import main
from hpm_video.config import (
    DataConfig,
    LossConfig,
    MaskingConfig,
    ModelConfig,
    PretrainConfig,
    TeacherConfig,
)
from hpm_video.config.settings import config_to_dict
from hpm_video.data.video.crops import Box, resize_crop
from hpm_video.data.video.frames import missing, read_frames
from hpm_video.models.build import build
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD

SMALL_STEP = [
    *("--size=tiny", "--frames=4", "--crop-size=64", "--batch-size=2"),
    *("--rounds=1", "--device=cpu", "--threads=1"),
]

SPARSE = ["--token-ratio", "0.5", "--predictor-depth", "1"]


def _blocks(tokens: int, width: int, depth: int) -> int:
    """Multiply-adds of transformer blocks: qkv and output, two products of attention, MLP of 4."""
    return depth * (4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2)


def _config(**model: Any) -> PretrainConfig:
    """Tiny, at 4 x 96 x 96 pixels: a grid of (2, 6, 6), 72 tokens."""
    data = DataConfig(num_frames=4, crop_size=96)
    return PretrainConfig(data=data, model=ModelConfig(size="tiny", **model))


def _cost(config: PretrainConfig, token_ratio: float | None, **teacher: Any) -> StepCost:
    """Of a step; ``token_ratio`` None: of plain VideoMAE."""
    if token_ratio is None:
        return step_cost(plain(config))
    return step_cost(replace(config, teacher=TeacherConfig(token_ratio=token_ratio, **teacher)))


@pytest.mark.parametrize("token_ratio", [None, 1.0, 0.3])
def test_multiply_adds_are_those_of_the_formula(token_ratio: float | None) -> None:
    config = _config(decoder_depth=3, predictor_input="encoded", predictor_depth=2)
    # 36 tubes of which 32 are masked leave 8 tokens, 64 are reconstructed.
    patch, width, narrow = 2 * 16 * 16 * 3, 192, 96

    def encode(seen: int) -> int:
        return seen * patch * width + _blocks(seen, width, 12) + seen * width * narrow

    predict = _blocks(72, narrow, 2) + 72 * narrow
    student = encode(8) + _blocks(72, narrow, 3) + 64 * narrow * patch
    cost = _cost(config, token_ratio)
    if token_ratio is None:
        assert (cost.student, cost.teacher, cost.step) == (student, 0, 3 * student)
    else:
        teacher = encode({1.0: 72, 0.3: 22}[token_ratio]) + predict
        assert (cost.student, cost.teacher) == (student + predict, teacher)
        assert cost.step == 3 * (student + predict) + teacher


def test_multiply_adds_of_masked_decoders_and_of_a_step_that_does_not_mine() -> None:
    """Decoders see 8 visible tokens and half of the 64 masked ones; the teacher's see all."""
    config = _config(decoder_depth=3, predictor_input="encoded", predictor_depth=2)
    patch, narrow = 2 * 16 * 16 * 3, 96
    whole = _cost(config, 1.0)
    half = _cost(replace(config, masking=MaskingConfig(decoder_mask_ratio=0.5)), 1.0)
    saved = _blocks(72, narrow, 5) - _blocks(40, narrow, 5) + 32 * narrow + 32 * narrow * patch
    assert whole.student - half.student == saved
    assert whole.teacher == half.teacher
    once, twice = (_cost(config, 0.3, draws=draws) for draws in (1, 2))
    assert (twice.student, twice.teacher) == (whole.student, 2 * once.teacher)
    alone = _cost(replace(config, masking=MaskingConfig(hard_ratio_end=0)), 1.0)
    assert (alone.student, alone.teacher) == (whole.student, 0)


def test_multiply_adds_of_decoders_as_video_mae_v2_released_them() -> None:
    """At 8 frames 144 tokens: 16 visible, and mask tokens at 72, of which 64 are reconstructed."""
    config = _config(decoder_depth=3, predictor_input="encoded", predictor_depth=2)
    config = replace(config, data=replace(config.data, num_frames=8))
    patch, narrow = 2 * 16 * 16 * 3, 96
    published = MaskingConfig(decoder_mask_ratio=0.5, decoder_mask="videomae_v2")
    whole, half = (_cost(replace(config, masking=m), 1.0) for m in (MaskingConfig(), published))
    saved = _blocks(144, narrow, 5) - _blocks(88, narrow, 5) + 56 * narrow + 64 * narrow * patch
    assert whole.student - half.student == saved and whole.teacher == half.teacher


@pytest.mark.parametrize("token_ratio", [1.0, 0.3])
def test_multiply_adds_of_a_predictor_from_pixels(token_ratio: float) -> None:
    """Apart from the rest of the student: of the share of the masked tokens, and of all."""
    config = _config(predictor_input="pixels", predictor_depth=2)

    def predict(seen: int) -> int:
        return seen * 2 * 16 * 16 * 3 * 96 + _blocks(seen, 96, 2) + seen * 96

    cost, ranked, seen = _cost(config, token_ratio), *{1.0: (64, 72), 0.3: (19, 22)}[token_ratio]
    assert cost.student == _cost(config, None).student + predict(ranked)
    # Beside the network: scores of tokens that were not seen, three small products.
    assert 0 <= cost.teacher - predict(seen) < 0.01 * cost.teacher


def test_multiply_adds_of_two_predictors() -> None:
    """Those of both students' predictors, and the teacher of the one from pixels alone."""
    configs = {
        kind: _config(predictor_input=kind, predictor_depth=2)
        for kind in ("encoded", "pixels", "both")
    }
    cost = {kind: _cost(config, 0.3) for kind, config in configs.items()}
    bare = _cost(configs["both"], None).student
    extra = {kind: each.student - bare for kind, each in cost.items()}
    assert extra["both"] == extra["encoded"] + extra["pixels"]
    assert cost["both"].teacher == cost["pixels"].teacher < 0.1 * cost["encoded"].teacher


@pytest.mark.parametrize("predictor_input", ["encoded", "both"])
def test_multiply_adds_of_targets_of_features(tmp_path: Path, predictor_input: Any) -> None:
    """An encoder of the whole clip more, but where the teacher's is that; and another head."""
    config = _config(predictor_input=predictor_input, decoder_depth=3)
    patch, width, narrow = 2 * 16 * 16 * 3, 192, 96
    encode = 72 * patch * width + _blocks(72, width, 12)
    ema = replace(config, loss=LossConfig(target="ema", target_layers=[0, -1]))
    bare, cost = _cost(config, 0.3), _cost(ema, 0.3)
    assert bare.student - cost.student == 64 * narrow * (patch - 2 * width)
    assert (cost.teacher, cost.target) == (bare.teacher, encode)
    assert cost.step == 3 * cost.student + cost.teacher + encode
    shares = predictor_input == "encoded"
    assert _cost(ema, 1.0).target == (0 if shares else encode)
    first = replace(ema, loss=LossConfig(target="ema", target_layers=[3]))
    assert _cost(first, 0.3).target == 72 * patch * width + _blocks(72, width, 4)
    model = build(plain(config))
    state = {"kind": "pretrain", "config": config_to_dict(plain(config)), "step": 0}
    torch.save({**state, "model": model.state_dict()}, tmp_path / "target.pt")
    loss = LossConfig(target="frozen", target_model=str(tmp_path / "target.pt"))
    assert _cost(replace(config, loss=loss), 0.3).target == encode


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_two_predictors_cost_less_than_the_default(size: str) -> None:
    both = PretrainConfig(
        model=ModelConfig(size=size, predictor_input="both"),  # type: ignore[arg-type]
        teacher=TeacherConfig(token_ratio=0.25),
    )
    fast = replace(both, masking=MaskingConfig(decoder_mask_ratio=0.5))
    bare, masked = step_cost(plain(both)).step, step_cost(plain(fast)).step
    assert step_cost(both).step <= 1.22 * bare
    assert step_cost(fast).step <= 1.15 * masked
    assert step_cost(fast).step <= 0.9 * bare


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_mining_costs_little(size: str) -> None:
    default = PretrainConfig(model=ModelConfig(size=size))  # type: ignore[arg-type]
    assert default.model.predictor_input == "encoded"
    assert (default.data.num_frames, default.data.crop_size) == (16, 224)
    pixels = replace(default, model=replace(default.model, predictor_input="pixels"))
    bare = step_cost(plain(default)).step
    assert step_cost(default).step <= 1.35 * bare
    assert _cost(pixels, 0.25).step <= 1.1 * bare


def test_variants_are_plain_the_literal_the_asked_and_the_default_once_each() -> None:
    base = _config()
    found = variants(base, ["encoded"], [0.1, 1.0], [1, 4])
    assert list(found)[:2] == ["VideoMAE", "HPM literal (encoded r=1 predictor 4)"]
    assert set(list(found)[2:]) == {
        "HPM encoded r=0.1 predictor 1 = default",
        *(f"HPM encoded r={ratio} predictor {depth}" for ratio, depth in (("0.1", 4), ("1", 1))),
    }
    for name, config in found.items():
        assert variant_name(config) == name and config.data == base.data
        assert config.masking.mines == (name != "VideoMAE")
    choices = [(c.model.predictor_input, c.teacher.token_ratio) for c in found.values()]
    assert choices[1] == ("encoded", 1.0) and found["VideoMAE"].loss.prediction == "none"


@pytest.mark.parametrize("source", ["motion", "measured"])
def test_variants_of_another_source_have_no_teacher_but_its_name(source: Any) -> None:
    base = _config()
    base = replace(base, masking=replace(base.masking, source=source))
    found = variants(base, ["encoded"], [0.1], [1, 4])
    assert list(found) == [
        "VideoMAE",
        f"VideoMAE, masks by {source}",
        f"HPM encoded r=0.1 predictor 1, masks by {source}",
        f"HPM encoded r=0.1 predictor 4, masks by {source}",
    ]
    costs = {name: step_cost(config) for name, config in found.items()}
    bare, *others = costs.values()
    for cost in others:  # one forward pass more, without predictors, or nothing
        assert cost.teacher == (bare.student if source == "measured" else 0)
    assert costs[f"VideoMAE, masks by {source}"].student == bare.student < others[1].student


def test_peak_memory_is_that_of_the_call() -> None:
    # In a process of its own: here, what other tests have freed may be used again
    code = (
        "import torch; from hpm_video.bench.timing import peak_extra_bytes as peak; "
        "print(peak(lambda: torch.ones(25_000_000).sum(), torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 95e6 < int(done.stdout) < 115e6


def test_rounds_are_interleaved_and_turn_round() -> None:
    calls: list[str] = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    result = median_seconds(functions, rounds=2, warmup=1, device=torch.device("cpu"))
    assert "".join(calls) == "abbaab"
    assert set(result) == {"a", "b"}


def test_spread_is_half_the_quartiles_distance() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(1 / 3)
    assert spread([2.0]) == 0


def test_a_step_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = step_bench.step_on
    monkeypatch.setattr(
        step_bench,
        "step_on",
        lambda config, *rest: (
            (lambda: torch.tensor(3.0))
            if config.run.precision == "bfloat16"
            else original(config, *rest)
        ),
    )
    with pytest.raises(RuntimeError, match=r"VideoMAE: first loss \(3\) must be within 1%"):
        main(["bench", "step", *SMALL_STEP, "--precision=bfloat16"])


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["flops", "--size", "tiny", "--frames=4", "--crop-size=64", *SPARSE], 3),
        (["step", *SMALL_STEP, *SPARSE, "--precision=float32"], 4),
    ],
)
def test_each_bench_prints_a_table_and_writes_it(
    tmp_path: Path, arguments: list[str], rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "step":
        pytest.importorskip("transformers")
    file = tmp_path / "result.json"
    assert main(["bench", *arguments, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert list(tmp_path.iterdir()) == [file]
    assert result["bench"] == arguments[0]
    assert len(result["rows"]) >= rows
    for fact in ("processor", "threads", "torch", "device", "date"):
        assert f"{fact} {result['machine'][fact]}" in printed.splitlines()[0]
    for row in result["rows"]:
        for cell in row.values():
            assert isinstance(cell, str) is False or cell in printed
    if arguments[0] == "step":
        names = [row["step"] for row in result["rows"]]
        assert names[0] == "VideoMAE"
        assert names[-2:] == [
            "transformers VideoMAE",
            "transformers VideoMAE, freed memory given back",
        ]
        assert "HPM pixels r=0.5 predictor 1" in names
        assert "attention: sdpa" in printed
        assert "first losses differ by at most" in printed
        plain, *_, theirs = result["rows"]
        assert theirs["multiply_adds_g"] == plain["multiply_adds_g"] > 0
        # Both rates are of the same product
        rates = [row["multiply_adds_g"] * row["clips_per_s"] for row in (plain, theirs)]
        used = [row["utilisation"] for row in (plain, theirs)]
        assert rates[0] / rates[1] == pytest.approx(used[0] / used[1])
        assert 0 < used[0] < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flops", "--json=nowhere/result.json"], "--json (nowhere/result.json)"),
        (["step", "--rounds=0"], "--rounds (0)"),
        (["step", "--batch-size=0"], "--batch-size (0)"),
        (["flops", "--crop-size=30"], "(30)"),
        (["step", *SMALL_STEP, "--token-ratio", "0"], "token_ratio (0"),
        (["step", *SMALL_STEP, "--predictor-depth", "0"], "predictor_depth (0)"),
        (["step", *SMALL_STEP, "--threads=0"], "--threads (0)"),
    ],
)
def test_a_bad_setting_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert captured.out == ""


def test_the_classic_loader_makes_the_same_clip_as_ours(tmp_path: Path) -> None:
    if reason := missing("decord"):
        pytest.skip(reason)
    # Of pictures 96 wide decord 2 returns none
    path = write_video(tmp_path / "a", Recipe("mp4", "libx264", 20, (64, 128)))
    box, indices = Box(3, 5, 50, 60), [2, 4, 6, 19]
    ours = resize_crop(read_frames(path, indices), box, 32).permute(3, 0, 1, 2) / 255
    classic = classic_clip(str(path), indices, box, 32)
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    assert classic.shape == (3, 4, 32, 32) and classic.dtype == torch.float32
    torch.testing.assert_close(classic * std + mean, ours, atol=2 / 255, rtol=0)


def test_bench_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("decord"):
        pytest.skip(reason)
    small = [replace(kind, size=(48, 64), num_frames=70) for kind in loader.KINDS]
    monkeypatch.setattr(loader, "KINDS", small)
    arguments = ["--videos=1", "--rounds=1", "--crop-size=16", "--decoder", "decord", "pyav"]
    assert main(["bench", "loader", *arguments, f"--json={tmp_path / 'out.json'}"]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * (1 + 2 * 5)
    for row in rows:
        base = [r for r in rows if r["videos"] == row["videos"] and r["loader"] == "classic"]
        assert row["vs_classic"] == pytest.approx(row["clips_per_s"] / base[0]["clips_per_s"])
        if row["loader"] == "bare":
            assert row["vs_bare"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "nowhere"], "--source (nowhere) must be a folder"),
        (["--source", "tests"], "--source (tests) must hold at least 6 videos"),
        (["--videos", "0"], "--videos (0) must be at least 1"),
    ],
)
def test_bench_loader_refuses(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "loader", *arguments]) == 2
    assert said in capsys.readouterr().err
