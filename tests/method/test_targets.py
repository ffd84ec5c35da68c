"""Targets of features: their loss against a slow loop, and who gives them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpm_video.config import LossConfig, MaskingConfig, ModelConfig, PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.method.losses import feature_loss
from hpm_video.method.step import PretrainStep, pretrain_step
from hpm_video.method.targets import target_features, token_losses
from hpm_video.method.teacher import Teacher, teacher_of, update_teacher
from hpm_video.models.build import build, build_model
from hpm_video.models.hpm import HPM
from hpm_video.models.tokens import TokenGrid, patchify

GRID = TokenGrid(2, 4, 4)
MODEL = ModelConfig(
    width=32, depth=3, heads=2, patch_size=8, decoder_width=32, decoder_heads=2, decoder_depth=1
)


def _clips(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 3, 4, 32, 32), dtype=torch.uint8, generator=generator)


def _student(width: int, *, seed: int = 0, predictor_input: Any = "encoded") -> HPM:
    torch.manual_seed(seed)
    model = replace(MODEL, predictor_input=predictor_input)
    return build_model(model, GRID, predict_loss=True, outputs=width)


def _step(student: HPM, teacher: Teacher | None, loss: LossConfig, **settings: Any) -> PretrainStep:
    given: dict[str, Any] = {
        "grid": GRID,
        "masking": MaskingConfig(mask_ratio=0.75),
        "loss": loss,
        "predictor_input": "encoded",
        "hard_ratio": 0.5,
        "token_ratio": 0.5,
        "view": "spread",
        "generator": torch.Generator().manual_seed(3),
    }
    return pretrain_step(student, teacher, _clips(), **given | settings)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_loss_of_features_is_that_of_a_slow_loop(num_layers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        torch.randn(2, 5, 8 * num_layers, generator=generator).double() for _ in range(2)
    )
    found = feature_loss(ours, theirs, num_layers=num_layers)
    assert found.dtype == torch.float32
    for clip in range(2):
        for token in range(5):
            distances = []
            for first in range(0, 8 * num_layers, 8):
                a, b = (x[clip, token, first : first + 8] for x in (ours, theirs))
                a, b = a / a.square().sum().sqrt(), b / b.square().sum().sqrt()
                distances.append(((a - b) ** 2).sum().item())
            expected = sum(distances) / num_layers
            assert found[clip, token].item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_features_is_of_float32_whatever_the_precision() -> None:
    ours, theirs = torch.randn(2, 1, 4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = feature_loss(ours.bfloat16(), theirs, num_layers=1)
    assert low.dtype == torch.float32
    exact = feature_loss(ours.bfloat16().float(), theirs, num_layers=1)
    assert torch.equal(low, exact)


@pytest.mark.parametrize("predictor_input", ["encoded", "pixels", "both"])
def test_what_is_ranked_is_the_distance_to_the_averaged_encoder(predictor_input: Any) -> None:
    loss = LossConfig(target="ema", target_layers=[0, -1])
    student = _student(64, predictor_input=predictor_input)
    other = _student(64, seed=1, predictor_input=predictor_input)
    teacher = Teacher(other, encodes=True)
    step = _step(student, teacher, loss, predictor_input=predictor_input)
    patches = patchify(_clips(), GRID)
    with torch.no_grad():
        last = other.encoder(patches)
        other.encoder.blocks = other.encoder.blocks[:1]
        features = torch.cat([other.encoder(patches), last], dim=-1)
        output = student(patches, step.mask)
    targets = features.gather(1, step.masked[..., None].expand(-1, -1, 64))
    expected = feature_loss(output.reconstruction, targets, num_layers=2)
    assert (step.token_losses - expected).abs().max() < 1e-5
    assert step.losses["reconstruction_loss"].item() == pytest.approx(expected.mean().item())
    ranked = torch.zeros(3, GRID.num_tokens).scatter(1, step.masked, step.token_losses)
    assert torch.equal(step.ranked_losses, ranked.gather(1, step.ranked))


def test_only_the_student_gets_a_gradient() -> None:
    student, teacher = _student(32), Teacher(_student(32, seed=1), encodes=True)
    _step(student, teacher, LossConfig(target="ema")).loss.backward()
    assert all(weight.grad is not None for weight in student.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


def _calls(module: nn.Module) -> list[int]:
    """Numbers of tokens that a module is asked about, as it is called."""
    counts: list[int] = []
    module.register_forward_hook(lambda part, given, result: counts.append(given[0].shape[1]))
    return counts


def test_an_encoder_that_sees_the_whole_clip_is_run_once_for_scores_and_target() -> None:
    student, teacher = _student(32), Teacher(_student(32, seed=1), encodes=True)
    assert teacher.encoder is not None
    for layers in ([-1], [0]):
        loss = LossConfig(target="ema", target_layers=layers)
        counts = _calls(teacher.encoder.blocks[0])
        shared = _step(student, teacher, loss, token_ratio=1.0)
        assert counts == [GRID.num_tokens]
        counts.clear()
        _step(student, teacher, loss, token_ratio=0.5)
        assert counts == [GRID.num_tokens, GRID.num_tokens // 2]
        alone = teacher(patchify(_clips(), GRID), torch.arange(32).expand(3, -1))
        assert shared.scores is not None and torch.equal(shared.scores, alone)


def test_the_average_exists_and_moves_where_nothing_is_mined() -> None:
    settings = ["loss.target=ema", "masking.hard_ratio_end=0", "loss.prediction=none"]
    sizes = [f"model.{k}={v}" for k, v in (("width", 32), ("depth", 2), ("heads", 2))]
    sizes += ["model.patch_size=8", "data.crop_size=32", "data.num_frames=4"]
    config = load_config(PretrainConfig, None, [*settings, *sizes])
    student = build(config)
    teacher = teacher_of(student, config)
    assert teacher is not None and not teacher.predicts
    assert {name.split(".")[0] for name in teacher.state_dict()} == {"encoder"}
    before = teacher.encoder.embed.bias.clone()  # type: ignore[union-attr]
    with torch.no_grad():
        student.encoder.embed.bias += 1
    update_teacher(teacher, student, 0.75)
    after = teacher.encoder.embed.bias  # type: ignore[union-attr]
    assert torch.allclose(after, before + 0.25)


def test_a_frozen_model_is_asked_once_with_the_clips_themselves() -> None:
    asked: list[Tensor] = []

    def frozen(clips: Tensor) -> Tensor:
        asked.append(clips)
        generator = torch.Generator().manual_seed(5)
        return torch.randn(len(clips), GRID.num_tokens, 24, generator=generator)

    loss = LossConfig(target="frozen", target_model="x")
    student = _student(24)
    step = _step(student, Teacher(student), loss, frozen=frozen)
    assert len(asked) == 1 and torch.equal(asked[0], _clips())
    patches = patchify(_clips(), GRID)
    features = target_features(loss, _clips(), patches, teacher=None, frozen=frozen)
    output = student(patches, step.mask)
    expected = token_losses(loss, output, patches, features)
    assert torch.allclose(step.token_losses, expected, atol=1e-6)


def test_pixels_have_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> Tensor:
        raise AssertionError("pixels were compared")

    monkeypatch.setattr("hpm_video.method.targets.patch_loss", refuse)
    student = _student(32)
    _step(student, Teacher(student, encodes=True), LossConfig(target="ema"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["loss.target=frozen"], "loss.target_model (null) must name"),
        (["loss.target_model=x"], "loss.target_model (x) must be left out while loss.target is p"),
        (["loss.target=ema", "loss.target_weights=x"], "loss.target_weights (x) must be left out"),
        (["loss.target=ema", "loss.target_layers=[]"], "loss.target_layers ([]) must name 1 to"),
        (["loss.target=ema", "loss.target_layers=[1,1]"], "each once"),
        (["loss.target_layers=[3]"], "must be left out while loss.target is pixels"),
        (["loss.target=ema", "loss.target_layers=[12]"], "blocks from 0 to 11"),
        (["loss.target=ema", "loss.target_layers=[11,-1]"], "each once"),
        (["loss.target=frozen", "loss.target_model=x"], "loss.target_width (null) must be set"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ValueError) as caught, torch.device("meta"):
        build(load_config(PretrainConfig, None, settings))
    assert words in str(caught.value) and "\n" not in str(caught.value)
