"""The resources that a job requests: the YAML's group ``slurm`` and the options of `submit`.

The group is not among the job's settings, as a run's config.yaml must not depend on where it
continues. Values stay text until they are checked, because YAML reads 12:30:00 as a number in
base 60.
"""

import argparse
import os
import re
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from hpm_video.config.schema import check_settings, describe_settings, setting
from hpm_video.config.settings import read_group
from hpm_video.runtime.files import printable
from hpm_video.slurm.times import minutes_of

GROUP = "slurm"

# Options that submit or submitit sets
_NOT_EXTRA = {
    "array", "output", "error", "signal", "open_mode", "requeue", "no_requeue", "wrap", "chdir",
}  # fmt: skip
_NOT_SRUN_EXTRA = {
    "output", "error", "open_mode", "unbuffered", "kill_on_bad_exit", "nodes", "ntasks",
    "ntasks_per_node", "cpus_per_task", "export", "chdir",
}  # fmt: skip
# Options that could be given by --extra before we had a setting of that name
_EXTRA_TOO = {"reservation", "container", "container_mounts"}


@dataclass(frozen=True)
class SlurmConfig:
    nodes: int = setting(1, "number of machines")
    gpus_per_node: str | None = setting(
        None, "GPUs per node, N or TYPE:N, with one process each; default 1, for data jobs 0"
    )
    tasks_per_node: int | None = setting(
        None, "processes per node; default one per GPU, or one without GPUs"
    )
    cpus_per_task: int | None = setting(
        None, "cores per process; default the number of its loader workers plus one"
    )
    mem: str | None = setting(None, "memory per node, for example 400G; 0 requests all of it")
    time: str = setting("1-00:00:00", "time limit; a run saves before it, is requeued and resumes")
    partition: str | None = setting(None, "queue to submit to")
    account: str | None = setting(None, "account to charge")
    qos: str | None = setting(None, "quality of service")
    constraint: str | None = setting(None, "features that nodes must have, for example a100")
    reservation: str | None = setting(None, "reservation to run in")
    array: str | None = setting(
        None, "split `data transcode` or `bench ablation` into N parts; %M runs at most M at once"
    )
    dependency: str | None = setting(None, "jobs to wait for, for example afterok:JOBID")
    comment: str | None = setting(None, "text that squeue and sacct show")
    max_timeouts: int = setting(100, "number of times that the job resumes after a time limit")
    signal_delay_s: int = setting(120, "seconds before the time limit at which the run must save")
    setup: list[str] = setting(
        [], "shell command to run before the job; if it fails, the job ends; may be repeated"
    )
    python: str | None = setting(
        None, "Python that runs the job; default this one, or python3 in a container"
    )
    container: str | None = setting(None, "image to run in, with pyxis, apptainer or singularity")
    container_mounts: list[str] = setting(
        [], "SRC:DST to mount in addition to the paths that the job names; may be repeated"
    )
    extra: list[str] = setting([], "another option for sbatch, key=value or key; may be repeated")
    srun_extra: list[str] = setting(
        [], "another option for srun, key=value or key; may be repeated"
    )

    def __post_init__(self) -> None:
        gpus = self.gpus_per_node
        if gpus is not None and not re.fullmatch(r"(-|[A-Za-z][\w.+-]*:)?\d+", gpus, re.ASCII):
            raise ValueError(
                f"{GROUP}.gpus_per_node ({gpus}) must be N or TYPE:N, for example 4 or a100:4"
            )
        lowest = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1}
        for name, low in {**lowest, "max_timeouts": 0, "signal_delay_s": 1}.items():
            value = self.num_gpus if name == "gpus_per_node" else getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{GROUP}.{name} ({value}) must be at least {low}")
        minutes = minutes_of(self.time, name=f"{GROUP}.time")
        if self.signal_delay_s >= minutes * 60:
            raise ValueError(
                f"{GROUP}.signal_delay_s ({self.signal_delay_s}) must be less than {GROUP}.time "
                f"({self.time})"
            )
        if self.mem is not None and not re.fullmatch(r"\d+[KMGT]?B?", self.mem, re.IGNORECASE):
            raise ValueError(
                f"{GROUP}.mem ({self.mem}) must be a number, optionally with K, M, G or T, for "
                "example 400G"
            )
        if self.array is not None and not re.fullmatch(r"([1-9]\d*)?(%[1-9]\d*)?", self.array):
            raise ValueError(f"{GROUP}.array ({self.array}) must be N, N%M or %M")
        for item in fields(self):
            values = getattr(self, item.name)
            for text in values if isinstance(values, list) else [values]:
                if isinstance(text, str):
                    # Commands may contain tabs
                    code = text.replace("\t", " ") if item.name == "setup" else text
                    check_line(f"{GROUP}.{item.name}", code)
        for command in self.setup:
            if (len(command) - len(command.rstrip("\\"))) % 2:
                raise ValueError(
                    f"{GROUP}.setup ({command}) must be a complete command: remove the backslash "
                    "at its end"
                )
        if self.container_mounts and self.container is None:
            mounts = " ".join(self.container_mounts)
            raise ValueError(f"{GROUP}.container_mounts ({mounts}) needs {GROUP}.container")
        self.extras()
        self.srun_options()
        self.interpreter()

    @property
    def num_gpus(self) -> int | None:
        """GPUs per node, of any type; None if not given."""
        return None if self.gpus_per_node is None else int(self.gpus_per_node.rpartition(":")[2])

    @property
    def array_size(self) -> tuple[int | None, int | None]:
        """Number of parts, and number of tasks that may run at once; None if not given."""
        parts, _, at_once = (self.array or "").partition("%")
        return int(parts) if parts else None, int(at_once) if at_once else None

    def extras(self) -> dict[str, str | bool]:
        """``extra`` with submitit's names; True for an option without a value."""
        ours = {item.name for item in fields(self)} | {"ntasks_per_node"}
        found: dict[str, str | bool] = {}
        for text in self.extra:
            name, value = _option(text, f"{GROUP}.extra", "sbatch")
            is_free = name in _EXTRA_TOO and (name != "reservation" or self.reservation is None)
            if name in ours and not is_free:
                option = "tasks_per_node" if name == "ntasks_per_node" else name
                raise ValueError(f"{GROUP}.extra ({text}) must be given as {GROUP}.{option}")
            if name in _NOT_EXTRA:
                raise ValueError(f"{GROUP}.extra ({text}) must be removed: submit sets this option")
            found[name] = value
        return found

    def srun_options(self) -> list[str]:
        """``srun_extra`` as options of srun."""
        options = []
        for text in self.srun_extra:
            name, value = _option(text, f"{GROUP}.srun_extra", "srun")
            if name in _NOT_SRUN_EXTRA or (self.container and name.startswith("container_")):
                raise ValueError(
                    f"{GROUP}.srun_extra ({text}) must be removed: submit sets this option"
                )
            option = "--" + name.replace("_", "-")
            options.append(option if value is True else f"{option}={value}")
        return options

    def interpreter(self) -> str | None:
        """``python``, made absolute if it is a path; unchanged with a container, where the path is
        inside the image."""
        if self.python is None or self.container is not None or os.sep not in self.python:
            return self.python
        if shutil.which(self.python) is None:
            raise ValueError(
                f"{GROUP}.python ({self.python}) must be a program: give the path of an "
                "interpreter, or a bare name for the job to find on its PATH"
            )
        return os.path.abspath(self.python)


