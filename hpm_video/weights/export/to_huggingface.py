"""Exports to a folder that ``AutoModel.from_pretrained`` of transformers reads as VideoMAE, and
its model card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.models.sizes import decoder_heads_of, heads_of
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.runtime.files import whole_file, write_atomically
from hpm_video.weights.checkpoint import settings_of
from hpm_video.weights.export.model_card import NAME as CARD
from hpm_video.weights.export.model_card import Origin, model_card
from hpm_video.weights.foreign.architecture import FRAMES, OURS
from hpm_video.weights.foreign.formats import HUGGING_FACE, HUGGING_FACE_ENCODER
from hpm_video.weights.foreign.from_ours import export_tensors


def write(state: Mapping[str, Any], output: Path) -> list[str]:
    """Write weights, config.json and preprocessor_config.json; returns lines to print."""
    weights = state["model"]
    is_whole = "head.weight" in weights or "decoder_input.mask_token" in weights
    tensors, words = export_tensors(state, HUGGING_FACE if is_whole else HUGGING_FACE_ENCODER)
    settings = _settings(state)
    side = settings["image_size"]
    preprocessor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "resample": 2,  # bilinear
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    with whole_file(output / "model.safetensors") as file:
        save_file(tensors, file, metadata={"format": "pt"})
    for name, values in (("config", settings), ("preprocessor_config", preprocessor)):
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(output / f"{name}.json", [text])
    return words


def write_card(state: Mapping[str, Any], output: Path, *, name: str, origin: Origin) -> list[str]:
    """Write README.md and copy its pictures; returns lines to print."""
    copies = [f"picture_{n}{path.suffix}" for n, path in enumerate(origin.pictures, start=1)]
    for copy, path in zip(copies, origin.pictures, strict=True):
        shutil.copyfile(path, output / copy)
    (architecture,) = _settings(state)["architectures"]
    card = model_card(state, architecture, name=name, origin=origin, pictures=copies)
    write_atomically(output / CARD, [card])
    return [f"{CARD}: fill in the licence and what you know about the videos"]


def _settings(state: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of transformers' VideoMAE."""
    config, weights = settings_of(state), state["model"]
    model, data = config.model, config.data
    hidden, width = weights["encoder.blocks.0.mlp.fc1.weight"].shape
    settings: dict[str, Any] = {
        "model_type": "videomae",
        "architectures": ["VideoMAEModel"],
        "image_size": data.crop_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "num_frames": data.num_frames,
        "tubelet_size": model.tubelet_size,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": _num_blocks(weights, "encoder"),
        "num_attention_heads": heads_of(model.size, model.heads),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        # True also means that the encoder has no final norm
        "use_mean_pooling": "encoder.norm.weight" not in weights,
        OURS: {name: getattr(data, name) for name in FRAMES},
    }
    if "decoder_input.mask_token" in weights and isinstance(config, PretrainConfig):
        decoder_hidden, decoder_width = weights["reconstructor.blocks.0.mlp.fc1.weight"].shape
        settings |= {
            "architectures": ["VideoMAEForPreTraining"],
            "decoder_hidden_size": decoder_width,
            "decoder_intermediate_size": decoder_hidden,
            "decoder_num_hidden_layers": _num_blocks(weights, "reconstructor"),
            "decoder_num_attention_heads": decoder_heads_of(model.size, config.model.decoder_heads),
            "norm_pix_loss": config.loss.normalize_targets,
        }
    if "head.weight" in weights:
        classes = state["classes"] or [f"LABEL_{n}" for n in range(state["num_classes"])]
        settings |= {
            "architectures": ["VideoMAEForVideoClassification"],
            "id2label": {str(number): name for number, name in enumerate(classes)},
            "label2id": {name: number for number, name in enumerate(classes)},
        }
        if isinstance(config, FinetuneConfig) and config.data.labels.are_several:
            settings["problem_type"] = "multi_label_classification"
    return settings


def _num_blocks(weights: Mapping[str, Any], stack: str) -> int:
    return sum(n.startswith(f"{stack}.blocks.") and n.endswith(".norm1.weight") for n in weights)
