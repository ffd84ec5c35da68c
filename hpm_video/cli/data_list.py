"""`hpm-video data list` on the command line."""

import argparse
from collections.abc import Callable

from hpm_video.data.prepare import listing
from hpm_video.data.prepare.official import DATA_SETS
from hpm_video.runtime.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", metavar="DIR", help="a folder of videos per class")
    source.add_argument("--list", metavar="FILE", help="any list: path, label, ...")
    for name, data_set in DATA_SETS.items():
        source.add_argument(
            f"--{name}",
            metavar="DIR",
            help=f"{data_set.title}: a folder with its videos and official files",
        )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="MANIFEST",
        help="csv to write; beside it classes.txt (names in the order of the labels) and "
        "MANIFEST_missing.csv (videos that are not there)",
    )
    parser.add_argument("--split", help="train, val or test of a data set (default train)")
    parser.add_argument("--fold", type=int, help="1 to 3, of UCF101 and HMDB51 (default 1)")
    parser.add_argument(
        "--annotations", metavar="DIR", help="official files, if they lie elsewhere or repeatedly"
    )
    parser.add_argument("--root", metavar="DIR", help="where relative paths of a --list start")
    parser.add_argument(
        "--classes", metavar="FILE", help="class names in the order to number them, one a line"
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Write the manifest and say what was found, line by line; returns the exit code.

    Raises ValueError and FileNotFoundError as the functions of `listing` do.
    """
    official = next((name for name in DATA_SETS if getattr(arguments, name) is not None), None)
    for option, is_used in [
        ("split", official is not None),
        ("fold", official is not None),
        ("annotations", official is not None),
        ("root", arguments.list is not None),
    ]:
        value = getattr(arguments, option)
        if value is not None and not is_used:
            used_with = "--list" if option == "root" else "the official files of a data set"
            raise ValueError(f"--{option} ({value}) must be used with {used_with} only")
    output, classes = arguments.output, arguments.classes
    if official is not None:
        listed = listing.list_official(
            official,
            getattr(arguments, official),
            output,
            split="train" if arguments.split is None else arguments.split,
            fold=1 if arguments.fold is None else arguments.fold,
            annotations=arguments.annotations,
            classes=classes,
        )
    elif arguments.list is not None:
        listed = listing.list_own(arguments.list, output, root=arguments.root, classes=classes)
    else:
        listed = listing.list_folder(arguments.folder, output, classes=classes)
    say(listed.summary())
    for note in listed.notes:
        say(f"note: {printable(note)}")
    return 0
