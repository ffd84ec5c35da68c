import pytest
import torch
from torch import nn

from hpm_video.models.ema import _lerp_unless, average_of, follow, move_average


def _model(value: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
        model[1].running_mean.fill_(10 * value)
        model[1].num_batches_tracked.fill_(int(value))
    return model


@pytest.mark.parametrize("skip", [None, 0.0, 1.0])
def test_an_average_follows_unless_the_step_is_skipped(skip: float | None) -> None:
    model, target = _model(1.0).train(), _model(5.0)
    average = average_of(model)
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in model.parameters()) and model.training
    follow(average, target, 0.75, skip=None if skip is None else torch.tensor(skip))
    expected = 1.0 if skip else 0.75 * 1 + 0.25 * 5
    for parameter in average.parameters():
        assert torch.equal(parameter, torch.full_like(parameter, expected))
    norm = average[1]
    assert norm.running_mean.tolist() == [10.0 if skip else 50.0] * 3, "buffers are taken over"
    assert norm.num_batches_tracked.item() == (1 if skip else 5)
    assert norm.num_batches_tracked.dtype == torch.int64
    assert all((parameter == 1).all() for parameter in model.parameters())


def _pair(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    average, value = torch.randn(2, size, generator=generator)
    average[0] = -0.0
    return average, value


@pytest.mark.parametrize("momentum", [0.25, 0.5, 0.75, 0.9996])
def test_an_average_is_the_interpolation_to_the_bit(momentum: float) -> None:
    pairs = [_pair(size) for size in (1, 33, 1000)]
    expected = [torch.lerp(average, value, torch.tensor(1 - momentum)) for average, value in pairs]
    for skip in (None, torch.tensor(0.0)):
        moved = [(average.clone(), value) for average, value in pairs]
        move_average(moved, momentum, skip=skip)
        for (average, _), right in zip(moved, expected, strict=True):
            assert torch.equal(average.view(torch.int32), right.view(torch.int32))


@pytest.mark.parametrize("momentum", [0.25, 0.5, 0.75, 0.9996])
def test_the_kernel_for_gpus_computes_the_same(momentum: float) -> None:
    averages, values = map(list, zip(*[_pair(size) for size in (1, 33, 1000)], strict=True))
    moved = [average.clone() for average in averages]
    _lerp_unless(torch.tensor(0.0), moved, values, 1 - momentum)
    for before, after, value in zip(averages, moved, values, strict=True):
        right = torch.lerp(before.double(), value.double(), 1 - momentum)
        torch.testing.assert_close(after.double(), right, rtol=0, atol=1e-6)


def test_the_kernel_for_gpus_leaves_every_bit_of_a_skipped_step() -> None:
    average, value = _pair(33)
    value[1], value[2] = torch.nan, torch.inf
    before = average.clone()
    _lerp_unless(torch.tensor(1.0), [average], [value], 0.25)
    assert torch.equal(average.view(torch.int32), before.view(torch.int32))
