"""Weights that lie: files, settings and outputs that would lose or change something in silence."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_weights as foreign
import pytest
import torch
from foreign_weights import HEADS, Weights
from safetensors.torch import load_file, save_file

from hpm_video.cli.main import main
from hpm_video.models.sizes import SIZES
from hpm_video.models.tokens import TokenGrid
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.export.writers import export, write_output
from hpm_video.weights.foreign.architecture import Assumptions, architecture_of
from hpm_video.weights.foreign.formats import recognise
from hpm_video.weights.foreign.to_ours import import_weights
from hpm_video.weights.foreign.weight_files import Source

TOLD = Assumptions(num_frames=4, image_size=32, heads=HEADS, decoder_heads=3)
State = dict[str, Any]


def _refusal(path: Path, **more: Any) -> str:
    with pytest.raises(ValueError) as caught:
        import_weights(path, **{"assumptions": TOLD, **more})
    message = str(caught.value)
    assert message.startswith(("weights (", "container (")) and "\n" not in message
    return message


def _saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A checkpoint of ours, of 5 classes; not to be changed."""
    file = tmp_path_factory.mktemp("official") / "theirs"
    return import_weights(_saved(foreign.official_finetuned(), file), assumptions=TOLD).state


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, classifier: State) -> Path:
    """It as a folder of Hugging Face; not to be changed."""
    folder = tmp_path_factory.mktemp("huggingface") / "folder"
    write_output(classifier, folder, to="huggingface")
    return folder


@pytest.fixture
def folder(tmp_path: Path, exported: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(exported, tmp_path / "folder")


@pytest.mark.parametrize("damage", ["add", "drop", "rename", "reshape", "nan"])
def test_every_tensor_of_ours_counts(
    tmp_path: Path, pretrained: Path, classifier: State, damage: str
) -> None:
    """On the way in, of both kinds of checkpoint and of files, and before it leaves."""
    of_training = ("optimizer", "teacher", "data")
    pretraining = {n: v for n, v in load_checkpoint(pretrained).items() if n not in of_training}
    last = list(pretraining["model"])[-1]
    for state, name in ((pretraining, last), (classifier, "encoder.blocks.1.attn.v_bias")):
        model = {n: v.clone() for n, v in state["model"].items()}
        value = model.pop(name)
        words = f"{name} is missing"
        if damage == "add":
            model |= {name: value, f"{name}_": value.clone()}
            words = f"{name}_ is unknown"
        elif damage == "rename":
            model[f"{name}_"] = value
        elif damage == "reshape":
            model[name] = torch.cat([value, value])
            words = f"{name} is {tuple(model[name].shape)}, must be {tuple(value.shape)}"
        elif damage == "nan":
            model[name] = value * torch.nan
            words = f"{name} has values that are not finite"
        file = tmp_path / state["kind"]
        if state is pretraining:
            assert words in _refusal(_saved({**state, "model": model}, file))
            with pytest.raises(ValueError, match="do not fit the model") as caught:
                export(file, tmp_path / "out", to="official")
            assert words in str(caught.value) and not (tmp_path / "out").exists()
        else:
            header = {n: json.dumps(v) for n, v in state.items() if n != "model"}
            save_file(model, file, metadata={**header, "kind": state["kind"]})
            assert words in _refusal(file)


def test_what_is_allowed_to_be_missing_of_ours_is_initialised(
    tmp_path: Path, classifier: State
) -> None:
    model = dict(classifier["model"])
    del model["head.bias"]
    model["surprise"] = torch.ones(2)
    file = _saved({**classifier, "model": model}, tmp_path / "ours")
    assert "surprise is unknown" in _refusal(file, allow_missing=["head.*"])
    found = import_weights(file, allow_missing=["head.*", "surprise"])
    assert found.state["model"].keys() == classifier["model"].keys()
    assert not found.state["model"]["head.bias"].any()
    rows = {row.theirs or row.ours: row.status for row in found.rows}
    assert rows["head.bias"] == "initialised" and rows["surprise"] == "unused"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "other"}, "invalid settings"),
        ({"config": {"model": {"depht": 3}}}, "invalid settings"),
        ({"config": 3}, "no settings in config"),
        ({"model": [1]}, "no weights in model"),
        ({"model": {"a": 1}}, "a in model, a int"),
        ({"num_classes": 7}, "head.weight is (5, 32), must be (7, 32)"),
        ({"classes": ["a", "b"]}, "2 names for 5 classes"),
    ],
)
def test_what_only_looks_like_ours(
    tmp_path: Path, classifier: State, change: State, words: str
) -> None:
    assert words in _refusal(_saved({**classifier, **change}, tmp_path / "file"))


