"""Settings of ``hpm-video finetune``."""

from dataclasses import dataclass, field, fields

from hpm_video.config.evaluation import EvaluationConfig
from hpm_video.config.limits import all_at_least, below_one, between
from hpm_video.config.schema import setting
from hpm_video.config.shared import (
    DataConfig,
    EncoderConfig,
    LabelsConfig,
    OptimConfig,
    RunConfig,
    check_batch,
)
from hpm_video.config.values import (
    BestBy,
    ClassBalance,
    ClassifierName,
    Crop,
    Interpolation,
    LoraTarget,
    Pooling,
    values_of,
)

LORA_TARGETS = values_of(LoraTarget)


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    name: ClassifierName = setting(
        "videomae", "model to fine-tune; all but videomae are baselines, trained from scratch"
    )
    drop_path: float | None = setting(
        None,
        "stochastic depth: probability to skip the last block; lower for earlier blocks; "
        "null: 0.1 in transformers",
    )
    head_dropout: float = setting(
        0.0, "dropout before the last layer: probability to drop an input"
    )
    pooling: Pooling = setting(
        "mean_norm",
        "order of the mean over tokens and the norm before the head; norm_mean: with the "
        "encoder's own norm, as in pre-training",
    )
    head_float32: bool = setting(
        False, "compute the last layer in float32 at any precision, as probe --keep does"
    )
    freeze: int | str = setting(
        "none",
        "what to freeze: none, embeddings, a number n (embeddings and the first n blocks) or "
        "encoder (all but the head and its norm)",
    )
    lora_rank: int = setting(
        0,
        "rank of LoRA adapters in the encoder, whose own weights are then frozen; 0: no adapters",
    )
    lora_alpha: int = setting(
        16, "scale of the adapters: their output is multiplied by lora_alpha / lora_rank"
    )
    lora_targets: list[str] = setting(
        [], f"layers of a block that get adapters: {', '.join(LORA_TARGETS)}; []: all of them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one("model.drop_path", self.drop_path)
        below_one("model.head_dropout", self.head_dropout)
        self._check_what_learns()
        if self.name == "videomae":
            return
        for name, default in (
            *(("pooling", "mean_norm"), ("head_float32", False)),
            *(("freeze", "none"), ("lora_rank", 0)),
        ):
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"model.{name} ({value}) must be {str(default).lower()} with "
                    f"model.name={self.name}: it applies to VideoMAE's encoder only"
                )
        usual = EncoderConfig()
        for item in fields(EncoderConfig):
            if getattr(self, item.name) != getattr(usual, item.name):
                raise ValueError(
                    f"model.{item.name} ({getattr(self, item.name)}) must be left out with "
                    f"model.name={self.name}: it applies to VideoMAE's encoder only"
                )
        if self.drop_path and not self.name.startswith("mvit"):
            raise ValueError(
                f"model.drop_path ({self.drop_path}) must be 0 or null with "
                f"model.name={self.name}: this model has no stochastic depth"
            )

    def _check_what_learns(self) -> None:
        freeze, targets = self.freeze, self.lora_targets
        is_number = type(freeze) is int and freeze >= 1
        if not is_number and freeze not in ("none", "embeddings", "encoder"):
            raise ValueError(
                f"model.freeze ({freeze}) must be none, embeddings, encoder or a number of blocks, "
                "1 or more"
            )
        all_at_least("model.", self, lora_rank=0, lora_alpha=1)
        if set(targets) - {*LORA_TARGETS} or len({*targets}) < len(targets):
            raise ValueError(
                f"model.lora_targets ({', '.join(targets)}) must be chosen from "
                f"{', '.join(LORA_TARGETS)}, each once"
            )
        if self.lora_rank and freeze == "encoder":
            raise ValueError(
                f"model.freeze (encoder) must be none, embeddings or a number of blocks with "
                f"model.lora_rank ({self.lora_rank}): adapters go into blocks that are not frozen"
            )


@dataclass(frozen=True)
class FinetuneDataConfig(DataConfig):
    val_manifest: list[str] = setting(
        [], "lists of labelled videos to evaluate on; []: no evaluation"
    )
    crop: Crop = "random_resized"
    labels: LabelsConfig = field(default_factory=LabelsConfig)


@dataclass(frozen=True)
class AugmentConfig:
    num_operations: int = setting(
        4, "RandAugment: operations drawn per clip, half of which are applied; 0: none"
    )
    magnitude: float = setting(7.0, "RandAugment: mean strength of an operation, from 0 to 10")
    magnitude_spread: float = setting(0.5, "RandAugment: standard deviation of the strength")
    interpolation: Interpolation = setting(
        "auto",
        "RandAugment: how to resample rotated, sheared and moved frames; auto: bicubic, as in "
        "VideoMAE's code, but bilinear in runs of older versions",
    )
    erasing: float = setting(
        0.25, "random erasing: share of the clips in which a rectangle becomes noise"
    )

    def __post_init__(self) -> None:
        all_at_least("augment.", self, num_operations=0, magnitude_spread=0)
        between("augment.magnitude", self.magnitude, 0, 10)
        between("augment.erasing", self.erasing, 0, 1)


