"""Runs on folders of frames and images, and on lists that weigh differently."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from processes import run_together
from runs import assert_same_run, run_until_stopped
from videos import indexed_picture

from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.video.frames import read_frames
from hpm_video.train.run.logs import read_records

Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def pictures(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of toy videos as folders of frames, with an image and one that is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    videos = read_manifest(toy)
    rows = []
    for k in range(12):
        place = folder / f"v{k}"
        place.mkdir()
        for number, frame in enumerate(read_frames(videos.path(k), range(12))):
            Image.fromarray(frame).save(place / f"img_{number + 1:05d}.png")
        rows.append(f"v{k},{videos.label(k)}\n")
    Image.fromarray(indexed_picture(9, (48, 64))).save(folder / "still.jpg")
    rows.append("still.jpg,0\n")
    (folder / "list.csv").write_text("path,label\n" + "".join(rows))
    return folder / "list.csv"


def test_a_run_with_weights_resumes_exactly(
    toy: Path, pictures: Path, tmp_path: Path, pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mixed = (f"data.manifest=[{toy},{pictures}]", "data.weights=[0.5,2]")
    assert main(pretrain_arguments(tmp_path / "whole", *mixed)) == 0
    log = (tmp_path / "whole/log.txt").read_text()
    assert f"38 videos per epoch by data.weights ({toy}: 24 x 0.5 = 12; {pictures}: 13 x 2" in log
    assert "9 steps per epoch" in log
    assert "epochs of 38 videos" in capsys.readouterr().out
    run_until_stopped(pretrain_arguments(tmp_path / "run", *mixed), at=11)
    assert main(pretrain_arguments(tmp_path / "run", *mixed)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_two_processes_are_a_larger_batch(
    toy: Path, pictures: Path, tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """On folders of frames, by weights."""
    mixed = (f"data.manifest=[{toy},{pictures}]", "data.weights=[0.5,2]", "optim.epochs=1")
    shared = (*mixed, "run.log_every=1")
    assert main(pretrain_arguments(tmp_path / "one", *shared, "data.batch_size=8")) == 0
    arguments = pretrain_arguments(tmp_path / "two", *shared, "optim.total_batch=8")
    for done in run_together(2, [arguments]):
        assert done.returncode == 0, done.stderr
    one, two = ([r["loss"] for r in read_records(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 4 and one == pytest.approx(two, rel=1e-4)


def test_other_weights_are_another_run(
    toy: Path, pictures: Path, tmp_path: Path, pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mixed = (f"data.manifest=[{toy},{pictures}]", "optim.epochs=1")
    assert main(pretrain_arguments(tmp_path / "run", *mixed, "data.weights=[1,1]")) == 0
    more = (*mixed, "data.weights=[1,2]", "optim.epochs=2")
    assert main(pretrain_arguments(tmp_path / "run", *more)) == 2
    assert "data.weights" in capsys.readouterr().err
    more = (*more, f"run.resume={tmp_path / 'run'}")
    assert main(pretrain_arguments(tmp_path / "other", *more)) == 0
    log = (tmp_path / "other/log.txt").read_text()
    assert "but data.weights were [1.0, 1.0] and are now [1.0, 2.0]" in log


def test_every_command_reads_pictures(
    toy: Path, pictures: Path, tmp_path: Path, finetune_arguments: Arguments,
    pretrained: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "fine"
    lists = (f"data.manifest={pictures}", f"data.val_manifest={pictures}")
    weighing = ("optim.class_balance=weights", "data.weights=[2]")
    assert main(finetune_arguments(run, *lists, *weighing)) == 0
    assert not (run / "bad_videos.csv").exists()
    assert main(["evaluate", str(run), "--manifest", str(pictures), "--num-workers", "1"]) == 0
    folder, still = pictures.parent / "v3", pictures.parent / "still.jpg"
    capsys.readouterr()
    assert main(["predict", str(run), str(folder), str(still), "--num-workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(folder), str(still)]
    assert main(["predict", str(run), str(pictures.parent), "--num-workers", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 13  # of the folders alone
    (folder / "fps.txt").write_text("6")
    along = ["predict", str(run), str(folder), str(still), "--windows", "0.5", "-o"]
    assert main([*along, str(tmp_path / "along")]) == 0
    assert (tmp_path / "along/v3.html").is_file() and (tmp_path / "along/still.html").is_file()
    out = str(tmp_path / "f.npz")
    assert main(["features", str(run), "--manifest", str(pictures), "-o", out]) == 0
    assert main(["features", str(run), "--video", str(folder), "--stride", "2", "-o", out]) == 0
    pages = tmp_path / "pages"
    assert main(["visualize", str(pretrained), str(folder), str(still), "-o", str(pages)]) == 0
    assert len(list(pages.glob("*.html"))) == 3
    probe = ["probe", str(pretrained), "--kind", "knn", "--train", str(pictures)]
    assert main([*probe, "--val", str(pictures), "--num-workers", "1"]) == 0
    by_time = ("data.fps=3", "data.frame_stride=1", "optim.epochs=1")
    assert main(finetune_arguments(tmp_path / "untimed", *lists, *by_time)) == 1
    assert "fps.txt" in (tmp_path / "untimed/bad_videos.csv").read_text()
    (pictures.parent / "fps.txt").write_text("6")
    assert main(finetune_arguments(tmp_path / "timed", *lists, *by_time)) == 0
    assert not (tmp_path / "timed/bad_videos.csv").exists()


def test_motion_vectors_of_pictures(
    pictures: Path, tmp_path: Path, pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    how = ("masking.source=codec", f"data.manifest={pictures}")
    assert main(pretrain_arguments(tmp_path / "run", *how)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has no motion vectors, as it is not a video file: hpm-video data transcode" in said
    ours = ("masking.source=motion", f"data.manifest={pictures}", "optim.epochs=1")
    assert main(pretrain_arguments(tmp_path / "other", *ours)) == 0
