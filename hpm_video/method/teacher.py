"""The EMA teacher: predicts, before each step, which tokens will be hard."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpm_video.config import PretrainConfig
from hpm_video.config.values import View
from hpm_video.method.masking import Rows
from hpm_video.method.teacher_views import draw_tokens, num_seen
from hpm_video.models.decoder import DecoderInput
from hpm_video.models.ema import move_average
from hpm_video.models.hpm import HPM, EncodedPredictor, PixelPredictor
from hpm_video.models.pixels import gather_patches
from hpm_video.models.precision import no_autocast
from hpm_video.models.tokens import TokenGrid, as_patches
from hpm_video.models.vit import Encoder


class Teacher(nn.Module):
    """The moving average of a student's parts, without gradient: never of the reconstructor.

    With ``predicts`` it predicts losses, by its encoder only where the predictor builds on that. Of
    two predictors it has the one from pixels. With ``encodes`` it has the encoder in any case,
    whose features are the student's target. Parts are called as in the student."""

    def __init__(self, student: HPM, *, predicts: bool = True, encodes: bool = False) -> None:
        super().__init__()
        self.grid = student.grid
        self.predictor: EncodedPredictor | PixelPredictor | None = None
        self.pixel_predictor: PixelPredictor | None = None
        self.encoder: Encoder | None = None
        self.decoder_input: DecoderInput | None = None
        if predicts:
            assert student.predictor is not None, "plain VideoMAE predicts no loss"
            self.pixel_predictor = copy.deepcopy(student.pixel_predictor)
            if self.pixel_predictor is None:
                self.predictor = copy.deepcopy(student.predictor)
        if isinstance(self.predictor, EncodedPredictor):
            self.decoder_input = copy.deepcopy(student.decoder_input)
        if encodes or self.decoder_input is not None:
            self.encoder = copy.deepcopy(student.encoder)
        self.requires_grad_(False).eval()

    @property
    def predicts(self) -> bool:
        """Whether it predicts losses."""
        return self.predictor is not None or self.pixel_predictor is not None

    def forward(
        self,
        patches: Tensor,
        seen: Tensor | None = None,
        *,
        encoded: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tensor | list[Tensor]:
        """Patches (B, N, P), of which it sees those at index seen (B, K) -> predicted loss of all
        tokens (B, N) float32, by a predictor from pixels of those it sees (B, K).

        ``encoded`` (B, N, D): what its encoder made of the whole clip, if that is what it sees and
        is known. With ``layers`` instead, it sees the whole clip, and gives features of these
        blocks of its encoder: see `Encoder.at_layers`. (Both are calls of the module, which under
        FSDP bring its weights together.)
        """
        if layers:
            assert self.encoder is not None
            return self.encoder.at_layers(patches, layers)
        assert seen is not None
        looked_at = patches if encoded is not None else gather_patches(patches, seen)
        predictor = self.pixel_predictor or self.predictor
        assert predictor is not None
        if isinstance(predictor, PixelPredictor):
            return predictor(looked_at, seen)
        assert self.encoder is not None and self.decoder_input is not None
        if encoded is None:
            encoded = self.encoder(looked_at, seen)
        return predictor(self.decoder_input(encoded, seen))


def teacher_of(student: HPM, config: PretrainConfig) -> Teacher | None:
    """The teacher of a run that begins with this student; None where nothing asks for one."""
    mines, encodes = config.masking.needs_teacher, config.loss.target == "ema"
    return Teacher(student, predicts=mines, encodes=encodes) if mines or encodes else None


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
    encoded: Tensor | None = None,
) -> Tensor:
    """Predicted loss of every token: clips (B, 3, T, H, W), or their patches (B, N, P), floats in
    [0, 1] or bytes -> (B, N) float32.

    At ``token_ratio`` 1 the teacher sees the whole clip, as in the paper. Below, it sees only about
    that share of the tokens, which ones says ``view`` (see `draw_tokens`), afresh for each clip and
    call. The others are scored by an `EncodedPredictor` through mask tokens, for a
    `PixelPredictor` by `fill_in`. ``draws`` such passes, over different tokens, are averaged.
    ``rows`` as in `hpm_video.method.masking.random_mask`. ``encoded`` (B, N, D): what the teacher's
    encoder makes of the whole clip, if it is known; of use only at ``token_ratio`` 1.
    """
    patches = as_patches(clips, teacher.grid)
    batch, num_tokens, _ = patches.shape
    if num_seen(teacher.grid, token_ratio=token_ratio, view=view) == num_tokens:
        everything = torch.arange(num_tokens, device=clips.device).expand(batch, -1)
        scores: Tensor = teacher(patches, everything, encoded=encoded)
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
    found = []
    for seen in drawn.unbind(1):
        scores = teacher(patches, seen)
        # Not in the teacher, which may be compiled: inductor of PyTorch 2.15 makes wrong code of it
        is_part = scores.shape[1] < num_tokens
        found.append(fill_in(scores, seen, teacher.grid) if is_part else scores)
    return torch.stack(found).mean(dim=0)
