"""The list of variants: each is found by its names, is what its table says, and learns."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from untrained_target import untrained_target

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import (
    config_to_dict,
    differing_keys,
    load_config,
    read_group,
    variant_settings,
)
from hpm_video.method.competence import competence_of, student_accuracy
from hpm_video.method.masking import planned_hard_ratio
from hpm_video.method.step import PretrainStep, pretrain_step
from hpm_video.method.teacher import Teacher, momentum_at, teacher_of, update_teacher
from hpm_video.models.build import build, token_grid
from hpm_video.models.hpm import HPM
from hpm_video.runtime.distributed import World
from hpm_video.slurm.snapshot import Snapshot
from hpm_video.train.optim import pretrain_optimizer, set_lr

FOLDER = Path(__file__).parents[2] / "configs" / "ablation"
LIST = FOLDER / "variants.yaml"
BASE = "hpm_ranking"
# What the base has that differs from the defaults, and each variant from the base: the settings of
# the files that the list replaced.
OF_THE_BASE = {"model.size": "small", "optim.epochs": 200, "optim.total_batch": 1024}
OF_VARIANTS: dict[str, dict[str, object]] = {
    BASE: {},
    "both": {"model.predictor_input": "both", "teacher.token_ratio": 0.25},
    "both_competence": {
        "model.predictor_input": "both",
        "teacher.token_ratio": 0.25,
        "masking.ramp": "competence",
    },
    "both_fast": {
        "model.predictor_input": "both",
        "teacher.token_ratio": 0.25,
        "masking.decoder_mask_ratio": 0.5,
    },
    "competence": {"masking.ramp": "competence"},
    "blocks": {"masking.pattern": "blocks"},
    "blocks_random": {
        "masking.pattern": "blocks",
        "masking.source": "none",
        "loss.prediction": "none",
    },
    "measured": {"masking.source": "measured"},
    "motion": {"masking.source": "motion", "loss.prediction": "none"},
    "motion_and_prediction": {"masking.source": "motion"},
    "codec": {"masking.source": "codec", "loss.prediction": "none"},
    "all_hard": {"masking.hard_ratio_start": 1.0, "masking.hard_ratio_end": 1.0},
    "decoder_mask": {"masking.decoder_mask_ratio": 0.5},
    "decoder_mask_random": {
        "masking.decoder_mask_ratio": 0.5,
        "masking.decoder_mask": "random",
    },
    "hpm_absolute": {"loss.prediction": "absolute"},
    "literal": {"model.predictor_depth": 4, "teacher.token_ratio": 1.0},
    "loss_prediction_only": {"masking.hard_ratio_end": 0.0},
    "momentum_0": {"teacher.momentum_start": 0.0, "teacher.momentum_end": 0.0},
    "momentum_0.999": {"teacher.momentum_end": 0.999},
    "momentum_0.9999": {"teacher.momentum_start": 0.9999},
    "no_ramp": {"masking.hard_ratio_start": 0.5},
    "pixels": {"model.predictor_input": "pixels", "teacher.token_ratio": 0.25},
    "predictor_depth_2": {"model.predictor_depth": 2},
    "predictor_depth_4": {"model.predictor_depth": 4},
    "ranking_units": {"loss.ranking_level": "unit"},
    "target_ema": {"loss.target": "ema"},
    "target_frozen": {
        "loss.target": "frozen",
        "loss.target_model": "outputs/ablation/videomae",
    },
    "teacher_ratio_0.25": {"teacher.token_ratio": 0.25},
    "teacher_ratio_0.5": {"teacher.token_ratio": 0.5},
    "teacher_ratio_1": {"teacher.token_ratio": 1.0},
    "tube_length_1": {"masking.tube_length": 1},
    "tube_length_2": {"masking.tube_length": 2},
    "tube_length_4": {"masking.tube_length": 4},
    "videomae": {"masking.hard_ratio_end": 0.0, "loss.prediction": "none"},
}
NAMES = sorted(OF_VARIANTS)

# The same 8 time steps as the real runs, so that every tube_length fits, with 4 x 4 tubes of tokens
# of 1 x 8 x 8 pixels; one block each, but several where a variant sets the depth.
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
    """Variant -> the settings that its row names, from the table of the folder's README."""
    rows = re.findall(r"^\| `(\S+)` \|(.*?)\|", (FOLDER / "README.md").read_text(), re.M)
    assert len(rows) == len(dict(rows))
    return {name: settings.strip(" `").split() for name, settings in rows}


