"""Pages of a checkpoint of every variant of the method, and of a model that has learnt nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from untrained_target import untrained_target

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.evaluate.pretrained import Pretrained, scorer_of
from hpm_video.method.teacher import teacher_of
from hpm_video.models.build import build
from hpm_video.visualize import View, ask, watch
from hpm_video.visualize.figures import picture
from hpm_video.visualize.films import GAP, film_frames, panel_size
from hpm_video.visualize.geometry import Place
from hpm_video.visualize.video_page import Asked, video_page
from hpm_video.visualize.windows import Window

LIST = Path(__file__).parents[2] / "configs" / "ablation" / "variants.yaml"
VARIANTS = sorted(yaml.safe_load(LIST.read_text())["variants"])
SMALL = [
    "data.num_frames=8", "data.frame_stride=1", "data.crop_size=32", "data.num_workers=0",
    "model.size=tiny", "model.width=32", "model.depth=2", "model.heads=2", "model.patch_size=8",
    "model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1",
    "masking.mask_ratio=0.7", "run.precision=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def toy_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_videos(folder, num_videos=1, size=32, num_frames=12, formats=["mp4"])
    (path,) = folder.rglob("*.mp4")
    return path


def untrained(file: str | None, *settings: str) -> Pretrained:
    config = load_config(PretrainConfig, file, [*SMALL, *settings])
    torch.manual_seed(0)
    frozen = None
    if config.loss.target == "frozen":
        config, frozen = untrained_target(config)
    student = build(config).requires_grad_(False).eval()
    teacher = teacher_of(student, config)
    scorer = scorer_of(student, teacher)
    return Pretrained(student, scorer, config, student.grid, 0, average=teacher, frozen=frozen)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_page(name: str, toy_video: Path) -> None:
    pretrained = untrained(f"{LIST}:{name}")
    film = watch(pretrained, toy_video, view=View(), num_masks=1)
    ((tubes,),) = film.windows
    plain = pretrained.config.loss.prediction == "none"
    assert (tubes.predicted is None) == (tubes.spearman is None) == plain
    assert tubes.measured.shape == (4, 4, 4) and tubes.tube_length == pretrained.tube_length
    page = video_page(film, Asked("a", 0, "", 1))
    assert ("without a loss predictor" in page) == plain
    # Of features there is no picture, but a word
    has_pixels = not name.startswith("target_")
    assert (tubes.honest is not None) == has_pixels
    assert ("features, not pixels" in page) == (not has_pixels)
    assert np.isfinite(tubes.measured).all() and tubes.measured.min() > 0
    rows = [axes.get_title(loc="left") for axes in picture(tubes, title="").axes]
    assert any(row.startswith("reconstruction") for row in rows) == has_pixels
    _, width = panel_size(film)
    count = 3 + (not plain) + has_pixels
    assert abs(next(film_frames(film)).shape[1] - (count * (width + GAP) - GAP)) <= 1


def test_an_honest_reconstruction_of_an_untrained_model_is_one_colour() -> None:
    """The form with true statistics paints the scene even so."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (4, 1, 4, 1, 4, 1, 3)).repeat(2, 1).repeat(8, 3).repeat(8, 5)
    crop = (scene.reshape(8, 32, 32, 3) + rng.integers(-9, 10, (8, 32, 32, 3))).clip(0, 255)
    frames = crop.astype(np.uint8)
    window = Window(frames, frames[None], (Place(0, 0, 1, 1),), np.arange(8))
    tubes = ask(untrained(None), window, num_masks=1)
    assert tubes.flattering is not None

    def colours(pictures: np.ndarray) -> np.ndarray:
        """The mean of every hidden token, (M, 3)."""
        tokens = pictures.reshape(4, 2, 4, 8, 4, 8, 3).mean(axis=(1, 3, 5))
        return np.asarray(tokens[tubes.random_mask])

    true = colours(frames)
    apart = true.std(axis=0).mean()
    assert colours(tubes.honest).std(axis=0).mean() < 0.1 * apart
    assert np.abs(colours(tubes.flattering) - true).mean() < 0.1 * apart
