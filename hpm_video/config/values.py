"""Choices of settings and options, declared only here."""

from typing import Any, Literal, get_args

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Switch = Literal["auto", "true", "false"]
Parallel = Literal["ddp", "fsdp"]
Logger = Literal["tensorboard", "wandb", "mlflow"]

# Data
Decoder = Literal["decord", "torchcodec", "pyav"]
Sampling = Literal["dense", "uniform", "videomae_pretrain", "videomae_kinetics", "videomae_ssv2"]
Crop = Literal["multi_scale", "random_resized"]
CropOn = Literal["workers", "device"]

# Models
Size = Literal["tiny", "small", "base", "large", "huge", "huge_v2", "giant"]
Positions = Literal["sinusoid", "stored"]
FirstWeights = Literal["xavier", "videomae", "former"]
PredictorInput = Literal["encoded", "pixels", "both"]
InitPart = Literal["all", "encoder", "decoder", "predictor", "teacher"]
ClassifierName = Literal[
    "videomae", "slowfast_r50", "slowfast_r101", "x3d_xs", "x3d_s", "x3d_m", "x3d_l",
    "mvit_base_16x4", "mvit_base_32x3",
]  # fmt: skip
Pooling = Literal["mean_norm", "norm_mean"]
LoraTarget = Literal["qkv", "proj", "fc1", "fc2"]
Inflation = Literal["mean", "centre"]

# The method
MaskSource = Literal["predicted", "none", "motion", "codec", "measured"]
MaskPattern = Literal["auto", "tubes", "windows", "tokens", "blocks"]
DecoderMask = Literal["running_cell", "random", "videomae_v2"]
View = Literal["tokens", "tubes", "frames", "spread"]
Prediction = Literal["ranking", "absolute", "none"]
Ranking = Literal["exact", "clipped"]
RankingLevel = Literal["token", "unit"]
HardRamp = Literal["time", "competence"]
Variance = Literal["auto", "unbiased", "biased"]
LossTarget = Literal["pixels", "ema", "frozen"]

# Fine-tuning, evaluation and studies
Interpolation = Literal["auto", "bicubic", "bilinear"]
ClassBalance = Literal["none", "weights"]
BestBy = Literal["auto", "top1", "balanced_accuracy", "loss", "first_top1", "mean_ap"]
StoredCheckpoint = Literal["last", "best"]
ProbeKind = Literal["knn", "linear", "attentive", "attentive_grid"]
ChosenOn = Literal["held_out", "judged"]
Comparison = Literal["epochs", "time"]
Clock = Literal["process", "wall"]
PictureFormat = Literal["png", "mp4", "gif"]


def values_of(alias: Any) -> tuple[str, ...]:
    """Values of one of the types above, in order of declaration."""
    return get_args(alias)
