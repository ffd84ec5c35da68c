"""The rows that VideoMAE and VideoMAE V2 released scripts of, as facts, beside our recipes of them.

Facts are the scripts' arguments and, where they leave one out, the default of the program that they
start. ``python tests/published_rows.py`` writes the tables of docs/reproduce.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import load_config, read_group
from hpm_video.models.build import DROP_PATH, build
from hpm_video.train.optim import LAYER_DECAY, plan_steps

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduce.md"
Row = Mapping[str, Any]  # a column's name -> its value
_PRODUCTS = ("GPUs x videos", "decoder", "views")  # columns

V1, V2 = "VideoMAE", "VideoMAE V2"
# Width and heads; of huge VideoMAE V2 has another one
DECODERS = {
    "small": (192, 3), "base": (384, 6), "large": (512, 8), "huge": (640, 8),
    "huge_v2": (512, 8), "giant": (512, 8),
}  # fmt: skip


def _row(defaults: Row, size: str, gpus: int, videos: int, base_lr: float, **other: Any) -> Row:
    step = gpus * videos
    row = {
        "of": V1,
        "size": size,
        "GPUs x videos": (gpus, videos),
        "videos a step": step,
        "base lr": base_lr,
        "lr": base_lr * step / 256,  # whatever num_sample is
        "patch": 14 if size == "giant" else 16,
        **defaults,
    }
    given = {name.replace("_", " "): value for name, value in other.items()}
    assert set(given) <= {*row, "decoder depth"}, given
    if "decoder" in row:
        row["decoder"] = (given.pop("decoder depth", 4), *DECODERS[size])
    return row | given


_pretraining = partial(
    _row,
    {
        "min lr": 1e-5,
        "epochs": 800,
        "warm-up": 40,
        "warm-up from": 0,  # --warmup_lr is not passed on to the schedule
        "repeats": 1,
        "mask": 0.9,
        "decoder": None,  # blocks, width, heads
        "decoder mask": None,  # its ratio and pattern
        "stride": 4,
        "frames and pixels": (16, 224),
        "sampling": "videomae_pretrain",
        "crop": "multi_scale",
        "antialias": True,  # by Pillow, whose bilinear resizing is
        "flip": False,
        "drop path": 0,
        "weight decay": 0.05,
        "betas": (0.9, 0.95),
        "clip grad": None,
        "first weights": "videomae",
        "normalised targets": True,
    },
)
_finetuning = partial(
    _row,
    {
        "min lr": 1e-6,
        "epochs": 50,
        "warm-up": 5,
        "warm-up from": 0,
        "repeats": 1,
        "layer decay": 0.75,
        "drop path": 0.1,
        "head dropout": 0,
        "sampling": "videomae_kinetics",
        "stride": 4,
        "flip": True,
        "views": (5, 3),
        "frames and pixels": (16, 224),
        "crop": "random_resized",
        "antialias": False,  # by PyTorch in training, by OpenCV in tests
        "weight decay": 0.05,
        "betas": (0.9, 0.999),
        "clip grad": None,
        "RandAugment": (4, 7, 0.5),
        "erasing": 0.25,
        "mixup, cutmix and switch": (0.8, 1, 0.5),
        "label smoothing": 0.1,
        "average of weights": None,
    },
)
_on_ssv2 = partial(_finetuning, sampling="videomae_ssv2", stride=None, flip=False, views=(2, 3))
# run_cell, beside which V2's code has no other pattern
_hybrid = partial(_pretraining, of=V2, repeats=4, decoder_mask=(0.5, "videomae_v2"))
_huge = {"drop_path": 0.2, "head_dropout": 0.5, "min_lr": 1e-5}
_ucf = {"drop_path": 0.2, "head_dropout": 0.5, "min_lr": 1e-5, "layer_decay": 0.7}

PRETRAIN: dict[str, Row] = {
    "ssv2_small_2400e": _pretraining("small", 64, 32, 1.5e-4, epochs=2401, stride=2),
    "ssv2_base_800e": _pretraining("base", 64, 32, 1.5e-4, epochs=801, stride=2),
    "ssv2_base_2400e": _pretraining("base", 64, 32, 1.5e-4, epochs=2401, stride=2),
    "kinetics400_small_1600e": _pretraining("small", 32, 32, 1.5e-4, epochs=1601),
    "kinetics400_base_800e": _pretraining("base", 64, 32, 1.5e-4, epochs=801),
    "kinetics400_base_1600e": _pretraining("base", 64, 32, 1.5e-4, epochs=1601),
    "kinetics400_large_1600e": _pretraining("large", 64, 8, 1.5e-4, epochs=1601, decoder_depth=12),
    "kinetics400_huge_1600e": _pretraining("huge", 64, 16, 1.5e-4, epochs=1601, decoder_depth=12),
    "ucf101_base_3200e": _pretraining("base", 8, 24, 3e-4, epochs=3201, mask=0.75),
    "hybrid_base_v2": _hybrid("base", 32, 32, 1e-3, epochs=200, **{"warm-up": 20}),
    "hybrid_large_v2": _hybrid("large", 48, 32, 1e-3, epochs=300, **{"warm-up": 30}),
    "hybrid_huge_v2": _hybrid("huge_v2", 64, 32, 1e-3, epochs=300, **{"warm-up": 30}),
    "hybrid_giant_v2": _hybrid(
        "giant", 64, 32, 6e-4, epochs=300, clip_grad=0.02, **{"warm-up": 30}
    ),
}
FINETUNE: dict[str, Row] = {
    "ssv2_small_2400e": _on_ssv2("small", 32, 12, 1e-3, epochs=40, repeats=2, layer_decay=0.7),
    "ssv2_base_800e": _on_ssv2("base", 64, 8, 5e-4, epochs=50),
    "ssv2_base_2400e": _on_ssv2("base", 64, 6, 5e-4, epochs=30, repeats=2),
    "kinetics400_small_1600e": _finetuning("small", 32, 12, 5e-4, epochs=150, repeats=2),
    "kinetics400_base_800e": _finetuning("base", 64, 8, 1e-3, epochs=100),
    "kinetics400_base_1600e": _finetuning("base", 64, 6, 5e-4, epochs=75, repeats=2),
    "kinetics400_large_1600e": _finetuning("large", 64, 2, 2e-3, epochs=35, repeats=2),
    "kinetics400_huge_1600e": _finetuning("huge", 64, 8, 1e-3, epochs=50, repeats=2, **_huge),
    "ucf101_base_3200e": _finetuning("base", 8, 16, 5e-4, epochs=100, repeats=2, **_ucf),
    "kinetics400_base_v2": _finetuning("base", 32, 16, 7e-4, epochs=90, repeats=2, of=V2),
    "kinetics400_large_v2": _finetuning(
        "large", 32, 6, 2e-3, epochs=35, repeats=2, drop_path=0.2, of=V2
    ),
    "kinetics400_huge_v2": _finetuning(
        "huge",
        32,
        4,
        1e-3,
        epochs=40,
        repeats=2,
        layer_decay=0.8,
        drop_path=0.2,
        head_dropout=0.5,
        of=V2,
    ),
    "kinetics400_giant_v2": _finetuning(
        "giant",
        64,
        3,
        1e-3,
        epochs=30,
        repeats=2,
        layer_decay=0.9,
        drop_path=0.2,
        weight_decay=0.1,
        of=V2,
    ),
    "ssv2_base_v2": _on_ssv2("base", 16, 16, 2e-3, epochs=25, repeats=2, layer_decay=0.65, of=V2),
    "ssv2_large_v2": _on_ssv2("large", 32, 6, 5e-4, epochs=20, repeats=2, drop_path=0.2, of=V2),
    "ssv2_huge_v2": _on_ssv2(
        "huge", 32, 4, 5e-4, epochs=20, repeats=2, layer_decay=0.8, drop_path=0.2, of=V2
    ),
    "ssv2_giant_v2": _on_ssv2(
        "giant", 32, 3, 3e-4, epochs=20, repeats=2, layer_decay=0.9, drop_path=0.25, of=V2
    ),
}
# Top-1 of the model zoos; of VideoMAE V2 they have the giant model only
REACHED = {
    "ssv2_small_2400e": 66.8, "ssv2_base_800e": 69.6, "ssv2_base_2400e": 70.8,
    "kinetics400_small_1600e": 79.0, "kinetics400_base_800e": 80.0, "kinetics400_base_1600e": 81.5,
    "kinetics400_large_1600e": 85.2, "kinetics400_huge_1600e": 86.6, "ucf101_base_3200e": 91.3,
    "kinetics400_giant_v2": 87.2, "ssv2_giant_v2": 77.0,
}  # fmt: skip


def file_of(job: str, name: str) -> Path:
    return ROOT / "configs" / job / f"{name}.yaml"


def ours(job: str, name: str) -> Row:
    """What our recipe of a row does, in the columns of the published one."""
    file = file_of(job, name)
    config = load_config(PretrainConfig if job == "pretrain" else FinetuneConfig, file)
    data, optim = config.data, config.optim
    assert optim.total_batch is not None and optim.accumulation == 1
    slurm = read_group(file, "slurm") or {}
    gpus = int(slurm.get("nodes", 1)) * int(slurm.get("gpus_per_node", 8))
    per_gpu = optim.total_batch / gpus if data.batch_size == "auto" else data.batch_size
    steps = plan_steps(data, optim, num_videos=optim.total_batch * 10, num_processes=1)
    in_segments = data.sampling in ("uniform", "videomae_ssv2")
    with torch.device("meta"):
        model = build(config, num_classes=10)
    shared = {
        "size": config.model.size,
        "GPUs x videos": (gpus, per_gpu),
        "videos a step": steps.videos,
        "base lr": optim.base_lr,
        "patch": config.model.patch_size,
        "lr": max(map(steps.lr_at, range(steps.total))),
        "min lr": optim.min_lr,
        "epochs": optim.epochs,
        "warm-up": optim.warmup,
        "warm-up from": steps.lr_at(0),
        "repeats": data.repeats if data.windows == 1 else f"{data.windows} windows",
        "stride": None if in_segments else data.frame_stride,
        "frames and pixels": (data.num_frames, data.crop_size),
        "sampling": data.sampling,
        "crop": data.crop,
        "antialias": data.antialias,
        "flip": data.flip,
        "weight decay": optim.weight_decay,
        "betas": tuple(optim.betas),
        "clip grad": optim.clip_grad,
    }
    if isinstance(config, PretrainConfig):
        masking = config.masking
        assert model.predictor is None and not masking.mines
        first = model.reconstructor.blocks[0]
        return shared | {
            "mask": masking.mask_ratio,
            "decoder": (
                len(model.reconstructor.blocks),
                model.reconstructor.head.in_features,
                first.attn.heads,
            ),
            "decoder mask": (
                (masking.decoder_mask_ratio, masking.decoder_mask)
                if masking.decoder_mask_ratio
                else None
            ),
            "drop path": config.model.drop_path,
            "first weights": config.model.first_weights,
            "normalised targets": config.loss.normalize_targets,
        }
    decay, augment, mixing = config.optim.layer_decay, config.augment, config.mixing
    return shared | {
        "layer decay": LAYER_DECAY if decay is None else decay,
        "drop path": DROP_PATH if config.model.drop_path is None else config.model.drop_path,
        "head dropout": config.model.head_dropout,
        "views": (config.evaluation.num_clips, config.evaluation.num_crops),
        "RandAugment": (augment.num_operations, augment.magnitude, augment.magnitude_spread),
        "erasing": augment.erasing,
        "mixup, cutmix and switch": (mixing.mixup, mixing.cutmix, mixing.switch),
        "label smoothing": config.optim.label_smoothing,
        "average of weights": config.optim.ema_momentum,
    }


def same(published: object, our: object) -> bool:
    """Whether two values of a column are the same, but for rounding."""
    if isinstance(published, tuple) and isinstance(our, tuple):
        return all(map(same, published, our)) and len(published) == len(our)
    numbers = isinstance(published, int | float) and isinstance(our, int | float)
    return abs(published - our) <= 1e-6 * abs(published) if numbers else published == our


def _text(value: object, joint: str = ", ") -> str:
    if isinstance(value, tuple):
        return joint.join(map(_text, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if value == int(value) else f"{value:.6g}"
    return f"`{value}`" if "_" in str(value) else str(value)


def table(job: str, rows: Mapping[str, Row], found: Callable[[str, str], Row] = ours) -> str:
    """Published values and, where ours differ, ours in bold after them; below, what all rows have
    in common."""
    our = {name: found(job, name) for name in rows}
    columns = list(next(iter(rows.values())))
    common = [
        column for column in columns
        if len({_text(row[column]) for row in rows.values()}) == 1
        and all(same(row[column], our[name].get(column)) for name, row in rows.items())
    ]  # fmt: skip
    shown = [column for column in columns if column not in common]

    def cell(name: str, column: str) -> str:
        joint = " x " if column in _PRODUCTS else ", "
        text = _text(rows[name][column], joint)
        if column == "of" or same(rows[name][column], our[name][column]):
            return text
        return f"{text}, **{_text(our[name][column], joint)}**"

    lines = ["| recipe | " + " | ".join(shown) + " | top-1 |", "|---" * (len(shown) + 2) + "|"]
    for name in rows:
        cells = [f"`{name}`", *(cell(name, column) for column in shown), str(REACHED.get(name, ""))]
        lines.append(f"| {' | '.join(cells)} |")
    one = next(iter(rows.values()))
    lines += [
        "",
        "All of these rows have",
        "",
        f"| {' | '.join(common)} |",
        "|---" * len(common) + "|",
    ]
    return "\n".join([*lines, f"| {' | '.join(_text(one[column]) for column in common)} |", ""])


def page(text: str) -> str:
    """The page with its tables made anew."""
    for job, rows in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        before, begin, rest = text.partition(f"<!-- {job}: made by tests/published_rows.py -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert begin and end, job
        text = f"{before}{begin}\n{table(job, rows)}\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
