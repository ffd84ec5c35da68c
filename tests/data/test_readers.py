"""Every reader returns exactly the frames asked for, of every kind of file, or says why not."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import (
    CODECS,
    KINDS,
    Recipe,
    draw_kind,
    draw_recipe,
    indexed,
    mistakes,
    numbers,
    shown,
    write_video,
)
from reference import in_order

from hpm_video.cli.version import versions
from hpm_video.config.values import Decoder
from hpm_video.data.video import frames as video_module
from hpm_video.data.video.frame_table import WITHOUT_TIMES, FrameTable
from hpm_video.data.video.frames import VideoReadError, check_decoder, open_video, read_frames
from hpm_video.data.video.readers.tables import decoded_table

CLIPS = Path(os.environ.get("HPM_VIDEO_CLIPS", Path(__file__).parents[3] / "shared" / "clips"))
H264 = Recipe("mp4", "libx264", 60, gop=12, b_frames=3, options={"preset": "veryfast"})


@pytest.fixture(params=["decord", "torchcodec", "pyav"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    if reason := video_module.missing(request.param):
        pytest.skip(reason)
    return request.param


def _table(path: Path) -> bytes:
    """What the index of a list says of a video, with which decord and torchcodec may read it."""
    return decoded_table(str(path)).to_bytes()


@pytest.fixture
def _fresh_readers() -> Iterator[None]:
    """Which decoders there are is found out anew, before and after."""

    def forget() -> None:
        video_module.missing.cache_clear()
        for name in ("decord", "torchcodec"):
            sys.modules.pop(f"hpm_video.data.video.readers.{name}", None)

    forget()
    yield
    forget()


def _one_of_each() -> list[Recipe]:
    """The first recipe of each container and codec, with B-frames and without."""
    kinds = {(suffix, codec, b) for suffix in CODECS for codec in CODECS[suffix] for b in (0, 1)}
    recipes = []
    for seed in range(2000):
        recipe = draw_recipe(seed)
        kind = (recipe.suffix, recipe.codec, int(recipe.b_frames > 0))
        if kind in kinds and recipe.num_frames > 20:
            kinds.remove(kind)
            recipes.append(recipe)
    return recipes


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Recipe]]:
    """About 50 videos, each container with each of its codecs, and what they hold."""
    folder = tmp_path_factory.mktemp("numbered")
    return [(write_video(folder / str(recipe.seed), recipe), recipe) for recipe in _one_of_each()]


def test_frames_of_every_container_and_codec(
    numbered: list[tuple[Path, Recipe]], decoder: Decoder
) -> None:
    """`python tests/numbered_videos.py` does the same with 2,000 videos."""
    assert {(r.suffix, r.codec) for _, r in numbered} == {
        (suffix, codec) for suffix in CODECS for codec in CODECS[suffix]
    }
    tables = [_table(path) for path, _ in numbered]
    for known in (tables, [None] * len(numbered)):
        wrong = {
            str(recipe): mistakes(path, recipe, decoder, table)
            for (path, recipe), table in zip(numbered, known, strict=True)
        }
        assert {recipe: what for recipe, what in wrong.items() if what} == {}
    own = [
        open_video(path, decoder, table=table).decoder == decoder
        for (path, _), table in zip(numbered, tables, strict=True)
    ]
    assert sum(own) > len(own) / 6  # else nothing but the fallback was tested


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_frames_of_videos_that_are_not_as_an_encoder_wrote_them(
    tmp_path: Path, kind: str, decoder: Decoder
) -> None:
    for seed in range(3):
        recipe = draw_kind(kind, seed)
        path = write_video(tmp_path / str(seed), recipe)
        if KINDS[kind].keeps_frames:  # ffmpeg finds what is known of the kind
            assert shown(path, recipe) == numbers(np.stack(in_order(path)))
        for table in (indexed(path), None):
            assert mistakes(path, recipe, decoder, table) is None, (recipe, table is not None)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg4"])
def test_an_mp4_that_has_lost_its_keyframes(tmp_path: Path, codec: str, decoder: Decoder) -> None:
    """Each packet is flagged as one. HEVC decodes from any, without a word, to spoilt pictures."""
    options = {"libsvtav1": {"preset": "8"}, "libx265": {"preset": "ultrafast"}}.get(codec, {})
    recipe = Recipe("mp4", codec, 40, (96, 128), gop=16, options=options, kind="no keyframes")
    path = write_video(tmp_path / "a", recipe)
    for table in (indexed(path), None):
        assert mistakes(path, recipe, decoder, table) is None


def test_a_frame_does_not_depend_on_which_others_are_read(tmp_path: Path, decoder: Decoder) -> None:
    """Frames nobody asked for may be left out of decoding only where nothing comes of it."""
    path = write_video(tmp_path / "a", replace(H264, gop=250, num_frames=100))
    every = open_video(path, decoder, table=_table(path)).read(range(100))
    some = [3, 17, 18, 40, 77, 99]
    again = open_video(path, decoder, table=_table(path)).read(some)
    np.testing.assert_array_equal(again, every[some])
    np.testing.assert_array_equal(every[some], read_frames(path, some, "pyav"))


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_a_file_too_large_to_keep_is_gone_through_again(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(H264, suffix=suffix)
    path = write_video(tmp_path / "a", recipe)
    monkeypatch.setattr("hpm_video.data.video.readers.tables._MOST_KEPT_BYTES", 1000)
    video = open_video(path, "pyav")
    assert video._reader.packets is None  # type: ignore[attr-defined]
    assert mistakes(path, recipe, "pyav") is None


@pytest.mark.parametrize("open_gop", [False, True])
def test_decord_is_kept_from_open_groups_of_pictures(tmp_path: Path, open_gop: bool) -> None:
    path = write_video(tmp_path / "a", replace(H264, open_gop=open_gop))
    video = open_video(path, "decord", table=_table(path))
    assert video.note == ("open groups of pictures" if open_gop else None)
    assert video.decoder == ("pyav" if open_gop else "decord")
    assert numbers(video.read(range(60))) == list(range(60))


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (
            replace(H264, b_frames=0, num_frames=110, options={"intra-refresh": "1"}),
            "incomplete keyframes",
        ),
        (replace(H264, suffix="ts"), "neither mp4 nor Matroska"),
        (replace(H264, codec="libx265", options={"preset": "ultrafast"}), "HEVC"),
    ],
)
def test_what_is_known_to_go_wrong_is_not_tried(tmp_path: Path, recipe: Recipe, why: str) -> None:
    path = write_video(tmp_path / "a", recipe)
    video = open_video(path, "decord", table=_table(path))
    assert video.decoder == "pyav" and video.note and why in video.note
    assert mistakes(path, recipe, "decord", _table(path)) is None


def test_without_an_index_pyav_reads(tmp_path: Path, decoder: Decoder) -> None:
    path = write_video(tmp_path / "a", H264)
    video = open_video(path, decoder)
    assert video.decoder == "pyav"
    assert (video.note is None) == (decoder == "pyav")
    assert mistakes(path, H264, decoder) is None


def test_a_table_of_another_file_is_not_used(tmp_path: Path, decoder: Decoder) -> None:
    path = write_video(tmp_path / "a", H264)
    table = _table(path)
    write_video(tmp_path / "a", replace(H264, num_frames=30))
    video = open_video(path, decoder, table=table)
    assert video.num_frames == 30 and video.note and "outdated" in video.note
    assert numbers(video.read([29, 3])) == [29, 3]


def test_a_table_survives_being_written_down(numbered: list[tuple[Path, Recipe]]) -> None:
    for path, _ in numbered:
        table = decoded_table(str(path))
        read = FrameTable.from_bytes(table.to_bytes())
        assert read is not None and repr(read) == repr(table)


def test_tables_with_former_words_mean_the_same(tmp_path: Path) -> None:
    """Whether a video has display times depends on these words."""
    table = decoded_table(str(write_video(tmp_path / "a", H264)))
    none = table.times[:0]
    words = "frames without times of their own"
    former = replace(table, irregular=words, times=none, places=none)
    read = FrameTable.from_bytes(former.to_bytes())
    assert read is not None and read.irregular in WITHOUT_TIMES


def test_what_fails_is_read_by_another(tmp_path: Path) -> None:
    """Some things go wrong that no table tells, as pictures of one pixel do with decord."""
    path = write_video(tmp_path / "a", replace(H264, num_frames=3))
    video = open_video(path, "decord", table=_table(path))
    assert video.decoder == "decord"

    def fail(indices: list[int]) -> np.ndarray:
        raise video_module.UnreadableError("out of order")

    video._reader.read = fail  # type: ignore[method-assign]
    assert numbers(video.read([2, 0])) == [2, 0]
    assert (video.decoder, video.note) == ("pyav", "decord fails to read it")


@pytest.mark.usefixtures("_fresh_readers")
def test_without_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a", H264)
    monkeypatch.setitem(sys.modules, "decord", None)
    check_decoder("decord")  # the default, which needs not be there
    video = open_video(path, table=_table(path))
    assert (video.decoder, video.note) == ("pyav", "decord is not installed")
    assert numbers(video.read([7, 3])) == [7, 3]


@pytest.mark.usefixtures("_fresh_readers")
@pytest.mark.parametrize(
    ("installed", "why"),
    [
        ({"decord2": "3.4.0", "decord": "0.6.0"}, "decord and decord2 are both installed"),
        ({"decord": "0.6.0"}, "decord 0.6.0 is installed instead of decord2"),
        ({}, "decord2 is not installed"),
    ],
)
def test_decord_is_used_only_where_decord2_alone_is_installed(
    installed: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two packages provide the module of that name; with another than decord2 PyAV reads."""

    def version(package: str) -> str:
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(metadata, "version", version)
    check_decoder("decord")
    video = open_video(write_video(tmp_path / "a", H264))
    assert video.decoder == "pyav" and video.note and video.note.startswith(why)
    if installed:
        assert video.note.endswith(": pip uninstall -y decord decord2 && pip install decord2")
        assert video.note in versions()
    assert numbers(video.read([7, 3])) == [7, 3]


