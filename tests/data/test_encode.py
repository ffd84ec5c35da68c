"""One video encoded for training: the same frames, in a form that is quick to read."""

import csv
import os
import struct
from contextlib import suppress
from fractions import Fraction
from math import floor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import numpy.typing as npt
import pytest
from videos import frame_numbers, write_indexed_video

from hpm_video.data.prepare import encode
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.video.frames import VideoReadError, open_video

CLIPS = Path(os.environ.get("HPM_VIDEO_CLIPS", Path(__file__).parents[3] / "shared" / "clips"))


def _write(
    path: Path,
    frames: npt.NDArray[np.uint8],
    *,
    times_ms: list[int] | None = None,
    aspect: Fraction | None = None,
    sound: bool = False,
) -> Path:
    """Write frames (T, H, W, 3) as mp4, each at its time, every 100 ms by default."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.bit_rate = 2_000_000
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if sound:
            audio = container.add_stream("aac", rate=16000, layout="mono")
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            noise.sample_rate = 16000
            container.mux(audio.encode(noise))
            container.mux(audio.encode(None))
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = times_ms[number] if times_ms is not None else 100 * number
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _indexed(numbers: list[int], size: tuple[int, int] = (48, 64)) -> npt.NDArray[np.uint8]:
    digits = np.array([(n // 64, n // 8 % 8, n % 8) for n in numbers])
    colours = np.round(digits * (255 / 7)).astype(np.uint8)[:, None, None]
    return np.broadcast_to(colours, (len(numbers), *size, 3)).copy()


def _times(path: Path) -> list[Fraction]:
    """The times of all frames in seconds, from the first one on."""
    with av.open(str(path)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    return [time - times[0] for time in times]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")],
)
def test_the_same_frames_in_order(tmp_path: Path, name: str, codec: str) -> None:
    source = write_indexed_video(tmp_path / name, 90, codec=codec)
    target = tmp_path / "out.mp4"
    encoded = encode_video(str(source), str(target), Encoding())
    assert (encoded.num_read, encoded.num_written) == (90, 90)
    video = open_video(target)
    assert (video.num_frames, video.height, video.width) == (90, 48, 64)
    assert video.fps == pytest.approx(10, rel=0.01)
    assert frame_numbers(video.read(range(90))) == list(range(90))
    assert frame_numbers(video.read([89, 3, 40])) == [89, 3, 40]


def test_quick_to_decode(tmp_path: Path) -> None:
    """Keyframes close together, no B-frames, neither CABAC nor the deblocking filter."""
    source = _write(tmp_path / "a.mp4", _indexed(list(range(70))), sound=True)
    with av.open(str(source)) as container:
        assert len(container.streams) == 2
    for gop in (16, 5):
        encode_video(str(source), str(tmp_path / "out.mp4"), Encoding(gop=gop))
        with av.open(str(tmp_path / "out.mp4")) as container:
            (stream,) = container.streams  # no sound
            assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
            packets = [packet for packet in container.demux(stream) if packet.size]
        keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
        assert keys[0] == 0 and max(np.diff([*keys, len(packets)])) <= gop
        assert all(packet.pts == packet.dts for packet in packets)
        settings = (tmp_path / "out.mp4").read_bytes()
        assert b"cabac=0" in settings and b"deblock=0" in settings and b"bframes=0" in settings


def test_a_variable_frame_rate_stays(tmp_path: Path) -> None:
    times = [0, 33, 67, 400, 420, 421, 1000, 1500, 1501, 2600]
    source = _write(tmp_path / "a.mp4", _indexed(list(range(10))), times_ms=times)
    encode_video(str(source), str(tmp_path / "out.mp4"), Encoding())
    assert _times(tmp_path / "out.mp4") == _times(source) == [Fraction(t, 1000) for t in times]
    assert frame_numbers(open_video(tmp_path / "out.mp4").read(range(10))) == list(range(10))


@pytest.mark.parametrize("fps", [5, 10, 7.5, 29.97, 60])
@pytest.mark.parametrize("kind", ["constant", "variable"])
def test_a_new_frame_rate(tmp_path: Path, fps: float, kind: str) -> None:
    times = [0, 33, 67, 400, 420, 421, 1000, 1100] if kind == "variable" else range(0, 800, 100)
    source = _write(tmp_path / "a.mp4", _indexed(list(range(8))), times_ms=list(times))
    encoded = encode_video(str(source), str(tmp_path / "out.mp4"), Encoding(fps=fps))
    with av.open(str(source)) as container:
        last = list(container.decode(video=0))[-1]
        end = last.pts * last.time_base + last.duration * last.time_base
    starts, rate = _times(source), Fraction(fps).limit_denominator(1001)
    # Frame k is the last one whose time, rounded to 1 / fps, has come
    expected = [
        max(i for i, start in enumerate(starts) if floor(start * rate + Fraction(1, 2)) <= k)
        for k in range(floor(end * rate + Fraction(1, 2)))
    ]
    video = open_video(tmp_path / "out.mp4")
    assert video.num_frames == encoded.num_written == len(expected)
    assert encoded.num_read == 8
    assert frame_numbers(video.read(range(len(expected)))) == expected
    assert video.fps == pytest.approx(fps, rel=0.001)


def test_a_video_shorter_than_a_frame_of_the_new_rate(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.mp4", _indexed([5]))
    encode_video(str(source), str(tmp_path / "out.mp4"), Encoding(fps=0.5))
    assert frame_numbers(open_video(tmp_path / "out.mp4").read([0])) == [5]


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((240, 320), 120, (120, 160)),
        ((320, 240), 120, (160, 120)),
        ((240, 426), 128, (128, 228)),  # 227.2
        ((120, 160), 120, (120, 160)),
        ((90, 160), 256, (90, 160)),  # never enlarged
        ((256, 1002), 250, (250, 978)),
    ],
)
def test_sizes(
    tmp_path: Path, size: tuple[int, int], short_side: int, expected: tuple[int, int]
) -> None:
    source = _write(tmp_path / "a.mp4", _indexed([1, 2, 3], size))
    encode_video(str(source), str(tmp_path / "out.mp4"), Encoding(short_side=short_side))
    video = open_video(tmp_path / "out.mp4")
    assert (video.height, video.width) == expected
    assert frame_numbers(video.read([0, 1, 2])) == [1, 2, 3]


def test_odd_sizes_become_even_and_never_larger() -> None:
    for width in range(1, 40):
        for height in range(1, 40):
            frame = SimpleNamespace(width=width, height=height, side_data={})
            found = encode._target_size(frame, 16)
            assert all(side % 2 == 0 and side >= 2 for side in found)
            assert all(a <= max(b, 2) for a, b in zip(found, (width, height), strict=True))
            if min(width, height) > 16:
                assert min(found) == 16


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turned_as_displayed(tmp_path: Path, turns: int) -> None:
    """By the matrix of the mp4, which phones write; read back, it must not be turned again."""
    image = np.zeros((1, 64, 96, 3), np.uint8)
    image[:, :32, :48], image[:, :32, 48:], image[:, 32:, :48] = (255, 0, 0), (0, 255, 0), 255
    source = _write(tmp_path / "a.mp4", image.repeat(3, axis=0))
    data = bytearray(source.read_bytes())
    a, b = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    matrix = [a, b, 0, -b, a, 0, 0, 0]
    struct.pack_into(">8i", data, data.index(b"tkhd") + 44, *(v << 16 for v in matrix))
    source.write_bytes(data)
    encode_video(str(source), str(tmp_path / "out.mp4"), Encoding())
    (read,) = open_video(tmp_path / "out.mp4").read([1])
    np.testing.assert_allclose(read, np.rot90(image[0], -turns), atol=60)
    assert np.abs(read - np.rot90(image[0], -turns).astype(float)).mean() < 6
    # The reader of training agrees on how the source is displayed
    assert np.abs(read - open_video(source).read([1])[0].astype(float)).mean() < 6


@pytest.mark.parametrize("turned", [False, True])
def test_the_shape_of_pixels_stays(tmp_path: Path, turned: bool) -> None:
    source = _write(tmp_path / "a.mp4", _indexed([1, 2]), aspect=Fraction(16, 9))
    if turned:
        data = bytearray(source.read_bytes())
        struct.pack_into(">5i", data, data.index(b"tkhd") + 44, 0, 1 << 16, 0, -1 << 16, 0)
        source.write_bytes(data)
    encode_video(str(source), str(tmp_path / "out.mp4"), Encoding())
    with av.open(str(tmp_path / "out.mp4")) as container:
        expected = Fraction(9, 16) if turned else Fraction(16, 9)
        assert container.streams.video[0].sample_aspect_ratio == expected


def test_times_from_whatever_the_file_says() -> None:
    """Missing, repeated and falling ones become rising ones; no frame is lost."""
    given = [None, 5, 5, None, 3, 40]
    frames = [SimpleNamespace(pts=pts, duration=0) for pts in given]
    found = list(encode._timed(iter(frames), 10))
    assert [frame for frame, _, _ in found] == frames
    starts = [start for _, start, _ in found]
    assert starts[0] == 0 and all(np.diff(starts) > 0)
    assert [end for _, _, end in found] == [*starts[1:], starts[-1] + 10]
    offset = [SimpleNamespace(pts=pts, duration=2) for pts in (90, 92, 95)]
    assert [times for _, *times in encode._timed(iter(offset), 10)] == [[0, 2], [2, 5], [5, 7]]


def test_the_same_video_twice_is_the_same_file(tmp_path: Path) -> None:
    source = write_indexed_video(tmp_path / "a.mp4", 40)
    for name in ("one.mp4", "two.mp4"):
        encode_video(str(source), str(tmp_path / name), Encoding())
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_what_cannot_be_decoded_to_its_end(tmp_path: Path) -> None:
    source = write_indexed_video(tmp_path / "a.mp4", 40)
    data = source.read_bytes()
    hole = len(data) // 3
    cases = {
        "text.mp4": b"no video\n" * 100,
        "empty.mp4": b"",
        "cut.mp4": data[: len(data) // 2],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoReadError) as caught:
            encode_video(str(tmp_path / name), str(tmp_path / "out.mp4"), Encoding())
        assert caught.value.path == str(tmp_path / name) and caught.value.reason
    # Frames that are lost are not those of the others
    damaged = tmp_path / "hole.mp4"
    damaged.write_bytes(data[:hole] + bytes(400) + data[hole + 400 :])
    encoded = encode_video(str(damaged), str(tmp_path / "out.mp4"), Encoding())
    with av.open(str(damaged)) as container:
        num_decoded, packets = 0, container.demux(video=0)
        for packet in packets:
            with suppress(av.FFmpegError):
                num_decoded += len(packet.decode())
    assert 0 < encoded.num_read == num_decoded < 40
    with pytest.raises(VideoReadError):
        encode_video(str(tmp_path / "gone.mp4"), str(tmp_path / "out.mp4"), Encoding())


def _combed(number: int) -> npt.NDArray[np.uint8]:
    """A bright bar that moves 4 pixels from field to field; the lines of a frame are of two."""
    fields = []
    for field in (2 * number, 2 * number + 1):
        pixels = np.full((64, 96, 3), 40, dtype=np.uint8)
        pixels[:, 4 * field % 80 : 4 * field % 80 + 16] = 200
        fields.append(pixels)
    frame = fields[0].copy()
    frame[1::2] = fields[1][1::2]
    return frame


def _combing(frames: npt.NDArray[np.uint8]) -> float:
    """How much each line differs from those around it, more than these do from each other."""
    lines = frames.astype(float)
    between = np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2)
    return float(between.mean())


@pytest.mark.parametrize("number", [1, 2, 9])
def test_interlaced_pictures_become_whole(tmp_path: Path, number: int) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "out.mp4"
    times = [0, 40, 100, 140, 180, 300, 340, 380, 400][:number]
    with av.open(str(source), "w") as container:
        options = {"x264-params": "tff=1", "flags": "+ilme+ildct", "crf": "1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(_combed(index), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert open_video(source, "pyav").table.num_frames == number
    before = _combing(open_video(source, "pyav").read(range(number)))
    encoded = encode_video(str(source), str(target), Encoding(deinterlace=True, crf=1))
    assert (encoded.num_read, encoded.num_written) == (number, number)
    video = open_video(target, "pyav")
    after = video.read(range(number))
    if number > 1:  # one field of each line has to come from somewhere
        assert _combing(after) < before / 4
    # One of the fields stays where it was, and so do the times
    fields = np.stack([_combed(index) for index in range(number)]).astype(float)
    moved = [np.abs(after[:, row::2] - fields[:, row::2]).mean() for row in (0, 1)]
    assert min(moved) < 3
    assert np.round(video.table.seconds()[:-1] * 1000).tolist() == times
    plain = encode_video(str(source), str(target), Encoding(crf=1))
    assert plain.num_written == number
    assert _combing(open_video(target, "pyav").read(range(number))) > before / 2


def test_pictures_that_are_not_interlaced_stay(tmp_path: Path) -> None:
    source = write_indexed_video(tmp_path / "a.mp4", 12)
    for name, deinterlace in (("with", True), ("without", False)):
        encoding = Encoding(deinterlace=deinterlace)
        encode_video(str(source), str(tmp_path / f"{name}.mp4"), encoding)
    assert (tmp_path / "with.mp4").read_bytes() == (tmp_path / "without.mp4").read_bytes()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    source = write_indexed_video(tmp_path / "a.mp4", 4)
    with pytest.raises(OSError, match="No such file"):
        encode_video(str(source), str(tmp_path / "no" / "out.mp4"), Encoding())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"short_side": 0}, "short_side (0)"),
        ({"short_side": 225}, "short_side (225)"),
        ({"gop": 0}, "gop (0)"),
        ({"crf": 52}, "crf (52)"),
        ({"crf": -1}, "crf (-1)"),
        ({"preset": "quick"}, "preset (quick)"),
        ({"fps": 0.0}, "fps (0)"),
        ({"fps": float("nan")}, "fps (nan)"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=r"must be") as caught:
        Encoding(**settings)
    assert words in str(caught.value)


@pytest.mark.skipif(not (CLIPS / "decode").is_dir(), reason="no real clips in HPM_VIDEO_CLIPS")
def test_real_files_keep_their_frames(tmp_path: Path) -> None:
    """Small ones of every codec: as many frames as ffmpeg decodes, and the same pictures."""
    with open(CLIPS / "decode" / "expected.csv", encoding="utf-8") as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if 1 < int(r["width"] or 0) <= 240 and int(r["decodable_frames"]) < 120
        ]
    num_compared = 0
    for row in rows:
        source, target = CLIPS / row["file"], tmp_path / "out.mp4"
        encoded = encode_video(str(source), str(target), Encoding(short_side=96, preset="veryfast"))
        number = int(row["decodable_frames"])
        assert (encoded.num_read, encoded.num_written) == (number, number), row["file"]
        new = open_video(target)
        assert new.num_frames == number
        try:
            old = open_video(source)
        except VideoReadError:
            continue
        if old.num_frames != number:
            continue
        chosen = [0, number // 2, number - 1]
        before, after = (video.read(chosen).astype(float) for video in (old, new))
        # On the scale of 8 x 8 cells, which no resizing changes much
        before, after = (_cells(frames) for frames in (before, after))
        assert np.abs(before - after).mean() < 5, row["file"]
        num_compared += 1
    assert num_compared > 15


def _cells(frames: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means (T, 8, 8, 3) of a grid of cells of frames (T, H, W, 3)."""
    rows = [part.mean(axis=1) for part in np.array_split(frames, 8, axis=1)]
    tall = np.stack(rows, axis=1)
    return np.stack([part.mean(axis=2) for part in np.array_split(tall, 8, axis=2)], axis=2)
