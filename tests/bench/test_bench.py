"""The benches: their numbers against formulas written by hand, and that each runs and refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_videos import Recipe, write_video

from hpm_video.bench import loader, views
from hpm_video.bench import step as step_bench
from hpm_video.bench.classic_loader import _MEAN, _STD, classic_clip
from hpm_video.bench.flops import LITERAL, Variant, default_variant, step_cost, variants
from hpm_video.bench.mask import loop_hard_mask, loop_random_mask
from hpm_video.bench.timing import median_seconds, spread
from hpm_video.cli.main import main
from hpm_video.config import ModelConfig
from hpm_video.data.video.crops import Box, resize_crop
from hpm_video.data.video.frames import read_frames
from hpm_video.method.masking import hard_mask
from hpm_video.models.build import token_grid
from hpm_video.models.tokens import TokenGrid

SMALL_STEP = [
    *("--size=tiny", "--frames=4", "--crop-size=64", "--batch-size=2"),
    *("--rounds=1", "--device=cpu", "--threads=1"),
]

SPARSE = ["--token-ratio", "0.5", "--predictor-depth", "1"]


def _blocks(tokens: int, width: int, depth: int) -> int:
    """Multiply-adds of transformer blocks: qkv and output, two products of attention, MLP of 4."""
    return depth * (4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2)


@pytest.mark.parametrize("token_ratio", [None, 1.0, 0.3])
def test_multiply_adds_are_those_of_the_formula(token_ratio: float | None) -> None:
    model = ModelConfig(size="tiny", decoder_depth=3, predictor_input="encoded", predictor_depth=2)
    grid = token_grid(model, num_frames=4, crop_size=96)  # (2, 6, 6): 72 tokens
    # 36 tubes of which 32 are masked leave 8 tokens, 64 are reconstructed.
    patch, width, narrow = 2 * 16 * 16 * 3, 192, 96

    def encode(seen: int) -> int:
        return seen * patch * width + _blocks(seen, width, 12) + seen * width * narrow

    predict = _blocks(72, narrow, 2) + 72 * narrow
    student = encode(8) + _blocks(72, narrow, 3) + 64 * narrow * patch
    cost = step_cost(model, grid, mask_ratio=0.9, token_ratio=token_ratio)
    if token_ratio is None:
        assert (cost.student, cost.teacher, cost.step) == (student, 0, 3 * student)
    else:
        teacher = encode({1.0: 72, 0.3: 22}[token_ratio]) + predict
        assert (cost.student, cost.teacher) == (student + predict, teacher)
        assert cost.step == 3 * (student + predict) + teacher


def test_multiply_adds_of_masked_decoders_and_of_a_step_that_does_not_mine() -> None:
    """Decoders see 8 visible tokens and half of the 64 masked ones; the teacher's see all."""
    model = ModelConfig(size="tiny", decoder_depth=3, predictor_input="encoded", predictor_depth=2)
    grid = token_grid(model, num_frames=4, crop_size=96)
    patch, narrow = 2 * 16 * 16 * 3, 96
    whole = step_cost(model, grid, mask_ratio=0.9, token_ratio=1.0)
    half = step_cost(model, grid, mask_ratio=0.9, token_ratio=1.0, decoder_mask_ratio=0.5)
    saved = _blocks(72, narrow, 5) - _blocks(40, narrow, 5) + 32 * narrow + 32 * narrow * patch
    assert whole.student - half.student == saved
    assert whole.teacher == half.teacher
    twice = step_cost(model, grid, mask_ratio=0.9, token_ratio=1.0, draws=2)
    assert (twice.student, twice.teacher) == (whole.student, 2 * whole.teacher)
    alone = step_cost(model, grid, mask_ratio=0.9, token_ratio=1.0, has_teacher=False)
    assert (alone.student, alone.teacher) == (whole.student, 0)


@pytest.mark.parametrize("token_ratio", [1.0, 0.3])
def test_multiply_adds_of_a_predictor_from_pixels(token_ratio: float) -> None:
    """Apart from the rest of the student: of the share of the masked tokens, and of all."""
    model = ModelConfig(size="tiny", predictor_input="pixels", predictor_depth=2)
    grid = token_grid(model, num_frames=4, crop_size=96)

    def predict(seen: int) -> int:
        return seen * 2 * 16 * 16 * 3 * 96 + _blocks(seen, 96, 2) + seen * 96

    plain = step_cost(model, grid, mask_ratio=0.9, token_ratio=None)
    cost = step_cost(model, grid, mask_ratio=0.9, token_ratio=token_ratio)
    ranked, seen = {1.0: (64, 72), 0.3: (19, 22)}[token_ratio]
    assert cost.student == plain.student + predict(ranked)
    # Beside the network: scores of tokens that were not seen, three small products.
    assert 0 <= cost.teacher - predict(seen) < 0.01 * cost.teacher


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_mining_costs_little(size: str) -> None:
    def cost(token_ratio: float | None, **settings: object) -> float:
        model = ModelConfig(size=size, **settings)  # type: ignore[arg-type]
        grid = token_grid(model, num_frames=16, crop_size=224)
        return step_cost(model, grid, mask_ratio=0.9, token_ratio=token_ratio).step

    plain = cost(None)
    default = default_variant()
    assert default.predictor_input == "encoded"
    assert cost(default.token_ratio, predictor_depth=default.predictor_depth) <= 1.35 * plain
    assert cost(0.25, predictor_input="pixels") <= 1.1 * plain


