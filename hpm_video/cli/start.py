"""``hpm-video start``: turn a folder of videos into settings and commands to run next.

Lists and checks the videos, chooses settings for their number, their length and the machine, times
some steps, and writes a commented YAML per job. Writes nothing into the folder of videos.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpm_video.cli.options import add_device, add_output_dir, add_root
from hpm_video.runtime.files import free_place, printable, shell_path, write_atomically

if TYPE_CHECKING:
    import torch

    from hpm_video.config.own_data import Choices, Computer, Videos

_UNFINISHED = ".hpm-video-start"  # marks the folder of an unfinished start
_MICRO_BATCH = 8  # clips per timed step on a CPU
_SHOWN_VIDEOS = 2  # videos named in the suggested commands
_JOBS = {"pretrain": "pre-training", "finetune": "fine-tuning"}
_UNCERTAIN = (
    "Accuracy is not guaranteed. Fine-tuned on 316 clips of 8 hand signs, a similar model reached "
    ".81 ± .03 pre-trained and .77 ± .05 from scratch, no significant difference (docs/results.md)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = (
        "folder with a subfolder of videos per class, or with videos only; or with such folders "
        "named train, val and test; or a list of videos, or a tar. Nothing is written into it"
    )
    parser.add_argument("folder", metavar="FOLDER", help=text)
    add_output_dir(parser, "new folder for lists, settings and runs (default: hpm_NAME)")
    text = "folder or list to evaluate on (default: a val or test folder, else --held-out)"
    parser.add_argument("--val", metavar="FOLDER", help=text)
    text = "share of each class to hold out if there are no val videos (default %(default)s)"
    parser.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help=text)
    text = "the folders are not classes: only pre-train"
    parser.add_argument("--no-labels", dest="labels", action="store_false", help=text)
    text = (
        "images in FOLDER; frames: each folder of numbered images is a video; stills: each image "
        "is a video"
    )
    parser.add_argument("--images", choices=("frames", "stills"), help=text)
    text = "limit of each training in hours; cuts epochs that would exceed it (default 12)"
    parser.add_argument("--hours", type=float, default=12.0, metavar="H", help=text)
    text = "decode every video completely in the check, instead of only parts of it"
    parser.add_argument("--full-check", action="store_true", help=text)
    add_root(parser, "folder where relative paths of a list start")
    add_device(parser)


@dataclass(frozen=True)
class Place:
    """The folder that a start writes. ``shown``: its path as typed in commands."""

    folder: Path
    is_new: bool

    @contextmanager
    def gone_after_errors(self) -> Iterator[None]:
        """Remove the new folder again after a refusal, so that a corrected command works."""
        try:
            yield
        except (ValueError, FileNotFoundError):
            if self.is_new:
                shutil.rmtree(self.folder)
            raise

    @property
    def shown(self) -> str:
        text = str(self.folder)
        return f"./{text}" if text.startswith("-") else text

    def inside(self, name: str) -> str:
        """A path in the folder, for commands."""
        return os.path.join(self.shown, name)

    def absolute(self, name: str) -> str:
        """The absolute path, for settings, which must work from any folder."""
        return os.path.join(os.path.abspath(self.folder), name)


def run(arguments: argparse.Namespace) -> int:
    place = _new_place(arguments)
    with place.gone_after_errors():
        return _start(arguments, place)


def _start(arguments: argparse.Namespace, place: Place) -> int:
    from hpm_video.data.prepare.own_lists import hold_out_of, list_own_videos, rows_of, start_of

    with _naming_videos_beside(arguments.folder):
        lists, notes = list_own_videos(
            arguments.folder, place.folder, val=arguments.val, root=arguments.root,
            labels=arguments.labels, images=arguments.images,
        )  # fmt: skip
    computer, device = _computer(arguments.device)  # fails before videos are decoded
    print(f"checking {sum(len(rows_of(file)) for file in lists.values()):,} videos", flush=True)
    _check(lists, full=arguments.full_check, num_workers=computer.cores)
    start = start_of(arguments.folder, arguments.root)
    notes += hold_out_of(lists, arguments.held_out, start=start)
    _report(lists, place, full=arguments.full_check)
    notes += _drop_useless(lists)
    videos = _videos_of(lists["train"], source=arguments.folder)
    notes += _classes_without_videos(lists, place, num_left=videos.num_classes)

    from hpm_video.config.own_data import choose_finetuning, choose_pretraining

    chosen = [choose_pretraining(videos, computer)]
    _set_places(chosen[0], lists, place, "pretrained", arguments.device)
    if videos.num_classes:
        lists["labelled"] = _labelled(lists["train"], notes)
        labelled = _videos_of(lists["labelled"], source=arguments.folder)
        chosen.append(choose_finetuning(labelled, computer, chosen[0]))
        _set_places(chosen[1], lists, place, "finetuned", arguments.device)
    print("timing a few steps", flush=True)
    _time(chosen, device, most_hours=arguments.hours)
    commands = list(_commands(lists, place, chosen))
    for one in chosen:
        one.config()  # raises before anything is written
        head = _head(one, computer, commands)
        write_atomically(place.folder / f"{one.job}.yaml", [one.yaml(head)])
    (place.folder / _UNFINISHED).unlink()
    for line in _summary(chosen, videos, lists, notes, place):
        print(printable(line))
    print("next:")
    for words, what in commands:
        print(printable(f"  {shlex.join(['hpm-video', *words])}  # {what}"))
    return 0


def _new_place(arguments: argparse.Namespace) -> Place:
    """The folder to write into. Raises ValueError if it holds anything else."""
    from hpm_video.data.lists.places import is_shards, list_exists, list_stem
    from hpm_video.data.lists.rows import is_video_name
    from hpm_video.runtime.files import make_folder

    source, output = arguments.folder, arguments.output_dir
    if not (list_exists(source) if is_shards(source) else os.path.lexists(source)):
        raise FileNotFoundError(f"{source} does not exist (expected a folder or list of videos)")
    if is_video_name(source) and os.path.isfile(source):
        raise ValueError(
            f"FOLDER ({source}) must be a folder or list of videos, not a video: "
            f"{_start_beside(source)}"
        )
    if not 0 <= arguments.held_out < 1:
        raise ValueError(f"--held-out ({arguments.held_out:g}) must be in [0, 1), such as 0.2")
    if not arguments.hours > 0:
        raise ValueError(f"--hours ({arguments.hours:g}) must be above 0, such as 12")
    is_folder = os.path.isdir(source)
    folder = Path(output or _own_name(source if is_folder else list_stem(source)))
    if not os.path.abspath(folder).isprintable():
        rule = "must be printable text: add -o DIR with another name"
        raise ValueError(f"output_dir ({folder}) {rule}")
    if is_folder and _is_inside(folder, source):
        raise ValueError(
            f"output_dir ({folder}) must lie outside of {source}, where nothing is written: "
            f"add -o {shlex.quote(_outside(source, folder.name))}"
        )
    marker = folder / _UNFINISHED
    said = hashlib.sha256(os.fsencode(os.path.abspath(source))).hexdigest()
    is_new = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    goes_on = marker.is_file() and marker.read_bytes() == said.encode()
    if not (is_new or goes_on):
        raise ValueError(
            f"output_dir ({folder}) must be a new folder, as nothing is overwritten: add -o "
            f"{shell_path(free_place(folder))}"
        )
    make_folder(folder, name="output_dir")
    for file in (*folder.glob("*.csv"), folder / "classes.txt") if goes_on else ():
        file.unlink(missing_ok=True)  # left by an interrupted start, like its check
    write_atomically(marker, [said])
    return Place(folder, is_new)


def _own_name(source: str) -> str:
    """The name of the folder to write if none is given, easy to type."""
    plain = re.sub(r"[^\w.-]+", "_", os.path.basename(os.path.abspath(source))).strip("_")
    return f"hpm_{plain or 'videos'}"


def _is_inside(folder: str | Path, other: str | Path) -> bool:
    place = Path(folder).resolve()
    return Path(other).resolve() in (place, *place.parents)


def _outside(source: str, name: str) -> str:
    return os.path.relpath(os.path.join(os.path.dirname(os.path.abspath(source)), name))


def _start_beside(file: str) -> str:
    """The command for the folder of a file; first that for its parent, if it may hold classes."""
    from hpm_video.data.prepare.tree import folders_beside, has_videos

    folder = os.path.dirname(file) or "."
    above = os.path.dirname(os.path.abspath(folder))
    is_class = has_videos(folder) and any(folders_beside(folder, depth=0))
    if not is_class or _is_inside(Path.home(), above):
        return _start_of(folder)
    parent = above if os.path.isabs(folder) else os.path.relpath(above)
    return f"if the folders in {parent} are classes, {_start_of(parent)}; else {_start_of(folder)}"


def _start_of(folder: str) -> str:
    """The command for a folder."""
    more = ""
    if _is_inside(name := _own_name(folder), folder):
        more = f" -o {shell_path(_outside(folder, name))}"
    return f"hpm-video start {shell_path(folder)}{more}"


@contextmanager
def _naming_videos_beside(source: str) -> Iterator[None]:
    """Add to the faults of a list that its folder, or a folder in it, has videos."""
    from hpm_video.data.lists.rows import is_video_name

    try:
        yield
    except ValueError as error:
        beside = os.path.dirname(source) or "."
        patterns = (Path(beside).glob(pattern) for pattern in ("*", "*/*"))
        if not os.path.isfile(source) or not any(
            is_video_name(str(path)) for path in itertools.chain(*patterns)
        ):
            raise
        raise ValueError(f"{error}; for the videos beside it: {_start_beside(source)}") from None


def _computer(name: str) -> tuple[Computer, torch.device]:
    """This machine, and the device to train on."""
    import torch

    from hpm_video.config.own_data import computer_here
    from hpm_video.runtime.distributed import pick_device
    from hpm_video.runtime.machine import device_words

    device = pick_device(name, setting="--device")
    gpu_gb = None
    if device.type == "cuda":
        gpu_gb = torch.cuda.get_device_properties(device).total_memory / 1e9
    return computer_here(device_words(device), gpu_gb=gpu_gb), device


def _check(lists: dict[str, Path], *, full: bool, num_workers: int) -> None:
    """Decode the videos; the status of unusable ones excludes them."""
    from hpm_video.data.prepare.check import check_manifest

    for file in lists.values():
        check_manifest(file, quick=not full, num_workers=num_workers)


def _report(lists: dict[str, Path], place: Place, *, full: bool) -> None:
    """Report what the check found, as a page and as text."""
    from hpm_video.data.lists.classes import read_classes
    from hpm_video.data.prepare.check_report import make_report, report_page, report_text
    from hpm_video.data.prepare.own_lists import rows_of

    file = place.folder / "classes.txt"
    classes = read_classes(file).names if file.is_file() else ()
    commands = (
        shlex.join(["hpm-video", "data", "check", place.inside(file.name)])
        for file in lists.values()
    )
    rows = (row for file in lists.values() for row in rows_of(file))
    is_refused = not _readable(lists["train"])  # then the folder, with lists and page, goes
    full_check = "" if full or is_refused else " && ".join(commands)
    report = make_report(rows, classes=classes, full_check=full_check)
    page = place.folder / "check.html"
    if not is_refused:
        write_atomically(page, [report_page(report, title=place.folder.name)])
    print(report_text(report, page="" if is_refused else str(page), figures=False))


def _drop_useless(lists: dict[str, Path]) -> Iterator[str]:
    """Drop validation lists, and rows of them, that cannot be judged on."""
    from hpm_video.data.lists.frame_index import FrameIndex, index_beside
    from hpm_video.data.prepare.own_lists import label_of, labels_of, rows_of, write_part

    has_classes = bool(labels_of(rows_of(lists["train"])))
    for name in [name for name in lists if name != "train"]:
        rows = _readable(file := lists[name])
        labelled = list(filter(label_of, rows)) if has_classes else rows
        if not labelled:
            lacks = "labelled video" if rows else "readable video"
            yield f"{lists.pop(name)} has no {lacks}: it is not used"
        elif len(labelled) < len(rows):
            yield f"{file}: {len(rows) - len(labelled)} videos have no label and are left out"
            write_part(file, labelled, FrameIndex(index_beside(file)))


def _classes_without_videos(
    lists: dict[str, Path], place: Place, *, num_left: int
) -> Iterator[str]:
    """Say which classes lack readable videos. ``num_left``: classes to tell apart, 0 for none."""
    from hpm_video.data.lists.classes import read_classes
    from hpm_video.data.lists.rows import first_few
    from hpm_video.data.prepare.own_lists import labels_of, rows_of

    if not (file := place.folder / "classes.txt").is_file():
        return
    names = read_classes(file).names
    learnt = labels_of(rows_of(lists["train"]))
    judged = lists.get("test") or lists.get("val")
    known = {"train on": learnt}
    if judged is not None and num_left:
        known["evaluate on"] = labels_of(rows_of(judged)) | (
            set(map(str, range(len(names)))) - learnt
        )
    for what, labels in known.items():
        if few := [name for label, name in enumerate(names) if str(label) not in labels]:
            of = f"{len(few)} of {len(names)} classes"
            yield f"{of} have no readable video to {what}: {first_few(few, 3)}"
    if not num_left:
        yield "fewer than two classes have readable videos: pre-training only"


def _readable(file: Path) -> list[dict[str, str]]:
    from hpm_video.data.prepare.own_lists import is_readable, rows_of

    return list(filter(is_readable, rows_of(file)))


def _labelled(train: Path, notes: list[str]) -> Path:
    """The list for fine-tuning: videos with a label."""
    from hpm_video.data.lists.frame_index import FrameIndex, index_beside
    from hpm_video.data.prepare.own_lists import label_of, write_part

    rows = _readable(train)
    labelled = [row for row in rows if label_of(row)]
    if len(labelled) == len(rows):
        return train
    notes.append(f"{len(rows) - len(labelled)} videos have no label: only pre-training uses them")
    write_part(output := train.with_name("labelled.csv"), labelled, FrameIndex(index_beside(train)))
    return output


def _videos_of(file: Path, *, source: str) -> Videos:
    """Summary of the videos of a list. Raises ValueError if none of ``source`` is readable."""
    from hpm_video.config.own_data import Videos
    from hpm_video.data.prepare.check_report import make_report
    from hpm_video.data.prepare.own_lists import label_of, rows_of

    rows = _readable(file)
    if not rows:
        broken = next((row["path"] for row in rows_of(file)), "VIDEO")
        raise ValueError(
            f"{source} has no readable video: see the reasons above. What ffmpeg says of the "
            f"first: ffprobe {shlex.quote(broken)}"
        )
    report = make_report(rows)  # handles the lengths of parts
    labels = set(filter(None, map(label_of, rows)))
    rates = sorted(float(row["fps"]) for row in rows if row.get("fps"))
    seconds = sorted(report.durations_s.tolist())
    is_timed = 2 * min(len(seconds), len(rates)) > len(rows)
    first, middle, third = (
        seconds[len(seconds) * part // 4] if is_timed else 0 for part in (1, 2, 3)
    )
    return Videos(
        number=len(rows),
        num_classes=len(labels) if len(labels) > 1 else 0,
        frames=report.num_frames / len(rows),
        seconds=(first, middle, third) if is_timed else None,
        fps=rates[len(rates) // 10] if is_timed else None,
        short_side=sorted(min(int(row["width"]), int(row["height"])) for row in rows)[
            len(rows) // 2
        ],
    )


def _set_places(
    one: Choices, lists: dict[str, Path], place: Place, folder: str, device: str
) -> None:
    """Set input and output paths of a run, ahead of its other settings."""
    others, one.settings = one.settings, {}
    why = "run folder; the same command continues the run"
    one.change("run.output_dir", place.absolute(folder), why)
    if device != "auto":
        one.change("run.device", device, "from --device")
    learnt = lists["train" if one.job == "pretrain" else "labelled"].name
    one.change("data.manifest", [place.absolute(learnt)], "videos to train on")
    if one.job == "finetune":
        if judged := next((lists[name] for name in ("val", "test") if name in lists), None):
            one.change("data.val_manifest", [place.absolute(judged.name)], "videos to evaluate on")
        why = "the pre-training. To train from scratch, add: model.init=null run.output_dir=FOLDER"
        one.change("model.init", place.absolute("pretrained"), why)
    one.settings |= others


def _time(chosen: Sequence[Choices], device: torch.device, *, most_hours: float) -> None:
    """Time steps to estimate each training's hours; reduce epochs if they exceed ``most_hours``."""
    from hpm_video.bench.here import measure_finetuning, measure_here
    from hpm_video.config.own_data import fit_hours
    from hpm_video.runtime.distributed import World
    from hpm_video.train.batch_size import with_batch_size

    pretraining, *finetuning = chosen
    config = with_batch_size(pretraining.config(), World(0, 1, device))
    here = measure_here(config, most_clips=_MICRO_BATCH if device.type == "cpu" else None)
    rates = [here.clips_per_s]
    for one in finetuning:
        rates.append(measure_finetuning(one.config("model.init=null")))
    for one, rate in zip(chosen, rates, strict=True):
        clips = one.steps * one["optim.total_batch"]
        compute, read = clips / rate, clips / (here.clips_per_core or math.inf)
        # On a CPU, data loading competes with training steps
        workers = one["data.num_workers"]
        seconds = compute + read if device.type == "cpu" else max(compute, read / workers)
        one.hours, one.timed = seconds / 3600, here.said
        fit_hours(one, most_hours)


