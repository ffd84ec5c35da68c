"""Lists whose absolute paths no longer lead to the videos: where these are, and the way on."""

import csv
import re
import subprocess
from pathlib import Path

import pytest
from videos import write_indexed_video

from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import check_some_exist, read_manifest
from hpm_video.data.lists.moved import find_moved
from hpm_video.data.lists.rows import read_rows
from hpm_video.data.prepare.listing import list_own

NASTY = ["plain", "a b", "it's", "x&y|z", "[1]*(2)+{3}", "#1 $HOME `id`", r"back\1slash", "-n ^.?"]


def _videos(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _refusal(file: Path) -> str:
    with pytest.raises(ValueError) as caught:
        check_some_exist(read_manifest(file), option="data.root=")
    return str(caught.value)


def _command(text: str) -> str:
    match = re.search(r"sed -E .*", text)
    assert match is not None, text
    return match[0]


def _paste(command: str, folder: Path) -> None:
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, timeout=60)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((f"/gone/{old}", new) for old, new in zip(NASTY, [*NASTY[1:], NASTY[0]], strict=True)),
        ("C:\\my clips", "a b"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "quoted", "spaces"])
def test_the_command_makes_a_list_that_finds_the_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["call/1.mp4", "call/2.mp4", "help/1.mp4"]
    _videos(tmp_path / new, *names)
    between = "\\" if ":" in old else "/"
    paths = [f"{old}/{name}".replace("/", between) if ":" in old else f"{old}/{name}"
             for name in names]  # fmt: skip
    file = tmp_path / f"{kind} list.csv"
    with file.open("w", newline="") as lines:
        if kind == "spaces":
            lines.writelines(f"{path} {row % 2}\n" for row, path in enumerate(paths))
        else:
            quoting = csv.QUOTE_ALL if kind == "quoted" else csv.QUOTE_MINIMAL
            csv.writer(lines, quoting=quoting).writerows(
                [("label", "path"), *((row % 2, path) for row, path in enumerate(paths))]
            )
    said = _refusal(file)
    assert f"found 3 of 3 below {tmp_path}/{new}/ instead of {old}" in said
    _paste(_command(said), tmp_path)
    here = read_manifest(tmp_path / f"{kind} list_here.csv")
    check_some_exist(here)
    assert [here.file(row) for row in range(3)] == [f"{tmp_path}/{new}/{name}" for name in names]
    assert here.labels.tolist() == [0, 1, 0]


def test_all_refusals_of_a_moved_list_give_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips" / "a").mkdir(parents=True)
    write_indexed_video(tmp_path / "clips" / "a" / "1.mp4", 12)
    file = Path("moved.csv")
    file.write_text("path,label\n/gone/a/1.mp4,0\n")
    command = _command(_refusal(file))
    with pytest.raises(ValueError, match="none of the 1 videos in moved") as caught:
        list_own(file, "out.csv")
    assert _command(str(caught.value)) == command

    assert main(["data", "check", str(file)]) == 1
    checked = f"{command} && hpm-video data check moved_here.csv"
    assert f"what to do:\n  no such file: found 1 of 1 below {tmp_path}/clips/" in (
        printed := capsys.readouterr().out
    )
    assert _command(printed) == checked
    with pytest.raises(ValueError, match="lists no videos") as caught:  # none is ok
        read_manifest(file)
    assert _command(str(caught.value)) == checked
    with pytest.raises(ValueError) as caught:
        list_own(file, "out.csv")
    assert _command(str(caught.value)) == checked
    _paste(command, tmp_path)
    assert main(["data", "check", "moved_here.csv"]) == 0
    check_some_exist(read_manifest("moved_here.csv"))
    assert "> moved_here1.csv" in _refusal_of_unusable(file)  # no list is overwritten


def _refusal_of_unusable(file: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_manifest(file)
    return str(caught.value)


def test_relative_paths_of_a_checked_list_need_another_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "videos").mkdir()
    write_indexed_video(tmp_path / "videos" / "1.mp4", 12)
    file = tmp_path / "lists" / "m.csv"
    file.write_text("path\n1.mp4\n")
    way = f"hpm-video data check {file} --root {tmp_path}/videos"
    assert main(["data", "check", str(file)]) == 1
    assert way in capsys.readouterr().out
    assert way in _refusal_of_unusable(file)


def test_what_is_not_found_is_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "moved.csv"
    file.write_text("path,label\n" + "".join(f"/gone/{k}.mp4,0\n" for k in range(9)))
    _videos(tmp_path / "other", *(f"{k}.mp4" for k in range(4)))  # less than half
    with pytest.raises(ValueError, match="none of the 9 videos") as caught:
        list_own(file, "out.csv")
    for said in (_refusal(file), str(caught.value)):
        assert "they were not found near the list or the current folder; correct the" in said
        assert "sed" not in said
    assert main(["data", "check", str(file)]) == 1
    assert "they were not found near the list" in capsys.readouterr().out
    assert "sed" not in _refusal_of_unusable(file)


def test_a_folder_that_the_list_cannot_spell_is_only_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _videos(tmp_path / "a,b", "1.mp4")
    file = tmp_path / "moved.csv"
    file.write_text("path,label\n/gone/1.mp4,0\n")
    said = _refusal(file)
    assert said.endswith(
        f"found 1 of 1 below {tmp_path}/a,b/ instead of /gone/: replace that in the list"
    )


def test_the_replacement_covers_all_folders_and_only_starts_of_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _videos(tmp_path / "set" / "videos", "call/1.mp4", "help/1.mp4")
    names = ["/data/videos/call/1.mp4", "/data/videos/help/1.mp4"]
    assert find_moved(names, str(tmp_path)) == ("/data/", f"{tmp_path}/set/", 2, "")
    file = tmp_path / "moved.csv"
    file.write_text("note,path,label\n" + "".join(f"see /x/data/y,{name},0\n" for name in names))
    _paste(_command(_refusal(file)), tmp_path)
    rows = [row for _, row in read_rows(tmp_path / "moved_here.csv")]
    assert [row["note"] for row in rows] == ["see /x/data/y"] * 2
    assert [row["path"] for row in rows] == [
        f"{tmp_path}/set/videos/call/1.mp4", f"{tmp_path}/set/videos/help/1.mp4",
    ]  # fmt: skip
    _videos(tmp_path / "copy" / "videos", "call/1.mp4", "help/1.mp4")
    assert f"(and below {tmp_path}/set/)" in _refusal(file)
