"""``model.init``: the weights with which a run starts, and a table of what became of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from torch import nn

from hpm_video.config import EncoderConfig, FinetuneConfig, PretrainConfig
from hpm_video.models.adapters import plain_name
from hpm_video.models.decoder import DecoderInput
from hpm_video.models.hpm import HPM
from hpm_video.models.resample import Tokens
from hpm_video.models.sizes import SIZES, heads_of
from hpm_video.models.vit import Encoder
from hpm_video.runtime.files import write_atomically
from hpm_video.weights.foreign.account import Imported, Row, key_table
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.init_parts import ENCODER, unlike_sizes, unlike_weights
from hpm_video.weights.foreign.to_ours import import_weights

TABLE = "init.txt"  # in a run's folder


def init_weights(config: PretrainConfig | FinetuneConfig) -> Imported:
    """Import the file of ``model.init``, without tensors that are allowed to be missing.

    Only the encoder is read for fine-tuning, and for pre-training without decoder in
    model.init_parts.

    Raises FileNotFoundError, or ValueError if the weights are refused, or if the settings of a
    fine-tuning describe another encoder.
    """
    model = config.model
    assert model.init is not None
    has_decoder = isinstance(config, PretrainConfig) and "decoder" in config.model.parts_of_init
    told = Assumptions(image_frames=config.data.num_frames, tubelet_size=model.tubelet_size)
    if isinstance(config, PretrainConfig):
        # `InitParts` compares all sizes at once afterwards
        told = replace(
            told, depth=model.depth, heads=model.heads, decoder_heads=config.model.decoder_heads
        )
    else:
        heads = heads_of(model.size, model.heads)
        told = replace(told, depth=model.depth or SIZES[model.size].depth, heads=heads)
    found = import_weights(
        model.init,
        assumptions=told,
        allow_missing=model.allow_missing,
        fill=False,
        encoder_only=not has_decoder,
    )
    if isinstance(config, PretrainConfig):
        return found
    stored = found.state["config"]["model"]
    known = {item.name for item in fields(EncoderConfig)}
    trained = EncoderConfig(**{name: stored[name] for name in stored.keys() & known})
    # Shapes do not reveal heads and positions. Loading checks sizes that may differ in part
    names = ("heads", "positions") if model.allow_missing else ENCODER
    if unlike := unlike_sizes(model, trained, names):
        others = ", or model.init=null to start from scratch"
        raise ValueError(unlike_weights(unlike, model.init, others=others))
    return found


def write_init_table(
    folder: Path,
    found: Imported,
    model: nn.Module,
    *,
    taken: Mapping[str, str],
    before: Tokens,
    initialised: Sequence[str],
) -> None:
    """Write folder/init.txt: what became of each tensor of the file and of the model.

    ``taken``: name in the file's model -> name in the run's. ``before``: the tokens with which the
    weights were trained. ``initialised``: names of tensors that were allowed to be missing.
    """
    own = {plain_name(name): value for name, value in model.state_dict().items()}
    changed = _changed(model, before, taken.values())
    rows = []
    for row in found.rows:
        if not row.ours:
            rows.append(row)
        elif (name := taken.get(row.ours)) is not None:
            found_as = replace(row, ours=name, status="loaded" if name == row.theirs else "renamed")
            note = changed.get(name)
            rows.append(replace(found_as, status="interpolated", note=note) if note else found_as)
        elif row.theirs:
            note = "does not fit, allowed" if row.ours in initialised else "not in this model"
            rows.append(replace(row, ours="", status="unused", note=note))
    for name in changed.keys() - own.keys():
        table = model.get_buffer(name)
        note = f"computed, {changed[name]}"
        rows.append(Row("", name, "interpolated", tuple(table.shape), note))
    rows += [Row("", n, "initialised", tuple(own[n].shape)) for n in initialised]
    lines = key_table(replace(found, rows=tuple(rows)))
    write_atomically(folder / TABLE, (f"{line}\n" for line in lines))


def _changed(model: nn.Module, before: Tokens, taken: Collection[str]) -> dict[str, str]:
    """Name -> description, for tensors that were fitted to other tokens in modules of ``taken``."""
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    now, changed = encoder.tokens, {}
    for name, part in model.named_modules():
        if not isinstance(part, Encoder | DecoderInput):
            continue
        if not any(each.startswith(f"{name}.") for each in taken):
            continue
        if before.grid != now.grid:
            changed[f"{name}.positions"] = f"from {before.grid} to {now.grid}"
        if isinstance(part, Encoder) and before.shape != now.shape:
            changed[f"{name}.embed.weight"] = f"from {before.shape} to {now.shape}"
    head = model.get_submodule("reconstructor.head") if isinstance(model, HPM) else None
    # A head that predicts features does not depend on the shape of tokens
    says_pixels = isinstance(head, nn.Linear) and head.out_features == now.shape.num_values
    if says_pixels and before.shape != now.shape:
        of_head = {"reconstructor.head.weight", "reconstructor.head.bias"} & set(taken)
        changed |= dict.fromkeys(of_head, f"from {before.shape} to {now.shape}")
    return changed
