"""Parses the command line of a job to submit, checks it in advance, and splits it into tasks."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hpm_video.cli import options
from hpm_video.cli.options import is_setting, parse
from hpm_video.config import (
    EvaluateConfig,
    FeaturesConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeJobConfig,
)
from hpm_video.config.recipe import find_recipe
from hpm_video.config.settings import load_config
from hpm_video.data.lists.places import is_shards, list_exists, list_root
from hpm_video.runtime.files import similar_path
from hpm_video.slurm.options import check_line
from hpm_video.slurm.sweep import combinations
from hpm_video.weights.hub import OF_HUB

# Jobs that can be submitted -> schema of their settings
JOBS: dict[str, type[Any] | None] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "predict": EvaluateConfig,
    "probe": ProbeJobConfig,
    "features": FeaturesConfig,
    "data": None,
    "bench": None,
}
# Sub-commands that can be submitted, and jobs that an array can split into parts
_KINDS = {"data": ("check", "transcode"), "bench": ("ablation",)}
_SPLIT = ("data transcode", "bench ablation")

# Settings that name files which must exist before the job starts
_INPUTS = (
    "data.manifest", "data.val_manifest", "model.init", "run.resume", "probe.train_manifest",
    "probe.val_manifest", "loss.target_model", "loss.target_weights", "encoder.weights",
)  # fmt: skip
_NO_FILE = ("timm:", OF_HUB)  # prefixes of values that are not files
# Arguments that name such files
_INPUT_ARGUMENTS = ("checkpoint", "manifest", "train", "val", "video", "videos")


@dataclass(frozen=True)
class Task:
    """One task of a job.

    arguments: of hpm-video. label: how it differs from the other tasks. output: where a job without
    a run folder writes, if known.
    """

    arguments: tuple[str, ...]
    run_folder: str | None
    label: str = ""
    output: str | None = None


@dataclass(frozen=True)
class Command:
    """The command line of one job. place: index of the word that is its YAML file, if any."""

    job: str
    words: tuple[str, ...]
    namespace: argparse.Namespace
    place: int | None = None

    @property
    def yaml(self) -> str | None:
        """Its YAML file of settings, if any."""
        return getattr(self.namespace, "config", None)

    @property
    def name(self) -> str:
        """Name with sub-command: pretrain, data transcode."""
        kinds = (getattr(self.namespace, name, None) for name in ("data_job", "bench"))
        return " ".join([self.job, *filter(None, kinds)])


@dataclass(frozen=True)
class Plan:
    """A checked job, ready to submit.

    loader_workers, videos_per_step: per process, if known. total_batch: videos per step over all
    processes, if set. inputs: existing files and folders that the command and its settings name.
    runs: settings of each run, for jobs that are runs.
    """

    command: Command
    tasks: tuple[Task, ...]
    run_folder: str | None = None
    loader_workers: int | None = None
    videos_per_step: int | None = None
    total_batch: int | None = None
    inputs: tuple[str, ...] = ()
    runs: tuple[Any, ...] = ()


class Parser(options.Parser):
    """Raises ValueError, one line, instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_command(words: Sequence[str]) -> Command:
    """Parse a job's own command line; raises ValueError if it cannot be submitted."""
    from hpm_video.cli import main

    job, *rest = words or [""]
    if job not in JOBS:
        raise ValueError(f"job ({job}) must be one of {', '.join(JOBS)}")
    parser = Parser(prog=f"hpm-video {job}", add_help=False, allow_abbrev=False)
    main.command_of(job).add_arguments(parser)
    try:
        namespace = parse(parser, rest)
    except ValueError as error:
        raise ValueError(f"{job}: {error}") from error
    words, config_place = list(words), None
    for argument, kind in (("config", job), ("study", "ablation")):
        if (given := getattr(namespace, argument, None)) is not None:
            # The job may run elsewhere and later, so replace a recipe's name by its file
            place = _place_of(argument, given, words, parser)
            words[place] = file = find_recipe(kind, given)
            setattr(namespace, argument, file)
            config_place = place if argument == "config" else None
    command = Command(job, tuple(words), namespace, config_place)
    if job in _KINDS and command.name not in [f"{job} {kind}" for kind in _KINDS[job]]:
        raise ValueError(f"job ({command.name}) must be {job} {' or '.join(_KINDS[job])}")
    return command


def _place_of(argument: str, given: str, words: Sequence[str], parser: Parser) -> int:
    """Index of the word that is an argument's value; the same word may also occur as the value of
    an option, such as the run folder."""
    for place in range(1, len(words)):
        marked = [*words[:place], f"{given}?", *words[place + 1 :]]
        if words[place] == given and getattr(parse(parser, marked[1:]), argument) != given:
            return place
    raise AssertionError(f"{argument} ({given}) is not among {words}")


