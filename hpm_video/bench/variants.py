"""The variants of a pre-training step that benches compare: settings and names."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from hpm_video.bench.steps import grid_of
from hpm_video.config import LossConfig, MaskingConfig, ModelConfig, PretrainConfig
from hpm_video.config.limits import at_least
from hpm_video.config.values import LossTarget, MaskSource, Precision, PredictorInput, Size

PLAIN = "VideoMAE"
# predictor_input, token_ratio and predictor_depth of the paper: the teacher sees every token, and
# the predictor is as deep as the reconstructor
LITERAL: tuple[PredictorInput, float, int] = ("encoded", 1.0, 4)


def step_config(
    *,
    size: Size,
    frames: int,
    crop_size: int,
    batch_size: int = 1,
    precision: Precision = "bfloat16",
    compile: bool = False,  # noqa: A002  # as the option and the setting
    cuda_graphs: bool = False,
    mask_ratio: float = MaskingConfig().mask_ratio,
    decoder_depth: int = ModelConfig().decoder_depth,
    decoder_mask_ratio: float = MaskingConfig().decoder_mask_ratio,
    mask_source: MaskSource = "predicted",
    target: LossTarget = "pixels",
    target_model: str | None = None,
    target_weights: str | None = None,
) -> PretrainConfig:
    """The default pre-training at this size; raises ValueError if tokens do not divide the clip."""
    for name, value in {"batch-size": batch_size, "frames": frames, "crop-size": crop_size}.items():
        at_least(f"--{name}", value, 1)
    default = PretrainConfig()
    run = replace(
        default.run,
        precision=precision,
        compile="true" if compile else "false",
        cuda_graphs="true" if cuda_graphs else "false",
    )
    data = replace(default.data, batch_size=batch_size, num_frames=frames, crop_size=crop_size)
    model = replace(default.model, size=size, decoder_depth=decoder_depth)
    masking = replace(
        default.masking,
        mask_ratio=mask_ratio,
        decoder_mask_ratio=decoder_mask_ratio,
        source=mask_source,
    )
    loss = replace(
        default.loss, target=target, target_model=target_model, target_weights=target_weights
    )
    config = replace(default, run=run, data=data, model=model, masking=masking, loss=loss)
    grid_of(config)  # raises if tokens do not divide the clip
    return config


def plain(config: PretrainConfig) -> PretrainConfig:
    """The config without mining: plain VideoMAE."""
    masking = replace(config.masking, hard_ratio_start=0, hard_ratio_end=0)
    return replace(config, masking=masking, loss=LossConfig(prediction="none"))


def with_batch(config: PretrainConfig, batch_size: int) -> PretrainConfig:
    """The config with another batch size."""
    return replace(config, data=replace(config.data, batch_size=batch_size))


def variants(
    base: PretrainConfig,
    predictor_inputs: Sequence[PredictorInput],
    token_ratios: Sequence[float],
    predictor_depths: Sequence[int],
) -> dict[str, PretrainConfig]:
    """Name -> config of plain VideoMAE, the literal variant, all combinations, and the default.

    If masks come from another source than the teacher: plain VideoMAE, plain VideoMAE with such
    masks, all combinations, and the default's predictor.
    """
    found = [plain(base)]
    asked = [*product(predictor_inputs, token_ratios, predictor_depths), _choice(PretrainConfig())]
    if base.masking.needs_teacher:
        asked.insert(0, LITERAL)
    else:
        found.append(replace(base, loss=LossConfig(prediction="none")))
    for predictor_input, token_ratio, depth in asked:
        model = replace(base.model, predictor_input=predictor_input, predictor_depth=depth)
        teacher = replace(base.teacher, token_ratio=token_ratio)
        found.append(replace(base, model=model, teacher=teacher))
    return {variant_name(config): config for config in found}


def variant_name(config: PretrainConfig) -> str:
    """The name of a config's step in benches."""
    masking = config.masking
    source = f", masks by {masking.source}" if masking.mines and not masking.needs_teacher else ""
    if config.loss.prediction == "none":
        return PLAIN + source
    predictor_input, token_ratio, depth = choice = _choice(config)
    name = f"{predictor_input} r={token_ratio:g} predictor {depth}"
    if source:
        return f"HPM {name}{source}"
    name = f"HPM literal ({name})" if choice == LITERAL else f"HPM {name}"
    if not config.loss.has_pixels:
        return f"{name}, target {config.loss.target}"
    return f"{name} = default" if choice == _choice(PretrainConfig()) else name


def _choice(config: PretrainConfig) -> tuple[PredictorInput, float, int]:
    """The settings in which variants differ."""
    model = config.model
    return model.predictor_input, config.teacher.token_ratio, model.predictor_depth
