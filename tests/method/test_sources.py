"""What says which tokens are hard: each source against a slow loop, and in a step of the method."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hpm_video.config import LossConfig, MaskingConfig, ModelConfig
from hpm_video.config.values import MaskSource
from hpm_video.data.prepare.toy import object_mask
from hpm_video.data.prepare.toy_drawing import render_toy_video
from hpm_video.method.losses import patch_loss
from hpm_video.method.masking import make_mask, unit_scores
from hpm_video.method.sources import measured_scores, motion_scores
from hpm_video.method.step import PretrainStep, pretrain_step
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import build_model
from hpm_video.models.hpm import HPM
from hpm_video.models.tokens import TokenGrid, patchify

GRID = TokenGrid(2, 4, 4)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bytes(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=_generator(seed))


# ---- motion


def _slow_motion(clip: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """Of one clip (T, H, W, 3) in [0, 1], token by token, frame by frame."""
    frames, height, width, _ = clip.shape
    t, y, x = frames // grid.time, height // grid.height, width // grid.width
    scores = np.zeros((grid.time, grid.height, grid.width))
    for time in range(grid.time):
        for row in range(grid.height):
            for column in range(grid.width):
                place = np.s_[row * y : (row + 1) * y, column * x : (column + 1) * x]
                changes = [
                    np.abs(clip[frame][place] - clip[frame - 1][place]).mean()
                    for frame in range(time * t, (time + 1) * t)
                    if frame > 0
                ]
                if changes:
                    scores[time, row, column] = np.mean(changes)
    if t == 1 and grid.time > 1:
        scores[0] = scores[1]
    return scores.ravel()


@pytest.mark.parametrize("as_floats", [False, True])
@pytest.mark.parametrize(
    ("grid", "frames"),
    [
        (TokenGrid(3, 2, 4), 6),
        (TokenGrid(2, 3, 1), 8),
        (TokenGrid(4, 2, 2), 4),  # tubelets of one frame
        (TokenGrid(1, 2, 2), 2),
        (TokenGrid(1, 2, 2), 1),  # a picture: nothing moves
    ],
)
def test_motion_is_that_of_a_slow_loop(grid: TokenGrid, frames: int, as_floats: bool) -> None:
    size = grid.height * 4, grid.width * 8
    clips = _bytes(3, 3, frames, *size)
    given = clips.float() / 255 if as_floats else clips
    scores = motion_scores(patchify(given, grid), grid, tubelet_size=frames // grid.time)
    assert scores.dtype == torch.float32 and scores.shape == (3, grid.num_tokens)
    for clip, found in zip(
        clips.permute(0, 2, 3, 4, 1).double().numpy() / 255, scores, strict=True
    ):
        assert found.numpy() == pytest.approx(_slow_motion(clip, grid), rel=1e-5, abs=1e-7)
    assert (scores > 0).all() == (frames > 1)


@pytest.mark.parametrize(("tube_length", "least"), [(1, 0.7), (2, 0.8), (8, 0.95)])
def test_what_moves_is_the_object_of_toy_videos(tube_length: int, least: float) -> None:
    """The quarter of the units that moves most, against where the object truly is."""
    grid, size, frames = TokenGrid(8, 8, 8), 64, 16
    on_object, chance = [], []
    for index in range(16):
        video, places = render_toy_video(0, index, size=size, num_frames=frames)
        clip = torch.from_numpy(video).permute(3, 0, 1, 2)[None]
        scores = unit_scores(
            motion_scores(patchify(clip, grid), grid, tubelet_size=2), grid, tube_length
        )
        covered = object_mask(places, size, grid_time=8, grid_height=8, grid_width=8)
        truth = unit_scores(torch.from_numpy(covered).flatten()[None], grid, tube_length) > 0
        hardest = scores.topk(scores.shape[1] // 4, dim=1).indices
        on_object.append(truth.gather(1, hardest).float().mean().item())
        chance.append(truth.float().mean().item())
    assert np.mean(on_object) > least > 1.7 * np.mean(chance)
    assert all(found > known for found, known in zip(on_object, chance, strict=True))


# ---- the measured loss


@pytest.fixture(scope="module")
def student() -> HPM:
    torch.manual_seed(0)
    config = ModelConfig(
        width=32, depth=2, heads=2, decoder_width=32, decoder_heads=2, decoder_depth=1,
        patch_size=8, drop_path=0.5, predictor_input="both",
    )  # fmt: skip
    return build_model(config, GRID, predict_loss=True)


def _measured(student: HPM, patches: Tensor, masking: MaskingConfig, **how: Any) -> Tensor:
    def losses_of(output: Any) -> Tensor:
        return patch_loss(output.reconstruction, patches, output.masked, normalize=True)

    return measured_scores(student, patches, losses_of, GRID, masking, **how)


@pytest.mark.parametrize("decoder_mask_ratio", [0.0, 0.5])
def test_the_measured_loss_is_that_of_the_student_at_rest(
    student: HPM, decoder_mask_ratio: float
) -> None:
    masking = MaskingConfig(mask_ratio=0.7, decoder_mask_ratio=decoder_mask_ratio)
    patches = patchify(_bytes(3, 3, 4, 32, 32), GRID)
    student.train()
    state = torch.get_rng_state()
    scores = _measured(student, patches, masking, generator=_generator(5))
    assert student.training and all(part.training for part in student.modules())
    assert torch.equal(torch.get_rng_state(), state)  # no stochastic depth
    assert not scores.requires_grad

    mask = make_mask(
        None, GRID, masking, hard_ratio=0.0, batch_size=3, generator=_generator(5)
    ).mask
    assert torch.equal(scores.isnan(), ~mask)
    with torch.no_grad():
        output = student.eval()(patches, mask)
    losses = patch_loss(output.reconstruction, patches, output.masked, normalize=True)
    for clip in range(3):
        for token, loss in zip(output.masked[clip], losses[clip], strict=True):
            assert scores[clip, token] == pytest.approx(loss.item(), rel=1e-5)


def test_the_pass_that_measures_leaves_no_copies_of_weights(student: HPM) -> None:
    """PyTorch 2.10 makes those of a pass without gradient, and they would stand in for the weights
    in the student's own pass: one that is stale shows here that they are kept."""
    patches, masking = patchify(_bytes(2, 3, 4, 32, 32), GRID), MaskingConfig(mask_ratio=0.7)
    changed = deepcopy(student).eval()
    mask = make_mask(
        None, GRID, masking, hard_ratio=0.0, batch_size=2, generator=_generator(2)
    ).mask
    with torch.autocast("cpu", torch.bfloat16):
        _measured(changed, patches, masking, generator=_generator(2))
        for weight in changed.parameters():
            weight.data.mul_(2)
        found = changed(patches, mask).reconstruction
    with torch.autocast("cpu", torch.bfloat16):
        assert found.equal(changed(patches, mask).reconstruction)


