"""Self-supervised video pre-training by masked autoencoding with hard tube mining."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from hpm_video.runtime.moved import find_moved_modules

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hpm_video.config.values import Device
    from hpm_video.visualize.hard_tubes import HardTubes

__version__ = "0.1.0"

find_moved_modules()


def embed(
    path: str | PathLike[str],
    *,
    checkpoint: str | PathLike[str],
    num_clips: int = 1,
    num_crops: int = 1,
    device: Device = "auto",
) -> npt.NDArray[np.float32]:
    """Return the feature (D,) of a video: the mean over tokens, clips and crops.

    The checkpoint, or run folder, is of pre-training or of fine-tuning; the last one used stays in
    memory. One clip and one crop are the middle of the video.

    Raises:
        VideoReadError: the video is unreadable.
        FileNotFoundError, ValueError: there is no such checkpoint, or it is none of ours.
    """
    from hpm_video.evaluate.embed_classify import embed_video

    return embed_video(
        path, checkpoint=checkpoint, num_clips=num_clips, num_crops=num_crops, device=device
    )


def classify(
    path: str | PathLike[str],
    *,
    checkpoint: str | PathLike[str],
    num_clips: int | None = None,
    num_crops: int | None = None,
    device: Device = "auto",
) -> dict[str, float]:
    """Return the probability of every class of a fine-tuned checkpoint, the likeliest class first.

    Classes without names are called by their number. Probabilities are means over the views, which
    are those of the checkpoint's own evaluation unless given.

    Raises:
        VideoReadError: the video is unreadable.
        FileNotFoundError, ValueError: there is no such checkpoint, or it is not of fine-tuning.
    """
    from hpm_video.evaluate.embed_classify import classify_video

    return classify_video(
        path, checkpoint=checkpoint, num_clips=num_clips, num_crops=num_crops, device=device
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
