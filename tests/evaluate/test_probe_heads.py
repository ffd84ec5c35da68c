"""Classifiers on features against independent slow forms: plain loops, one layer at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpm_video.evaluate.probe_heads import (
    LEARNING_RATES,
    attentive_scores,
    held_out_videos,
    knn_scores,
    linear_scores,
    normalize,
    num_neighbours,
    train_linear,
)

CLASSES = 4


def _features(count: int, seed: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Clusters around class means, far from 0 and on different scales: (count, 6), (count,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, 6, generator=generator) * spread
    scale = torch.tensor([1.0, 10.0, 0.1, 1.0, 5.0, 0.01])
    return (centres[labels] + noise) * scale + 7 * scale, labels


def test_knn_is_the_plain_loop() -> None:
    (train, labels), (queries, _) = _features(40, 0), _features(9, 1)
    scores = knn_scores(train, labels, queries, num_classes=CLASSES, neighbours=7, temperature=0.07)
    x, y = train.double().numpy(), queries.double().numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, y = (x - mean) / std, (y - mean) / std
    for row, query in enumerate(y):
        cosines = [
            sum(a * b for a, b in zip(query, one, strict=True))
            / (math.sqrt(sum(query**2)) * math.sqrt(sum(one**2)))
            for one in x
        ]
        nearest = sorted(range(len(x)), key=lambda k: -cosines[k])[:7]
        votes = [0.0] * CLASSES
        for k in nearest:
            votes[int(labels[k])] += math.exp(cosines[k] / 0.07)
        expected = [vote / sum(votes) for vote in votes]
        assert scores[row].tolist() == pytest.approx(expected, abs=1e-4)


def test_knn_asks_many_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, labels), (queries, _) = _features(40, 0), _features(9, 1)

    def ask() -> Tensor:
        return knn_scores(
            train, labels, queries, num_classes=CLASSES, neighbours=3, temperature=0.1
        )

    whole = ask()
    monkeypatch.setattr("hpm_video.evaluate.probe_heads._QUERIES_AT_ONCE", 4)
    torch.testing.assert_close(ask(), whole)


def test_few_videos_have_few_neighbours() -> None:
    assert num_neighbours(316, 8, most=20) == 20
    assert num_neighbours(24, 8, most=20) == 3
    assert num_neighbours(5, 8, most=20) == 1
    assert num_neighbours(100, 1, most=20) == 20


def test_a_constant_number_of_a_feature_says_nothing() -> None:
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    one, other = normalize(train, torch.tensor([[2.0, 6.0]]))
    assert one.tolist() == [[-1, 0], [1, 0]] and other.tolist() == [[0, 0]]


def test_all_learning_rates_at_once_are_each_of_them_alone() -> None:
    """Against nn.Linear and torch's SGD at each rate, with the same batches."""
    features, labels = _features(300, 0)  # two batches, of 256 and 44
    (features,) = normalize(features)
    rates, epochs = (0.01, 0.3, 3.0), 5
    weights, biases = train_linear(
        features, labels, num_classes=CLASSES, rates=rates, epochs=epochs, seed=3
    )
    for row, rate in enumerate(rates):
        layer = nn.Linear(6, CLASSES)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
        order = torch.Generator().manual_seed(3)
        for epoch in range(epochs):
            permutation = torch.randperm(300, generator=order)
            for half, batch in enumerate((permutation[:256], permutation[256:])):
                progress = (2 * epoch + half) / (2 * epochs)
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
                optimizer.zero_grad()
                F.cross_entropy(layer(features[batch]), labels[batch]).backward()
                optimizer.step()
        torch.testing.assert_close(weights[row].T, layer.weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(biases[row], layer.bias, rtol=1e-3, atol=1e-4)
    assert (weights[0] - weights[2]).abs().max() > 0.1


def test_a_rate_that_diverges_leaves_the_others_alone() -> None:
    features, labels = _features(40, 0)
    settings = {"num_classes": CLASSES, "epochs": 30}
    alone, _ = train_linear(features, labels, rates=(1e-3,), **settings)
    both, _ = train_linear(features, labels, rates=(1e-3, 1e38), **settings)
    assert not both[1].isfinite().all()
    torch.testing.assert_close(both[:1], alone)


def test_the_judged_videos_choose_nothing() -> None:
    """Any others to judge beside them, and the scores stay the same."""
    (train, labels), (queries, truth) = _features(60, 0, spread=0.4), _features(40, 1, spread=0.4)
    result = linear_scores(train, labels, queries, num_classes=CLASSES, epochs=50)
    assert (result.scores.argmax(dim=1) == truth).float().mean() > 0.9
    assert result.lr in LEARNING_RATES and result.lr_was_chosen
    other = linear_scores(
        train, labels, torch.cat([queries[:5], 100 * queries]), num_classes=CLASSES, epochs=50
    )
    assert other.lr == result.lr
    torch.testing.assert_close(other.scores[:5], result.scores[:5])


def test_the_learning_rate_is_the_best_on_held_out_videos() -> None:
    train, labels = _features(60, 0, spread=1.5)
    result = linear_scores(train, labels, train[:3], num_classes=CLASSES, epochs=10)
    (features,) = normalize(train)
    held_out = held_out_videos(labels)
    found = []
    for rate in LEARNING_RATES:
        weights, biases = train_linear(
            features[~held_out], labels[~held_out], num_classes=CLASSES, rates=(rate,), epochs=10
        )
        logits = features[held_out] @ weights[0] + biases[0]
        right = int((logits.argmax(dim=1) == labels[held_out]).sum())
        found.append((right, -F.cross_entropy(logits, labels[held_out]).item()))
    assert len({right for right, _ in found}) > 1
    assert result.lr == LEARNING_RATES[found.index(max(found))]


def test_every_fifth_video_of_a_class_is_held_out() -> None:
    labels = torch.tensor([0] * 11 + [1] * 3 + [2])
    held_out = held_out_videos(labels)
    assert torch.nonzero(held_out)[:, 0].tolist() == [4, 9, 13]


def test_without_a_video_to_spare_the_rate_is_given() -> None:
    features, labels = _features(4, 0)
    result = linear_scores(features, labels, features, num_classes=CLASSES, epochs=20)
    assert not result.lr_was_chosen
    assert (result.scores.argmax(dim=1) == labels).all()


def _tokens(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten tokens a video, one of which, anywhere, tells the class; their mean nearly does not."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % 2
    tokens = torch.from_numpy(rng.normal(size=(count, 10, 8))).float()
    tokens[..., :2] = 0
    for video, label in enumerate(labels.tolist()):
        tokens[video, rng.integers(10), 0] = 1  # look here:
        tokens[video, tokens[video, :, 0].argmax(), 1] = 6 if label else -6
        others = tokens[video, :, 0] == 0
        tokens[video, others, 1] = torch.from_numpy(rng.normal(size=9)).float() * 6
    return (3 * tokens + 5).half(), labels


def test_attention_finds_the_token_that_tells() -> None:
    (train, labels), (queries, truth) = _tokens(200, 0), _tokens(100, 1)
    scores = attentive_scores(
        train, labels, queries, num_classes=2, heads=2, epochs=40, lr=3e-3,
        device=torch.device("cpu"),
    )  # fmt: skip
    attentive = (scores.argmax(dim=1) == truth).float().mean()
    means = train.float().mean(dim=1), labels, queries.float().mean(dim=1)
    linear = linear_scores(*means, num_classes=2, epochs=100).scores
    assert attentive > 0.9
    assert (linear.argmax(dim=1) == truth).float().mean() < 0.8


def test_the_global_random_state_stays_as_it_was() -> None:
    tokens, labels = _tokens(8, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    scores = [
        attentive_scores(
            tokens, labels, tokens, num_classes=2, heads=1, epochs=1, lr=1e-3,
            device=torch.device("cpu"),
        )
        for _ in range(2)
    ]  # fmt: skip
    linear_scores(tokens.float().mean(dim=1), labels, tokens[:, 0].float(), num_classes=2, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*scores)  # it has a seed of its own
