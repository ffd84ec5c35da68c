"""Options and output of ``hpm-video data check`` and ``hpm-video data transcode``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from hpm_video.config.values import Decoder
from hpm_video.runtime.files import check_is_ours, printable, write_atomically

# The jobs are imported when they run, so that --help and typing errors answer at once.

_MAX_NAMED = 20  # bad videos on the terminal


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `data check`."""
    parser.add_argument("manifest", metavar="M", help="list of videos, of any kind")
    parser.add_argument("-o", "--output", help="where to write the list (default: over M)")
    parser.add_argument("--page", help="HTML page of the summary (default: beside the list)")
    parser.add_argument(
        "--quick", action="store_true", help="decode only head, tail and places between"
    )
    _add_common_arguments(parser, timeout_s=120)


def run_check(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Check a list; exit code 1 when some videos are bad."""
    from hpm_video.data.lists.classes import read_classes
    from hpm_video.data.prepare.check import check_manifest
    from hpm_video.data.prepare.check_report import make_report, report_page, report_text

    output = Path(arguments.output or arguments.manifest)
    page = Path(arguments.page or output.with_name(f"{output.stem}.check.html"))
    if arguments.page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise ValueError(f"page ({page}) must be a file in a folder that exists")
    if page.resolve() in (output.resolve(), Path(arguments.manifest).resolve()):
        raise ValueError(f"page ({page}) must be another file than the list")
    check_is_ours(page, name="page")
    beside = Path(arguments.manifest).parent / "classes.txt"
    classes = read_classes(beside).names if beside.is_file() else ()
    checked = check_manifest(
        arguments.manifest,
        output=output,
        root=arguments.root,
        quick=arguments.quick,
        decoder=arguments.decoder,
        num_workers=arguments.workers,
        timeout_s=arguments.timeout,
    )
    report = make_report(checked.rows, classes=classes)
    write_atomically(page, [report_page(report, title=str(output))])
    if checked.num_before:
        say(f"went on from an interrupted check of {checked.num_before:,} videos")
    say(report_text(report))
    if checked.original is not None:
        say(printable(f"as it was: {checked.original}"))
    say(printable(str(page)))
    say(printable(str(checked.manifest)))
    return 1 if report.bad else 0


def add_transcode_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `data transcode`."""
    from hpm_video.data.prepare.encode import PRESETS, Encoding

    usual = Encoding()
    parser.add_argument("manifest", metavar="M", help="list of videos, of any kind")
    parser.add_argument("-o", "--output-dir", required=True, help="folder for videos and list")
    parser.add_argument(
        "--short-side", type=int, default=usual.short_side,
        help="pixels of the shorter side; smaller videos stay (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--gop", type=int, default=usual.gop, help="frames between keyframes (default %(default)s)"
    )
    parser.add_argument(
        "--crf", type=int, default=usual.crf, help="x264's quality (default %(default)s)"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default=usual.preset, help="x264's (default %(default)s)"
    )
    parser.add_argument("--fps", type=float, help="new frame rate (default: keep every frame)")
    parser.add_argument(
        "--part", default="1/1", metavar="K/N",
        help="only the K-th of N parts, for N processes; once all are done, run without it",
    )  # fmt: skip
    _add_common_arguments(parser, timeout_s=600)


def run_transcode(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Encode a list; exit code 1 when some of its videos could not be encoded."""
    from hpm_video.data.prepare.encode import Encoding
    from hpm_video.data.prepare.transcode import transcode_manifest
    from hpm_video.data.prepare.verdict import OK

    part = re.fullmatch(r"(\d+)/(\d+)", arguments.part)
    if part is None:
        raise ValueError(f"part ({arguments.part}) must be K/N, as 1/8")
    done = transcode_manifest(
        arguments.manifest,
        arguments.output_dir,
        Encoding(
            short_side=arguments.short_side,
            gop=arguments.gop,
            crf=arguments.crf,
            preset=arguments.preset,
            fps=arguments.fps,
        ),
        root=arguments.root,
        decoder=arguments.decoder,
        num_workers=arguments.workers,
        timeout_s=arguments.timeout,
        part=(int(part[1]), int(part[2])),
    )
    if done.num_before:
        say(f"{done.num_before:,} videos were there from an earlier run")
    if not done.rows:
        say(f"part {arguments.part}: {done.num_new:,} videos tried")
        return 0
    bad = [row for row in done.rows if row.get("status", "").strip() != OK]
    for row in bad[:_MAX_NAMED]:
        say(f"left out: {printable(row['source'])}: {printable(row.get('reason', ''))}")
    if len(bad) > _MAX_NAMED:
        say(f"left out: {len(bad) - _MAX_NAMED:,} more, see the list")
    say(f"{len(done.rows):,} videos: {len(done.rows) - len(bad):,} encoded")
    if (gain := done.gain) is not None:
        before_s, after_s = gain.clip_s
        say(
            f"size: {gain.source_bytes / 1e9:.4g} -> {gain.num_bytes / 1e9:.4g} GB "
            f"({gain.num_bytes / gain.source_bytes:.2f} x)"
        )
        say(
            f"reading clips of 16 frames: {1 / before_s:.1f} -> {1 / after_s:.1f} per second "
            f"({before_s / after_s:.1f} x), {gain.num_timed} videos timed"
        )
    say(printable(str(done.manifest)))
    return 1 if bad else 0


def _add_common_arguments(parser: argparse.ArgumentParser, *, timeout_s: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--root", help="folder where relative paths start (default: that of M)")
    parser.add_argument(
        "--decoder", choices=get_args(Decoder), default="decord",
        help="as data.decoder of training (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=cores, help="videos at once (default: cores, %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=timeout_s, metavar="S",
        help="seconds that a video may take before it counts as bad (default %(default)s)",
    )  # fmt: skip
