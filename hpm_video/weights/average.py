"""Averages of weights: over a range of a run's checkpoints, or the run's own moving average."""

from pathlib import Path
from typing import Any

from torch import Tensor

from hpm_video.weights.checkpoint import load_checkpoint, run_checkpoints, without_training
from hpm_video.weights.misfits import misfits


def average_checkpoints(
    run: str | Path, *, first: int | None = None, last: int | None = None
) -> dict[str, Any]:
    """A checkpoint with the mean weights of a run's checkpoints from ``first`` to ``last``.

    Both steps are included; the default is all checkpoints. Other entries come from the last one,
    without training state; ``averaged`` lists the steps. If a checkpoint's model is a moving
    average, that is what is averaged.

    Raises FileNotFoundError, or ValueError if there are fewer than two checkpoints or their models
    differ.
    """
    files = run_checkpoints(run)
    start, end = min(files) if first is None else first, max(files) if last is None else last
    steps = [step for step in files if start <= step <= end]
    if len(steps) < 2:
        there = ", ".join(map(str, files))
        raise ValueError(
            f"steps to average ({', '.join(map(str, steps)) or 'none'}) must be at least two: "
            f"{run} holds checkpoints of steps {there}; include more of them, or train with a "
            "larger run.keep_checkpoints"
        )
    sums: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    for step in steps:
        before, state = state, load_checkpoint(files[step])
        if before and (before["kind"] != state["kind"] or misfits(state["model"], before["model"])):
            raise ValueError(
                f"checkpoint ({files[step]}) must hold the same model as the earlier checkpoints; "
                "leave it out of the steps to average"
            )
        for name, value in state["model"].items():
            if value.is_floating_point():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    weights = dict(state["model"])  # counters, such as those of batch norms, come from the last
    weights |= {name: (total / len(steps)).to(weights[name].dtype) for name, total in sums.items()}
    return {**without_training(state), "model": weights, "averaged": steps}


def moving_average(checkpoint: str | Path) -> dict[str, Any]:
    """The exponential moving average of a run, as a checkpoint without training state.

    For fine-tuning with optim.ema_momentum it is the checkpoint's model. For pre-training it is the
    teacher's encoder, which exists with model.predictor_input=encoded or loss.target=ema.

    Raises FileNotFoundError, or ValueError if the run keeps no average.
    """
    state = load_checkpoint(checkpoint)
    if state["kind"] == "finetune":
        if state["config"]["optim"].get("ema_momentum") is None:
            raise ValueError(
                f"checkpoint ({checkpoint}) must come from a run with optim.ema_momentum: its run "
                "kept no moving average"
            )
        return without_training(state)
    teacher = state.get("teacher") or {}
    encoder = {name: value for name, value in teacher.items() if name.startswith("encoder.")}
    if not encoder:
        raise ValueError(
            f"checkpoint ({checkpoint}) must have a teacher with an encoder. Train with "
            "loss.target=ema, or with masking.hard_ratio_end above 0, masking.source=predicted "
            "and model.predictor_input=encoded"
        )
    return {**without_training(state), "model": encoder}
