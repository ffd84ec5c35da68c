"""`hpm-video data list`: makes a manifest of a data set on disk.

Beside the manifest, `classes.txt` gets the class names in the order of their labels, and
`<manifest>_missing.csv` the videos that are listed but missing. All three are verified by reading
them back before they appear, the manifest last. On failure, none appears.
"""

import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np

from hpm_video.config import LabelsConfig
from hpm_video.data.lists.classes import ClassNames, Labels, read_classes, write_classes
from hpm_video.data.lists.columns import SPLITS, Columns
from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.manifest import (
    check_counts,
    frame_count,
    label_notes,
    read_manifest,
    write_manifest,
)
from hpm_video.data.lists.moved import is_absolute, root_of, way_to_moved
from hpm_video.data.lists.parts import check_is_inside, part_columns, part_of, seconds_of
from hpm_video.data.lists.places import is_shards, list_root
from hpm_video.data.lists.rows import INTEGER, first_few, read_rows, read_videos, shown
from hpm_video.data.lists.shards import read_shards, shard_note
from hpm_video.data.lists.spelling import as_on_disk, same_name
from hpm_video.data.prepare.official import DATA_SETS, FOLDS, Video
from hpm_video.data.prepare.tree import Images, VideoTree, folders_beside
from hpm_video.data.remote.urls import check_is_local, is_url
from hpm_video.data.video.part import FRAME_COLUMNS, PART_COLUMNS, SECOND_COLUMNS, Part
from hpm_video.data.video.source import exists
from hpm_video.runtime.files import free_place, keep_original, shell_path, writing
from hpm_video.runtime.reading import open_regular

_LONGEST_LOOK_S = 20.0  # at a file that may be a video

# Folders with these names are splits of a data set, not classes
_SPLITS = {word for words in SPLITS.values() for word in words}
_LOOKED_FOR = 20  # videos of a list of which none exists, to find where they are
Row = dict[str, object]


@dataclass(frozen=True)
class Listed:
    """The written files.

    missing_file: None if no video is missing. notes: lines to show the user.
    """

    manifest: Path
    num_videos: int
    num_classes: int
    num_missing: int
    missing_file: Path | None
    notes: tuple[str, ...]
    are_parts: bool = False  # whether rows are parts of videos
    # Class folder -> number of videos of each folder in it; empty if a file gives the classes
    inside: Mapping[str, Counter[str]] = field(default_factory=dict)

    @property
    def _rows(self) -> str:
        return "parts of videos" if self.are_parts else "videos"

    def summary(self) -> str:
        """Return a summary in one line."""
        line = f"{shown(str(self.manifest))}: {self.num_videos} {self._rows}"
        if self.num_classes:
            line += f" of {self.num_classes} classes"
        if self.missing_file is None:
            return f"{line}, none missing"
        return (
            f"{line}; {self.num_missing} of {self.num_videos + self.num_missing} are missing, "
            f"listed in {shown(str(self.missing_file))}"
        )


