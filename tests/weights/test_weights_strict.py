"""Every tensor is accounted for, and what is damaged or foreign is refused in one clear line."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_weights as foreign
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_weights import HEADS, Weights
from safetensors.torch import save_file
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.formats import HUGGING_FACE, HUGGING_FACE_ENCODER
from hpm_video.weights.foreign.from_ours import export_tensors
from hpm_video.weights.foreign.to_ours import import_weights

TOLD = Assumptions(num_frames=4, image_size=32, heads=HEADS, decoder_heads=3)


def _hugging_face(kind: str) -> Weights:
    """Theirs under the names of Hugging Face, which other tests compare with transformers' own."""
    weights = getattr(foreign, f"official_{'finetuned' if kind == 'finetuned' else 'pretrained'}")()
    if kind == "encoder":
        weights = {name: value for name, value in weights.items() if name.startswith("encoder.")}
    state = _import(weights)
    layout = HUGGING_FACE_ENCODER if kind == "encoder" else HUGGING_FACE
    return export_tensors(state, layout)[0]


def _import(weights: Weights, **more: Any) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(weights, file)
    path = Path(os.environ["WEIGHTS"])
    path.write_bytes(file.getvalue())
    return import_weights(path, assumptions=TOLD, **more).state


def _timm() -> Weights:
    weights = foreign.image_mae(with_predictor=False)
    others = ("decoder", "mask_token", "cls_token", "norm.")
    weights = {name: value for name, value in weights.items() if not name.startswith(others)}
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    return weights | {
        name: value
        for name, value in foreign.official_finetuned().items()
        if name.startswith(("fc_norm", "head"))
    }


FORMATS: dict[str, Callable[[], Weights]] = {
    "official, pre-trained": foreign.official_pretrained,
    "official, fine-tuned": foreign.official_finetuned,
    "Hugging Face, pre-trained": lambda: _hugging_face("pretrained"),
    "Hugging Face, fine-tuned": lambda: _hugging_face("finetuned"),
    "Hugging Face, encoder": lambda: _hugging_face("encoder"),
    "MAE": lambda: foreign.image_mae(with_predictor=False),
    "HPM": lambda: foreign.image_mae(with_predictor=True),
    "timm": _timm,
}


@pytest.fixture(autouse=True)
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", str(tmp_path / "weights.pt"))


def _refusal(weights: Weights, **more: Any) -> str:
    with pytest.raises(ValueError) as caught:
        _import(weights, **more)
    message = str(caught.value)
    assert message.startswith("weights (") and "\n" not in message
    return message


def _of_decoders_of_images(name: str) -> bool:
    return name.startswith(("decoder_", "mask_token", "cls_token"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("damage", ["add", "drop", "rename", "reshape"])
def test_every_tensor_counts(name: str, damage: str) -> None:
    """Each in its turn; what has no place in a video model may be there or not."""
    weights = FORMATS[name]()
    _import(weights)
    if damage == "add":
        for added in ("blocks.0.attn.k_bias", "blocks.1.ls1.gamma", "surprise"):
            assert f"{added} is unknown" in _refusal({**weights, added: torch.zeros(3)})
        return
    is_image = name in ("MAE", "HPM", "timm")
    for tensor in weights:
        if is_image and _of_decoders_of_images(tensor):
            continue
        changed = dict(weights)
        value = changed.pop(tensor)
        if damage == "rename":
            changed[f"{tensor}_"] = value
        elif damage == "reshape":
            changed[tensor] = torch.cat([value, value], dim=-1)
        message = _refusal(changed)
        assert re.search(rf"(^|\W){re.escape(tensor)}($|\W)", message), message
        if damage == "rename" and "is missing" not in message.split(";")[0]:
            assert f"{tensor}_ is unknown" in message


def test_numbers_that_are_none_are_refused() -> None:
    weights = foreign.official_finetuned()
    weights["blocks.1.mlp.fc1.bias"][3] = torch.nan
    assert "blocks.1.mlp.fc1.bias has values that are not finite" in _refusal(weights)


def test_what_is_allowed_to_be_missing_is_initialised_and_said() -> None:
    weights = foreign.official_pretrained()
    whole = _import(weights)
    del weights["encoder.blocks.1.attn.q_bias"], weights["decoder.norm.bias"]
    weights["encoder.surprise"] = torch.zeros(1)
    weights["encoder.norm.weight"] = torch.ones(7)
    message = _refusal(weights)
    for words in (
        *("encoder.blocks.1.attn.q_bias is missing", "decoder.norm.bias is missing"),
        *("encoder.surprise is unknown", "encoder.norm.weight is (7,), must be (32,)"),
    ):
        assert words in message
    allowed = ["encoder.blocks.*.q_bias", "decoder.norm.bias", "encoder.surprise", "encoder.norm.*"]
    for left in range(4):  # each of them is needed
        _refusal(weights, allow_missing=[name for n, name in enumerate(allowed) if n != left])
    torch.save(weights, os.environ["WEIGHTS"])
    found = import_weights(os.environ["WEIGHTS"], assumptions=TOLD, allow_missing=allowed)
    rows = {row.ours: row for row in found.rows if row.status == "initialised"}
    assert rows.keys() == {
        *("encoder.blocks.1.attn.q_bias", "reconstructor.norm.bias", "encoder.norm.weight"),
    }
    assert "is missing" in rows["reconstructor.norm.bias"].note
    assert {row.theirs for row in found.rows} - {""} == weights.keys()
    model = found.state["model"]
    assert model.keys() == whole["model"].keys()
    assert torch.equal(model["encoder.blocks.1.attn.q_bias"], torch.zeros(32))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(os.environ["EVIL"]),))


