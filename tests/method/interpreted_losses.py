"""The losses by Triton kernels against slow formulas in float64; see `interpreter`."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.config import LossConfig, MaskingConfig
from hpm_video.method.losses import patch_loss, rank_accuracy, ranking_loss
from hpm_video.method.step import pretrain_step
from hpm_video.method.teacher import Teacher
from hpm_video.models.hpm import HPM
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import ViTSize
from hpm_video.runtime import gpu_kernels

# Below, at, between and above the tiles of 32 rows and 64 columns.
COUNTS = [1, 2, 31, 33, 64, 65]


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with patch.object(gpu_kernels, "runs_triton", lambda device: True):
        yield


def _example(num_tokens: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Predictions, and measured losses: with many ties, of one number only, and without ties."""
    generator = torch.Generator().manual_seed(0)
    predicted = 2 * torch.randn(batch, num_tokens, generator=generator)
    measured = torch.randint(0, 5, (batch, num_tokens), generator=generator) / 4
    measured[1] = 0.5
    measured[2] = torch.rand(num_tokens, generator=generator)
    return predicted, measured


def _slow_ranking_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    harder = (measured[:, :, None] > measured[:, None, :]).double()
    log = F.logsigmoid(predicted[:, :, None] - predicted[:, None, :])
    return (-(log * harder).sum(dim=(1, 2)) / harder.sum(dim=(1, 2)).clamp(min=1)).mean()


@pytest.mark.parametrize(
    ("num_tokens", "spread"), [*((count, 1.0) for count in COUNTS), (130, 1e-3), (130, 30.0)]
)
def test_ranking_loss_and_its_gradient(num_tokens: int, spread: float) -> None:
    predicted, measured = _example(num_tokens)
    predicted = (spread * predicted).requires_grad_()
    loss = ranking_loss(predicted, measured)
    (3 * loss).backward()
    exact = predicted.detach().double().requires_grad_()
    expected = _slow_ranking_loss(exact, measured.double())
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    assert (predicted.grad - exact.grad).abs().max() < 1e-6
    assert num_tokens <= 2 or exact.grad.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictions_of_low_precision(dtype: torch.dtype) -> None:
    predicted, measured = _example(70)
    low = predicted.to(dtype).requires_grad_()
    loss = ranking_loss(low, measured)
    loss.backward()
    exact = low.detach().double().requires_grad_()
    expected = _slow_ranking_loss(exact, measured.double())
    expected.backward()
    assert loss.dtype == torch.float32 and low.grad.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(low.grad.double(), exact.grad, rtol=2**-7, atol=1e-6)


def test_rows_need_not_lie_side_by_side() -> None:
    predicted, measured = _example(40)
    apart = torch.stack([predicted, predicted], dim=-1)[..., 0]
    assert not apart.is_contiguous()
    assert ranking_loss(apart, measured).item() == ranking_loss(predicted, measured).item()


