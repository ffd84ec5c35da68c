"""RandAugment and random erasing: against timm's operations, and alike in all frames."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from videos import write_indexed_video

from hpm_video.config import AugmentConfig, DataConfig
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.samples import augment as module
from hpm_video.data.samples.augment import OPERATIONS, augment, erase
from hpm_video.data.samples.clips import ClipDataset, ClipReader

TIMM = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "colour": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "move_x": "TranslateXRel",
    "move_y": "TranslateYRel",
}
MOVES = {"rotate", "shear_x", "shear_y", "move_x", "move_y"}
OFF = AugmentConfig(num_operations=0, erasing=0)


def _picture(seed: int = 0, height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth picture (H, W, 3) uint8 that fills neither end of the range."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 220, (5, 7, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()


def test_all_of_timms_operations_are_there() -> None:
    assert set(OPERATIONS) == set(TIMM)
    assert set(TIMM.values()) == set(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize(("name", "axis"), [("move_x", 2), ("move_y", 1)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_frames_are_moved_bilinearly_by_setting(
    name: str, axis: int, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By half a pixel: each is the mean of two neighbours. Bicubic ones overshoot at an edge."""
    # The one operation that there is to draw
    monkeypatch.setattr(module, "OPERATIONS", {name: OPERATIONS[name]})
    monkeypatch.setattr(module, "_BILINEAR", {name: module._BILINEAR[name]})
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 120, (2, 20, 20, 3)) * 2).byte()
    half = 10 * 0.5 / (0.45 * 20)
    moved = {}
    for interpolation in ("bilinear", "bicubic", "auto"):
        settings = AugmentConfig(1, half, 0, erasing=0, interpolation=interpolation)
        for seed in range(100):
            rng = np.random.default_rng(seed)
            rng.integers(1), rng.normal()
            if ((rng.random(2) < 0.5) == (True, sign > 0)).all():
                break
        moved[interpolation] = augment(clip, settings, rng=np.random.default_rng(seed))
    means = (clip.int() + clip.int().roll(-1, axis)) // 2
    found = moved["bilinear"].int().roll(0 if sign > 0 else -1, axis)
    inner = slice(1, -2)
    where = (slice(None), inner, slice(None)) if axis == 1 else (slice(None), slice(None), inner)
    assert (found[where] - means[where]).abs().max() <= 1
    assert not torch.equal(moved["bilinear"], moved["bicubic"])
    assert torch.equal(moved["auto"], moved["bicubic"])


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", TIMM)
def test_an_operation_does_to_a_frame_what_timms_does(
    name: str, sign: int, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
    picture = _picture()
    to_arguments = auto_augment.LEVEL_TO_ARG[TIMM[name]]
    arguments = to_arguments(10 * level, {}) if to_arguments else ()
    if name == "posterize":  # of no bit nothing would be left, and timm's has an error
        arguments = (max(1, arguments[0]),)
    settings = {}
    if name in MOVES:
        settings = {"resample": Image.Resampling.BICUBIC, "fillcolor": (128, 128, 128)}
    expected = np.asarray(
        auto_augment.NAME_TO_OP[TIMM[name]](Image.fromarray(picture), *arguments, **settings)
    ).astype(int)
    result = OPERATIONS[name](torch.from_numpy(picture)[None], level, sign)
    assert result.shape == (1, *picture.shape) and result.dtype == torch.uint8
    difference = np.abs(result[0].numpy().astype(int) - expected)
    most = 0 if name in MOVES else 3 if name == "equalize" else 1
    assert difference.max() <= most


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - MOVES - {"sharpness"}))
def test_equal_pixels_stay_equal_in_all_frames(name: str) -> None:
    """Also where a picture's own range, mean or histogram decides: a clip has one of them."""
    rng = np.random.default_rng(1)
    palette = rng.integers(0, 256, (8, 3), dtype=np.uint8)
    dark, bright = rng.integers(0, 5, (40, 50)), rng.integers(3, 8, (40, 50))
    codes = np.stack([dark, bright, dark[::-1]])
    result = OPERATIONS[name](torch.from_numpy(palette[codes]), 0.7, 1).numpy()
    for code in range(8):
        assert len(np.unique(result[codes == code], axis=0)) == 1, code


@pytest.mark.parametrize("name", sorted({*MOVES, "sharpness"}))
def test_all_frames_are_moved_alike(name: str) -> None:
    frames = torch.from_numpy(np.stack([_picture(0), _picture(1)]))
    result = OPERATIONS[name](frames, 0.7, -1)
    for frame, alone in zip(result, frames, strict=True):
        assert torch.equal(frame, OPERATIONS[name](alone[None], 0.7, -1)[0])


