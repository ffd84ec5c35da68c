"""Rules between settings of a run that hold for no group alone. Needs no PyTorch."""

from pathlib import Path

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.method.unit_counts import num_reconstructed_tokens
from hpm_video.models.grid import TokenShape
from hpm_video.models.sizes import (
    SIZES,
    check_baseline_clip,
    check_layers,
    decoder_size,
    encoder_size,
)


def check_relations(config: PretrainConfig | FinetuneConfig) -> None:
    """Raise ValueError for settings that do not fit each other.

    Models, clips and masks refuse the same settings later, when a run builds them.
    """
    model, data = config.model, config.data
    if isinstance(config, FinetuneConfig):
        if _takes_sizes_from_weights(config):
            return
        if config.model.name != "videomae":
            name, frames = config.model.name, data.num_frames
            check_baseline_clip(name, num_frames=frames, crop_size=data.crop_size)
            return
    encoder_size(model)
    shape = TokenShape(model.tubelet_size, model.patch_size)
    grid = shape.grid(num_frames=data.num_frames, crop_size=data.crop_size)
    if isinstance(config, PretrainConfig):
        decoder_size(config.model)
        if config.loss.target == "ema":
            check_layers(config.loss.target_layers, model.depth or SIZES[model.size].depth)
        num_reconstructed_tokens(grid, config.masking)


def _takes_sizes_from_weights(config: FinetuneConfig) -> bool:
    """Whether sizes that are not given come from weights, which are not read yet."""
    run = config.run
    goes_on = run.output_dir and Path(run.output_dir, "checkpoints", "last").is_symlink()
    return bool(run.resume or config.model.init or goes_on)
