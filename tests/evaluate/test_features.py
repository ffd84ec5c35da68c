"""Features as files, of lists and of sliding windows, against one clip at a time."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numbered_videos import Recipe, write_video
from processes import run_together

import hpm_video
from hpm_video.cli.main import main
from hpm_video.config import ClipConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.windows import LongVideo
from hpm_video.data.video import crops as transforms
from hpm_video.data.video.frames import VideoReadError, read_frames
from hpm_video.evaluate import features
from hpm_video.evaluate.feature_file import Parts, read_features, read_metadata
from hpm_video.evaluate.frozen_encoder import load_backbone
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import position_table
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]
SETTINGS = ["device=cpu", "num_workers=0"]


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 frames at times that vary."""
    recipe = Recipe("mp4", "libx264", 61, size=(64, 96), variable=True, b_frames=2, seed=3)
    return write_video(tmp_path_factory.mktemp("long") / "long", recipe)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, toy: Path) -> Path:
    """A list of 6 videos: two share a base name, one is no video, one has no label."""
    folder = tmp_path_factory.mktemp("videos")
    manifest = read_manifest(toy)
    lines = ["path,label"]
    for name, source, label in [("a/x.mp4", 0, 0), ("b/x.mp4", 3, 3), ("c.mp4", 5, "")]:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(manifest.path(source), folder / name)
        lines.append(f"{name},{label}")
    (folder / "broken.mp4").write_bytes(b"no video")
    lines += ["broken.mp4,1", "b/x.mp4,4", "c.mp4,2"]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(toy.parent / "classes.txt", folder)
    return folder / "list.csv"


@pytest.fixture(scope="module")
def classifier(
    tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments, pretrained: Path
) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert main(finetune_arguments(folder, f"model.init={pretrained}", "optim.epochs=4")) == 0
    return folder


def _clip(path: Path | str, frames: list[int]) -> torch.Tensor:
    """One centre clip (1, 3, T, 32, 32), read by itself."""
    pixels = read_frames(path, frames, "pyav")
    (box,) = transforms.view_crops(*pixels.shape[1:3], num_crops=1)
    view = torch.as_tensor(transforms.resize_crop(pixels, box, 32))
    return view.permute(3, 0, 1, 2)[None].float() / 255


def _windows(checkpoint: Path, video: Path, output: Path, *more: str) -> list[str]:
    return ["features", str(checkpoint), "--video", str(video), "-o", str(output), *more, *SETTINGS]


def test_features_of_windows_follow_antialias(
    pretrained: Path, long_video: Path, tmp_path: Path
) -> None:
    output = tmp_path / "long.npz"
    backbone = load_backbone(pretrained, precision="float32").backbone
    pixels = read_frames(long_video, list(range(0, 8, 2)), "pyav")
    (box,) = transforms.view_crops(*pixels.shape[1:3], num_crops=1)
    found = {}
    for antialias, words in ((True, []), (False, ["clip.antialias=false"])):
        asked = _windows(pretrained, long_video, output, "--stride", "60", "--frame-stride", "2")
        assert main([*asked, *words]) == 0  # into the same file, whose features are other ones
        arrays, metadata = read_features(output)
        view = transforms.resize_crop(pixels, box, 32, antialias=antialias)
        tokens = backbone.encode(view.permute(3, 0, 1, 2)[None].float() / 255)
        found[antialias] = torch.tensor(arrays["features"][0])
        torch.testing.assert_close(found[antialias], tokens.mean(dim=1)[0])
        assert metadata.get("antialias") == (None if antialias else False)
    assert not torch.allclose(found[True], found[False])


