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
    name: ClassifierName = setting("videomae", "the others are baselines, trained from scratch")
    drop_path: float | None = setting(None, "as in pre-training; null: 0.1 in transformers")
    head_dropout: float = setting(0.0, "chance to drop an input of the last layer")
    pooling: Pooling = setting(
        "mean_norm",
        "order of the mean over tokens and the norm before the head; norm_mean: with the encoder's "
        "own norm, as in pre-training",
    )
    head_float32: bool = setting(
        False, "the last layer computes in float32 whatever the precision, as in kept probes"
    )
    freeze: int | str = setting(
        "none",
        "what does not learn: none, embeddings, a number n (embeddings and the first n blocks) or "
        "encoder (all but the head and its norm)",
    )
    lora_rank: int = setting(
        0, "of adapters (LoRA) beside layers of the encoder, which then learns nothing else; 0: no"
    )
    lora_alpha: int = setting(16, "what adapters give counts lora_alpha / lora_rank times")
    lora_targets: list[str] = setting(
        [], f"layers of a block that have adapters: of {', '.join(LORA_TARGETS)}; []: all of them"
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
                    f"model.name={self.name}: it is of VideoMAE's encoder"
                )
        usual = EncoderConfig()
        for item in fields(EncoderConfig):
            if getattr(self, item.name) != getattr(usual, item.name):
                raise ValueError(
                    f"model.{item.name} ({getattr(self, item.name)}) must be left out with "
                    f"model.name={self.name}: it is of VideoMAE's encoder"
                )
        if self.drop_path and not self.name.startswith("mvit"):
            raise ValueError(
                f"model.drop_path ({self.drop_path}) must be 0 or null with "
                f"model.name={self.name}: it has no stochastic depth"
            )

    def _check_what_learns(self) -> None:
        freeze, targets = self.freeze, self.lora_targets
        is_number = type(freeze) is int and freeze >= 1
        if not is_number and freeze not in ("none", "embeddings", "encoder"):
            raise ValueError(
                f"model.freeze ({freeze}) must be none, embeddings, encoder or a number of blocks "
                "of at least 1"
            )
        all_at_least("model.", self, lora_rank=0, lora_alpha=1)
        if set(targets) - {*LORA_TARGETS} or len({*targets}) < len(targets):
            raise ValueError(
                f"model.lora_targets ({', '.join(targets)}) must be of "
                f"{', '.join(LORA_TARGETS)}, each once"
            )
        if self.lora_rank and freeze == "encoder":
            raise ValueError(
                f"model.freeze (encoder) must be none, embeddings or a number of blocks with "
                f"model.lora_rank ({self.lora_rank}): adapters are in the blocks that it leaves"
            )


@dataclass(frozen=True)
class FinetuneDataConfig(DataConfig):
    val_manifest: list[str] = setting([], "evaluated on; none: no evaluation")
    crop: Crop = "random_resized"
    labels: LabelsConfig = field(default_factory=LabelsConfig)


@dataclass(frozen=True)
class AugmentConfig:
    num_operations: int = setting(
        4, "RandAugment: drawn for a clip; half of them are applied. 0: none"
    )
    magnitude: float = setting(7.0, "RandAugment: mean strength of an operation, from 0 to 10")
    magnitude_spread: float = setting(0.5, "RandAugment: standard deviation of the strength")
    interpolation: Interpolation = setting(
        "auto",
        "how RandAugment turns, shears and moves frames; auto: bicubic, as in VideoMAE's code, but "
        "bilinear in runs begun before this setting existed",
    )
    erasing: float = setting(0.25, "share of the clips in which a rectangle becomes noise")

    def __post_init__(self) -> None:
        all_at_least("augment.", self, num_operations=0, magnitude_spread=0)
        between("augment.magnitude", self.magnitude, 0, 10)
        between("augment.erasing", self.erasing, 0, 1)


@dataclass(frozen=True)
class MixingConfig:
    mixup: float = setting(
        0.8, "clips of two videos blended; their shares are Beta(a, a) of this a; 0: no"
    )
    cutmix: float = setting(
        1.0, "a box of one in the other; its share is Beta(a, a) of this a; 0: no"
    )
    switch: float = setting(0.5, "share of the pairs that get cutmix, where there are both")

    def __post_init__(self) -> None:
        all_at_least("mixing.", self, mixup=0, cutmix=0)
        between("mixing.switch", self.switch, 0, 1)

    @property
    def is_on(self) -> bool:
        """Whether clips are mixed at all."""
        return max(self.mixup, self.cutmix) > 0


@dataclass(frozen=True)
class FinetuneEvaluationConfig(EvaluationConfig):
    every_epochs: int = setting(0, "epochs from one evaluation to the next; 0: only at the end")
    best_by: BestBy = setting(
        "auto",
        "figure that chooses best.pt, of equals the later; auto: top1, but first_top1 (of equals "
        "the earlier) in runs begun before this setting existed; with several labels mean_ap",
    )
    patience: int = setting(
        0, "evaluations in a row without a better best_by after which the run ends; 0: never"
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
    label_smoothing: float = setting(0.1, "share of the target spread over all classes")
    ema_momentum: float | None = setting(
        None, "of an average of the weights, which is evaluated; null: no"
    )
    class_balance: ClassBalance = setting("none", "weights: rare classes count more, equally")

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
                f"data.batch_size ({at_once}) must be even: pairs of videos are mixed "
                "(mixing.mixup=0 mixing.cutmix=0: not)"
            )
        if self.evaluation.patience and not self.data.val_manifest:
            raise ValueError(
                f"evaluation.patience ({self.evaluation.patience}) must be 0 without "
                "data.val_manifest: name the list to evaluate on"
            )
        if self.data.crop_on == "device" and max(self.augment.num_operations, self.augment.erasing):
            raise ValueError(
                "data.crop_on (device) must be workers while augment.num_operations "
                f"({self.augment.num_operations}) or augment.erasing ({self.augment.erasing}) is "
                "above 0: these work on crops"
            )
        self._check_labels()
        if self.model.name != "videomae" and self.optim.layer_decay not in (None, 1):
            raise ValueError(
                f"optim.layer_decay ({self.optim.layer_decay}) must be 1 or null with "
                f"model.name={self.model.name}: its layers all learn at one rate"
            )

    def _check_labels(self) -> None:
        """Refuse settings that mean nothing for one label per video, or for several."""
        several, evaluation = self.data.labels.are_several, self.evaluation
        if not several and evaluation.threshold is not None:
            raise ValueError(
                f"evaluation.threshold ({evaluation.threshold}) must be left out where videos have "
                "one label: it is for several (data.labels.separator or data.labels.columns)"
            )
        rule = "must be mean_ap, loss or auto where videos have several labels"
        wrong = evaluation.best_by not in ("auto", "mean_ap", "loss")
        if not several:
            rule = "must be another figure, such as top1, where videos have one label"
            wrong = evaluation.best_by == "mean_ap"
        if wrong:
            raise ValueError(f"evaluation.best_by ({evaluation.best_by}) {rule}")
        if several and self.optim.class_balance != "none":
            raise ValueError(
                f"optim.class_balance ({self.optim.class_balance}) must be none where videos have "
                "several labels"
            )
