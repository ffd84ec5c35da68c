"""Runs whose student reconstructs features: each target learns, goes on, and is divided at will."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from processes import run_together
from runs import assert_same_run, run_until_stopped, tensors

from hpm_video.cli.main import main
from hpm_video.evaluate.mining_quality import even_masks, measured_loss
from hpm_video.evaluate.pretrained import load_pretrained, reconstruct
from hpm_video.models.tokens import patchify
from hpm_video.train.run.collapse import COLLAPSED_BELOW
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import find_checkpoint, load_checkpoint, without_training
from hpm_video.weights.load import encoder_of

Arguments = Callable[..., list[str]]
EMA = ("loss.target=ema", "teacher.token_ratio=0.5")
# As in test_pretrain: steps of eight clips, a teacher that moves
SPLIT = ("optim.epochs=2", "run.log_every=1", "teacher.momentum_start=0.5")
SPLIT += ("teacher.momentum_end=0.5",)
PLAIN = ("loss.prediction=none", "masking.hard_ratio_end=0")


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    """A pre-training of plain VideoMAE, whose encoder is a target."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert main(pretrain_arguments(folder, *PLAIN, "optim.epochs=1")) == 0
    return folder


def _frozen(plain_run: Path) -> tuple[str, ...]:
    return ("loss.target=frozen", f"loss.target_model={plain_run}", "teacher.token_ratio=0.5")


