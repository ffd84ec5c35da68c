"""A model of the kind that a command needs, from a file or folder of any origin."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpm_video.config import ClipConfig
from hpm_video.weights.checkpoint import check_kind, find_checkpoint, load_checkpoint
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.to_ours import import_weights
from hpm_video.weights.foreign.weight_files import read_weights
from hpm_video.weights.hub import local_model


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint of ours, or what others' weights become as one; the file or folder that it is
    from. notes: what was assumed about it, in words."""

    file: Path
    state: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Which it is."""
        return f"{self.file}, step {self.state['step']}"


def read_model(
    model: str | Path,
    *,
    kind: Literal["pretrain", "finetune"],
    which: str = "last",
    clip: ClipConfig | None = None,
) -> StoredModel:
    """A model of pre-training, or a classifier: of a run folder (``which`` of its checkpoints), a
    checkpoint, our safetensors, or all that `import_weights` knows. ``clip``: which frames of a
    video it will see, where that is told.

    Raises FileNotFoundError, or ValueError in one line: for what is missing, unreadable, or of the
    other kind, and where others' weights lack a part of it.
    """
    place = _place_of(model)
    if not place.is_file() and not is_of_others(place):
        file = find_checkpoint(place, which)
        return StoredModel(file, load_checkpoint(file, kind=kind))
    name = f"checkpoint ({model})"
    source = read_weights(place)
    if source.state is not None:
        check_kind(source.state, kind, name)
        return StoredModel(place, source.state)
    told = clip or ClipConfig()
    assumptions = Assumptions(sampling=told.sampling, frame_stride=told.frame_stride)
    found = import_weights(source, assumptions=assumptions)
    part, words = "head.weight", "a classifier"
    if kind == "pretrain":
        part, words = "decoder_input.mask_token", "a pre-training with its decoder"
    if part not in found.state["model"]:
        raise ValueError(f"{name} holds {found.words}: must be {words}")
    return StoredModel(place, found.state, found.notes)


def is_of_others(place: Path) -> bool:
    """Whether a folder is one of Hugging Face."""
    return (place / "config.json").is_file()


def version_of(model: str | Path) -> tuple[Path, int, int]:
    """Where the weights of a model lie, how many bytes these are, and when they were written (ns):
    a run that goes on has others."""
    place = _place_of(model)
    if is_of_others(place):
        stats = [entry.stat() for entry in os.scandir(place) if entry.is_file()]
        size, written = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
        return place.resolve(), size, written
    file = find_checkpoint(place).resolve()
    return file, file.stat().st_size, file.stat().st_mtime_ns


def _place_of(model: str | Path) -> Path:
    if str(model).startswith("timm:"):
        raise ValueError(
            f"checkpoint ({model}) is an encoder alone: probe, features and hpm_video.embed take it"
        )
    return local_model(model)
