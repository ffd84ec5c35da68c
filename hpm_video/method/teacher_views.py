"""The tokens that a sparse teacher sees."""

import math

import torch
from torch import Tensor

from hpm_video.config import TeacherConfig
from hpm_video.config.values import View, values_of
from hpm_video.method.masking import Rows, batch_noise
from hpm_video.models.tokens import TokenGrid


def num_seen(grid: TokenGrid, *, token_ratio: float, view: View) -> int:
    """Number of tokens that a teacher sees in one pass.

    The nearest number to the ratio that the view allows, at least one token, tube or time step.
    Raises ValueError for a ratio outside (0, 1].
    """
    if not 0 < token_ratio <= 1:
        raise ValueError(f"teacher.token_ratio ({token_ratio}) must be in (0, 1]")
    whole = {"tubes": grid.time, "frames": grid.num_tubes}.get(view, 1)  # tokens that come together
    return whole * max(1, round(token_ratio * (grid.num_tokens // whole)))


def describe_view(grid: TokenGrid, sight: TeacherConfig) -> str:
    """One log line on what a run's teacher sees.

    It warns if the teacher sees no token of most tubes: on toy videos such a teacher ranked tubes
    less well with every seed (docs/results.md).
    """
    seen = num_seen(grid, token_ratio=sight.token_ratio, view=sight.view)
    line = f"the teacher sees {seen} of {grid.num_tokens} tokens of a clip"

    def shows_most(ratio: float) -> bool:
        tokens = num_seen(grid, token_ratio=ratio, view=sight.view)
        return 2 * tokens * sight.draws >= grid.num_tubes

    if shows_most(sight.token_ratio):
        return line
    enough = next(ratio for ratio in (0.25, 0.5, 1.0) if shows_most(ratio))
    return (
        f"{line}; warning: it sees nothing of most of the {grid.num_tubes} tubes. Raise "
        f"teacher.token_ratio ({sight.token_ratio:g}) on such a small grid, for example to "
        f"{enough:g}"
    )


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
    """Draw the K = `num_seen` tokens of each pass of a sparse teacher: (B, draws, K), ascending.

    view ``tokens``: uniform over tokens. ``tubes``: uniform over whole tubes. ``frames``: whole
    time steps, evenly spaced from a random first one. ``spread``: random tokens, with equally many
    from every tube and every time step (within one; in later draws within two); below a ratio of
    1 / time some tubes show one token and the others none.

    Every view shows every token equally often. The draws of a clip share no token while unseen ones
    are left. ``rows``: see `make_mask`.
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
    elif view == "spread":
        tube_order, time_order = shuffled(tubes, time)
        # Deal tubes and time steps in turn, like two cogwheels. After lcm(tubes, time) tokens the
        # pairs would repeat; skipping one time step there makes every pair come exactly once.
        place = arange(grid.num_tokens)
        turn = (place + place // math.lcm(tubes, time)) % time
        order = time_order[:, turn] * tubes + tube_order[:, place % tubes]  # (B, N)
        tokens = _share_out(order, draws, seen)
    else:
        raise ValueError(f"teacher.view ({view}) must be one of {', '.join(values_of(View))}")
    return tokens.sort(dim=2).values


def _share_out(order: Tensor, draws: int, count: int) -> Tensor:
    """Give each draw the next ``count`` entries of a clip's order, starting over at its end:
    (B, K) -> (B, draws, count)."""
    place = torch.arange(draws * count, device=order.device) % order.shape[1]
    return order[:, place].unflatten(1, (draws, count))
