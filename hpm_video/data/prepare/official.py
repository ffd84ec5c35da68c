"""Official lists of data sets in their original formats.

Each function reads one split and returns all of its videos, whether they exist or not.
EPIC-KITCHENS-100, Charades and ActivityNet list parts of long videos.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from hpm_video.data.lists.parts import seconds_of
from hpm_video.data.lists.rows import INTEGER, shown
from hpm_video.data.prepare.tree import VideoTree
from hpm_video.data.video.part import Part
from hpm_video.runtime.reading import open_regular, read_json

FOLDS = (1, 2, 3)
_KINETICS = ("youtube_id", "time_start", "time_end")  # columns of its lists


@dataclass(frozen=True)
class Video:
    """A listed video. names: possible file names; label: -1 if unknown."""

    names: tuple[str, ...]
    folder: str  # expected folder, "" if any
    label: int
    where: str  # file and line
    part: Part | None = None  # of the file


@dataclass(frozen=True)
class Listing:
    """The videos of a split, its class names in label order, files read, and lines to show."""

    videos: list[Video]
    classes: tuple[str, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """How to read the lists of a data set. has_folds: whether it has three pairs of splits."""

    title: str
    splits: tuple[str, ...]
    has_folds: bool
    read: Callable[[VideoTree, str, int], Listing]


def read_ssv2(tree: VideoTree, split: str, fold: int) -> Listing:
    """Something-Something V2: JSON lists of `id` and `template`.

    `labels.json` numbers the templates. The labels of the test split are in `test-answers.csv`
    (id;template); without it they are -1.
    """
    labels_file = _one(tree, r"(something-something-v2-)?labels\.json", "labels.json")
    labels = _json(labels_file, dict)
    numbers: dict[str, int] = {}
    for template, text in labels.items():
        if not str(text).isdecimal():
            raise ValueError(f"{labels_file}: '{shown(template)}' ({text}) must be a class index")
        numbers[_template(template)] = int(text)
    if sorted(numbers.values()) != list(range(len(labels))):
        raise ValueError(
            f"{labels_file}: the classes must be numbered 0 to {len(labels) - 1}, each number once"
        )
    name = {"train": "train", "val": "validation", "test": "test"}[split]
    file = _one(tree, rf"(something-something-v2-)?{name}\.json", f"{name}.json")
    found = _all(tree, r"(something-something-v2-)?test-answers\.csv") if split == "test" else []
    answers = {
        fields[0]: (_template(fields[1]), f"{answer_file}:{line}")
        for answer_file in found[:1]
        for line, fields in _csv(answer_file, ";")
        if len(fields) == 2
    }
    videos: list[Video] = []
    for position, entry in enumerate(_json(file, list)):
        where = f"{file}: entry {position}"
        if not isinstance(entry, dict) or not str(entry.get("id", "")):
            raise ValueError(f"{where}: must have an id")
        name = str(entry["id"])
        template = _template(str(entry["template"])) if "template" in entry else None
        if template is None and name in answers:
            template, where = answers[name]
        if template is None and split != "test":
            raise ValueError(f"{where}: must have a template")
        if template is not None and template not in numbers:
            raise ValueError(f"{where}: template ({shown(template)}) must be one of {labels_file}")
        label = numbers[template] if template is not None else -1
        videos.append(Video((f"{name}.webm",), "", label, where))
    return Listing(
        videos, tuple(sorted(numbers, key=numbers.__getitem__)), (labels_file, file, *found[:1])
    )


def read_kinetics(tree: VideoTree, split: str, fold: int) -> Listing:
    """Kinetics-400, 600 or 700: csv of `label`, `youtube_id`, `time_start`, `time_end`, `split`.

    Classes are numbered by name, using the training list if it exists. Test lists may lack labels.
    """
    words = {"train": "train", "val": "val|validate|validation", "test": "test|holdout_test"}
    form = r"(kinetics[-_]?\d*(_2020)?[-_])?({})\.(csv|txt)"

    def lists(split: str) -> list[str]:
        found = _all(tree, form.format(words[split]))
        return [path for path in found if "youtube_id" in next(_csv(path), (0, ""))[1]]

    file = _single(lists(split), f"{split}.csv of Kinetics", tree)
    training = [file] if split == "train" else lists("train")
    if len(training) > 1:
        _single(training, "train.csv of Kinetics", tree)
    class_file = (training or [file])[0]
    classes = sorted({row["label"] for _, row in _table(class_file, *_KINETICS)} - {""})
    numbers = {name: label for label, name in enumerate(classes)}
    uses = Counter(row["youtube_id"] for _, row in _table(file, *_KINETICS))
    videos: list[Video] = []
    for line, row in _table(file, *_KINETICS):
        where = f"{file}:{line}"
        if row["label"] and row["label"] not in numbers:
            raise ValueError(
                f"{where}: label ({shown(row['label'])}) must be a class of {class_file}"
            )
        times = f"{row['time_start']}, {row['time_end']}"
        try:
            start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
        except ValueError:
            raise ValueError(f"{where}: time ({shown(times)}) must be two numbers") from None
        identity = row["youtube_id"]
        names = [f"{identity}_{start:06d}_{end:06d}.mp4"]
        if uses[identity] == 1:  # some copies omit the times in names
            names.append(f"{identity}.mp4")
        label = numbers.get(row["label"], -1)
        videos.append(Video(tuple(names), row["label"], label, where))
    return Listing(videos, tuple(classes), tuple(dict.fromkeys((class_file, file))))


def read_ucf101(tree: VideoTree, split: str, fold: int) -> Listing:
    """UCF101, from its text files.

    These are `classInd.txt` ("1 Class"), `trainlist01.txt` ("Class/video.avi 1") and
    `testlist01.txt` ("Class/video.avi").
    """
    class_file = _one(tree, r"classind\.txt", "classInd.txt")
    classes: list[str] = []
    for where, (number, name) in _words(class_file, 2):
        if number != str(len(classes) + 1) or name in classes:
            raise ValueError(
                f"{where}: ({shown(f'{number} {name}')}) must be number {len(classes) + 1} and a "
                "class that is not listed yet"
            )
        classes.append(name)
    file = _one(tree, rf"{split}list0?{fold}\.txt", f"{split}list{fold:02d}.txt")
    videos: list[Video] = []
    for where, (path, *rest) in _words(file, 1, 2):
        folder = os.path.dirname(path)
        if folder not in classes:
            raise ValueError(
                f"{where}: the folder of {shown(path)} must be a class of {class_file}"
            )
        label = classes.index(folder)
        if rest and rest[0] != str(label + 1):
            raise ValueError(
                f"{where}: label ({shown(rest[0])}) must be {label + 1}, the number of {folder} in "
                f"{class_file}"
            )
        videos.append(Video((os.path.basename(path),), folder, label, where))
    return Listing(videos, tuple(classes), (class_file, file))


def read_hmdb51(tree: VideoTree, split: str, fold: int) -> Listing:
    """HMDB51: a list `<class>_test_split1.txt` per class, 1 = train, 2 = test, 0 = neither.

    Classes are numbered by name.
    """
    form = re.compile(r"(.+)_test_split([123])\.txt")
    found: dict[str, dict[int, str]] = {}  # class -> fold -> file
    for path in tree.texts:
        if match := form.fullmatch(os.path.basename(path)):
            other = found.setdefault(match[1], {}).setdefault(int(match[2]), path)
            if other != path:
                raise ValueError(
                    f"{other} and {path} are the same list; give the folder of one of them"
                )
    if not found:
        name = f"list of HMDB51 (<class>_test_split{fold}.txt)"
        raise FileNotFoundError(f"{tree.folder} has no {name} below it")
    videos: list[Video] = []
    for label, name in enumerate(sorted(found)):
        if fold not in found[name]:
            raise FileNotFoundError(
                f"{tree.folder} has no {name}_test_split{fold}.txt below it, only other "
                "folds of this class"
            )
        for where, (video, use) in _words(found[name][fold], 2):
            if use not in ("0", "1", "2"):
                raise ValueError(f"{where}: use ({shown(use)}) must be 0, 1 or 2")
            if use == {"train": "1", "test": "2"}[split]:
                videos.append(Video((video,), name, label, where))
    return Listing(videos, tuple(sorted(found)), tuple(files[fold] for files in found.values()))


def read_epic(tree: VideoTree, split: str, fold: int, *, kind: str) -> Listing:
    """EPIC-KITCHENS-100, from its csv lists.

    They have `video_id`, `start_timestamp`, `stop_timestamp`, `verb_class` and `noun_class`, and
    the names of both. The test list has no labels.

    ``kind``: "verb", "noun" or "action". Actions are the (verb, noun) pairs that occur in training
    and validation, in the order of their numbers.
    """
    names = {"train": "train", "val": "validation", "test": "test_timestamps"}

    def rows(split: str) -> tuple[str, list[tuple[int, dict[str, str]]]]:
        file = _one(tree, rf"EPIC_100_{names[split]}\.csv", f"EPIC_100_{names[split]}.csv")
        labels = () if split == "test" else ("verb_class", "noun_class")
        return file, list(_table(file, "video_id", "start_timestamp", "stop_timestamp", *labels))

    file, content = rows(split)
    words: dict[str, dict[int, str]] = {}
    files = [file]
    for word in ("verb", "noun") if kind == "action" else (kind,):
        class_file = _one(tree, rf"EPIC_100_{word}_classes\.csv", f"EPIC_100_{word}_classes.csv")
        files.append(class_file)
        words[word] = {}
        for line, row in _table(class_file, "id", "key"):
            if row["id"] != str(len(words[word])):
                rule = f"must be {len(words[word])}, as classes are numbered from 0"
                raise ValueError(f"{class_file}:{line}: id ({shown(row['id'])}) {rule}")
            words[word][int(row["id"])] = row["key"]

    def class_of(row: dict[str, str], where: str) -> tuple[int, ...]:
        numbers = []
        for word, known_words in words.items():
            text = row[f"{word}_class"]
            if not INTEGER.fullmatch(text) or int(text) not in known_words:
                rule = f"must be a number of EPIC_100_{word}_classes.csv"
                raise ValueError(f"{where}: {word}_class ({shown(text)}) {rule}")
            numbers.append(int(text))
        return tuple(numbers)

    known: set[tuple[int, ...]] = {(number,) for number in words.get(kind, ())}
    if kind == "action":
        for of_split in ("train", "val"):
            other, found = rows(of_split)
            known |= {class_of(row, f"{other}:{line}") for line, row in found}
    labels = {key: label for label, key in enumerate(sorted(known))}
    parts = _Parts()
    for line, row in content:
        where = f"{file}:{line}"
        label = labels[class_of(row, where)] if split != "test" else -1
        times = row["start_timestamp"], row["stop_timestamp"]
        parts.add((f"{row['video_id']}.MP4",), label, where, times)
    classes = tuple(
        " ".join(words[word][number] for word, number in zip(words, key, strict=True))
        for key in labels
    )
    return Listing(parts.videos, classes, tuple(files), parts.notes())


def read_charades(tree: VideoTree, split: str, fold: int) -> Listing:
    """Charades, from its csv lists and `Charades_v1_classes.txt` ("c000 Holding some clothes").

    The lists have `id`, `actions` ("c092 11.90 21.20;c147 0.00 12.60", in seconds) and `length`.
    Each action is a part.
    """
    class_file = _one(tree, r"Charades_v1_classes\.txt", "Charades_v1_classes.txt")
    classes: list[str] = []
    with _text(class_file) as lines:
        for line, text in enumerate(lines, start=1):
            code, _, name = text.strip().partition(" ")
            if not text.strip():
                continue
            if code != f"c{len(classes):03d}" or not name:
                rule = f"must be c{len(classes):03d} and a name"
                raise ValueError(f"{class_file}:{line}: ({shown(text.strip())}) {rule}")
            classes.append(name.strip())
    file = _one(tree, rf"Charades_v1_{split}\.csv", f"Charades_v1_{split}.csv")
    parts = _Parts()
    for line, row in _table(file, "id", "actions", "length"):
        where = f"{file}:{line}"
        for action in filter(None, map(str.strip, row["actions"].split(";"))):
            code, *times = action.split()
            number = int(code[1:]) if re.fullmatch(r"c\d+", code) else len(classes)
            if len(times) != 2 or number >= len(classes):
                rule = f"must be a class of {class_file}, a start and an end"
                raise ValueError(f"{where}: action ({shown(action)}) {rule}")
            parts.add((f"{row['id']}.mp4",), number, where, times, row["length"])
    return Listing(parts.videos, tuple(classes), (class_file, file), parts.notes())


def read_activitynet(tree: VideoTree, split: str, fold: int) -> Listing:
    """ActivityNet, from one JSON file with a `database` of videos.

    Each has `subset`, `duration` and `annotations` of `segment` (seconds) and `label`. Classes are
    numbered by name. Videos of the test split have no annotations and are listed whole.
    """
    file = _one(tree, r"activity_net\.v1-[23](\.min)?\.json", "activity_net.v1-3.min.json")
    videos = _json(file, dict).get("database")
    subset = {"train": "training", "val": "validation", "test": "testing"}[split]
    if not isinstance(videos, dict):
        raise ValueError(f"{file}: must have a database")
    try:
        found = {a["label"] for video in videos.values() for a in video["annotations"]}
        labels = {name: label for label, name in enumerate(sorted(found))}
        parts = _Parts()
        for name, video in videos.items():
            if video["subset"] != subset:
                continue
            where, names = f"{file}: {shown(name)}", (f"v_{name}.mp4", f"{name}.mp4")
            for annotation in video["annotations"]:
                times = tuple(map(str, annotation["segment"]))
                label = labels[annotation["label"]]
                parts.add(names, label, where, times, str(video.get("duration", "")))
            if split == "test" and not video["annotations"]:
                parts.videos.append(Video(names, "", -1, where))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: database must have ActivityNet's format: {error!r}") from error
    return Listing(parts.videos, tuple(labels), (file,), parts.notes())


class _Parts:
    """The parts of a list. Impossible ranges, which published lists contain, are skipped."""

    def __init__(self) -> None:
        self.videos: list[Video] = []
        self._left_out: list[str] = []

    def add(
        self,
        names: tuple[str, ...],
        label: int,
        where: str,
        times: Sequence[str],
        duration: str = "",
    ) -> None:
        """Add a part of a video with one of these names. ``duration``: of the video, if known."""
        seconds = [seconds_of(text) for text in times]
        start, end = (*seconds, None, None)[:2]
        said = f"{where}: {' to '.join(map(shown, times))}"
        if len(seconds) != 2 or start is None or end is None:
            raise ValueError(f"{said}: must be two times")
        lasts = seconds_of(duration)
        if not 0 <= start < end or (lasts is not None and start >= lasts):
            self._left_out.append(said + f" of {duration} s" * bool(duration))
        else:
            self.videos.append(Video(names, "", label, where, Part(start, end)))

    def notes(self) -> tuple[str, ...]:
        """A line about skipped parts."""
        if not self._left_out:
            return ()
        count, first = len(self._left_out), self._left_out[0]
        rule = "they end before they start, or start after their video ends"
        return (f"{count} parts are left out, as {rule}; the first is {first}",)


DATA_SETS = {
    "ssv2": DataSet("Something-Something V2", ("train", "val", "test"), False, read_ssv2),
    "kinetics": DataSet("Kinetics-400, 600 or 700", ("train", "val", "test"), False, read_kinetics),
    "ucf101": DataSet("UCF101", ("train", "test"), True, read_ucf101),
    "hmdb51": DataSet("HMDB51", ("train", "test"), True, read_hmdb51),
    **{
        f"epic_{kind}s": DataSet(
            f"EPIC-KITCHENS-100, labelled by its {kind}s",
            ("train", "val", "test"),
            False,
            partial(read_epic, kind=kind),
        )
        for kind in ("verb", "noun", "action")
    },
    "charades": DataSet("Charades", ("train", "test"), False, read_charades),
    "activitynet": DataSet("ActivityNet", ("train", "val", "test"), False, read_activitynet),
}


def _template(text: str) -> str:
    return text.replace("[", "").replace("]", "").strip()


def _all(tree: VideoTree, form: str) -> list[str]:
    """Paths of a tree's text files whose names match the pattern."""
    return [p for p in tree.texts if re.fullmatch(form, os.path.basename(p), re.IGNORECASE)]


