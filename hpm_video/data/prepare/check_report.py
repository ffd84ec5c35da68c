"""The results of `data check` for a list, as text and as a page with plots."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.parts import part_columns, part_of
from hpm_video.data.prepare.remedies import remedies
from hpm_video.data.prepare.verdict import BAD, DAMAGED, OK
from hpm_video.data.video.frames import NO_SUCH_FILE
from hpm_video.data.video.part import Part
from hpm_video.runtime.files import printable
from hpm_video.runtime.pages import page, short
from hpm_video.runtime.plots import histogram

_NUM_BINS = 12
_MAX_SIZES = 12  # frame sizes listed separately
_MAX_NAMED = 2000  # videos per status on a page; the list has all of them
_MAX_SHOWN = 20  # videos per status on the terminal
_MAX_HEADLINE = 5  # videos per status in the first sentence of the page
_BAR = 40  # characters
_LIMIT = (
    "A quick check decodes only the start, the end and a few places in between, so damage "
    "elsewhere goes unnoticed. For a full check, run:"
)


@dataclass(frozen=True)
class Named:
    """Videos with a remark."""

    num_videos: int
    first: tuple[tuple[str, str], ...]  # (path, reason) of the first ones, in list order
    kinds: Mapping[str, int]  # reason without numbers and file names -> count, descending
    examples: Mapping[str, tuple[str, str]]  # the same -> (path, reason) of the first one


@dataclass(frozen=True)
class Report:
    """Statistics of a checked list; those of videos cover ok and damaged ones."""

    num_videos: int  # rows of the list
    num_ok: int  # rows that are ok
    bad: Named
    damaged: Named
    unusual: Named  # ok, with a remark
    left_out: Mapping[str, int]  # user's own status of skipped videos -> count
    durations_s: npt.NDArray[np.float64]  # of videos with a known duration
    sizes: Mapping[tuple[int, int], int]  # (width, height) -> count
    labels: Mapping[str, int]  # displayed label -> count, in the order of classes
    num_bytes: int  # all together
    num_frames: int  # all together
    full_check: str = ""  # of a quick check: command(s) that decode everything
    way_to_missing: str = ""  # what to do if no video exists

    @property
    def is_quick(self) -> bool:
        """Whether only some places of each video were decoded."""
        return bool(self.full_check)


class _Naming:
    """Collects videos for `Named`."""

    def __init__(self) -> None:
        self._num_videos = 0
        self._first: list[tuple[str, str]] = []
        self._kinds: Counter[str] = Counter()
        self._examples: dict[str, tuple[str, str]] = {}

    def add(self, path: str, reason: str) -> None:
        self._num_videos += 1
        if len(self._first) < _MAX_NAMED:
            self._first.append((path, reason))
        for part in reason.split("; "):
            kind = _kind(path, part)
            self._kinds[kind] += 1
            self._examples.setdefault(kind, (path, part))

    def named(self) -> Named:
        kinds = dict(self._kinds.most_common())
        return Named(self._num_videos, tuple(self._first), kinds, self._examples)


def make_report(
    rows: Iterable[Mapping[str, str]],
    *,
    classes: Sequence[str] = (),
    full_check: str = "",
    way_to_missing: Callable[[Sequence[str]], str] = lambda _: "",
) -> Report:
    """Collect the statistics of checked rows; `classes` are names of integer labels.

    ``full_check``: after a quick check, the command(s) of a full one. ``way_to_missing``: what to
    do if no video exists, from the paths of some.
    """
    naming = {word: _Naming() for word in (BAD, DAMAGED, OK)}
    statuses: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    durations_s = array("d")
    num_bytes = num_frames = 0
    last = ""  # previous path: parts of one file are adjacent
    for row in rows:
        status, reason = row.get("status", "").strip(), row.get("reason", "")
        statuses[status] += 1
        if status == BAD or (status in (OK, DAMAGED) and reason):
            naming[status].add(row["path"], reason)
        if status not in (OK, DAMAGED):
            continue
        labels[row.get("label", "").strip()] += 1
        sizes[int(row["width"]), int(row["height"])] += 1
        part = part_of(row, part_columns(row, "", Faults()), "", Faults())
        frames, duration_s = _extent(row, part)
        if part is None or row["path"] != last:
            num_bytes += int(row["num_bytes"])
        last = row["path"]
        num_frames += frames
        if duration_s is not None:
            durations_s.append(duration_s)
    num_videos, num_ok = statuses.total(), statuses[OK]
    bad = naming[BAD].named()
    gone = [path for path, reason in bad.first if reason == NO_SUCH_FILE]
    all_gone = gone and bad.kinds == {NO_SUCH_FILE: num_videos}
    labels[""] += labels.pop("-1", 0)
    if all(re.fullmatch(r"\d+", label) for label in labels if label):
        # Include classes without any ok video
        labels.update({str(number): 0 for number in range(len(classes))})
    return Report(
        num_videos=num_videos,
        num_ok=num_ok,
        bad=bad,
        damaged=naming[DAMAGED].named(),
        unusual=naming[OK].named(),
        left_out={w: n for w, n in statuses.items() if w not in (OK, DAMAGED, BAD)},
        durations_s=np.array(durations_s),
        sizes=sizes,
        labels={_label_name(k, classes): labels[k] for k in sorted(labels, key=_label_order)},
        num_bytes=num_bytes,
        num_frames=num_frames,
        full_check=full_check,
        way_to_missing=way_to_missing(gone[:: -(-len(gone) // _MAX_SHOWN)]) if all_gone else "",
    )


def _extent(row: Mapping[str, str], part: Part | None) -> tuple[int, float | None]:
    """Frames and seconds of a checked row; for a part, estimated from its share of the video."""
    frames = int(row["num_frames"])
    seconds = float(row["duration_s"]) if row["duration_s"] else None
    if part is None:
        return frames, seconds
    whole = frames if part.in_frames else seconds or part.end
    share = max(0.0, min(part.end, whole) - part.start) / whole
    return round(frames * share), None if seconds is None else seconds * share


def report_text(report: Report, *, page: str, figures: bool = True) -> str:
    """The statistics as lines of text for a terminal.

    ``page``: the page that names more videos, "" for none. ``figures``: also durations, sizes and
    classes, not only problems.
    """
    lines = [_headline(report)]
    if report.is_quick:
        lines += [_LIMIT, f"  {printable(report.full_check)}"]
    for title, section in _sections(report):
        lines.append(f"{title.lower()}:")
        is_named = section is not report.unusual
        if section.num_videos > _MAX_SHOWN or not is_named:
            lines += _bars(section.kinds.items())
        if is_named:
            shown = section.first[:_MAX_SHOWN]
            lines += [f"  {printable(path)}: {printable(reason)}" for path, reason in shown]
            if more := section.num_videos - len(shown):
                lines.append(f"  and {more:,} more" + f", in {printable(page)}" * bool(page))
        if advice := _advice(section, report.way_to_missing):
            lines.append("what to do:")
            lines += [f"  {printable(kind)}: {printable(remedy)}" for kind, remedy in advice]
    lines += [f"left out: {n} with status {printable(w)!r}" for w, n in report.left_out.items()]
    if not (report.sizes and figures):
        return "\n".join(lines)
    if len(report.durations_s):
        lines.append(_duration_line(report))
    if len(report.durations_s) and report.durations_s.min() < report.durations_s.max():
        counts, edges = _histogram(report.durations_s)
        names = [f"{a:.4g} - {b:.4g} s" for a, b in pairwise(edges)]
        lines += _bars(zip(names, counts, strict=True))
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
    """The statistics as one self-contained HTML page."""
    named = [(name, count) for name, count in report.labels.items() if name]
    sides = np.repeat([float(min(size)) for size in report.sizes], list(report.sizes.values()))
    counts = np.array([float(count) for _, count in named])
    spreads = [
        (report.durations_s, "Durations", "seconds"),
        (sides, "Short sides", "pixels"),
        (counts, "Sizes of classes", "videos"),
    ]
    known = [(v, title, unit) for v, title, unit in spreads if len(v)]
    level, verdict = _verdict(report)
    return page(
        __package__,
        "check.html",
        title=f"Check of {short(title)}",
        title_path=title,
        level=level,
        verdict=verdict,
        limit=_LIMIT,
        full_check=report.full_check,
        tiles=_tiles(report),
        lines=[f"Left out: {n:,} with status {word!r}." for word, n in report.left_out.items()],
        plotted=[histogram(v, title=t, unit=u) for v, t, u in known if v.min() < v.max()],
        same=[
            f"{t}: all {float(v[0]):,.4f}".rstrip("0").rstrip(".") + f" {u}."
            for v, t, u in known
            if v.min() == v.max()
        ],
        sections=[
            {
                "title": title,
                "kinds": [(count, kind) for kind, count in section.kinds.items()],
                "advice": _advice(section, report.way_to_missing),
                "first": section.first,
                "is_counted": len(section.kinds) < section.num_videos,
                "more": section.num_videos - len(section.first),
            }
            for title, section in _sections(report)
        ],
        sizes=_size_counts(report).items(),
        classes=named,
    )


def _verdict(report: Report) -> tuple[str, str]:
    """The most important facts: is the list fit for training, and which files are not?"""
    if not report.bad.num_videos and not report.damaged.num_videos:
        if report.is_quick:
            return "good", f"All {report.num_ok:,} videos decode where they were sampled."
        return "good", f"All {report.num_ok:,} videos decode completely."
    words = []
    for named, what in (
        (report.bad, "bad and left out of training"),
        (report.damaged, "damaged, but used"),
    ):
        if named.num_videos:
            names = [short(path) for path, _ in named.first[:_MAX_HEADLINE]]
            if more := named.num_videos - len(names):
                names.append(f"{more:,} more")
            words.append(f"{named.num_videos:,} of {report.num_videos:,} videos are {what}: ")
            words[-1] += ", ".join(names) + "."
    return "poor" if report.bad.num_videos else "fair", " ".join(words)


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The numbers at the top of the page."""
    tiles = [
        ("videos", f"{report.num_videos:,}", "in the list"),
        (
            "ok",
            f"{report.num_ok:,}",
            "no damage where sampled" if report.is_quick else "decode completely",
        ),
        ("damaged", f"{report.damaged.num_videos:,}", "decode in part"),
        ("bad", f"{report.bad.num_videos:,}", "left out of training"),
    ]
    if len(report.durations_s):
        low, middle, high = np.quantile(report.durations_s, [0, 0.5, 1])
        spread = f"from {low:.1f} to {high:.1f} s"
        tiles += [("median length", f"{middle:.1f} s", spread)]
        tiles += [("total", *_totals(report))]
    return tiles


