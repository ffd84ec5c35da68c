from collections import Counter

import numpy as np
import pytest
import torch

from hpm_video.data.video.crops import (
    Box,
    multi_scale_crop,
    random_resized_crop,
    resize_crop,
    resize_short_side,
    view_crops,
)


def _inside(box: Box, height: int, width: int) -> bool:
    return (
        min(box.top, box.left) >= 0
        and min(box.height, box.width) >= 1
        and box.top + box.height <= height
        and box.left + box.width <= width
    )


@pytest.mark.parametrize(("height", "width"), [(240, 320), (426, 240), (100, 100)])
def test_multi_scale_crop_is_one_of_the_published_boxes(height: int, width: int) -> None:
    short = min(height, width)
    sides = [short, int(short * 0.875), int(short * 0.75), int(short * 0.66)]
    legal: Counter[Box] = Counter()
    for i, box_height in enumerate(sides):
        for j, box_width in enumerate(sides):
            if abs(i - j) > 1:
                continue
            down, right = height - box_height, width - box_width
            for top, left in (
                *((y, x) for y in (0, 1) for x in (0, 1)),  # corners
                (0.5, 0.5),
                *((0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1)),  # edge middles
                *((y, x) for y in (0.25, 0.75) for x in (0.25, 0.75)),
            ):
                legal[Box(int(down * top), int(right * left), box_height, box_width)] += 1
    assert sum(legal.values()) == 10 * 13

    rng = np.random.default_rng(0)
    drawn = Counter(multi_scale_crop(height, width, rng=rng) for _ in range(130 * 100))
    assert set(drawn) == set(legal)
    assert all(_inside(box, height, width) for box in drawn)
    assert max(abs(drawn[box] / legal[box] - 100) for box in legal) < 50  # 100 expected, 5 sigma


def test_random_resized_crop_keeps_its_ranges() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_resized_crop(240, 320, rng=rng) for _ in range(2000)]
    assert all(_inside(box, 240, 320) for box in boxes)
    areas = np.array([box.height * box.width / (240 * 320) for box in boxes])
    shapes = np.array([box.width / box.height for box in boxes])
    assert 0.075 < areas.min() < 0.1 and areas.max() > 0.9
    assert 0.74 < shapes.min() < 0.77 and 1.28 < shapes.max() < 1.36
    assert abs(np.log(shapes).mean()) < 0.1
    # corners are reached, so positions are not just central
    assert min(b.top for b in boxes) == 0 and max(b.top + b.height for b in boxes) == 240


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1)])
def test_random_resized_crop_of_extreme_shapes(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        box = random_resized_crop(height, width, rng=rng, scale=(0.9, 1.0))
        assert _inside(box, height, width)
        assert 0.7 < box.width / box.height < 1.4


def test_view_crops_follow_the_longer_side() -> None:
    assert view_crops(240, 320, num_crops=1) == [(0, 40, 240, 240)]
    assert view_crops(240, 320, num_crops=3) == [(0, x, 240, 240) for x in (0, 40, 80)]
    assert view_crops(320, 240, num_crops=3) == [(y, 0, 240, 240) for y in (0, 40, 80)]
    assert view_crops(100, 200, num_crops=5) == [(0, x, 100, 100) for x in (0, 25, 50, 75, 100)]
    assert view_crops(64, 64, num_crops=2) == [(0, 0, 64, 64)] * 2


def _frames(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)


def test_a_box_of_the_right_size_is_cut_out_untouched() -> None:
    frames = _frames(20, 30)
    crop = resize_crop(frames, Box(3, 5, 8, 8), 8)
    assert crop.dtype == torch.uint8 and crop.is_contiguous()
    np.testing.assert_array_equal(crop.numpy(), frames[:, 3:11, 5:13])
    flipped = resize_crop(torch.from_numpy(frames), Box(3, 5, 8, 8), 8, flip=True)
    np.testing.assert_array_equal(flipped.numpy(), frames[:, 3:11, 5:13][:, :, ::-1])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("box", [Box(2, 3, 40, 31), Box(0, 0, 7, 9), Box(10, 10, 20, 50)])
def test_resizing_is_bilinear(box: Box, antialias: bool) -> None:
    frames = _frames(60, 80)
    crop = resize_crop(frames, box, 16, antialias=antialias)
    assert crop.shape == (3, 16, 16, 3) and crop.is_contiguous()
    expected = _slow_resize(frames, box, 16, antialias)
    np.testing.assert_allclose(crop.numpy(), expected, atol=1.01)


@pytest.mark.parametrize(
    ("height", "width", "nearest", "down"),
    [(240, 320, (224, 299), (224, 298)), (426, 240, (398, 224), (397, 224)),
     (256, 340, (224, 298), (224, 297)), (256, 344, (224, 301), (224, 301))],
)  # fmt: skip
def test_the_longer_side_is_rounded_down_as_published(
    height: int, width: int, nearest: tuple[int, int], down: tuple[int, int]
) -> None:
    frames = _frames(height, width)
    assert tuple(resize_short_side(frames, 224).shape[1:3]) == nearest
    assert tuple(resize_short_side(frames, 224, antialias=False).shape[1:3]) == down


def _slow_resize(frames: np.ndarray, box: Box, size: int, antialias: bool) -> np.ndarray:
    """Weigh pixels with a triangle as wide as an input pixel or, antialiased, as an output pixel
    where that is the larger one."""

    def weights(length: int) -> np.ndarray:
        scale = length / size
        table, reach = np.zeros((size, length)), max(scale, 1.0) if antialias else 1.0
        for i in range(size):
            centre = (i + 0.5) * scale
            for j in range(length):
                table[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / reach)
        table /= table.sum(axis=1, keepdims=True)
        return table

    cut = frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
    resized: np.ndarray = np.einsum(
        "ih,jw,thwc->tijc", weights(box.height), weights(box.width), cut
    )
    return resized
