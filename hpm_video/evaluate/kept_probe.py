"""Keep a linear probe as a fine-tuning run: the frozen encoder with the probe as its head."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from hpm_video.config import (
    ClassifierConfig,
    DataConfig,
    EncoderConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    FinetuneEvaluationConfig,
    ProbeConfig,
    ProbeJobConfig,
    RunConfig,
)
from hpm_video.config.settings import config_to_dict, config_to_yaml
from hpm_video.config.values import Pooling
from hpm_video.evaluate.frozen_encoder import LoadedBackbone
from hpm_video.evaluate.probe_heads import LinearResult
from hpm_video.runtime.files import check_can_be_folder, make_folder, write_atomically
from hpm_video.weights.checkpoint import load_checkpoint, save_checkpoint, settings_of, trained_grid

# Settings for reading clips, which the classifier shares with its encoder
_OF_CLIPS = ("num_frames", "fps", "frame_stride", "sampling", "crop_size", "antialias", "decoder")


def check_keep(folder: str | Path, kinds: Sequence[str], settings: ProbeConfig) -> None:
    """Raise ValueError if probes of these kinds leave no classifier to keep in the folder."""
    if "linear" not in kinds:
        raise ValueError(
            f"--kind ({' '.join(kinds)}) must include linear with --keep: only a linear probe can "
            "be kept as a classifier"
        )
    if settings.cells != (1, 1, 1):
        raise ValueError(
            f"probe.cells ({list(settings.cells)}) must be [1, 1, 1] with --keep: a classifier "
            "sees one mean over all tokens"
        )
    check_can_be_folder(Path(folder), name="--keep")
    if Path(folder).is_dir() and os.listdir(folder):
        raise ValueError(f"--keep ({folder}) must be an empty or new folder: it holds files")


@dataclass(frozen=True)
class KeptProbe:
    """A classifier without its head: weights by name, and the other entries of its checkpoint."""

    weights: Mapping[str, Tensor]
    model: ClassifierConfig
    data: DataConfig
    job: ProbeJobConfig
    rest: Mapping[str, Any]

    @classmethod
    def of(
        cls, checkpoint: str | Path, loaded: LoadedBackbone, config: ProbeJobConfig
    ) -> "KeptProbe":
        """Make it from a backbone that was loaded from a checkpoint.

        Raises ValueError for an exported encoder of a classifier, for one that is not ours, and for
        layers other than the last.
        """
        if loaded.step is None:
            raise ValueError(
                f"model ({checkpoint}) must be a checkpoint of hpm-video for --keep; convert "
                "VideoMAE weights with: hpm-video weights import FILE -o ours.pt"
            )
        if loaded.backbone.layers != (-1,):
            raise ValueError(
                f"encoder.layers ({list(loaded.backbone.layers)}) must be [-1] with --keep: a "
                "classifier sees the last layer"
            )
        state = load_checkpoint(checkpoint)
        trained = settings_of(state)
        pooling: Pooling = "norm_mean"
        if isinstance(trained, FinetuneConfig):
            pooling = trained.model.pooling
        backbone = loaded.backbone
        weights = {f"encoder.{n}": v for n, v in backbone.encoder.state_dict().items()}
        weights |= {f"norm.{n}": v for n, v in backbone.norm.state_dict().items()}
        if pooling == "mean_norm" and "norm.weight" not in weights:
            raise ValueError(
                f"checkpoint ({checkpoint}) must have its classifier's norm for --keep: it was "
                "exported with --encoder"
            )
        _, model = config.clip.of(trained.data, trained.model)
        sizes = {item.name: getattr(model, item.name) for item in fields(EncoderConfig)}
        sizes |= {"init": None, "allow_missing": []}
        grid = trained_grid(state)
        return cls(
            {name: value.cpu() for name, value in weights.items()},
            ClassifierConfig(**sizes, pooling=pooling, head_float32=True),
            loaded.data,
            config,
            {
                "kind": "finetune",
                "step": loaded.step,
                "trained_grid": grid and [grid.time, grid.height, grid.width],
            },
        )

    def write(
        self,
        folder: Path,
        linear: LinearResult,
        *,
        classes: Sequence[str] | None,
        train: Sequence[str],
        val: Sequence[str],
    ) -> None:
        """Write the run: its settings with the lists ``train`` and ``val``, and one checkpoint."""
        views, reading = self.job.probe, {n: getattr(self.data, n) for n in _OF_CLIPS}
        config = FinetuneConfig(
            run=RunConfig(output_dir=str(folder)),
            data=FinetuneDataConfig(
                **reading,
                manifest=list(train),
                val_manifest=list(val),
                root=self.job.root,
                labels=views.labels,
            ),
            model=self.model,
            evaluation=FinetuneEvaluationConfig(
                num_clips=views.num_clips, num_crops=views.num_crops
            ),
        )
        head = {"head.weight": linear.weight.cpu().contiguous(), "head.bias": linear.bias.cpu()}
        state = {
            **self.rest,
            "config": config_to_dict(config),
            "model": {**self.weights, **head},
            "num_classes": len(linear.bias),
            "classes": None if classes is None else list(classes),
        }
        make_folder(folder, name="--keep")
        write_atomically(folder / "config.yaml", [config_to_yaml(config)])
        save_checkpoint(folder / "checkpoints", state, keep=1)
