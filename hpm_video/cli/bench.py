"""``hpm-video bench``. Imports nothing slow, so that --help appears at once."""

from argparse import ArgumentParser as Parser
from argparse import Namespace
from argparse import _ArgumentGroup as Group
from collections.abc import Callable
from importlib import import_module

from hpm_video.cli import bench_ablation, bench_options
from hpm_video.cli.bench_options import add_number, add_several
from hpm_video.cli.options import add_device, know_settings
from hpm_video.config import PretrainConfig
from hpm_video.config.values import Decoder, Size, View, values_of


def _step(parser: Parser) -> None:
    """time a pre-training step: VideoMAE; HPM as published, sparse and default; and VideoMAE
    from transformers"""
    bench_options.add_timing(parser, batch_size=4)
    bench_options.add_threads(parser)
    bench_options.add_clip(parser)
    bench_options.add_variants(parser, [0.25], ["pixels"], [1])
    bench_options.add_size(parser, "base")
    bench_options.add_decoder_mask(parser)
    bench_options.add_mask_source(parser)
    bench_options.add_target(parser)
    bench_options.add_precision(parser)
    parser.add_argument(
        "--compile", action="store_true", help="compile every model with torch.compile"
    )
    text = "replay our steps as CUDA graphs, as run.cuda_graphs does"
    parser.add_argument("--cuda-graphs", action="store_true", help=text)


def _finetune(parser: Parser) -> None:
    """time a fine-tuning step and its memory: full, half frozen, adapters, head only"""
    bench_options.add_timing(parser, batch_size=4)
    bench_options.add_threads(parser)
    bench_options.add_clip(parser)
    bench_options.add_size(parser, "base")
    bench_options.add_precision(parser)
    add_number(parser, "--lora-rank", 8, "rank of the adapters")


def _flops(parser: Parser) -> None:
    """count the multiply-adds of a step, without timing"""
    bench_options.add_clip(parser)
    bench_options.add_variants(parser, [0.5, 0.25, 0.1], ["pixels", "encoded"], [1, 2, 4])
    bench_options.add_sizes(parser)
    add_number(parser, "--decoder-depth", 4, "blocks of the reconstructor")
    bench_options.add_decoder_mask(parser)
    bench_options.add_mask_source(parser)
    bench_options.add_target(parser)


def _kernels(parser: Parser) -> None:
    """count the kernels, bytes and multiply-adds of a GPU step, without a GPU"""
    bench_options.add_size(parser, "base")
    add_number(parser, "--batch-size", 64, "clips per step")
    bench_options.add_clip(parser)
    bench_options.add_decoder_mask(parser)
    bench_options.add_mask_source(parser)
    text = "reconstruction target, except in plain VideoMAE (default %(default)s)"
    parser.add_argument("--target", choices=("pixels", "ema"), default="pixels", help=text)
    bench_options.add_precision(parser, "bfloat16")  # as on a GPU, also when run on a CPU
    choices, text = ("plain", "default", "literal", "pixels", "both"), "variant(s) of the step"
    add_several(parser, "--variant", choices[:2], text, "variants", choices=choices)
    add_number(parser, "--operators", 12, "number of slowest PyTorch operators to list")
    for name, default, what in (
        ("--product-tflops", 600.0, "speed of matrix products, in 10^12 operations per second"),
        (
            "--attention-tflops",
            350.0,
            "speed of fused attention, in 10^12 operations per second; backward 0.8 of it",
        ),
        (
            "--arithmetic-tflops",
            30.0,
            "speed of float32 arithmetic, in 10^12 operations per second",
        ),
        ("--memory-tb-s", 3.6, "bandwidth of the GPU's memory, in TB per second"),
        ("--launch-us", 2.5, "shortest time of a kernel, in microseconds"),
    ):
        _add_assumed(parser, name, default, what)