def test_windows_of_a_long_video(pretrained: Path, long_video: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "long.npz"
    arguments = ["--stride", "3", "--frame-stride", "2", "--per-step"]
    assert main(_windows(pretrained, long_video, output, *arguments)) == 0
    assert os.listdir(tmp_path / "out") == ["long.npz"]
    arrays, metadata = read_features(output)
    # 4 frames every 2: a window spans 7 frames, so the one that begins at 54 is the last
    starts = list(range(0, 55, 3))
    assert arrays["frames"].tolist() == [[s, s + 2, s + 4, s + 6] for s in starts]
    backbone = load_backbone(pretrained, precision="float32").backbone
    for row in (0, 7, 18):
        tokens = backbone.encode(_clip(long_video, arrays["frames"][row].tolist()))
        expected = tokens.mean(dim=1)[0]
        torch.testing.assert_close(torch.tensor(arrays["features"][row]), expected)
        expected = torch.stack([tokens[0, :16].mean(dim=0), tokens[0, 16:].mean(dim=0)])
        torch.testing.assert_close(torch.tensor(arrays["step_features"][row]), expected)
    times = LongVideo(long_video).times
    assert arrays["start_s"].tolist() == [times[s] for s in starts]
    assert arrays["end_s"].tolist() == [times[s + 7] for s in starts]
    assert arrays["step_start_s"].tolist() == [[times[s], times[s + 4]] for s in starts]
    assert arrays["step_end_s"].tolist() == [[times[s + 3], times[s + 7]] for s in starts]
    assert np.ptp(arrays["end_s"] - arrays["start_s"]) > 0.05
    assert metadata["stride"] == 3 and metadata["frame_stride"] == 2 and metadata["window"] == 4
    assert metadata["num_frames"] == 61 and metadata["kind"] == "pretrain"
    assert metadata["end_s"] == times[-1]

    other = tmp_path / "long.safetensors"
    assert main(_windows(pretrained, long_video, other, *arguments)) == 0
    same, about = read_features(other)
    assert about == {**metadata} and same.keys() == arrays.keys()
    assert all(np.array_equal(same[name], arrays[name]) for name in arrays)


def test_the_batch_size_changes_nothing(
    pretrained: Path, long_video: Path, tmp_path: Path, videos: Path
) -> None:
    found = []
    for size in (1, 4, 7):
        output = tmp_path / f"{size}.npz"
        settings = ["--stride", "1", f"batch_size={size}", "num_crops=3"]
        assert main(_windows(pretrained, long_video, output, *settings)) == 0
        found.append(read_features(output)[0]["features"])
    assert len(found[0]) == 58
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=2e-6)
    assert np.abs(found[0][1:] - found[0][:-1]).max() > 1e-3
    lists = []
    for size in (1, 4):
        output = tmp_path / f"list{size}.npz"
        arguments = ["features", str(pretrained), "--manifest", str(videos), f"batch_size={size}"]
        assert main([*arguments, "-o", str(output), *SETTINGS]) == 0
        lists.append(read_features(output)[0]["features"])
    np.testing.assert_allclose(lists[1], lists[0], rtol=1e-5, atol=2e-6)


