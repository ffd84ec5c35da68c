import math

import pytest
import torch

from hpm_video.models.pixels import as_floats, gather_patches
from hpm_video.models.resample import TokenShape
from hpm_video.models.tokens import (
    TokenGrid,
    gather_tokens,
    normalize_targets,
    patchify,
    scatter_tokens,
    split_mask,
    unpatchify,
)

# grid, tubelet size, patch size
LAYOUTS = [
    (TokenGrid(4, 3, 5), 2, 4),
    (TokenGrid(1, 2, 1), 3, 2),
    (TokenGrid(3, 1, 4), 1, 5),
]


def _clips(grid: TokenGrid, tubelet: int, patch: int, batch: int = 2) -> torch.Tensor:
    shape = batch, 3, grid.time * tubelet, grid.height * patch, grid.width * patch
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("grid", "tubelet", "patch"), LAYOUTS)
def test_patchify_has_tokens_in_raster_order_and_pixels_in_t_y_x_c_order(
    grid: TokenGrid, tubelet: int, patch: int
) -> None:
    clips = _clips(grid, tubelet, patch)
    tokens = patchify(clips, grid)
    assert tokens.shape == (2, grid.num_tokens, tubelet * patch * patch * 3)
    for clip, of_clip in zip(clips.numpy(), tokens.numpy(), strict=True):
        token = 0
        for time in range(grid.time):
            for row in range(grid.height):
                for column in range(grid.width):
                    expected = [
                        clip[c, time * tubelet + t, row * patch + y, column * patch + x]
                        for t in range(tubelet)
                        for y in range(patch)
                        for x in range(patch)
                        for c in range(3)
                    ]
                    assert of_clip[token].tolist() == expected
                    token += 1


@pytest.mark.parametrize(("grid", "tubelet", "patch"), LAYOUTS)
def test_unpatchify_is_the_inverse(grid: TokenGrid, tubelet: int, patch: int) -> None:
    clips = _clips(grid, tubelet, patch)
    assert torch.equal(unpatchify(patchify(clips, grid), grid, tubelet_size=tubelet), clips)


def test_what_does_not_divide_is_refused() -> None:
    grid = TokenGrid(2, 3, 5)
    for shape in [(1, 3, 5, 12, 20), (1, 3, 4, 13, 20), (1, 3, 4, 12, 21)]:
        with pytest.raises(ValueError, match="do not divide into a grid of 2x3x5"):
            patchify(torch.zeros(shape), grid)
    with pytest.raises(ValueError, match="do not fit a grid of 30 tokens"):
        unpatchify(torch.zeros(1, 29, 24), grid, tubelet_size=2)
    with pytest.raises(ValueError, match="tubelet_size 2"):
        unpatchify(torch.zeros(1, 30, 25), grid, tubelet_size=2)
    with pytest.raises(ValueError, match=r"grid height \(0\) must be at least 1"):
        TokenGrid(1, 0, 1)


def test_grid_of_a_clip() -> None:
    grid = TokenShape(2, 16).grid(num_frames=16, crop_size=224)
    assert grid == TokenGrid(8, 14, 14)
    assert (grid.num_tokens, grid.num_tubes) == (1568, 196)
    with pytest.raises(ValueError, match=r"data.num_frames \(15\) .* model.tubelet_size \(2\)"):
        TokenShape(2, 16).grid(num_frames=15, crop_size=224)
    with pytest.raises(ValueError, match=r"data.crop_size \(225\) .* model.patch_size \(16\)"):
        TokenShape(2, 16).grid(num_frames=16, crop_size=225)


def test_targets_are_standardised_per_token_and_channel() -> None:
    """Against a loop: unbiased variance over a channel's 512 pixels, 1e-6 added to its root."""
    generator = torch.Generator().manual_seed(1)
    # Deviations of the order of 1e-6 tell where epsilon is added.
    scales = torch.tensor([1.0, 1e-3, 2e-6])
    tokens = 0.5 + torch.randn(1, 3, 512, 3, generator=generator) * scales[None, :, None, None]
    tokens *= torch.tensor([1.0, 0.5, 0.25])
    tokens = tokens.flatten(-2)
    result = normalize_targets(tokens)
    assert result.shape == tokens.shape
    for token in range(3):
        values = tokens[0, token].tolist()
        for channel in range(3):
            pixels = values[channel::3]
            assert len(pixels) == 512
            mean = math.fsum(pixels) / 512
            variance = math.fsum((x - mean) ** 2 for x in pixels) / 511
            expected = [(x - mean) / (math.sqrt(variance) + 1e-6) for x in pixels]
            # Float32 keeps 0.5 to 6e-8: of a deviation of 2e-6 that is a few per cent.
            tolerance = {0: 1e-5, 1: 1e-3, 2: 0.1}[token]
            got = result[0, token, channel::3].tolist()
            assert got == pytest.approx(expected, abs=tolerance)


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    pixels = torch.tensor([-1e-6, 1e-6] * 256).repeat_interleave(3)
    deviation = 1e-6 * math.sqrt(512 / 511)
    expected = 1e-6 / (deviation + 1e-6)  # about 1/2; inside the root it would be about 0.001
    assert normalize_targets(pixels).abs() == pytest.approx(torch.full((1536,), expected))


def test_flat_targets_become_zero_not_nan() -> None:
    assert torch.equal(normalize_targets(torch.full((1, 1, 24), 0.5)), torch.zeros(1, 1, 24))


def test_targets_are_float32_also_from_reduced_precision() -> None:
    tokens = torch.rand(1, 2, 24).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = normalize_targets(tokens)
    assert result.dtype == torch.float32
    assert torch.equal(result, normalize_targets(tokens.float()))


@pytest.mark.parametrize(("grid", "tubelet", "patch"), LAYOUTS)
def test_pixels_are_those_of_clips_made_floats_first(
    grid: TokenGrid, tubelet: int, patch: int
) -> None:
    clips = (_clips(grid, tubelet, patch) * 256).to(torch.uint8)
    index = torch.rand(2, grid.num_tokens).argsort(dim=1)[:, : grid.num_tokens // 2 + 1]
    floats = patchify(clips.float() / 255, grid)
    expected = gather_tokens(floats, index)
    assert torch.equal(as_floats(gather_patches(patchify(clips, grid), index)), expected)
    assert torch.equal(as_floats(gather_patches(floats, index)), expected)


def test_split_mask_gives_both_sides_in_raster_order() -> None:
    mask = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 1, 1, 0]]).bool()
    for num_visible in (None, 2):
        visible, masked = split_mask(mask, num_visible)
        assert visible.tolist() == [[1, 2], [0, 4]]
        assert masked.tolist() == [[0, 3, 4], [1, 2, 3]]


def test_split_mask_refuses_rows_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] tokens visible"):
        split_mask(torch.tensor([[1, 0, 1], [0, 0, 1]]).bool())


def test_scatter_puts_back_what_gather_took() -> None:
    tokens = torch.rand(2, 6, 3)
    index = torch.tensor([[4, 0, 5], [1, 2, 3]])
    taken = gather_tokens(tokens, index)
    for row in range(2):
        for place, token in enumerate(index[row].tolist()):
            assert torch.equal(taken[row, place], tokens[row, token])
    canvas = torch.zeros_like(tokens)
    back = scatter_tokens(canvas, index, taken)
    chosen = torch.zeros(2, 6, dtype=torch.bool).scatter(1, index, True)
    assert torch.equal(back[chosen], tokens[chosen])
    assert not back[~chosen].any()
    assert not canvas.any()
