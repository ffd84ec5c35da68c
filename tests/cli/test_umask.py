"""Files and folders that commands write have the permissions that the user's umask gives them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpm_video.cli.main import main
from hpm_video.runtime.files import whole_file
from hpm_video.runtime.workers import fork_server
from hpm_video.weights.export.writers import TARGETS

_TINY = (
    "run.device=cpu", "run.precision=float32", "data.num_frames=4", "data.frame_stride=1",
    "data.crop_size=32", "data.batch_size=4", "data.num_workers=0", "model.width=32",
    "model.depth=1", "model.heads=2", "model.patch_size=8", "optim.epochs=2",
    "optim.warmup_epochs=0", "run.log_every=1",
)  # fmt: skip
_PRETRAIN = (
    *_TINY, "model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1",
    "masking.mask_ratio=0.75", "run.profile_steps=1", "run.picture_every=2",
    "run.keep_checkpoints=0", "run.checkpoint_every_minutes=0", "run.probe_every=1",
    "probe.kinds=[knn]",
)  # fmt: skip
_FINETUNE = (
    *_TINY, "augment.num_operations=0", "augment.erasing=0", "mixing.mixup=0", "mixing.cutmix=0",
    "evaluation.every_epochs=1", "model.init=pre",
)  # fmt: skip
_PLAIN = ("device=cpu", "precision=float32", "num_workers=0")


@pytest.fixture(params=[0o002, 0o022], ids=["umask 002", "umask 022"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    fork_server().close()  # that of an earlier test has the umask of then
    yield request.param
    fork_server().close()
    os.umask(before)


def _wrong(folder: Path, umask: int) -> dict[str, str]:
    """Files and folders of other permissions than a new one has."""
    found = {}
    for path in folder.rglob("*"):
        usual = (0o777 if path.is_dir() else 0o666) & ~umask
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and mode != usual:
            found[str(path.relative_to(folder))] = oct(mode)
    return found


@pytest.mark.parametrize(
    "umask", [0o002, pytest.param(0o022, marks=pytest.mark.slow)], indirect=True
)
def test_what_commands_write(
    umask: int, empty_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777 & ~umask)
    monkeypatch.chdir(tmp_path)
    config = str(empty_config)
    list_ = "toy/manifest.csv"

    def run(*words: str) -> None:
        assert main(list(words)) == 0, words

    run("data", "toy", "-o", "toy", "--num-videos", "8", "--size", "32", "--num-frames", "12",
        "--seed", "0")  # fmt: skip
    video = str(next(Path("toy/videos").rglob("*.mp4")))
    run("data", "list", "--folder", "toy/videos", "-o", "list.csv")
    run("data", "check", "list.csv", "--num-workers", "1")
    run("data", "transcode", "list.csv", "-o", "small", "--num-workers", "1")
    where = (f"data.manifest={list_}", "run.output_dir=pre")
    run("pretrain", config, *_PRETRAIN, *where,
        *(f"probe.{name}_manifest={list_}" for name in ("train", "val")))  # fmt: skip
    where = (f"data.manifest={list_}", f"data.val_manifest={list_}", "run.output_dir=fine")
    run("finetune", config, *_FINETUNE, *where)
    run("evaluate", "fine", "--manifest", list_, *_PLAIN)
    for name in ("long.npz", "long.safetensors"):
        run("features", "fine", "--video", video, "--stride", "4", "-o", name, *_PLAIN)
    run("features", "pre", "--manifest", list_, "-o", "features.safetensors", *_PLAIN)
    run("features", "pre", "--manifest", list_, "--stride", "4", "-o", "windows", *_PLAIN)
    run("visualize", "pre", video, "-o", "pictures", "--num-masks", "1", "--device", "cpu")
    run("visualize", "pre", video, "--through-training", "-o", "training", "--device", "cpu")
    run("visualize", "pre", "--manifest", list_, "-o", "set", "--num-workers", "0")
    for to in TARGETS:
        run("weights", "export", "fine", "-o", f"exported/{to}", "--to", to)
    run("weights", "average", "pre", "-o", "average.safetensors")
    run("bench", "flops", "--size", "tiny", "--json", "flops.json")
    run("submit", "--cluster", "debug", "--gpus-per-node", "0", "features", "pre", "--manifest",
        list_, "-o", "submitted.npz", *_PLAIN)  # fmt: skip

    assert _wrong(tmp_path, umask) == {}
    endings = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert endings >= {
        ".csv", ".json", ".jsonl", ".txt", ".yaml", ".pt", ".mp4", ".html", ".png", ".gif", ".npz",
        ".safetensors", ".gz", ".lock",
    }  # fmt: skip
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_a_file_that_replaces_a_private_one(umask: int, tmp_path: Path) -> None:
    """Its permissions are those of a new file, also where a library makes its own file."""
    path = tmp_path / "file"
    path.touch(mode=0o600)
    with whole_file(path) as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
