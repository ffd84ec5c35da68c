import math
import re

import pytest
import torch

from hpm_video.config import (
    ClassifierConfig,
    DataConfig,
    FinetuneDataConfig,
    FinetuneOptimConfig,
    OptimConfig,
)
from hpm_video.models.build import build_classifier
from hpm_video.models.classifier import Classifier
from hpm_video.models.hpm import HPM
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import ViTSize
from hpm_video.train.optim import (
    describe_lr,
    finetune_optimizer,
    lr_schedule,
    pretrain_optimizer,
    set_lr,
)
from hpm_video.train.step_videos import micro_batches, step_videos

GRID = TokenGrid(2, 3, 5)
CLIP = {"num_frames": 4, "crop_size": 32}


def _slow_lr(step: int, total: int, warmup: int, peak: float, low: float, start: float) -> float:
    if step < warmup:
        return start + (peak - start) * step / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize("count_repeats", [False, True])
@pytest.mark.parametrize(("epochs", "warmup"), [(10, 0), (10, 3), (800, 40), (7, 6)])
def test_lr_is_a_linear_warm_up_and_half_a_cosine(
    epochs: int, warmup: int, count_repeats: bool
) -> None:
    optim = OptimConfig(
        epochs=epochs,
        warmup_epochs=warmup,
        base_lr=1.5e-4,
        min_lr=1e-5,
        warmup_lr=1e-6,
        count_repeats=count_repeats,
    )
    steps_per_epoch = 13
    lr_at = lr_schedule(optim, videos=512, clips=2048, steps_per_epoch=steps_per_epoch)
    factor = (2048 if count_repeats else 512) / 256
    total = epochs * steps_per_epoch
    for step in [*range(0, total, 7), warmup * steps_per_epoch, total - 1]:
        expected = _slow_lr(
            step, total, warmup * steps_per_epoch, *(factor * x for x in (1.5e-4, 1e-5, 1e-6))
        )
        assert lr_at(step) == pytest.approx(expected, rel=1e-9)
    assert lr_at(warmup * steps_per_epoch) == pytest.approx(factor * 1.5e-4)


def test_the_line_about_the_learning_rate_names_both_counts() -> None:
    line = describe_lr(OptimConfig(base_lr=1e-3), videos=64, clips=256)
    assert "64 videos, 256 clips per step" in line
    assert line.endswith("= 0.00025")
    line = describe_lr(OptimConfig(base_lr=1e-3, count_repeats=True), videos=64, clips=256)
    assert line.endswith("= 0.001")


