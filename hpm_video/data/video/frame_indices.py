"""Selection of the frames of a clip: index arithmetic only, no decoding.

Every function returns int64 indices into a video of `num_frames` >= 1 frames. A dense clip is one
window with a frame every `stride` frames; past the end of the video the last frame repeats. A
uniform clip divides the video into `clip_frames` equal segments and takes one frame of each.

The `videomae_...` functions reproduce the rules of VideoMAE's released code (arXiv 2203.12602)
frame for frame. docs/method.md describes how they differ from ours.
"""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def dense_indices(num_frames: int, *, clip_frames: int, stride: int, start: int) -> Indices:
    """Return the (clip_frames,) indices of the window that begins at frame `start`."""
    assert num_frames > 0 and start >= 0
    return np.minimum(start + stride * np.arange(clip_frames), num_frames - 1)


def random_dense_indices(
    num_frames: int, *, clip_frames: int, stride: int, rng: np.random.Generator
) -> Indices:
    """Return a random (clip_frames,) window; every start at which it fits is equally likely.

    In a video shorter than the window it starts at 0.
    """
    span = (clip_frames - 1) * stride + 1
    start = int(rng.integers(max(num_frames - span, 0) + 1))
    return dense_indices(num_frames, clip_frames=clip_frames, stride=stride, start=start)


def random_uniform_indices(
    num_frames: int, *, clip_frames: int, rng: np.random.Generator
) -> Indices:
    """Return one random frame from each of `clip_frames` equal segments, (clip_frames,), in order.

    Segment boundaries need not fall on whole frames, so any length works. If a video has fewer
    frames than segments, neighbouring segments share frames.
    """
    assert num_frames > 0
    times = (np.arange(clip_frames) + rng.random(clip_frames)) * (num_frames / clip_frames)
    return np.minimum(times.astype(np.int64), num_frames - 1)  # rounding may reach num_frames


def videomae_window(num_frames: int, *, clip_frames: int, stride: int, start: int) -> Indices:
    """Return the published (clip_frames,) window of pre-training that begins at frame `start`.

    It advances to the next frame only if another one follows; otherwise the last taken frame
    repeats.
    """
    steps = max(num_frames - 2 - start, 0) // stride
    return start + stride * np.minimum(np.arange(clip_frames), steps)


def random_videomae_window(
    num_frames: int, *, clip_frames: int, stride: int, rng: np.random.Generator
) -> Indices:
    """Return a `videomae_window` from a random start at which clip_frames * stride frames fit.

    In a shorter video it starts at 0.
    """
    start = int(rng.integers(max(num_frames - clip_frames * stride, 0) + 1))
    return videomae_window(num_frames, clip_frames=clip_frames, stride=stride, start=start)


def videomae_kinetics_indices(
    num_frames: int, *, clip_frames: int, stride: int, start: int
) -> Indices:
    """Return the published (clip_frames,) frames for fine-tuning on Kinetics, from `start` on.

    They span a window of clip_frames * stride frames, from its first to its last, in steps of
    `stride` or one more. A video that is no longer than a window is sampled in such steps from 0,
    for any `start`, and its last frame repeats.
    """
    span = clip_frames * stride
    if num_frames > span:
        ramp = np.linspace(start, start + span, clip_frames)
        return np.minimum(ramp, start + span - 1).astype(np.int64)
    ramp = np.full(clip_frames, float(num_frames))
    ramp[: num_frames // stride] = np.linspace(0, num_frames, num_frames // stride)
    return np.minimum(ramp, num_frames - 1).astype(np.int64)


def random_videomae_kinetics_indices(
    num_frames: int, *, clip_frames: int, stride: int, rng: np.random.Generator
) -> Indices:
    """Return `videomae_kinetics_indices` from a random start, never that of the last window."""
    start = int(rng.integers(max(num_frames - clip_frames * stride, 1)))
    return videomae_kinetics_indices(
        num_frames, clip_frames=clip_frames, stride=stride, start=start
    )


def random_videomae_ssv2_indices(
    num_frames: int, *, clip_frames: int, rng: np.random.Generator
) -> Indices:
    """Return the published (clip_frames,) frames for fine-tuning on Something-Something V2.

    One random frame from each of clip_frames segments of whole frames; the remainder at the end of
    the video is never used. If a video has fewer frames than segments, its first frame repeats.
    """
    length = num_frames // clip_frames
    offsets = rng.integers(max(length, 1), size=clip_frames)
    return np.arange(clip_frames) * length + offsets


def dense_view_indices(
    num_frames: int, *, clip_frames: int, stride: int, num_clips: int
) -> Indices:
    """Return (num_clips, clip_frames): windows spread evenly from the first to the last that fits.

    As in the published test protocol, the video is first subsampled by `stride`, so starts are
    multiples of `stride`. One clip is the centre. (pytorchvideo's ConstantClipsPerVideoSampler
    differs: its k-th of n clips starts at k/n of the range, so the last clip never reaches the
    end.)
    """
    last = max(-(-num_frames // stride) - clip_frames, 0)  # last start in the subsampled video
    steps = num_clips - 1
    starts = np.array([last * k // steps if steps else last // 2 for k in range(num_clips)])
    return np.minimum(stride * (starts[:, None] + np.arange(clip_frames)), num_frames - 1)


def uniform_view_indices(num_frames: int, *, clip_frames: int, num_clips: int) -> Indices:
    """Return (num_clips, clip_frames): clip k takes the same position within every segment.

    The position is the fraction (1/2 + k / num_clips) mod 1 of the segment. One clip takes the
    middles of the segments, two take middles and starts (as published for SSv2). More divide the
    segment evenly, starting with the middle.
    """
    assert num_frames > 0
    # In units of 1 / (2 * num_clips) segment, so that float rounding never selects the frame
    unit = 2 * num_clips
    positions = (num_clips + 2 * np.arange(num_clips)) % unit
    times = np.arange(clip_frames)[None, :] * unit + positions[:, None]
    return times * num_frames // (unit * clip_frames)
