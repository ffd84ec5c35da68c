"""Implementation of `hpm_video.embed` and `hpm_video.classify`: files, arrays, frame streams."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from os import PathLike
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.config import ClassifyConfig, DataConfig, EmbedConfig, FinetuneConfig
from hpm_video.config.limits import at_least
from hpm_video.config.settings import load_config
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.remote.fetching import fetched
from hpm_video.data.samples.clips import Request
from hpm_video.data.samples.views import ViewReader
from hpm_video.data.video.timeline import Frames
from hpm_video.evaluate.frozen_encoder import LoadedBackbone, load_backbone
from hpm_video.models.build import Baseline, Classifier
from hpm_video.runtime.distributed import pick_device
from hpm_video.weights.foreign.encoder_sources import OF_TIMM
from hpm_video.weights.foreign.stored_model import read_model, version_of
from hpm_video.weights.load import classifier_of

Answer = TypeVar("Answer")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Views:
    """Views of a video: clips and crops. In a stream, a window starts every ``every`` frames (None:
    windows are side by side)."""

    num_clips: int
    num_crops: int
    every: int | None = None

    def __post_init__(self) -> None:
        at_least("num_clips", self.num_clips, 1)
        at_least("num_crops", self.num_crops, 1)
        at_least("every", self.every, 1)


def embed_videos(
    videos: Any,
    *,
    checkpoint: str | PathLike[str],
    views: Views,
    settings: Sequence[str],
    device: str,
) -> Any:
    """See `hpm_video.embed`."""
    asked, model = load_config(EmbedConfig, None, settings), os.fspath(checkpoint)
    weights = asked.encoder.weights or model
    version = None if weights.startswith(OF_TIMM) else version_of(weights)  # rejected below
    loaded = _backbone(model, version, tuple(settings), device)
    backbone = loaded.backbone

    def feature(clips: Tensor) -> npt.NDArray[np.float32]:
        tokens = backbone.encode(to_clips(clips, backbone.device))
        pooled: npt.NDArray[np.float32] = backbone.pooled(tokens).mean(dim=0).cpu().numpy()
        return pooled

    found = _of_each(videos, loaded.data, views, feature)
    return np.stack(found) if isinstance(found, list) and found else found


def classify_videos(
    videos: Any,
    *,
    checkpoint: str | PathLike[str],
    num_clips: int | None,
    num_crops: int | None,
    every: int | None,
    settings: Sequence[str],
    device: str,
) -> Any:
    """See `hpm_video.classify`."""
    file = os.fspath(checkpoint)
    model, config, classes = _classifier(file, version_of(file), tuple(settings), device)
    own = config.evaluation
    views = Views(
        own.num_clips if num_clips is None else num_clips,
        own.num_crops if num_crops is None else num_crops,
        every,
    )

    @torch.no_grad()
    def scores_by_name(clips: Tensor) -> dict[str, float]:
        logits = model(to_clips(clips, next(model.parameters()).device))
        scores = model.scores(logits).mean(dim=0).tolist()
        names = [str(label) for label in range(len(scores))] if classes is None else classes
        return dict(sorted(zip(names, scores, strict=True), key=lambda pair: -pair[1]))

    return _of_each(videos, config.data, views, scores_by_name)


def _of_each(
    videos: Any, data: DataConfig, views: Views, ask: Callable[[Tensor], Answer]
) -> Answer | list[Answer] | Iterator[Answer]:
    """Apply ``ask`` to the views (V, T, S, S, 3) uint8 of a video.

    A sequence of videos gives a list. An iterator gives an iterator: one answer per video, or per
    window if the items are frames.
    """
    look = partial(_views_of, data=data, views=views)
    if _is_video(videos):
        return ask(look(videos))
    if not isinstance(videos, Iterable):
        raise ValueError(_expected(videos))
    if isinstance(videos, Iterator):
        return _as_they_come(videos, data, views, ask)
    return [ask(look(video)) for video in videos]


def _as_they_come(
    items: Iterator[Any], data: DataConfig, views: Views, ask: Callable[[Tensor], Answer]
) -> Iterator[Answer]:
    for first in items:
        items = chain([first], items)
        if _is_frame(first):
            # Windows are already cut to the clip's length, so every frame is read
            plain = replace(data, sampling="dense", frame_stride=1)
            span = (data.num_frames - 1) * data.frame_stride + 1
            every = views.every or data.num_frames * data.frame_stride
            for window in _windows(map(_frame, items), span=span, every=every):
                clip = np.stack(window[:: data.frame_stride])
                yield ask(_views_of(clip, plain, replace(views, num_clips=1)))
        else:
            for video in items:
                yield ask(_views_of(video, data, views))


def _windows(frames: Iterator[Pixels], *, span: int, every: int) -> Iterator[list[Pixels]]:
    """Windows of ``span`` frames that start every ``every`` frames.

    The last window is the first one that holds the last frame, which it repeats to fill the span.
    """
    kept: deque[Pixels] = deque(maxlen=span)
    start = num_seen = 0  # start of the next window; frames so far
    for frame in frames:
        kept.append(frame)
        num_seen += 1
        if num_seen == start + span:
            yield list(kept)
            start += every
    if start < num_seen and (start == 0 or num_seen > start - every + span):
        window = list(kept)[start - num_seen :]
        yield window + [window[-1]] * (span - len(window))


def _is_video(value: Any) -> bool:
    if isinstance(value, str | PathLike):
        return True
    return isinstance(value, np.ndarray | Tensor) and value.ndim == 4 and value.dtype != object


def _is_frame(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor) and value.ndim == 3


def _frame(value: Any) -> Pixels:
    """A frame of a stream, copied, because cameras reuse the memory of their frames."""
    if not _is_frame(value):
        raise ValueError(_expected(value))
    return _array(value[None])[0].copy()


def _array(value: npt.NDArray[Any] | Tensor) -> Pixels:
    """Frames (T, H, W, 3) uint8 from an array or tensor; raises ValueError for other input."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if array.dtype != np.uint8 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(_expected(value))
    return cast(Pixels, array)


