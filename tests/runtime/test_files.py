"""Files in folders that others can write to: no planted link is followed, nothing is lost."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpm_video.data.prepare.encode import Encoding
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.data.prepare.transcode_video import Transcode, Work, part_name
from hpm_video.evaluate.feature_file import Parts
from hpm_video.runtime import files
from hpm_video.runtime.journal import Journal
from hpm_video.runtime.lock import lock_folder, unlock_folder
from hpm_video.slurm.records import Submission, add_record
from hpm_video.train.run.logs import RunLog
from hpm_video.weights.checkpoint import save_checkpoint, write_checkpoint
from hpm_video.weights.export.writers import write_output

STRANGER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of other users")
STATE = {"kind": "pretrain", "config": {}, "step": 1, "model": {}}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file that links lead to."""
    path = tmp_path / "precious"
    path.write_text("precious")
    return path


# As processes of earlier versions named them
TEMPORARY: dict[str, Callable[[Path], object]] = {
    ".out.PID.tmp": lambda folder: files.write_atomically(folder / "out", ["x"]),
    "best.part": lambda folder: write_checkpoint(folder / "best.pt", STATE),
}


@pytest.mark.parametrize("name", TEMPORARY)
def test_a_link_at_a_temporary_name_is_not_followed(
    tmp_path: Path, precious: Path, name: str
) -> None:
    link = tmp_path / "folder" / name.replace("PID", str(os.getpid()))
    link.parent.mkdir()
    link.symlink_to(precious)
    TEMPORARY[name](tmp_path / "folder")
    assert precious.read_text() == "precious"


def test_a_link_to_a_folder_is_removed_where_half_a_folder_may_lie(
    tmp_path: Path, precious: Path
) -> None:
    for name in ("step_00000001.part", "step_00000007.part", "out.part"):
        (tmp_path / name).symlink_to(precious.parent)
    save_checkpoint(tmp_path, STATE, keep=1)
    write_output(STATE, tmp_path / "out", to="checkpoint")
    assert sorted(os.listdir(tmp_path)) == ["last", "out", "precious", "step_00000001.pt"]


def test_a_link_at_the_temporary_name_of_a_toy_video(tmp_path: Path, precious: Path) -> None:
    def write(folder: Path) -> Path:
        return write_toy_videos(folder, num_videos=1, size=32, num_frames=4, formats=("mp4",))

    write(tmp_path / "one")
    (video,) = (tmp_path / "one").rglob("*.mp4")
    link = tmp_path / "other" / video.relative_to(tmp_path / "one").with_name(f".{video.name}.tmp")
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    # As a kill leaves it
    (tmp_path / "other" / "toy.json").write_bytes((tmp_path / "one" / "toy.json").read_bytes())
    write(tmp_path / "other")
    assert precious.read_text() == "precious" and not os.path.lexists(link)


def test_a_link_at_the_temporary_name_of_a_transcoded_video(
    tmp_path: Path, precious: Path, toy: Path
) -> None:
    video = next(toy.parent.rglob("*.mp4"))
    target = tmp_path / "out" / "video.mp4"
    target.parent.mkdir()
    Path(part_name(str(target))).symlink_to(precious)
    assert Transcode(Encoding())(Work(str(video), str(target), None)).status == "ok"
    assert precious.read_text() == "precious" and target.stat().st_size > 1000
    assert os.listdir(target.parent) == ["video.mp4"]


def test_a_dangling_link_where_a_copy_is_kept(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n")
    (tmp_path / "list.csv.orig").symlink_to(tmp_path / "planted")
    assert files.keep_original(tmp_path / "list.csv") == tmp_path / "list.csv.orig2"
    assert not (tmp_path / "planted").exists()


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with files.whole_file(tmp_path / "out") as temporary:
            names.add(temporary.name)
    assert len(names) == 3 and os.listdir(tmp_path) == ["out"]


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    left = [".best.pt.0123abcd.tmp", ".step_00000001.pt.0123abcd.tmp", "step_00000001.part"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    write_checkpoint(tmp_path / "best.pt", STATE)
    save_checkpoint(tmp_path, {**STATE, "step": 2}, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "last", "step_00000002.pt"]


@pytest.mark.parametrize("kind", ["link", pytest.param("stranger", marks=needs_root), "file"])
def test_a_folder_of_parts_must_be_ours(tmp_path: Path, kind: str) -> None:
    """`features -o X` removes what it does not know from X.parts."""
    other, parts = tmp_path / "other", tmp_path / "x.npz.parts"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    if kind == "link":
        parts.symlink_to(other)
    elif kind == "file":
        parts.touch()
    else:
        other.rename(parts)
        os.chown(other := parts, STRANGER, STRANGER)
    with pytest.raises(ValueError, match=r"x.npz.parts (is|belongs).*: (remove|must)") as caught:
        Parts(tmp_path / "x.npz", described="one").clean()
    assert "\n" not in str(caught.value)
    assert (other / "thesis.tex").read_text() == "precious"


def _log(folder: Path) -> None:
    with RunLog(folder, is_main=True, start_step=0, total_steps=1) as log:
        log.line("hello")
        log.record({"step": 1, "loss": 1.0}, prefix="train")


def _lock(folder: Path) -> None:
    lock_folder(folder)
    unlock_folder(folder)


def _journal(folder: Path) -> None:
    with Journal(folder / "journal") as journal:
        journal.add("a", {})


def _submission(folder: Path) -> None:
    add_record(folder, Submission("1", "x", "local", "now", "here", "/", [], "/", []))


ADDED_TO: dict[str, Callable[[Path], None]] = {
    "log.txt": _log,
    "metrics.jsonl": _log,
    "run.lock": _lock,
    "journal": _journal,
    "jobs.jsonl": _submission,
}


@needs_root
@pytest.mark.parametrize("name", ADDED_TO)
def test_a_strangers_link_is_refused_where_files_are_added_to(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "new")
    os.lchown(folder / name, STRANGER, STRANGER)
    with pytest.raises((ValueError, PermissionError), match="a link that another user made"):
        ADDED_TO[name](folder)
    assert not (tmp_path / "new").exists()


def test_links_of_the_user_lead_where_they_did(tmp_path: Path) -> None:
    """A run folder on another disk, and a log there."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "log").touch()
    (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "log")
    _log(tmp_path / "run")
    _lock(tmp_path / "run")
    save_checkpoint(tmp_path / "run" / "checkpoints", STATE, keep=1)
    assert "hello" in (tmp_path / "log").read_text()
    assert (tmp_path / "disk" / "checkpoints" / "last").is_file()
    assert (tmp_path / "run").is_symlink() and (tmp_path / "run" / "log.txt").is_symlink()


@pytest.mark.parametrize("name", ADDED_TO)
def test_a_pipe_where_files_are_added_to_is_refused_and_not_waited_for(
    tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    # Who reads from it lets the old way go on, so that a failure is none that hangs
    descriptor = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(ValueError, match="must be a regular file, but is a pipe"):
            ADDED_TO[name](tmp_path)
    finally:
        os.close(descriptor)


def test_a_folder_among_parts_is_removed(tmp_path: Path) -> None:
    (tmp_path / "x.npz.parts/deep/er").mkdir(parents=True)
    Parts(tmp_path / "x.npz", described="one").clean()
    assert not list((tmp_path / "x.npz.parts").iterdir())
