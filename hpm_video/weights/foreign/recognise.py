"""Which format weights are in, by what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpm_video.weights.foreign.formats import LAYOUTS, Layout
from hpm_video.weights.foreign.sources import Source

# What wrappers put before every name
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_BACKBONE = "backbone."
# Newer versions of transformers call them by the first name in memory, by the second one in files
_ALIASES = {"query.bias": "q_bias", "value.bias": "v_bias"}
_LEAST_SHARE = 0.5  # of the names have a meaning, or the format is another


@dataclass(frozen=True)
class Recognised:
    """Weights of a known format.

    tensors: by the format's names. names: of each of these, how the file calls it.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    names: dict[str, str]


def recognise(source: Source) -> Recognised:
    """The format under which most of the names have a meaning.

    Raises ValueError where that is none.
    """
    names = {_plain(name): name for name in source.tensors}
    while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in names)), None):
        names = {name.removeprefix(prefix): there for name, there in names.items()}
    names = {name.removeprefix(_BACKBONE): there for name, there in names.items()}
    if len(names) < len(source.tensors):
        twice = next(n for n in source.tensors if n not in names.values())
        raise ValueError(
            f"weights ({source.path}): found {twice} by two names, expected each tensor once"
        )
    known = {layout: sum(map(layout.knows, names)) for layout in LAYOUTS}
    layout = max(known, key=known.__getitem__)
    if not names or known[layout] < _LEAST_SHARE * len(names):
        few = ", ".join(sorted(names)[:4])
        raise ValueError(
            f"weights ({source.path}): found {len(names)} tensors such as {few}, expected one of "
            "our checkpoints, or the names of VideoMAE (official or Hugging Face), of MAE, HPM or "
            "timm"
        )
    return Recognised(
        layout, {name: source.tensors[there].detach() for name, there in names.items()}, names
    )


def _plain(name: str) -> str:
    for alias, usual in _ALIASES.items():
        if name.endswith(f"attention.attention.{alias}"):
            return name.removesuffix(alias) + usual
    return name
