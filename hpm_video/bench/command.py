"""The arguments of ``hpm-video bench``. Imports nothing slow, so that --help answers at once."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hpm_video.ablation import command as ablation

if TYPE_CHECKING:
    from hpm_video.bench.report import Report

BENCHES = {
    "step": "time of a whole pre-training step: VideoMAE, HPM literal, sparse and default, "
    "transformers' VideoMAE",
    "flops": "multiply-adds of a step, counted with fvcore; no timing",
    "mask": "time of mask making against a loop over clips",
    "teacher": "how well sparse teachers stand in for one that sees all, and at what cost",
    "loader": "clips per second on one thread, of each reader, beside the classic loader",
    "eval": "reading all views of a video at once, against a video read anew for every view",
    "ranking": "time, memory and gradients of the ranking loss against the naive form",
    "attention": "attention forward and backward: the form we choose, PyTorch's, plain products",
    "checkpoint": "size of a checkpoint, and how long it stops training and is written",
    "ablation": "a study: variants x seeds x data sets, resumable, compared with intervals",
    "pictures": "the pictures of a pre-training in TensorBoard against its steps",
}
VIEWS = ("tokens", "tubes", "frames", "spread")
DECODERS = ("decord", "torchcodec", "pyav")
_ALL = "(default: all)"
SIZES = ("tiny", "small", "base", "large", "huge", "giant")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command per bench."""
    jobs = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, what in BENCHES.items():
        bench = jobs.add_parser(name, help=what, description=what)
        if name == "ablation":
            ablation.add_arguments(bench)
            continue
        bench.add_argument("--json", metavar="FILE", help="also write the result here")
        if name == "loader":
            _add_loader(bench)
            bench.add_argument(
                "--decoder", nargs="+", choices=DECODERS, default=list(DECODERS), help=_ALL
            )
            continue
        if name == "eval":
            _add_loader(bench)
            text = "(default %(default)s)"
            bench.add_argument("--decoder", choices=DECODERS, default="decord", help=text)
            continue
        if name == "checkpoint":
            _add_checkpoint(bench)
            continue
        if name != "flops":
            _add(bench, "--rounds", {"mask": 50, "pictures": 1}.get(name, 5), "median of so many")
            bench.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
            bench.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
            _add(
                bench,
                "--batch-size",
                {"step": 4, "attention": 4, "pictures": 4, "teacher": 20}.get(name, 32),
                "clips",
            )
        if name == "teacher":
            bench.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="or run folder")
            bench.add_argument("--manifest", nargs="+", required=True, help="list(s) of videos")
            bench.add_argument("--root", help="where relative paths of the lists start")
            _add(bench, "--clips", 200, "videos of the lists, one clip each")
            _add(bench, "--masks", 32, "random masks that measure the loss of a clip")
            bench.add_argument("--view", nargs="+", choices=VIEWS, default=list(VIEWS), help=_ALL)
            bench.add_argument(
                "--token-ratio", type=float, nargs="+", metavar="R", default=[0.5, 0.25, 0.1]
            )
            bench.add_argument("--draws", type=int, nargs="+", metavar="K", default=[1, 2])
            continue
        if name == "attention":
            continue
        if name == "ranking":
            _add(bench, "--tokens", 1408, "masked tokens per clip")
            continue
        _add(bench, "--frames", 16, "per clip")
        _add(bench, "--crop-size", 224, "pixels")
        if name in ("mask", "pictures"):
            continue
        bench.add_argument(
            "--token-ratio",
            type=float,
            nargs="+",
            metavar="R",
            default=[0.1] if name == "step" else [0.5, 0.25, 0.1],
            help="share(s) of the tokens the teacher sees (default %(default)s)",
        )
        bench.add_argument(
            "--predictor-input",
            choices=["pixels", "encoded"],
            nargs="+",
            default=["pixels"] if name == "step" else ["pixels", "encoded"],
            help="what the predictor looks at, one or both to compare (default %(default)s)",
        )
        bench.add_argument(
            "--predictor-depth",
            type=int,
            nargs="+",
            metavar="L",
            default=[1] if name == "step" else [1, 2, 4],
            help="blocks of the predictor, one or several to compare (default %(default)s)",
        )
    step, flops = jobs.choices["step"], jobs.choices["flops"]
    for bench in (step, jobs.choices["pictures"]):
        bench.add_argument("--size", choices=SIZES, default="base")
        bench.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    step.add_argument("--compile", action="store_true", help="torch.compile every model")
    flops.add_argument(
        "--size", choices=SIZES, nargs="+", default=["small", "base", "large"], help="one or more"
    )
    _add(flops, "--decoder-depth", 4, "blocks of the reconstructor")


