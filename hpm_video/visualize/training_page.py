"""The page of a training: clips under the losses of a chosen checkpoint, and curves beside them."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from hpm_video.config.settings import config_to_yaml
from hpm_video.runtime.pages import text
from hpm_video.visualize.overview import overview_page
from hpm_video.visualize.plots import Line, colour, curves
from hpm_video.visualize.video_page import jpeg, packed

if TYPE_CHECKING:
    from hpm_video.visualize.history import History

_KNOWS = 0.9  # of the best Spearman of a training, from which a model counts as knowing
_LEAST = 0.2  # ... if that best one is at least so much
# Pictures of metrics.jsonl: title, its records, ends of the axis
_CURVES: tuple[tuple[str, tuple[str, ...], tuple[float | None, float | None]], ...] = (
    ("Reconstruction loss", ("reconstruction_loss",), (0.0, None)),
    ("Prediction loss", ("prediction_loss",), (None, None)),
    ("Spearman, of training clips", ("spearman",), (0.0, 1.0)),
    ("Rank accuracy, of training clips", ("rank_accuracy",), (0.5, 1.0)),
    ("Measured loss of masked tubes", ("hard_loss", "random_loss"), (0.0, None)),
    ("Hard ratio", ("hard_ratio",), (0.0, None)),
)


def training_page(history: History, *, run: str, num_masks: int) -> str:
    """The HTML page; it needs no other file."""
    steps = [moment.step for moment in history.moments]
    return overview_page(
        f"What {run} finds hard, through training",
        f"<p>{len(history.clips)} clip{'s' if len(history.clips) > 1 else ''} at "
        f"{len(steps)} moments of the training, steps {steps[0]:,} to {steps[-1]:,}; losses are "
        f"measured under the same {num_masks} random masks at each.</p>",
        *_notes(history),
        _controls(history),
        *(_clip(history, place) for place in range(len(history.clips))),
        _know_table(history),
        _records(history),
        "<details><summary>Settings of the run</summary>"
        f"<pre>{html.escape(config_to_yaml(history.config))}</pre></details>",
        script="training.js",
        data=_data(history),
    )


def _notes(history: History) -> list[str]:
    """What must be known before one believes the page."""
    said, read = [], [moment for moment in history.moments if not moment.is_remade]
    if history.is_short:
        span = "at step " + ", ".join(f"{moment.step:,}" for moment in read)
        kept = history.config.run.keep_checkpoints
        rule = "all of them" if kept == 0 else f"the newest {kept}"
        said.append(
            f"Only {len(read)} checkpoint{'s' if len(read) > 1 else ''} could be asked, {span}: "
            f"too few to see when something was learnt. The run keeps {rule} "
            f"(run.keep_checkpoints={kept}); train with run.keep_checkpoints=0, and a "
            "run.checkpoint_every_minutes that is short enough, to keep the way there."
        )
    elif history.num_there - len(history.skipped) > len(read):
        said.append(
            f"{len(read)} of the run's {history.num_there} checkpoints were asked, evenly picked; "
            "--num-checkpoints asks more."
        )
    if history.moments[0].is_remade:
        said.append(
            "Step 0 is no checkpoint: it is the untrained model, remade from run.seed as the run "
            "made it."
        )
    if history.moments[-1].predicted is None:
        said.append(
            "This run is a plain VideoMAE, without a loss predictor: only measured losses are "
            "shown."
        )
    parts = [f'<p class="note" role="note">{text(words)}</p>' for words in said]
    for title, pairs in (
        ("Checkpoints that could not be used", history.skipped),
        ("Unreadable videos", history.bad),
    ):
        if pairs:
            lines = "".join(f"<li>{text(name)}: {text(reason)}" for name, reason in pairs)
            parts.append(f'<div class="note" role="note">{title}:<ul>{lines}</ul></div>')
    return parts


def _controls(history: History) -> str:
    last = len(history.moments) - 1
    has_predictor = history.moments[-1].predicted is not None
    layers = [("measured", "measured loss"), ("left", "loss left of the first moment's")]
    layers = ([("predicted", "predicted loss")] if has_predictor else []) + layers
    options = "".join(f'<option value="{name}">{words}</option>' for name, words in layers)
    return f"""<form class="bar" id="controls" onsubmit="return false">
