"""Evaluation against a slow loop: one view at a time, one video at a time, softmax by hand."""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_videos import Recipe, write_video
from processes import run_together

from hpm_video.cli.main import main
from hpm_video.config import EvaluateConfig
from hpm_video.config.settings import load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.data.loading.loader import ViewBatch
from hpm_video.data.video import crops as transforms
from hpm_video.data.video import frame_indices as clips
from hpm_video.data.video.frames import read_frames
from hpm_video.evaluate.classification import evaluate
from hpm_video.evaluate.predictions import Evaluation, read_predictions
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]
SETTINGS = ["device=cpu", "precision=float32", "num_workers=0"]


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments, pretrained: Path
) -> Path:
    """A classifier that has learnt enough for its scores to differ between views and videos."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    settings = (
        *(f"model.init={pretrained}", "optim.epochs=6", "optim.base_lr=0.256"),
        *("model.drop_path=0.1", "model.head_dropout=0.2"),  # in training only
    )
    assert main(finetune_arguments(folder, *settings)) == 0
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, toy: Path) -> Path:
    """A list of 7 videos: two share a base name, one is no video, one is not there."""
    folder = tmp_path_factory.mktemp("videos")
    manifest = read_manifest(toy)
    rows = [("a/clip.mp4", 0, 0), ("b/clip.mp4", 3, 3), ("c/x.mp4", 5, 2), ("d/y.mp4", 6, 6)]
    lines = ["path,label"]
    for name, source, label in rows:
        (folder / name).parent.mkdir()
        shutil.copy(manifest.path(source), folder / name)
        lines.append(f"{name},{label}")
    (folder / "broken.mp4").write_bytes(b"no video")
    lines += ["broken.mp4,0", "missing.mp4,1", "b/clip.mp4,4"]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(toy.parent / "classes.txt", folder)
    return folder / "list.csv"


def _slow_scores(checkpoint: Path, path: str, num_clips: int, num_crops: int) -> np.ndarray:
    """Mean softmax over a video's views, every view read, cropped and classified on its own."""
    model, config, _ = load_classifier(checkpoint)
    model.eval()
    data = config.data
    windows = clips.dense_view_indices(
        12, clip_frames=data.num_frames, stride=data.frame_stride, num_clips=num_clips
    )
    assert windows.shape == (num_clips, data.num_frames)
    scores = []
    for window in windows:
        frames = read_frames(path, window)
        for box in transforms.view_crops(*frames.shape[1:3], num_crops=num_crops):
            view = transforms.resize_crop(frames, box, data.crop_size)
            clip = torch.as_tensor(view).permute(3, 0, 1, 2)[None].float() / 255
            with torch.no_grad():
                logits = model(clip)[0].double().tolist()
            powers = [np.exp(value - max(logits)) for value in logits]
            scores.append([power / sum(powers) for power in powers])
    return np.mean(scores, axis=0)


def _evaluate(checkpoint: Path, videos: Path, num_clips: int, num_crops: int) -> Evaluation:
    views = [f"evaluation.num_clips={num_clips}", f"evaluation.num_crops={num_crops}"]
    config = load_config(EvaluateConfig, None, [*SETTINGS, *views, "evaluation.batch_size=3"])
    return evaluate(checkpoint, [str(videos)], config)


@pytest.mark.parametrize(("num_clips", "num_crops"), [(2, 3), (1, 1)])
def test_scores_are_means_over_all_views(
    checkpoint: Path, videos: Path, num_clips: int, num_crops: int
) -> None:
    result = _evaluate(checkpoint, videos, num_clips, num_crops)
    assert result.scores.shape == (7, 8)
    assert result.labels.tolist() == [0, 3, 2, 6, 0, 1, 4]
    for row in (0, 1, 2, 3, 6):
        expected = _slow_scores(checkpoint, result.paths[row], num_clips, num_crops)
        assert result.scores[row] == pytest.approx(expected, abs=1e-5)
        assert result.scores[row].sum() == pytest.approx(1, abs=1e-5)
    assert np.ptp(result.scores[:4], axis=0).max() > 0.01  # the videos do differ


