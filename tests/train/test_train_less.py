"""Fine-tunings that train less than all: frozen blocks, and adapters; and what reads them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import run_together
from runs import run_until_stopped
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.evaluate.predictions import read_predictions
from hpm_video.models.adapters import train_less
from hpm_video.models.build import Classifier, build
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import find_checkpoint, load_checkpoint, settings_of
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]

ADAPTERS = ("model.lora_rank=4", "model.lora_alpha=32", "optim.base_lr=0.256")
FROZEN = ("model.freeze=1", "optim.layer_decay=0.5")
READING = ["device=cpu", "precision=float32", "num_workers=0"]
FORMS = {"adapters": ADAPTERS, "frozen": FROZEN, "both": (*ADAPTERS, "model.freeze=1")}


def _records(folder: Path) -> list[dict[str, float]]:
    timing = {"clips_per_second", "data_wait_fraction"}
    return [{k: v for k, v in r.items() if k not in timing} for r in read_records(folder)]


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory,
    finetune_arguments: Arguments,
    pretrained: Path,
    toy: Path,
) -> Path:
    """A run with adapters, evaluated at its end."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    evaluation = ("evaluation.num_clips=1", "evaluation.num_crops=1", f"data.val_manifest={toy}")
    settings = (*ADAPTERS, *evaluation, f"model.init={pretrained}")
    assert main(finetune_arguments(folder, *settings)) == 0
    return folder


def _unmerged(folder: Path) -> Classifier:
    """The model as it was trained, its adapters beside its layers."""
    state = load_checkpoint(folder, as_trained=True)
    config = settings_of(state)
    model = build(config, num_classes=state["num_classes"])
    train_less(model, config.model)
    model.load_state_dict(state["model"])
    assert isinstance(model, Classifier)
    return model.eval()


CLIPS = torch.rand(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: torch.nn.Module) -> Tensor:
    return model(CLIPS)


def test_only_adapters_and_the_head_have_moved(adapted: Path, pretrained: Path) -> None:
    before = load_checkpoint(pretrained)["model"]
    state = load_checkpoint(adapted, as_trained=True)
    adapters = {name for name in state["model"] if "lora" in name}
    assert len(adapters) == 2 * 2 * 4 and all(state["model"][n].abs().max() > 0 for n in adapters)
    for name, value in state["model"].items():
        plain = name.replace(".base_layer", "")
        if plain.startswith("encoder.") and name not in adapters:
            assert value.equal(before[plain]), name
    head = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert state["optimizer"].keys() == adapters | head
    log = (adapted / "log.txt").read_text()
    assert f"{sum(state['model'][n].numel() for n in adapters | head):,} of" in log
    unused = [ln for ln in (adapted / "init.txt").read_text().splitlines() if "unused" in ln]
    assert not [line for line in unused if "encoder.blocks" in line]


def test_a_checkpoint_with_adapters_is_read_as_a_plain_one(adapted: Path) -> None:
    model, config, _ = load_classifier(adapted)
    assert config.model.lora_rank == 0
    assert not any("lora" in n or "base_layer" in n for n in model.state_dict())
    unmerged = _logits(_unmerged(adapted))
    assert (_logits(model.eval()) - unmerged).abs().max() < 1e-5
    without = load_checkpoint(adapted, as_trained=True)["model"]
    plain = {n.replace(".base_layer", ""): v for n, v in without.items() if "lora" not in n}
    model.load_state_dict(plain)
    assert (_logits(model) - unmerged).abs().max() > 1e-3


