import pytest
import torch
from torch import Tensor

from hpm_video.models.hpm import HPM
from hpm_video.teacher import make_teacher, momentum_at, score_tokens, update_teacher
from hpm_video.tokens import TokenGrid, patchify, unpatchify

GRID = TokenGrid(2, 3, 5)
N = GRID.num_tokens


def _model(seed: int = 0) -> HPM:
    torch.manual_seed(seed)
    model = HPM(
        GRID,
        tubelet_size=2,
        patch_size=4,
        width=16,
        depth=2,
        heads=2,
        decoder_width=12,
        decoder_heads=2,
        decoder_depth=1,
        predictor_depth=1,
        drop_path=0.5,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _clips(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 4, 12, 20, generator=torch.Generator().manual_seed(1))


def _score(teacher: HPM, clips: Tensor, token_ratio: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return score_tokens(teacher, clips, token_ratio=token_ratio, generator=generator)


def test_teacher_is_a_frozen_copy_without_reconstructor() -> None:
    student = _model()
    teacher = make_teacher(student)
    assert teacher.reconstructor is None
    assert student.reconstructor is not None
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    own = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        if name.startswith("reconstructor."):
            assert name not in own
        else:
            assert torch.equal(own[name], parameter)
            assert own[name].data_ptr() != parameter.data_ptr()


def test_teacher_is_the_moving_average_of_all_students() -> None:
    """After k updates with changing momentum, against a loop over numbers in double precision."""
    student = _model()
    teacher = make_teacher(student)
    slow = {name: p.detach().double().clone() for name, p in teacher.named_parameters()}
    momenta = [0.9, 0.99, 0.5, 0.999, 0.0, 0.95, 1.0]
    for k, momentum in enumerate(momenta):
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        update_teacher(teacher, student, momentum)
        now = dict(student.named_parameters())
        for name, value in slow.items():
            slow[name] = momentum * value + (1 - momentum) * now[name].detach().double()
    for name, parameter in teacher.named_parameters():
        assert (parameter.double() - slow[name]).abs().max() < 1e-5, name
        assert (parameter - now[name]).abs().max() > 0.01, name


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 0.999), (1 / 16, 0.99945), (1 / 8, 0.9999), (0.5, 0.9999), (1, 0.9999)],
)
def test_momentum_rises_over_the_first_eighth_of_the_run(progress: float, expected: float) -> None:
    momentum = momentum_at(progress, start=0.999, end=0.9999, ramp=0.125)
    assert momentum == pytest.approx(expected, abs=1e-12)


def test_momentum_without_a_ramp_is_the_end_value() -> None:
    assert momentum_at(0.01, start=0.5, end=0.9, ramp=0) == 0.9
    assert momentum_at(0.5, start=0.5, end=0.9, ramp=1) == pytest.approx(0.7)


def test_token_ratio_1_is_a_forward_pass_over_all_tokens() -> None:
    """Every module called by hand, without any index."""
    teacher, clips = make_teacher(_model()), _clips()
    with torch.no_grad():
        encoded = teacher.encoder(patchify(clips, GRID))
        x = teacher.decoder_input.project(encoded) + teacher.decoder_input.positions
        for block in teacher.predictor.blocks:
            x = block(x)
        expected = teacher.predictor.head(teacher.predictor.norm(x)).squeeze(-1)
    scores = _score(teacher, clips, 1.0)
    assert scores.shape == (2, N)
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 1e-5
    assert expected.std() > 0.01


def _seen(teacher: HPM, clips: Tensor, token_ratio: float, seed: int) -> list[set[int]]:
    """Which tokens' pixels have an influence on the scores, found by changing each."""
    before = _score(teacher, clips, token_ratio, seed)
    seen: list[set[int]] = [set() for _ in clips]
    for token in range(N):
        patches = patchify(clips, GRID)
        patches[:, token] += 0.3
        moved = unpatchify(patches, GRID, tubelet_size=2)
        after = _score(teacher, moved, token_ratio, seed)
        for row in range(len(clips)):
            if not torch.equal(after[row], before[row]):
                seen[row].add(token)
    return seen


@pytest.mark.parametrize(
    ("token_ratio", "expected"), [(0.1, 3), (0.26, 8), (0.5, 15), (0.001, 1), (1.0, 30)]
)
def test_sparse_teacher_sees_exactly_its_share_of_tokens(token_ratio: float, expected: int) -> None:
    teacher, clips = make_teacher(_model()), _clips()
    seen = _seen(teacher, clips, token_ratio, seed=0)
    assert [len(tokens) for tokens in seen] == [expected] * 2
    if 1 < expected < N:
        assert seen[0] != seen[1]
        assert seen != _seen(teacher, clips, token_ratio, seed=1)


def test_sparse_teacher_scores_as_a_student_with_that_mask_does() -> None:
    """In particular seen tokens stand in their own places, and all tokens get a score."""
    student, clips = _model(), _clips()
    teacher = make_teacher(student)
    mask = torch.ones(2, N, dtype=torch.bool)
    for row, tokens in enumerate(_seen(teacher, clips, 0.3, seed=4)):
        mask[row, list(tokens)] = False
    with torch.no_grad():
        expected = student.eval()(clips, mask).predicted_loss
    assert (_score(teacher, clips, 0.3, seed=4) - expected).abs().max() < 1e-5


def test_sparse_teacher_draws_every_token_equally_often() -> None:
    teacher = make_teacher(_model())
    index: list[Tensor] = []
    teacher.encoder.register_forward_pre_hook(lambda module, inputs: index.append(inputs[1]))
    trials = 3000
    _score(teacher, _clips(1).expand(trials, -1, -1, -1, -1), 0.3)
    counts = torch.zeros(N).scatter_add_(0, index[0].flatten(), torch.ones(trials * 9))
    assert counts / trials == pytest.approx(torch.full((N,), 0.3), abs=5 * (0.21 / trials) ** 0.5)


def test_scores_follow_the_generator_only() -> None:
    teacher, clips = make_teacher(_model()), _clips()
    before = torch.get_rng_state()
    one = _score(teacher, clips, 0.3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(_score(teacher, clips, 0.3), one)
    assert not torch.equal(_score(teacher, clips, 0.3, seed=1), one)
    assert not one.requires_grad


def test_a_part_of_a_batch_is_scored_like_the_whole() -> None:
    teacher, clips = make_teacher(_model()), _clips(5)
    whole = _score(teacher, clips, 0.3)
    for first, last in [(0, 2), (2, 5)]:
        part = score_tokens(
            teacher,
            clips[first:last],
            token_ratio=0.3,
            generator=torch.Generator().manual_seed(0),
            rows=(first, 5),
        )
        assert (part - whole[first:last]).abs().max() < 1e-5
