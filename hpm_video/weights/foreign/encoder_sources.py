"""The models behind frozen encoders (ours, timm, transformers), each at its own resolution.

Nothing is downloaded, and no code from model folders is run. Notation as in
`hpm_video.models.tokens`; S is the model's input size in pixels.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hpm_video.config import ClipConfig
from hpm_video.models.pixels import as_floats
from hpm_video.models.sizes import check_layers
from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import Encoder
from hpm_video.runtime.reading import read_json
from hpm_video.weights.checkpoint import load_weights
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.to_ours import import_weights
from hpm_video.weights.foreign.weight_files import read_weights
from hpm_video.weights.load import encoder_of

OF_TIMM = "timm:"
# model_type of a folder -> class of transformers. VideoMAE is imported as one of our models
OF_HUGGING_FACE = {
    "vjepa2": "VJEPA2Model",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
}
# Weights that may be missing: features do not depend on them
_NOT_ASKED = ("predictor.", "embeddings.mask_token")
_FINAL_NORMS = ("layernorm", "post_layernorm", "norm")
_PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class Asked:
    """The request for features of a model; None means the model's own value.

    num_frames: T of the clips. layers: layers that give features. weights: weight file, for timm.
    side, mean, std: input size and normalisation of the pixels. name, group, clip: names of the
    settings in messages.
    """

    num_frames: int | None
    layers: Sequence[int]
    weights: str | None = None
    side: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    name: str = "encoder"
    group: str = "loss.target_"  # prefix of layers and weights
    clip: str = "data."

    @property
    def frames_name(self) -> str:
        return f"{self.clip}num_frames"

    @property
    def layers_name(self) -> str:
        return f"{self.group}layers"

    @property
    def weights_name(self) -> str:
        return f"{self.group}weights"


@contextmanager
def told_as(name: str) -> Iterator[None]:
    """Prefix error messages with the name of the setting that gave the model."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


class Source(nn.Module):
    """A model at its own resolution.

    Clips (B, 3, T, S, S) in [0, 1] -> features (B, t, h, w, D) of each layer. grid: (t, h, w).
    side: S. num_frames: T.
    """

    width: int
    side: int
    grid: TokenGrid
    num_frames: int


class OurEncoder(Source):
    """One of our encoders, with any weights that we can import."""

    def __init__(self, model: str, asked: Asked) -> None:
        super().__init__()
        assumed = Assumptions(image_frames=asked.num_frames)
        with told_as(asked.name):
            state = import_weights(model, assumptions=assumed, encoder_only=True).state
        tubelet_size = state["config"]["model"].get("tubelet_size", 1)
        assert asked.num_frames is not None
        _check_frames(asked, asked.num_frames, tubelet_size, f"{asked.name} ({model})")
        clip = ClipConfig(num_frames=asked.num_frames)
        self.encoder: Encoder
        with told_as(asked.name):
            self.encoder, data = encoder_of(state, source=model, clip=clip)
        check_layers(asked.layers, len(self.encoder.blocks), setting=asked.layers_name)
        self.layers, self.side = list(asked.layers), data.crop_size
        self.width, self.grid = self.encoder.width, self.encoder.grid
        self.num_frames = asked.num_frames

    def forward(self, clips: Tensor) -> list[Tensor]:
        grid = self.grid
        found = self.encoder.at_layers(patchify(clips, grid), self.layers)
        return [layer.unflatten(1, (grid.time, grid.height, grid.width)) for layer in found]


class _Normalised(Source):
    """A model with its own normalisation of pixels. scale: value to which the model's preprocessor
    maps a pixel of 1."""

    mean: Tensor
    std: Tensor

    def _keep_colours(self, mean: Sequence[float], std: Sequence[float], scale: float = 1) -> None:
        for name, colours in (("mean", mean), ("std", std)):
            value = torch.tensor(colours, dtype=torch.float64) / scale
            self.register_buffer(name, value.float()[:, None, None, None], persistent=False)

    def _normalised(self, clips: Tensor) -> Tensor:
        return (as_floats(clips) - self.mean) / self.std


