"""``hpm-video weights inspect|import|export|average|ema``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from hpm_video.weights.export.writers import TARGETS

if TYPE_CHECKING:
    from hpm_video.weights.foreign.account import Imported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "inspect|import|export|average|ema"
    jobs = parser.add_subparsers(dest="weights_job", required=True, metavar=words)
    text = "what a file of weights is, of any known format, and what is in it"
    inspect = jobs.add_parser("inspect", help=text, description=text)
    _add_source_arguments(inspect)
    inspect.set_defaults(run_weights=_inspect)
    text = "weights of others as a checkpoint of ours, with an account of every tensor"
    importing = jobs.add_parser("import", help=text, description=text)
    _add_source_arguments(importing)
    importing.add_argument("-o", "--output", required=True, help="FILE.pt to write")
    importing.set_defaults(run_weights=_import)
    text = "a checkpoint as one file, or in the format of others"
    export = jobs.add_parser("export", help=text, description=text)
    _add_export_arguments(export)
    export.set_defaults(run_weights=_export)
    text = "the mean weights of a range of a run's checkpoints, as a checkpoint to be used"
    average = jobs.add_parser("average", help=text, description=text)
    average.add_argument("run", metavar="RUN", help="a run folder, or one of checkpoints")
    text = "step of the {} checkpoint to average (default: the {} there is)"
    for end, default in (("first", "oldest"), ("last", "newest")):
        words = text.format(end, default)
        average.add_argument(f"--{end}", type=int, metavar="STEP", help=words)
    average.add_argument("-o", "--output", required=True, help="FILE.pt to write")
    average.set_defaults(run_weights=_average)
    text = "the moving average of its weights that a run keeps, as a checkpoint to be used"
    ema = jobs.add_parser("ema", help=text, description=text)
    ema.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    ema.add_argument("-o", "--output", required=True, help="FILE.pt to write")
    ema.set_defaults(run_weights=_ema)


def run(arguments: argparse.Namespace) -> int:
    run_weights: Callable[[argparse.Namespace], int] = arguments.run_weights
    return run_weights(arguments)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    parser.add_argument("-o", "--output", required=True, help="file or folder to write")
    meanings = "; ".join(f"{name}: {target.help}" for name, target in TARGETS.items())
    parser.add_argument(
        "--to", choices=list(TARGETS),
        help=f"{meanings} (default: checkpoint, or safetensors where the name ends so)",
    )  # fmt: skip
    parts = parser.add_mutually_exclusive_group()
    text = "leave out what only training needs (all but checkpoints always do)"
    parts.add_argument(
        "--weights-only", dest="part", action="store_const", const="weights-only", help=text
    )
    text = "the encoder's weights alone"
    parts.add_argument("--encoder", dest="part", action="store_const", const="encoder", help=text)


def _export(arguments: argparse.Namespace) -> int:
    from hpm_video.weights.export.writers import export

    words = export(arguments.checkpoint, arguments.output, to=arguments.to, part=arguments.part)
    print("\n".join(words))
    return 0


def _average(arguments: argparse.Namespace) -> int:
    from hpm_video.weights.average import average_checkpoints
    from hpm_video.weights.export.writers import check_output, write_output

    check_output(arguments.output)
    state = average_checkpoints(arguments.run, first=arguments.first, last=arguments.last)
    print(f"mean of the steps {', '.join(map(str, state['averaged']))}")
    print("\n".join(write_output(state, arguments.output, to="checkpoint")))
    return 0


def _ema(arguments: argparse.Namespace) -> int:
    from hpm_video.weights.average import moving_average
    from hpm_video.weights.export.writers import check_output, write_output

    check_output(arguments.output)
    state = moving_average(arguments.checkpoint)
    print("\n".join(write_output(state, arguments.output, to="checkpoint")))
    return 0


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE",
        help="a file, or a folder: of a run, of Hugging Face, of DeepSpeed",
    )  # fmt: skip
    parser.add_argument("--container", help="which part of the file the weights are, as model_ema")
    parser.add_argument(
        "--allow-missing", nargs="+", default=[], metavar="NAME",
        help="tensors that may be missing, unknown or of another shape, as 'head.*'",
    )  # fmt: skip
    told = parser.add_argument_group("what files do not say")
    told.add_argument("--num-frames", type=int, metavar="N", help="of a clip (default 16)")
    told.add_argument("--image-size", type=int, metavar="N", help="in pixels (default 224)")
    told.add_argument("--depth", type=int, metavar="N", help="blocks (default: the size's)")
    told.add_argument("--heads", type=int, metavar="N", help="of attention (default: the size's)")
    told.add_argument("--decoder-heads", type=int, metavar="N", help="the same of the decoder")
    for name in ("mean", "std"):
        text = f"{name} of pixels in [0, 1] that the weights expect to be taken out (ImageNet's)"
        told.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help=text)
    images = parser.add_argument_group("what becomes of image models")
    images.add_argument(
        "--tubelet-size", type=int, metavar="N", help="frames of a token (default 2)"
    )
    images.add_argument(
        "--inflate", choices=["mean", "centre"], default="mean",
        help="patch embedding: its share for every frame of a token, or all for the middle one",
    )  # fmt: skip


def _found(arguments: argparse.Namespace) -> Imported:
    from hpm_video.weights.foreign.architecture import Assumptions
    from hpm_video.weights.foreign.to_ours import import_weights

    assumptions = Assumptions(
        num_frames=arguments.num_frames,
        image_size=arguments.image_size,
        tubelet_size=arguments.tubelet_size,
        depth=arguments.depth,
        heads=arguments.heads,
        decoder_heads=arguments.decoder_heads,
        inflation=arguments.inflate,
        mean=arguments.mean and tuple(arguments.mean),
        std=arguments.std and tuple(arguments.std),
    )
    found = import_weights(
        arguments.file,
        assumptions=assumptions,
        allow_missing=arguments.allow_missing,
        container=arguments.container,
    )
    usual = vars(Assumptions())
    told = {name: value for name, value in vars(assumptions).items() if value != usual[name]}
    if told and found.architecture is None:
        words = ", ".join(f"{name} ({value})" for name, value in told.items())
        raise ValueError(
            f"{words} must not be given: {arguments.file} is one of hpm-video's own, which says so"
        )
    return found


def _inspect(arguments: argparse.Namespace) -> int:
    from hpm_video.weights.foreign.account import key_table, overview

    found = _found(arguments)
    print("\n".join([*overview(found), "", *key_table(found)]))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from hpm_video.weights.export.writers import check_output, write_output
    from hpm_video.weights.foreign.account import in_a_line, key_table

    check_output(arguments.output, source=arguments.file)
    found = _found(arguments)
    written = write_output(found.state, arguments.output, to="checkpoint")
    print("\n".join([*key_table(found), "", in_a_line(found), *written]))
    return 0