def _one(tree: VideoTree, form: str, name: str) -> str:
    return _single(_all(tree, form), name, tree)


def _single(found: Sequence[str], name: str, tree: VideoTree) -> str:
    if not found:
        raise FileNotFoundError(f"{tree.folder} has no {name} below it")
    if len(found) > 1:
        raise ValueError(
            f"{tree.folder} has several {name} below it ({', '.join(map(shown, found))}); "
            "choose one with --annotations FOLDER"
        )
    return found[0]


def _json(file: str, kind: type[Any]) -> Any:
    value = read_json(file)
    if not isinstance(value, kind):
        raise ValueError(f"{file}: must hold a JSON {'object' if kind is dict else 'list'}")
    return value


def _text(file: str) -> TextIO:
    binary = open_regular(file)
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv(file: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    with _text(file) as text:
        reader = csv.reader(text, delimiter=delimiter)
        try:
            for fields in reader:
                if any(fields):
                    yield reader.line_num, [field.strip() for field in fields]
        except csv.Error as error:
            raise ValueError(f"{file}:{reader.line_num}: malformed CSV: {error}") from error


def _table(file: str, *needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) of a csv whose header has the columns ``needed``."""
    rows = _csv(file)
    _, header = next(rows, (1, []))
    for column in needed:
        if column not in header:
            raise ValueError(f"{file}:1: the header ({shown(','.join(header))}) must have {column}")
    for line, fields in rows:
        if len(fields) != len(header):
            raise ValueError(
                f"{file}:{line}: {len(fields)} columns, expected {len(header)}, as in the header"
            )
        yield line, {"label": "", **dict(zip(header, fields, strict=True))}


def _words(file: str, *counts: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (where, words) of the lines of a text file; each must have one of ``counts`` words."""
    with _text(file) as lines:
        for number, line in enumerate(lines, start=1):
            words = line.rsplit(None, max(counts) - 1)  # names may contain spaces
            if words and len(words) not in counts:
                raise ValueError(
                    f"{file}:{number}: ({shown(line.strip())}) must have "
                    f"{' or '.join(map(str, counts))} words"
                )
            if words:
                yield f"{file}:{number}", words
