"""The model that is pre-trained, and its step: what sees what, and what is compared with what."""

import copy
import math

import pytest
import torch
from torch import Tensor

from hpm_video.config import LossConfig, MaskingConfig, ModelConfig
from hpm_video.method.decoder_masking import reconstructed_tokens
from hpm_video.method.masking import Rows, hard_mask, random_mask
from hpm_video.method.step import pretrain_step
from hpm_video.method.teacher import Teacher, score_tokens, update_teacher
from hpm_video.method.unit_counts import num_reconstructed_tokens
from hpm_video.models.build import build_model
from hpm_video.models.hpm import HPM, PixelPredictor, PredictorInput
from hpm_video.models.tokens import (
    TokenGrid,
    gather_tokens,
    normalize_targets,
    patchify,
    unpatchify,
)
from hpm_video.models.vit import ViTSize

TUBELET, PATCH = 2, 4
# grid, tube length, mask ratio
LAYOUTS = [
    (TokenGrid(4, 3, 5), 4, 0.9),
    (TokenGrid(4, 3, 5), 2, 0.61),
    (TokenGrid(3, 5, 2), 1, 0.37),
    (TokenGrid(2, 7, 3), 2, 0.75),
]


def _model(
    grid: TokenGrid,
    predictor_depth: int | None = 1,
    seed: int = 0,
    predictor_input: PredictorInput = "encoded",
) -> HPM:
    torch.manual_seed(seed)
    model = HPM(
        grid,
        ViTSize(tubelet_size=TUBELET, patch_size=PATCH, width=16, depth=2, heads=2),
        decoder_width=12,
        decoder_heads=2,
        decoder_depth=1,
        predictor_input=None if predictor_depth is None else predictor_input,
        predictor_depth=predictor_depth or 1,
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
    teacher: Teacher | None = None,
    masking: MaskingConfig | None = None,
    loss: LossConfig | None = None,
    hard_ratio: float = 0.5,
    seed: int = 0,
    precision: str = "float32",
    token_ratio: float = 1.0,
    rows: Rows | None = None,
    **settings: object,
):
    return pretrain_step(
        student,
        teacher,
        clips,
        grid=student.grid,
        masking=masking or MaskingConfig(mask_ratio=0.7),
        loss=loss or LossConfig(),
        predictor_input=_input(student),
        hard_ratio=hard_ratio,
        token_ratio=token_ratio,
        generator=torch.Generator().manual_seed(seed),
        precision=precision,
        rows=rows,
        **settings,
    )


def _input(student: HPM) -> PredictorInput:
    if student.pixel_predictor is not None:
        return "both"
    return "pixels" if isinstance(student.predictor, PixelPredictor) else "encoded"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("predictor_input", ["encoded", "pixels", "both"])
def test_a_step_of_bytes_is_that_of_floats_bit_for_bit(
    predictor_input: PredictorInput, normalize: bool
) -> None:
    grid = TokenGrid(2, 3, 5)
    frames = (_clips(grid) * 256).to(torch.uint8)
    found = []
    for clips in (frames, frames.float() / 255):
        student = _model(grid, predictor_input=predictor_input)
        result = _step(
            student,
            clips,
            teacher=Teacher(student),
            token_ratio=0.5,
            loss=LossConfig(normalize_targets=normalize),
        )
        result.loss.backward()
        found.append([result.loss, *(each.grad for each in student.parameters())])
    for mine, other in zip(*found, strict=True):
        assert torch.equal(mine, other)


# What adds the same to every prediction of a clip cannot change their order.
_SHIFTS = {"predictor.head.bias", "predictor.norm.bias"}


@pytest.mark.parametrize("prediction", ["ranking", "absolute", "none"])
def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none(prediction: str) -> None:
    grid = TokenGrid(2, 3, 5)
    student = _model(grid, None if prediction == "none" else 1)
    teacher = None if prediction == "none" else Teacher(student)
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


