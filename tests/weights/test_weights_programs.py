"""Models as programs of others: ONNX and torch.export, for batches of any size."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.evaluate.frozen_encoder import load_backbone
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.export import writers
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]
Run = Callable[[Path, Tensor], np.ndarray]

TOLERANCE = 1e-4


def _by_onnxruntime(file: Path, clips: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"clips": clips.numpy()})
    return result


def _by_torch(file: Path, clips: Tensor) -> np.ndarray:
    return torch.export.load(file).module()(clips).numpy()


FORMATS = [("onnx", _by_onnxruntime), ("torch-export", _by_torch)]


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments) -> Path:
    """A classifier with weights far from its first ones, and positions of another grid."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    assert main(finetune_arguments(folder, "optim.epochs=1")) == 0
    state = load_checkpoint(folder)
    generator = torch.Generator().manual_seed(0)
    for value in state["model"].values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    state["trained_grid"] = [3, 5, 4]
    torch.save(state, folder.parent / "weights.pt")
    return folder.parent / "weights.pt"


def _clips(batch: int) -> Tensor:
    return torch.rand(batch, 3, 4, 32, 32, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize(("to", "run"), FORMATS)
def test_a_classifier_leaves(finetuned: Path, tmp_path: Path, to: str, run: Run) -> None:
    output = tmp_path / "model"
    assert main(["weights", "export", str(finetuned), "-o", str(output), "--to", to]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "one file holds it all"
    model, _, classes = load_classifier(finetuned)
    for batch in (1, 2, 5):
        clips = _clips(batch)
        with torch.no_grad():
            expected = model.eval()(clips).numpy()
        assert expected.std() > 0.1
        assert np.abs(run(output, clips) - expected).max() < TOLERANCE
    if to == "onnx":
        properties = {item.key: item.value for item in onnx.load(output).metadata_props}
        assert json.loads(properties["hpm_video.classes"]) == classes
        onnx.checker.check_model(onnx.load(output), full_check=True)
    else:
        facts = {writers.FACTS: ""}
        torch.export.load(output, extra_files=facts)
        assert json.loads(facts[writers.FACTS])["classes"] == json.dumps(classes)


@pytest.mark.parametrize(("to", "run"), FORMATS)
@pytest.mark.parametrize("of", ["pretraining", "fine-tuning"])
def test_an_encoder_leaves(
    finetuned: Path, pretrained: Path, tmp_path: Path, of: str, to: str, run: Run
) -> None:
    source = {"pretraining": pretrained, "fine-tuning": finetuned}[of]
    output = tmp_path / "model"
    ask = ["weights", "export", str(source), "-o", str(output), "--to", to, "--encoder"]
    assert main(ask) == 0
    clips = _clips(3)
    expected = load_backbone(source, precision="float32").backbone.encode(clips).numpy()
    assert np.abs(run(output, clips) - expected).max() < TOLERANCE
    assert expected.shape == (3, 32, 32) and expected.std() > 0.1


def test_what_does_not_fit_gets_one_line(
    finetuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(writers, "_MOST_BYTES", 1000)
    assert main(["weights", "export", str(finetuned), "-o", str(tmp_path / "x"), "--to", "onnx"])
    said = capsys.readouterr().err
    assert "must be below 2 GiB to fit into one ONNX file" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
