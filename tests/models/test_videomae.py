"""The backbone against an independent implementation, `transformers`' VideoMAE, on its weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from hpm_video.method.losses import reconstruction_loss
from hpm_video.models.classifier import Classifier
from hpm_video.models.hpm import HPM
from hpm_video.models.tokens import TokenGrid, gather_tokens, normalize_targets, patchify
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD, Encoder, ViTSize, position_table

GRID = TokenGrid(2, 4, 4)  # 4 frames of 32 x 32 in tokens of 2 x 8 x 8
TOLERANCE = 1e-4


def _settings(**changes: object) -> VideoMAEConfig:
    settings = {
        "image_size": 32,
        "patch_size": 8,
        "num_frames": 4,
        "tubelet_size": 2,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 96,
        "layer_norm_eps": 1e-6,
        "attn_implementation": "eager",
    }
    return VideoMAEConfig(**{**settings, **changes})


def _randomize(model: nn.Module) -> None:
    """Weights far from any initialisation: every one of them matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 or "mask_token" in name else 0.12
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))


def _convert(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `transformers`' VideoMAE under our names."""
    ours: dict[str, Tensor] = {}
    renames = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "attention.attention.q_bias": "attn.q_bias",
        "attention.attention.v_bias": "attn.v_bias",
        "attention.attention.query.bias": "attn.q_bias",  # newer versions, in memory
        "attention.attention.value.bias": "attn.v_bias",
    }
    tops = {
        "encoder_to_decoder.weight": "decoder_input.project.weight",
        "mask_token": "decoder_input.mask_token",
        "videomae.embeddings.patch_embeddings.projection.bias": "encoder.embed.bias",
    }
    prefixes = {
        "videomae.encoder.layer.": "encoder.blocks.",
        "videomae.layernorm.": "encoder.norm.",
        "decoder.decoder_layers.": "reconstructor.blocks.",
        "decoder.": "reconstructor.",
        "fc_norm.": "norm.",
        "classifier.": "head.",
    }
    for name, value in theirs.items():
        if name == "videomae.embeddings.patch_embeddings.projection.weight":
            # (D, 3, t, y, x) -> (D, t * y * x * 3)
            ours["encoder.embed.weight"] = value.permute(0, 2, 3, 4, 1).flatten(1)
        elif name in tops:
            ours[tops[name]] = value
        elif name.endswith(("attention.query.weight", "key.weight", "value.weight")):
            if name.endswith("query.weight"):
                stem = name.removesuffix("query.weight")
                parts = [theirs[f"{stem}{part}.weight"] for part in ("query", "key", "value")]
                block = stem.removesuffix("attention.attention.")
                ours[_under(prefixes, f"{block}attn.qkv.weight")] = torch.cat(parts)
        else:
            for old, new in renames.items():
                if f".{old}" in name:
                    name = name.replace(f".{old}", f".{new}")  # noqa: PLW2901
                    break
            ours[_under(prefixes, name)] = value
    return ours


def _under(prefixes: dict[str, str], name: str) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