@pytest.mark.parametrize("predictor_input", ["encoded", "pixels"])
@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_loss_starts_at_ln_2(predictor_input: PredictorInput, seed: int) -> None:
    grid = TokenGrid(8, 4, 4)
    torch.manual_seed(seed)
    settings = ModelConfig(size="tiny", predictor_input=predictor_input)
    step = pretrain_step(
        build_model(settings, grid, predict_loss=True),
        None,
        torch.rand(2, 3, 16, 64, 64),
        grid=grid,
        masking=MaskingConfig(mask_ratio=0.75),
        loss=LossConfig(),
        predictor_input=predictor_input,
        hard_ratio=0.0,
        token_ratio=0.5,
        generator=torch.Generator().manual_seed(seed),
        precision="float32",
    )
    assert step.losses["prediction_loss"].item() == pytest.approx(math.log(2), abs=0.01)


def test_a_step_clips_the_ranking_loss_where_the_settings_say_so() -> None:
    grid = TokenGrid(4, 3, 5)
    model = _model(grid)
    model.predictor.head.weight.data.mul_(1e4)  # so that wrong pairs are very wrong
    losses = {}
    for ranking in ("exact", "clipped"):
        step = pretrain_step(
            model,
            None,
            _clips(grid),
            grid=grid,
            masking=MaskingConfig(mask_ratio=0.6),
            loss=LossConfig(ranking=ranking),
            predictor_input="encoded",
            hard_ratio=0.0,
            token_ratio=1.0,
            generator=torch.Generator().manual_seed(0),
            precision="float32",
        )
        losses[ranking] = step.losses["prediction_loss"].item()
    assert losses["exact"] > 100
    assert 2 < losses["clipped"] < -math.log(1e-6)


def test_the_prediction_objective_reaches_the_encoder_but_not_the_reconstructor() -> None:
    grid = TokenGrid(2, 3, 5)
    student = _model(grid)
    _step(student, _clips(grid)).losses["prediction_loss"].backward()
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
    expected = step.losses["reconstruction_loss"] + 0.3 * step.losses["prediction_loss"]
    assert step.loss.item() == pytest.approx(expected.item())
    assert step.losses["prediction_loss"].item() > 0
    plain = _step(student, clips, loss=LossConfig(prediction="none"))
    assert plain.loss.item() == plain.losses["reconstruction_loss"].item()
    assert plain.losses["prediction_loss"].item() == 0
    assert plain.predicted is None
    assert plain.losses["reconstruction_loss"].item() == step.losses["reconstruction_loss"].item()


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
    student, teacher = _model(grid), Teacher(_model(grid, seed=9))
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
    teacher = Teacher(_model(grid, seed=9))
    one = _step(student, clips, teacher=teacher, hard_ratio=0.0)
    other = _step(student, clips, teacher=None, hard_ratio=0.5)
    assert torch.equal(one.measured, other.measured)


def test_a_step_leaves_global_random_state_and_weights_alone() -> None:
    grid = TokenGrid(2, 3, 5)
    student = _model(grid)
    teacher = Teacher(student)
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
    teacher = Teacher(_model(grid))
    generator = torch.Generator().manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        scores = score_tokens(teacher, _clips(grid), token_ratio=0.3, generator=generator)
        mask = hard_mask(
            scores, grid, mask_ratio=0.7, hard_ratio=0.5, tube_length=2, generator=generator
        )
    assert scores.dtype == torch.float32
    assert mask.sum(dim=1).tolist() == [28, 28]


