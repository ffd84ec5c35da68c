"""Numbers about mining: predictions and measurements of checkpoints, and agreement of the two."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import config_to_dict, load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.clip import read_codec_scores
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.evaluate.mining_quality import (
    even_masks,
    hardest_tokens,
    measure_mining,
    measure_videos,
    measured_loss,
    predicted_loss,
    source_scores,
)
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained, reconstruct, run_student
from hpm_video.method.losses import reconstruction_loss
from hpm_video.method.masking import unit_scores
from hpm_video.method.sources import motion_scores
from hpm_video.method.teacher import Teacher, score_tokens
from hpm_video.models.build import build_model, token_grid
from hpm_video.models.tokens import gather_tokens, normalize_targets, patchify
from hpm_video.weights.checkpoint import save_checkpoint

TINY = [
    "data.num_frames=4", "data.crop_size=32", "model.size=tiny", "model.width=32", "model.depth=2",
    "model.heads=2", "model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1",
    "model.predictor_depth=1", "model.patch_size=8", "masking.mask_ratio=0.7",
    "run.precision=float32",
]  # fmt: skip
PLAIN = ["loss.prediction=none", "masking.hard_ratio_end=0"]


def pretrained_with(folder: Path, *settings: str) -> Pretrained:
    """What a checkpoint of an untrained model gives, its teacher unlike its student."""
    config = load_config(PretrainConfig, None, [*TINY, *settings])
    grid = token_grid(config.model, num_frames=4, crop_size=32)
    torch.manual_seed(0)
    predicts = config.loss.prediction != "none"
    student = build_model(config.model, grid, predict_loss=predicts)
    teacher = None
    if config.masking.mines:
        teacher = Teacher(build_model(config.model, grid, predict_loss=True)).state_dict()
    state = {
        "kind": "pretrain", "config": config_to_dict(config), "step": 3,
        "model": student.state_dict(), "teacher": teacher,
    }  # fmt: skip
    return load_pretrained(save_checkpoint(folder, state, keep=0))


@pytest.fixture
def clips() -> Tensor:
    return torch.rand(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def test_scorer_is_the_teacher_then_the_student_then_none(tmp_path: Path, clips: Tensor) -> None:
    pretrained = pretrained_with(tmp_path / "mines", "teacher.token_ratio=1")
    assert pretrained.scorer is not None and pretrained.step == 3
    assert not pretrained.student.training and not pretrained.scorer.training
    generator = torch.Generator().manual_seed(0)
    scores = score_tokens(pretrained.scorer, clips, token_ratio=1, generator=generator)
    torch.testing.assert_close(predicted_loss(pretrained, clips), scores)

    predicts = pretrained_with(tmp_path / "predicts", "masking.hard_ratio_end=0")
    theirs = dict(predicts.student.named_parameters())
    for name, parameter in predicts.scorer.named_parameters():
        assert torch.equal(parameter, theirs[name])

    plain = pretrained_with(tmp_path / "plain", *PLAIN)
    assert plain.scorer is None
    with pytest.raises(
        ValueError,
        match=r"must have a loss predictor; .*loss.prediction=ranking or loss.prediction=absolute",
    ):
        predicted_loss(plain, clips)
    report = measure_mining(plain, clips, num_masks=1, seed=0)
    assert report.predicted is report.spearman is report.rank_accuracy is None
    assert list(report.sources) == ["motion"]
    assert measured_loss(plain, clips, num_masks=2, seed=0).isfinite().all()


def test_sparse_views_are_averaged_and_follow_the_seed(tmp_path: Path, clips: Tensor) -> None:
    pretrained = pretrained_with(tmp_path, "teacher.token_ratio=0.25")
    assert pretrained.scorer is not None
    generator = torch.Generator().manual_seed(5)
    draws = [
        score_tokens(pretrained.scorer, clips, token_ratio=0.25, view="spread", generator=generator)
        for _ in range(3)
    ]
    mean = predicted_loss(pretrained, clips, seed=5, num_views=3)
    torch.testing.assert_close(mean, torch.stack(draws).mean(dim=0))
    before = torch.get_rng_state()
    assert not torch.equal(predicted_loss(pretrained, clips, seed=6), draws[0])
    assert torch.equal(predicted_loss(pretrained, clips, seed=5), draws[0])
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"num_views \(0\) must be at least 1"):
        predicted_loss(pretrained, clips, num_views=0)


@pytest.mark.parametrize("ratio", ["0.1", "0.5", "0.9"])
def test_masks_hide_every_unit_equally_often(tmp_path: Path, clips: Tensor, ratio: str) -> None:
    settings = f"masking.mask_ratio={ratio}", "masking.tube_length=1"
    pretrained = pretrained_with(tmp_path, *settings)
    masks = torch.stack(list(even_masks(pretrained, clips, num_masks=4, seed=0)))
    assert len(masks) == max(4, -(-32 // int(32 * float(ratio))))
    assert (masks.sum(dim=2) == int(32 * float(ratio))).all()
    counts = masks.sum(dim=0)  # (B, N)
    assert counts.min() >= 1 and counts.max() - counts.min() <= 1
    assert not torch.equal(masks[0, 0], masks[0, 1])


@pytest.mark.parametrize("normalize", [True, False])
def test_measured_loss_is_the_mean_over_masks(
    tmp_path: Path, clips: Tensor, normalize: bool
) -> None:
    pretrained = pretrained_with(tmp_path, f"loss.normalize_targets={normalize}")
    targets = patchify(clips, pretrained.grid)
    targets = normalize_targets(targets) if normalize else targets
    losses: list[list[list[float]]] = [[[] for _ in range(32)] for _ in clips]
    for mask in even_masks(pretrained, clips, num_masks=3, seed=7):
        output = run_student(pretrained, clips, mask)
        values = reconstruction_loss(output.reconstruction, gather_tokens(targets, output.masked))
        for row, (tokens, token_losses) in enumerate(zip(output.masked, values, strict=True)):
            for token, value in zip(tokens.tolist(), token_losses.tolist(), strict=True):
                losses[row][token].append(value)
    expected = torch.tensor([[np.mean(token) for token in row] for row in losses])
    measured = measured_loss(pretrained, clips, num_masks=3, seed=7)
    torch.testing.assert_close(measured, expected.float())
    with pytest.raises(ValueError, match=r"num_masks \(0\) must be at least 1"):
        measured_loss(pretrained, clips, num_masks=0, seed=0)


def test_report(tmp_path: Path, clips: Tensor) -> None:
    pretrained = pretrained_with(tmp_path, "masking.tube_length=1")
    report = measure_mining(pretrained, clips, num_masks=3, seed=2)
    assert 0 <= report.rank_accuracy <= 1 and report.coverage is None
    torch.testing.assert_close(report.predicted, predicted_loss(pretrained, clips, seed=2))
    pairs = zip(report.predicted.numpy(), report.measured.numpy(), strict=True)
    expected = np.mean([scipy.stats.spearmanr(*pair).statistic for pair in pairs])
    assert report.spearman == pytest.approx(expected)


def test_every_source_is_judged_alike(tmp_path: Path, clips: Tensor) -> None:
    """By the same measured losses and objects; a token of an unknown score counts in no figure."""
    pretrained = pretrained_with(tmp_path, "masking.tube_length=1")
    given = torch.rand(3, 32, generator=torch.Generator().manual_seed(4))
    given[:, :3] = torch.nan
    moving = torch.zeros(3, 32)
    moving.scatter_(1, given.nan_to_num(nan=-1.0).topk(8, dim=1).indices, 1.0)
    report = measure_mining(pretrained, clips, num_masks=3, seed=2, given=given, moving=moving)
    assert list(report.sources) == ["predicted", "motion", "codec"]
    ask = {"num_masks": 3, "seed": 2, "given": given}
    for source, found in report.sources.items():
        scores = source_scores(pretrained, clips, source, **ask)
        assert torch.equal(found.scores.nan_to_num(), scores.nan_to_num())
        known = slice(3, None) if source == "codec" else slice(None)
        pairs = zip(scores[:, known].numpy(), report.measured[:, known].numpy(), strict=True)
        expected = np.mean([scipy.stats.spearmanr(*pair).statistic for pair in pairs])
        assert found.spearman == pytest.approx(expected)
    assert report.sources["codec"].coverage == pytest.approx(4)
    assert 0 < report.sources["motion"].coverage < 4
    motion = motion_scores(patchify(clips, pretrained.grid), pretrained.grid, tubelet_size=2)
    assert torch.equal(report.sources["motion"].scores, motion)
    measured = source_scores(pretrained, clips, "measured", **ask)
    assert torch.equal(measured, report.measured)
    assert source_scores(pretrained, clips, "none") is None
    assert source_scores(pretrained, clips, "codec") is None


def test_the_loss_of_a_run_with_blocks_is_measured_tube_by_tube(
    tmp_path: Path, clips: Tensor
) -> None:
    pretrained = pretrained_with(tmp_path, "masking.pattern=blocks")
    counts = sum(mask.int() for mask in even_masks(pretrained, clips, num_masks=4, seed=0))
    assert counts.min() >= 1 and counts.max() - counts.min() <= 1
    assert measured_loss(pretrained, clips, num_masks=1, seed=0).isfinite().all()


def test_coverage_is_1_by_chance_and_4_at_best(tmp_path: Path, clips: Tensor) -> None:
    pretrained = pretrained_with(tmp_path)  # 16 tubes of 2 tokens
    scores = unit_scores(predicted_loss(pretrained, clips), pretrained.grid, 2)
    hardest = torch.zeros_like(scores).scatter(1, scores.topk(4, dim=1).indices, 1.0)
    for moving, expected in ((torch.ones(3, 16), 1.0), (hardest, 4.0), (1 - hardest, 0.0)):
        report = measure_mining(pretrained, clips, num_masks=1, seed=0, moving=moving.repeat(1, 2))
        assert report.coverage == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"moving must have shape \(3, 32\), not \(3, 16\)"):
        measure_mining(pretrained, clips, num_masks=1, seed=0, moving=hardest)
    with pytest.raises(ValueError, match="moving must cover"):
        measure_mining(pretrained, clips, num_masks=1, seed=0, moving=torch.zeros(3, 32))


def test_hardest_tokens_are_whole_tubes_of_the_highest_scores(tmp_path: Path) -> None:
    pretrained = pretrained_with(tmp_path)  # 11 of 16 tubes are masked
    scores = torch.arange(32.0)[None]  # the tubes get harder in raster order
    chosen = hardest_tokens(pretrained, scores, hard_ratio=0.5)
    assert chosen.reshape(2, 16).tolist() == [[False] * 11 + [True] * 5] * 2
    assert not hardest_tokens(pretrained, scores, hard_ratio=0.0).any()
    config = pretrained.config
    single = replace(config, masking=replace(config.masking, tube_length=1))
    chosen = hardest_tokens(replace(pretrained, config=single), scores, hard_ratio=0.5)
    assert chosen[0].nonzero().min() == 32 - 11


def test_plain_reconstruction_is_the_prediction(tmp_path: Path, clips: Tensor) -> None:
    pretrained = pretrained_with(tmp_path, "loss.normalize_targets=false")
    mask = next(even_masks(pretrained, clips, num_masks=1, seed=0))
    made = patchify(reconstruct(pretrained, clips, mask), pretrained.grid)
    output = run_student(pretrained, clips, mask)
    expected = output.reconstruction.clamp(0, 1)
    torch.testing.assert_close(gather_tokens(made, output.masked), expected)
    assert torch.equal(made[~mask], patchify(clips, pretrained.grid)[~mask])


def test_honest_reconstruction_knows_nothing_of_what_is_masked(
    tmp_path: Path, clips: Tensor
) -> None:
    pretrained = pretrained_with(tmp_path)
    grid = pretrained.grid
    mask = next(even_masks(pretrained, clips, num_masks=1, seed=0))
    honest = patchify(reconstruct(pretrained, clips, mask), grid)
    pixels = mask.reshape(3, 1, 2, 1, 4, 1, 4, 1).expand(-1, 3, -1, 2, -1, 8, -1, 8)
    darker = torch.where(pixels.reshape(clips.shape), clips / 2, clips)
    again = patchify(reconstruct(pretrained, darker, mask), grid)
    assert torch.equal(honest, again)

    # With the true statistics, a model that predicts 0 paints the true mean colour of each token.
    torch.nn.init.zeros_(pretrained.student.reconstructor.head.weight)  # type: ignore[union-attr]
    true = patchify(reconstruct(pretrained, clips, mask, true_statistics=True), grid)
    colours = patchify(clips, grid).unflatten(-1, (-1, 3)).mean(dim=2, keepdim=True)
    painted = true.unflatten(-1, (-1, 3))[mask]
    torch.testing.assert_close(painted, colours[mask].expand_as(painted))


def test_sources_are_judged_on_videos(tmp_path: Path) -> None:
    """On toy videos what needs no model is on the object; of VP9 the codec tells nothing."""
    toy = {"size": 32, "num_frames": 8, "formats": ("mp4", "webm")}
    manifest = write_toy_videos(tmp_path / "toy", num_videos=12, seed=0, **toy)
    pretrained_with(tmp_path / "run", "data.frame_stride=1", *PLAIN)
    report = measure_videos(tmp_path / "run", [str(manifest)])
    assert set(report.sources) == {"motion", "codec"}
    for found in report.sources.values():
        assert found.coverage > 1.2 and -1 <= found.spearman <= 1
    (file,) = (tmp_path / "run").glob("*.pt")
    config, videos = load_pretrained(file).config, read_manifest(manifest)
    scores = report.sources["codec"].scores
    assert scores.isnan().all(dim=1).tolist() == [False] * 8 + [True] * 4
    own = [read_codec_scores(videos.path(k), config)[0] for k in range(8)]
    assert torch.equal(scores[:8], torch.stack(own))
