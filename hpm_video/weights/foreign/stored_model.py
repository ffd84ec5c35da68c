"""Reads the kind of model that a command needs from a file or folder of any origin."""

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
from hpm_video.weights.run_folders import check_kind_of_run


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint in our format, possibly imported.

    file: file or folder that it comes from. notes: descriptions of what was assumed about it.
    """

    file: Path
    state: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """File and step, for messages."""
        return f"{self.file}, step {self.state['step']}"


def read_model(
    model: str | Path,
    *,
    kind: Literal["pretrain", "finetune"],
    which: str = "last",
    clip: ClipConfig | None = None,
) -> StoredModel:
    """Read a pre-training model or a classifier.

    ``model``: a run folder, a checkpoint, our safetensors, or anything that `import_weights` reads.
    ``which``: the checkpoint to take from a run folder. ``clip``: how the frames of its clips will
    be sampled, if given.

    Raises FileNotFoundError, or ValueError, one line, for a model that is unreadable or of the
    other kind, or for imported weights that lack a part.
    """
    place, name = _place_of(model), f"checkpoint ({model})"
    if not place.is_file() and not is_of_others(place):
        check_kind_of_run(place, kind, name)
        file = find_checkpoint(place, which, kind=kind)
        return StoredModel(file, load_checkpoint(file, kind=kind))
    source = read_weights(place)
    if source.state is not None:
        check_kind(source.state, kind, name, place)
        return StoredModel(place, source.state)
    told = clip or ClipConfig()
    assumptions = Assumptions(sampling=told.sampling, frame_stride=told.frame_stride)
    found = import_weights(source, assumptions=assumptions)
    part, words = "head.weight", "a classifier"
    if kind == "pretrain":
        part, words = "decoder_input.mask_token", "a pre-trained model with its decoder"
    if part not in found.state["model"]:
        raise ValueError(f"{name} must hold {words}, but holds {found.words}")
    return StoredModel(place, found.state, found.notes)


def is_of_others(place: Path) -> bool:
    """Whether the path is a Hugging Face folder."""
    return (place / "config.json").is_file()


def version_of(model: str | Path) -> tuple[Path, int, int]:
    """Path, size in bytes and time of writing (ns) of a model's weights, to detect changes while a
    run continues."""
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
            f"checkpoint ({model}) is only an encoder; use it with hpm-video probe, hpm-video "
            "features or hpm_video.embed"
        )
    return local_model(model)