def test_decord_keeps_to_itself(tmp_path: Path) -> None:
    """By itself it loads CUDA's libraries too, and torchcodec crashes on AV1."""
    if reason := video_module.missing("decord") or video_module.missing("torchcodec"):
        pytest.skip(reason)
    recipe = Recipe("mp4", "libsvtav1", 5, (96, 128), options={"preset": "8"})
    path = write_video(tmp_path / "a", recipe)
    code = f"""if True:
        import hpm_video.data.video.readers.decord
        libraries = open("/proc/self/maps").read()
        assert "libdecord" in libraries and "libcublas" not in libraries
        from hpm_video.data.video.readers.torchcodec import TorchcodecReader
        assert len(TorchcodecReader({str(path)!r}).read([0, 4])) == 2
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_torchcodec_is_kept_from_av1_where_others_imported_decord(tmp_path: Path) -> None:
    if reason := video_module.missing("decord") or video_module.missing("torchcodec"):
        pytest.skip(reason)
    recipe = Recipe("mp4", "libsvtav1", 5, (96, 128), options={"preset": "8"})
    path = write_video(tmp_path / "a", recipe)
    assert open_video(path, "torchcodec", table=_table(path)).decoder == "torchcodec"
    code = f"""if True:
        import decord
        from hpm_video.data.video.frames import open_video
        from hpm_video.data.video.readers.tables import decoded_table
        table = decoded_table({str(path)!r}).to_bytes()
        video = open_video({str(path)!r}, "torchcodec", table=table)
        assert video.decoder == "pyav" and "imported decord" in video.note, video.note
        assert len(video.read([0, 4])) == 2
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_nothing_imports_a_decoder_before_it_is_used() -> None:
    code = (
        "import sys; sys.modules['decord'] = sys.modules['torchcodec'] = None; "
        "import hpm_video.train.pretrain, hpm_video.train.finetune; "
        "import hpm_video.evaluate.classification, hpm_video.visualize"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.usefixtures("_fresh_readers")
def test_a_decoder_that_is_missing_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(ValueError, match=r"data.decoder \(torchcodec\) must .* not installed"):
        check_decoder("torchcodec")


def test_no_more_frames_than_known(tmp_path: Path, decoder: Decoder) -> None:
    path = write_video(tmp_path / "a", H264)
    assert open_video(path, decoder, most_frames=20).num_frames == 20
    assert open_video(path, decoder, most_frames=100).num_frames == 60


def test_a_file_that_is_cut_off_gives_what_is_there(tmp_path: Path, decoder: Decoder) -> None:
    recipe = replace(H264, num_frames=120, container_options={"movflags": "faststart"})
    whole = write_video(tmp_path / "a", recipe)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    video = open_video(cut, decoder)
    if decoder == "pyav":
        assert 40 < video.num_frames < 100
    first = range(40)
    assert numbers(video.read(first)) == list(first)


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "with 'quotes\".mp4", "new\nline.mp4", b"\xff\xfe.mp4", "pipe:", "-"]
)
def test_any_name(tmp_path: Path, name: str | bytes, decoder: Decoder) -> None:
    whole = write_video(tmp_path / "a", replace(H264, num_frames=5))
    folder = os.fsencode(tmp_path / "names")
    os.mkdir(folder)
    path = os.path.join(folder, os.fsencode(name))
    os.rename(whole, path)
    assert numbers(read_frames(os.fsdecode(path), [4, 0], decoder)) == [4, 0]


