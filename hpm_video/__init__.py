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

# Said by libraries that we import, about themselves.
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

    Of several videos, a list or tuple, they are the rows of an array (V, D). An iterator gives
    features one by one: of the videos that it yields or, where it yields frames, of windows that
    begin ``every`` so many of them (by default side by side). So a camera never has to end.

    The model is any that `hpm-video features` takes; the last one used stays in memory. One clip
    and one crop are the middle of the video.

    Args:
        videos: a path, or frames (T, H, W, 3) uint8 as an array or tensor; several of these; or an
            iterator over these or over frames (H, W, 3) uint8.
        checkpoint: a file, a run folder, or a model of others.
        num_clips: clips in time per video; of a stream of frames each window is one.
        num_crops: crops in space per clip.
        every: frames of a stream from one window to the next.
        settings: of the groups clip and encoder, as ``["clip.frame_stride=4"]``.
        device: where the model runs.

    Raises:
        VideoReadError: a video is unreadable.
        FileNotFoundError, ValueError: there is no such checkpoint, it needs settings, or the frames
            are of another type or shape.
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
    """Return the probability of every class of a fine-tuned checkpoint, the likeliest class first.

    ``videos`` and ``every`` are as in `embed`: several videos give a list, an iterator an iterator.
    ``checkpoint``: any that `hpm-video predict` takes. ``settings``: of the group clip.
    Classes without names are called by their number. Where videos may have several labels, each
    class has a probability of its own, and they do not sum to 1. Probabilities are means over the
    views, which are those of the checkpoint's own evaluation unless given.

    Raises:
        VideoReadError: a video is unreadable. `hpm-video predict` goes on with the others.
        FileNotFoundError, ValueError: there is no such checkpoint, it is not of fine-tuning, or the
            frames are of another type or shape.
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
    """Return what a checkpoint of pre-training finds hard in the middle clip of a video.

    Among its fields and properties: ``scores`` (time, rows, columns), ``hard`` and ``mask`` of the
    same shape, bool, and ``frames`` (T, H, W, 3) uint8 as the video shows them, in which ``place``
    is where the scores belong. See `hpm_video.visualize.hard_tubes.HardTubes`.

    Args:
        checkpoint: a file or a run folder; the last one used stays in memory.
        path: the video.
        whole_frame: look at the whole picture, resized to a square, not at the centre square.
        num_masks: random masks behind the measured loss.
        seed: of these masks.
        device: where the model runs.

    Raises:
        VideoReadError: the video is unreadable, or shorter than a clip.
        FileNotFoundError, ValueError: there is no such checkpoint, or it is not of pre-training.
    """
    from hpm_video.visualize.videos import hard_tubes_of_video

    return hard_tubes_of_video(
        checkpoint, path, whole_frame=whole_frame, num_masks=num_masks, seed=seed, device=device
    )