def test_videos_are_resized_as_in_training_unless_told_otherwise(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Checkpoints from before the setting were trained, and are evaluated, with antialiasing."""
    recipe = Recipe("mp4", "libx264", 12, size=(76, 102))
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,label\n{write_video(tmp_path / 'noise', recipe)},0\n")
    state = load_checkpoint(checkpoint)
    model, config, _ = load_classifier(checkpoint)
    data = config.data
    (window,) = clips.dense_view_indices(
        12, clip_frames=data.num_frames, stride=data.frame_stride, num_clips=1
    )
    frames = read_frames(next(tmp_path.glob("noise*")), window)
    expected = {}
    for antialias in (True, False):
        small = transforms.resize_short_side(frames, data.crop_size, antialias=antialias)
        (box,) = transforms.view_crops(*small.shape[1:3], num_crops=1)
        view = transforms.resize_crop(small, box, data.crop_size)
        with torch.no_grad():
            logits = model.eval()(view.permute(3, 0, 1, 2)[None].float() / 255)
        expected[antialias] = logits[0].softmax(dim=0).numpy()
    assert np.abs(expected[True] - expected[False]).max() > 1e-3
    for stored, told, meant in (
        (None, None, True), (True, None, True), (False, None, False), (False, True, True),
        (None, False, False),
    ):  # fmt: skip
        settings = {k: v for k, v in state["config"]["data"].items() if k != "antialias"}
        settings |= {} if stored is None else {"antialias": stored}
        file = tmp_path / "checkpoint.pt"
        torch.save({**state, "config": {**state["config"], "data": settings}}, file)
        words = [*SETTINGS, "evaluation.num_clips=1", "evaluation.num_crops=1"]
        words += [] if told is None else [f"clip.antialias={told}".lower()]
        result = evaluate(file, [str(listed)], load_config(EvaluateConfig, None, words))
        assert result.scores[0] == pytest.approx(expected[meant], abs=1e-5)


def test_the_views_matter(checkpoint: Path, videos: Path) -> None:
    many, one = (_evaluate(checkpoint, videos, *views) for views in [(2, 1), (1, 1)])
    assert np.abs(many.scores - one.scores).max() > 1e-3


def test_videos_of_one_base_name_are_not_merged(checkpoint: Path, videos: Path) -> None:
    result = _evaluate(checkpoint, videos, 2, 3)
    assert [os.path.basename(path) for path in result.paths].count("clip.mp4") == 3
    assert np.abs(result.scores[0] - result.scores[1]).max() > 1e-3
    # The same file with another label is another row with the same scores.
    assert result.scores[1] == pytest.approx(result.scores[6], abs=1e-6)


def test_unreadable_videos_are_named_and_count_as_wrong(checkpoint: Path, videos: Path) -> None:
    result = _evaluate(checkpoint, videos, 1, 1)
    assert [index for index, _ in result.bad] == [4, 5]
    assert all(reason for _, reason in result.bad)
    assert not result.scores[[4, 5]].any()
    ranked = np.argsort(-result.scores, axis=1)
    readable = (0, 1, 2, 3, 6)
    for k in (1, 5, 8):
        right = sum(result.labels[row] in ranked[row, :k] for row in readable)
        assert result.top(k) == pytest.approx(right / 7)
    # Row 4 has label 0, the first of all classes that tie at zero: it is wrong nonetheless.
    assert result.top(8) == pytest.approx(5 / 7)


def test_nothing_readable_is_no_accuracy(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\nx.mp4,0\ny.mp4,1\n")
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(UnreadableDataError, match=r"none of 2 videos can be read, e\.g\. .*x\.mp4"):
        _evaluate(checkpoint, tmp_path / "list.csv", 1, 1)


def test_top_k_of_known_scores() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.0, 0.0, 0.0]], dtype=np.float32)
    paths = ("a", "b", "c")
    result = Evaluation(scores, np.array([1, 2, 0]), paths, ((2, "broken"),))
    assert result.top(1) == pytest.approx(1 / 3)
    assert result.top(2) == pytest.approx(1 / 3)
    assert result.top(3) == pytest.approx(2 / 3)
    assert result.top(5) == pytest.approx(2 / 3)


def _numbers(stdout: str) -> str:
    found = re.search(r"^top1 .*$", stdout, re.MULTILINE)
    assert found, stdout
    return found[0]


def test_the_command_prints_what_it_found(
    checkpoint: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _evaluate(checkpoint, videos, 2, 3)
    arguments = ["evaluate", str(checkpoint), "--manifest", str(videos), *SETTINGS]
    assert main(arguments) == 0
    stdout = capsys.readouterr().out
    assert _numbers(stdout) == (
        f"top1 {result.top(1):.4f}  top5 {result.top(5):.4f}  "
        f"balanced_accuracy {result.balanced_accuracy():.4f}  loss {result.loss():.4f}  "
        "videos 7  unreadable 2"
    )
    for name in ("broken.mp4", "missing.mp4"):
        assert len(re.findall(rf"^unreadable, counts as wrong: .*{name}: ", stdout, re.M)) == 1
    # A file of a run folder will do as well, and several lists are joined.
    file = checkpoint / "checkpoints" / "last"
    settings = [*SETTINGS, "evaluation.num_clips=1", "evaluation.num_crops=1"]
    assert main(["evaluate", str(file), "--manifest", *2 * [str(videos)], *settings]) == 0
    assert "videos 14  unreadable 4" in capsys.readouterr().out


def test_results_are_recomputed_without_the_model(
    checkpoint: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    command = ["evaluate", str(checkpoint), "--manifest", str(videos), "-o", str(folder)]
    assert main([*command, *SETTINGS]) == 0
    said = capsys.readouterr().out
    result = _evaluate(checkpoint, videos, 2, 3)
    found = read_predictions(folder)
    assert (found.paths, found.bad, found.classes) == (result.paths, result.bad, result.classes)
    # To the last bit, but for the shape of batches: that of the command is larger
    assert found.scores == pytest.approx(result.scores, abs=1e-6)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "index.html").unlink()
    assert main(["evaluate", str(folder), "--recompute", "num_workers=0"]) == 0
    assert capsys.readouterr().out == said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written
    assert main(["evaluate", str(tmp_path), "--recompute"]) == 2
    assert "is not the folder of an evaluation" in capsys.readouterr().err


def test_no_files_of_others_are_replaced(
    checkpoint: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Least of all the class names of a data set."""
    before = {path: path.stat().st_mtime_ns for path in videos.parent.rglob("*")}
    command = ["evaluate", str(checkpoint), "--manifest", str(videos), "-o", str(videos.parent)]
    assert main([*command, *SETTINGS]) == 2
    assert "must be empty or hold an evaluation: it holds other files" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in videos.parent.rglob("*")} == before


