"""Settings of ``hpm-video pretrain``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hpm_video.config.evaluation import PretrainProbeConfig
from hpm_video.config.limits import all_at_least, at_least, below_one, between
from hpm_video.config.schema import setting
from hpm_video.config.shared import (
    DataConfig,
    EncoderConfig,
    OptimConfig,
    RunConfig,
    check_batch,
)
from hpm_video.config.values import (
    DecoderMask,
    FirstWeights,
    HardRamp,
    InitPart,
    LossTarget,
    MaskPattern,
    MaskSource,
    Prediction,
    PredictorInput,
    Ranking,
    RankingLevel,
    Variance,
    View,
    values_of,
)


@dataclass(frozen=True)
class PretrainRunConfig(RunConfig):
    picture_every: int | str = setting(
        "auto",
        "steps between pictures in TensorBoard; 0: never; auto: a tenth of the run, but at "
        "least 20 and at most 1000",
    )
    history_checkpoints: int | str = setting(
        "auto",
        "number of checkpoints spread over the run for visualize --through-training, without "
        "optimizer state; 0: none; auto: 10, but 0 in runs of older versions",
    )
    probe_every: int = setting(0, "epochs between probes; 0: never")
    collapse_records: int = setting(
        5, "consecutive log records of a collapsed encoder after which the log warns; 0: never"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        all_at_least("run.", self, probe_every=0, collapse_records=0)
        for name in ("picture_every", "history_checkpoints"):
            if (value := getattr(self, name)) != "auto" and not (
                isinstance(value, int) and value >= 0
            ):
                rule = "must be auto, or a whole number of at least 0"
                raise ValueError(f"run.{name} ({value}) {rule}")

    def pictures_every(self, total_steps: int) -> int:
        """Steps between pictures in a run of ``total_steps``; 0: never."""
        every = self.picture_every
        return min(1000, max(20, total_steps // 10)) if isinstance(every, str) else every

    def history_steps(self, total_steps: int) -> frozenset[int]:
        """Steps after which a checkpoint is kept for inspection; the final one is always kept."""
        most = self.history_checkpoints
        assert isinstance(most, int), "choose_for_machine comes first"
        return frozenset(total_steps * part // most for part in range(1, most)) - {0}


@dataclass(frozen=True)
class ModelConfig(EncoderConfig):
    init_parts: list[str] = setting(
        ["all"],
        "parts to take from model.init: all, or some of encoder, decoder, predictor, teacher; "
        "the rest starts fresh",
    )
    drop_path: float = setting(
        0.0, "stochastic depth: probability to skip the last block; lower for earlier blocks"
    )
    decoder_width: int | None = setting(
        None, "numbers per token in the decoders; null: from model.size"
    )
    decoder_heads: int | None = setting(
        None, "attention heads of the decoders; null: from model.size"
    )
    decoder_mlp_ratio: float | None = setting(
        None, "width of the decoders' MLPs, relative to the decoders' width; null: from model.size"
    )
    decoder_depth: int = setting(4, "blocks of the reconstructor")
    predictor_input: PredictorInput = setting(
        "encoded",
        "input of the loss predictor; encoded: encoded visible tokens; pixels: raw pixels; "
        "both: one encoded predictor that teaches, one from pixels that chooses masks",
    )
    predictor_depth: int = setting(1, "blocks of each loss predictor")
    first_weights: FirstWeights = setting(
        "xavier",
        "initial weights; videomae: as in VideoMAE's code; former: xavier, with a predictor "
        "head that does not start small",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one("model.drop_path", self.drop_path)
        all_at_least("model.", self, decoder_depth=1, predictor_depth=1)
        parts, known = self.init_parts, values_of(InitPart)[1:]
        is_right = "encoder" in parts and len(set(parts)) == len(parts) and set(parts) <= set(known)
        if not is_right and parts != ["all"]:
            raise ValueError(
                f"model.init_parts ({', '.join(parts)}) must be all, or encoder with any of "
                f"{', '.join(known[1:])}, each once, such as model.init_parts=[encoder]"
            )
        if self.decoder_mlp_ratio is not None:
            between("model.decoder_mlp_ratio", self.decoder_mlp_ratio, 0.25, 64)

    @property
    def parts_of_init(self) -> tuple[str, ...]:
        """Parts of the model that are loaded from ``init``, if it has them."""
        return values_of(InitPart)[1:] if self.init_parts == ["all"] else tuple(self.init_parts)

    @property
    def predicts_from_pixels(self) -> bool:
        """True if a loss predictor reads pixels."""
        return self.predictor_input in ("pixels", "both")


@dataclass(frozen=True)
class MaskingConfig:
    mask_ratio: float = setting(0.9, "share of the mining units to mask")
    tube_length: int | None = setting(None, "time steps per mining unit; null: the whole clip")
    pattern: MaskPattern = setting(
        "auto",
        "shape of masks; auto: by tube_length; blocks: rectangles over the whole clip, as in "
        "V-JEPA",
    )
    source: MaskSource = setting(
        "predicted",
        "scores that choose the hard units; predicted: the teacher's; measured: the loss of "
        "one more pass; none: random masks",
    )
    hard_ratio_start: float = setting(
        0.0, "share of the mask that scores choose at the start of the run"
    )
    hard_ratio_end: float = setting(
        0.5, "share of the mask that scores choose at the end of the run"
    )
    ramp: HardRamp = setting(
        "time",
        "what the hard ratio follows; time: the steps; competence: the student's rank accuracy",
    )
    competence_low: float = setting(
        0.52, "rank accuracy up to which the hard ratio stays at its start, with ramp=competence"
    )
    competence_high: float = setting(
        0.74, "rank accuracy from which the hard ratio is at its end, with ramp=competence"
    )
    decoder_mask_ratio: float = setting(
        0.0, "share of the masked tokens that are not reconstructed"
    )
    decoder_mask: DecoderMask = setting(
        "running_cell", "pattern of decoder masking; videomae_v2: the published one"
    )

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"masking.mask_ratio ({self.mask_ratio}) must be in (0, 1)")
        at_least("masking.tube_length", self.tube_length, 1)
        length = self.tube_length
        fits, needed = {
            "auto": (True, ""),
            "tubes": (length is None, "null"),
            "blocks": (length is None, "null"),
            "tokens": (length in (None, 1), "null or 1"),
            "windows": (length is not None and length > 1, "at least 2"),
        }[self.pattern]
        if not fits:
            raise ValueError(
                f"masking.tube_length ({'null' if length is None else length}) must be {needed} "
                f"while masking.pattern is {self.pattern}: change it, or use masking.pattern=auto, "
                "which follows masking.tube_length"
            )
        between("masking.hard_ratio_start", self.hard_ratio_start, 0, 1)
        between("masking.hard_ratio_end", self.hard_ratio_end, 0, 1)
        below_one("masking.decoder_mask_ratio", self.decoder_mask_ratio)
        low, high = self.competence_low, self.competence_high
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"masking.competence_low ({low}) must be below masking.competence_high ({high}), "
                "both in [0, 1]"
            )
        if self.decoder_mask == "videomae_v2" and self.decoder_mask_ratio * 4 % 1:
            raise ValueError(
                f"masking.decoder_mask_ratio ({self.decoder_mask_ratio}) must be 0, 0.25, 0.5 or "
                "0.75 while masking.decoder_mask is videomae_v2, whose cells have 4 places: choose "
                "one of these, or masking.decoder_mask=running_cell"
            )

    @property
    def mines(self) -> bool:
        """True if any mask of the run is chosen by scores."""
        return self.source != "none" and max(self.hard_ratio_start, self.hard_ratio_end) > 0

    @property
    def needs_teacher(self) -> bool:
        """True if a teacher predicts these scores."""
        return self.mines and self.source == "predicted"

    @property
    def by_units(self) -> "MaskingConfig":
        """The same settings with mining units masked individually, not in blocks."""
        return replace(self, pattern="auto") if self.pattern == "blocks" else self

    def unit_length(self, time: int) -> int:
        """Length of a mining unit in time steps, for a clip with ``time`` steps."""
        if self.pattern == "tokens":
            return 1
        return self.tube_length or time


@dataclass(frozen=True)
class TeacherConfig:
    token_ratio: float = setting(
        0.1,
        "share of the tokens that the teacher sees, and that a predictor from pixels learns "
        "to rank",
    )
    view: View = setting("spread", "tokens that the teacher sees if token_ratio is below 1")
    draws: int = setting(1, "number of views of different tokens whose scores are averaged")
    momentum_start: float = setting(
        0.999, "momentum of the teacher's moving average at the start of the run"
    )
    momentum_end: float = setting(0.9999, "momentum of the teacher's moving average after its ramp")
    ramp: float = setting(0.125, "share of the run over which the teacher's momentum rises")

    def __post_init__(self) -> None:
        if not 0 < self.token_ratio <= 1:
            raise ValueError(f"teacher.token_ratio ({self.token_ratio}) must be in (0, 1]")
        at_least("teacher.draws", self.draws, 1)
        if self.draws > 1 and self.token_ratio == 1:
            raise ValueError(
                f"teacher.draws ({self.draws}) must be 1 while teacher.token_ratio is 1: one draw "
                "already has all tokens"
            )
        for name in ("momentum_start", "momentum_end", "ramp"):
            between(f"teacher.{name}", getattr(self, name), 0, 1)


_MOST_LAYERS, _WIDEST = 64, 1 << 16  # for feature targets


@dataclass(frozen=True)
class LossConfig:
    target: LossTarget = setting(
        "pixels",
        "what is reconstructed; ema: features of the encoder's moving average; frozen: "
        "features of loss.target_model",
    )
    normalize_targets: bool = setting(True, "normalise target pixels per token and colour channel")
    target_model: str | None = setting(
        None,
        "model that gives the features for target=frozen: a checkpoint or run folder, "
        "VideoMAE weights, a Hugging Face folder, or timm:NAME",
    )
    target_weights: str | None = setting(None, "file of weights for target_model=timm:NAME")
    target_layers: list[int] = setting(
        [-1], "blocks whose features are reconstructed; 0: first, -1: last"
    )
    target_width: int | None = setting(
        None, "numbers per token in a layer of the frozen model; found when a run starts"
    )
    prediction: Prediction = setting(
        "ranking",
        "objective of the loss predictor; ranking: the order of losses; absolute: their "
        "values; none: no predictor",
    )
    prediction_weight: float = setting(
        1.0, "weight of the prediction loss; the reconstruction loss has weight 1"
    )
    pixel_prediction_weight: float = setting(
        1.0, "weight of the loss of the predictor from pixels with model.predictor_input=both"
    )
    ranking: Ranking = setting(
        "exact", "cost of a pair in the wrong order; clipped: at most 13.8, as in HPM's code"
    )
    ranking_level: RankingLevel = setting("token", "what the ranking loss compares")
    variance: Variance = setting(
        "auto",
        "estimator of the variance of a clip's losses for prediction=absolute; auto: "
        "unbiased, as in HPM's code, but biased in runs of older versions",
    )

    def __post_init__(self) -> None:
        all_at_least("loss.", self, prediction_weight=0, pixel_prediction_weight=0)
        self._check_target()

    def _check_target(self) -> None:
        layers, width = self.target_layers, self.target_width
        if not 0 < len(layers) <= _MOST_LAYERS or len(set(layers)) < len(layers):
            raise ValueError(
                f"loss.target_layers ({layers}) must name 1 to {_MOST_LAYERS} blocks, each once"
            )
        if width is not None and not 0 < width <= _WIDEST:
            raise ValueError(f"loss.target_width ({width}) must be in [1, {_WIDEST}]")
        if self.target == "frozen" and not self.target_model:
            raise ValueError(
                f"loss.target_model ({self.target_model or 'null'}) must name the model whose "
                "features are the target while loss.target is frozen: a checkpoint, a folder, or "
                "timm:NAME"
            )
        of_frozen = ("target_model", "target_weights", "target_width")
        given = [name for name in of_frozen if getattr(self, name) is not None]
        if given and self.target != "frozen":
            raise ValueError(
                f"loss.{given[0]} ({getattr(self, given[0])}) must be left out while loss.target "
                f"is {self.target}: only loss.target=frozen uses it"
            )
        if self.target == "pixels" and layers != [-1]:
            raise ValueError(
                f"loss.target_layers ({layers}) must be left out while loss.target is pixels"
            )

    @property
    def has_pixels(self) -> bool:
        """True if the reconstruction can be shown as a picture."""
        return self.target == "pixels"

    @property
    def objective(self) -> str:
        """Name of the prediction loss in `hpm_video.method.losses.OBJECTIVES`."""
        if self.prediction == "ranking" and self.ranking == "clipped":
            return "ranking_clipped"
        if self.prediction == "absolute" and self.variance == "biased":
            return "absolute_biased"
        return self.prediction


# For settings that are ``auto`` by default: the effective value before they existed
_THEN = (
    ("loss", "variance", "biased"),
    ("augment", "interpolation", "bilinear"),
    ("evaluation", "best_by", "first_top1"),
)


def as_then(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stored settings of an earlier run, completed with settings that are younger than the run.

    If a younger setting's default behaves differently, the value in effect at that time is added.
    """
    for name, setting_name, value in _THEN:
        group = stored.get(name) if isinstance(stored, Mapping) else None
        if isinstance(group, Mapping) and setting_name not in group:
            stored = {**stored, name: {**group, setting_name: value}}
    model = stored.get("model") if isinstance(stored, Mapping) else None
    if not isinstance(model, Mapping) or "decoder_width" not in model:  # not a pre-training
        return stored
    then: dict[str, Any] = {"first_weights": "former"}
    if model.get("size") == "giant":  # its decoder once had the MLP ratio of the other sizes
        then["decoder_mlp_ratio"] = 4.0
    run = {"history_checkpoints": 0, **stored.get("run", {})}
    return {**stored, "run": run, "model": {**then, **model}}


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of ``hpm-video pretrain``."""

    run: PretrainRunConfig = field(default_factory=PretrainRunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: PretrainProbeConfig = field(default_factory=PretrainProbeConfig)

    def __post_init__(self) -> None:
        check_batch(self.data, self.optim)
        for name in ("train_manifest", "val_manifest"):
            if self.run.probe_every and not getattr(self.probe, name):
                raise ValueError(
                    f"probe.{name} ([]) must name a list of labelled videos while run.probe_every "
                    f"({self.run.probe_every}) is above 0"
                )
        masking = self.masking
        if self.loss.prediction == "none" and masking.needs_teacher:
            raise ValueError(
                "loss.prediction (none) must be ranking or absolute while masking.hard_ratio_end "
                f"({masking.hard_ratio_end}) or hard_ratio_start is above 0 and masking.source is "
                "predicted: set both ratios to 0, or choose another source"
            )
        if self.loss.prediction == "none" and masking.mines and masking.ramp == "competence":
            raise ValueError(
                "loss.prediction (none) must be ranking or absolute while masking.ramp is "
                "competence, which follows its rank accuracy: choose one, or masking.ramp=time"
            )
        # An untrained predictor keeps masks random, and a competence ramp waits forever
        if self.loss.prediction_weight == 0 and masking.mines and masking.ramp == "competence":
            raise ValueError(
                "loss.prediction_weight (0) must be above 0 while masking.ramp is competence, "
                "which follows the rank accuracy of the predictor: choose 1, or masking.ramp=time"
            )
        is_of_both = self.model.predictor_input == "both" and masking.needs_teacher
        if self.loss.pixel_prediction_weight == 0 and is_of_both:
            raise ValueError(
                "loss.pixel_prediction_weight (0) must be above 0 while model.predictor_input is "
                "both, whose predictor from pixels picks the masks: choose 1, another "
                "model.predictor_input, or another masking.source"
            )
        if self.loss.ranking_level == "unit" and self.masking.decoder_mask_ratio > 0:
            raise ValueError(
                "loss.ranking_level (unit) must be token while masking.decoder_mask_ratio "
                f"({self.masking.decoder_mask_ratio}) is above 0, which leaves out parts of units"
            )
        looks_at_part = self.model.predicts_from_pixels and self.teacher.token_ratio < 1
        if self.loss.ranking_level == "unit" and looks_at_part:
            raise ValueError(
                "loss.ranking_level (unit) must be token while model.predictor_input is "
                f"{self.model.predictor_input} and teacher.token_ratio "
                f"({self.teacher.token_ratio}) is below 1, which leaves out parts of units"
            )
