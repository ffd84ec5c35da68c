"""Mixup and cutmix: geometry, targets, draws; and that the split of a batch does not matter."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hpm_video.config import MixingConfig
from hpm_video.train.mixing import Mix, draw_mix, mix_clips

HEIGHT, WIDTH = 12, 20
CUTMIX, MIXUP = MixingConfig(mixup=0), MixingConfig(cutmix=0)


def _draw(num_pairs: int, mixing: MixingConfig, seed: int = 0) -> Mix:
    rng = np.random.default_rng(seed)
    return draw_mix(num_pairs, height=HEIGHT, width=WIDTH, mixing=mixing, rng=rng)


def _clips(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 4, HEIGHT, WIDTH, generator=generator)


def _partner(index: int, repeats: int) -> int:
    """Slowly: clip r of the other video of the pair."""
    video, repeat = divmod(index, repeats)
    other = video + 1 if video % 2 == 0 else video - 1
    return other * repeats + repeat


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("mixing", [MixingConfig(), CUTMIX, MIXUP])
def test_clips_and_targets_against_a_slow_loop(mixing: MixingConfig, repeats: int) -> None:
    count, num_classes = 8 * repeats, 5
    clips = _clips(count)
    before = clips.clone()
    labels = (torch.arange(count) // repeats) % num_classes
    mix = _draw(count // 2, mixing)
    mixed, targets = mix_clips(clips, labels, mix, repeats=repeats, num_classes=num_classes)
    assert torch.equal(clips, before)
    for index in range(count):
        partner = _partner(index, repeats)
        video, repeat = divmod(index, repeats)
        pair = video // 2 * repeats + repeat
        top, left, bottom, right = mix.boxes[pair].tolist()
        share = mix.share[pair]
        expected = clips[index].clone()
        if bottom == 0:
            expected = share * clips[index] + (1 - share) * clips[partner]
            assert torch.allclose(mixed[index], expected.float(), atol=1e-6)
        else:
            for frame in range(4):
                for row in range(top, bottom):
                    for column in range(left, right):
                        expected[:, frame, row, column] = clips[partner][:, frame, row, column]
            assert torch.equal(mixed[index], expected)
        target = torch.zeros(num_classes)
        target[labels[index]] += share
        target[labels[partner]] += 1 - share
        assert torch.allclose(targets[index], target, atol=1e-6)


def test_targets_are_the_shares_of_what_is_seen() -> None:
    """Of clips of one grey each, whose mean then tells what they are made of."""
    count = 64
    values = torch.arange(count, dtype=torch.float32)
    clips = values[:, None, None, None, None].expand(-1, 3, 2, HEIGHT, WIDTH)
    mixed, targets = mix_clips(
        clips,
        torch.arange(count),
        _draw(count // 2, MixingConfig()),
        repeats=1,
        num_classes=count,
    )
    assert torch.allclose(mixed.mean(dim=(1, 2, 3, 4)), targets @ values, rtol=1e-5)
    assert torch.allclose(targets.sum(dim=1), torch.ones(count))
    assert (mixed == mixed[:, :1, :1]).all(), "the same in all colours and frames"


def test_shares_follow_the_beta_distributions() -> None:
    blended = _draw(40_000, MIXUP)
    assert not blended.boxes.any()
    assert abs(blended.share.mean() - 0.5) < 0.01
    assert abs(blended.share.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.003
    rarely = _draw(40_000, MixingConfig(mixup=0.1, cutmix=0))
    assert np.mean(np.abs(rarely.share - 0.5) > 0.4) > 0.7  # most are nearly one clip alone

    pasted = _draw(40_000, CUTMIX)
    top, left, bottom, right = pasted.boxes.T
    assert (top >= 0).all() and (top <= bottom).all() and (bottom <= HEIGHT).all()
    assert (left >= 0).all() and (left <= right).all() and (right <= WIDTH).all()
    area = (bottom - top) * (right - left) / (HEIGHT * WIDTH)
    assert np.allclose(pasted.share, 1 - area)
    whole = (top > 0) & (left > 0) & (bottom < HEIGHT) & (right < WIDTH)  # nothing was cut off
    shape = (right - left)[whole & (area > 0.1)] / (bottom - top)[whole & (area > 0.1)]
    assert abs(np.median(shape) - WIDTH / HEIGHT) < 0.2
    # Centres are anywhere, so that the far corner is pasted into as often as the middle of an edge
    assert np.mean((bottom == HEIGHT) & (right == WIDTH)) > 0.05


def test_half_of_the_pairs_get_a_box() -> None:
    for switch in (0.0, 0.5, 1.0):
        mix = _draw(20_000, MixingConfig(switch=switch))
        assert abs(np.mean(mix.boxes[:, 2] > 0) - switch) < 0.02
    assert np.mean(_draw(500, MixingConfig(mixup=0, switch=0)).boxes[:, 2] > 0) > 0.95
    assert not _draw(500, MixingConfig(cutmix=0, switch=1)).boxes.any()


@pytest.mark.parametrize("repeats", [1, 2])
def test_how_a_batch_is_split_does_not_matter(repeats: int) -> None:
    count = 12 * repeats
    clips, labels = _clips(count), torch.arange(count) // repeats
    mix = _draw(count // 2, MixingConfig())

    def mixed(first: int, num: int) -> tuple[Tensor, Tensor]:
        part = slice(first, first + num)
        return mix_clips(
            clips[part],
            labels[part],
            mix.part(first // 2, num // 2),
            repeats=repeats,
            num_classes=12,
        )

    whole = mixed(0, count)
    parts = [mixed(first, 4 * repeats) for first in range(0, count, 4 * repeats)]
    for place, result in enumerate(whole):
        assert torch.equal(result, torch.cat([part[place] for part in parts]))


def test_draws_follow_their_generator_alone() -> None:
    state = np.random.get_state()[1].copy()
    one, same, other = (_draw(50, MixingConfig(), seed) for seed in (1, 1, 2))
    assert (one.share == same.share).all() and (one.boxes == same.boxes).all()
    assert (one.share != other.share).any()
    assert (state == np.random.get_state()[1]).all()
