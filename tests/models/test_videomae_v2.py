"""Dual masking as VideoMAE V2 released it: against a slow model, and beside mining."""

import math
from typing import Any

import foreign_weights as foreign
import pytest
import torch
from torch import Tensor

from hpm_video.config import LossConfig, MaskingConfig, ModelConfig
from hpm_video.method.decoder_masking import draw_decoded
from hpm_video.method.step import PretrainStep, pretrain_step
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import build, build_model
from hpm_video.models.hpm import HPM
from hpm_video.models.tokens import TokenGrid, patchify, split_mask
from hpm_video.weights.checkpoint import load_weights, settings_of
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.formats import OFFICIAL_PRETRAINED
from hpm_video.weights.foreign.from_ours import export_tensors
from hpm_video.weights.foreign.to_ours import import_weights

GRID = TokenGrid(4, 4, 4)  # 8 frames of 32 x 32 in tokens of 2 x 8 x 8
# 12 of 16 tubes are masked; of the 64 tokens 32 are in a cell, 24 of them masked
MASKING = MaskingConfig(mask_ratio=0.75, decoder_mask_ratio=0.5, decoder_mask="videomae_v2")
TOLD = Assumptions(
    num_frames=8, image_size=32, heads=foreign.HEADS, decoder_heads=foreign.DECODER_HEADS
)


def _clips(batch: int = 5) -> Tensor:
    return torch.rand(batch, 3, 8, 32, 32, generator=torch.Generator().manual_seed(2))


def _step(student: HPM, clips: Tensor, teacher: Teacher | None = None, **how: Any) -> PretrainStep:
    settings: dict[str, Any] = {
        "loss": LossConfig(prediction="none" if student.predictor is None else "ranking"),
        "predictor_input": "encoded",
        "hard_ratio": 0.5,
        "token_ratio": 1.0,
        "generator": torch.Generator().manual_seed(6),
    }
    return pretrain_step(student, teacher, clips, grid=GRID, masking=MASKING, **{**settings, **how})


def _cells(begin: int) -> list[bool]:
    """Which of the tokens are in the published cells of one of four begins: those of half of the
    tokens. A queue of two hidden and two seen places moves by one before every time step."""
    cells = []
    for time in range(GRID.time):
        for row in range(GRID.height):
            for column in range(GRID.width):
                place = 2 * (row % 2) + column % 2
                cells.append((place + begin + time + 1) % 4 in (2, 3))
    return cells


def _decoded(step: PretrainStep) -> Tensor:
    """Where the decoder had mask tokens, (B, N), worked out from what was reconstructed."""
    rows = []
    for mask, masked in zip(step.mask.tolist(), step.masked.tolist(), strict=True):
        fitting = [
            cells
            for cells in map(_cells, range(4))
            if [n for n in range(GRID.num_tokens) if cells[n] and mask[n]] == masked
        ]
        assert len(fitting) == 1
        rows.append(fitting[0])
    assert len(set(map(tuple, rows))) > 1
    return torch.tensor(rows)