def make_plan(
    command: Command,
    *,
    sweep: str | None = None,
    num_parts: int | None = None,
    wait_for_inputs: bool = True,
) -> Plan:
    """Check a command's settings and list its tasks.

    Args:
        command: from `read_command`.
        sweep: ``"a.b=1,2 c.d=x,y"`` gives a run for each combination, each in its own folder.
        num_parts: number of tasks into which to split a transcoding or a study.
        wait_for_inputs: whether the files that it reads must exist now.

    Raises ValueError if settings are invalid, the run folder belongs to another run, or the job
    cannot be swept or split; FileNotFoundError if an input does not exist.
    """
    if wait_for_inputs:
        for name in _INPUT_ARGUMENTS:
            _check_exist(name, getattr(command.namespace, name, None), may_be_setting=True)
    schema = JOBS[command.job]
    if num_parts is not None or schema is None:
        if num_parts is None and sweep is not None:
            raise ValueError(f"sweep ({sweep}) needs a job with settings; {command.name} has none")
        parts = None if num_parts is None else _parts(command, num_parts, sweep)
        tasks = parts or _variants(command, None, None)
        workers, inputs = _workers(command), _named_paths(command, None)
        return Plan(command, tasks, loader_workers=workers, inputs=inputs)
    settings = command.namespace.settings
    config = load_config(schema, command.yaml, settings)
    is_run = hasattr(config, "run")
    folder: str | None = config.run.output_dir if is_run else None
    if is_run and not folder:
        raise ValueError(
            "run.output_dir (null) must name a folder for the run: give "
            "run.output_dir=outputs/first"
        )
    if folder is not None and "%" in folder:
        raise ValueError(f"run.output_dir ({folder}) must not contain %, which SLURM replaces")
    if folder is not None:
        check_line("run.output_dir", folder)
    tasks, runs = _variants(command, sweep, folder), []
    for task in tasks:
        # The task's own settings follow the words of the command
        own = [word for word in task.arguments[len(command.words) :] if not word.startswith("-")]
        of_task = _settings(schema, command.yaml, [*settings, *own])
        if is_run:
            _check_run(of_task, wait_for_inputs)
            runs.append(of_task)
    inputs = _named_paths(command, config)
    if folder is None:
        return Plan(command, tasks, loader_workers=config.num_workers, inputs=inputs)
    if sweep is not None and (Path(folder) / "config.yaml").exists():
        raise ValueError(
            f"run.output_dir ({folder}) must be another folder for a sweep: it already holds a run"
        )
    at_once = config.data.batch_size
    videos = None if isinstance(at_once, str) else at_once * config.optim.accumulation
    workers = config.data.num_workers
    place = _absolute(folder)
    if sweep is not None:
        return Plan(command, tasks, place, workers, inputs=inputs, runs=tuple(runs))
    total = config.optim.total_batch
    return Plan(command, tasks, place, workers, videos, total, inputs, tuple(runs))


def _settings(schema: type[Any], yaml: str | None, settings: Sequence[str]) -> Any:
    """The settings of a task.

    Settings that fine-tuning takes from its weights stay unset, unless the run resumes and its
    folder has them.
    """
    if schema is not FinetuneConfig:
        return load_config(schema, yaml, settings)
    from hpm_video.train.run.known_settings import load_finetune_config

    return load_finetune_config(yaml, settings, reads_weights=False)[0]


def check_steps(plan: Plan, num_processes: int) -> None:
    """Raise ValueError if lists have too few videos for a step, or if ``num_processes`` does not
    divide it. Lists that do not exist yet are skipped."""
    from hpm_video.data.lists.manifest import read_manifest
    from hpm_video.data.loading.mixture import Mixture, mixture_of
    from hpm_video.train.optim import plan_steps

    sizes: dict[tuple[object, ...], Sequence[int]] = {}  # (root, lists) -> videos in each
    for config in plan.runs:
        lists = tuple(config.data.manifest)
        if not all(map(list_exists, lists)):
            continue
        if (key := (config.data.root, *lists)) not in sizes:
            manifest = read_manifest(lists, root=config.data.root, labels=False)
            sizes[key] = mixture_of(manifest, ()).sizes
        count = Mixture(tuple(sizes[key]), tuple(config.data.weights)).num_videos
        plan_steps(config.data, config.optim, num_videos=count, num_processes=num_processes)


