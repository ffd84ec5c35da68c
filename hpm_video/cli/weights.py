"""``hpm-video weights inspect|import|export|average|ema``."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hpm_video.cli.options import add_checkpoint, add_numbers, add_output
from hpm_video.config.values import Inflation, Sampling, values_of
from hpm_video.weights.export.writers import TARGETS, check_output, export, write_output

if TYPE_CHECKING:
    from hpm_video.weights.foreign.account import Imported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "inspect|import|export|average|ema"
    jobs = parser.add_subparsers(dest="weights_job", required=True, metavar=words)
    text = "identify a file of weights in any known format, and list what it contains"
    _add_source(jobs.add_parser("inspect", help=text, description=text))
    text = "convert weights of another project to a checkpoint; lists every tensor"
    importing = jobs.add_parser("import", help=text, description=text)
    _add_source(importing)
    text = "write a checkpoint as one file, or in another project's format"
    exporting = jobs.add_parser("export", help=text, description=text)
    add_checkpoint(exporting)
    add_output(exporting, "file or folder to write", "--output-dir", metavar="PLACE")
    meanings = "; ".join(f"{name}: {target.help}" for name, target in TARGETS.items())
    text = f"{meanings} (default: checkpoint, or safetensors if the name ends in .safetensors)"
    exporting.add_argument("--to", choices=list(TARGETS), help=text)
    text = "videos to show on the model card, for a pre-trained model with --to huggingface"
    exporting.add_argument("--clips", nargs="+", default=[], metavar="VIDEO", help=text)
    parts = exporting.add_mutually_exclusive_group()
    for part, text in (
        ("weights-only", "leave out what only training needs, as all formats but checkpoint do"),
        ("encoder", "write the encoder's weights only"),
    ):
        parts.add_argument(f"--{part}", dest="part", action="store_const", const=part, help=text)
    text = "average the weights of a run's checkpoints; training cannot continue from the result"
    average = jobs.add_parser("average", help=text, description=text)
    average.add_argument("run", metavar="RUN", help="run folder, or folder of checkpoints")
    text = "step of the {} checkpoint to average (default: the {})"
    ends = {"first": text.format("first", "oldest"), "last": text.format("last", "newest")}
    add_numbers(average, ends, metavar="STEP")
    text = "write a run's moving average of weights; training cannot continue from the result"
    ema = jobs.add_parser("ema", help=text, description=text)
    add_checkpoint(ema)
    for job in (importing, average, ema):
        add_output(job, "file to write, .pt")


def run(arguments: argparse.Namespace) -> int:
    lines = {
        "inspect": _inspect, "import": _import, "export": _export, "average": _average, "ema": _ema,
    }[arguments.weights_job](arguments)  # fmt: skip
    print("\n".join(lines))
    return 0


def _add_source(parser: argparse.ArgumentParser) -> None:
    text = "file of weights, or a folder: of a run, Hugging Face or DeepSpeed"
    parser.add_argument("file", metavar="FILE", help=text)
    parser.add_argument(
        "--container", help="key of the file that holds the weights, such as model_ema"
    )
    text = "tensors that may be missing, unknown or of another shape, such as 'head.*'"
    parser.add_argument("--allow-missing", nargs="+", default=[], metavar="NAME", help=text)
    told = parser.add_argument_group("facts that the file does not contain")
    numbers = {
        "num_frames": "frames per clip (default 16)",
        "image_size": "height and width of a clip in pixels (default 224)",
        "frame_stride": "step in frames between a clip's frames (default: the data set's, else 2)",
        "depth": "blocks of the encoder (default: by its size)",
        "heads": "attention heads of the encoder (default: by its size)",
        "decoder_heads": "attention heads of the decoder (default: by its size)",
    }
    add_numbers(told, numbers)
    text = "which frames make a clip (default: the data set's, told from the number of classes)"
    told.add_argument("--sampling", choices=values_of(Sampling), help=text)
    for name in ("mean", "std"):
        text = f"{name} of pixels in [0, 1] that the model was trained with (default ImageNet's)"
        told.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help=text)
    images = parser.add_argument_group("conversion of image models to video")
    add_numbers(images, {"tubelet_size": "frames per token (default 2)"})
    text = "patch embedding; mean: divided over the frames of a token; centre: in the middle frame"
    images.add_argument("--inflate", choices=values_of(Inflation), default="mean", help=text)


def _found(arguments: argparse.Namespace) -> Imported:
    from hpm_video.weights.foreign.architecture import Assumptions
    from hpm_video.weights.foreign.to_ours import import_weights

    names = (
        *("num_frames", "image_size", "sampling", "frame_stride", "tubelet_size", "depth"),
        *("heads", "decoder_heads"),
    )
    assumptions = Assumptions(
        **{name: getattr(arguments, name) for name in names},
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
            f"{words} must be left out: {arguments.file} is from hpm-video, and states them itself"
        )
    return found


def _inspect(arguments: argparse.Namespace) -> list[str]:
    from hpm_video.weights.foreign.account import key_table, overview

    found = _found(arguments)
    return [*overview(found), "", *key_table(found)]


def _import(arguments: argparse.Namespace) -> list[str]:
    from hpm_video.weights.foreign.account import assumed, in_a_line, key_table

    check_output(arguments.output, source=arguments.file)
    found = _found(arguments)
    written = write_output(found.state, arguments.output, to="checkpoint")
    return [*key_table(found), "", in_a_line(found), *assumed(found), *written]


def _export(arguments: argparse.Namespace) -> list[str]:
    checkpoint, output, to = arguments.checkpoint, arguments.output, arguments.to
    if arguments.clips and to != "huggingface":
        raise ValueError(f"--clips ({arguments.clips[0]}) must come with --to huggingface")
    with ExitStack() as folders:
        pictures = []
        if arguments.clips:
            from hpm_video.visualize import visualize

            check_output(output, source=checkpoint)
            folder = folders.enter_context(TemporaryDirectory())
            _, results = visualize(checkpoint, arguments.clips, folder, formats=["png"])
            for result in results:
                if result.page is None:
                    raise ValueError(f"--clips ({result.name}) is unreadable: {result.error}")
                pictures.append(result.page.with_suffix(".png"))
        return export(checkpoint, output, to=to, part=arguments.part, pictures=pictures)


def _average(arguments: argparse.Namespace) -> list[str]:
    from hpm_video.weights.average import average_checkpoints

    check_output(arguments.output)
    state = average_checkpoints(arguments.run, first=arguments.first, last=arguments.last)
    print(f"average of steps {', '.join(map(str, state['averaged']))}")
    return write_output(state, arguments.output, to="checkpoint")


def _ema(arguments: argparse.Namespace) -> list[str]:
    from hpm_video.weights.average import moving_average

    check_output(arguments.output)
    state = moving_average(arguments.checkpoint)
    return write_output(state, arguments.output, to="checkpoint")
