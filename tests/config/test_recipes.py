"""The shipped recipes: their numbers against the published tables, and what a stranger needs."""

import re
from pathlib import Path

import pytest
import torch

from hpm_video.config import FinetuneConfig, PretrainConfig, ProbeJobConfig
from hpm_video.config.settings import load_config
from hpm_video.models.build import build_classifier, build_model, token_grid
from hpm_video.train.step_videos import micro_batches

CONFIGS = Path(__file__).parents[2] / "configs"
DATA_SETS = ("ssv2", "kinetics400", "ucf101", "hmdb51")
SIZES = ("small", "base", "large")
BASELINES = ("kinetics400_slowfast_r50", "kinetics400_x3d_s", "kinetics400_mvit_base_16x4")
FINETUNE = [f"{data}_{size}" for data in DATA_SETS for size in SIZES]
PRETRAIN = [f"{data}_{size}" for data in DATA_SETS[:3] for size in SIZES] + ["ssv2_base_fast"]

# Fine-tuning: epochs, base lr, min lr, layer decay, drop path, head dropout, videos per step,
# repeats. Those of HMDB51, and of sizes that nothing is published of, are the nearest ones.
_UCF = (100, 5e-4, 1e-5, 0.7, 0.2, 0.5, 128, 2)
NUMBERS = {
    "ssv2_small": (40, 1e-3, 1e-6, 0.7, 0.1, 0.0, 384, 2),
    "ssv2_base": (50, 5e-4, 1e-6, 0.75, 0.1, 0.0, 384, 1),
    "ssv2_large": (50, 5e-4, 1e-6, 0.75, 0.1, 0.0, 384, 1),
    "kinetics400_small": (150, 5e-4, 1e-6, 0.75, 0.1, 0.0, 384, 2),
    "kinetics400_base": (100, 1e-3, 1e-6, 0.75, 0.1, 0.0, 384, 1),
    "kinetics400_large": (35, 2e-3, 1e-6, 0.75, 0.1, 0.0, 128, 2),
    **{f"{data}_{size}": _UCF for data in DATA_SETS[2:] for size in SIZES},
}


def _finetune(name: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, CONFIGS / "finetune" / f"{name}.yaml")


def _pretrain(name: str) -> PretrainConfig:
    return load_config(PretrainConfig, CONFIGS / "pretrain" / f"{name}.yaml")


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_has_the_published_numbers(name: str) -> None:
    config = _finetune(name)
    data, optim, model = config.data, config.optim, config.model
    assert (
        optim.epochs,
        optim.base_lr,
        optim.min_lr,
        0.75 if optim.layer_decay is None else optim.layer_decay,
        0.1 if model.drop_path is None else model.drop_path,
        model.head_dropout,
        optim.total_batch,
        data.repeats,
    ) == NUMBERS[name]
    assert model.size == name.split("_")[1]
    on_ssv2 = name.startswith("ssv2")
    assert (data.sampling, data.flip) == (("uniform", False) if on_ssv2 else ("dense", True))
    assert on_ssv2 or data.frame_stride == 4
    assert (data.num_frames, data.crop_size, data.crop) == (16, 224, "random_resized")
    views = config.evaluation
    assert (views.num_clips, views.num_crops) == (2 if on_ssv2 else 5, 3)
    assert (optim.warmup, optim.weight_decay, tuple(optim.betas)) == (5, 0.05, (0.9, 0.999))
    augment, mixing = config.augment, config.mixing
    assert (augment.num_operations, augment.magnitude, augment.magnitude_spread) == (4, 7, 0.5)
    assert augment.erasing == 0.25
    assert (mixing.mixup, mixing.cutmix, mixing.switch) == (0.8, 1.0, 0.5)
    assert optim.label_smoothing == 0.1


@pytest.mark.parametrize("name", PRETRAIN)
def test_pre_training_has_the_published_numbers(name: str) -> None:
    config = _pretrain(name)
    data, optim = config.data, config.optim
    on_ucf = name.startswith("ucf101")
    assert (data.num_frames, data.frame_stride) == (16, 2 if name.startswith("ssv2") else 4)
    assert (data.sampling, data.crop, data.flip) == ("dense", "multi_scale", False)
    assert config.masking.mask_ratio == (0.75 if on_ucf else 0.9)
    assert (optim.epochs, optim.base_lr) == ((3200, 3e-4) if on_ucf else (800, 1.5e-4))
    assert (optim.min_lr, optim.warmup_lr, optim.warmup) == (1e-5, 1e-6, 40)
    assert optim.total_batch == (24 * 8 if on_ucf else 1024)
    assert (optim.weight_decay, tuple(optim.betas)) == (0.05, (0.9, 0.95))
    assert config.model.size == name.split("_")[1]
    assert config.model.decoder_depth == (12 if config.model.size == "large" else 4)


