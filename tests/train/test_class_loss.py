"""The loss of a classifier, whose classes may be uneven."""

import pytest
import torch

from hpm_video.train.class_loss import balancing_weights, classification_loss


def test_classification_loss_weighs_every_clip_by_its_class() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 3, generator=generator)
    labels, weights = torch.tensor([0, 2, 1, 0, 0, 1]), torch.tensor([0.5, 2.0, 3.0])
    expected = 0.0
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        log_shares = row - row.exp().sum().log()
        smooth = -(0.9 * log_shares[label] + 0.1 * log_shares.mean())
        expected += float(weights[label] * smooth) / 6
    settings = {"label_smoothing": 0.1, "class_weights": weights}
    assert classification_loss(logits, labels, **settings).item() == pytest.approx(expected)
    # As shares of classes the same labels give the same; a mixture has the mixture's weight
    shares = torch.eye(3)[labels]
    assert classification_loss(logits, shares, **settings).item() == pytest.approx(expected)
    mixed = 0.3 * shares + 0.7 * shares.flip(0)
    parts = [
        classification_loss(logits[k : k + 1], mixed[k : k + 1]) * (mixed[k] @ weights)
        for k in range(6)
    ]
    found = classification_loss(logits, mixed, class_weights=weights)
    assert found.item() == pytest.approx(torch.stack(parts).mean().item())
    plain = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(classification_loss(logits, labels, label_smoothing=0.1), plain)


def test_balancing_weights_give_every_class_the_same_say() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balancing_weights(labels, 5)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3, 0])
    assert weights[labels].mean().item() == pytest.approx(1)
    assert balancing_weights(torch.tensor([0, 1, 0, 1]), 2).tolist() == [1, 1]
    assert balancing_weights(torch.zeros(3, dtype=torch.int64), 1).tolist() == [1]
