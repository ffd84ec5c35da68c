"""``hpm-video demo``: a clip and what a small model finds hard in it, in seconds.

With ``--train`` the whole promise in minutes: toy videos, pre-training with hard-tube mining,
fine-tuning from it and from scratch with the same budget, evaluation, and one page that leads to
all of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpm_video.cli.options import add_device, add_numbers, add_output_dir

if TYPE_CHECKING:
    from hpm_video.config.values import Device
    from hpm_video.runtime.plots import Plot
    from hpm_video.visualize import Result

SIZE = 64  # pixels
NUM_FRAMES = 16  # per video
_MOST_MEASURED = 64  # clips: reading one takes two processes, .3 s
NUM_STAGES = 6  # of `demo`, each of which says that it begins
# What the demo writes beside its own page and the viewer's: address from there, words
_LINKS = (
    ("pictures/training.html", "what becomes hard and easy during pre-training"),
    ("evaluation/finetune/index.html", "what the fine-tuned classifier confuses"),
    ("evaluation/scratch/index.html", "what the classifier from scratch confuses"),
    ("pretrain/log.txt", "log of the pre-training"),
    ("finetune/log.txt", "log of the fine-tuning"),
    ("scratch/log.txt", "log of the training from scratch"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "folder for the results (default outputs/demo, or demo_quick, demo_seedN)"
    add_output_dir(parser, text)
    add_device(parser)
    text = "train a small model and classifiers, and evaluate them: minutes on 2 CPU cores"
    # Its own name: elsewhere --train is a list of videos, which has to exist
    parser.add_argument("--train", dest="trains", action="store_true", help=text)
    text = "--train in a fraction of the time, to check that everything runs; learns nothing"
    parser.add_argument("--quick", action="store_true", help=text)
    add_numbers(parser, {"seed": "seed of weights, order, crops and masks for --train (default 0)"})


def run(arguments: argparse.Namespace) -> int:
    device, seed = arguments.device, arguments.seed
    if not (arguments.trains or arguments.quick):
        if seed is not None:
            raise ValueError(f"--seed ({seed}) must come with --train")
        return _show(Path(arguments.output_dir or "outputs/demo"), device=device)
    name = f"demo{'_quick' if arguments.quick else ''}{f'_seed{seed}' if seed else ''}"
    folder = Path(arguments.output_dir or f"outputs/{name}")
    return _train(folder, quick=arguments.quick, seed=seed or 0, device=device)


def _show(folder: Path, *, device: Device) -> int:
    from hpm_video.runtime.files import make_folder, not_left_empty

    with not_left_empty(make_folder(folder, name="output_dir")):
        from hpm_video.cli.demo_clip import open_page, show_clip

        page = show_clip(folder / "clip", device=device)
    print("A small model trained on toy videos, and a clip it has never seen. The page shows which")
    print("parts it expects to be hard to reconstruct, and which ones are.")
    print("next:")
    for command, what in (
        ("demo --train", "train it yourself: minutes on 2 CPU cores"),
        ("visualize RUN VIDEO -o DIR", "the same page for your own model and video"),
        ("--help", "all commands"),
    ):
        print(f"  {f'hpm-video {command}':<36}  # {what}")
    print(page)
    open_page(page)
    return 0


def _train(folder: Path, *, quick: bool, seed: int, device: Device) -> int:
    rows = demo(folder, quick=quick, seed=seed, device=device)
    if rows is None:
        return 1
    if quick:
        print("--quick only tries every step: nothing is learnt, and the figures mean nothing")
    width = max(len(what) for what, _, _ in rows)
    for what, figure, other in rows:
        print(f"{what:<{width}}  {figure:>7}  {other}")
    print(folder / "index.html")
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


class Stages:
    """Says on the terminal which part of the demo begins, and at what time since the first."""

    def __init__(self) -> None:
        self._start, self._begun = time.monotonic(), 0

    def __call__(self, what: str) -> None:
        self._begun += 1
        at = time.strftime("%M:%S", time.gmtime(60 * self.minutes))
        said = f"[{self._begun}/{NUM_STAGES}] {at} {what}"
        print(f"\n{said}" if self._begun > 1 else said, flush=True)

    @property
    def minutes(self) -> float:
        """Since the first began."""
        return (time.monotonic() - self._start) / 60


def demo(
    output_dir: str | Path, *, quick: bool = False, seed: int = 0, device: Device = "auto"
) -> list[tuple[str, str, str]] | None:
    """Run the demo, or what is left of it, into a folder; None when a signal stopped it.

    Returns rows of (what, figure, what chance or the comparison gives).
    """
    from hpm_video.config.limits import between
    from hpm_video.runtime.files import check_is_ours, make_folder, not_left_empty

    # Reject mistakes before the slow import of PyTorch
    folder, scale = Path(output_dir), QUICK if quick else FULL
    between("--seed", seed, 0, 2**63 - 1)
    make_folder(folder, name="output_dir")
    check_is_ours(folder / "index.html", name="output_dir", folder=folder)
    from hpm_video.config import EvaluateConfig, EvaluationConfig, FinetuneConfig, PretrainConfig
    from hpm_video.config.recipe import find_named
    from hpm_video.config.settings import load_config
    from hpm_video.data.lists.manifest import read_manifest
    from hpm_video.data.prepare.toy import first_videos, write_toy_videos
    from hpm_video.evaluate.classification import evaluate
    from hpm_video.evaluate.mining_quality import measure_videos
    from hpm_video.runtime.distributed import pick_device
    from hpm_video.runtime.pages import number
    from hpm_video.train.finetune import finetune
    from hpm_video.train.pretrain import pretrain
    from hpm_video.visualize import visualize
    from hpm_video.visualize.training import visualize_training
    from hpm_video.weights.checkpoint import find_checkpoint

    begin = Stages()
    with not_left_empty(folder):  # or refuse, before any video is made
        pick_device(device, setting="--device")
    begin("toy videos: 8 classes that differ in motion only")
    videos = folder / "videos"
    toy: dict[str, Any] = {"size": SIZE, "num_frames": NUM_FRAMES, "num_workers": 2}
    train = write_toy_videos(videos / "train", num_videos=scale.unlabelled, seed=0, **toy)
    held_out = write_toy_videos(videos / "held_out", num_videos=scale.held_out, seed=1, **toy)
    labelled = first_videos(train, videos / "labelled.csv", scale.labelled)

    runs = {name: folder / name for name in ("pretrain", "finetune", "scratch")}
    common = [f"run.device={device}", f"run.seed={seed}", *scale.settings]
    begin("pre-training without labels, masking what the model predicts to be hard")
    settings = [f"data.manifest={train}", f"run.output_dir={runs['pretrain']}", *common]
    if not pretrain(load_config(PretrainConfig, find_named("demo/pretrain"), settings)):
        return None
    for name, words in (("finetune", "from the pre-training"), ("scratch", "from scratch")):
        begin(f"training a classifier {words}, on {scale.labelled} labelled videos")
        settings = [f"data.manifest={labelled}", f"data.val_manifest={held_out}"]
        settings += [f"run.output_dir={runs[name]}", *common]
        if name == "finetune":
            settings.append(f"model.init={find_checkpoint(runs['pretrain'])}")
        if not finetune(load_config(FinetuneConfig, find_named("demo/finetune"), settings)):
            return None

    begin(f"evaluating classifiers and predicted losses on {scale.held_out} new videos")
    report = measure_videos(runs["pretrain"], [str(held_out)], most=_MOST_MEASURED)
    assert report.coverage is not None
    views = EvaluateConfig(
        evaluation=EvaluationConfig(num_clips=3, num_crops=1), num_workers=2, device=device
    )
    tuned, scratch = (
        evaluate(
            runs[name], [str(held_out)], views, output_dir=folder / "evaluation" / name
        ).figures()["top1"]
        or 0.0
        for name in ("finetune", "scratch")
    )
    manifest = read_manifest(held_out)
    shown = [manifest.path(index) for index in range(scale.pictures)]
    begin("writing pages")
    _, results = visualize(runs["pretrain"], shown, folder / "pictures", formats=(), device=device)
    visualize_training(runs["pretrain"], shown[:1], folder / "pictures", device=device)
    rows = [
        ("top-1 fine-tuned from the pre-training", f"{tuned:.3f}", "chance 0.125"),
        ("top-1 from scratch, same budget and labels", f"{scratch:.3f}", "chance 0.125"),
        ("gain in points", f"{100 * (tuned - scratch):+.1f}", "no gain 0"),
        ("rank accuracy on held-out clips", number(report.rank_accuracy, ".2f"), "chance 0.5"),
        (
            "Spearman, predicted and measured loss of tubes",
            number(report.spearman, ".2f"),
            "chance 0",
        ),
        ("moving object in the hardest quarter", f"{report.coverage:.2f} x", "random tubes 1 x"),
    ]
    write_page(folder, rows, runs, results, minutes=begin.minutes, is_quick=quick)
    return rows


def write_page(
    folder: Path,
    rows: Sequence[tuple[str, str, str]],
    runs: Mapping[str, Path],
    results: Sequence[Result],
    *,
    minutes: float,
    is_quick: bool = False,
) -> None:
    """Write index.html: figures, curves and pictures, with links to the viewer's pages in
    ``pictures`` within the same folder, and to whatever else of `_LINKS` is there."""
    from hpm_video.runtime.files import write_atomically
    from hpm_video.runtime.pages import page
    from hpm_video.visualize.verdict import RULE

    pictures = [
        (result.name, result.link, result.thumbnail, result.verdict, result.spearman)
        for result in results
        if result.page is not None
    ]
    text = page(
        __package__,
        "demo.html",
        title="hpm_video demo",
        minutes=minutes,
        is_quick=is_quick,
        rule=RULE if any(verdict for *_, verdict, _ in pictures) else "",
        rows=rows,
        curves=_curves(runs),
        pictures=pictures,
        links=[link for link in _LINKS if (folder / link[0]).is_file()],
    )
    write_atomically(folder / "index.html", [text])


def _curves(runs: Mapping[str, Path]) -> list[Plot | None]:
    """Losses and rank accuracy of the pre-training, losses of the two fine-tunings."""
    from hpm_video.runtime.plots import Line, curves
    from hpm_video.train.run.logs import read_records

    def line(label: str, run: str, key: str) -> Line:
        records = [record for record in read_records(runs[run]) if key in record]
        return Line(label, [r["epoch"] for r in records], [r[key] for r in records])

    loss = [line("reconstruction loss", "pretrain", "reconstruction_loss")]
    known = [
        line("rank accuracy", "pretrain", "rank_accuracy"),
        line("hard ratio", "pretrain", "hard_ratio"),
    ]
    tuned = [
        line("from the pre-training", "finetune", "loss"),
        line("from scratch", "scratch", "loss"),
    ]
    return [
        curves(loss, title="Pre-training: reconstruction loss", x_name="epoch", is_log=True),
        curves(known, title="Pre-training:", x_name="epoch", low=0.0, high=1.0),
        curves(tuned, title="Fine-tuning loss:", x_name="epoch", low=0.0),
    ]
