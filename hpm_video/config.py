"""Every setting, its type, default and meaning; `hpm_video.settings` reads them.

The comment behind a setting is its meaning in ``--help``, so each has one, on the same line.

Groups by consequence: ``model masking teacher loss data optim`` change results, ``run`` does not
(``run.seed`` and ``run.precision`` excepted).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass(frozen=True)
class RunConfig:
    output_dir: str | None = None  # the run folder; the same command continues what lies there
    seed: int = 0  # of weights, order, crops and masks
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the forward pass
    compile: bool = False  # torch.compile of the model
    log_every: int = 20  # steps from one record to the next
    checkpoint_every_minutes: float = 20.0  # also at the end and before stopping
    keep_checkpoints: int = 2  # the newest so many are kept; 0 keeps all
    resume: str | None = None  # checkpoint to go on from when the run folder has none
    max_bad_steps: int = 10  # so many steps in a row that are not finite stop the run
    collective_timeout_s: float = 600.0  # longer than this no process waits for another one
    picture_every: int = 1000  # steps between pictures in TensorBoard (pre-training); 0 = never

    def __post_init__(self) -> None:
        _at_least("run.log_every", self.log_every, 1)
        _at_least("run.checkpoint_every_minutes", self.checkpoint_every_minutes, 0)
        _at_least("run.keep_checkpoints", self.keep_checkpoints, 0)
        _at_least("run.max_bad_steps", self.max_bad_steps, 1)
        _at_least("run.collective_timeout_s", self.collective_timeout_s, 1)
        _at_least("run.picture_every", self.picture_every, 0)
        _between("run.seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class DataConfig:
    manifest: list[str] = field(default_factory=list)  # one or several lists, joined
    root: str | None = None  # where relative paths start; default: each list's own folder
    num_frames: int = 16  # frames of a clip
    frame_stride: int = 2  # frames from one frame of a dense clip to the next
    sampling: Literal["dense", "uniform"] = "dense"  # one window, or a frame of each segment
    crop: Literal["multi_scale", "random_resized"] = "multi_scale"  # kind of random crop
    crop_size: int = 224  # side of a clip in pixels
    flip: bool = False  # mirror half of the clips; never where direction is meaning
    repeats: int = 1  # crops taken of each decoded window
    batch_size: int = 32  # videos per process and micro-batch
    num_workers: int = 8  # decoding processes per training process; 0: it decodes itself
    decoder: Literal["decord", "torchcodec", "pyav"] = "decord"  # PyAV where it reads a file wrong
    decode_timeout_s: float | None = 60.0  # a video that takes longer is bad; 0: no limit
    max_bad_fraction: float = 0.05  # more unreadable videos than this share stop the run

    def __post_init__(self) -> None:
        for name in ("num_frames", "frame_stride", "crop_size", "repeats", "batch_size"):
            _at_least(f"data.{name}", getattr(self, name), 1)
        _at_least("data.num_workers", self.num_workers, 0)
        _at_least("data.decode_timeout_s", self.decode_timeout_s or 0, 0)
        _between("data.max_bad_fraction", self.max_bad_fraction, 0, 1)


@dataclass(frozen=True)
class EncoderConfig:
    size: Literal["tiny", "small", "base", "large", "huge", "giant"] = "base"  # of VideoMAE
    width: int | None = None  # numbers per token; of `size` unless given
    depth: int | None = None  # blocks; of `size` unless given
    heads: int | None = None  # attention heads; of `size` unless given
    patch_size: int = 16  # side of a token in pixels
    tubelet_size: int = 2  # frames of a token
    init: str | None = None  # checkpoint whose weights to start from

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size", "tubelet_size"):
            value = getattr(self, name)
            if value is not None:
                _at_least(f"model.{name}", value, 1)


@dataclass(frozen=True)
class ModelConfig(EncoderConfig):
    drop_path: float = 0.0  # stochastic depth: chance to skip the last block; earlier ones less
    decoder_width: int | None = None  # numbers per token; of `size` unless given
    decoder_heads: int | None = None  # attention heads; of `size` unless given
    decoder_depth: int = 4  # blocks that reconstruct
    predictor_input: Literal["pixels", "encoded"] = "pixels"  # where it looks; encoded: the paper's
    predictor_depth: int = 1  # blocks that predict the loss

    def __post_init__(self) -> None:
        super().__post_init__()
        _below_one("model.drop_path", self.drop_path)
        _at_least("model.decoder_depth", self.decoder_depth, 1)
        _at_least("model.predictor_depth", self.predictor_depth, 1)


Name = Literal[
    "videomae", "slowfast_r50", "slowfast_r101", "x3d_xs", "x3d_s", "x3d_m", "x3d_l",
    "mvit_base_16x4", "mvit_base_32x3",
]  # fmt: skip


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    name: Name = "videomae"  # the others are baselines, trained from scratch
    drop_path: float | None = None  # as in pre-training; null: 0.1 in transformers
    head_dropout: float = 0.0  # chance to drop an input of the last layer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_path is not None:
            _below_one("model.drop_path", self.drop_path)
        _below_one("model.head_dropout", self.head_dropout)
        if self.name == "videomae":
            return
        for item in fields(EncoderConfig):
            if getattr(self, item.name) != item.default:
                raise ValueError(
                    f"model.{item.name} ({getattr(self, item.name)}) must be left out with "
                    f"model.name={self.name}: it is of VideoMAE's encoder"
                )
        if self.drop_path and not self.name.startswith("mvit"):
            raise ValueError(
                f"model.drop_path ({self.drop_path}) must be 0 or null with "
                f"model.name={self.name}: it has no stochastic depth"
            )


@dataclass(frozen=True)
class MaskingConfig:
    mask_ratio: float = 0.9  # share of the mining units that is masked
    tube_length: int | None = None  # grid steps in time of a mining unit; default: the whole clip
    hard_ratio_start: float = 0.0  # share of the mask chosen by predicted loss, at the start
    hard_ratio_end: float = 0.5  # ... and at the end; linear in between
    decoder_mask_ratio: float = 0.0  # share of the masked tokens that is not reconstructed
    decoder_mask: Literal["running_cell", "random"] = "running_cell"  # which are

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"masking.mask_ratio ({self.mask_ratio}) must be in (0, 1)")
        if self.tube_length is not None:
            _at_least("masking.tube_length", self.tube_length, 1)
        _between("masking.hard_ratio_start", self.hard_ratio_start, 0, 1)
        _between("masking.hard_ratio_end", self.hard_ratio_end, 0, 1)
        _below_one("masking.decoder_mask_ratio", self.decoder_mask_ratio)

    @property
    def mines(self) -> bool:
        """Whether any mask of the run is chosen by predicted loss (else no teacher is needed)."""
        return max(self.hard_ratio_start, self.hard_ratio_end) > 0


@dataclass(frozen=True)
class TeacherConfig:
    token_ratio: float = 0.25  # share of tokens it sees, and a predictor from pixels ranks
    view: Literal["tokens", "tubes", "frames", "spread"] = "spread"  # which ones, if not all
    draws: int = 1  # views of different tokens whose scores are averaged
    momentum_start: float = 0.999  # share of itself the teacher keeps per step, at the start
    momentum_end: float = 0.9999  # ... and after the ramp
    ramp: float = 0.125  # share of the run over which momentum rises

    def __post_init__(self) -> None:
        if not 0 < self.token_ratio <= 1:
            raise ValueError(f"teacher.token_ratio ({self.token_ratio}) must be in (0, 1]")
        _at_least("teacher.draws", self.draws, 1)
        for name in ("momentum_start", "momentum_end", "ramp"):
            _between(f"teacher.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True)
class LossConfig:
    normalize_targets: bool = True  # reconstruct pixels normalised per token and colour channel
    prediction: Literal["ranking", "absolute", "none"] = "ranking"  # how to learn to predict loss
    prediction_weight: float = 1.0  # of the prediction loss; that of the reconstruction is 1
    ranking_level: Literal["token", "unit"] = "token"  # what is compared: tokens or mining units

    def __post_init__(self) -> None:
        _at_least("loss.prediction_weight", self.prediction_weight, 0)


@dataclass(frozen=True)
class OptimConfig:
    epochs: int = 800  # passes over the videos
    base_lr: float = 1.5e-4  # lr = base_lr * videos per optimizer step / 256
    min_lr: float = 1e-5  # where the cosine ends
    warmup_lr: float = 1e-6  # where warm-up starts
    warmup_epochs: int = 40  # epochs of linear warm-up
    weight_decay: float = 0.05  # none on biases and norms
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    clip_grad: float | None = None  # largest gradient norm
    accumulation: int = 1  # micro-batches per optimizer step
    total_batch: int | None = None  # videos per optimizer step, from which accumulation follows
    count_repeats: bool = False  # whether repeats count as videos in the lr rule

    def __post_init__(self) -> None:
        _at_least("optim.epochs", self.epochs, 1)
        _at_least("optim.accumulation", self.accumulation, 1)
        if self.total_batch is not None:
            _at_least("optim.total_batch", self.total_batch, 1)
            if self.accumulation != 1:
                raise ValueError(
                    f"optim.accumulation ({self.accumulation}) must be left out where "
                    f"optim.total_batch ({self.total_batch}) is given: it follows from that"
                )
        for name in ("base_lr", "min_lr", "warmup_lr"):
            _at_least(f"optim.{name}", getattr(self, name), 0)
        if self.min_lr > self.base_lr:
            raise ValueError(
                f"optim.min_lr ({self.min_lr}) must be at most optim.base_lr ({self.base_lr})"
            )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"optim.betas ({list(self.betas)}) must be in [0, 1)")
        _at_least("optim.weight_decay", self.weight_decay, 0)
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"optim.warmup_epochs ({self.warmup_epochs}) must be in [0, optim.epochs "
                f"({self.epochs}))"
            )
        if self.clip_grad is not None and not 0 < self.clip_grad < math.inf:
            raise ValueError(f"optim.clip_grad ({self.clip_grad}) must be a number above 0")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of ``hpm-video pretrain``."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if self.loss.prediction == "none" and self.masking.mines:
            raise ValueError(
                "loss.prediction (none) must be ranking or absolute while masking.hard_ratio_end "
                f"({self.masking.hard_ratio_end}) or hard_ratio_start is above 0"
            )
        if self.loss.ranking_level == "unit" and self.masking.decoder_mask_ratio > 0:
            raise ValueError(
                "loss.ranking_level (unit) must be token while masking.decoder_mask_ratio "
                f"({self.masking.decoder_mask_ratio}) is above 0: units would be compared by parts"
            )
        looks_at_part = self.model.predictor_input == "pixels" and self.teacher.token_ratio < 1
        if self.loss.ranking_level == "unit" and looks_at_part:
            raise ValueError(
                "loss.ranking_level (unit) must be token while model.predictor_input is pixels and "
                f"teacher.token_ratio ({self.teacher.token_ratio}) is below 1: units would be "
                "compared by parts"
            )


@dataclass(frozen=True)
class FinetuneDataConfig(DataConfig):
    val_manifest: list[str] = field(default_factory=list)  # evaluated on; none: no evaluation
    crop: Literal["multi_scale", "random_resized"] = "random_resized"


@dataclass(frozen=True)
class AugmentConfig:
    num_operations: int = 4  # RandAugment: drawn for a clip; half of them are applied. 0: none
    magnitude: float = 7.0  # RandAugment: mean strength of an operation, from 0 to 10
    magnitude_spread: float = 0.5  # RandAugment: standard deviation of the strength
    erasing: float = 0.25  # share of the clips in which a rectangle becomes noise

    def __post_init__(self) -> None:
        _at_least("augment.num_operations", self.num_operations, 0)
        _between("augment.magnitude", self.magnitude, 0, 10)
        _at_least("augment.magnitude_spread", self.magnitude_spread, 0)
        _between("augment.erasing", self.erasing, 0, 1)


@dataclass(frozen=True)
class MixingConfig:
    mixup: float = 0.8  # clips of two videos blended; their shares are Beta(a, a) of this a; 0: no
    cutmix: float = 1.0  # a box of one in the other; its share is Beta(a, a) of this a; 0: no
    switch: float = 0.5  # share of the pairs that get cutmix, where there are both

    def __post_init__(self) -> None:
        _at_least("mixing.mixup", self.mixup, 0)
        _at_least("mixing.cutmix", self.cutmix, 0)
        _between("mixing.switch", self.switch, 0, 1)

    @property
    def is_on(self) -> bool:
        """Whether clips are mixed at all."""
        return max(self.mixup, self.cutmix) > 0


@dataclass(frozen=True)
class EvaluationConfig:
    num_clips: int = 2  # clips in time per video
    num_crops: int = 3  # crops in space per clip
    batch_size: int = 8  # videos at a time

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_crops", "batch_size"):
            _at_least(f"evaluation.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class FinetuneEvaluationConfig(EvaluationConfig):
    every_epochs: int = 0  # epochs from one evaluation to the next; 0: only at the end

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("evaluation.every_epochs", self.every_epochs, 0)


@dataclass(frozen=True)
class FinetuneOptimConfig(OptimConfig):
    epochs: int = 50
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: int = 5
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None  # lr factor from each layer to the one below it; null: 0.75
    label_smoothing: float = 0.1  # share of the target spread over all classes
    ema_momentum: float | None = None  # of an average of the weights, which is evaluated; null: no
    class_balance: Literal["none", "weights"] = "none"  # weights: rare classes count more, equally

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay ({self.layer_decay}) must be in (0, 1]")
        _below_one("optim.label_smoothing", self.label_smoothing)
        if self.ema_momentum is not None:
            _below_one("optim.ema_momentum", self.ema_momentum)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of ``hpm-video finetune``."""

    run: RunConfig = field(default_factory=RunConfig)
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    evaluation: FinetuneEvaluationConfig = field(default_factory=FinetuneEvaluationConfig)

    def __post_init__(self) -> None:
        if self.mixing.is_on and self.data.batch_size % 2:
            raise ValueError(
                f"data.batch_size ({self.data.batch_size}) must be even: pairs of videos are mixed "
                "(mixing.mixup=0 mixing.cutmix=0: not)"
            )
        if self.model.name != "videomae" and self.optim.layer_decay not in (None, 1):
            raise ValueError(
                f"optim.layer_decay ({self.optim.layer_decay}) must be 1 or null with "
                f"model.name={self.model.name}: its layers all learn at one rate"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of ``hpm-video evaluate`` beside the checkpoint, which brings its own data rules."""

    checkpoint: Literal["last", "best"] = "last"  # which one of a run folder; best: see docs
    root: str | None = None  # where the manifest's relative paths start
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the forward pass
    num_workers: int = 8  # decoding processes per process; 0: it decodes itself
    decode_timeout_s: float | None = 60.0  # a video that takes longer is bad; 0: no limit
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _at_least("num_workers", self.num_workers, 0)
        _at_least("decode_timeout_s", self.decode_timeout_s or 0, 0)


def _at_least(name: str, value: float, low: float) -> None:
    if not low <= value < math.inf:  # written so that NaN is refused too
        raise ValueError(f"{name} ({value}) must be a number of at least {low}")


def _below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} ({value}) must be in [0, 1)")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} ({value}) must be in [{low}, {high}]")