@dataclass(frozen=True)
class MixingConfig:
    mixup: float = setting(
        0.8,
        "mixup of two videos: a of the Beta(a, a) distribution of their shares; 0: no mixup",
    )
    cutmix: float = setting(
        1.0,
        "cutmix of two videos: a of the Beta(a, a) distribution of the box's share; 0: no cutmix",
    )
    switch: float = setting(
        0.5, "share of the pairs that get cutmix, if mixup and cutmix are both on"
    )

    def __post_init__(self) -> None:
        all_at_least("mixing.", self, mixup=0, cutmix=0)
        between("mixing.switch", self.switch, 0, 1)

    @property
    def is_on(self) -> bool:
        """True if clips are mixed at all."""
        return max(self.mixup, self.cutmix) > 0


@dataclass(frozen=True)
class FinetuneEvaluationConfig(EvaluationConfig):
    every_epochs: int = setting(0, "epochs between evaluations; 0: only at the end")
    best_by: BestBy = setting(
        "auto",
        "figure that chooses best.pt; the later evaluation wins ties; auto: top1, or mean_ap with "
        "several labels; in runs of older versions first_top1, where the earlier wins ties",
    )
    patience: int = setting(
        0, "consecutive evaluations without a better best_by after which the run ends; 0: never"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        all_at_least("evaluation.", self, every_epochs=0, patience=0)
        if self.patience and not self.every_epochs:
            raise ValueError(
                f"evaluation.patience ({self.patience}) must be 0 while evaluation.every_epochs is "
                "0: add evaluation.every_epochs=1"
            )


@dataclass(frozen=True)
class FinetuneOptimConfig(OptimConfig):
    epochs: int = 50
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = setting(
        None, "lr factor from each layer to the one below it; null: 0.75"
    )
    label_smoothing: float = setting(
        0.1, "label smoothing: share of the target spread over all classes"
    )
    ema_momentum: float | None = setting(
        None,
        "momentum of a moving average of the weights, which is then evaluated; null: no average",
    )
    class_balance: ClassBalance = setting(
        "none",
        "how to balance classes; weights: rare classes count more, so that all count equally",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay ({self.layer_decay}) must be in (0, 1]")
        below_one("optim.label_smoothing", self.label_smoothing)
        below_one("optim.ema_momentum", self.ema_momentum)

    @property
    def _warmup(self) -> int:
        return min(5, self.epochs // 4)


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
        check_batch(self.data, self.optim)
        at_once = self.data.batch_size
        if self.mixing.is_on and isinstance(at_once, int) and at_once % 2:
            raise ValueError(
                f"data.batch_size ({at_once}) must be even, as videos are mixed in pairs; "
                "mixing.mixup=0 mixing.cutmix=0 turns mixing off"
            )
        if self.evaluation.patience and not self.data.val_manifest:
            raise ValueError(
                f"evaluation.patience ({self.evaluation.patience}) must be 0 without "
                "data.val_manifest, the lists to evaluate on"
            )
        if self.data.crop_on == "device" and max(self.augment.num_operations, self.augment.erasing):
            raise ValueError(
                "data.crop_on (device) must be workers while augment.num_operations "
                f"({self.augment.num_operations}) or augment.erasing ({self.augment.erasing}) is "
                "above 0: both change crops in the workers"
            )
        self._check_labels()
        if self.model.name != "videomae" and self.optim.layer_decay not in (None, 1):
            raise ValueError(
                f"optim.layer_decay ({self.optim.layer_decay}) must be 1 or null with "
                f"model.name={self.model.name}: all its layers have the same learning rate"
            )

    def _check_labels(self) -> None:
        """Reject settings that do not apply to single-label lists, or to multi-label lists."""
        several, evaluation = self.data.labels.are_several, self.evaluation
        if not several and evaluation.threshold is not None:
            raise ValueError(
                f"evaluation.threshold ({evaluation.threshold}) must be left out for videos with "
                "one label: it needs data.labels.separator or data.labels.columns"
            )
        rule = "must be mean_ap, loss or auto for videos with several labels"
        wrong = evaluation.best_by not in ("auto", "mean_ap", "loss")
        if not several:
            rule = "must be another figure, such as top1, for videos with one label"
            wrong = evaluation.best_by == "mean_ap"
        if wrong:
            raise ValueError(f"evaluation.best_by ({evaluation.best_by}) {rule}")
        if several and self.optim.class_balance != "none":
            raise ValueError(
                f"optim.class_balance ({self.optim.class_balance}) must be none for videos with "
                "several labels"
            )
