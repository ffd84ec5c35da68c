"""What `bench loader` compares ours with: the published VideoMAE loader, and bare decoding."""

from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
from PIL import Image

from hpm_video.config.values import Decoder
from hpm_video.data.video.crops import Box
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD


def classic_clip(path: str, indices: Sequence[int], box: Box, size: int) -> torch.Tensor:
    """The (3, T, size, size) float32 clip of the official pre-training data set: decord's frames,
    of which PIL crops `box` and resizes it, frame by frame; then normalised."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    frames = reader.get_batch(list(indices)).asnumpy()
    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    crops = [
        image.crop(corners).resize((size, size), Image.Resampling.BILINEAR) for image in images
    ]
    # (S, S, T * 3) -> (T * 3, S, S)
    stacked = np.concatenate([np.array(crop) for crop in crops], axis=2)
    planes = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
    statistics = zip(IMAGENET_MEAN * len(crops), IMAGENET_STD * len(crops), strict=True)
    for plane, (mean, std) in zip(planes, statistics, strict=True):
        plane.sub_(mean).div_(std)
    return planes.view(len(crops), 3, size, size).transpose(0, 1)


def _bare_decord(path: str, indices: list[int]) -> None:
    import decord

    decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()


def _bare_torchcodec(path: str, indices: list[int]) -> None:
    from torchcodec.decoders import VideoDecoder

    VideoDecoder(path, dimension_order="NHWC").get_frames_at(indices)


def _bare_pyav(path: str, indices: list[int]) -> None:
    """As its documentation has it: seek to the time of the first frame, decode up to the last."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.average_rate and stream.time_base
        step = 1 / (stream.average_rate * stream.time_base)
        times = {round(index * step) + (stream.start_time or 0) for index in indices}
        container.seek(min(times), stream=stream)
        for frame in container.decode(stream):
            if frame.pts in times:
                frame.to_ndarray(format="rgb24")
            if frame.pts is not None and frame.pts >= max(times):
                break


BARE: dict[Decoder, Callable[[str, list[int]], None]] = {
    "decord": _bare_decord,
    "torchcodec": _bare_torchcodec,
    "pyav": _bare_pyav,
}
