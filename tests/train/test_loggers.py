"""Loggers beside metrics.jsonl: one continuous run through kills, and nothing of theirs stops it.

Stand-ins for the packages are modules that write down what they are told.
"""

import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_same_run, run_until_stopped, untimed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpm_video.cli.main import main
from hpm_video.train.run import loggers
from hpm_video.train.run.logs import RunLog, read_records

Arguments = Callable[..., list[str]]
Curves = dict[str, list[tuple[int, float]]]

# Online, a server knows what it got; a kill is a run that never finishes
_WANDB = """
import json, os, time
from pathlib import Path
HERE = Path(__file__).parent
class Settings:
    def __init__(self, **settings): pass
class Run:
    def __init__(self, folder, id, mode):
        place = Path(folder, "wandb")
        place.mkdir(exist_ok=True)
        online = mode == "online"
        name = id if online else f"offline-{len(list(place.iterdir()))}-{id}"
        self.file = place / name
        rows = self.file.read_text().splitlines() if self.file.exists() else []
        self.step = json.loads(rows[-1])["step"] + 1 if rows else 0
    def log(self, values, step):
        if what := os.environ.get("FAKE_WANDB"):
            if what == "raises" and step > 4: raise RuntimeError("no network\\nat all")
            if what == "hangs": time.sleep(3600)
        assert step >= self.step, "a step that is there"
        self.step = step
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\\n")
    def finish(self, exit_code):
        pass
def init(*, project, id, name, dir, config, allow_val_change, mode, resume, settings):
    assert config["run"]["loggers"]
    return Run(dir, id, mode)
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its package."""
    (package := tmp_path / "packages" / "wandb").mkdir(parents=True)
    (package / "__init__.py").write_text(_WANDB)
    monkeypatch.syspath_prepend(package.parent)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def _truth(folder: Path) -> Curves:
    """What metrics.jsonl has of a pre-training, as curves."""
    curves: Curves = defaultdict(list)
    for record in read_records(folder):
        for name, value in record.items():
            if value is not None and name not in ("step", "epoch"):
                curves[f"pretrain/{name}"].append((int(record["step"]), value))
    return curves


def _rows(file: Path) -> Curves:
    """What the stand-in wrote down."""
    curves: Curves = defaultdict(list)
    for row in map(json.loads, file.read_text().splitlines()):
        step = row.pop("step")
        for name, value in row.items():
            curves[name].append((step, value))
    return curves


def _without_rates(curves: Curves) -> Curves:
    """Steps that are done again take another time."""
    return {n: of for n, of in curves.items() if not n.endswith(("_second", "_fraction"))}


def _turn_back(folder: Path, step: int) -> None:
    """As a kill before the later steps were saved."""
    checkpoints = folder / "checkpoints"
    for file in checkpoints.glob("step_*.pt"):
        if file.name > f"step_{step:08d}.pt":
            file.unlink()
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to(f"step_{step:08d}.pt")


def test_the_newest_offline_run_is_the_whole_one(
    tmp_path: Path, wandb: None, pretrain_arguments: Arguments
) -> None:
    folder = tmp_path / "run"
    command = pretrain_arguments(folder, "run.loggers=[wandb]")
    run_until_stopped(command, at=7)
    assert main(command) == 0
    first, second = sorted((folder / "wandb").iterdir())
    assert first.name[10:] == second.name[10:]  # one id
    assert [step for step, _ in _rows(first)["pretrain/loss"]] == [2, 4, 6, 8]
    assert _rows(second) == _truth(folder)
    assert not (folder / "tensorboard").exists()
    assert main(pretrain_arguments(tmp_path / "plain")) == 0
    assert_same_run(folder, tmp_path / "plain")


