"""The model that is pre-trained, and its step: what sees what, and what is compared with what."""

import copy
import math

import pytest
import torch
from torch import Tensor

from hpm_video.config import LossConfig, MaskingConfig
from hpm_video.masking import hard_mask, random_mask
from hpm_video.models.hpm import HPM
from hpm_video.pretrain import pretrain_step
from hpm_video.teacher import make_teacher, score_tokens
from hpm_video.tokens import TokenGrid, patchify

TUBELET, PATCH = 2, 4
# grid, tube length, mask ratio
LAYOUTS = [
    (TokenGrid(4, 3, 5), 4, 0.9),
    (TokenGrid(4, 3, 5), 2, 0.61),
    (TokenGrid(3, 5, 2), 1, 0.37),
    (TokenGrid(2, 7, 3), 2, 0.75),
]


def _model(grid: TokenGrid, predictor_depth: int | None = 1, seed: int = 0) -> HPM:
    torch.manual_seed(seed)
    model = HPM(
        grid,
        tubelet_size=TUBELET,
        patch_size=PATCH,
        width=16,
        depth=2,
        heads=2,
        decoder_width=12,
        decoder_heads=2,
        decoder_depth=1,
        predictor_depth=predictor_depth,
    )
    with torch.no_grad():  # zero biases and equal norms would hide what they are for
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _clips(grid: TokenGrid, batch: int = 2, seed: int = 1) -> Tensor:
    shape = batch, 3, grid.time * TUBELET, grid.height * PATCH, grid.width * PATCH
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _mask(grid: TokenGrid, tube_length: int, ratio: float, batch: int = 2) -> Tensor:
    return random_mask(
        batch,
        grid,
        mask_ratio=ratio,
        tube_length=tube_length,
        generator=torch.Generator().manual_seed(3),
        device="cpu",
    )


def _token_pixels(token: int, grid: TokenGrid) -> tuple[slice, slice, slice]:
    """Where the pixels of a token are in a clip (T, H, W)."""
    time, place = divmod(token, grid.height * grid.width)
    row, column = divmod(place, grid.width)
    sizes = (TUBELET, PATCH, PATCH)
    starts = [k * size for k, size in zip((time, row, column), sizes, strict=True)]
    first, second, third = (slice(s, s + n) for s, n in zip(starts, sizes, strict=True))
    return first, second, third


class _Encoded:
    """The encoder's output for the visible tokens of clips under a mask."""

    def __init__(self, model: HPM) -> None:
        self.output = torch.empty(0)
        model.encoder.register_forward_hook(self._keep)
        self.model = model

    def _keep(self, module: object, inputs: object, output: Tensor) -> None:
        self.output = output.detach()

    def __call__(self, clips: Tensor, mask: Tensor) -> Tensor:
        self.result = self.model(clips, mask)
        return self.output


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("grid", "tube_length", "ratio"), LAYOUTS)
def test_masked_pixels_never_reach_the_encoder(
    grid: TokenGrid, tube_length: int, ratio: float, training: bool
) -> None:
    encode = _Encoded(_model(grid).train(training))
    clips, mask = _clips(grid), _mask(grid, tube_length, ratio)
    before = encode(clips, mask)
    reference = encode.result
    for token in range(grid.num_tokens):
        t, y, x = _token_pixels(token, grid)
        moved = clips.clone()
        moved[:, :, t.start, y.stop - 1, x.start] += 0.5  # one pixel of the token
        after = encode(moved, mask)
        for row in range(len(clips)):
            if mask[row, token]:
                assert torch.equal(after[row], before[row])
                assert torch.equal(encode.result.reconstruction[row], reference.reconstruction[row])
                assert torch.equal(encode.result.predicted_loss[row], reference.predicted_loss[row])
            else:
                assert not torch.equal(after[row], before[row])


@pytest.mark.parametrize(("grid", "tube_length", "ratio"), LAYOUTS)
def test_masked_pixels_may_be_not_a_number(grid: TokenGrid, tube_length: int, ratio: float) -> None:
    """They are not even read: a product with 0 would spread them."""
    model, clips, mask = _model(grid), _clips(grid), _mask(grid, tube_length, ratio)
    expected = model(clips, mask)
    for row, token in mask.nonzero().tolist():
        t, y, x = _token_pixels(token, grid)
        clips[row, :, t, y, x] = math.nan
    output = model(clips, mask)
    assert torch.equal(output.reconstruction, expected.reconstruction)
    assert torch.equal(output.predicted_loss, expected.predicted_loss)


