"""Crops on the device: readers only decode, and send whole frames with the boxes to cut out.

    worker: decode -> row of bytes: frames (T, H, W, 3), then H, W and a box per crop, then the
            scores of `ClipReader`
    device: rows -> boxes on one canvas each -> crops, all with the same two matrix products

A row has a fixed number of pixels per frame, whatever the shape of frames. The crops equal those of
`crops.resize_crop`, except that they are not rounded to whole levels.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from hpm_video.data.samples.clips import NUMBER_BYTES, ClipReader, Request

_NUMBERS_OF_BOX = 5  # top, left, height, width, whether mirrored
_HEIGHT, _WIDTH = 3, 4  # positions in a box of `FrameReader._boxes`
_CANVAS_STEP = 32  # pixels
_CLIPS_AT_ONCE = 64  # of 224 x 224 pixels: about 2 GB of temporary memory


class FrameReader(ClipReader):
    """Reads whole frames, and draws the boxes to cut out of them; see `DataConfig.frame_pixels`.

    These crops are not augmented.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._scores_at + self._scores_size,)

    @property
    def _scores_at(self) -> int:
        return self._frame_bytes + NUMBER_BYTES * (2 + _NUMBERS_OF_BOX * self.data.repeats)

    @property
    def _frame_bytes(self) -> int:
        size = self.data.windows * self.data.num_frames * self.data.frame_pixels * 3
        return -(-size // NUMBER_BYTES) * NUMBER_BYTES  # aligned, to be viewed as numbers

    def read(self, request: Request, out: Tensor) -> str | None:
        """Fill a row; deterministic for a given request."""
        rng = np.random.default_rng(request.seed)
        video = request.open(self.data, motion=self.tubelet is not None)
        windows = self.read_windows(video, rng)
        parts = [
            _fit(
                torch.from_numpy(window.frames),
                self.data.frame_pixels,
                antialias=self.data.antialias,
            )
            for window in windows
        ]
        height, width = parts[0].shape[1:3]
        numbers = [height, width]
        for k in range(self.data.repeats):
            box, flip = self.draw_box(height, width, rng)
            numbers += [*box, int(flip)]
            window = windows[k % len(windows)]
            self.write_scores(out, k, window, box=box, size=(height, width), flip=flip)
        room = out[: self._frame_bytes].view(self.data.windows, self.data.num_frames, -1)
        for frames, part in zip(room, parts, strict=True):  # frames have fixed offsets
            frames[:, : part[0].numel()].copy_(part.flatten(1))
        out[self._frame_bytes : self._scores_at].view(torch.int32).copy_(
            torch.tensor(numbers, dtype=torch.int32)
        )
        return video.note

    def crop(self, rows: Tensor, there: Tensor, *, together: bool | None = None) -> Tensor:
        """Crop rows (B, bytes) uint8 to clips (B * R, 3, T, S, S) float32 in [0, 1] on a device.

        ``rows`` are on the host and ``there`` is their copy on the device. The result's memory has
        image rows first. ``together``: process all boxes with the same few kernels, for devices
        where a kernel launch is slow; by default on every device but a CPU.
        """
        repeats, windows = self.data.repeats, self.data.windows
        frames = there[:, : self._frame_bytes].unflatten(1, (windows, self.data.num_frames, -1, 3))
        # Shapes are computed from the host's copy, so that the device need not synchronize
        boxes, on_device = self._boxes(rows), self._boxes(there)
        if not (there.device.type != "cpu" if together is None else together):
            canvases = _canvases_one_by_one(frames, boxes.tolist())
            lengths = on_device.flatten(0, 1).split(1)
        else:
            step = max(1, _CLIPS_AT_ONCE // repeats)
            most = [_rounded_up(int(boxes[..., k].max())) for k in (_HEIGHT, _WIDTH)]
            parts = list(zip(frames.split(step), on_device.split(step), strict=True))
            canvases = (cut_boxes(*part, *most) for part in parts)
            lengths = [of_part.flatten(0, 1) for _, of_part in parts]
        to_size = partial(resize, size=self.data.crop_size, antialias=self.data.antialias)
        crops = [to_size(*pair) for pair in zip(canvases, lengths, strict=True)]
        return (crops[0] if len(crops) == 1 else torch.cat(crops)).permute(0, 3, 2, 1, 4)

    def _boxes(self, rows: Tensor) -> Tensor:
        """The boxes (B, R, 6) int32 of rows (B, bytes).

        The six numbers are the frame's width, the box's top, left, height and width, and whether it
        is mirrored.
        """
        numbers = rows[:, self._frame_bytes : self._scores_at].contiguous().view(torch.int32)
        boxes = numbers[:, 2:].unflatten(1, (self.data.repeats, _NUMBERS_OF_BOX))
        width = numbers[:, 1, None, None].expand(-1, self.data.repeats, -1)
        return torch.cat([width, boxes], dim=2)


def _fit(frames: Tensor, pixels: int, *, antialias: bool) -> Tensor:
    """Scale frames (T, H, W, 3) uint8 down to at most ``pixels`` pixels each."""
    height, width = frames.shape[1:3]
    if height * width <= pixels:
        return frames
    scale = math.sqrt(pixels / (height * width))
    size = [max(1, int(height * scale)), max(1, int(width * scale))]
    planes = functional.resize(frames.permute(0, 3, 1, 2), size, antialias=antialias)
    return planes.permute(0, 2, 3, 1)


def _rounded_up(length: int) -> int:
    """Round the side of a canvas up, so that kernels are selected for few sizes only."""
    return -(-length // _CANVAS_STEP) * _CANVAS_STEP


def _canvases_one_by_one(frames: Tensor, boxes: list[list[list[int]]]) -> Iterator[Tensor]:
    """The result of `cut_boxes`, clip by clip and exactly as large as the box: fastest on a CPU."""
    for windows, of_video in zip(frames, boxes, strict=True):
        for k, (frame_width, top, left, height, width, _) in enumerate(of_video):
            pixels = windows[k % len(windows)]  # (T, P, 3)
            length = pixels.shape[1] // frame_width * frame_width
            whole = pixels[:, :length].unflatten(1, (-1, frame_width))  # (T, rows, columns, 3)
            cut = whole[None, :, top : top + height, left : left + width]
            yield cut.permute(0, 2, 1, 4, 3).float()


def cut_boxes(frames: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Cut boxes (B, R, 6) out of the pixels (B, W, T, P, 3) uint8 of W windows.

    Returns canvases (B * R, height, T, 3, width) float32, large enough for all boxes. The R boxes
    of a video are assigned to its windows in turn. Pixels of a canvas outside its box are
    undefined. Uses the same few kernels for any number of boxes.
    """
    boxes = boxes.unflatten(1, (-1, frames.shape[1])).transpose(1, 2)  # (B, W, R / W, 6)
    frame_width, top, left, *_ = boxes.long().unbind(-1)
    row = torch.arange(height, device=boxes.device) + top[..., None]
    column = torch.arange(width, device=boxes.device) + left[..., None]
    # The pixel indices are equal for all frames: (B, W, R / W, height, width) -> (B, W, ...)
    place = row[..., None] * frame_width[..., None, None] + column[..., None, :]
    place = place.clamp_(max=frames.shape[3] - 1).flatten(2)[:, :, None, :, None]
    cut = frames.gather(3, place.expand(-1, -1, frames.shape[2], -1, 3))
    # (B, W, T, R / W * height * width, 3) -> (B, R / W, W, height, T, 3, width)
    cut = cut.unflatten(3, (-1, height, width)).permute(0, 3, 1, 4, 2, 6, 5)
    return cut.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 2)


def resize(canvas: Tensor, boxes: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """Scale the boxes (K, 6) in the corners of canvases, and mirror some.

    Canvases (K, height, T, 3, width) in [0, 255] -> (K, size, T, 3, size) in [0, 1].
    """
    *_, box_height, box_width, flip = boxes.unbind(-1)
    rows = _weights(box_height, canvas.shape[1], size, antialias)  # (K, size, height)
    columns = _weights(box_width, canvas.shape[4], size, antialias)
    columns = torch.where(flip[:, None, None] > 0, columns.flip(1), columns) / 255
    narrow = canvas.flatten(1, 3) @ columns.mT  # (K, height * T * 3, size)
    small = rows @ narrow.unflatten(1, (canvas.shape[1], -1)).flatten(2)
    return small.clamp_(0, 1).unflatten(2, (*canvas.shape[2:4], size))


def _weights(lengths: Tensor, most: int, size: int, antialias: bool) -> Tensor:
    """Interpolation weights for lines of (K,) lengths -> (K, size, most).

    They give the share of each of ``most`` pixels in the pixels of a line scaled to ``size``; 0
    past its end. Bilinear: a triangle over the two nearest pixels or, antialiased, over all pixels
    inside.
    """
    length = lengths[:, None, None].float()
    scale = length / size
    centres = (torch.arange(size, device=lengths.device)[:, None] + 0.5) * scale
    pixels = torch.arange(most, device=lengths.device) + 0.5
    reach = scale.clamp(min=1) if antialias else 1.0
    weights = (1 - (pixels - centres).abs() / reach).clamp_(min=0) * (pixels < length)
    return weights / weights.sum(dim=2, keepdim=True)
