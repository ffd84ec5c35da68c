"""What a study found: summary.json, summary.csv and summary.md."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpm_video.bench.study.calibration import (
    calibration_file,
    epochs_of_equal_time,
    seconds_per_step,
)
from hpm_video.bench.study.cell import Row, read_row
from hpm_video.bench.study.cells import Study
from hpm_video.bench.study.intervals import Estimate, estimate, paired_differences
from hpm_video.config.settings import config_to_dict
from hpm_video.runtime.files import write_atomically


@dataclass(frozen=True)
class Measure:
    """A column. key: in the rows. digits: after the point."""

    key: str
    title: str
    digits: int = 3


ACCURACIES = (
    Measure("balanced_accuracy", "fine-tuned, balanced"),
    Measure("top1", "fine-tuned, top-1"),
    Measure("linear_balanced_accuracy", "linear probe"),
    Measure("attentive_balanced_accuracy", "attentive probe"),
    Measure("knn_balanced_accuracy", "nearest neighbours"),
    Measure("hard_linear_balanced_accuracy", "hard: linear"),
    Measure("hard_attentive_balanced_accuracy", "hard: attentive"),
    Measure("hard_knn_balanced_accuracy", "hard: neighbours"),
)
MINING = (
    Measure("rank_accuracy", "rank accuracy"),
    Measure("spearman", "Spearman"),
    Measure("object_coverage", "object in the hardest quarter"),
    Measure("feature_variation", "feature variation"),
)
COSTS = (
    Measure("epochs", "epochs", 0),
    Measure("clips_per_second", "clips/s", 1),
    Measure("training_seconds", "training, s", 0),
    Measure("compute_seconds", "calibrated, s", 0),
)


# What encoders were before their first step, as far as probes say: no name that a variant can have.
UNTRAINED = "before training"


@dataclass(frozen=True)
class Comparison:
    """The finished cells of one data set at equal epochs or equal time."""

    data_set: str
    kind: str
    base: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return f"{self.data_set}_{self.kind}"

    @property
    def variants(self) -> list[str]:
        """Those with a finished cell, in the study's order."""
        return list(dict.fromkeys(row["variant"] for row in self.rows))

    def values(self, variant: str, key: str) -> dict[int, float]:
        """Seed -> figure, of the cells that have it."""
        return {
            row["seed"]: row[key]
            for row in self.rows
            if row["variant"] == variant and row.get(key) is not None
        }

    def estimate(self, variant: str, key: str) -> Estimate | None:
        values = list(self.values(variant, key).values())
        return estimate(values) if values else None

    def differences(self, variant: str, key: str) -> dict[int, float]:
        """Seed -> difference to the base with the same seed, where both have the figure."""
        return paired_differences(self.values(variant, key), self.values(self.base, key))

    def difference(self, variant: str, key: str) -> Estimate | None:
        """Mean of the differences; None of the base itself, and without any."""
        values = [] if variant == self.base else list(self.differences(variant, key).values())
        return estimate(values) if values else None


def comparisons(study: Study) -> list[Comparison]:
    """All that the study compares, as far as it is done."""
    cells, seconds = study.cells(epochs_of_equal_time(study)), seconds_per_step(study)
    order = list(study.config.variants)
    found = []
    for data_set in study.config.sets:
        for kind in study.config.comparisons:
            rows = [
                row
                for cell in cells
                if cell.data_set == data_set
                # From scratch there is no time of pre-training: shown beside both
                and (kind in cell.comparisons or cell.pretrain is None)
                and (row := read_row(cell)) is not None
            ]
            for row in rows:
                # Of all cells by one calibration, on whatever machine each of them ran
                if (a_step := seconds.get((data_set, row["variant"]))) is not None:
                    row["compute_seconds"] = row["steps"] * a_step
            rows.sort(key=lambda row: (order.index(row["variant"]), row["seed"]))
            rows += [*_before_training(row for row in rows if row["variant"] == study.base)]
            found.append(Comparison(data_set, kind, study.base, tuple(rows)))
    return found


def _before_training(rows: Iterable[Row]) -> Iterator[Row]:
    """What the first probes of cells found, if that was before their first step."""
    for row in rows:
        if row.get("probe_epochs", [])[:1] == [0]:
            named = {key: row[key] for key in ("data_set", "seed", "folder")}
            curves = [key for key in row if key.endswith("_curve")]
            probes = {key.removesuffix("_curve"): row[key][0] for key in curves}
            yield {**named, "variant": UNTRAINED, **probes}


