"""First weights against VideoMAE's rule, layer by layer, written here anew."""

import math
import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hpm_video.config import ClassifierConfig, ModelConfig
from hpm_video.config.values import FirstWeights, PredictorInput
from hpm_video.models.build import build_classifier, build_model
from hpm_video.models.tokens import TokenGrid


class Rule(NamedTuple):
    """What numbers are drawn from. spread: standard error of the deviation of n of them, over that
    deviation, times the root of n. most: the largest possible one."""

    deviation: float
    spread: float
    most: float


# Of four standard errors of a deviation; it follows from the kurtosis k as sqrt((k - 1) / 4)
NORMAL, UNIFORM = math.sqrt(2 / 4), math.sqrt(0.8 / 4)


def _uniform(most: float) -> Rule:
    return Rule(most / math.sqrt(3), UNIFORM, most)


def _normal(deviation: float) -> Rule:
    return Rule(deviation, NORMAL, math.inf)


def _xavier(weight: Tensor) -> Rule:
    return _uniform(math.sqrt(6 / sum(weight.shape)))


def _cut_at_one_deviation(deviation: float) -> Rule:
    """By numbers in place of formulas; a normal density between its deviations."""
    x = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    density = (-x.square() / 2).exp()
    variance, fourth = ((x**n * density).sum() / density.sum() for n in (2, 4))
    spread = math.sqrt((fourth / variance**2 - 1) / 4)
    return Rule(deviation * math.sqrt(variance), spread, deviation)


def _check(name: str, values: Tensor, rule: Rule) -> None:
    apart = abs(values.std().item() / rule.deviation - 1)
    count = values.numel()
    assert apart < (0.01 if count > 40_000 else 4 * rule.spread / math.sqrt(count)), name
    assert abs(values.mean()) < 4 * rule.deviation / math.sqrt(count), name
    assert values.abs().max() <= rule.most * (1 + 1e-6), name


def _check_plain(name: str, values: Tensor) -> None:
    """Norms begin with ones and zeros, other biases with zeros."""
    assert values.eq(float("norm" in name and name.endswith("weight"))).all(), name


def _tiny(**settings: object) -> dict[str, object]:
    return {"size": "tiny", "depth": 2, **settings}


@pytest.mark.parametrize("predictor_input", ["encoded", "pixels"])
def test_those_of_pre_training(predictor_input: PredictorInput) -> None:
    torch.manual_seed(0)
    settings = _tiny(predictor_input=predictor_input, decoder_depth=1, first_weights="videomae")
    model = build_model(ModelConfig(**settings), TokenGrid(8, 4, 4), predict_loss=True)
    pixels = 2 * 16 * 16 * 3
    of_pytorch = {
        r"(predictor\.)?encoder\.embed\.(weight|bias)": pixels,
        r"decoder_input\.project\.weight": 192,
    }
    for name, values in model.named_parameters():
        inputs = [fan_in for names, fan_in in of_pytorch.items() if re.fullmatch(names, name)]
        if inputs:
            _check(name, values, _uniform(1 / math.sqrt(inputs[0])))
        elif name == "decoder_input.mask_token":
            _check(name, values, _cut_at_one_deviation(0.02))
            assert _cut_at_one_deviation(0.02).deviation == pytest.approx(0.0108, abs=5e-5)
        elif name == "predictor.head.weight":
            # The mean of as many outputs as a token has pixel values
            of_one = _xavier(values.new_empty(pixels, 96)).deviation
            _check(name, values, _normal(of_one / math.sqrt(pixels)))
        elif values.ndim == 2:
            _check(name, values, _xavier(values))
        else:
            _check_plain(name, values)


@pytest.mark.parametrize("rule", ["xavier", "former"])
def test_those_that_published_recipes_do_not_take(rule: FirstWeights) -> None:
    torch.manual_seed(0)
    config = ModelConfig(**_tiny(first_weights=rule, decoder_depth=1))
    model = build_model(config, TokenGrid(8, 4, 4), predict_loss=True)
    for name, values in model.named_parameters():
        if name == "decoder_input.mask_token":
            assert values.abs().max() > 0.03  # of deviation .02, and not cut there
        elif name == "predictor.head.weight" and rule == "xavier":
            assert values.std() < 0.01
        elif values.ndim == 2:
            _check(name, values, _xavier(values))
        else:
            _check_plain(name, values)


def test_those_of_a_classifier_from_scratch() -> None:
    torch.manual_seed(0)
    model = build_classifier(
        ClassifierConfig(**_tiny()), num_frames=16, crop_size=64, num_classes=100
    )
    for name, values in model.named_parameters():
        if name.startswith("encoder.embed."):
            _check(name, values, _uniform(1 / math.sqrt(2 * 16 * 16 * 3)))
        elif values.ndim == 2:
            _check(name, values, _normal(0.02 * (0.001 if name == "head.weight" else 1)))
        else:
            _check_plain(name, values)