def _differences(one: object, other: object) -> dict[str, object]:
    """Dotted setting -> its value in ``other``, where the two differ."""
    mine, theirs = config_to_dict(one), config_to_dict(other)
    values = {}
    for key in differing_keys(mine, theirs):
        value: Any = theirs
        for part in key.split("."):
            value = value[part]
        values[key] = value
    return values


def test_the_table_has_a_row_for_each_variant_and_names_its_settings() -> None:
    variants = yaml.safe_load(LIST.read_text())["variants"]
    assert list(_table()) == list(variants) and sorted(variants) == NAMES
    assert _table()[BASE] == []
    for name, settings in _table().items():
        assert settings == variants[name].get("settings", "").split()
        assert settings == " ".join(variant_settings(f"{LIST}:{name}")).split()


@cache
def _loaded(name: str) -> PretrainConfig:
    return load_config(PretrainConfig, f"{LIST}:{name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_has_the_settings_of_its_old_file(name: str) -> None:
    variant = load_config(PretrainConfig, FOLDER / f"{name}.yaml")
    assert variant == _loaded(name)
    assert _differences(PretrainConfig(), variant) == OF_THE_BASE | OF_VARIANTS[name]
    assert _differences(_loaded(BASE), variant) == OF_VARIANTS[name]


@pytest.mark.parametrize("path", ["ablation/no_ramp.yaml", "ablation/variants.yaml:no_ramp"])
def test_a_variant_is_found_from_another_folder(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    assert load_config(PretrainConfig, path) == _loaded("no_ramp")
    assert read_group(path, "optim") == {"epochs": "200", "total_batch": "1024"}


def test_a_command_overrides_a_variant() -> None:
    words = ["model.predictor_depth=3", "optim.epochs=90"]
    config = load_config(PretrainConfig, f"{LIST}:literal", words)
    assert (config.model.predictor_depth, config.optim.epochs) == (3, 90)
    assert config.teacher.token_ratio == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("al_hard.yaml", "did you mean variants.yaml:all_hard? Variants: hpm_ranking, videomae, "),
        ("variants.yaml:litteral", "did you mean variants.yaml:literal? Variants: hpm_ranking, "),
        ("variants.yaml", "name one as variants.yaml:NAME. Variants: hpm_ranking, videomae, "),
        ("study_toy.yaml:hpm", "study_toy.yaml must hold the groups base and variants"),
        ("all_hard.yml", "config (all_hard.yml) does not exist"),
        ("nowhere.yaml:hpm", "config (nowhere.yaml:hpm) does not exist"),
    ],
)
def test_an_unknown_variant_is_one_line(
    path: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_config(PretrainConfig, path)
    assert said in str(caught.value) and path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: {}\nvariants: {x: {setting: a.b=1}}", "variants.x.setting is unknown"),
        ("base: {}\nvariants: [x]", "must be a group"),
        (
            "base: {}\nvariants: {x: {settings: loss.prediction='none}}",
            "must close its quotation marks",
        ),
        ("base: {}\nvariants: {x: {settings: loss.predicton=none}}", "mean loss.prediction?"),
        ("base: []\nvariants: {x: {}}", "must hold groups of settings"),
        ("variants: {x: {}}", "must hold the groups base and variants"),
    ],
)
def test_a_mistake_in_a_list_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, f"{tmp_path / 'mine.yaml'}:x")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_opens_with_what_a_stranger_needs() -> None:
    header = LIST.read_text().partition("base:")[0]
    for words in (
        "-m hpm_video pretrain variants:NAME ",
        "run.output_dir=outputs/ablation/NAME",
        "# Hardware: ",
        "# Hours: ",
        "# Expected: ",
    ):
        assert words in header, words
    for variant in yaml.safe_load(LIST.read_text())["variants"].values():
        assert variant["varies"] and variant["stands_for"]


