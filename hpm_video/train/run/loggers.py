"""Where a run's numbers go beside its files: TensorBoard, Weights & Biases, MLflow.

Each logger lives in a thread of its own, behind a queue of bounded length: whatever it does, the
training goes on. One that fails, or that does not keep up, is off until the next start, which sends
it what it lacks. So a run is one continuous run through kills: `metrics.jsonl` is the truth, and a
logger takes from it the steps that it has not got, and no step twice.
"""

import importlib
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from hpm_video.runtime.files import write_atomically
from hpm_video.runtime.reading import read_text

ID_FILE = "logger_id.txt"  # in a run's folder

_MODULES = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow",)}
# Lest they tell their makers of every use
_QUIET = {
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true"},
}
_MOST_WAITING = 1000  # records and pictures; more is a logger that hangs
PATIENCE_S = 20.0  # for all loggers at the end of a run: a scheduler may be about to kill it
_MOST_POINTS = 1000  # of MLflow's in one call
_MOST_TEXT = 500  # characters of a setting in MLflow
_PROJECT = "hpm_video"

# finished: all steps are done. stopped: more are to come, in another start. failed: by an error.
End = Literal["finished", "stopped", "failed"]


class Point(NamedTuple):
    """A number of a step, by the name of its curve."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class About:
    """What loggers may know of a run. start_step: that it goes on from. settings: as nested dicts.
    history: what it has logged up to then."""

    folder: Path
    start_step: int
    settings: Mapping[str, Any]
    history: Sequence[Point]


class Logger:
    """What each of them does in its thread. What only TensorBoard shows, the others leave out.

    latest: the last step that is there already, by the name of the curve; ``since`` of all others.
    """

    def __init__(self) -> None:
        self.latest: dict[str, int] = {}
        self.since = -1

    def lacks(self, point: Point) -> bool:
        return point.step > self.latest.get(point.name, self.since)

    def write(self, points: Sequence[Point]) -> None:
        raise NotImplementedError

    def pictures(self, figures: Mapping[str, Figure], step: int) -> None:
        pass

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        pass

    def text(self, tag: str, text: str, step: int) -> None:
        pass

    def close(self, end: End) -> None:
        pass


class TensorBoard(Logger):
    """Event files in the folder tensorboard/; readers hide what they have of later steps."""

    def __init__(self, about: About) -> None:
        super().__init__()
        folder, start = about.folder / "tensorboard", about.start_step
        if start and any(folder.glob("events.out.tfevents.*")):
            self.since = start
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else 0)

    def write(self, points: Sequence[Point]) -> None:
        for name, value, step in points:
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # else the events of two minutes are lost in a kill

    def pictures(self, figures: Mapping[str, Figure], step: int) -> None:
        for tag, figure in figures.items():
            self._writer.add_figure(tag, figure, step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        for tag, tensor in values.items():
            self._writer.add_histogram(tag, tensor, step)

    def text(self, tag: str, text: str, step: int) -> None:
        self._writer.add_text(tag, text, step)

    def close(self, end: End) -> None:
        self._writer.close()


class Wandb(Logger):
    """Weights & Biases; without WANDB_MODE offline, into the folder wandb/.

    Nobody knows what an earlier start has left offline: each writes the whole run from its first
    step, so that the newest is all there is to send.
    """

    def __init__(self, about: About) -> None:
        super().__init__()
        import wandb

        mode = os.environ.get("WANDB_MODE") or "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=run_id(about.folder),
            name=os.environ.get("WANDB_NAME") or about.folder.resolve().name,
            dir=os.environ.get("WANDB_DIR") or str(about.folder),
            config=dict(about.settings),
            allow_val_change=True,  # of what may change between two starts
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(console="off", silent=True),  # what is on screen is ours
        )
        self.since = self._run.step - 1  # of its next step

    def write(self, points: Sequence[Point]) -> None:
        by_step: dict[int, dict[str, float]] = {}
        for name, value, step in points:
            by_step.setdefault(step, {})[name] = value
        for step in sorted(by_step):
            self._run.log(by_step[step], step=step)

    def close(self, end: End) -> None:
        self._run.finish(exit_code=int(end == "failed"))


class MLflow(Logger):
    """MLflow; without MLFLOW_TRACKING_URI a database of the run's own, the file mlflow.db."""

    def __init__(self, about: About) -> None:
        super().__init__()
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        address, place, ours = os.environ.get("MLFLOW_TRACKING_URI"), None, run_id(about.folder)
        if not address:
            folder = about.folder.resolve()
            address, place = f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlflow").as_uri()
        for name in ("mlflow", "alembic"):  # which tell of every table they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = client = MlflowClient(tracking_uri=address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        with suppress(MlflowException):  # it is there, or another run makes it at this moment
            client.create_experiment(name, artifact_location=place)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise ValueError(f"no experiment {name}")
        there = client.search_runs(
            [experiment.experiment_id], f"tags.`hpm_video.run` = '{ours}'", max_results=1
        )
        if there:
            self._run: str = there[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            for curve in there[0].data.metrics:
                steps = (entry.step for entry in client.get_metric_history(self._run, curve))
                self.latest[curve] = max(steps)
            return
        made = client.create_run(
            experiment.experiment_id,
            tags={"hpm_video.run": ours},
            run_name=about.folder.resolve().name,
        )
        self._run = made.info.run_id
        settings = [Param(key, str(v)[:_MOST_TEXT]) for key, v in _flat(about.settings) if str(v)]
        for first in range(0, len(settings), 100):  # as many as a call takes
            client.log_batch(self._run, params=settings[first : first + 100])

    def lacks(self, point: Point) -> bool:
        return super().lacks(point._replace(name=_allowed(point.name)))

    def write(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now_ms, step) for name, value, step in points]
        for first in range(0, len(metrics), _MOST_POINTS):
            self._client.log_batch(self._run, metrics=metrics[first : first + _MOST_POINTS])

    def close(self, end: End) -> None:
        if end != "stopped":  # then it is still running, as after a kill
            self._client.set_terminated(self._run, end.upper())


