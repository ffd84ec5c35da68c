"""Whether runs that learn to rank losses early end better: rank correlations over a study's runs.

    python tools/measure/plateau.py docs/measured/study_when.json

For each epoch with probes: Spearman of the runs' rank accuracy in training at that epoch with the
balanced accuracy that they fine-tune to, over all runs, and without the mean of their variant.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, help="rows of a study, see docs/study_rows.py")
    file = parser.parse_args().rows
    rows = [row for row in json.loads(file.read_text())["rows"] if row.get("rank_accuracy_curve")]
    if not rows:
        raise SystemExit(f"rows ({file}) must have curves of rank accuracy: see docs/study_rows.py")
    variants = np.array([row["variant"] for row in rows])
    accuracy = np.array([row["balanced_accuracy"] for row in rows])
    curves = np.array([row["rank_accuracy_curve"] for row in rows])
    means = np.stack([curves[variants == name].mean(0) for name in variants])
    levels = np.array([accuracy[variants == name].mean() for name in variants])
    sys.stdout.write(f"{len(rows)} runs\nepoch  all runs  within variants\n")
    for epoch, curve, mean in zip(rows[0]["probe_epochs"], curves.T, means.T, strict=True):
        over_all = spearmanr(curve, accuracy).statistic
        within = spearmanr(curve - mean, accuracy - levels).statistic
        sys.stdout.write(f"{epoch:5.0f}  {over_all:8.2f}  {within:15.2f}\n")


if __name__ == "__main__":
    main()