def _without(weights: Weights, beginning: str) -> Weights:
    return {name: value for name, value in weights.items() if not name.startswith(beginning)}


def test_whole_blocks_that_are_missing(tmp_path: Path) -> None:
    """No name tells that of them, but what else is known of the model does."""
    lacking = _saved(_without(foreign.official_pretrained(), "decoder.blocks."), tmp_path / "file")
    assert "decoder.blocks.0.norm1.weight is missing" in _refusal(lacking)
    lacking = _saved(_without(foreign.official_finetuned(), "blocks.1."), tmp_path / "file")
    told = Assumptions(num_frames=4, image_size=32, heads=HEADS, depth=2)
    assert "blocks.1.norm1.weight is missing" in _refusal(lacking, assumptions=told)
    whole = _saved(foreign.official_finetuned(), tmp_path / "file")
    told = Assumptions(num_frames=4, image_size=32, heads=HEADS, depth=1)
    assert "blocks.1.norm1.weight is unknown" in _refusal(whole, assumptions=told)

    with torch.device("meta"):
        tiny = {
            "patch_embed.proj.weight": torch.empty(192, 3, 2, 16, 16),
            "fc_norm.weight": torch.empty(192),
            "head.weight": torch.empty(5, 192),
            **{f"blocks.{n}.norm1.bias": torch.empty(192) for n in range(SIZES["tiny"].depth)},
        }
    found = recognise(Source(tmp_path, tiny))
    assert architecture_of(found, Assumptions()).config.model.depth is None
    found = recognise(Source(tmp_path, _without(tiny, "blocks.11.")))
    with pytest.raises(
        ValueError, match=r"found 11 encoder blocks .* expected 12, as in size tiny"
    ):
        architecture_of(found, Assumptions())
    known = architecture_of(found, Assumptions(depth=11))
    assert known.config.model.depth == 11 and known.shape.grid == TokenGrid(8, 14, 14)


@pytest.mark.parametrize(
    ("file", "settings", "words"),
    [
        ("config", {"num_hidden_layers": 3}, "encoder.layer.2.layernorm_before.weight is missing"),
        ("config", {"num_hidden_layers": 1}, "encoder.layer.1.layernorm_before.bias is unknown"),
        ("config", {"patch_size": 16}, "found patch_size 16, expected 8"),
        ("config", {"tubelet_size": 1}, "found tubelet_size 1, expected 2"),
        ("config", {"hidden_size": 64}, "found hidden_size 64, expected 32"),
        ("config", {"num_frames": 8}, "found num_frames 8, expected 4, as given"),
        ("config", {"layer_norm_eps": 0.1}, "found layer_norm_eps 0.1"),
        ("config", {"id2label": {"0": "a", "1": "b"}}, "found 2 names in id2label"),
        ("config", {"id2label": {f"{n}": "x" for n in range(1, 6)}}, "found 5 names in id2label"),
        ("config", {"id2label": ["a"] * 5}, "found id2label of type list"),
        ("preprocessor_config", {"do_normalize": False}, "found do_normalize False, expected True"),
        ("preprocessor_config", {"image_std": [0, 1, 1]}, "expected three numbers above 0"),
    ],
)
def test_settings_that_contradict(folder: Path, file: str, settings: State, words: str) -> None:
    path = folder / f"{file}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    assert words in _refusal(folder)


def test_a_target_of_raw_pixels_stays_one(tmp_path: Path) -> None:
    theirs = _saved(foreign.official_pretrained(), tmp_path / "theirs")
    write_output(
        import_weights(theirs, assumptions=TOLD).state, tmp_path / "folder", to="huggingface"
    )
    path = tmp_path / "folder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_pix_loss": False}))
    assert not import_weights(path.parent).state["config"]["loss"]["normalize_targets"]


def test_two_files_with_one_tensor_and_containers_that_there_are_none(folder: Path) -> None:
    assert "must be left out" in _refusal(folder, container="model_ema")
    weights = load_file(folder / "model.safetensors")
    save_file({"fc_norm.bias": weights["fc_norm.bias"] + 1}, folder / "other.safetensors")
    assert "found fc_norm.bias in other.safetensors and in another file" in _refusal(folder)


