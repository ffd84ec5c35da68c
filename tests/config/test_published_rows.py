"""Recipes of published rows: every value against the released scripts, and what their heads say."""

import math
import re
from collections.abc import Mapping

import pytest
from published_rows import (
    FINETUNE,
    PAGE,
    PRETRAIN,
    REACHED,
    V2,
    Row,
    file_of,
    ours,
    page,
    same,
    table,
)

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.recipe import list_recipes
from hpm_video.config.settings import load_config
from hpm_video.train.optim import plan_steps
from hpm_video.train.step_videos import micro_batches

ROWS: dict[str, Mapping[str, Row]] = {"pretrain": PRETRAIN, "finetune": FINETUNE}
CASES = [(job, name) for job, rows in ROWS.items() for name in rows]
MINING = "loss.prediction=ranking masking.hard_ratio_end=0.5"


def _config(job: str, name: str, *settings: str) -> PretrainConfig | FinetuneConfig:
    schema = PretrainConfig if job == "pretrain" else FinetuneConfig
    return load_config(schema, file_of(job, name), list(settings))


def _head(job: str, name: str) -> str:
    """The comment at the top, on one line."""
    lines = re.match(r"(#.*\n)+", file_of(job, name).read_text())
    assert lines is not None
    return " ".join(re.sub(r"^#|\\$", "", lines[0], flags=re.MULTILINE).split())


def _mixes(job: str) -> bool:
    """Whether ours mixes videos in pairs, so that a GPU has an even number of them."""
    return job == "finetune"


@pytest.mark.parametrize(("job", "name"), CASES)
def test_every_value_is_the_published_one(job: str, name: str) -> None:
    published, our = ROWS[job][name], ours(job, name)
    different = {
        column: (value, our[column])
        for column, value in published.items()
        if column != "of" and not same(value, our[column])
    }
    if job == "pretrain" and published["of"] != V2:
        # A script runs one epoch more than the checkpoint that is fine-tuned and names the row
        called = int(name.rpartition("_")[2].removesuffix("e"))
        assert different.pop("epochs") == (called + 1, called)
    gpus, per_gpu = published["GPUs x videos"]
    if _mixes(job) and per_gpu % 2:
        assert different.pop("GPUs x videos") == ((gpus, per_gpu), (gpus // 2, per_gpu * 2))
    assert not different


@pytest.mark.parametrize(("job", "name"), CASES)
def test_learning_rates_are_those_of_the_published_schedule(job: str, name: str) -> None:
    """Of 10 steps an epoch, written out: warm-up to the peak, then half a cosine."""
    row, config = ROWS[job][name], _config(job, name)
    scale, epochs = row["videos a step"] / 256, config.optim.epochs
    peak, least, rise = row["lr"], row["min lr"] * scale, row["warm-up"] * 10
    videos = row["videos a step"] * 10 + 7
    steps = plan_steps(config.data, config.optim, num_videos=videos, num_processes=1)
    assert (steps.per_epoch, steps.total) == (10, epochs * 10)
    assert steps.clips == row["videos a step"] * row["repeats"]
    for step in range(0, steps.total, 7):
        if step < rise:  # a line whose last step has the peak; ours has it one step later
            low, high = peak * step / rise, peak * step / (rise - 1)
            assert low - 1e-12 <= steps.lr_at(step) <= high + 1e-12
            continue
        share = (step - rise) / (steps.total - rise)
        expected = least + (peak - least) * (1 + math.cos(math.pi * share)) / 2
        assert steps.lr_at(step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", PRETRAIN)
def test_two_settings_add_mining(name: str) -> None:
    plain, usual = _config("pretrain", name), PretrainConfig()
    assert isinstance(plain, PretrainConfig)
    assert (plain.loss.prediction, plain.masking.mines) == ("none", False)
    assert MINING in _head("pretrain", name)
    mined = _config("pretrain", name, *MINING.split())
    assert isinstance(mined, PretrainConfig)
    assert (mined.loss, mined.teacher) == (usual.loss, usual.teacher)
    assert mined.masking.hard_ratio_end == usual.masking.hard_ratio_end
    assert (mined.data, mined.optim, mined.run) == (plain.data, plain.optim, plain.run)


@pytest.mark.parametrize(("job", "name"), CASES)
def test_the_head_says_whose_row_it_is(job: str, name: str) -> None:
    head, row = _head(job, name), ROWS[job][name]
    gpus, per_gpu = row["GPUs x videos"]
    if _mixes(job) and per_gpu % 2:
        gpus, per_gpu = gpus // 2, per_gpu * 2
    arxiv = "2303.16727" if row["of"] == V2 else "2203.12602"
    assert f"a published row of {row['of']} (arXiv {arxiv})" in head
    assert f"Hardware: {gpus} GPUs, " in head and "as published" in head
    assert f"torchrun --nproc-per-node 8 -m hpm_video {job} {name} " in head
    words = ["Hours: not measured yet.", "Expected: ", "data.manifest=", "run.output_dir="]
    if job == "finetune":
        before = re.search(r" model\.init=outputs/(\S+) ", head)
        assert before is not None and before[1] in PRETRAIN
        assert PRETRAIN[before[1]]["size"].removesuffix("_v2") == row["size"]
        counts = [row["videos a step"] // (per_gpu * number) for number in (8, 2, 1)]
        text = "{} videos on any number of GPUs: {}, {} or {} micro-batches of {} per GPU"
        words.append(text.format(row["videos a step"], *counts, per_gpu))
    else:
        words.append(f"A step takes {row['videos a step']} videos on any number of GPUs, in micro-")
        assert re.search(rf"`hpm-video bench plan` estimates [\d.]+ on {gpus}( GPUs)?\b", head)
    for word in words:
        assert word in head
    if name in REACHED:
        assert f"Expected: {REACHED[name]} top-1" in head
        if row["of"] != V2:  # whose rows of pre-training are the beginning of several
            assert name in PRETRAIN and name in FINETUNE and head.count(f"/{name}") >= 2
    if name == "ssv2_base_800e":
        assert "68.3" in head  # on 8 GPUs
    config = _config(job, name)
    if config.data.batch_size != "auto":
        for number in (gpus, 8, 2, 1):
            batch = config.data.videos_at_once
            assert micro_batches(config.optim, batch_size=batch, num_processes=number) >= 1


def test_every_other_recipe_says_that_it_is_ours() -> None:
    for recipe in list_recipes():
        if recipe.kind not in ROWS or ":" in recipe.name or recipe.name in ROWS[recipe.kind]:
            continue
        head = _head(recipe.kind, recipe.name)
        assert re.search(r"\b[Tt]he recipe is ours\b", head), recipe.file
        rows = [name for name in ROWS[recipe.kind] if name.startswith(f"{recipe.name}_")]
        assert all(name in head for name in rows if not name.endswith("_v2")), recipe.file


def test_the_page_has_these_tables() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run: python tests/published_rows.py"


def test_a_table_shows_both_values_where_they_differ() -> None:
    row = PRETRAIN["ssv2_base_800e"]
    text = table("pretrain", {"mine": row}, lambda job, name: {**row, "epochs": 800, "repeats": 2})
    assert "| 801, **800** |" in text and "| 1, **2** |" in text
    header, _, values = text.partition("All of these rows have\n\n")[2].splitlines()
    cells = dict(zip(header.split(" | "), values.split(" | "), strict=True))
    assert cells["weight decay"] == "0.05"