def test_four_operations_are_drawn_and_half_of_them_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    applied: list[tuple[str, float, int]] = []

    def spy(name: str) -> module.Operation:
        def operation(clip: torch.Tensor, level: float, sign: int) -> torch.Tensor:
            applied.append((name, level, sign))
            return clip

        return operation

    monkeypatch.setattr(module, "OPERATIONS", {name: spy(name) for name in OPERATIONS})
    clip, rng, num_clips = (
        torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        np.random.default_rng(0),
        2000,
    )
    for _ in range(num_clips):
        augment(clip, AugmentConfig(erasing=0), rng=rng)
    names, levels, signs = (np.array(values) for values in zip(*applied, strict=True))
    assert abs(len(applied) / num_clips - 4 / 2) < 0.1
    assert abs(levels.mean() - 0.7) < 0.005 and abs(levels.std() - 0.05) < 0.005
    assert abs(signs.mean()) < 0.05 and set(signs) == {-1, 1}
    counts = [np.sum(names == name) for name in OPERATIONS]
    assert min(counts) > 0.75 * len(applied) / 15 and max(counts) < 1.25 * len(applied) / 15


def test_strengths_stay_within_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[float] = []
    only = {"x": lambda clip, level, sign: levels.append(level) or clip}
    monkeypatch.setattr(module, "OPERATIONS", only)
    settings = AugmentConfig(num_operations=50, magnitude=5, magnitude_spread=20, erasing=0)
    augment(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), settings, rng=np.random.default_rng(0))
    assert min(levels) == 0 and max(levels) == 1


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    clip = torch.from_numpy(_picture())[None]
    assert torch.equal(augment(clip, OFF, rng=np.random.default_rng(0)), clip)


def test_a_clip_follows_its_generator_alone() -> None:
    clip = torch.from_numpy(np.stack([_picture(0), _picture(1)]))
    before = clip.clone()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    results = [
        augment(clip, AugmentConfig(erasing=1), rng=np.random.default_rng(s)) for s in (3, 3)
    ]
    assert torch.equal(*results) and torch.equal(clip, before)
    assert not torch.equal(
        results[0], augment(clip, AugmentConfig(erasing=1), rng=np.random.default_rng(4))
    )
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()


def test_erasing_puts_one_rectangle_of_noise_into_all_frames() -> None:
    rng = np.random.default_rng(0)
    clip = torch.zeros(3, 60, 90, 3, dtype=torch.uint8)
    areas, shapes = [], []
    for _ in range(300):
        result = erase(clip, rng=rng)
        assert not clip.any() and (result == result[0]).all()
        changed = result[0].sum(dim=-1) > 0  # noise is black in all colours once in a million
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert rows[-1] - rows[0] == height - 1 and columns[-1] - columns[0] == width - 1
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float().mean() > 0.98
        areas.append(height * width / (60 * 90))
        shapes.append(height / width)
    assert 0.018 < min(areas) < 0.04 and 0.3 < max(areas) < 0.35
    assert 0.25 < min(shapes) < 0.45 and 2 < max(shapes) < 3.7
    assert abs(np.mean(np.log(shapes))) < 0.15
    noise = erase(torch.zeros(1, 400, 400, 3, dtype=torch.uint8), rng=rng)
    values = noise[noise.sum(-1) > 0].float()
    assert ((values.mean(0) - torch.tensor([124.0, 117.0, 104.0])).abs() < 3).all()


def test_a_quarter_of_the_clips_is_erased() -> None:
    rng, clip = np.random.default_rng(0), torch.zeros(1, 20, 20, 3, dtype=torch.uint8)
    settings = AugmentConfig(num_operations=0)
    erased = sum(bool(augment(clip, settings, rng=rng).any()) for _ in range(2000))
    assert abs(erased / 2000 - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 2000)


def test_each_repeat_of_a_clip_is_augmented_afresh(tmp_path: Path) -> None:
    write_indexed_video(tmp_path / "one.mp4", 12)
    write_manifest(tmp_path / "list.csv", [{"path": "one.mp4", "label": 0}])
    data = DataConfig(num_frames=4, frame_stride=1, crop_size=24, repeats=8)
    augment = AugmentConfig(num_operations=0, erasing=1.0)
    manifest = read_manifest(tmp_path / "list.csv")
    first, again, plain = (
        ClipDataset(manifest, ClipReader(data, settings), seed=5)[3, 0].clips
        for settings in (augment, augment, None)
    )
    assert torch.equal(first, again) and not torch.equal(plain, first)
    # Where the noise is, neighbouring frames of this video are equal
    still = [(clip[0] == clip[1]).all(-1) & (clip[0] == clip[3]).all(-1) for clip in first]
    assert len({tuple(area.flatten().tolist()) for area in still}) == 8
