"""Pictures of a run in progress: when, of what, what they show, and what they leave alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpm_video.cli.main import main
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.method.masking import make_mask
from hpm_video.method.sources import motion_scores
from hpm_video.models.tokens import patchify
from hpm_video.train.run import pictures as module
from hpm_video.train.run.logs import read_records
from hpm_video.train.run.pictures import draw_clips
from hpm_video.visualize import read_clip
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"images": 0, "histograms": 0}
    )
    found.Reload()
    return found


def untimed(folder: Path) -> list[dict[str, float]]:
    timing = {"clips_per_second", "data_wait_fraction"}
    return [{k: v for k, v in r.items() if k not in timing} for r in read_records(folder)]


def test_a_run_with_pictures_is_the_same_run(
    tmp_path: Path, pretrained: Path, pretrain_arguments: Arguments
) -> None:
    settings = ("run.picture_every=5", "model.drop_path=0.2", "teacher.token_ratio=0.5")
    assert main(pretrain_arguments(tmp_path / "with", *settings)) == 0
    assert main(pretrain_arguments(tmp_path / "without", *settings, "run.picture_every=0")) == 0
    assert untimed(tmp_path / "with") == untimed(tmp_path / "without")
    mine, theirs = (load_checkpoint(tmp_path / name) for name in ("with", "without"))
    for part in ("model", "teacher"):
        assert all(torch.equal(mine[part][name], theirs[part][name]) for name in mine[part])

    found = events(tmp_path / "with")
    assert found.Tags()["images"] == [f"clips/{k}" for k in (1, 2, 3, 4)]
    for tag in found.Tags()["images"]:
        assert [image.step for image in found.Images(tag)] == [5, 10, 12]
        assert len({image.encoded_image_string for image in found.Images(tag)}) == 3
    for tag in ("tubes/predicted_loss", "tubes/measured_loss"):
        counts = [histogram.histogram_value.num for histogram in found.Histograms(tag)]
        assert counts == [4 * 16] * 3  # tubes of four clips
    assert not events(tmp_path / "without").Tags()["images"]
    assert "pretrain/spearman" in found.Tags()["scalars"]


@pytest.mark.parametrize(
    "settings",
    [
        ("masking.hard_ratio_end=0", "loss.prediction=none"),
        ("masking.hard_ratio_end=0",),
        ("masking.source=motion",),
        ("masking.source=motion", "loss.prediction=none", "masking.pattern=blocks"),
        ("masking.source=measured",),
        ("masking.tube_length=1", "loss.normalize_targets=false", "run.precision=bfloat16"),
    ],
)
def test_every_variant_has_pictures(
    tmp_path: Path, pretrain_arguments: Arguments, settings: tuple[str, ...]
) -> None:
    arguments = pretrain_arguments(tmp_path / "run", *settings, "optim.epochs=1")
    assert main([*arguments, "run.picture_every=1000"]) == 0
    found = events(tmp_path / "run")
    assert [image.step for image in found.Images("clips/4")] == [6]  # the end
    has_predictor = "loss.prediction=none" not in settings
    assert ("tubes/predicted_loss" in found.Tags()["histograms"]) == has_predictor


@pytest.mark.parametrize("source", ["predicted", "motion", "measured", "none"])
def test_a_picture_shows_the_masks_of_the_run(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    drawn: list[dict[str, Any]] = []

    def spy(pretrained: object, clips: torch.Tensor, **given: Any) -> list[Figure]:
        drawn.append({**given, "clips": clips, "grid": pretrained.grid})
        return draw_clips(pretrained, clips, **given)

    monkeypatch.setattr(module, "draw_clips", spy)
    settings = (f"masking.source={source}", "optim.epochs=1", "run.picture_every=1000")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    (given,) = drawn
    motion = motion_scores(patchify(given["clips"], given["grid"]), given["grid"], tubelet_size=2)
    expected = {"motion": motion, "none": None}.get(source, given.get(source))
    assert given["hard_ratio"] == (0 if source == "none" else 1)
    assert (given["scores"] is None) == (expected is None)
    if expected is not None:
        torch.testing.assert_close(given["scores"], expected)


def test_an_unreadable_video_is_replaced_by_the_next_and_read_once(
    tmp_path: Path, toy: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(toy.parent, folder)
    names = [line.split(",")[0] for line in toy.read_text().splitlines()[1:]]
    (folder / names[1]).write_bytes(b"no video")
    read: list[str] = []

    def spy(path: str, config: object, **known: object) -> object:
        read.append(Path(path).name)
        return read_clip(path, config, **known)

    monkeypatch.setattr(module, "read_clip", spy)
    settings = (f"data.manifest={folder / toy.name}", "run.picture_every=4")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    assert read == [Path(name).name for name in names[:5]]
    found = events(tmp_path / "run")
    assert len(found.Tags()["images"]) == 4
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(f"unreadable, left out of the pictures: {folder / names[1]}") == 1


def test_a_picture_has_a_row_for_each_question(
    pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_pretrained(pretrained)
    clips = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = torch.rand(2, 32, generator=torch.Generator().manual_seed(1))
    drawn: list[list[module.Row]] = []

    def spy(rows: list[module.Row], **named: object) -> Figure:
        drawn.append(rows)
        return Figure()

    monkeypatch.setattr(module, "figure", spy)
    draw_clips(
        asked,
        clips,
        predicted=losses,
        measured=losses.flip(1),
        scores=losses,
        hard_ratio=0.5,
        titles=["one", "two"],
        frames=[np.arange(4), np.arange(4)],
    )
    chosen = make_mask(
        losses,
        asked.grid,
        asked.config.masking,
        hard_ratio=0.5,
        batch_size=2,
        generator=torch.Generator().manual_seed(0),
    )
    mask, hard = chosen.mask, chosen.hard
    for clip, rows in enumerate(drawn):
        frames, predicted, measured, masked, reconstruction = rows
        original = clips[clip].permute(1, 2, 3, 0).numpy()[[0, 2]]  # first frames of tubelets
        assert np.array_equal(frames.images, original)
        assert not np.array_equal(predicted.images, measured.images)
        cells = mask[clip].reshape(2, 4, 4).numpy().repeat(8, axis=1).repeat(8, axis=2)
        assert (masked.images[cells] == 0.5).all()
        assert np.array_equal(masked.images[~cells], original[~cells])
        assert masked.outlined is not None
        assert np.array_equal(masked.outlined, hard[clip].reshape(2, 4, 4).numpy())
        assert np.array_equal(reconstruction.images[~cells], original[~cells])
        assert not np.allclose(reconstruction.images[cells], original[cells])
