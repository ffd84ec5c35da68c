"""The ablation: each of its files is the variant that its table says, and that variant learns."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import config_to_dict, differing_keys, load_config
from hpm_video.method.masking import hard_ratio_at
from hpm_video.method.step import PretrainStep, pretrain_step
from hpm_video.method.teacher import Teacher, momentum_at, update_teacher
from hpm_video.models.build import build_model, token_grid
from hpm_video.models.hpm import HPM
from hpm_video.train.optim import pretrain_optimizer, set_lr

FOLDER = Path(__file__).parents[2] / "configs" / "ablation"
BASE = "hpm_ranking.yaml"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml") if not path.match("study_*"))

# The same 8 time steps as the real runs, so that every tube_length fits, with 4 x 4 tubes of tokens
# of 1 x 8 x 8 pixels; one block each, but several where a file sets the depth.
DEBUG = (
    *("data.num_frames=8", "data.crop_size=32"),
    *("model.tubelet_size=1", "model.patch_size=8"),
    *("model.width=32", "model.depth=1", "model.heads=2"),
    *("model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1"),
    *("optim.epochs=1", "optim.warmup_epochs=0"),
)
# Enough to leave the start behind; that predictions rank well takes a small model many more.
NUM_STEPS = 24
LR = 3e-3


@cache
def _table() -> dict[str, list[str]]:
    """File -> the settings that its row names, from the table of the folder's README."""
    rows = re.findall(r"^\| `(\S+\.yaml)` \|(.*?)\|", (FOLDER / "README.md").read_text(), re.M)
    assert len(rows) == len(dict(rows))
    return {name: settings.strip(" `").split() for name, settings in rows}


def test_the_table_has_a_row_for_each_file() -> None:
    assert sorted(_table()) == FILES
    assert _table()[BASE] == []


@pytest.mark.parametrize("name", FILES)
def test_a_variant_differs_from_the_base_in_what_its_row_says(name: str) -> None:
    base, variant = (load_config(PretrainConfig, FOLDER / file) for file in (BASE, name))
    settings = _table()[name]
    assert load_config(PretrainConfig, FOLDER / BASE, settings) == variant
    # Nothing that the row names is what the base does anyway.
    named = {setting.partition("=")[0] for setting in settings}
    assert set(differing_keys(config_to_dict(base), config_to_dict(variant))) == named


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_what_a_stranger_needs(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if line[0] != "#")])
    stem = name.removesuffix(".yaml")
    for words in (
        "# Varies: ",
        "# Stands for: ",
        f"tools/pretrain.py configs/ablation/{name} ",
        f"run.output_dir=outputs/ablation/{stem}",
        "# Hardware: ",
        "# Hours: ",
        " Expected: ",
    ):
        assert words in header, words


@cache
def _clips() -> Tensor:
    """Two clips (2, 3, 8, 32, 32) in [0, 1]: noise on the left, a slow wave on the right, where
    the same pattern in every token is soon learnt; so place decides which tokens are hard."""
    generator = torch.Generator().manual_seed(0)
    t, y, x = torch.meshgrid(*(torch.arange(size) for size in (8, 32, 32)), indexing="ij")
    wave = 0.5 + 0.4 * torch.sin((t + 2 * y + 3 * x) * torch.pi / 4)
    noise = torch.rand(2, 3, 8, 32, 32, generator=generator)
    return torch.where(x < 16, noise, wave)


@cache
def _train(name: str) -> tuple[PretrainStep, PretrainStep, HPM, Teacher | None]:
    """A debug model trained as the file says: its step on one fixed random mask of the fixed
    clips before and after, the student and the teacher."""
    config = load_config(PretrainConfig, FOLDER / name, DEBUG)
    grid = token_grid(config.model, num_frames=8, crop_size=32)
    torch.manual_seed(0)
    student = build_model(config.model, grid, predict_loss=config.loss.prediction != "none")
    teacher = Teacher(student) if config.masking.mines else None
    optimizer = pretrain_optimizer(student, config.optim)
    set_lr(optimizer, LR)

    def step(seed: int, teacher: Teacher | None, hard_ratio: float) -> PretrainStep:
        return pretrain_step(
            student,
            teacher,
            _clips(),
            grid=grid,
            masking=config.masking,
            loss=config.loss,
            predictor_input=config.model.predictor_input,
            hard_ratio=hard_ratio,
            token_ratio=config.teacher.token_ratio,
            view=config.teacher.view,
            draws=config.teacher.draws,
            generator=torch.Generator().manual_seed(seed),
        )

    with torch.no_grad():
        before = step(1000, None, 0.0)
    for index in range(NUM_STEPS):
        progress = (index + 1) / NUM_STEPS
        masking, average = config.masking, config.teacher
        hard_ratio = hard_ratio_at(progress, masking.hard_ratio_start, masking.hard_ratio_end)
        step(index, teacher, hard_ratio).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if teacher is not None:
            momentum = momentum_at(
                progress,
                start=average.momentum_start,
                end=average.momentum_end,
                ramp=average.ramp,
            )
            update_teacher(teacher, student, momentum)
    with torch.no_grad():
        after = step(1000, None, 0.0)
    return before, after, student, teacher


@pytest.mark.parametrize("name", FILES)
def test_a_few_steps_move_the_loss(name: str) -> None:
    before, after, student, teacher = _train(name)
    config = load_config(PretrainConfig, FOLDER / name)
    assert after.loss < before.loss
    assert after.losses["reconstruction_loss"] < 0.8 * before.losses["reconstruction_loss"]
    assert (student.predictor is None) == (config.loss.prediction == "none")
    assert (teacher is None) == (config.masking.hard_ratio_end == 0)
    if student.predictor is not None:
        assert after.losses["prediction_loss"] < before.losses["prediction_loss"]
        blocks = [name for name, _ in student.predictor.named_modules() if name.endswith(".attn")]
        assert len(blocks) == config.model.predictor_depth


@pytest.mark.parametrize("name", sorted(set(FILES) - {BASE}))
def test_a_variant_is_another_training_than_the_base(name: str) -> None:
    """From the same weights, clips and seeds, its settings lead to other weights."""
    _, _, student, teacher = _train(name)
    _, _, base_student, base_teacher = _train(BASE)
    # Momentum is seen in the teacher before it changes a mask.
    same = [_same_weights(student, base_student)]
    if teacher is not None and base_teacher is not None:
        same.append(_same_weights(teacher, base_teacher))
    assert not all(same)


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Of the parameters that both have, if the modules have the same shapes."""
    mine, theirs = one.state_dict(), other.state_dict()
    shared = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    assert shared
    return all(torch.equal(mine[name], theirs[name]) for name in shared)