<label>step <input id="moment" type="range" min="0" max="{last}" value="{last}"></label>
<output id="step" for="moment"></output>
<button id="train" type="button" aria-pressed="false">Play training</button>
<label>frame <input id="frame" type="range" min="0" max="0" value="0"></label>
<button id="play" type="button" aria-pressed="true">Pause</button>
<label>colour <select id="layer">{options}<option value="none">none</option></select></label>
<label>by <select id="scale"><option value="rank">rank in the clip</option>
<option value="value">value, one scale for all checkpoints</option></select></label>
<label>opacity <input id="opacity" type="range" min="0" max="100" value="60"></label>
<span>dark: the easiest, yellow: the hardest</span>
</form>
<p class="soft">By value, predicted losses are those of one clip: only their order has a
meaning.</p>"""


def _clip(history: History, place: int) -> str:
    """A section that the script fills, with the curves of the clip."""
    moments, name = history.moments, history.clips[place].name
    steps = [moment.step for moment in moments]
    losses = [float(moment.measured[place].mean()) for moment in moments]
    plots = [
        curves(
            [Line("measured", steps, losses)],
            title="Measured loss, logarithmic",
            x_name="step",
            is_log=min(losses) > 0,
        )
    ]
    if moments[-1].spearman is not None:
        lines = [
            Line(words, steps, [_at(getattr(m, key), place) for m in moments])
            for key, words in (("spearman", "Spearman"), ("rank_accuracy", "rank accuracy"))
        ]
        plots.append(curves(lines, title="How well it knows:", x_name="step", low=0.0, high=1.0))
    return f"""<section class="clip" id="clip{place}" aria-label="{text(name)}">
<h2>{text(name)}</h2><div class="row">
<div><canvas tabindex="0" role="img" aria-label="frames of {text(name)}, coloured by loss; arrow
keys choose a tube"></canvas>
<p class="told" aria-live="polite">Point at a tube, or choose one with the arrow keys, for its
losses.</p></div>
<div>{"".join(plots)}<div class="of-tube"></div></div>
<div class="lists"><p class="numbers"></p>
<h3>Became easy <span class="soft">(share of the first loss that is left)</span></h3>
<ol class="easy"></ol><h3>Stayed hard</h3><ol class="hard"></ol></div>
</div></section>"""


def _know_table(history: History) -> str:
    """Spearman of every clip at every moment, and from which one on it is near its best."""
    moments = history.moments
    if any(moment.spearman is None for moment in moments):
        return ""
    values = np.stack([moment.spearman for moment in moments if moment.spearman is not None])
    head = "".join(f'<th scope="col">{moment.step:,}' for moment in moments)
    lines = []
    for place, clip in enumerate(history.clips):
        of_clip = values[:, place]
        first = knows_from(of_clip)
        cells = "".join(
            f"<td{' class=best' if index == first else ''} "
            f'style="background: {colour(max(0.0, value) * 0.85)}">{value:.2f}'
            for index, value in enumerate(of_clip)
        )
        since = "not yet" if first is None else f"step {moments[first].step:,}"
        lines.append(f'<tr><th scope="row">{text(clip.name)}{cells}<td class="plain">{since}')
    return (
        "<h2>When does it begin to know?</h2><p>Spearman's rank correlation of predicted with "
        "measured losses of a clip's tubes, by step (0 is chance, 1 perfect). It knows from the "
        f"first step, framed, at which it reaches {_KNOWS:.0%} of the best of all steps shown, "
        f'where that is at least {_LEAST:g}.</p><div class="wide"><table class="steps">'
        f'<tr><th scope="col">clip{head}<th scope="col">knows from{"".join(lines)}</table></div>'
    )


def knows_from(spearman: npt.NDArray[np.float64]) -> int | None:
    """The first moment (of K values) that is near the best; None where that is near chance."""
    best = spearman.max()
    return None if best < _LEAST else int(np.argmax(spearman >= _KNOWS * best))


def _records(history: History) -> str:
    records = history.records
    if not records:
        return "<h2>The run</h2><p>Its metrics.jsonl is not there, or cannot be read.</p>"
    steps = [record["step"] for record in records]
    plots = [
        curves(
            [
                Line(key.replace("_", " "), steps, [record.get(key) for record in records])
                for key in keys
            ],
            title=title,
            x_name="step",
            low=low,
            high=high,
        )
        for title, keys, (low, high) in _CURVES
        if any(record.get(key) is not None for record in records for key in keys)
    ]
    return (
        "<h2>The run</h2><p>From its metrics.jsonl; the line marks the chosen step.</p>"
        f'<div class="row">{"".join(plots)}</div>'
    )


def _data(history: History) -> dict[str, Any]:
    """What the script draws: float32 arrays (moments, N) as base64, frames as JPEG."""
    colours = (colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(int)
    moments = history.moments
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
    grid = history.grid
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