def test_far_predictions_stay_finite_and_numbers_that_are_not_show() -> None:
    predicted = torch.tensor([[-300.0, 300.0]], requires_grad=True)
    loss = ranking_loss(predicted, torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(600)
    assert predicted.grad.tolist() == [[-1.0, 1.0]]
    predicted, measured = _example(70)
    predicted[0, 3] = torch.nan
    assert ranking_loss(predicted, measured).isnan()


def test_where_clipped_it_is_the_loss_without_kernels() -> None:
    predicted, measured = _example(65)
    leaf = (6 * predicted).requires_grad_()
    loss = ranking_loss(leaf, measured, clipped=True)
    loss.backward()
    exact = leaf.detach().double().requires_grad_()
    harder = (measured[:, :, None] > measured[:, None, :]).double()
    log = ((exact[:, :, None] - exact[:, None, :]).sigmoid() + 1e-6).log()
    expected = -((log * harder).sum(dim=(1, 2)) / harder.sum(dim=(1, 2)).clamp(min=1)).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (leaf.grad - exact.grad).abs().max() < 1e-6


@pytest.mark.parametrize("num_tokens", COUNTS[1:])
def test_rank_accuracy_is_that_of_blocks(num_tokens: int) -> None:
    predicted, measured = _example(num_tokens)
    predicted = predicted.round()  # ties count half
    ours = rank_accuracy(predicted, measured)
    with patch.object(gpu_kernels, "runs_triton", lambda device: False):
        assert ours.item() == rank_accuracy(predicted, measured).item()


def _slow_patch_loss(tokens: Tensor, patches: Tensor, index: Tensor, *, normalize: bool) -> Tensor:
    """Token by token, colour by colour, in float64."""
    pixels = patches.double() / (255 if patches.dtype == torch.uint8 else 1)
    clips = []
    for clip, places in enumerate(index):
        targets = pixels[clip, places].unflatten(-1, (-1, 3))
        if normalize:
            mean, deviation = targets.mean(dim=1, keepdim=True), targets.std(dim=1, keepdim=True)
            targets = (targets - mean) / (deviation + 1e-6)
        clips.append((tokens[clip].unflatten(-1, (-1, 3)) - targets).square().mean(dim=(1, 2)))
    return torch.stack(clips)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", [24, 75, 96])
def test_patch_loss_and_its_gradient(
    values: int, dtype: torch.dtype, as_bytes: bool, normalize: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (2, 9, values), generator=generator, dtype=torch.uint8)
    patches = patches if as_bytes else patches / 255
    patches[0, :6] = 0  # of one colour, of which an index holds one at least
    # As `split_mask` gives it: part of every row
    index = torch.rand(2, 9, generator=generator).argsort(dim=1)[:, 4:]
    tokens = torch.randn(2, 5, values, generator=generator).to(dtype).requires_grad_()
    exact = tokens.detach().double().requires_grad_()
    weights = torch.rand(2, 5, generator=generator)
    losses = patch_loss(tokens, patches, index, normalize=normalize)
    expected = _slow_patch_loss(exact, patches, index, normalize=normalize)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), expected, rtol=2e-6)
    for weigh in (lambda values: (values * weights).sum(), lambda values: values.mean()):
        ours, true = (
            torch.autograd.grad(weigh(made), of, retain_graph=True)[0]
            for made, of in ((losses, tokens), (expected, exact))
        )
        assert ours.dtype == dtype
        tolerance = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-7}[dtype]
        assert torch.allclose(ours.double(), true, rtol=tolerance, atol=2e-7)


def _gradients(precision: str, prediction: str, *, by_kernels: bool) -> dict[str, Tensor]:
    """Loss, and gradients by name, of a step of a tiny model on bytes."""
    grid = TokenGrid(2, 3, 4)
    torch.manual_seed(0)
    size = ViTSize(tubelet_size=2, patch_size=4, width=24, depth=2, heads=2)
    student = HPM(
        grid,
        size,
        decoder_width=12,
        decoder_heads=2,
        decoder_depth=2,
        predictor_input=None if prediction == "none" else "encoded",
    )
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    frames = torch.randint(0, 256, (3, 4, 12, 16, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    with (
        patch.object(gpu_kernels, "runs_triton", lambda device: by_kernels),
        patch.object(gpu_kernels, "is_eager_gpu", lambda device: by_kernels),
    ):
        step = pretrain_step(
            student,
            None if prediction == "none" else Teacher(student),
            frames,
            grid=grid,
            masking=MaskingConfig(mask_ratio=0.6, tube_length=1),
            loss=LossConfig(prediction=prediction),
            predictor_input="encoded",
            hard_ratio=0.0,  # so that rounding moves no mask
            token_ratio=0.5,
            generator=torch.Generator().manual_seed(0),
            precision=precision,
        )
        step.loss.backward()
    named = {name: each.grad for name, each in student.named_parameters()}
    return {"loss": step.loss.detach(), **named}


@pytest.mark.parametrize("prediction", ["ranking", "none"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_a_step_by_kernels_is_that_without(
    precision: str, tolerance: float, prediction: str
) -> None:
    """Loss and gradients; relative to float32's, in L2 norms. bfloat16 is as far from float32
    without kernels."""
    ours = _gradients(precision, prediction, by_kernels=True)
    exact = _gradients("float32", prediction, by_kernels=False)
    apart, size = (
        torch.cat([value(name).flatten() for name in exact]).norm()
        for value in (lambda name: ours[name] - exact[name], lambda name: exact[name])
    )
    assert apart < tolerance * size
    assert abs(ours["loss"] - exact["loss"]) < tolerance * exact["loss"]
