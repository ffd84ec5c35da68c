import pytest
import torch
from torch import nn

from hpm_video.models.ema import average_of, follow


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
