"""Tars by URL: that they are as tars on a disk, what is asked of a server, and what is refused."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fake_store import make_store, requests_of
from runs import assert_same_run, run_until_stopped
from shards import STEP, bad_tars, video_bytes, write_shards, write_tar
from videos import frame_numbers

from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import Manifest, read_manifest
from hpm_video.data.remote import fetching
from hpm_video.data.remote.cache import cache
from hpm_video.data.remote.fetching import fetch_each, fetched
from hpm_video.data.remote.urls import split_tar
from hpm_video.data.video.frames import VideoReadError, open_frames
from hpm_video.data.video.tar_index import TarIndex

NUM = 6  # videos in two tars


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and little patience."""
    monkeypatch.setenv("HPM_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    """The pattern of two tars of three videos each, in a folder of their own."""
    return write_shards(tmp_path / "store")


def _url(pattern: str, **rules: object) -> str:
    return f"{make_store(Path(pattern).parent, **rules)}/{Path(pattern).name}"


def _first(path: str) -> int:
    with fetched(path) as local:
        return frame_numbers(open_frames(local, "pyav").read([0]))[0]


def _empty_cache() -> None:
    for path in cache().folder.glob("??"):
        shutil.rmtree(path)


def _firsts(manifest: Manifest) -> list[int]:
    return [_first(manifest.path(index)) for index in range(len(manifest))]


def test_names_in_tars() -> None:
    assert split_tar("s3://b/x.TAR/f/a.mp4") == ("s3://b/x.TAR", "f/a.mp4")
    assert split_tar("https://h/x.tar/a?b.mp4") == ("https://h/x.tar", "a?b.mp4")
    assert split_tar("s3://b/x.tar/") == ("s3://b/x.tar", "")
    assert split_tar("https://h/a.mp4?of=x.tar/b") is None
    assert split_tar("s3://b/x.tar") is None


@pytest.mark.parametrize("has_index", [True, False])
def test_a_pattern_of_urls_is_that_of_files(pattern: str, has_index: bool) -> None:
    local = read_manifest(pattern)  # which writes the indices
    folder = Path(pattern).parent
    (folder / "classes.txt").write_text("a\nb\nc\n")
    if not has_index:
        for path in folder.glob("*.videos"):
            path.unlink()
    manifest = read_manifest(url := _url(pattern))
    assert [manifest.name(k) for k in range(NUM)] == [local.name(k) for k in range(NUM)]
    assert manifest.labels.tolist() == local.labels.tolist()
    assert manifest.classes == ("a", "b", "c")
    assert read_manifest(pattern).digest() == manifest.digest()
    assert _firsts(manifest) == [STEP * number for number in range(NUM)]
    assert _firsts(read_manifest(url)) == [STEP * number for number in range(NUM)]
    asked = [request for request in requests_of(folder) if request.endswith(".tar")]
    # For the header of the last video or, of such small tars, all; then each video, once
    reads = [request for request in asked if request.startswith("read")]
    assert sorted(reads) == ["read train-0000.tar"] * (1 + 3) + ["read train-0001.tar"] * (1 + 3)
    assert "get" not in {request.split()[0] for request in asked}


def test_between_headers_nothing_is_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    size = 10**6
    files = [(f"{k}.{end}", os.urandom(size)) for k in range(3) for end in ("mp4", "left.mp4")]
    tar = write_tar(folder / "a.tar", files)
    read_manifest(tar)
    expected = Path(f"{tar}.videos").read_bytes()
    Path(f"{tar}.videos").unlink()
    url = f"{make_store(folder)}/a.tar"
    read_manifest(url)
    (held,) = [found.held for found in fetch_each([f"{url}/"], str)]
    assert held is not None
    index, local = TarIndex(Path(held.path).read_bytes()), TarIndex(expected)
    assert [index.find(name) for name, _ in files] == [local.find(name) for name, _ in files]
    assert requests_of(folder).count("read a.tar") == len(files) + 1


def test_a_list_may_name_videos_in_tars(pattern: str, tmp_path: Path) -> None:
    url = os.path.dirname(_url(pattern))
    rows = ("train-0001.tar/000010002.mp4,5,9", f"{url}/train-0000.tar/000000001.mp4,,")
    (tmp_path / "list.csv").write_text("\n".join(["path,start_frame,end_frame", *rows, ""]))
    manifest = read_manifest(tmp_path / "list.csv", root=url)
    assert _firsts(manifest) == [5 * STEP + 5, STEP]
    names = ("train-0001.tar/none.mp4", "none.tar/000010002.mp4")
    (tmp_path / "list.csv").write_text("\n".join(["path", *names, ""]))
    manifest = read_manifest(tmp_path / "list.csv", root=url)
    for index, name in enumerate(names):
        with pytest.raises(VideoReadError, match=rf"^{url}/{name}: no such file"):
            _first(manifest.path(index))


def test_what_is_refused_is_one_line_that_names_the_url(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    url = make_store(folder)
    for what, (path, said) in bad_tars(folder).items():
        with pytest.raises(ValueError, match="tar") as caught:
            read_manifest(f"{url}/{path.name}")
        text = str(caught.value)
        assert text.startswith(f"{url}/{path.name}: ") and said in text and "\n" not in text, what
        if path.suffix == ".tar":
            with pytest.raises(VideoReadError, match=re.escape(f"{url}/{path.name}/a.mp4: ")):
                _first(f"{url}/{path.name}/a.mp4")


def test_a_header_that_would_fill_memory(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    member = tarfile.TarInfo("a")
    member.type, member.size = tarfile.XHDTYPE, 10**9
    with (folder / "a.tar").open("wb") as file:
        file.write(member.tobuf())
        file.truncate(2 * 10**9)
    with pytest.raises(ValueError, match=r"/a\.tar: is damaged at byte 512: has too long a header"):
        read_manifest(f"{make_store(folder)}/a.tar")


def test_all_tars_must_be_there(pattern: str) -> None:
    url = os.path.dirname(_url(pattern))
    with pytest.raises(FileNotFoundError, match=rf"^{url}/train-0002\.tar .*\(2 of the 4 tars"):
        read_manifest(f"{url}/train-{{0000..0003}}.tar")
    with pytest.raises(ValueError, match=r"must name tars without a query"):
        read_manifest("https://host/a.tar?signed=1")
    with pytest.raises(ValueError, match=r"^s4:// .* must be a protocol that fsspec"):
        read_manifest("s4://b/a.tar")


def test_an_index_beside_a_tar_is_used_only_if_it_is_the_tar_s(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    url = make_store(folder)
    video, other = video_bytes(folder, 1), video_bytes(folder, 2)
    tar, beside = folder / "a.tar", folder / "a.tar.videos"
    write_tar(tar, [("a.mp4", video), ("b.mp4", other), ("b.cls", b"2")])
    size = tar.stat().st_size
    read_manifest(tar)
    of_another = beside.read_bytes()
    write_tar(tar, [("a.txt", b"1" * 600), ("a.mp4", other), ("b.mp4", other)])
    assert tar.stat().st_size == size  # as tars are of whole blocks
    beside.unlink()
    read_manifest(tar)
    good = beside.read_bytes()
    strange = bytearray(good.replace(b"a.mp4b.mp4", b"a.mp4/.mp4"))
    strange[24:32] = zlib.crc32(strange[80:]).to_bytes(8, "little")
    assert TarIndex(bytes(strange)).name(1) == "/.mp4"
    for content in (of_another, good[:-3], b"", bytes(strange), good):
        beside.write_bytes(content)
        assert _firsts(read_manifest(f"{url}/a.tar")) == [2 * STEP, 2 * STEP]
        _empty_cache()


def test_a_tar_that_changes(pattern: str) -> None:
    folder = Path(pattern).parent
    manifest = read_manifest(_url(pattern))
    assert _first(manifest.path(0)) == 0
    files = [("x.txt", b"x" * 3000), ("000000001.mp4", video_bytes(folder, 9))]
    write_tar(folder / "train-0000.tar", files)
    assert _first(manifest.path(0)) == 0  # it is in the cache
    assert _first(manifest.path(1)) == 9 * STEP  # not what lies at the old place
    with pytest.raises(VideoReadError, match="no such file"):
        _first(manifest.path(2))
    assert len(read_manifest(_url(pattern))) == 4


def test_failures_and_stalls(
    pattern: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, stem = Path(pattern).parent, os.path.dirname(_url(pattern))
    url = _url(pattern, fails=["train-0000.tar"], times=1)
    manifest = read_manifest(url)
    assert f"{stem}/train-0000.tar: attempt 1 of 4 failed: OSError: 503" in capfd.readouterr().err
    _empty_cache()
    (folder / "requests.txt").unlink()
    assert _firsts(manifest) == [STEP * number for number in range(NUM)]
    said = capfd.readouterr().err
    assert f"{stem}/train-0000.tar/000000000.mp4: attempt 1 of 4 failed: OSError: 503" in said
    for path in cache().folder.glob("??/*.mp4"):
        path.unlink()
    _url(pattern, cut=["train-0000.tar"], forbidden=["train-0001.tar"])
    with pytest.raises(VideoReadError, match=r"000\.mp4: cannot be .* OSError: 100 of"):
        _first(manifest.path(0))
    with pytest.raises(VideoReadError, match=r"2\.mp4: permission denied: 403 Forbidden"):
        _first(manifest.path(5))
    monkeypatch.setenv("HPM_VIDEO_FETCH_TIMEOUT_S", "0.5")
    url = _url(pattern, stalls=["train-0001.tar"])
    with pytest.raises(
        ValueError, match=r"1\.tar: cannot be fetched in 4 attempts: no MiB arrived"
    ):
        read_manifest(url)


def test_memory(pattern: str) -> None:
    memory = fsspec.filesystem("memory")
    for file in Path(pattern).parent.glob("*.tar"):
        memory.pipe_file(f"/shards/{file.name}", file.read_bytes())
    manifest = read_manifest("memory://shards/train-{0000..0001}.tar")
    assert _firsts(manifest) == [STEP * number for number in range(NUM)]


class _Web(BaseHTTPRequestHandler):
    """A server of one folder, which may or may not know of ranges."""

    folder: Path
    has_ranges: bool
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        span = self.headers.get("Range")
        self.asked.append(f"{self.command} {self.path} {span}")
        if not (file := self.folder / self.path.lstrip("/")).is_file():
            self.send_error(404)
            return
        content, status = file.read_bytes(), 200
        if span is not None and self.has_ranges:
            start, end = map(int, span.removeprefix("bytes=").split("-"))
            content, status = content[start : end + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # who asked for a range takes no whole file
                self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _web(folder: Path, *, has_ranges: bool) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    kinds = {"folder": folder, "has_ranges": has_ranges, "asked": asked}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Web", (_Web,), kinds)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_web_server(pattern: str, has_ranges: bool) -> None:
    folder = Path(pattern).parent
    with _web(folder, has_ranges=has_ranges) as (url, asked):
        manifest = read_manifest(f"{url}/{Path(pattern).name}")
        paths = [manifest.path(index) for index in range(NUM)]
        found = {f.item: f.held for f in fetch_each(paths, str)}  # all at once
        assert _firsts(manifest) == [STEP * number for number in range(NUM)]
    assert all(held is not None for held in found.values())
    wholes = [request for request in asked if re.fullmatch(r"GET /train-\d+\.tar None", request)]
    assert len(wholes) == (0 if has_ranges else 2)
    kept = [cache().place(f"{url}/train-000{n}.tar") for n in range(2)]
    assert all(Path(path).exists() != has_ranges for path in kept)


def test_a_tar_that_must_be_whole_and_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", [("a.mp4", bytes(2 * 10**6))])
    monkeypatch.setenv("HPM_VIDEO_CACHE_GB", "1e-3")
    with (
        _web(tmp_path, has_ranges=False) as (url, _),
        pytest.raises(ValueError, match=r"a\.tar: must be fetched whole .* HPM_VIDEO_CACHE_GB"),
    ):
        read_manifest(f"{url}/a.tar")


_LIST = (
    "import sys; from fake_store import *; make_store(Path(sys.argv[1]), latency_s=0.2)\n"
    "from hpm_video.data.lists.manifest import read_manifest\n"
    "manifest = read_manifest(sys.argv[2])\n"
    "assert len(manifest) == 6 and manifest.label(5) == 2\n"
)


@pytest.mark.parametrize("by_url", [True, False])
def test_several_processes_find_out_what_is_in_a_tar(pattern: str, by_url: bool) -> None:
    """Ranks of a job that start at once."""
    folder = Path(pattern).parent
    place = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{place}:{place.parent}"}
    given = _url(pattern) if by_url else pattern
    command = [sys.executable, "-c", _LIST, str(folder), given]
    started = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    if by_url:  # each tar was looked through once
        assert sorted(r for r in requests_of(folder) if r.startswith("read")) == [
            f"read train-{number:04d}.tar" for number in range(2)
        ]
    else:
        names = {path.name for path in folder.iterdir()} - {"store.json"}
        tars = {f"train-{number:04d}.tar" for number in range(2)}
        assert names == tars | {f"{name}.videos" for name in tars}
    manifest = read_manifest(_url(pattern))
    assert _firsts(manifest) == [STEP * number for number in range(NUM)]


def test_a_run_goes_on_in_the_middle_of_a_tar(
    toy: Path, tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    """Bit for bit that of files, though some requests fail."""
    files = read_manifest(toy, labels=False)
    half = len(files) // 2
    (tmp_path / "store").mkdir()
    for number, part in enumerate((range(half), range(half, len(files)))):
        videos = [(f"{k:05d}.mp4", Path(files.path(k)).read_bytes()) for k in part]
        write_tar(tmp_path / "store" / f"toy-{number}.tar", videos)
    url = make_store(tmp_path / "store", latency_s=0.02, failures=0.05)
    words = (f"data.manifest={url}/toy-{{0..1}}.tar", "data.num_workers=2", "data.decoder=pyav")
    stopped = pretrain_arguments(tmp_path / "stopped", *words)
    assert main(pretrain_arguments(tmp_path / "files", *words[1:])) == 0
    run_until_stopped(stopped, at=2)
    assert main(stopped) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "files")
    assert not (tmp_path / "stopped" / "bad_videos.csv").exists()
    pages = tmp_path / "pages"
    video = f"{url}/toy-1.tar/{half:05d}.mp4"
    assert main(["visualize", str(tmp_path / "stopped"), video, "-o", str(pages)]) == 0
    assert (pages / f"{half:05d}.html").exists()


def test_lists_of_tars(
    pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], pretrained: Path
) -> None:
    url, output = _url(pattern), tmp_path / "list.csv"
    assert main(["data", "check", url, "-o", str(output)]) == 2
    assert f"hpm-video data list --manifest '{url}' -o FILE.csv" in capsys.readouterr().err
    assert main(["data", "list", "--manifest", url, "-o", str(output), "--label", "txt"]) == 2
    assert "label (txt) must be cls for tars at URLs" in capsys.readouterr().err
    assert main(["data", "list", "--manifest", url, "-o", str(output)]) == 0
    assert main(["data", "check", str(output), "--num-workers", "2"]) == 0
    manifest = read_manifest(output)
    assert manifest.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert manifest.path(5) == f"{os.path.dirname(url)}/train-0001.tar/000010002.mp4"
    with fetched(manifest.path(5)) as local:
        video = open_frames(local, "pyav", table=manifest.table(5))
        assert video.note is None  # type: ignore[attr-defined]
    output = tmp_path / "features.npz"
    assert main(["features", str(pretrained), "--manifest", url, "-o", str(output)]) == 0
    assert np.load(output)["label"].tolist() == [0, 1, 2, 0, 1, 2]