def test_reconstruction_is_of_the_masked_tokens_in_raster_order() -> None:
    grid = TokenGrid(2, 3, 5)
    model, mask = _model(grid), _mask(grid, 1, 0.6)
    output = model(_clips(grid), mask)
    for row in range(2):
        assert output.masked[row].tolist() == mask[row].nonzero().flatten().tolist()
        assert output.visible[row].tolist() == (~mask[row]).nonzero().flatten().tolist()
    assert output.reconstruction.shape == (2, 18, TUBELET * PATCH * PATCH * 3)
    assert output.predicted_loss.shape == (2, 30)


def test_a_clip_is_independent_of_its_neighbours() -> None:
    grid = TokenGrid(2, 3, 5)
    model, clips, mask = _model(grid).eval(), _clips(grid, 3), _mask(grid, 2, 0.6, 3)
    whole = model(clips, mask)
    alone = model(clips[1:2], mask[1:2])
    assert (whole.reconstruction[1] - alone.reconstruction[0]).abs().max() < 1e-5
    assert (whole.predicted_loss[1] - alone.predicted_loss[0]).abs().max() < 1e-5


def _step(
    student: HPM,
    clips: Tensor,
    *,
    teacher: HPM | None = None,
    masking: MaskingConfig | None = None,
    loss: LossConfig | None = None,
    hard_ratio: float = 0.5,
    seed: int = 0,
    precision: str = "float32",
):
    return pretrain_step(
        student,
        teacher,
        clips,
        grid=student.grid,
        masking=masking or MaskingConfig(mask_ratio=0.7),
        loss=loss or LossConfig(),
        hard_ratio=hard_ratio,
        token_ratio=1.0,
        generator=torch.Generator().manual_seed(seed),
        precision=precision,
    )


# What adds the same to every prediction of a clip cannot change their order.
_SHIFTS = {"predictor.head.bias", "predictor.norm.bias"}


@pytest.mark.parametrize("prediction", ["ranking", "absolute", "none"])
def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none(prediction: str) -> None:
    grid = TokenGrid(2, 3, 5)
    student = _model(grid, None if prediction == "none" else 1)
    teacher = None if prediction == "none" else make_teacher(student)
    _step(
        student, _clips(grid), teacher=teacher, loss=LossConfig(prediction=prediction)
    ).loss.backward()
    without = {n for n, p in student.named_parameters() if p.grad is None}
    still = {
        n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() < 1e-6
    }
    assert not without
    assert still == (_SHIFTS if prediction == "ranking" else set())
    if teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_prediction_objective_reaches_the_encoder_but_not_the_reconstructor() -> None:
    grid = TokenGrid(2, 3, 5)
    student = _model(grid)
    _step(student, _clips(grid)).prediction_loss.backward()
    for name, parameter in student.named_parameters():
        moved = parameter.grad is not None and parameter.grad.abs().max() > 1e-6
        if name.startswith("reconstructor."):
            assert not moved, name  # measured losses are detached
        elif name not in _SHIFTS:
            assert moved, name


def test_total_is_reconstruction_plus_weighted_prediction() -> None:
    grid = TokenGrid(2, 3, 5)
    student, clips = _model(grid), _clips(grid)
    step = _step(student, clips, loss=LossConfig(prediction_weight=0.3))
    expected = step.reconstruction_loss + 0.3 * step.prediction_loss
    assert step.loss.item() == pytest.approx(expected.item())
    assert step.prediction_loss.item() > 0
    plain = _step(student, clips, loss=LossConfig(prediction="none"))
    assert plain.loss.item() == plain.reconstruction_loss.item()
    assert plain.prediction_loss.item() == 0
    assert plain.predicted is None
    assert plain.reconstruction_loss.item() == step.reconstruction_loss.item()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("tube_length", [1, 2, 4])
