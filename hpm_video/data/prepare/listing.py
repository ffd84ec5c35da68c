"""`hpm-video data list`: a manifest of a data set as it lies there.

Beside the manifest, `classes.txt` gets the class names in the order of their labels, and
`<manifest>_missing.csv` the videos that are named but not there. All three appear at once or not at
all, the manifest last.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpm_video.data.lists.classes import ClassNames, Labels, read_classes, write_classes
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.lists.rows import INTEGER, first_few, read_videos, shown
from hpm_video.data.prepare.official import DATA_SETS, FOLDS, Video
from hpm_video.data.prepare.tree import VideoTree

# Folders of these names hold parts of a data set, not its classes
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}
Row = dict[str, object]


@dataclass(frozen=True)
class Listed:
    """What was written. missing_file: None where no video is missing; notes: lines to show."""

    manifest: Path
    num_videos: int
    num_classes: int
    num_missing: int
    missing_file: Path | None
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Return one line."""
        line = f"{shown(str(self.manifest))}: {self.num_videos} videos"
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
    """List a split of a data set by its official files.

    Args:
        data_set: a key of `DATA_SETS`.
        folder: the videos, in any folders below it.
        output: the manifest to write.
        split: "train", "test", and "val" where there is one.
        fold: 1 to 3, of those that have three pairs of splits.
        annotations: where the official files lie, by default somewhere below `folder`.
        classes: a file of class names whose order to number them by, instead of the official one.

    Raises FileNotFoundError: something needed is not there; ValueError: a list is malformed, labels
    do not fit the classes, or no video is there.
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
    numbers = {name: label for label, name in enumerate(known.names)}
    rows: list[Row] = []
    missing: list[Row] = []
    listed: dict[str, Video] = {}
    again: list[Video] = []
    for video in listing.videos:
        name = listing.classes[video.label] if video.label >= 0 else None
        if name is not None and name not in numbers:
            raise ValueError(f"{video.where}: class ({shown(name)}) must be one of {known.source}")
        label = numbers[name] if name is not None else None
        if listed.setdefault(video.names[0], video) is not video:
            again.append(video)
            continue
        found = (tree.find(name, folder=video.folder) for name in video.names)
        path = next((path for path in found if path is not None), None)
        if path is not None:
            rows.append({"path": os.path.abspath(path), "label": label})
        else:
            wanted = os.path.join(video.folder, video.names[0])
            missing.append({"path": wanted, "label": label, "status": "missing"})
    last = f"the last in {again[-1].where}: ignored" if again else ""
    notes = [f"{len(again)} videos are named again, {last}"] if again else []
    names = known.names if listing.classes else ()
    source = f"named in {listing.files[-1]}"
    return _write_list(output, rows, missing, classes=names, source=source, notes=notes)


def list_folder(
    folder: str | Path, output: str | Path, *, classes: str | Path | None = None
) -> Listed:
    """List a folder that has a folder of videos per class, or videos only (without labels then).

    Classes are numbered by `classes`, else the `classes.txt` in the folder, else that beside the
    manifest, else in the order of their names (whole numbers in the order of their values).

    Raises FileNotFoundError: the folder does not exist; ValueError: it has no videos, videos beside
    class folders, folders of splits, or of classes that are not among the known ones.
    """
    tree = VideoTree(folder)
    _check_output(output, ())
    parts = [os.path.relpath(path, folder).split(os.sep) for path in tree.videos]
    folders = {part[0] for part in parts if len(part) > 1}
    if not parts:
        raise ValueError(f"{folder} must hold videos in a folder per class: has none")
    if folders and len(folders) <= 3 and {name.lower() for name in folders} <= _SPLITS:
        raise ValueError(
            f"{folder} must hold a folder per class: has those of splits "
            f"({', '.join(sorted(folders))}): list each of them"
        )
    loose = next((part[0] for part in parts if len(part) == 1), None)
    if folders and loose is not None:
        raise ValueError(
            f"{folder} must hold videos in class folders, or no class folders: "
            f"{shown(loose)} lies beside {shown(min(folders))}"
        )
    known = _known_classes(classes, Path(folder), Path(output).parent)
    if known is None:
        are_numbers = all(INTEGER.fullmatch(name) for name in folders)
        order = sorted(sorted(folders), key=int if are_numbers else str)
        known = ClassNames(tuple(order), "the folders")
    numbers = {name: label for label, name in enumerate(known.names)}
    for name in sorted(folders - set(numbers)):
        raise ValueError(
            f"{folder}: folder ({shown(name)}) must be one of the classes of {known.source}"
        )
    rows: list[Row] = [
        {"path": os.path.abspath(path), "label": numbers[part[0]] if folders else None}
        for path, part in zip(tree.videos, parts, strict=True)
    ]
    notes = []
    if without := [name for name in known.names if folders and name not in folders]:
        notes.append(f"{len(without)} classes have no videos: {first_few(without, 3)}")
    if skipped := tree.num_others + len(tree.texts):
        notes.append(f"{skipped} other files were left out")
    names = known.names if folders else ()
    return _write_list(output, rows, [], classes=names, source=f"in {folder}", notes=notes)


def list_own(
    file: str | Path,
    output: str | Path,
    *,
    root: str | Path | None = None,
    classes: str | Path | None = None,
) -> Listed:
    """Turn any list that `read_manifest` reads into a manifest of the videos that are there.

    Args:
        file: the list.
        output: the manifest to write.
        root: where the list's relative paths start, by default its own folder.
        classes: a file of class names in the order of their labels; by default the `classes.txt`
            beside the list, or else beside the manifest.

    Raises FileNotFoundError: the list does not exist; ValueError: it is malformed, its labels do
    not fit the classes, a video has two labels, or no video is there.
    """
    _check_output(output, (str(file),))
    labels = Labels(_known_classes(classes, Path(file).parent, Path(output).parent))
    listed: dict[str, tuple[str, str]] = {}
    lines: list[tuple[int, dict[str, str]]] = []  # with the codes of their labels
    for where, row in read_videos(file):
        label = row.get("label", "").strip()
        other, other_where = listed.setdefault(row["path"], (label, where))
        if other != label:
            raise ValueError(
                f"{where}: label ({shown(label)}) of {shown(row['path'])} must be one, but is "
                f"({shown(other)}) in {other_where}"
            )
        lines.append((labels.add(row["path"], label, where), row))
    values, names = labels.values()
    start = os.path.abspath(root if root is not None else Path(file).parent)
    rows: list[Row] = []
    missing: list[Row] = []
    for code, row in lines:
        path = os.path.join(start, row["path"])
        kept: Row = {key: value or None for key, value in row.items()}
        kept |= {"path": path, "label": int(values[code]) if values[code] >= 0 else None}
        if os.path.isfile(path):
            rows.append(kept)
        else:
            missing.append({**kept, "path": row["path"], "status": "missing"})
    again = len(lines) - len(listed)
    notes = [f"{again} rows name a video again"] if again else []
    source = f"in {file} below {start}"
    return _write_list(output, rows, missing, classes=names or (), source=source, notes=notes)


def _known_classes(given: str | Path | None, *folders: Path) -> ClassNames | None:
    """Class names of a file given, else of the first classes.txt in the folders."""
    if given is not None:
        return read_classes(given)
    files = (folder / "classes.txt" for folder in folders)
    return next((read_classes(file) for file in files if file.is_file()), None)


def _check_output(output: str | Path, inputs: Iterable[str]) -> None:
    """Raise ValueError where a manifest would replace a file that is none, or one of the inputs."""
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"output ({output}) must be a file, but is a folder")
    for path in (output, _missing_file(output)):
        if not path.exists():
            continue
        if any(os.path.samefile(path, file) for file in inputs if os.path.exists(file)):
            raise ValueError(f"output ({path}) must be another file: it is read as a list")
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            if file.readline().strip().split(",")[0] != "path":
                raise ValueError(f"output ({path}) must be a new file or a manifest: is another")


def _write_list(
    output: str | Path,
    rows: Sequence[Row],
    missing: Sequence[Row],
    *,
    classes: Sequence[str],
    source: str,
    notes: list[str],
) -> Listed:
    """Write what was found. Paths of ``rows`` are absolute; ``source``: where they are named."""
    output = Path(output)
    if not rows:
        example = shown(str(missing[0]["path"]))
        raise ValueError(f"none of the {len(missing)} videos {source} is there, e.g. {example}")
    base = os.path.join(os.path.abspath(output.parent), "")
    # What lies below the manifest may be moved with it
    written = [{**row, "path": str(row["path"]).removeprefix(base)} for row in rows]
    if classes:
        write_classes(output.parent / "classes.txt", classes)
    missing_file = _missing_file(output)
    if missing:
        write_manifest(missing_file, missing)
    write_manifest(output, written)
    if not missing:
        missing_file.unlink(missing_ok=True)
    if unlabelled := sum(row["label"] is None for row in rows):
        notes.append(f"{unlabelled} videos have no label")
    manifest = read_manifest(output)  # which looks at the labels
    try:
        num_classes = manifest.num_classes
    except ValueError as error:  # may be right for a part of a data set
        num_classes = 0
        notes.append(str(error))
    named = missing_file if missing else None
    return Listed(output, len(rows), num_classes, len(missing), named, tuple(notes))


def _missing_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}_missing.csv")