class TimmModel(_Normalised):
    """An image model of timm, applied frame by frame."""

    def __init__(self, architecture: str, asked: Asked) -> None:
        import timm  # noqa: PLC0415 - takes seconds

        super().__init__()
        words, weights = f"{asked.name} ({OF_TIMM}{architecture})", asked.weights
        # timm would read settings from a hub for names with : or /
        if not timm.is_model(architecture) or {":", "/"} & set(architecture):
            raise ValueError(f"{words} must name a timm model; timm.list_models() lists them")
        if weights is None:
            raise ValueError(
                f"{words} needs a weight file, as nothing is downloaded and random weights are "
                f"useless; set {asked.weights_name}=FILE"
            )
        model = timm.create_model(architecture, pretrained=False, num_classes=0)
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"{words} must be a timm model that returns the features of its layers"
            )
        with told_as(asked.weights_name):
            _load_timm(model, weights)
        settings = timm.data.resolve_model_data_config(model)
        self.model = model.eval()
        self._keep_colours(asked.mean or settings["mean"], asked.std or settings["std"])
        height, self.side = settings["input_size"][-2:]
        if height != self.side:
            raise ValueError(f"{words} must take square images, not {height} x {self.side}")
        _check_side(asked, self.side, words)
        depth = len(model.feature_info)
        check_layers(asked.layers, depth, setting=asked.layers_name)
        self.layers = [layer % depth for layer in asked.layers]
        with torch.no_grad():
            found = self._maps(torch.zeros(1, 3, self.side, self.side))
        shapes = {tuple(each.shape[1:]) for each in found}
        if len(shapes) > 1:
            raise ValueError(
                f"{asked.layers_name} ({self.layers}) of {words} must have features of one size, "
                f"not of {', '.join(map(str, sorted(shapes)))}"
            )
        ((self.width, rows, columns),) = shapes
        assert asked.num_frames is not None
        self.num_frames = asked.num_frames
        self.grid = TokenGrid(self.num_frames, rows, columns)

    def forward(self, clips: Tensor) -> list[Tensor]:
        batch = len(clips)
        images = self._normalised(clips).transpose(1, 2).flatten(0, 1)  # (B * T, 3, S, S)
        # (B * T, D, h, w) -> (B, T, h, w, D)
        return [each.unflatten(0, (batch, -1)).movedim(2, -1) for each in self._maps(images)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> (B, D, h, w) of each layer, after the final norm if there is one."""
        in_order = sorted(self.layers)  # timm returns them in this order
        found = self.model.forward_intermediates(
            images, indices=in_order, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return [found[in_order.index(layer)] for layer in self.layers]


def _load_timm(model: Any, weights: str) -> None:
    """Load a file strictly, except for a classifier's head, with timm's own conversion of names."""
    tensors: dict[str, Tensor] = dict(read_weights(weights).tensors)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:  # converts the names and shapes of the original authors
        try:
            tensors = adapt(tensors, model)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"weights ({weights}) do not fit {type(model).__name__}") from error
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = model.state_dict()
    kept = {
        key: value
        for key, value in tensors.items()
        if key in own or not key.startswith(tuple(f"{head}." for head in heads))
    }
    load_weights(model, kept, source=weights)


class HuggingFaceModel(_Normalised):
    """A model of transformers: an image model, applied frame by frame, or V-JEPA 2."""

    def __init__(self, folder: Path, kind: str, asked: Asked) -> None:
        super().__init__()
        words = f"{asked.name} ({folder})"
        whole = _load_hugging_face(folder, kind, words)
        self.is_video = kind == "vjepa2"
        self.model: nn.Module = whole.encoder if self.is_video else whole
        self.width, patch = whole.config.hidden_size, whole.config.patch_size
        settings: dict[str, Any] = {}
        if asked.mean is not None and asked.std is not None:
            self._keep_colours(asked.mean, asked.std)
        else:
            settings = _read_preprocessor(folder, words)
            scale = 255 * settings.get("rescale_factor", 1 / 255) if settings["do_rescale"] else 255
            colours = ([0.0] * 3, [1.0] * 3)
            if settings["do_normalize"]:
                colours = settings["image_mean"], settings["image_std"]
            self._keep_colours(*colours, scale)
        # These two have a fixed position table; transformers interpolates that of the others
        if self.is_video or kind.startswith("clip"):
            config = whole.config
            self.side = config.crop_size if self.is_video else config.image_size
            _check_side(asked, self.side, words)
        else:
            self.side = asked.side or _side_of(settings) or whole.config.image_size
            if asked.side is not None and asked.side % patch:
                raise ValueError(
                    f"{asked.clip}crop_size ({asked.side}) must be a multiple of {patch}, the "
                    f"token size of {words}"
                )
        self.side -= self.side % patch
        frames = whole.config.tubelet_size if self.is_video else 1
        num_frames = asked.num_frames
        if num_frames is None:
            assert self.is_video, "an image model has no clip length of its own"
            num_frames = whole.config.frames_per_clip
        _check_frames(asked, num_frames, frames, words)
        self.num_frames = num_frames
        self.grid = TokenGrid(num_frames // frames, self.side // patch, self.side // patch)
        stacks = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
        self.blocks: nn.ModuleList = max(stacks, key=len)
        check_layers(asked.layers, len(self.blocks), setting=asked.layers_name)
        self.layers = [layer % len(self.blocks) for layer in asked.layers]
        inner = {id(part) for part in self.blocks.modules()}
        norms = [
            part
            for path, part in self.model.named_modules()
            if path.split(".")[-1] in _FINAL_NORMS and id(part) not in inner
        ]
        assert len(norms) == 1, f"{kind} has {len(norms)} final norms"
        self.norm = norms[0]

    def forward(self, clips: Tensor) -> list[Tensor]:
        pixels = self._normalised(clips).transpose(1, 2)  # (B, T, 3, S, S)
        found: dict[int, Tensor] = {}

        def keep(number: int) -> Any:
            def hook(module: nn.Module, given: Any, result: Any) -> None:
                found[number] = result[0] if isinstance(result, tuple) else result

            return hook

        hooks = [self.blocks[k].register_forward_hook(keep(k)) for k in self.layers]
        try:
            self.model(pixels if self.is_video else pixels.flatten(0, 1))
        finally:
            for hook in hooks:
                hook.remove()
        grid, batch = self.grid, len(clips)
        sizes = (batch, grid.time, grid.height, grid.width)
        count = grid.num_tokens if self.is_video else grid.num_tubes
        # Drop the class token and registers, which come first
        layers = [self.norm(found[number])[:, -count:] for number in self.layers]
        return [layer.reshape(*sizes, self.width) for layer in layers]


def _load_hugging_face(folder: Path, kind: str, words: str) -> Any:
    try:
        import transformers  # noqa: PLC0415 - optional, and takes seconds
    except ImportError as error:
        raise ValueError(
            f"{words} needs the package transformers: pip install 'hpm_video[transformers]'"
        ) from error
    of_kind = getattr(transformers, OF_HUGGING_FACE[kind], None)
    if of_kind is None:
        raise ValueError(
            f"{words} is of model_type {kind}, which transformers {transformers.__version__} does "
            "not support; install a newer version"
        )
    logging = transformers.utils.logging
    shows_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # we report missing weights below; unused ones are normal
    try:
        model, info = of_kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="sdpa",  # the folder's own setting could name code on a hub
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{words} cannot be read by transformers: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
    if missing := sorted(k for k in info["missing_keys"] if not k.startswith(_NOT_ASKED)):
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise ValueError(f"{words} lacks weights: {', '.join(missing[:4])}{more}")
    return model


def model_type(folder: Path) -> object:
    """The model_type of a Hugging Face folder; None for everything else."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    settings = _read(file)
    if "quantization_config" in settings:
        raise ValueError(f"{folder} must hold floating-point weights, not quantised ones")
    return settings.get("model_type")


def _read_preprocessor(folder: Path, words: str) -> dict[str, Any]:
    """The preprocessor settings for normalising pixels, validated."""
    there = [folder / name for name in _PREPROCESSORS if (folder / name).is_file()]
    if not there:
        raise ValueError(
            f"{words} has no {' or '.join(_PREPROCESSORS)}, which says how to normalise pixels; "
            "copy it from the model's original folder, or, for a probe, set encoder.mean and "
            "encoder.std"
        )
    settings = {"do_rescale": True, "do_normalize": True, **_read(there[0])}
    if settings["do_normalize"]:
        for key in ("image_mean", "image_std"):
            colours = settings.get(key)
            if (
                not isinstance(colours, list)
                or len(colours) != 3
                or not all(isinstance(c, int | float) for c in colours)
            ):
                raise ValueError(f"{there[0]}: {key} ({colours}) must be three numbers")
    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"{there[0]}: rescale_factor ({factor}) must be a number above 0")
    return settings


def _side_of(settings: Mapping[str, Any]) -> int | None:
    """The image size in a preprocessor's settings, if given."""
    for key in ("crop_size", "size"):
        size = settings.get(key)
        if key == "crop_size" and not settings.get("do_center_crop", True):
            continue
        if isinstance(size, Mapping):
            size = size.get("height", size.get("shortest_edge"))
        if isinstance(size, int) and size > 0:
            return size
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} must hold settings as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} must hold a JSON object of settings, not a {type(found).__name__}"
        )
    return found


def _check_frames(asked: Asked, num_frames: int, tubelet_size: int, words: str) -> None:
    if num_frames % tubelet_size:
        raise ValueError(
            f"{asked.frames_name} ({num_frames}) must be a multiple of {tubelet_size}, the frames "
            f"per token of {words}"
        )


def _check_side(asked: Asked, side: int, words: str) -> None:
    if asked.side not in (None, side):
        raise ValueError(
            f"{asked.clip}crop_size ({asked.side}) must be {side}, the input size of {words}"
        )