def _slow_target(clip: Tensor, token: int) -> Tensor:
    """Pixels of a token (P,), each colour standardised, with the unbiased variance."""
    time, place = divmod(token, GRID.num_tubes)
    row, column = divmod(place, GRID.width)
    block = clip[:, 2 * time : 2 * time + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    colours = [(colour - colour.mean()) / (colour.var().sqrt() + 1e-6) for colour in block.double()]
    return torch.stack(colours, dim=-1).flatten()  # (t, y, x, colour)


def test_a_step_is_that_of_a_slow_model_by_the_published_rule(tmp_path: Any) -> None:
    """Loss, loss of each token and gradients: all mask tokens are decoded, in masked and in visible
    places, and the loss is of those that the encoder did not see."""
    weights, clips = foreign.official_pretrained(), _clips()
    torch.save(weights, tmp_path / "weights.pt")
    state = import_weights(tmp_path / "weights.pt", assumptions=TOLD).state
    student = build(settings_of(state))
    load_weights(student, state["model"], source="imported")
    step = _step(student, clips)
    step.loss.backward()

    decoded = _decoded(step)
    for value in weights.values():
        value.requires_grad_()
    pixels = foreign.run_official_pretrained(weights, clips, step.mask, decoded)
    losses, of_token = [], []
    for clip in range(len(clips)):
        for place, token in enumerate(decoded[clip].nonzero().flatten().tolist()):
            if step.mask[clip, token]:
                error = pixels[clip, place] - _slow_target(clips[clip], token)
                losses.append(error.square().mean())
                of_token.append((clip, step.masked[clip].tolist().index(token)))
    assert len(losses) == 24 * len(clips) < decoded.sum() == 32 * len(clips)
    loss = torch.stack(losses).mean()
    loss.backward()

    assert step.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for (clip, place), slow in zip(of_token, losses, strict=True):
        assert step.token_losses[clip, place].item() == pytest.approx(slow.item(), rel=1e-4)
    grads = {name: parameter.grad for name, parameter in student.named_parameters()}
    found, _ = export_tensors({**state, "model": grads}, OFFICIAL_PRETRAINED)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert (found[name] - value.grad).norm() <= 1e-4 * value.grad.norm() + 1e-8, name


def _mining(seed: int = 0, predictor_input: str = "encoded") -> HPM:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "patch_size": 8}
    settings |= {"decoder_width": 12, "decoder_heads": 2, "decoder_depth": 1}
    config = ModelConfig(**settings, predictor_input=predictor_input)
    model = build_model(config, GRID, predict_loss=True)
    with torch.no_grad():  # equal biases and norms would hide what they are for
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_the_predictor_gets_the_same_sequence_and_judges_each_place_once() -> None:
    """A visible place is judged by the token that the encoder made, not by its mask token."""
    student, clips = _mining().eval(), _clips()
    step = _step(student, clips, Teacher(_mining(9)))
    decoded = _decoded(step)
    drawn = draw_decoded(
        step.mask, GRID, MASKING, ranked_ratio=1.0, generator=torch.Generator(), rows=None
    )
    assert drawn.kept is not None and drawn.remasked is not None
    for clip in range(len(clips)):
        again = (decoded[clip] & ~step.mask[clip]).nonzero().flatten()
        visible = (~step.mask[clip]).nonzero().flatten()
        encoded = student.encoder(patchify(clips, GRID)[clip, visible][None], visible[None])[0]
        end = student.decoder_input
        tokens = {
            "masked": end.mask_token[0] + end.positions[step.masked[clip]],
            "visible": end.project(encoded) + end.positions[visible],
            "again": end.mask_token[0] + end.positions[again],
        }
        sequence = torch.cat(list(tokens.values()))[None]
        assert sequence.shape[1] == 24 + 16 + 8
        predicted = student.predictor(sequence)[0]
        assert (step.predicted[clip] - predicted[:24]).abs().max() < 1e-5
        output = student(
            clips[clip : clip + 1],
            step.mask[clip : clip + 1],
            None,
            step.masked[clip : clip + 1],
            remasked=again[None],
        )
        of_visible = output.predicted_loss[0, visible]
        assert (of_visible - predicted[24:40]).abs().max() < 1e-5
        assert output.predicted_loss[0].isnan().sum() == 64 - 24 - 16


def test_no_masked_pixel_is_read_and_remasked_ones_are() -> None:
    student, clips = _mining().eval(), _clips()
    step = _step(student, clips, Teacher(_mining(9)))
    again, _ = split_mask(step.mask | ~_decoded(step), 8)
    expected = student(clips, step.mask, None, step.masked, remasked=again)
    patches = patchify(clips, GRID)
    hidden = patches.masked_fill(step.mask[..., None], math.nan)
    output = student(hidden, step.mask, None, step.masked, remasked=again)
    assert torch.equal(output.reconstruction, expected.reconstruction)
    places = again[..., None].expand(-1, -1, patches.shape[2])
    moved = patches.scatter_add(1, places, torch.full_like(places, 0.1, dtype=torch.float32))
    output = student(moved, step.mask, None, step.masked, remasked=again)
    assert (output.reconstruction - expected.reconstruction).abs().max() > 1e-4


