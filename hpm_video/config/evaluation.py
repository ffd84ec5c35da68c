"""Settings of the commands that read a checkpoint: evaluation, probes, features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hpm_video.config.limits import all_at_least, between
from hpm_video.config.schema import setting
from hpm_video.config.shared import DataConfig, EncoderConfig, LabelsConfig
from hpm_video.config.values import (
    ChosenOn,
    Device,
    Precision,
    ProbeKind,
    Sampling,
    StoredCheckpoint,
    values_of,
)

Data = TypeVar("Data", bound=DataConfig)
Model = TypeVar("Model", bound=EncoderConfig)

PROBE_KINDS = values_of(ProbeKind)


@dataclass(frozen=True)
class GridConfig:
    """Settings of the probe attentive_grid; defaults of V-JEPA 2 except for the batch size."""

    lrs: list[float] = setting([1e-4, 3e-4, 1e-3, 3e-3, 5e-3], "learning rates of AdamW to try")
    weight_decays: list[float] = setting(
        [0.01, 0.1, 0.4, 0.8], "weight decays to try with each learning rate"
    )
    chosen_on: ChosenOn = setting(
        "held_out",
        "videos that choose the best pair; held_out: a fifth of the training list; judged: "
        "the validation list itself",
    )
    blocks: int = setting(4, "attention blocks of the probe; the last is cross-attention")
    heads: int | None = setting(
        None,
        "attention heads of the probe; null: 16, or fewer if 16 does not divide the encoder's "
        "width",
    )
    epochs: int = setting(20, "passes of the probe over the tokens")
    batch_size: int = setting(32, "videos per optimizer step of the probe")
    memory_gb: float = setting(4.0, "GB of memory for activations; less memory takes more time")

    def __post_init__(self) -> None:
        all_at_least("probe.grid.", self, blocks=1, heads=1, epochs=1, batch_size=1)
        for name, low in (("lrs", "above"), ("weight_decays", "at least")):
            values = getattr(self, name)
            usable = all(0 <= v < math.inf and (v > 0 or name != "lrs") for v in values)
            if not values or not usable or len(set(values)) < len(values):
                raise ValueError(
                    f"probe.grid.{name} ({values}) must be one or more different numbers, each "
                    f"{low} 0"
                )
        if not 0 < self.memory_gb < math.inf:
            raise ValueError(f"probe.grid.memory_gb ({self.memory_gb}) must be a number above 0")


@dataclass(frozen=True)
class ProbeConfig:
    num_clips: int = setting(1, "clips per video, spread over time")
    num_crops: int = setting(1, "crops per clip")
    train_crops: int | None = setting(
        None, "crops per clip of the training list; null: same as num_crops"
    )
    batch_size: int = setting(8, "videos to encode at a time")
    cells: tuple[int, int, int] = setting(
        (1, 1, 1),
        "cells of a clip along time, height and width; knn and linear see the mean of each",
    )
    knn_neighbours: int = setting(
        20, "largest number of neighbours that vote; fewer if classes have fewer videos"
    )
    knn_temperature: float = setting(
        0.07, "temperature of the votes, which weigh exp(cosine similarity / temperature)"
    )
    linear_epochs: int = setting(
        100, "passes of the linear probe over the features, at all learning rates at once"
    )
    attentive_epochs: int = setting(20, "passes of the attentive probe over the tokens")
    attentive_lr: float = setting(1e-3, "learning rate of AdamW for the attentive probe")
    most_token_gb: float = setting(
        16.0,
        "limit in GB of memory for the tokens, or cells, of all videos; with probe.cache, of disk",
    )
    cache: str | None = setting(
        None, "folder for tokens, on disk instead of in memory; later probes read it again"
    )
    grid: GridConfig = field(default_factory=GridConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)

    def __post_init__(self) -> None:
        all_at_least("probe.", self, num_clips=1, num_crops=1, train_crops=1, batch_size=1)
        all_at_least("probe.", self, knn_neighbours=1, linear_epochs=1, attentive_epochs=1)
        if len(self.cells) != 3 or min(self.cells) < 1:
            raise ValueError(
                f"probe.cells ({list(self.cells)}) must be three whole numbers of at least 1: "
                "cells along time, height and width"
            )
        for name in ("knn_temperature", "attentive_lr", "most_token_gb"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"probe.{name} ({value}) must be a number above 0")


@dataclass(frozen=True)
class PretrainProbeConfig(ProbeConfig):
    train_manifest: list[str] = setting([], "lists of labelled videos to train probes on")
    val_manifest: list[str] = setting([], "lists of labelled videos to evaluate probes on")
    kinds: list[str] = setting(["knn"], f"kinds of probe: {', '.join(PROBE_KINDS)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probe_kinds("probe.kinds", self.kinds)
        if self.cache is not None:
            raise ValueError(
                f"probe.cache ({self.cache}) must be left out in pre-training: cached tokens would "
                "be outdated, as the encoder changes"
            )


@dataclass(frozen=True)
class ClipConfig:
    """Clips and tokens that differ from training; the weights are interpolated to fit them."""

    num_frames: int | None = setting(None, "frames per clip; null: as in training")
    fps: float | None = setting(
        None,
        "frames per second at which to sample videos, by their timestamps; null: as in training",
    )
    frame_stride: int | None = setting(
        None, "step in frames between the frames of a clip; null: as in training"
    )
    crop_size: int | None = setting(
        None, "height and width of a clip in pixels; null: as in training"
    )
    sampling: Sampling | None = setting(
        None, "which frames make a clip: one window, or a frame per segment; null: as in training"
    )
    antialias: bool | None = setting(None, "resize with antialiasing; null: as in training")
    tubelet_size: int | None = setting(None, "frames per token; null: as in training")
    patch_size: int | None = setting(
        None, "height and width of a token in pixels; null: as in training"
    )

    def __post_init__(self) -> None:
        numbers = vars(self).keys() - {"antialias", "sampling", "fps"}
        all_at_least("clip.", self, **dict.fromkeys(numbers, 1))

    def of(self, data: Data, model: Model) -> tuple[Data, Model]:
        """The data and model settings of a training, with these clips and tokens.

        Raises ValueError if the tokens do not divide the clips evenly.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        tokens = {"tubelet_size", "patch_size"}
        data = replace(data, **{n: v for n, v in given.items() if n not in tokens})
        model = replace(model, **{n: v for n, v in given.items() if n in tokens})
        for length, size in (("num_frames", "tubelet_size"), ("crop_size", "patch_size")):
            long, short = getattr(data, length), getattr(model, size)
            if given and long % short:
                raise ValueError(
                    f"clip.{length} ({long}) must be a multiple of the model's {size} ({short})"
                )
        return data, model


