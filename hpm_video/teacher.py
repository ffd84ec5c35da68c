"""The EMA teacher: predicts, before each step, which tokens will be hard."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor

from hpm_video.masking import Rows, batch_noise
from hpm_video.models.hpm import HPM
from hpm_video.tokens import TokenGrid, patchify

View = Literal["tokens", "tubes", "frames", "spread"]


def make_teacher(student: HPM) -> HPM:
    """A frozen copy of the student without its reconstructor, which scoring does not need."""
    teacher = copy.deepcopy(student)
    teacher.reconstructor = None
    return teacher.requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(
    teacher: HPM, student: HPM, momentum: float, *, skip: Tensor | None = None
) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, over the parameters both have.

    ``skip``: scalar on the device, 1 leaves the teacher as it is, 0 updates it.
    """
    source = dict(student.named_parameters())
    pairs = [(mine, source[name]) for name, mine in teacher.named_parameters()]
    mine, theirs = [list(side) for side in zip(*pairs, strict=True)]
    if skip is None:
        torch._foreach_lerp_(mine, theirs, 1 - momentum)
    else:  # a weight that only the device knows has to come as a list
        torch._foreach_lerp_(mine, theirs, [(1 - momentum) * (1 - skip)] * len(mine))


def momentum_at(progress: float, *, start: float, end: float, ramp: float) -> float:
    """Momentum at progress in [0, 1] of the run: linear from start to end over the share ``ramp``,
    then constant."""
    return start + (end - start) * (min(progress / ramp, 1.0) if ramp > 0 else 1.0)


@torch.no_grad()
def score_tokens(
    teacher: HPM,
    clips: Tensor,
    *,
    token_ratio: float,
    view: View = "tokens",
    draws: int = 1,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """Predicted loss of every token: clips (B, 3, T, H, W) in [0, 1] -> (B, N) float32.

    At ``token_ratio`` 1 the teacher sees the whole clip, as in the paper. Below, it encodes only
    about that share of the tokens, which ones says ``view`` (see `draw_tokens`), afresh for each
    clip and call, and the predictor scores the others through mask tokens: the cost falls, and the
    teacher's input looks more like what the predictor was trained on. ``draws`` such passes, over
    different tokens, are averaged. ``rows`` as in `hpm_video.masking.random_mask`.
    """
    patches = patchify(clips, teacher.grid)
    batch, num_tokens, _ = patches.shape
    if num_seen(teacher.grid, token_ratio=token_ratio, view=view) == num_tokens:
        everything = torch.arange(num_tokens, device=clips.device).expand(batch, -1)
        return teacher.predicted_loss(teacher.sequence(patches, everything))
    drawn = draw_tokens(
        batch,
        teacher.grid,
        token_ratio=token_ratio,
        view=view,
        draws=draws,
        generator=generator,
        device=clips.device,
        rows=rows,
    )
    scores = [teacher.predicted_loss(teacher.sequence(patches, seen)) for seen in drawn.unbind(1)]
    return torch.stack(scores).mean(dim=0)


def num_seen(grid: TokenGrid, *, token_ratio: float, view: View) -> int:
    """How many tokens a teacher sees at once: the nearest number that the view can give, at least
    one token, tube or time step. Raises ValueError for a ratio outside (0, 1]."""
    if not 0 < token_ratio <= 1:
        raise ValueError(f"teacher.token_ratio ({token_ratio}) must be in (0, 1]")
    whole = {"tubes": grid.time, "frames": grid.num_tubes}.get(view, 1)  # tokens that come together
    return whole * max(1, round(token_ratio * (grid.num_tokens // whole)))


def draw_tokens(
    batch_size: int,
    grid: TokenGrid,
    *,
    token_ratio: float,
    view: View,
    draws: int = 1,
    generator: torch.Generator,
    device: torch.device | str,
    rows: Rows | None = None,
) -> Tensor:
    """The K = `num_seen` tokens that each draw of a sparse teacher sees: (B, draws, K), ascending.

    ``tokens``: any, uniformly. ``tubes``: whole tubes, uniformly. ``frames``: whole time steps,
    evenly spaced from a random first one. ``spread``: random tokens, but of every tube equally
    many and of every time step equally many (within one), so that below 1 / time some tubes show
    one token and the others none. In all of them every token is seen equally often. The draws of
    a clip share no token as long as there are others left. ``rows`` as in `random_mask`.
    """
    if draws < 1:
        raise ValueError(f"teacher.draws ({draws}) must be at least 1")
    seen = num_seen(grid, token_ratio=token_ratio, view=view)
    time, tubes = grid.time, grid.num_tubes

    def shuffled(*counts: int) -> list[Tensor]:
        """A random permutation (B, count) for each count."""
        noise = batch_noise(batch_size, sum(counts), generator=generator, device=device, rows=rows)
        return [part.argsort(dim=1) for part in noise.split(counts, dim=1)]

    def arange(count: int) -> Tensor:
        return torch.arange(count, device=device)

    if view == "tokens":
        (order,) = shuffled(grid.num_tokens)
        tokens = _share_out(order, draws, seen)
    elif view == "tubes":
        (order,) = shuffled(tubes)
        chosen = _share_out(order, draws, seen // time)  # (B, draws, tubes seen)
        tokens = (chosen[..., None] + tubes * arange(time)).flatten(2)
    elif view == "frames":
        (order,) = shuffled(time)
        steps = seen // tubes
        # Step i of k is floor((i * time + offset) / k): with a random offset in [0, time), all
        # time steps are equally likely. Draws start as far from each other as they can.
        offset = (order[:, :1] + arange(draws) * time // draws) % time  # (B, draws)
        chosen = (arange(steps) * time + offset[..., None]) // steps  # (B, draws, steps)
        tokens = (chosen[..., None] * tubes + arange(tubes)).flatten(2)
    else:
        tube_order, time_order = shuffled(tubes, time)
        # Deal tubes and time steps in turn, like two cogwheels. Where they would come round to
        # the same pairs, after lcm(tubes, time) tokens, the times skip one: each pair comes once.
        place = arange(grid.num_tokens)
        turn = (place + place // math.lcm(tubes, time)) % time
        order = time_order[:, turn] * tubes + tube_order[:, place % tubes]  # (B, N)
        tokens = _share_out(order, draws, seen)
    return tokens.sort(dim=2).values


def _share_out(order: Tensor, draws: int, count: int) -> Tensor:
    """Give each draw the next ``count`` of a clip's order, round and round: (B, K) -> (B, draws,
    count)."""
    place = torch.arange(draws * count, device=order.device) % order.shape[1]
    return order[:, place].unflatten(1, (draws, count))