def _files() -> dict[str, tuple[bytes, str]]:
    """Files that are no weights, and what is said to have been found."""

    def saved(value: object) -> bytes:
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()

    whole = saved(foreign.official_finetuned())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "hello")
    arrays = io.BytesIO()
    np.savez(arrays, a=np.zeros(3))
    return {
        "nothing": (b"", "an empty file"),
        "a page": (b"<!DOCTYPE html><html>404", "a web page"),
        "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        "half": (whole[: len(whole) // 2], "without its end"),
        "most": (whole[:-30], "without its end"),
        "text": (b"path,label\n", "a file that PyTorch cannot read"),
        "another archive": (archive.getvalue(), "without weights"),
        "arrays": (arrays.getvalue(), "without weights"),
        "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "an image"),
        "gzip": (b"\x1f\x8b\x08\x00", "a gzip archive"),
        "a list": (saved([1, 2]), "a list"),
        "empty weights": (saved({"model": {}}), "no weights in model"),
        "no tensors": (saved({"epoch": 3, "lr": 0.1}), "found epoch, a int"),
        "other names": (saved({"conv1.weight": torch.zeros(3)}), "conv1.weight"),
        "another network": (
            saved({f"layer{n}.weight": torch.zeros(3) for n in range(9)}),
            "9 tensors",
        ),
    }


@pytest.mark.parametrize("name", _files())
def test_what_is_no_file_of_weights(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = _files()[name]
    path = Path(os.environ["WEIGHTS"])
    path.write_bytes(content)
    for job in (["inspect", str(path)], ["import", str(path), "-o", str(path.parent / "out.pt")]):
        assert main(["weights", *job]) == 2
        said = capsys.readouterr().err
        assert words in said and "expected" in said and said.count("\n") == 1, said
    assert [each.name for each in path.parent.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9])
