"""Reads folders of frames and single images with Pillow, see `frame_folder`.

Only requested frames are opened. Each is rotated according to its EXIF data. Transparency is
dropped; of grey with more than 8 bits, the upper 8 of 16 bits are used. A frame whose size differs
from the first is scaled, with black bars to keep its aspect ratio.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from hpm_video.data.video.frame_table import FRAMES, IMAGE, FrameTable, Starts
from hpm_video.data.video.orientation import UPRIGHT, Orientation
from hpm_video.data.video.readers import UnreadableError, check_picture, why
from hpm_video.data.video.readers.frame_folder import FrameFiles, folder_fps, frames_of
from hpm_video.data.video.source import locate
from hpm_video.runtime.files import printable
from hpm_video.runtime.reading import open_regular

# Pillow's warnings about odd EXIF data and large images, which we handle here
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")

IMAGE_FPS = 1.0  # an image is a video of one frame, displayed for a second
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # detected by content, not by name
_EXIF_ORIENTATION = 0x0112
_ORIENTATIONS = {
    2: Orientation(left_right=True),
    3: Orientation(left_right=True, up_down=True),
    4: Orientation(up_down=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, left_right=True),
    7: Orientation(transposed=True, left_right=True, up_down=True),
    8: Orientation(transposed=True, up_down=True),
}
_MOST_TRIED = 100  # frames that are opened to find the frame size
_NO_VECTORS = (
    "has no motion vectors, as it is not a video file: hpm-video data transcode makes one that has "
    "them, or set another masking.source than codec"
)


@dataclass
class Looked:
    """Findings from decoding frames."""

    broken: list[str] = field(default_factory=list)  # reasons, with file names
    other_sizes: bool = False
    largest_grey: int = 0  # largest value of grey with more than 8 bits; 0: none


class PictureReader:
    """An open folder of frames, or an image; see `Reader`. ``table``: its frame table, if known.

    Raises UnreadableError if there are no frames, or the first ones cannot be opened.
    """

    packets = None  # keeps nothing but names

    def __init__(self, path: str, table: FrameTable | None = None, *, motion: bool = False) -> None:
        if motion:
            raise UnreadableError(_NO_VECTORS)
        self._is_folder = os.path.isdir(path)
        if not self._is_folder:
            self._folder, name = os.path.split(path)
            self.files = FrameFiles(np.zeros(1, np.int64), "", (name,))
        elif table is not None and table.files.count("/") == 2:
            self._folder, self.files = path, FrameFiles(table.places, table.files)
        else:
            self._folder, self.files = path, frames_of(path)
        self.num_frames = len(self.files)
        self.fps = folder_fps(path) if self._is_folder else IMAGE_FPS
        table = table or self._table(path)
        self.table = table if table.fps == self.fps else replace(table, fps=self.fps)

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames (T, H, W, 3); see `Reader.read`."""
        shape = len(indices), self.table.height, self.table.width, 3
        pixels = np.empty(shape, dtype=np.uint8)
        for place, frame in zip(pixels, self.stream(indices), strict=True):
            place[:] = frame
        return pixels

    def stream(self, indices: Iterable[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the frames (H, W, 3) at indices one by one.

        Raises UnreadableError if one of them cannot be decoded, after yielding those before it.
        """
        for index in indices:
            yield self._frame(index, Looked())

    def look(self, indices: Iterable[int]) -> Looked:
        """Decode frames and report findings."""
        looked = Looked()
        for index in indices:
            try:
                self._frame(index, looked)
            except UnreadableError as error:
                looked.broken.append(str(error))
        if looked.other_sizes:
            self.table = replace(self.table, other_sizes=True)
        return looked

    def _frame(self, index: int, looked: Looked) -> npt.NDArray[np.uint8]:
        """A frame (H, W, 3), scaled to the size of the first."""
        name = self.files.name(index)
        try:
            with _opened(os.path.join(self._folder, name)) as image:
                image.load()
                pixels, largest = _rgb(image)
                pixels = _orientation(image).apply(pixels)
        except Exception as error:
            raise UnreadableError(self._said(name, error)) from error
        looked.largest_grey = max(looked.largest_grey, largest)
        size = self.table.height, self.table.width
        if pixels.shape[:2] == size:
            return pixels
        looked.other_sizes = True
        if not self.table.other_sizes:  # found while reading
            self.table = replace(self.table, other_sizes=True)
        return _fitted(pixels, *size)

    def none(self, reason: str) -> str:
        """The message if no frame can be decoded; ``reason`` is that of the first."""
        return f"none of its frames can be decoded, {reason}" if self._is_folder else reason

    def _said(self, name: str, error: Exception) -> str:
        """Why a frame cannot be decoded, with its file name."""
        reason = _reason(error).replace(os.path.join(self._folder, ""), "")
        return f"{printable(name)}: {reason}" if self._is_folder else reason

    def _table(self, path: str) -> FrameTable:
        num_bytes, mtime_ns = locate(path).identity
        kind, height, width = self._first_size()
        one = np.zeros(1, np.int64)
        return FrameTable(
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            num_frames=self.num_frames,
            container=FRAMES if self._is_folder else IMAGE,
            codec=kind,
            pix_fmt="",
            height=height,
            width=width,
            fps=self.fps,
            time_base=(1, 1),
            orientation=UPRIGHT,  # each frame is rotated individually
            codecs=(kind,),
            times=np.arange(self.num_frames),
            places=self.files.numbers,
            starts=Starts(one, one, one, one - 1, one),
            files=self.files.pattern,
        )

    def _first_size(self) -> tuple[str, int, int]:
        """The format, height and width of the first frame that can be opened."""
        broken = []
        for index in range(min(self.num_frames, _MOST_TRIED)):
            name = self.files.name(index)
            try:
                with _opened(os.path.join(self._folder, name)) as image:
                    width, height = image.size
                    if _orientation(image).transposed:
                        height, width = width, height
                    return (image.format or "").lower(), height, width
            except Exception as error:  # noqa: BLE001 - of any frame, Pillow raises anything
                broken.append(self._said(name, error))
        raise UnreadableError(self.none(broken[0]))


def _opened(path: str) -> Image.Image:
    """An image with its header read; closing it closes its file."""
    file = open_regular(path)
    try:
        image = Image.open(file, formats=_FORMATS)
        check_picture(image.height, image.width)
    except BaseException:
        file.close()
        raise
    return image


def _reason(error: Exception) -> str:
    """Why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "is not an image (JPEG, PNG, WebP or BMP), or its header is damaged"
    if isinstance(error, OSError):  # the system's, or Pillow's own message
        return (error.strerror or " ".join(str(error).split())).lower()
    return why(error)


def _rgb(image: Image.Image) -> tuple[npt.NDArray[np.uint8], int]:
    """Pixels (H, W, 3), and the largest value of grey with more than 8 bits, else 0."""
    if not image.mode.startswith("I"):
        return np.array(image.convert("RGB")), 0  # writable
    grey = np.asarray(image)
    upper = (grey >> 8).astype(np.uint8)
    return np.repeat(upper[..., None], 3, axis=-1), int(grey.max())


def _orientation(image: Image.Image) -> Orientation:
    """The orientation in which to display an image; damaged EXIF data are ignored."""
    if image.format == "PNG" and "exif" not in image.info:  # avoids decoding it to reach its end
        return UPRIGHT
    try:
        return _ORIENTATIONS.get(image.getexif().get(_EXIF_ORIENTATION, 1), UPRIGHT)
    except Exception:  # noqa: BLE001 - Pillow's readers of it raise anything
        return UPRIGHT


def _fitted(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """A frame scaled to a size, with black bars to keep its aspect ratio, like `RgbWriter`."""
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    rows = max(1, min(height, round(pixels.shape[0] * scale)))
    columns = max(1, min(width, round(pixels.shape[1] * scale)))
    image = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC)
    out = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    out[top : top + rows, left : left + columns] = np.asarray(image)
    return out
