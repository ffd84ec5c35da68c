"""Label efficiency as one figure: the area under accuracy over the number of labelled videos."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpm_video.config import DataSetConfig, FinetuneConfig
from hpm_video.data.lists.classes import write_classes
from hpm_video.data.lists.manifest import read_manifest, write_manifest


@dataclass(frozen=True)
class FewLabels:
    """A part of a data set's labelled videos, and the settings of fine-tuning on it.

    manifest: a list of ``count`` videos, written by `write_part`.
    """

    name: str
    count: int
    manifest: Path
    finetune: FinetuneConfig


def write_part(lists: DataSetConfig, part: Path, count: int) -> None:
    """Write a list of the first videos of each class, ``count`` in all.

    Classes have equal numbers of videos, as far as possible. Raises ValueError if there are fewer
    labelled videos.
    """
    videos = read_manifest(lists.train, root=lists.root)
    labelled = np.flatnonzero(videos.labels >= 0)
    if count > len(labelled):
        raise ValueError(f"count ({count}) must be at most the {len(labelled)} labelled videos")
    of_class: dict[int, int] = {}
    order = []
    for index in labelled.tolist():
        label = videos.label(index)
        of_class[label] = rank = of_class.get(label, -1) + 1
        order.append((rank, label, index))
    chosen = sorted(order)[:count]
    part.parent.mkdir(parents=True, exist_ok=True)
    if videos.classes is not None:
        write_classes(part.with_name("classes.txt"), videos.classes)
    rows = [{**videos.row(index), "label": label} for _, label, index in chosen]
    write_manifest(part, rows)


def area(accuracies: Mapping[int, float]) -> float:
    """Mean accuracy over the logarithm of the number of labelled videos.

    ``accuracies``: count -> accuracy, at least two. Accuracy is interpolated linearly in the
    logarithm.
    """
    points = sorted((math.log2(count), value) for count, value in accuracies.items())
    total = sum((b - a) * (low + high) / 2 for (a, low), (b, high) in pairwise(points))
    return total / (points[-1][0] - points[0][0])
