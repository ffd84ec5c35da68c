"""Writes the results of a study: summary.json, summary.csv and summary.md."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hpm_video.bench.study.calibration import calibrated_cells, read_calibration
from hpm_video.bench.study.cell import read_row
from hpm_video.bench.study.cells import Study
from hpm_video.bench.study.comparison import (
    ACCURACIES,
    CONFIDENCE,
    COSTS,
    MINING,
    POWER,
    Comparison,
    Estimate,
    Measure,
    corrected,
    pairs_needed,
)
from hpm_video.config.settings import config_to_dict
from hpm_video.runtime.files import write_atomically, write_csv

_OF_INTEREST = 0.05  # the smallest difference of accuracy that a study should find
_DECIDING = ("labels_area", "balanced_accuracy")
# Sections of a comparison in summary.md
_SECTIONS = {
    "Accuracy": ACCURACIES,
    "Prediction of hardness": MINING,
    "Cost": COSTS,
}


def write_summary(study: Study, found: Sequence[Comparison], *, pictures: Sequence[str]) -> None:
    """Write summary.json, summary.csv and summary.md to the study's folder."""
    missing = [cell.name for cell in calibrated_cells(study) if read_row(cell) is None]
    calibrations = {name: read_calibration(study, name) for name in study.config.sets}
    summary = {
        "study": config_to_dict(study.config),
        "base": study.base,
        "missing": missing,
        "calibration": {name: entries for name, entries in calibrations.items() if entries},
        "comparisons": [_as_dict(comparison) for comparison in found],
    }
    text = json.dumps(_without_nan(summary), indent=1, ensure_ascii=False)
    write_atomically(study.folder / "summary.json", [text + "\n"])
    rows = [{"comparison": one.kind, **row} for one in found for row in one.rows]
    columns = dict.fromkeys(
        name for row in rows for name, value in row.items() if not isinstance(value, list | dict)
    )
    values = ([row.get(name) for name in columns] for row in rows)
    write_csv(study.folder / "summary.csv", [*columns], values)
    document = _document(found, missing, pictures)
    write_atomically(study.folder / "summary.md", (f"{line}\n" for line in document))


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    all_measures = (*ACCURACIES, *MINING, *COSTS)
    estimates = {
        variant: {
            one.key: {
                "value": comparison.estimate(variant, one.key),
                "difference": comparison.difference(variant, one.key),
            }
            for one in comparison.measured(all_measures, [variant])
        }
        for variant in comparison.variants
    }
    return {
        "data_set": comparison.data_set,
        "comparison": comparison.kind,
        "rows": list(comparison.rows),
        "estimates": estimates,
    }


def _document(
    found: Sequence[Comparison], missing: Sequence[str], pictures: Sequence[str]
) -> Iterator[str]:
    """The lines of summary.md."""
    yield from ("# Ablation", "")
    yield (
        "Values are means ± sample standard deviation over seeds. Differences are from the "
        "baseline, paired by seed, with a 95 % confidence interval (Student's t). A difference is "
        "bold if its interval excludes 0 and there are at least three pairs; among many rows, a "
        "few do so by chance. † marks differences from 0 (5 %) after Holm's correction for all "
        "rows of the column. Speeds depend on the machines that ran the cells, and on their load. "
        "Calibrated seconds do not, so compare these."
    )
    if missing:
        yield from ("", f"{len(missing)} cells are not finished yet, for example {missing[0]}.")
    for comparison in found:
        yield from ("", f"## {comparison.data_set}, equal {comparison.kind}")
        if not comparison.rows:
            yield from ("", "No cell is finished yet.")
        for title in _SECTIONS:
            yield from _section(comparison, title)
        for picture in pictures:
            if picture.startswith(f"plots/{comparison.name}."):
                yield from ("", f"![{comparison.name}]({picture})")


def _section(comparison: Comparison, title: str) -> Iterator[str]:
    """A table of values and, except for costs, one of differences; empty without any values."""
    measures = comparison.measured(_SECTIONS[title], comparison.variants)
    variants = [name for name in comparison.variants if comparison.measured(measures, [name])]
    if not measures:
        return
    columns, rule = [measure.title for measure in measures], "|" + "---|" * (2 + len(measures))
    yield from ("", f"### {title}", "", _line("variant", "seeds", *columns), rule)
    for name in variants:
        seeds = sum(row["variant"] == name for row in comparison.rows)
        values = [_value(comparison.estimate(name, one.key), one.digits) for one in measures]
        yield _line(name, str(seeds), *values)
    others = [name for name in variants if name != comparison.base]
    if title == "Cost" or not others or comparison.base not in variants:
        return
    heading = f"Difference from `{comparison.base}`:"
    yield from ("", heading, "", _line("variant", "pairs", *columns), rule)
    table = [[comparison.difference(name, one.key) for one in measures] for name in others]
    columns_of_p = (
        corrected([math.nan if one is None else one.p for one in column])
        for column in zip(*table, strict=True)
    )
    rows_of_p = zip(*columns_of_p, strict=True)
    for name, differences, p_values in zip(others, table, rows_of_p, strict=True):
        pairs = max((one.count for one in differences if one is not None), default=0)
        shown = [
            _difference(one, of.digits, is_marked=p < 1 - CONFIDENCE)
            for one, of, p in zip(differences, measures, p_values, strict=True)
        ]
        yield _line(name, str(pairs), *shown)
    if title == "Accuracy":
        yield from _pairs(comparison, others, measures)


def _pairs(
    comparison: Comparison, others: Sequence[str], measures: Sequence[Measure]
) -> Iterator[str]:
    """How many seeds a smallest difference of interest needs, in the first of `_DECIDING`."""
    known = {one.key: one for one in measures}
    if (deciding := next((known[key] for key in _DECIDING if key in known), None)) is None:
        return
    found = ((name, comparison.difference(name, deciding.key)) for name in others)
    counts = [
        f"{name} {pairs_needed(one.spread, _OF_INTEREST):,}"
        for name, one in found
        if one is not None and one.spread > 0
    ]
    if counts:
        yield ""
        yield (
            f"Pairs of seeds that find a difference of {_OF_INTEREST} in *{deciding.title}* in "
            f"{POWER:.0%} of studies, if differences spread as here: {', '.join(counts)}."
        )


def _value(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "-"
    mean = f"{value.mean:.{digits}f}"  # the spread of a single value is NaN
    return f"{mean} ± {value.spread:.{digits}f}" if value.spread > 0 else mean


def _difference(value: Estimate | None, digits: int, *, is_marked: bool) -> str:
    if value is None:
        return "-"
    mean = f"{value.mean:+.{digits}f}"
    if math.isnan(value.low):
        return mean
    text = f"{mean} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
    text += " †" if is_marked and value.count > 2 else ""
    return f"**{text}**" if value.excludes_zero and value.count > 2 else text


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _without_nan(value: Any) -> Any:
    """The value in valid JSON types: None for NaN, and estimates as dicts."""
    if isinstance(value, Estimate):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
