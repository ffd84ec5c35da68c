"""Loggers of a run: TensorBoard, Weights & Biases, MLflow.

Each logger has its own thread behind a bounded queue, so it can never stop training. A logger that
fails or falls behind is off until the next start, which sends it what it lacks. `metrics.jsonl` is
the reference: a logger gets each step from it exactly once, so a killed and resumed run appears as
one run.
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
# Turns off the libraries' own telemetry
_QUIET = {
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true"},
}
_MOST_WAITING = 1000  # queued records and pictures; beyond that the logger counts as hung
PATIENCE_S = 20.0  # for all loggers at the end of a run, which a scheduler may be about to kill
_MOST_POINTS = 1000  # MLflow's limit per call
_MOST_TEXT = 500  # MLflow's limit for a setting, in characters
_PROJECT = "hpm_video"

# finished: all steps are done. stopped: another start will continue. failed: ended by an error.
End = Literal["finished", "stopped", "failed"]


class Point(NamedTuple):
    """A value of a curve at a step."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class About:
    """What loggers know about a run. start_step: step that this start continues from. settings:
    nested dicts. history: points logged up to that step."""

    folder: Path
    start_step: int
    settings: Mapping[str, Any]
    history: Sequence[Point]


class Logger:
    """Base class; methods run in the logger's thread. Only TensorBoard gets pictures and texts.

    latest: last logged step of a curve, by name; other curves have ``since``.
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
    """Event files in the folder tensorboard/; readers hide older events of later steps."""

    def __init__(self, about: About) -> None:
        super().__init__()
        folder, start = about.folder / "tensorboard", about.start_step
        if start and any(folder.glob("events.out.tfevents.*")):
            self.since = start
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else 0)

    def write(self, points: Sequence[Point]) -> None:
        for name, value, step in points:
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill would lose two minutes of events

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
    """Weights & Biases; offline in the folder wandb/ unless WANDB_MODE is set.

    An offline start cannot know what earlier ones wrote, so each writes the whole run from its
    first step; only the newest needs to be synced.
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
            allow_val_change=True,  # some settings may change between two starts
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(console="off", silent=True),  # keep the screen for our lines
        )
        self.since = self._run.step - 1  # step is the next one

    def write(self, points: Sequence[Point]) -> None:
        by_step: dict[int, dict[str, float]] = {}
        for name, value, step in points:
            by_step.setdefault(step, {})[name] = value
        for step in sorted(by_step):
            self._run.log(by_step[step], step=step)

    def close(self, end: End) -> None:
        self._run.finish(exit_code=int(end == "failed"))


class MLflow(Logger):
    """MLflow; in the run's own database mlflow.db unless MLFLOW_TRACKING_URI is set."""

    def __init__(self, about: About) -> None:
        super().__init__()
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        address, place, ours = os.environ.get("MLFLOW_TRACKING_URI"), None, run_id(about.folder)
        if not address:
            folder = about.folder.resolve()
            address, place = f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlflow").as_uri()
        for name in ("mlflow", "alembic"):  # they log every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = client = MlflowClient(tracking_uri=address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        with suppress(MlflowException):  # it exists, or another run is creating it
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
        for first in range(0, len(settings), 100):  # MLflow's limit per call
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
        if end != "stopped":  # a stopped run stays "running", as after a kill
            self._client.set_terminated(self._run, end.upper())


_LOGGERS: dict[str, Callable[[About], Logger]]
_LOGGERS = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


class Background:
    """Runs a logger in its own thread. ``problem``: why it is off, if it is."""

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
        """Queue a call of one of the logger's methods; never blocks."""
        try:
            self._queue.put_nowait((what, arguments))
        except queue.Full:
            self.problem = self.problem or f"does not keep up: {_MOST_WAITING} calls are queued"

    def close(self, end: End, *, until_s: float) -> None:
        """Let it finish, waiting at most until this value of `time.monotonic`."""
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
    """Raise ValueError if the package of a logger is missing."""
    for name in names:
        for module in _modules(name):
            spec = find_spec(module)
            if spec is None or spec.origin is None:  # a plain folder of that name
                raise ValueError(
                    f"run.loggers ({name}) needs the package {module}: "
                    f"pip install 'hpm_video[{name}]', or leave {name} out"
                )


def _modules(name: str) -> tuple[str, ...]:
    is_local = name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI")
    return (*_MODULES[name], *(("sqlalchemy", "alembic") if is_local else ()))


def run_id(folder: Path) -> str:
    """The run's id in loggers, created at its first start."""
    file = folder / ID_FILE
    if file.exists():
        found = read_text(file, most=4096).strip()
        if not re.fullmatch(r"[0-9a-z]{8,64}", found):
            raise ValueError(
                f"{file} must hold an id of 8 to 64 characters from 0-9 and a-z: remove it, and "
                "the next start makes a new one"
            )
        return found
    made = secrets.token_hex(8)
    write_atomically(file, [f"{made}\n"])
    return made


def _allowed(name: str) -> str:
    """A curve's name as MLflow accepts it."""
    return re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
