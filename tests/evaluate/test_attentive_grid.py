"""The published frozen evaluation against a slow form of it: loops over videos, heads and tokens in
float64, and every point of the grid alone."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.config import GridConfig
from hpm_video.evaluate.attentive_grid import (
    AttentiveBlocks,
    GridPoint,
    GridResult,
    Views,
    _Learner,
    grid_scores,
    heads_for,
)
from hpm_video.evaluate.probe_heads import held_out_videos

WIDTH, HEADS, CLASSES, TOKENS = 16, 4, 3, 5
CPU = torch.device("cpu")
SETTINGS = GridConfig(lrs=[1e-3, 1e-2], weight_decays=[0.01, 0.5], epochs=3, batch_size=8, heads=4)


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(), ((x - x.mean()) ** 2).mean()
    return (x - mean) / math.sqrt(variance + 1e-5) * weight + bias


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])


def _attend(queries: list[np.ndarray], keys: list[np.ndarray], values: list[np.ndarray]) -> Any:
    """Of each query, head after head, the mean of values by softmax of scaled products."""
    size, found = WIDTH // HEADS, []
    for query in queries:
        parts = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            products = [float(query[part] @ key[part]) / math.sqrt(size) for key in keys]
            weights = np.exp(np.array(products) - max(products))
            weights /= weights.sum()
            parts.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
        found.append(np.concatenate(parts))
    return found


def _slow(model: AttentiveBlocks, tokens: np.ndarray) -> np.ndarray:
    """Logits of one video, of tokens (M, D)."""
    w = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    x = list(tokens.astype(np.float64))
    for block in range(len(model.blocks)):
        p = f"blocks.{block}."
        normed = [_norm(t, w[f"{p}norm1.weight"], w[f"{p}norm1.bias"]) for t in x]
        qkv = [w[f"{p}attn.qkv.weight"] @ t + w[f"{p}attn.qkv.bias"] for t in normed]
        attended = _attend(*([t[i * WIDTH : (i + 1) * WIDTH] for t in qkv] for i in range(3)))
        for place, value in enumerate(attended):
            x[place] = x[place] + w[f"{p}attn.proj.weight"] @ value + w[f"{p}attn.proj.bias"]
            inner = _norm(x[place], w[f"{p}norm2.weight"], w[f"{p}norm2.bias"])
            inner = _gelu(w[f"{p}mlp.fc1.weight"] @ inner + w[f"{p}mlp.fc1.bias"])
            x[place] = x[place] + w[f"{p}mlp.fc2.weight"] @ inner + w[f"{p}mlp.fc2.bias"]
    query = w["pool.query"][0, 0]
    normed = [_norm(t, w["pool.norm1.weight"], w["pool.norm1.bias"]) for t in x]
    kv = [w["pool.kv.weight"] @ t + w["pool.kv.bias"] for t in normed]
    asked = [w["pool.q.weight"] @ query + w["pool.q.bias"]]
    (attended,) = _attend(asked, [t[:WIDTH] for t in kv], [t[WIDTH:] for t in kv])
    pooled = query + attended
    inner = _norm(pooled, w["pool.norm2.weight"], w["pool.norm2.bias"])
    inner = _gelu(w["pool.fc1.weight"] @ inner + w["pool.fc1.bias"])
    pooled = pooled + w["pool.fc2.weight"] @ inner + w["pool.fc2.bias"]
    logits: np.ndarray = w["head.weight"] @ pooled + w["head.bias"]
    return logits


@pytest.mark.parametrize("blocks", [4, 1])
def test_it_is_the_slow_form_of_the_published_probe(blocks: int) -> None:
    torch.manual_seed(0)
    model = AttentiveBlocks(WIDTH, heads=HEADS, blocks=blocks, num_classes=CLASSES)
    assert len(model.blocks) == blocks - 1
    for weight in model.parameters():  # norms and biases begin at 1 and 0
        weight.data += 0.2 * torch.randn_like(weight)
    tokens = torch.randn(2, TOKENS, WIDTH)
    found = model(tokens).detach().double().numpy()
    slow = np.stack([_slow(model, video.numpy()) for video in tokens])
    assert np.abs(found - slow).max() < 1e-4
    assert np.abs(slow[0] - slow[1]).max() > 0.01


def test_first_weights_are_the_published_ones() -> None:
    """Deviation .02, and after d blocks that over sqrt(2 d) where a block adds to its input."""
    torch.manual_seed(0)
    model = AttentiveBlocks(64, heads=4, blocks=4, num_classes=CLASSES)
    expected = {
        "blocks.0.attn.qkv": 0.02,
        "blocks.0.attn.proj": 0.02 / math.sqrt(2),
        "blocks.2.mlp.fc2": 0.02 / math.sqrt(6),
        "pool.kv": 0.02,
        "pool.fc2": 0.02 / math.sqrt(6),
    }
    for name, deviation in expected.items():
        layer: Any = model.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05), name
        assert not layer.bias.any()
    assert model.head.weight.abs().max().item() == pytest.approx(1 / 8, rel=0.05)


def _videos(count: int, seed: int, *, crops: int = 1, clips: int = 1) -> tuple[Views, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    tokens = torch.randn(count, clips * crops * TOKENS, WIDTH, generator=generator)
    tokens[:, :, :CLASSES] += 2 * F.one_hot(labels, CLASSES)[:, None]
    return Views(tokens.half(), clips, crops), labels


def _grid(
    train: tuple[Views, Tensor], judged: tuple[Views, Tensor], settings: GridConfig
) -> GridResult:
    return grid_scores(
        *train, *judged, num_classes=CLASSES, settings=settings, precision="float32", device=CPU
    )


def _alone(views: Views, labels: Tensor, rows: Tensor, lr: float, decay: float) -> AttentiveBlocks:
    """One point by itself: plain PyTorch, with the batches and crops that the seed gives."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = AttentiveBlocks(WIDTH, heads=HEADS, blocks=4, num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    order, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    size, epochs = SETTINGS.batch_size, SETTINGS.epochs
    total, step = epochs * math.ceil(len(rows) / size), 0
    for _ in range(epochs):
        for batch in torch.randperm(len(rows), generator=order).split(size):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / total)) / 2
            crops = torch.randint(views.num_crops, batch.shape, generator=drawn)
            videos = rows[batch]
            seen = []
            for video, crop in zip(videos.tolist(), crops.tolist(), strict=True):
                places = [
                    (clip * views.num_crops + crop) * TOKENS + token
                    for clip in range(views.num_clips)
                    for token in range(TOKENS)
                ]
                seen.append(views.tokens[video, places].float())
            optimizer.zero_grad()
            F.cross_entropy(model(torch.stack(seen)), labels[videos]).backward()
            optimizer.step()
            step += 1
    return model


