"""What `data check` found in a list, as text and as a page with plots."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure

from hpm_video.data.prepare.verdict import BAD, OK
from hpm_video.runtime.files import printable
from hpm_video.runtime.pages import page, png

_NUM_BINS = 12
_MAX_SIZES = 12  # frame sizes listed one by one
_MAX_NAMED = 2000  # bad videos on a page; the list has all of them
_BAR = 40  # characters


@dataclass(frozen=True)
class Report:
    """Figures of a checked list; those of the videos are of the ok ones."""

    num_videos: int  # rows of the list
    num_ok: int  # of these, how many are ok
    bad: tuple[tuple[str, str], ...]  # (path, reason) of every bad one, in their order
    left_out: Mapping[str, int]  # own word of the user for a video that is left out -> how many
    durations_s: npt.NDArray[np.float64]  # of those whose duration is known
    sizes: Mapping[tuple[int, int], int]  # (width, height) -> how many
    labels: Mapping[str, int]  # label as on the page -> how many, in the order of the classes
    num_bytes: int  # all together
    num_frames: int  # all together

    @property
    def reasons(self) -> dict[str, int]:
        """Kinds of reasons, numbers and names of files left out, and how many: most first."""
        kinds = Counter(_kind(path, reason) for path, reason in self.bad)
        return dict(kinds.most_common())


def make_report(rows: Sequence[Mapping[str, str]], *, classes: Sequence[str] = ()) -> Report:
    """Collect the figures of checked rows; `classes` are names of integer labels."""
    by_status: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        by_status.setdefault(row.get("status", "").strip(), []).append(row)
    good = by_status.pop(OK, [])
    labels = Counter(row.get("label", "").strip() for row in good)
    labels[""] += labels.pop("-1", 0)
    if all(re.fullmatch(r"\d+", label) for label in labels if label):
        # A class without any ok video is what one wants to see
        labels.update({str(number): 0 for number in range(len(classes))})
    return Report(
        num_videos=len(rows),
        num_ok=len(good),
        bad=tuple((row["path"], row.get("reason", "")) for row in by_status.pop(BAD, [])),
        left_out={word: len(some) for word, some in by_status.items()},
        durations_s=np.array([float(r["duration_s"]) for r in good if r["duration_s"]]),
        sizes=Counter((int(row["width"]), int(row["height"])) for row in good),
        labels={_label_name(k, classes): labels[k] for k in sorted(labels, key=_label_order)},
        num_bytes=sum(int(row["num_bytes"]) for row in good),
        num_frames=sum(int(row["num_frames"]) for row in good),
    )


def report_text(report: Report) -> str:
    """The figures as lines of text, for a terminal."""
    lines = [_headline(report)]
    if report.bad:
        lines += ["bad:", *_bars(report.reasons.items())]
    lines += [f"left out: {n} with status {printable(w)!r}" for w, n in report.left_out.items()]
    if not report.num_ok:
        return "\n".join(lines)
    if len(report.durations_s):
        counts, edges = _histogram(report.durations_s)
        names = [f"{a:.4g} - {b:.4g} s" for a, b in pairwise(edges)]
        lines += [_duration_line(report), *_bars(zip(names, counts, strict=True))]
    lines += ["frame size:", *_bars(_size_counts(report).items())]
    if named := {name: count for name, count in report.labels.items() if name}:
        lines += [
            f"labels: {len(named)} classes of {min(named.values())} to {max(named.values())} "
            f"videos, {report.labels.get('', 0)} videos without"
        ]
        most = sorted(named.items(), key=lambda pair: -pair[1])
        lines += _bars(most if len(most) <= _MAX_SIZES else [*most[:5], *most[-5:]])
    return "\n".join(lines)


def report_page(report: Report, *, title: str) -> str:
    """The figures as one HTML page that needs no other file."""
    named = [(name, count) for name, count in report.labels.items() if name]
    plots = []
    if len(report.durations_s):
        plots.append(("Durations", _plot(*_histogram(report.durations_s), "seconds")))
    if report.num_ok:
        sides = np.array([min(size) for size in report.sizes], dtype=np.float64)
        weights = np.array(list(report.sizes.values()))
        plots.append(("Short sides", _plot(*_histogram(sides, weights), "pixels")))
    if named:
        counts = np.sort([count for _, count in named])[::-1]
        edges = np.arange(len(counts) + 1, dtype=np.float64) + 0.5
        plots.append(("Videos of a class", _plot(counts, edges, "classes, the largest first")))
    lines = [_headline(report)]
    lines += [f"Left out: {n:,} with status {word!r}." for word, n in report.left_out.items()]
    if len(report.durations_s):
        lines.append(_duration_line(report).rstrip(":"))
    return page(
        __package__,
        "check.html",
        title=f"Check of {title}",
        lines=lines,
        plots=plots,
        reasons=report.reasons.items(),
        sizes=_size_counts(report).items(),
        classes=named,
        bad=report.bad[:_MAX_NAMED],
        more_bad=len(report.bad) - _MAX_NAMED,
    )


def _headline(report: Report) -> str:
    return (
        f"{report.num_videos:,} videos: {report.num_ok:,} ok, {len(report.bad):,} bad; "
        f"the ok ones have {report.num_frames:,} frames in "
        f"{report.durations_s.sum() / 3600:.4g} h, {report.num_bytes / 1e9:.4g} GB"
    )


def _duration_line(report: Report) -> str:
    low, middle, high = np.quantile(report.durations_s, [0, 0.5, 1])
    return f"duration: {low:.4g} to {high:.4g} s, median {middle:.4g} s:"


def _kind(path: str, reason: str) -> str:
    """A reason without what differs from file to file."""
    text = reason.replace(path, "FILE").replace(os.path.basename(path), "FILE")
    return re.sub(r"(?<![A-Za-z])[\d.]*\d", "N", text)


def _label_order(label: str) -> tuple[int, str]:
    return (int(label), "") if re.fullmatch(r"-?\d+", label) else (0, label)


def _label_name(label: str, classes: Sequence[str]) -> str:
    known = re.fullmatch(r"\d+", label) and int(label) < len(classes)
    return f"{label} {classes[int(label)]}" if known else label


def _size_counts(report: Report) -> dict[str, int]:
    """Frame sizes as text -> how many, most first; the rare ones together."""
    ordered = sorted(report.sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    counts = {f"{width} x {height}": count for (width, height), count in ordered[:_MAX_SIZES]}
    if rest := ordered[_MAX_SIZES:]:
        counts[f"{len(rest)} other sizes"] = sum(count for _, count in rest)
    return counts


def _histogram(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.generic] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    counts, edges = np.histogram(values, bins=_NUM_BINS, weights=weights)
    return counts.astype(np.int64), edges


def _bars(counts: Iterable[tuple[str, int]]) -> list[str]:
    """A line for each (name, count), with a bar."""
    pairs = [(printable(name), int(count)) for name, count in counts]
    most = max(count for _, count in pairs)
    width = len(f"{most:,}")
    return [
        f"  {count:>{width},} {'#' * -(-_BAR * count // max(most, 1)):<{_BAR}} {name}"
        for name, count in pairs
    ]


def _plot(counts: npt.NDArray[np.generic], edges: npt.NDArray[np.float64], unit: str) -> Markup:
    """A bar plot, as `png`; `unit` is ours: names of others would be read as formulas."""
    drawn = Figure(figsize=(7, 2.6), layout="constrained")
    axes = drawn.subplots()
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color="#3b6ea5")
    axes.set(xlabel=unit, ylabel="videos")
    axes.spines[["top", "right"]].set_visible(False)
    return png(drawn)