def test_an_interrupted_job_goes_on(
    pretrained: Path, long_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 8)
    arguments = ["--stride", "2", "batch_size=3"]
    whole, output = tmp_path / "whole.npz", tmp_path / "out.npz"
    assert main(_windows(pretrained, long_video, whole, *arguments)) == 0
    write = Parts.write
    written: list[int] = []

    def stop_after_two(self: Parts, number: int, arrays: Any) -> None:
        write(self, number, arrays)
        written.append(number)
        if written == [0, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", stop_after_two)
    assert main(_windows(pretrained, long_video, output, *arguments)) == 1
    assert not output.exists()
    assert len(os.listdir(tmp_path / "out.npz.parts")) == 2
    assert main(_windows(pretrained, long_video, output, *arguments)) == 0
    assert written == [0, 1, 2, 3]  # 30 windows
    assert sorted(os.listdir(tmp_path)) == ["out.npz", "whole.npz"]
    one, other = read_features(whole), read_features(output)
    assert all(np.array_equal(one[0][name], other[0][name]) for name in one[0])
    # What is done is not done again; what is asked for otherwise is
    assert main(_windows(pretrained, long_video, output, *arguments)) == 0
    assert written == [0, 1, 2, 3]
    assert main(_windows(pretrained, long_video, output, "--stride", "4", *arguments[2:])) == 0
    assert written == [0, 1, 2, 3, 0, 1]
    assert read_features(output)[1]["stride"] == 4


def test_parts_of_another_job_are_not_used(tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    one, other = Parts(output, described="one"), Parts(output, described="other")
    one.clean()
    one.write(0, {"a": np.zeros(2)})
    assert one.has(0) and not other.has(0)
    other.clean()
    assert not one.has(0)


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK half", b"no such thing"])
def test_another_file_has_no_metadata(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_metadata(tmp_path / name) is None


def test_a_longer_window_than_in_training(
    pretrained: Path, long_video: Path, tmp_path: Path
) -> None:
    output = tmp_path / "long.npz"
    assert main(_windows(pretrained, long_video, output, "--window", "8", "--stride", "20")) == 0
    arrays, _ = read_features(output)
    assert arrays["frames"].shape == (4, 8) and arrays["frames"][-1].tolist() == [60] * 8
    assert arrays["end_s"][-1] == LongVideo(long_video).times[-1]
    backbone = load_backbone(
        pretrained, precision="float32", clip=ClipConfig(num_frames=8)
    ).backbone
    assert backbone.grid == TokenGrid(4, 4, 4)
    expected = position_table(TokenGrid(4, 4, 4), 32, trained_grid=TokenGrid(2, 4, 4))
    assert torch.equal(backbone.encoder.positions, expected)
    tokens = backbone.encode(_clip(long_video, list(range(8))))
    torch.testing.assert_close(torch.tensor(arrays["features"][0]), tokens.mean(dim=1)[0])


def test_features_of_a_list(
    pretrained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "list.safetensors"
    arguments = ["features", str(pretrained), "--manifest", str(videos), "-o", str(output)]
    capsys.readouterr()
    assert main([*arguments, *SETTINGS]) == 0
    bad, last = capsys.readouterr().out.splitlines()
    assert bad.startswith(f"unreadable, no features: {videos.parent / 'broken.mp4'}: ")
    assert last == f"{output}  videos 6  unreadable 1"
    arrays, metadata = read_features(output)
    assert arrays["features"].shape == (6, 32) and arrays["features"].dtype == np.float32
    assert np.isnan(arrays["features"]).all(axis=1).tolist() == [False] * 3 + [True] + [False] * 2
    assert arrays["label"].tolist() == [0, 3, -1, 1, 4, 2]
    assert metadata["paths"][:2] == ["a/x.mp4", "b/x.mp4"] and len(metadata["classes"]) == 8
    assert list(metadata["unreadable"]) == ["broken.mp4"]
    for row, name in enumerate(metadata["paths"]):
        if row != 3:
            expected = hpm_video.embed(videos.parent / name, checkpoint=pretrained, device="cpu")
            np.testing.assert_allclose(arrays["features"][row], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(arrays["features"][0] - arrays["features"][1]).max() > 1e-3
    assert os.listdir(tmp_path) == ["list.safetensors"]


def test_two_processes_write_the_same(
    pretrained: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 2)
    arguments = ["features", str(pretrained), "--manifest", str(videos), *SETTINGS, "-o"]
    assert main([*arguments, str(tmp_path / "one.npz")]) == 0
    job = [*arguments, str(tmp_path / "two.npz")]
    first, second = run_together(
        2, [job], before="import hpm_video.evaluate.features as f; f.PART = 2"
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("unreadable 1") == 1 and not second.stdout
    one, two = read_features(tmp_path / "one.npz"), read_features(tmp_path / "two.npz")
    assert one[1] == two[1]
    assert all(np.array_equal(one[0][n], two[0][n], equal_nan=n != "label") for n in one[0])
    assert sorted(os.listdir(tmp_path)) == ["one.npz", "two.npz"]


def test_windows_of_a_list_are_a_file_for_each_video(
    pretrained: Path, videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    arguments = ["features", str(pretrained), "--manifest", str(videos), "-o", str(folder)]
    arguments += ["--stride", "4", *SETTINGS]
    assert main(arguments) == 0
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    files = [row["features"] for row in rows]
    assert files[:4] == ["000000_x.npz", "000001_x.npz", "000002_c.npz", ""]
    assert rows[3]["reason"] and not rows[0]["reason"]
    classes = read_manifest(videos).classes
    assert classes is not None and rows[1]["label"] == classes[3] and rows[2]["label"] == ""
    arrays, _ = read_features(folder / files[1])
    assert arrays["frames"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    before = {name: (folder / name).stat().st_mtime_ns for name in files if name}
    (folder / files[0]).unlink()
    assert main(arguments) == 0
    after = {name: (folder / name).stat().st_mtime_ns for name in files if name}
    assert [name for name in before if before[name] != after[name]] == [files[0]]


def test_mistakes_are_one_line(
    pretrained: Path,
    long_video: Path,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    (videos.parent / "index.csv").write_text("path,label\nof-mine.mp4,0\n")
    of_list = ["features", str(pretrained), "--manifest", str(videos), *SETTINGS, "-o"]
    for arguments, words in (
        (_windows(pretrained, long_video, tmp_path / "x.csv"), "must end in .npz or .safetensors"),
        (_windows(pretrained, long_video, taken), f"output ({taken}) is a file: must be a folder"),
        ([*of_list, str(tmp_path / "x.npz"), "--stride", "4"], "x.npz) must be a folder: "),
        ([*of_list, str(videos.parent), "--stride", "4"], "hpm-video did not write its index.csv"),
        (["features", str(pretrained), "--manifest", *SETTINGS, "-o", "x"], "--manifest must have"),
        (_windows(pretrained, long_video, tmp_path / "x.npz", "--window", "3"), "num_frames (3)"),
        (_windows(pretrained, long_video, tmp_path / "x.npz", "--stride", "0"), "stride (0)"),
        (_windows(tmp_path / "no.pt", long_video, tmp_path / "x.npz"), "does not exist"),
        (_windows(pretrained, long_video, tmp_path / "x.npz", "batch_size=0"), "batch_size (0)"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert main(_windows(pretrained, tmp_path / "broken.mp4", tmp_path / "x.npz")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.mp4: is not a video" in line
    (tmp_path / "gone.csv").write_text("path\nbroken.mp4\ny.mp4\n")
    for output, more in (("x.npz", []), ("folder", ["--stride", "4"])):
        arguments = ["features", str(pretrained), "--manifest", str(tmp_path / "gone.csv")]
        assert main([*arguments, "-o", str(tmp_path / output), *more, *SETTINGS]) == 1
        assert "none of 2 videos can be read" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_an_output_may_be_a_folder(
    pretrained: Path,
    long_video: Path,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "v1.0").mkdir()
    of_list = ["features", str(pretrained), "--manifest", str(videos), *SETTINGS, "-o"]
    for arguments, name in (
        ([*of_list, str(tmp_path / "new")], "new/features.npz"),
        ([*of_list, str(tmp_path / "v1.0")], "v1.0/features.npz"),
        (_windows(pretrained, long_video, tmp_path / "new"), f"new/{long_video.stem}.npz"),
    ):
        capsys.readouterr()
        assert main(arguments) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"{tmp_path / name}  videos ")
        assert len(read_features(tmp_path / name)[0]["features"]) > 1
    assert sorted(os.listdir(tmp_path / "new")) == ["features.npz", f"{long_video.stem}.npz"]


def test_videos_that_were_not_there_are_looked_for_again(
    pretrained: Path, videos: Path, tmp_path: Path
) -> None:
    """As when a drive was not mounted."""
    (tmp_path / "list.csv").write_text("path\nx.mp4\nz.mp4\n")
    shutil.copy(videos.parent / "c.mp4", tmp_path / "z.mp4")
    arguments = ["features", str(pretrained), "--manifest", str(tmp_path / "list.csv"), *SETTINGS]
    assert main([*arguments, "-o", str(tmp_path / "x.npz")]) == 0
    assert np.isnan(read_features(tmp_path / "x.npz")[0]["features"][0]).all()
    shutil.copy(videos.parent / "c.mp4", tmp_path / "x.mp4")
    assert main([*arguments, "-o", str(tmp_path / "x.npz")]) == 0
    assert np.isfinite(read_features(tmp_path / "x.npz")[0]["features"]).all()


def test_embed_and_classify(classifier: Path, videos: Path) -> None:
    video = videos.parent / "a" / "x.mp4"
    feature = hpm_video.embed(video, checkpoint=classifier, device="cpu")
    assert feature.shape == (32,) and feature.dtype == np.float32
    model, _, classes = load_classifier(classifier)
    one = hpm_video.classify(video, checkpoint=classifier, num_clips=1, num_crops=1, device="cpu")
    with torch.no_grad():
        expected = model.head(torch.from_numpy(feature)).softmax(dim=0)
    assert classes is not None and set(one) == set(classes)
    assert [one[name] for name in classes] == pytest.approx(expected.tolist(), abs=1e-5)
    assert list(one.values()) == sorted(one.values(), reverse=True)
    own = hpm_video.classify(video, checkpoint=classifier, device="cpu")
    six = hpm_video.classify(video, checkpoint=classifier, num_clips=2, num_crops=3, device="cpu")
    assert own == six != one


def test_calls_raise_what_they_say(classifier: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="no such file"):
        hpm_video.embed(tmp_path / "none.mp4", checkpoint=pretrained)
    with pytest.raises(FileNotFoundError):
        hpm_video.classify(tmp_path / "none.mp4", checkpoint=tmp_path / "none")
    with pytest.raises(ValueError, match="must be of kind finetune, not pretrain"):
        hpm_video.classify(tmp_path / "none.mp4", checkpoint=pretrained)
    with pytest.raises(ValueError, match=r"num_clips \(0\)"):
        hpm_video.embed(tmp_path / "none.mp4", checkpoint=pretrained, num_clips=0)


def test_a_checkpoint_that_was_replaced_is_read_again(
    classifier: Path, pretrained: Path, videos: Path, tmp_path: Path
) -> None:
    video, file = videos.parent / "a" / "x.mp4", tmp_path / "model.pt"
    found = []
    for run in (pretrained, classifier):
        shutil.copy(run / "checkpoints" / "last", file)
        os.utime(file, ns=(len(found), len(found)))
        found.append(hpm_video.embed(video, checkpoint=file, device="cpu"))
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_importing_the_package_is_quick() -> None:
    """Nothing heavy comes with it."""
    words = "import sys, hpm_video; sys.exit(bool({'torch', 'numpy', 'av'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", words], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_pipe_is_no_file_of_features(tmp_path: Path, suffix: str) -> None:
    """Opening it would wait for ever: so that a failure is none that hangs, somebody writes."""
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(ValueError, match="must be a regular file, but is a pipe"):
            read_features(path)
    finally:
        os.close(descriptor)
