"""Lists and videos of URLs: names, cache, servers that fail, and that they are as files."""

import csv
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fake_store import make_store, requests_of
from fsspec.registry import _registry
from runs import assert_same_run
from videos import frame_numbers, write_indexed_video

from hpm_video.cli.main import main
from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import view_loader
from hpm_video.data.remote import fetching
from hpm_video.data.remote.cache import Cache, cache
from hpm_video.data.remote.fetching import fetch_each, fetched
from hpm_video.data.remote.urls import folder_of, is_url, joined
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.frames import VideoReadError, open_frames

Arguments = Callable[..., list[str]]
STEP = 30  # from the first frame of a video to that of the next


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and little patience."""
    monkeypatch.setenv("HPM_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder of four videos of 24 frames, and their list."""
    folder = tmp_path / "store"
    for number in range(4):
        write_indexed_video(folder / f"{number}.mp4", 24, first=number * STEP)
    _write_list(folder / "all.csv", [f"{number}.mp4,{number}" for number in range(4)])
    return folder


def _write_list(path: Path, rows: list[str], header: str = "path,label") -> None:
    path.write_text("\n".join([header, *rows, ""]))


def _read(manifest_url: str, workers: int = 2) -> list[str | None]:
    """Read a view of each video of a list; returns why those that are unreadable are."""
    data = DataConfig(num_frames=4, frame_stride=1, crop_size=32, decoder="pyav")
    dataset = ViewDataset(read_manifest(manifest_url), data, num_clips=1, num_crops=1)
    loader = view_loader(dataset, batch_size=2, num_workers=workers, rank=0, world_size=1)
    return [error for batch in loader for error in batch.errors]


def _first(path: str) -> int:
    with fetched(path) as local:
        return frame_numbers(open_frames(local, "pyav").read([0]))[0]


def test_names_are_kept() -> None:
    assert is_url("s3://b/a.mp4") and is_url("https://h/a.mp4?x=1")
    assert not any(map(is_url, ("a.mp4", "/a//b.mp4", "C:/a.mp4", "s3:/b/a.mp4", "://a", "é://a")))
    assert joined("s3://b/f", "x//a.mp4") == "s3://b/f/x//a.mp4"
    assert joined("s3://b/f", "../x/a.mp4") == "s3://b/x/a.mp4"
    assert joined("/data", "s3://b//a.mp4") == "s3://b//a.mp4"
    assert joined("s3://b/f", "/data/a.mp4") == "/data/a.mp4"
    assert folder_of("https://h/f/a.csv?sign=x/y") == "https://h/f"


def test_a_list_and_its_videos(store: Path) -> None:
    url = make_store(store)
    (store / "classes.txt").write_text("a\nb\nc\nd\n")
    manifest = read_manifest(f"{url}/all.csv")
    assert manifest.path(2) == f"{url}/2.mp4"
    assert manifest.classes == ("a", "b", "c", "d")
    assert [_first(manifest.path(index)) for index in range(4)] == [0, 30, 60, 90]
    (store / "all.csv").write_text("path,label\n3.mp4,d\n")  # a list is never kept
    assert read_manifest(f"{url}/all.csv").path(0) == f"{url}/3.mp4"


def test_faults_of_a_list_name_its_url(store: Path) -> None:
    url = make_store(store)
    _write_list(store / "bad.csv", ["a.mp4,1,2"])
    with pytest.raises(ValueError, match=rf"^{url}/bad\.csv:2: 3 columns"):
        read_manifest(f"{url}/bad.csv")
    with pytest.raises(FileNotFoundError, match=rf"^{url}/none\.csv does not exist"):
        read_manifest(f"{url}/none.csv")