def test_reasons_are_plain_words_and_nothing_else_is_said(
    tmp_path: Path, decoder: Decoder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not on stderr either, where the decoders' own libraries print past Python."""
    whole = write_video(tmp_path / "whole", H264).read_bytes()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])  # the index is at the end
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reasons = {
        "missing.mp4": "no such file",
        "empty.mp4": "is empty",
        "folder.mp4": "is a folder, not a video: it holds no numbered images",
        "pipe.mp4": "is not a file",
        "text.mp4": "is not a video, or its header is damaged",
        "half.mp4": "is cut off: an mp4 cannot be read without the index at its end",
        "sound.mp4": "has no video, only sound",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoReadError) as caught:
            open_video(tmp_path / name, decoder)
        assert caught.value.reason == reason
    assert capfd.readouterr() == ("", "")


def _expected() -> list[dict[str, str]]:
    table = CLIPS / "decode" / "expected.csv"
    if not table.is_file():
        return []
    with table.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(not _expected(), reason="no real clips in HPM_VIDEO_CLIPS")
@pytest.mark.parametrize("row", [pytest.param(row, id=row["file"]) for row in _expected()])
def test_real_files_as_ffmpeg_reads_them(row: dict[str, str], decoder: Decoder) -> None:
    path = CLIPS / row["file"]
    if row["decodable_frames"] == "0":
        with pytest.raises(VideoReadError):
            open_video(path, decoder)
        return
    video = open_video(path, decoder)
    # One damaged frame is only found by decoding everything
    claimed = row["header_frames"] if path.name == "corrupted.mp4" else row["decodable_frames"]
    assert video.num_frames == int(claimed)
    size = int(row["height"]), int(row["width"])
    if row["rotation"] in ("90", "-90"):
        size = size[::-1]
    assert (video.height, video.width) == size
    if size[0] > 400 or path.name == "corrupted.mp4":  # the slow form would take too long
        return
    last = video.num_frames - 1
    picks = sorted({last, last // 2, last // 3, min(last, 5), 0}, reverse=True)
    turns = round(int(row["rotation"] or 0) / 90)
    slow = _decode_all(path, set(picks))
    for index, frame in zip(picks, video.read(picks), strict=True):
        difference = np.abs(frame.astype(int) - np.rot90(slow[index], turns)).mean()
        assert difference < (4 if "10" in row["pix_fmt"] else 0.01), index


def _decode_all(path: Path, picks: set[int]) -> dict[int, np.ndarray]:
    """Frames in the order in which a decoder that reads from start to end gives them."""
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(video=0))
        return {k: _rgb(frame) for k, frame in frames if k in picks}


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """Not as fields, of which ffmpeg's command line knows nothing either: `test_odd_videos`."""
    if frame.interlaced_frame:
        plain = av.VideoFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name)
        plain.colorspace, plain.color_range = frame.colorspace, frame.color_range
        frame = plain
    return frame.to_ndarray(format="rgb24")
