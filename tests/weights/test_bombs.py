"""Checkpoints that claim more than they hold: refused in one line, before memory is taken."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hpm_video.cli.main import main
from hpm_video.config import LossConfig, ModelConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.weights import torch_files
from hpm_video.weights.checkpoint import load_checkpoint, save_sharded
from hpm_video.weights.foreign.to_ours import import_weights
from hpm_video.weights.load import encoder_of

_MIB = 1 << 20


def _state(**changes: Any) -> dict[str, Any]:
    config = config_to_dict(PretrainConfig())
    weights = {"a": torch.zeros(3, 2)}
    return {"kind": "pretrain", "config": config, "step": 1, "model": weights, **changes}


def _saved(path: Path, **changes: Any) -> Path:
    torch.save(_state(**changes), path)
    return path


def _compressed(path: Path) -> None:
    """A file of PyTorch whose parts are compressed, as no version of it writes."""
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def _zeros(path: Path) -> None:
    _saved(path, model={"a": torch.zeros(64 * _MIB // 4)})
    _compressed(path)


def _one_part_for_many(path: Path) -> None:
    """Many entries of the archive's directory lead to the same bytes."""
    numbers = [torch.full((_MIB,), float(k)) for k in range(16)]
    _saved(path, model={f"a{k}": value for k, value in enumerate(numbers)})
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            if "/data/" not in name or name.endswith("/data/0"):
                archive.writestr(name, data)
        first = next(part for part in archive.filelist if part.filename.endswith("/data/0"))
        for name in parts:
            if "/data/" in name and name != first.filename:
                twin = zipfile.ZipInfo(name)
                for field in ("CRC", "compress_size", "file_size", "header_offset"):
                    setattr(twin, field, getattr(first, field))
                archive.filelist.append(twin)
                archive.NameToInfo[name] = twin


def _strides(path: Path) -> None:
    _saved(path, model={"a": torch.zeros(1).expand(1 << 15, 1 << 15)})


def _aliases(path: Path) -> None:
    numbers = torch.zeros(_MIB)
    _saved(path, model={f"a{k}": numbers.view(_MIB) for k in range(200)})


_BOMBS = [_zeros, _one_part_for_many, _strides, _aliases]


@pytest.mark.parametrize("make", _BOMBS)
def test_what_claims_more_than_it_holds_is_refused(
    tmp_path: Path,
    make: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.pt"
    make(path)
    if make in (_zeros, _one_part_for_many):  # the others take memory where they are used
        monkeypatch.delattr(torch, "load")
    with pytest.raises(ValueError, match=r"checkpoint \(.*\) cannot be read: its ") as caught:
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r"would take too much memory") as other:
        import_weights(path)
    for error in (caught, other):
        assert "\n" not in str(error.value)
    assert main(["weights", "inspect", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class _Huge:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 62,)


def test_memory_that_a_pickle_asks_for_is_one_line(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.pt", extra=_Huge())
    for read in (load_checkpoint, import_weights):
        with pytest.raises(ValueError, match="cannot be read") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_tied_and_small_expanded_tensors_are_no_claims(tmp_path: Path) -> None:
    tied = torch.ones(300_000)
    model = {"a": tied, "b": tied.view(300, 1000), "c": tied[:7], "d": torch.ones(1).expand(3, 4)}
    found = load_checkpoint(_saved(tmp_path / "a.pt", model=model))["model"]
    assert all(torch.equal(found[name], value) for name, value in model.items())


def test_a_compressed_part_of_shards_is_refused(tmp_path: Path) -> None:
    path = save_sharded(tmp_path, _state(model={"a": torch.zeros(4 * _MIB)}), keep=1, group=None)
    part = path / "__0_0.distcp"
    size = part.stat().st_size
    _compressed(part)
    data = (path / ".metadata").read_bytes()
    short = part.stat().st_size
    # The claims of the metadata are held by other bytes of the file
    part.write_bytes(part.read_bytes() + bytes(size))
    length = size.to_bytes(4, "little")
    assert data.count(b"J" + length) == 1
    (path / ".metadata").write_bytes(
        data.replace(b"J" + length, b"J" + short.to_bytes(4, "little"))
    )
    with pytest.raises(ValueError, match=r"cannot be read: its part .* must not be compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["rest.pt", "__0_0.distcp", ".metadata"])
def test_a_pipe_in_place_of_a_file_of_shards_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = save_sharded(tmp_path, _state(), keep=1, group=None)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=r"checkpoint \("):
        load_checkpoint(path)


def test_a_pipe_among_files_of_weights_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must be a regular file, but is a pipe"):
        import_weights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": "<img src=x onerror=alert(1)>"}, "step .* must be a whole number"),
        ({"step": torch.tensor(3)}, "step .* must be a whole number"),
        ({"step": True}, "step .* must be a whole number"),
        ({"step": 1 << 70}, "step .* must be a whole number"),
        ({"step": -1}, "step .* must be a whole number"),
        ({"kind": ["pretrain"]}, "kind .* must be a string"),
        ({"config": "x"}, "config .* must be a mapping of settings"),
        ({"model": {"a": 1}}, "model .* must be a mapping of names to tensors"),
        ({"model": torch.ones(3)}, "model .* must be a mapping of names to tensors"),
        ({"classes": [1, 2]}, "classes .* must be a list of class names"),
        ({"num_classes": 1 << 40}, "num_classes .* must be a whole number"),
        ({"trained_grid": (1, 2)}, "trained_grid .* must be three whole numbers"),
    ],
)
def test_what_is_no_tensor_has_the_type_that_we_write(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=rf"checkpoint \(.*a\.pt\): {words}") as caught:
        load_checkpoint(_saved(tmp_path / "a.pt", **changes))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("group", "settings"),
    [
        ("model", {"width": 1 << 16, "depth": 500, "heads": 1}),
        ("model", {"decoder_width": 1 << 11, "decoder_depth": 2, "decoder_mlp_ratio": 64.0}),
        ("model", {"depth": 10**9}),
        ("model", {"decoder_depth": 10**9}),
        ("data", {"num_frames": 1 << 19, "crop_size": 1 << 18}),
        ("data", {"num_frames": "16"}),
    ],
)
def test_settings_of_a_model_that_the_weights_are_too_few_for(
    tmp_path: Path, group: str, settings: dict[str, Any]
) -> None:
    config = config_to_dict(PretrainConfig())
    config[group] |= settings
    path = _saved(tmp_path / "a.pt", config=config)
    with pytest.raises(ValueError, match=r"checkpoint must be|checkpoint's settings describe"):
        load_pretrained(path)
    with pytest.raises(ValueError, match=r"checkpoint must be|checkpoint's settings describe"):
        encoder_of(load_checkpoint(path), source=path)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000])
