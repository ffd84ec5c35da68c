"""Videos as people have them that readers got wrong, made again in small; what is right for each.

The names are those of the files in a folder of originals, which `HPM_VIDEO_FAULTS` names.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from field_coded import write_field_coded
from numbered_videos import Recipe, picture
from reference import by_pyav
from videos import indexed_picture, set_display_matrix, write_indexed_video

FOLDER = Path(os.environ.get("HPM_VIDEO_FAULTS", Path(__file__).parents[2] / "shared" / "faults"))
_CLOSED = {"g": "12", "bf": "0"}
_B_FRAMES = "b-adapt=0:scenecut=0"  # also where every frame has another colour


@dataclass(frozen=True)
class Fault:
    """What is right for a file.

    Attributes:
        make: writes it, of the same kind as the original.
        num_frames: that decode in order, of the original.
        numbers: what the frames of the original say they are, where they say it.
        status: by `data check` (a regular expression).
        said: what a reader's note, or the reason of a bad file, must say (a regular expression).
        or_bad: whether it may be refused instead.
    """

    make: Callable[[Path], object]
    num_frames: int
    numbers: range | None = None
    status: str = "ok"
    said: str = ""
    or_bad: bool = False


def original_or_made(name: str, folder: Path) -> Path:
    """The file of a name: the original where there are originals, else one made in `folder`."""
    if FOLDER.is_dir():
        return FOLDER / name
    path = folder / name
    FAULTS[name].make(path)
    return path


def _fields(path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    pictures = []
    for number in range(40):
        picture = picture.copy()
        picture[:, :32] = indexed_picture(number + 100, (64, 32))
        if number % 5 == 0:
            picture[:, 32:] = indexed_picture(511 - number, (64, 32))
        pictures.append(picture)
    container = path.with_suffix(".ts" if path.suffix == ".mts" else path.suffix)
    write_field_coded(container, pictures).rename(path)


def _joined(path: Path, first: int, second: int, codec: str) -> None:
    """Two videos one after the other, so many frames each."""
    one = path.with_name(f"one-{path.name}")
    two = path.with_name(f"two-{path.name}")
    write_indexed_video(one, first, codec=codec, options=_CLOSED)
    write_indexed_video(two, second, codec=codec, options=_CLOSED, first=first)
    if path.suffix == ".ts":  # else times are the same, which is noticed more easily
        two = _later(two)
    path.write_bytes(one.read_bytes() + two.read_bytes())


def _later(path: Path, seconds: Fraction = Fraction(1, 50)) -> Path:
    """A copy whose frames are shown later."""
    target = path.with_name(f"later-{path.name}")
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                ticks = int(seconds / packet.time_base)
                packet.stream = stream
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                container.mux(packet)
    return target


def _theora_twice(path: Path) -> None:
    """By the ffmpeg command line: PyAV brings no encoder of Theora."""
    if not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg to encode Theora with")
    source = path.with_name(f"source-{path.name}.mkv")
    write_indexed_video(source, 96)
    data = b""
    for start in (0, 48):
        command = ["ffmpeg", "-v", "quiet", "-nostdin", "-y", "-i", str(source), "-vf"]
        part = f"trim=start_frame={start}:end_frame={start + 48},setpts=PTS-STARTPTS"
        encoder = ["-c:v", "libtheora", "-q:v", "10", "-bitexact", str(path)]
        subprocess.run([*command, part, *encoder], check=True, timeout=60)
        data += path.read_bytes()
    path.write_bytes(data)


def _two_headers(path: Path) -> None:
    one, two = (path.with_name(f"{k}-{path.name}") for k in "12")
    write_indexed_video(one, 8, (48, 64), options=_CLOSED)
    write_indexed_video(two, 8, (64, 96), options=_CLOSED, first=8)
    # 9 bytes of header and the size of no tag before
    path.write_bytes(one.read_bytes() + two.read_bytes()[13:])


def _moving_square(path: Path, matrix: tuple[int, int, int, int]) -> None:
    _write(path, [_square(number) for number in range(50)])
    set_display_matrix(path, matrix)


def _square(number: int, size: tuple[int, int] = (64, 96)) -> npt.NDArray[np.uint8]:
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[8:24, number : number + 16] = 255
    return pixels


def _write(
    path: Path,
    pictures: list[npt.NDArray[np.uint8]],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    **options: str,
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for pixels in pictures:
            grey = pixels.ndim == 2
            frame = av.VideoFrame.from_ndarray(pixels, format=pix_fmt if grey else "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _two_tracks(path: Path, parts: list[tuple[int, int, tuple[int, int]]]) -> None:
    """A track for each (first frame, number of frames, size)."""
    with av.open(str(path), "w") as container:
        streams, noise = [], np.random.default_rng(0)
        for _, _, size in parts:
            stream = container.add_stream("libx264", rate=25, options=_CLOSED)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        frames = sorted((k, place) for place, part in enumerate(parts) for k in range(part[1]))
        for k, place in frames:
            first, count, size = parts[place]
            pixels = indexed_picture(first + k, size)
            if count > 2:  # else FFmpeg takes the still picture, which has more bits a second
                pixels = pixels // 2 + noise.integers(0, 128, (*size, 1), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(streams[place].encode(frame))
        for stream in streams:
            container.mux(stream.encode())


def _sound_cover(path: Path) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 96, 160, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        noise.sample_rate = 16000
        container.mux(sound.encode(noise))
        container.mux(sound.encode(None))
        picture = av.VideoFrame.from_ndarray(indexed_picture(77, (96, 160)), format="rgb24")
        for packet in cover.encode(picture) + cover.encode(None):
            container.mux(packet)


def _cut_in_group(path: Path, start: int, count: int, open_gop: int) -> None:
    """A transport stream from the packet of a frame amid a group on."""
    whole = path.with_name(f"whole-{path.name}")
    options = {"g": "15", "bf": "2", "x264-params": f"{_B_FRAMES}:open-gop={open_gop}"}
    write_indexed_video(whole, count, (64, 96), fps=25, options=options)
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(whole.read_bytes()[places[start] :])


def _sizes(path: Path) -> None:
    """VP8, whose keyframes each say their size, of two sizes in one track."""
    parts = []
    for place, (first, size) in enumerate([(0, (96, 160)), (60, (48, 80))]):
        part = path.with_name(f"{place}-{path.name}")
        write_indexed_video(part, 60, size, 25, "libvpx", first=first, options=_CLOSED)
        parts.append(part)
    with av.open(str(parts[0])) as template, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(template.streams.video[0])
        number = 0
        for part in parts:
            with av.open(str(part)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream, packet.time_base = stream, Fraction(1, 25)
                        packet.pts = packet.dts = number
                        container.mux(packet)
                        number += 1


def _grey16(path: Path) -> None:
    y, x = np.mgrid[:64, :96]
    pictures = [(800 + 20 * x + 10 * y + number).astype(np.uint16) for number in range(40)]
    _write(path, pictures, "ffv1", "gray16le")


def _patched(path: Path, box: bytes, change: Callable[[bytearray, int], None], **options: str):
    """An mp4 with one of its boxes changed; `change` gets the bytes and where the name begins."""
    write_indexed_video(path, 12, options={**_CLOSED, **options})
    data = bytearray(path.read_bytes())
    change(data, data.index(box))
    path.write_bytes(data)


def _no_time_scale(data: bytearray, place: int) -> None:
    struct.pack_into(">I", data, place + 16, 0)


def _no_keyframes(data: bytearray, place: int) -> None:
    data[place : place + 4] = b"free"


def _no_steps(data: bytearray, place: int) -> None:
    (count,) = struct.unpack_from(">I", data, place + 8)
    for entry in range(count):
        struct.pack_into(">I", data, place + 16 + 8 * entry, 0)


def _palette(path: Path) -> None:
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0] = 255
    palette[:, 1:] = np.arange(256)[:, None] * (1, 1, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "pal8"
        for number in range(4):
            indices = np.full((24, 32), 60 * number + 40, np.uint8)
            frame = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _shown_when_decoded(path: Path) -> None:
    whole = path.with_name(f"whole-{path.name}")
    write_indexed_video(whole, 12, fps=25, options={"g": "12", "bf": "2", "x264-params": _B_FRAMES})
    with av.open(str(whole)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            container.mux(packet)


def _cut_before_index(path: Path) -> None:
    recipe = Recipe("avi", "msmpeg4v2", 40)
    _write(path, [picture(n, recipe) for n in range(40)], recipe.codec, g="12", bf="0")
    data = path.read_bytes()
    place = data.index(b"movi") + 4
    for _ in range(16):  # after a frame: how long each is depends on the processor
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    path.write_bytes(data[:place])


def _spoilt(path: Path) -> None:
    """Bytes flipped so that the decoder goes on, but says that frames are damaged."""
    whole = path.with_name(f"whole-{path.name}")
    y, x = np.mgrid[:120, :160]
    texture = [127 + 60 * np.sin((x + 2 * n) / 7) * np.cos((y - n) / 9) for n in range(48)]
    _write(whole, [np.repeat(t[..., None], 3, 2).astype(np.uint8) for t in texture], g="48", bf="0")
    start = whole.read_bytes().index(b"mdat") + 800
    for seed in range(100):
        data = bytearray(whole.read_bytes())
        for place in np.random.default_rng(seed).integers(start, start + 1500, 3):
            data[place] ^= 0x55
        path.write_bytes(data)
        frames, damaged = by_pyav(path, 0)
        if len(frames) == 48 and any(damaged):
            return


FAULTS: dict[str, Fault] = {
    "paff_field.mts": Fault(_fields, 40),
    "paff.mp4": Fault(_fields, 40),
    "ts_concat_free.ts": Fault(lambda p: _joined(p, 50, 60, "libx264"), 110, range(110)),
    "mirrored.mp4": Fault(lambda p: _moving_square(p, (-1, 0, 0, 1)), 50),
    "vflipped.mp4": Fault(lambda p: _moving_square(p, (1, 0, 0, -1)), 50),
    "two_tracks.mp4": Fault(
        lambda p: _two_tracks(p, [(0, 60, (48, 64)), (200, 60, (192, 320))]), 60, range(200, 260)
    ),
    "sound_cover.mp4": Fault(
        _sound_cover, 0, status="bad", said="no video, only sound and a picture"
    ),
    "segment_o264.ts": Fault(lambda p: _cut_in_group(p, 11, 100, 1), 73, range(27, 100)),
    "mid_gop.ts": Fault(lambda p: _cut_in_group(p, 14, 90, 0), 74, range(16, 90)),
    "vp8_sizes.webm": Fault(_sizes, 120, said="size"),
    "depth_gray16.mkv": Fault(_grey16, 40),
    "mvhd_timescale_0.mp4": Fault(lambda p: _patched(p, b"mvhd", _no_time_scale), 3, or_bad=True),
    "pal8_black.avi": Fault(_palette, 4),
    "two_headers.flv": Fault(_two_headers, 16, said="size", or_bad=True),
    "bframes_pts_is_dts.mp4": Fault(_shown_when_decoded, 10),
    "avi_cut_before_index.avi": Fault(_cut_before_index, 16, or_bad=True),
    "matrix_zero.mp4": Fault(lambda p: _moving_square(p, (0, 0, 0, 0)), 8),
    "stss_gone_h264.mp4": Fault(lambda p: _patched(p, b"stss", _no_keyframes), 12),
    "webm_twice.webm": Fault(lambda p: _joined(p, 12, 12, "libvpx"), 24),
    "thumb_first.mp4": Fault(
        lambda p: _two_tracks(p, [(300, 2, (48, 64)), (0, 48, (120, 160))]), 48
    ),
    "stts_delta_0.mp4": Fault(lambda p: _patched(p, b"stts", _no_steps), 12),
    "theora_twice.ogv": Fault(_theora_twice, 96, status="ok|damaged"),
    "ok_but_all_spoilt.mp4": Fault(_spoilt, 48, status="damaged"),
}
