"""The tables of docs/results.md on short clips: pre-training, fine-tuning and probes, some seeds.

``python docs/signs.py --train TRAIN.csv --val VAL.csv -o FOLDER`` runs ``hpm-video pretrain`` and
``finetune`` with configs/{pretrain,finetune}/short_clips_tiny.yaml and prints the tables. Started
again it goes on where it stopped, and repeats nothing that is finished.
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
Records = list[dict[str, float]]


def run(job: str, folder: Path, *settings: str) -> Records:
    """Start or go on with a job in its run folder; returns what it measured."""
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
    """Lines: of each side, one list of records per seed, the accuracies; then the probes."""
    yield row("", [f"seed {seed}" for seed in seeds] + ["mean ± standard deviation"])
    yield "|" + "---|" * (len(seeds) + 2)
    for label in ("from scratch", "pre-trained"):
        last = [records[-1]["balanced_accuracy"] for records in runs[label]]
        yield row(label, [f"{value:.3f}" for value in last] + [mean_and_spread(last)])
    yield ""
    epochs = [epoch for epoch, _ in probed(runs["pre-training"][0], PROBES[0])]
    yield row("probe", [f"epoch {epoch:g}" for epoch in epochs] + ["rank correlation with time"])
    yield "|" + "---|" * (len(epochs) + 2)
    for kind in PROBES:
        curves = [probed(records, kind) for records in runs["pre-training"]]
        by_epoch = zip(*([value for _, value in curve] for curve in curves), strict=True)
        ranks = [float(spearmanr(*zip(*curve, strict=True)).statistic) for curve in curves]
        cells = [mean_and_spread(values) for values in by_epoch]
        yield row(kind, [*cells, mean_and_spread(ranks)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--train", required=True, help="list of labelled videos")
    parser.add_argument("--val", required=True, help="list of labelled videos to judge on")
    parser.add_argument("-o", "--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=50, help="epochs from probe to probe")
    arguments = parser.parse_args()
    lists = f"data.manifest={arguments.train}", f"data.val_manifest={arguments.val}"
    probes = (
        f"run.probe_every={arguments.every}",
        f"probe.kinds=[{','.join(PROBES)}]",
        f"probe.train_manifest={arguments.train}",
        f"probe.val_manifest={arguments.val}",
    )
    runs: dict[str, list[Records]] = {"pre-training": [], "from scratch": [], "pre-trained": []}
    for seed in arguments.seeds:
        folder, seeded = arguments.output_dir / f"seed{seed}", f"run.seed={seed}"
        runs["pre-training"].append(run("pretrain", folder / "pretrain", lists[0], seeded, *probes))
        init = f"model.init={folder / 'pretrain'}"
        runs["from scratch"].append(run("finetune", folder / "scratch", *lists, seeded))
        runs["pre-trained"].append(run("finetune", folder / "finetune", *lists, seeded, init))
    for line in tables(runs, arguments.seeds):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
