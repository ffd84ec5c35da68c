"""A graph of ONNX with its weights, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpm_video.weights.export.program import deployed

_MOST_BYTES = 2**31 - 2**20  # a file of ONNX holds less than 2 GiB


def write(state: Mapping[str, Any], output: Path) -> list[str]:
    """Write the model, input ``clips`` and output ``logits`` or ``tokens``; returns what to say.

    Raises ValueError where the packages are missing, or the weights do not fit into one file.
    """
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
