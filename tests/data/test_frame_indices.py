import numpy as np
import pytest

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