def test_a_folder_of_timm_says_how_pixels_are_normalised(tmp_path: Path) -> None:
    """As timm's models on the hub do; else ImageNet's would be assumed."""
    weights = foreign.image_mae(with_predictor=False)
    save_file(weights, tmp_path / "model.safetensors")
    half = [0.5, 0.5, 0.5]
    config = {"architecture": "vit", "pretrained_cfg": {"mean": half, "std": half}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = import_weights(tmp_path, assumptions=TOLD).state["model"]
    told = Assumptions(num_frames=4, heads=HEADS, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    alone = import_weights(tmp_path / "model.safetensors", assumptions=told).state["model"]
    assert torch.equal(found["encoder.embed.weight"], alone["encoder.embed.weight"])
    usual = import_weights(tmp_path / "model.safetensors", assumptions=TOLD).state["model"]
    assert not torch.equal(found["encoder.embed.weight"], usual["encoder.embed.weight"])


@pytest.mark.parametrize("kind", ["int8", "bool", "complex64", "sparse", "meta"])
def test_tensors_of_other_kinds(tmp_path: Path, kind: str) -> None:
    weights = foreign.official_finetuned()
    name = "blocks.0.mlp.fc1.weight"
    if kind == "sparse":
        weights[name] = weights[name].to_sparse()
    elif kind == "meta":
        weights[name] = weights[name].to("meta")
    else:
        weights[name] = weights[name].to(getattr(torch, kind))
    assert f"{name} is " in _refusal(_saved(weights, tmp_path / "file"))


def test_names_that_cannot_be_printed(tmp_path: Path) -> None:
    weights = {**foreign.official_finetuned(), "bad\n\x1b[31mname": torch.zeros(1)}
    assert r"'bad\n\x1b[31mname'" in _refusal(_saved(weights, tmp_path / "file"))


def test_a_file_cut_anywhere_or_with_a_wrong_byte(tmp_path: Path) -> None:
    """A wrong byte among the numbers shows in nothing but the archive's checksums."""
    weights = foreign.official_finetuned()
    data = _saved(weights, tmp_path / "file").read_bytes()
    for share in range(1, 20):
        (tmp_path / "file").write_bytes(data[: share * len(data) // 20])
        assert "without its end" in _refusal(tmp_path / "file")
    place = data.index(weights["head.weight"].numpy().tobytes()) + 40
    changed = bytearray(data)
    changed[place] ^= 1
    (tmp_path / "file").write_bytes(changed)
    assert "which is damaged" in _refusal(tmp_path / "file")


def test_pipes_and_outputs_that_must_stay(
    tmp_path: Path, classifier: State, capsys: pytest.CaptureFixture[str]
) -> None:
    source, pipe = _saved(classifier, tmp_path / "ours.pt"), tmp_path / "pipe"
    before = source.read_bytes()
    os.mkfifo(pipe)
    for arguments, words in (
        (["inspect", pipe], "found a device or a pipe"),
        (["export", source, "-o", pipe], "must not be a device or a pipe"),
        (["export", source, "-o", source], "must not be the file that is read"),
        (["import", source, "-o", source], "must not be the file that is read"),
        (["export", source, "-o", "/proc/nowhere/x"], "must be writable"),
    ):
        assert main(["weights", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    assert source.read_bytes() == before and pipe.is_fifo()


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _saved(foreign.official_finetuned(), tmp_path / "file")
    plain = Path.open

    def refused(path: Path, *arguments: Any, **settings: Any) -> Any:
        if path == file:
            raise PermissionError(13, "Permission denied")
        return plain(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refused)
    assert "must be readable: Permission denied" in _refusal(file)


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, classifier: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        Path(tmp_path / "new" / "out.part" / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpm_video.weights.export.to_huggingface.save_file", full)
    with pytest.raises(ValueError, match="No space left"):
        write_output(classifier, tmp_path / "new" / "out", to="huggingface")
    assert not list((tmp_path / "new").iterdir())


def test_a_pre_training_from_a_classifier_begins_with_a_fresh_norm(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]], classifier: State
) -> None:
    """The norm that an encoder ends with in pre-training is none of a classifier's."""
    file = _saved(classifier, tmp_path / "ours.pt")
    settings = (f"model.init={file}", "model.heads=4", "optim.epochs=1")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "fresh, a classifier has none: encoder.norm.weight, encoder.norm.bias" in log
    table = (tmp_path / "run" / "init.txt").read_text()
    assert table.count("initialised  -") == 2


def test_damage_that_was_found_by_chance(tmp_path: Path) -> None:
    """By tools/fuzz_headers.py: these ended with a traceback."""
    header = (2**40).to_bytes(8, "little") + b"{" + bytes(60)
    (tmp_path / "long_header.safetensors").write_bytes(header)
    assert "or a safetensors file" in _refusal(tmp_path / "long_header.safetensors")
    locator = struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2)  # of the second of two parts
    (tmp_path / "part.pt").write_bytes(b"PK\3\4" + bytes(60) + locator + b"PK\5\6" + bytes(18))
    assert "a zip archive without its end" in _refusal(tmp_path / "part.pt")