@pytest.mark.parametrize("predictor_input", ["encoded", "pixels"])
def test_a_step_reaches_every_parameter_and_is_shared_out_alike(predictor_input: Any) -> None:
    student, teacher = (_mining(seed, predictor_input).eval() for seed in (0, 9))
    clips, settings = _clips(6), {"token_ratio": 0.4, "predictor_input": predictor_input}
    whole = _step(student, clips, Teacher(teacher), rows=(0, 6), **settings)
    whole.loss.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for first, last in ((0, 2), (2, 6)):
        part = _step(student, clips[first:last], Teacher(teacher), rows=(first, 6), **settings)
        assert torch.equal(part.masked, whole.masked[first:last])
        assert torch.equal(part.ranked, whole.ranked[first:last])
        assert (part.token_losses - whole.token_losses[first:last]).abs().max() < 1e-5


def test_the_encoders_mask_is_that_of_a_step_without_decoder_masking() -> None:
    student, clips = _mining().eval(), _clips()
    plain = MaskingConfig(mask_ratio=0.75)
    masks = [
        pretrain_step(
            student,
            None,
            clips,
            grid=GRID,
            masking=masking,
            loss=LossConfig(),
            predictor_input="encoded",
            hard_ratio=0.0,
            token_ratio=1.0,
            generator=torch.Generator().manual_seed(6),
        ).mask
        for masking in (plain, MASKING)
    ]
    assert torch.equal(*masks)


# ---- sizes

# Numbers of the released code's pre-training models, worked out by hand from its shapes: the
# encoder with its norm; and the whole model, which has besides the projection to the decoder, the
# mask token, the decoder's blocks (4; of large and huge of VideoMAE 12), its norm and its head.
# Positions are computed, and not counted. Of giant the sum is the published 1,026,306,560.
COUNTS = {
    "small": (21_879_936, 24_029_376),
    "base": (86_227_200, 94_210_944),  # of VideoMAE V2 too
    "large": (303_860_736, 342_996_992),
    "huge": (631_607_040, 692_487_296),
    "large, V2": (303_860_736, 317_782_016),
    "huge, V2": (631_607_040, 645_659_392),
    "giant, V2": (1_011_610_752, 1_026_306_560),
}
# Of classifiers of Kinetics-400, as VideoMAE's tables have them, in millions
CLASSIFIERS = {"small": 22, "base": 87, "large": 305, "huge": 633}


def _numbers(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def _formula(of: foreign.Official) -> tuple[int, int]:
    """Encoder and whole model, by a formula."""

    def block(width: int, hidden: int) -> int:
        attention = 3 * width * width + 2 * width + width * width + width  # q and v have a bias
        return 4 * width + attention + 2 * hidden * width + hidden + width

    pixels = 3 * of.tubelet * of.patch**2
    encoder = (pixels + 1) * of.width + of.depth * block(of.width, of.hidden) + 2 * of.width
    width = of.decoder_width
    decoder = of.decoder_depth * block(width, of.decoder_hidden) + 2 * width + (width + 1) * pixels
    return encoder, encoder + of.width * width + width + decoder


@pytest.mark.parametrize("name", COUNTS)
def test_models_have_as_many_numbers_as_the_published_ones(name: str) -> None:
    """Ours, built by its size alone; by its settings only where scripts have them, the depth."""
    of, (encoder, whole) = foreign.RELEASED[name], COUNTS[name]
    shapes = foreign.pretrained_shapes(of)
    assert _formula(of) == (encoder, whole) and _numbers(shapes) == whole
    size: Any = {"huge, V2": "huge_v2"}.get(name, name.removesuffix(", V2"))
    config = ModelConfig(size=size, patch_size=of.patch, decoder_depth=of.decoder_depth)
    with torch.device("meta"):
        model = build_model(config, TokenGrid(8, 14, 14), predict_loss=False)
    assert sum(p.numel() for p in model.parameters()) == whole
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    if name in CLASSIFIERS:
        classifier = _numbers(foreign.finetuned_shapes(of, 400))
        assert classifier == encoder + 400 * (of.width + 1)
        assert abs(classifier / 1e6 - CLASSIFIERS[name]) < 1
