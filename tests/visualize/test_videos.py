"""Pictures of a checkpoint: which frames, what is drawn, and the page with all of it."""

import ast
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from numbered_videos import Recipe, write_video
from PIL import Image
from videos import frame_numbers, write_indexed_video

import hpm_video
from hpm_video.cli.main import main
from hpm_video.config import DataConfig, FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict, load_config
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.data.video.crops import resize_crop, view_crops
from hpm_video.data.video.frames import VideoReadError, read_frames
from hpm_video.evaluate import mining_quality as mining
from hpm_video.evaluate.pretrained import load_pretrained, reconstruct
from hpm_video.method.masking import make_mask
from hpm_video.method.sources import motion_scores
from hpm_video.models.build import build
from hpm_video.models.tokens import patchify
from hpm_video.train.pretrain import pretrain
from hpm_video.visualize import (
    Row,
    View,
    figure,
    heat,
    outline,
    picture,
    read_clip,
    visualize,
    watch,
    write_film,
)
from hpm_video.visualize.figures import drawable
from hpm_video.visualize.films import film_frames
from hpm_video.visualize.video_page import Asked
from hpm_video.visualize.videos import _unique_stems
from hpm_video.visualize.windows import read_window, window_indices
from hpm_video.weights.checkpoint import write_checkpoint

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


def test_pictures_are_of_pixels_as_the_model_saw_them(tmp_path: Path) -> None:
    """Resized as in training, and not otherwise for the eye."""
    path = write_video(tmp_path / "noise", Recipe("mp4", "libx264", 5, size=(48, 64)))
    frames = read_frames(path, [2])
    (box,) = view_crops(48, 64, num_crops=1)
    crops = {}
    for antialias in (True, False):
        data = DataConfig(num_frames=1, crop_size=20, num_workers=0, antialias=antialias)
        crops[antialias] = resize_crop(frames, box, 20, antialias=antialias).numpy()
        clip, indices = read_clip(path, PretrainConfig(data=data))
        assert indices.tolist() == [2]
        np.testing.assert_allclose(clip[0].permute(1, 2, 3, 0) * 255, crops[antialias], atol=1e-3)
        window = read_window(path, np.array([2]), data, View())
        np.testing.assert_array_equal(window.crops[0], crops[antialias])
    assert np.abs(crops[True].astype(int) - crops[False]).max() > 8


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
    assert _unique_stems(["a/Index.mp4"]) == ["Index_2"]


def test_rows_of_a_picture(mined: Path, plain: Path, toy: Path) -> None:
    labels = {}
    for run in (mined, plain):
        tubes = hpm_video.hard_tubes(run, video(toy, "up"), device="cpu")
        image = picture(tubes, title="up")
        labels[run] = [axes.get_title("left") for axes in image.axes]
        assert (tubes.spearman is None) == (run == plain)
    starts = (
        "the video", "predicted loss", "frame differences", "codec motion vectors",
        "measured loss", "hard tubes", "random mask",
        "reconstruction under this mask, by the model alone (", "with the true mean and variance",
    )  # fmt: skip
    assert len(labels[mined]) == len(starts)
    for label, start in zip(labels[mined], starts, strict=True):
        assert label.startswith(start)
    # Plain VideoMAE with pixel targets: nothing is predicted, nothing is flattered.
    assert len(labels[plain]) == len(starts) - 2  # nothing is predicted, nothing is flattered
    assert labels[plain][3].startswith("measured loss")
    assert labels[plain][4].endswith("hides first, by measured loss")
    assert labels[plain][6].endswith("by the model alone")