def test_weights_that_went_wrong_have_no_accuracy(
    checkpoint: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(checkpoint)
    state["model"]["head.bias"][2] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    command = ["evaluate", str(tmp_path / "nan.pt"), "--manifest", str(videos), *SETTINGS]
    assert main(command) == 1
    assert re.search(r"scores for \S+clip.mp4 are not finite\n$", capsys.readouterr().err)
    assert not list((tmp_path / "evaluation").iterdir())


def test_every_forward_pass_has_the_same_shape(
    checkpoint: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels round by the shape, and the last batch's depends on the number of processes."""
    shapes = []

    on = ViewBatch.on

    def spy(batch: ViewBatch, *place: torch.device, **how: int) -> torch.Tensor:
        views = on(batch, *place, **how)
        shapes.append(tuple(views.shape))
        return views

    monkeypatch.setattr(ViewBatch, "on", spy)
    result = _evaluate(checkpoint, videos, 2, 3)
    assert shapes == [(3 * 6, 3, 4, 32, 32)] * 3  # 3, 3 and 1 of 7 videos
    assert len(result.scores) == 7


def test_two_processes_find_the_same(
    checkpoint: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven videos: shares of two processes, and last batches, differ in size. To the last bit."""
    settings = ["evaluation.batch_size=3", *SETTINGS]
    arguments = ["evaluate", str(checkpoint), "--manifest", str(videos), *settings]
    folder = checkpoint / "evaluation" / "list"
    assert main(arguments) == 0
    alone = capsys.readouterr().out
    predictions = (folder / "predictions.csv").read_bytes()
    shutil.rmtree(folder)
    first, second = run_together(2, [arguments])
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert (first.stdout, second.stdout) == (alone, ""), "only one process should speak"
    assert (folder / "predictions.csv").read_bytes() == predictions


def test_class_names_of_the_checkpoint_give_the_labels(
    checkpoint: Path, videos: Path, tmp_path: Path
) -> None:
    """A list with names of a few classes only must not be numbered on its own."""
    classes = load_checkpoint(checkpoint)["classes"]
    lines = [f"{videos.parent / 'a/clip.mp4'},up", f"{videos.parent / 'b/clip.mp4'},left"]
    (tmp_path / "named.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    result = _evaluate(checkpoint, tmp_path / "named.csv", 1, 1)
    assert result.labels.tolist() == [classes.index("up"), classes.index("left")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a/clip.mp4,0", "b/clip.mp4,8"], ["(8)", "8"]),
        (["a/clip.mp4,0", "b/clip.mp4"], ["b/clip.mp4", "label (none)"]),
        (["a/clip.mp4,running"], ["running"]),
    ],
)
def test_labels_the_model_does_not_have_are_refused(
    checkpoint: Path,
    videos: Path,
    tmp_path: Path,
    lines: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row if "," in row else f"{row}," for row in lines]
    (tmp_path / "bad.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    arguments = ["evaluate", str(checkpoint), "--manifest", str(tmp_path / "bad.csv")]
    assert main([*arguments, f"root={videos.parent}", *SETTINGS]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    for word in words:
        assert word in stderr
    assert not (checkpoint / "evaluation" / "bad").exists()


def test_a_list_of_other_classes_is_renumbered_by_the_command_that_is_named(
    checkpoint: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers that stand for the same classes in another order, or for others."""
    names, shown = load_checkpoint(checkpoint)["classes"], read_manifest(toy)
    (other := tmp_path / "other").mkdir()
    (other / "classes.txt").write_text("".join(f"{name}\n" for name in reversed(names)))
    rows = [f"{shown.path(k)},{len(names) - 1 - shown.label(k)}\n" for k in range(len(shown))]
    (other / "val.csv").write_text("path,label\n" + "".join(rows))
    command = ["evaluate", str(checkpoint), "--manifest", str(other / "val.csv"), *SETTINGS]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"of checkpoint {checkpoint}/checkpoints/last in names and order, but its label 0" in line
    )
    words = shlex.split(line.partition(": hpm-video data list ")[2])
    assert main(["data", "list", *words]) == 0
    assert read_manifest(words[-1]).labels.tolist() == shown.labels.tolist()
    assert _evaluate(checkpoint, Path(words[-1]), 1, 1).classes == tuple(names)

    (other / "classes.txt").write_text("".join(f"{name}!\n" for name in names))
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    words = shlex.split(line.partition(": hpm-video predict ")[2])
    assert main(["predict", *words, *SETTINGS]) == 0


def test_a_model_without_class_names_takes_numbers(
    checkpoint: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names would get the numbers of their sorted order, and all figures be wrong."""
    torch.save({**load_checkpoint(checkpoint), "classes": None}, tmp_path / "unnamed.pt")
    (tmp_path / "list.csv").write_text(f"path,label\n{videos.parent / 'a/clip.mp4'},up\n")
    command = ["evaluate", str(tmp_path / "unnamed.pt"), "--manifest", str(tmp_path / "list.csv")]
    assert main([*command, *SETTINGS]) == 2
    assert "list.csv:2: label (up) must be a number: " in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("down\nup\n")
    assert main([*command, *SETTINGS]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hpm-video evaluate: number of class names (2, for the list of ")
    assert line.endswith(") must be 8, the number of classes of the model")


def test_repeated_videos_are_said(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    config = load_config(EvaluateConfig, None, [*SETTINGS, f"root={videos.parent}"])
    for times, words in ((3, "rows that repeat a video: 2; all of them count"), (1, None)):
        rows = "a/clip.mp4,0\n" * times + "b/clip.mp4,3\n"
        (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
        result = evaluate(checkpoint, [str(tmp_path / "list.csv")], config)
        assert len(result.labels) == times + 1
        assert result.about.get("warning") == words


def test_a_pre_training_checkpoint_cannot_classify(
    pretrained: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(pretrained), "--manifest", str(videos), *SETTINGS]) == 2
    stderr = capsys.readouterr().err
    assert "must be of kind finetune, not pretrain" in stderr
    assert stderr.count("\n") == 1


def test_keys_that_do_not_fit_are_named(
    checkpoint: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(checkpoint)
    state["model"]["encoder.blocks.9.extra"] = state["model"].pop("encoder.embed.bias")
    torch.save(state, tmp_path / "other.pt")
    command = ["evaluate", str(tmp_path / "other.pt"), "--manifest", str(videos), *SETTINGS]
    assert main(command) == 2
    stderr = capsys.readouterr().err
    assert "encoder.embed.bias is missing; encoder.blocks.9.extra is not in the model" in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "evaluation").exists()


def test_the_device_is_named_as_it_was_asked_for(
    checkpoint: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    command = ["evaluate", str(checkpoint), "--manifest", str(videos), "device=cuda"]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("hpm-video evaluate: device (cuda) needs a CUDA")
