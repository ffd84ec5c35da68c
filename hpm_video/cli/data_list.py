"""``hpm-video data list``."""

import argparse

from hpm_video.cli.options import add_output, add_root
from hpm_video.data.lists.shards import is_shards
from hpm_video.data.prepare import listing
from hpm_video.data.prepare.official import DATA_SETS
from hpm_video.runtime.files import printable

HELP = "write a manifest of a data set: what is there, what is missing, the class names"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", metavar="DIR", help="a folder of videos per class")
    text = "any list: path, label, ..."
    source.add_argument("--manifest", "--list", dest="list", metavar="FILE", help=text)
    for name, data_set in DATA_SETS.items():
        text = f"{data_set.title}: a folder with its videos and official files"
        source.add_argument(f"--{name}", metavar="DIR", help=text)
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
    text = (
        "what has the labels of a --manifest that is tars: cls (default, KEY.cls), txt, or "
        "json.FIELD, a field of KEY.json"
    )
    parser.add_argument("--label", metavar="WHAT", help=text)
    add_root(parser, "where relative paths of a --manifest start")
    text = "class names in the order to number them, one a line"
    parser.add_argument("--classes", metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> int:
    official = next((name for name in DATA_SETS if getattr(arguments, name) is not None), None)
    for option in ("split", "fold", "annotations", "root"):
        of_list = option in ("split", "root") and arguments.list is not None
        of_data_set = option != "root" and official is not None
        if (value := getattr(arguments, option)) is not None and not (of_list or of_data_set):
            used_with = "--manifest" if option == "root" else "the official files of a data set"
            used_with += " or --manifest" * (option == "split")
            raise ValueError(f"--{option} ({value}) must be used with {used_with} only")
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
        more = {"root": arguments.root, "split": arguments.split, "label": label}
        listed = listing.list_own(arguments.list, output, classes=classes, **more)
    else:
        listed = listing.list_folder(arguments.folder, output, classes=classes)
    print(listed.summary())
    for note in listed.notes:
        print(f"note: {printable(note)}")
    return 0