def _slow_step(
    student: HPM, teacher: Teacher, clip: Tensor, noise: list[float]
) -> dict[str, object]:
    """The literal method for one clip of 2 x 4 x 5 tokens, tube by tube and pair by pair.

    The teacher sees everything; of 14 masked tubes the 7 of highest score are masked, and those
    of lowest noise among the others.
    """
    with torch.no_grad():
        encoded = teacher.encoder(patchify(clip[None], student.grid))
        x = teacher.decoder_input.project(encoded) + teacher.decoder_input.positions
        scores = teacher.predictor(x).flatten().tolist()
    tubes = [(scores[place] + scores[20 + place]) / 2 for place in range(20)]
    hard = sorted(range(20), key=lambda place: -tubes[place])[:7]
    others = sorted((p for p in range(20) if p not in hard), key=lambda place: noise[place])
    chosen = {*hard, *others[:7]}
    mask = torch.tensor([[place in chosen for place in range(20)] * 2])
    with torch.no_grad():
        output = student(clip[None], mask)
    patches = patchify(clip[None], student.grid)[0]
    losses, predictions = [], []
    for place, token in enumerate(mask[0].nonzero().flatten().tolist()):
        target = patches[token].double().view(-1, 3)
        target = (target - target.mean(0)) / (target.var(0).sqrt() + 1e-6)
        error = output.reconstruction[0, place].double() - target.flatten()
        losses.append(error.square().mean().item())
        predictions.append(output.predicted_loss[0, token].item())
    pairs = [
        -math.log(1 / (1 + math.exp(predictions[j] - predictions[i])))
        for i in range(len(losses))
        for j in range(len(losses))
        if losses[i] > losses[j]
    ]
    ranking = sum(pairs) / len(pairs)
    return {"mask": mask[0], "reconstruction": sum(losses) / len(losses), "ranking": ranking}


def test_the_literal_step_agrees_with_a_loop_over_clips() -> None:
    grid, seed = TokenGrid(2, 4, 5), 3
    student, teacher = _model(grid).eval(), Teacher(_model(grid, seed=9))
    clips = _clips(grid, 5)
    masks = []
    student.register_forward_pre_hook(lambda module, inputs: masks.append(inputs[1]))
    step = _step(student, clips, teacher=teacher, hard_ratio=0.5, seed=seed)
    # Of the noise for a clip, one number per tube decides what is masked besides the hard ones.
    noise = torch.rand(5, 40, generator=torch.Generator().manual_seed(seed))[:, :20].tolist()
    slow = [_slow_step(student, teacher, *pair) for pair in zip(clips, noise, strict=True)]
    assert torch.equal(masks[0], torch.stack([one["mask"] for one in slow]))
    reconstruction = sum(one["reconstruction"] for one in slow) / 5
    ranking = sum(one["ranking"] for one in slow) / 5
    assert step.losses["reconstruction_loss"].item() == pytest.approx(reconstruction, rel=1e-5)
    assert step.losses["prediction_loss"].item() == pytest.approx(ranking, rel=1e-5)
    assert step.loss.item() == pytest.approx(reconstruction + ranking, rel=1e-5)


@pytest.mark.parametrize("view", ["tokens", "tubes", "frames", "spread"])
@pytest.mark.parametrize("pattern", ["running_cell", "random"])
def test_a_step_does_not_depend_on_how_its_clips_are_shared_out(view: str, pattern: str) -> None:
    grid = TokenGrid(4, 4, 5)
    student, teacher = _model(grid).eval(), Teacher(_model(grid, seed=9))
    clips = _clips(grid, 6)
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=0.4, decoder_mask=pattern)

    def step(first: int, last: int):
        return _step(
            student,
            clips[first:last],
            teacher=teacher,
            masking=masking,
            token_ratio=0.3,
            view=view,
            draws=2,
            rows=(first, 6),
        )

    whole, parts = step(0, 6), [step(0, 2), step(2, 6)]
    for name in ("measured", "predicted"):
        apart = torch.cat([getattr(part, name) for part in parts])
        assert (apart - getattr(whole, name)).abs().max() < 1e-5, name
    assert (whole.measured[0] - whole.measured[1]).abs().max() > 1e-3


def test_the_step_asks_the_teacher_as_it_is_told() -> None:
    grid = TokenGrid(4, 4, 5)
    student, teacher = _model(grid).eval(), Teacher(_model(grid, seed=9))
    clips = _clips(grid)
    seen: list[Tensor] = []
    teacher.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    _step(student, clips, teacher=teacher, token_ratio=0.2, view="tubes", draws=2)
    assert [tuple(index.shape) for index in seen] == [(2, 16), (2, 16)]
    assert not set(seen[0][0].tolist()) & set(seen[1][0].tolist())
    assert len(set((seen[0][0] % 20).tolist())) == 4


# ---- decoder masking


