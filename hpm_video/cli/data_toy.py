"""``hpm-video data toy``."""

import argparse

from hpm_video.cli.options import add_numbers, add_output_dir

_USUAL = {"num_videos": 800, "size": 64, "num_frames": 24, "seed": 0, "num_workers": 2}
HELP = "make videos of moving objects in 8 classes that differ only in motion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_dir(parser, "folder for the videos and their list", required=True)
    meanings = {
        "num_videos": "number of videos",
        "size": "height and width in pixels",
        "num_frames": "frames per video",
        "seed": "seed of the motions",
        "num_workers": "encoding processes",
    }
    add_numbers(parser, meanings, _USUAL)


def run(arguments: argparse.Namespace) -> int:
    from hpm_video.data.prepare.toy import write_toy_videos

    try:
        numbers = {name: getattr(arguments, name) for name in _USUAL}
        manifest = write_toy_videos(arguments.output_dir, **numbers)
    except OSError as error:
        raise ValueError(
            f"output_dir ({arguments.output_dir}) cannot be written: {error.strerror}"
        ) from error
    print(manifest)
    return 0
