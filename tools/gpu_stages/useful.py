"""The whole way once: pre-train on the clips, fine-tune, evaluate, features on GPU and CPU."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gpu_stages.stage import Stage
from hpm_video.config import EvaluateConfig, EvaluationConfig, FeaturesConfig, FinetuneConfig
from hpm_video.config.settings import load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.evaluate.classification import evaluate
from hpm_video.evaluate.features import list_features
from hpm_video.train.finetune import finetune
from hpm_video.train.pretrain import pretrain
from hpm_video.train.run.logs import read_records

LARGEST = 1e-3  # relative difference of features


def run(stage: Stage) -> None:
    folder = Path(stage.folder)
    train, held_out = stage.split()
    pretrained = folder / "useful_pretrain"
    with stage.measuring("pre-training"):
        pretraining(stage, pretrained)
    with stage.measuring("fine-tuning"):
        finetuning(stage, pretrained, train, held_out)
    with stage.measuring("features"):
        features(stage, pretrained, held_out)


def pretraining(stage: Stage, folder: Path) -> None:
    """Pre-train for 20 seconds, and stop as a job that is asked to stop does."""
    small = stage.either(["model.size=small", "data.num_workers=8"], [])
    config = stage.run(
        folder,
        "run.log_every=4",
        *small,
        steps=stage.either(2000, 12),
        batch_size=stage.either(64, 4),
    )
    with stopping_after(stage.either(20, 60)):
        pretrain(config)
    records = read_records(folder)
    first, last = records[0], records[-1]
    stage.row(
        "pre-training",
        ok=last["loss"] is not None,
        steps=last["step"],
        first_loss=first["loss"],
        last_loss=last["loss"],
        rank_accuracy=last["rank_accuracy"],
        clips_per_s=last["clips_per_second"],
    )


@contextmanager
def stopping_after(seconds: float) -> Iterator[None]:
    """Ask this process to stop, as SLURM does, after a time."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def finetuning(stage: Stage, pretrained: Path, train: str, held_out: str) -> None:
    """Fine-tune for some epochs, and evaluate on what was held out."""
    labels = read_manifest(train).labels
    if labels.min() < 0:
        stage.row("fine-tuning", note="not measured: --clips has no class folders")
        return
    classes, folder = int(labels.max()) + 1, Path(stage.folder) / "useful_finetune"
    batch = min(stage.either(16, 4), len(labels))
    words = [
        *(f"run.output_dir={folder}", f"run.device={stage.kind}", "run.compile=false"),
        *(f"data.manifest={train}", f"model.init={pretrained}", f"data.batch_size={batch}"),
        *("data.decoder=pyav", f"data.num_workers={stage.either(8, 0)}", "run.log_every=1"),
        *(f"optim.epochs={stage.either(5, 1)}", "optim.warmup_epochs=0"),
        *("augment.num_operations=0", "augment.erasing=0", "mixing.mixup=0", "mixing.cutmix=0"),
    ]
    sizes = stage.either(
        ["model.size=small", "data.crop_size=112"],
        [
            *("model.width=32", "model.depth=2", "model.heads=2", "model.patch_size=8"),
            *("data.num_frames=4", "data.crop_size=32", "run.precision=float32"),
        ],
    )
    config = load_config(FinetuneConfig, None, [*words, *sizes])
    with stopping_after(stage.either(10, 60)):
        finetune(config)
    asked = EvaluateConfig(
        device=stage.kind, precision=config.run.precision, num_workers=config.data.num_workers,
        evaluation=EvaluationConfig(num_clips=1, num_crops=1),
    )  # fmt: skip
    result = evaluate(folder, [held_out], asked)
    records = [record for record in read_records(folder) if "loss" in record]
    stage.row(
        "fine-tuning", first_loss=records[0]["loss"], last_loss=records[-1]["loss"],
        top1=result.top(1), chance=1 / classes, videos=len(result.labels),
    )  # fmt: skip


def features(stage: Stage, pretrained: Path, held_out: str) -> None:
    """Features of the held-out clips, made on the device and on the CPU."""
    found = []
    for device in (stage.kind, "cpu"):
        output = Path(stage.folder) / f"features_{len(found)}.npz"
        asked = FeaturesConfig(device=device, precision="float32", num_workers=stage.either(8, 0))
        list_features(pretrained, [held_out], output, asked)
        with np.load(output) as file:
            found.append(file["features"].astype(np.float64))
    difference = np.abs(found[0] - found[1]).max() / np.abs(found[1]).max()
    stage.check("features, GPU and CPU", float(difference), LARGEST, videos=len(found[0]))
