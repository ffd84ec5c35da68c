"""What a classifier looks at, beside maps made from whole matrices of attention."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict, load_config
from hpm_video.evaluate.pretrained import Pretrained
from hpm_video.evaluate.relevance import Onlooker, Relevance, load_onlooker
from hpm_video.models.build import HPM, Classifier, build
from hpm_video.models.tokens import patchify
from hpm_video.weights.checkpoint import write_checkpoint

TINY = [
    "data.num_frames=4", "data.crop_size=16", "model.size=tiny", "model.width=32", "model.depth=3",
    "model.heads=2", "model.patch_size=4",
]  # fmt: skip
OF_HPM = ["model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1"]
CLASSES = ("up", "down", "left", "right", "still")


def classifier(*settings: str) -> tuple[Classifier, FinetuneConfig]:
    config = load_config(FinetuneConfig, None, [*TINY, "data.manifest=none", *settings])
    torch.manual_seed(0)
    model = build(config, num_classes=len(CLASSES))
    assert isinstance(model, Classifier)
    with torch.no_grad():  # weights at which attention differs from token to token
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    return model.requires_grad_(False).eval(), config


def from_matrices(model: Classifier, clips: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Rollout and relevance (N,) as the papers write them: a product and a sum of N x N matrices,
    of weights that one backward pass through the whole model gives gradients to."""
    model = model.double()
    encoder = model.encoder
    x = encoder.embedded(patchify(clips.double(), model.grid)).requires_grad_()
    found = []
    for block in encoder.blocks:
        h, a = block.norm1(x), block.attn
        q, k, v = (
            part.unflatten(-1, (a.heads, -1)).transpose(1, 2)
            for part in (h @ a.qkv.weight.T).chunk(3, dim=-1)
        )
        q = q + a.q_bias.unflatten(0, (a.heads, -1))[:, None]
        v = v + a.v_bias.unflatten(0, (a.heads, -1))[:, None]
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        weights.retain_grad()
        found.append(weights)
        x = x + a.proj((weights @ v).transpose(1, 2).flatten(2))
        h = block.norm2(x)
        x = x + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(h)))
    model.head(model.norm(x.mean(dim=1)))[0, label].backward()
    eye = torch.eye(model.grid.num_tokens).double()
    rollout, relevance = eye, eye
    for weights in found:
        assert weights.grad is not None
        mean = weights.detach()[0].mean(dim=0)
        rollout = (mean + eye) / (mean + eye).sum(dim=1, keepdim=True) @ rollout
        positive = (weights * weights.grad).detach()[0].clamp(min=0).mean(dim=0)
        relevance = relevance + positive @ relevance
    model.float()
    return rollout.mean(dim=0), (relevance - eye).mean(dim=0)


@pytest.mark.parametrize("label", [None, 3])
def test_maps_are_those_of_whole_matrices(label: int | None) -> None:
    model, _ = classifier()
    clips = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = model(clips)[0].softmax(dim=0)
    usual = [block.attn.attend for block in model.encoder.blocks]
    looks = Onlooker(model, CLASSES, label)(clips)
    expected = int(scores.argmax()) if label is None else label
    assert looks.name == CLASSES[expected]
    assert looks.score == pytest.approx(scores[expected].item(), rel=1e-5)
    rollout, relevance = from_matrices(model, clips, expected)
    torch.testing.assert_close(looks.rollout.double(), rollout, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(looks.relevance.double(), relevance, rtol=1e-4, atol=1e-8)
    assert looks.rollout.sum() == pytest.approx(1, abs=1e-5)
    # Neither map is flat, or the comparison would say little
    assert looks.rollout.std() > 0.02 * looks.rollout.mean()
    assert looks.relevance.std() > 0.1 * looks.relevance.mean() > 0
    assert [block.attn.attend for block in model.encoder.blocks] == usual
    assert all(weight.grad is None for weight in model.parameters())


def test_class_and_clips_are_those_asked_for(tmp_path: Path) -> None:
    """Also of a classifier for longer clips of other tokens: its weights are brought to ours."""
    beside = pretrained()
    for settings in ([], ["data.num_frames=8", "data.crop_size=24"], ["model.patch_size=8"]):
        model, config = classifier(*settings)
        file = saved(model, config, tmp_path / "classifier.pt")
        clips = torch.rand(1, 3, 4, 16, 16)
        found = {name: ask(file, beside, clips, name) for name in (None, "left", "3")}
        assert found["left"].name == "left" and found["3"].name == "right"
        assert found[None].score == max(looks.score for looks in found.values())
        assert found[None].rollout.shape == (beside.grid.num_tokens,)
        assert not torch.equal(found["left"].relevance, found["3"].relevance)
    with pytest.raises(ValueError, match=r"class \(lef\) must be one of the classifier's 5: up, "):
        load_onlooker(file, beside, class_name="lef")
    with pytest.raises(ValueError, match=r"class \(5\) must be one"):
        load_onlooker(file, beside, class_name="5")


def test_a_baseline_is_refused(tmp_path: Path) -> None:
    size = "data.crop_size=32"
    settings = ["data.manifest=none", "data.num_frames=4", size, "model.name=x3d_xs"]
    config = load_config(FinetuneConfig, None, settings)
    file = saved(build(config, num_classes=len(CLASSES)), config, tmp_path / "baseline.pt")
    with pytest.raises(ValueError, match=r"classifier .* must be a VideoMAE model, not x3d_xs"):
        load_onlooker(file, pretrained(size))


def saved(model: torch.nn.Module, config: FinetuneConfig, path: Path) -> Path:
    state = {
        "kind": "finetune", "step": 1, "config": config_to_dict(config),
        "model": model.state_dict(), "num_classes": len(CLASSES), "classes": list(CLASSES),
    }  # fmt: skip
    write_checkpoint(path, state)
    return path


def pretrained(*settings: str) -> Pretrained:
    given = [*TINY, *OF_HPM, "data.manifest=none", *settings]
    config = load_config(PretrainConfig, None, given)
    student = build(config)
    assert isinstance(student, HPM)
    return Pretrained(student, None, config, student.encoder.grid, 0)


def ask(file: Path, beside: Pretrained, clips: Tensor, name: str | None) -> Relevance:
    return load_onlooker(file, beside, class_name=name)(clips)
