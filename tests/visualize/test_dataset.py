"""The page over a data set and its tables: what they say, and what is refused."""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpm_video.cli.main import main
from hpm_video.visualize import dataset as module
from hpm_video.visualize.dataset import visualize_list

Arguments = Callable[..., list[str]]
OPTIONS = ("--num-workers", "0", "--device", "cpu", "--num-shown", "3", "--num-masks", "2")


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def column(table: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in table if row[name]])


@pytest.fixture(scope="module")
def listed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy videos and one that is none, whose name is HTML."""
    folder = tmp_path_factory.mktemp("listed")
    (folder / "<b> broken.mp4").write_bytes(b"no video")
    lines = toy.read_text().splitlines()
    paths = [f"{toy.parent}/{line}" for line in lines[1:]]
    width = lines[0].count(",")
    broken = f"{folder}/<b> broken.mp4,{lines[1].split(',')[1]}" + "," * (width - 1)
    (folder / "list.csv").write_text("\n".join([lines[0], *paths, broken]) + "\n")
    return folder / "list.csv"


@pytest.fixture(scope="module")
def made(pretrained: Path, listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    command = ["visualize", str(pretrained), "--manifest", str(listed), "-o", str(folder)]
    assert main([*command, *OPTIONS]) == 1  # a video is unreadable
    return folder


def test_every_number_of_the_page_is_in_the_tables(made: Path) -> None:
    text = (made / "dataset.html").read_text(encoding="utf-8")
    clips = rows(made / "clips.csv")
    assert len(clips) == 25 and clips[-1]["error"] == "is not a video, or its header is damaged"
    assert not any(row["error"] for row in clips[:-1]) and not clips[-1]["measured_loss"]
    shown = dict(re.findall(r'<th scope="row">([^<]+)<td class="number">(-?[\d.]+)', text))
    for words, name in (
        ("Spearman, predicted with measured", "spearman"),
        ("the same over tubes (row, column)", "tube_spearman"),
        ("position alone with measured", "position_alone"),
        ("centre bias, measured", "measured_centre_bias"),
        ("hard tubes in the centre, predicted", "predicted_central_share"),
    ):
        assert float(shown[words]) == pytest.approx(column(clips, name).mean(), abs=6e-3)
    # Classes, by the mean of what was measured of their clips
    by_class: dict[str, list[float]] = {}
    for row in clips[:-1]:
        name = f"{row['label']} {row['class']}".strip()
        by_class.setdefault(name, []).append(float(row["measured_loss"]))
    cell = r'<td class="number">([\d.]+)'
    table = re.findall(rf'<th scope="row">(\d[^<]*){cell}{cell}', text)
    assert [name for name, _, _ in table] == sorted(by_class, key=lambda k: -np.mean(by_class[k]))
    for name, count, mean in table:
        assert int(count) == len(by_class[name])
        assert float(mean) == pytest.approx(np.mean(by_class[name]), rel=1e-3)
    # Places: a cell of a map says its number, and maps are means over clips
    positions, times = rows(made / "positions.csv"), rows(made / "times.csv")
    assert len(positions) == 16 and len(times) == 2
    for name in ("measured_rank", "predicted_rank"):
        assert column(positions, name).mean() == pytest.approx(0.5)
        assert column(times, name).mean() == pytest.approx(0.5)
    for table_of in (positions, times):
        mean = column(table_of, "measured_loss").mean()
        assert mean == pytest.approx(column(clips, "measured_loss").mean(), rel=1e-5)
    for row in positions:
        place = f"row {int(row['row']) + 1}, column {int(row['column']) + 1}"
        assert f"{place}: rank {float(row['measured_rank']):.3g}<" in text


def test_the_page_needs_nothing_else_and_escapes_names(made: Path) -> None:
    text = (made / "dataset.html").read_text(encoding="utf-8")
    assert "&lt;b&gt; broken.mp4" in text and "<b> broken" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in re.sub(r"http-equiv|base64,[^\"]*", "", text)
    assert "default-src 'none'" in text
    hardest, easiest = text.split("<h3>Easiest</h3>")
    for part in (hardest, easiest):
        assert part.count('class="card"') == 3
        assert part.count('data-kind="measured"') == 3
    clips = [row for row in rows(made / "clips.csv") if row["measured_loss"]]
    order = sorted(clips, key=lambda row: -float(row["measured_loss"]))
    names = re.findall(r'<figcaption><b title="([^"]+)">\d+\. ', text)
    expected = [row["path"] for row in (*order[:3], *order[::-1][:3])]
    assert names == expected


def test_a_second_time_replaces_ours_only(made: Path, pretrained: Path, listed: Path) -> None:
    again = ["visualize", str(pretrained), "--manifest", str(listed), "-o", str(made), *OPTIONS]
    assert main(again) == 1
    for name in ("dataset.html", "clips.csv", "positions.csv"):
        file = made / name
        kept = file.read_bytes()
        file.write_text("mine\n")
        with pytest.raises(ValueError, match=rf"^output_dir \(.*{name}\) must be a new file or"):
            visualize_list(pretrained, [listed], made, device="cpu")
        assert file.read_text() == "mine\n"
        file.write_bytes(kept)


def test_what_a_checkpoint_cannot_tell_is_said(
    pretrained: Path, listed: Path, tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    run = tmp_path / "plain"
    settings = ("masking.hard_ratio_end=0", "loss.prediction=none", "optim.epochs=1")
    assert main(pretrain_arguments(run, *settings)) == 0
    options = {"num_workers": 0, "num_shown": 1, "device": "cpu"}
    page, found = visualize_list(run, [listed], tmp_path / "a", num_masks=2, **options)
    assert found is not None and found.predicted is None
    text = page.read_text(encoding="utf-8")
    assert "plain VideoMAE" in text and "Mean rank, predicted" not in text
    page, found = visualize_list(pretrained, [listed], tmp_path / "b", num_masks=0, **options)
    assert found is not None and found.measured is None
    text = page.read_text(encoding="utf-8")
    assert "never compares two clips" in text and "Mean rank, measured" not in text
    with pytest.raises(ValueError, match=r"^checkpoint must have a loss predictor"):
        visualize_list(run, [listed], tmp_path / "c", num_masks=0, **options)


def test_an_interrupt_leaves_nothing(
    pretrained: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*values: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure_list", interrupted)
    command = ["visualize", str(pretrained), "--manifest", str(listed), "-o", str(tmp_path / "out")]
    assert main([*command, *OPTIONS]) == 1
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--manifest", "LIST", "--num-masks", "-1"], "num_masks (-1) must be at least 0"),
        (["--manifest", "LIST", "--batch-size", "0"], "batch_size (0) must be at least 1"),
        (["--manifest", "gone.csv"], "gone.csv does not exist"),
        (["FILM", "--manifest", "LIST"], "--manifest (LIST) must come without VIDEO"),
        (["--manifest", "LIST", "--whole-video"], "--whole-video (True) must come without --mani"),
        (
            ["--manifest", "LIST", "--formats", "png", "gif"],
            "--formats (png gif) must come without",
        ),
        (["FILM", "--num-workers", "0"], "--num-workers (0) must come with --manifest"),
        (["FILM", "--num-checkpoints", "3"], "--num-checkpoints (3) must come with --through-tr"),
        (["FILM", "--through-training", "--num-crops", "2"], "--num-crops (2) must come without"),
        ([], "VIDEO (none) must name at least one file, unless --manifest names a list"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    line: str,
    pretrained: Path,
    listed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # FILM: anything that is there
    given = [word.replace("LIST", str(listed)).replace("FILM", str(listed)) for word in words]
    command = ["visualize", str(pretrained), *given, "-o", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"hpm-video visualize: {line.replace('LIST', str(listed))}")
    assert not (tmp_path / "out").exists()


def test_a_list_of_broken_videos_has_no_page(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    command = ["visualize", str(pretrained), "--manifest", str(tmp_path / "list.csv"), "-o"]
    assert main([*command, str(tmp_path / "out"), *OPTIONS]) == 1
    assert "none of 1 videos can be read, e.g. " in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


def test_videos_of_several_labels(
    pretrained: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{toy.parent}/{line.split(',')[0]}" for line in toy.read_text().splitlines()[1:4]]
    texts = ("0|1", "1", "1|2")
    content = [f"{path},{text}" for path, text in zip(lines, texts, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *content]) + "\n")
    command = ["visualize", str(pretrained), "--manifest", str(tmp_path / "list.csv")]
    command += ["-o", str(tmp_path / "out"), *OPTIONS]
    assert main(command) == 2
    assert "for visualize, --no-labels" in capsys.readouterr().err
    assert main([*command, "--no-labels"]) == 0
    assert [row["class"] for row in rows(tmp_path / "out" / "clips.csv")] == [""] * 3


def test_the_title_names_all_lists(pretrained: Path, toy: Path, tmp_path: Path) -> None:
    lines = toy.read_text().splitlines()
    lists = [tmp_path / f"{name}.csv" for name in ("train", "val", "test", "more")]
    for k, file in enumerate(lists):
        file.write_text("\n".join([lines[0], f"{toy.parent}/{lines[k + 1]}"]) + "\n")
    options = {"num_workers": 0, "num_shown": 0, "num_masks": 1, "device": "cpu"}
    for count, words in ((1, "train.csv"), (2, "train.csv, val.csv"), (4, "4 lists")):
        page, _ = visualize_list(pretrained, lists[:count], tmp_path / f"{count}", **options)
        title = re.search(r"<title>(.*)</title>", page.read_text())
        assert title is not None and title[1].endswith(f"finds hard in {words}")