def test_variants_are_the_literal_the_asked_and_the_default_once_each() -> None:
    found = variants(["encoded"], [0.1, 1.0], [1, 4])
    assert len(set(found)) == len(found)
    assert found[0] == LITERAL == Variant("encoded", 1.0, 4)
    assert {
        *(Variant("encoded", ratio, depth) for ratio in (0.1, 1.0) for depth in (1, 4)),
        default_variant(),
    } <= set(found)
    assert sum("default" in variant.name for variant in found) == 1


def test_the_loops_make_the_same_masks() -> None:
    grid = TokenGrid(2, 5, 6)
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(0))
    random = np.random.default_rng(0)
    settings = {"mask_ratio": 0.7, "hard_ratio": 1.0}
    slow = loop_hard_mask(scores, grid, **settings, random=random)
    generator = torch.Generator()
    assert torch.equal(
        slow, hard_mask(scores, grid, **settings, tube_length=2, generator=generator)
    )
    for mask in (
        loop_hard_mask(scores, grid, mask_ratio=0.7, hard_ratio=0.5, random=random),
        loop_random_mask(3, grid, mask_ratio=0.7, random=random),
    ):
        assert mask.sum(dim=1).tolist() == [42] * 3  # 21 of 30 tubes
        assert torch.equal(mask[:, :30], mask[:, 30:])


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
    original = step_bench.our_step
    monkeypatch.setattr(
        step_bench,
        "our_step",
        lambda setting, variant: (
            (lambda: torch.tensor(3.0))
            if setting.precision == "bfloat16"
            else original(setting, variant)
        ),
    )
    with pytest.raises(RuntimeError, match="VideoMAE: first loss 3, but"):
        main(["bench", "step", *SMALL_STEP])


def test_ranking_needs_little_memory_and_has_the_same_gradient(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    arguments = ["--batch-size=2", "--rounds=1", "--device=cpu", "--json", str(file)]
    assert main(["bench", "ranking", *arguments]) == 0
    ours, naive = json.loads(file.read_text())["rows"]
    assert (ours["loss"], naive["loss"]) == ("ours", "naive")
    assert 0 < ours["gradient_error"] < 1e-6
    # Three float32 matrices per clip at least, for the naive form.
    assert naive["peak_extra_mb"] > 3 * 2 * 1408**2 * 4 / 1e6
    assert ours["memory_ratio"] < 1 / 8


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["attention", "--rounds=1", "--batch-size=1", "--device=cpu"], 10),
        (["mask", "--rounds=2", "--batch-size=2", "--crop-size=64"], 4),
        (["flops", "--size", "tiny", "--frames=4", "--crop-size=64", *SPARSE], 3),
        (["step", *SMALL_STEP, *SPARSE, "--precision=float32"], 4),
        (["pictures", *SMALL_STEP, "--precision=float32"], 3),
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
    if arguments[0] == "pictures":
        step, pictures, figures = (row["median_s"] for row in result["rows"])
        assert 0 < figures < pictures
        share = pictures / (1000 * step)
        assert f"every 1000 steps (run.picture_every) take {share:.2%} of the time" in printed
    if arguments[0] == "step":
        names = [row["step"] for row in result["rows"]]
        assert names[0] == "VideoMAE"
        assert names[-2:] == [
            "transformers VideoMAE",
            "transformers VideoMAE, freed memory given back",
        ]
        assert "HPM pixels r=0.5 predictor 1" in names
        assert "attention: sdpa" in printed
        assert "first losses are within" in printed
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
        (["ranking", "--tokens=1"], "--tokens (1)"),
        (["ranking", "--json=nowhere/result.json"], "--json (nowhere/result.json)"),
        (["attention", "--rounds=0"], "--rounds (0)"),
        (["mask", "--rounds=0"], "--rounds (0)"),
        (["mask", "--batch-size=0"], "--batch-size (0)"),
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
    pytest.importorskip("decord")
    path = write_video(tmp_path / "a", Recipe("mp4", "libx264", 20, (64, 96)))
    box, indices = Box(3, 5, 50, 60), [2, 4, 6, 19]
    ours = resize_crop(read_frames(path, indices), box, 32).permute(3, 0, 1, 2) / 255
    classic = classic_clip(str(path), indices, box, 32)
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (_MEAN, _STD))
    assert classic.shape == (3, 4, 32, 32) and classic.dtype == torch.float32
    torch.testing.assert_close(classic * std + mean, ours, atol=2 / 255, rtol=0)


def test_bench_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
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


def test_bench_eval_reads_the_same_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That both give the same bytes is asserted by the bench itself."""
    small = [replace(kind, size=(48, 64), num_frames=70) for kind in views.KINDS]
    monkeypatch.setattr(views, "KINDS", small)
    arguments = ["--videos=1", "--rounds=1", "--crop-size=16", "--decoder=pyav"]
    assert main(["bench", "eval", *arguments, f"--json={tmp_path / 'out.json'}"]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    found = [(row["videos"], row["views"], row["opened"], row["frames_read"]) for row in rows]
    assert found == [
        *(("k400", "5 x 3", 1, 18), ("k400", "5 x 3", 15, 15 * 16), ("k400", "5 x 3", 15, 15 * 18)),
        *(("ssv2", "2 x 3", 1, 32), ("ssv2", "2 x 3", 6, 6 * 16)),
    ]
    for row in rows:
        once = next(r for r in rows if r["videos"] == row["videos"])
        assert row["times_faster"] == pytest.approx(row["seconds"] / once["seconds"])