def _keep(mask: Tensor, grid: TokenGrid, num_kept: int, pattern: str = "running_cell") -> Tensor:
    return reconstructed_tokens(
        mask,
        grid,
        num_kept=num_kept,
        pattern=pattern,
        generator=torch.Generator().manual_seed(8),
    )


def test_decoders_that_see_all_masked_tokens_give_what_they_gave_without_an_index() -> None:
    grid = TokenGrid(4, 3, 5)
    model, clips, mask = _model(grid).eval(), _clips(grid), _mask(grid, 2, 0.61)
    whole = model(clips, mask)
    same = model(clips, mask, None, whole.masked)
    assert (same.reconstruction - whole.reconstruction).abs().max() < 1e-5
    assert (same.predicted_loss - whole.predicted_loss).abs().max() < 1e-5
    assert torch.equal(same.masked, whole.masked)
    assert torch.equal(same.visible, whole.visible)


@pytest.mark.parametrize("predictor_depth", [1, None])
def test_decoders_see_visible_and_kept_tokens_only(predictor_depth: int | None) -> None:
    """Their sequence is shorter, and what they say is for the tokens it is said to be for."""
    grid = TokenGrid(4, 3, 5)
    model, clips, mask = _model(grid, predictor_depth).eval(), _clips(grid), _mask(grid, 2, 0.61)
    kept = _keep(mask, grid, 11)
    lengths: list[int] = []
    for decoder in (model.reconstructor, model.predictor):
        if decoder is not None:
            decoder.register_forward_pre_hook(
                lambda module, inputs: lengths.append(inputs[0].shape[1])
            )
    output = model(clips, mask, None, kept)
    num_visible = int((~mask[0]).sum())
    assert set(lengths) == {num_visible + 11}
    assert torch.equal(output.masked, kept)
    assert output.reconstruction.shape == (2, 11, TUBELET * PATCH * PATCH * 3)

    # By hand, for each clip: mask tokens at the kept places, in their order, before all others.
    for row in range(2):
        visible = (~mask[row]).nonzero().flatten()
        encoded = model.encoder(patchify(clips, grid)[row, visible][None], visible[None])[0]
        end = model.decoder_input
        tokens = [end.mask_token[0, 0] + end.positions[token] for token in kept[row].tolist()]
        tokens += [
            end.project(value) + end.positions[token]
            for token, value in zip(visible.tolist(), encoded, strict=True)
        ]
        sequence = torch.stack(tokens)[None]
        decoder = model.reconstructor
        expected = decoder.head(decoder(sequence))[0, :11]
        assert (output.reconstruction[row] - expected).abs().max() < 1e-5
        if predictor_depth is None:
            assert output.predicted_loss is None
            continue
        predicted = model.predictor(sequence)[0]
        index = torch.cat([kept[row], visible])
        assert (output.predicted_loss[row, index] - predicted).abs().max() < 1e-5
        left_out = torch.ones(grid.num_tokens, dtype=torch.bool).scatter(0, index, False)
        assert torch.equal(output.predicted_loss[row].isnan(), left_out)


