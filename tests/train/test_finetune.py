"""Fine-tuning from end to end: from pre-trained weights, with evaluation, resumed, refused."""

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from processes import run_together
from runs import run_until_stopped

from hpm_video.cli.main import main
from hpm_video.config import EvaluateConfig, EvaluationConfig
from hpm_video.evaluate.classification import evaluate
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import position_table
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def finetuned(
    tmp_path_factory: pytest.TempPathFactory,
    finetune_arguments: Arguments,
    pretrained: Path,
    toy: Path,
) -> Path:
    """Two epochs from the pre-trained encoder, evaluated after each."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    settings = (
        *(f"model.init={pretrained}", f"data.val_manifest={toy}"),
        *("evaluation.num_clips=1", "evaluation.num_crops=1", "evaluation.every_epochs=1"),
    )
    assert main(finetune_arguments(folder, *settings)) == 0
    return folder


def _untimed(folder: Path) -> list[dict[str, float]]:
    """Records of training, without the two rates, which are no function of the settings."""
    timing = {"clips_per_second", "data_wait_fraction"}
    records = [record for record in read_records(folder) if "loss" in record]
    return [{k: v for k, v in record.items() if k not in timing} for record in records]


def test_a_run_leaves_its_files_and_records(finetuned: Path) -> None:
    assert sorted(os.listdir(finetuned)) == [
        *("checkpoints", "config.yaml", "init.txt", "log.txt", "metrics.jsonl", "run.lock"),
        "tensorboard",
    ]
    records = read_records(finetuned)
    training = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "top1" in record]
    assert [record["step"] for record in training] == [2, 4, 6, 8, 10, 12]
    assert {"step", "epoch", "loss", "lr", "grad_norm"} <= training[0].keys()
    assert [(record["step"], record["epoch"]) for record in evaluations] == [(6, 1), (12, 2)]
    for record in evaluations:
        assert 0 <= record["top1"] <= record["top5"] <= 1
        assert (record["top1"] * 24) % 1 == pytest.approx(0)
        assert 0 <= record["balanced_accuracy"] <= 1 and record["unreadable"] == 0
    log = (finetuned / "log.txt").read_text()
    assert "starts with the encoder of step 12 of" in log
    size = sum(value.numel() for value in load_checkpoint(finetuned)["model"].values()) / 1e6
    said = f"{size:.1f} M parameters, 8 classes, 24 videos, 6 steps per epoch, 12 steps in all"
    assert said in log and "no evaluation" not in log
    assert "warning: 24 of 24 videos of data.val_manifest are also in data.manifest" in log


def test_a_checkpoint_says_what_it_tells_apart(finetuned: Path, toy: Path) -> None:
    state = load_checkpoint(finetuned, kind="finetune")
    assert state["num_classes"] == 8
    assert state["classes"] == (toy.parent / "classes.txt").read_text().split()
    assert state["trained_grid"] == [2, 4, 4]
    assert state["model"]["head.weight"].shape == (8, 32)


def test_it_starts_with_the_weights_of_the_encoder(
    tmp_path: Path, finetune_arguments: Arguments, pretrained: Path
) -> None:
    """With a learning rate of zero nothing moves: what is there was loaded."""
    for name, init in [("loaded", [f"model.init={pretrained}"]), ("scratch", [])]:
        frozen = ("optim.base_lr=0", "optim.min_lr=0", "optim.epochs=1", *init)
        assert main(finetune_arguments(tmp_path / name, *frozen)) == 0
        log = (tmp_path / name / "log.txt").read_text()
        assert "no evaluation" in log and "add data.val_manifest=LIST" in log
    source = load_checkpoint(pretrained)["model"]
    loaded = load_checkpoint(tmp_path / "loaded")["model"]
    scratch = load_checkpoint(tmp_path / "scratch")["model"]
    names = [name for name in loaded if name.startswith("encoder.")]
    assert len(names) == 2 + 2 * 13
    for name in names:
        assert torch.equal(loaded[name], source[name]), name
    matrices = [name for name in names if loaded[name].ndim == 2]
    assert not [name for name in matrices if torch.equal(scratch[name], source[name])]
    assert loaded.keys() - set(names) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_it_learns(
    tmp_path: Path, finetune_arguments: Arguments, pretrained: Path, toy: Path
) -> None:
    """Few videos can be learnt by heart; what is tested is seen."""
    root, few = toy.parent, tmp_path / "few.csv"
    few.write_text("\n".join(toy.read_text().splitlines()[:5]) + "\n")
    shutil.copy(root / "classes.txt", tmp_path)
    settings = (
        *(f"data.manifest={few}", f"data.val_manifest={few}", f"data.root={root}"),
        *(f"model.init={pretrained}", "optim.epochs=80", "run.log_every=20"),
        *("optim.label_smoothing=0", "optim.base_lr=0.128", "optim.warmup_epochs=5"),
    )
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    records = read_records(tmp_path / "run")
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.5 * losses[0]
    assert records[-1]["top1"] == 1.0


# What the recipes have and the small settings of these tests leave out
EVERYTHING = (
    *("augment.num_operations=4", "augment.erasing=0.5", "mixing.mixup=0.8", "mixing.cutmix=1"),
    *("data.repeats=2", "optim.ema_momentum=0.9"),
)


@pytest.mark.parametrize("more", [["data.num_frames=8"], EVERYTHING], ids=["longer", "everything"])
def test_a_stopped_run_continues_identically_without_the_weights_it_started_from(
    tmp_path: Path, finetune_arguments: Arguments, pretrained: Path, more: Sequence[str]
) -> None:
    """Also with dropout and stochastic depth. Its own checkpoint is all that a run needs."""
    shutil.copytree(pretrained, tmp_path / "weights", symlinks=True)
    settings = (
        *(f"model.init={tmp_path / 'weights'}", "model.drop_path=0.2", "model.head_dropout=0.5"),
        *("run.log_every=5", *more),
    )
    assert main(finetune_arguments(tmp_path / "whole", *settings)) == 0

    arguments = finetune_arguments(tmp_path / "stopped", *settings)
    run_until_stopped(arguments, at=7)
    assert load_checkpoint(tmp_path / "stopped")["step"] == 8
    shutil.rmtree(tmp_path / "weights")
    assert main(arguments) == 0

    assert _untimed(tmp_path / "stopped") == _untimed(tmp_path / "whole")
    one, other = (load_checkpoint(tmp_path / name) for name in ("stopped", "whole"))
    # The positions are those of pre-training, whatever the length of the clips.
    assert one["trained_grid"] == other["trained_grid"] == [2, 4, 4]
    for key in ("model", "trained_model") if more is EVERYTHING else ("model",):
        assert not [name for name in one[key] if not torch.equal(one[key][name], other[key][name])]


def test_evaluation_in_between_does_not_change_training(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path
) -> None:
    shared = ("model.drop_path=0.3", "model.head_dropout=0.5")
    evaluation = (
        *(f"data.val_manifest={toy}", "evaluation.every_epochs=1"),
        *("evaluation.num_clips=1", "evaluation.num_crops=1"),
    )
    assert main(finetune_arguments(tmp_path / "with", *shared, *evaluation)) == 0
    assert main(finetune_arguments(tmp_path / "without", *shared)) == 0
    assert _untimed(tmp_path / "with") == _untimed(tmp_path / "without")


def test_more_frames_than_pre_training_keep_the_trained_positions(
    tmp_path: Path, finetune_arguments: Arguments, pretrained: Path
) -> None:
    settings = (f"model.init={pretrained}", "data.num_frames=8", "optim.epochs=1")
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    model, config, _ = load_classifier(tmp_path / "run")
    assert config.data.num_frames == 8
    assert load_checkpoint(tmp_path / "run")["trained_grid"] == [2, 4, 4]
    trained, grid = TokenGrid(2, 4, 4), TokenGrid(4, 4, 4)
    expected = position_table(grid, 32, trained_grid=trained)
    assert torch.equal(model.encoder.positions, expected)
    assert not torch.allclose(expected, position_table(grid, 32))


@pytest.mark.parametrize("more", [[], EVERYTHING], ids=["plain", "everything"])
def test_accumulation_is_a_larger_batch(
    tmp_path: Path, finetune_arguments: Arguments, more: Sequence[str]
) -> None:
    """Also when clips are mixed: partners and shares do not depend on the split."""
    shared = ("optim.epochs=1", "run.log_every=1", *more)
    for name, settings in [
        ("one", ("data.batch_size=8",)),
        ("two", ("data.batch_size=4", "optim.total_batch=8")),
    ]:
        assert main(finetune_arguments(tmp_path / name, *shared, *settings)) == 0
    one, two = (read_records(tmp_path / name) for name in ("one", "two"))
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-4)
    weights = [load_checkpoint(tmp_path / name)["model"] for name in ("one", "two")]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 5e-5, name


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "model.width=64",
            ["model.width (64) must be 32, as in the weights", "add model.width=32"],
        ),
        ("model.depth=3", ["model.depth (3) must be 2, as in the weights", "add model.depth=2"]),
    ],
)
def test_weights_of_another_size_are_refused(
    tmp_path: Path,
    finetune_arguments: Arguments,
    pretrained: Path,
    setting: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = finetune_arguments(tmp_path / "run", f"model.init={pretrained}", setting)
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    for word in words:
        assert word in stderr
    assert not (tmp_path / "run").exists()


def test_two_processes_are_a_larger_batch(tmp_path: Path, finetune_arguments: Arguments) -> None:
    """Also when clips are mixed."""
    shared = ("optim.epochs=1", "run.log_every=1", *EVERYTHING)
    assert main(finetune_arguments(tmp_path / "one", *shared, "data.batch_size=8")) == 0
    arguments = finetune_arguments(tmp_path / "two", *shared, "optim.total_batch=8")
    for done in run_together(2, [arguments]):
        assert done.returncode == 0, done.stderr
    one, two = (read_records(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 3
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-4)
    weights = [load_checkpoint(tmp_path / name)["model"] for name in ("one", "two")]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 5e-5, name


def test_what_is_augmented_and_mixed_is_what_is_trained_on(
    tmp_path: Path, finetune_arguments: Arguments
) -> None:
    """Each of the settings changes the loss of the first step, of the same weights and videos."""
    shared = ("optim.epochs=1", "run.log_every=1", "run.keep_checkpoints=1")
    variants = {
        "plain": (),
        "augmented": ("augment.num_operations=4",),
        "erased": ("augment.erasing=1",),
        "blended": ("mixing.mixup=0.8",),
        "pasted": ("mixing.cutmix=1",),
    }
    losses = {}
    for name, settings in variants.items():
        # A head that starts at zero would give the same loss whatever the clips
        arguments = finetune_arguments(tmp_path / name, *shared, *settings)
        assert main(arguments) == 0
        losses[name] = [record["loss"] for record in read_records(tmp_path / name)][2:]
    assert len({tuple(values) for values in losses.values()}) == len(variants)


def test_the_average_of_the_weights_is_saved_evaluated_and_followed(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path
) -> None:
    settings = (
        *("optim.ema_momentum=0.75", "run.keep_checkpoints=0", "run.checkpoint_every_minutes=0"),
        *("optim.epochs=1", f"data.val_manifest={toy}", "evaluation.every_epochs=1"),
        *("evaluation.num_clips=1", "evaluation.num_crops=1"),
    )
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert "trained_model" not in best, "which is of no use without the optimizer"
    files = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    states = [load_checkpoint(file) for file in files]
    assert len(states) == 6
    for before, after in itertools.pairwise(states):
        for name, average in after["model"].items():
            expected = 0.75 * before["model"][name] + 0.25 * after["trained_model"][name]
            assert torch.allclose(average, expected, atol=1e-6), name
            assert not torch.equal(average, after["trained_model"][name]), name

    assert all(torch.equal(v, states[-1]["model"][k]) for k, v in best["model"].items())
    # What was evaluated at the end is what is loaded to be used: the average
    model, _, _ = load_classifier(tmp_path / "run")
    assert all(torch.equal(v, states[-1]["model"][k]) for k, v in model.state_dict().items())
    recorded = read_records(tmp_path / "run")[-1]
    views = EvaluateConfig(
        device="cpu",
        precision="float32",
        num_workers=0,
        evaluation=EvaluationConfig(num_clips=1, num_crops=1),
    )
    assert evaluate(tmp_path / "run", [str(toy)], views).top(1) == recorded["top1"]
    # A run without an average goes on from the weights themselves
    finer = ("optim.epochs=2", f"run.resume={files[-1]}", "optim.base_lr=0", "optim.min_lr=0")
    assert main(finetune_arguments(tmp_path / "other", *finer)) == 0
    other = load_checkpoint(tmp_path / "other")
    assert other["trained_model"] is None
    for name, value in other["model"].items():
        assert torch.equal(value, states[-1]["trained_model"][name]), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.flip=true"], ["data.flip (true) must be false", "'right'", "'left'"]),
        (["mixing.mixup=1", "data.batch_size=3"], ["data.batch_size (3) must be even"]),
        (["optim.total_batch=10"], ["optim.total_batch (10)", "multiple", "4 x 1 = 4"]),
        (
            ["optim.total_batch=8", "optim.accumulation=2"],
            ["optim.accumulation (2) must be left out", "optim.total_batch (8)"],
        ),
        (["optim.ema_momentum=1"], ["optim.ema_momentum (1.0) must be in [0, 1)"]),
        (["augment.magnitude=11"], ["augment.magnitude (11.0) must be in [0, 10]"]),
        (["augment.erasing=2"], ["augment.erasing (2.0) must be in [0, 1]"]),
        (["mixing.mixup=-1"], ["mixing.mixup (-1.0) must be at least 0"]),
        (["mixing.switch=2"], ["mixing.switch (2.0) must be in [0, 1]"]),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path,
    finetune_arguments: Arguments,
    settings: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    for word in words:
        assert word in stderr
    assert not (tmp_path / "run").exists()


def test_flip_without_class_names_is_remarked_upon(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path
) -> None:
    """Class 0 of the toy videos moves to the right, which numbers alone do not tell."""
    numbers = tmp_path / "numbers.csv"
    numbers.write_text(toy.read_text())
    settings = ("data.flip=true", f"data.manifest={numbers}", f"data.root={toy.parent}")
    assert main(finetune_arguments(tmp_path / "run", *settings, "optim.epochs=1")) == 0
    assert (
        "check that mirroring a video never changes its class"
        in (tmp_path / "run" / "log.txt").read_text()
    )


@pytest.mark.parametrize("num_classes", [1, 2])
def test_a_data_set_of_few_classes(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path, num_classes: int
) -> None:
    """Nothing but a list with numbers for labels; nothing is said of top-5."""
    rows = toy.read_text().splitlines()[1:13]
    lines = [f"{row.split(',')[0]},{k % 3 % num_classes}" for k, row in enumerate(rows)]
    (tmp_path / "few.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    few = f"{tmp_path / 'few.csv'}"
    settings = (
        *(f"data.manifest={few}", f"data.val_manifest={few}", f"data.root={toy.parent}"),
        *("evaluation.num_clips=1", "evaluation.num_crops=1", "optim.class_balance=weights"),
    )
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    (record,) = [record for record in read_records(tmp_path / "run") if "top1" in record]
    assert record["top5"] is None and 0 <= record["balanced_accuracy"] <= 1
    if num_classes == 1:
        assert record["top1"] == record["balanced_accuracy"] == 1
    assert load_checkpoint(tmp_path / "run")["num_classes"] == num_classes
    command = ["evaluate", str(tmp_path / "run"), "--manifest", few, f"root={toy.parent}"]
    assert main([*command, "device=cpu", "num_workers=0", "precision=float32"]) == 0
    assert (tmp_path / "run" / "evaluation" / "few" / "index.html").is_file()


def test_rare_classes_count_more_where_asked_for(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path
) -> None:
    """With a step per video the first loss is the weight of the video's class times log 2."""
    rows = toy.read_text().splitlines()[1:9]
    lines = [f"{row.split(',')[0]},{int(k == 3)}" for k, row in enumerate(rows)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    settings = (
        *(f"data.manifest={tmp_path / 'list.csv'}", f"data.root={toy.parent}"),
        *("data.batch_size=1", "optim.base_lr=0", "optim.min_lr=0", "optim.label_smoothing=0"),
        *("run.log_every=1", "optim.epochs=1"),
    )
    for balance in ("none", "weights"):
        more = (*settings, f"optim.class_balance={balance}")
        assert main(finetune_arguments(tmp_path / balance, *more)) == 0
        losses = sorted(record["loss"] / 0.6931 for record in read_records(tmp_path / balance))
        weights = [4 / 7] * 7 + [4] if balance == "weights" else [1] * 8
        assert losses == pytest.approx(weights, rel=0.01)


def test_a_label_that_training_does_not_have_is_refused(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = toy.read_text().splitlines()[1].split(",")[0]
    (tmp_path / "val.csv").write_text(f"path,label\n{first},8\n")
    (tmp_path / "train.csv").write_text(f"path,label\n{first},1\n" + f"{first},0\n" * 3)
    settings = (f"data.val_manifest={tmp_path / 'val.csv'}", f"data.root={toy.parent}")
    train = f"data.manifest={tmp_path / 'train.csv'}"
    assert main(finetune_arguments(tmp_path / "run", *settings, train)) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert f"label (8) of {toy.parent / first} must be in [0, 1], " in stderr
    (tmp_path / "val.csv").write_text(f"path,label\n{first},b\n{first},a\n")
    assert main(finetune_arguments(tmp_path / "run", *settings, train)) == 2
    assert "val.csv:2: label (b) must be a number: " in capsys.readouterr().err


def test_weights_with_other_names_are_refused_by_name(
    tmp_path: Path,
    finetune_arguments: Arguments,
    pretrained: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is left out in silence, neither what the model lacks nor what the file lacks."""
    state = load_checkpoint(pretrained)
    model = state["model"]
    renamed = [name for name in model if name.startswith("encoder.blocks.1.attn")]
    assert len(renamed) > 1
    for name in renamed:
        model[name.replace("attn", "attention")] = model.pop(name)
    torch.save(state, tmp_path / "renamed.pt")
    arguments = finetune_arguments(tmp_path / "run", f"model.init={tmp_path / 'renamed.pt'}")
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    for name in renamed:
        assert f"{name} is missing" in stderr
        assert f"{name.replace('attn', 'attention')} is unknown" in stderr
