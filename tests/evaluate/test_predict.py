"""Classes of unlabelled videos, along long ones, and of frames in memory."""

import csv
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numbered_videos import Recipe, write_video
from processes import run_together

import hpm_video
from hpm_video.cli.main import main
from hpm_video.config import EvaluateConfig
from hpm_video.config.settings import load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.windows import LongVideo, WindowSettings, window_indices
from hpm_video.data.video.frames import VideoReadError, read_frames
from hpm_video.evaluate.along import MOST_PICTURES, Along, score_along
from hpm_video.evaluate.classification import evaluate
from hpm_video.evaluate.embed_classify import _windows
from hpm_video.evaluate.predict import load_for
from hpm_video.runtime.distributed import World
from hpm_video.visualize.along_videos import curves_of, unique_stems, video_page

Arguments = Callable[..., list[str]]
Pixels = npt.NDArray[np.uint8]
SETTINGS = ["device=cpu", "precision=float32", "num_workers=0"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert main(finetune_arguments(folder, "optim.epochs=4")) == 0
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, toy: Path) -> Path:
    """A folder of 5 videos, one of them broken, and list.csv, which has their paths and no more."""
    folder = tmp_path_factory.mktemp("videos")
    manifest = read_manifest(toy)
    for index, name in enumerate(("a/x.mp4", "b/x.mp4", "c,d.mp4", "e.mp4")):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(manifest.path(index), folder / name)
    (folder / "broken.mp4").write_bytes(b"no video")
    names = ["a/x.mp4", "b/x.mp4", "broken.mp4", '"c,d.mp4"', "e.mp4"]
    (folder / "list.csv").write_text("path\n" + "\n".join(names) + "\n")
    return folder


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 frames at times that vary, from a start that is not 0 on."""
    recipe = Recipe("mp4", "libx264", 61, variable=True, b_frames=2, seed=3, start=0.5)
    return write_video(tmp_path_factory.mktemp("long") / "long", recipe)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_list_without_labels(
    classifier: Path, videos: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores are those of an evaluation of the same videos, in the order of the list."""
    command = ["predict", str(classifier), "--manifest", str(videos / "list.csv"), *SETTINGS]
    capsys.readouterr()
    assert main([*command, "--top", "3", "--all-scores", "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}\n"
    assert said.err == (
        f"unreadable: {videos / 'broken.mp4'}: is not a video, or its header is damaged\n"
    )
    labelled = tmp_path / "labelled.csv"
    names = [read_manifest(videos / "list.csv").path(index) for index in range(5)]
    rows = [f'"{name}",0' for name in names]
    labelled.write_text("path,label\n" + "\n".join(rows) + "\n")
    shutil.copy(toy.parent / "classes.txt", tmp_path)
    expected = evaluate(classifier, [str(labelled)], load_config(EvaluateConfig, None, SETTINGS))
    assert expected.classes is not None
    table = _rows(tmp_path / "out" / "predictions.csv")
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found["made_by"] == "hpm-video" and found["classes"] == list(expected.classes)
    assert [row["path"] for row in table] == names == [one["path"] for one in found["videos"]]
    for index, (row, one) in enumerate(zip(table, found["videos"], strict=True)):
        if index == 2:
            assert row["error"] == one["error"] == "is not a video, or its header is damaged"
            assert not any(value for key, value in row.items() if key not in ("path", "error"))
            continue
        scores = expected.scores[index]
        order = np.argsort(-scores, kind="stable")[:3]
        ranked = [(expected.classes[label], scores[label]) for label in order]
        columns = [("class", "score"), ("class_2", "score_2"), ("class_3", "score_3")]
        assert [(row[name], np.float32(row[score])) for name, score in columns] == ranked
        assert [(name, np.float32(score)) for name, score in one["top"]] == ranked
        assert (one["class"], np.float32(one["score"])) == ranked[0]
        whole = [np.float32(row[f"score of {name}"]) for name in expected.classes]
        assert whole == scores.tolist() == np.array(one["scores"], np.float32).tolist()


def test_files_folders_and_the_screen(
    classifier: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = [str(videos / "e.mp4"), str(videos / "a")]
    assert main(["predict", str(classifier), *words, *SETTINGS]) == 0
    said = capsys.readouterr()
    head, *rows = said.out.splitlines()
    assert head == "path,class,score,error" and said.err == ""
    assert [row.split(",")[0] for row in rows] == [words[0], f"{words[1]}/x.mp4"]
    assert main(["predict", str(classifier), str(videos), *SETTINGS]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_two_processes_write_the_same(classifier: Path, videos: Path, tmp_path: Path) -> None:
    command = ["predict", str(classifier), "--manifest", str(videos / "list.csv"), *SETTINGS]
    command += ["evaluation.batch_size=2", "--top", "2"]
    assert main([*command, "-o", str(tmp_path / "one")]) == 1
    first, second = run_together(2, [[*command, "-o", str(tmp_path / "two")]])
    assert (first.returncode, second.returncode) == (1, 0)
    assert second.stdout == second.stderr == "", "only one process should speak"
    for name in ("predictions.csv", "predictions.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_example_is_a_command_that_works(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["predict", str(classifier), "-o", str(tmp_path / "x.csv"), *SETTINGS]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    words = shlex.split(line.partition("; for example: hpm-video ")[2])
    assert main([*words, *SETTINGS]) == 0 and len(_rows(tmp_path / "x.csv")) == 1


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ([], "VIDEO (none) must name at least one file or folder"),
        (["gone.mp4"], "VIDEO (gone.mp4) does not exist"),
        (["empty"], "VIDEO (empty) must hold videos: has none; for example: hpm-video predict"),
        (["lists"], "must hold videos: has none; give the list in it: --manifest lists/x.csv"),
        (["list.csv"], "(list.csv) must be a video, but is a list of videos: give it as --manif"),
        (["e.mp4", "list.csv"], "give it as --manifest list.csv, without VIDEO"),
        (["notes.txt"], "VIDEO (notes.txt) must be a video, but is a text; for example: hpm-vi"),
        (["e.mp4", "-o", "mine.json"], "or choose another place: -o mine_2.json"),
        (["e.mp4", "--windows", "1", "-o", "others"], "or choose another place: -o others_2"),
        (["e.mp4", "--manifest", "list.csv"], "--manifest (list.csv) must come without VIDEO"),
        (["e.mp4", "--top", "0"], "--top (0) must be at least 1"),
        (["e.mp4", "-o", "out.txt"], "--output (out.txt) must end in .csv or .json"),
        (["e.mp4", "-o", "list.csv"], "--output (list.csv) must be a new file or one that"),
        (["e.mp4", "-o", "mine.json"], "--output (mine.json) must be a new file or one that"),
        (["e.mp4", "--windows", "1"], "--output (none) must name a folder with --windows"),
        (["e.mp4", "--windows", "0", "-o", "w"], "--windows (0.0) must be at least"),
        (["e.mp4", "--windows", "1", "-o", "others"], "--output (others/e.json) must be a new"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    classifier: Path,
    videos: Path,
    words: list[str],
    rule: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(videos)
    for folder in ("empty", "others", "lists"):
        Path(folder).mkdir(exist_ok=True)
    for file in ("mine.json", "others/e.json"):
        Path(file).write_text("{}")
    Path("notes.txt").write_text("Some clips of mine, to be sorted\n")
    Path("lists/x.csv").write_text("path,label\ngone.mp4,0\n")
    before = {path: path.read_bytes() for path in videos.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["predict", str(classifier), *words, *SETTINGS]) == 2
    said = capsys.readouterr().err
    assert rule in said and said.count("\n") == 1
    assert {path: path.read_bytes() for path in videos.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("stride_s", [0.04, 0.21, 0.5, 3.0])
def test_windows_begin_at_the_frames_own_times(
    classifier: Path, long_video: Path, stride_s: float
) -> None:
    """Against a slow search for each moment, and one clip at a time."""
    config = load_config(EvaluateConfig, None, [*SETTINGS, "evaluation.num_crops=1"])
    world = World(0, 1, torch.device("cpu"))
    loaded = load_for(classifier, config, world, views="")
    found = score_along(loaded, str(long_video), stride_s=stride_s)
    times = LongVideo(long_video).times
    starts: list[int] = []
    moment = 0
    while not starts or starts[-1] + 4 < 61:
        later = [f for f in range(61) if times[f] - times[0] >= moment * stride_s - 1e-9]
        if not later:
            break
        starts += later[:1] if later[0] not in starts else []
        moment += 1
    assert found.start_s.tolist() == [times[start] for start in starts]
    assert found.end_s.tolist() == [times[min(start + 4, 61)] for start in starts]
    assert (np.diff(found.start_s) > 0).all() and len(starts) > (1 if stride_s < 3 else 0)
    for start, scores in zip(starts, found.scores, strict=True):
        indices = np.minimum(range(start, start + 4), 60)
        frames = read_frames(long_video, indices, "pyav")
        alone = hpm_video.classify(
            frames, checkpoint=classifier, num_clips=1, num_crops=1, device="cpu"
        )
        assert [alone[name] for name in loaded.classes] == pytest.approx(scores, abs=1e-5)
    assert [time for time, _ in found.pictures] == sorted({time for time, _ in found.pictures})
    assert 0 < len(found.pictures) <= MOST_PICTURES


def test_events_are_windows_in_a_row_of_one_class() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], dtype=np.float32)
    start = np.arange(4.0)
    along = Along("x", start, start + 1.5, scores, ())
    found = [(e.start_s, e.end_s, e.label, e.num_windows) for e in along.events()]
    assert found == [(0, 2.5, 0, 2), (2, 3.5, 1, 1), (3, 4.5, 0, 1)]
    assert [event.score for event in along.events()] == pytest.approx([0.75, 0.8, 0.7])
    assert curves_of(along) == [0, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_one_window_has_no_curve(count: int) -> None:
    scores, start = np.full((count, 2), 0.5, dtype=np.float32), np.arange(float(count))
    loaded: Any = SimpleNamespace(classes=("a", "b"), thresholds=None, about={})
    text = video_page(Along("x", start, start + 1.5, scores, ()), loaded)
    assert ("only one window" in text) == ('<svg id="curves" hidden' in text) == (count == 1)


def test_files_of_windows(
    classifier: Path, videos: Path, long_video: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """On one process and on two; a second start replaces the files of the first."""
    words = [str(long_video), *(str(videos / name) for name in ("a/x.mp4", "b/x.mp4"))]
    command = ["predict", str(classifier), *words, str(videos / "broken.mp4"), "--windows", "0.5"]
    command += ["--top", "2", *SETTINGS, "-o"]
    capsys.readouterr()
    for _ in range(2):
        assert main([*command, str(tmp_path / "one")]) == 1
        said = capsys.readouterr()
        assert said.out == f"{tmp_path / 'one' / 'events.csv'}\n"
        assert said.err.count("\n") == 1 and "broken.mp4: is not a video" in said.err
    first, _ = run_together(2, [[*command, str(tmp_path / "two")]])
    assert first.returncode == 1
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == files
    stems = ("long", "x", "x_2")
    ours = {f"{stem}.{ending}" for stem in stems for ending in ("csv", "html", "json")}
    assert files.keys() == ours | {"events.csv"}
    events = _rows(tmp_path / "one" / "events.csv")
    assert [row["error"] for row in events if row["path"].endswith("broken.mp4")] == [
        "is not a video, or its header is damaged"
    ]
    windows = _rows(tmp_path / "one" / "long.csv")
    told = json.loads(files["long.json"])
    assert len(windows) == len(told["windows"]) == 6
    of_long = [row for row in events if row["page"] == "long.html"]
    assert sum(int(row["windows"]) for row in of_long) == 6
    assert [row["class"] for row in of_long] == [event["class"] for event in told["events"]]
    assert of_long[-1]["end_s"] == windows[-1]["end_s"]
    assert told["windows"][0]["top"][1][0] == windows[0]["class_2"]


def test_names_of_files_are_told_apart() -> None:
    names = ["a/x.mp4", "b/X.webm", "events.mp4", ".mp4", "a/x.avi"]
    assert unique_stems(names) == ["x", "X_2", "events_2", "mp4", "x_3"]


def test_a_video_without_times_is_named(
    classifier: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LongVideo.__init__

    def without_times(video: LongVideo, *arguments: Any, **others: Any) -> None:
        opened(video, *arguments, **others)
        video.times = np.full_like(video.times, np.nan)

    monkeypatch.setattr(LongVideo, "__init__", without_times)
    config = load_config(EvaluateConfig, None, SETTINGS)
    loaded = load_for(classifier, config, World(0, 1, torch.device("cpu")), views="")
    with pytest.raises(VideoReadError, match="has no frame times"):
        score_along(loaded, str(videos / "e.mp4"), stride_s=1.0)


def test_frames_in_memory_are_like_their_file(classifier: Path, videos: Path) -> None:
    file = videos / "a" / "x.mp4"
    frames = read_frames(file, range(12))
    for ask in (hpm_video.classify, hpm_video.embed):
        given: dict[str, Any] = {"checkpoint": classifier, "device": "cpu"}
        alone = ask(file, **given)
        of_array, of_tensor = ask(frames, **given), ask(torch.from_numpy(frames), **given)
        np.testing.assert_equal(of_array, alone)
        np.testing.assert_equal(of_tensor, alone)
        several = ask([file, frames, str(videos / "b" / "x.mp4")], **given)
        one_by_one = ask(iter([file, frames, str(videos / "b" / "x.mp4")]), **given)
        assert isinstance(one_by_one, Iterator)
        for one, other, expected in zip(several, one_by_one, (alone, alone, None), strict=True):
            np.testing.assert_equal(one, other)
            if expected is not None:
                np.testing.assert_equal(one, expected)


def test_a_camera_is_answered_as_it_goes(classifier: Path, videos: Path) -> None:
    """It writes each frame to the same memory, and never ends."""
    frames = read_frames(videos / "a" / "x.mp4", range(12))
    taken = []

    def camera() -> Iterator[Pixels]:
        memory = np.empty_like(frames[0])
        while True:
            for number, frame in enumerate(frames):
                memory[:] = frame
                taken.append(number)
                yield memory

    given: dict[str, Any] = {"checkpoint": classifier, "device": "cpu", "num_crops": 1}
    answers = hpm_video.classify(camera(), every=2, **given)
    for start in (0, 2, 4):
        expected = hpm_video.classify(frames[start : start + 4], num_clips=1, **given)
        assert next(answers) == expected
        assert len(taken) == start + 4


@pytest.mark.parametrize("span", [1, 4, 7])
@pytest.mark.parametrize("every", [1, 3, 4, 9])
def test_windows_of_a_stream_are_those_of_a_file(span: int, every: int) -> None:
    settings = WindowSettings(span, 1, every, 8, 1, 4, 512)
    for num_frames in range(1, 25):
        frames: Any = iter(range(num_frames))
        found = list(_windows(frames, span=span, every=every))
        assert found == window_indices(num_frames, settings).tolist()


def test_other_frames_are_refused(classifier: Path) -> None:
    frames = np.zeros((12, 32, 32, 3), dtype=np.uint8)
    turned = np.zeros((12, 3, 32, 40), dtype=np.uint8)
    for wrong, words in (
        (frames.astype(np.float32), r"float32 of shape \(12, 32, 32, 3\)"),
        (turned, "move the colours to the last axis"),
        (frames[:0], r"shape \(0, 32"),
        (7, r"video \(int\) must be a path"),
        ([frames[0]], "or an iterator over frames"),
    ):
        with pytest.raises(ValueError, match=words):
            hpm_video.classify(wrong, checkpoint=classifier, device="cpu")
    with pytest.raises(ValueError, match=r"every \(0\)"):
        hpm_video.classify(frames, checkpoint=classifier, every=0)


def test_libraries_are_silent(classifier: Path, videos: Path) -> None:
    code = (
        "import sys, hpm_video; print(len(hpm_video.classify(sys.argv[2], checkpoint=sys.argv[1]"
        ", device='cpu')))"
    )
    words = [sys.executable, "-c", code, str(classifier), str(videos / "e.mp4")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
