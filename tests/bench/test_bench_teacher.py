"""The comparison of sparse teachers with the literal one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from hpm_video.bench.report import Report
from hpm_video.bench.teacher import Candidate, _batches, _costs, bench_teacher, candidates
from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import to_clips
from hpm_video.evaluate.mining_quality import measured_loss
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.method.masking import unit_scores
from hpm_video.method.sources import motion_scores
from hpm_video.method.teacher import score_tokens
from hpm_video.models.hpm import HPM
from hpm_video.models.tokens import patchify
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
SMALL = {"num_clips": 6, "num_masks": 2, "rounds": 1, "batch_size": 4, "num_workers": 0}
VIEWS = ["tokens", "tubes", "frames", "spread"]


def _bench(checkpoints: list[Path], manifest: Path, **settings: Any) -> Report:
    asked = {"views": VIEWS, "token_ratios": [0.5], "draws": [1], "root": None, "device": "cpu"}
    listed = {"checkpoints": checkpoints, "manifest": manifest}
    return bench_teacher(**{**listed, **asked, **SMALL, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    """A run with the paper's predictor."""
    folder = tmp_path_factory.mktemp("encoded") / "run"
    assert main(pretrain_arguments(folder, "model.predictor_input=encoded")) == 0
    return folder


def test_the_literal_teacher_and_the_measured_loss_as_scipy_sees_them(
    encoded: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _bench([encoded], toy)
    rows = report.rows
    assert [(row["view"], row["token_ratio"]) for row in rows] == [
        *(("tokens", 1.0), ("tokens", 0.5), ("tubes", 0.5), ("frames", 0.5), ("spread", 0.5))
    ]
    literal = rows[0]
    assert literal["spearman_full"] == pytest.approx(1)
    assert literal["overlap"] == literal["multiply_adds"] == literal["time"] == 1
    assert {row["predictor_input"] for row in rows} == {"encoded"}
    assert [row["num_tokens"] for row in rows] == [32, 16, 16, 16, 16]
    assert literal["step"] == load_checkpoint(encoded)["step"] == 12
    assert capsys.readouterr().err == f"{encoded}: step 12\n"

    known = load_pretrained(encoded)
    assert known.scorer is not None
    expected = []
    batches = _batches(
        read_manifest(toy, labels=False),
        known.config.data,
        num_clips=6,
        batch_size=4,
        num_workers=0,
    )
    for number, frames in enumerate(batches):
        clips = to_clips(frames, "cpu")
        scores = score_tokens(known.scorer, clips, token_ratio=1, generator=torch.Generator())
        losses = measured_loss(known, clips, num_masks=2, seed=number)
        pair = [unit_scores(values, known.grid, 2).numpy() for values in (scores, losses)]
        expected += [scipy.stats.spearmanr(*clip).statistic for clip in zip(*pair, strict=True)]
    assert len(expected) == 6
    assert literal["spearman_measured"] == pytest.approx(np.mean(expected))
    for row in rows[1:]:
        assert row["spearman_full"] < 1
        assert row["multiply_adds"] < 1
        assert 0 <= row["overlap"] <= 1
        assert row["chance"] == pytest.approx(12 / 16)  # hard ratio 1 of 12 of 16 tubes
    assert report.settings["clips"] == 6
    assert "checkpoint" not in literal


def test_motion_is_compared_with_the_same_losses(encoded: Path, toy: Path) -> None:
    """Without a product, and without the teacher."""
    alone = _bench([encoded], toy, views=["spread"]).rows
    *rows, motion = _bench([encoded], toy, views=["spread"], sources=["motion"]).rows
    known = ("spearman_measured", "spearman_full", "overlap", "multiply_adds")
    assert [[row[name] for name in known] for row in rows] == [
        [row[name] for name in known] for row in alone
    ]
    assert motion["predictor_input"] == "motion" and motion["multiply_adds"] == 0
    assert motion["num_tokens"] == 32 and list(motion) == list(rows[0])
    pretrained = load_pretrained(encoded)
    expected = []
    batches = _batches(
        read_manifest(toy, labels=False),
        pretrained.config.data,
        num_clips=6,
        batch_size=4,
        num_workers=0,
    )
    for number, frames in enumerate(batches):
        clips = to_clips(frames, "cpu")
        patches = patchify(clips, pretrained.grid)
        scores = motion_scores(patches, pretrained.grid, tubelet_size=2)
        losses = measured_loss(pretrained, clips, num_masks=2, seed=number)
        pair = [unit_scores(values, pretrained.grid, 2).numpy() for values in (scores, losses)]
        expected += [scipy.stats.spearmanr(*clip).statistic for clip in zip(*pair, strict=True)]
    assert motion["spearman_measured"] == pytest.approx(np.mean(expected))


def test_rows_name_their_checkpoint_where_there_are_several(
    encoded: Path, pretrained: Path, toy: Path
) -> None:
    report = _bench([encoded, pretrained], toy, views=["spread"], num_clips=2, num_masks=1)
    assert report.settings["checkpoints"] == [str(encoded), str(pretrained)]
    names = [row["checkpoint"] for row in report.rows]
    assert names == 2 * [str(encoded)] + 2 * [str(pretrained)]


def test_the_command_prints_a_row_per_candidate(
    pretrained: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"bench teacher {pretrained} --manifest {toy} --clips 4 --masks 1 --rounds 1"
    assert main([*words.split(), *["--view", "spread", "--token-ratio", ".5", "--draws", "1"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bench teacher: ")
    assert [line.split()[1:4] for line in lines[3:5]] == [
        ["encoded", "tokens", "1"],
        ["encoded", "spread", "0.5"],
    ]


def test_multiply_adds_are_those_of_the_layers(encoded: Path) -> None:
    """Of two encoder blocks over what is seen and one predictor block over all tokens."""

    def block(tokens: int) -> int:  # width 32: q, k, v, projection, MLP; scores and their use
        return tokens * 32 * 32 * (4 + 8) + 2 * tokens * tokens * 32

    known = load_pretrained(encoded)
    clips = torch.rand(1, 3, 4, 32, 32)
    for ratio, draws, seen in ((1.0, 1, 32), (0.25, 1, 8), (0.25, 2, 8)):
        encoder = seen * (2 * 8 * 8 * 3) * 32 + 2 * block(seen) + seen * 32 * 32
        expected = draws * (encoder + block(32) + 32 * 32)
        _, work = _costs(known, [Candidate("tokens", ratio, draws)], clips, rounds=1)
        assert work == [expected]


def test_candidates_are_different_and_cheaper_than_the_literal_teacher(pretrained: Path) -> None:
    known = load_pretrained(pretrained)  # 2 time steps
    found = candidates(known.grid, ["frames", "spread"], [0.1, 0.5, 0.25], [1, 2])
    assert [(one.view, one.token_ratio, one.draws) for one in found] == [
        *(("tokens", 1.0, 1), ("frames", 0.5, 1), ("spread", 0.5, 1)),
        *(("spread", 0.25, 1), ("spread", 0.25, 2), ("spread", 0.1, 1), ("spread", 0.1, 2)),
    ]


def test_clips_are_of_readable_videos_and_the_others_named(
    pretrained: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = read_manifest(toy, labels=False)
    good = [paths.path(index) for index in range(3)]
    listed = pretrained.parent / "some.csv"
    listed.write_text("path\n" + "\n".join([good[0], "missing.mp4", *good[1:]]) + "\n")
    report = _bench([pretrained], listed, views=["tokens"], num_clips=3)
    assert report.settings["clips"] == 3
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"--clips \(4\) must be at most the 3 readable videos"):
        _bench([pretrained], listed, num_clips=4)
    assert "\nunreadable, left out: " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--clips \(5\) must be at most the 4 videos"):
        _bench([pretrained], listed, num_clips=5)
    with pytest.raises(ValueError, match=r"--clips \(0\) must be at least 1"):
        _bench([pretrained], listed, num_clips=0)
    with pytest.raises(ValueError, match=r"--batch-size \(0\) must be at least 1"):
        _bench([pretrained], listed, batch_size=0)


def test_a_checkpoint_without_a_predictor_is_refused_before_any_work(
    tmp_path: Path,
    pretrained: Path,
    toy: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = ("loss.prediction=none", "masking.hard_ratio_end=0", "optim.epochs=1")
    assert main(pretrain_arguments(tmp_path / "plain", *plain)) == 0
    monkeypatch.setattr(HPM, "forward", lambda *inputs: pytest.fail("must not run"))
    with pytest.raises(ValueError, match=r"plain: checkpoint must have a loss predictor") as caught:
        _bench([pretrained, tmp_path / "plain"], toy)
    assert "\n" not in str(caught.value)
