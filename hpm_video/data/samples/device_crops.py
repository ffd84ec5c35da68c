"""Crops made on the device: readers only decode, and send whole frames with the boxes to cut out.

    worker: decode -> row of bytes: frames (T, H, W, 3), then H, W and a box for each crop
    device: row -> crops, each by two matrix products

A row has room for a fixed number of pixels a frame, whatever its shape. Crops are those of
`crops.resize_crop` but for its rounding to whole levels.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from hpm_video.data.samples.clips import ClipReader, Request
from hpm_video.data.video.crops import Box

_NUMBERS_OF_BOX = 5  # top, left, height, width, whether mirrored
_SIZE = np.dtype(np.int32).itemsize


class FrameReader(ClipReader):
    """Reads whole frames, and says which boxes to cut out of them; see `DataConfig.frame_pixels`.

    Nothing augments these crops.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._frame_bytes + _SIZE * (2 + _NUMBERS_OF_BOX * self.data.repeats),)

    @property
    def _frame_bytes(self) -> int:
        size = self.data.windows * self.data.num_frames * self.data.frame_pixels * 3
        return -(-size // _SIZE) * _SIZE  # numbers stand where they can be read as such

    def read(self, request: Request, out: Tensor) -> str | None:
        """Fill a row, a function of the request alone."""
        rng = np.random.default_rng(request.seed)
        video = request.open(self.data.decoder)
        parts = [_fit(torch.from_numpy(part), self.data.frame_pixels)
                 for part in self.read_windows(video, rng)]  # fmt: skip
        height, width = parts[0].shape[1:3]
        numbers = [height, width]
        for _ in range(self.data.repeats):
            box, flip = self.draw_box(height, width, rng)
            numbers += [*box, int(flip)]
        shape = (len(parts), *parts[0].shape)
        for room, part in zip(out[: math.prod(shape)].view(shape), parts, strict=True):
            room.copy_(part)
        out[self._frame_bytes :].view(torch.int32).copy_(torch.tensor(numbers, dtype=torch.int32))
        return video.note

    def crop(self, rows: Tensor, device: torch.device | str) -> Tensor:
        """Rows (B, bytes) uint8 -> clips (B * R, 3, T, S, S) float32 in [0, 1] on the device."""
        numbers = rows[:, self._frame_bytes :].contiguous().view(torch.int32).tolist()
        rows = rows.to(device, non_blocking=True)
        num_clips = len(rows) * self.data.repeats
        side, num_frames = self.data.crop_size, self.data.num_frames
        out = torch.empty(num_clips, 3, num_frames, side, side, device=device)
        place = 0
        for row, (height, width, *boxes) in zip(rows, numbers, strict=True):
            shape = (self.data.windows, num_frames, height, width, 3)
            windows = row[: math.prod(shape)].view(shape)
            for k in range(self.data.repeats):
                *box, flip = boxes[k * _NUMBERS_OF_BOX : (k + 1) * _NUMBERS_OF_BOX]
                out[place] = _crop(windows[k % len(windows)], Box(*box), side, flip=bool(flip))
                place += 1
        return out


def _fit(frames: Tensor, pixels: int) -> Tensor:
    """Frames (T, H, W, 3) uint8, scaled down to at most so many pixels each."""
    height, width = frames.shape[1:3]
    if height * width <= pixels:
        return frames
    scale = math.sqrt(pixels / (height * width))
    size = [max(1, int(height * scale)), max(1, int(width * scale))]
    return functional.resize(frames.permute(0, 3, 1, 2), size, antialias=True).permute(0, 2, 3, 1)


def _crop(frames: Tensor, box: Box, size: int, *, flip: bool) -> Tensor:
    """A box of frames (T, H, W, 3) uint8 -> (3, T, size, size) float32 in [0, 1]."""
    top, left, height, width = box
    cut = frames[:, top : top + height, left : left + width].permute(3, 0, 1, 2)
    rows, columns = (_weights(length, size, frames.device) for length in (height, width))
    if flip:
        columns = columns.flip(0)
    return (rows @ (cut.float() / 255) @ columns.T).clamp_(0, 1)


def _weights(length: int, size: int, device: torch.device) -> Tensor:
    """(size, length): what each pixel of a line weighs in those of the line scaled to `size`.

    Bilinear; where it shrinks, a triangle over all pixels that fall into one (antialiased).
    """
    scale = length / size
    reach = max(scale, 1.0)
    centres = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * scale
    pixels = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    weights = (1 - (pixels - centres[:, None]).abs() / reach).clamp_(min=0)
    return weights / weights.sum(dim=1, keepdim=True)