def test_no_masked_pixel_is_read_under_decoder_masking() -> None:
    grid = TokenGrid(4, 3, 5)
    model, clips, mask = _model(grid), _clips(grid), _mask(grid, 2, 0.61)
    kept = _keep(mask, grid, 11)
    expected = model(clips, mask, None, kept)
    for row, token in mask.nonzero().tolist():
        t, y, x = _token_pixels(token, grid)
        clips[row, :, t, y, x] = math.nan
    output = model(clips, mask, None, kept)
    assert torch.equal(output.reconstruction, expected.reconstruction)
    torch.testing.assert_close(
        output.predicted_loss, expected.predicted_loss, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("pattern", ["running_cell", "random"])
def test_the_step_compares_the_kept_tokens_only(pattern: str) -> None:
    grid = TokenGrid(4, 4, 5)  # 14 of 20 tubes are masked, 56 tokens, and 34 of them kept
    student, clips = _model(grid).eval(), _clips(grid)
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=0.4, decoder_mask=pattern)
    num_kept = num_reconstructed_tokens(grid, masking)
    assert num_kept == 34
    # The mask is drawn first: it is that of a step without decoder masking.
    generator = torch.Generator().manual_seed(0)
    mask = random_mask(2, grid, mask_ratio=0.7, tube_length=4, generator=generator, device="cpu")
    kept = reconstructed_tokens(mask, grid, num_kept=num_kept, pattern=pattern, generator=generator)
    output = student(clips, mask, None, kept)
    targets = normalize_targets(gather_tokens(patchify(clips, grid), kept))
    losses = (output.reconstruction - targets).square().mean(dim=2)
    step = _step(student, clips, masking=masking)
    assert step.measured.shape == step.predicted.shape == (2, 34)
    assert (step.measured - losses).abs().max() < 1e-6
    assert step.losses["reconstruction_loss"].item() == pytest.approx(
        losses.mean().item(), rel=1e-6
    )
    assert torch.equal(step.predicted, output.predicted_loss.gather(1, kept))
    assert step.predicted.isfinite().all()


@pytest.mark.parametrize("pattern", ["running_cell", "random"])
@pytest.mark.parametrize("prediction", ["ranking", "absolute", "none"])
def test_decoder_masking_reaches_every_parameter(prediction: str, pattern: str) -> None:
    grid = TokenGrid(2, 3, 5)
    student = _model(grid, None if prediction == "none" else 1)
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=0.5, decoder_mask=pattern)
    _step(
        student, _clips(grid), masking=masking, loss=LossConfig(prediction=prediction)
    ).loss.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not (prediction == "ranking" and name in _SHIFTS):
            assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("hard_ratio", [0.0, 0.5])
def test_decoder_mask_ratio_0_changes_nothing(hard_ratio: float) -> None:
    """Not a bit, and not the state of the generator."""
    grid = TokenGrid(2, 4, 5)
    student, teacher = _model(grid), Teacher(_model(grid, seed=9))
    clips = _clips(grid)
    calls: list[tuple[object, ...]] = []
    student.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    plain = _step(student, clips, teacher=teacher, hard_ratio=hard_ratio)
    for pattern in ("running_cell", "random"):
        masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=0.0, decoder_mask=pattern)
        step = _step(student, clips, teacher=teacher, hard_ratio=hard_ratio, masking=masking)
        assert torch.equal(step.loss, plain.loss)
        assert torch.equal(step.measured, plain.measured)
        assert torch.equal(step.predicted, plain.predicted)
    assert all(call[3] is None for call in calls)
    # With it, the mask stays the same: decoder masking draws after everything else.
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=0.5)
    _step(student, clips, teacher=teacher, hard_ratio=hard_ratio, masking=masking)
    assert torch.equal(calls[-1][1], calls[0][1])
    assert calls[-1][3].shape == (2, 14)


def test_decoder_masking_works_in_bfloat16() -> None:
    grid = TokenGrid(4, 4, 5)
    student, clips = _model(grid), _clips(grid)
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=0.5)
    step = _step(student, clips, masking=masking, precision="bfloat16", hard_ratio=0)
    full = _step(student, clips, masking=masking, hard_ratio=0)
    step.loss.backward()
    for value in (step.loss, step.predicted, step.measured):
        assert value.dtype == torch.float32
    assert step.loss.item() == pytest.approx(full.loss.item(), rel=0.02)


