"""What a job asks of the cluster: a group ``slurm`` of the YAML, and options of `submit`.

It is no group of the job itself: where a run goes on must not show in its config.yaml. Values are
texts, as typed, until they are checked: YAML would read 12:30:00 as a number of base 60.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from hpm_video.config.schema import check_settings, describe_settings, setting
from hpm_video.config.settings import read_group
from hpm_video.slurm.times import minutes_of

GROUP = "slurm"

# What sbatch is told by options and settings of our own, or by submitit for its own use.
_NOT_EXTRA = {
    "array", "output", "error", "signal", "open_mode", "requeue", "no_requeue", "wrap", "chdir",
}  # fmt: skip


@dataclass(frozen=True)
class SlurmConfig:
    nodes: int = setting(1, "machines")
    gpus_per_node: int | None = setting(
        None, "each has a process of its own; default: 1, of data jobs 0"
    )
    tasks_per_node: int | None = setting(
        None, "processes of a node; default: one for each GPU, or one"
    )
    cpus_per_task: int | None = setting(
        None, "cores of a process; default: its loader workers and one"
    )
    mem: str | None = setting(None, "memory of a node, as 400G; 0: all of it")
    time: str = setting("1-00:00:00", "limit; a run saves before it, and goes on in a new turn")
    partition: str | None = setting(None, "queue to wait in")
    account: str | None = setting(None, "who pays")
    qos: str | None = setting(None, "quality of service")
    constraint: str | None = setting(None, "features that nodes must have, as a100")
    array: str | None = setting(
        None, "N parts of `data transcode` or `bench ablation`; %M: at most M at once"
    )
    dependency: str | None = setting(None, "what to wait for, as afterok:JOBID")
    comment: str | None = setting(None, "shown by squeue and sacct")
    max_timeouts: int = setting(100, "time limits after which the job goes on")
    signal_delay_s: int = setting(120, "seconds before the time limit at which it is told to save")
    setup: list[str] = setting([], "shell commands before it; may be repeated")
    extra: list[str] = setting([], "key=value, or key: other options of sbatch")

    def __post_init__(self) -> None:
        lowest = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1}
        for name, low in {**lowest, "max_timeouts": 0, "signal_delay_s": 1}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{GROUP}.{name} ({value}) must be at least {low}")
        minutes = minutes_of(self.time, name=f"{GROUP}.time")
        if self.signal_delay_s >= minutes * 60:
            raise ValueError(
                f"{GROUP}.signal_delay_s ({self.signal_delay_s}) must be less than {GROUP}.time "
                f"({self.time})"
            )
        if self.mem is not None and not re.fullmatch(r"\d+[KMGT]?B?", self.mem, re.IGNORECASE):
            raise ValueError(f"{GROUP}.mem ({self.mem}) must be a number and K, M, G or T, as 400G")
        if self.array is not None and not re.fullmatch(r"([1-9]\d*)?(%[1-9]\d*)?", self.array):
            raise ValueError(f"{GROUP}.array ({self.array}) must be N, N%M or %M")
        for item in fields(self):
            values = getattr(self, item.name)
            for text in values if isinstance(values, list) else [values]:
                if isinstance(text, str) and ("\n" in text or not text):
                    raise ValueError(f"{GROUP}.{item.name} ({text}) must be one line of text")
        self.extras()

    @property
    def array_size(self) -> tuple[int | None, int | None]:
        """How many parts are asked for, and how many tasks may run at once; None: not said."""
        parts, _, at_once = (self.array or "").partition("%")
        return int(parts) if parts else None, int(at_once) if at_once else None

    def extras(self) -> dict[str, str | bool]:
        """``extra`` by the names that submitit uses; True for an option without a value."""
        ours = {item.name for item in fields(self)} | {"ntasks_per_node"}
        found: dict[str, str | bool] = {}
        for text in self.extra:
            key, equals, value = text.lstrip("-").partition("=")
            name = key.replace("-", "_")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or (equals and not value):
                raise ValueError(f"{GROUP}.extra ({text}) must be an option of sbatch: key=value")
            if name in ours:
                option = "tasks_per_node" if name == "ntasks_per_node" else name
                raise ValueError(f"{GROUP}.extra ({text}) must be given as {GROUP}.{option}")
            if name in _NOT_EXTRA:
                raise ValueError(f"{GROUP}.extra ({text}) must be left to hpm-video submit")
            found[name] = value if equals else True
        return found


@dataclass(frozen=True)
class SubmitConfig:
    """What `submit` reads of a YAML; the other groups are the job's."""

    slurm: SlurmConfig = field(default_factory=SlurmConfig)


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting, ``--gpus-per-node`` for ``gpus_per_node``."""
    group = parser.add_argument_group(
        "what to ask of the cluster", "also a group slurm of the YAML"
    )
    for known in describe_settings(SlurmConfig):
        is_list = known.default == "[]"
        default = "" if is_list or known.default == "null" else f" (default {known.default})"
        group.add_argument(
            "--" + known.key.replace("_", "-"),
            action="append" if is_list else "store",
            metavar={"extra": "KEY=VALUE", "setup": "COMMAND"}.get(known.key, "X"),
            help=(known.meaning + default).replace("%", "%%"),
        )


def slurm_config(path: str | Path | None, arguments: argparse.Namespace) -> SlurmConfig:
    """Defaults < group ``slurm`` of the YAML at ``path`` < options that were given.

    Raises ValueError, one line, for an unknown key or a value that does not fit.
    """
    values: Any = {} if path is None else read_group(path, GROUP)
    kinds = get_type_hints(SlurmConfig)
    if isinstance(values, Mapping):
        given = {name: getattr(arguments, name) for name in kinds}
        values = {**values, **{name: value for name, value in given.items() if value is not None}}
        values = {
            name: [value] if isinstance(value, str) and kinds.get(name) == list[str] else value
            for name, value in values.items()
        }
    check_settings(SubmitConfig, {GROUP: values})
    typed: dict[str, Any] = {
        name: int(value) if value is not None and kinds[name] in (int, int | None) else value
        for name, value in values.items()
    }
    return SlurmConfig(**typed)
