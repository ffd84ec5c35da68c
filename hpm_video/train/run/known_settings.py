"""Settings that a fine-tuning takes from the weights that it starts from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpm_video.config import FinetuneConfig, as_then
from hpm_video.config.settings import config_to_dict, differing_keys, load_config, read_stored
from hpm_video.weights.checkpoint import linked_checkpoint, settings_of
from hpm_video.weights.foreign.architecture import Assumptions, architecture_of
from hpm_video.weights.foreign.formats import recognise
from hpm_video.weights.foreign.weight_files import read_weights

# Not how pre-training samples frames: classification may need another sampling
_SIZES = ("size", "width", "depth", "heads")
_KNOWN = {
    "model": (*_SIZES, "patch_size", "tubelet_size", "positions"),
    "data": ("num_frames", "crop_size"),
}


def load_finetune_config(
    path: str | Path | None, settings: Sequence[str], *, reads_weights: bool = True
) -> tuple[FinetuneConfig, list[str]]:
    """The settings of a fine-tuning, and log lines on them.

    Sizes of model, tokens and clips that neither the YAML nor ``settings`` give come from the run
    in the folder, else from run.resume, else from model.init. Without these, or with
    ``reads_weights`` False, defaults apply.

    Raises as `load_config` does; FileNotFoundError or ValueError for unusable weights.
    """
    plain = load_config(FinetuneConfig, path, settings)
    found = _stored(plain, reads_weights=reads_weights)
    if found is None:
        return plain, []
    source, stored = found
    known = _known(stored)
    config = load_config(FinetuneConfig, path, settings, known=known)
    if config.model.size != known["model"].get("size", config.model.size):
        # A size given explicitly brings all its own numbers; loading checks that the weights fit
        known["model"] = {n: v for n, v in known["model"].items() if n not in _SIZES}
        config = load_config(FinetuneConfig, path, settings, known=known)
    values = config_to_dict(config)
    keys = differing_keys(config_to_dict(plain), values)
    words = " ".join(f"{key}={_value(values, key)}" for key in keys)
    return config, [f"settings from {source}: {words}"] if words else []


def _stored(config: FinetuneConfig, *, reads_weights: bool) -> tuple[str, Mapping[str, Any]] | None:
    """The source of known sizes, in words, and its settings."""
    run, init = config.run, config.model.init
    if run.output_dir and linked_checkpoint(Path(run.output_dir)) is not None:
        file = Path(run.output_dir) / "config.yaml"
        return ("the run", as_then(read_stored(file))) if file.is_file() else None
    if not reads_weights or (source := run.resume or init) is None:
        return None
    model = config.model
    weights = read_weights(source)
    words = f"{'run.resume' if run.resume else 'model.init'} ({source})"
    if weights.state is not None:
        return words, config_to_dict(settings_of(weights.state))
    told = Assumptions(image_frames=config.data.num_frames, depth=model.depth, heads=model.heads)
    architecture = architecture_of(recognise(weights), told, encoder_only=True)
    return words, config_to_dict(architecture.config)


def _known(stored: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The groups of settings that weights define."""
    found: dict[str, dict[str, Any]] = {}
    for group, names in _KNOWN.items():
        values = stored.get(group)
        there = values if isinstance(values, Mapping) else {}
        # A config.yaml is data: do not resolve interpolations in it
        found[group] = {n: there[n] for n in names if n in there and "$" not in str(there[n])}
    return found


def _value(values: Mapping[str, Any], key: str) -> Any:
    group, _, name = key.partition(".")
    return values[group][name]
