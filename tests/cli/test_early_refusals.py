"""What is refused before PyTorch is imported, all at once, and what may have been meant."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from processes import LIMIT_S

from hpm_video.cli.main import main
from hpm_video.cli.options import check_there
from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.schema import SettingFaults
from hpm_video.evaluate.predictions import Evaluation
from hpm_video.runtime.files import similar_path
from hpm_video.train.admission import read_settings, read_videos
from hpm_video.train.run import evaluation as run_evaluation

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
# Prints, for each command line, its exit code, what it said and whether PyTorch was imported
SCRIPT = """
import contextlib, io, json, sys
from hpm_video.cli.main import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
    print(json.dumps([code, said.getvalue(), "torch" in sys.modules]))
"""


def _refused(lines: list[str]) -> list[tuple[int, str, bool]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([shlex.split(line) for line in lines])],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=LIMIT_S, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_refusals_come_before_pytorch(toy: Path, tmp_path: Path) -> None:
    bad_list, run = tmp_path / "bad.csv", f"run.output_dir={tmp_path / 'run'}"
    bad_list.write_text("path,num_frames\na.mp4,many\n")
    (gone := tmp_path / "gone.csv").write_text("".join(f"gone-{k}.mp4 0\n" for k in range(1000)))
    (tmp_path / "empty").mkdir()
    (pretrained := tmp_path / "pretrained").mkdir()
    (pretrained / "config.yaml").write_text("masking: {mask_ratio: 0.9}\n")
    ours = f"data.manifest={toy} run.output_dir={pretrained}"
    (tmp_path / "faulty.yaml").write_text("run: {}\noptim: [\n")
    # Misspelt: the folder, and the file in a folder
    misspelt, far = f"{toy.parent / 'vidoes'}", toy.parent.with_name(f"{toy.parent.name}s")
    expected = {
        "pretran": "'pretran' is unknown: did you mean pretrain?",
        "data chek x": "did you mean check?",
        "bench plam": "did you mean plan?",
        "weights inspekt x": "did you mean inspect?",
        "bench step --size bas": "did you mean base?",
        "pretrain own_videos --outptu-dir x": "did you mean --output-dir?",
        "data list --foldr x -o y": "did you mean --folder?",
        "pretrain own_videos --optim.epochs 3": "no leading dashes: optim.epochs=3",
        "pretrain own_videos --epochs 5": "did you mean optim.epochs=5?",
        "finetune own_videos --batch-size=8 --seeds 1": "did you mean data.batch_size=8 or "
        "evaluation.batch_size=8? did you mean --seed?",
        "pretrain own_videos --lr .1": "did you mean optim.base_lr=.1 or ",
        "bench plan own_videos --epochs 5": "did you mean optim.epochs=5?",
        f"start {toy.parent} --outt pics2": "did you mean --output-dir?",
        f"start {toy.parent} --ouput pics2": "did you mean --output-dir?",
        f"start {toy.parent} --dirt pics2": "pics2: hpm-video start --help lists its options",
        f"start {toy.parent} --optim.epochs 3": "3: hpm-video start --help lists its options",
        f"start {toy.parent} --hours two": "--hours (two) must be a number, such as 12",
        f"start {toy.parent} --hours": "--hours must have a value, such as 12",
        f"start {toy.parent} --images film": "--images (film) must be one of frames, stills",
        f"predict {toy} x.mp4 --top 1.5": "--top (1.5) must be a whole number, such as 1",
        "bench finetuning": "did you mean finetune?",
        "zzz": "'zzz' is unknown: must be one of start, pretrain,",
        "pretrain own_vidoes": "did you mean own_videos",
        "recipes own_vidoes": "did you mean",
        f"pretrain own_videos data.manifst={toy} {run}": "did you mean data.manifest?",
        f"pretrain own_videos run.device=cdua data.manifest={toy} {run}": "try run.device=cuda",
        f"pretrain own_videos data.manifest={bad_list} {run}": "num_frames (many) must be",
        f"finetune own_videos data.manifest={bad_list} {run}": "num_frames (many) must be",
        f"pretrain own_videos data.manifest={gone} {run}": "none of the 20 checked exists",
        f"finetune own_videos data.manifest={gone} {run}": "add data.root=DIR, with the folder",
        f"pretrain own_videos data.manifest={toy} optim.total_batch=4096 {run}": "videos per step",
        f"finetune own_videos data.manifest={toy} optim.total_batch=4096 {run}": "videos per step",
        f"finetune own_videos data.manifest={toy} model.init=/no/run {run}": "model.init (/no/run)",
        f"pretrain own_videos data.manifest={toy}x {run}": f"did you mean {toy}?",
        f"finetune own_videos {ours}": f"set run.output_dir={pretrained}_2",
        f"finetune own_videos data.manifest={toy} run.output_dir={toy.parent}": f"{toy.parent}_2",
        f"pretrain own_videos data.manifest={toy} data.crop_size=65 {run}": "data.crop_size=64",
        f"pretrain optim.epochs=4 data.manifest={toy} {run}": "pretrain own_videos optim.epochs=4",
        f"demo -o {toy}": "is a file: must be a folder",
        f"demo --train -o {toy}": "is a file: must be a folder",
        "demo -o /proc/x": "must be writable",
        "demo --train --seed -1": "--seed (-1) must be in",
        "bench plan nowhere": "config (nowhere) does not exist",
        f"evaluate /no/run --manifest {toy}": "checkpoint (/no/run) does not exist",
        f"predict /no/run {toy}": "checkpoint (/no/run) does not exist",
        f"probe /no/run --train {toy} --val {toy}": "checkpoint (/no/run) does not exist",
        f"features /no/run --manifest {toy} -o x": "checkpoint (/no/run) does not exist",
        f"visualize {toy} /no/video.mp4 -o x": "VIDEO (/no/video.mp4) does not exist",
        "weights inspect /no/file": "weights (/no/file) do not exist",
        "data check /no/list.csv": "/no/list.csv does not exist",
        "start /no/folder": "/no/folder does not exist",
        f"start {misspelt}": "(expected a folder or list of videos); did you mean "
        f"{toy.parent / 'videos'}?",
        f"data list --folder {misspelt} -o x": f"did you mean {toy.parent / 'videos'}?",
        f"data check {far / toy.name}": f"; did you mean {toy}?",
        f"evaluate {far} --manifest {toy}": f"; did you mean {toy.parent}?",
        f"visualize {toy} {toy.parent / 'vidoes'} -o x": f"did you mean {toy.parent / 'videos'}?",
        f"start {toy.parent} optim.epochs=2": "add settings to the commands that start prints",
        f"start {toy.parent} --hour 1": "--hour 1: did you mean --hours?",
        "bench step --siz base": "did you mean --size?",
        f"weights inspect {toy} optim.epochs=2": "this command takes no settings",
        f"evaluate {toy} --manifest {toy.parent}": "is a folder, not a list of videos: "
        f"hpm-video data list --folder {toy.parent} -o {toy.parent.name}.csv",
        f"visualize {toy} {tmp_path / 'empty'} -o x": "must hold videos: has none; for example",
        f"visualize {toy} -o x": "for example: hpm-video visualize",
        f"visualize {bad_list} {toy} -o x": f"give it as --manifest {toy}",
        f"predict {bad_list} {toy}": "must be a video, but is a list of videos: give it as",
        f"predict {pretrained} {toy}": "must be of kind finetune, not pretrain; make one: hpm-",
        f"evaluate {pretrained}": "make one: hpm-video finetune own_videos model.init=",
        f"pretrain {tmp_path / 'fualty.yaml'}": f"did you mean {tmp_path / 'faulty.yaml'}? ",
        f"pretrain {tmp_path / 'faulty.yaml'}": "line 3: look at its indentation",
        f"start {toy.parent} -o /proc/nowhere": "choose another with -o DIR",
        f"start {toy.parent} -o {tmp_path}": "nothing is overwritten: add -o",
        f"start {next(toy.parent.rglob('*.mp4'))}": "must be a folder or list of videos, not a",
        f"start {tmp_path / 'empty'} -o {tmp_path / 'new'}": "must hold videos",
    }
    for line, (code, said, has_torch) in zip(expected, _refused(list(expected)), strict=True):
        assert (code, has_torch) == (2, False), (line, said)
        assert expected[line] in said, (line, said)


def test_all_that_is_wrong_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["masking.mask_ratio=1.2", "optim.epochs=many", "run.sed=1", "data.manifest=/no/list"]
    assert main(["pretrain", "own_videos", *words]) == 2
    first, *faults = capsys.readouterr().err.splitlines()
    assert first == "hpm-video pretrain: 5 errors:"
    starts = (
        "  optim.epochs (many) must be a whole number; try optim.epochs=400",
        "  setting run.sed is unknown: did you mean run.seed?",
        "  masking.mask_ratio (1.2) must be in (0, 1); try masking.mask_ratio=0.75",
        "  run.output_dir (null) must name a folder",
        "  data.manifest: /no/list does not exist",
    )
    for line, start in zip(faults, starts, strict=True):
        assert line.startswith(start)


def test_settings_that_do_not_fit_each_other_are_all_named_with_values_that_do(
    tmp_path: Path, toy: Path
) -> None:
    words = [
        f"data.manifest={toy}", f"run.output_dir={tmp_path / 'run'}", "model.width=50",
        "model.heads=7", "model.decoder_heads=5", "data.crop_size=65", "data.num_frames=7",
        "masking.tube_length=3", "loss.target=ema", "loss.target_layers=[12]",
        "teacher.momentum_start=2", "optim.warmup_epochs=500", "optim.total_batch=1000",
    ]  # fmt: skip
    recipe = CONFIGS / "pretrain" / "own_videos_cpu.yaml"
    with pytest.raises(SettingFaults) as caught:
        read_settings(PretrainConfig, recipe, words)
    found = [re.findall(r"[a-z]+\.\w+=[^\s;']+", fault)[0] for fault in caught.value.faults]
    about = {word.partition("=")[0] for word in found}
    assert about >= {
        "model.width", "model.decoder_width", "data.crop_size", "data.num_frames",
        "masking.tube_length", "loss.target_layers", "teacher.momentum_start",
        "optim.warmup_epochs", "optim.total_batch",
    }  # fmt: skip
    assert {"data.num_frames=8", "data.crop_size=64", "model.width=49"} <= set(found)
    read_videos(read_settings(PretrainConfig, recipe, [*words, *found]))


def test_sizes_that_weights_know_are_not_judged_before_these_are_read(
    tmp_path: Path, toy: Path
) -> None:
    (weights := tmp_path / "weights.pt").touch()
    words = [f"data.manifest={toy}", f"run.output_dir={tmp_path / 'run'}", "data.num_frames=7"]
    assert read_settings(FinetuneConfig, None, [*words, f"model.init={weights}"])
    with pytest.raises(SettingFaults, match=r"try data\.num_frames=8"):
        read_settings(FinetuneConfig, None, words)


def test_baselines_have_sizes_of_their_own(tmp_path: Path, toy: Path) -> None:
    words = [f"data.manifest={toy}", f"run.output_dir={tmp_path / 'run'}"]
    words += ["model.name=slowfast_r50", "data.num_frames=6", "data.crop_size=33"]
    with pytest.raises(SettingFaults) as caught:
        read_settings(FinetuneConfig, None, words)
    about = [fault.split()[0] for fault in caught.value.faults]
    assert "data.num_frames" in about and "data.crop_size" not in about


def test_one_fault_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.manifest=/no/list", f"run.output_dir={tmp_path / 'run'}"]
    assert main(["pretrain", "own_videos", *words]) == 2
    said = "hpm-video pretrain: data.manifest: /no/list does not exist (expected a list of videos)"
    assert capsys.readouterr().err.splitlines() == [said]


def _next(out: str) -> list[list[str]]:
    """The commands that a run names at its end."""
    before, _, after = out.partition("\nnext:\n")
    assert "\ndone: " in before
    return [shlex.split(line, comments=True) for line in after.splitlines()]


def test_the_next_commands_can_be_pasted(
    tmp_path: Path,
    toy: Path,
    pretrain_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a pre-training to pictures through it and to a classifier, and from that to classes."""
    run = tmp_path / "the run"
    assert main(pretrain_arguments(run)) == 0
    out = capsys.readouterr().out
    assert "12 steps, 2 epochs of 24 videos, loss " in out
    pictures, through, finetuning = _next(out)
    assert pictures[:3] == ["hpm-video", "visualize", str(run)] and Path(pictures[3]).is_file()
    few = ["--num-masks", "1", "--num-checkpoints", "4"]
    assert main([*through[1:], *few]) == 0
    assert "too few checkpoints" not in capsys.readouterr().out

    words = ["optim.epochs=1", "run.device=cpu", "data.num_workers=0", "data.decoder=decord"]
    assert (
        main([*finetuning[1:], *words, f"data.val_manifest={toy}", "evaluation.every_epochs=0"])
        == 0
    )
    out = capsys.readouterr().out
    assert "(chance 0.125, 1 of 8 classes)" in out
    evaluation, prediction, both = _next(out)
    assert evaluation[1:] == ["evaluate", f"{run}_finetuned"]
    assert main([*prediction[1:], "num_workers=0", "device=cpu"]) == 0
    assert (Path(f"{run}_finetuned") / "classes.csv").is_file()
    assert both[both.index("--classifier") + 1] == f"{run}_finetuned"


