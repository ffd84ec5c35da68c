"""The EMA teacher, which predicts before each step which tokens will be hard."""

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
    """Exponential moving average of some of the student's parts, without gradient.

    It never has the reconstructing decoder. With ``predicts`` it has a loss predictor, and the
    encoder if that predictor builds on it; of two predictors it has the one that reads pixels.
    With ``encodes`` it has the encoder, whose features are the student's target. Parts have the
    student's names.
    """

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
        """Predict losses from the patches (B, N, P) at index seen (B, K), or return features.

        Returns (B, N) float32, or (B, K) from a predictor that reads pixels. ``encoded`` (B, N, D):
        its encoder's output for the whole clip, if already computed and the whole clip is seen.
        With ``layers`` it sees the whole clip and returns the features of these encoder blocks, see
        `Encoder.at_layers`. Both go through forward() because FSDP gathers weights only there.
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
    """The teacher of a run, initialised with its student; None if the settings need none."""
    mines, encodes = config.masking.needs_teacher, config.loss.target == "ema"
    return Teacher(student, predicts=mines, encodes=encodes) if mines or encodes else None


def fill_in(scores: Tensor, seen: Tensor, grid: TokenGrid) -> Tensor:
    """Extend scores (B, K) of the tokens seen (B, K) to all tokens: -> (B, N).

    Unseen tokens get a weighted mean of the seen scores, with weights exp(-|time| / 4 - 2 |row| -
    2 |column|) in tokens. Neighbours in time count more because content mostly stays in place.
    """
    canvas = scores.new_zeros(len(scores), grid.num_tokens, dtype=torch.float32)
    known = canvas.scatter(1, seen, 1.0)
    canvas = canvas.scatter(1, seen, scores.float())
    filled = torch.stack([canvas, known]).unflatten(-1, (grid.time, grid.height, grid.width))
    # bfloat16 would turn close scores into ties
    with no_autocast(scores):
        for dim, decay in ((-3, 0.25), (-2, 2.0), (-1, 2.0)):
            place = torch.arange(filled.shape[dim], device=scores.device)
            # Three smaller factors would underflow in float32
            near = torch.exp(-decay * (place[:, None] - place).abs()).clamp(min=1e-10)
            filled = (filled.movedim(dim, -1) @ near).movedim(-1, dim)
    total, weight = filled.flatten(-3)
    return torch.where(known > 0, canvas, total / weight)


def update_teacher(
    teacher: Teacher, student: HPM, momentum: float, *, skip: Tensor | None = None
) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, for the parameters they share.

    ``skip``: scalar on the device; 1 leaves the teacher unchanged, 0 updates it.
    """
    source = dict(student.named_parameters())
    pairs = [(mine, source[name]) for name, mine in teacher.named_parameters()]
    move_average(pairs, momentum, skip=skip)


def momentum_at(progress: float, *, start: float, end: float, ramp: float) -> float:
    """Momentum at progress in [0, 1]: linear from start to end over the share ``ramp`` of the run,
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
    """Predict the loss of every token -> (B, N) float32.

    Args:
        clips: (B, 3, T, H, W), or their patches (B, N, P); floats in [0, 1] or bytes.
        token_ratio: share of the tokens that the teacher sees. 1 is the whole clip, as in the
            paper. Below 1 the tokens are drawn afresh for each clip and call; the unseen ones are
            scored through mask tokens (`EncodedPredictor`) or by `fill_in` (`PixelPredictor`).
        view: which tokens are drawn, see `draw_tokens`.
        draws: number of passes over different tokens, whose scores are averaged.
        rows: see `make_mask`.
        encoded: (B, N, D) output of the teacher's encoder for the whole clip, if already computed;
            used only with ``token_ratio`` 1.
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
        # Outside the teacher, which may be compiled: PyTorch 2.15's inductor miscompiles it
        is_part = scores.shape[1] < num_tokens
        found.append(fill_in(scores, seen, teacher.grid) if is_part else scores)
    return torch.stack(found).mean(dim=0)
