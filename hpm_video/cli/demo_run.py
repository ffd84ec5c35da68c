"""``hpm-video demo``: the whole promise in minutes. Toy videos, pre-training with hard-tube mining,
fine-tuning from it and from scratch with the same budget, evaluation, pictures, and one page with
all of it."""

from __future__ import annotations

import argparse
import base64
import html
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpm_video.cli.options import add_output_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "demo"

SIZE = 64  # pixels
NUM_FRAMES = 16  # per video


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_dir(parser, "(default %(default)s)", default="outputs/demo")
    text = "only see that everything runs: learns nothing"
    parser.add_argument("--quick", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    result = demo(arguments.output_dir, quick=arguments.quick)
    if result is None:
        return 1
    rows = table(result)
    width = max(len(what) for what, _, _ in rows)
    for what, figure, other in rows:
        print(f"{what:<{width}}  {figure:>7}  {other}")
    print(result.page)
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


@dataclass(frozen=True)
class DemoResult:
    """The demo's figures; ``page`` shows them."""

    page: Path
    top1_pretrained: float
    top1_scratch: float
    rank_accuracy: float
    spearman: float
    coverage: float


def demo(output_dir: str | Path = "outputs/demo", *, quick: bool = False) -> DemoResult | None:
    """Run the demo, or what is left of it, into a folder; None when a signal stopped it."""
    from hpm_video.config import EvaluateConfig, EvaluationConfig, FinetuneConfig, PretrainConfig
    from hpm_video.config.settings import load_config
    from hpm_video.data.lists.manifest import read_manifest
    from hpm_video.data.prepare.toy import first_videos, write_toy_videos
    from hpm_video.evaluate.classification import evaluate
    from hpm_video.evaluate.mining_videos import measure_videos
    from hpm_video.runtime.files import check_is_ours
    from hpm_video.train.finetune import finetune
    from hpm_video.train.pretrain import pretrain
    from hpm_video.visualize import visualize
    from hpm_video.weights.checkpoint import find_checkpoint

    folder, scale = Path(output_dir), QUICK if quick else FULL
    check_is_ours(folder / "index.html", name="output_dir")
    start = time.monotonic()
    videos = folder / "videos"
    toy: dict[str, Any] = {"size": SIZE, "num_frames": NUM_FRAMES, "num_workers": 2}
    train = write_toy_videos(videos / "train", num_videos=scale.unlabelled, seed=0, **toy)
    held_out = write_toy_videos(videos / "held_out", num_videos=scale.held_out, seed=1, **toy)
    labelled = first_videos(train, videos / "labelled.csv", scale.labelled)

    runs = {name: folder / name for name in ("pretrain", "finetune", "scratch")}
    settings = [f"data.manifest={train}", f"run.output_dir={runs['pretrain']}", *scale.settings]
    if not pretrain(load_config(PretrainConfig, CONFIGS / "pretrain.yaml", settings)):
        return None
    for name in ("finetune", "scratch"):
        settings = [f"data.manifest={labelled}", f"data.val_manifest={held_out}"]
        settings += [f"run.output_dir={runs[name]}", *scale.settings]
        if name == "finetune":
            settings.append(f"model.init={find_checkpoint(runs['pretrain'])}")
        if not finetune(load_config(FinetuneConfig, CONFIGS / "finetune.yaml", settings)):
            return None

    report = measure_videos(runs["pretrain"], [str(held_out)])
    assert report is not None and report.coverage is not None
    views = EvaluateConfig(evaluation=EvaluationConfig(num_clips=3, num_crops=1), num_workers=2)
    top1 = {
        name: evaluate(runs[name], [str(held_out)], views).top(1)
        for name in ("finetune", "scratch")
    }
    manifest = read_manifest(held_out)
    shown = [manifest.path(index) for index in range(scale.pictures)]
    visualize(runs["pretrain"], shown, folder / "pictures")
    result = DemoResult(
        page=folder / "index.html",
        top1_pretrained=top1["finetune"],
        top1_scratch=top1["scratch"],
        rank_accuracy=report.rank_accuracy,
        spearman=report.spearman,
        coverage=report.coverage,
    )
    minutes = (time.monotonic() - start) / 60
    page = _page(result, runs, sorted((folder / "pictures").glob("*.png")), minutes)
    result.page.write_text(page, encoding="utf-8")
    return result


def table(result: DemoResult) -> list[tuple[str, str, str]]:
    """Rows of (what, figure, what chance or the comparison gives)."""
    gain = 100 * (result.top1_pretrained - result.top1_scratch)
    return [
        ("top-1 fine-tuned from the pre-training", f"{result.top1_pretrained:.3f}", "chance .125"),
        ("top-1 from scratch, same budget and labels", f"{result.top1_scratch:.3f}", "chance .125"),
        ("gain in points", f"{gain:+.1f}", "0"),
        ("rank accuracy on held-out clips", f"{result.rank_accuracy:.3f}", "chance .5"),
        ("Spearman, predicted and measured loss of tubes", f"{result.spearman:.3f}", "chance 0"),
        ("moving object in the hardest quarter", f"{result.coverage:.2f} x", "random tubes 1 x"),
    ]


def _curves(runs: dict[str, Path]) -> Figure:
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


def _page(
    result: DemoResult, runs: dict[str, Path], pictures: Sequence[Path], minutes: float
) -> str:
    """One self-contained page."""
    buffer = io.BytesIO()
    _curves(runs).savefig(buffer, format="png", dpi=110)
    rows = "".join(
        f"<tr><td>{html.escape(what)}</td><td>{figure}</td><td>{html.escape(other)}</td></tr>"
        for what, figure, other in table(result)
    )
    shown = "".join(
        f"<h3>{html.escape(path.stem)}</h3>{_image(path.read_bytes(), path.stem)}"
        for path in pictures
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="hpm-video">
<title>hpm_video demo</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: auto; padding: 1rem }}
table {{ border-collapse: collapse }} td {{ border: 1px solid #8888; padding: .2rem .7rem }}
img {{ max-width: 100%; background: white }}
</style>
<h1>hpm_video demo</h1>
<p>Toy videos of 8 classes that differ in motion only. A model was pre-trained without labels,
masking more and more of the tubes that it predicted to be hard; then it was fine-tuned on a few
labelled videos, beside the same model from scratch with the same labels and steps. Everything here
is measured on videos that no training saw. This start of the demo took {minutes:.1f} minutes.</p>
<table>{rows}</table>
<h2>Curves</h2>
{_image(buffer.getvalue(), "training curves")}
<h2>What the model finds hard</h2>
<p>Each picture: frames, predicted and measured loss, the hard tubes outlined, and what the model
reconstructs from a random mask. See docs/visualize.md for how to read it.</p>
{shown}
</html>
"""


def _image(png: bytes, label: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(label)}" src="data:image/png;base64,{data}">'
