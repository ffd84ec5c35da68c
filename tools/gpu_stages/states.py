"""Tensors of checkpoints, to be compared bit for bit."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from hpm_video.weights.checkpoint import load_checkpoint


def saved_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint: student, teacher and optimizer."""
    return tensors_of(load_checkpoint(checkpoint, kind="pretrain", optimizer=True))


def tensors_of(state: Any) -> dict[str, Tensor]:
    """The tensors of student, teacher and optimizer by their place in a checkpoint's state."""
    parts = {name: state[name] for name in ("model", "teacher", "optimizer")}
    leaves = tree_flatten_with_path(parts)[0]
    return {keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
