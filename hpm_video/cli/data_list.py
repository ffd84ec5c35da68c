"""``hpm-video data list``."""

import argparse
from typing import get_args

from hpm_video.cli.options import add_output, add_root
from hpm_video.data.lists.places import is_shards
from hpm_video.data.prepare import listing
from hpm_video.data.prepare.official import DATA_SETS
from hpm_video.data.prepare.tree import Images
from hpm_video.runtime.files import printable

HELP = "write a list of the videos in a folder or data set, with classes and what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--folder",
        metavar="DIR",
        help="folder of videos, or of one subfolder per class; folders of frames count as videos",
    )
    text = "list of videos in any format: path, label, ..."
    source.add_argument("--manifest", "--list", dest="list", metavar="FILE", help=text)
    for name, data_set in DATA_SETS.items():
        text = f"folder with the videos and official files of {data_set.title}"
        source.add_argument(f"--{name.replace('_', '-')}", metavar="DIR", help=text)
    text = (
        "CSV to write; beside it appear classes.txt (names in the order of the labels) and "
        "MANIFEST_missing.csv (missing videos)"
    )
    add_output(parser, text, metavar="MANIFEST")
    text = (
        "train, val or test split of a data set (default train); for --manifest, the rows with "
        "this value in the column split"
    )
    parser.add_argument("--split", help=text)
    parser.add_argument("--fold", type=int, help="fold of UCF101 or HMDB51, 1 to 3 (default 1)")
    text = "folder of the official files, if they lie elsewhere or more than once"
    parser.add_argument("--annotations", metavar="DIR", help=text)
    text = (
        "columns of --manifest with the seconds at which a row's part of its video starts and ends"
    )
    parser.add_argument("--seconds", nargs=2, metavar=("START", "END"), help=text)
    text = (
        "columns of --manifest with the frames, from 0, of a row's part; END is the first after it"
    )
    parser.add_argument("--frames", nargs=2, metavar=("START", "END"), help=text)
    text = (
        "where tar files in --manifest have labels: cls (KEY.cls, the default), txt, or "
        "json.FIELD, a field of KEY.json"
    )
    parser.add_argument("--label", metavar="WHAT", help=text)
    text = "separator of several labels in a cell of --manifest (default: one label per video)"
    parser.add_argument("--separator", metavar="TEXT", help=text)
    add_root(parser, "folder where relative paths of --manifest start")
    text = (
        "images in --folder; frames: each folder of numbered images is a video; stills: each image "
        "is a video (default: frames, if at least half of the numbers are present)"
    )
    parser.add_argument("--images", choices=get_args(Images), help=text)
    text = "the folders in --folder are not classes: list videos without labels"
    parser.add_argument("--no-labels", dest="labels", action="store_false", help=text)
    text = "file of class names in the order of their numbers, one per line"
    parser.add_argument("--classes", metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> int:
    official = next((name for name in DATA_SETS if getattr(arguments, name) is not None), None)
    if arguments.images is not None and arguments.folder is None:
        raise ValueError(f"--images ({arguments.images}) must be used with --folder")
    if not arguments.labels and arguments.folder is None:
        raise ValueError("--no-labels must be used with --folder")
    of_lists = ("root", "seconds", "frames", "separator")  # for lists only; split applies to both
    for option in ("split", "fold", "annotations", *of_lists):
        of_list = option in ("split", *of_lists) and arguments.list is not None
        of_data_set = option not in of_lists and official is not None
        if (value := getattr(arguments, option)) is not None and not (of_list or of_data_set):
            used_with = "--manifest" if option in of_lists else "a data set, such as --ucf101"
            used_with += ", or --manifest" * (option == "split")
            text = value if isinstance(value, str | int) else " ".join(value)
            raise ValueError(f"--{option} ({text}) must be used with {used_with}")
    output, classes, label = arguments.output, arguments.classes, arguments.label
    if label is not None and not (arguments.list is not None and is_shards(arguments.list)):
        raise ValueError(f"--label ({label}) must be used with a --manifest of tars only")
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
            arguments.folder,
            output,
            classes=classes,
            images=arguments.images,
            labels=arguments.labels,
        )
    print(listed.summary())
    for note in listed.notes:
        print(f"note: {printable(note)}")
    return 0
