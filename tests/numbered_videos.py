"""Videos of every kind a data set may hold, whose pixels say which frame they are.

``python tests/numbered_videos.py`` writes many and reads each with every reader: videos as encoders
write them, and as they become on the way to a user (`KINDS`).

A frame is 2 x 5 cells, dark or bright: nine bits of its number and their parity, over a texture
that drifts. So neighbouring frames are alike, as codecs expect, and a frame that was decoded
without the frames it refers to is not mistaken for another one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from field_coded import write_field_coded
from reference import by_pyav, in_order, track
from videos import set_display_matrix

from hpm_video.config.values import Decoder
from hpm_video.data.video.frames import Video, VideoReadError, open_video
from hpm_video.data.video.readers import UnreadableError
from hpm_video.data.video.readers.tables import decoded_table

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder says much on stderr

MAX_FRAMES = 2**9
_LEVELS = (60, 190)  # of a dark and of a bright cell
_ROWS, _COLUMNS = 2, 5

# container (the file's suffix) -> codecs that are found in it
CODECS = {
    "mp4": ("libx264", "libx265", "mpeg4", "libvpx-vp9", "libsvtav1", "mjpeg"),
    "mov": ("libx264", "libx265", "mpeg4", "mjpeg"),
    "mkv": ("libx264", "libx265", "mpeg4", "libvpx", "libvpx-vp9", "libsvtav1", "mpeg2video"),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
    "avi": ("mpeg4", "libx264", "mjpeg", "msmpeg4", "msmpeg4v2"),
    "ts": ("libx264", "libx265", "mpeg2video", "mpeg4"),
    "mpg": ("mpeg1video", "mpeg2video"),
    "flv": ("libx264", "flv"),
    "wmv": ("wmv2", "wmv1"),
    "gif": ("gif",),
}
_B_FRAMES = ("libx264", "libx265", "mpeg4", "mpeg1video", "mpeg2video")
_ANY_TIMES = ("mp4", "mov", "mkv", "webm", "ts")  # where frames may come at any time
_TRANSCODED = {"tune": "fastdecode", "preset": "veryfast"}


@dataclass(frozen=True)
class Recipe:
    """How to make one video.

    Attributes:
        suffix: container.
        codec: name of the encoder.
        num_frames: 1 to 512.
        size: (height, width) as displayed.
        fps: frames per second, the average one where times vary.
        gop: frames from one keyframe to the next, at most.
        b_frames: most B-frames in a row.
        open_gop: whether B-frames may refer to the next group of pictures.
        variable: whether the time from frame to frame varies.
        start: seconds at which the first frame is shown.
        rotation: degrees that a player turns the picture counter-clockwise: 0, 90, 180 or 270.
        mirrored: whether it swaps left and right before that.
        pix_fmt: of the encoder.
        options: of the encoder.
        container_options: of the muxer.
        seed: of texture and times.
        first: number of the first frame.
        kind: what is done to the file, a key of `KINDS`.
    """

    suffix: str
    codec: str
    num_frames: int
    size: tuple[int, int] = (64, 96)
    fps: int = 25
    gop: int = 12
    b_frames: int = 0
    open_gop: bool = False
    variable: bool = False
    start: float = 0.0
    rotation: int = 0
    mirrored: bool = False
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    first: int = 0
    kind: str = "plain"


def draw_recipe(seed: int) -> Recipe:
    """Return the recipe number `seed`, anything that container and codec allow."""
    rng = np.random.default_rng((seed, 1))
    suffix = str(rng.choice([s for s, codecs in CODECS.items() for _ in codecs]))
    codec = str(rng.choice(CODECS[suffix]))
    options: dict[str, str] = {}
    container_options: dict[str, str] = {}
    gop = int(rng.choice([1, 4, 12, 16, 50, 250]))
    b_frames = int(rng.choice([0, 1, 2, 3, 8])) if codec in _B_FRAMES else 0
    b_frames = min(b_frames, {"libx264": 8, "libx265": 3}.get(codec, 2), gop - 1)
    pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
    if codec in ("libx264", "libx265"):
        options["preset"] = str(rng.choice(["ultrafast", "veryfast"]))
        pix_fmt = str(rng.choice(["yuv420p"] * 6 + ["yuv444p", "yuv420p10le"]))
        if codec == "libx264" and rng.random() < 0.25:
            options |= _TRANSCODED
            b_frames, gop, pix_fmt = 0, 16, "yuv420p"
        elif codec == "libx264" and suffix != "avi" and rng.random() < 0.2:
            options["intra-refresh"] = "1"
    elif codec.startswith("libvpx"):
        options |= {"deadline": "realtime", "cpu-used": "8"}
        if rng.random() < 0.3:  # frames that are decoded but never shown
            options |= {"deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "16"}
    elif codec == "libsvtav1":
        options |= {"preset": "8", "crf": "20", "svtav1-params": "lp=1"}
    elif codec == "mpeg2video" and rng.random() < 0.3:
        options["flags"] = "+ildct+ilme"
    if suffix in ("mp4", "mov"):
        kind = str(
            rng.choice(["plain", "faststart", "frag_keyframe+empty_moov"], p=[0.5, 0.3, 0.2])
        )
        if kind != "plain":
            container_options["movflags"] = kind
    num_frames = int(rng.choice([1, 2, 3, rng.integers(4, 40), rng.integers(40, 130)]))
    if suffix == "ts" or codec == "libx265":  # of fewer, FFmpeg writes files it cannot open
        num_frames = max(num_frames, 8)
    height, width = (int(2 * rng.integers(low, high)) for low, high in ((24, 50), (40, 70)))
    if codec == "libsvtav1":  # it is careless with smaller ones
        height, width = 2 * height, 2 * width
    if suffix in ("mp4", "mov") and rng.random() < 0.3:
        rotation = int(rng.choice([90, 180, 270]))
    else:
        rotation = 0
    return Recipe(
        suffix=suffix,
        codec=codec,
        num_frames=num_frames,
        size=(height, width),
        fps=int(rng.choice([24, 25, 30] if suffix == "mpg" else [10, 12, 24, 25, 30])),
        gop=gop,
        b_frames=b_frames,
        open_gop=bool(rng.random() < 0.4) and b_frames > 0,
        variable=bool(rng.random() < 0.3) and suffix in _ANY_TIMES and codec != "mpeg2video",
        start=float(rng.choice([0, 0, 0, 1.5])) if suffix in _ANY_TIMES else 0.0,
        rotation=rotation,
        pix_fmt=pix_fmt,
        options=options,
        container_options=container_options,
        seed=seed,
    )


def write_video(path: Path, recipe: Recipe) -> Path:
    """Write the video of a recipe; `path` gets its suffix."""
    path = path.with_suffix(f".{recipe.suffix}")
    if recipe.kind != "field-coded":
        encode = _encode_apart if recipe.codec == "libx265" else _encode
        encode(path, recipe)
    if recipe.kind != "plain":
        KINDS[recipe.kind].make(path, recipe, np.random.default_rng((recipe.seed, 5)))
    return path


def _encode_apart(path: Path, recipe: Recipe) -> None:
    """In a process of its own: with pictures this small x265 spoils memory that is not its own."""
    for attempt in range(3):
        process = get_context("spawn").Process(target=_encode, args=(path, recipe))
        process.start()
        process.join()
        if process.exitcode == 0:
            return
        if attempt == 2:
            raise ChildProcessError(f"x265 does not write {recipe}")


def _encode(path: Path, recipe: Recipe) -> None:
    rng = np.random.default_rng((recipe.seed, 2))
    times = _times(recipe, rng)
    turns = recipe.rotation // 90
    with av.open(str(path), "w", options=recipe.container_options) as container:
        stream = container.add_stream(recipe.codec, rate=recipe.fps, options=_options(recipe))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = recipe.size[:: -1 if turns % 2 else 1]
        stream.pix_fmt = recipe.pix_fmt
        context = stream.codec_context
        context.gop_size, context.max_b_frames = recipe.gop, recipe.b_frames
        context.thread_count = 1
        if recipe.codec not in ("libx264", "libx265", "libsvtav1", "gif"):
            context.bit_rate = 1_500_000
        if recipe.variable:
            context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times, recipe.first):
            # Stored turned clockwise, so that turned back it is upright
            pixels = np.rot90(picture(number, recipe), -turns)
            pixels = np.ascontiguousarray(pixels[:, ::-1] if recipe.mirrored else pixels)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base = Fraction(1, 1000) if recipe.variable else Fraction(1, recipe.fps)
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if turns or recipe.mirrored:
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
        mirror = -1 if recipe.mirrored else 1
        set_display_matrix(path, (mirror * cos, -mirror * sin, sin, cos))


def _times(recipe: Recipe, rng: np.random.Generator) -> list[int]:
    """When frames are shown: in milliseconds where that varies, else in frames."""
    if not recipe.variable:
        start = round(recipe.start * recipe.fps)
        return list(range(start, start + recipe.num_frames))
    step = 1000 // recipe.fps
    steps = rng.integers(step // 2, 2 * step, recipe.num_frames)
    return [int(time) for time in np.cumsum(steps) - steps[0] + round(1000 * recipe.start)]


def _options(recipe: Recipe) -> dict[str, str]:
    options = dict(recipe.options)
    if recipe.codec == "libx264":
        if recipe.open_gop:
            options["x264-params"] = "open-gop=1"
    elif recipe.codec == "libx265":
        parameters = f"log-level=none:pools=1:frame-threads=1:open-gop={int(recipe.open_gop)}"
        options["x265-params"] = f"{parameters}:keyint={recipe.gop}:bframes={recipe.b_frames}"
    elif recipe.b_frames and not recipe.open_gop:
        options |= {"flags": options.get("flags", "") + "+cgop", "sc_threshold": "1000000000"}
    return options


def picture(number: int, recipe: Recipe, drift: float = 1.0) -> npt.NDArray[np.uint8]:
    """Frame `number` as displayed, (H, W, 3) uint8; its texture drifts so many pixels a frame."""
    assert 0 <= number < MAX_FRAMES
    height, width = recipe.size
    bits = [number >> k & 1 for k in range(9)]
    cells = np.array([*bits, sum(bits) % 2]).reshape(_ROWS, _COLUMNS)
    rows, columns = np.arange(height) * _ROWS // height, np.arange(width) * _COLUMNS // width
    levels = np.array(_LEVELS)[cells[rows][:, columns]]
    y, x = np.ogrid[:height, :width]
    moved = drift * number
    texture = 12 * np.sin((x + moved) / 5 + recipe.seed) * np.cos((y - moved / 2) / 4)
    grey = levels + texture
    return np.clip(grey[..., None] + (6, 0, -6), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Kind:
    """Something that happens to videos.

    Attributes:
        suffixes: the containers that it happens to.
        make: makes it happen to the file of a recipe.
        codecs: the codecs, where not all do.
        draw: what the recipe must have besides.
        keeps_frames: whether the frames are those of the recipe; else ffmpeg says which they are.
    """

    suffixes: tuple[str, ...]
    make: Callable[[Path, Recipe, np.random.Generator], None]
    codecs: tuple[str, ...] = ()
    draw: Callable[[Recipe, np.random.Generator], Recipe] = lambda recipe, rng: recipe
    keeps_frames: bool = True


def _leave(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    """Its recipe says it all."""


def _code_fields(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    still = replace(recipe, seed=0)  # so that there is something to take from the frame before
    pictures = [picture(number, still, drift=0.0) for number in range(recipe.num_frames)]
    write_field_coded(path, pictures, gop=recipe.gop, fps=recipe.fps)


def _interlace(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    flags = {"x264-params": f"interlaced=1:open-gop={int(recipe.open_gop)}"}
    options = {**recipe.options, **flags} if recipe.codec == "libx264" else {"flags": "+ildct+ilme"}
    return replace(recipe, options=options, size=(64, 96), pix_fmt="yuv420p")


def _join(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    """With another one whose times start again, as `cat` does."""
    count = int(rng.integers(8, 60))
    other = replace(recipe, first=recipe.num_frames, num_frames=count, kind="plain")
    second = write_video(path.with_name(f"second-{path.name}"), other)
    path.write_bytes(path.read_bytes() + second.read_bytes())
    second.unlink()


def _cut(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    """A piece of a stream: it begins amid a group of pictures, at a packet of 188 bytes or amid."""
    data = path.read_bytes()
    start, end = sorted(rng.integers(0, [len(data) // 2, len(data)]).tolist())
    if path.suffix == ".ts" and rng.random() < 0.7:
        start -= start % 188
    path.write_bytes(data[start : max(end, len(data) * 2 // 3)])


def _add_track(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    """A second video, smaller, larger or shorter, after the first or before it."""
    height, width = recipe.size
    scale = int(rng.choice([1, 2]))
    other = replace(
        recipe, first=200, size=(scale * height // 2 // 2 * 2, scale * width // 2 // 2 * 2),
        num_frames=int(rng.choice([8, recipe.num_frames])), kind="plain",
    )  # fmt: skip
    second = write_video(path.with_name(f"second-{path.name}"), other)
    first = path.rename(path.with_name(f"first-{path.name}"))
    parts = [first, second] if rng.random() < 0.5 else [second, first]
    with av.open(str(parts[0])) as one, av.open(str(parts[1])) as two, av.open(
        str(path), "w"
    ) as container:  # fmt: skip
        sources = [one, two]
        streams = [
            container.add_stream_from_template(
                s.streams.video[0],
            )
            for s in sources
        ]
        packets = [
            (float((p.dts or 0) * p.time_base), place, p)
            for place, source in enumerate(sources)
            for p in source.demux(video=0)
            if p.size
        ]
        for _, place, packet in sorted(packets, key=lambda entry: entry[:2]):
            packet.stream = streams[place]
            container.mux(packet)
    first.unlink()
    second.unlink()


def _turn(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    rotation = int(rng.choice([0, 90, 180, 270]))
    return replace(recipe, rotation=rotation, mirrored=bool(rng.random() < 0.7))


def _show_when_decoded(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    """A raw stream of frames, written into a container in their order."""
    old = path.rename(path.with_name(f"old-{path.name}"))
    with av.open(str(old)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, Fraction(1, recipe.fps)
            packet.pts = packet.dts = number
            container.mux(packet)
    old.unlink()


def _drop_keyframes(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"stss", b"free"))


def _edit(path: Path, recipe: Recipe, rng: np.random.Generator) -> None:
    """A list of edits that hides some of the first frames."""
    data = bytearray(path.read_bytes())
    if (place := data.find(b"elst")) > 0 and data[place + 4] == 0:
        time = int.from_bytes(data[place + 16 : place + 20], "big")
        hidden = int(rng.integers(1, max(2, recipe.num_frames // 2)))
        unit = data.index(b"mdhd") + 16
        step = int.from_bytes(data[unit : unit + 4], "big") // recipe.fps
        data[place + 16 : place + 20] = (time + hidden * step).to_bytes(4, "big")
        path.write_bytes(data)


def _flat(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    """Encoded with B-frames, at even times."""
    return replace(recipe, b_frames=2, gop=max(recipe.gop, 8), variable=False, start=0.0)


_ISO = ("mp4", "mov")
KINDS = {
    "plain": Kind(tuple(CODECS), _leave),
    "field-coded": Kind(
        ("mp4", "mkv", "ts"), _code_fields, ("libx264",),
        lambda recipe, rng: replace(
            recipe, size=(64, 96), gop=min(recipe.gop, 50), rotation=0, b_frames=0, start=0.0
        ),
    ),
    "interlaced": Kind(
        ("mp4", "mov", "mkv", "ts", "mpg"), _leave, ("libx264", "mpeg2video"), _interlace
    ),
    "joined": Kind(("ts", "mkv", "webm", "mpg", "flv"), _join, keeps_frames=False),
    "cut": Kind(("ts", "mpg"), _cut, keeps_frames=False),
    "two tracks": Kind(
        ("mp4", "mov", "mkv", "ts"), _add_track, ("libx264", "mpeg4", "libvpx-vp9", "mjpeg"),
        keeps_frames=False,
    ),
    "mirrored": Kind(_ISO, _leave, (), _turn),
    "shown when decoded": Kind(
        ("mp4", "mkv"), _show_when_decoded, ("libx264", "libx265"), _flat, keeps_frames=False
    ),
    "no keyframes": Kind(_ISO, _drop_keyframes),
    "edited": Kind(_ISO, _edit, ("libx264", "libx265", "mpeg4"), _flat, keeps_frames=False),
}  # fmt: skip


def draw_kind(kind: str, seed: int) -> Recipe:
    """Return the recipe number `seed` of a kind."""
    what = KINDS[kind]
    for draw in range(seed, seed + 10**9, 100_003):  # pragma: no branch - they all occur
        recipe = draw_recipe(draw)
        if recipe.suffix in what.suffixes and (not what.codecs or recipe.codec in what.codecs):
            break
    recipe = what.draw(recipe, np.random.default_rng((seed, 4)))
    return replace(recipe, num_frames=max(recipe.num_frames, 12), kind=kind)


def shown(path: Path, recipe: Recipe) -> list[int | None]:
    """What the frames of a recipe's video say they are, in order."""
    if KINDS[recipe.kind].keeps_frames:
        return list(range(recipe.first, recipe.first + recipe.num_frames))
    frames = in_order(path)
    found = numbers(np.stack(frames)) if frames else []
    # Of a stream that is cut, newer versions of FFmpeg leave out frames that lack a reference, and
    # older ones show them spoilt: so those of PyAV count, where the others are the same
    if found and recipe.kind == "cut":
        frames = by_pyav(path, track(path) or 0)[0]
        own = numbers(np.stack(frames)) if frames else []
        if [n for n in own if n is not None] == [n for n in found if n is not None]:
            return own
    return found