def test_json_of_weights_that_python_cannot_read_is_one_line(tmp_path: Path, text: str) -> None:
    header = {"kind": "pretrain", "step": text, "config": "{}"}
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(ValueError, match="a header that is not valid JSON") as caught:
        import_weights(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(f'{{"a": {text}}}')
    with pytest.raises(ValueError, match="invalid JSON") as caught:
        import_weights(tmp_path / "folder")
    assert "\n" not in str(caught.value)


def test_a_wrong_byte_at_the_end_of_an_archive_is_one_line(tmp_path: Path) -> None:
    data = _saved(tmp_path / "a.pt").read_bytes()
    for place in range(1, 100):
        changed = bytearray(data)
        changed[-place] ^= 0x55
        (tmp_path / "a.pt").write_bytes(changed)
        for read in (load_checkpoint, import_weights):
            with suppress(ValueError):  # what is not needed is not looked at
                read(tmp_path / "a.pt")


def test_a_large_pickle_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _saved(tmp_path / "a.pt", extra=["x" * 10_000])
    load_checkpoint(path)
    monkeypatch.setattr(torch_files, "_MOST_PICKLED", 10_000)
    with pytest.raises(
        ValueError, match=r"its part .*data\.pkl.* must have at most \d+ bytes, but has \d+"
    ):
        load_checkpoint(path)


def test_files_of_the_old_format_are_still_read(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "a.pt")["step"] == 1
    memory = io.BytesIO()
    pickle.dump({"a": 1}, memory)
    (tmp_path / "b.pt").write_bytes(memory.getvalue())
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path / "b.pt")


def test_a_head_of_features_that_the_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    loss = LossConfig(target="frozen", target_model="x", target_width=1 << 16)
    loss = replace(loss, target_layers=list(range(64)))
    config = PretrainConfig(loss=loss, model=ModelConfig(decoder_width=4096, decoder_heads=1))
    path = tmp_path / "claims.pt"
    state = {"kind": "pretrain", "config": config_to_dict(config), "step": 0}
    torch.save({**state, "model": {"a": torch.zeros(2)}}, path)
    with pytest.raises(
        ValueError, match=r"describe a model of \d+ blocks and \d+ parameters: must be"
    ):
        load_pretrained(path)