def _add_loader(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--source", metavar="FOLDER", help="videos to make it of (default: toys)")
    _add(bench, "--videos", 6, "of each kind")
    _add(bench, "--rounds", 5, "median of so many")
    _add(bench, "--crop-size", 224, "pixels")


def _add_checkpoint(bench: argparse.ArgumentParser) -> None:
    sizes = ["small", "base", "large"]
    bench.add_argument("--size", choices=SIZES, nargs="+", default=sizes, help="one or more")
    _add(bench, "--rounds", 3, "median of so many")
    bench.add_argument("--folder", help="where to write (default: a temporary folder)")
    bench.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Run the bench that was asked for, print its report and write it as JSON."""
    if arguments.bench == "ablation":  # a folder of results, not one report
        return ablation.run(arguments)
    import torch

    from hpm_video.bench.measure import at_least
    from hpm_video.bench.report import check_json_path, format_report, write_json

    check_json_path(arguments.json)
    if getattr(arguments, "threads", None) is not None:
        at_least("threads", arguments.threads, 1)
        torch.set_num_threads(arguments.threads)
    report = _MEASURE[arguments.bench](arguments)
    if arguments.json is not None:
        write_json(report, arguments.json)
    print(format_report(report))
    return 0


def _step(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.step import bench_step

    return bench_step(
        size=arguments.size,
        batch_size=arguments.batch_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        precision=arguments.precision,
        compile_models=arguments.compile,
        predictor_inputs=arguments.predictor_input,
        token_ratios=arguments.token_ratio,
        predictor_depths=arguments.predictor_depth,
        device=arguments.device,
    )


def _flops(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.flops import bench_flops

    return bench_flops(
        sizes=arguments.size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        decoder_depth=arguments.decoder_depth,
        predictor_inputs=arguments.predictor_input,
        token_ratios=arguments.token_ratio,
        predictor_depths=arguments.predictor_depth,
    )


def _pictures(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.pictures import bench_pictures

    return bench_pictures(
        size=arguments.size,
        batch_size=arguments.batch_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        precision=arguments.precision,
        device=arguments.device,
    )


def _mask(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.mask import bench_mask

    return bench_mask(
        batch_size=arguments.batch_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        device=arguments.device,
    )


def _attention(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.attention import bench_attention

    return bench_attention(
        batch_size=arguments.batch_size, rounds=arguments.rounds, device=arguments.device
    )


def _ranking(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.ranking import bench_ranking

    return bench_ranking(
        batch_size=arguments.batch_size,
        num_tokens=arguments.tokens,
        rounds=arguments.rounds,
        device=arguments.device,
    )


def _loader(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.loader import bench_loader

    return bench_loader(
        source=arguments.source,
        num_videos=arguments.videos,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        decoders=arguments.decoder,
    )


def _eval(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.views import bench_views

    return bench_views(
        source=arguments.source,
        num_videos=arguments.videos,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        decoder=arguments.decoder,
    )


def _checkpoint(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.checkpoint import bench_checkpoint

    return bench_checkpoint(
        sizes=arguments.size,
        rounds=arguments.rounds,
        folder=arguments.folder,
        device=arguments.device,
    )


def _teacher(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.measure import pick_device
    from hpm_video.bench.teacher import report_teachers, study_teachers

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    device = pick_device(arguments.device)
    rows = study_teachers(
        arguments.checkpoints,
        arguments.manifest,
        num_clips=arguments.clips,
        num_masks=arguments.masks,
        views=arguments.view,
        token_ratios=arguments.token_ratio,
        draws=arguments.draws,
        batch_size=arguments.batch_size,
        num_rounds=arguments.rounds,
        root=arguments.root,
        device=device,
        say=say,
    )
    return report_teachers(rows, device=device, num_masks=arguments.masks)


_MEASURE = {
    "step": _step,
    "flops": _flops,
    "mask": _mask,
    "teacher": _teacher,
    "loader": _loader,
    "eval": _eval,
    "ranking": _ranking,
    "attention": _attention,
    "checkpoint": _checkpoint,
    "pictures": _pictures,
}


def _add(parser: argparse.ArgumentParser, name: str, default: int, what: str) -> None:
    parser.add_argument(name, type=int, default=default, help=f"{what} (default {default})")