_LOGGERS: dict[str, Callable[[About], Logger]]
_LOGGERS = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


class Background:
    """A logger at work in a thread of its own. ``problem``: why it is off, once it is."""

    def __init__(self, name: str, about: About) -> None:
        self.name, self.problem = name, ""
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, args=(about,), daemon=True, name=name)
        try:
            for variable, value in _QUIET.get(name, {}).items():
                os.environ.setdefault(variable, value)
            for module in _modules(name):
                importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            self._fail(error)
        self._thread.start()

    def put(self, what: str, *arguments: Any) -> None:
        """Have a method of the logger called; never waits."""
        try:
            self._queue.put_nowait((what, arguments))
        except queue.Full:
            self.problem = self.problem or f"does not keep up: {_MOST_WAITING} calls wait"

    def close(self, end: End, *, until_s: float) -> None:
        """Have it finish, if it can up to a time of `time.monotonic`."""
        self.put("close", end)
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(max(0.0, until_s - time.monotonic()))
        if self._thread.is_alive():
            self.problem = self.problem or "had not finished when the run ended"

    def _work(self, about: About) -> None:
        if self.problem:
            return
        try:
            logger = _LOGGERS[self.name](about)
            logger.write([point for point in about.history if logger.lacks(point)])
            while not self.problem and (call := self._queue.get()) is not None:
                what, arguments = call
                if what == "write":
                    arguments = ([point for point in arguments[0] if logger.lacks(point)],)
                getattr(logger, what)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        self.problem = self.problem or f"failed ({type(error).__name__}: {first})"


def check_installed(names: Iterable[str]) -> None:
    """Raise ValueError where the package of a logger is missing."""
    for name in names:
        for module in _modules(name):
            spec = find_spec(module)
            if spec is None or spec.origin is None:  # a folder of that name is no package
                raise ValueError(
                    f"run.loggers ({name}) needs the package {module}: "
                    f"pip install 'hpm_video[{name}]', or leave {name} out"
                )


def _modules(name: str) -> tuple[str, ...]:
    is_local = name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI")
    return (*_MODULES[name], *(("sqlalchemy", "alembic") if is_local else ()))


def run_id(folder: Path) -> str:
    """By what others know the run of a folder; made at its first start."""
    file = folder / ID_FILE
    if file.exists():
        found = read_text(file, most=4096).strip()
        if not re.fullmatch(r"[0-9a-z]{8,64}", found):
            raise ValueError(f"{file} must hold 8 to 64 of 0-9 and a-z: is something else")
        return found
    made = secrets.token_hex(8)
    write_atomically(file, [f"{made}\n"])
    return made


def _allowed(name: str) -> str:
    """The name of a curve as MLflow takes it."""
    return re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
