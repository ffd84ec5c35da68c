"""What a checkpoint knows need not be said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import foreign_weights as foreign
import pytest
import torch
import yaml

from hpm_video.cli.main import main
from hpm_video.slurm.command import make_plan, read_command
from hpm_video.train.run.known_settings import load_finetune_config

Arguments = Callable[..., list[str]]

# What is no size: the rest of a small run on a CPU
_SHORT = (
    "run.device=cpu", "run.precision=float32", "run.save_in_background=false",
    "data.batch_size=4", "data.num_workers=0", "optim.epochs=1", "optim.warmup_epochs=0",
    "model.drop_path=0", "augment.num_operations=0", "augment.erasing=0", "mixing.mixup=0",
    "mixing.cutmix=0",
)  # fmt: skip
_PLAIN = ("device=cpu", "num_workers=0")


@pytest.fixture
def arguments(toy: Path, empty_config: Path, tmp_path: Path) -> Arguments:
    """A function (weights, settings...) -> arguments of a fine-tuning that states no size."""

    def given(init: Path, *settings: str) -> list[str]:
        where = (f"run.output_dir={tmp_path / 'run'}", f"data.manifest={toy}")
        return ["finetune", str(empty_config), *_SHORT, *where, f"model.init={init}", *settings]

    return given


def test_a_fine_tuning_takes_sizes_from_its_weights(
    pretrained: Path, arguments: Arguments, tmp_path: Path
) -> None:
    """And goes on with them when the weights are gone; how frames are picked is its own."""
    weights = tmp_path / "weights.pt"
    shutil.copy(pretrained / "checkpoints" / "last", weights)
    assert main(arguments(weights)) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    model, data = stored["model"], stored["data"]
    sizes = (model["width"], model["depth"], model["heads"], model["patch_size"])
    assert (*sizes, data["num_frames"], data["crop_size"]) == (32, 2, 2, 8, 4, 32)
    # The pre-training has a stride of 1
    assert (data["sampling"], data["frame_stride"], model["tubelet_size"]) == ("dense", 2, 2)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"settings from model.init ({weights}): " in log
    for word in ("model.width=32", "model.patch_size=8", "data.num_frames=4", "data.crop_size=32"):
        assert f" {word}" in log
    weights.unlink()
    words = arguments(weights)
    assert main(words) == 0
    plan = make_plan(read_command(words), wait_for_inputs=False)
    assert plan.runs[0].model.width == 32


def test_what_is_said_counts(
    pretrained: Path,
    arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for settings, words in (
        (["model.width=64"], "model.width (64) must be 32, as in the weights"),
        (["model.size=tiny"], "model.heads (3) must be 2, as in the weights"),
        (["model.depth=3"], ": add model.depth=2, or model.init=null to start from scratch"),
        (["model.depth=3", "model.allow_missing=[none]"], "does not fit the model of these"),
        (["model.heads=4"], "model.heads (4) must be 2, as in the weights"),
        (["model.positions=stored"], "model.positions (stored) must be sinusoid"),
        (["data.num_frames=5"], "must be a multiple of"),
    ):
        assert main(arguments(pretrained, *settings)) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
        assert not (tmp_path / "run").exists()
        if ": add " in words:
            way = said.rpartition(": add ")[2].partition(", or ")[0].split()
            _, notes = load_finetune_config(None, arguments(pretrained, *settings, *way)[2:])
            assert notes
    _, _, *settings = arguments(pretrained, "data.num_frames=8", "model.patch_size=16")
    config, notes = load_finetune_config(None, settings)
    assert (config.data.num_frames, config.data.crop_size) == (8, 32)
    assert (config.model.patch_size, config.model.width) == (16, 32)
    assert "num_frames" not in notes[0] and "data.crop_size=32" in notes[0]


def test_weights_of_others_know_their_sizes(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    for weights, positions in (
        (foreign.official_pretrained(), "sinusoid"),
        (foreign.image_mae(with_predictor=False), "stored"),
    ):
        torch.save({"model": weights}, file)
        config, _ = load_finetune_config(None, [f"model.init={file}", "model.heads=4"])
        model = config.model
        assert (model.width, model.depth, model.heads, model.patch_size) == (32, 2, 4, 8)
        assert model.positions == positions
    # Of images: so large are theirs
    assert (config.data.num_frames, config.data.crop_size) == (16, 32)


def test_lists_are_those_of_the_run(
    pretrained: Path,
    toy: Path,
    arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    val = tmp_path / "val.csv"
    val.write_text("\n".join(toy.read_text().splitlines()[:6]) + "\n")
    shutil.copy(toy.parent / "classes.txt", tmp_path)
    root = (f"data.root={toy.parent}", "evaluation.num_crops=1", "evaluation.num_clips=1")
    assert main(arguments(pretrained, f"data.val_manifest={val}", *root)) == 0
    run = str(tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", run, *_PLAIN]) == 0
    assert "videos 5  unreadable 0" in capsys.readouterr().out
    assert (tmp_path / "run" / "evaluation" / "val" / "index.html").exists()
    plan = make_plan(read_command(["evaluate", run]))
    assert plan.tasks[0].output == f"{run}/evaluation/val"
    assert main(["probe", run, *_PLAIN]) == 0
    assert "train 24  val 5" in capsys.readouterr().out
    assert main(["features", run, "-o", str(tmp_path / "f.npz"), *_PLAIN]) == 0
    assert "videos 5  unreadable 0" in capsys.readouterr().out
    val.unlink()
    assert main(["evaluate", run, *_PLAIN]) == 2
    said = capsys.readouterr().err
    assert f"data.val_manifest of the checkpoint ({val}) does not exist: name a list with" in said
    for command in (
        ["probe", str(pretrained), "--val", str(toy)],
        ["features", str(pretrained), "-o", str(tmp_path / "g.npz")],
    ):
        assert main([*command, *_PLAIN]) == 2
        assert "(none) must name a list: checkpoint (" in capsys.readouterr().err
