"""Videos made by strangers: no file ends a run, opens another one or takes memory without bound."""

import csv
import json
import os
import resource
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from poisoned_videos import BOMB_SIDE, POISONS, bomb, playlists
from videos import frame_numbers, indexed_picture, write_indexed_video

from hpm_video.cli.main import main
from hpm_video.data.lists import manifest
from hpm_video.data.lists.frame_index import FrameIndex, index_beside, write_frame_index
from hpm_video.data.loading.windows import LongVideo
from hpm_video.data.prepare.encode import Encoding
from hpm_video.data.prepare.transcode_video import Transcode, Work
from hpm_video.data.prepare.verdict import BAD, inspect_video
from hpm_video.data.video import frame_table, frames, readers
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.frames import VideoReadError, open_video
from hpm_video.data.video.readers import demux, tables
from hpm_video.data.video.readers.tables import decoded_table

Arguments = Callable[..., list[str]]
OTHER_DECODERS = ["decord", "torchcodec"]


def _named(folder: Path) -> dict[str, str]:
    with (folder / "bad_videos.csv").open(newline="") as file:
        return {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}


def test_an_epoch_with_poisoned_files_ends_with_all_of_them_named(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    for number in range(12):
        write_indexed_video(tmp_path / f"{number}.mp4", 12)
    for name, content in POISONS.items():
        (tmp_path / name).write_bytes(content)
    listed = tmp_path / "list.csv"
    listed.write_text("path\n" + "".join(f"{n}.mp4\n" for n in range(12)) + "\n".join(POISONS))
    run = tmp_path / "run"
    settings = ("data.num_workers=2", "data.max_bad_fraction=0.25", "optim.epochs=1")
    settings = (*settings, "optim.warmup_epochs=0")
    assert main(pretrain_arguments(run, f"data.manifest={listed}", *settings)) == 0
    assert _named(run).keys() == POISONS.keys()
    assert (run / "checkpoints" / "last").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("endless_box.mp4", "is cut off"),
        ("far_box.mp4", "is cut off"),
        ("no_clock_far_chunk.mp4", "none of its frames can be decoded"),
        ("bomb.gif", f"{BOMB_SIDE} x {BOMB_SIDE} pixels must be at most 67,108,864"),
    ],
)
def test_all_that_reads_says_the_same_of_a_poisoned_file(
    tmp_path: Path, name: str, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(POISONS[name])
    for read in (open_video, LongVideo):
        with pytest.raises(VideoReadError) as caught:
            read(path)
        assert caught.value.reason.startswith(reason)
    work = Work(str(path), str(tmp_path / "out" / "a.mp4"), None)
    for verdict in (
        inspect_video(str(path)), inspect_video(str(path), quick=True), Transcode(Encoding())(work),
    ):  # fmt: skip
        assert verdict.status == BAD and verdict.reason.startswith(reason)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A video that nothing but its own name may open."""
    return write_indexed_video(tmp_path / "secret.ts", 12)


@pytest.mark.parametrize("prefix", [b"", b"\xff", b"%d", b"*{a}"], ids=repr)
@pytest.mark.parametrize("name", playlists(""))
def test_no_file_opens_another(tmp_path: Path, target: Path, name: str, prefix: bytes) -> None:
    """Whatever it is called, and so in whichever way FFmpeg gets it."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + prefix + name.encode())
    Path(path).write_bytes(playlists(str(target))[name])
    with pytest.raises(VideoReadError):
        open_video(path)
    assert inspect_video(path).status == BAD


@pytest.mark.parametrize("prefix", [b"", b"\xff"], ids=repr)
@pytest.mark.parametrize("name", ["hls.m3u8", "live.m3u8", "dash.mpd", "concat.mp4", "bare.m3u8"])
def test_no_file_opens_an_address(tmp_path: Path, name: str, prefix: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + prefix + name.encode())
        Path(path).write_bytes(playlists(address)[name])
        with pytest.raises(VideoReadError):
            open_video(path)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


@pytest.mark.parametrize(
    "name",
    ["a%03d.mp4", "a*.mp4", "{a,b}.mp4", "a?.mp4", "concat:a.mp4|b.mp4", "http:a.mp4",
     "subfile,,start,8,end,99,,:a.mp4", "data:,a.mp4", "n\udcff.mp4", "-i.mp4"],
)  # fmt: skip
@pytest.mark.parametrize("decoder", ["pyav", *OTHER_DECODERS])
def test_a_name_is_that_of_a_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, decoder: Any
) -> None:
    if reason := frames.missing(decoder):
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    for other in ("a.mp4", "b.mp4", "a001.mp4"):
        write_indexed_video(tmp_path / other, 9, first=100)
    write_indexed_video(tmp_path / "own.mp4", 12).rename(name)
    table = decoded_table(name).to_bytes()
    assert frame_numbers(open_video(name, decoder, table=table).read(range(12))) == list(range(12))


