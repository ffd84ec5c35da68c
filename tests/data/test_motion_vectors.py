"""Scores by motion vectors: against a slow loop, true motion, and every way a clip is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from av.video.frame import PictureType
from numbered_videos import Recipe, write_video

from hpm_video.cli.main import main
from hpm_video.config import DataConfig, PretrainConfig
from hpm_video.data.lists.manifest import Manifest, read_manifest, write_manifest
from hpm_video.data.loading.clip import read_clip, read_codec_scores
from hpm_video.data.loading.loader import ClipBatch, clip_batches
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.prepare.toy import object_mask, read_positions, write_toy_videos
from hpm_video.data.prepare.toy_drawing import render_toy_video
from hpm_video.data.samples.clips import ClipReader, Request
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.video import crops
from hpm_video.data.video.crops import Box
from hpm_video.data.video.frames import missing, open_video
from hpm_video.data.video.motion import FrameVectors, Speeds, edges, speeds_of
from hpm_video.data.video.orientation import Orientation
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.runtime.distributed import World

CPU = torch.device("cpu")
TUBELET = Tubelet(2, 8)
Frames = list[npt.NDArray[np.uint8]]
X264 = {"preset": "veryfast", "x264-params": "mbtree=0"}
KINDS = {
    "H.264, B-frames that others refer to": Recipe(
        "mp4", "libx264", 40, gop=16, b_frames=3, options=X264
    ),
    "H.264, open groups": Recipe(
        "mkv", "libx264", 40, gop=8, b_frames=2, open_gop=True, options=X264
    ),
    "H.264, as transcoded": Recipe(
        "mp4", "libx264", 40, gop=16, options={"preset": "fast", "tune": "fastdecode"}
    ),
    "H.264, blurred edges": Recipe("mp4", "libx264", 20, (52, 86), gop=250, options=X264),
    "H.264, turned": Recipe("mp4", "libx264", 20, (60, 92), rotation=90, options=X264),
    "MPEG-4, B-frames": Recipe("avi", "mpeg4", 40, gop=12, b_frames=2),
    "MPEG-4, mirrored": Recipe("mp4", "mpeg4", 20, (52, 88), mirrored=True),
    "MPEG-2": Recipe("mpg", "mpeg2video", 30, gop=12, b_frames=2),
    "MPEG-1": Recipe("mpg", "mpeg1video", 30, gop=12, b_frames=1),
    "WMV": Recipe("wmv", "wmv2", 30),
    "MS MPEG-4": Recipe("avi", "msmpeg4v2", 30),
    "FLV": Recipe("flv", "flv", 30),
}


def _slow_speeds(path: Path, *, threads: int) -> list[npt.NDArray[np.float64] | None]:
    """Speed of every pixel of every frame as stored, None without vectors: the whole file decoded
    from its start by as many threads, vector by vector, pixel by pixel.

    Threads share a frame: where each has one, FFmpeg's vectors of B-frames change from run to run.
    """
    decoded: list[tuple[int, Any]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        stream.codec_context.thread_count, stream.thread_type = threads, "SLICE"
        for frame in container.decode(stream):
            data = frame.side_data.get("MOTION_VECTORS")
            vectors = None
            if data is not None:
                names = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y")
                vectors = [
                    {name: int(vector[name]) for name in (*names, "motion_scale")}
                    for vector in data.to_ndarray()
                ]
            decoded.append((frame.pict_type, vectors))
        height, width = frame.height, frame.width
    anchors = [n for n, (kind, _) in enumerate(decoded) if kind != PictureType.B]
    found: list[npt.NDArray[np.float64] | None] = []
    for n, (_, vectors) in enumerate(decoded):
        if vectors is None:
            found.append(None)
            continue
        before = n - max((a for a in anchors if a < n), default=n - 1)
        after = min((a for a in anchors if a > n), default=n + 1) - n
        sums, count = np.zeros((2, height, width)), np.zeros((height, width))
        for vector in vectors:
            apart = before if vector["source"] < 0 else -after
            top, left = vector["dst_y"] - vector["h"] // 2, vector["dst_x"] - vector["w"] // 2
            for y in range(max(top, 0), min(top + vector["h"], height)):
                for x in range(max(left, 0), min(left + vector["w"], width)):
                    sums[0, y, x] += vector["motion_y"] / vector["motion_scale"] / apart
                    sums[1, y, x] += vector["motion_x"] / vector["motion_scale"] / apart
                    count[y, x] += 1
        velocity = np.full((2, height, width), np.nan)
        velocity[:, count > 0] = sums[:, count > 0] / count[count > 0]
        corners = velocity[:, ::8, ::8]  # a pixel of each cell
        known = ~np.isnan(corners[0])
        for axis in (0, 1):
            velocity[axis] -= np.median(corners[axis][known])
        speed = np.hypot(*velocity)
        speed[np.isnan(speed)] = speed[::8, ::8][known].mean()
        found.append(speed)
    return found


def _slow_scores(
    frames: list[npt.NDArray[np.float64] | None], box: Box, *, tokens: int, flip: bool
) -> npt.NDArray[np.float64]:
    """Means over the parts of a box, of two frames each, of speeds as shown. The box is a multiple
    of parts high and wide."""
    filled = []
    for n, frame in enumerate(frames):
        if frame is None:
            before = next((k for k in range(n, -1, -1) if frames[k] is not None), None)
            after = next((k for k in range(n, len(frames)) if frames[k] is not None), None)
            share = 0.0 if before == after or before is None or after is None else (
                (n - before) / (after - before)
            )  # fmt: skip
            first = frames[before if before is not None else after]  # type: ignore[index]
            last = frames[after if after is not None else before]  # type: ignore[index]
            assert first is not None and last is not None
            filled.append((1 - share) * first + share * last)
        else:
            filled.append(frame)
    height, width = box.height // tokens, box.width // tokens
    scores = []
    for n in range(0, len(filled), 2):
        for row in range(tokens):
            for column in range(tokens):
                top = box.top + row * height
                left = box.left + (tokens - 1 - column if flip else column) * width
                parts = [f[top : top + height, left : left + width] for f in filled[n : n + 2]]
                scores.append(np.mean(parts))
    return np.array(scores)


def _shown(
    frames: list[npt.NDArray[np.float64] | None], recipe: Recipe
) -> list[npt.NDArray[np.float64] | None]:
    def turned(frame: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        frame = frame[:, ::-1] if recipe.mirrored else frame
        return np.rot90(frame, recipe.rotation // 90)

    return [None if frame is None else turned(frame) for frame in frames]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_a_slow_loop(tmp_path: Path, kind: str, threads: int) -> None:
    recipe = KINDS[kind]
    path = write_video(tmp_path / "a", recipe)
    slow = _shown(_slow_speeds(path, threads=threads), recipe)
    assert 0 < sum(speed is not None for speed in slow) < len(slow)
    rng = np.random.default_rng(3)
    table = decoded_table(str(path)).to_bytes()
    for given in (None, table):
        video = open_video(path, "pyav", motion=True, table=given)
        assert video.num_frames == len(slow) == recipe.num_frames
        for _ in range(4):
            stride = int(rng.integers(1, 5))
            start = int(rng.integers(0, len(slow) - 3 * stride))
            indices = start + stride * np.arange(4)
            frames, speeds = video.read_motion(indices)
            assert (frames == open_video(path, "pyav").read(indices)).all()
            box = Box(3, 10, 24, 36)
            scores = Tubelet(2, 16).scores(speeds, box, 64, size=frames.shape[1:3], flip=False)
            if all(slow[n] is None for n in indices):
                assert not speeds.are_known and not scores.any()
                continue
            expected = _slow_scores([slow[n] for n in indices], box, tokens=4, flip=False)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
            mirrored = Tubelet(2, 16).scores(speeds, box, 64, size=frames.shape[1:3], flip=True)
            expected = _slow_scores([slow[n] for n in indices], box, tokens=4, flip=True)
            np.testing.assert_allclose(mirrored, expected, rtol=1e-4, atol=1e-5)


def _vectors(blocks: list[tuple[int, int, int, int, float, float, int]]) -> np.ndarray:
    """FFmpeg's records of blocks (top, left, height, width, down, right, source), in quarters."""
    names = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
    rows = [
        (source, width, height, left + width // 2, top + height // 2, 4 * right, 4 * down, 4)
        for top, left, height, width, down, right, source in blocks
    ]
    return np.array(rows, dtype=[(name, np.int32) for name in names])


def _speeds_of(
    vectors: np.ndarray, height: int, width: int, *, before: int, after: int
) -> npt.NDArray[np.float32]:
    """Of one frame, among others that have nothing to do with it."""
    other = FrameVectors(_vectors([(0, 0, 16, 16, 9, 9, -1)]).tobytes(), 3, 1)
    frames = [other, FrameVectors(vectors.tobytes(), before, after), other]
    return speeds_of(frames, vectors.dtype, height, width)[1]


def test_a_camera_that_moves_is_taken_off() -> None:
    still = [(y, x, 16, 16, 0, 0, -1) for y in (0, 16, 32) for x in (0, 16, 32)]
    one = [(*block[:4], 3, -4, -1) if block[:2] == (16, 16) else block for block in still]
    speeds = _speeds_of(_vectors(one), 48, 48, before=1, after=1)
    expected = np.zeros((6, 6))
    expected[2:4, 2:4] = 5
    np.testing.assert_allclose(speeds, expected)
    panned = [(*block[:4], block[4] + 7, block[5] - 2, -1) for block in one]
    np.testing.assert_allclose(
        _speeds_of(_vectors(panned), 48, 48, before=1, after=1), expected, atol=1e-6
    )


def test_vectors_of_both_directions_count_per_frame() -> None:
    """Down 2 and right 1 a frame: 3 frames ago it was further up, in 2 it is further down."""
    still = [(y, 0, 16, 16, 0, 0, -1) for y in (16, 32, 48)]
    both = [(0, 0, 16, 16, -6, -3, -1), (0, 0, 16, 16, 4, 2, 1)]
    for moving in (both, both[:1], both[1:]):
        speeds = _speeds_of(_vectors([*still, *moving]), 64, 16, before=3, after=2)
        np.testing.assert_allclose(speeds[:2], np.hypot(2, 1), rtol=1e-6)
        assert not speeds[2:].any()


def test_what_could_not_be_copied_gets_the_mean() -> None:
    moving = [(0, 0, 16, 16, 0, 8, -1), (0, 16, 16, 8, 0, 0, -1), (0, 24, 16, 8, 0, 0, -1)]
    moving += [(0, 32, 16, 16, 0, 0, -1)]
    speeds = _speeds_of(_vectors(moving), 16, 56, before=1, after=1)
    np.testing.assert_allclose(speeds, np.array([[8, 8, 0, 0, 0, 0, 8 / 3]] * 2), rtol=1e-6)
    assert np.isnan(
        _speeds_of(_vectors([(90, 0, 16, 16, 1, 1, -1)]), 16, 16, before=1, after=1)
    ).all()


def test_records_of_a_hostile_decoder_give_numbers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        vectors = _vectors([(0, 0, 16, 16, 0, 0, -1)] * int(rng.integers(1, 40)))
        for name in vectors.dtype.names or ():
            if rng.random() < 0.5:
                vectors[name] = rng.integers(-(2**15), 2**15, len(vectors))
        vectors["motion_scale"] = np.abs(vectors["motion_scale"])
        vectors["w"], vectors["h"] = (np.abs(vectors[name]) % 256 for name in ("w", "h"))
        speeds = _speeds_of(vectors, 40, 72, before=1, after=2)
        assert speeds.shape == (5, 9) and (np.isfinite(speeds).all() or np.isnan(speeds).all())


@pytest.mark.parametrize(
    "orientation", [Orientation(*(k >> b & 1 for b in range(3))) for k in range(8)]
)
def test_turned_speeds_are_those_of_turned_frames(orientation: Orientation) -> None:
    height, width = 20, 44  # whose last cells are cut
    rng = np.random.default_rng(1)
    cells = rng.random((2, 3, 6)).astype(np.float32)
    turned = Speeds(cells, edges(height), edges(width)).turned(orientation)
    pixels = cells.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    shown = orientation.apply(pixels[..., None])[..., 0]
    height, width = shown.shape[1:]
    found = turned.in_blocks((4, 6, 12, 12), height=height, width=width, blocks=3, flip=False)
    expected = shown[:, 4:16, 6:18].reshape(2, 3, 4, 3, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The same part of frames of half the size
    half = turned.in_blocks((2, 3, 6, 6), height=height / 2, width=width / 2, blocks=3, flip=False)
    np.testing.assert_allclose(half, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Videos of several shapes and codecs; the last has no vectors."""
    folder = tmp_path_factory.mktemp("videos")
    recipes = [
        KINDS["H.264, B-frames that others refer to"],
        KINDS["MPEG-4, B-frames"],
        KINDS["H.264, turned"],
        Recipe("webm", "libvpx-vp9", 20, options={"deadline": "realtime", "cpu-used": "8"}),
    ]
    paths = [write_video(folder / f"{k}", recipe) for k, recipe in enumerate(recipes)]
    write_manifest(folder / "list.csv", [{"path": path.name, "label": 0} for path in paths])
    assert main(["data", "check", str(folder / "list.csv"), "--num-workers", "1"]) == 0
    return read_manifest(folder / "list.csv")


def _batches(
    manifest: Manifest, tubelet: Tubelet | None = TUBELET, **changes: object
) -> list[ClipBatch]:
    settings = {
        "num_frames": 4, "crop_size": 40, "flip": True, "repeats": 4, "windows": 2, "batch_size": 2,
        "num_workers": 0, "decoder": "pyav", "frame_pixels": 64 * 96,
    }  # fmt: skip
    data = DataConfig(**{**settings, **changes})  # type: ignore[arg-type]
    return list(
        clip_batches(
            manifest,
            data,
            accumulation=1,
            world=World(0, 1, CPU),
            seed=3,
            start_step=0,
            num_steps=4,
            tubelet=tubelet,
        )
    )


def _scores(batch: ClipBatch) -> torch.Tensor:
    scores = batch.scores(CPU)
    assert scores is not None
    return scores


@pytest.mark.parametrize("crop_on", ["workers", "device"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_scores_come_with_the_same_clips(
    manifest: Manifest, crop_on: str, num_workers: int
) -> None:
    first = _batches(manifest)
    mine = _batches(manifest, crop_on=crop_on, num_workers=num_workers)
    plain = _batches(manifest, None, crop_on=crop_on)
    for one, other, without in zip(mine, first, plain, strict=True):
        assert _scores(one).shape == (8, 2 * 5 * 5) and _scores(one).dtype == torch.float32
        assert _scores(one).equal(_scores(other)) and without.scores(CPU) is None
        assert one.on(CPU).equal(without.on(CPU)) and one.indices.equal(without.indices)
        as_bytes = (batch.on(CPU, as_floats=False) for batch in (one, without))
        assert torch.equal(*as_bytes)
        has = _scores(one).any(dim=1)
        assert has.equal(one.indices != 3)
        assert {index for index, note in one.notes if "no motion vectors (vp9" in note} == {
            index for index in one.indices.tolist() if index == 3
        }


def test_crops_have_their_own_scores(manifest: Manifest) -> None:
    """Each recomputed from the generator that an item promises."""
    reader = ClipReader(
        DataConfig(num_frames=4, crop_size=40, flip=True, repeats=4, windows=2),
        tubelet=TUBELET,
    )
    for place in (0, 1, 2):
        request = Request(place, manifest.path(place), 0, (5, 0, place))
        row = torch.empty(reader.shape, dtype=torch.uint8)
        reader.read(request, row)
        scores = reader.scores(row[None])
        assert scores is not None
        rng = np.random.default_rng(request.seed)
        video = open_video(request.path, "pyav", motion=True)
        windows = [reader._indices(video.num_frames, rng) for _ in range(2)]
        for k in range(4):
            frames, speeds = video.read_motion(windows[k % 2])
            size = frames.shape[1:3]
            box, flip = reader.draw_box(*size, rng)
            expected = TUBELET.scores(speeds, box, 40, size=size, flip=flip)
            np.testing.assert_array_equal(scores[k].numpy(), expected)
        assert len({tuple(of_crop) for of_crop in scores.tolist()}) > 2


def test_every_decoder_gives_the_same(manifest: Manifest) -> None:
    first = _batches(manifest)
    for decoder in ("decord", "torchcodec"):
        if missing(decoder):  # type: ignore[arg-type]
            continue
        mine = _batches(manifest, decoder=decoder)
        for one, other in zip(mine, first, strict=True):
            assert _scores(one).equal(_scores(other))
            assert one.on(CPU).equal(other.on(CPU))
            assert all("motion vectors, which only PyAV returns" in note for _, note in one.notes)
            assert {index for index, _ in one.notes} == set(one.indices.tolist())
        # It reads some of these files itself where no vectors are asked for
        notes = [
            note for batch in _batches(manifest, None, decoder=decoder) for note in batch.notes
        ]
        assert len(notes) < 8 and not any("vectors" in note for _, note in notes)


def test_the_viewer_gets_those_of_its_clip(manifest: Manifest) -> None:
    data = DataConfig(num_frames=4, crop_size=40, num_workers=0)
    config = PretrainConfig(data=data, model=replace(PretrainConfig().model, patch_size=8))
    for place in range(4):
        path = manifest.path(place)
        scores, are_known = read_codec_scores(path, config)
        clip, indices = read_clip(path, config)
        frames, speeds = open_video(path, "pyav", motion=True).read_motion(indices)
        (box,) = crops.view_crops(*frames.shape[1:3], num_crops=1)
        expected = TUBELET.scores(speeds, box, 40, size=frames.shape[1:3], flip=False)
        np.testing.assert_array_equal(scores.numpy(), expected)
        assert are_known == (place != 3) and scores.shape == (50,) and clip.shape[2] == 4


SOURCES = {
    "VP9": Recipe("webm", "libvpx-vp9", 40, gop=4, options={"cpu-used": "8"}),
    "HEVC": Recipe("mp4", "libx265", 40, gop=4, b_frames=2),
    "MJPEG": Recipe("avi", "mjpeg", 40, pix_fmt="yuvj420p"),
    "keyframes only": Recipe("mp4", "libx264", 40, gop=1),
    "H.264": Recipe("mp4", "libx264", 40, gop=4, b_frames=2),
}


@pytest.mark.parametrize("name", SOURCES)
def test_transcoded_files_have_vectors(tmp_path: Path, name: str) -> None:
    source = write_video(tmp_path / "a", SOURCES[name])
    every = np.arange(40)
    speeds = open_video(source, motion=True).read_motion(every)[1]
    assert speeds.are_known == (name == "H.264")
    target = tmp_path / "b.mp4"
    encode_video(str(source), str(target), Encoding(gop=16), has_times=True)
    speeds = open_video(target, motion=True).read_motion(every)[1]
    lacks = np.isnan(speeds.cells).all(axis=(1, 2))
    # All but its own keyframes, which are few, wherever those of the source are
    keyframes = np.flatnonzero(lacks)
    assert keyframes[0] == 0 and len(keyframes) <= 4 and np.diff(keyframes).max() <= 16


def _coverage(scores: npt.NDArray[np.float32], moving: npt.NDArray[np.float32]) -> float:
    """How much of the moving object the quarter of the highest scores holds; 1: as any quarter."""
    order = np.argsort(-scores.ravel(), kind="stable")[: scores.size // 4]
    return float(moving.ravel()[order].mean() / moving.mean())


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    return write_toy_videos(folder / "still", num_videos=24, size=64, num_frames=32, num_workers=2)


def _toy_coverage(path: Path, positions: npt.NDArray[np.float32], *, tubes: bool) -> float:
    indices = 2 * np.arange(16)
    video = open_video(path, motion=True)
    speeds = video.read_motion(indices)[1]
    scores = TUBELET.scores(speeds, Box(0, 0, 64, 64), 64, size=(64, 64), flip=False)
    moving = object_mask(positions[indices], 64, grid_time=8, grid_height=8, grid_width=8)
    scores = scores.reshape(moving.shape)
    if tubes:
        scores, moving = scores.mean(axis=0), moving.mean(axis=0)
    return _coverage(scores, moving)


@pytest.mark.parametrize("tubes", [False, True])
def test_the_highest_scores_are_on_the_object_of_toy_videos(toys: Path, tubes: bool) -> None:
    positions = read_positions(toys.parent / "positions.csv")
    found: dict[str, list[float]] = {"mp4": [], "avi": [], "webm": []}
    for name, track in positions.items():
        found[name.rsplit(".", 1)[1]].append(_toy_coverage(toys.parent / name, track, tubes=tubes))
    least = 1.8 if tubes else 2.6
    assert np.mean(found["mp4"]) > least and np.mean(found["avi"]) > least
    assert min(found["mp4"] + found["avi"]) > 1


def test_a_camera_that_moves_over_toy_videos_hardly_matters(tmp_path: Path) -> None:
    still, panned = [], []
    for k in range(8):
        frames, positions = render_toy_video(3, k, size=64, num_frames=32)
        for found, pan in ((still, 0), (panned, 3)):
            # The world is a torus: to roll it is to turn the camera
            rolled = [np.roll(frame, pan * n, axis=1) for n, frame in enumerate(frames)]
            track = positions.copy()
            track[:, 1] = (track[:, 1] + pan * np.arange(32)) % 64
            path = tmp_path / f"{k}-{pan}.mp4"
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=12, options={"crf": "18"})
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                for frame in rolled:
                    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))
                    container.mux(stream.encode(picture))
                container.mux(stream.encode(None))
            found.append(_toy_coverage(path, track, tubes=False))
    assert np.mean(still) > 2.5 and np.mean(panned) > 2