@pytest.mark.parametrize("decoder_mask_ratio", [0.0, 0.5])
@pytest.mark.parametrize(("token_ratio", "expected"), [(1.0, 20), (0.26, 5), (0.001, 2)])
def test_a_predictor_from_pixels_learns_from_its_share_of_the_reconstructed_tokens(
    token_ratio: float, expected: int, decoder_mask_ratio: float
) -> None:
    """Of 30 tokens 10 tubes of 2 are masked; each is paired with its own loss."""
    grid = TokenGrid(2, 3, 5)
    student, clips = _model(grid, predictor_input="pixels"), _clips(grid)
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=decoder_mask_ratio)
    step = _step(student, clips, masking=masking, token_ratio=token_ratio, hard_ratio=0.0)
    count = expected if decoder_mask_ratio == 0 else max(2, round(token_ratio * 10))
    patches = patchify(clips, grid)
    assert step.ranked.shape == step.predicted.shape == step.measured.shape == (2, count)
    for row in range(2):
        tokens, masked = step.ranked[row].tolist(), step.masked[row].tolist()
        assert tokens == sorted(set(tokens)) and set(tokens) <= set(masked)
        losses = [step.token_losses[row, masked.index(token)].item() for token in tokens]
        assert step.measured[row].tolist() == losses
        index = step.ranked[row : row + 1]
        alone = student.predictor(patches[row : row + 1, tokens], index)[0]
        assert (step.predicted[row] - alone).abs().max() < 1e-5
    if 1 < count < 10:
        other = _step(student, clips, masking=masking, token_ratio=token_ratio, seed=1)
        assert step.ranked.tolist() != other.ranked.tolist()


def test_a_predictor_from_pixels_is_a_network_of_its_own() -> None:
    """Its gradient reaches nothing else, and what it looks at nobody else."""
    grid = TokenGrid(2, 3, 5)
    student, clips = _model(grid, predictor_input="pixels"), _clips(grid)
    step = _step(student, clips, token_ratio=0.5)
    step.losses["prediction_loss"].backward()
    for name, parameter in student.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 1e-6)
        assert moved == (
            name.startswith("predictor.")
            and name not in {"predictor.head.bias", "predictor.encoder.norm.bias"}
        ), name
    mask = _mask(grid, 2, 0.7)
    expected = student(clips, mask)
    hidden = patchify(clips, grid).masked_fill(mask[..., None], math.nan)
    output = student(unpatchify(hidden, grid, tubelet_size=TUBELET), mask)
    assert torch.equal(output.reconstruction, expected.reconstruction)
    assert output.predicted_loss[mask].isnan().all()
    assert expected.predicted_loss[mask].isfinite().all()


def _moved(student: HPM, loss: Tensor) -> set[str]:
    """The parts of a model that a loss has a gradient for, but for what only shifts predictions."""
    student.zero_grad()
    loss.backward(retain_graph=True)
    grads = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    return {name for name, grad in grads.items() if grad.abs().max() > 1e-6}


def test_of_two_predictors_one_teaches_the_encoder_and_each_learns_by_its_own_loss() -> None:
    grid = TokenGrid(2, 3, 5)
    student, clips = _model(grid, predictor_input="both"), _clips(grid)
    names = {name for name, _ in student.named_parameters()}
    shifts = {
        *_SHIFTS,
        *("pixel_predictor.head.bias", "pixel_predictor.encoder.norm.bias"),
    }
    own = {name for name in names if name.startswith("pixel_predictor.")} - shifts
    loss = LossConfig(prediction_weight=0.3, pixel_prediction_weight=0.2)
    step = _step(student, clips, token_ratio=0.5, loss=loss)
    assert _moved(student, step.losses["pixel_prediction_loss"]) == own
    rest = {name for name in names if not name.startswith(("pixel_predictor.", "reconstructor."))}
    assert _moved(student, step.losses["prediction_loss"]) == rest - shifts
    assert _moved(student, step.loss) == names - shifts
    parts = ("reconstruction_loss", "prediction_loss", "pixel_prediction_loss")
    total = sum(w * step.losses[n] for w, n in zip((1, 0.3, 0.2), parts, strict=True))
    assert step.loss.item() == pytest.approx(total.item())


