"""Averages of weights: over a range of a run's checkpoints, or the moving one that a run keeps."""

from pathlib import Path
from typing import Any

from torch import Tensor

from hpm_video.weights.checkpoint import load_checkpoint, run_checkpoints, without_training
from hpm_video.weights.misfits import misfits


def average_checkpoints(
    run: str | Path, *, first: int | None = None, last: int | None = None
) -> dict[str, Any]:
    """The mean weights of a run's checkpoints from step ``first`` to ``last``, both with it.

    Without them, of all that are there. The rest is the last one's, without what training needs;
    ``averaged`` names the steps. Where a checkpoint's model is a moving average, that is averaged.

    Raises FileNotFoundError, or ValueError where there are not at least two, or where they do not
    belong to one run.
    """
    files = run_checkpoints(run)
    start, end = min(files) if first is None else first, max(files) if last is None else last
    steps = [step for step in files if start <= step <= end]
    if len(steps) < 2:
        there = ", ".join(map(str, files))
        raise ValueError(
            f"steps to average ({', '.join(map(str, steps)) or 'none'}) must be at least two: "
            f"{run} holds {there} (run.keep_checkpoints says how many are kept)"
        )
    sums: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    for step in steps:
        before, state = state, load_checkpoint(files[step])
        if before and (before["kind"] != state["kind"] or misfits(state["model"], before["model"])):
            raise ValueError(
                f"checkpoint ({files[step]}) must be of the same model as those before"
            )
        for name, value in state["model"].items():
            if value.is_floating_point():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    weights = dict(state["model"])  # counters, as of batch norms, are the last one's
    weights |= {name: (total / len(steps)).to(weights[name].dtype) for name, total in sums.items()}
    return {**without_training(state), "model": weights, "averaged": steps}


def moving_average(checkpoint: str | Path) -> dict[str, Any]:
    """The exponential moving average of a run, as a checkpoint to be used.

    Of a fine-tuning with optim.ema_momentum it is what its model is. Of a pre-training it is the
    encoder of the teacher, where it has one: with model.predictor_input=encoded, or
    loss.target=ema.

    Raises FileNotFoundError, or ValueError where the run keeps no average.
    """
    state = load_checkpoint(checkpoint)
    if state["kind"] == "finetune":
        if state["config"]["optim"].get("ema_momentum") is None:
            raise ValueError(
                f"checkpoint ({checkpoint}) must be of a run with optim.ema_momentum: this one "
                "keeps no average of its weights"
            )
        return without_training(state)
    teacher = state.get("teacher") or {}
    encoder = {name: value for name, value in teacher.items() if name.startswith("encoder.")}
    if not encoder:
        raise ValueError(
            f"checkpoint ({checkpoint}) must have a teacher with an encoder, as runs with "
            "masking.hard_ratio_end above 0, masking.source=predicted and "
            "model.predictor_input=encoded have, and those with loss.target=ema: there is none"
        )
    return {**without_training(state), "model": encoder}
