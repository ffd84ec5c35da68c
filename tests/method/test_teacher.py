import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hpm_video.config import TeacherConfig
from hpm_video.method.teacher import Teacher, fill_in, momentum_at, score_tokens, update_teacher
from hpm_video.method.teacher_views import describe_view, draw_tokens, num_seen
from hpm_video.models.hpm import HPM, PredictorInput
from hpm_video.models.tokens import TokenGrid, patchify, unpatchify
from hpm_video.models.vit import ViTSize

GRID = TokenGrid(2, 3, 5)
N = GRID.num_tokens


def _model(seed: int = 0, predictor_input: PredictorInput = "encoded") -> HPM:
    torch.manual_seed(seed)
    model = HPM(
        GRID,
        ViTSize(tubelet_size=2, patch_size=4, width=16, depth=2, heads=2, drop_path=0.5),
        decoder_width=12,
        decoder_heads=2,
        decoder_depth=1,
        predictor_input=predictor_input,
        predictor_depth=1,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _clips(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 4, 12, 20, generator=torch.Generator().manual_seed(1))


def _score(
    teacher: Teacher, clips: Tensor, token_ratio: float, seed: int = 0, **settings: object
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return score_tokens(teacher, clips, token_ratio=token_ratio, generator=generator, **settings)


def test_teacher_is_a_frozen_copy_without_reconstructor() -> None:
    student = _model()
    teacher = Teacher(student)
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


def test_a_teacher_from_pixels_is_its_predictor_and_no_more() -> None:
    student = _model(predictor_input="pixels")
    teacher = Teacher(student)
    assert {name.split(".")[0] for name, _ in teacher.named_parameters()} == {"predictor"}
    assert len(list(teacher.parameters())) == len(list(student.predictor.parameters()))


def test_a_teacher_from_pixels_scores_what_it_sees_by_its_predictor_alone() -> None:
    """Every module called by hand; and not by what it does not see."""
    teacher, clips = Teacher(_model(predictor_input="pixels")), _clips()
    seen = torch.tensor([[0, 4, 17, 29], [3, 4, 5, 6]])
    patches = patchify(clips, GRID)
    network = teacher.predictor.encoder
    with torch.no_grad():
        scores = teacher(patches, seen)
        assert scores.shape == seen.shape
        for row, tokens in enumerate(seen):
            x = (patches[row, tokens].unflatten(-1, (-1, 3)) - network.mean) / network.std
            x = network.embed(x.flatten(-2)) + network.positions[tokens]
            for block in network.blocks:
                stream, branch = block(x[None])
                x = (stream + branch)[0]
            expected = teacher.predictor.head(network.norm(x)).squeeze(-1)
            assert (scores[row] - expected).abs().max() < 1e-5
        hidden = patches.clone()
        hidden[0, 1] = torch.nan
        assert torch.equal(teacher(hidden, seen), scores)
    assert scores.std() > 0.01


def test_tokens_that_were_not_seen_get_the_mean_of_those_that_were_near_ones_first() -> None:
    """Against a loop over pairs of tokens."""
    seen = torch.tensor([[0, 7, 11, 29], [2, 3, 20, 21]])
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    filled = fill_in(scores, seen, GRID)
    places = [(t, y, x) for t in range(2) for y in range(3) for x in range(5)]
    for row in range(2):
        known = dict(zip(seen[row].tolist(), scores[row].tolist(), strict=True))
        for token, (t, y, x) in enumerate(places):
            if token in known:
                assert filled[row, token].item() == known[token]
                continue
            total = weight = 0.0
            for other, score in known.items():
                dt, dy, dx = (abs(a - b) for a, b in zip((t, y, x), places[other], strict=True))
                near = math.exp(-dt / 4 - 2 * dy - 2 * dx)
                total, weight = total + near * score, weight + near
            assert filled[row, token].item() == pytest.approx(total / weight, rel=1e-4)


def test_scores_reach_the_far_end_of_a_large_grid() -> None:
    grid = TokenGrid(32, 60, 60)
    filled = fill_in(torch.tensor([[2.5]]), torch.tensor([[0]]), grid)
    assert (filled - 2.5).abs().max() < 1e-3


def test_scores_are_filled_in_with_float32_under_bfloat16() -> None:
    seen = torch.arange(0, N, 3)[None]
    scores = 20 + torch.randn(1, len(seen[0]), generator=torch.Generator().manual_seed(0))
    expected = fill_in(scores, seen, GRID)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fill_in(scores, seen, GRID), expected)
    assert expected.unique().numel() == N


def test_teacher_is_the_moving_average_of_all_students() -> None:
    """After k updates with changing momentum, against a loop over numbers in double precision."""
    student = _model()
    teacher = Teacher(student)
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
    teacher, clips = Teacher(_model()), _clips()
    with torch.no_grad():
        encoded = teacher.encoder(patchify(clips, GRID))
        x = teacher.decoder_input.project(encoded) + teacher.decoder_input.positions
        for block in teacher.predictor.blocks:
            stream, branch = block(x)
            x = stream + branch
        expected = teacher.predictor.head(teacher.predictor.norm(x)).squeeze(-1)
    scores = _score(teacher, clips, 1.0)
    assert scores.shape == (2, N)
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 1e-5
    assert expected.std() > 0.01


def _seen(
    teacher: Teacher, clips: Tensor, token_ratio: float, seed: int, **settings: object
) -> list[set[int]]:
    """Which tokens' pixels have an influence on the scores, found by changing each."""
    before = _score(teacher, clips, token_ratio, seed, **settings)
    seen: list[set[int]] = [set() for _ in clips]
    for token in range(N):
        patches = patchify(clips, GRID)
        patches[:, token] += 0.3
        moved = unpatchify(patches, GRID, tubelet_size=2)
        after = _score(teacher, moved, token_ratio, seed, **settings)
        for row in range(len(clips)):
            if not torch.equal(after[row], before[row]):
                seen[row].add(token)
    return seen


@pytest.mark.parametrize("predictor_input", ["encoded", "pixels"])
@pytest.mark.parametrize(
    ("token_ratio", "expected"), [(0.1, 3), (0.26, 8), (0.5, 15), (0.001, 1), (1.0, 30)]
)
def test_sparse_teacher_sees_exactly_its_share_of_tokens(
    token_ratio: float, expected: int, predictor_input: PredictorInput
) -> None:
    teacher, clips = Teacher(_model(predictor_input=predictor_input)), _clips()
    seen = _seen(teacher, clips, token_ratio, seed=0)
    assert [len(tokens) for tokens in seen] == [expected] * 2
    if 1 < expected < N:
        assert seen[0] != seen[1]
        assert seen != _seen(teacher, clips, token_ratio, seed=1)


def test_sparse_teacher_scores_as_a_student_with_that_mask_does() -> None:
    """In particular seen tokens stand in their own places, and all tokens get a score."""
    student, clips = _model(), _clips()
    teacher = Teacher(student)
    mask = torch.ones(2, N, dtype=torch.bool)
    for row, tokens in enumerate(_seen(teacher, clips, 0.3, seed=4)):
        mask[row, list(tokens)] = False
    with torch.no_grad():
        expected = student.eval()(clips, mask).predicted_loss
    assert (_score(teacher, clips, 0.3, seed=4) - expected).abs().max() < 1e-5


def test_scores_follow_the_generator_only() -> None:
    teacher, clips = Teacher(_model()), _clips()
    before = torch.get_rng_state()
    one = _score(teacher, clips, 0.3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(_score(teacher, clips, 0.3), one)
    assert not torch.equal(_score(teacher, clips, 0.3, seed=1), one)
    assert not one.requires_grad


def test_a_part_of_a_batch_is_scored_like_the_whole() -> None:
    teacher, clips = Teacher(_model()), _clips(5)
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


VIEWS = ["tokens", "tubes", "frames", "spread"]
# Tubes and time steps without and with common divisors, more of the one or of the other.
GRIDS = [GRID, TokenGrid(4, 7, 7), TokenGrid(8, 2, 6), TokenGrid(6, 3, 3), TokenGrid(7, 1, 3)]
RATIOS = ["0.01", "0.1", "0.25", "0.3", "0.5", "0.77"]


def _draw(batch: int, grid: TokenGrid, ratio: float, view: str, *, draws: int = 1, seed: int = 0):
    return draw_tokens(
        batch,
        grid,
        token_ratio=ratio,
        view=view,
        draws=draws,
        generator=torch.Generator().manual_seed(seed),
        device="cpu",
    )


def _counts(values: list[int], num_kinds: int) -> list[int]:
    """How often each of 0 .. num_kinds - 1 comes, most often first."""
    counter = Counter(values)
    return sorted((counter[kind] for kind in range(num_kinds)), reverse=True)


@pytest.mark.parametrize(
    ("grid", "ratio", "draws", "expected"),
    [
        (TokenGrid(8, 14, 14), 0.1, 1, "157 of 1568 tokens of a clip"),  # 196 tubes
        (TokenGrid(2, 6, 6), 0.25, 1, "18 of 72 tokens of a clip"),  # 36 tubes
        (TokenGrid(2, 6, 6), 0.1, 3, "7 of 72 tokens of a clip"),
        (
            TokenGrid(2, 6, 6),
            0.1,
            2,
            "7 of 72 tokens of a clip; warning: it sees nothing of most of the 36 tubes. Raise "
            "teacher.token_ratio (0.1) on such a small grid, for example to 0.25",
        ),
        (
            TokenGrid(1, 6, 6),
            0.25,
            1,
            "9 of 36 tokens of a clip; warning: it sees nothing of most of the 36 tubes. Raise "
            "teacher.token_ratio (0.25) on such a small grid, for example to 0.5",
        ),
    ],
)
def test_a_run_is_told_when_most_tubes_show_the_teacher_nothing(
    grid: TokenGrid, ratio: float, draws: int, expected: str
) -> None:
    line = describe_view(grid, TeacherConfig(token_ratio=ratio, view="spread", draws=draws))
    assert line == f"the teacher sees {expected}"


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shows_what_it_promises(view: str, grid: TokenGrid, ratio: str) -> None:
    """Exact numbers of whole tubes or time steps, evenly spaced or evenly dealt."""
    whole = {"tubes": grid.time, "frames": grid.num_tubes}.get(view, 1)
    parts = max(1, round(Fraction(ratio) * (grid.num_tokens // whole)))
    assert num_seen(grid, token_ratio=float(ratio), view=view) == parts * whole
    drawn = _draw(20, grid, float(ratio), view)
    assert drawn.shape == (20, 1, parts * whole)
    for row in drawn[:, 0].tolist():
        assert row == sorted(set(row))
        assert 0 <= row[0] <= row[-1] < grid.num_tokens
        times = [token // grid.num_tubes for token in row]
        tubes = [token % grid.num_tubes for token in row]
        if view == "tubes":
            assert _counts(tubes, grid.num_tubes)[:parts] == [grid.time] * parts
        elif view == "frames":
            assert _counts(times, grid.time)[:parts] == [grid.num_tubes] * parts
            steps = sorted(set(times))
            ahead = [*steps[1:], steps[0] + grid.time]
            gaps = {after - before for before, after in zip(steps, ahead, strict=True)}
            assert max(gaps) - min(gaps) <= 1
        elif view == "spread":
            for values, kinds in ((times, grid.time), (tubes, grid.num_tubes)):
                counts = _counts(values, kinds)
                assert counts[0] - counts[-1] <= 1


@pytest.mark.parametrize("draws", [2, 3, 5])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("view", VIEWS)
def test_draws_of_a_clip_share_no_token_while_there_are_others(
    view: str, grid: TokenGrid, ratio: float, draws: int
) -> None:
    drawn = _draw(6, grid, ratio, view, draws=draws)
    seen = num_seen(grid, token_ratio=ratio, view=view)
    assert drawn.shape == (6, draws, seen)
    for clip in drawn.tolist():
        assert all(row == sorted(set(row)) for row in clip)
        counts = _counts([token for row in clip for token in row], grid.num_tokens)
        if draws * seen <= grid.num_tokens:
            assert counts[0] == 1
        elif view != "frames":
            assert counts[0] - counts[-1] <= 1
        if view == "spread":  # each of them, not only the first
            for row in clip:
                of_tubes = _counts([token % grid.num_tubes for token in row], grid.num_tubes)
                assert of_tubes[0] - of_tubes[-1] <= 1


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("grid", [GRID, TokenGrid(4, 2, 3), TokenGrid(5, 2, 2)])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_shows_every_token_equally_often(
    view: str, grid: TokenGrid, ratio: float, draws: int
) -> None:
    trials = 4000
    drawn = _draw(trials, grid, ratio, view, draws=draws)
    expected = drawn.shape[2] / grid.num_tokens
    for one in drawn.unbind(1):
        counts = torch.bincount(one.flatten(), minlength=grid.num_tokens) / trials
        tolerance = 5 * (expected * (1 - expected) / trials) ** 0.5
        assert counts == pytest.approx(torch.full_like(counts, expected), abs=tolerance)


def test_spread_deals_tubes_and_times_anew_for_every_clip() -> None:
    """Which tubes come together, and which time a tube shows, has no pattern over clips."""
    grid, trials = TokenGrid(2, 2, 3), 4000
    drawn = _draw(trials, grid, 0.25, "spread")[:, 0]  # 3 of 6 tubes, one token each
    shown = torch.zeros(trials, 12).scatter_(1, drawn, 1.0).view(trials, 2, 6)
    tubes = shown.sum(dim=1)
    together = (tubes.T @ tubes / trials)[~torch.eye(6, dtype=torch.bool)]
    assert together == pytest.approx(torch.full_like(together, 0.2), abs=5 * 0.4 / trials**0.5)
    first = shown[:, 0].T @ shown[:, 1] / trials  # tube i at time 0 while tube j at time 1
    expected = torch.full((6, 6), 0.5 * 0.4 * 2 / 3 * 0.5 * 1.0)
    expected.fill_diagonal_(0.0)
    assert first == pytest.approx(expected, abs=5 * 0.25 / trials**0.5)


@pytest.mark.parametrize("view", VIEWS)
def test_scores_are_the_mean_of_what_students_with_those_masks_predict(view: str) -> None:
    student, clips = _model(), _clips()
    drawn = _draw(2, GRID, 0.3, view, draws=2, seed=4)
    expected = []
    for seen in drawn.unbind(1):
        mask = torch.ones(2, N, dtype=torch.bool).scatter(1, seen, False)
        with torch.no_grad():
            expected.append(student.eval()(clips, mask).predicted_loss)
    teacher = Teacher(student)
    scores = _score(teacher, clips, 0.3, seed=4, view=view, draws=2)
    assert (scores - (expected[0] + expected[1]) / 2).abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    seen = _seen(teacher, clips, 0.3, seed=4, view=view, draws=2)
    assert seen == [set(row) for row in drawn.flatten(1).tolist()]


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("view", VIEWS)
def test_at_token_ratio_1_view_and_draws_do_not_matter(view: str, draws: int) -> None:
    teacher, clips = Teacher(_model()), _clips()
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    scores = score_tokens(
        teacher, clips, token_ratio=1.0, view=view, draws=draws, generator=generator
    )
    assert torch.equal(scores, _score(teacher, clips, 1.0))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("view", VIEWS)
def test_a_part_of_a_batch_sees_what_the_whole_would(view: str) -> None:
    settings = {"token_ratio": 0.3, "view": view, "draws": 2, "device": "cpu"}
    whole = _draw(7, GRID, 0.3, view, draws=2)
    parts = [
        draw_tokens(
            last - first,
            GRID,
            generator=torch.Generator().manual_seed(0),
            rows=(first, 7),
            **settings,
        )
        for first, last in [(0, 3), (3, 4), (4, 7)]
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(_draw(7, GRID, 0.3, view, draws=2, seed=1), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_ratio": 0.0}, r"teacher.token_ratio \(0.0\) must be in \(0, 1\]"),
        ({"token_ratio": 1.5}, r"teacher.token_ratio \(1.5\) must be in \(0, 1\]"),
        ({"token_ratio": -0.1}, r"teacher.token_ratio \(-0.1\)"),
        ({"draws": 0}, r"teacher.draws \(0\) must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    good = {"token_ratio": 0.5, "draws": 1, "view": "spread"}
    with pytest.raises(ValueError, match=message):
        _score(Teacher(_model()), _clips(), **{**good, **settings})
