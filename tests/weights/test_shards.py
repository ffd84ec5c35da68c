"""Checkpoints in shards: whole or not there, read without executing anything, refused clearly."""

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
from torch.serialization import _get_layout

from hpm_video.weights import checkpoint
from hpm_video.weights.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_sharded,
)
from hpm_video.weights.shard_metadata import METADATA
from hpm_video.weights.shards import read_shards, stored_shapes, write_shards


def _state(step: int, **changes: Any) -> dict[str, Any]:
    weights = {"a.weight": torch.full((3, 2), float(step)), "a.bias": torch.tensor(float(step))}
    moments = {
        name: {"step": torch.tensor(1.0), "exp_avg": value} for name, value in weights.items()
    }
    return {
        **{"kind": "pretrain", "config": {"x": 1}, "step": step, "window": [torch.ones(2)]},
        **{"model": weights, "teacher": None, "optimizer": moments, **changes},
    }


def _save(folder: Path, step: int, keep: int = 2, **changes: Any) -> Path:
    return save_sharded(folder, _state(step, **changes), keep=keep, group=None)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = _save(tmp_path / "checkpoints", 3)
    assert path.name == "step_00000003"
    for place in (path, tmp_path / "checkpoints", tmp_path, tmp_path / "checkpoints" / "last"):
        loaded, state = load_checkpoint(place, kind="pretrain", optimizer=True), _state(3)
        assert loaded.keys() == state.keys()
        assert (loaded["step"], loaded["teacher"], loaded["config"]) == (3, None, {"x": 1})
        assert torch.equal(loaded["window"][0], torch.ones(2))
        for name, value in state["model"].items():
            assert torch.equal(loaded["model"][name], value)
            assert torch.equal(loaded["optimizer"][name]["exp_avg"], value)
            assert loaded["optimizer"][name]["step"] == 1
        assert "optimizer" not in load_checkpoint(place)


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (0, [1, 2, 3, 4])])
def test_the_newest_are_kept_of_both_forms(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (1, 2, 3, 4):
        if step % 2:
            save_checkpoint(tmp_path, _state(step), keep=keep)
        else:
            _save(tmp_path, step, keep)
        assert load_checkpoint(tmp_path)["step"] == step
    names = [f"step_0000000{step}{'.pt' if step % 2 else ''}" for step in left]
    assert sorted(os.listdir(tmp_path)) == ["last", *names]


@pytest.mark.parametrize("last", ["step_00000001", None])
def test_a_step_is_saved_again_where_a_crash_came_before_its_link(
    tmp_path: Path, last: str | None
) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    (tmp_path / "last").unlink()
    if last is not None:
        (tmp_path / "last").symlink_to(last)
    _save(tmp_path, 2, config={"x": 2})
    loaded = load_checkpoint(tmp_path)
    assert (loaded["step"], loaded["config"]) == (2, {"x": 2})
    assert sorted(os.listdir(tmp_path)) == ["last", "step_00000001", "step_00000002"]


@pytest.mark.parametrize("moment", ["write", "rename", "link"])
def test_a_failed_save_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    _save(tmp_path, 1, keep=1)

    def fail(*arguments: object, **named: object) -> None:
        if moment == "write":
            (tmp_path / "step_00000002.part" / "__0_0.distcp").write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        where = {"write": (checkpoint, "write_shards"), "rename": (os, "replace")}
        patch.setattr(*where.get(moment, (Path, "symlink_to")), fail)
        with pytest.raises(ValueError, match="cannot be written: no space left"):
            _save(tmp_path, 2, keep=1)
    assert load_checkpoint(tmp_path)["step"] == 1
    # What the failed one left disturbs neither form, nor is it taken for real.
    for save in (save_checkpoint, _saver):
        save(tmp_path, _state(2, config={"x": 2}), keep=1)
        assert load_checkpoint(tmp_path)["config"] == {"x": 2}
        assert not list(tmp_path.glob("*.part"))


def _saver(folder: Path, state: dict[str, Any], *, keep: int) -> Path:
    return save_sharded(folder, state, keep=keep, group=None)


def test_the_last_one_is_never_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved again, as after bad steps, it is the same: a kill must not find it taken away."""
    path = _save(tmp_path, 1)
    removed = []
    monkeypatch.setattr(checkpoint, "_remove", removed.append)
    _save(tmp_path, 1)
    assert path not in removed and load_checkpoint(tmp_path)["step"] == 1


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(os.environ["EVIL"]),))


def _evil_metadata(path: Path) -> None:
    (path / METADATA).write_bytes(pickle.dumps(_Evil()))


def _evil_rest(path: Path) -> None:
    torch.save({**_state(1), "extra": _Evil()}, path / "rest.pt")


def _evil_entry(path: Path) -> None:
    """An entry that PyTorch's own reader unpickles."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    warnings.simplefilter("ignore")
    save({"model/a": _Evil()}, storage_writer=FileSystemWriter(path), no_dist=True)


def _evil_attribute(path: Path) -> None:
    """Of getattr, which some versions of Python write for enums, nothing else is to be had."""
    (path / METADATA).write_bytes(b"cbuiltins\ngetattr\n(ctorch\nSize\nVmro\ntR.")


def _evil_place(path: Path) -> None:
    """Parts in a file of another folder, where there is one."""
    shutil.copy(path / "__0_0.distcp", path.parent / "0_.distcp")
    data = (path / METADATA).read_bytes()
    assert b"__0_0.distcp" in data
    (path / METADATA).write_bytes(data.replace(b"__0_0.distcp", b"../0_.distcp"))


@pytest.mark.parametrize(
    "spoil",
    [_evil_metadata, _evil_rest, _evil_entry, _evil_attribute, _evil_place],
)
def test_reading_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "executed"))
    path = _save(tmp_path / "run", 1)
    spoil(path)
    with pytest.raises(ValueError, match=r"checkpoint \(.*\) cannot be read") as caught:
        load_checkpoint(path, optimizer=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def _build(maker: bytes, state: bytes) -> bytes:
    """A pickle that gives a class or a function attributes, and then is what it was."""
    return b"\x80\x02" + maker + b"N}" + state + b"\x86b0"


_PICKLES = {
    "attributes of a class of paths": _build(
        b"cpathlib\nPosixPath\n", b"X\x06\0\0\0parentX\1\0\0\0xs"
    ),
    "attributes of a class": _build(
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n", b"X\1\0\0\0aX\1\0\0\0xs"
    ),
    "attributes of a function": _build(
        b"ctorch.serialization\n_get_layout\n", b"X\1\0\0\0aX\1\0\0\0xs"
    ),
    "INST": b"(S'/'\nipathlib\nPosixPath\n0",
    "OBJ": b"(cpathlib\nPosixPath\nS'/'\no0",
    "a name that is no class": b"cos\nsystem\n(S'true'\ntR0",
    "a call of what was made": b"ctorch\nSize\n)R)R0",
    "a persistent name": b"P1\n0",
    "an extension": b"\x82\x010",
    "a key that is nested": b"}" + b")" + b"\x85" * 500_000 + b"Ns0",
    "a text that is not there": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "a number that is not there": b"\x8b\xff\xff\xff\x7f",
    "a stack that is empty": b"0",
    "a mark that is not there": b"t0",
    "something that was never kept": b"h\x07",
}


@pytest.mark.parametrize("kind", _PICKLES)
def test_metadata_that_wants_more_than_to_be_read(tmp_path: Path, kind: str) -> None:
    """What stands before a sound pickle of metadata is carried out with it, where it can be."""
    from torch.distributed.checkpoint.metadata import Metadata

    path = _save(tmp_path, 1)
    before = dict(vars(PosixPath)), dict(vars(Metadata)), dict(vars(_get_layout))
    sound = (path / METADATA).read_bytes()
    (path / METADATA).write_bytes(_PICKLES[kind] + sound)
    try:
        with pytest.raises(ValueError, match=r"checkpoint \(.*\) cannot be read") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        assert before == (dict(vars(PosixPath)), dict(vars(Metadata)), dict(vars(_get_layout)))
    finally:
        for owner, attributes in zip((PosixPath, Metadata, _get_layout), before, strict=True):
            for name in vars(owner).keys() - attributes.keys():
                delattr(owner, name)


def test_metadata_that_is_short_stands_for_little(tmp_path: Path) -> None:
    """Lists of which each has the one before many times."""
    path = _save(tmp_path, 1)
    lists = (b"q%c](" % k + b"h%c" % k * 10 + b"e" for k in range(1, 200))
    bomb = b"]" + b"".join(lists) + b"."
    (path / METADATA).write_bytes(bomb)
    with pytest.raises(ValueError, match=r"has list instead of .* Metadata"):
        load_checkpoint(path)


def test_metadata_that_claims_more_than_the_files_hold(tmp_path: Path) -> None:
    write_shards(tmp_path, {"model/a": torch.ones(3, 200)}, None)
    data = (tmp_path / METADATA).read_bytes()
    assert b"K\x03K\xc8\x86" in data
    claim = b"J" + (1 << 30).to_bytes(4, "little")
    (tmp_path / METADATA).write_bytes(data.replace(b"K\x03K\xc8\x86", claim * 2 + b"\x86"))
    with pytest.raises(ValueError, match=r"claims \d+ bytes of tensors, but its files have \d+"):
        stored_shapes(tmp_path)


@pytest.mark.parametrize("name", [METADATA, "__0_0.distcp", "rest.pt"])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.95])
def test_a_damaged_one_is_refused(tmp_path: Path, name: str, share: float | None) -> None:
    path = _save(tmp_path, 1)
    data = (path / name).read_bytes()
    if share is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises((ValueError, FileNotFoundError), match=r"checkpoint \(") as caught:
        load_checkpoint(tmp_path, optimizer=True)
    assert "\n" not in str(caught.value)


