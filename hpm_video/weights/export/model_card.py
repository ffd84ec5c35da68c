"""The model card (README.md) of an exported model: architecture, data, recipe, figures, loading.

Figures come from the run's metrics.jsonl. Facts that only the author knows are marked as to be
filled in. Paths are reduced to their last component.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict, differing_keys
from hpm_video.runtime.files import printable
from hpm_video.runtime.reading import parse_json, read_text
from hpm_video.weights.checkpoint import settings_of

NAME = "README.md"
TO_FILL_IN = "TO BE FILLED IN"

# Settings that are private to a machine or irrelevant to readers
_NOT_TOLD = re.compile(r"(run|probe|clip)\..*|data\.(root|num_workers|decod.*|max_bad_fraction)")
_NO_FIGURES = ("step", "epoch", "lr", "momentum", "clips_per_second", "data_wait_fraction")
_CLASSES = {
    "VideoMAEForVideoClassification": ("AutoModelForVideoClassification", "logits"),
    "VideoMAEForPreTraining": ("AutoModel", "last_hidden_state"),
    "VideoMAEModel": ("AutoModel", "last_hidden_state"),
}


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    run: its run folder, if it lies in one. data: its record of the run's videos. pictures: image
    files for the card.
    """

    run: Path | None = None
    data: Mapping[str, Any] | None = None
    pictures: Sequence[Path] = ()


def model_card(
    state: Mapping[str, Any],
    architecture: str,
    *,
    name: str,
    origin: Origin,
    pictures: Sequence[str] = (),
) -> str:
    """The card of a checkpoint that is exported as a transformers class ``architecture``.

    ``pictures``: names of image files beside the card.
    """
    config, is_classifier = settings_of(state), "head.weight" in state["model"]
    lines = _header(config, is_classifier=is_classifier)
    lines += [f"# {_plain(name)}", "", *_what(state, config, architecture), ""]
    lines += [f"![What the model finds hard]({picture})\n" for picture in pictures]
    words = f"**{TO_FILL_IN}**: `license:` in the header of this file."
    lines += ["## Licence", "", words]
    words = "The Apache-2.0 licence of hpm_video's code does not cover these weights. Follow the"
    lines += [
        words,
        "terms of the videos, and of the weights that training started from, if any.",
        "",
    ]
    lines += [*_data(state, config, origin), "", *_settings(config), ""]
    lines += [*_figures(state, origin.run), ""]
    lines += _loading(config, architecture)
    return "\n".join(lines)


def _header(config: PretrainConfig | FinetuneConfig, *, is_classifier: bool) -> list[str]:
    lines = ["---", f"license:  # {TO_FILL_IN}", "library_name: transformers"]
    if is_classifier:
        lines.append("pipeline_tag: video-classification")
    if found := re.match(r"hf:/+([\w.-]+/[\w.-]+)", config.model.init or ""):
        lines.append(f"base_model: {found[1]}")
    return [*lines, "tags: [video, videomae, hard-patches-mining, hpm_video]", "---", ""]


def _what(
    state: Mapping[str, Any], config: PretrainConfig | FinetuneConfig, architecture: str
) -> Iterator[str]:
    model, data = config.model, config.data
    numbers = sum(tensor.numel() for tensor in state["model"].values())
    if "head.weight" in state["model"]:
        kind = f"A video classifier of {state['num_classes']} classes, named in `config.json`"
        if isinstance(config, FinetuneConfig) and config.data.labels.are_several:
            kind += " (a video may have several; scores are the sigmoid of the logits)"
    else:
        kind = "A video encoder"
        kind += " with its decoder" if architecture == "VideoMAEForPreTraining" else ""
    made = "pre-trained by masked autoencoding" if state["kind"] == "pretrain" else "fine-tuned"
    mining = isinstance(config, PretrainConfig) and config.masking.mines
    yield f"{kind}, {made}{' with hard patches mining' if mining else ''}. Architecture: VideoMAE,"
    yield f"size {model.size}, {numbers / 1e6:.1f} M parameters."
    yield ""
    yield f"- Clips: {data.num_frames} frames of {data.crop_size} x {data.crop_size} pixels"
    yield f"- Frame sampling: {data.frames_in_words}"
    side = model.patch_size
    yield f"- Tokens: {model.tubelet_size} frames of {side} x {side} pixels each"
    if not data.antialias:
        yield "- Resizing: without antialiasing in training, with antialiasing in the processor"