@dataclass(frozen=True)
class FrozenEncoderConfig:
    """Features to take from an encoder, and facts that encoders of other projects do not state."""

    layers: list[int] = setting([-1], "blocks whose features to take; 0: first, -1: last")
    weights: str | None = setting(None, "file of weights for timm:NAME")
    mean: list[float] | None = setting(
        None, "three means to subtract from pixels in [0, 1]; null: as in the model's folder"
    )
    std: list[float] | None = setting(
        None,
        "three standard deviations to divide pixels by, after the means; null: as in the model's "
        "folder",
    )

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"encoder.layers ({self.layers}) must name one or more blocks, each once"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"encoder.mean ({self.mean}) and encoder.std ({self.std}) must be given together"
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and not (
                len(value) == 3
                and all(map(math.isfinite, value))
                and (name == "mean" or min(value) > 0)
            ):
                above = " above 0" if name == "std" else ""
                raise ValueError(f"encoder.{name} ({value}) must be three numbers{above}")


@dataclass(frozen=True)
class AskConfig:
    """Settings shared by these commands; the checkpoint defines how clips are read."""

    root: str | None = setting(
        None, "folder where relative paths start; null: the folder of each list"
    )
    device: Device = setting("auto", "device to compute on; auto: CUDA if available")
    precision: Precision = setting(
        "auto",
        "precision of the forward pass; auto: bfloat16 if the device has units for it, else "
        "float16 on GPUs and float32 on CPUs",
    )
    num_workers: int = setting(8, "decoding processes per rank; 0: the rank decodes itself")
    decode_timeout_s: float | None = setting(
        60.0, "seconds to decode a video before it counts as unreadable; 0: no limit"
    )
    clip: ClipConfig = field(default_factory=ClipConfig)  # if not as in training

    def __post_init__(self) -> None:
        all_at_least("", self, num_workers=0, decode_timeout_s=0)


@dataclass(frozen=True)
class EvaluationConfig:
    num_clips: int = setting(2, "clips per video, spread over time")
    num_crops: int = setting(3, "crops per clip")
    batch_size: int = setting(8, "videos to evaluate at a time")
    threshold: float | None = setting(
        None,
        "lowest score with which a video has a class, for several labels per video; null: the "
        "threshold of each class with the best F1 on data.val_manifest, stored in the "
        "checkpoint, else 0.5",
    )

    def __post_init__(self) -> None:
        all_at_least("evaluation.", self, num_clips=1, num_crops=1, batch_size=1)
        if self.threshold is not None:
            between("evaluation.threshold", self.threshold, 0, 1)


@dataclass(frozen=True)
class EvaluateConfig(AskConfig):
    """Settings of ``hpm-video evaluate`` and ``predict``, besides the checkpoint."""

    checkpoint: StoredCheckpoint = setting(
        "last",
        "checkpoint of a run folder to use; best: that of the best evaluation, by "
        "evaluation.best_by",
    )
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)  # if not as in training


@dataclass(frozen=True)
class ProbeJobConfig(AskConfig):
    """Settings of ``hpm-video probe``, besides model and lists."""

    kinds: list[str] = setting(["knn"], f"kinds of probe: {', '.join(PROBE_KINDS)}")
    encoder: FrozenEncoderConfig = field(default_factory=FrozenEncoderConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probe_kinds("kinds", self.kinds)


@dataclass(frozen=True)
class FeaturesConfig(AskConfig):
    """Settings of ``hpm-video features``, besides checkpoint, videos and windows."""

    # Features are stored and compared: in bfloat16 they would depend on the rest of their batch
    precision: Precision = "float32"
    num_clips: int = setting(1, "clips per video of a list; their features are averaged")
    num_crops: int = setting(1, "crops per clip or window; their features are averaged")
    batch_size: int = setting(8, "videos or windows to encode at a time")
    encoder: FrozenEncoderConfig = field(default_factory=FrozenEncoderConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        all_at_least("", self, num_clips=1, num_crops=1, batch_size=1)


@dataclass(frozen=True)
class ClassifyConfig:
    """Settings of `hpm_video.classify`, besides its arguments."""

    clip: ClipConfig = field(default_factory=ClipConfig)


@dataclass(frozen=True)
class EmbedConfig(ClassifyConfig):
    """Settings of `hpm_video.embed`, besides its arguments."""

    encoder: FrozenEncoderConfig = field(default_factory=FrozenEncoderConfig)


def check_probe_kinds(name: str, kinds: Sequence[str]) -> None:
    """Raise ValueError if no kind of probe is given, or one is unknown or repeated."""
    for kind in kinds or [""]:
        if kind not in PROBE_KINDS:
            raise ValueError(f"{name} ({kind}) must be one of {', '.join(PROBE_KINDS)}")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"{name} ({', '.join(kinds)}) must name each kind once")
