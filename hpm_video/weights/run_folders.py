"""Run folders, known by their config.yaml: kind, checkpoints, and the runs beside them.

Refusals name these as the way on. Nothing here reads a checkpoint or needs PyTorch.
"""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from hpm_video.config.settings import read_stored
from hpm_video.runtime.files import free_place, printable, shell_path
from hpm_video.runtime.lock import running_process

Kind = Literal["pretrain", "finetune"]
_MOST_LOOKED_AT = 1000  # entries of a folder where runs are looked for
_MOST_NAMED = 3


def kind_of(settings: Mapping[str, Any]) -> Kind:
    """The command of a run with these settings."""
    return "pretrain" if "masking" in settings else "finetune"


@dataclass(frozen=True)
class Run:
    """A run folder with its stored settings."""

    folder: Path
    settings: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        return kind_of(self.settings)

    @property
    def above(self) -> Path:
        """The folder that holds the run."""
        is_named = self.folder.name not in ("", "..")
        return (self.folder if is_named else Path(os.path.abspath(self.folder))).parent

    def setting(self, group: str, name: str) -> Any:
        """A stored setting; None if it is missing."""
        values = self.settings.get(group)
        return values.get(name) if isinstance(values, Mapping) else None

    def lists(self, name: str = "manifest", group: str = "data") -> list[str]:
        """The lists that a setting names, if all of them exist."""
        found = self.setting(group, name)
        lists = [str(path) for path in found] if isinstance(found, list) else []
        return lists if all(map(os.path.exists, lists)) else []

    @property
    def init(self) -> "Run | None":
        """The run whose weights this one began from."""
        init = self.setting("model", "init")
        return run_of(Path(init)) if isinstance(init, str) else None

    def saved(self) -> list[Path]:
        """Its checkpoints: the last, the best, then the others from the newest on."""
        folder = self.folder / "checkpoints"
        others = sorted(folder.glob("step_*"), reverse=True)
        found = (folder / "last", folder / "best.pt", *others)
        return [path for path in found if path.exists() and path.suffix != ".part"]

    def is_same(self, other: "Run | None") -> bool:
        return other is not None and os.path.realpath(self.folder) == os.path.realpath(other.folder)


def run_at(folder: Path) -> Run | None:
    """The run in a folder; None if it holds none."""
    with suppress(OSError, ValueError):
        settings = read_stored(folder / "config.yaml")
        if not {"masking", "model"}.isdisjoint(settings):
            return Run(folder, settings)
    return None


def run_of(place: Path) -> Run | None:
    """The run of a path: its folder, its checkpoints folder, or a checkpoint in that."""
    above = [path.parent for path in (place, *place.parents[:2]) if path.name == "checkpoints"]
    return next(filter(None, map(run_at, [place, *above])), None)


def runs_in(folder: Path, kind: str | None = None) -> list[Run]:
    """Runs directly in a folder, those with checkpoints first."""
    runs = filter(None, map(run_at, sorted(_folders(folder))))
    return sorted(
        (run for run in runs if kind in (None, run.kind)), key=lambda run: not run.saved()
    )


def runs_near(path: str | Path, *kinds: str) -> list[str]:
    """Folders of runs of some kinds, with a checkpoint, near a path that does not exist: in the
    first folder above it or in that one's folders, else beside these. Newest first; not all."""
    folder = next((one for one in Path(path).parents if one.is_dir()), Path())
    for start in (folder, folder.parent):
        inside = list(_folders(start))
        for places in (inside, [one for place in inside for one in _folders(place)]):
            runs = filter(None, map(run_at, places))
            found = [run.folder for run in runs if run.kind in kinds and run.saved()]
            if found:
                found.sort(key=lambda place: os.path.getmtime(place / "config.yaml"), reverse=True)
                return list(map(str, found[:_MOST_NAMED]))
    return []


def _folders(folder: Path) -> Iterator[Path]:
    """The folders in a folder. Nothing in the root, where a look may ask other hosts."""
    if os.path.abspath(folder) != os.path.abspath(os.sep):
        with suppress(OSError), os.scandir(folder) as entries:
            few = islice(entries, _MOST_LOOKED_AT)
            yield from (folder / entry.name for entry in few if entry.is_dir())


def check_kind_of_run(place: Path, kind: str, name: str) -> None:
    """Raise ValueError if ``place``, ``name`` in the message, is the folder of a run of another
    kind."""
    if (run := run_at(place)) is not None and run.kind != kind:
        raise ValueError(
            f"{name} must be of kind {kind}, not {run.kind}; {way_to_kind(place, kind)}"
        )


