"""The EMA teacher: predicts, before each step, which tokens will be hard."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from hpm_video.config import values
from hpm_video.method.masking import Rows, batch_noise
from hpm_video.models.decoder import DecoderInput
from hpm_video.models.ema import move_average
from hpm_video.models.hpm import HPM, EncodedPredictor, PixelPredictor
from hpm_video.models.precision import no_autocast
from hpm_video.models.tokens import TokenGrid, as_patches, gather_tokens
from hpm_video.models.vit import Encoder

View = values.View


class Teacher(nn.Module):
    """What of a student predicts losses, as a frozen copy: never the reconstructor, and the encoder
    only where the predictor builds on it."""

    def __init__(self, student: HPM) -> None:
        super().__init__()
        assert student.predictor is not None, "plain VideoMAE has no teacher"
        self.grid = student.grid
        self.predictor = copy.deepcopy(student.predictor)
        self.encoder: Encoder | None = None
        self.decoder_input: DecoderInput | None = None
        if isinstance(self.predictor, EncodedPredictor):
            self.encoder = copy.deepcopy(student.encoder)
            self.decoder_input = copy.deepcopy(student.decoder_input)
        self.requires_grad_(False).eval()

    def forward(self, patches: Tensor, seen: Tensor) -> Tensor:
        """Patches (B, N, P), of which it sees those at index seen (B, K) -> predicted loss of all
        tokens (B, N) float32."""
        looked_at = gather_tokens(patches, seen)
        if isinstance(self.predictor, PixelPredictor):
            return fill_in(self.predictor(looked_at, seen), seen, self.grid)
        assert self.encoder is not None and self.decoder_input is not None
        return self.predictor(self.decoder_input(self.encoder(looked_at, seen), seen))


def fill_in(scores: Tensor, seen: Tensor, grid: TokenGrid) -> Tensor:
    """Scores (B, K) of the tokens seen (B, K) -> (B, N); the others get a mean of the scores seen.

    Near ones count more, and nearness in time more than in space: exp(-|time| / 4 - 2 |row| -
    2 |column|), distances in tokens. What is in a place now is mostly there a moment later.
    """
    canvas = scores.new_zeros(len(scores), grid.num_tokens, dtype=torch.float32)
    known = canvas.scatter(1, seen, 1.0)
    canvas = canvas.scatter(1, seen, scores.float())
    filled = torch.stack([canvas, known]).unflatten(-1, (grid.time, grid.height, grid.width))
    # In bfloat16 near scores would become ties.
    with no_autocast(scores):
        for dim, decay in ((-3, 0.25), (-2, 2.0), (-1, 2.0)):
            place = torch.arange(filled.shape[dim], device=scores.device)
            # Far away all is equally far: three factors of less would leave float32's range.
            near = torch.exp(-decay * (place[:, None] - place).abs()).clamp(min=1e-10)
            filled = (filled.movedim(dim, -1) @ near).movedim(-1, dim)
    total, weight = filled.flatten(-3)
    return torch.where(known > 0, canvas, total / weight)


def update_teacher(
    teacher: Teacher, student: HPM, momentum: float, *, skip: Tensor | None = None
) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, over the parameters both have.

    ``skip``: scalar on the device, 1 leaves the teacher as it is, 0 updates it.
    """
    source = dict(student.named_parameters())
    pairs = [(mine, source[name]) for name, mine in teacher.named_parameters()]
    move_average(pairs, momentum, skip=skip)


def momentum_at(progress: float, *, start: float, end: float, ramp: float) -> float:
    """Momentum at progress in [0, 1] of the run: linear from start to end over the share ``ramp``,
    then constant."""
    return start + (end - start) * (min(progress / ramp, 1.0) if ramp > 0 else 1.0)


@torch.no_grad()
def score_tokens(
    teacher: Teacher,
    clips: Tensor,
    *,
    token_ratio: float,
    view: View = "tokens",
    draws: int = 1,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """Predicted loss of every token: clips (B, 3, T, H, W) in [0, 1], or their patches (B, N, P)
    -> (B, N) float32.

    At ``token_ratio`` 1 the teacher sees the whole clip, as in the paper. Below, it sees only about
    that share of the tokens, which ones says ``view`` (see `draw_tokens`), afresh for each clip and
    call. The others are scored by an `EncodedPredictor` through mask tokens, for a
    `PixelPredictor` by `fill_in`. ``draws`` such passes, over different tokens, are averaged.
    ``rows`` as in `hpm_video.method.masking.random_mask`.
    """
    patches = as_patches(clips, teacher.grid)
    batch, num_tokens, _ = patches.shape
    if num_seen(teacher.grid, token_ratio=token_ratio, view=view) == num_tokens:
        everything = torch.arange(num_tokens, device=clips.device).expand(batch, -1)
        scores: Tensor = teacher(patches, everything)
        return scores
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
    return torch.stack([teacher(patches, seen) for seen in drawn.unbind(1)]).mean(dim=0)


def num_seen(grid: TokenGrid, *, token_ratio: float, view: View) -> int:
    """How many tokens a teacher sees at once: the nearest number that the view can give, at least
    one token, tube or time step. Raises ValueError for a ratio outside (0, 1]."""
    if not 0 < token_ratio <= 1:
        raise ValueError(f"teacher.token_ratio ({token_ratio}) must be in (0, 1]")
    whole = {"tubes": grid.time, "frames": grid.num_tubes}.get(view, 1)  # tokens that come together
    return whole * max(1, round(token_ratio * (grid.num_tokens // whole)))


def describe_view(grid: TokenGrid, *, token_ratio: float, view: View, draws: int = 1) -> str:
    """What a run's teacher sees, in a line, which warns where most tubes show it nothing: on toy
    videos such a teacher ordered tubes worse with each seed (docs/results.md)."""
    seen = num_seen(grid, token_ratio=token_ratio, view=view)
    line = f"the teacher sees {seen} of {grid.num_tokens} tokens of a clip"
    if 2 * seen * draws >= grid.num_tubes:
        return line
    return (
        f"{line}; warning: nothing of most of its {grid.num_tubes} tubes: teacher.token_ratio "
        f"({token_ratio:g}) should be higher on so small a grid, such as 0.25"
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
    """The K = `num_seen` tokens that each draw of a sparse teacher sees: (B, draws, K), ascending.

    ``tokens``: any, uniformly. ``tubes``: whole tubes, uniformly. ``frames``: whole time steps,
    evenly spaced from a random first one. ``spread``: random tokens, but of every tube equally
    many and of every time step equally many (within one; in later draws within two), so that below
    1 / time some tubes show one token and the others none. In all of them every token is seen
    equally often. The draws of a clip share no token as long as there are others left. ``rows`` as
    in `random_mask`.
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