def _normalised(clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) in [0, 1] -> what `transformers` expects, (B, T, 3, H, W)."""
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((clips - mean) / std).transpose(1, 2)


def _clips(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 4, 32, 32, generator=torch.Generator().manual_seed(2))


def _mask(num_masked: int, batch: int = 3) -> Tensor:
    noise = torch.rand(batch, 32, generator=torch.Generator().manual_seed(num_masked))
    return noise.argsort(dim=1).argsort(dim=1) < num_masked


@pytest.fixture(scope="module")
def pair() -> tuple[VideoMAEForPreTraining, HPM]:
    """Their model and ours with the same random weights."""
    theirs = VideoMAEForPreTraining(_settings(use_mean_pooling=False)).eval()
    theirs.decoder.norm.eps = 1e-6  # as in VideoMAE; `transformers` leaves PyTorch's default
    _randomize(theirs)
    ours = HPM(
        GRID,
        ViTSize(tubelet_size=2, patch_size=8, width=32, depth=3, heads=4),
        decoder_width=24,
        decoder_heads=3,
        decoder_depth=2,
        predictor_input=None,
    ).eval()
    ours.load_state_dict(_convert(theirs.state_dict()))  # strict: every weight has its place
    return theirs, ours


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_masked", [1, 16, 28, 31])
@pytest.mark.parametrize("normalize", [False, True])
def test_reconstruction_and_loss_are_those_of_transformers(
    pair: tuple[VideoMAEForPreTraining, HPM], normalize: bool, num_masked: int, training: bool
) -> None:
    theirs, ours = pair
    theirs.config.norm_pix_loss = normalize
    clips, mask = _clips(), _mask(num_masked)
    with torch.no_grad():
        reference = theirs(_normalised(clips), bool_masked_pos=mask)
    # On a CPU attention has a second way, for training: gradients choose it.
    with torch.set_grad_enabled(training):
        output = ours(clips, mask)
    assert output.reconstruction.shape == (3, num_masked, 2 * 8 * 8 * 3)
    assert (output.reconstruction - reference.logits).abs().max() < TOLERANCE
    assert reference.logits.std() > 0.3  # not a comparison of zeros
    targets = gather_tokens(patchify(clips, GRID), output.masked)
    if normalize:
        targets = normalize_targets(targets)
    loss = reconstruction_loss(output.reconstruction, targets).mean()
    assert loss.item() == pytest.approx(reference.loss.item(), abs=TOLERANCE)


def test_all_gradients_are_those_of_transformers(pair: tuple[VideoMAEForPreTraining, HPM]) -> None:
    theirs, ours = pair
    theirs.config.norm_pix_loss = True
    clips, mask = _clips(), _mask(20)
    theirs.zero_grad()
    theirs(_normalised(clips), bool_masked_pos=mask).loss.backward()
    expected = _convert({name: p.grad for name, p in theirs.named_parameters()})
    ours.zero_grad()
    output = ours(clips, mask)
    targets = normalize_targets(gather_tokens(patchify(clips, GRID), output.masked))
    reconstruction_loss(output.reconstruction, targets).mean().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        scale = expected[name].abs().max().item()
        assert (parameter.grad - expected[name]).abs().max() < 1e-3 * scale + 1e-7, name


@pytest.mark.parametrize("training", [False, True])
def test_classifier_is_that_of_transformers(training: bool) -> None:
    theirs = VideoMAEForVideoClassification(_settings(use_mean_pooling=True, num_labels=5)).eval()
    assert theirs.fc_norm is not None
    theirs.fc_norm.eps = 1e-6
    _randomize(theirs)
    ours = Classifier(
        GRID, ViTSize(tubelet_size=2, patch_size=8, width=32, depth=3, heads=4), num_classes=5
    ).eval()
    ours.load_state_dict(_convert(theirs.state_dict()))
    clips = _clips()
    with torch.no_grad():
        reference = theirs(_normalised(clips)).logits
    with torch.set_grad_enabled(training):
        logits = ours(clips)
    assert (logits - reference).abs().max() < TOLERANCE
    assert reference.std() > 0.1


@pytest.mark.parametrize(("grid", "width"), [(TokenGrid(8, 14, 14), 384), (TokenGrid(3, 2, 5), 24)])
def test_position_table_is_the_flat_sinusoid(grid: TokenGrid, width: int) -> None:
    expected = get_sinusoid_encoding_table(grid.num_tokens, width)[0]
    assert (position_table(grid, width) - expected).abs().max() < 1e-6


def test_another_grid_gets_the_trained_table_interpolated() -> None:
    """Along each axis, and not a fresh flat table, whose rows mean other places."""
    trained, grid, width = TokenGrid(2, 3, 4), TokenGrid(4, 3, 4), 16
    flat = get_sinusoid_encoding_table(trained.num_tokens, width)[0].view(2, 12, width)
    table = position_table(grid, width, trained_grid=trained).view(4, 12, width)
    # Twice as many steps in time: at -1/4, 1/4, 3/4 and 5/4 of the way, held at the ends.
    for step, share in enumerate([0.0, 0.25, 0.75, 1.0]):
        expected = (1 - share) * flat[0] + share * flat[1]
        assert (table[step] - expected).abs().max() < 1e-6
    wide = position_table(TokenGrid(2, 3, 2), width, trained_grid=trained).view(2, 3, 2, width)
    columns = flat.view(2, 3, 4, width)
    for column in range(2):  # half as many columns: midway between each pair
        expected = columns[:, :, 2 * column : 2 * column + 2].mean(dim=2)
        assert (wide[:, :, column] - expected).abs().max() < 1e-6
    assert torch.equal(
        position_table(trained, width, trained_grid=trained), position_table(trained, width)
    )


def test_position_tables_are_neither_parameters_nor_in_checkpoints(
    pair: tuple[VideoMAEForPreTraining, HPM],
) -> None:
    _, ours = pair
    assert not [name for name in ours.state_dict() if "position" in name]
    assert not [name for name, _ in ours.named_parameters() if "position" in name]
    assert set(ours.state_dict()) == {name for name, _ in ours.named_parameters()}


def test_stochastic_depth_rises_linearly() -> None:
    encoder = Encoder(
        GRID,
        ViTSize(tubelet_size=2, patch_size=8, width=8, depth=5, heads=2, drop_path=0.2),
    )
    rates = [block.drop_path.drop_prob for block in encoder.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