def without_checkpoint(place: Path, which: str, kind: str | None = None) -> str:
    """Refusal of a folder without the checkpoint ``which``: the ones to take, or how to get one.

    ``kind``: of the runs to name, if the folder is not a run but holds some.
    """
    said = f"checkpoint ({printable(str(place))}): the folder holds no {which}"
    if (run := run_of(place)) is None:
        for folder, where in ((place, "in"), (Run(place, {}).above, "beside")):
            if named := _named(runs_in(folder, kind)):
                return f"{said}; give a run {where} it: {named}"
        return said
    holder = running_process(run.folder)
    if there := run.saved():
        said += f" yet, as the run is still running ({holder})" if holder else ""
        return f"{said}; give {shell_path(there[0])}"
    said = f"checkpoint ({printable(str(place))}): the run has not saved a checkpoint yet"
    if holder:
        minutes = run.setting("run", "checkpoint_every_minutes")
        every = f"every {minutes:g} minutes, " if isinstance(minutes, int | float) else ""
        log = shell_path(run.folder / "log.txt")
        return (
            f"{said}, but is running ({holder}); it saves one {every}when it ends, and when it is "
            f"stopped (Ctrl-C); to see how far it is: tail {log}"
        )
    return f"{said}; to continue it: {_command_to_continue(run)}"


def _command_to_continue(run: Run) -> str:
    command = f"hpm-video {run.kind} {shell_path(run.folder / 'config.yaml')}"
    stored = run.setting("run", "output_dir")
    if os.path.realpath(str(stored)) != os.path.realpath(run.folder):  # moved, or relative
        command += f" {_setting('run.output_dir', run.folder)}"
    return command


def way_to_kind(place: Path, kind: str) -> str:
    """What to give instead of the checkpoint of a run of another kind than ``kind``.

    That is a run that belongs to it, else another one beside it, else a command to make one.
    """
    if (run := run_of(place)) is None:
        return f"make one: {_command_to_make(Run(place, {}), kind)}"
    beside = runs_in(run.above, kind)
    if kind == "pretrain":
        if (init := run.init) is not None and init.kind == kind:
            init = next(filter(init.is_same, beside), init)
            return f"give {shell_path(init.folder)}, from which it was fine-tuned"
        why = "the pre-training beside it"
    else:
        if from_it := [one for one in beside if run.is_same(one.init)]:
            return f"give {_named(from_it)}, which was fine-tuned from it"
        why = "fine-tuned, beside it"
    if beside:
        return f"give {_named(beside)} ({why})"
    return f"make one: {_command_to_make(run, kind)}"


def _named(runs: Sequence[Run]) -> str:
    return " or ".join(shell_path(run.folder) for run in runs[:_MOST_NAMED])


def _command_to_make(run: Run, kind: str) -> str:
    """The command that makes a run of ``kind`` from, or for, another one."""
    prepared = run.above / f"{kind}.yaml"  # as `hpm-video start` writes it
    with suppress(OSError, ValueError):
        settings = Run(run.above, read_stored(prepared))
        if run.is_same(settings.init) or (kind == "pretrain" and run.settings):
            return f"hpm-video {kind} {shell_path(prepared)}"
    words = [f"hpm-video {kind} own_videos"]
    lists = run.lists()
    if kind == "finetune":
        words.append(_setting("model.init", run.folder))
        lists = run.lists("train_manifest", "probe") or (lists if _is_labelled(lists) else [])
    named = lists[0] if len(lists) == 1 else f"[{','.join(lists)}]"
    missing = "LABELLED.csv" if kind == "finetune" else "LIST.csv"
    words.append(_setting("data.manifest", named if lists else missing))
    new = run.above / {"pretrain": "pretrained"}.get(kind, "finetuned")
    return " ".join([*words, _setting("run.output_dir", free_place(new) if new.exists() else new)])


def _is_labelled(lists: Sequence[str]) -> bool:
    # Only here: it takes longer than a refusal of settings, which imports this module
    from hpm_video.data.lists.rows import read_videos  # noqa: PLC0415

    with suppress(OSError, ValueError):
        return all(
            row.get("label", "").strip() not in ("", "-1")
            for path in lists
            for _, row in islice(read_videos(path), 1)
        )
    return False


def _setting(key: str, value: str | Path) -> str:
    return shlex.quote(f"{key}={value}")
