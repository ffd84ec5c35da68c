"""Frozen encoders of others: their features are those of their own library, on our grid."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from hpm_video.models.tokens import TokenGrid
from hpm_video.weights.foreign.encoders import FrozenEncoder, frozen_encoder, resizing

GRID = TokenGrid(2, 4, 4)
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
VIT = "vit_tiny_patch16_224"


def _clips(side: int = 32, frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (2, 3, frames, side, side)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def _normalised(clips: Tensor) -> Tensor:
    mean, std = (torch.tensor(colours)[:, None, None, None] for colours in (MEAN, STD))
    return (clips.float() / 255 - mean) / std


def _save(model: Any, folder: Path, *, side: int = 32, **settings: Any) -> str:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    preprocessor = {"image_mean": MEAN, "image_std": STD, "do_rescale": True}
    preprocessor |= {"rescale_factor": 1 / 255, "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor | settings))
    return str(folder)


IMAGE_MODELS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "dinov2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)), 1, "layernorm",
    ),
    "dinov2_with_registers": (
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
        ), 5, "layernorm",
    ),
    "dinov3_vit": (
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**SIZES, intermediate_size=64, num_register_tokens=3)
        ), 4, "norm",
    ),
    "clip_vision_model": (
        lambda: transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(**SIZES, intermediate_size=64)
        ), 1, "post_layernorm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGE_MODELS)
@torch.no_grad()
def test_image_models_of_transformers_give_their_own_features(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    make, num_dropped, norm_name = IMAGE_MODELS[kind]
    model = make().eval()
    for weight in model.parameters():  # layer scales, which begin at 1e-5 or 1, and norms too
        weight.add_(0.1 * torch.randn_like(weight))
    encoder = frozen_encoder(_save(model, tmp_path / kind), GRID, num_frames=4, layers=[0, -1])
    images = _normalised(_clips()).transpose(1, 2).flatten(0, 1)
    out = model(images, output_hidden_states=True)
    norm = model.get_submodule(norm_name)
    last = out.last_hidden_state if kind != "clip_vision_model" else norm(out.last_hidden_state)
    layers = [norm(out.hidden_states[1]), last]
    found = encoder(_clips())
    assert found.shape == (2, 32, 64) and encoder.width == 32
    for number, layer in enumerate(layers):
        # (B * T, tokens, D) -> (B, T, h * w, D) -> means of the two frames of a token
        tokens = layer[:, num_dropped:].reshape(2, 4, 16, 32)
        expected = torch.stack([tokens[:, :2].mean(1), tokens[:, 2:].mean(1)], dim=1).flatten(1, 2)
        mine = found[..., 32 * number : 32 * (number + 1)]
        assert (mine - expected).abs().max() < 1e-4
    floats = encoder(_clips().float() / 255)
    assert (floats - found).abs().max() < 1e-5


@torch.no_grad()
def test_vjepa_2_gives_its_own_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name != "image_size"}
    config = transformers.VJEPA2Config(
        **sizes, crop_size=32, tubelet_size=2, frames_per_clip=16, pred_hidden_size=16,
        pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    model = transformers.VJEPA2Model(config).eval()
    path = _save(model, tmp_path / "vjepa")
    (tmp_path / "vjepa" / "preprocessor_config.json").rename(
        tmp_path / "vjepa" / "video_preprocessor_config.json"
    )
    found = frozen_encoder(path, GRID, num_frames=4)(_clips())
    expected = model.get_vision_features(_normalised(_clips()).transpose(1, 2))
    assert (found - expected).abs().max() < 1e-4


@torch.no_grad()
def test_a_folder_of_videomae_gives_its_own_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        **SIZES, intermediate_size=128, num_frames=4, tubelet_size=2, use_mean_pooling=False
    )
    model = transformers.VideoMAEModel(config).eval()
    path = _save(model, tmp_path / "videomae")
    found = frozen_encoder(path, GRID, num_frames=4)(_clips())
    expected = model(_normalised(_clips()).transpose(1, 2)).last_hidden_state
    assert (found - expected).abs().max() < 1e-4


def _timm(folder: Path, name: str = VIT) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    save_file(model.state_dict(), folder / "timm.safetensors")
    return model, str(folder / "timm.safetensors")


@torch.no_grad()
def test_a_model_of_timm_gives_its_own_features(tmp_path: Path) -> None:
    model, weights = _timm(tmp_path)
    grid = TokenGrid(1, 14, 14)
    encoder = frozen_encoder(f"timm:{VIT}", grid, num_frames=1, layers=[-1, 2], weights=weights)
    clips = _clips(224, 1)
    cfg: Any = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    images = (clips[:, :, 0].float() / 255 - mean) / std
    found = encoder(clips)
    whole: Any = model
    expected = whole.forward_features(images)[:, 1:]
    assert (found[..., : encoder.width] - expected).abs().max() < 1e-4
    (third,) = whole.get_intermediate_layers(images, n=[2], norm=True)
    assert (found[..., encoder.width :] - third).abs().max() < 1e-4


@torch.no_grad()
def test_pixels_are_resized_to_the_models_side_and_features_to_our_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)).eval()
    path = _save(model, tmp_path / "dino", side=24)
    encoder = frozen_encoder(path, TokenGrid(2, 2, 6), num_frames=4)
    clips = _clips(48)
    small = nn.functional.interpolate(
        (clips.float() / 255).transpose(1, 2).flatten(0, 1),
        size=(24, 24),
        mode="bilinear",
        antialias=True,
    )
    mean, std = (torch.tensor(colours)[:, None, None] for colours in (MEAN, STD))
    tokens = model((small - mean) / std).last_hidden_state[:, 1:].reshape(2, 4, 3, 3, 32)
    halves = torch.stack([tokens[:, :2].mean(1), tokens[:, 2:].mean(1)], dim=1)
    rows = torch.stack(  # 3 rows -> 2: one and a half each
        [
            (halves[:, :, 0] + halves[:, :, 1] / 2) / 1.5,
            (halves[:, :, 1] / 2 + halves[:, :, 2]) / 1.5,
        ],
        dim=2,
    )
    columns = nn.functional.interpolate(  # 3 columns -> 6
        rows.permute(0, 1, 2, 4, 3).flatten(0, 2), size=6, mode="linear", align_corners=False
    ).unflatten(0, (2, 2, 2))
    expected = columns.movedim(-1, 3).flatten(1, 3)
    assert (encoder(clips) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("old", "new"), [(16, 14), (14, 16), (7, 3), (4, 4), (5, 1), (1, 3)])
def test_resizing_is_the_mean_over_what_a_cell_covers_or_linear(old: int, new: int) -> None:
    found = resizing(old, new)
    assert found.shape == (new, old) and torch.allclose(found.sum(1), torch.ones(new))
    if new >= old:
        line = nn.functional.interpolate(
            torch.arange(float(old))[None, None], size=new, mode="linear", align_corners=False
        )
        assert torch.allclose(found @ torch.arange(float(old)), line[0, 0], atol=1e-5)
        return
    fine = 64  # points of a cell of the new axis
    points = (torch.arange(new * fine) + 0.5) * old / (new * fine)
    slow = nn.functional.one_hot(points.long(), old).float().unflatten(0, (new, fine)).mean(1)
    assert (found - slow).abs().max() < 2 / fine


def test_no_gradient_and_no_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**SIZES, hidden_dropout_prob=0.5, drop_path_rate=0.5)
    path = _save(transformers.Dinov2Model(config), tmp_path / "dino")
    encoder = frozen_encoder(path, GRID, num_frames=4)
    state = torch.random.get_rng_state()
    one, other = encoder(_clips()), encoder(_clips())
    assert torch.equal(one, other) and not one.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(weight.requires_grad for weight in encoder.parameters())


def _refused(error: type[Exception], words: str, model: str, **settings: Any) -> None:
    with pytest.raises(error) as caught:
        frozen_encoder(model, GRID, **{"num_frames": 4, "name": "loss.target_model"} | settings)
    assert words in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_what_cannot_be_used_is_refused_in_a_line(tmp_path: Path) -> None:
    _refused(FileNotFoundError, "loss.target_model (no/where) does not exist", "no/where")
    _refused(ValueError, "random weights are useless", f"timm:{VIT}")
    _refused(ValueError, "must name a timm model", "timm:hf-hub:some/model", weights="x")
    _refused(ValueError, "must name a timm model", "timm:vit_huuge", weights="x")
    _, weights = _timm(tmp_path)
    _refused(ValueError, "must be left out", str(tmp_path), weights=weights)
    _refused(ValueError, "blocks from 0 to 11", f"timm:{VIT}", weights=weights, layers=[12])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    other = str(tmp_path / "other.safetensors")
    _refused(ValueError, "cls_token is missing", f"timm:{VIT}", weights=other)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))
    folder = tmp_path / "dino"
    path = _save(model, folder)
    (folder / "preprocessor_config.json").unlink()
    _refused(ValueError, "says how to normalise pixels", path)
    _save(model, folder, image_mean=[0.5])
    _refused(ValueError, "image_mean ([0.5]) must be three numbers", path)
    _save(model, folder)
    weights_file = folder / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-4000])
    _refused(ValueError, "cannot be read by transformers", path)
    tensors = {n: v for n, v in model.state_dict().items() if "layer.2" not in n}
    save_file(tensors, weights_file, metadata={"format": "pt"})
    _refused(ValueError, "lacks weights: encoder.layer.2", path)
    settings = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"model_type": "bert"}, "has model_type bert: must be one of videomae, "),
        ({"quantization_config": {}}, "not quantised ones"),
    ):
        (folder / "config.json").write_text(json.dumps(settings | change))
        _refused(ValueError, words, path)


def test_what_cannot_be_read_is_named_by_its_setting(tmp_path: Path) -> None:
    """Files of every kind, and folders: messages begin with what to change."""
    (tmp_path / "empty").mkdir()
    _refused(FileNotFoundError, "loss.target_model: ", str(tmp_path / "empty"))
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"model": {"some.weight": torch.zeros(1)}}, tmp_path / "unknown.pt")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{")
    for name in ("text.pt", "unknown.pt", "hf"):
        path = str(tmp_path / name)
        _refused(ValueError, "loss.target_model: ", path)
        _refused(ValueError, path, path)
    text = str(tmp_path / "text.pt")
    _refused(ValueError, f"loss.target_weights: weights ({text})", f"timm:{VIT}", weights=text)


@torch.no_grad()
def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """They would make every target, and so every loss, not finite."""
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))
    model.encoder.layer[1].norm1.weight[3] = torch.nan
    path = _save(model, tmp_path / "dino")
    _refused(ValueError, f"loss.target_model ({path}) must hold finite numbers", path)
    other, weights = _timm(tmp_path)
    other.blocks[2].norm1.bias[0] = torch.inf  # type: ignore[index, union-attr]
    torch.save(other.state_dict(), weights)
    _refused(ValueError, "blocks.2.norm1.bias has NaN or infinity", f"timm:{VIT}", weights=weights)


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "dino"
    path = _save(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)), folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModel": "code.Model", "AutoConfig": "code.Config"}
    settings["attn_implementation"] = "somebody/kernels"
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    frozen_encoder(path, GRID, num_frames=4)
    assert not (tmp_path / "run").exists()


def test_without_transformers_a_line_says_what_to_install(tmp_path: Path) -> None:
    path = _save(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)), tmp_path / "dino")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from hpm_video.models.tokens import TokenGrid\n"
        "from hpm_video.weights.foreign.encoders import frozen_encoder\n"
        f"try: frozen_encoder({path!r}, TokenGrid(2, 4, 4), num_frames=4)\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install 'hpm_video[transformers]'" in done.stdout


def test_a_digest_tells_weights_apart(tmp_path: Path) -> None:
    def digest(name: str) -> str:
        path = _save(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)), tmp_path / name)
        encoder: FrozenEncoder = frozen_encoder(path, GRID, num_frames=4)
        assert encoder.digest() == frozen_encoder(path, GRID, num_frames=4).digest()
        return encoder.digest()

    assert digest("one") != digest("other")