def list_official(
    data_set: str,
    folder: str | Path,
    output: str | Path,
    *,
    split: str = "train",
    fold: int = 1,
    annotations: str | Path | None = None,
    classes: str | Path | None = None,
) -> Listed:
    """List a split of a data set from its official files.

    Args:
        data_set: a key of `DATA_SETS`.
        folder: the folder of the videos; they may be in any subfolder.
        output: the manifest to write.
        split: "train", "test", or "val" if there is one.
        fold: 1 to 3, for data sets with three pairs of splits.
        annotations: folder of the official files; by default they are searched for in `folder`.
        classes: a file of class names, whose order replaces the official numbering.

    Raises FileNotFoundError if something required is missing, and ValueError if a list is
    malformed, labels do not match the classes, or no video exists.
    """
    kind = DATA_SETS[data_set]
    if split not in kind.splits:
        raise ValueError(f"split ({split}) of {kind.title} must be one of {', '.join(kind.splits)}")
    if fold not in FOLDS or (fold != 1 and not kind.has_folds):
        raise ValueError(
            f"fold ({fold}) of {kind.title} must be {'1, 2 or 3' if kind.has_folds else '1'}"
        )
    tree = VideoTree(folder)
    listing = kind.read(tree if annotations is None else VideoTree(annotations), split, fold)
    _check_output(output, listing.files)
    usual = ClassNames(listing.classes, f"the order of {kind.title}")
    known = usual if classes is None else read_classes(classes)
    rows: list[Row] = []
    missing: list[Row] = []
    listed: dict[tuple[object, ...], Video] = {}
    again: list[Video] = []
    for video in listing.videos:
        name = listing.classes[video.label] if video.label >= 0 else None
        label = known.label(name) if name is not None else None
        if name is not None and label is None:
            raise ValueError(f"{video.where}: class ({shown(name)}) must be one of {known.source}")
        key = (video.names[0], video.part, label if video.part else None)
        if listed.setdefault(key, video) is not video:
            again.append(video)
            continue
        of_part = video.part.columns if video.part else {}
        found = (tree.find(name, folder=video.folder) for name in video.names)
        path = next((path for path in found if path is not None), None)
        if path is not None:
            rows.append({"path": os.path.abspath(path), "label": label, **of_part})
        else:
            wanted = os.path.join(video.folder, video.names[0])
            missing.append({"path": wanted, "label": label, **of_part, "status": "missing"})
    last = f"the last in {again[-1].where}" if again else ""
    notes = [f"{len(again)} repeated videos are ignored, {last}"] if again else []
    notes += listing.notes
    names = known.names if listing.classes else ()
    source = f"listed in {listing.files[-1]}"
    return _write_list(output, rows, missing, classes=names, source=source, notes=notes)


def list_folder(
    folder: str | Path,
    output: str | Path,
    *,
    classes: str | Path | None = None,
    images: Images | None = None,
    labels: bool = True,
    command: str | None = None,
) -> Listed:
    """List a folder with one subfolder of videos per class, or with videos only (without labels).

    Classes are numbered by `classes`, else by the `classes.txt` in the folder, else by that beside
    the manifest, else in the order of their names (numerically if all are whole numbers).
    ``images``: the meaning of images, see `VideoTree`. ``labels``: whether subfolders are classes.
    ``command``: the command that lists a folder if its path follows, for messages; "" if none does.

    Raises FileNotFoundError if the folder does not exist, and ValueError if it has no videos, has
    videos beside class folders, or its subfolders are splits or unknown classes.
    """
    tree = VideoTree(folder, images=images)
    _check_output(output, ())
    paths = [*tree.videos, *tree.dangling]
    parts = [os.path.relpath(path, folder).split(os.sep) for path in paths]
    folders = {part[0] for part in parts if len(part) > 1 and labels}
    if not parts:
        tar = next(filter(is_shards, sorted(os.listdir(folder))), None)
        if command is None:
            command = f"hpm-video data list -o {shell_path(output)} --folder"
        if tar:
            hint = f"; list its tars with --manifest {shlex.quote(os.path.join(folder, tar))}"
        else:
            hint = _of_images(tree) or _of_others(tree, command)
        raise ValueError(f"{folder} must hold videos in a folder per class, but has none{hint}")
    splits = sorted(name for name in folders if name.lower() in _SPLITS)
    if splits and (len(splits) == len(folders) <= 3 or len(splits) > 1):
        raise ValueError(
            f"{folder} must hold a folder per class, but has folders of splits "
            f"({', '.join(splits)}); list each of them"
        )
    loose = [part[0] for part in parts if len(part) == 1]
    if folders and loose:
        lie, them = f"{shown(loose[0])} lies", "it"
        if len(loose) > 1:
            lie, them = f"{len(loose)} videos ({first_few(loose, 3)}) lie", "them"
        raise ValueError(
            f"{folder} must have all videos in class folders, or no class folders, but {lie} "
            f"beside {shown(min(folders))}; move {them} away, or --no-labels lists all "
            f"videos without labels{_move_away(str(folder), loose)}"
        )
    known = _known_classes(classes, Path(folder), Path(output).parent) if labels else None
    if known is None:
        named = {name.strip() for name in folders}  # as classes.txt has them
        are_numbers = all(INTEGER.fullmatch(name) for name in named)
        order = sorted(sorted(named), key=int if are_numbers else str)
        spelled = {same_name(name): name for name in reversed(order)}
        known = ClassNames(tuple(name for name in order if name in spelled.values()), "the folders")
    numbers = {name: known.label(name.strip()) for name in folders}
    if unknown := sorted(name for name, label in numbers.items() if label is None):
        name, more = unknown[0], f" (and {len(unknown) - 1} more)" * (len(unknown) > 1)
        raise ValueError(
            f"{folder}: folder ({shown(name)}){more} must be one of the classes of {known.source}"
            f"{known.alike(name)}: {_way_to_classes(known, classes, Path(output))}"
        )
    rows: list[Row] = [
        {"path": os.path.abspath(path), "label": numbers[part[0]] if folders else None}
        for path, part in zip(paths, parts, strict=True)
    ]
    rows, missing = rows[: len(tree.videos)], rows[len(tree.videos) :]
    inside = _inside(parts) if folders and known.source == "the folders" else {}
    notes = list(_nested(parts, inside))
    if folders and (without := tree.folders_without_videos):
        one = "1 folder has" if len(without) == 1 else f"{len(without)} folders have"
        notes.append(f"{one} no video: {first_few(without, 5)}")
    blanks = sorted(name for name in folders if name != name.strip())
    if both := [name for name in blanks if name.strip() in folders]:
        notes.append(
            f"folders whose names differ only in outer spaces are one class: {first_few(both, 3)}"
        )
    ours = {
        known.source,
        *map(str, (Path(folder) / "classes.txt", output, _missing_file(Path(output)))),
    }
    texts = [path for path in tree.texts if path not in ours]
    if skipped := tree.num_others + len(texts):
        some = [os.path.relpath(path, folder) for path in (*tree.some_others, *texts[:4])]
        one = "1 other file was" if skipped == 1 else f"{skipped} other files were"
        notes.append(f"{one} left out: {first_few(some, 3)}{_of_images(tree)}")
    if tree.no_frames:
        place, why = tree.no_frames[0]
        of = f"{len(tree.no_frames)} folders of images are not listed as videos"
        notes.append(f"{of}, the first is {shown(place)}: {why}")
    if tree.num_folders:
        other = "`--images stills` lists each of their images as a video instead"
        notes.append(f"{tree.num_folders} of the videos are folders of frames: {other}")
    names = known.names if folders else ()
    source = f"in {folder}"
    missing = [{**row, "status": "missing"} for row in missing]
    listed = _write_list(
        output, rows, missing, classes=names, source=source, notes=notes, say_of_labels=labels,
        say_unlabelled=labels,
    )  # fmt: skip
    return replace(listed, inside=inside)


