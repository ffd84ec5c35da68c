"""Our encoders in timm's registry: import this module, then call ``timm.create_model``.

    timm.create_model("hpm_vit_base_patch16_224", checkpoint="outputs/pre", num_classes=174)

Models take clips (B, 3, T, H, W) in [0, 1] and normalise them, so their ``pretrained_cfg`` has mean
0 and deviation 1. The tag ``.scratch`` means that there are no weights to download. Weights come
from ``checkpoint``, any file or folder that `hpm-video weights inspect` can read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from hpm_video.config import ClassifierConfig
from hpm_video.models.build import build_classifier
from hpm_video.models.classifier import Classifier
from hpm_video.models.sizes import SIZES, heads_of
from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import ViTSize
from hpm_video.weights.checkpoint import load_encoder, load_weights, trained_grid, under
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.to_ours import import_weights

# huge_v2 has huge's encoder
PATCH_SIZES = {size: 14 if size == "giant" else 16 for size in SIZES if size != "huge_v2"}


class TimmClassifier(Classifier):
    """The classifier with timm's model interface.

    With ``num_classes=0`` it returns features (B, D), the input of the head.
    """

    def __init__(self, grid: TokenGrid, size: ViTSize, *, num_classes: int, **named: Any) -> None:
        super().__init__(grid, size, num_classes=max(num_classes, 1), **named)
        self.num_features = self.head_hidden_size = self.encoder.width
        shape = self.encoder.tokens.shape
        frames, side = shape.tubelet_size * grid.time, shape.patch_size * grid.height
        self.pretrained_cfg = self.default_cfg = _config(frames, side)
        if num_classes == 0:
            self.reset_classifier(0)

    def forward_features(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [0, 1] -> tokens (B, N, D)."""
        return self.encoder(patchify(clips, self.grid))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, D) -> logits (B, classes), or the head's input (B, D)."""
        features: Tensor = self.dropout(self.norm(tokens.mean(dim=1)))
        return features if pre_logits else self.head(features)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; 0 classes remove it."""
        self.num_classes = num_classes
        width = self.encoder.width
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


def build(
    size: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    num_frames: int = 16,
    img_size: int = 224,
    patch_size: int | None = None,
    tubelet_size: int = 2,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> TimmClassifier:
    """Build the model of a size, from scratch or with the weights of ``checkpoint``.

    A pre-training checkpoint provides the encoder. A classifier provides everything, except that
    the head stays new if ``num_classes`` differs. Weights are interpolated for other clips and
    tokens. ``num_classes``: default is the checkpoint's, or 0 if it has none.

    Raises ValueError if the weights do not fit, or for ``pretrained``, as there are no downloads.
    """
    if pretrained:
        raise ValueError(
            "pretrained (True) must be False: no weights are published; use checkpoint=FILE"
        )
    state: dict[str, Any] = {"model": {}}
    if checkpoint is not None:
        assumptions = Assumptions(image_frames=num_frames, tubelet_size=tubelet_size)
        state = import_weights(checkpoint, assumptions=assumptions).state
        trained, heads = state["config"]["model"], SIZES[size].heads
        if trained.get("name", "videomae") != "videomae":
            raise ValueError(
                f"checkpoint ({checkpoint}) must hold a VideoMAE model, not the baseline "
                f"{trained['name']}"
            )
        if heads_of(trained["size"], trained["heads"]) != heads:  # shapes do not reveal it
            raise ValueError(
                f"checkpoint ({checkpoint}) must have {heads} attention heads, like size {size}"
            )
    weights = state["model"]
    has_head = "head.weight" in weights
    kept = state["config"]["model"] if has_head else {}
    if num_classes is None:
        num_classes = state["num_classes"] if has_head else 0
    settings: dict[str, Any] = {
        "size": size,
        "tubelet_size": tubelet_size,
        "patch_size": patch_size or PATCH_SIZES[size],
        "positions": "stored" if "encoder.positions" in weights else "sinusoid",
        "drop_path": drop_path_rate,
        "head_dropout": drop_rate,
        **{name: kept[name] for name in ("pooling", "head_float32") if name in kept},
    }
    model = build_classifier(
        ClassifierConfig(**settings),
        num_frames=num_frames,
        crop_size=img_size,
        num_classes=num_classes,
        trained_grid=trained_grid(state) if weights else None,
        kind=TimmClassifier,
    )
    assert isinstance(model, TimmClassifier)
    if weights:
        load_encoder(model.encoder, state, source=str(checkpoint))
    if has_head:
        load_weights(model.norm, under(weights, "norm."), source=str(checkpoint))
    if has_head and state["num_classes"] == num_classes:
        load_weights(model.head, under(weights, "head."), source=str(checkpoint))
    return model


def _config(num_frames: int, side: int) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of a model."""
    return {
        "url": "",
        "num_classes": 0,
        "input_size": (3, num_frames, side, side),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
        "classifier": "head",
        "license": "apache-2.0",
    }


def _entry(size: str) -> Callable[..., TimmClassifier]:
    """The entry point of a size for timm's registry and torch.hub."""

    def create(pretrained: bool = False, **settings: Any) -> TimmClassifier:
        tag = settings.pop("pretrained_cfg", None)
        if tag not in (None, "scratch"):
            raise ValueError(f"tag ({tag}) must be scratch, or left out")
        for name in ("pretrained_cfg_overlay", "cache_dir"):  # only concern downloads
            settings.pop(name, None)
        return build(size, pretrained=pretrained, **settings)

    create.__name__ = f"hpm_vit_{size}_patch{PATCH_SIZES[size]}_224"
    create.__module__ = __name__
    create.__doc__ = f"A video transformer of size {size}; settings as in `{__name__}.build`."
    return create


default_cfgs = generate_default_cfgs(
    {
        f"hpm_vit_{size}_patch{patch}_224.scratch": _config(16, 224)
        for size, patch in PATCH_SIZES.items()
    }
)
hpm_vit_tiny_patch16_224 = register_model(_entry("tiny"))
hpm_vit_small_patch16_224 = register_model(_entry("small"))
hpm_vit_base_patch16_224 = register_model(_entry("base"))
hpm_vit_large_patch16_224 = register_model(_entry("large"))
hpm_vit_huge_patch16_224 = register_model(_entry("huge"))
hpm_vit_giant_patch14_224 = register_model(_entry("giant"))
