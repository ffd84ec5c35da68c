"""Pictures of a checkpoint: which frames, what is drawn, and the page with all of it."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from videos import frame_numbers, write_indexed_video

from hpm_video.cli import main
from hpm_video.config import DataConfig, PretrainConfig
from hpm_video.data.toy import write_toy_videos
from hpm_video.data.video import VideoReadError
from hpm_video.mining import load_pretrained
from hpm_video.pretrain import pretrain
from hpm_video.settings import load_config
from hpm_video.visualize import (
    Row,
    figure,
    heat,
    outline,
    picture,
    read_clip,
    visualize,
)
from hpm_video.visualize.videos import _unique_stems

SETTINGS = [
    "data.num_frames=4", "data.crop_size=32", "data.frame_stride=2", "data.batch_size=4",
    "data.num_workers=0", "model.size=tiny", "model.width=32", "model.depth=2", "model.heads=2",
    "model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1",
    "model.predictor_depth=1", "model.patch_size=8", "masking.mask_ratio=0.7", "optim.epochs=2",
    "optim.warmup_epochs=1", "run.device=cpu", "run.precision=float32",
]  # fmt: skip
PLAIN = ["loss.prediction=none", "masking.hard_ratio_end=0", "loss.normalize_targets=false"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_videos(folder, num_videos=8, size=32, num_frames=12, formats=["mp4"])
    return folder


@pytest.fixture(scope="module")
def mined(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(toy, tmp_path_factory.mktemp("mined") / "run")


@pytest.fixture(scope="module")
def plain(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(toy, tmp_path_factory.mktemp("plain") / "run", *PLAIN)


def train(toy: Path, run: Path, *settings: str) -> Path:
    places = [f"data.manifest={toy / 'manifest.csv'}", f"run.output_dir={run}"]
    assert pretrain(load_config(PretrainConfig, None, [*SETTINGS, *places, *settings]))
    return run


def video(toy: Path, name: str) -> Path:
    (path,) = (toy / "videos" / name).glob("*.mp4")
    return path


def test_clip_is_the_middle_of_the_video(tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", 41, size=(48, 64))
    config = PretrainConfig(data=DataConfig(num_frames=4, frame_stride=2, crop_size=16))
    clips, indices = read_clip(path, config)
    assert indices.tolist() == [16, 18, 20, 22] and clips.shape == (1, 3, 4, 16, 16)
    assert clips.min() >= 0 and clips.max() <= 1
    assert frame_numbers(clips[0].permute(1, 2, 3, 0) * 255) == [16, 18, 20, 22]
    uniform = replace(config, data=replace(config.data, sampling="uniform"))
    assert read_clip(path, uniform)[1].tolist() == [5, 15, 25, 35]
    with pytest.raises(VideoReadError, match="no such file"):
        read_clip(tmp_path / "none.mp4", config)


def test_outline_goes_round_the_chosen_cells() -> None:
    one = np.zeros((2, 3), dtype=bool)
    one[0, 1] = True
    lines = {tuple(map(tuple, line)) for line in outline(one, patch_size=4).tolist()}
    assert lines == {
        ((3.5, -0.5), (3.5, 3.5)), ((7.5, -0.5), (7.5, 3.5)),
        ((3.5, -0.5), (7.5, -0.5)), ((3.5, 3.5), (7.5, 3.5)),
    }  # fmt: skip
    assert len(outline(np.ones((2, 3), dtype=bool), patch_size=4)) == 10  # no lines inside
    assert outline(np.zeros((2, 3), dtype=bool), patch_size=4).shape == (0, 2, 2)


def test_heat_is_brighter_where_it_is_harder() -> None:
    frames = np.full((1, 8, 8, 3), 0.5, dtype=np.float32)
    image = heat(frames, np.array([[[0.0, 1.0], [0.5, 0.5]]]))
    assert image.shape == frames.shape and image.min() >= 0 and image.max() <= 1
    assert image[0, :4, :4].max() < image[0, :4, 4:, :2].min()
    assert (image[0, :4, :4] == image[0, 0, 0]).all()  # a token has one colour


def test_figure_takes_any_text(tmp_path: Path) -> None:
    rows = [Row("$\\frac a row $", np.zeros((2, 8, 8, 3), dtype=np.float32))]
    figure(rows, title="$x$ $\\bad", columns=["frame 0", "frame 2"]).savefig(tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[1] == 7 * 150


def test_names_are_unique() -> None:
    videos = ["a/x.mp4", "b/x.webm", "x_2.mp4", "X.mp4", "c/x.mp4"]
    assert _unique_stems(videos) == ["x", "x_2", "x_2_2", "X_3", "x_4"]


def test_rows_of_a_picture(mined: Path, plain: Path, toy: Path) -> None:
    labels = {}
    for run in (mined, plain):
        pretrained = load_pretrained(run)
        clip = read_clip(video(toy, "up"), pretrained.config)
        image, result = picture(pretrained, *clip, name="up")
        labels[run] = [axes.get_title("left") for axes in image.axes]
        assert (result.spearman is None) == (run == plain)
    starts = (
        "frames", "loss predicted by the teacher", "loss measured", "hard tubes", "a random mask",
        "reconstruction under that mask, from the model alone (", "adds the true mean and variance",
    )  # fmt: skip
    assert len(labels[mined]) == len(starts)
    for label, start in zip(labels[mined], starts, strict=True):
        assert label.startswith(start)
    # Plain VideoMAE with pixel targets: nothing is predicted, nothing is flattered.
    assert [label.split()[0] for label in labels[plain]] == [
        "frames", "loss", "hard", "a", "reconstruction"
    ]  # fmt: skip
    assert labels[plain][1].startswith("loss measured")
    assert labels[plain][2].endswith("by the loss measured, as there is no predictor")
    assert labels[plain][4].endswith("from the model alone")


def test_page(mined: Path, toy: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<script>$x$ & \n.mp4"
    odd.write_bytes(video(toy, "left").read_bytes())
    broken = tmp_path / "broken <b>.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "new" / "out"
    page, results = visualize(mined, [video(toy, "up"), broken, odd], out, device="cpu")

    assert page == out / "index.html"
    assert sorted(path.suffix for path in out.iterdir()) == [".html", ".png", ".png"]
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].png is None and results[0].png == out / f"{video(toy, 'up').stem}.png"
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 2 and "<script" not in text
    assert "&lt;script&gt;$x$ &amp; \\n.mp4" in text
    assert "broken &lt;b&gt;.mp4: " in text and "<b>" not in text
    assert "Step 4" in text and "mask_ratio: 0.7" in text
    assert f"{results[0].rank_accuracy:.3f}" in text
    assert "http" not in re.sub('base64,[^"]*', "", text)  # pictures may spell it by chance

    first = results[0].png.read_bytes()
    _, again = visualize(mined, [video(toy, "up")], out, device="cpu")
    assert again[0] == results[0] and results[0].png.read_bytes() == first
    _, other = visualize(mined, [video(toy, "up")], out, device="cpu", seed=1)
    assert other[0].rank_accuracy != results[0].rank_accuracy


def test_plain_checkpoint_says_what_is_shown(plain: Path, toy: Path, tmp_path: Path) -> None:
    page, (result,) = visualize(plain, [video(toy, "up")], tmp_path, device="cpu")
    assert result.rank_accuracy is None and result.png is not None
    text = page.read_text(encoding="utf-8")
    assert "plain VideoMAE" in text and "<table>" not in text


def test_mistakes_are_one_line(mined: Path, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    # Known before any work: the checkpoint is not even looked at.
    for folder, what in ((file, "is a file"), (file / "below", r"lies under a file \(.*\)")):
        with pytest.raises(ValueError, match=rf"^output_dir \(.*\) {what}: must be a folder$"):
            visualize(tmp_path / "none.pt", [video(toy, "up")], folder, device="cpu")
    videos = [video(toy, "up"), tmp_path / "no\nne.mp4"]
    with pytest.raises(FileNotFoundError, match=r"^video \(.*no\\nne.mp4\) does not exist$"):
        visualize(tmp_path / "none.pt", videos, tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match=r"^output_dir \(/proc/x\): .+; must be writable$"):
        visualize(mined, [video(toy, "up")], "/proc/x", device="cpu")
    with pytest.raises(ValueError, match=r"videos \(none\) must name"):
        visualize(mined, [], tmp_path, device="cpu")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        visualize(tmp_path / "none.pt", [video(toy, "up")], tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match=r"^seed \(-1\) must be in \[0, "):
        visualize(mined, [video(toy, "up")], tmp_path / "out", seed=-1, device="cpu")
    assert not (tmp_path / "out").exists()


def test_other_files_of_the_same_names_stay(plain: Path, toy: Path, tmp_path: Path) -> None:
    chosen = video(toy, "up")
    for name in ("index.html", f"{chosen.stem}.png"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("<!doctype html><title>My page</title>")
        with pytest.raises(ValueError, match=r"^output_dir \(.*\) must be a new file or one of"):
            visualize(plain, [chosen], folder, device="cpu")
        assert os.listdir(folder) == [name] and "My page" in (folder / name).read_text()
    for _ in range(2):  # ours may be replaced
        visualize(plain, [chosen], tmp_path / "ours", device="cpu")


def test_a_device_that_is_not_there_is_called_as_its_option(plain: Path, toy: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    with pytest.raises(ValueError, match=r"^device \(cuda\) needs a CUDA device"):
        visualize(plain, [video(toy, "up")], "out", device="cuda")


def test_without_a_readable_video_there_is_no_page(
    mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path in broken:
        path.write_bytes(b"no video")
    out = tmp_path / "out"
    arguments = ["visualize", str(mined), *map(str, broken), "-o", str(out), "--device", "cpu"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and not list(out.iterdir())
    *reasons, last = captured.err.splitlines()
    assert last == "hpm-video visualize: no video could be read: no page is written"
    assert reasons == [
        f"unreadable: {path}: is not a video, or its header is damaged" for path in broken
    ]


def test_paths_that_are_wrong_are_the_users_mistake(
    mined: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line, before anything is made."""
    file, good = tmp_path / "file", str(video(toy, "up"))
    file.touch()
    for videos, out, words in (
        ([good, str(tmp_path / "gone.mp4")], tmp_path / "out", "gone.mp4) does not exist"),
        ([good], file, "file) is a file: must be a folder"),
    ):
        assert main(["visualize", str(mined), *videos, "-o", str(out), "--device", "cpu"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("hpm-video visualize: ") and words in line
    assert os.listdir(tmp_path) == ["file"]
