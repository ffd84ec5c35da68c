"""The commands: ``hpm-video JOB ...``, which is ``python tools/JOB.py ...``.

Exit code 0: done. 1: failed or stopped before the end. 2: the user's mistake, one clear line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from hpm_video.console import lasting_output
from hpm_video.data.files import printable
from hpm_video.failures import say_failure, tell_torchrun

# Jobs import what they need when they run, so that --help and typing errors answer at once.

_SETTINGS = "key=value"


@dataclass(frozen=True)
class Job:
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit code."""
    with lasting_output():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(words: Sequence[str]) -> int:
    # PyTorch's threads (OpenMP) wait for each other by spinning. On a machine whose cores the
    # loader workers share, that makes a training step several times slower; read at its import.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Said by libraries that we import, about themselves.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    parser = argparse.ArgumentParser(
        prog="hpm-video",
        description="Self-supervised video pre-training by masked autoencoding that finds out "
        "what is hard and masks that.",
    )
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for name, job in JOBS.items():
        of_job = jobs.add_parser(
            name,
            help=job.help,
            description=job.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in words:  # the others' arguments would only take time
            job.add_arguments(of_job)
    arguments, rest = parser.parse_known_args(words)
    # argparse takes no positional words behind an option once there were none before it
    if rest and not (hasattr(arguments, "settings") and all(map(_is_setting, rest))):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    elif rest:
        arguments.settings += rest
    try:
        with tell_torchrun():
            return JOBS[arguments.job].run(arguments)
    except (ValueError, FileNotFoundError) as error:
        if not _is_ours(error.__traceback__):
            raise
        say_failure(arguments.job, error)
        return 2
    except (FloatingPointError, RuntimeError) as error:
        from hpm_video.data.bad_videos import UnreadableDataError
        from hpm_video.rendezvous import CommunicationError

        if not isinstance(error, FloatingPointError | UnreadableDataError | CommunicationError):
            raise
        say_failure(arguments.job, error)
        return 1
    except KeyboardInterrupt:
        print(f"hpm-video {arguments.job}: interrupted", file=sys.stderr)
        return 1


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether an error was raised by a line of this package: those are the user's to mend. One
    from inside a library is a bug of ours and keeps its traceback."""
    module = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module.split(".")[0] == "hpm_video"


def _settings_help(schema: type[Any]) -> str:
    from hpm_video.settings import settings_table

    columns = min(shutil.get_terminal_size(fallback=(100, 24)).columns, 100)
    return "settings, their defaults and meanings:\n" + settings_table(schema, columns=columns)


def _config_arguments(schema_name: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        from hpm_video import config

        parser.add_argument("config", metavar="CONFIG.yaml", help="a file of settings")
        parser.add_argument("settings", nargs="*", metavar=_SETTINGS, help="override the file's")
        parser.epilog = _settings_help(getattr(config, schema_name))

    return add


def _pretrain(arguments: argparse.Namespace) -> int:
    from hpm_video.config import PretrainConfig
    from hpm_video.settings import load_config

    config = load_config(PretrainConfig, arguments.config, arguments.settings)
    from hpm_video.pretrain import pretrain

    return 0 if pretrain(config) else 1


def _finetune(arguments: argparse.Namespace) -> int:
    from hpm_video.config import FinetuneConfig
    from hpm_video.settings import load_config

    config = load_config(FinetuneConfig, arguments.config, arguments.settings)
    from hpm_video.finetune import finetune

    return 0 if finetune(config) else 1


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video.config import EvaluateConfig

    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--manifest", nargs="+", default=[], help="list(s) of labelled videos")
    text = "CHECKPOINT is the folder of an evaluation: its figures and page, from predictions.csv"
    what.add_argument("--recompute", action="store_true", help=text)
    text = "folder for results (default: evaluation/<list> in the run folder)"
    parser.add_argument("-o", "--output-dir", help=text)
    parser.add_argument("settings", nargs="*", metavar=_SETTINGS)
    parser.epilog = _settings_help(EvaluateConfig)


def _evaluate(arguments: argparse.Namespace) -> int:
    from hpm_video.config import EvaluateConfig
    from hpm_video.settings import load_config

    # argparse hands settings that follow --manifest to it: tell them apart by their form.
    manifests = [word for word in arguments.manifest if not _is_setting(word)]
    settings = [word for word in arguments.manifest if _is_setting(word)] + arguments.settings
    config = load_config(EvaluateConfig, None, settings)
    from hpm_video.evaluate import evaluate, recompute, results_folder
    from hpm_video.predictions import figures_line

    checkpoint, folder = arguments.checkpoint, arguments.output_dir
    if arguments.recompute:
        folder = folder or checkpoint
        result = recompute(checkpoint, config, output_dir=folder)
    else:
        folder = folder or results_folder(checkpoint, manifests, config.checkpoint)
        result = evaluate(checkpoint, manifests, config, output_dir=folder)
    from hpm_video.rendezvous import find_place

    if find_place().rank != 0:
        return 0  # of several processes, one speaks
    for index, reason in result.bad:
        print(printable(f"unreadable, counts as wrong: {result.paths[index]}: {reason}"))
    for name, words in result.about.items():
        print(printable(f"{name}: {words}"))
    print(figures_line(result))
    print(os.path.join(folder, "index.html"))
    return 0


def _probe_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video import asking, config

    asking.add_probe_arguments(parser)
    parser.epilog = _settings_help(config.ProbeJobConfig)


def _probe(arguments: argparse.Namespace) -> int:
    from hpm_video import asking

    return asking.run_probe(arguments, print)


def _features_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video import asking, config

    asking.add_features_arguments(parser)
    parser.epilog = _settings_help(config.FeaturesConfig)


def _features(arguments: argparse.Namespace) -> int:
    from hpm_video import asking

    return asking.run_features(arguments, print)


def _is_setting(word: str) -> bool:
    return "=" in word and not word.startswith("-") and not os.path.exists(word)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video.data import commands, list_command

    words = "list|check|transcode|toy"
    jobs = parser.add_subparsers(dest="data_job", required=True, metavar=words)
    text = "write a manifest of a data set: what is there, what is missing, the class names"
    listing = jobs.add_parser("list", help=text, description=text)
    list_command.add_arguments(listing)
    listing.set_defaults(run_data=lambda arguments: list_command.run(arguments, print))
    text = "decode every video of a list, and write what was found out into it"
    check = jobs.add_parser("check", help=text, description=text)
    commands.add_check_arguments(check)
    check.set_defaults(run_data=lambda arguments: commands.run_check(arguments, print))
    text = "encode the videos of a list anew: small, and quick to decode"
    transcode = jobs.add_parser("transcode", help=text, description=text)
    commands.add_transcode_arguments(transcode)
    transcode.set_defaults(run_data=lambda arguments: commands.run_transcode(arguments, print))
    toy = jobs.add_parser(
        "toy", help="write videos of moving objects in 8 classes that differ in motion only"
    )
    toy.add_argument("-o", "--output-dir", required=True, help="folder to fill")
    toy.add_argument("--num-videos", type=int, default=800)
    toy.add_argument("--size", type=int, default=64, help="side in pixels (default 64)")
    toy.add_argument("--num-frames", type=int, default=24, help="frames per video (default 24)")
    toy.add_argument("--seed", type=int, default=0)
    toy.add_argument("--num-workers", type=int, default=2, help="processes (default 2)")
    toy.set_defaults(run_data=_data_toy)


def _data(arguments: argparse.Namespace) -> int:
    run: Callable[[argparse.Namespace], int] = arguments.run_data
    return run(arguments)


def _data_toy(arguments: argparse.Namespace) -> int:
    from hpm_video.data.toy import write_toy_videos

    try:
        manifest = write_toy_videos(
            arguments.output_dir,
            num_videos=arguments.num_videos,
            size=arguments.size,
            num_frames=arguments.num_frames,
            seed=arguments.seed,
            num_workers=arguments.num_workers,
        )
    except OSError as error:
        raise ValueError(
            f"output_dir ({arguments.output_dir}) cannot be written: {error.strerror}"
        ) from error
    print(manifest)
    return 0


def _visualize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of pre-training, or a run folder")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument("-o", "--output-dir", required=True, help="folder for page and pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the random masks (default 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _visualize(arguments: argparse.Namespace) -> int:
    from hpm_video.visualize import visualize

    page, results = visualize(
        arguments.checkpoint,
        arguments.videos,
        arguments.output_dir,
        seed=arguments.seed,
        device=arguments.device,
    )
    bad = [result for result in results if result.error is not None]
    for result in bad:
        print(f"unreadable: {result.name}: {result.error}", file=sys.stderr)
    if page is None:
        print("hpm-video visualize: no video could be read: no page is written", file=sys.stderr)
        return 1
    print(page)
    return 1 if bad else 0


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    parser.add_argument("-o", "--output", required=True, help="FILE.pt, or FILE.safetensors")
    parts = parser.add_mutually_exclusive_group()
    text = "leave out what only training needs"
    parts.add_argument(
        "--weights-only", dest="part", action="store_const", const="weights", help=text
    )
    text = "the encoder's weights alone, for model.init"
    parts.add_argument("--encoder", dest="part", action="store_const", const="encoder", help=text)


def _export(arguments: argparse.Namespace) -> int:
    from hpm_video.export import export

    print(export(arguments.checkpoint, arguments.output, part=arguments.part or "all"))
    return 0


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output-dir", default="outputs/demo", help="(default %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="only see that everything runs: learns nothing"
    )


def _demo(arguments: argparse.Namespace) -> int:
    from hpm_video.demo import demo, table

    result = demo(arguments.output_dir, quick=arguments.quick)
    if result is None:
        return 1
    rows = table(result)
    width = max(len(what) for what, _, _ in rows)
    for what, figure, other in rows:
        print(f"{what:<{width}}  {figure:>7}  {other}")
    print(result.page)
    return 0


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video.bench.command import add_arguments

    add_arguments(parser)


def _bench(arguments: argparse.Namespace) -> int:
    from hpm_video.bench.command import run

    print(run(arguments))
    return 0


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video.slurm.submit import add_arguments

    add_arguments(parser)


def _submit(arguments: argparse.Namespace) -> int:
    from hpm_video.slurm.submit import run

    return run(arguments, print)


def _jobs_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video.slurm.jobs import add_arguments

    add_arguments(parser)


def _jobs(arguments: argparse.Namespace) -> int:
    from hpm_video.slurm.jobs import run

    return run(arguments, print)


JOBS = {
    "pretrain": Job(
        "pre-train a model on unlabelled videos", _config_arguments("PretrainConfig"), _pretrain
    ),
    "finetune": Job(
        "fine-tune a classifier on labelled videos", _config_arguments("FinetuneConfig"), _finetune
    ),
    "evaluate": Job("top-1 and top-5 of a fine-tuned classifier", _evaluate_arguments, _evaluate),
    "probe": Job(
        "how good features are: simple classifiers on a frozen encoder", _probe_arguments, _probe
    ),
    "features": Job(
        "features of videos, or of windows that slide over long ones, as files",
        _features_arguments,
        _features,
    ),
    "visualize": Job(
        "pictures of what a pre-trained model finds hard", _visualize_arguments, _visualize
    ),
    "export": Job("a checkpoint as one file", _export_arguments, _export),
    "demo": Job(
        "toy videos -> pre-train -> fine-tune -> evaluate -> pictures, in minutes",
        _demo_arguments,
        _demo,
    ),
    "bench": Job("what a step, a mask and the losses cost", _bench_arguments, _bench),
    "data": Job("make lists, check and transcode videos, toy videos", _data_arguments, _data),
    "submit": Job("any of these jobs onto a SLURM cluster", _submit_arguments, _submit),
    "jobs": Job("what was submitted: list, follow, cancel, requeue", _jobs_arguments, _jobs),
}


def entry() -> None:
    """The console command."""
    sys.exit(main())