def _data(
    state: Mapping[str, Any], config: PretrainConfig | FinetuneConfig, origin: Origin
) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield f"**{TO_FILL_IN}**: what the videos show, where they come from, and their terms."
    yield ""
    known = origin.data
    if isinstance(known, Mapping) and {"num_videos", "videos_per_step"} <= known.keys():
        yield "- {num_videos} videos, {videos_per_step} per step".format_map(known)
    lists = {"Training lists": config.data.manifest}
    if isinstance(config, FinetuneConfig):
        lists["Validation lists"] = config.data.val_manifest
    for words, paths in lists.items():
        if paths:
            yield f"- {words}: {', '.join(f'`{_base(path)}`' for path in paths)}"
    yield f"- {state['step']} steps, in a run of {config.optim.epochs} epochs"
    yield f"- Started from: {f'`{_base(init)}`' if (init := config.model.init) else 'scratch'}"


def _settings(config: PretrainConfig | FinetuneConfig) -> list[str]:
    values, job = config_to_dict(config), "pretrain"
    if isinstance(config, FinetuneConfig):
        job = "finetune"
    keys = differing_keys(config_to_dict(type(config)()), values)
    lines = []
    for key in (key for key in keys if not _NOT_TOLD.fullmatch(key)):
        value: Any = values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        lines.append(f"{key}={_without_folders(key, value)}")
    words = f"Settings of `hpm-video {job}` that differ from the defaults:"
    return ["## Recipe", "", words, "", "```", *lines, "```"]


def _figures(state: Mapping[str, Any], run: Path | None) -> list[str]:
    lines = ["## Results", ""]
    records = [] if run is None else [r for r in _records(run) if r["step"] <= state["step"]]
    of_training = [record for record in records if "grad_norm" in record]
    others = [record for record in records if "grad_norm" not in record]
    word = "Validation" if state["kind"] == "finetune" else "Probes"
    tables = (("Training, means of the last period", of_training), (word, others))
    if not any(found for _, found in tables):
        return [*lines, "None: the checkpoint was exported without the `metrics.jsonl` of its run."]
    lines.append("From the run's own `metrics.jsonl`; nothing else was measured.")
    for title, found in tables:
        if not found:
            continue
        lines += [
            "",
            f"{title}, step {found[-1]['step']:g}:",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        for figure, value in found[-1].items():
            if figure not in _NO_FIGURES:
                lines.append(f"| {_plain(figure)} | {value:.4g} |")
    return lines


def _records(run: Path) -> Iterator[dict[str, float]]:
    """The readable records of a run folder: numbers by name, including the step."""
    with suppress(OSError, ValueError):
        for line in read_text(run / "metrics.jsonl").splitlines():
            record = parse_json(line)
            if isinstance(record, dict):
                numbers = {name: v for name, v in record.items() if _is_number(v)}
                if "step" in numbers:
                    yield numbers


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) < 2**63  # type: ignore[arg-type]


def _loading(config: PretrainConfig | FinetuneConfig, architecture: str) -> list[str]:
    name, output = _CLASSES[architecture]
    return [
        "## How to load it",
        "",
        "With transformers:",
        "",
        "```python",
        "import torch",
        f"from transformers import AutoImageProcessor, {name}",
        "",
        'place = "OWNER/NAME"  # or a folder',
        "processor = AutoImageProcessor.from_pretrained(place)",
        f"model = {name}.from_pretrained(place).eval()",
        f"# frames: a list of {config.data.num_frames} arrays (height, width, 3) of uint8, RGB",
        "with torch.no_grad():",
        f'    {output} = model(**processor(frames, return_tensors="pt")).{output}',
        "```",
        "",
        "With hpm_video:",
        "",
        "```",
        "hpm-video finetune RECIPE … model.init=hf://OWNER/NAME",
        "hpm-video weights import hf://OWNER/NAME -o ours.pt   # for evaluate, predict and probe",
        "```",
        "",
    ]


def _without_folders(key: str, value: Any) -> str:
    """A setting's value as typed on the command line, with paths reduced to file names."""
    if "manifest" in key or key in ("model.init", "loss.target_model", "loss.target_weights"):
        value = [_base(path) for path in value] if isinstance(value, list) else _base(str(value))
    return printable(value if isinstance(value, str) else json.dumps(value)).replace("`", "'")


def _base(path: str) -> str:
    """The public part of a path: its last component; names of public repositories in full."""
    is_public = path.startswith(("hf:/", "timm:"))
    return printable(path if is_public else Path(path).name).replace("`", "'")


def _plain(text: str) -> str:
    """Text on one line, with Markdown characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text))