# Frozen evaluation, of V-JEPA 2's configs/eval/vitl: frames, stride, clips, crops, layers, learning
# rates, weight decays, epochs, videos per step
_RATES, _DECAYS = [1e-4, 3e-4, 1e-3, 3e-3, 5e-3], [0.01, 0.1, 0.4, 0.8]
PROBE = {
    "ssv2_frozen": (16, 4, 2, 3, [-1], _RATES, _DECAYS, 20, 4 * 64),
    "kinetics400_frozen": (16, 4, 8, 3, [-1], _RATES, _DECAYS, 20, 4 * 64),
    "diving48_frozen": (32, 2, 4, 3, [17, 19, 21, 23], _RATES[:3], [0.8], 100, 2 * 64),
    "ek100_frozen": (32, 1, 1, 1, [-1], _RATES, [1e-4, 1e-3, 1e-2, 0.1], 20, 2 * 64),
}


@pytest.mark.parametrize("name", PROBE)
def test_frozen_evaluation_has_the_published_numbers(name: str) -> None:
    config = load_config(ProbeJobConfig, CONFIGS / "probe" / f"{name}.yaml")
    clip, probe, grid = config.clip, config.probe, config.probe.grid
    assert (
        *(clip.num_frames, clip.frame_stride, probe.num_clips, probe.num_crops),
        *(config.encoder.layers, grid.lrs, grid.weight_decays, grid.epochs, grid.batch_size),
    ) == PROBE[name]
    assert config.kinds == ["attentive_grid"] and grid.blocks == 4 and grid.heads is None
    assert clip.fps == (8 if name == "ek100_frozen" else None)
    assert grid.chosen_on == "judged" and (probe.train_crops or 1) == 1


ALL = [
    *(("finetune", name) for name in [*FINETUNE, *BASELINES]),
    *(("pretrain", name) for name in PRETRAIN),
]


@pytest.mark.parametrize(("job", "name"), ALL)
def test_a_step_is_the_same_on_1_2_and_8_gpus(job: str, name: str) -> None:
    config = _finetune(name) if job == "finetune" else _pretrain(name)
    batch_size, counts = config.data.batch_size, []
    if batch_size == "auto":  # where nothing depends on how a step is divided
        assert job == "pretrain" and config.model.drop_path == 0
        assert config.optim.total_batch % 8 == 0
        text = "{} videos on any number of GPUs, in micro-batches as large as memory allows"
        assert text.format(config.optim.total_batch) in _header(job, name)
        return
    for num_processes in (8, 2, 1):
        accumulation = micro_batches(
            config.optim, batch_size=batch_size, num_processes=num_processes
        )
        assert accumulation * batch_size * num_processes == config.optim.total_batch
        counts.append(accumulation)
    header = _header(job, name)
    text = "{} videos on any number of GPUs: {}, {} or {} micro-batches of {} per GPU"
    assert text.format(config.optim.total_batch, *counts, batch_size) in header


@pytest.mark.parametrize(("job", "name"), ALL)
def test_it_opens_with_what_a_stranger_needs(job: str, name: str) -> None:
    header = _header(job, name)
    assert f"torchrun --nproc-per-node 8 -m hpm_video {job} {name} " in header
    for words in ("Hardware: ", "Hours: ", "Expected: ", "data.manifest=", "run.output_dir="):
        assert words in header
    for number in re.findall(r"(\d\d\.\d) top-1", header):
        assert number in {"66.8", "69.6", "74.3", "79.0", "80.0", "85.2", "91.3"}
    if job == "finetune" and name in FINETUNE:
        init = re.search(r"model\.init=outputs/(\S+)", header)
        assert init is not None and init[1] in PRETRAIN
        assert init[1].split("_")[1] == name.split("_")[1], "of the same size"


def _header(job: str, name: str) -> str:
    """The comment at the top, on one line."""
    lines = (CONFIGS / job / f"{name}.yaml").read_text().splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if line[0] != "#")]
    return " ".join(" ".join(line.strip("#\\ ") for line in header).split())


@pytest.mark.parametrize(("job", "name"), [case for case in ALL if "mvit" not in case[1]])
def test_its_model_builds(job: str, name: str) -> None:
    config = _finetune(name) if job == "finetune" else _pretrain(name)
    data = config.data
    assert data.decoder == "pyav"
    with torch.device("meta"):
        if isinstance(config, FinetuneConfig):
            model = build_classifier(
                config.model,
                num_frames=data.num_frames,
                crop_size=data.crop_size,
                num_classes=400,
            )
            clips = torch.zeros(2, 3, data.num_frames, data.crop_size, data.crop_size)
            assert model(clips).shape == (2, 400)
        else:
            grid = token_grid(config.model, num_frames=16, crop_size=224)
            build_model(config.model, grid, predict_loss=True)