def _inside(parts: Sequence[Sequence[str]]) -> dict[str, Counter[str]]:
    """The folders in class folders, see `Listed`."""
    inside: dict[str, Counter[str]] = {}
    for top, *below in parts:
        if len(below) > 1:
            inside.setdefault(top, Counter())[below[0]] += 1
    return inside


def shared_folders(inside: Mapping[str, Counter[str]]) -> list[str]:
    """The names of folders that several class folders have, see `Listed`."""
    num_tops = Counter(name for names in inside.values() for name in names)
    return sorted(name for name, number in num_tops.items() if number > 1)


def _nested(parts: Sequence[Sequence[str]], inside: Mapping[str, Counter[str]]) -> Iterator[str]:
    """A line to show where folders may hold the classes, as in subject1/wave and subject2/wave."""
    if shared := shared_folders(inside):
        tops = sorted({part[0] for part in parts})
        yield (
            f"the classes are {first_few(tops, 5)}, and not the folders in them "
            f"({first_few(shared, 5)}); if those are the classes, write a list with the columns "
            "path and label"
        )


def list_own(
    file: str | Path,
    output: str | Path,
    *,
    root: str | Path | None = None,
    classes: str | Path | None = None,
    split: str | None = None,
    seconds: Sequence[str] | None = None,
    frames: Sequence[str] | None = None,
    label: str | None = None,
    separator: str | None = None,
    say_of_labels: bool = True,
) -> Listed:
    """Convert any list that `read_manifest` reads into a manifest of the videos that exist.

    Args:
        file: the list.
        output: the manifest to write.
        root: base folder of the list's relative paths, by default its own folder.
        classes: a file of class names in the order of their labels; by default the `classes.txt`
            beside the list, or else beside the manifest. If both exist, the latter names the list's
            numbers, and `classes` renumbers them.
        split: select rows whose column `split` (or `subset`, `set`, `partition`) has this value or
            another spelling of it; classes are those of all rows.
        seconds: the two columns with the start and end of each row's part of its video.
        frames: the same, as frame numbers.
        label: source of the labels of videos in tars, see `read_shards`.
        separator: separates several labels in a cell.
        say_of_labels: whether to note which videos or classes lack labels.

    Raises FileNotFoundError if the list does not exist, and ValueError if it is malformed, its
    labels do not match the classes, a video or part has two labels, no row belongs to the split, or
    no video exists.
    """
    if not is_shards(file):
        check_is_local(file, job="data list")
    _check_output(output, (str(file),))
    start, name = list_root(file, root), Path(file)
    labels, faults = Labels(_known_classes(classes, name.parent, Path(output).parent)), Faults()
    columns: Columns | None = None
    own = _own_names(name) if classes is not None else ()
    told = {FRAME_COLUMNS: frames, SECOND_COLUMNS: seconds}
    renamed = {
        old.lower(): name
        for names, olds in told.items()
        for name, old in zip(names, olds or (), strict=False)
    }
    several = LabelsConfig(separator=separator)
    # Location of each row, the codes of its labels, its claimed number of frames, and the row
    lines: list[tuple[str, frozenset[int], int, dict[str, str]]] = []
    keys: list[tuple[str, Part | None]] = []
    videos = read_videos(file, faults) if label is None else read_shards(file, faults, label)
    for where, given in videos:
        row = _with_part(given, renamed, name)
        if columns is None:
            columns, of_part = Columns(name, start, row), part_columns(row, str(file), faults)
        columns.note(row, where)
        texts = row.get("label", "").split(separator) if separator else [row.get("label", "")]
        texts = [_named(text.strip(), own) for text in texts]
        codes = frozenset(labels.add(row["path"], text, where) for text in texts)
        lines.append((where, codes, frame_count(row, where, faults), row))
        part = part_of(row, of_part, where, faults, called=tuple(renamed))
        if part is not None:
            check_is_inside(part, row, where, faults)
        keys.append((row["path"], part))
    if columns is None:
        faults.check()
        raise AssertionError("tars without videos are faults")
    columns.find_faults(faults, chosen=split is not None)
    if columns.has_bare_counts:
        claims = np.array([claim for _, _, claim, _ in lines])
        check_counts(name, start, [row["path"] for *_, row in lines], claims, faults)
    notes = [note] if (note := shard_note(file)) else []
    if split is not None:
        chosen, num_rows = columns.choose(split), len(lines)
        is_chosen = [columns.split_of(row) in chosen for *_, row in lines]
        lines, keys = list(compress(lines, is_chosen)), list(compress(keys, is_chosen))
        notes.append(f"chosen: {', '.join(sorted(chosen))}, {len(lines)} of {num_rows} rows")
    listed: dict[tuple[str, Part | None], tuple[frozenset[int], str]] = {}
    for (where, codes, _, row), (path, part) in zip(lines, keys, strict=True):
        other, other_where = listed.setdefault((path, part), (codes, where))
        if other != codes:
            texts = list(labels.vocabulary)
            said = shown(row.get("label", "").strip())
            first = shown((separator or "").join(texts[code] for code in sorted(other)))
            faults.add(
                "two labels",
                where,
                f"label ({said}) of {shown(path)}{part or ''} must be the same in all rows, "
                f"but is ({first}) in {other_where}",
            )
    values, names = labels.values(faults=faults)
    rows: list[Row] = []
    missing: list[Row] = []
    for _, codes, _, row in lines:
        path = as_on_disk(start, row["path"])
        kept: Row = {key: value or None for key, value in row.items() if key}  # drops row numbers
        numbers = sorted({int(values[code]) for code in codes if values[code] >= 0})
        kept |= {"path": path, "label": (separator or "").join(map(str, numbers)) or None}
        if is_url(path) or exists(path):  # URLs are not checked: there may be very many
            rows.append(kept)
        else:
            missing.append({**kept, "path": row["path"], "status": "missing"})
    again = len(lines) - len(listed)
    notes += [f"{again} rows repeat a video"] if again else []
    notes += [unused] if (unused := columns.unused()) else []
    notes += labels.notes()
    source = f"in {file}" + f" below {start}" * (not is_absolute(lines[0][3]["path"]))
    way = "" if rows else _way_to_videos(file, [row for *_, row in lines], start)
    return _write_list(
        output, rows, missing, classes=names or (), source=source, notes=notes,
        say_of_labels=say_of_labels, say_unlabelled=say_of_labels, several=several,
        way=way,
    )  # fmt: skip