def _commands(
    lists: dict[str, Path], place: Place, chosen: Sequence[Choices]
) -> Iterator[tuple[list[str], str]]:
    """Commands to run next, each with what it does."""
    from hpm_video.data.lists.manifest import read_manifest

    learnt = lists.get("labelled", lists["train"])
    judged = lists.get("test") or lists.get("val") or learnt
    manifest = read_manifest([str(judged)], labels=False)
    shown = [manifest.path(index) for index in range(min(_SHOWN_VIDEOS, len(manifest)))]
    pretrained, finetuned = place.inside("pretrained"), place.inside("finetuned")
    yield ["pretrain", place.inside("pretrain.yaml")], "the model, trained without labels"
    if len(chosen) > 1:
        yield ["finetune", place.inside("finetune.yaml")], "a classifier from it"
        list_ = ["--manifest", place.inside(judged.name)]
        on = "; on the videos it was trained on" if judged == learnt else ""
        yield ["evaluate", finetuned, *list_], f"accuracy, confusions, a page{on}"
        table = ["-o", place.inside("classes.csv")]
        yield ["predict", finetuned, *shown, *table], "classes of any videos or folders"
    pictures = ["-o", place.inside("pictures")]
    yield ["visualize", pretrained, *shown, *pictures], "what the model finds hard"


