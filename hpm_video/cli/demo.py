"""``hpm-video demo``: the whole promise in minutes. Toy videos, pre-training with hard-tube mining,
fine-tuning from it and from scratch with the same budget, evaluation, pictures, and one page with
all of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpm_video.cli.options import add_device, add_output_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hpm_video.config.values import Device
    from hpm_video.visualize import Result

SIZE = 64  # pixels
NUM_FRAMES = 16  # per video


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_dir(parser, "(default %(default)s)", default="outputs/demo")
    add_device(parser)
    text = "only see that everything runs: learns nothing"
    parser.add_argument("--quick", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    rows = demo(arguments.output_dir, quick=arguments.quick, device=arguments.device)
    if rows is None:
        return 1
    width = max(len(what) for what, _, _ in rows)
    for what, figure, other in rows:
        print(f"{what:<{width}}  {figure:>7}  {other}")
    print(Path(arguments.output_dir) / "index.html")
    return 0


@dataclass(frozen=True)
class Scale:
    """Numbers of videos, and settings that replace those of both configs."""

    unlabelled: int
    labelled: int
    held_out: int
    pictures: int
    settings: tuple[str, ...] = ()


FULL = Scale(unlabelled=2400, labelled=480, held_out=400, pictures=6)
# Only to see that everything runs: nothing is learnt in this time.
_SHORT = ("optim.epochs=2", "optim.warmup_epochs=0", "data.num_workers=0")
QUICK = Scale(unlabelled=96, labelled=48, held_out=24, pictures=1, settings=_SHORT)


def demo(
    output_dir: str | Path, *, quick: bool = False, device: Device = "auto"
) -> list[tuple[str, str, str]] | None:
    """Run the demo, or what is left of it, into a folder; None when a signal stopped it.

    Returns rows of (what, figure, what chance or the comparison gives).
    """
    from hpm_video.config import EvaluateConfig, EvaluationConfig, FinetuneConfig, PretrainConfig
    from hpm_video.config.recipe import find_named
    from hpm_video.config.settings import load_config
    from hpm_video.data.lists.manifest import read_manifest
    from hpm_video.data.prepare.toy import first_videos, write_toy_videos
    from hpm_video.evaluate.classification import evaluate
    from hpm_video.evaluate.mining_quality import measure_videos
    from hpm_video.runtime.distributed import pick_device
    from hpm_video.runtime.files import check_is_ours
    from hpm_video.train.finetune import finetune
    from hpm_video.train.pretrain import pretrain
    from hpm_video.visualize import visualize
    from hpm_video.weights.checkpoint import find_checkpoint

    folder, scale = Path(output_dir), QUICK if quick else FULL
    check_is_ours(folder / "index.html", name="output_dir")
    pick_device(device, setting="--device")  # or refuse, before any video is made
    start = time.monotonic()
    videos = folder / "videos"
    toy: dict[str, Any] = {"size": SIZE, "num_frames": NUM_FRAMES, "num_workers": 2}
    train = write_toy_videos(videos / "train", num_videos=scale.unlabelled, seed=0, **toy)
    held_out = write_toy_videos(videos / "held_out", num_videos=scale.held_out, seed=1, **toy)
    labelled = first_videos(train, videos / "labelled.csv", scale.labelled)

    runs = {name: folder / name for name in ("pretrain", "finetune", "scratch")}
    common = [f"run.device={device}", *scale.settings]
    settings = [f"data.manifest={train}", f"run.output_dir={runs['pretrain']}", *common]
    if not pretrain(load_config(PretrainConfig, find_named("demo/pretrain"), settings)):
        return None
    for name in ("finetune", "scratch"):
        settings = [f"data.manifest={labelled}", f"data.val_manifest={held_out}"]
        settings += [f"run.output_dir={runs[name]}", *common]
        if name == "finetune":
            settings.append(f"model.init={find_checkpoint(runs['pretrain'])}")
        if not finetune(load_config(FinetuneConfig, find_named("demo/finetune"), settings)):
            return None

    report = measure_videos(runs["pretrain"], [str(held_out)])
    assert report.coverage is not None
    views = EvaluateConfig(
        evaluation=EvaluationConfig(num_clips=3, num_crops=1), num_workers=2, device=device
    )
    tuned, scratch = (
        evaluate(runs[name], [str(held_out)], views).figures()["top1"] or 0.0
        for name in ("finetune", "scratch")
    )
    manifest = read_manifest(held_out)
    shown = [manifest.path(index) for index in range(scale.pictures)]
    _, results = visualize(runs["pretrain"], shown, folder / "pictures", device=device)
    rows = [
        ("top-1 fine-tuned from the pre-training", f"{tuned:.3f}", "chance .125"),
        ("top-1 from scratch, same budget and labels", f"{scratch:.3f}", "chance .125"),
        ("gain in points", f"{100 * (tuned - scratch):+.1f}", "0"),
        ("rank accuracy on held-out clips", f"{report.rank_accuracy:.3f}", "chance .5"),
        ("Spearman, predicted and measured loss of tubes", f"{report.spearman:.3f}", "chance 0"),
        ("moving object in the hardest quarter", f"{report.coverage:.2f} x", "random tubes 1 x"),
    ]
    write_page(folder, rows, runs, results, minutes=(time.monotonic() - start) / 60)
    return rows


def write_page(
    folder: Path,
    rows: Sequence[tuple[str, str, str]],
    runs: Mapping[str, Path],
    results: Sequence[Result],
    *,
    minutes: float,
) -> None:
    """Write index.html: figures, curves and pictures, with links to the viewer's pages in
    ``pictures`` within the same folder."""
    from hpm_video.runtime.files import write_atomically
    from hpm_video.runtime.pages import address, page, png

    pictures = [
        (
            result.page.stem,
            result.link,
            address(result.page.with_suffix(".png").read_bytes(), "png"),
        )
        for result in results
        if result.page is not None
    ]
    text = page(
        __package__,
        "demo.html",
        title="hpm_video demo",
        minutes=minutes,
        rows=rows,
        curves=png(_curves(runs)),
        pictures=pictures,
    )
    write_atomically(folder / "index.html", [text])


def _curves(runs: Mapping[str, Path]) -> Figure:
    """Losses and rank accuracy of the pre-training, losses of the two fine-tunings."""
    from matplotlib.figure import Figure

    from hpm_video.train.run.logs import read_records

    figure = Figure(figsize=(11, 3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    records = read_records(runs["pretrain"])
    epochs = [record["epoch"] for record in records]
    left.plot(epochs, [record["reconstruction_loss"] for record in records])
    left.set(title="pre-training: reconstruction loss", xlabel="epoch", yscale="log")
    middle.plot(epochs, [record["rank_accuracy"] for record in records], label="rank accuracy")
    middle.plot(epochs, [record["hard_ratio"] for record in records], label="hard ratio")
    middle.axhline(0.5, color="grey", linewidth=0.5)
    middle.set(title="pre-training: what it knows of its loss", xlabel="epoch", ylim=(0, 1))
    middle.legend()
    for name, label in (("finetune", "from the pre-training"), ("scratch", "from scratch")):
        records = [record for record in read_records(runs[name]) if "loss" in record]
        right.plot([r["epoch"] for r in records], [r["loss"] for r in records], label=label)
    right.set(title="fine-tuning: loss", xlabel="epoch")
    right.legend()
    return figure
