"""How well a pre-training knows what is hard, over a list of videos; see `mining_quality`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpm_video.data.lists.manifest import Manifest, read_manifest
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.data.loading.clip import read_clip
from hpm_video.data.prepare.toy import object_mask, read_positions
from hpm_video.data.video.frames import VideoReadError
from hpm_video.evaluate.mining_quality import MiningReport, measure_mining
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained

_NUM_MASKS = 8  # random masks that measure the loss of a clip
_NUM_VIEWS = 4  # of a teacher that sees a share of the tokens


def measure_videos(
    checkpoint: str | Path,
    manifests: Sequence[str],
    *,
    root: str | None = None,
    most: int | None = None,
) -> MiningReport | None:
    """Mining figures over the middle clips of the videos of lists, at most so many of them, evenly
    picked; with the true place of the moving object where the one list is that of a toy set.

    What is unreadable is left out: the report's tensors have a row for each video that counts.
    Returns None for a checkpoint without a predictor. Raises UnreadableDataError where no video
    can be read.
    """
    pretrained = load_pretrained(checkpoint)
    if pretrained.scorer is None:
        return None
    manifest = read_manifest(list(manifests), root=root, labels=False)
    places = _ToyPlaces.beside(manifests)
    count = min(len(manifest), most or len(manifest))
    clips, moving, reason = [], [], ""
    for index in np.linspace(0, len(manifest) - 1, count).round().astype(int).tolist():
        try:
            clip, frames = read_clip(manifest.path(index), pretrained.config)
        except VideoReadError as error:
            reason = f"{error.path}: {error.reason}"
            continue
        clips.append(clip)
        if places is not None:
            moving.append(places.covered(manifest, index, frames, pretrained))
    if not clips:
        raise UnreadableDataError(f"none of {count} videos can be read, e.g. {reason}")
    return measure_mining(
        pretrained,
        torch.cat(clips),
        num_masks=_NUM_MASKS,
        seed=0,
        num_views=_NUM_VIEWS,
        moving=torch.stack(moving) if moving else None,
    )


class _ToyPlaces:
    """Where the moving objects of a toy set are."""

    def __init__(self, folder: Path) -> None:
        self._positions = read_positions(folder / "positions.csv")
        self._size = json.loads((folder / "toy.json").read_text(encoding="utf-8"))["size"]

    @classmethod
    def beside(cls, manifests: Sequence[str]) -> _ToyPlaces | None:
        """Of the toy set whose list this is; None where it is another list, or one of several."""
        folder = Path(manifests[0]).parent
        if len(manifests) > 1 or not (folder / "positions.csv").is_file():
            return None
        return cls(folder)

    def covered(
        self, manifest: Manifest, index: int, frames: np.ndarray, pretrained: Pretrained
    ) -> Tensor:
        """Share (N,) of each token that the object covers, in the clip of these frames."""
        grid, crop_size = pretrained.grid, pretrained.config.data.crop_size
        scale = crop_size / self._size  # the clip is the whole frame, resized
        place = self._positions[manifest.name(index)][frames].astype(np.float64)
        place[:, :2] = (place[:, :2] + 0.5) * scale - 0.5
        place[:, 2] *= scale
        mask = object_mask(
            place.astype(np.float32),
            crop_size,
            grid_time=grid.time,
            grid_height=grid.height,
            grid_width=grid.width,
        )
        return torch.from_numpy(mask).flatten()
