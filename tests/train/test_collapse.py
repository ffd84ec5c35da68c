"""A run whose encoder collapses says so, one that is well does not."""

from collections.abc import Callable
from pathlib import Path

from runs import run_until_stopped
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpm_video.cli.main import main
from hpm_video.train.run.collapse import COLLAPSED_BELOW
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
# A thousand times the learning rate that works: the encoder says the same of all tokens at once
COLLAPSES = ("optim.epochs=3", "optim.base_lr=64", "run.collapse_records=3")
WARNED = "warning: the encoder has collapsed: 3 records in a row"


def _texts(folder: Path) -> set[str]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert "pretrain/effective_rank" in events.Tags()["scalars"]
    return {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}


def _counts(folder: Path) -> list[int]:
    """For each record, how many in a row up to it show a collapse: from the records alone."""
    counts = [0]
    for record in read_records(folder):
        counts.append(counts[-1] + 1 if record["effective_rank"] < COLLAPSED_BELOW else 0)
    return counts[1:]


def test_a_collapse_is_warned_of_once(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    folder = tmp_path / "run"
    assert main(pretrain_arguments(folder, *COLLAPSES)) == 0
    counts = _counts(folder)
    assert counts[-1] > 3, "the run was meant to collapse"
    assert (folder / "log.txt").read_text().count(WARNED) == counts.count(3) > 0
    assert "warning/collapse" in _texts(folder)
    assert load_checkpoint(folder)["collapsed_records"] == counts[-1]


def test_a_healthy_run_is_not_warned_of(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    assert main(pretrain_arguments(tmp_path / "run", *COLLAPSES, "optim.base_lr=0.064")) == 0
    assert all(record["effective_rank"] > 4 for record in read_records(tmp_path / "run"))
    assert "collapsed" not in (tmp_path / "run" / "log.txt").read_text()
    assert "warning/collapse" not in _texts(tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")["collapsed_records"] == 0


def test_0_is_never(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    settings = (*COLLAPSES, "run.collapse_records=0")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    assert "collapsed" not in (tmp_path / "run" / "log.txt").read_text()


def test_records_are_counted_over_a_resume(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    """A stop between the records that would have been warned of together."""
    folder = tmp_path / "run"
    arguments = pretrain_arguments(folder, *COLLAPSES, "optim.base_lr=640")
    run_until_stopped(arguments, at=4)
    assert _counts(folder) == [1, 2]
    assert load_checkpoint(folder)["collapsed_records"] == 2
    assert WARNED not in (folder / "log.txt").read_text()
    assert main(arguments) == 0
    counts = _counts(folder)
    assert counts[:3] == [1, 2, 3]
    log = (folder / "log.txt").read_text()
    assert log.count(WARNED) == counts.count(3)
    assert log.index("step 6  ") < log.index(WARNED) < log.index("step 8  ")