def _totals(report: Report) -> tuple[str, str]:
    """Total length and size of the readable videos, with units."""
    minutes, size = report.durations_s.sum() / 60, report.num_bytes / 1e6
    return (
        f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:,.1f} h",
        f"{size:.1f} MB" if size < 1000 else f"{size / 1000:,.1f} GB",
    )


def _sections(report: Report) -> list[tuple[str, Named]]:
    """The remarks on videos, by status; only statuses that have any."""
    sections = [
        ("Bad, and left out of training", report.bad),
        ("Damaged, and used unless data.max_damage says otherwise", report.damaged),
        ("Ok, but unusual", report.unusual),
    ]
    return [(title, named) for title, named in sections if named.num_videos]


def _advice(named: Named, way_to_missing: str) -> list[tuple[str, str]]:
    """What to do about each kind, for its first video; equal advice only once."""
    found: dict[str, str] = {}
    if way_to_missing and NO_SUCH_FILE in named.kinds:
        return [(NO_SUCH_FILE, way_to_missing)]  # no video has another fault
    for kind in named.kinds:
        for remedy in remedies(*named.examples[kind]):
            found.setdefault(remedy, kind)
    return [(kind, remedy) for remedy, kind in found.items()]


def _headline(report: Report) -> str:
    start = "quick check of " * report.is_quick
    return (
        f"{start}{report.num_videos:,} videos: {report.num_ok:,} ok, {report.damaged.num_videos:,} "
        f"damaged, {report.bad.num_videos:,} bad; "
        f"readable (ok or damaged): {report.num_frames:,} frames, {', '.join(_totals(report))}"
    )