def splits_of_folder(folder: str | Path) -> dict[str, str]:
    """The folders of a data set's splits, by names of `SPLITS`; empty if there are none.

    Folders without videos may lie beside them. Raises ValueError for others.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    found = {split: name for name in names for split in SPLITS if _is_named(name, split)}
    places = {split: os.path.join(folder, name) for split, name in found.items()}
    others = [os.path.join(folder, name) for name in names if name not in found.values()]
    if "train" not in found:
        return {}
    if mixed := next((place for place in others if VideoTree(place).videos), None):
        if len(found) == 1:
            return {}  # a class of trains
        judged = places.get("val") or places["test"]
        raise ValueError(
            f"{folder} must hold only the folders of its splits, but {shown(mixed)} also has "
            f"videos: move it away, or run hpm-video start {shlex.quote(places['train'])} --val "
            f"{shlex.quote(judged)}"
        )
    return places


def splits_of_list(file: str | Path, *, root: str | Path | None = None) -> list[str]:
    """The `SPLITS` that the rows of a list belong to; empty without "train"."""
    columns: Columns | None = None
    for where, row in read_videos(file):
        if columns is None:
            columns = Columns(Path(file), list_root(file, root), row)
        columns.note(row, where)
    found = []
    for split in SPLITS:
        with suppress(ValueError):
            if columns is not None and columns.choose(split):
                found.append(split)
    return found if "train" in found else []


def _is_named(name: str, split: str) -> bool:
    return name.lower() in SPLITS[split]


def _with_part(row: dict[str, str], renamed: Mapping[str, str], file: Path) -> dict[str, str]:
    """The row with its part columns renamed to ours, and times in seconds."""
    given = row
    for old, new in renamed.items():
        if old not in given:
            rest = ", ".join(map(shown, given))
            raise ValueError(f"column ({shown(old)}) must be one of the columns of {file}: {rest}")
        if new in row and new != old:
            raise ValueError(
                f"{file}: column {new} must not exist beside {shown(old)}; remove one of them"
            )
        text = row[old].strip()
        if new in SECOND_COLUMNS and (time := seconds_of(text)) is not None:
            text = f"{time:.12g}"
        row = {new if name == old else name: text if name == old else t for name, t in row.items()}
    return row


def _of_images(tree: VideoTree) -> str:
    """The note on images that are not videos, following the number of other files."""
    if tree.num_images <= len(tree.videos):  # probably thumbnails
        return ""
    return (
        f"; {tree.num_images} files are images: `--images stills` lists each as a still video"
        + ", `--images frames` each folder of numbered images" * (not tree.is_sure)
    )


def _of_others(tree: VideoTree, command: str) -> str:
    """What a folder without videos has instead, and what to do. ``command``: see `list_folder`."""
    folder, said = tree.folder, ", nor other files"
    if others := [*tree.some_others, *tree.texts]:
        said = (
            f", only other files ({tree.num_others + len(tree.texts)}, such as "
            f"{shown(os.path.relpath(others[0], folder))})"
        )
    if endings := _endings_of_videos(tree):
        start = shlex.quote(os.path.join(os.path.abspath(folder), ""))
        found = f"find {start} -type f {_any_named(endings)}"
        return (
            f"{said}. Videos end in .mp4, .webm, .avi or the like; others are videos too, list "
            f"them: (echo path; {found}) > videos.csv"
        )
    known = [folder, *filter(os.path.isdir, shlex.split(command))]
    for place in folders_beside(folder, depth=1) if command else ():
        is_split = os.path.basename(place).lower() in _SPLITS
        if not is_split and not any(os.path.samefile(place, other) for other in known):
            return f"{said}; for the videos in {shown(place)}: {command} {shell_path(place)}"
    return f"{said}: name the folder of the videos; to look for some: find ~ -iname '*.mp4' | head"


def _endings_of_videos(tree: VideoTree) -> list[str]:
    """Those of the other files' endings whose first file can be read as a video."""
    # Only here, as reading needs av
    from hpm_video.data.prepare.check import Inspect  # noqa: PLC0415
    from hpm_video.data.video.limits import READING  # noqa: PLC0415
    from hpm_video.runtime.workers import ItemTimeout, WorkerDied, run_killable  # noqa: PLC0415

    items = [(path, None) for path in tree.other_endings.values()]
    if not items:
        return []
    good = {
        path
        for (path, _), outcome in run_killable(
            Inspect(quick=True), items, num_workers=1, timeout_s=_LONGEST_LOOK_S, limits=READING
        )
        if not isinstance(outcome, ItemTimeout | WorkerDied) and (outcome.num_frames or 0) > 1
    }
    return sorted(ending for ending, path in tree.other_endings.items() if path in good)


