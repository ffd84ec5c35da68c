"""All export formats and how they are written.

A writer stores a checkpoint (see `hpm_video.weights.checkpoint`) in ``output``, an existing empty
file or folder. It returns lines to print about what was left out or changed. Only writers import
heavy packages, so that ``--help`` is quick.
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

# all: everything, so that training can resume. weights-only: model and settings without training
# state. encoder: the same with the encoder's weights only.
Part = Literal["all", "weights-only", "encoder"]
State = Mapping[str, Any]

FACTS = "hpm_video.json"  # extra file in a torch.export archive
_MOST_BYTES = 2**31 - 2**20  # one ONNX file holds less than 2 GiB


@dataclass(frozen=True)
class Target:
    """An export format. parts: those it can hold, the default first. is_folder: not a file."""

    help: str
    write: Callable[[State, Path], list[str]]
    parts: tuple[Part, ...] = ("weights-only", "encoder")
    is_folder: bool = False


def _checkpoint(state: State, output: Path) -> list[str]:
    """One file that `hpm_video.weights.checkpoint.load_checkpoint` reads."""
    import torch

    torch.save(dict(state), output)
    return []


def _safetensors(state: State, output: Path) -> list[str]:
    """The tensors with our names; other entries (kind, step, config, …) as JSON in the header."""
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
    """The weights under the key ``model``, as official VideoMAE and VideoMAE V2 code expects."""
    import torch

    from hpm_video.weights.foreign.formats import OFFICIAL_FINETUNED, OFFICIAL_PRETRAINED
    from hpm_video.weights.foreign.from_ours import export_tensors

    is_pretrained = state["kind"] == "pretrain"
    layout = OFFICIAL_PRETRAINED if is_pretrained else OFFICIAL_FINETUNED
    tensors, words = export_tensors(state, layout)
    torch.save({"model": tensors}, output)
    return words


def _timm(state: State, output: Path) -> list[str]:
    """The state dict of a timm vision transformer that acts like the encoder on still clips.

    The patch embedding is summed and positions are averaged over time.
    """
    import torch

    from hpm_video.weights.foreign.formats import IMAGE
    from hpm_video.weights.foreign.from_ours import export_tensors

    tensors, words = export_tensors(state, IMAGE)
    torch.save(tensors, output)
    return [
        "an image model without class token (class_token=False): it gives the encoder's output for "
        "still clips, with positions averaged over time",
        *words,
    ]


def _onnx(state: State, output: Path) -> list[str]:
    """A graph with its weights in one file, input ``clips``, output ``logits`` or ``tokens``.

    Raises ValueError if packages are missing, or the weights do not fit into one file.
    """
    import torch

    from hpm_video.weights.export.program import deployed

    model = deployed(state)
    num_bytes = sum(p.numel() * p.element_size() for p in model.module.state_dict().values())
    if num_bytes > _MOST_BYTES:
        raise ValueError(
            f"weights ({num_bytes} bytes) must be below 2 GiB to fit into one ONNX file; use "
            "--to torch-export"
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
    """A graph with its weights for ``torch.export.load``, which needs none of our code."""
    import torch

    from hpm_video.weights.export.program import deployed

    model = deployed(state)
    with output.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(model.program(), file, extra_files={FACTS: json.dumps(dict(model.facts))})
    return [f"{model.facts['input']} -> {model.output}"]


TARGETS = {
    "checkpoint": Target(
        "a .pt file of hpm_video", _checkpoint, parts=("all", "weights-only", "encoder")
    ),
    "safetensors": Target("tensors and settings", _safetensors),
    "huggingface": Target("a folder for transformers", _hugging_face, is_folder=True),
    "official": Target("a file for VideoMAE's own code", _official),
    "timm": Target("an image transformer of timm", _timm),
    "onnx": Target("an ONNX graph with its weights", _onnx),
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
    """Export a checkpoint (file or shards), or the last one of a run, to one of `TARGETS`.

    ``to``: default is safetensors if ``output`` ends in ``.safetensors``, else a checkpoint.
    ``pictures``: for the model card. Returns lines to print: what was left out or changed, and the
    output path.

    Raises FileNotFoundError, or ValueError if it cannot be read or written.
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
    """Raise ValueError unless a file or a new folder can be written to ``output``.

    An existing file may be replaced unless it is ``source``; folders, pipes and devices may not.
    """
    path = Path(output)
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(
            f"--output ({output}) must not be the file that is read; choose another name"
        )
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise ValueError(
            f"--output ({output}) must not be {kind}; choose a name that does not exist yet"
        )
    check_can_be_folder(path.parent, name="folder of --output")


def write_output(
    state: Mapping[str, Any], output: str | Path, *, to: str, origin: "Origin | None" = None
) -> list[str]:
    """Write a checkpoint or a part of one as one of `TARGETS`; the output appears when complete.

    ``origin``: for the model card. Returns lines to print, the last one the output path. Raises
    ValueError if it cannot be written or a weight is not finite.
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
    """Remove the remains of an unfinished export, if any."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