def _head(one: Choices, computer: Computer, commands: Sequence[tuple[list[str], str]]) -> list[str]:
    """The comment at the top of a YAML."""
    from hpm_video.config.own_data import hours_in_words

    job = f"{_JOBS[one.job].capitalize()} on"
    command = next(words for words, _ in commands if words[0] == one.job)
    lines = [
        f"{job} {one.num_videos:,} videos, written by `hpm-video start` from the recipe "
        f"{one.recipe} ({one.why_recipe}).",
        "",
        f"  {shlex.join(['hpm-video', *command])}",
        "",
        f"Hardware: {computer.words}.",
        f"Hours: about {hours_in_words(one.hours)} ({one.timed}).",
        f"Expected: {' '.join([_UNCERTAIN, *_cut([one])])}",
        "",
        "The comment above each setting gives its reason. Change settings here, or add them to the "
        f"command: optim.epochs=50. `hpm-video {one.job} --help` lists all settings.",
    ]
    return [printable(line) for line in lines]


def _summary(
    chosen: Sequence[Choices],
    videos: Videos,
    lists: dict[str, Path],
    notes: Sequence[str],
    place: Place,
) -> Iterator[str]:
    """Summary of what was found and chosen, line by line."""
    from hpm_video.config.own_data import hours_in_words
    from hpm_video.data.prepare.own_lists import label_of

    yield from (f"note: {note}" for note in notes)
    said = f"{videos.number:,} videos"
    if videos.num_classes:
        said += f" of {videos.num_classes} classes"
    if videos.seconds is not None:
        said += f", half of them shorter than {videos.seconds[1]:.1f} s"
    yield f"to train on: {said}"
    for one in chosen:
        epochs = one["optim.epochs"]
        name = _JOBS[one.job]
        yield (
            f"{name}: {place.inside(f'{one.job}.yaml')}, from the recipe {one.recipe} "
            f"({one.why_recipe}): {epochs:,} epoch{'' if epochs == 1 else 's'}, "
            f"{one.steps:,} steps of {one['optim.total_batch']} videos, about "
            f"{hours_in_words(one.hours)}"
        )
    yield f"hours: {chosen[0].timed}"
    judged = lists.get("test") or lists.get("val")
    if videos.num_classes and judged is not None:
        counts = Counter(filter(None, map(label_of, _readable(judged))))
        share = max(counts.values()) / counts.total()
        file = place.inside(judged.name)
        are_equal = len(counts) == videos.num_classes and len(set(counts.values())) == 1
        guess = "one class" if are_equal else "the most frequent class"
        yield f"always guessing {guess} of {file} gives accuracy {share:.3f}"
    yield _UNCERTAIN
    yield from _cut(chosen)


def _cut(chosen: Sequence[Choices]) -> Iterator[str]:
    """A caution if the limit of hours reduced the epochs of any job."""
    cuts = " and ".join(
        f"{one['optim.epochs']:,} of {one.uncut_epochs:,} epochs of {_JOBS[one.job]}"
        for one in chosen
        if one.uncut_epochs is not None
    )
    if cuts:
        yield f"The limit of hours leaves {cuts}; fewer epochs usually reach less."