def test_predictions_are_paired_with_the_losses_of_their_own_tokens_and_units(
    tube_length: int, normalize: bool
) -> None:
    """Against a loop over tokens, from the model's output for the mask of this generator."""
    grid = TokenGrid(4, 2, 3)
    student, clips = _model(grid).eval(), _clips(grid)
    masking = MaskingConfig(mask_ratio=0.7, tube_length=tube_length)
    mask = random_mask(
        2,
        grid,
        mask_ratio=0.7,
        tube_length=tube_length,
        generator=torch.Generator().manual_seed(0),
        device="cpu",
    )
    with torch.no_grad():
        output = student(clips, mask)
    patches = patchify(clips, grid)
    for level in ("token", "unit"):
        loss = LossConfig(ranking_level=level, normalize_targets=normalize)
        step = _step(student, clips, masking=masking, loss=loss)
        for row in range(2):
            losses, predictions, units = [], [], {}
            for place, token in enumerate(output.masked[row].tolist()):
                target = patches[row, token].double().view(-1, 3)
                if normalize:
                    target = (target - target.mean(0)) / (target.var(0).sqrt() + 1e-6)
                error = output.reconstruction[row, place].double() - target.flatten()
                losses.append(error.square().mean().item())
                predictions.append(output.predicted_loss[row, token].item())
                time, place_in_frame = divmod(token, 6)
                units.setdefault((time // tube_length, place_in_frame), []).append(place)
            if level == "unit":
                members = [units[key] for key in sorted(units)]
                losses = [sum(losses[k] for k in unit) / len(unit) for unit in members]
                predictions = [sum(predictions[k] for k in unit) / len(unit) for unit in members]
            assert step.measured[row].tolist() == pytest.approx(losses, rel=1e-4)
            assert step.predicted[row].tolist() == pytest.approx(predictions, rel=1e-4, abs=1e-6)


def test_the_step_masks_what_the_teacher_finds_hard() -> None:
    grid = TokenGrid(2, 4, 5)
    student, teacher = _model(grid), make_teacher(_model(grid, seed=9))
    clips = _clips(grid)
    masks = []
    student.register_forward_pre_hook(lambda module, inputs: masks.append(inputs[1]))
    _step(student, clips, teacher=teacher, hard_ratio=1.0)
    scores = score_tokens(teacher, clips, token_ratio=1.0, generator=torch.Generator())
    tubes = scores.view(2, 2, 20).mean(dim=1)
    expected = torch.zeros(2, 20, dtype=torch.bool).scatter(1, tubes.topk(14).indices, True)
    assert torch.equal(masks[0], expected.repeat(1, 2))


def test_hard_ratio_0_and_no_teacher_give_the_same_random_mask() -> None:
    grid = TokenGrid(2, 4, 5)
    student, clips = _model(grid), _clips(grid)
    teacher = make_teacher(_model(grid, seed=9))
    one = _step(student, clips, teacher=teacher, hard_ratio=0.0)
    other = _step(student, clips, teacher=None, hard_ratio=0.5)
    assert torch.equal(one.measured, other.measured)


def test_a_step_leaves_global_random_state_and_weights_alone() -> None:
    grid = TokenGrid(2, 3, 5)
    student = _model(grid)
    teacher = make_teacher(student)
    weights = copy.deepcopy(student.state_dict())
    before = torch.get_rng_state()
    one = _step(student, _clips(grid), teacher=teacher)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    other = _step(student, _clips(grid), teacher=teacher)
    assert one.loss.item() == other.loss.item()
    assert _step(student, _clips(grid), teacher=teacher, seed=1).loss.item() != one.loss.item()
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())


def test_losses_are_float32_in_bfloat16_runs() -> None:
    grid = TokenGrid(4, 4, 5)
    student, clips = _model(grid), _clips(grid)
    step = _step(student, clips, precision="bfloat16", hard_ratio=0)
    full = _step(student, clips, hard_ratio=0)
    for value in (step.loss, step.predicted, step.measured):
        assert value.dtype == torch.float32
    # Rounded to bfloat16's 8 bits, 56 predictions of a narrow range would have many ties.
    for row in step.predicted:
        assert len(row.unique()) == len(row)
    assert (step.predicted != step.predicted.bfloat16().float()).float().mean() > 0.9
    assert step.loss.item() == pytest.approx(full.loss.item(), rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_hard_masks_work_on_scores_of_either_precision(precision: str) -> None:
    grid = TokenGrid(2, 4, 5)
    teacher = make_teacher(_model(grid))
    generator = torch.Generator().manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        scores = score_tokens(teacher, _clips(grid), token_ratio=0.3, generator=generator)
        mask = hard_mask(
            scores, grid, mask_ratio=0.7, hard_ratio=0.5, tube_length=2, generator=generator
        )
    assert scores.dtype == torch.float32
    assert mask.sum(dim=1).tolist() == [28, 28]
