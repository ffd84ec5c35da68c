"""``hpm-video start``: from a folder with odd names to a model by the commands that it prints."""

import hashlib
import html
import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from hpm_video.cli.main import main
from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.prepare.own_lists import rows_of
from hpm_video.runtime.files import quoted

# Class folders and files, each with what shells, YAML, CSV or argparse could take for their own
CLASSES = ("Gruß & Küsse", "-dash", "it's #1", 'a "b", c')
FILES = (
    "-{}.mp4", "{} #t=1,2.MP4", "${{HOME}}{}.mp4", "$({});.Mp4", "x={}.mp4", "'{}' ü.mp4",
    "{}: [y].mp4", "\\{}\\.mp4",
)  # fmt: skip
_TINY = (
    "run.precision=float32", "data.num_workers=0", "model.width=24", "model.depth=1",
    "model.heads=2", "optim.epochs=1", "optim.warmup_epochs=0",
)  # fmt: skip
_QUICK = {
    "pretrain": (
        *_TINY, "model.decoder_width=24", "model.decoder_depth=1", "model.decoder_heads=2",
        "run.picture_every=0",
    ),
    "finetune": (*_TINY[:2], *_TINY[-2:], "evaluation.every_epochs=0"),
    "evaluate": ("device=cpu", "num_workers=0"),
    "predict": ("device=cpu", "num_workers=0"),
    "visualize": ("--device", "cpu", "--num-masks", "1"),
}  # fmt: skip


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in [folder, *folder.rglob("*")]
    }


def _next(out: str) -> list[list[str]]:
    block = out.partition("\nnext:\n")[2]
    return [shlex.split(line, comments=True) for line in block.splitlines() if line[:3] == "  h"]