def _memory(parser: Parser) -> None:
    """measure the memory of a step, and estimate the largest batch of a GPU"""
    bench_options.add_sizes(parser)
    bench_options.add_clip(parser)
    bench_options.add_precision(parser, "bfloat16")  # most rows are for GPUs, on any machine
    text = "GB to leave free on a GPU for CUDA, workspaces and fragmentation (default %(default)s)"
    parser.add_argument("--reserve-gb", type=float, default=2.0, help=text, metavar="GB")
    text = "size to measure on a CPU (default %(default)s); a GPU measures every --size"
    sizes = [*values_of(Size), "none"]
    parser.add_argument("--measured-size", choices=sizes, default="small", help=text)
    add_device(parser)
    bench_options.add_threads(parser)


def _train(parser: Parser) -> None:
    """measure clips per second of a real pre-training, and find its bottleneck"""
    text = "recipe and settings, as for hpm-video pretrain (default: none)"
    parser.add_argument("settings", nargs="*", metavar="RECIPE key=value", help=text)
    know_settings(parser, PretrainConfig)
    text = "optimizer steps; the first third does not count"
    add_number(parser, "--steps", 12, text)
    text = "number of toy videos, if data.manifest is empty"
    add_number(parser, "--videos", 16, text, dest="num_videos")
    bench_options.add_threads(parser)


def _plan(parser: Parser) -> None:
    """estimate hours, cores, bandwidth and bottleneck of a recipe on 1 to 512 GPUs"""
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs=1, help="recipe of a pre-training, or a YAML file"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings that override the recipe's"
    )
    know_settings(parser, PretrainConfig)
    parser.add_argument("--gpus", type=int, nargs="+", help="numbers of GPUs (default: 1 to 512)")
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, help="GPUs per node (default %(default)s)"
    )
    text = "videos in the data set (default: in data.manifest)"
    parser.add_argument("--videos", type=int, help=text, dest="num_videos")
    rate = parser.add_argument_group("speed of one GPU: the first of these that is given counts")
    rate.add_argument("--clips-per-s", type=float, help="clips per second of a training step")
    text = "measure it on this machine, with the recipe's steps and videos; takes a minute or more"
    rate.add_argument("--here", action="store_true", help=text)
    rate.add_argument("--step-json", metavar="FILE", help="result of bench step or bench train")
    _add_assumed(
        rate, "--teraflops", 989.0, "peak of a GPU in bfloat16, in 10^12 operations per second"
    )
    _add_assumed(rate, "--utilisation", 0.2, "share of the peak that training reaches")
    loader = parser.add_argument_group("the loader")
    loader.add_argument("--loader-json", metavar="FILE", help="result of bench loader")
    loader.add_argument(
        "--like", choices=["k400", "ssv2"], default="ssv2", help="kind of videos in --loader-json"
    )
    loader.add_argument(
        "--files",
        choices=["raw", "transcoded"],
        default="raw",
        help="kind of files in --loader-json",
    )
    text = "clips per second per core, without --loader-json; the default is for ssv2"
    _add_assumed(loader, "--clips-per-core", 37.4, text)
    loader.add_argument(
        "--cores-per-gpu", type=float, help="decoding cores per GPU (default: data.num_workers)"
    )
    machine = parser.add_argument_group("machines")
    for name, default, what in (
        ("--node-gb-s", 300.0, "GB per second per GPU of an all-reduce within a node"),
        ("--network-gb-s", 25.0, "GB per second per GPU of an all-reduce between nodes"),
        ("--overlap", 0.8, "share of the last backward pass that overlaps with the all-reduce"),
        (
            "--launch-ms",
            10.0,
            "shortest time of a micro-batch, in which its kernels are launched, in ms",
        ),
        ("--video-kb", 182.0, "size of a video file in kB"),
        ("--copy-gb-s", 10.0, "GB per second from a GPU to host memory"),
        ("--storage-gb-s", 1.0, "GB per second that a node writes to storage"),
    ):
        _add_assumed(machine, name, default, what)


