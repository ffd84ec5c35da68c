"""The account of an import: what became of every tensor, and what the file is, in words."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from hpm_video.models.build import heads_of
from hpm_video.weights.foreign.architecture import Architecture
from hpm_video.weights.foreign.weight_files import Source

Status = Literal["loaded", "renamed", "interpolated", "initialised", "unused"]
_LISTED = 4  # unused tensors that a line names


@dataclass(frozen=True)
class Row:
    """What became of a tensor: ``theirs`` in the file, ``ours`` in the model; either may be ""."""

    theirs: str
    ours: str
    status: Status
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Imported:
    """A checkpoint of ours, as `hpm_video.weights.checkpoint` describes it, and where it is from.

    words: what the file is. source: what is in it. architecture: None where it is one of ours.
    """

    state: dict[str, Any]
    rows: tuple[Row, ...]
    words: str
    source: Source
    architecture: Architecture | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, in words, if anything."""
        if self.architecture is None or not self.architecture.assumed:
            return ()
        what = ", ".join(self.architecture.assumed)
        return (f"of model ({self.source.path}) this is assumed: {what}",)


def in_a_line(found: Imported) -> str:
    """What a file is and how many of its tensors became what; of ours, the step."""
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
    """A line for each tensor: what became of it, its name in the file and in the model."""
    rows = [("what", "in the file", "in the model", "shape", "")]
    for row in found.rows:
        shape = " x ".join(map(str, row.shape)) or "number"
        rows.append((row.status, row.theirs or "-", row.ours or "-", shape, row.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]


def assumed(found: Imported) -> list[str]:
    """A line of what the file did not say, if there is anything."""
    if found.architecture is None or not found.architecture.assumed:
        return []
    return [f"assumed  {', '.join(found.architecture.assumed)}: the file does not say"]


def overview(found: Imported) -> list[str]:
    """What a file is: format, size, grid, classes, what else lies in it."""
    state, tensors = found.state, found.source.tensors
    model, data = state["config"]["model"], state["config"]["data"]
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    number = sum(tensor.numel() for tensor in tensors.values())
    lines = [
        f"format   {found.words}",
        f"tensors  {len(tensors)}, {number / 1e6:.1f} M numbers, {', '.join(types)}",
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
        lines.append(f"beside   {', '.join(found.source.others)}")
    return lines
