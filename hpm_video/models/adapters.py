"""Partial fine-tuning of a classifier: frozen parts and low-rank adapters.

An adapter (LoRA, arXiv 2106.09685) adds scale * B A x to a layer's output for x. The layer is
frozen; A (rank, D) and B (K, rank) are trained. B starts at zero, so training starts from the
unchanged model, and A gets its first gradient in the second step.
"""

from collections.abc import Mapping

from timm.layers import DropPath
from torch import Tensor

from hpm_video.config import ClassifierConfig
from hpm_video.config.finetune import LORA_TARGETS
from hpm_video.models.baselines import Baseline
from hpm_video.models.classifier import Classifier
from hpm_video.models.vit import Encoder

_PLACES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # in a block
# peft's names for a wrapped layer and for the two matrices of its adapter
_LAYER, _A, _B = "base_layer.", "lora_A.default.weight", "lora_B.default.weight"
_BASE = f"{_LAYER}weight"


def train_less(model: Classifier | Baseline, config: ClassifierConfig) -> None:
    """Freeze the parts that model.freeze names and add adapters of model.lora_rank, in place.

    Frozen parts need no gradient and have no stochastic depth. If nothing before them is trained,
    they keep no activations. Raises ValueError for more blocks than the model has, a rank above the
    width, or if peft is missing.
    """
    if config.freeze == "none" and not config.lora_rank:
        return
    assert isinstance(model, Classifier), "the settings refuse it"
    encoder, depth = model.encoder, len(model.encoder.blocks)
    num_frozen = {"none": 0, "embeddings": 0, "encoder": depth}.get(str(config.freeze))
    if num_frozen is None:
        num_frozen = int(config.freeze)
    most = depth - 1 if config.lora_rank else depth
    if num_frozen > most:
        rule = f", which leaves one for adapters (model.lora_rank {config.lora_rank})"
        raise ValueError(
            f"model.freeze ({num_frozen}) must be at most {most}{rule if config.lora_rank else ''}:"
            f" the encoder has {depth} blocks"
        )
    frozen = encoder.blocks[:num_frozen]
    for part in frozen.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
    if config.lora_rank:
        _add_adapters(encoder, range(num_frozen, depth), config)
    elif num_frozen == depth:
        encoder.requires_grad_(False)  # its norm too, if it has one
    else:
        for part in (encoder.embed, frozen):
            part.requires_grad_(False)


def _add_adapters(encoder: Encoder, blocks: range, config: ClassifierConfig) -> None:
    """Add adapters to these blocks; the rest of the encoder is frozen."""
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - takes seconds
        from peft.tuners.lora import LoraLayer  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            f"model.lora_rank ({config.lora_rank}) needs the package peft: "
            "pip install 'hpm_video[lora]'"
        ) from error
    if config.lora_rank > (width := encoder.width):
        raise ValueError(
            f"model.lora_rank ({config.lora_rank}) must be at most {width}, the encoder's width"
        )
    targets = config.lora_targets or LORA_TARGETS
    names = [f"blocks.{k}.{_PLACES[target]}" for k in blocks for target in targets]
    settings = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=names, bias="none"
    )
    inject_adapter_in_model(settings, encoder)
    for module in encoder.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # autocast casts once already


def plain_name(name: str) -> str:
    """Name of a weight in the model without adapters."""
    return name.replace(f".{_LAYER}", ".")


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Merge adapters into the weights of their layers.

    Raises ValueError for an adapter that does not fit its layer.
    """
    result = {plain_name(n): each for n, each in weights.items() if not n.endswith((_A, _B))}
    for name in weights:
        layer, is_adapter, _ = name.rpartition(f".{_A}")
        if not is_adapter:
            continue
        base, low, high = (weights.get(f"{layer}.{part}") for part in (_BASE, _A, _B))
        if base is None or low is None or high is None:
            raise ValueError(f"adapter of {layer} must have {_BASE}, {_A} and {_B}")
        # Check shapes before multiplying: a stranger's file could ask for a huge product
        sizes = (*high.shape, *low.shape)
        if len(sizes) != 4 or base.shape != (sizes[0], sizes[3]) or sizes[1] != sizes[2]:
            shapes = " and ".join(str(tuple(each.shape)) for each in (low, high))
            raise ValueError(f"adapter of {layer} {shapes} must fit its weight {tuple(base.shape)}")
        result[f"{layer}.weight"] = base + scale * (high.float() @ low.float()).to(base.dtype)
    return result
