"""Films for slides and papers: the video beside its losses, masks and reconstruction."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from hpm_video.runtime.files import OURS, whole_file
from hpm_video.runtime.pages import Frames
from hpm_video.visualize.figures import GREY, Floats, heat_at, inside, placed, ranks, spread, within
from hpm_video.visualize.geometry import Place, owned
from hpm_video.visualize.hard_tubes import HardTubes
from hpm_video.visualize.video_page import Film
from hpm_video.visualize.windows import resized

LABEL_HEIGHT = 24  # pixels above each panel
GAP = 8  # pixels between panels
SHORT_SIDE = 240  # pixels of a panel's short side
_PALETTE_PICTURES = 8  # pictures that the palette of a GIF is computed from
_YELLOW = np.array([1.0, 0.83, 0.0], dtype=np.float32)


def panel_size(film: Film) -> tuple[int, int]:
    """Height and width of a panel, in the video's aspect ratio."""
    height, width = film.windows[0][0].frames.shape[1:3]
    scale = SHORT_SIDE / min(height, width)
    return round(height * scale), round(width * scale)


def film_frames(film: Film) -> Iterator[Frames]:
    """Yield the pictures (H, W, 3) of a film, H and W even."""
    names = ["video", "predicted loss", "measured loss", "mask: hard tubes", "reconstruction"]
    if film.windows[0][0].honest is None:  # features cannot be shown
        del names[4]
    if film.windows[0][0].predicted is None:
        del names[1]
    height, width = panel_size(film)
    labels = _labels(names, width)
    drawn: dict[int, npt.NDArray[np.uint8]] = {}
    for window, frame in film.timeline():
        if window not in drawn:  # keeps one window at a time, so that long films fit into memory
            drawn = {window: _panels(film.windows[window], height, width)}
        panels = drawn[window][:, frame]  # (panels, H, W, 3)
        gaps = ((0, 0), (0, 0), (0, GAP), (0, 0))
        strip = np.concatenate(list(np.pad(panels, gaps, constant_values=255)), axis=1)
        whole = np.concatenate([labels, strip[:, :-GAP]])
        yield np.pad(whole, (*((0, size % 2) for size in whole.shape[:2]), (0, 0)), mode="edge")


def write_mp4(frames: Iterable[Frames], path: Path, *, fps: float) -> None:
    """Write pictures of one size with even sides as H.264; raises ValueError if that fails."""
    rate = Fraction(max(fps, 0.1)).limit_denominator(1000)
    with whole_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        container.metadata["comment"] = OURS
        stream: VideoStream | None = None
        for picture in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        assert stream is not None
        container.mux(stream.encode(None))


def write_gif(frames: Iterable[Frames], path: Path, *, fps: float) -> None:
    """Write pictures of one size as a looping GIF; raises ValueError if that fails."""
    pictures = list(frames)
    # One palette for all pictures is fast, and colours do not flicker
    picked = np.linspace(0, len(pictures) - 1, min(len(pictures), _PALETTE_PICTURES))
    sample = np.concatenate([pictures[i][::2, ::2] for i in picked.round().astype(int)])
    palette = Image.fromarray(sample).quantize(256)
    first, *rest = (
        Image.fromarray(one).quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures
    )
    shown = {"duration": max(20, round(1000 / max(fps, 0.1))), "loop": 0}
    said = {"comment": OURS.encode()}
    with whole_file(path) as temporary:
        first.save(temporary, format="gif", save_all=True, append_images=rest, **shown, **said)


def _panels(crops: tuple[HardTubes, ...], height: int, width: int) -> npt.NDArray[np.uint8]:
    """All panels of a window (panels, T, H, W, 3); each crop fills the part it owns."""
    frames = resized(crops[0].frames, height, width).astype(np.float32) / np.float32(255)
    result = np.stack(_of_crop(crops[0], frames))
    for tubes, part in zip(crops[1:], owned([t.place for t in crops])[1:], strict=True):
        result = np.where(inside(part, frames), np.stack(_of_crop(tubes, frames)), result)
    return (result.clip(0, 1) * 255).round().astype(np.uint8)


def _of_crop(tubes: HardTubes, frames: Floats) -> list[Floats]:
    place, tubelet = tubes.place, len(tubes.indices) // tubes.grid.time
    heats = [tubes.measured] if tubes.predicted is None else [tubes.predicted, tubes.measured]
    panels = [frames]
    panels += [heat_at(frames, ranks(values).repeat(tubelet, axis=0), place) for values in heats]
    hidden = spread(tubes.mask.repeat(tubelet, axis=0)[..., None], place, frames)
    masked = within(place, frames, np.where(hidden, np.float32(GREY), frames))
    panels.append(_outlined(masked, tubes.hard.repeat(tubelet, axis=0), place))
    if tubes.honest is not None:
        panels.append(placed(frames, tubes.honest, place))
    return panels


def _outlined(frames: Floats, hard: npt.NDArray[np.bool_], place: Place) -> Floats:
    """Draw a line of two pixels just inside the outline of the hard tokens; frames (K, H, W, 3)."""
    flags = (spread(hard[..., None], place, frames) & inside(place, frames))[..., 0]
    cross = np.zeros((1, 5, 5), dtype=bool)
    cross[:, 2] = cross[:, :, 2] = True
    inner = binary_erosion(flags, cross)
    return np.where((flags & ~inner)[..., None], _YELLOW, frames)


def _labels(names: list[str], width: int) -> npt.NDArray[np.uint8]:
    """The strip (LABEL_HEIGHT, width of all panels, 3) with the panels' names."""
    total = len(names) * (width + GAP) - GAP
    image = Image.new("RGB", (total, LABEL_HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    for index, name in enumerate(names):
        pen.text((index * (width + GAP) + 2, 2), name, fill="black", font=font)
    return np.asarray(image)