def _any_named(endings: Iterable[str], *, test: str = "-name") -> str:
    """The test of `find` for names with one of these endings, "" for names without any."""
    tests = (f"{test} '*{ending}'" if ending else "! -name '*.*'" for ending in endings)
    return f"\\( {' -o '.join(tests)} \\)"


def _move_away(folder: str, names: Sequence[str]) -> str:
    """How to move these files out of a folder, for a message; "" if some are folders."""
    if any(os.path.isdir(os.path.join(folder, name)) for name in names):
        return ""
    place = os.path.abspath(folder)
    aside = f"{place}_loose"
    if os.path.lexists(aside):
        aside = str(free_place(Path(aside)))
    target = shell_path(aside if os.path.isabs(folder) else os.path.relpath(aside))
    start = os.path.join(folder, "")  # follows a link
    start = shlex.quote(f"./{start}" if start[0] in "-(!," else start)
    kinds = _any_named(sorted({os.path.splitext(name)[1].lower() for name in names}), test="-iname")
    files = f"-maxdepth 1 ! -type d ! -name '.*' {kinds}"
    return f". To move away: mkdir {target} && find {start} {files} -exec mv {{}} {target} \\;"


def _known_classes(given: str | Path | None, *folders: Path) -> ClassNames | None:
    """Class names of the given file, else of the first classes.txt in the folders."""
    if given is not None:
        return read_classes(given)
    files = (folder / "classes.txt" for folder in folders)
    return next((read_classes(file) for file in files if file.is_file()), None)


