"""Reports of benches: a line about the machine, a table and notes, printed and as JSON."""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from hpm_video.runtime.files import write_atomically
from hpm_video.runtime.machine import processor_name

Cell = str | int | float | None


@dataclass(frozen=True)
class Report:
    """Result of one bench.

    machine: processor, threads, device, versions, date. settings: the bench's arguments. rows: the
    table; all have the same keys, with units in their names. notes: lines below the table.
    """

    bench: str
    machine: dict[str, Cell]
    settings: dict[str, object]
    rows: list[dict[str, Cell]]
    notes: list[str] = field(default_factory=list)


def machine_facts(device: torch.device) -> dict[str, Cell]:
    """Facts about the machine that are needed to compare figures."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": gpu or device.type,
        "torch": torch.__version__,
        "date": datetime.now().isoformat(timespec="seconds"),
    }


def format_report(report: Report) -> str:
    """Header, settings, table and notes as plain text."""
    columns = list(report.rows[0])
    table = [columns, *([_text(row[name]) for name in columns] for row in report.rows)]
    widths = [max(len(cells[place]) for cells in table) for place in range(len(columns))]
    lines = [
        f"bench {report.bench}: " + ", ".join(f"{k} {v}" for k, v in report.machine.items()),
        "settings: " + ", ".join(f"{k} {v}" for k, v in report.settings.items()),
    ]
    for first, *others in table:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join([*lines, *report.notes])


def check_json_path(path: str | None) -> None:
    """Raise ValueError, before measuring anything, if the file of --json cannot be written."""
    if path is not None and (not Path(path).absolute().parent.is_dir() or Path(path).is_dir()):
        raise ValueError(f"--json ({path}) must name a file in a folder that exists")


def publish(report: Report, json_path: str | None = None) -> None:
    """Print the report, and write it atomically as JSON if a path is given."""
    if json_path is not None:
        write_atomically(Path(json_path), [json.dumps(asdict(report), indent=1) + "\n"])
    sys.stdout.write(format_report(report) + "\n")


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
