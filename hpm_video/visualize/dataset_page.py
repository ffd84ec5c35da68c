"""The data set page: which clips are hard, and where in the frame."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from hpm_video.config.settings import config_to_yaml
from hpm_video.evaluate.pretrained import Pretrained
from hpm_video.runtime.pages import jpeg, number, page, short
from hpm_video.runtime.plots import HeatMap, Line, curves, histogram, spread
from hpm_video.visualize.dataset_losses import Asking
from hpm_video.visualize.figures import heat
from hpm_video.visualize.hardness import (
    ClipNumbers,
    Hardness,
    Losses,
    ShownClip,
    central_tubes,
    correlation_of_clips,
)
from hpm_video.visualize.verdict import RULE, mean_of, verdict
from hpm_video.visualize.windows import resized

MAX_BAD = 2000  # unreadable videos on the page; the CSV has all of them
MAX_CLASSES = 1000  # classes on the page; the CSV files hold the data of all
_SIDE = 96  # pixels of a thumbnail
_MAX_NAMED = 3  # lists named in the title
_MANY_BAD = 0.05  # share of unreadable videos at which the page warns


def dataset_page(
    pretrained: Pretrained,
    found: Hardness,
    numbers: ClipNumbers,
    asking: Asking,
    names: tuple[str, Sequence[str]],
) -> str:
    """Render the page as one HTML file; ``names`` of the checkpoint and of the lists."""
    checkpoint, manifests = names
    lists = ", ".join(map(short, manifests))
    if len(manifests) > _MAX_NAMED:
        lists = f"{len(manifests)} lists"
    order = found.hardest_first()
    num_ends = min(asking.num_shown, (len(order) + 1) // 2)  # no clip is at both ends
    both = found.losses
    judged, *others = both
    total = len(found.indices) + len(found.bad)
    columns = ["class", "clips", f"{judged} loss", "standard deviation", "spread"]
    columns += [*(f"{name} loss" for name in others), *(["Spearman"] if others else [])]
    known = numbers["spearman"]
    spearman = None if known is None else mean_of(known.tolist())
    of_clips = None
    if found.predicted is not None and found.measured is not None:
        of_clips = correlation_of_clips(found.predicted.clips, found.measured.clips)
    steps = range(found.grid.time)
    ranks = {name: losses.time_ranks().mean(axis=0).tolist() for name, losses in both.items()}
    lines = [Line(name, steps, values) for name, values in ranks.items()]
    return page(
        __package__,
        "dataset.html",
        title=f"What {short(checkpoint)} finds hard in {lists}",
        title_path=f"{checkpoint}: {', '.join(manifests)}",
        tiles=_tiles(found),
        spearman=spearman,
        found_verdict=verdict(spearman),
        rule=RULE,
        found=found,
        numbers=numbers,
        step=pretrained.step,
        num_masks=asking.num_masks,
        total=total,
        is_spoilt=len(found.bad) > _MANY_BAD * total,
        chance=float(central_tubes(found.grid).mean()),
        of_clips=of_clips,
        maps=_maps(both),
        times=curves(lines, title="Mean rank of time steps", x_name="time step", low=0.0, high=1.0),
        clips=histogram(
            found.judged.clips, title=f"{judged.capitalize()} loss of clips", unit="loss"
        ),
        kinds=["frames", *both],
        num_ends=num_ends,
        hardest=_cards(found, numbers, order[:num_ends]),
        easiest=_cards(found, numbers, order[::-1][:num_ends]),
        class_columns=columns,
        classes=_classes(found, numbers),
        share_of_classes=_share_of_classes(found),
        bad=[(found.manifest.path(index), reason) for index, reason in found.bad[:MAX_BAD]],
        settings=config_to_yaml(pretrained.config),
    )


def _tiles(found: Hardness) -> list[tuple[str, str, str]]:
    """Tiles at the top of the page."""
    losses = found.judged.clips
    low, high = (f"{value:.4f}" for value in (losses.min(), losses.max()))
    kind = "predicted" if found.measured is None else "measured"
    return [
        ("clips", f"{len(found.indices):,}", f"{len(found.bad):,} videos unreadable"),
        (f"mean {kind} loss", f"{losses.mean():.4f}", f"from {low} to {high}"),
        ("classes", f"{len(np.unique(found.labels[found.labels >= 0])):,}", ""),
    ]


def _maps(both: dict[str, Losses]) -> list[HeatMap]:
    """Heat maps (row, column), averaged over clips: ranks on one scale, and measured losses."""
    ranks = {name: losses.tube_ranks().mean(axis=0) for name, losses in both.items()}
    low = min(float(values.min()) for values in ranks.values())
    high = max(float(values.max()) for values in ranks.values())
    maps = [HeatMap(f"Mean rank, {name}", one, low, high, "rank") for name, one in ranks.items()]
    if "measured" in both:
        losses = both["measured"].tubes.mean(axis=0, dtype=np.float64)
        ends = float(losses.min()), float(losses.max())
        maps.append(HeatMap("Mean measured loss", losses, *ends, "loss"))
    return maps


def _cards(found: Hardness, numbers: ClipNumbers, rows: Iterable[int]) -> list[dict[str, Any]]:
    """Clips: name, class ('' for none), numbers as text, and pictures (kind, caption, address)."""
    columns = {"measured": "measured_loss", "predicted": "predicted_loss", "Spearman": "spearman"}
    words = {word: numbers[column] for word, column in columns.items()}
    forms = {"Spearman": ".2f"}
    return [
        {
            "name": found.manifest.name(index),
            "class_name": found.titled(int(found.labels[row])),
            "facts": [
                f"{word} {number(float(c[row]), forms.get(word, '.4f'))}"
                for word, c in words.items()
                if c is not None
            ],
            "strips": list(_strips(found.shown[index], found.manifest.name(index))),
        }
        for row in rows
        if (index := int(found.indices[row])) in found.shown
    ]


def _strips(clip: ShownClip, name: str) -> Iterator[tuple[str, str, str]]:
    """Strips of frames: plain, and under the ranks of each kind of loss."""
    side = min(_SIDE, clip.frames.shape[2])
    pixels = resized(clip.frames, side, side).astype(np.float32) / np.float32(255)
    shown = {"frames": pixels}
    for kind, ranks in clip.ranks.items():
        cells = torch.from_numpy(ranks)[:, None]
        large = functional.resize(cells, [side, side], interpolation=InterpolationMode.NEAREST)
        shown[kind] = heat(pixels, large[:, 0].numpy())
    for kind, images in shown.items():
        words = f"{len(images)} frames of {name}" + (f", {kind} loss" if kind in clip.ranks else "")
        gap = ((0, 0), (0, 0), (0, 3), (0, 0))
        strip = np.concatenate(list(np.pad(images, gap, constant_values=1)), axis=1)[:, :-3]
        drawn = (strip.clip(0, 1) * 255).round().astype(np.uint8)
        yield kind, words, jpeg(drawn, quality=80)


def _classes(found: Hardness, numbers: ClipNumbers) -> list[dict[str, Any]]:
    """Names and losses, hardest first; with both kinds of loss also mean predicted loss and
    Spearman."""
    losses = found.judged.clips
    low, high = float(losses.min()), float(losses.max())
    others = [(numbers["predicted_loss"], ".4f"), (numbers["spearman"], ".2f")]
    others = [] if found.measured is None else others
    classes = []
    for label in np.unique(found.labels[found.labels >= 0]).tolist():
        of_class = found.labels == label
        classes.append(
            {
                "name": found.titled(label),
                "losses": losses[of_class],
                "spread": spread(losses[of_class], low=low, high=high),
                "means": [
                    (float(one[of_class].mean()), form) for one, form in others if one is not None
                ],
            }
        )
    return sorted(classes, key=lambda one: -float(one["losses"].mean()))[:MAX_CLASSES]


def _share_of_classes(found: Hardness) -> float:
    """Share of the loss variance of labelled clips that lies between classes."""
    labels, losses = found.labels[found.labels >= 0], found.judged.clips[found.labels >= 0]
    total = float(losses.var()) if len(losses) else 0.0
    of_classes = [losses[labels == label] for label in np.unique(labels)]
    within = sum(float(one.var() * len(one)) for one in of_classes) / max(1, len(losses))
    return (total - within) / total if total > 0 else 0.0
