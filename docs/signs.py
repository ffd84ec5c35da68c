"""Print the tables of docs/results.md on short clips: pre-training, fine-tuning, probes, by seed.

``python docs/signs.py --train TRAIN.csv --val VAL.csv -o FOLDER`` runs ``hpm-video pretrain`` and
``finetune`` with configs/{pretrain,finetune}/short_clips_tiny.yaml. Started again it resumes, and
repeats no finished run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scipy.stats import spearmanr

ROOT = Path(__file__).parent.parent
PROBES = ("linear", "attentive", "knn")
CELLS = (4, 4, 4)  # signs differ in where the hands are, which a mean over all tokens hides
Records = list[dict[str, float]]


def run(job: str, folder: Path, *settings: str) -> Records:
    """Start or resume a job in its run folder; returns its records."""
    command = [sys.executable, str(ROOT / "tools" / f"{job}.py")]
    command += [str(ROOT / "configs" / job / "short_clips_tiny.yaml"), f"run.output_dir={folder}"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".out"), "a") as out:
        subprocess.run([*command, *settings], check=True, stdout=out, stderr=subprocess.STDOUT)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def probed(records: Records, kind: str) -> list[tuple[float, float]]:
    """(epoch, balanced accuracy) of each probe of this kind."""
    name = f"{kind}_balanced_accuracy"
    return [(record["epoch"], record[name]) for record in records if name in record]


def mean_and_spread(values: Sequence[float]) -> str:
    """``.812 ± .021``: mean and sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def row(label: str, cells: Sequence[object]) -> str:
    return f"| {label} | " + " | ".join(str(cell) for cell in cells) + " |"


def tables(runs: dict[str, list[Records]], seeds: Sequence[int]) -> Iterator[str]:
    """Lines of both tables: accuracies, and probes of the first seed; runs: one per seed."""
    yield row("", [f"seed {seed}" for seed in seeds] + ["mean ± standard deviation"])
    yield "|" + "---|" * (len(seeds) + 2)
    for label in ("from scratch", "pre-trained"):
        last = [records[-1]["balanced_accuracy"] for records in runs[label]]
        yield row(label, [f"{value:.3f}" for value in last] + [mean_and_spread(last)])
    yield ""
    curves = {kind: probed(runs["pre-training"][0], kind) for kind in PROBES}
    epochs = [epoch for epoch, _ in curves[PROBES[0]]]
    yield row(f"probe, seed {seeds[0]}", [f"epoch {e:g}" for e in epochs] + ["order, Spearman"])
    yield "|" + "---|" * (len(epochs) + 2)
    for kind, curve in curves.items():
        order = float(spearmanr(*zip(*curve, strict=True)).statistic)
        yield row(kind, [f"{value:.3f}" for _, value in curve] + [f"{order:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--train", required=True, help="list of labelled videos for training")
    parser.add_argument("--val", required=True, help="list of labelled videos for validation")
    parser.add_argument("-o", "--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=50, help="epochs between probes")
    arguments = parser.parse_args()
    lists = f"data.manifest={arguments.train}", f"data.val_manifest={arguments.val}"
    probes = (
        f"run.probe_every={arguments.every}",
        f"probe.kinds=[{','.join(PROBES)}]",
        f"probe.cells=[{','.join(map(str, CELLS))}]",
        f"probe.train_manifest={arguments.train}",
        f"probe.val_manifest={arguments.val}",
    )
    runs: dict[str, list[Records]] = {"pre-training": [], "from scratch": [], "pre-trained": []}
    for index, seed in enumerate(arguments.seeds):
        folder, seeded = arguments.output_dir / f"seed{seed}", f"run.seed={seed}"
        judged = () if index else probes  # one pre-training is probed along the way
        runs["pre-training"].append(run("pretrain", folder / "pretrain", lists[0], seeded, *judged))
        init = f"model.init={folder / 'pretrain'}"
        runs["from scratch"].append(run("finetune", folder / "scratch", *lists, seeded))
        runs["pre-trained"].append(run("finetune", folder / "finetune", *lists, seeded, init))
    for line in tables(runs, arguments.seeds):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
