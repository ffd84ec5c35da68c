"""Draw how cost grows: ``python docs/growth.py outputs/growth.json`` writes docs/images/growth.png
from the measurements of ``tools/measure/growth.py --json``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

mpl.use("Agg")  # no window

# Okabe and Ito's colours, which suit colour-blind readers
COLOURS = {"seconds": "#0072B2", "memory_mb": "#D55E00", "multiply_adds_g": "#888888"}
WORDS = {"seconds": "time", "memory_mb": "memory", "multiply_adds_g": "multiply-adds"}
LABELS = {
    "frames": "frames",
    "crop_size": "resolution, pixels",
    "mask_ratio": "mask ratio (visible share, growing)",
    "batch_size": "batch, clips",
}


def draw(report: Path, folder: Path) -> Path:
    """Draw a panel per varied setting; every line is relative to its first point."""
    result = json.loads(report.read_text(encoding="utf-8"))
    figure, panels = plt.subplots(1, len(LABELS), figsize=(13, 3.4), sharey=True)
    for axes, (name, label) in zip(panels, LABELS.items(), strict=True):
        _panel(axes, [row for row in result["rows"] if row["varied"] == name], label)
    panels[0].set_ylabel("relative to the first point")
    panels[2].legend(frameon=False, loc="upper left")
    machine, asked = result["machine"], result["settings"]
    figure.suptitle(
        f"A step of HPM, {asked['size']}, batch {asked['batch_size']}, "
        f"{asked['precision']}, {machine['device']}, threads {machine['threads']}",
        fontsize=10,
    )
    figure.tight_layout()
    path = folder / "growth.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _panel(axes: Axes, rows: list[dict[str, Any]], label: str) -> None:
    shares = [1 - row["value"] if row["varied"] == "mask_ratio" else row["value"] for row in rows]
    power = 2 if rows[0]["varied"] == "crop_size" else 1  # tokens grow with the square of the side
    for key, colour in COLOURS.items():
        relative = [row[key] / rows[0][key] for row in rows]
        style = "--" if key == "multiply_adds_g" else "o-"
        axes.plot(shares, relative, style, color=colour, label=WORDS[key])
    linear = [(share / shares[0]) ** power for share in shares]
    axes.plot(shares, linear, ":", color="#BBBBBB", label="linear")
    axes.set(xscale="log", yscale="log", xlabel=label)
    axes.set_xticks(shares, [f"{row['value']:g}" for row in rows])
    axes.minorticks_off()
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="file that --json wrote")
    draw(parser.parse_args().report, Path(__file__).parent / "images")