def test_all_commands_read_a_checkpoint_with_adapters(
    adapted: Path, toy: Path, tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    one = ["evaluation.num_clips=1", "evaluation.num_crops=1"]
    listed = ["--manifest", str(toy)]
    results = ["-o", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(adapted), *listed, *results, *one, *READING]) == 0
    found = read_predictions(tmp_path / "evaluation")
    assert found.top(1) == read_records(adapted)[-1]["top1"]
    files = ["-o", str(tmp_path / "p.csv")]
    assert main(["predict", str(adapted), *listed, *files, *one, *READING]) == 0
    assert main(["features", str(adapted), *listed, "-o", str(tmp_path / "f"), *READING]) == 0
    assert main(["weights", "inspect", str(adapted)]) == 0
    expected = load_checkpoint(adapted)["model"]
    for to in ("checkpoint", "safetensors", "huggingface", "official"):
        output = tmp_path / to
        assert main(["weights", "export", str(adapted), "--to", to, "-o", str(output)]) == 0
        imported = tmp_path / f"{to}.pt"
        told = ["--heads", "2", "--num-frames", "4", "--image-size", "32"]
        told = told if to == "official" else []
        assert main(["weights", "import", str(output), *told, "-o", str(imported)]) == 0
        weights = load_checkpoint(imported)["model"]
        for name, value in expected.items():
            assert torch.allclose(weights[name], value, atol=1e-6), (to, name)


def test_a_whole_export_goes_on(adapted: Path, tmp_path: Path) -> None:
    """All that a checkpoint holds is kept as it was trained."""
    file = tmp_path / "all.pt"
    assert main(["weights", "export", str(adapted), "-o", str(file)]) == 0
    mine, theirs = (load_checkpoint(path, as_trained=True) for path in (file, adapted))
    assert "optimizer" in mine and mine["config"] == theirs["config"]
    assert all(value.equal(theirs["model"][name]) for name, value in mine["model"].items())


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_run_continues_identically(
    tmp_path: Path, finetune_arguments: Arguments, pretrained: Path, form: str
) -> None:
    shutil.copytree(pretrained, tmp_path / "weights", symlinks=True)
    settings = (
        *(f"model.init={tmp_path / 'weights'}", "model.drop_path=0.2", "model.head_dropout=0.5"),
        *("run.log_every=5", "run.activation_checkpointing=true", "optim.ema_momentum=0.9"),
        *FORMS[form],
    )
    assert main(finetune_arguments(tmp_path / "whole", *settings)) == 0
    arguments = finetune_arguments(tmp_path / "stopped", *settings)
    run_until_stopped(arguments, at=7)
    shutil.rmtree(tmp_path / "weights")
    assert main(arguments) == 0
    assert _records(tmp_path / "stopped") == _records(tmp_path / "whole")
    one, other = (load_checkpoint(tmp_path / n, as_trained=True) for n in ("stopped", "whole"))
    before = load_checkpoint(pretrained)["model"]
    for key in ("model", "trained_model"):
        assert all(value.equal(other[key][name]) for name, value in one[key].items())
        for name, value in one[key].items():
            if name.startswith(("encoder.embed", "encoder.blocks.0")) and "lora" not in name:
                assert value.equal(before[name.replace(".base_layer", "")]), (key, name)
    assert one["optimizer"].keys() == other["optimizer"].keys()
    assert not [name for name in one["optimizer"] if "blocks.0" in name and "lora" not in name]


@pytest.fixture(scope="module")
def together(
    tmp_path_factory: pytest.TempPathFactory,
    finetune_arguments: Arguments,
    pretrained: Path,
    toy: Path,
) -> Path:
    """Runs of two processes, and such that go on after them."""
    folder = tmp_path_factory.mktemp("together")
    shared = (
        *(f"model.init={pretrained}", "data.batch_size=4", "run.log_every=1", "optim.epochs=1"),
        *("run.checkpoint_every_minutes=0", "run.keep_checkpoints=0"),
        *(f"data.val_manifest={toy}", "evaluation.num_clips=1", "evaluation.num_crops=1"),
    )
    jobs = []
    for form, more in FORMS.items():
        for parallel in ("ddp", "fsdp"):
            settings = (*shared, *more, f"run.parallel={parallel}")
            if form == "both":
                settings = (*settings, "run.activation_checkpointing=true")
            jobs.append(finetune_arguments(folder / f"{form}_{parallel}", *settings))
        resume = f"run.resume={folder}/{form}_ddp/checkpoints/step_00000001.pt"
        settings = (*shared, *more, "run.parallel=fsdp", resume)
        jobs.append(finetune_arguments(folder / f"{form}_resumed", *settings))
    for done in run_together(2, jobs):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_are_a_larger_batch(
    together: Path, tmp_path: Path, finetune_arguments: Arguments, pretrained: Path, form: str
) -> None:
    settings = (*FORMS[form], "data.batch_size=8", "run.log_every=1", "optim.epochs=1")
    arguments = finetune_arguments(tmp_path / "run", *settings, f"model.init={pretrained}")
    assert main(arguments) == 0
    expected = load_checkpoint(tmp_path / "run", as_trained=True)["model"]
    losses = [record["loss"] for record in read_records(tmp_path / "run")]
    before = load_checkpoint(pretrained)["model"]
    for parallel in ("ddp", "fsdp", "resumed"):
        folder = together / f"{form}_{parallel}"
        found = [record["loss"] for record in read_records(folder) if "loss" in record]
        assert found == pytest.approx(losses[-len(found) :], rel=1e-4)
        weights = load_checkpoint(folder, as_trained=True)["model"]
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            assert (value - expected[name]).abs().max() < 2e-4, (parallel, name)
            if name.startswith("encoder.blocks.0") and "lora" not in name:
                assert value.equal(before[name.replace(".base_layer", "")]), (parallel, name)


