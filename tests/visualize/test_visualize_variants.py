"""Pages of a checkpoint of every variant of the method, and of a model that has learnt nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.evaluate.pretrained import Pretrained
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import build_model, token_grid
from hpm_video.visualize import View, ask, watch
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
    grid = token_grid(config.model, num_frames=8, crop_size=32)
    torch.manual_seed(0)
    student = build_model(config.model, grid, predict_loss=config.loss.prediction != "none").eval()
    scorer = None if student.predictor is None else Teacher(student)
    return Pretrained(student, scorer, config, grid, step=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_page(name: str, toy_video: Path) -> None:
    pretrained = untrained(f"{LIST}:{name}")
    film = watch(pretrained, toy_video, view=View(), num_masks=1)
    ((tubes,),) = film.windows
    plain = name == "videomae"
    assert (tubes.predicted is None) == (tubes.spearman is None) == plain
    assert tubes.measured.shape == (4, 4, 4) and tubes.tube_length == pretrained.tube_length
    assert ("without a loss predictor" in video_page(film, Asked("a", 0, "", 1))) == plain


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
