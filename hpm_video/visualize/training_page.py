"""The training page: clips with the losses of a chosen checkpoint, beside curves of the run."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from hpm_video.config.settings import config_to_yaml
from hpm_video.runtime.pages import jpeg, packed, page, short
from hpm_video.runtime.plots import Line, Plot, curves
from hpm_video.visualize.training_history import History
from hpm_video.visualize.verdict import CHANCE, RULE, mean_of, verdict

_KNOWS = 0.9  # share of the best Spearman from which the model counts as knowing
# Curves of metrics.jsonl: title, keys, axis limits
_CURVES: tuple[tuple[str, tuple[str, ...], tuple[float | None, float | None]], ...] = (
    ("Reconstruction loss", ("reconstruction_loss",), (0.0, None)),
    ("Prediction loss", ("prediction_loss",), (None, None)),
    ("Spearman on training clips", ("spearman",), (0.0, 1.0)),
    ("Rank accuracy on training clips", ("rank_accuracy",), (0.5, 1.0)),
    ("Measured loss of masked tubes", ("hard_loss", "random_loss"), (0.0, None)),
    ("Hard ratio", ("hard_ratio",), (0.0, None)),
)


def training_page(history: History, *, run: str, num_masks: int) -> str:
    """Render the page as one HTML file."""
    last = history.moments[-1].spearman
    spearman = None if last is None else mean_of(last.tolist())
    asked = [moment.step for moment in history.moments if not moment.is_remade]
    return page(
        __package__,
        "training.html",
        title=f"What {short(run)} finds hard during training",
        title_path=run,
        spearman=spearman,
        found=verdict(spearman),
        rule=RULE,
        history=history,
        num_masks=num_masks,
        asked_steps=", ".join(f"{step:,}" for step in asked),
        is_plain=history.moments[-1].predicted is None,
        clip_plots=[list(_clip_plots(history, place)) for place in range(len(history.clips))],
        known=_known(history),
        knows=_KNOWS,
        least=CHANCE,
        run_plots=_run_plots(history) if history.records else None,
        settings=config_to_yaml(history.config),
        data=_data(history),
    )


def _clip_plots(history: History, place: int) -> Iterator[Plot | None]:
    moments = history.moments
    steps = [moment.step for moment in moments]
    losses = [float(moment.measured[place].mean()) for moment in moments]
    lines, is_log = [Line("measured", steps, losses)], min(losses) > 0
    yield curves(lines, title="Measured loss, logarithmic", x_name="step", is_log=is_log)
    if moments[-1].spearman is not None:
        lines = [
            Line("Spearman", steps, [_at(moment.spearman, place) for moment in moments]),
            Line("rank accuracy", steps, [_at(moment.rank_accuracy, place) for moment in moments]),
        ]
        yield curves(lines, title="How well it ranks:", x_name="step", low=0.0, high=1.0)


def _known(history: History) -> list[tuple[str, int | None, list[float]]]:
    """Per clip: the first moment with Spearman near its best, and Spearman of all moments. Empty
    without a predictor."""
    spearman = [moment.spearman for moment in history.moments if moment.spearman is not None]
    if len(spearman) < len(history.moments):
        return []
    return [
        (clip.name, knows_from(values), values.tolist())
        for clip, values in zip(history.clips, np.stack(spearman, axis=1), strict=True)
    ]


def knows_from(spearman: npt.NDArray[np.float64]) -> int | None:
    """The first of K moments whose Spearman is near the best; None if the best is near chance."""
    best = spearman.max()
    return None if best < CHANCE else int(np.argmax(spearman >= _KNOWS * best))


def _run_plots(history: History) -> list[Plot | None]:
    records = history.records
    steps = [record["step"] for record in records]
    plots = []
    for title, keys, (low, high) in _CURVES:
        known = {key.replace("_", " "): [record.get(key) for record in records] for key in keys}
        if any(value is not None for values in known.values() for value in values):
            lines = [Line(name, steps, values) for name, values in known.items()]
            plots.append(curves(lines, title=title, x_name="step", low=low, high=high))
    return plots


def _data(history: History) -> dict[str, Any]:
    """Data for the script: float32 arrays (moments, N) as base64, frames as JPEG."""
    colours = (colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(int)
    grid, moments = history.grid, history.moments
    clips = []
    for place, clip in enumerate(history.clips):
        predicted = [m.predicted[place] for m in moments if m.predicted is not None]
        clips.append(
            {
                "frames": [jpeg(frame, quality=85) for frame in clip.frames],
                "numbers": clip.numbers.tolist(),
                "measured": packed(np.stack([m.measured[place] for m in moments])),
                "predicted": packed(np.stack(predicted)) if predicted else None,
                "spearman": [_at(m.spearman, place) for m in moments],
                "rank_accuracy": [_at(m.rank_accuracy, place) for m in moments],
            }
        )
    return {
        "grid": [grid.time, grid.height, grid.width],
        "tubelet": history.config.model.tubelet_size,
        "steps": [moment.step for moment in moments],
        "remade": [moment.is_remade for moment in moments],
        "colours": colours.tolist(),
        "clips": clips,
    }


def _at(values: npt.NDArray[np.float64] | None, place: int) -> float | None:
    return None if values is None else float(values[place])