@pytest.fixture
def folder(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """32 videos of four classes, one that is broken, and a text."""
    monkeypatch.chdir(tmp_path)
    videos = sorted(toy.parent.rglob("*.mp4"))
    folder = tmp_path / "own" / "clips of 'Ä' #2"
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for k, file in enumerate(FILES):
            shutil.copy(videos[(8 * number + k) % len(videos)], folder / name / file.format(k))
    (folder / CLASSES[0] / "broken.mp4").write_bytes(videos[0].read_bytes()[:100])
    (folder / "notes.txt").write_text("no video\n")
    return folder


def test_from_a_folder_to_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _digest(folder)
    assert main(["start", str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    made = tmp_path / "hpm_clips_of_Ä_2"
    assert "quick check of 33 videos: 32 ok, 0 damaged, 1 bad" in out and "broken.mp4: " in out
    full = shlex.join(["hpm-video", "data", "check", f"{made.name}/train.csv"])
    assert full in out and full in html.unescape((made / "check.html").read_text())
    assert "to train on: 24 videos of 4 classes" in out and "not guaranteed" in out
    pretraining = load_config(PretrainConfig, made / "pretrain.yaml")
    assert pretraining.run.output_dir == str(made / "pretrained")
    finetuning = load_config(FinetuneConfig, made / "finetune.yaml")
    assert finetuning.model.init == str(made / "pretrained")
    assert (finetuning.model.size, finetuning.model.depth) == ("tiny", 6)
    assert "limit of hours" not in out + (made / "pretrain.yaml").read_text()
    commands = _next(out)
    assert [words[1] for words in commands] == list(_QUICK)
    beside: list[str] = []
    for program, *words in commands:
        assert program == "hpm-video"
        if words[0] == "finetune":  # the encoder of _QUICK is another than the chosen one
            assert main(words) == 2
            (refusal,) = capsys.readouterr().err.splitlines()
            assert "model.depth (6) must be 1" in refusal and ": add model.depth=1, or" in refusal
            assert not (made / "finetuned").exists()
        command = beside if words[0] == "finetune" else words
        assert main([*command, *_QUICK[words[0]]]) == 0, command
        said = capsys.readouterr().out
        if words[0] == "pretrain":  # goes on with what lies beside it
            (beside,) = (words[1:] for words in _next(said) if words[1] == "finetune")
            assert beside[:2] == ["finetune", "hpm_clips_of_Ä_2/finetune.yaml"]
    assert (made / "pictures" / "index.html").is_file()
    assert len((made / "classes.csv").read_text().splitlines()) == 3
    assert _digest(folder) == before


def test_nothing_is_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "hpm_clips_of_Ä_2"
    taken.mkdir()
    (taken / "train.csv").write_text("mine\n")
    (tmp_path / "hpm_clips_of_Ä_2_2").touch()
    assert main(["start", str(folder)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "nothing is overwritten: add -o 'hpm_clips_of_Ä_3'" in said
    assert _digest(taken) == {
        str(taken): "", str(taken / "train.csv"): hashlib.sha256(b"mine\n").hexdigest()
    }  # fmt: skip


def test_an_interrupted_start_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hpm_video.cli import start

    words = ["start", str(folder), "--device", "cpu", "-o", "new"]
    with monkeypatch.context() as patch:
        patch.setattr(start, "_check", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 1
    assert not (tmp_path / "new" / "pretrain.yaml").exists()
    assert main(["start", str(folder.parent), "-o", "new"]) == 2  # of another folder
    assert "nothing is overwritten" in capsys.readouterr().err
    monkeypatch.setattr(start, "_time", lambda *_, **__: None)
    assert main(words) == 0
    assert not list((tmp_path / "new").glob("*.orig"))
    assert main(words) == 2


def test_a_folder_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["start", str(tmp_path / "empty"), "-o", str(tmp_path / "new")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "must hold videos" in said and "nor other files" in said
    assert not (tmp_path / "new").exists()


def test_ways_on_without_a_video(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last words of each refusal are a command that works."""
    from hpm_video.cli import start

    video = next(folder.rglob("*.mp4"))
    monkeypatch.chdir(tmp_path)
    (odd := tmp_path / "odd names").mkdir()
    shutil.copyfile(video, odd / "tape 1.recording")
    (odd / "read-me.nfo").write_text("the tapes\n")  # is not listed
    assert main(["start", "odd names", "-o", "new"]) == 2
    way = capsys.readouterr().err.rpartition("list them: ")[2]
    subprocess.run(way, shell=True, check=True)
    assert main(["data", "check", "videos.csv"]) == 0
    assert "1 ok" in capsys.readouterr().out

    shutil.copyfile(video, odd / "tape.mp4")
    (odd / "notes.txt").write_text("recorded in May\n")
    monkeypatch.chdir(odd)
    assert main(["start", "notes.txt"]) == 2
    way = capsys.readouterr().err.rpartition(": hpm-video ")[2]
    assert shlex.split(way) == ["start", ".", "-o", "../hpm_odd_names"]
    monkeypatch.setattr(start, "_time", lambda *_, **__: None)
    assert main(shlex.split(way)) == 0


def test_a_folder_whose_videos_are_all_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.mp4").write_bytes(b"no video")
    assert main(["start", str(tmp_path / "bad"), "-o", str(tmp_path / "new")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "has no readable video" in said
    assert said.endswith(f"ffprobe {tmp_path / 'bad' / '1.mp4'}")


def test_after_unreadable_videos_the_corrected_command_works(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hpm_video.cli import start

    videos = [path for path in folder.rglob("*") if path.suffix == ".mp4"]
    monkeypatch.setattr(start, "_time", lambda *_, **__: None)
    (tmp_path / "no video.mp4").write_bytes(b"no video")
    (tmp_path / "bad.csv").write_text("path\nno video.mp4\n")
    assert main(["start", "bad.csv", "-o", "new"]) == 2
    out = capsys.readouterr().out
    assert "no video.mp4: is not a video" in out and "new/" not in out  # nothing that is gone
    assert not (tmp_path / "new").exists()
    rows = [quoted(path) for path in videos if path.name != "broken.mp4"]
    (tmp_path / "good.csv").write_text("\n".join(["path", *rows]) + "\n")
    assert main(["start", "good.csv", "-o", "new"]) == 0


def _commands_in(said: str) -> list[list[str]]:
    """The commands of a refusal that follow a colon."""
    _, *parts = re.split(r": (?=hpm-video )|; (?:if|else) ", said.strip())
    return [shlex.split(part) for part in parts if part.startswith("hpm-video ")]


def _run(words: list[str]) -> None:
    """Run commands joined by &&."""
    for is_command, some in itertools.groupby(words, lambda word: word != "&&"):
        if is_command:
            program, *arguments = some
            assert program == "hpm-video" and main(arguments) == 0, arguments


def test_sets_with_the_same_classes_are_no_classes(
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hpm_video.cli import start

    monkeypatch.setattr(start, "_time", lambda *_, **__: None)
    videos = iter(sorted(toy.parent.rglob("*.mp4")) * 9)
    sets = {"-my clips": 3, "from 'Anna'": 2}
    for name, number in sets.items():
        for kind in ("call em", "wave"):
            (tmp_path / "all" / name / kind).mkdir(parents=True)
            for k in range(number):
                shutil.copy(next(videos), tmp_path / "all" / name / kind / f"{k}.mp4")
    monkeypatch.chdir(tmp_path / "all")
    assert main(["start", ".", "-o", "../new"]) == 2
    assert not (tmp_path / "new").exists()
    (said,) = capsys.readouterr().err.splitlines()
    assert "-my clips, from 'Anna' have folders of the same names (call em, wave)" in said
    inner, outer = _commands_in(said)
    assert inner == ["hpm-video", "start", "./-my clips", "--val", "from 'Anna'"]
    _run([*inner, "-o", "../inner"])
    assert "to train on: 6 videos of 2 classes" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "inner" / "val.csv")) == 4
    assert (tmp_path / "inner" / "classes.txt").read_text() == "call em\nwave\n"
    _run(outer)
    assert (tmp_path / "new" / "classes.txt").read_text() == "-my clips\nfrom 'Anna'\n"
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(sets)

    shutil.copytree("from 'Anna'", "third")
    assert main(["start", str(tmp_path / "all"), "-o", "../more"]) == 2
    inner, _ = _commands_in(capsys.readouterr().err)
    assert inner == ["hpm-video", "start", str(tmp_path / "all" / "-my clips")]
    shutil.rmtree("third")
    shutil.rmtree("from 'Anna'")
    assert main(["start", str(tmp_path / "all"), "-o", "../more"]) == 2
    inner, outer = _commands_in(capsys.readouterr().err)
    assert inner == ["hpm-video", "start", str(tmp_path / "all" / "-my clips")]
    _run([*outer, "-o", "../more"])


def test_a_video_in_a_class_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((folder / CLASSES[1]).iterdir())
    assert main(["start", str(video)]) == 2
    said = capsys.readouterr().err
    first, second = re.findall(r"hpm-video start (.*?)(?:; else |\n)", said)
    assert shlex.split(first) == [str(folder)] and "are classes" in said
    assert shlex.split(second) == [str(folder / CLASSES[1])]
    (alone := tmp_path / "alone").mkdir()
    shutil.copy(video, alone / "1.mp4")
    assert main(["start", "alone/1.mp4"]) == 2
    assert capsys.readouterr().err.endswith("not a video: hpm-video start alone\n")


def test_notes_say_nothing_of_labels_that_are_not_wanted(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hpm_video.cli import start

    monkeypatch.setattr(start, "_time", lambda *_, **__: None)
    some, others = (sorted((folder / CLASSES[k]).iterdir()) for k in (1, 2))
    rows = [f"{quoted(path)},{'x' * k}" for k, path in enumerate(some[:2])]
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    shutil.copytree(others[0].parent, tmp_path / "judged")
    for k, source in enumerate((str(folder / CLASSES[1]), "all.csv")):
        assert main(["start", source, "--no-labels", "--val", "judged", "-o", f"new{k}"]) == 0
        out = capsys.readouterr().out
        assert "no labels: pre-training only" in out and "have no label" not in out


def test_the_folder_itself_is_no_place_to_write_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _digest(folder)
    monkeypatch.chdir(folder)
    assert main(["start", "."]) == 2
    assert "must lie outside of ., where nothing is written: add -o " in capsys.readouterr().err
    assert _digest(folder) == before


def test_videos_without_labels_are_pre_trained_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["start", str(folder), "--no-labels", "--device", "cpu", "--hours", "1e-9"]
    assert main([*words, "-o", "./-new"]) == 0
    out = capsys.readouterr().out
    assert [words[1] for words in _next(out)] == ["pretrain", "visualize"]
    assert not (tmp_path / "-new" / "finetune.yaml").exists()
    assert " 1 epoch, " in out
    head = " ".join((tmp_path / "-new" / "pretrain.yaml").read_text().replace("#", "").split())
    for text in (out, head):
        assert "The limit of hours leaves 1 of " in text and "usually reach less" in text
    pretrain, _ = _next(out)
    assert main([*pretrain[1:], *_QUICK["pretrain"]]) == 0


def test_only_readable_videos_with_labels_are_judged_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hpm_video.cli import start

    monkeypatch.setattr(start, "_time", lambda *_, **__: None)
    for video in (folder / CLASSES[0]).iterdir():  # all of one class, whichever are held out
        video.write_bytes(b"no video")
    assert main(["start", str(folder), "--device", "cpu", "-o", "new"]) == 0
    out = capsys.readouterr().out
    assert "held out for evaluation: 6 videos" in out and "guessing one class of " in out
    assert "val.csv gives accuracy 0.333" in out
    assert f"1 of 4 classes have no readable video to train on: {CLASSES[0]}" in out
    assert "video to evaluate on" not in out
    statuses = [row["status"] for row in rows_of(tmp_path / "new" / "val.csv")]
    assert statuses == ["ok"] * 6

    for video in (folder / CLASSES[1]).iterdir():
        video.write_bytes(b"no video")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    good = [
        Path(shutil.copy(video, tmp_path / f"other_{number}.mp4"))
        for number, video in enumerate(sorted((folder / CLASSES[2]).iterdir())[:3])
    ]
    rows = [f"{quoted(path)},{label}" for path, label in zip(good, [2, 3, ""], strict=True)]
    (tmp_path / "part.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (tmp_path / "none.csv").write_text(f"path,label\n{quoted(good[0])},\nbad.mp4,2\n")
    words = ["start", str(folder), "--device", "cpu"]
    assert main([*words, "-o", "part", "--val", "part.csv"]) == 0
    assert "part/val.csv: 1 videos have no label and are left out" in capsys.readouterr().out
    assert main([*words, "-o", "none", "--val", "none.csv"]) == 0
    assert "none/val.csv has no labelled video: it is not used" in capsys.readouterr().out
    for video in (folder / CLASSES[2]).iterdir():
        video.write_bytes(b"no video")
    assert main([*words, "-o", "one"]) == 0
    assert "fewer than two classes have" in (out := capsys.readouterr().out)
    assert [words[1] for words in _next(out)] == ["pretrain", "visualize"]


def test_a_list_of_which_some_videos_have_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [path for path in sorted(folder.rglob("*.*")) if path.suffix.lower() == ".mp4"]
    readable = [path for path in videos if path.name != "broken.mp4"]
    rows = [f"{quoted(path)},{'xy'[k % 2] if k < 20 else ''}" for k, path in enumerate(readable)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (tmp_path / "bad.csv").write_text(
        f"path,label\n{quoted(folder / CLASSES[0] / 'broken.mp4')},x\n"
    )
    words = ["start", "all.csv", "--val", "bad.csv", "--device", "cpu", "-o", "new"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "12 videos have no label" in out and "val.csv has no readable video" in out
    _, _, evaluate, *_ = commands = _next(out)
    assert "--manifest" in evaluate and "new/train.csv" not in evaluate
    for _, *words in commands[:3]:
        sizes = ["model.depth=1"] if words[0] == "finetune" else []  # as in _QUICK
        assert main([*words, *_QUICK[words[0]], *sizes]) == 0, words