@pytest.mark.parametrize("name", ["a%03d.png", "a*.png", "{a,b}.png"])
def test_the_name_of_a_picture_is_no_pattern(tmp_path: Path, name: str) -> None:
    """FFmpeg reads all of a sequence where it is given by its name."""
    for number, path in enumerate(("a001.png", "a002.png", name)):
        _write_picture(tmp_path / path, number)
    video = open_video(tmp_path / name, "pyav")
    assert (video.num_frames, frame_numbers(video.read([0]))) == (1, [2])


def _write_picture(path: Path, number: int) -> None:
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = 64, 48, "rgb24"
    context.time_base = 1  # type: ignore[assignment]
    frame = av.VideoFrame.from_ndarray(indexed_picture(number, (48, 64)), format="rgb24")
    path.write_bytes(b"".join(bytes(packet) for packet in context.encode(frame)))


# What strangers may write into the index of a list


def _table(path: Path) -> FrameTable:
    return decoded_table(str(path))


@pytest.mark.parametrize("decoder", OTHER_DECODERS)
@pytest.mark.parametrize("name", playlists(""))
def test_an_index_gives_no_playlist_to_other_decoders(
    tmp_path: Path, target: Path, name: str, decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := frames.missing(decoder):
        pytest.skip(reason)
    mp4, path = write_indexed_video(tmp_path / "a.mp4", 12), tmp_path / name
    path.write_bytes(playlists(str(target))[name])
    status = path.stat()
    lie = replace(_table(mp4), num_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    given: list[str] = []
    monkeypatch.setattr(frames, "_reader_class", lambda decoder: given.append)
    for container in ("mov,mp4", "matroska,webm"):
        with pytest.raises(VideoReadError):
            open_video(path, decoder, table=replace(lie, container=container).to_bytes()).read([0])
    assert not given


def test_other_decoders_get_known_codecs_in_all_tracks_only(tmp_path: Path) -> None:
    for sound, is_known in (("aac", True), ("alac", False)):
        path = tmp_path / f"{sound}.mp4"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=10)
            video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
            track = container.add_stream(sound, rate=16000, layout="mono")
            kind = "fltp" if sound == "aac" else "s16p"
            silence = np.zeros((1, 4096), np.float32 if sound == "aac" else np.int16)
            noise = av.AudioFrame.from_ndarray(silence, kind, "mono")
            noise.sample_rate = 16000
            container.mux(track.encode(noise))
            container.mux(track.encode(None))
            for number in range(12):
                pixels = np.full((48, 64, 3), 20 * number, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(video.encode())
        table = _table(path)
        assert table.codecs == tuple(sorted(("h264", sound)))
        # As a title it says nothing
        assert (frames.why_not(table, "decord") is None) == is_known
        assert frames.why_not(FrameTable.from_bytes(table.to_bytes()), "decord") == (
            None if is_known else "a codec that is not tested with decord"
        )
        assert frames.why_not(replace(table, codecs=()), "decord") is not None


def _lies(table: FrameTable) -> Iterator[bytes]:
    """Tables, packed as they should be, of which something is not so."""
    packed = zlib.decompress(table.to_bytes()[1:])
    (length,) = struct.unpack_from("<I", packed)
    plain = json.loads(packed[32 : 32 + length])

    def pack(values: Any, rest: bytes = packed[32 + length :]) -> bytes:
        text = values if isinstance(values, bytes) else json.dumps(values).encode()
        lengths = struct.pack("<I", len(text)) + packed[4:32]
        return bytes([frame_table.VERSION]) + zlib.compress(lengths + text + rest)

    for name, value in {
        "height": 10**7, "width": -5, "num_frames": 10**12, "fps": "fast", "codec": 7,
        "container": ["mov"], "time_base": [1, 0], "codecs": 3, "orientation": [1, 2, 3, 4],
        "irregular": None, "start_time": "soon", "num_tracks": {}, "pix_fmt": 1.5,
        "times": [1], "to_bytes": 1, "is_decoded": "yes",
    }.items():  # fmt: skip
        yield pack({**plain, name: value})
    yield pack({**plain, "num_frames": plain["num_frames"] + 1})
    yield pack({**plain, "irregular": "because"})
    yield pack({name: value for name, value in plain.items() if name != "height"})
    yield pack(b"[" * 100_000)
    yield pack(b"9" * 100_000)
    yield pack([])
    yield pack(plain, b"")
    yield pack(plain, packed[32 + length :][:-1])
    yield bytes([frame_table.VERSION]) + zlib.compress(bytes(2**27), 1)  # of 600 KiB
    yield bytes([frame_table.VERSION]) + zlib.compress(struct.pack("<8I", *[2**32 - 1] * 8))


def test_a_lying_index_is_not_used(tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", 12)
    for lie in _lies(_table(path)):
        for decoder in ("pyav", "decord"):
            video = open_video(path, decoder, table=lie)
            assert frame_numbers(video.read(range(12))) == list(range(12))
            assert "an outdated or damaged index" in (video.note or "")


def test_an_index_with_lying_places_is_read_within_bounds(tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    write_frame_index(index_beside(listed), [("a.mp4", b"table")])
    data = bytearray(index_beside(listed).read_bytes())
    place = len(data) - 16  # where the table begins, and ends
    struct.pack_into("<QQ", data, place, 2**64 - 2, 2**64 - 1)
    index_beside(listed).write_bytes(data)
    assert FrameIndex(index_beside(listed)).get("a.mp4") == b""
    struct.pack_into("<QQ", data, place, 0, 2**64 - 1)
    index_beside(listed).write_bytes(data)
    assert FrameIndex(index_beside(listed)).get("a.mp4") == bytes(data)
    struct.pack_into("<Q", data, 24, 2**63)  # how many names there are
    index_beside(listed).write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        FrameIndex(index_beside(listed))


# Sizes


@pytest.mark.parametrize("decoder", ["pyav", *OTHER_DECODERS])
def test_a_clip_is_bounded_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: Any
) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", 12)
    video = open_video(path, decoder, table=_table(path).to_bytes())
    monkeypatch.setattr(readers, "MOST_CLIP_BYTES", 10 * 48 * 64 * 3)
    assert frame_numbers(video.read(range(10))) == list(range(10))
    with pytest.raises(VideoReadError, match=r"^[^:]*: 11 frames of 64 x 48 pixels \(0\.0 GiB\) "):
        video.read(range(11))
    assert len(video.read([0] * 20)) == 20  # each is decoded once


def test_pictures_are_bounded_where_they_grow_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a file, which its header does not tell."""
    parts = [write_indexed_video(tmp_path / f"{k}.h264", 4, (48 * k, 64 * k)) for k in (1, 4)]
    path = tmp_path / "grows.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert inspect_video(str(path)).num_frames == 8
    monkeypatch.setitem(demux._MOST_PIXELS, "max_pixels", str(64 * 48))
    verdict = inspect_video(str(path))
    assert (verdict.num_frames, verdict.height) == (4, 48)
    assert verdict.status == "damaged"


def test_packets_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", 12)
    monkeypatch.setattr(tables, "MOST_PACKETS", 11)
    with pytest.raises(VideoReadError, match="frames must be at most 11: cut it into parts"):
        open_video(path, "pyav")
    assert "must be at most 11" in inspect_video(str(path)).reason


def test_a_file_in_which_decoding_can_begin_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that was found by chance left no keyframe, but frames that decode."""
    path = write_indexed_video(tmp_path / "a.ts", 12)
    monkeypatch.setattr(tables, "_is_start", lambda *_: False)
    verdict = inspect_video(str(path))
    assert (verdict.status, verdict.num_frames) == ("ok", 12), verdict.reason


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.gif").write_bytes(bomb())
    child = os.fork()
    if child == 0:
        before = _peak_kib()
        inspect_video(str(tmp_path / "bomb.gif"))
        os._exit(0 if _peak_kib() - before < 100 * 1024 else 1)
    assert os.waitpid(child, 0)[1] == 0


def crash(path: str) -> int:
    """Run in a worker in place of asking a video for its number of frames."""
    os.abort()


def test_a_list_is_read_although_one_of_its_files_crashes_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest files are opened to see whether their numbers of frames are labels."""
    write_indexed_video(tmp_path / "a.mp4", 12)
    (tmp_path / "list.txt").write_text("a.mp4 12 0\n")
    monkeypatch.setattr(manifest, "_frames_of", crash)
    assert manifest.read_manifest(tmp_path / "list.txt").num_frames(0) == 12


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