def test_shards_with_adapters_are_read(together: Path, tmp_path: Path, toy: Path) -> None:
    folder = together / "adapters_fsdp"
    assert find_checkpoint(folder).is_dir()
    one = ["evaluation.num_clips=1", "evaluation.num_crops=1"]
    results = ["-o", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(folder), "--manifest", str(toy), *results, *one, *READING]) == 0
    assert read_predictions(tmp_path / "evaluation").top(1) == read_records(folder)[-1]["top1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.freeze=1"], "model.init (null) must name weights to start from"),
        (["model.lora_rank=2"], "model.init (null) must name weights to start from"),
        (["model.freeze=3", "INIT"], "model.freeze (3) must be at most 2: the encoder has 2"),
        (
            ["model.freeze=3", "INIT", "model.depth=3", "model.allow_missing=[encoder.blocks.2.*]"],
            "must have encoder.blocks.2.attn.proj.bias, which is frozen",
        ),
        (["model.freeze=all", "INIT"], "model.freeze (all) must be none, embeddings, encoder"),
        (["model.name=x3d_s", "model.freeze=1"], "model.freeze (1) must be none with"),
    ],
)
def test_what_would_freeze_noise_is_refused(
    tmp_path: Path,
    finetune_arguments: Arguments,
    pretrained: Path,
    settings: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [f"model.init={pretrained}" if word == "INIT" else word for word in settings]
    assert main(finetune_arguments(tmp_path / "run", *named)) == 2
    error = capsys.readouterr().err
    assert words in error and (error.count("\n") == 1 or " errors:" in error)
    assert not (tmp_path / "run").exists()


def test_another_part_to_learn_is_no_run_to_go_on_with(
    adapted: Path, tmp_path: Path, finetune_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = ("optim.epochs=3", f"run.resume={adapted}", "model.freeze=1")
    assert main(finetune_arguments(tmp_path / "run", *resumed)) == 2
    assert "model.freeze (1) must be none, as in the continued run" in capsys.readouterr().err
    assert main(finetune_arguments(adapted, "model.lora_rank=2", f"model.init={tmp_path}")) == 2
    assert "model.lora_rank" in capsys.readouterr().err


def test_a_run_starts_from_weights_with_adapters(
    adapted: Path, tmp_path: Path, finetune_arguments: Arguments
) -> None:
    """They are part of these weights, in a run folder and in a file."""
    still = ("optim.base_lr=0", "optim.min_lr=0", "optim.epochs=1")
    expected = load_checkpoint(adapted)["model"]
    for name, init in (("run", adapted), ("file", find_checkpoint(adapted).resolve())):
        arguments = finetune_arguments(tmp_path / name, *still, f"model.init={init}")
        assert main(arguments) == 0
        found = load_checkpoint(tmp_path / name)["model"]
        names = [n for n in found if n.startswith("encoder.")]
        assert names and all(found[n].equal(expected[n]) for n in names)