def numbers(frames: npt.NDArray[np.uint8]) -> list[int | None]:
    """Return what frames (T, H, W, 3) say they are; None for one that is spoilt."""
    found: list[int | None] = []
    _, height, width, _ = frames.shape
    for frame in frames:
        means = np.empty((_ROWS, _COLUMNS))
        for row in range(_ROWS):
            for column in range(_COLUMNS):
                top, left = height * row // _ROWS, width * column // _COLUMNS
                cell = frame[top : height * (row + 1) // _ROWS, left:][
                    :, : width * (column + 1) // _COLUMNS - left
                ]
                h, w = cell.shape[0] // 4, cell.shape[1] // 4
                means[row, column] = cell[h:-h, w:-w].mean()
        cells = (means > sum(_LEVELS) / 2).astype(int).ravel()
        spoilt = np.abs(means.ravel() - np.array(_LEVELS)[cells]).max() > 40
        if spoilt or cells[:9].sum() % 2 != cells[9]:
            found.append(None)
        else:
            found.append(int(cells[:9] @ 2 ** np.arange(9)))
    return found


def indexed(path: Path) -> bytes | None:
    """A video's table of frames as `data check` stores it; None of a file without video."""
    try:
        return decoded_table(str(path)).to_bytes()
    except UnreadableError:
        return None


