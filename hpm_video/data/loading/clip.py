"""Reads one clip of one video safely, for visualizations."""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.config import DataConfig, PretrainConfig
from hpm_video.data.loading.batches import read_guarded
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.samples.views import view_indices
from hpm_video.data.video import crops
from hpm_video.data.video.frames import open_frames


def read_clip(
    path: str | Path, config: PretrainConfig, *, table: bytes | None = None
) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """The middle clip of a video, with pre-training's sampling, cropped to the centre square.

    ``table``: the video's frame table, from the index of its list.

    Returns the clip (1, 3, T, S, S) in [0, 1], and the indices of its frames, (T,). Raises
    VideoReadError.
    """
    data, read = config.data, partial(_read_middle, data=config.data, table=table)
    frames, indices = read_guarded(
        read, str(path), num_workers=data.num_workers, timeout_s=data.decode_timeout_s or None
    )
    return to_clips(torch.from_numpy(frames)[None], "cpu"), indices


def read_codec_scores(
    path: str | Path, config: PretrainConfig, *, table: bytes | None = None
) -> tuple[Tensor, bool]:
    """Token scores (N,) of the clip of `read_clip`, from the file's motion vectors.

    They are those of masking.source=codec. Also returns whether the file has motion vectors;
    without any, all scores are 0. Raises VideoReadError.
    """
    tubelet = Tubelet(config.model.tubelet_size, config.model.patch_size)
    data, read = config.data, partial(_score_middle, data=config.data, table=table, tubelet=tubelet)
    scores, are_known = read_guarded(
        read, str(path), num_workers=data.num_workers, timeout_s=data.decode_timeout_s or None
    )
    return torch.from_numpy(scores), are_known


def _score_middle(
    path: str, data: DataConfig, table: bytes | None, tubelet: Tubelet
) -> tuple[npt.NDArray[np.float32], bool]:
    video = open_frames(path, "pyav", fps=data.fps, table=table, motion=True)
    (indices,) = view_indices(video.num_frames, data, num_clips=1)
    frames, speeds = video.read_motion(indices)
    size = frames.shape[1:3]
    (box,) = crops.view_crops(*size, num_crops=1)
    return tubelet.scores(speeds, box, data.crop_size, size=size, flip=False), speeds.are_known


def _read_middle(
    path: str, data: DataConfig, table: bytes | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    video = open_frames(path, fps=data.fps, table=table)
    (indices,) = view_indices(video.num_frames, data, num_clips=1)
    frames = video.read(indices)
    (box,) = crops.view_crops(*frames.shape[1:3], num_crops=1)
    crop = crops.resize_crop(frames, box, data.crop_size, antialias=data.antialias)
    return crop.numpy(), indices
