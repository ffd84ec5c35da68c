"""Probe results of several encoders side by side: a JSON file that grows, and a table."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpm_video.config import ProbeJobConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.evaluate.probe import ProbeReport
from hpm_video.runtime.files import printable, write_atomically
from hpm_video.runtime.reading import read_json

Row = dict[str, Any]

_LISTS = ("train", "val")
_SAME = ("model", "kind", "settings")  # a new row replaces one with the same values
# Settings that do not change results
_NOT_OF_RESULTS = ("device", "num_workers", "decode_timeout_s", "kinds")


def read_rows(path: Path, lists: dict[str, list[str]]) -> list[Row]:
    """Rows of a file from `write_rows`; empty if there is no file.

    Raises ValueError for another kind of file, and for results on lists other than ``lists``, which
    are not comparable.
    """
    if path.is_dir():
        raise ValueError(f"output ({path}) must be a JSON file, not a folder")
    if not path.exists():
        return []
    try:
        rows = read_json(path)
    except ValueError as error:
        raise ValueError(f"output ({path}) must be JSON ({error}); choose another file") from error
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {*_SAME, *_LISTS, "top1"} <= row.keys() for row in rows
    ):
        raise ValueError(f"output ({path}) must hold results of probes; choose another file")
    there: list[Row] = rows
    for name in _LISTS:
        others = [row[name] for row in there if row[name] != _absolute(lists[name])]
        if others:
            raise ValueError(
                f"output ({path}) holds results for another --{name} ({', '.join(others[0])}); "
                "choose another file"
            )
    return there


def rows_of(
    model: str, report: ProbeReport, lists: dict[str, list[str]], config: ProbeJobConfig
) -> list[Row]:
    """One JSON row per kind of probe."""
    settings = {k: v for k, v in config_to_dict(config).items() if k not in _NOT_OF_RESULTS}
    settings["precision"] = report.precision
    return [
        {
            "model": model,
            "encoder": report.encoder,
            **{n: v for n, v in asdict(replace(result, linear=None)).items() if n != "linear"},
            **{name: _absolute(lists[name]) for name in _LISTS},
            "num_train": report.num_train,
            "num_val": report.num_val,
            "num_unreadable": len(report.bad),
            "warnings": list(report.warnings),
            "clips": report.clips,
            "settings": settings,
        }
        for result in report.results
    ]


def write_rows(path: Path, before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Write old and new rows, where new ones replace old ones of the same key; return all."""
    new = [[row[name] for name in _SAME] for row in rows]
    kept = [row for row in before if [row[name] for name in _SAME] not in new]
    # JSON has no NaN (diverged results)
    together = json.loads(json.dumps([*kept, *rows]), parse_constant=lambda _: None)
    write_atomically(path, [json.dumps(together, indent=1), "\n"])
    return [*kept, *rows]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a table, best result of each kind first."""
    names = {"top1": "top1", "balanced_accuracy": "balanced", "mean_ap": "mean_ap"}
    # A file holds rows of either multi-label or single-label lists
    shown_ones = [name for name in names if any(row.get(name) is not None for row in rows)]
    cells = [("model", "kind", *(names[name] for name in shown_ones), "clips", "hyperparameters")]
    for row in sorted(rows, key=lambda row: (str(row["kind"]), -(row.get(shown_ones[0]) or 0))):
        figures = (f"{row.get(name) or 0:.4f}" for name in shown_ones)
        cells.append((row["model"], row["kind"], *figures, row["clips"], row["how"]))
    shown = [[printable(str(cell)) for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for line in shown:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _absolute(paths: Sequence[str]) -> list[str]:
    return [str(Path(path).absolute()) for path in paths]
