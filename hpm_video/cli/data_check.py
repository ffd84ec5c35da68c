"""``hpm-video data check``."""

import argparse
import shlex
from functools import partial
from pathlib import Path

from hpm_video.cli.options import add_decoding, add_one_manifest
from hpm_video.runtime.files import check_is_ours, printable, write_atomically

HELP = "decode every video of a list, and write its status and number of frames into the list"

_TIMEOUT_S = 120  # per video


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_one_manifest(parser)
    text = "file to write the list to (default: M itself)"
    parser.add_argument("-o", "--output", metavar="FILE", help=text)
    text = "file for the HTML summary (default: beside the list)"
    parser.add_argument("--page", metavar="FILE", help=text)
    text = "decode only the start, the end and places between"
    parser.add_argument("--quick", action="store_true", help=text)
    text = "ignored: every video is decoded with PyAV, whose index serves all decoders"
    add_decoding(parser, timeout_s=_TIMEOUT_S, decoder=text)


def run(arguments: argparse.Namespace) -> int:
    """Check a list; returns 1 if some videos are bad, else 0."""
    from hpm_video.data.lists.classes import read_classes
    from hpm_video.data.lists.moved import way_to_missing
    from hpm_video.data.lists.places import list_root
    from hpm_video.data.lists.rows import read_rows
    from hpm_video.data.prepare.check import check_manifest
    from hpm_video.data.prepare.check_report import make_report, report_page, report_text

    output = Path(arguments.output or arguments.manifest)
    page = Path(arguments.page or output.with_name(f"{output.stem}.check.html"))
    if arguments.page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise ValueError(f"page ({page}) must be a file in an existing folder")
    if page.resolve() in (output.resolve(), Path(arguments.manifest).resolve()):
        raise ValueError(f"page ({page}) must not be the list itself")
    check_is_ours(page, name="page")
    beside = Path(arguments.manifest).parent / "classes.txt"
    classes = read_classes(beside).names if beside.is_file() else ()
    checked = check_manifest(
        arguments.manifest,
        output=output,
        root=arguments.root,
        quick=arguments.quick,
        num_workers=arguments.num_workers,
        timeout_s=arguments.decode_timeout_s,
    )
    rows = (row for _, row in read_rows(checked.manifest))
    full = _full_check(arguments) if arguments.quick else ""
    report = make_report(
        rows,
        classes=classes,
        full_check=full,
        way_to_missing=partial(way_to_missing, output, root=list_root(output, arguments.root)),
    )
    write_atomically(page, [report_page(report, title=str(output))])
    if checked.num_before:
        print(f"continued an interrupted check, which had finished {checked.num_before:,} videos")
    if checked.num_outdated:
        print(
            f"an interrupted check of {checked.num_outdated:,} videos was from an older version: "
            "they were checked again"
        )
    print(report_text(report, page=str(page)))
    if checked.original is not None:
        print(printable(f"copy of the original list: {checked.original}"))
    print(printable(str(page)))
    print(printable(str(checked.manifest)))
    return 1 if report.bad.num_videos else 0


def _full_check(arguments: argparse.Namespace) -> str:
    """The same command without --quick."""
    words = ["hpm-video", "data", "check", arguments.manifest]
    for name in ("root", "output"):
        words += [f"--{name}", value] if (value := getattr(arguments, name)) is not None else []
    if (timeout_s := arguments.decode_timeout_s) != _TIMEOUT_S:
        words += ["--decode-timeout-s", f"{timeout_s:g}"]
    return shlex.join(words)