def test_a_grid_is_each_of_its_points_alone() -> None:
    """Two clips and three crops; batches of 8 in parts of one video, as memory is scarce."""
    views, labels = _videos(20, 0, crops=3, clips=2)
    rows = torch.arange(20)[torch.arange(20) != 7]
    points = [GridPoint(lr, wd) for lr in SETTINGS.lrs for wd in SETTINGS.weight_decays]
    scarce, probed = replace(SETTINGS, memory_gb=1e-9), torch.randn(6, TOKENS, WIDTH)
    learner = _Learner(CLASSES, scarce, "float32", CPU, 0)
    together = learner.train(views, labels, rows, points)
    for model, point in zip(together, points, strict=True):
        alone = _alone(views, labels, rows, point.lr, point.weight_decay)
        # Of weights that change nothing, the bias of k, steps of Adam are noise: so by what it says
        torch.testing.assert_close(model(probed), alone(probed), rtol=1e-3, atol=1e-4)
    assert (together[0](probed) - together[3](probed)).abs().max() > 1e-2


def test_views_in_space_are_averaged_as_probabilities_and_clips_joined() -> None:
    views, _ = _videos(4, 1, crops=3, clips=2)
    torch.manual_seed(0)
    model = AttentiveBlocks(WIDTH, heads=HEADS, blocks=4, num_classes=CLASSES).eval()
    found = _Learner(CLASSES, SETTINGS, "float32", CPU, 0).scores(
        model, views, torch.tensor([2, 0])
    )
    for row, video in enumerate((2, 0)):
        by_view = views.tokens[video].float().reshape(2, 3, TOKENS, WIDTH)
        expected = torch.stack(
            [model(torch.cat([by_view[0, crop], by_view[1, crop]])[None])[0] for crop in range(3)]
        )
        torch.testing.assert_close(found[row], expected.softmax(dim=1).mean(dim=0))


