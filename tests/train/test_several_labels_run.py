"""Several labels per video from end to end: learnt, evaluated, predicted, probed, exported."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import run_together

import hpm_video
from hpm_video.cli.main import main
from hpm_video.config import MixingConfig
from hpm_video.train.class_loss import several_labels_loss
from hpm_video.train.mixing import draw_mix, mix_clips
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
_NAMES = ("bright", "red")
_ONE_VIEW = ("evaluation.num_clips=1", "evaluation.num_crops=1")
_ASKED = ("device=cpu", "precision=float32", "num_workers=0", *_ONE_VIEW)


def _write_video(path: Path, has: tuple[bool, bool], seed: int) -> None:
    """Noise whose left half may be bright and whose right half may be red."""
    frames = np.random.default_rng(seed).integers(60, 100, (6, 32, 32, 3)).astype(np.uint8)
    frames[:, :, :16] += np.uint8(100 * has[0])
    frames[:, :, 16:, 0] += np.uint8(120 * has[1])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16 videos with two labels each, one or none; cells.csv and columns.csv."""
    folder = tmp_path_factory.mktemp("videos")
    cells, columns = ["path,label"], ["path,is_bright,is_red"]
    for number in range(16):
        has = (number % 2 == 1, number // 2 % 2 == 1)
        _write_video(folder / f"{number:02d}.mp4", has, number)
        labels = [name for name, is_so in zip(_NAMES, has, strict=True) if is_so]
        cells.append(f"{number:02d}.mp4,{'|'.join(labels)}")
        columns.append(f"{number:02d}.mp4,{int(has[0])},{int(has[1])}")
    (folder / "cells.csv").write_text("\n".join(cells) + "\n")
    (folder / "columns.csv").write_text("\n".join(columns) + "\n")
    one = [f"{number:02d}.mp4,{_NAMES[number % 2]}" for number in range(16)]
    (folder / "one.csv").write_text("\n".join(["path,label", *one]) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments, videos: Path
) -> Path:
    folder = tmp_path_factory.mktemp("several") / "run"
    cells = videos / "cells.csv"
    settings = (
        *(f"data.manifest={cells}", f"data.val_manifest={cells}", "data.labels.separator=|"),
        *("optim.epochs=12", "evaluation.every_epochs=4", "optim.label_smoothing=0", *_ONE_VIEW),
    )
    assert main(finetune_arguments(folder, *settings)) == 0
    return folder


def test_it_learns_both_labels(trained: Path, videos: Path, tmp_path: Path) -> None:
    records = [record for record in read_records(trained) if "mean_ap" in record]
    assert [record["step"] for record in records] == [16, 32, 48]
    assert records[-1]["mean_ap"] > 0.95 and records[-1]["mean_f1"] > 0.85
    assert records[-1]["val_loss"] < 0.6, "0.69 says nothing"
    assert not {"top1", "balanced_accuracy"} & records[-1].keys()
    state = load_checkpoint(trained, kind="finetune")
    assert state["config"]["data"]["labels"]["separator"] == "|"
    assert state["classes"] == list(_NAMES) and len(state["thresholds"]) == 2
    best = load_checkpoint(trained / "checkpoints" / "best.pt", kind="finetune")
    assert best["best_by"] == "mean_ap"
    assert best["best_value"] == max(record["mean_ap"] for record in records)
    command = ["evaluate", str(trained), "--manifest", str(videos / "cells.csv"), *_ASKED]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    right = sum(row["labels"] == row["predicted"] for row in rows)
    assert right >= 13 and rows[3]["labels"] == "0 1" and rows[0]["labels"] == ""
    thresholds = [float(rows[0][f"threshold_{n}"]) for n in (0, 1)]
    assert thresholds == state["thresholds"]
    assert "mean AP" in (tmp_path / "out" / "index.html").read_text()


def test_predict_names_the_classes_that_reach_their_thresholds(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(videos / "00.mp4"), str(videos / "03.mp4")]
    command = ["predict", str(trained), *names, *_ASKED]
    assert main([*command, "--all-scores", "-o", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    for row, entry in zip(rows, found["videos"], strict=True):
        above = {
            n for n in _NAMES if float(row[f"score of {n}"]) >= float(row[f"threshold of {n}"])
        }
        assert set(filter(None, row["class"].split("|"))) == above
        assert {name for name, _ in entry["found"]} == above
    capsys.readouterr()
    assert main([*command, "evaluation.threshold=0"]) == 0
    assert all(
        len(line.split(",")[1].split("|")) == 2 for line in capsys.readouterr().out.splitlines()[1:]
    )
    assert main([*command, "--top", "2"]) == 2
    assert "--top (2) must be left out" in capsys.readouterr().err
    scores = hpm_video.classify(names, checkpoint=trained, num_clips=1, num_crops=1, device="cpu")
    for row, given in zip(rows, scores, strict=True):
        assert given == pytest.approx({n: float(row[f"score of {n}"]) for n in _NAMES}, abs=1e-5)


def test_neither_kind_becomes_the_other(
    trained: Path,
    videos: Path,
    tmp_path: Path,
    finetune_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(words: list[str], rule: str) -> None:
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert rule in said and said.count("\n") == 1

    cells, one = videos / "cells.csv", videos / "one.csv"
    run = finetune_arguments(tmp_path / "run", *_ONE_VIEW)
    refused([*run, f"data.manifest={cells}"], "set labels.separator to the text between them")
    refused([*run, f"data.manifest={one}", "data.labels.separator=|"], "unset it if each has one")
    several = [f"data.manifest={cells}", "data.labels.separator=|"]
    for wrong, rule in (
        ("evaluation.best_by=top1", "must be mean_ap, loss or auto"),
        ("optim.class_balance=weights", "optim.class_balance (weights) must be none"),
    ):
        refused([*run, *several, wrong], rule)
    for wrong in ("evaluation.best_by=mean_ap", "evaluation.threshold=0.5"):
        refused([*run, f"data.manifest={one}", wrong], "for videos with one label")
    resume = f"run.resume={trained}"
    refused(
        [*run, f"data.manifest={one}", resume, "optim.epochs=30"],
        "which learns several labels per video, not one",
    )
    columns, by_column = f"data.manifest={videos / 'columns.csv'}", "data.labels.columns"
    refused([*run, *several, f"data.val_manifest={videos / 'columns.csv'}"], "must have labels")
    first = finetune_arguments(tmp_path / "first", columns, "optim.epochs=1", *_ONE_VIEW)
    assert main([*first, f"{by_column}=[is_bright,is_red]"]) == 0
    on = [*run, columns, f"run.resume={tmp_path / 'first'}", "optim.epochs=2"]
    assert main([*on, f"{by_column}=is_*"]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert 'changed: data.labels.columns: ["is_bright", "is_red"] -> ["is_*"]' in log
    run = finetune_arguments(tmp_path / "other", *_ONE_VIEW)
    single = finetune_arguments(tmp_path / "single", f"data.manifest={one}", "optim.epochs=1")
    assert main(single) == 0
    refused(
        [*run, *several, f"run.resume={tmp_path / 'single'}"],
        "which learns one label per video, not several",
    )
    (tmp_path / "classes.txt").write_text("red\nbright\n")
    lines = one.read_text().splitlines()
    (tmp_path / "l.csv").write_text("\n".join([lines[0], *(f"{videos}/{x}" for x in lines[1:])]))
    refused(
        [*run, f"data.manifest={tmp_path / 'l.csv'}", f"run.resume={tmp_path / 'single'}"],
        "class 'red' must have number 1, as in the continued run",
    )
    evaluate = ["evaluate", str(tmp_path / "single"), *_ASKED, "--manifest"]
    refused([*evaluate, str(cells)], "labels.separator to the text between them")
    refused([*evaluate, str(one), "labels.separator=|"], "trained with one label per video")
    refused([*evaluate, str(one), "evaluation.threshold=0.2"], "trained with one label per video")


def test_a_run_goes_on(videos: Path, tmp_path: Path, finetune_arguments: Arguments) -> None:
    """Two runs of columns, one of them stopped and begun again, have the same weights."""
    columns = videos / "columns.csv"
    settings = (f"data.manifest={columns}", "data.labels.columns=is_*", "mixing.mixup=0.8")
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main(finetune_arguments(whole, *settings)) == 0
    from runs import run_until_stopped

    run_until_stopped(finetune_arguments(half, *settings), at=4)
    assert main(finetune_arguments(half, *settings)) == 0
    one, other = (load_checkpoint(folder, kind="finetune")["model"] for folder in (whole, half))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_are_a_larger_batch(
    videos: Path, tmp_path: Path, finetune_arguments: Arguments
) -> None:
    """The evaluation of an odd number of videos is the same, too."""
    lines = (videos / "cells.csv").read_text().splitlines()
    (videos / "odd.csv").write_text("\n".join(lines[:-1]) + "\n")
    lists = (f"data.manifest={videos / 'cells.csv'}", f"data.val_manifest={videos / 'odd.csv'}")
    shared = (*lists, "data.labels.separator=|", "optim.epochs=1", "run.log_every=1", *_ONE_VIEW)
    assert main(finetune_arguments(tmp_path / "one", *shared, "data.batch_size=8")) == 0
    arguments = finetune_arguments(tmp_path / "two", *shared, "optim.total_batch=8")
    for done in run_together(2, [arguments]):
        assert done.returncode == 0, done.stderr
    one, two = (read_records(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "mean_ap", "mean_f1", "val_loss"):
        values = [[record[name] for record in run if name in record] for run in (one, two)]
        assert values[0] and values[0] == pytest.approx(values[1], rel=1e-4), name


def test_probes(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without lists those of the run are judged on, with its labels."""
    asked = ("device=cpu", "precision=float32", "num_workers=0")
    kept = tmp_path / "kept"
    command = ["probe", str(trained), *asked, "-o", str(tmp_path / "probes.json")]
    assert main([*command, "--kind", "linear", "attentive", "--keep", str(kept)]) == 0
    said = capsys.readouterr().out
    assert said.count("mean_ap") >= 3 and "top1" not in said
    rows = json.loads((tmp_path / "probes.json").read_text())
    assert all(row["mean_ap"] > 0.9 and row["top1"] is None for row in rows)
    columns = str(videos / "columns.csv")
    assert (
        main(
            [
                "probe",
                str(trained),
                *asked,
                "--train",
                columns,
                "--val",
                columns,
                "--kind",
                "linear",
                "probe.labels.columns=is_*",
            ]
        )
        == 0
    )
    assert main([*command, "--kind", "knn"]) == 2
    assert "kind (knn) must be linear or attentive" in capsys.readouterr().err
    evaluate = ["evaluate", str(kept), "--manifest", str(videos / "cells.csv"), *_ASKED]
    assert main(evaluate) == 0
    assert (
        "thresholds: 0.5 for each class, as the checkpoint stores none" in capsys.readouterr().out
    )


def test_hugging_face_and_back(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    assert main(["weights", "export", str(trained), "--to", "huggingface", "-o", str(folder)]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    for model, more in ((trained, []), (folder, ["labels.separator=|", "clip.frame_stride=1"])):
        capsys.readouterr()
        words = ["evaluate", str(model), "--manifest", str(videos / "cells.csv"), *_ASKED, *more]
        assert (
            main([*words, "evaluation.threshold=0.5", "-o", str(tmp_path / f"of_{model.name}")])
            == 0
        )
    places = (tmp_path / f"of_{name}" / "per_class.csv" for name in (trained.name, folder.name))
    ours, theirs = (place.read_text() for place in places)
    assert ours == theirs


def test_the_loss_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator)
    targets = (torch.rand(3, 4, generator=generator) > 0.5).float()
    total = 0.0
    for score, target in zip(logits.sigmoid().flatten(), targets.flatten(), strict=True):
        smooth = 0.9 * float(target) + 0.05
        total -= smooth * float(score.log()) + (1 - smooth) * float((1 - score).log())
    assert several_labels_loss(logits, targets, label_smoothing=0.1).item() == pytest.approx(
        total / 12
    )


def test_mixed_clips_have_the_shares_of_all_their_labels() -> None:
    """Where each clip has one label, shares are those of mixing one label per clip."""
    labels = torch.tensor([0, 2, 1, 1])
    clips = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    mix = draw_mix(2, height=8, width=8, mixing=MixingConfig(), rng=np.random.default_rng(3))
    options = {"repeats": 1, "num_classes": 3}
    one = mix_clips(clips, labels, mix, **options)
    several = mix_clips(clips, F.one_hot(labels, 3).float(), mix, **options)
    assert torch.equal(one[0], several[0]) and torch.equal(one[1], several[1])
    both = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1]])
    mixed = mix_clips(clips, both, mix, **options)[1]
    share = torch.from_numpy(mix.share).float()
    assert torch.allclose(mixed[0], share[0] * both[0])
    assert torch.allclose(mixed[3], share[1] * both[3] + (1 - share[1]) * both[2])