def _own_names(file: Path) -> tuple[str, ...]:
    """The class names beside a list, for which its numbers stand; empty if it has none."""
    beside = file.parent / "classes.txt"
    return read_classes(beside).names if beside.is_file() else ()


def _named(label: str, own: Sequence[str]) -> str:
    """A label with the name in place of its number, if known."""
    is_known = INTEGER.fullmatch(label) and 0 <= int(label[:9]) < len(own)
    return own[int(label)] if is_known else label


def _way_to_videos(file: str | Path, rows: Sequence[Mapping[str, str]], start: str) -> str:
    """What to do about a list of which no video exists."""
    some = rows[:: -(-len(rows) // _LOOKED_FOR)]
    names = [row["path"] for row in some]
    is_checked = any(row.get("status", "").strip() in ("bad", "missing") for row in some)
    if is_absolute(names[0]):
        return f": {way_to_moved(file, names, start, is_checked=is_checked)}"
    if (found := root_of(names, start)) is not None:
        return f": add --root {shell_path(found)}"
    return f": add --root DIR, with the folder that contains {shown(names[0])}"


def _way_to_classes(known: ClassNames, given: str | Path | None, output: Path) -> str:
    """What to do about folders that are none of the known classes."""
    if given is not None:
        return (
            f"rename these folders to one of the classes ({first_few(known.names, 5)}), or move "
            "them away"
        )
    way = f"append the names of these folders to {known.source}"
    if known.source != str(output.parent / "classes.txt"):
        return way
    other = output.parent / f"{output.stem}_list" / output.name
    return f"{way}, or write a list with classes of its own: -o {shell_path(other)}"


def _check_output(output: str | Path, inputs: Iterable[str]) -> None:
    """Raise ValueError if the manifest would overwrite an input, or another kind of file."""
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"output ({output}) must be a file, but is a folder")
    for path in (output, _missing_file(output)):
        if not path.exists():
            continue
        if any(os.path.samefile(path, file) for file in inputs if os.path.exists(file)):
            raise ValueError(f"output ({path}) must be another file, as this one is read as a list")
        with open_regular(path) as file:
            head = file.readline(4096).decode("utf-8-sig", "replace")
        is_list = head.strip().split(",")[0] == "path"
        if is_list and path != output:  # it is deleted if nothing is missing
            is_list = all(row.get("status") == "missing" for _, row in read_rows(path))
        if not is_list:
            raise ValueError(
                f"output ({path}) must be a new file or a list of videos, not another file: "
                f"add -o {shell_path(free_place(output.with_suffix('.csv')))}"
            )


def _write_list(
    output: str | Path,
    rows: Sequence[Row],
    missing: Sequence[Row],
    *,
    classes: Sequence[str],
    source: str,
    notes: list[str],
    say_of_labels: bool = False,
    say_unlabelled: bool = True,
    several: LabelsConfig | None = None,
    way: str = "",
) -> Listed:
    """Write the results.

    Paths of ``rows`` are absolute. ``source`` says in messages where videos are listed, ``way``
    what to do if none is there.
    """
    output = Path(output)
    if not rows:
        example = str(missing[0]["path"])
        raise ValueError(
            f"none of the {len(missing)} videos {source} exists, e.g. {shown(example)}{way}"
        )
    base = os.path.join(os.path.abspath(output.parent), "")
    # Paths below the manifest's folder become relative, so that both can be moved together
    written, absent = (
        [{**row, "path": str(row["path"]).removeprefix(base)} for row in some]
        for some in (rows, missing)
    )
    classes_file, missing_file = output.parent / "classes.txt", _missing_file(output)
    with _staged(output) as staged:
        if classes and classes_file.is_file():
            write_classes(classes_file, classes)  # compares only
        elif classes:
            write_classes(staged.parent / classes_file.name, classes)
        elif classes_file.is_file():
            classes = read_classes(classes_file).names
        if missing:
            write_manifest(_missing_file(staged), absent)
        write_manifest(staged, written)
        manifest = read_manifest(staged, root=str(output.parent), classes=classes, several=several)
        unlabelled = sum(row["label"] is None for row in rows)
        if unlabelled and say_unlabelled:
            kind = "videos" if manifest.bounds is None else "parts"
            notes.append(f"{unlabelled} {kind} have no label")
        try:
            num_classes = manifest.num_classes
        except ValueError as error:  # may be fine for a subset of a data set
            num_classes = 0
            notes.append(str(error).replace(str(staged), str(output)))
        if say_of_labels:
            notes += label_notes(manifest)
        if output.exists() and _says_more(output, [*written, *absent]):
            notes.append(f"the previous list is kept as {keep_original(output)}")
    if not missing:
        missing_file.unlink(missing_ok=True)
    named = missing_file if missing else None
    return Listed(
        *(output, len(rows), num_classes, len(missing), named, tuple(notes)),
        are_parts=manifest.bounds is not None,
    )


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A temporary path to write ``output``, with any files beside it.

    If the context ends without an error, all files are moved to their places, ``output`` last.
    """
    new = [folder for folder in output.parents if not folder.exists()]
    with ExitStack() as stack:
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=".hpm-video-list-", dir=output.parent)
            )
        try:
            yield Path(folder, output.name)
        except BaseException:
            stack.close()
            for parent in new:
                with suppress(OSError):  # no longer empty
                    parent.rmdir()
            raise
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == output.name):
            os.replace(path, output.with_name(path.name))


def _says_more(old: Path, rows: Iterable[Row]) -> bool:
    """Whether a list has a video, or a value, that the rows replacing it lack."""
    new = {_key(row): row for row in rows}
    for _, row in read_rows(old):
        known = new.get(_key(row), {})
        if not known or any(text and text != str(known.get(key)) for key, text in row.items()):
            return True
    return False


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row.get(name) or "") for name in ("path", *PART_COLUMNS))


def _missing_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}_missing.csv")
