"""Weights on other clips than they were trained with."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.config import ClipConfig
from hpm_video.evaluate.frozen_encoder import load_backbone
from hpm_video.evaluate.predictions import read_predictions
from hpm_video.models.classifier import Classifier
from hpm_video.models.resample import (
    Tokens,
    TokenShape,
    fit_tokens,
    interpolate_tokens,
    resample_embedding,
)
from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import position_table
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]

TRAINED = TokenGrid(8, 10, 12)


def _centres(grid: TokenGrid) -> Tensor:
    """Where tokens are in the clip, (N, 3): time, row and column, each in (0, 1)."""
    axes = [(torch.arange(n).double() + 0.5) / n for n in (grid.time, grid.height, grid.width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def test_the_same_grid_is_exact() -> None:
    values = torch.randn(TRAINED.num_tokens, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate_tokens(values, TRAINED, TokenGrid(8, 10, 12)), values)
    with pytest.raises(ValueError, match=r"values \(960\) must be one for each of 8 x 10 x 11"):
        interpolate_tokens(values, TokenGrid(8, 10, 11), TRAINED)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0, 3.0])
def test_a_smooth_function_is_met_within_the_stated_error(axis: int, factor: float) -> None:
    """Along each axis: h^2/8 max|f''| inside, and h/2 max|f'| where the grid ends."""
    sizes = [TRAINED.time, TRAINED.height, TRAINED.width]
    h = 1 / sizes[axis]
    sizes[axis] = round(sizes[axis] * factor)
    grid = TokenGrid(*sizes)

    def values(of: TokenGrid) -> Tensor:  # one wave and a half; nothing along the other axes
        return torch.sin(3 * math.pi * _centres(of)[:, axis : axis + 1])

    error = (interpolate_tokens(values(TRAINED), TRAINED, grid) - values(grid)).abs()[:, 0]
    place = _centres(grid)[:, axis]
    inside = (place >= h / 2) & (place <= 1 - h / 2)
    assert error[inside].max() <= h**2 / 8 * (3 * math.pi) ** 2
    assert error.max() <= h / 2 * 3 * math.pi
    other = (axis + 1) % 3
    constant = torch.sin(3 * math.pi * _centres(TRAINED)[:, other])
    expected = torch.sin(3 * math.pi * _centres(grid)[:, other])
    moved = interpolate_tokens(constant[:, None], TRAINED, grid)[:, 0]
    assert (moved - expected).abs().max() < 1e-12, "nothing changes along the other axes"


def _resize_rows(old: int, new: int) -> np.ndarray:
    """Linear resizing of ``old`` pixels as a matrix (new, old), by hand: a tent around each new
    pixel, as wide as the larger of the two kinds of pixels."""
    matrix = np.zeros((new, old))
    scale = max(old / new, 1.0)
    for i in range(new):
        centre = (i + 0.5) * old / new
        for j in range(old):
            matrix[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / scale)
        matrix[i] /= matrix[i].sum()
    return matrix


def _resized(tokens: Tensor, old: TokenShape, new: TokenShape) -> Tensor:
    """Pixels of tokens (B, P), resized by hand -> (B, P')."""
    shape = (old.tubelet_size, old.patch_size, old.patch_size, 3)
    time = torch.from_numpy(_resize_rows(old.tubelet_size, new.tubelet_size))
    side = torch.from_numpy(_resize_rows(old.patch_size, new.patch_size))
    pixels = tokens.unflatten(1, shape)
    return torch.einsum("btyxc,at,dy,ex->badec", pixels, time, side, side).flatten(1)


OLD = TokenShape(2, 4)


