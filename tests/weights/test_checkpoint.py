import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpm_video.config import ModelConfig
from hpm_video.models.build import build_model
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import Encoder, ViTSize
from hpm_video.runtime import files
from hpm_video.weights.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_encoder,
    load_weights,
    save_checkpoint,
    write_checkpoint,
)


def _state(step: int, **changes: Any) -> dict[str, Any]:
    weights = {"a": torch.full((3,), float(step))}
    return {"kind": "pretrain", "config": {"x": 1}, "step": step, "model": weights, **changes}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state = _state(3, window=[torch.tensor([1.5, 2.5])], teacher=None)
    path = save_checkpoint(tmp_path / "checkpoints", state, keep=2)
    assert path.name == "step_00000003.pt"
    for place in (path, tmp_path / "checkpoints", tmp_path, tmp_path / "checkpoints" / "last"):
        loaded = load_checkpoint(place, kind="pretrain")
        assert loaded.keys() == state.keys()
        assert loaded["step"] == 3
        assert torch.equal(loaded["model"]["a"], state["model"]["a"])
        assert torch.equal(loaded["window"][0], state["window"][0])


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (0, [1, 2, 3, 4])])
def test_the_newest_are_kept_and_last_is_the_newest(
    tmp_path: Path, keep: int, left: list[int]
) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, _state(step), keep=keep)
        assert load_checkpoint(tmp_path)["step"] == step
    assert sorted(os.listdir(tmp_path)) == ["last", *(f"step_0000000{k}.pt" for k in left)]


@pytest.mark.parametrize(("keep", "left"), [(1, []), (2, [9]), (3, [8, 9])])
def test_what_was_just_saved_stays_where_later_steps_lie(
    tmp_path: Path, keep: int, left: list[int]
) -> None:
    """As after a crash before the first link, or in a run that was turned back by hand."""
    for step in (8, 9):
        save_checkpoint(tmp_path, _state(step), keep=0)
    save_checkpoint(tmp_path, _state(1), keep=keep)
    assert load_checkpoint(tmp_path)["step"] == 1
    assert sorted(os.listdir(tmp_path)) == ["last", *(f"step_0000000{k}.pt" for k in [1, *left])]


def test_last_moves_with_the_folder(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "one", _state(1), keep=2)
    (tmp_path / "one").rename(tmp_path / "other")
    assert load_checkpoint(tmp_path / "other")["step"] == 1


@pytest.mark.parametrize("moment", ["write", "fsync", "rename"])
def test_a_failed_save_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save_checkpoint(tmp_path, _state(1), keep=1)

    def fail_half_way(state: object, file: Any) -> None:
        file.write(b"PK half a file")
        raise OSError("no space left on device")

    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(torch, "save", fail_half_way)
        else:
            patch.setattr(os, {"fsync": "fsync", "rename": "replace"}[moment], fail)
        with pytest.raises(ValueError, match=r"step_00000002.pt cannot be written: no space"):
            save_checkpoint(tmp_path, _state(2), keep=1)
    assert load_checkpoint(tmp_path)["step"] == 1
    assert [path.name for path in tmp_path.glob("step_*.pt")] == ["step_00000001.pt"]
    # The next attempt is not disturbed by what the failed one left, nor is it taken for real.
    save_checkpoint(tmp_path, _state(3), keep=1)
    assert load_checkpoint(tmp_path)["step"] == 3
    assert [path.name for path in tmp_path.glob("step_*.pt")] == ["step_00000003.pt"]


def test_a_full_disk_is_said_in_one_line_and_not_filled_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.save itself says only that its position is not the expected one
    monkeypatch.setattr(files, "new_file", lambda path: path.symlink_to("/dev/full"))
    with pytest.raises(ValueError, match=r"step_00000001.pt cannot be written: No space left"):
        write_checkpoint(tmp_path / "step_00000001.pt", _state(1))
    assert not list(tmp_path.iterdir())


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(os.environ["EVIL"]),))