def write_summary(study: Study, found: Sequence[Comparison], *, pictures: Sequence[str]) -> None:
    """Write summary.json, summary.csv and summary.md into the study's folder."""
    cells = study.cells(epochs_of_equal_time(study))
    missing = [cell.name for cell in cells if read_row(cell) is None]
    summary = {
        "study": config_to_dict(study.config),
        "base": study.base,
        "missing": missing,
        "calibration": {
            name: json.loads(file.read_text(encoding="utf-8"))
            for name in study.config.sets
            if (file := calibration_file(study, name)).is_file()
        },
        "comparisons": [_as_dict(comparison) for comparison in found],
    }
    text = json.dumps(_without_nan(summary), indent=1, ensure_ascii=False)
    write_atomically(study.folder / "summary.json", [text + "\n"])
    write_atomically(study.folder / "summary.csv", [_table_of_rows(found)])
    lines = [*_document(found, missing, pictures)]
    write_atomically(study.folder / "summary.md", [f"{line}\n" for line in lines])


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    measures = (*ACCURACIES, *MINING, *COSTS)
    return {
        "data_set": comparison.data_set,
        "comparison": comparison.kind,
        "rows": list(comparison.rows),
        "estimates": {
            variant: {
                measure.key: {
                    "value": asdict(value),
                    "difference": None if difference is None else asdict(difference),
                }
                for measure in measures
                if (value := comparison.estimate(variant, measure.key)) is not None
                for difference in [comparison.difference(variant, measure.key)]
            }
            for variant in comparison.variants
        },
    }


def _table_of_rows(found: Sequence[Comparison]) -> str:
    """One line for each comparison and cell, with all that is a number or a text."""
    rows = [{"comparison": one.kind, **row} for one in found for row in one.rows]
    columns = dict.fromkeys(
        name for row in rows for name, value in row.items() if not isinstance(value, list | dict)
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _document(
    found: Sequence[Comparison], missing: Sequence[str], pictures: Sequence[str]
) -> Iterator[str]:
    """Lines of Markdown."""
    yield "# Ablation"
    yield ""
    yield (
        "Mean ± sample standard deviation over seeds. Differences are to the base, paired by "
        "seed, with a 95 % interval of Student's t; bold where it excludes 0 and there are more "
        "than two pairs. With many rows some do so by chance. Speeds are those of the machines on "
        "which cells ran, beside whatever else ran there; calibrated seconds compare."
    )
    if missing:
        yield ""
        yield f"{len(missing)} cells are not done yet, e.g. {missing[0]}."
    for comparison in found:
        yield ""
        yield f"## {comparison.data_set}, equal {comparison.kind}"
        if not comparison.rows:
            yield ""
            yield "Nothing is done yet."
            continue
        for title, measures in (
            ("What was learnt", ACCURACIES),
            ("What is known of hardness", MINING),
            ("What it took", COSTS),
        ):
            yield from _tables(comparison, title, measures)
        for picture in pictures:
            if picture.startswith(f"plots/{comparison.name}."):
                yield ""
                yield f"![{comparison.name}]({picture})"


def _tables(comparison: Comparison, title: str, measures: Sequence[Measure]) -> Iterator[str]:
    """One of values and, but for costs, one of differences."""
    known = [
        measure
        for measure in measures
        if any(comparison.values(variant, measure.key) for variant in comparison.variants)
    ]
    if not known:
        return
    header = [measure.title for measure in known]
    yield from ("", f"### {title}", "", *_lines(["variant", "seeds", *header]))
    variants = [
        variant
        for variant in comparison.variants
        if any(comparison.values(variant, measure.key) for measure in known)
    ]
    for variant in variants:
        seeds = sum(row["variant"] == variant for row in comparison.rows)
        shown = [
            _value(comparison.estimate(variant, measure.key), measure.digits) for measure in known
        ]
        yield _line([variant, str(seeds), *shown])
    if measures is COSTS:
        return
    others = [variant for variant in variants if variant != comparison.base]
    if not others or comparison.base not in variants:
        return
    columns = ["variant", "pairs", *header]
    yield from ("", f"Difference to `{comparison.base}`:", "", *_lines(columns))
    for variant in others:
        differences = [comparison.difference(variant, measure.key) for measure in known]
        pairs = max((one.count for one in differences if one is not None), default=0)
        shown = [
            _difference(one, measure.digits)
            for one, measure in zip(differences, known, strict=True)
        ]
        yield _line([variant, str(pairs), *shown])


def _value(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "-"
    if math.isnan(value.spread) or not value.spread:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.spread:.{digits}f}"


def _difference(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "-"
    mean = f"{value.mean:+.{digits}f}"
    if math.isnan(value.low):
        return mean
    text = f"{mean} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
    return f"**{text}**" if value.excludes_zero and value.count > 2 else text


def _lines(cells: Sequence[str]) -> list[str]:
    """The head of a table."""
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _without_nan(value: Any) -> Any:
    """The same with None for what is not a number, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