def test_a_list_here_of_videos_there(store: Path, tmp_path: Path) -> None:
    url = make_store(store)
    _write_list(
        tmp_path / "parts.csv", ["1.mp4,5,9", f"{url}/2.mp4,,"], "path,start_frame,end_frame"
    )
    manifest = read_manifest(tmp_path / "parts.csv", root=url)
    assert [_first(manifest.path(index)) for index in range(2)] == [35, 60]
    assert manifest.path(0) == f"{url}/1.mp4#frame=5,9"


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_are_tried_again_and_named(
    store: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    url = make_store(store, fails=["1.mp4"], times=1)
    assert _read(f"{url}/all.csv", workers) == [None] * 4
    said = capfd.readouterr().err
    assert f"{url}/1.mp4: attempt 1 of 4 failed: OSError: 503 Slow Down\n" in said
    assert said.count("503") == 2  # each of two requests


def test_what_cannot_be_had_is_unreadable(store: Path) -> None:
    _write_list(store / "all.csv", [f"{name},0" for name in ("0.mp4", "9.mp4", "1.mp4", "2.mp4")])
    url = make_store(store, fails=["0.mp4"], forbidden=["1.mp4"], cut=["2.mp4"])
    size = (store / "2.mp4").stat().st_size
    assert _read(f"{url}/all.csv") == [
        "cannot be fetched in 4 attempts: OSError: 503 Slow Down",
        "no such file",
        "permission denied: 403 Forbidden",
        f"cannot be fetched in 4 attempts: OSError: 100 of {size} bytes arrived",
    ]
    asked = requests_of(store)
    assert [asked.count(f"info {number}.mp4") for number in (0, 9, 1, 2)] == [4, 1, 1, 4]


def test_a_server_that_stalls_holds_up_nobody(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPM_VIDEO_FETCH_TIMEOUT_S", "1")
    url = make_store(store, stalls=["1.mp4"], times=1)
    assert _read(f"{url}/all.csv") == [None] * 4
    reason = "no MiB arrived within HPM_VIDEO_FETCH_TIMEOUT_S (1)"
    assert f"{url}/1.mp4: attempt 1 of 4 failed: {reason}" in capfd.readouterr().err
    make_store(store, stalls=["2.mp4"])
    (held,) = [f.held for f in fetch_each([f"{url}/2.mp4"], str)]  # it is in the cache
    assert held is not None
    with pytest.raises(VideoReadError, match=r"2\.mp4: cannot be fetched in 4 attempts: no MiB"):
        Path(held.path).unlink()
        _first(f"{url}/2.mp4")


def test_a_video_is_fetched_once(store: Path) -> None:
    url = make_store(store)
    parts = [f"{number}.mp4,{start},{start + 4}" for start in (0, 4, 8) for number in range(2)]
    _write_list(store / "parts.csv", parts, "path,start_frame,end_frame")
    for _ in range(2):
        assert _read(f"{url}/parts.csv") == [None] * 6
    assert sorted(r for r in requests_of(store) if "mp4" in r) == [
        "get 0.mp4", "get 1.mp4", "info 0.mp4", "info 1.mp4",
    ]  # fmt: skip


def test_the_cache_is_bounded(store: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_store(store)
    sizes = [(store / f"{number}.mp4").stat().st_size for number in range(4)]
    monkeypatch.setenv("HPM_VIDEO_CACHE_GB", str((sum(sizes) - 1) / 1e9))
    paths = [f"{url}/{number}.mp4" for number in range(4)]
    (first,) = [found.held for found in fetch_each(paths[:1], str)]
    assert first is not None
    for path in (*paths[1:3], paths[1], paths[3]):  # 2 is what was used longest ago, but for 0
        assert _first(path) > 0
    _first(paths[3])
    (_,) = fetch_each([f"{url}/all.csv"], str)  # after which there is a look at the sizes
    kept = {path for path in paths if Path(cache().place(path)).exists()}
    assert kept == {paths[0], paths[1], paths[3]}
    assert Path(first.path).exists()
    first.close()


def test_a_video_larger_than_the_cache(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPM_VIDEO_CACHE_GB", "1e-6")
    with pytest.raises(VideoReadError, match=r"more than HPM_VIDEO_CACHE_GB \(1e-06\) allows"):
        _first(f"{make_store(store)}/1.mp4")


@pytest.mark.parametrize("text", ["0", "much", "-1", "nan"])
def test_sizes_that_cannot_be(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPM_VIDEO_CACHE_GB", text)
    with pytest.raises(ValueError, match=rf"HPM_VIDEO_CACHE_GB \({text}\) must be a number above"):
        cache()


def test_what_was_deleted_is_not_held(tmp_path: Path) -> None:
    own = Cache(tmp_path, 1)
    place = own.place("s3://b/a.mp4")
    assert own.hold(place) is None
    with own.new_file(place) as temporary:
        Path(temporary).write_bytes(b"1")
    assert sorted(path.name for path in Path(place).parent.iterdir()) == [Path(place).name]
    held = own.hold(place)
    assert held is not None
    held.close()


def test_a_file_that_is_half_there_goes(tmp_path: Path) -> None:
    own = Cache(tmp_path, 1)
    place = own.place("s3://b/a.mp4")
    with pytest.raises(OSError), own.new_file(place):
        raise OSError
    assert not list(Path(place).parent.iterdir())


def test_memory(store: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in store.iterdir():
        memory.pipe_file(f"/videos/{file.name}", file.read_bytes())
    assert _read("memory://videos/all.csv") == [None] * 4
    assert _first("memory://videos/2.mp4") == 60


def test_schemes_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_list(tmp_path / "a.csv", ["s4://b/a.mp4,0"])
    with pytest.raises(ValueError, match=r"^s4:// \(s4://b/a\.mp4\) must be a protocol"):
        read_manifest(tmp_path / "a.csv")
    _write_list(tmp_path / "a.csv", ["s3://b/a.mp4,0"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(ValueError, match=r"^s3:// needs a package .*hpm_video\[remote\]"):
        read_manifest(tmp_path / "a.csv")


def test_jobs_that_take_files(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = make_store(store)
    for job in ("check", "transcode"):
        assert main(["data", job, f"{url}/all.csv", "-o", str(store / "o")]) == 2
        assert f"give the folder of its videos with --root {url}" in capsys.readouterr().err
    words = ["data", "transcode", str(store / "all.csv"), "--root", url, "-o", str(store / "o")]
    assert main(words) == 2
    assert f"video ({url}/0.mp4) must be on this machine" in capsys.readouterr().err


def test_check_and_its_index(store: Path, tmp_path: Path) -> None:
    url = make_store(store, failures=0.2)
    here = tmp_path / "all.csv"
    rows = [*(f"{number}.mp4,{number}" for number in range(4)), "9.mp4,0"]
    _write_list(here, rows)
    words = ["data", "check", str(here), "--root", url, "--num-workers", "2"]
    assert main(words) == 1
    with here.open() as file:
        found = [(row["path"], row["status"], row["num_frames"]) for row in csv.DictReader(file)]
    assert found == [*((f"{n}.mp4", "ok", "24") for n in range(4)), ("9.mp4", "bad", "")]
    manifest = read_manifest(here, root=url)
    with fetched(manifest.path(1)) as local:  # fetched anew, it is still that of the table
        video = open_frames(local, "pyav", table=manifest.table(1))
        assert video.note is None  # type: ignore[attr-defined]


def test_a_run_is_that_of_files(
    toy: Path, tmp_path: Path, pretrain_arguments: Arguments, capfd: pytest.CaptureFixture[str]
) -> None:
    url = make_store(tmp_path / "store", latency_s=0.05, failures=0.1)
    for path in toy.parent.glob("*"):
        if path.is_file():
            os.link(path, tmp_path / "store" / path.name)
    for name in {Path(read_manifest(toy).name(0)).parts[0]} - {"."}:
        if (toy.parent / name).is_dir():
            os.symlink(toy.parent / name, tmp_path / "store" / name)
    settings = ("data.num_workers=2", "data.decoder=pyav")
    assert main(pretrain_arguments(tmp_path / "files", *settings)) == 0
    remote = (*settings, f"data.manifest={url}/{toy.name}")
    assert main(pretrain_arguments(tmp_path / "urls", *remote)) == 0
    assert_same_run(tmp_path / "files", tmp_path / "urls")
    assert "attempt 1 of 4 failed: OSError: 503 Slow Down" in capfd.readouterr().err
    assert not (tmp_path / "urls" / "bad_videos.csv").exists()


def test_a_server_that_is_gone_ends_a_run(
    store: Path, tmp_path: Path, pretrain_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    url = make_store(store)
    _write_list(tmp_path / "all.csv", [f"{number}.mp4,0" for number in range(4)])
    make_store(store, fails=[f"{number}.mp4" for number in range(4)])
    words = (f"data.manifest={tmp_path / 'all.csv'}", f"data.root={url}", "data.num_workers=2")
    assert main(pretrain_arguments(tmp_path / "run", *words)) == 1
    assert "videos in a row are unreadable, the last fake://" in capsys.readouterr().err
    with (tmp_path / "run" / "bad_videos.csv").open() as file:
        assert {row["path"] for row in csv.DictReader(file)} == {f"{url}/{n}.mp4" for n in range(4)}


def test_several_processes_share_a_cache(store: Path) -> None:
    url = make_store(store, latency_s=0.1)
    code = (
        "import sys; from fake_store import *; make_store(Path(sys.argv[1]), latency_s=0.1)\n"
        "from hpm_video.data.remote.fetching import fetch_each\n"
        "for found in fetch_each([f'fake://{sys.argv[1]}/{n}.mp4' for n in range(4)], str):\n"
        "    assert len(open(found.held.path, 'rb').read()), found\n"
    )
    folder = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder.parent}"}
    command = [sys.executable, "-c", code, str(store)]
    started = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    assert [_first(f"{url}/{number}.mp4") for number in range(4)] == [0, 30, 60, 90]


def test_commands_take_urls(store: Path, tmp_path: Path, pretrained: Path) -> None:
    url = make_store(store)
    for words in (
        ["features", str(pretrained), "--manifest", f"{url}/all.csv", "-o", f"{tmp_path}/f.npz"],
        ["features", str(pretrained), "--video", f"{url}/1.mp4", "-o", f"{tmp_path}/g.npz"],
        ["visualize", str(pretrained), f"{url}/1.mp4", f"{url}/2.mp4", "-o", f"{tmp_path}/pages"],
    ):
        assert main(words) == 0, words
    assert (tmp_path / "pages" / "1.html").exists()


class _Server(BaseHTTPRequestHandler):
    """A server of one folder: 503 for each path once, no end to files called stall."""

    folder: Path
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        content = self._answer()
        if "stall" in self.path:
            self.wfile.write(content[:100])
            time.sleep(60)
        self.wfile.write(content)

    def _answer(self) -> bytes:
        self.asked.append(f"{self.command} {self.path}")
        file = self.folder / self.path.lstrip("/").partition("?")[0]
        if not file.is_file() or self.asked.count(f"{self.command} {self.path}") == 1:
            self.send_error(503 if file.is_file() else 404)
            return b""
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        return b"" if self.command == "HEAD" else content

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPM_VIDEO_FETCH_TIMEOUT_S", "3")
    (store / "1.mp4").rename(store / "stall.mp4")
    _write_list(store / "all.csv", [f"{name}.mp4?signed=x/y,0" for name in ("0", "1", "stall")])
    handler = type("Handler", (_Server,), {"folder": store, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            found = _read(f"http://127.0.0.1:{server.server_port}/all.csv?signed=1")
        finally:
            server.shutdown()
    assert found == [
        None,
        "no such file",
        "cannot be fetched in 4 attempts: no MiB arrived within HPM_VIDEO_FETCH_TIMEOUT_S (3)",
    ]
