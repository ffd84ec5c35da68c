"""``model.init``: the encoder that a run starts with, and what became of every tensor."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpm_video.config import DataConfig, EncoderConfig
from hpm_video.models.adapters import plain_name
from hpm_video.models.build import SIZES, heads_of
from hpm_video.models.resample import Tokens
from hpm_video.models.vit import Encoder
from hpm_video.runtime.files import write_atomically
from hpm_video.weights.foreign.account import Imported, Row, key_table
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.to_ours import import_weights

TABLE = "init.txt"  # in a run's folder


def init_weights(model: EncoderConfig, data: DataConfig) -> Imported:
    """Read the file of ``model.init``, of any origin; what is allowed to be missing is left out.

    Raises FileNotFoundError, or ValueError where it is refused, or where what no shape tells is
    otherwise in the settings.
    """
    assert model.init is not None
    heads = heads_of(model.size, model.heads)
    found = import_weights(
        model.init,
        assumptions=Assumptions(
            image_frames=data.num_frames,
            tubelet_size=model.tubelet_size,
            depth=model.depth or SIZES[model.size].depth,
            heads=heads,
        ),
        allow_missing=model.allow_missing,
        fill=False,
        encoder_only=True,
    )
    trained = found.state["config"]["model"]
    for name, mine, theirs in (
        ("heads", heads, heads_of(trained["size"], trained["heads"])),
        ("positions", model.positions, trained.get("positions", "sinusoid")),
    ):
        if mine != theirs:
            raise ValueError(
                f"model.{name} ({mine}) must be {theirs}, as in the weights of model.init "
                f"({model.init})"
            )
    return found


def write_init_table(
    folder: Path, found: Imported, encoder: Encoder, *, before: Tokens, initialised: Sequence[str]
) -> None:
    """Write folder/init.txt: of every tensor of the file and of the encoder, what became of it.

    ``before``: the tokens that the weights were trained with. ``initialised``: names of what was
    allowed to be missing.
    """
    own = {f"encoder.{plain_name(n)}": value for n, value in encoder.state_dict().items()}
    changed = {}
    if before.grid != encoder.grid:
        changed["encoder.positions"] = f"from {before.grid} to {encoder.grid}"
    if before.shape != encoder.tokens.shape:
        changed["encoder.embed.weight"] = f"from {before.shape} to {encoder.tokens.shape}"
    rows = []
    for row in found.rows:
        if not row.ours:
            rows.append(row)
        elif row.ours not in own:
            rows.append(replace(row, ours="", status="unused", note="not of this encoder"))
        elif row.ours in initialised:
            if row.theirs:
                rows.append(replace(row, ours="", status="unused", note="allowed not to fit"))
        else:
            note = changed.get(row.ours)
            rows.append(replace(row, status="interpolated", note=note) if note else row)
    if "encoder.positions" in changed and "encoder.positions" not in own:
        shape, note = tuple(encoder.positions.shape), f"computed, {changed['encoder.positions']}"
        rows.append(Row("", "encoder.positions", "interpolated", shape, note))
    rows += [Row("", n, "initialised", tuple(own[n].shape)) for n in initialised]
    lines = key_table(replace(found, rows=tuple(rows)))
    write_atomically(folder / TABLE, (f"{line}\n" for line in lines))
