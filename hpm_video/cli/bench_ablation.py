"""``hpm-video bench ablation``."""

import argparse
import re
from functools import partial
from pathlib import Path

from hpm_video.cli.options import SETTINGS, know_settings, settings_help
from hpm_video.config import StudyConfig
from hpm_video.config.recipe import find_recipe
from hpm_video.config.settings import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """compare variants over seeds and data sets, with confidence intervals"""
    text = "name of a study (`hpm-video recipes` lists them), or a YAML file"
    parser.add_argument("study", metavar="STUDY", help=text)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar=SETTINGS,
        help="settings that override the study's; listed below",
    )
    parser.add_argument(
        "-o", "--output-dir", required=True, metavar="FOLDER", help="folder of the study"
    )
    which = "run only the K-th of N parts of the cells (default: all that no other process runs)"
    parser.add_argument("--part", default="1/1", metavar="K/N", help=which)
    parser.add_argument("--summary", action="store_true", help="only summarise the finished cells")
    parser.add_argument(
        "--plan", action="store_true", help="only measure steps, and estimate the hours"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = settings_help(StudyConfig)
    know_settings(parser, StudyConfig)


def run(arguments: argparse.Namespace) -> int:
    """Run a study and summarise it; returns 1 if a cell failed or a signal came, else 0."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", arguments.part)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--part ({arguments.part}) must be K/N with 1 <= K <= N, such as 1/8")
    part = int(found[1]), int(found[2])
    file = find_recipe("ablation", arguments.study)
    config = load_config(StudyConfig, file, arguments.settings)
    from hpm_video.bench.study import cells, comparison, plots, runner, summary
    from hpm_video.runtime.rendezvous import find_place

    if (size := find_place().size) > 1:
        rule = "must be 1: to share the cells, start the study several times, or submit --array N"
        raise ValueError(f"number of processes in one job ({size}) {rule}")
    home, say = Path(file).resolve().parent, partial(print, flush=True)
    study = cells.Study(config, home=home, folder=Path(arguments.output_dir))
    if arguments.summary:
        if not (study.folder / "study.yaml").is_file():
            raise ValueError(f"--output-dir ({study.folder}) must be the folder of a study")
        runner.check_study(study)
    if arguments.plan:
        runner.plan_study(study, say=say)
        return 0
    outcome = runner.Outcome() if arguments.summary else runner.run_study(study, part=part, say=say)
    compared = comparison.comparisons(study)
    pictures = [name for one in compared for name in plots.write_plots(one, study.folder)]
    summary.write_summary(study, compared, pictures=pictures)
    for name in outcome.elsewhere:
        say(f"running in another process: {name}")
    if outcome.is_stopped:
        say("stopped: run the same command to continue")
    if outcome.failed:
        say(f"{len(outcome.failed)} cells failed: run the same command to try them again")
    say(study.folder / "summary.md")
    return 1 if outcome.failed or outcome.is_stopped else 0