def test_what_a_server_has_is_not_sent_again(
    tmp_path: Path, wandb: None, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    folder = tmp_path / "run"
    often = ("run.keep_checkpoints=0", "run.checkpoint_every_minutes=0")
    command = pretrain_arguments(folder, "run.loggers=[wandb]", *often)
    assert main(command) == 0
    _turn_back(folder, 5)
    assert main(command) == 0
    (file,) = (folder / "wandb").iterdir()
    assert _without_rates(_rows(file)) == _without_rates(_truth(folder))


def test_an_error_is_one_warning(
    tmp_path: Path,
    wandb: None,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAKE_WANDB", "raises")
    folder = tmp_path / "run"
    assert main(pretrain_arguments(folder, "run.loggers=[tensorboard,wandb]")) == 0
    captured = capsys.readouterr()
    assert captured.out.count("run.loggers") == 1 and "Traceback" not in captured.err
    said = "warning: run.loggers: wandb failed (RuntimeError: no network); it stays off"
    assert said in captured.out
    assert len(read_records(folder)) == 6
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("pretrain/loss")] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("queue", "words"),
    [(1000, "had not finished when"), (2, "does not keep up: 2 calls are queued")],
)
def test_one_that_hangs_holds_up_nothing(
    tmp_path: Path,
    wandb: None,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    queue: int,
    words: str,
) -> None:
    monkeypatch.setenv("FAKE_WANDB", "hangs")
    monkeypatch.setattr("hpm_video.train.run.logs.PATIENCE_S", 0.1)
    monkeypatch.setattr(loggers, "_MOST_WAITING", queue)
    folder = tmp_path / "run"
    assert main(pretrain_arguments(folder, "run.loggers=[wandb]")) == 0
    assert len(untimed(folder)) == 6
    (warning,) = [n for n in (folder / "log.txt").read_text().splitlines() if "run.loggers" in n]
    assert f"wandb {words}" in warning


def test_one_that_is_added_later_gets_all(
    tmp_path: Path, wandb: None, pretrain_arguments: Arguments
) -> None:
    folder = tmp_path / "run"
    run_until_stopped(pretrain_arguments(folder, "run.loggers=[]"), at=7)
    assert main(pretrain_arguments(folder, "run.loggers=[tensorboard,wandb]")) == 0
    (file,) = (folder / "wandb").iterdir()
    assert _rows(file) == _truth(folder)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("pretrain/loss")] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("there", [False, True])
def test_a_package_that_is_missing_is_named_before_anything_is_made(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    there: bool,
) -> None:
    """A folder of its name, as its runs leave in the current one, is no package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *_paths_without("wandb")])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if there:
        (tmp_path / "wandb").mkdir()
    assert main(pretrain_arguments(tmp_path / "run", "run.loggers=[tensorboard,wandb]")) == 2
    error = capsys.readouterr().err
    assert "run.loggers (wandb) needs the package wandb: pip install 'hpm_video[wandb]'" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def _paths_without(package: str) -> list[str]:
    return [path for path in sys.path if not Path(path, package).is_dir()]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[wandb,wandb]", "must name each logger once"),
        ("[comet]", "must be one of tensorboard, wandb"),
    ],
)
def test_wrong_names(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    value: str,
    words: str,
) -> None:
    assert main(pretrain_arguments(tmp_path / "run", f"run.loggers={value}")) == 2
    assert words in capsys.readouterr().err


def test_a_run_that_was_copied_anew_has_another_id(tmp_path: Path) -> None:
    first = loggers.run_id(tmp_path)
    assert loggers.run_id(tmp_path) == first
    shutil.move(tmp_path / loggers.ID_FILE, tmp_path / "old")
    assert loggers.run_id(tmp_path) != first
    (tmp_path / loggers.ID_FILE).write_text("' OR 1=1")
    with pytest.raises(ValueError, match=r"logger_id.txt must hold an id of 8 to 64"):
        loggers.run_id(tmp_path)


def test_tensorboard_has_a_record_once_it_is_written(tmp_path: Path) -> None:
    """A kill takes nothing of it along."""
    (tmp_path / "tensorboard").mkdir()
    with RunLog(tmp_path, is_main=True, start_step=0, total_steps=2) as log:
        log.record({"step": 1, "loss": 0.5}, prefix="train")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
            if "train/loss" in events.Tags()["scalars"]:
                break
            time.sleep(0.05)
        assert [event.value for event in events.Scalars("train/loss")] == [0.5]


def test_mlflow_has_each_step_once(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill that lost steps of training, in a database in the run's folder, which moved."""
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a run"
    often = ("run.keep_checkpoints=0", "run.checkpoint_every_minutes=0")
    assert main(pretrain_arguments(folder, "run.loggers=[mlflow]", *often)) == 0
    _turn_back(folder, 5)
    folder = folder.rename(tmp_path / "moved")
    assert main(pretrain_arguments(folder, "run.loggers=[mlflow]")) == 0
    assert "run.loggers" not in (folder / "log.txt").read_text()
    client = tracking.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'hpm_video'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["optim.epochs"] == "2"
    found = {
        name: [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }
    assert _without_rates(found) == _without_rates(_truth(folder))
