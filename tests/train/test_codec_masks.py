"""Runs whose masks come from the motion vectors in the files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_together
from runs import run_until_stopped, untimed

from hpm_video.bench.steps import config_step, micro_batches_of
from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.runtime.distributed import World
from hpm_video.train.batch_size import step_memory
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
CODEC = ("masking.source=codec", "run.log_every=1", "loss.prediction=none")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder)
    assert state["teacher"] is None
    return dict(state["model"])


def test_a_stopped_run_continues_as_if_nothing_had_happened(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """With other numbers of workers, and crops on the device or not (of whole frames, unscaled)."""
    settings = (*CODEC, "masking.hard_ratio_start=0.5")
    for name, more in {"whole": (), "workers": ("data.num_workers=2",)}.items():
        assert main(pretrain_arguments(tmp_path / name, *settings, *more)) == 0
    arguments = pretrain_arguments(tmp_path / "run", *settings)
    run_until_stopped(arguments, at=7)
    assert main(arguments) == 0
    whole = _weights(tmp_path / "whole")
    for name in ("run", "workers"):
        assert untimed(tmp_path / name) == untimed(tmp_path / "whole")
        weights = _weights(tmp_path / name)
        assert not [key for key in whole if not whole[key].equal(weights[key])]
    records = read_records(tmp_path / "whole")
    assert [record["hard_share"] > 0 for record in records] == [True] * 12


def test_masks_follow_the_scores(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    """Which only decide where masks are not random, and not as another source does."""
    losses = {}
    for source in ("codec", "motion", "none"):
        settings = (*CODEC, f"masking.source={source}", "masking.hard_ratio_start=1")
        assert main(pretrain_arguments(tmp_path / source, *settings)) == 0
        losses[source] = [record["loss"] for record in read_records(tmp_path / source)]
    assert losses["codec"] != losses["none"] and losses["codec"] != losses["motion"]
    random = ("masking.hard_ratio_end=0", "run.log_every=1", "loss.prediction=none")
    for source in ("codec", "predicted"):
        name = f"random-{source}"
        assert main(pretrain_arguments(tmp_path / name, *random, f"masking.source={source}")) == 0
    mine, theirs = (untimed(tmp_path / f"random-{source}") for source in ("codec", "predicted"))
    assert mine == theirs


def test_pictures_show_the_scores_and_their_mask(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpm_video.train.run import pictures

    draw, seen = pictures.draw_clips, list[dict[str, Any]]()

    def spy(*given: Any, **named: Any) -> Any:
        seen.append(named)
        return draw(*given, **named)

    monkeypatch.setattr(pictures, "draw_clips", spy)
    settings = (*CODEC, "run.picture_every=6")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    assert len(seen) == 2 and [named["hard_ratio"] for named in seen] == [0.5, 1]
    for named in seen:
        assert (named["scores"].amax(dim=1) > 0).all() and named["predicted"] is None


@pytest.mark.parametrize("source", ["codec", "predicted"])
def test_benches_time_steps_with_scores(
    tmp_path: Path, toy: Path, pretrain_arguments: Arguments, source: str
) -> None:
    """What stands in for scores does not change what is minimised but by the mask."""
    settings = (f"masking.source={source}", "data.batch_size=4")
    arguments = pretrain_arguments(tmp_path / "run", *settings)
    config = load_config(PretrainConfig, arguments[1], arguments[2:])
    world = World(rank=0, size=1, device=torch.device("cpu"))
    (batch,) = micro_batches_of(config, world, 1)
    assert (batch.scores("cpu") is None) == (source == "predicted")
    step = config_step(config, lambda: batch.on("cpu", as_floats=False), world)
    assert step().isfinite()
    assert step_memory(config).per_clip > 0


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy videos of which each third group of 8 has no vectors."""
    folder = tmp_path_factory.mktemp("mixed")
    return write_toy_videos(folder / "toys", num_videos=24, size=32, num_frames=12)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without")
    return write_toy_videos(
        folder / "toys", num_videos=8, size=32, num_frames=12, formats=("webm",)
    )


def test_videos_without_vectors_are_said_and_counted(
    tmp_path: Path, pretrain_arguments: Arguments, mixed: Path
) -> None:
    settings = (*CODEC, f"data.manifest={mixed}", "optim.epochs=2", "data.decoder=decord")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert (
        "16 of the 48 clips come from videos without motion vectors: their masks are random" in log
    )
    assert log.count(": their masks are random") == 1
    lines = [line for line in log.splitlines() if "no motion vectors (vp9" in line]
    assert len(lines) == 1 and "hpm-video data transcode" in lines[0] and ".webm" in lines[0]
    assert "motion vectors, which only PyAV returns" in log


def test_videos_that_all_lack_vectors_are_refused(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    without: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (*CODEC, f"data.manifest={without}")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "masking.source" in x]
    assert "masking.source (codec) needs motion vectors" in line and "none of 8" in line
    assert not (tmp_path / "run").exists()  # no step was made
    assert "hpm-video data transcode" in line and "masking.source=motion" in line
    # What it says helps
    other = "masking.source=motion"
    assert main(pretrain_arguments(tmp_path / "run", *settings, other)) == 0


def test_a_few_videos_with_vectors_are_enough(
    tmp_path: Path, pretrain_arguments: Arguments, mixed: Path
) -> None:
    """Wherever they are in the list, and unreadable ones decide nothing."""
    lines = mixed.read_text().splitlines()
    without = [line for line in lines[1:] if ".webm" in line]
    (has,) = [line for line in lines[1:] if ".mp4" in line][:1]
    manifest = mixed.parent / "few.csv"
    (mixed.parent / "bad.mp4").write_bytes(b"no video")
    bad = has.replace(has.split(",")[0], "bad.mp4")
    manifest.write_text("\n".join([lines[0], bad, *without[:5], has, *without[5:7]]) + "\n")
    settings = (*CODEC, f"data.manifest={manifest}", "data.max_bad_fraction=0.5")
    assert main(pretrain_arguments(tmp_path / "run", *settings, "optim.epochs=1")) == 0


def test_two_processes_refuse_together_and_count_together(
    tmp_path: Path, pretrain_arguments: Arguments, mixed: Path, without: Path
) -> None:
    refused = pretrain_arguments(tmp_path / "refused", *CODEC, f"data.manifest={without}")
    runs = [
        pretrain_arguments(tmp_path / name, *CODEC, f"data.manifest={mixed}", *more)
        for name, more in {"ddp": (), "fsdp": ("run.parallel=fsdp",)}.items()
    ]
    for done in run_together(2, runs):
        assert done.returncode == 0, done.stderr
    for done in run_together(2, [refused]):
        assert done.returncode != 0
        assert "none of 8 videos from all over data.manifest" in done.stderr
    whole = pretrain_arguments(
        tmp_path / "whole", *CODEC, f"data.manifest={mixed}", "data.batch_size=8"
    )
    assert main(whole) == 0
    for name in ("ddp", "fsdp"):
        log = (tmp_path / name / "log.txt").read_text()
        assert "16 of the 48 clips come from videos without motion vectors" in log
        pairs = zip(read_records(tmp_path / name), read_records(tmp_path / "whole"), strict=True)
        for one, other in pairs:
            assert one["hard_share"] == other["hard_share"]
            assert one["loss"] == pytest.approx(other["loss"], rel=2e-4)