def test_a_submitted_variant_is_copied_with_its_list(tmp_path: Path) -> None:
    for name in (f"{LIST}:literal", FOLDER / "literal.yaml"):
        snapshot = Snapshot(tmp_path, name)
        snapshot.write()
        assert snapshot.config is not None and tmp_path in snapshot.config.parents
        copied = load_config(PretrainConfig, str(snapshot.config))
        assert copied == _loaded("literal")


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
    """A debug model trained as its variant says: its step on one fixed random mask of the fixed
    clips before and after, the student and the teacher."""
    config = load_config(PretrainConfig, f"{LIST}:{name}", DEBUG)
    grid = token_grid(config.model, num_frames=8, crop_size=32)
    torch.manual_seed(0)
    frozen = None
    if config.loss.target == "frozen":
        config, frozen = untrained_target(config)
    student = build(config)
    teacher = teacher_of(student, config)
    optimizer = pretrain_optimizer(student, config.optim)
    set_lr(optimizer, LR)

    competence = competence_of(config.masking, World(0, 1, torch.device("cpu")))

    clips = _clips()
    # Those that come with clips, which only the codec's masks look at
    scores = torch.rand(len(clips), grid.num_tokens, generator=torch.Generator().manual_seed(7))

    def step(seed: int, teacher: Teacher | None, hard_ratio: float | Tensor) -> PretrainStep:
        return pretrain_step(
            student,
            teacher,
            clips,
            given=scores,
            grid=grid,
            masking=config.masking,
            loss=config.loss,
            predictor_input=config.model.predictor_input,
            hard_ratio=hard_ratio,
            token_ratio=config.teacher.token_ratio,
            view=config.teacher.view,
            draws=config.teacher.draws,
            generator=torch.Generator().manual_seed(seed),
            frozen=frozen,
        )

    with torch.no_grad():
        before = step(1000, teacher, 0.0)
    for index in range(NUM_STEPS):
        progress = (index + 1) / NUM_STEPS
        masking, average = config.masking, config.teacher
        hard_ratio = planned_hard_ratio(masking, progress)
        if competence is not None:
            hard_ratio = competence.hard_ratio
        result = step(index, teacher, hard_ratio)
        result.loss.backward()
        optimizer.step()
        if competence is not None:
            competence.follow(student_accuracy(result), skip=torch.zeros(()))
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
        after = step(1000, teacher, 0.0)
    return before, after, student, teacher


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_move_the_loss(name: str) -> None:
    before, after, student, teacher = _train(name)
    config = _loaded(name)
    assert after.loss < before.loss
    assert after.losses["reconstruction_loss"] < 0.8 * before.losses["reconstruction_loss"]
    assert (student.predictor is None) == (config.loss.prediction == "none")
    masking = config.masking
    assert (teacher is None) == (masking.hard_ratio_end == 0 or masking.source != "predicted")
    if student.predictor is not None:
        assert after.losses["prediction_loss"] < before.losses["prediction_loss"]
        blocks = [name for name, _ in student.predictor.named_modules() if name.endswith(".attn")]
        assert len(blocks) == config.model.predictor_depth


@pytest.mark.parametrize("name", sorted(set(NAMES) - {BASE}))
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
    """Of the parameters that both have, if the modules have the same shapes; no without any."""
    mine, theirs = one.state_dict(), other.state_dict()
    shared = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    return bool(shared) and all(torch.equal(mine[name], theirs[name]) for name in shared)
