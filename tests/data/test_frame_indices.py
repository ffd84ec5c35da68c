import numpy as np
import pytest

from hpm_video.config import DataConfig
from hpm_video.data.samples.views import view_indices
from hpm_video.data.video import frame_indices as clips


def test_dense_window_repeats_the_last_frame() -> None:
    indices = clips.dense_indices(10, clip_frames=5, stride=3, start=2)
    assert indices.tolist() == [2, 5, 8, 9, 9]
    assert clips.dense_indices(1, clip_frames=3, stride=4, start=0).tolist() == [0, 0, 0]


def test_random_window_reaches_every_start_equally() -> None:
    rng = np.random.default_rng(0)
    draws = [
        clips.random_dense_indices(20, clip_frames=4, stride=5, rng=rng).tolist()
        for _ in range(2000)
    ]
    # span 16: starts 0..4, and the last window ends on the last frame
    assert {d[0] for d in draws} == {0, 1, 2, 3, 4}
    assert all(d == [d[0], d[0] + 5, d[0] + 10, d[0] + 15] for d in draws)
    assert min(np.bincount([d[0] for d in draws])) > 330
    for num_frames in (1, 3, 15, 16):
        short = clips.random_dense_indices(num_frames, clip_frames=4, stride=5, rng=rng)
        assert short.tolist() == [min(i, num_frames - 1) for i in (0, 5, 10, 15)]


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 13, 64, 100])
def test_random_uniform_takes_one_frame_of_every_segment(num_frames: int) -> None:
    rng = np.random.default_rng(1)
    draws = np.stack(
        [clips.random_uniform_indices(num_frames, clip_frames=8, rng=rng) for _ in range(3000)]
    )
    for k in range(8):
        # every frame that overlaps segment [k, k + 1) * num_frames / 8, as often as it overlaps
        lengths = {
            frame: overlap
            for frame in range(num_frames)
            if (
                overlap := min(frame + 1, (k + 1) * num_frames / 8) - max(frame, k * num_frames / 8)
            )
            > 1e-9
        }
        seen, counts = np.unique(draws[:, k], return_counts=True)
        assert set(seen.tolist()) == set(lengths)
        expected = np.array([lengths[frame] for frame in seen]) * 8 / num_frames
        np.testing.assert_allclose(counts / 3000, expected, atol=0.05)


def _published_dense_views(
    num_frames: int, clip_frames: int, stride: int, num_clips: int
) -> list[list[int]]:
    """Slowly: thin the video out, then slide a window over it; past the end repeat the last."""
    thinned = list(range(0, num_frames, stride))
    room = max(len(thinned) - clip_frames, 0)
    views = []
    for k in range(num_clips):
        start = int(k * room / (num_clips - 1))
        view = [thinned[start]]
        while len(view) < clip_frames:
            view.append(min(view[-1] + stride, num_frames - 1))
        views.append(view)
    return views


@pytest.mark.parametrize("num_frames", [1, 7, 60, 61, 62, 65, 100, 250, 301])
@pytest.mark.parametrize("num_clips", [2, 3, 5, 10])
def test_dense_views_as_published(num_frames: int, num_clips: int) -> None:
    views = clips.dense_view_indices(num_frames, clip_frames=16, stride=4, num_clips=num_clips)
    assert views.tolist() == _published_dense_views(num_frames, 16, 4, num_clips)


def test_dense_views_span_the_video() -> None:
    views = clips.dense_view_indices(300, clip_frames=16, stride=1, num_clips=5)
    assert views[:, 0].tolist() == [0, 71, 142, 213, 284]
    assert views[-1, -1] == 299
    centre = clips.dense_view_indices(101, clip_frames=11, stride=2, num_clips=1)
    assert centre.tolist() == [[40 + 2 * i for i in range(11)]]


def test_uniform_views_as_published() -> None:
    for num_frames in (1, 7, 16, 48, 61, 300):
        tick = num_frames / 16
        middles = [int(tick / 2 + tick * k) for k in range(16)]
        starts = [int(tick * k) for k in range(16)]
        two = clips.uniform_view_indices(num_frames, clip_frames=16, num_clips=2)
        assert two.tolist() == [middles, starts]
        one = clips.uniform_view_indices(num_frames, clip_frames=16, num_clips=1)
        assert one.tolist() == [middles]


def test_uniform_views_divide_the_segments() -> None:
    views = clips.uniform_view_indices(40, clip_frames=4, num_clips=5)
    assert views[:, 0].tolist() == [5, 7, 9, 1, 3]
    assert (np.diff(views, axis=1) == 10).all()
    # with as many clips as a segment has frames, every frame is seen once
    everything = clips.uniform_view_indices(30, clip_frames=6, num_clips=5)
    assert sorted(everything.ravel().tolist()) == list(range(30))


