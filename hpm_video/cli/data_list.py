"""``hpm-video data list``."""

import argparse
from typing import get_args

from hpm_video.cli.options import add_output, add_root
from hpm_video.data.lists.shards import is_shards
from hpm_video.data.prepare import listing
from hpm_video.data.prepare.official import DATA_SETS
from hpm_video.data.prepare.tree import Images
from hpm_video.runtime.files import printable

HELP = "write a manifest of a data set: what is there, what is missing, the class names"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--folder", metavar="DIR", help="a folder of videos, or of folders of frames, per class"
    )
    text = "any list: path, label, ..."
    source.add_argument("--manifest", "--list", dest="list", metavar="FILE", help=text)
    for name, data_set in DATA_SETS.items():
        text = f"{data_set.title}: a folder with its videos and official files"
        source.add_argument(f"--{name.replace('_', '-')}", metavar="DIR", help=text)
    text = (
        "csv to write; beside it classes.txt (names in the order of the labels) and "
        "MANIFEST_missing.csv (videos that are not there)"
    )
    add_output(parser, text, metavar="MANIFEST")
    text = (
        "train, val or test of a data set (default train); the rows of a --manifest whose column "
        "split says so"
    )
    parser.add_argument("--split", help=text)
    parser.add_argument("--fold", type=int, help="1 to 3, of UCF101 and HMDB51 (default 1)")
    text = "official files, if they lie elsewhere or repeatedly"
    parser.add_argument("--annotations", metavar="DIR", help=text)
    text = "columns of a --manifest: when each row's part of its video begins and ends"
    parser.add_argument("--seconds", nargs=2, metavar=("START", "END"), help=text)
    text = "the same, as numbers of frames from 0; END is the first that is not in the part"
    parser.add_argument("--frames", nargs=2, metavar=("START", "END"), help=text)
    text = (
        "what has the labels of a --manifest that is tars: cls (default, KEY.cls), txt, or "
        "json.FIELD, a field of KEY.json"
    )
    parser.add_argument("--label", metavar="WHAT", help=text)
    text = "what stands between several labels in a cell of a --manifest (default: one label)"
    parser.add_argument("--separator", metavar="TEXT", help=text)
    add_root(parser, "where relative paths of a --manifest start")
    text = (
        "images of a --folder: frames, where each folder of numbered ones is a video, or stills, "
        "each a video of its own (default: frames, where at least half of the numbers are there)"
    )
    parser.add_argument("--images", choices=get_args(Images), help=text)
    text = "class names in the order to number them, one a line"
    parser.add_argument("--classes", metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> int:
    official = next((name for name in DATA_SETS if getattr(arguments, name) is not None), None)
    if arguments.images is not None and arguments.folder is None:
        raise ValueError(f"--images ({arguments.images}) must be used with --folder only")
    of_lists = ("root", "seconds", "frames", "separator")  # alone; split is of both
    for option in ("split", "fold", "annotations", *of_lists):
        of_list = option in ("split", *of_lists) and arguments.list is not None
        of_data_set = option not in of_lists and official is not None
        if (value := getattr(arguments, option)) is not None and not (of_list or of_data_set):
            used_with = "--manifest" if option in of_lists else "the official files of a data set"
            used_with += " or --manifest" * (option == "split")
            text = value if isinstance(value, str | int) else " ".join(value)
            raise ValueError(f"--{option} ({text}) must be used with {used_with} only")
    output, classes, label = arguments.output, arguments.classes, arguments.label
    if label is not None and not (arguments.list is not None and is_shards(arguments.list)):
        raise ValueError(f"--label ({label}) must be used with a --manifest that is tars only")
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
        listed = listing.list_own(
            arguments.list,
            output,
            root=arguments.root,
            classes=classes,
            split=arguments.split,
            seconds=arguments.seconds,
            frames=arguments.frames,
            label=label,
            separator=arguments.separator,
        )
    else:
        listed = listing.list_folder(
            arguments.folder, output, classes=classes, images=arguments.images
        )
    print(listed.summary())
    for note in listed.notes:
        print(f"note: {printable(note)}")
    return 0