def test_what_was_not_measured_is_never_hard(student: HPM) -> None:
    patches = patchify(_bytes(4, 3, 4, 32, 32), GRID)
    for tube_length in (None, 1):
        masking = MaskingConfig(mask_ratio=0.7, tube_length=tube_length)
        scores = _measured(student, patches, masking, generator=_generator(2))
        chosen = make_mask(
            scores, GRID, masking, hard_ratio=1.0, batch_size=4, generator=_generator(3)
        )
        assert torch.equal(chosen.hard, chosen.mask)  # the whole mask is hard
        assert torch.equal(chosen.hard, ~scores.isnan())


def test_of_few_known_scores_few_are_hard() -> None:
    scores = torch.full((2, 32), torch.nan)
    scores[0, 3], scores[0, 16 + 3] = 1.0, 1.0  # one tube; and of another a half only
    scores[0, 5] = 2.0
    chosen = make_mask(
        scores,
        GRID,
        MaskingConfig(mask_ratio=0.5),
        hard_ratio=1.0,
        batch_size=2,
        generator=_generator(),
    )
    assert chosen.hard.nonzero().tolist() == [[0, 3], [0, 19]]
    assert chosen.mask.sum(dim=1).tolist() == [16, 16]
    assert bool(chosen.mask[0, 3])


# ---- in a step


Step = Callable[..., PretrainStep]


@pytest.fixture(scope="module")
def step_of(student: HPM) -> Step:
    def step(clips: Tensor, masking: MaskingConfig, **how: Any) -> PretrainStep:
        torch.manual_seed(0)
        return pretrain_step(
            student.train(),
            how.pop("teacher", None),
            clips,
            grid=GRID,
            masking=masking,
            loss=LossConfig(),
            predictor_input="both",
            token_ratio=0.5,
            generator=how.pop("generator", None) or _generator(7),
            **{"hard_ratio": 0.5, **how},
        )

    return step


def _masking(source: MaskSource, **settings: Any) -> MaskingConfig:
    return MaskingConfig(mask_ratio=0.7, source=source, **settings)


