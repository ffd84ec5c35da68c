import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.method import ranking_kernel
from hpm_video.method.losses import (
    OBJECTIVES,
    absolute_loss,
    patch_loss,
    rank_accuracy,
    ranking_loss,
    reconstruction_loss,
)
from hpm_video.models.tokens import gather_tokens, normalize_targets

# Token counts below, at, between and above the chunks that comparisons are made in.
COUNTS = [1, 2, 7, 63, 64, 65, 130]


def _example(num_tokens: int, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions, and measured losses with many ties."""
    generator = torch.Generator().manual_seed(seed)
    predicted = 2 * torch.randn(batch, num_tokens, generator=generator)
    measured = torch.randint(0, 5, (batch, num_tokens), generator=generator) / 4
    return predicted, measured


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def _slow_ranking_loss(predicted: Tensor, measured: Tensor) -> float:
    """The definition, pair by pair."""
    of_clips = []
    for p, loss in zip(predicted.double().tolist(), measured.double().tolist(), strict=True):
        total, pairs = 0.0, 0
        for i in range(len(p)):
            for j in range(len(p)):
                if loss[i] > loss[j]:
                    total -= _log_sigmoid(p[i] - p[j])
                    pairs += 1
        of_clips.append(total / pairs if pairs else 0.0)
    return sum(of_clips) / len(of_clips)


def _slow_clipped_loss(predicted: Tensor, measured: Tensor) -> tuple[float, Tensor]:
    """-log(sigmoid + 1e-6) pair by pair, and its gradient, which is gone where it is clipped."""
    gradient = torch.zeros_like(predicted, dtype=torch.float64)
    of_clips = []
    for clip, (p, loss) in enumerate(zip(predicted.tolist(), measured.tolist(), strict=True)):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(p)) if loss[i] > loss[j]]
        total = 0.0
        for i, j in pairs:
            right = math.exp(_log_sigmoid(p[i] - p[j]))
            total -= math.log(right + 1e-6)
            slope = right * (1 - right) / (right + 1e-6) / len(pairs) / len(predicted)
            gradient[clip, i] -= slope
            gradient[clip, j] += slope
        of_clips.append(total / len(pairs) if pairs else 0.0)
    return sum(of_clips) / len(of_clips), gradient


def _naive_ranking_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """The definition for autograd: everything M x M at once."""
    harder = (measured[:, :, None] > measured[:, None, :]).to(predicted.dtype)
    log = F.logsigmoid(predicted[:, :, None] - predicted[:, None, :])
    return (-(log * harder).sum(dim=(1, 2)) / harder.sum(dim=(1, 2)).clamp(min=1)).mean()


@pytest.mark.parametrize("num_tokens", COUNTS)
def test_ranking_loss_is_the_mean_over_ordered_pairs(num_tokens: int) -> None:
    predicted, measured = _example(num_tokens)
    expected = _slow_ranking_loss(predicted, measured)
    assert ranking_loss(predicted, measured).item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("num_tokens", COUNTS)
def test_ranking_gradient_is_that_of_the_definition(num_tokens: int) -> None:
    predicted, measured = _example(num_tokens)
    predicted.requires_grad_()
    (3 * ranking_loss(predicted, measured)).backward()  # the factor tests the chain rule
    assert predicted.grad is not None
    exact = predicted.detach().double().requires_grad_()
    (3 * _naive_ranking_loss(exact, measured.double())).backward()
    assert exact.grad is not None
    assert (predicted.grad - exact.grad).abs().max() < 1e-6
    if num_tokens > 2:
        assert exact.grad.abs().max() > 1e-4


def _with_gradient(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[Tensor, Tensor]:
    leaf = leaf.requires_grad_()
    value = loss(leaf).mean()
    return value.detach().double().cpu(), torch.autograd.grad(value, leaf)[0].double().cpu()


@pytest.mark.gpu
def test_losses_on_a_gpu_are_those_of_the_definition(gpu: torch.device) -> None:
    """In float64 on the CPU; sizes are no multiples of what a kernel works on at a time."""
    predicted, measured = _example(130)
    tokens, patches = torch.randn(3, 41, 96), torch.rand(3, 57, 96)
    index = torch.stack([torch.randperm(57)[:41].sort().values for _ in range(3)])
    targets = normalize_targets(gather_tokens(patches, index)).double()
    on_gpu = partial(patch_loss, patches=patches.to(gpu), index=index.to(gpu), normalize=True)
    for found, exact in (
        (
            _with_gradient(partial(ranking_loss, measured=measured.to(gpu)), predicted.to(gpu)),
            _with_gradient(
                partial(_naive_ranking_loss, measured=measured.double()), predicted.double()
            ),
        ),
        (
            _with_gradient(on_gpu, tokens.to(gpu)),
            _with_gradient(lambda leaf: (leaf - targets).square().mean(dim=-1), tokens.double()),
        ),
    ):
        torch.testing.assert_close(found[0], exact[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(found[1], exact[1], rtol=1e-4, atol=1e-7)


def test_ranking_counts_ties_in_neither_direction() -> None:
    predicted = torch.tensor([[3.0, -1.0, 0.5]], requires_grad=True)
    loss = ranking_loss(predicted, torch.tensor([[0.7, 0.7, 0.7]]))
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad is not None
    assert not predicted.grad.any()
    # Two tokens tie: only the pairs with the third one count.
    loss = ranking_loss(predicted, torch.tensor([[0.7, 0.7, 0.1]]))
    expected = -(_log_sigmoid(2.5) + _log_sigmoid(-1.5)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_ranking_stays_finite_for_far_predictions() -> None:
    predicted = torch.tensor([[-300.0, 300.0]], requires_grad=True)
    loss = ranking_loss(predicted, torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(600)
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("num_tokens", COUNTS)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 10.0])
def test_clipped_ranking_loss_and_its_gradient(num_tokens: int, spread: float) -> None:
    predicted, measured = _example(num_tokens)
    predicted = (spread * predicted).requires_grad_()
    expected, gradient = _slow_clipped_loss(predicted.detach(), measured)
    loss = ranking_loss(predicted, measured, clipped=True)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert predicted.grad is not None
    assert (predicted.grad - 3 * gradient).abs().max() < 1e-6


def test_clipped_ranking_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, measured = _example(150, batch=5)
    found = []
    for block in (2**22, 3 * 64 * 150, 1):
        monkeypatch.setattr(ranking_kernel, "_BLOCK", block)
        leaf = (4 * predicted).requires_grad_()
        loss = ranking_loss(leaf, measured, clipped=True)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_a_clipped_pair_costs_13_8_at_most_and_then_has_no_gradient() -> None:
    predicted = torch.tensor([[-15.0, 15.0], [-300.0, 300.0]], requires_grad=True)
    loss = ranking_loss(predicted, torch.tensor([[1.0, 0.0]]).expand(2, 2), clipped=True)
    loss.backward()
    assert loss.item() == pytest.approx(13.8155, abs=1e-4)
    assert predicted.grad is not None
    assert predicted.grad.abs().max() < 1e-6


def test_ranking_minimum_is_the_right_order() -> None:
    measured = torch.tensor([[0.1, 0.4, 0.2, 0.9]])
    right = ranking_loss(5 * measured, measured)
    assert right < ranking_loss(torch.zeros(1, 4), measured) < ranking_loss(-5 * measured, measured)
    assert ranking_loss(torch.zeros(1, 4), measured).item() == pytest.approx(math.log(2))


def test_measured_losses_get_no_gradient() -> None:
    predicted = torch.randn(2, 5, requires_grad=True)
    measured = torch.rand(2, 5, requires_grad=True)
    (ranking_loss(predicted, measured) + absolute_loss(predicted, measured)).backward()
    assert measured.grad is None
    assert predicted.grad is not None


def _slow_absolute_loss(predicted: Tensor, measured: Tensor, *, unbiased: bool) -> float:
    squares = []
    for p, loss in zip(predicted.double().tolist(), measured.double().tolist(), strict=True):
        mean = sum(loss) / len(loss)
        variance = sum((x - mean) ** 2 for x in loss) / max(1, len(loss) - unbiased)
        targets = [(x - mean) / math.sqrt(variance + 1e-6) for x in loss]
        squares += [(a - b) ** 2 for a, b in zip(p, targets, strict=True)]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("objective", ["absolute", "absolute_biased"])
@pytest.mark.parametrize("num_tokens", COUNTS)
def test_absolute_loss_compares_with_losses_standardised_per_clip(
    num_tokens: int, objective: str
) -> None:
    predicted, measured = _example(num_tokens)
    measured *= torch.tensor([[1.0], [100.0], [0.01]])
    expected = _slow_absolute_loss(predicted, measured, unbiased=objective == "absolute")
    loss = OBJECTIVES[objective](predicted, measured)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_tokens", COUNTS[1:])
def test_rank_accuracy_is_the_share_of_pairs_in_the_right_order(num_tokens: int) -> None:
    predicted, measured = _example(num_tokens)
    right = pairs = 0
    for p, loss in zip(predicted.tolist(), measured.tolist(), strict=True):
        for i in range(num_tokens):
            for j in range(num_tokens):
                if loss[i] > loss[j]:
                    pairs += 1
                    right += p[i] > p[j]
    assert rank_accuracy(predicted, measured).item() == pytest.approx(right / pairs)
    assert rank_accuracy(measured, measured).item() == 1
    assert rank_accuracy(-measured, measured).item() == 0
    assert rank_accuracy(torch.zeros_like(measured), measured).item() == 0.5
    assert rank_accuracy(measured, torch.zeros_like(measured)).isnan()  # nothing to order


def test_rank_accuracy_counts_a_tied_prediction_half() -> None:
    measured = torch.tensor([[3.0, 2.0, 1.0, 1.0]])  # five pairs, the last two tokens are none
    for predicted, right in [
        ([9.0, 9.0, 4.0, 5.0], 4.5),
        ([4.0, 9.0, 4.0, 4.0], 3.0),
        ([0.0, 0.0, 0.0, 7.0], 1.5),
    ]:
        accuracy = rank_accuracy(torch.tensor([predicted]), measured)
        assert accuracy.item() == pytest.approx(right / 5), predicted
        low = rank_accuracy(torch.tensor([predicted]).bfloat16(), measured)
        assert low.item() == accuracy.item()
    # Differences that vanish in float32 arithmetic are no ties.
    near = torch.tensor([[1e-30, 0.0]])
    assert rank_accuracy(near, near).item() == 1
    assert rank_accuracy(near, -near).item() == 0


def test_reconstruction_loss_is_the_mean_square_of_each_token() -> None:
    one, other = torch.rand(2, 3, 24), torch.rand(2, 3, 24)
    losses = reconstruction_loss(one, other)
    assert losses.shape == (2, 3)
    for row in range(2):
        for token in range(3):
            pairs = zip(one[row, token].tolist(), other[row, token].tolist(), strict=True)
            expected = sum((a - b) ** 2 for a, b in pairs) / 24
            assert losses[row, token].item() == pytest.approx(expected, rel=1e-5)


def test_all_losses_are_float32_from_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 70, generator=generator).bfloat16()
    measured = torch.rand(2, 70, generator=generator)  # bfloat16 would make ties of these
    pixels, targets = torch.rand(2, 70, 24).bfloat16(), torch.rand(2, 70, 24)
    with torch.autocast("cpu", torch.bfloat16):
        results = [
            (ranking_loss(predicted, measured), ranking_loss(predicted.float(), measured)),
            (absolute_loss(predicted, measured), absolute_loss(predicted.float(), measured)),
            (reconstruction_loss(pixels, targets), reconstruction_loss(pixels.float(), targets)),
        ]
    expected = _slow_ranking_loss(predicted, measured)
    assert results[0][0].item() == pytest.approx(expected, rel=1e-6)
    for low, full in results:
        assert low.dtype == torch.float32
        assert torch.equal(low, full)


@pytest.mark.parametrize("spread", [1e-4, 1.0, 30.0])
def test_ranking_does_not_depend_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch, spread: float
) -> None:
    """Without ties and with many, from predictions that hardly differ to saturated ones."""
    predicted, tied = _example(200, batch=5)
    distinct = torch.rand(5, 200, generator=torch.Generator().manual_seed(1))
    measured = torch.cat([tied, distinct])
    # Blocks of all clips at once, of three clips, of one.
    for block in (2**22, 3 * 64 * 200, 1):
        monkeypatch.setattr(ranking_kernel, "_BLOCK", block)
        fast = (spread * torch.cat([predicted, predicted])).requires_grad_()
        loss = ranking_loss(fast, measured)
        loss.backward()
        exact = fast.detach().double().requires_grad_()
        expected = _naive_ranking_loss(exact, measured.double())
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert fast.grad is not None
        assert exact.grad is not None
        assert (fast.grad - exact.grad).abs().max() < 1e-6 * exact.grad.abs().max()


def test_a_loss_that_is_not_finite_shows() -> None:
    predicted, measured = _example(70)
    predicted[1, 3] = torch.nan
    assert ranking_loss(predicted, measured).isnan()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patch_loss_is_the_loss_of_targets_made_at_once(
    dtype: torch.dtype, normalize: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(3, 200, 24, generator=generator)
    # More tokens than are looked at together, and no multiple of it
    index = torch.rand(3, 200, generator=generator).argsort(dim=1)[:, :150].sort(dim=1).values
    ours = torch.randn(3, 150, 24, generator=generator).to(dtype).requires_grad_()
    weights = torch.rand(3, 150, generator=generator)  # so that each token has its own gradient
    losses = patch_loss(ours, patches, index, normalize=normalize)
    (losses * weights).sum().backward()
    plain = ours.detach().clone().requires_grad_()
    targets = gather_tokens(patches, index)
    expected = reconstruction_loss(plain, normalize_targets(targets) if normalize else targets)
    (expected * weights).sum().backward()
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, expected, rtol=1e-6)
    assert ours.grad is not None and plain.grad is not None and ours.grad.dtype == dtype
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-6 if dtype == torch.float32 else 2**-7)