LENGTHS = range(1, 701)


def _slow_window(num_frames: int, start: int) -> list[int]:
    """Published pre-training, 16 x 4: step on only while more than one frame is left."""
    frames = [start]
    while len(frames) < 16:
        following = frames[-1] + 4
        frames.append(following if following + 1 < num_frames else frames[-1])
    return frames


def _slow_kinetics(num_frames: int, start: int) -> list[int]:
    """Published fine-tuning, 16 x 4: from a start to 64 frames later, both ends included."""
    frames = []
    if num_frames > 64:
        for k in range(16):
            frames.append(min(start + 64 * k // 15, start + 63))
        return frames
    values = num_frames // 4
    for k in range(values):
        place = k * num_frames // (values - 1) if values > 1 else 0
        frames.append(min(place, num_frames - 1))
    while len(frames) < 16:
        frames.append(num_frames - 1)
    return frames


def test_published_windows_of_pretraining() -> None:
    for num_frames in LENGTHS:
        for start in {0, max(num_frames - 64, 0) // 3, max(num_frames - 64, 0)}:
            found = clips.videomae_window(num_frames, clip_frames=16, stride=4, start=start)
            assert found.tolist() == _slow_window(num_frames, start), (num_frames, start)


def test_published_frames_of_kinetics() -> None:
    for num_frames in LENGTHS:
        for start in {0, max(num_frames - 64, 0) // 3, max(num_frames - 65, 0)}:
            found = clips.videomae_kinetics_indices(
                num_frames, clip_frames=16, stride=4, start=start
            )
            assert found.tolist() == _slow_kinetics(num_frames, start), (num_frames, start)
    gaps = np.diff(clips.videomae_kinetics_indices(300, clip_frames=16, stride=4, start=7))
    assert set(gaps.tolist()) == {4, 5} and gaps.sum() == 63


class _Offsets:
    """In place of a random generator: offsets that are given."""

    def __init__(self, offsets: list[int]) -> None:
        self.offsets = offsets

    def integers(self, below: int, size: int) -> np.ndarray:
        assert size == len(self.offsets) and max(self.offsets) < below
        return np.array(self.offsets)


def test_published_frames_of_ssv2() -> None:
    drawn = np.random.default_rng(3)
    for num_frames in LENGTHS:
        length = num_frames // 16
        offsets = drawn.integers(max(length, 1), size=16).tolist()
        expected = []
        for k in range(16):
            expected.append(k * length + offsets[k] if length else 0)
        found = clips.random_videomae_ssv2_indices(
            num_frames, clip_frames=16, rng=_Offsets(offsets)
        )
        assert found.tolist() == expected
    of_45 = [clips.random_videomae_ssv2_indices(45, clip_frames=16, rng=drawn) for _ in range(2000)]
    assert np.unique(of_45).tolist() == list(range(32))  # the last 13 are never seen


def test_published_starts_are_equally_likely() -> None:
    rng = np.random.default_rng(4)
    window = [
        clips.random_videomae_window(70, clip_frames=16, stride=4, rng=rng)[0] for _ in range(3000)
    ]
    kinetics = [
        clips.random_videomae_kinetics_indices(70, clip_frames=16, stride=4, rng=rng)[0]
        for _ in range(3000)
    ]
    for starts, number in ((window, 7), (kinetics, 6)):  # 70 - 64 = 6: of a window one more
        counts = np.bincount(starts)
        assert len(counts) == number and counts.min() > 3000 / number * 0.8


@pytest.mark.parametrize("num_clips", [2, 3, 5])
def test_published_views(num_clips: int) -> None:
    kinetics = DataConfig(num_frames=16, frame_stride=4, sampling="videomae_kinetics")
    ssv2 = DataConfig(num_frames=16, sampling="videomae_ssv2")
    for num_frames in LENGTHS:
        thinned = list(range(0, num_frames, 4))
        while len(thinned) < 16:
            thinned.append(thinned[-1])
        expected = []
        for k in range(num_clips):
            start = k * (len(thinned) - 16) // (num_clips - 1)
            expected.append(thinned[start : start + 16])
        found = view_indices(num_frames, kinetics, num_clips=num_clips)
        assert found.tolist() == expected
        if num_clips == 2:  # middles and starts of segments of any length
            middles = [(2 * k + 1) * num_frames // 32 for k in range(16)]
            starts = [k * num_frames // 16 for k in range(16)]
            found = view_indices(num_frames, ssv2, num_clips=2)
            assert found.tolist() == [middles, starts]
