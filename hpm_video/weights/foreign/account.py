"""The account of an import: what became of every tensor, and a description of the file."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from hpm_video.models.sizes import heads_of
from hpm_video.weights.foreign.architecture import Architecture
from hpm_video.weights.foreign.weight_files import Source

Status = Literal["loaded", "renamed", "interpolated", "initialised", "unused"]
_LISTED = 4  # unused tensors listed in the summary line


@dataclass(frozen=True)
class Row:
    """What became of a tensor. theirs, ours: its name in the file and in the model, or ""."""

    theirs: str
    ours: str
    status: Status
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint in our format (see `hpm_video.weights.checkpoint`), and its origin.

    words: description of the file. source: its content. architecture: None for our own files.
    """

    state: dict[str, Any]
    rows: tuple[Row, ...]
    words: str
    source: Source
    architecture: Architecture | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Descriptions of what was assumed, if anything."""
        if self.architecture is None or not self.architecture.assumed:
            return ()
        what = ", ".join(self.architecture.assumed)
        return (f"model ({self.source.path}) does not store some of its settings; assumed: {what}",)


def in_a_line(found: Imported) -> str:
    """One line: description of a file and counts of tensors by status; our files give the step."""
    if found.architecture is None:
        return f"step {found.state['step']}"
    counts = Counter(row.status for row in found.rows)
    unused = [row.theirs for row in found.rows if row.status == "unused"]
    named = ", ".join(unused[:_LISTED]) + (", …" if len(unused) > _LISTED else "")
    told = [
        f"{number} {status}" + (f" ({named})" if status == "unused" else "")
        for status, number in sorted(counts.items())
    ]
    return f"{found.words} ({', '.join(told)})"


def key_table(found: Imported) -> list[str]:
    """A table with a line per tensor: status, name in the file, name in the model, shape, note."""
    rows = [("status", "in the file", "in the model", "shape", "")]
    for row in found.rows:
        shape = " x ".join(map(str, row.shape)) or "number"
        rows.append((row.status, row.theirs or "-", row.ours or "-", shape, row.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]


def assumed(found: Imported) -> list[str]:
    """A line that lists the assumptions about a file, or nothing."""
    if found.architecture is None or not found.architecture.assumed:
        return []
    return [f"assumed  {', '.join(found.architecture.assumed)}: not stored in the file"]


def overview(found: Imported) -> list[str]:
    """Description of a file: format, size, clips, classes, other content."""
    state, tensors = found.state, found.source.tensors
    model, data = state["config"]["model"], state["config"]["data"]
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    number = sum(tensor.numel() for tensor in tensors.values())
    lines = [
        f"format   {found.words}",
        f"tensors  {len(tensors)}, {number / 1e6:.1f} M values, {', '.join(types)}",
    ]
    if "size" in model and model.get("name", "videomae") == "videomae":
        parts = [f"size {model['size']}"]
        parts += [f"{key} {model[key]}" for key in ("width", "depth") if model[key]]
        parts.append(f"{heads_of(model['size'], model['heads'])} heads")
        lines.append(f"encoder  {', '.join(parts)}")
        tokens = f"{model['tubelet_size']} x {model['patch_size']} x {model['patch_size']}"
        lines.append(
            f"clips    {data['num_frames']} frames of {data['crop_size']} x {data['crop_size']} "
            f"pixels in tokens of {tokens}"
        )
    lines += assumed(found)
    if state["kind"] == "finetune":
        lines.append(f"classes  {state['num_classes']}")
    if found.source.others:
        lines.append(f"others   {', '.join(found.source.others)}")
    return lines