def test_a_folder_without_shards_is_none(tmp_path: Path) -> None:
    (tmp_path / "step_00000001").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoints/last"):
        find_checkpoint(tmp_path / "step_00000001")


def test_some_of_the_tensors(tmp_path: Path) -> None:
    tensors = {f"model/{k}": torch.full((k,), float(k)) for k in range(1, 4)}
    tensors["model/2"] = tensors["model/2"].bfloat16()
    write_shards(tmp_path, tensors, None)
    found = read_shards(tmp_path, {"model/2", "model/3"})
    assert found.keys() == {"model/2", "model/3"}
    assert all(torch.equal(value, tensors[name]) for name, value in found.items())
    assert found["model/2"].dtype == torch.bfloat16


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_what_another_python_wrote_is_read(tmp_path: Path, module: str) -> None:
    """Python 3.13 writes the module of a path by another name than those before and after."""
    path = _save(tmp_path, 1)
    data = (path / METADATA).read_bytes()
    before = b"\x8c\x07pathlib"
    assert data.count(before) == 1
    now = b"\x8c" + bytes([len(module)]) + module.encode()
    frame = int.from_bytes(data[3:11], "little") + len(now) - len(before)
    data = data[:3] + frame.to_bytes(8, "little") + data[11:]
    (path / METADATA).write_bytes(data.replace(before, now))
    assert load_checkpoint(path)["step"] == 1


def test_what_older_versions_wrote_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.8 keeps no strides, and Python 3.11.0 to 3.11.3 write an enum by getattr."""
    from torch.distributed.checkpoint import metadata

    def state(properties: Any) -> tuple[Any, ...]:
        encoding = metadata._MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
        return properties.dtype, properties.layout, False, encoding, False

    def by_name(member: Any, protocol: int) -> tuple[Any, ...]:
        return getattr, (type(member), member.name)

    with monkeypatch.context() as patch:
        patch.setattr(metadata.TensorProperties, "__getstate__", state)
        patch.setattr(metadata._MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
        path = _save(tmp_path, 1)
    assert b"getattr" in (path / METADATA).read_bytes()
    assert load_checkpoint(path)["step"] == 1
