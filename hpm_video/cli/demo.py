"""``hpm-video demo``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output-dir", default="outputs/demo", help="(default %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="only see that everything runs: learns nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    from hpm_video.cli.demo_run import demo, table

    result = demo(arguments.output_dir, quick=arguments.quick)
    if result is None:
        return 1
    rows = table(result)
    width = max(len(what) for what, _, _ in rows)
    for what, figure, other in rows:
        print(f"{what:<{width}}  {figure:>7}  {other}")
    print(result.page)
    return 0