@pytest.mark.parametrize("decoder_mask_ratio", [0.0, 0.5])
def test_each_of_two_predictors_is_judged_on_the_tokens_it_ranks(decoder_mask_ratio: float) -> None:
    """The encoded one on all that are reconstructed, that from pixels on a share of them."""
    grid = TokenGrid(2, 3, 5)
    student, clips = _model(grid, predictor_input="both").eval(), _clips(grid)
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=decoder_mask_ratio)
    step = _step(student, clips, masking=masking, token_ratio=0.3, hard_ratio=0.0)
    patches, pixels = patchify(clips, grid), step.pixels
    assert step.ranked.equal(step.masked) and step.measured.equal(step.token_losses)
    assert step.predicted.shape == step.masked.shape
    assert pixels.tokens.shape == (2, 6 if decoder_mask_ratio == 0 else 3)
    for row in range(2):
        masked, tokens = step.masked[row].tolist(), pixels.tokens[row].tolist()
        losses = [step.token_losses[row, masked.index(token)].item() for token in tokens]
        assert pixels.losses[row].tolist() == pixels.measured[row].tolist() == losses
        index = pixels.tokens[row : row + 1]
        alone = student.pixel_predictor(patches[row : row + 1, tokens], index)[0]
        assert (pixels.predicted[row] - alone).abs().max() < 1e-5
    # Beside it, the encoded one is what it is alone
    single = _model(grid)
    single.load_state_dict(student.state_dict(), strict=False)
    other = _step(single.eval(), clips, masking=masking, hard_ratio=0.0)
    assert other.predicted.equal(step.predicted) and other.pixels is None


def test_of_two_predictors_the_one_from_pixels_makes_the_masks() -> None:
    """Its average alone: no encoder, and the same scores as of a student that has no other."""
    grid = TokenGrid(2, 4, 5)
    student, clips = _model(grid, predictor_input="both"), _clips(grid)
    teacher = Teacher(student)
    names = {name.split(".")[0] for name, _ in teacher.named_parameters()}
    assert names == {"pixel_predictor"}
    assert teacher.state_dict().keys() < student.state_dict().keys()
    single = _model(grid, predictor_input="pixels", seed=5)
    single.predictor.load_state_dict(student.pixel_predictor.state_dict())
    scores = [
        score_tokens(
            each,
            clips,
            token_ratio=0.3,
            view="spread",
            generator=torch.Generator().manual_seed(0),
        )
        for each in (teacher, Teacher(single))
    ]
    assert scores[0].equal(scores[1])
    steps = [
        _step(student, clips, teacher=each, token_ratio=0.3, hard_ratio=1.0)
        for each in (teacher, Teacher(single), None)
    ]
    assert steps[0].mask.equal(steps[1].mask) and not steps[0].mask.equal(steps[2].mask)
    with torch.no_grad():
        for parameter in student.pixel_predictor.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    update_teacher(teacher, student, 0.75)
    for name, value in teacher.named_parameters():
        assert (value - before[name] - 0.25).abs().max() < 1e-5, name


def test_predictions_from_pixels_are_float32_under_bfloat16() -> None:
    grid = TokenGrid(2, 4, 5)
    student = _model(grid, predictor_input="pixels")
    step = _step(student, _clips(grid), precision="bfloat16", token_ratio=0.5)
    assert step.predicted.dtype == torch.float32
    assert (step.predicted != step.predicted.bfloat16().float()).float().mean() > 0.9


def test_sparse_ranking_does_not_depend_on_how_clips_are_shared_out() -> None:
    grid = TokenGrid(2, 4, 5)
    student, teacher = (_model(grid, seed=s, predictor_input="pixels").eval() for s in (0, 9))
    clips = _clips(grid, 4)
    settings = {"teacher": Teacher(teacher), "token_ratio": 0.3, "view": "spread"}
    whole = _step(student, clips, **settings)
    for first in (0, 2):
        part = _step(student, clips[first : first + 2], rows=(first, 4), **settings)
        assert torch.equal(part.ranked, whole.ranked[first : first + 2])
        assert torch.equal(part.mask, whole.mask[first : first + 2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"width": 100, "heads": 3},
            r"model.width \(100\) must be a multiple of model.heads \(3\)",
        ),
        ({"heads": 7}, r"model.width \(768\) must be a multiple of model.heads \(7\)"),
        ({"decoder_heads": 5}, r"model.decoder_width \(384\) .* model.decoder_heads \(5\)"),
    ],
)
def test_heads_must_divide_the_width(settings: dict[str, int], words: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        build_model(ModelConfig(**settings), TokenGrid(2, 2, 2), predict_loss=True)