def test_the_best_point_is_chosen_on_a_fifth_of_the_training_videos() -> None:
    train, judged = _videos(30, 0), _videos(9, 1)
    settings = replace(SETTINGS, lrs=[1e-6, 1e-2])
    result = _grid(train, judged, settings)
    assert "a fifth of the training videos" in result.how
    assert result.best.lr == 1e-2 and len(result.points) == 4
    held_out = held_out_videos(train[1])
    model = _alone(*train, torch.arange(30)[~held_out], result.best.lr, result.best.weight_decay)
    logits = model(train[0].tokens[held_out].float())
    right = (logits.argmax(dim=1) == train[1][held_out]).float().mean().item()
    assert result.best.top1 == pytest.approx(right)
    whole = _alone(*train, torch.arange(30), result.best.lr, result.best.weight_decay)
    expected = whole(judged[0].tokens.float()).softmax(dim=1)
    torch.testing.assert_close(result.scores, expected, rtol=1e-2, atol=1e-4)
    others = judged[0], judged[1].roll(1)  # their labels choose nothing
    assert torch.equal(_grid(train, others, settings).scores, result.scores)


def test_a_point_chosen_on_the_judged_list_says_so() -> None:
    train, judged = _videos(12, 0), _videos(9, 1)
    settings = replace(SETTINGS, lrs=[1e-6, 1e-2], chosen_on="judged")
    result = _grid(train, judged, settings)
    assert "on the validation list itself" in result.how
    right = (result.scores.argmax(dim=1) == judged[1]).double().mean().item()
    assert right == pytest.approx(max(point.top1 or 0 for point in result.points))
    assert result.best.top1 == pytest.approx(right)


def test_without_a_video_to_spare_the_middle_point_is_taken() -> None:
    train, judged = _videos(3, 0), _videos(6, 1)
    result = _grid(train, judged, SETTINGS)
    assert result.how == "the middle one, as no class has videos to hold out"
    assert result.best == GridPoint(1e-2, 0.01) and result.scores.shape == (6, CLASSES)


def test_a_point_that_diverges_is_not_the_best() -> None:
    train, judged = _videos(12, 0), _videos(6, 1)
    result = _grid(train, judged, replace(SETTINGS, lrs=[1e-3, 1e30], epochs=1))
    assert result.best.lr == 1e-3 and result.scores.isfinite().all()


def test_heads_divide_the_width() -> None:
    settings = GridConfig()
    widths = [1024, 1408, 768, 384, 192, 24]  # 16 as published, also of small encoders
    assert [heads_for(width, settings) for width in widths] == [16, 16, 16, 16, 16, 12]
    with pytest.raises(ValueError, match=r"probe\.grid\.heads \(5\) must divide the feature width"):
        heads_for(64, replace(settings, heads=5))


def test_the_global_random_state_stays_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = (_grid(_videos(6, 0), _videos(6, 1), SETTINGS) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(one.scores, other.scores)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"lrs": [0.0]},
            r"lrs \(\[0\.0\]\) must be one or more different numbers, each above 0",
        ),
        (
            {"weight_decays": []},
            r"grid\.weight_decays \(\[\]\) must be one or more different numbers",
        ),
        ({"lrs": [1.0, 1.0]}, r"must be one or more different numbers"),
        ({"memory_gb": 0.0}, r"probe\.grid\.memory_gb \(0\.0\) must be a number above 0"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GridConfig(**settings)
