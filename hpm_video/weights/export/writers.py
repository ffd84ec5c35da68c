"""A checkpoint as one file, or in the format of others: every format and how it is written.

A writer puts the parts of a checkpoint, as `hpm_video.weights.checkpoint` describes them, into the
file or folder ``output``, which is there, empty. It returns lines to say about what was left out or
changed. Heavy packages are imported by the writers alone, so that ``--help`` is quick.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpm_video.runtime.files import check_can_be_folder, make_folder, new_file, whole_file

if TYPE_CHECKING:
    from hpm_video.weights.export.model_card import Origin

# all: what is needed to go on with the run. weights-only: the student's or classifier's, with the
# settings. encoder: its encoder's alone.
Part = Literal["all", "weights-only", "encoder"]
State = Mapping[str, Any]

FACTS = "hpm_video.json"  # in a program of torch.export
_MOST_BYTES = 2**31 - 2**20  # a file of ONNX holds less than 2 GiB


@dataclass(frozen=True)
class Target:
    """A format to write. parts: those it can hold, the usual one first. is_folder: else a file."""

    help: str
    write: Callable[[State, Path], list[str]]
    parts: tuple[Part, ...] = ("weights-only", "encoder")
    is_folder: bool = False


def _checkpoint(state: State, output: Path) -> list[str]:
    """One file, as `hpm_video.weights.checkpoint.load_checkpoint` reads it."""
    import torch

    torch.save(dict(state), output)
    return []


def _safetensors(state: State, output: Path) -> list[str]:
    """The tensors by our names; everything else as JSON in the header: kind, step, config, …"""
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in state["model"].items()}
    rest = {name: value for name, value in state.items() if name != "model"}
    header = {name: v if isinstance(v, str) else json.dumps(v) for name, v in rest.items()}
    with whole_file(output) as file:
        save_file(weights, file, metadata=header)
    return []


def _hugging_face(state: State, output: Path) -> list[str]:
    from hpm_video.weights.export.to_huggingface import write

    return write(state, output)


def _official(state: State, output: Path) -> list[str]:
    """The weights in a container ``model``, as the official VideoMAE and VideoMAE V2 read them."""
    import torch

    from hpm_video.weights.foreign.formats import OFFICIAL_FINETUNED, OFFICIAL_PRETRAINED
    from hpm_video.weights.foreign.from_ours import export_tensors

    is_pretrained = state["kind"] == "pretrain"
    layout = OFFICIAL_PRETRAINED if is_pretrained else OFFICIAL_FINETUNED
    tensors, words = export_tensors(state, layout)
    torch.save({"model": tensors}, output)
    return words


def _timm(state: State, output: Path) -> list[str]:
    """The state dict of timm's vision transformer: the image model that an encoder holds.

    The patch embedding is that of clips that stand still, positions are means over time.
    """
    import torch

    from hpm_video.weights.foreign.formats import IMAGE
    from hpm_video.weights.foreign.from_ours import export_tensors

    tensors, words = export_tensors(state, IMAGE)
    torch.save(tensors, output)
    return [
        "an image model without class token (class_token=False): what the encoder makes of a clip "
        "that stands still, at positions averaged over time",
        *words,
    ]


def _onnx(state: State, output: Path) -> list[str]:
    """A graph with its weights in one file, input ``clips``, output ``logits`` or ``tokens``.

    Raises ValueError where the packages are missing, or the weights do not fit into one file.
    """
    import torch

    from hpm_video.weights.export.program import deployed

    model = deployed(state)
    num_bytes = sum(p.numel() * p.element_size() for p in model.module.state_dict().values())
    if num_bytes > _MOST_BYTES:
        raise ValueError(
            f"weights ({num_bytes} bytes) must be below 2 GiB for one file of ONNX: "
            "--to torch-export holds more"
        )
    try:
        program = torch.onnx.export(
            model.program(),
            input_names=["clips"],
            output_names=[model.output],
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        raise ValueError(
            "--to (onnx) needs the packages onnx and onnxscript: pip install 'hpm_video[onnx]'"
        ) from error
    assert program is not None
    program.model.metadata_props.update({f"hpm_video.{k}": v for k, v in model.facts.items()})
    program.save(output, external_data=False)
    return [f"{model.facts['input']} -> {model.output}"]


def _torch_export(state: State, output: Path) -> list[str]:
    """A graph with its weights for ``torch.export.load``, which runs it without our code."""
    import torch

    from hpm_video.weights.export.program import deployed

    model = deployed(state)
    with output.open("wb") as file:  # by its name it would have to end in .pt2
        torch.export.save(model.program(), file, extra_files={FACTS: json.dumps(dict(model.facts))})
    return [f"{model.facts['input']} -> {model.output}"]


TARGETS = {
    "checkpoint": Target(
        "one .pt file of ours", _checkpoint, parts=("all", "weights-only", "encoder")
    ),
    "safetensors": Target("tensors and settings", _safetensors),
    "huggingface": Target("a folder for transformers", _hugging_face, is_folder=True),
    "official": Target("as VideoMAE's own code", _official),
    "timm": Target("timm's image transformer", _timm),
    "onnx": Target("a graph and its weights", _onnx),
    "torch-export": Target("a program for torch.export.load", _torch_export),
}


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    to: str | None = None,
    part: Part | None = None,
    pictures: Sequence[Path] = (),
) -> list[str]:
    """Write a checkpoint of either form, or the last of a run, as one of `TARGETS`.

    Returns lines to say: what was left out or changed, and where it is. Without ``to`` a name that
    ends in ``.safetensors`` gets that, any other one a checkpoint. ``pictures``: for a model card.

    Raises FileNotFoundError, or ValueError where it cannot be read or written.
    """
    from hpm_video.weights.checkpoint import (
        find_checkpoint,
        load_checkpoint,
        without_adapters,
        without_training,
    )
    from hpm_video.weights.export.model_card import Origin
    from hpm_video.weights.foreign.to_ours import account_of

    to = to or ("safetensors" if Path(output).suffix == ".safetensors" else "checkpoint")
    parts = TARGETS[to].parts
    part = part or parts[0]
    if part not in parts:
        raise ValueError(f"part ({part}) must be one of {', '.join(parts)} with --to {to}")
    check_output(output, source=checkpoint)
    state = load_checkpoint(checkpoint, optimizer=part == "all", as_trained=True)
    plain = without_adapters(state, f"checkpoint ({checkpoint})")
    account_of(plain, source=checkpoint)
    run = find_checkpoint(checkpoint).absolute().parents[1]  # RUN/checkpoints/FILE
    origin = Origin(run if (run / "checkpoints").is_dir() else None, state.get("data"), pictures)
    if part != "all":
        state = without_training(plain)
    if part == "encoder":
        weights = state["model"].items()
        state["model"] = {name: value for name, value in weights if name.startswith("encoder.")}
    return write_output(state, output, to=to, origin=origin)


def check_output(output: str | Path, *, source: str | Path | None = None) -> None:
    """Raise ValueError unless a file, or a new folder, can be written there.

    A file that is there is replaced, if it is not ``source``; a folder, a pipe or a device is not.
    """
    path = Path(output)
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(f"--output ({output}) must be another file than what is read")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise ValueError(f"--output ({output}) is {kind}: must name what does not exist yet")
    check_can_be_folder(path.parent, name="folder of --output")


def write_output(
    state: Mapping[str, Any], output: str | Path, *, to: str, origin: "Origin | None" = None
) -> list[str]:
    """Write a checkpoint, or what is left of it, as one of `TARGETS`; it appears when complete.

    ``origin``: for a model card. Returns lines to say, the last one its name. Raises ValueError
    where it cannot be written, or where a number is not finite.
    """
    from hpm_video.weights.foreign.from_ours import without_features
    from hpm_video.weights.misfits import is_finite

    said: list[str] = []
    if to in ("huggingface", "official"):
        state, said = without_features(state)
    output = Path(output)
    check_output(output)
    for name, value in state["model"].items():
        if not is_finite(value):
            raise ValueError(f"weights to write: {name} must be finite")
    make_folder(output.parent, name="folder of --output")
    unfinished = output.with_name(f"{output.name}.part")
    _remove(unfinished)
    try:
        unfinished.mkdir() if TARGETS[to].is_folder else new_file(unfinished)
        words = TARGETS[to].write(state, unfinished)
        if to == "huggingface":
            from hpm_video.weights.export.model_card import Origin
            from hpm_video.weights.export.to_huggingface import write_card

            words += write_card(state, unfinished, name=output.name, origin=origin or Origin())
    except BaseException:
        _remove(unfinished)
        raise
    if unfinished.is_dir():
        output.unlink(missing_ok=True)
    os.replace(unfinished, output)
    return [*said, *words, str(output)]


def _remove(path: Path) -> None:
    """Remove what an unfinished export has left, if anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