def test_reading_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "executed"))
    for name, write in [
        ("torch.pt", lambda file: torch.save(_state(1, extra=_Evil()), file)),
        ("plain.pt", lambda file: pickle.dump(_state(1, extra=_Evil()), file)),
    ]:
        with (tmp_path / name).open("wb") as file:
            write(file)
        with pytest.raises(ValueError, match=rf"checkpoint \(.*{name}\) cannot be read") as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "executed").exists()


def _foreign_files() -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"path,label\nvideo.mp4,0\n",
        "a number": b"7\n",
        "yaml": b"optim: {epochs: 3}\n",
        "zip": b"PK\x03\x04 not really",
        "picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01",
        "video": b"\x00\x00\x00 ftypisom\x00\x00\x02\x00isomiso2avc1mp41",
        "hdf5": b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00",
        "bytes that pop a stack": b"J5)y",
        "bytes that look up a memo": b"h\x07.",
        "bytes that are no text": b"X\x02\x00\x00\x00\xff\xfe.",
    }


@pytest.mark.parametrize("name", _foreign_files())
def test_foreign_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "some.pt"
    path.write_bytes(_foreign_files()[name])
    with pytest.raises(ValueError, match=r"checkpoint \(.*some.pt\)") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = save_checkpoint(tmp_path, _state(1), keep=1)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"checkpoint \(.*\) cannot be read") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, torch.zeros(3), {"state_dict": {}}])
def test_checkpoints_of_others_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "their.pt")
    with pytest.raises(ValueError, match=r"their.pt\) was not written by hpm-video"):
        load_checkpoint(tmp_path / "their.pt")


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, _state(1), keep=1)
    with pytest.raises(ValueError, match=r"must be of kind finetune, not pretrain"):
        load_checkpoint(path, kind="finetune")


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\) does not exist"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no checkpoints/last"):
        find_checkpoint(tmp_path)


def test_weights_of_another_size_are_refused_with_the_keys(tmp_path: Path) -> None:
    def model(**changes: Any) -> nn.Module:
        settings = {"width": 8, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_heads": 2}
        config = ModelConfig(patch_size=4, decoder_depth=1, **{**settings, **changes})
        return build_model(config, TokenGrid(2, 2, 2), predict_loss=False)

    weights = model().state_dict()
    wide, before = model(width=16), model(width=16).state_dict()
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(wide, weights, source="some.pt")
    message = str(caught.value)
    assert "\n" not in message
    assert "checkpoint (some.pt)" in message
    assert "encoder.embed.weight is (8, 96), the model has (16, 96)" in message
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())

    with pytest.raises(ValueError, match=r"encoder.blocks.1.\S+ is missing.*and \d+ more"):
        load_weights(model(depth=2), weights, source="some.pt")
    with pytest.raises(ValueError, match=r"encoder.blocks.1.\S+ is not in the model"):
        load_weights(model(), model(depth=2).state_dict(), source="some.pt")
    load_weights(model(), weights, source="some.pt")


def test_the_encoder_is_loaded_without_its_final_norm_where_there_is_none() -> None:
    def encoder(*, final_norm: bool) -> Encoder:
        size = ViTSize(tubelet_size=2, patch_size=4, width=8, depth=1, heads=2)
        return Encoder(TokenGrid(2, 2, 2), size, final_norm=final_norm)

    config = ModelConfig(patch_size=4, decoder_depth=1, width=8, depth=1, heads=2)
    source = build_model(config, TokenGrid(2, 2, 2), predict_loss=False)
    data = {"num_frames": 4, "crop_size": 8}
    settings = {"model": {"tubelet_size": 2, "patch_size": 4}, "data": data}
    state = {"model": source.state_dict(), "config": settings}
    without = encoder(final_norm=False)
    for loaded in (encoder(final_norm=True), without):
        assert load_encoder(loaded, state, source="some.pt") == []
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, source.encoder.state_dict()[name])
    lacking = {**state, "model": {"other.weight": torch.zeros(1)}}
    with pytest.raises(ValueError, match=r"embed\.weight is missing"):
        load_encoder(without, lacking, source="some.pt")
    kept = load_encoder(without, lacking, source="some.pt", allow_missing=["encoder.*"])
    assert kept == [f"encoder.{name}" for name in without.state_dict()]
    assert torch.equal(without.embed.weight, source.encoder.embed.weight)