def mistakes(
    path: Path,
    recipe: Recipe,
    decoder: Decoder,
    table: bytes | None = None,
    right: list[int | None] | None = None,
) -> str | None:
    """What is wrong with the frames that are read of a recipe's video, None where nothing is.

    ``table``: the video's table of frames from an index, None without any; ``right``: what the
    frames say that they are, if that was found out before.

    Frames are asked for as training does (a window, one of each segment), all, the first, the last,
    and any in any order, again and again of one open video.
    """
    if right is None:
        right = shown(path, recipe)
    try:
        return _mistakes(open_video(path, decoder, table=table), right, recipe)
    except VideoReadError as error:
        return error.reason if right else None


def _is_refused(path: Path) -> bool:
    """Whether nothing is read of a video without an index, as its end is seen to be missing."""
    try:
        video = open_video(path, "pyav")
        video.read(range(video.num_frames))
    except VideoReadError:
        return True
    return False


def _mistakes(video: Video, right: list[int | None], recipe: Recipe) -> str | None:
    if video.num_frames != len(right):
        return f"{video.num_frames} frames instead of {len(right)}"
    rng = np.random.default_rng((recipe.seed, 3))
    last = len(right) - 1
    start = int(rng.integers(len(right)))
    requests = [
        [min(start + 2 * k, last) for k in range(8)],
        [last],
        [last * k // 7 for k in range(8)],
        [0],
        rng.integers(len(right), size=5).tolist(),
        list(range(len(right))),
        [start],
    ]
    for request in requests:
        frames = video.read(request)
        if frames.shape != (len(request), *recipe.size, 3) and recipe.kind != "two tracks":
            return f"frames of shape {frames.shape}"
        asked = [right[index] for index in request]
        if (read := numbers(frames)) != asked:
            wrong = [pair for pair in zip(asked, read, strict=True) if pair[0] != pair[1]]
            return f"(asked, read) {wrong[:5]} with {video.decoder}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write videos, read each with every reader, print what is wrong; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=2000, help="plain videos (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first one")
    parser.add_argument("--each", type=int, default=100, help="of each other kind (default 100)")
    parser.add_argument(
        "--decoder", nargs="+", default=["decord", "torchcodec", "pyav"], help="(default: all)"
    )
    options = parser.parse_args(arguments)
    made: Counter[str] = Counter()
    own: Counter[str] = Counter()  # videos that a reader read without falling back
    failures = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        counts = dict.fromkeys(KINDS, options.each) | {"plain": options.count}
        for kind, number in [(k, n) for k, count in counts.items() for n in range(count)]:
            seed = options.seed + number
            recipe = draw_recipe(seed) if kind == "plain" else draw_kind(kind, seed)
            try:
                path = write_video(Path(folder) / str(seed), recipe)
            except ChildProcessError as error:
                print(error, flush=True)
                continue
            made[f"{recipe.suffix} {recipe.codec}" if kind == "plain" else kind] += 1
            table, right = indexed(path), shown(path, recipe)
            for decoder, known in [("pyav", None), *((d, table) for d in options.decoder)]:
                if wrong := mistakes(path, recipe, decoder, known, right):
                    if known is None and _is_refused(path):
                        refused += 1
                        continue
                    failures += 1
                    print(f"{decoder}, {known and 'indexed'}: {wrong}: {recipe}", flush=True)
                elif known:
                    own[decoder] += open_video(path, decoder, table=known).decoder == decoder
            path.unlink()
    print(", ".join(f"{kind} {count}" for kind, count in sorted(made.items())))
    print("read without falling back: " + ", ".join(f"{d} {own[d]}" for d in options.decoder))
    print(f"{sum(made.values())} videos, {len(options.decoder)} readers: {failures} failures")
    print(f"refused without an index: {refused}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