def _expected(value: Any) -> str:
    shape = getattr(value, "shape", None)
    said = type(value).__name__
    if shape is not None:
        said = f"{value.dtype} of shape {tuple(shape)}"
    turned = shape is not None and len(shape) >= 3 and shape[-1] != 3 and shape[-3] == 3
    advice = "; move the colours to the last axis: x.movedim(-3, -1) for a tensor" if turned else ""
    return (
        f"video ({said}) must be a path, an array or tensor of frames (T, H, W, 3) uint8, a list "
        f"of these, or an iterator over frames (H, W, 3){advice}"
    )


@dataclass(frozen=True)
class _InMemory:
    """Frames in memory with the interface of an open video."""

    frames: Pixels
    note: str | None = None

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def read(self, indices: npt.NDArray[np.int64]) -> Pixels:
        return self.frames[indices]


@dataclass(frozen=True)
class _Given(Request):
    """A request for frames in memory."""

    frames: Pixels | None = None

    def open(self, data: DataConfig, *, motion: bool = False) -> Frames:
        assert self.frames is not None and not motion
        return cast(Frames, _InMemory(self.frames))


def _views_of(video: Any, data: DataConfig, views: Views) -> Tensor:
    """Test views of a video (num_clips * num_crops, T, S, S, 3) uint8; raises VideoReadError."""
    if not _is_video(video):
        raise ValueError(_expected(video))
    reader = ViewReader(data, views.num_clips, views.num_crops)
    out = torch.empty(reader.shape, dtype=torch.uint8)
    if isinstance(video, str | PathLike):
        with fetched(os.fspath(video)) as local:
            reader.read(Request(0, local, 0), out)
    else:
        reader.read(_Given(0, "", 0, frames=_array(video)), out)
    return out


@lru_cache(maxsize=1)
def _backbone(
    model: str, version: object, settings: tuple[str, ...], device: str
) -> LoadedBackbone:
    asked = load_config(EmbedConfig, None, settings)
    place = pick_device(device, setting="device")
    loaded = load_backbone(
        model, precision="float32", device=place, clip=asked.clip, settings=asked.encoder
    )
    _warn(loaded.notes)
    return loaded


@lru_cache(maxsize=1)
def _classifier(
    checkpoint: str, version: object, settings: tuple[str, ...], device: str
) -> tuple[Classifier | Baseline, FinetuneConfig, list[str] | None]:
    clip = load_config(ClassifyConfig, None, settings).clip
    found = read_model(checkpoint, kind="finetune", clip=clip)
    model, config, classes = classifier_of(found.state, source=found.file, clip=clip)
    model.requires_grad_(False).eval().to(pick_device(device, setting="device"))
    _warn(found.notes)
    return model, config, classes


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=4)