def test_half_a_safetensors_file(share: float) -> None:
    path = Path(os.environ["WEIGHTS"])
    save_file(foreign.official_finetuned(), path)
    data = path.read_bytes()
    path.write_bytes(data[: max(12, int(share * len(data)))])
    with pytest.raises(ValueError, match="damaged or half-written") as caught:
        import_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_nothing_is_executed(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "executed"))
    path = Path(os.environ["WEIGHTS"])
    content = {"model": foreign.official_finetuned(), "args": _Evil()}
    with path.open("wb") as file:
        torch.save(content, file) if form == "torch" else pickle.dump(content, file)
    with pytest.raises(
        ValueError, match=r"reading it would run code|PyTorch cannot read"
    ) as caught:
        import_weights(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_folders_that_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found config.json alone, expected \*\.safetensors"):
        import_weights(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="found invalid JSON"):
        import_weights(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(
        FileNotFoundError, match=r"found a folder with other\.json, expected a folder of a run"
    ):
        import_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="do not exist"):
        import_weights(tmp_path / "nowhere")


def _of_size(weights: Weights, prefix: str) -> Weights:
    return {name: value for name, value in weights.items() if name.startswith(prefix)}


def _trained(tmp_path: Path, arguments: Callable[..., list[str]], *more: str) -> int:
    """Two epochs at a learning rate of 0 from the file of weights."""
    frozen = ("optim.base_lr=0", "optim.min_lr=0", "optim.epochs=1", "model.heads=4")
    init = f"model.init={os.environ['WEIGHTS']}"
    return main(arguments(tmp_path / "run", init, *frozen, *more))


def _table(run: Path) -> list[list[str]]:
    """The lines of a run's init.txt, word by word."""
    return [line.split() for line in (run / "init.txt").read_text().splitlines()[1:]]


def test_a_fine_tuning_starts_from_them(
    tmp_path: Path,
    finetune_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a learning rate of zero nothing moves: what is there was loaded."""
    weights = foreign.official_pretrained()
    torch.save({"model": weights}, os.environ["WEIGHTS"])
    assert _trained(tmp_path, finetune_arguments) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "starts with the encoder of official VideoMAE or VideoMAE V2, pre-trained (" in log
    model = load_checkpoint(tmp_path / "run")["model"]
    for name, value in _of_size(weights, "encoder.blocks").items():
        assert torch.equal(model[name], value)
    # That of the released files, not of this run
    assert load_checkpoint(tmp_path / "run")["trained_grid"] == [8, 28, 28]
    table = _table(tmp_path / "run")
    assert {line[1] for line in table} - {"-"} == weights.keys()
    assert {line[2] for line in table} - {"-"} == {
        *(name for name in model if name.startswith("encoder.")), "encoder.positions",
    }  # fmt: skip
    assert {line[1] for line in table if line[0] == "unused"} == {
        name for name in weights if not name.startswith(("encoder.patch", "encoder.blocks"))
    }
    assert [line[:3] for line in table if line[0] == "interpolated"] == [
        ["interpolated", "-", "encoder.positions"]
    ]

    del weights["encoder.blocks.1.attn.v_bias"]
    torch.save({"model": weights}, os.environ["WEIGHTS"])
    lacking = tmp_path / "lacking"
    capsys.readouterr()
    assert _trained(lacking, finetune_arguments) == 2
    said = capsys.readouterr().err
    assert "encoder.blocks.1.attn.v_bias is missing" in said and said.count("\n") == 1
    assert not (lacking / "run").exists()
    allowed = "model.allow_missing=[encoder.blocks.1.attn.v_bias]"
    assert _trained(lacking, finetune_arguments, allowed) == 0
    initialised = [line for line in _table(lacking / "run") if line[0] == "initialised"]
    assert [line[1:3] for line in initialised] == [["-", "encoder.blocks.1.attn.v_bias"]]
    log = (lacking / "run" / "log.txt").read_text()
    assert "not in these weights, so newly initialised: encoder.blocks.1.attn.v_bias" in log

    wide = (allowed, "model.width=64")
    assert _trained(tmp_path / "wide", finetune_arguments, *wide) == 2
    assert "does not fit the model of these settings" in capsys.readouterr().err


def test_an_image_model_is_where_a_run_starts(
    tmp_path: Path,
    finetune_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = foreign.image_mae(with_predictor=False)
    torch.save({"model": weights}, os.environ["WEIGHTS"])
    assert _trained(tmp_path / "other", finetune_arguments, "model.positions=sinusoid") == 2
    assert "model.positions (sinusoid) must be stored" in capsys.readouterr().err
    assert _trained(tmp_path, finetune_arguments) == 0  # which the weights know
    model = load_checkpoint(tmp_path / "run")["model"]
    expected: Tensor = weights["pos_embed"][0, 1:].repeat(2, 1)
    assert torch.equal(model["encoder.positions"], expected)
    assert main(["weights", "inspect", str(tmp_path / "run")]) == 0

    larger = ("model.positions=stored", "data.crop_size=64")
    assert _trained(tmp_path / "larger", finetune_arguments, *larger) == 0
    found = load_checkpoint(tmp_path / "larger" / "run")["model"]["encoder.positions"]
    changed = [line[:3] for line in _table(tmp_path / "larger" / "run") if "inter" in line[0]]
    assert changed == [["interpolated", "pos_embed", "encoder.positions"]]
    image = weights["pos_embed"][0, 1:].T.reshape(1, 32, 4, 4)
    image = F.interpolate(image, size=(8, 8), mode="bilinear").flatten(2)[0].T
    assert (found - image.repeat(2, 1)).abs().max() < 1e-6


def test_a_pre_training_starts_from_an_image_model(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    weights = foreign.image_mae(with_predictor=True)
    torch.save({"model": weights}, os.environ["WEIGHTS"])
    assert _trained(tmp_path, pretrain_arguments, "model.positions=stored") == 0
    model = load_checkpoint(tmp_path / "run", kind="pretrain")["model"]
    for name in ("blocks.1.mlp.fc2.weight", "norm.bias"):
        assert torch.equal(model[f"encoder.{name}"], weights[name])
    assert torch.equal(model["encoder.positions"][16:], weights["pos_embed"][0, 1:])


def test_other_heads_are_refused(
    tmp_path: Path,
    pretrained: Path,
    finetune_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their number does not show in any shape."""
    settings = (f"model.init={pretrained}", "model.heads=4")
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 2
    assert "model.heads (4) must be 2, as in the weights" in capsys.readouterr().err