def _groups(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> dict[str, dict[str, float]]:
    """Parameter name -> its group; every trainable parameter is in one group exactly."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            groups[name] = group
    assert not names
    return groups


def test_pretraining_decays_matrices_only() -> None:
    model = HPM(
        GRID,
        ViTSize(tubelet_size=2, patch_size=4, width=16, depth=2, heads=2),
        decoder_width=12,
        decoder_heads=2,
        decoder_depth=1,
        predictor_input="encoded",
        predictor_depth=1,
    )
    optim = OptimConfig(weight_decay=0.05, betas=(0.9, 0.95))
    optimizer = pretrain_optimizer(model, optim)
    parameters = dict(model.named_parameters())
    for name, group in _groups(optimizer, model).items():
        is_matrix = parameters[name].ndim == 2
        assert is_matrix != (parameters[name].ndim == 1 or name == "decoder_input.mask_token")
        assert group["weight_decay"] == (0.05 if is_matrix else 0), name
        assert tuple(group["betas"]) == (0.9, 0.95)
    set_lr(optimizer, 0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}


@pytest.mark.parametrize("depth", [1, 3, 12])
@pytest.mark.parametrize("decay", [0.7, 0.75, 1.0])
def test_finetuning_decays_the_lr_layer_by_layer(depth: int, decay: float) -> None:
    model = Classifier(
        GRID, ViTSize(tubelet_size=2, patch_size=4, width=8, depth=depth, heads=2), num_classes=3
    )
    optim = FinetuneOptimConfig(layer_decay=None if decay == 0.75 else decay, weight_decay=0.05)
    optimizer = finetune_optimizer(model, optim)
    set_lr(optimizer, 0.01)
    for name, group in _groups(optimizer, model).items():
        if name.startswith("encoder.embed."):
            exponent = depth + 1
        elif name.startswith("encoder.blocks."):
            block = int(name.split(".")[2])
            exponent = depth + 1 - (block + 1)
        else:
            assert name in {"norm.weight", "norm.bias", "head.weight", "head.bias"}
            exponent = 0
        assert group["lr"] == pytest.approx(0.01 * decay**exponent), name
        is_matrix = name.endswith(".weight") and "norm" not in name
        assert group["weight_decay"] == (0.05 if is_matrix else 0), name


def test_set_lr_moves_weights_by_what_it_says() -> None:
    """Adam's first step is lr in size, whatever the gradient: a group's own scale included."""
    model = Classifier(
        GRID, ViTSize(tubelet_size=2, patch_size=4, width=8, depth=2, heads=2), num_classes=3
    )
    optimizer = finetune_optimizer(model, FinetuneOptimConfig(layer_decay=0.5, weight_decay=0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 0.01)
    optimizer.step()
    moved = {
        name: (before[name] - p.detach()).mean().item() for name, p in model.named_parameters()
    }
    assert moved["head.bias"] == pytest.approx(0.01, rel=1e-3)
    assert moved["encoder.blocks.1.attn.q_bias"] == pytest.approx(0.005, rel=1e-3)
    assert moved["encoder.blocks.0.attn.q_bias"] == pytest.approx(0.0025, rel=1e-3)
    assert moved["encoder.embed.bias"] == pytest.approx(0.00125, rel=1e-3)


def test_layer_decay_of_a_base_model_against_a_table() -> None:
    """Layer: the rate of what is in it, as a share of the head's; VideoMAE's .75 of 12 blocks."""
    table = {
        "head.weight": 1.0,
        "norm.bias": 1.0,
        "encoder.blocks.11.mlp.fc2.weight": 0.75,
        "encoder.blocks.10.norm1.weight": 0.5625,
        "encoder.blocks.6.attn.q_bias": 0.177979,
        "encoder.blocks.1.attn.qkv.weight": 0.042235,
        "encoder.blocks.0.attn.proj.weight": 0.031676,
        "encoder.embed.weight": 0.023757,
        "encoder.embed.bias": 0.023757,
    }
    config = ClassifierConfig()
    model = build_classifier(config, num_frames=2, crop_size=32, num_classes=3)
    groups = _groups(finetune_optimizer(model, FinetuneOptimConfig()), model)
    assert len(groups) == 2 + 12 * 13 + 2 + 2
    for name, share in table.items():
        assert groups[name]["lr_scale"] == pytest.approx(share, abs=1e-6), name


def test_a_baseline_learns_at_one_rate() -> None:
    model = build_classifier(ClassifierConfig(name="x3d_xs"), **CLIP, num_classes=3)
    optimizer = finetune_optimizer(model, FinetuneOptimConfig(weight_decay=0.05))
    set_lr(optimizer, 0.01)
    for name, group in _groups(optimizer, model).items():
        assert group["lr"] == 0.01
        is_matrix = dict(model.named_parameters())[name].ndim > 1
        assert group["weight_decay"] == (0.05 if is_matrix else 0), name


@pytest.mark.parametrize(
    ("total_batch", "batch_size", "num_processes", "expected"),
    [(1024, 32, 8, 4), (1024, 32, 2, 16), (1024, 32, 1, 32), (1024, 64, 16, 1), (6, 3, 2, 1)],
)
def test_micro_batches_make_up_the_whole_batch(
    total_batch: int, batch_size: int, num_processes: int, expected: int
) -> None:
    optim = OptimConfig(total_batch=total_batch)
    count = micro_batches(optim, batch_size=batch_size, num_processes=num_processes)
    assert count == expected


@pytest.mark.parametrize(("batch_size", "num_processes"), [(32, 3), (33, 1), (64, 32), (7, 8)])
def test_a_batch_that_does_not_divide_is_refused(batch_size: int, num_processes: int) -> None:
    words = re.escape("optim.total_batch (1024) must be a multiple of data.batch_size x processes")
    with pytest.raises(ValueError, match=words):
        micro_batches(
            OptimConfig(total_batch=1024), batch_size=batch_size, num_processes=num_processes
        )


@pytest.mark.parametrize(
    ("total_batch", "batch_size", "num_processes", "advice"),
    [(512, 16, 64, 8), (384, 12, 64, 6), (60, 7, 4, 5), (192, 6, 64, None), (9, 8, 2, None)],
)
def test_a_refused_batch_names_a_size_that_keeps_the_steps(
    total_batch: int, batch_size: int, num_processes: int, advice: int | None
) -> None:
    """The largest smaller one; of an even one an even one, as pairs of videos may be mixed."""
    optim = OptimConfig(total_batch=total_batch)
    with pytest.raises(ValueError, match="must be a multiple of") as refused:
        micro_batches(optim, batch_size=batch_size, num_processes=num_processes)
    found = re.search(r"to keep the steps, set data\.batch_size=(\d+)$", str(refused.value))
    assert (found and int(found[1])) == advice
    if advice is not None:
        assert micro_batches(optim, batch_size=advice, num_processes=num_processes) >= 1


def test_accumulation_counts_without_a_whole_batch() -> None:
    assert micro_batches(OptimConfig(accumulation=3), batch_size=5, num_processes=7) == 3


def test_stochastic_depth_of_a_classifier_rises_from_block_to_block() -> None:
    for asked, highest in ((None, 0.1), (0.2, 0.2), (0.0, 0.0)):
        config = ClassifierConfig(drop_path=asked, size="tiny")
        model = build_classifier(config, **CLIP, num_classes=3)
        rates = [block.drop_path.drop_prob for block in model.encoder.blocks]
        assert rates == pytest.approx([highest * block / 11 for block in range(12)])


@pytest.mark.parametrize(
    ("num_videos", "processes", "pretrains", "finetunes"),
    [(24, 1, False, False), (40, 1, False, True), (300, 1, True, True), (300, 7, False, False)],
)
def test_the_recipe_for_few_videos_is_advised_where_it_takes_them(
    num_videos: int, processes: int, pretrains: bool, finetunes: bool
) -> None:
    """Its steps have 64 videos in pre-training and 32 in fine-tuning."""
    for data, is_advised in ((DataConfig(), pretrains), (FinetuneDataConfig(), finetunes)):
        optim = OptimConfig(total_batch=2**20)
        with pytest.raises(ValueError, match="videos per step") as caught:
            step_videos(
                data, optim, num_videos=num_videos, num_processes=processes, recipe="ssv2_base.yaml"
            )
        assert "optim.total_batch=" in str(caught.value)
        assert ("own_videos" in str(caught.value)) == is_advised
        for same in ("own_videos.yaml", "a/own_videos_cpu.yaml"):
            with pytest.raises(ValueError, match=r"optim\.total_batch=\d+ to the command$"):
                step_videos(
                    data, optim, num_videos=num_videos, num_processes=processes, recipe=same
                )