@pytest.mark.parametrize("new", [(2, 4), (2, 8), (4, 4), (3, 6), (5, 7)])
def test_larger_tokens_are_embedded_as_the_original_ones(new: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(6, 2 * 4 * 4 * 3, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, 2 * 4 * 4 * 3, dtype=torch.float64, generator=generator)
    shape = TokenShape(*new)
    resampled = resample_embedding(weight, OLD, shape)
    expected = tokens @ weight.T
    assert (_resized(tokens, OLD, shape) @ resampled.T - expected).abs().max() < 1e-10
    if shape == OLD:
        assert torch.equal(resampled, weight)


@pytest.mark.parametrize("new", [(1, 4), (2, 2), (1, 3), (3, 2)])
def test_smaller_tokens_lose_as_little_as_can_be(new: tuple[int, int]) -> None:
    """The nearest over white noise: any other weights are further off."""
    generator = torch.Generator().manual_seed(0)
    shape = TokenShape(*new)
    basis = torch.eye(2 * 4 * 4 * 3, dtype=torch.float64)  # white noise, in the mean
    weight = torch.randn(5, 2 * 4 * 4 * 3, dtype=torch.float64, generator=generator)
    small = _resized(basis, OLD, shape)  # (P, P')
    expected = torch.linalg.lstsq(small, weight.T).solution.T
    assert (resample_embedding(weight, OLD, shape) - expected).abs().max() < 1e-10


def test_an_embedding_of_another_shape_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"weight \(5, 96\) does not fit an embedding of 2 x 8 x 8"
    ):
        resample_embedding(torch.zeros(5, 96), TokenShape(2, 8), OLD)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments) -> Path:
    """A classifier of clips of 4 frames of 32 x 32 pixels in tokens of 2 x 8 x 8."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    assert main(finetune_arguments(folder, "optim.epochs=1")) == 0
    return folder


@torch.no_grad()
def test_a_classifier_of_enlarged_clips_says_the_same_of_constant_ones(finetuned: Path) -> None:
    """Twice the pixels and frames of a token: the grid stays, and so does every number."""
    model, _, _ = load_classifier(finetuned)
    clip = ClipConfig(num_frames=8, crop_size=64, tubelet_size=4, patch_size=16)
    larger, config, _ = load_classifier(finetuned, clip)
    assert isinstance(model, Classifier) and isinstance(larger, Classifier)
    assert (config.data.num_frames, config.model.patch_size) == (8, 16)
    assert larger.grid == model.grid
    assert torch.equal(larger.encoder.positions, model.encoder.positions)
    tokens = torch.rand(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def clips(frames: int, side: int) -> Tensor:  # each token of one colour
        return (
            tokens.repeat_interleave(frames, 2)
            .repeat_interleave(side, 3)
            .repeat_interleave(side, 4)
        )

    assert (larger.eval()(clips(4, 16)) - model.eval()(clips(2, 8))).abs().max() < 1e-5
    naive = load_checkpoint(finetuned)["model"]["encoder.embed.weight"]
    assert naive.shape != larger.encoder.embed.weight.shape


def test_evaluation_on_another_grid(finetuned: Path, toy: Path, tmp_path: Path) -> None:
    settings = ("device=cpu", "num_workers=0", "evaluation.num_clips=1", "evaluation.num_crops=1")
    ask = ["evaluate", str(finetuned), "--manifest", str(toy), *settings]
    grid = ("clip.num_frames=8", "clip.crop_size=48", "clip.frame_stride=1")
    assert main([*ask, *grid, "-o", str(tmp_path / "larger")]) == 0
    assert main([*ask, "-o", str(tmp_path / "same")]) == 0
    larger = read_predictions(tmp_path / "larger")
    assert larger.about["clips"] == "8 frames of 48 x 48 pixels"
    assert not np.array_equal(larger.scores, read_predictions(tmp_path / "same").scores)


def test_wrong_grids_get_one_line(
    finetuned: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting, words in (
        ("clip.num_frames=5", "clip.num_frames (5) must be a multiple of the model's tubelet_size"),
        ("clip.patch_size=7", "clip.crop_size (32) must be a multiple of the model's patch_size"),
        ("clip.crop_size=0", "clip.crop_size (0) must be at least 1"),
    ):
        assert main(["evaluate", str(finetuned), "--manifest", str(toy), setting]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


def test_a_pretrained_encoder_on_another_grid(pretrained: Path) -> None:
    clip = ClipConfig(num_frames=6, crop_size=48, tubelet_size=3, patch_size=4)
    loaded = load_backbone(pretrained, precision="float32", clip=clip)
    encoder = loaded.backbone.encoder
    assert encoder.grid == TokenGrid(2, 12, 12) and loaded.data.crop_size == 48
    expected = position_table(TokenGrid(2, 12, 12), 32, trained_grid=TokenGrid(2, 4, 4))
    assert torch.equal(encoder.positions, expected)
    weight = load_checkpoint(pretrained)["model"]["encoder.embed.weight"]
    expected = resample_embedding(weight, TokenShape(2, 8), TokenShape(3, 4))
    assert torch.equal(encoder.embed.weight, expected)
    features = loaded.backbone.encode(torch.rand(1, 3, 6, 48, 48))
    assert features.shape == (1, 288, 32)


def test_fine_tuning_starts_on_another_grid(
    tmp_path: Path, pretrained: Path, finetune_arguments: Arguments
) -> None:
    settings = (
        f"model.init={pretrained}", "optim.epochs=1", "data.num_frames=6", "data.crop_size=60",
        "model.patch_size=12", "model.tubelet_size=3", "optim.base_lr=0", "optim.min_lr=0",
        "optim.warmup_lr=0",
    )  # fmt: skip
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    state = load_checkpoint(tmp_path / "run")
    assert state["trained_grid"] == [2, 4, 4]
    theirs = load_checkpoint(pretrained)["model"]
    expected = resample_embedding(
        theirs["encoder.embed.weight"], TokenShape(2, 8), TokenShape(3, 12)
    )
    assert torch.equal(state["model"]["encoder.embed.weight"], expected)
    name = "encoder.blocks.1.mlp.fc2.weight"
    assert torch.equal(state["model"][name], theirs[name])
    again, _, _ = load_classifier(tmp_path / "run")
    assert isinstance(again, Classifier)
    clips = patchify(torch.rand(1, 3, 6, 60, 60), again.grid)
    assert again.encoder(clips).shape == (1, 50, 32)
    grid = TokenGrid(2, 5, 5)
    expected = position_table(grid, 32, trained_grid=TokenGrid(2, 4, 4))
    assert again.grid == grid and torch.equal(again.encoder.positions, expected)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "positions of 2 x 4 x 4 tokens interpolated to 2 x 5 x 5 tokens" in log
    assert "patch embedding of 2 x 8 x 8 pixels resampled to 3 x 12 x 12 pixels" in log


def test_a_stored_table_is_interpolated_and_what_is_of_no_known_shape_is_left() -> None:
    generator = torch.Generator().manual_seed(0)
    old = Tokens(TokenGrid(2, 3, 4), TokenShape(2, 4))
    new = Tokens(TokenGrid(4, 3, 2), TokenShape(2, 4))
    weights = {
        "encoder.positions": torch.randn(24, 5, generator=generator),
        "encoder.embed.weight": torch.randn(5, 7, generator=generator),
        "positions": torch.randn(24, 5, generator=generator),
    }
    fitting = fit_tokens(weights, "encoder.", old, new)
    expected = interpolate_tokens(weights["encoder.positions"], old.grid, new.grid)
    assert torch.equal(fitting["encoder.positions"], expected)
    for name in ("encoder.embed.weight", "positions"):
        assert fitting[name] is weights[name]


def test_the_script_of_the_table_in_the_docs(finetuned: Path, toy: Path) -> None:
    file = Path(__file__).parents[2] / "docs" / "grids.py"
    spec = importlib.util.spec_from_file_location("grids_of_docs", file)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    cells = script.row(finetuned, toy, ClipConfig(crop_size=48)).split(" | ")
    assert cells[:3] == ["| 4 frames, 48 x 48", "2 x 8 x 8 pixels", "2 x 6 x 6 tokens"]
    same = script.row(finetuned, toy, ClipConfig()).removesuffix(" |").split(" | ")
    assert same[3] == same[4], "on the trained grid both tables are the same"
