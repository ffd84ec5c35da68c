"""Self-supervised video pre-training by masked autoencoding with hard tube mining."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, overload

from hpm_video.runtime.moved import find_moved_modules

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from hpm_video.config.values import Device
    from hpm_video.visualize.hard_tubes import HardTubes

    Path = str | PathLike[str]
    Video = Path | npt.NDArray[np.uint8] | Tensor

__version__ = "0.1.0"

find_moved_modules()

# Warnings that imported libraries print about themselves.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)


@overload
def embed(
    videos: Video,
    *,
    checkpoint: Path,
    num_clips: int = ...,
    num_crops: int = ...,
    every: int | None = ...,
    settings: Sequence[str] = ...,
    device: Device = ...,
) -> npt.NDArray[np.float32]: ...
@overload
def embed(
    videos: Iterator[Video],
    *,
    checkpoint: Path,
    num_clips: int = ...,
    num_crops: int = ...,
    every: int | None = ...,
    settings: Sequence[str] = ...,
    device: Device = ...,
) -> Iterator[npt.NDArray[np.float32]]: ...
@overload
def embed(
    videos: list[Any] | tuple[Any, ...],
    *,
    checkpoint: Path,
    num_clips: int = ...,
    num_crops: int = ...,
    every: int | None = ...,
    settings: Sequence[str] = ...,
    device: Device = ...,
) -> npt.NDArray[np.float32]: ...
def embed(
    videos: Any,
    *,
    checkpoint: Path,
    num_clips: int = 1,
    num_crops: int = 1,
    every: int | None = None,
    settings: Sequence[str] = (),
    device: Device = "auto",
) -> Any:
    """Return the feature (D,) of a video: the mean over tokens, clips and crops.

    A list or tuple of V videos gives an array (V, D). An iterator gives an iterator of features,
    one per video; if it yields frames, one per window of frames. So the input may be an endless
    camera stream.

    The model is any that `hpm-video features` takes; the last one stays in memory. With one clip
    and one crop, the feature is that of the middle of the video.

    Args:
        videos: a path, or frames (T, H, W, 3) uint8 as an array or tensor; a sequence of these; or
            an iterator over these or over frames (H, W, 3) uint8.
        checkpoint: a file, a run folder, or a model of another library.
        num_clips: clips in time per video; in a stream of frames, each window is one clip.
        num_crops: crops in space per clip.
        every: frames between the starts of two windows of a stream; by default windows are side by
            side.
        settings: of the groups clip and encoder, such as ``["clip.frame_stride=4"]``.
        device: device of the model.

    Raises:
        VideoReadError: a video is unreadable.
        FileNotFoundError, ValueError: the checkpoint is missing or needs settings, or frames have
            the wrong type or shape.
    """
    from hpm_video.evaluate.embed_classify import Views, embed_videos

    views = Views(num_clips, num_crops, every)
    return embed_videos(
        videos, checkpoint=checkpoint, views=views, settings=settings, device=device
    )


@overload
def classify(
    videos: Video,
    *,
    checkpoint: Path,
    num_clips: int | None = ...,
    num_crops: int | None = ...,
    every: int | None = ...,
    settings: Sequence[str] = ...,
    device: Device = ...,
) -> dict[str, float]: ...
@overload
def classify(
    videos: Iterator[Video],
    *,
    checkpoint: Path,
    num_clips: int | None = ...,
    num_crops: int | None = ...,
    every: int | None = ...,
    settings: Sequence[str] = ...,
    device: Device = ...,
) -> Iterator[dict[str, float]]: ...
@overload
def classify(
    videos: list[Any] | tuple[Any, ...],
    *,
    checkpoint: Path,
    num_clips: int | None = ...,
    num_crops: int | None = ...,
    every: int | None = ...,
    settings: Sequence[str] = ...,
    device: Device = ...,
) -> list[dict[str, float]]: ...
def classify(
    videos: Any,
    *,
    checkpoint: Path,
    num_clips: int | None = None,
    num_crops: int | None = None,
    every: int | None = None,
    settings: Sequence[str] = (),
    device: Device = "auto",
) -> Any:
    """Return the probability of every class of a fine-tuned checkpoint, likeliest class first.

    ``videos`` and ``every`` are as in `embed`: a sequence of videos gives a list, an iterator gives
    an iterator. ``checkpoint`` is any that `hpm-video predict` takes; ``settings`` are of the group
    clip. Classes without names are named by number. Multi-label classifiers give independent
    probabilities, which do not sum to 1. Probabilities are averaged over views; by default these
    are the views of the checkpoint's own evaluation.

    Raises:
        VideoReadError: a video is unreadable. (`hpm-video predict` skips such videos.)
        FileNotFoundError, ValueError: the checkpoint is missing or not a fine-tuning, or frames
            have the wrong type or shape.
    """
    from hpm_video.evaluate.embed_classify import classify_videos

    return classify_videos(
        videos,
        checkpoint=checkpoint,
        num_clips=num_clips,
        num_crops=num_crops,
        every=every,
        settings=settings,
        device=device,
    )


def hard_tubes(
    checkpoint: str | PathLike[str],
    path: str | PathLike[str],
    *,
    whole_frame: bool = False,
    num_masks: int = 8,
    seed: int = 0,
    device: Device = "auto",
) -> HardTubes:
    """Return what a pre-training checkpoint finds hard in the middle clip of a video.

    The result has ``scores`` (time, rows, columns), ``hard`` and ``mask`` (bool, same shape), and
    the full ``frames`` (T, H, W, 3) uint8; ``place`` is the part of the frames that the scores
    cover. See `hpm_video.visualize.hard_tubes.HardTubes` for all fields.

    Args:
        checkpoint: a file or a run folder; the last one stays in memory.
        path: the video.
        whole_frame: use the full frame, resized to a square, instead of the centre square.
        num_masks: random masks behind the measured loss.
        seed: of these masks.
        device: device of the model.

    Raises:
        VideoReadError: the video is unreadable, or shorter than a clip.
        FileNotFoundError, ValueError: the checkpoint is missing, or not a pre-training.
    """
    from hpm_video.visualize.videos import hard_tubes_of_video

    return hard_tubes_of_video(
        checkpoint, path, whole_frame=whole_frame, num_masks=num_masks, seed=seed, device=device
    )
