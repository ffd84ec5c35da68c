"""One file out of a checkpoint, and what can be done with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hpm_video.cli.main import main
from hpm_video.weights.checkpoint import load_checkpoint, save_sharded
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.to_ours import import_weights
from hpm_video.weights.load import encoder_of

Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """The finished pre-training's checkpoint in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    return save_sharded(folder, load_checkpoint(pretrained), keep=0, group=None)


@pytest.mark.parametrize("form", ["file", "shards"])
def test_a_whole_checkpoint_goes_on(
    tmp_path: Path,
    pretrained: Path,
    sharded: Path,
    pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    source, output = {"file": pretrained, "shards": sharded}[form], tmp_path / "new" / "all.pt"
    assert main(["weights", "export", str(source), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    mine, theirs = load_checkpoint(output), load_checkpoint(pretrained)
    assert mine.keys() == theirs.keys()
    for name, moments in theirs["optimizer"].items():
        assert torch.equal(mine["model"][name], theirs["model"][name])
        assert all(torch.equal(mine["optimizer"][name][key], moments[key]) for key in moments)
    longer = pretrain_arguments(tmp_path / "run", f"run.resume={output}", "optim.epochs=3")
    assert main(longer) == 0
    assert "continues after step" in (tmp_path / "run" / "log.txt").read_text()
    assert [path.name for path in output.parent.iterdir()] == ["all.pt"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("option", ["--weights-only", "--encoder"])
def test_weights_alone(
    tmp_path: Path, pretrained: Path, sharded: Path, option: str, suffix: str
) -> None:
    output = tmp_path / f"weights.{suffix}"
    assert main(["weights", "export", str(sharded), "-o", str(output), option]) == 0
    theirs = {
        name: value
        for name, value in load_checkpoint(pretrained)["model"].items()
        if option == "--weights-only" or name.startswith("encoder.")
    }
    if suffix == "pt":
        state = load_checkpoint(output, kind="pretrain")
        assert state.keys() == {"kind", "config", "step", "model"}
        mine = state["model"]
    else:
        with safe_open(output, framework="pt") as file:
            assert file.metadata()["kind"] == "pretrain" and file.metadata()["step"] == "12"
            mine = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert mine.keys() == theirs.keys() and len(mine) > 20
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_an_encoder_is_what_fine_tuning_starts_from(
    tmp_path: Path, sharded: Path, finetune_arguments: Arguments, suffix: str
) -> None:
    output = tmp_path / f"encoder.{suffix}"
    assert main(["weights", "export", str(sharded), "-o", str(output), "--encoder"]) == 0
    assert main(finetune_arguments(tmp_path / "run", f"model.init={output}", "optim.epochs=1")) == 0
    assert "starts with the encoder of step 12" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (".", "must not be a folder; choose a name that does not exist yet"),
        ("file/weights.pt", "folder of --output"),
    ],
)
def test_wrong_outputs_get_one_line(
    tmp_path: Path, sharded: Path, output: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["weights", "export", str(sharded), "-o", str(tmp_path / output)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_decoder_of_features_is_left_out_of_the_formats_of_others(
    tmp_path: Path, pretrain_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    settings = ("loss.target=ema", "optim.epochs=1", "masking.hard_ratio_end=0")
    assert main(pretrain_arguments(folder, *settings)) == 0
    encoder, _ = encoder_of(load_checkpoint(folder), source=folder)
    for to in ("huggingface", "official"):
        output = tmp_path / to
        command = ["weights", "export", str(folder), "-o", str(output), "--to", to]
        capsys.readouterr()
        assert main(command) == 0
        assert (
            "left out: the decoder, as it reconstructs features (loss.target ema)"
            in capsys.readouterr().out
        )
        back = import_weights(output, assumptions=Assumptions(heads=2))  # no file says
        assert all(name.startswith("encoder.") for name in back.state["model"])
        assert torch.equal(back.state["model"]["encoder.embed.weight"], encoder.embed.weight)
    assert main(["weights", "export", str(folder), "-o", str(tmp_path / "own.pt")]) == 0
    assert "reconstructor.head.weight" in load_checkpoint(tmp_path / "own.pt")["model"]