def _duration_line(report: Report) -> str:
    low, middle, high = np.quantile(report.durations_s, [0, 0.5, 1])
    if low == high:
        return f"duration: all {low:.4g} s"
    return f"duration: {low:.4g} to {high:.4g} s, median {middle:.4g} s:"


def _kind(path: str, reason: str) -> str:
    """A reason without the details that differ between files."""
    text = reason.replace(path, "FILE").replace(os.path.basename(path), "FILE")
    return re.sub(r"(?<![A-Za-z])[\d.]*\d", "N", text)


def _label_order(label: str) -> tuple[int, str]:
    return (int(label), "") if re.fullmatch(r"-?\d+", label) else (0, label)


def _label_name(label: str, classes: Sequence[str]) -> str:
    known = re.fullmatch(r"\d+", label) and int(label) < len(classes)
    return f"{label} {classes[int(label)]}" if known else label


def _size_counts(report: Report) -> dict[str, int]:
    """Frame sizes as text -> count, descending; rare ones combined."""
    ordered = sorted(report.sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    counts = {f"{width} x {height}": count for (width, height), count in ordered[:_MAX_SIZES]}
    if rest := ordered[_MAX_SIZES:]:
        counts[f"{len(rest)} other sizes"] = sum(count for _, count in rest)
    return counts


def _histogram(
    values: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    counts, edges = np.histogram(values, bins=_NUM_BINS)
    return counts.astype(np.int64), edges


def _bars(counts: Iterable[tuple[str, int]]) -> list[str]:
    """A line with a bar for each (name, count)."""
    pairs = [(printable(name), int(count)) for name, count in counts]
    most = max(count for _, count in pairs)
    width = len(f"{most:,}")
    return [
        f"  {count:>{width},} {'#' * -(-_BAR * count // max(most, 1)):<{_BAR}} {name}"
        for name, count in pairs
    ]