def _named_paths(command: Command, config: Any) -> tuple[str, ...]:
    """Existing files and folders that a command's arguments and settings name."""
    places: list[tuple[Any, str]] = [(command.namespace, name) for name in _INPUT_ARGUMENTS]
    for key in (*_INPUTS, "data.root", "root"):
        group, _, name = key.rpartition(".")
        places.append((getattr(config, group, None) if group else config, name))
    named: list[str] = []
    for place, name in places:
        value = getattr(place, name, None)
        named += [value] if isinstance(value, str) else value or []
    named = [list_root(path, None) if is_shards(path) else path for path in named]
    return tuple(dict.fromkeys(path for path in named if os.path.exists(path)))


def _variants(command: Command, sweep: str | None, folder: str | None) -> tuple[Task, ...]:
    """A task for each combination of a sweep, in subfolders of ``folder``; one without a sweep."""
    if sweep is None:
        output = _output(command) if folder is None else None
        return (Task(command.words, _absolute(folder), output=output),)
    parent = _results(command, sweep) if folder is None else folder
    option = "--output-dir" if folder is None else "run.output_dir"
    tasks = []
    for name, settings in combinations(sweep).items():
        if any(setting.startswith("run.output_dir=") for setting in settings):
            raise ValueError(
                f"sweep ({sweep}) must not set run.output_dir: each run gets a folder of its own"
            )
        place = None if parent is None else os.path.join(parent, name)
        own = settings if place is None else (*settings, f"{option}={place}")
        places = (None, _absolute(place)) if folder is None else (_absolute(place), None)
        tasks.append(Task((*command.words, *own), places[0], " ".join(settings), places[1]))
    return tuple(tasks)


def _results(command: Command, sweep: str) -> str | None:
    """The parent folder for the results of a sweep's tasks; None for jobs that write none."""
    if command.job in ("features", "predict"):
        raise ValueError(
            f"sweep ({sweep}) must not be used with {command.job}, which writes a single file: "
            "submit one job per file"
        )
    if command.job == "evaluate" and command.namespace.output_dir is None:
        raise ValueError(f"sweep ({sweep}) of evaluate needs -o DIR: each task gets a folder in it")
    return getattr(command.namespace, "output_dir", None)


def _output(command: Command) -> str | None:
    """Where a job without a run folder writes; None if it only prints, or if that depends on a
    checkpoint that does not exist yet."""
    given = command.namespace
    place = getattr(given, "output_dir", None) or getattr(given, "output", None)
    if command.job == "evaluate" and place is None:
        if given.recompute:
            place = given.checkpoint
        else:
            from hpm_video.cli.evaluate import with_stored_lists
            from hpm_video.evaluate.classification import results_folder

            config = load_config(EvaluateConfig, None, given.settings)
            with suppress(FileNotFoundError):
                _, lists = with_stored_lists(config, given.checkpoint, given.manifest)
                place = results_folder(given.checkpoint, lists, config.checkpoint)
    return _absolute(place)


def _parts(command: Command, num_parts: int, sweep: str | None) -> tuple[Task, ...]:
    """A task for each part of a job."""
    if command.name not in _SPLIT or sweep is not None:
        raise ValueError(
            f"slurm.array ({num_parts}) must not be given for {command.name}: it splits only "
            f"{' and '.join(_SPLIT)}; with a sweep give %M, which limits how many run at once"
        )
    if command.namespace.part != "1/1":
        raise ValueError(
            f"part ({command.namespace.part}) must not be given with slurm.array, which sets it"
        )
    parts = [f"{part}/{num_parts}" for part in range(1, num_parts + 1)]
    output = _output(command)
    return tuple(
        Task((*command.words, "--part", part), None, f"part {part}", output) for part in parts
    )


def _workers(command: Command) -> int | None:
    """Number of workers of a job without settings, if given; by default it uses all its cores."""
    is_given = {"--num-workers", "--workers"} & {word.partition("=")[0] for word in command.words}
    return int(command.namespace.num_workers) if is_given else None


def _check_run(config: Any, must_exist: bool) -> None:
    """Raise now for errors that a run would raise when it starts."""
    from hpm_video.train.run.folder import check_run_folder

    if not config.data.manifest:
        raise ValueError("data.manifest ([]) must name a list of videos")
    if must_exist:
        for key in _INPUTS:
            group, _, name = key.partition(".")
            _check_exist(key, getattr(getattr(config, group, None), name, None))
    check_run_folder(config)


def _check_exist(
    name: str, value: str | Sequence[str] | None, *, may_be_setting: bool = False
) -> None:
    for path in [value] if isinstance(value, str) else value or []:
        if path.startswith(_NO_FILE) or (may_be_setting and is_setting(path)):
            continue
        if not list_exists(path):
            what = f"{name} ({path}) does not exist"
            raise FileNotFoundError(what + similar_path(path))


def _absolute(path: str | Path | None) -> str | None:
    """An absolute path. Links are not resolved, as they may point elsewhere when the job runs."""
    return os.path.abspath(path) if path else None