def test_a_step_masks_by_motion(step_of: Step) -> None:
    """Bytes and floats alike; 5 of 11 masked tubes of 16 are those that move most."""
    clips = _bytes(3, 3, 4, 32, 32)
    for given in (clips, clips.float() / 255):
        step = step_of(given, _masking("motion"))
        motion = motion_scores(patchify(clips, GRID), GRID, tubelet_size=2)
        torch.testing.assert_close(step.scores, motion)
        moving = unit_scores(motion, GRID, 2).topk(5, dim=1).indices
        for clip in range(3):
            hard = set(step.hard[clip, :16].nonzero().flatten().tolist())
            assert hard == set(moving[clip].tolist())
        assert step.mask.sum(dim=1).tolist() == [22] * 3


def test_a_step_masks_by_what_came_with_the_clips(step_of: Step) -> None:
    clips, masking = _bytes(2, 3, 4, 32, 32), _masking("codec")
    scores = torch.rand(2, 32, generator=_generator(3))
    step = step_of(clips, masking, given=scores)
    expected = make_mask(
        scores, GRID, masking, hard_ratio=0.5, batch_size=2, generator=_generator(7)
    )
    assert torch.equal(step.mask, expected.mask) and torch.equal(step.hard, expected.hard)
    with pytest.raises(ValueError, match=r"masking.source \(codec\) needs scores"):
        step_of(clips, masking)
    assert step_of(clips, masking, hard_ratio=0.0).scores is None


def test_a_step_masks_by_the_loss_itself(step_of: Step, student: HPM) -> None:
    clips, masking = _bytes(2, 3, 4, 32, 32), _masking("measured")
    generator = _generator(7)
    step = step_of(clips, masking, generator=generator)
    patches, again = patchify(clips, GRID), _generator(7)
    scores = _measured(student, patches, masking, generator=again)
    torch.testing.assert_close(step.scores, scores, equal_nan=True)
    expected = make_mask(scores, GRID, masking, hard_ratio=0.5, batch_size=2, generator=again)
    assert torch.equal(step.mask, expected.mask)  # another mask than the one that measured
    assert not torch.equal(step.mask, ~scores.isnan())


def test_without_a_source_masks_are_those_of_hard_ratio_0(step_of: Step, student: HPM) -> None:
    clips = _bytes(2, 3, 4, 32, 32)
    step = step_of(clips, _masking("none"))
    plain = step_of(clips, _masking("predicted"), hard_ratio=0.0, teacher=Teacher(student))
    assert torch.equal(step.mask, plain.mask) and not step.hard.any() and step.scores is None
    assert torch.equal(step.loss, plain.loss)


@pytest.mark.parametrize("source", ["motion", "measured", "codec"])
@pytest.mark.parametrize("pattern", ["auto", "blocks"])
def test_how_a_batch_is_split_changes_no_mask(
    step_of: Step, source: MaskSource, pattern: Any
) -> None:
    """Nor does it whether the hard ratio is on the device."""
    clips, masking = _bytes(4, 3, 4, 32, 32), _masking(source, pattern=pattern)
    given = torch.rand(4, 32, generator=_generator(3))
    whole = step_of(clips, masking, given=given, hard_ratio=torch.tensor(0.5))
    for first in (0, 2):
        rows = slice(first, first + 2)
        part = step_of(clips[rows], masking, given=given[rows], rows=(first, 4))
        assert torch.equal(part.mask, whole.mask[rows])
        assert torch.equal(part.hard, whole.hard[rows])
    assert whole.hard.any() and not torch.equal(whole.hard, whole.mask)


def test_no_source_but_the_prediction_needs_a_teacher() -> None:
    for source, mines, needs in (
        ("predicted", True, True),
        ("motion", True, False),
        ("codec", True, False),
        ("measured", True, False),
        ("none", False, False),
    ):
        masking = MaskingConfig(source=source)  # type: ignore[arg-type]
        assert (masking.mines, masking.needs_teacher) == (mines, needs)
        never = replace(masking, hard_ratio_end=0)
        assert not never.mines and not never.needs_teacher


@pytest.mark.parametrize("source", ["motion", "measured"])
@pytest.mark.parametrize("pattern", ["auto", "blocks"])
def test_no_step_needs_a_number_on_the_host(
    step_of: Step, source: MaskSource, pattern: Any
) -> None:
    """Tensors without contents have none: what asks for one, as CUDA would have to wait for it,
    is an error."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = step_of(
            torch.empty(2, 3, 4, 32, 32, dtype=torch.uint8),
            _masking(source, pattern=pattern),
            hard_ratio=torch.tensor(0.5),
        )
    assert step.mask.shape == step.hard.shape == (2, 32)