def test_hard_tubes_of_a_video(mined: Path, tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", 41, size=(48, 64))
    tubes = hpm_video.hard_tubes(mined, path, device="cpu")
    assert tubes.frames.shape == (4, 48, 64, 3) and tubes.frames.dtype == np.uint8
    assert tubes.indices.tolist() == frame_numbers(tubes.frames) == [16, 18, 20, 22]
    assert tubes.place == (0, 0.125, 1, 0.75) and tubes.crop.shape == (4, 32, 32, 3)
    assert tubes.scores.shape == tubes.mask.shape == tubes.hard.shape == (2, 4, 4)
    # 0.7 of 16 tubes are masked, half of these by score
    per_tube = tubes.scores.mean(axis=0)
    assert tubes.mask[0].sum() == 11 and (tubes.mask[0] == tubes.mask[1]).all()
    assert set(np.flatnonzero(tubes.hard[0])) == set(np.argsort(-per_tube.ravel())[:5])
    assert (tubes.mask | ~tubes.hard).all()
    # The scorer and the student see what pre-training would show them
    pretrained = load_pretrained(mined)
    clips, _ = read_clip(path, pretrained.config)
    assert np.allclose(
        tubes.predicted.ravel(), mining.predicted_loss(pretrained, clips, num_views=4), atol=1e-5
    )
    mask = next(mining.even_masks(pretrained, clips, num_masks=1, seed=0))
    for true_statistics, pixels in ((False, tubes.honest), (True, tubes.flattering)):
        other = reconstruct(pretrained, clips, mask, true_statistics=true_statistics)
        assert np.abs(pixels / 255 - other[0].permute(1, 2, 3, 0).numpy()).max() < 0.6 / 255
    share = tubes.measured[tubes.hard].sum() / tubes.measured.sum()
    assert tubes.covered(tubes.hard) == pytest.approx(share, rel=1e-5)
    whole = hpm_video.hard_tubes(mined, path, device="cpu", whole_frame=True)
    assert whole.place == (0, 0, 1, 1) and np.abs(whole.crop.astype(int) - tubes.crop).max() < 9


def test_hard_tubes_are_those_of_the_source_that_masked(toy: Path, tmp_path: Path) -> None:
    """Of a run with masks by motion, with and without a predictor."""
    video = toy / (toy / "manifest.csv").read_text().splitlines()[1].split(",")[0]
    for name, settings in (
        ("predicts", ()),
        ("plain", ("loss.prediction=none",)),
    ):
        run = train(toy, tmp_path / name, "masking.source=motion", *settings)
        tubes = hpm_video.hard_tubes(run, video, device="cpu")
        pretrained = load_pretrained(run)
        clips, _ = read_clip(video, pretrained.config)
        motion = motion_scores(patchify(clips, tubes.grid), tubes.grid, tubelet_size=2)
        assert (tubes.predicted is None) == (name == "plain")
        assert tubes.scored_by == "motion" and tubes.hard_ratio == 0.5
        assert np.allclose(tubes.scores.ravel(), motion, atol=1e-6)
        per_tube = tubes.scores.mean(axis=0).ravel()
        # 11 of 16 tubes are masked, half of these by score
        assert set(np.flatnonzero(tubes.hard[0])) == set(np.argsort(-per_tube)[:5])
        _, (result,) = visualize(run, [video], tmp_path / f"{name}_pages", device="cpu")
        page = result.page.read_text()
        assert '"scoredBy":"motion"' in page.replace(" ", "")
        assert '<option value="motion">frame differences</option>' in page
    # Random masks go by nothing: then the loss measured says what would be hard
    run = train(toy, tmp_path / "none", "masking.source=none", "loss.prediction=none")
    tubes = hpm_video.hard_tubes(run, video, device="cpu")
    assert tubes.scored_by == "measured" and tubes.hard_ratio == 0.5


def test_hard_tubes_of_a_run_with_blocks_are_blocks(toy: Path, tmp_path: Path) -> None:
    """Those with the highest scores of the blocks that its mask draws, and not single tubes."""
    video = toy / (toy / "manifest.csv").read_text().splitlines()[1].split(",")[0]
    run = train(toy, tmp_path / "run", "masking.source=motion", "masking.pattern=blocks")
    tubes = hpm_video.hard_tubes(run, video, device="cpu")
    scores = torch.from_numpy(tubes.scores).reshape(1, -1)
    made = make_mask(
        scores, tubes.grid, tubes.masking, hard_ratio=0.5, batch_size=1,
        generator=torch.Generator().manual_seed(tubes.seed),
    )  # fmt: skip
    assert tubes.masking.pattern == "blocks" and tubes.hard.any()
    assert np.array_equal(tubes.hard.ravel(), made.hard[0].numpy())
    assert np.array_equal(tubes.mask.ravel(), made.mask[0].numpy())


def test_windows_side_by_side() -> None:
    data = DataConfig(num_frames=4, frame_stride=2)
    whole = View(whole_video=True)
    for length in (4, 7, 8, 23, 41):
        indices = window_indices(length, data, whole)
        assert indices.max() == length - 1 if length >= 7 else indices.tolist() == [[0, 2, 3, 3]]
        if length >= 7:
            assert (np.diff(indices, axis=1) == 2).all() and (np.diff(indices[:, 0]) <= 8).all()
    assert window_indices(41, data, whole)[:2].tolist() == [[0, 2, 4, 6], [8, 10, 12, 14]]
    few = window_indices(41, data, View(whole_video=True, max_windows=3))
    assert len(few) == 3 and few[0, 0] == 0 and few[-1, -1] == 40


def test_a_whole_video_is_stitched_in_time(mined: Path, tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", 21, size=(48, 64))
    pretrained = load_pretrained(mined)
    film = watch(pretrained, path, view=View(whole_video=True, num_crops=2), num_masks=1)
    assert [len(crops) for crops in film.windows] == [2, 2, 2]
    shown = [film.windows[w][0].frames[t] for w, t in film.timeline()]
    # The last window ends at the end; what it shares with the one before is shown once
    assert frame_numbers(np.stack(shown)) == [*range(0, 16, 2), 16, 18, 20]
    for tubes in film.windows[1]:  # each clip is asked about by itself
        clips = torch.from_numpy(tubes.crop).permute(3, 0, 1, 2)[None] / 255
        alone = mining.predicted_loss(pretrained, clips, num_views=4)
        assert np.allclose(tubes.predicted.ravel(), alone, atol=1e-5)


def test_a_gif_of_a_long_film_leaves_pictures_out(
    mined: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lasts as long as before, and is in its own colours."""
    film = watch(load_pretrained(mined), video(toy, "up"), view=View(), num_masks=1)
    lasts, colours = [], []
    for most, expected in ((160, 4), (3, 2)):
        monkeypatch.setattr("hpm_video.visualize.videos.MOST_GIF_PICTURES", most)
        write_film(film, Asked("a", 0, "", 1), tmp_path / "a", ["gif"])
        with Image.open(tmp_path / "a.gif") as gif:
            assert gif.n_frames == expected
            lasts.append(sum(gif_time(gif, number) for number in range(expected)))
            gif.seek(0)
            colours.append(np.asarray(gif.convert("RGB")).astype(int))
    assert lasts[0] == pytest.approx(lasts[1], rel=0.05)
    assert np.abs(colours[0] - next(film_frames(film))).mean() < 6


def gif_time(gif: Image.Image, number: int) -> int:
    """How long a picture is shown, in milliseconds."""
    gif.seek(number)
    return int(gif.info["duration"])


def test_pages(mined: Path, toy: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<script>$x$ & \n.mp4"
    odd.write_bytes(video(toy, "left").read_bytes())
    broken = tmp_path / "broken <b>.mp4"
    broken.write_bytes(b"no video")
    short = write_indexed_video(tmp_path / "short.mp4", 3)
    named = tmp_path / "index.mp4"
    named.write_bytes(odd.read_bytes())
    no_text = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))  # a name that is not UTF-8
    no_text.write_bytes(odd.read_bytes())
    out = tmp_path / "new" / "out"
    videos = [video(toy, "up"), broken, odd, short, named, no_text]
    page, results = visualize(mined, videos, out, device="cpu")

    assert page == out / "index.html"
    stem = video(toy, "up").stem
    assert {path.name for path in out.iterdir()} == {"index.html"} | {
        f"{name}.{end}"
        for name in (stem, odd.stem, "index_2", no_text.stem)
        for end in ("html", "png", "mp4", "gif")
    }
    assert [result.error for result in results] == [
        None, "is not a video, or its header is damaged", None,
        "too short: has 3 frames, a clip needs 4", None, None,
    ]  # fmt: skip
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 4 and "<script" not in text
    assert 'href="%FF.html"' in text
    assert "&lt;script&gt;$x$ &amp; \\n.mp4" in text
    assert 'href="%3Cscript%3E%24x%24%20%26%20%0A.html"' in text
    assert ">broken &lt;b&gt;.mp4</span>: is not" in text and "broken <b>" not in text
    # Short names: the whole path is where one points
    said = re.sub(r' title="[^"]*"|<pre.*', "", text, flags=re.DOTALL)
    assert str(tmp_path) not in said and str(mined) not in said
    assert "step 4" in text and "mask_ratio: 0.7" in text
    assert f"{results[0].rank_accuracy:.2f}<" in text
    for file in (page, results[0].page):
        said = re.sub(r'http-equiv|base64,[^"]*', "", file.read_text(encoding="utf-8"))
        assert "http" not in said  # pictures may spell it by chance

    first = (out / f"{stem}.png").read_bytes()
    _, again = visualize(mined, [video(toy, "up")], out, device="cpu")
    assert again[0] == results[0] and (out / f"{stem}.png").read_bytes() == first
    _, other = visualize(mined, [video(toy, "up")], out, device="cpu", seed=1, formats=[])
    assert other[0].rank_accuracy != results[0].rank_accuracy


def test_plain_checkpoint_says_what_is_shown(plain: Path, toy: Path, tmp_path: Path) -> None:
    page, (result,) = visualize(plain, [video(toy, "up")], tmp_path, device="cpu", formats=[])
    assert result.rank_accuracy is None and result.page is not None
    for file in (page, result.page):
        assert "plain VideoMAE" in file.read_text(encoding="utf-8")


def test_assets_come_with_the_package() -> None:
    """An install copies what setup.py names, and nothing else beside the code."""
    root = Path(hpm_video.__file__).parent
    setup = ast.parse((root.parent / "setup.py").read_text(encoding="utf-8"))
    (call,) = [node for node in ast.walk(setup) if isinstance(node, ast.keyword)
               and node.arg == "package_data"]  # fmt: skip
    named = ast.literal_eval(call.value)
    copied = {"hpm_video/py.typed"}
    for package in root.rglob("__init__.py"):
        for pattern in (*named[""], *named.get(package.parent.name, ())):
            copied |= {
                path.relative_to(root.parent).as_posix() for path in package.parent.glob(pattern)
            }
    there = {
        path.relative_to(root.parent).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert named["hpm_video"] == ["py.typed"] and copied == there
    assert {Path(name).suffix for name in copied} == {
        *(".html", ".css", ".js", ".typed"),
        *(".mp4", ".safetensors"),  # the demo's clip and model
    }


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
    with pytest.raises(ValueError, match=r"^output_dir \(/proc/x\) must be writable: .+$"):
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
        with pytest.raises(
            ValueError, match=r"^output_dir \(.*\) must be a new file or one that"
        ) as caught:
            visualize(plain, [chosen], folder, device="cpu")
        assert str(caught.value).endswith(f"or choose another place: -o {folder}_2")
        assert os.listdir(folder) == [name] and "My page" in (folder / name).read_text()
    for _ in range(2):  # ours may be replaced
        visualize(plain, [chosen], tmp_path / "ours", device="cpu")


def test_a_device_that_is_not_there_is_called_as_its_option(plain: Path, toy: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    with pytest.raises(ValueError, match=r"^--device \(cuda\) needs a CUDA device"):
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
    assert last == "hpm-video visualize: no video could be read, so no page was written"
    assert reasons == [
        f"unreadable: {path}: is not a video, or its header is damaged" for path in broken
    ]


def test_a_folder_of_videos_in_any_script_is_shown_without_warnings(
    plain: Path, toy: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (folder := tmp_path / "videos" / "class").mkdir(parents=True)
    for name in ("開く.mp4", "düne.mp4"):
        shutil.copy(video(toy, "up"), folder / name)
    shown = ["--num-masks", "1", "--device", "cpu", "--formats", "png"]
    place = str(tmp_path / "videos")
    assert main(["visualize", str(plain), place, "-o", str(tmp_path / "out"), *shown]) == 0
    assert sorted(file.name for file in (tmp_path / "out").glob("*.png")) == [
        "düne.png",
        "開く.png",
    ]
    assert not [str(each.message) for each in recwarn if "Glyph" in str(each.message)]
    assert drawable("düne 開.mp4") == "düne □.mp4"


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


def test_each_source_scores_the_clip_that_is_shown(mined: Path, tmp_path: Path) -> None:
    """Of a square on a still ground, what needs no model says that the square is hardest."""
    path = tmp_path / "a.mp4"
    ground = np.random.default_rng(0).integers(0, 120, (48, 64, 3))
    square = np.random.default_rng(1).integers(130, 255, (14, 14, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "60"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for number in range(24):
            frame = ground.astype(np.uint8).copy()
            frame[20:34, 8 + 2 * number :][:, :14] = square[:, : 56 - 2 * number]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    tubes = hpm_video.hard_tubes(mined, path, device="cpu")
    assert "codec" in tubes.others
    # The square's place in the crop (32 pixels for 48, 8 to the left cut off), at the middle
    middle = tubes.indices.mean()
    column = (8 + 2 * middle + 7 - 8) / 12
    for source in ("motion", "codec"):
        place = np.unravel_index(tubes.kinds[source].mean(axis=0).argmax(), (4, 4))
        assert abs(place[0] + 0.5 - 27 / 12) <= 1 and abs(place[1] + 0.5 - column) <= 1, source
    assert set(tubes.agreement) == {"predicted", "motion", "codec"}


def test_a_file_without_vectors_has_no_map_of_the_codec(mined: Path, tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a.mkv", 41, size=(48, 64), codec="ffv1")
    tubes = hpm_video.hard_tubes(mined, path, device="cpu")
    assert "codec" not in tubes.kinds and "motion" in tubes.kinds


def test_what_a_classifier_looks_at_stands_beside(
    toy: Path, mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [s for s in SETTINGS if s.startswith(("data.num_fr", "data.cr", "model.size"))]
    settings += ["model.width=32", "model.depth=2", "model.heads=2", "model.patch_size=8"]
    config = load_config(FinetuneConfig, None, ["data.manifest=none", *settings])
    state = {
        "kind": "finetune", "step": 1, "config": config_to_dict(config), "num_classes": 3,
        "model": build(config, num_classes=3).state_dict(), "classes": ["a", "b", "<c>"],
    }  # fmt: skip
    write_checkpoint(tmp_path / "classifier.pt", state)
    asked = ["visualize", str(mined), str(video(toy, "left")), "-o", str(tmp_path / "pictures")]
    assert main([*asked, "--formats", "png", "--class-name", "<c>"]) == 2
    assert "--class-name (<c>) must come with --classifier" in capsys.readouterr().err
    asked += ["--formats", "png", "--classifier", str(tmp_path / "classifier.pt")]
    assert main([*asked, "--class-name", "d"]) == 2
    assert "class (d) must be one of the classifier's 3: a, b, <c>" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()
    assert main([*asked, "--class-name", "<c>"]) == 0
    (page,) = (tmp_path / "pictures").glob("left*.html")
    text = page.read_text(encoding="utf-8")
    assert '"kinds":["predicted","motion","codec","rollout","relevance","measured"]' in text
    assert '"seenAs":["\\u003cc\\u003e",0.3' in text
    assert f'Class, according to <span title="{tmp_path / "classifier.pt"}">' in text