def test_a_list_without_labels_is_not_proposed(
    tmp_path: Path,
    toy: Path,
    pretrain_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = tmp_path / "bare.csv"
    rows = [line.split(",")[0] for line in toy.read_text().splitlines()]
    bare.write_text("\n".join(["path", *(str(toy.parent / row) for row in rows[1:])]) + "\n")
    settings = [f"data.manifest={bare}", "optim.epochs=1"]
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    assert "data.manifest=LABELLED.csv" in _next(capsys.readouterr().out)[-1]


def test_a_recipe_for_a_gpu_says_so_where_there_is_none(
    tmp_path: Path,
    pretrain_arguments: Callable[..., list[str]],
    finetune_arguments: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (recipe := tmp_path / "own_videos_mine.yaml").write_text("# Hardware: one GPU.\nrun: {}\n")
    for job, arguments in (("pretrain", pretrain_arguments), ("finetune", finetune_arguments)):
        for device in ("auto", "cpu"):
            folder = tmp_path / job / device
            words = arguments(folder, f"run.device={device}", "optim.epochs=1")
            assert main([words[0], str(recipe), *words[2:]]) == 0
            log = (folder / "log.txt").read_text()
            said = f"warning: no GPU here: {recipe} is meant for one GPU; hpm-video {job} own_"
            assert (said in log) == (device == "auto")


def test_the_best_epoch_is_named_where_the_last_is_evaluated(
    tmp_path: Path,
    toy: Path,
    finetune_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = iter((0.6, 0.4))  # of the true class: the first evaluation is the better one

    def evaluated(*_: object, **__: object) -> Evaluation:
        scores = np.array([[share := next(shares), 1 - share]], dtype=np.float32)
        return Evaluation(scores, np.zeros(1, dtype=np.int64), ("x",), ())

    monkeypatch.setattr(run_evaluation, "evaluate_classifier", evaluated)
    run = tmp_path / "run"
    judged = (f"data.val_manifest={toy}", "evaluation.every_epochs=1", "evaluation.best_by=loss")
    assert main(finetune_arguments(run, *judged)) == 0
    out = capsys.readouterr().out
    last, best, *_ = _next(out)
    assert last[1:] == ["evaluate", str(run)] and best == [*last, "checkpoint=best"]
    losses = re.findall(r"val_loss ([\d.]+)", (run / "log.txt").read_text())
    (said,) = re.findall(r"# the same for epoch \d, with the best val_loss \(([\d.]+)\)", out)
    assert float(said) == pytest.approx(min(map(float, losses)), abs=1e-3)
    for command, words in (
        (last, f"checkpoint=best evaluates the one with the best loss ({said}) on data.val_man"),
        (best, f"has the best loss ({said}) on data.val_manifest; that list chose it, so"),
    ):
        assert main([*command[1:], "num_workers=0", "device=cpu"]) == 0
        assert words in capsys.readouterr().out


def test_the_last_loss_covers_as_many_steps_as_others(
    tmp_path: Path,
    pretrain_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 12 steps in records of 5, the last record covers two."""
    assert main(pretrain_arguments(tmp_path / "run", "run.log_every=5")) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, middle, last = (json.loads(line)["loss"] for line in lines)
    said = re.findall(r"loss ([\d.]+) -> ([\d.]+)", capsys.readouterr().out)
    assert (f"{first:.3f}", f"{(5 * middle + 2 * last) / 7:.3f}") in said
    assert f"{(5 * middle + 2 * last) / 7:.3f}" != f"{last:.3f}"


def test_a_file_that_looks_like_an_option_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-pain_025_01.MP4", "run"):
        (tmp_path / name).touch()
    for job in (["predict", "run"], ["visualize", "run", "-o", "x"]):
        with pytest.raises(SystemExit):
            main([*job, "-pain_025_01.MP4"])
        assert "for the file or folder, write ./-pain_025_01.MP4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "run", "-gone_025.MP4"])
    assert "=VALUE" not in capsys.readouterr().err


def test_folders_where_a_list_or_a_new_folder_may_be_named(tmp_path: Path) -> None:
    for job, name, place in (("start", "val", tmp_path), ("submit", "folder", tmp_path / "new")):
        check_there(argparse.Namespace(job=job, **{name: str(place)}))
    with pytest.raises(SettingFaults, match="is a folder, not a list of videos"):
        check_there(argparse.Namespace(job="probe", val=str(tmp_path)))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("start My clips", "start 'My clips'"),
        ("start other --val My clips", "start other --val 'My clips'"),
        ("start other --val=My clips", "start other '--val=My clips'"),
        ("predict other My clips/a b.mp4", "predict other 'My clips/a b.mp4'"),
        ("data check My clips/a b.csv --root other", "data check 'My clips/a b.csv' --root other"),
        ("finetune own_videos data.manifest=My clips/a b.csv",
         "finetune own_videos 'data.manifest=My clips/a b.csv'"),
        ("submit data check My clips/a b.csv", "submit data check 'My clips/a b.csv'"),
        ("pretrain My clips/a b.yaml", "pretrain 'My clips/a b.yaml'"),
    ],
)  # fmt: skip
def test_a_path_that_the_shell_has_split_is_named_in_quotes(
    words: str,
    meant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My clips").mkdir()
    (tmp_path / "other").mkdir()
    for ending in ("mp4", "csv", "yaml"):
        (tmp_path / "My clips" / f"a b.{ending}").touch()
    with suppress(SystemExit):
        assert main(words.split()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f" must be quoted, since it has spaces: hpm-video {meant}")


def test_a_word_too_many_is_not_taken_for_a_part_of_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a b"):
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit):
        main(["start", "a", "b"])
    assert "unrecognized arguments: b: " in capsys.readouterr().err


def test_a_missing_path_is_found_one_folder_below_or_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("old", "W 2", ".hidden")):
        (tmp_path / name / "run").mkdir(parents=True)
        (file := tmp_path / name / "train.csv").touch()
        os.utime(file, (k, k))
    (tmp_path / "trains.csv").touch()
    assert similar_path("train.csv") == "; did you mean 'W 2/train.csv' or old/train.csv?"
    assert similar_path(tmp_path / "train.csv").count(str(tmp_path)) == 2
    assert similar_path("gone.csv") == ""
    assert similar_path("trans.csv") == "; did you mean trains.csv?"
    monkeypatch.chdir(tmp_path / "old")
    assert similar_path("old/train.csv") == "; did you mean train.csv?"
    assert similar_path("old/test.csv") == ""


def test_a_similar_path_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("My clips (2024), take 2", "-clips"):
        (tmp_path / name).mkdir()
    assert similar_path("My clips (2024)") == "; did you mean 'My clips (2024), take 2'?"
    assert similar_path("-clip") == "; did you mean ./-clips?"


def test_a_missing_place_may_be_a_folder_or_a_list(tmp_path: Path) -> None:
    lacking = argparse.Namespace(job="start", folder=str(tmp_path), val=str(tmp_path / "gone"))
    with pytest.raises(SettingFaults, match=r"\(expected a folder or list of videos\)"):
        check_there(lacking)
    with pytest.raises(SettingFaults, match=r"\(expected a list of videos\)"):
        check_there(argparse.Namespace(job="probe", val=str(tmp_path / "gone")))


def test_a_missing_model_is_answered_with_the_runs_that_there_are(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"data.manifest={toy}", "run.output_dir=new", "model.init=outputs/preX"]

    def said() -> str:
        with pytest.raises(SettingFaults) as caught:
            read_settings(FinetuneConfig, None, words)
        fault, *_ = caught.value.faults
        assert fault.startswith(words[-1].partition("=")[0])
        return fault.partition("must be a checkpoint or a run folder")[2]

    assert said() == "; set model.init=null to train from scratch"
    places = {"W a/first": "masking", "W a/classes": "mixing", "outputs/day/one": "mixing"}
    for name, group in places.items():
        (tmp_path / name / "checkpoints" / "last").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(f"{group}: {{}}\nmodel: {{}}\n")
    (tmp_path / "W a" / "unsaved").mkdir()
    assert said() == "; set 'model.init=W a/first', or model.init=null to train from scratch"
    (tmp_path / "outputs" / "day" / "one" / "config.yaml").write_text("masking: {}\n")
    assert said() == "; set model.init=outputs/day/one, or model.init=null to train from scratch"
    words[-1] = "run.resume=gone"
    assert said() == "; set 'run.resume=W a/classes', or run.resume=null to begin a new run"
    for job, run in (("evaluate", "'W a/classes'"), ("visualize", "'W a/first'")):
        with pytest.raises(SettingFaults, match=f"does not exist; there is {run}"):
            check_there(argparse.Namespace(job=job, checkpoint="gone"))


def test_a_name_that_no_file_can_have_gets_no_suggestion(tmp_path: Path) -> None:
    assert similar_path(tmp_path / ("a" * 300) / "b") == ""
    (tmp_path / "shard-0000.tar").touch()
    assert similar_path(tmp_path / "shard-{0000..0123}.tar") == ""
    assert similar_path(tmp_path / "shard-000.tar").endswith("shard-0000.tar?")


def test_a_missing_output_folder_gets_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["visualize", "model.pt", "video.mp4"])
    assert "-o/--output-dir, for example -o outputs/new" in capsys.readouterr().err
