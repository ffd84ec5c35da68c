"""The page through a training: which checkpoints, what is asked of them, and what is said."""

import base64
import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpm_video.cli.main import main
from hpm_video.data.loading.clip import read_clip
from hpm_video.evaluate import mining_quality as mining
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.visualize.training import visualize_training
from hpm_video.visualize.training_history import evenly, untrained
from hpm_video.visualize.training_page import knows_from, training_page
from hpm_video.weights.checkpoint import load_checkpoint, run_checkpoints

Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    """A run of 12 steps that kept a checkpoint of each."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    often = ("run.keep_checkpoints=0", "run.checkpoint_every_minutes=0")
    assert main(pretrain_arguments(folder, *often)) == 0
    return folder


@pytest.fixture(scope="module")
def videos(toy: Path) -> list[str]:
    lines = toy.read_text().splitlines()[1:3]
    return [str(toy.parent / line.split(",")[0]) for line in lines]


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_checkpoints_are_found_by_step_and_picked_evenly(kept: Path, tmp_path: Path) -> None:
    there = list(run_checkpoints(kept).values())
    assert [path.stem for path in there] == [f"step_{step:08d}" for step in range(1, 13)]
    assert list(run_checkpoints(kept / "checkpoints").values()) == there
    assert evenly(there, 20) == there and evenly(there, 12) == there
    assert [int(path.stem[5:]) for path in evenly(there, 4)] == [1, 5, 8, 12]
    assert evenly(there, 1) == [there[-1]]
    (tmp_path / "empty").mkdir()
    for folder, words in (("none", "does not exist"), ("empty", "holds no checkpoints/step_")):
        with pytest.raises(FileNotFoundError, match=words):
            run_checkpoints(tmp_path / folder)


def test_the_untrained_model_is_that_of_the_run(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """A run that never moves its weights ends with those it started with."""
    still = ("optim.base_lr=0", "optim.min_lr=0", "optim.warmup_lr=0", "run.seed=3")
    assert main(pretrain_arguments(tmp_path / "run", *still)) == 0
    state = load_checkpoint(tmp_path / "run")
    config = load_pretrained(tmp_path / "run").config
    before = torch.get_rng_state()
    start = untrained(config, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert start is not None and start.scorer is not None
    weights = start.student.state_dict()
    assert weights.keys() == state["model"].keys()
    assert all(torch.equal(weights[name], value) for name, value in state["model"].items())
    teacher = start.scorer.state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in state["teacher"].items())


def test_the_untrained_model_of_an_earlier_version_is_not_known(
    pretrained: Path, tmp_path: Path
) -> None:
    """Its settings do not say which first weights it had, as there was one rule."""
    state = load_checkpoint(pretrained, optimizer=True)
    del state["config"]["model"]["first_weights"]
    torch.save(state, tmp_path / "earlier.pt")
    assert untrained(load_pretrained(pretrained).config, "cpu") is not None
    assert untrained(load_pretrained(tmp_path / "earlier.pt").config, "cpu") is None


def test_each_moment_is_what_its_checkpoint_says(
    kept: Path, videos: list[str], tmp_path: Path
) -> None:
    command = ["visualize", str(kept), *videos, "--through-training", "--num-checkpoints", "4"]
    assert main([*command, "--num-masks", "3", "-o", str(tmp_path), "--device", "cpu"]) == 0
    data = data_of(tmp_path / "training.html")
    assert data["steps"] == [0, 1, 5, 8, 12]
    assert data["remade"] == [True, False, False, False, False]
    assert data["grid"] == [2, 4, 4] and len(data["clips"]) == 2
    with (tmp_path / "training.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(int(row["step"]), row["video"]) for row in rows] == [
        (step, video) for step in data["steps"] for video in videos
    ]
    for moment, step in enumerate(data["steps"][1:], start=1):
        asked = load_pretrained(kept / "checkpoints" / f"step_{step:08d}.pt")
        for place, video in enumerate(videos):
            clip, numbers = read_clip(video, asked.config)
            report = mining.measure_mining(asked, clip, num_masks=3, num_views=4, seed=0)
            given = data["clips"][place]
            for kind in ("measured", "predicted"):
                values = np.frombuffer(base64.b64decode(given[kind]), dtype="<f4").reshape(5, 32)
                assert np.allclose(values[moment], getattr(report, kind)[0], atol=1e-6)
            assert given["spearman"][moment] == pytest.approx(report.spearman)
            assert given["numbers"] == numbers.tolist() and len(given["frames"]) == 4
            row = rows[moment * 2 + place]
            assert float(row["rank_accuracy"]) == pytest.approx(report.rank_accuracy)
            assert float(row["measured_loss"]) == pytest.approx(report.measured.mean().item())
    text = (tmp_path / "training.html").read_text()
    assert "4 of the run&#39;s 12 checkpoints were measured" in text
    assert "Step 0 is not a checkpoint" in text and "Hard ratio" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_what_cannot_be_read_is_named_and_the_rest_is_done(
    kept: Path, videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(kept, run, symlinks=True)
    (run / "checkpoints" / "step_00000008.pt").write_bytes(b"no checkpoint")
    records = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(records[:-20])  # the last one is half written
    broken = tmp_path / "<b>.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "out"
    command = ["visualize", str(run), videos[0], str(broken), "--through-training", "-o", str(out)]
    few = ("--num-checkpoints", "4", "--num-masks", "2")
    assert main([*command, *few, "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "left out: step_00000008.pt: weights (" in said and "unreadable: " in said
    text = (out / "training.html").read_text()
    assert "step_00000008.pt</span>: weights (" in text
    assert "&lt;b&gt;.mp4</span>: is not a video" in text
    assert "Hard ratio" in text and 'data-last="10"' in text
    assert data_of(out / "training.html")["steps"] == [0, 1, 5, 12]
    os.remove(run / "metrics.jsonl")
    visualize_training(run, videos[:1], out, num_checkpoints=1, num_masks=1, device="cpu")
    assert "metrics.jsonl is missing" in (out / "training.html").read_text()
    assert data_of(out / "training.html")["steps"] == [0, 12]


def test_curves_of_a_run_whose_checkpoints_lie_in_its_history(
    pretrained: Path, videos: list[str], tmp_path: Path
) -> None:
    assert list(pretrained.glob("checkpoints/history/step_*.pt"))
    visualize_training(pretrained, videos[:1], tmp_path, num_masks=1, device="cpu")
    assert "From metrics.jsonl" in (tmp_path / "training.html").read_text()


def test_too_few_checkpoints_are_called_so(
    pretrained: Path, videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"  # as one that began before run.history_checkpoints
    shutil.copytree(pretrained, run, symlinks=True, ignore=shutil.ignore_patterns("history"))
    command = ["visualize", str(run), videos[0], "--through-training", "-o", str(tmp_path)]
    assert main([*command, "--num-masks", "2", "--device", "cpu"]) == 0
    assert "to show training" in capsys.readouterr().out
    text = (tmp_path / "training.html").read_text()
    assert "too few to show when the model learnt something" in text
    assert "Train with run.history_checkpoints=10" in text


def test_a_plain_run_shows_what_it_measures(
    tmp_path: Path, videos: list[str], pretrain_arguments: Arguments
) -> None:
    plain = ("masking.hard_ratio_end=0", "loss.prediction=none", "optim.epochs=1")
    assert main(pretrain_arguments(tmp_path / "run", *plain)) == 0
    page, history = visualize_training(tmp_path / "run", videos, tmp_path, device="cpu")
    text = page.read_text()
    assert history.moments[-1].predicted is None and data_of(page)["clips"][0]["predicted"] is None
    assert "plain VideoMAE" in text and "When does the predictor know" not in text
    assert '<option value="predicted">' not in text


def test_a_predictor_no_better_than_chance_knows_from_no_step(
    pretrained: Path, videos: list[str], tmp_path: Path
) -> None:
    """Whatever a clip's Spearman was once."""
    _, history = visualize_training(pretrained, videos[:1], tmp_path, num_masks=1, device="cpu")
    first, *rest = history.moments
    for last, knows in ((0.1, False), (0.6, True)):
        moments = [replace(first, spearman=np.array([0.7]))]
        moments += [replace(moment, spearman=np.array([last])) for moment in rest]
        text = training_page(replace(history, moments=moments), run="run", num_masks=1)
        assert "Spearman by step" in text
        for words in ("knows from", "class=best", "The predictor counts as knowing"):
            assert (words in text) == knows


def test_it_knows_from_when_it_is_near_its_best() -> None:
    assert knows_from(np.array([0.1, 0.5, 0.73, 0.6, 0.8])) == 2
    assert knows_from(np.array([0.1, 0.15, -0.2])) is None
    assert knows_from(np.array([0.9])) == 0


def test_mistakes_are_one_line(
    kept: Path, videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for run, given, more, words in (
        (tmp_path / "none", videos, [], f"checkpoint ({tmp_path / 'none'}) does not exist"),
        (kept, ["gone.mp4"], [], "VIDEO (gone.mp4) does not exist"),
        (kept, videos, ["--num-masks", "0"], "num_masks (0) must be at least 1"),
        (kept, videos, ["--num-checkpoints", "0"], "num_checkpoints (0) must be at least 1"),
        (kept, [], [], "VIDEO (none) must name at least one file"),
    ):
        command = ["visualize", str(run), *given, "--through-training", "-o", str(out), *more]
        assert main([*command, "--device", "cpu"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"hpm-video visualize: {words}")
    assert os.listdir(tmp_path) == []
    (tmp_path / "training.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"^output_dir \(.*training.csv\) must be a new file"):
        visualize_training(kept, videos, tmp_path, device="cpu")
