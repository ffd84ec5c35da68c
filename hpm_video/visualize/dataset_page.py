"""The page about a data set: where and in which clips the losses are."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from hpm_video.config.settings import config_to_yaml
from hpm_video.evaluate.pretrained import Pretrained
from hpm_video.runtime.pages import picture, table, text
from hpm_video.visualize.figures import heat
from hpm_video.visualize.hardness import (
    Array,
    ClipNumbers,
    Hardness,
    Losses,
    ShownClip,
    central_tubes,
    correlation_of_clips,
)
from hpm_video.visualize.overview import overview_page
from hpm_video.visualize.plots import Line, curves, heat_map, histogram, spread

MAX_BAD = 2000  # unreadable videos on the page; the CSV has all of them
MAX_CLASSES = 1000  # the CSV has what makes up all of them
_SIDE = 96  # pixels of a small picture
_MANY_BAD = 0.05  # share of unreadable videos from which the page warns


def dataset_page(
    pretrained: Pretrained,
    found: Hardness,
    numbers: ClipNumbers,
    *,
    checkpoint: str,
    lists: str,
    num_masks: int,
    num_shown: int,
) -> str:
    """The HTML page; it needs no other file."""
    order = found.hardest_first()
    count = min(num_shown, (len(order) + 1) // 2)  # none is among both
    kind = "measured" if found.measured is not None else "predicted"
    return overview_page(
        f"What {checkpoint} finds hard in {lists}",
        f"<p>{len(found.indices):,} clips, one from the middle of each readable video; "
        f"{len(found.bad):,} videos are unreadable. Step {pretrained.step:,}. "
        f"{_what_was_asked(found, num_masks)}</p>",
        *_warnings(found),
        f"<h2>In numbers</h2>{_numbers(found, numbers)}",
        "<h2>Where</h2>",
        _places(found),
        "<h2>Which clips</h2>",
        histogram(found.judged.clips, title=f"{kind.capitalize()} loss of clips", unit="loss"),
        _chooser(found),
        f"<h3>Hardest</h3>{_cards(found, numbers, order[:count])}" if count else "",
        f"<h3>Easiest</h3>{_cards(found, numbers, order[::-1][:count])}" if count else "",
        _classes(found, numbers),
        table("Unreadable videos", ("video", "reason"), [
            (found.manifest.path(index), reason) for index, reason in found.bad[:MAX_BAD]
        ]),
        "<details><summary>Settings of the run</summary>"
        f"<pre>{html.escape(config_to_yaml(pretrained.config))}</pre></details>",
        script="dataset.js",
    )  # fmt: skip


def _what_was_asked(found: Hardness, num_masks: int) -> str:
    if found.measured is None:
        return "Shown is what the predictor says; no loss was measured."
    said = f"Losses are measured under {num_masks} random masks a clip"
    return said + (", and predicted." if found.predicted is not None else ".")


def _warnings(found: Hardness) -> list[str]:
    said = []
    total = len(found.indices) + len(found.bad)
    if len(found.bad) > _MANY_BAD * total:
        said.append(
            f"{len(found.bad):,} of {total:,} videos are unreadable: what is said of the others "
            "may not hold for the data set."
        )
    if found.measured is None:
        said.append(
            "Clips are ordered by predicted loss. A predictor learns the order of the tokens "
            "within a clip and never compares two clips: only a measured loss (more than 0 masks) "
            "tells a hard clip from an easy one."
        )
    if found.predicted is None:
        said.append(
            "This checkpoint is a plain VideoMAE, without a loss predictor: only what is measured "
            "is shown."
        )
    return [f'<p class="note" role="note">{text(words)}</p>' for words in said]


def _numbers(found: Hardness, numbers: ClipNumbers) -> str:
    chance = float(central_tubes(found.grid).mean())
    rows: list[tuple[str, str, str, str]] = []

    def add(name: str, values: Array | None, by_chance: str, says: str) -> None:
        if values is not None:
            shown = f"{values.mean():.3f}"
            rows.append((name, shown, f"{values.std():.3f}", f"{by_chance} {says}".strip()))

    add(
        "Spearman, predicted with measured",
        numbers.spearman,
        "chance: 0;",
        "rank correlation of the mining units of a clip",
    )
    add(
        "the same, of tubes (row, column)",
        numbers.tube_spearman,
        "chance: 0;",
        "to be compared with the next line",
    )
    add(
        "place alone with measured",
        numbers.position_alone,
        "chance: 0;",
        "rank correlation with the mean ranks that tubes in the same places have in all other "
        "clips; a predictor that does no better knows places only",
    )
    for kind in ("measured", "predicted"):
        add(
            f"centre bias, {kind}",
            getattr(numbers, f"{kind}_centre_bias"),
            "none: 0;",
            "rank correlation of the loss of tubes with their nearness to the middle of the frame",
        )
        add(
            f"hard tubes in the centre, {kind}",
            getattr(numbers, f"{kind}_central_share"),
            f"chance: {chance:.3f};",
            "share of the hardest quarter of the tubes that lies in the "
            "central rectangle of half the frame's area",
        )
    if numbers.predicted_loss is not None and numbers.measured_loss is not None:
        both = correlation_of_clips(numbers.predicted_loss, numbers.measured_loss)
        if both is not None:
            rows.append(
                (
                    "clips, predicted with measured",
                    f"{both:.3f}",
                    "",
                    "chance: 0; rank correlation over clips of their mean losses; nothing "
                    "trains a predictor to compare clips",
                )
            )
    lines = "".join(
        f'<tr><th scope="row">{text(name)}<td>{mean}<td>{deviation}<td>{text(says)}'
        for name, mean, deviation, says in rows
    )
    head = "<th>of a clip<th>mean<th>standard deviation<th>what it is"
    return f'<div class="wide"><table class="facts"><tr>{head}{lines}</table></div>'  # fmt: skip


def _places(found: Hardness) -> str:
    """Maps of (row, column) and curves over time, of the mean over clips."""
    both: list[tuple[str, Losses]] = [
        (name, losses)
        for name, losses in (("measured", found.measured), ("predicted", found.predicted))
        if losses is not None
    ]
    maps = {name: losses.tube_ranks().mean(axis=0) for name, losses in both}
    low = min(float(values.min()) for values in maps.values())
    high = max(float(values.max()) for values in maps.values())
    parts = [
        heat_map(values, title=f"Mean rank, {name}", low=low, high=high, unit="rank")
        for name, values in maps.items()
    ]
    if found.measured is not None:
        losses = found.measured.tubes.mean(axis=0, dtype=np.float64)
        ends = float(losses.min()), float(losses.max())
        parts.append(heat_map(losses, title="Mean measured loss", low=ends[0], high=ends[1],
                              unit="loss"))  # fmt: skip
    steps = list(range(found.grid.time))
    parts.append(
        curves(
            [Line(name, steps, losses.time_ranks().mean(axis=0).tolist()) for name, losses in both],
            title="Mean rank of time steps",
            x_name="time step",
            low=0.0,
            high=1.0,
        )
    )
    return (
        "<p>The rank of a tube, or of a time step, is the share of the others of its clip that "
        "have a lower loss: each clip counts the same, however hard it is, and 0.5 is what a place "
        f'without any bias has.</p><div class="row">{"".join(parts)}</div>'
    )


def _chooser(found: Hardness) -> str:
    kinds = [
        (kind, f"{kind} loss")
        for kind, losses in (("measured", found.measured), ("predicted", found.predicted))
        if losses is not None
    ]
    if not found.shown:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="shown" value="{kind}"{" checked" if place == 1 else ""}>'
        f" {words}</label>"
        for place, (kind, words) in enumerate([("frames", "frames alone"), *kinds])
    )
    return (
        f'<fieldset class="bar" id="shown"><legend>Pictures show</legend>{buttons}'
        "<span>dark: the easiest of the clip, yellow: the hardest</span></fieldset>"
    )


def _cards(found: Hardness, numbers: ClipNumbers, rows: Sequence[int] | np.ndarray) -> str:
    cards = []
    for place, row in enumerate(map(int, rows), start=1):
        index = int(found.indices[row])
        if index not in found.shown:
            continue
        label = int(found.labels[row])
        name = text(found.manifest.name(index))
        of_class = f"{label} {found.class_name(label)}".strip() if label >= 0 else ""
        facts = [
            f"{words} {values[row]:.3g}"
            for words, values in (
                ("measured", numbers.measured_loss),
                ("predicted", numbers.predicted_loss),
                ("Spearman", numbers.spearman),
            )
            if values is not None
        ]
        cards.append(
            f'<figure class="card">{_strips(found.shown[index], name)}'
            f"<figcaption><b>{place}. {name}</b>{' · ' if of_class else ''}{text(of_class)}"
            f"<br>{' · '.join(facts)}</figcaption></figure>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _strips(clip: ShownClip, name: str) -> str:
    """Frames side by side: as they are, and under the ranks of their losses."""
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)  # (F, 3, S, S)
    side = min(_SIDE, frames.shape[-1])
    small = functional.resize(frames, [side, side], antialias=True)
    pixels = small.permute(0, 2, 3, 1).numpy().astype(np.float32) / 255
    shown = [("frames", pixels)]
    for kind, ranks in (("measured", clip.measured), ("predicted", clip.predicted)):
        if ranks is not None:
            cells = torch.from_numpy(ranks)[:, None]
            large = functional.resize(cells, [side, side], interpolation=InterpolationMode.NEAREST)
            shown.append((kind, heat(pixels, large[:, 0].numpy())))
    default = shown[min(1, len(shown) - 1)][0]
    parts = []
    for kind, images in shown:
        gap = ((0, 0), (0, 0), (0, 3), (0, 0))
        strip = np.concatenate(list(np.pad(images, gap, constant_values=1)), axis=1)[:, :-3]
        file = io.BytesIO()
        Image.fromarray((strip.clip(0, 1) * 255).round().astype(np.uint8)).save(
            file, format="jpeg", quality=80
        )
        what = "" if kind == "frames" else f", {kind} loss"
        image = picture(file.getvalue(), alt=f"{len(images)} frames of {name}{what}", kind="jpeg")
        hidden = "" if kind == default else " hidden"
        parts.append(f'<div data-kind="{kind}"{hidden}>{image}</div>')
    return "".join(parts)


def _classes(found: Hardness, numbers: ClipNumbers) -> str:
    labels = found.labels
    known = [int(label) for label in np.unique(labels) if label >= 0]
    if not known:
        return "<h2>Classes</h2><p>The list has no labels.</p>"
    losses = found.judged.clips
    low, high = float(losses.min()), float(losses.max())
    kind = "measured" if found.measured is not None else "predicted"
    other = numbers.predicted_loss if found.measured is not None else None
    head = ["class", "clips", f"{kind} loss", "standard deviation", "spread"]
    head += ["predicted loss"] if other is not None else []
    head += ["Spearman"] if numbers.spearman is not None else []
    lines = []
    means = {label: float(losses[labels == label].mean()) for label in known}
    for label in sorted(known, key=lambda label: -means[label])[:MAX_CLASSES]:
        of_class = labels == label
        values = losses[of_class]
        name = f"{label} {found.class_name(label)}".strip()
        cells = [f"{values.mean():.4g}", f"{values.std():.2g}", spread(values, low=low, high=high)]
        for numbers_of in (other, numbers.spearman):
            if numbers_of is not None:
                cells.append(f"{numbers_of[of_class].mean():.3g}")
        lines.append(
            f'<tr><th scope="row">{text(name)}<td>{len(values)}'
            + "".join(f"<td>{cell}" for cell in cells)
        )
    heads = "".join(f'<th scope="col">{text(name)}' for name in head)
    within, between = _variances(losses, labels, known)
    share = between / (within + between) if within + between > 0 else 0.0
    return (
        f"<h2>Classes, the hardest first</h2><p>Classes account for {share:.0%} of the variance of "
        "the loss of labelled clips; in the column spread a dot is a clip, the bar the mean, the "
        "box one standard deviation to either side. A click on a heading sorts.</p>"
        f'<div class="wide"><table class="sortable"><tr>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _variances(losses: Array, labels: np.ndarray, known: Sequence[int]) -> tuple[float, float]:
    """Mean variance within classes, and the variance between them, weighed by their clips."""
    labelled = losses[labels >= 0]
    within = sum(float(losses[labels == k].var() * (labels == k).sum()) for k in known)
    within /= len(labelled)
    return within, float(labelled.var()) - within