VARIANTS: dict[str, tuple[str, ...]] = {
    "ema": EMA,
    "ema, literal": ("loss.target=ema", "teacher.token_ratio=1"),
    "ema, both": (*EMA, "model.predictor_input=both"),
    "ema, from pixels": (*EMA, "model.predictor_input=pixels"),
    "ema, loss prediction": (*EMA, "masking.hard_ratio_end=0"),
    "ema, plain": (*EMA, *PLAIN),
    "ema, layers": (*EMA, "loss.target_layers=[0,-1]"),
    "ema, decoder masking": (*EMA, "masking.decoder_mask_ratio=0.5"),
    "ema, bfloat16": (*EMA, "run.precision=bfloat16", "model.drop_path=0.1"),
    "frozen": ("frozen",),
    "frozen, plain": ("frozen", *PLAIN),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_target_learns(
    tmp_path: Path, pretrain_arguments: Arguments, plain_run: Path, variant: str
) -> None:
    settings = VARIANTS[variant]
    if settings[0] == "frozen":
        settings = (*_frozen(plain_run), *settings[1:])
    settings = ("optim.epochs=4", "run.log_every=6", *settings)
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    records = read_records(tmp_path / "run")
    losses = [record["reconstruction_loss"] for record in records]
    assert losses[3] < losses[1] < losses[0] <= 4
    state = load_checkpoint(tmp_path / "run")
    layers = 2 if "layers" in variant else 1
    assert state["model"]["reconstructor.head.weight"].shape == (32 * layers, 32)
    has_average = any(name.startswith("encoder.") for name in state["teacher"] or {})
    mines_encoded = variant == "frozen"
    assert has_average == (variant.startswith("ema") or mines_encoded)
    assert (records[0]["momentum"] is None) == (variant == "frozen, plain")


def test_a_frozen_model_of_others_teaches(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    """Image by image, at its own resolution."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**sizes, image_size=24, patch_size=8)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    (tmp_path / "dino" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "size": {"height": 24}}'
    )
    settings = ("loss.target=frozen", f"loss.target_model={tmp_path / 'dino'}", "optim.epochs=4")
    settings += ("loss.target_layers=[-1,0]", "run.log_every=6")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    losses = [record["reconstruction_loss"] for record in read_records(tmp_path / "run")]
    assert losses[3] < losses[0]
    assert load_checkpoint(tmp_path / "run")["config"]["loss"]["target_width"] == 16


@pytest.mark.parametrize("target", ["ema", "ema, plain", "frozen"])
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    tmp_path: Path, pretrain_arguments: Arguments, plain_run: Path, target: str
) -> None:
    own = VARIANTS[target] if target != "frozen" else _frozen(plain_run)
    settings = (*own, "optim.epochs=4", "run.log_every=5", "model.drop_path=0.2")
    assert main(pretrain_arguments(tmp_path / "whole", *settings)) == 0
    arguments = pretrain_arguments(tmp_path / "run", *settings)
    run_until_stopped(arguments, at=12)
    assert main(arguments) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def split_runs(
    tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments, plain_run: Path
) -> Path:
    """The same steps by one process, and by two under DDP and FSDP, of each target."""
    folder = tmp_path_factory.mktemp("split")
    targets = {
        "ema": (*EMA, "loss.target_layers=[0,-1]"),
        "literal": ("loss.target=ema", "teacher.token_ratio=1"),
        "frozen": _frozen(plain_run),
    }
    two = []
    for name, target in targets.items():
        one = (*SPLIT, *target)
        whole = pretrain_arguments(folder / f"{name}_whole", *one, "data.batch_size=8")
        assert main(whole) == 0
        two.append(pretrain_arguments(folder / f"{name}_fsdp", *one, "run.parallel=fsdp"))
        if name == "ema":
            two.append(pretrain_arguments(folder / f"{name}_ddp", *one))
    for done in run_together(2, two):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["ema_ddp", "ema_fsdp", "literal_fsdp", "frozen_fsdp"])
def test_how_a_step_is_divided_changes_nothing(split_runs: Path, name: str) -> None:
    other = f"{name.split('_', maxsplit=1)[0]}_whole"
    mine, whole = (read_records(split_runs / each) for each in (name, other))
    for one, reference in zip(mine, whole, strict=True):
        assert one["hard_share"] == reference["hard_share"]
        for figure in ("loss", "reconstruction_loss", "ema_distance"):
            assert one[figure] == pytest.approx(reference[figure], rel=5e-4), figure
    weights, others = (tensors(split_runs / each) for each in (name, other))
    names = [n for n in weights if n.startswith("/teacher/encoder.") and n.endswith("weight")]
    assert names
    for each in names:
        assert (weights[each] - others[each]).abs().max() < 2e-4, each


def test_a_collapse_of_an_ema_run_is_warned_of(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """The average is the student of the step before, and learning is a thousand times too fast."""
    settings = (*EMA, "teacher.momentum_start=0", "teacher.momentum_end=0", "optim.epochs=3")
    settings += ("optim.base_lr=64", "run.collapse_records=3")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    assert read_records(tmp_path / "run")[-1]["effective_rank"] < COLLAPSED_BELOW
    words = "warning: the encoder has collapsed: 3 records in a row"
    assert words in (tmp_path / "run" / "log.txt").read_text()
    well = pretrain_arguments(tmp_path / "well", *settings, "optim.base_lr=0.064")
    assert main(well) == 0
    assert "collapsed" not in (tmp_path / "well" / "log.txt").read_text()


@pytest.mark.parametrize("target", ["ema", "ema, plain", "frozen"])
def test_losses_are_measured_by_the_target(
    tmp_path: Path, pretrain_arguments: Arguments, plain_run: Path, target: str
) -> None:
    own = VARIANTS[target] if target != "frozen" else _frozen(plain_run)
    folder = tmp_path / "run"
    settings = (*own, "optim.epochs=2", "run.picture_every=6")
    assert main(pretrain_arguments(folder, *settings)) == 0
    pretrained = load_pretrained(folder)
    clips = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    measured = measured_loss(pretrained, clips, num_masks=2, seed=0)
    assert measured.shape == (2, 32) and measured.min() > 0 and measured.max() < 4
    with pytest.raises(ValueError, match=r"use one trained with loss\.target=pixels"):
        reconstruct(pretrained, clips, torch.ones(2, 32, dtype=torch.bool))
    # By hand, with the encoder that the checkpoint, or the other run, holds
    if target == "frozen":
        encoder, _ = encoder_of(load_checkpoint(plain_run), source=plain_run)
    else:
        state = load_checkpoint(folder)
        encoder, _ = encoder_of({**state, "model": state["teacher"]}, source=folder)
    total, count = torch.zeros(2, 32), torch.zeros(2, 32)
    for mask in even_masks(pretrained, clips, num_masks=2, seed=0):
        with torch.no_grad():
            wanted = torch.nn.functional.normalize(encoder(patchify(clips, encoder.grid)), dim=-1)
            output = pretrained.student(clips, mask)
        given = torch.nn.functional.normalize(output.reconstruction, dim=-1)
        wanted = wanted[mask].unflatten(0, (2, -1))
        total[mask] += (given - wanted).square().sum(-1).flatten()
        count += mask
    assert (measured - total / count).abs().max() < 1e-5


def test_what_is_missing_is_said_when_it_is_needed(
    tmp_path: Path, pretrain_arguments: Arguments, plain_run: Path
) -> None:
    moved = tmp_path / "moved"
    plain_run.rename(moved)
    arguments = pretrain_arguments(tmp_path / "run", *_frozen(moved), "optim.epochs=1")
    assert main(arguments) == 0
    moved.rename(plain_run)
    clips = torch.rand(2, 3, 4, 32, 32)
    pretrained = load_pretrained(tmp_path / "run")  # nobody has asked for the target yet
    words = rf"loss\.target_model \({moved}\) does not exist"
    with pytest.raises(FileNotFoundError, match=words):
        measured_loss(pretrained, clips, num_masks=1, seed=0)
    assert main(pretrain_arguments(tmp_path / "ema", *EMA, "optim.epochs=1")) == 0
    path = find_checkpoint(tmp_path / "ema").resolve()
    torch.save(without_training(load_checkpoint(path)), path)
    with pytest.raises(ValueError, match="must have the averaged encoder"):
        measured_loss(load_pretrained(path), clips, num_masks=1, seed=0)


def test_a_run_goes_on_with_the_same_target_only(
    tmp_path: Path, pretrain_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    plain = pretrain_arguments(target, *PLAIN, "optim.epochs=2")
    run_until_stopped(plain, at=3)
    arguments = pretrain_arguments(tmp_path / "run", *_frozen(target), "optim.epochs=2")
    run_until_stopped(arguments, at=3)
    assert main(plain) == 0  # another last checkpoint
    assert main(arguments) == 2
    assert "has changed since checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has changed since checkpoint"):
        measured_loss(
            load_pretrained(tmp_path / "run"), torch.rand(1, 3, 4, 32, 32), num_masks=1, seed=0
        )
