"""A list of videos as `hpm-video data list` writes it.

Beside the manifest, `classes.txt` gets the class names in the order of their labels, and
`<manifest>_missing.csv` the videos that are named but not there. All three appear at once or not at
all, the manifest last.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpm_video.data.lists.classes import write_classes
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.lists.rows import shown

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


def check_output(output: str | Path, inputs: Iterable[str]) -> None:
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


def write_list(
    output: str | Path,
    rows: Sequence[Row],
    missing: Sequence[Row],
    *,
    classes: Sequence[str],
    source: str,
    notes: Sequence[str],
) -> Listed:
    """Write what was found. Paths of ``rows`` are absolute; ``source``: where they are named."""
    output = Path(output)
    if not rows:
        raise ValueError(
            f"none of the {len(missing)} videos {source} is there, e.g. "
            f"{shown(str(missing[0]['path']))}"
        )
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
    notes = [*notes]
    unlabelled = sum(row["label"] is None for row in rows)
    if unlabelled:
        notes.append(f"{unlabelled} videos have no label")
    manifest = read_manifest(output)  # which looks at the labels
    try:
        num_classes = manifest.num_classes
    except ValueError as error:  # may be right for a part of a data set
        num_classes = 0
        notes.append(str(error))
    return Listed(
        output,
        num_videos=len(rows),
        num_classes=num_classes,
        num_missing=len(missing),
        missing_file=missing_file if missing else None,
        notes=tuple(notes),
    )


def _missing_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}_missing.csv")