def check_line(name: str, text: str) -> None:
    """Raise ValueError for an empty text, or one with line breaks or other control characters,
    which sbatch, a shell or a terminal would interpret."""
    if not text or any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text):
        raise ValueError(
            f"{name} ({printable(text)}) must be one line of text without control characters"
        )


def _option(text: str, setting_name: str, program: str) -> tuple[str, str | bool]:
    """Parse KEY=VALUE or KEY into a name with underscores and a value (True without one)."""
    key, equals, value = text.lstrip("-").partition("=")
    name = key.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or (equals and not value):
        raise ValueError(
            f"{setting_name} ({text}) must be the long name of an option of {program}: key=value "
            "or key"
        )
    return name, value if equals else True


@dataclass(frozen=True)
class SubmitConfig:
    """The part of a YAML that `submit` reads; the other groups belong to the job."""

    slurm: SlurmConfig = field(default_factory=SlurmConfig)


_METAVARS = {
    "setup": "COMMAND",
    "python": "PATH",
    "container": "IMAGE",
    "container_mounts": "SRC:DST",
    "extra": "KEY=VALUE",
    "srun_extra": "KEY=VALUE",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting, for example ``--gpus-per-node`` for ``gpus_per_node``."""
    group = parser.add_argument_group(
        "SLURM resources and options",
        "Options override the group slurm of the YAML. sbatch's variables, such as\n"
        "SBATCH_PARTITION, apply if neither sets a value.",
    )
    for known in describe_settings(SlurmConfig):
        is_list = known.default == "[]"
        default = "" if is_list or known.default == "null" else f" (default {known.default})"
        group.add_argument(
            "--" + known.key.replace("_", "-"),
            action="append" if is_list else "store",
            metavar=_METAVARS.get(known.key, "X"),
            help=(known.meaning + default).replace("%", "%%"),
        )


def read_given(path: str | Path | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings given in the group ``slurm`` of the YAML at ``path``, or as options.

    Options win. A null in the YAML counts as not given. Raises ValueError, one line, for an unknown
    key or a value of the wrong type.
    """
    values: Any = {} if path is None else read_group(path, GROUP)
    kinds = get_type_hints(SlurmConfig)
    if isinstance(values, Mapping):
        typed = {name: getattr(arguments, name) for name in kinds}
        values = {**values, **{name: value for name, value in typed.items() if value is not None}}
        values = {
            name: [value] if isinstance(value, str) and kinds.get(name) == list[str] else value
            for name, value in values.items()
        }
    check_settings(SubmitConfig, {GROUP: values})
    return {name: value for name, value in values.items() if value is not None}


def slurm_config(values: Mapping[str, Any]) -> SlurmConfig:
    """Build the config from the given settings and defaults for the rest; raises ValueError, one
    line, for an invalid value."""
    check_settings(SubmitConfig, {GROUP: dict(values)})
    kinds = get_type_hints(SlurmConfig)
    typed: dict[str, Any] = {
        name: int(value) if kinds[name] in (int, int | None) else value
        for name, value in values.items()
    }
    return SlurmConfig(**typed)
