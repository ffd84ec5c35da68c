"""Results of probes of several encoders beside each other: a JSON file that grows, and a table."""

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
_SAME = ("model", "kind", "settings")  # a row with the same ones takes the place of another
# Settings that change no figure
_NOT_OF_RESULTS = ("device", "num_workers", "decode_timeout_s", "kinds")


def read_rows(path: Path, lists: dict[str, list[str]]) -> list[Row]:
    """The rows of a file that `write_rows` wrote; none where there is no file.

    Raises ValueError for another file, and for results on other lists, which would mean nothing
    beside those on ``lists``.
    """
    if path.is_dir():
        raise ValueError(f"output ({path}) is a folder: must be a JSON file")
    if not path.exists():
        return []
    try:
        rows = read_json(path)
    except ValueError as error:
        raise ValueError(f"output ({path}) is no JSON ({error}): name another file") from error
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {*_SAME, *_LISTS, "top1"} <= row.keys() for row in rows
    ):
        raise ValueError(f"output ({path}) holds no results of probes: name another file")
    there: list[Row] = rows
    for name in _LISTS:
        others = [row[name] for row in there if row[name] != _absolute(lists[name])]
        if others:
            raise ValueError(
                f"output ({path}) has results on another --{name} ({', '.join(others[0])}): name "
                "another file"
            )
    return there


def rows_of(
    model: str, report: ProbeReport, lists: dict[str, list[str]], config: ProbeJobConfig
) -> list[Row]:
    """A row of each kind of probe, of what JSON can hold."""
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
    """Write both, where the later ones take the place of the same ones before; return all."""
    new = [[row[name] for name in _SAME] for row in rows]
    kept = [row for row in before if [row[name] for name in _SAME] not in new]
    # Numbers that are none (of what diverged) are no JSON
    together = json.loads(json.dumps([*kept, *rows]), parse_constant=lambda _: None)
    write_atomically(path, [json.dumps(together, indent=1), "\n"])
    return [*kept, *rows]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a table, the best of each kind first."""
    names = {"top1": "top1", "balanced_accuracy": "balanced", "mean_ap": "mean_ap"}
    # A file has rows of lists with several labels, or with one
    shown_ones = [name for name in names if any(row.get(name) is not None for row in rows)]
    cells = [("model", "kind", *(names[name] for name in shown_ones), "clips", "settled on")]
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