def _add_assumed(group: Group | Parser, name: str, default: float, what: str) -> None:
    """Add an option for a value that is assumed, not measured."""
    group.add_argument(name, type=float, default=default, help=f"{what} (default {default:g})")


def _teacher(parser: Parser) -> None:
    """compare sparse teachers, and motion, with a teacher that sees all tokens"""
    bench_options.add_timing(parser, batch_size=20)
    bench_options.add_threads(parser)
    parser.add_argument(
        "checkpoints", metavar="CHECKPOINT", nargs="+", help="checkpoint or run folder"
    )
    parser.add_argument("--manifest", nargs="+", required=True, help="list(s) of videos")
    parser.add_argument(
        "--root", help="folder where relative paths start (default: the folder of each list)"
    )
    add_number(parser, "--clips", 200, "videos of the lists, one clip each", dest="num_clips")
    text = "random masks with which to measure the loss of a clip"
    add_number(parser, "--masks", 32, text, dest="num_masks")
    views, text = values_of(View), "tokens that sparse teachers see"
    add_several(parser, "--view", views, text, "views", choices=views)
    bench_options.add_token_ratios(parser, [0.5, 0.25, 0.1])
    text = "numbers of teacher passes, over different tokens, to average"
    add_several(parser, "--draws", [1, 2], text, "draws", type=int, metavar="K")
    text = "other source of masks to compare; none: leave it out"
    add_several(parser, "--source", ["motion"], text, "sources", choices=("motion", "none"))


def _loader(parser: Parser) -> None:
    """measure clips per second of each decoder on one thread, compared with a classic loader"""
    parser.add_argument(
        "--source", metavar="FOLDER", help="folder of source videos (default: toy videos)"
    )
    add_number(parser, "--videos", 6, "videos of each kind", dest="num_videos")
    add_number(parser, "--rounds", 5, "rounds whose median counts")
    add_number(parser, "--crop-size", 224, "height and width of a clip in pixels")
    readers = values_of(Decoder)
    add_several(parser, "--decoder", readers, "decoders to measure", "decoders", choices=readers)


# Options (``dest``) are the keywords of ``hpm_video.bench.NAME.bench_NAME``, which returns the
# `Report`. The docstring is the help text. ``settings`` become a config.
BENCHES: dict[str, Callable[[Parser], None]] = {
    "step": _step,
    "finetune": _finetune,
    "flops": _flops,
    "kernels": _kernels,
    "memory": _memory,
    "train": _train,
    "plan": _plan,
    "teacher": _teacher,
    "loader": _loader,
    "ablation": bench_ablation.add_arguments,
}


def add_arguments(parser: Parser) -> None:
    """Add a sub-command per benchmark."""
    jobs = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, add_options in BENCHES.items():
        what = add_options.__doc__
        bench = jobs.add_parser(name, help=what, description=what)
        if name != "ablation":
            bench.add_argument(
                "--json", metavar="FILE", help="file to write the result to, as JSON"
            )
        add_options(bench)


def run(arguments: Namespace) -> int:
    """Run the chosen benchmark, print its report, and write it as JSON."""
    if arguments.bench == "ablation":  # writes a folder of results instead of one report
        return bench_ablation.run(arguments)
    from hpm_video.config.limits import at_least

    asked = {key: value for key, value in vars(arguments).items() if key not in ("job", "bench")}
    json_path, threads = asked.pop("json"), asked.pop("threads", None)
    if threads is not None:
        at_least("--threads", threads, 1)
    if "settings" in asked:
        words = [*asked.pop("recipe", ()), *asked.pop("settings")]
        asked["config"] = bench_options.config_from(words)
    import torch  # after mistakes in settings are rejected

    from hpm_video.bench.report import check_json_path, publish

    check_json_path(json_path)
    if threads is not None:
        torch.set_num_threads(threads)
    name = arguments.bench
    bench = getattr(import_module(f"hpm_video.bench.{name}"), f"bench_{name}")
    publish(bench(**asked), json_path)
    return 0
