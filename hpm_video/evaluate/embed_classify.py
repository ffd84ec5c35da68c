"""What `hpm_video.embed` and `hpm_video.classify` do, one video at a time."""

import os
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.config import DataConfig, FinetuneConfig
from hpm_video.config.limits import at_least
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.samples.clips import Request
from hpm_video.data.samples.views import ViewReader
from hpm_video.evaluate.frozen_encoder import LoadedBackbone, load_backbone
from hpm_video.models.build import Baseline, Classifier
from hpm_video.runtime.distributed import pick_device
from hpm_video.weights.checkpoint import find_checkpoint
from hpm_video.weights.load import load_classifier


def embed_video(
    path: str | PathLike[str],
    *,
    checkpoint: str | PathLike[str],
    num_clips: int,
    num_crops: int,
    device: str,
) -> npt.NDArray[np.float32]:
    """See `hpm_video.embed`."""
    loaded = _backbone(*version_of(checkpoint), device)
    backbone = loaded.backbone
    views = _views(path, loaded.data, num_clips, num_crops)
    tokens = backbone.encode(to_clips(views, backbone.device))
    feature: npt.NDArray[np.float32] = backbone.pooled(tokens).mean(dim=0).cpu().numpy()
    return feature


@torch.no_grad()
def classify_video(
    path: str | PathLike[str],
    *,
    checkpoint: str | PathLike[str],
    num_clips: int | None,
    num_crops: int | None,
    device: str,
) -> dict[str, float]:
    """See `hpm_video.classify`."""
    model, config, classes = _classifier(*version_of(checkpoint), device)
    own = config.evaluation
    num_clips = own.num_clips if num_clips is None else num_clips
    num_crops = own.num_crops if num_crops is None else num_crops
    views = _views(path, config.data, num_clips, num_crops)
    logits = model(to_clips(views, next(model.parameters()).device))
    scores = logits.softmax(dim=-1).mean(dim=0).tolist()
    names = [str(label) for label in range(len(scores))] if classes is None else classes
    return dict(sorted(zip(names, scores, strict=True), key=lambda pair: -pair[1]))


def _views(path: str | PathLike[str], data: DataConfig, num_clips: int, num_crops: int) -> Tensor:
    """The test views of a video (num_clips * num_crops, T, S, S, 3) uint8; or VideoReadError."""
    at_least("num_clips", num_clips, 1)
    at_least("num_crops", num_crops, 1)
    reader = ViewReader(data, num_clips, num_crops)
    views = torch.empty(reader.shape, dtype=torch.uint8)
    reader.read(Request(0, os.fspath(path), 0), views)
    return views


def version_of(checkpoint: str | PathLike[str]) -> tuple[Path, int]:
    """The file of a checkpoint, and when it was written: a run that goes on is read again."""
    file = find_checkpoint(Path(checkpoint)).resolve()
    return file, file.stat().st_mtime_ns


@lru_cache(maxsize=1)
def _backbone(file: Path, written_ns: int, device: str) -> LoadedBackbone:
    return load_backbone(file, precision="float32", device=pick_device(device, setting="device"))


@lru_cache(maxsize=1)
def _classifier(
    file: Path, written_ns: int, device: str
) -> tuple[Classifier | Baseline, FinetuneConfig, list[str] | None]:
    model, config, classes = load_classifier(file)
    model.requires_grad_(False).eval().to(pick_device(device, setting="device"))
    return model, config, classes
