"""Runs a study, or what is left of it, alone or concurrently with other processes."""

import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from hpm_video.bench.study.calibration import calibrate, calibrated_cells, seconds_per_step
from hpm_video.bench.study.cell import (
    Stopped,
    check_cell,
    has_checkpoints,
    read_row,
    remove_checkpoints,
    run_cell,
)
from hpm_video.bench.study.cells import Cell, Study
from hpm_video.bench.study.few_labels import write_part
from hpm_video.config import StudyConfig
from hpm_video.config.settings import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    read_stored,
)
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import steps_per_epoch
from hpm_video.data.prepare.toy import first_videos, write_toy_videos
from hpm_video.runtime.files import make_folder, printable, write_atomically, writing
from hpm_video.runtime.lock import FolderInUse, lock_folder, unlock_folder

Say = Callable[[str], None]

_WAIT_S = 5.0
_EMPTIED = "empty it, and the next start writes it again"
# Settings of the whole study that must not change, as its tables would mix the results
_OF_ALL_CELLS = ("probes", "probe_every", "mining_videos", "clock")
# Files in the folder of a start that has not written study.yaml yet
_LEFTOVERS = re.compile(r"preparation|slurm|\.study\.yaml\..*|tmp.*")
# Errors with which a training may end: settings, files, numbers, PyTorch
_FAILURES = (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Outcome:
    """Outcome of one start. elsewhere: cells that other processes hold. is_stopped: by a signal."""

    failed: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    is_stopped: bool = False


def run_study(study: Study, *, part: tuple[int, int] = (1, 1), say: Say) -> Outcome:
    """Run the k-th of n parts of the cells.

    Any number of processes may share the cells: each runs those that are neither finished nor held
    by another. A cell that fails is reported, its traceback is kept in failed.txt, and the others
    still run.
    """
    _begin(study, say)
    cells = calibrated_cells(study)
    todo = []
    for cell in _of_part(cells, *part):
        if read_row(cell) is None:
            todo.append(cell)
        elif has_checkpoints(cell) and not study.config.keep_checkpoints:
            with _holding(cell.folder) as is_ours:
                if is_ours:
                    remove_checkpoints(cell)
    say(f"{len(cells)} cells, {len(todo)} of them to run here")
    failed: list[str] = []
    is_worth_it = True
    while todo and is_worth_it:
        is_worth_it, held = False, []
        for cell in todo:
            with _holding(cell.folder) as is_ours:
                if not is_ours:
                    held.append(cell)
                elif read_row(cell) is None:  # else another process has just finished it
                    is_worth_it = True  # look again: other processes may have ended meanwhile
                    try:
                        if not _run(cell, study, say):
                            failed.append(cell.name)
                    except Stopped:
                        return Outcome(tuple(failed), is_stopped=True)
        todo = held
    return Outcome(tuple(failed), tuple(cell.name for cell in todo))


def _of_part(cells: Sequence[Cell], part: int, num_parts: int) -> list[Cell]:
    """Every num_parts-th cell, shifted by one each round, so that parts mix the variants."""
    return [cell for k, cell in enumerate(cells) if (k + k // num_parts) % num_parts == part - 1]


def check_study(study: Study) -> None:
    """Raise ValueError if cells in the study's folder were run with other settings."""
    done = [cell for cell in calibrated_cells(study) if read_row(cell) is not None]
    if not done:
        return  # without rows, everything may change
    file = study.folder / "study.yaml"
    is_told = file.is_file() and file.stat().st_size > 0  # else rows are from another machine
    cells_before = _cells_of(file, study.folder) if is_told else {}
    for cell in done:
        check_cell(cell, study.config, before=cells_before.get(cell.name))
    if not is_told:
        return
    before, now = read_stored(file), config_to_dict(study.config)
    if any(name not in before for name in _OF_ALL_CELLS):
        raise ValueError(f"{file} is damaged: {_EMPTIED}")
    same = {name: (now[name], before[name]) for name in _OF_ALL_CELLS}
    if (few := now["few_labels"]) != before.get("few_labels", {}):
        same["few_labels"] = few, before.get("few_labels", {})
    for name in sorted({cell.data_set for cell in done} & before.get("sets", {}).keys()):
        same[f"sets.{name}.toy"] = now["sets"][name]["toy"], before["sets"][name]["toy"]
    for name, (value, used) in same.items():
        if used != value:
            rule = f"must stay {used}, which cells in --output-dir were run with"
            raise ValueError(f"{name} ({value}) {rule}: choose another folder")


def _cells_of(file: Path, folder: Path) -> dict[str, Cell]:
    """Name -> cell, according to the settings in a study's folder.

    Empty if files of settings that these name are missing, as on another machine.
    """
    try:
        config = config_from_dict(StudyConfig, read_stored(file))
        before = Study(config, home=folder, folder=folder)
        cells = calibrated_cells(before)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {_EMPTIED}") from error
    return {cell.name: cell for cell in cells}


def plan_study(study: Study, *, say: Say) -> None:
    """Prepare a study, and print how long pre-training of its cells takes by calibration."""
    _begin(study, say)
    cells, seconds, total_s = calibrated_cells(study), seconds_per_step(study), 0.0
    for cell in cells:
        config, a_step = cell.pretrain, seconds.get((cell.data_set, cell.variant))
        if config is None or a_step is None:
            continue
        videos = read_manifest(config.data.manifest, root=config.data.root, labels=False)
        optim, data = config.optim, config.data
        per_step = optim.total_batch or data.videos_at_once * optim.accumulation
        cell_s = cell.epochs * steps_per_epoch(len(videos), per_step) * a_step
        total_s += cell_s
        if cell.seed == 0:
            costs = f"{1000 * a_step:.0f} ms per step, {cell_s / 60:.1f} min of pre-training"
            say(f"{cell.name.removesuffix('/seed0')}: {cell.epochs} epochs, {costs}")
    total = f"{total_s / 3600:.1f} h of pre-training, plus fine-tuning and probes"
    say(f"{len(cells)} cells, {total}")


def _run(cell: Cell, study: Study, say: Say) -> bool:
    """Run a cell; False if it failed. Raises Stopped."""
    note, start = cell.folder / "failed.txt", time.monotonic()
    try:
        run_cell(cell, study.config)
    except _FAILURES as error:
        write_atomically(note, [traceback.format_exc()])
        say(f"failed: {cell.name}: {printable(f'{type(error).__name__}: {error}')}")
        return False
    note.unlink(missing_ok=True)
    say(f"done: {cell.name} in {(time.monotonic() - start) / 60:.1f} min")
    return True


def _claim(folder: Path) -> None:
    """Create the study's folder; raises ValueError if it holds other files."""
    make_folder(folder, name="--output-dir")
    others = [path for path in folder.iterdir() if not _LEFTOVERS.fullmatch(path.name)]
    if others and not (folder / "study.yaml").is_file():
        raise ValueError(
            f"--output-dir ({folder}) holds other files: must be empty or the folder of a study"
        )


def _begin(study: Study, say: Say) -> None:
    """Check and prepare the study, or wait until another process has done so."""
    study.cells()  # raises for invalid settings before anything is created
    study.check_lists()
    _claim(study.folder)
    check_study(study)
    for attempt in count():
        with _holding(study.folder / "preparation") as is_ours:
            if is_ours:
                _prepare(study, say)
                break
        if not attempt:
            say("waiting for another process, which is preparing the study")
        time.sleep(_WAIT_S)
    check_study(study)  # again, for cells at equal time, whose epochs are known now


def _prepare(study: Study, say: Say) -> None:
    """Write the settings, create toy videos and measure steps, unless already done."""
    file, text = study.folder / "study.yaml", config_to_yaml(study.config)
    if not file.is_file():
        write_atomically(file, [text])  # marks the folder as a study's
    for name, data_set in study.config.sets.items():
        toy = data_set.toy
        if not toy.unlabelled:
            _write_few_labels(study, name)
            continue
        folder = study.folder / "data" / name
        if not folder.is_dir():
            say(f"making toy videos of {name}: {toy.unlabelled} + {toy.held_out}")
        for part, number, seed in (("train", toy.unlabelled, 0), ("held_out", toy.held_out, 1)):
            frames = toy.num_frames
            try:
                write_toy_videos(
                    folder / part, num_videos=number, size=toy.size, num_frames=frames, seed=seed
                )
            except ValueError as error:
                raise ValueError(f"sets.{name}.toy: {error}") from error
        lists = study.lists[name]
        first_videos(Path(lists.pretrain[0]), Path(lists.train[0]), toy.labelled)
        _write_few_labels(study, name)
    calibrate(study, say)
    write_atomically(file, [text])


def _write_few_labels(study: Study, data_set: str) -> None:
    first = next(cell for cell in study.cells() if cell.data_set == data_set)
    for part in first.few:
        try:
            write_part(first.lists, part.manifest, part.count)
        except ValueError as error:
            raise ValueError(f"few_labels.{part.name}: {error} of sets.{data_set}") from error


@contextmanager
def _holding(folder: Path) -> Iterator[bool]:
    """Create a folder and lock it; yields False if another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    is_ours = True
    try:
        with writing(folder / "run.lock"):
            lock_folder(folder)
    except FolderInUse:
        is_ours = False
    try:
        yield is_ours
    finally:
        unlock_folder(folder)
