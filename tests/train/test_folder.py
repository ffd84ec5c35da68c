"""The folder of a run: which may be written to, what is written, and where a run starts from."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from hpm_video.cli.main import main
from hpm_video.config import FinetuneConfig, PretrainConfig, RunConfig
from hpm_video.config.settings import config_to_dict, load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.mixture import mixture_of
from hpm_video.models.build import build_classifier, build_model
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import World
from hpm_video.runtime.lock import unlock_folder
from hpm_video.train.run import folder as run_folder
from hpm_video.train.run.folder import check_run_folder, claim_run_folder
from hpm_video.train.run.starting_point import Start, describe_data, find_start
from hpm_video.weights.checkpoint import linked_checkpoint, save_checkpoint

Arguments = Callable[..., list[str]]
ALONE = World(0, 1, torch.device("cpu"))


def _config(folder: Path | None, *overrides: str) -> PretrainConfig:
    where = [] if folder is None else [f"run.output_dir={folder}"]
    return load_config(PretrainConfig, None, [*where, "data.manifest=a.csv", *overrides])


def _claim(config: PretrainConfig, world: World = ALONE) -> Path:
    """As the loops do: first look, then write."""
    folder = check_run_folder(config)
    claim_run_folder(folder, config, world, last=linked_checkpoint(folder))
    return folder


def test_looking_writes_nothing(tmp_path: Path) -> None:
    assert check_run_folder(_config(tmp_path / "some" / "run")) == tmp_path / "some" / "run"
    assert os.listdir(tmp_path) == []


def test_a_new_folder_is_claimed_with_its_settings(tmp_path: Path) -> None:
    config = _config(tmp_path / "some" / "run")
    folder = _claim(config)
    assert folder == tmp_path / "some" / "run"
    assert sorted(os.listdir(folder)) == ["config.yaml", "run.lock"]
    assert load_config(PretrainConfig, folder / "config.yaml") == config
    assert _claim(config) == folder


@pytest.mark.parametrize(
    "override",
    ["optim.epochs=700", "run.seed=1", "masking.mask_ratio=0.8", "model.size=tiny",
     "data.manifest=b.csv", "data.repeats=2", "run.precision=float32", "model.init=some.pt"],
)  # fmt: skip
def test_a_folder_of_other_settings_is_refused_with_the_key(tmp_path: Path, override: str) -> None:
    _claim(_config(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "last").symlink_to("step_00000001.pt")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="belongs to a run with other settings") as caught:
        check_run_folder(_config(tmp_path / "run", override))
    key = override.split("=", maxsplit=1)[0]
    assert f"({key})" in str(caught.value)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"data.antialias": False}, "continue it with data.antialias=false, or choose another"),
        ({"data.antialias": None, "optim.epochs": 900},
         "continue it with optim.epochs=900, or choose another"),
        ({"optim.clip_grad": 0.5, "teacher.ramp": 0.25},
         "continue it with teacher.ramp=0.25 optim.clip_grad=0.5, or choose another"),
        ({"optim.betas": [0.8, 0.9]}, "(optim.betas): choose another folder"),
        ({"data.decoder": "a b\x1b"}, "(data.decoder): choose another folder"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_would_continue_the_run(
    tmp_path: Path, before: dict[str, Any], words: str
) -> None:
    """Also of a setting that is younger than the run; None: it had no such setting."""
    config = _config(tmp_path)
    stored = config_to_dict(config)
    for key, value in before.items():
        group, name = key.split(".")
        stored[group][name] = value
        if value is None:
            del stored[group][name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last").symlink_to("step_00000001.pt")
    with pytest.raises(ValueError, match=re.escape(words)):
        check_run_folder(config)


def test_a_run_goes_on_with_settings_younger_than_itself(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _claim(_config(folder))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last").symlink_to("step_00000001.pt")
    there = yaml.safe_load((folder / "config.yaml").read_text())
    assert there["masking"].pop("decoder_mask") == "running_cell"
    del there["loss"]
    (folder / "config.yaml").write_text(yaml.safe_dump(there))
    check_run_folder(_config(folder))
    with pytest.raises(ValueError, match=re.escape("(masking.decoder_mask)")):
        check_run_folder(_config(folder, "masking.decoder_mask=random"))


def test_an_earlier_giant_goes_on_with_the_decoder_that_it_has(tmp_path: Path) -> None:
    """Before decoders had a setting of their MLPs these were 4 times as wide in all sizes."""
    folder, giant = tmp_path / "run", ["model.size=giant", "model.patch_size=14"]
    _claim(_config(folder, *giant))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last").symlink_to("step_00000001.pt")
    there = yaml.safe_load((folder / "config.yaml").read_text())
    assert there["model"].pop("decoder_mlp_ratio") is None
    (folder / "config.yaml").write_text(yaml.safe_dump(there))
    check_run_folder(_config(folder, *giant, "model.decoder_mlp_ratio=4"))
    with pytest.raises(ValueError, match=re.escape("(model.decoder_mlp_ratio)")):
        check_run_folder(_config(folder, *giant))


def test_a_start_that_saved_nothing_does_not_occupy_its_folder(tmp_path: Path) -> None:
    _claim(_config(tmp_path / "run", "data.manifest=mistaken.csv"))
    (tmp_path / "run" / "bad_videos.csv").write_text("path,reason\nx.mp4,broken\n")
    _claim(_config(tmp_path / "run", "data.manifest=right.csv"))
    assert "right.csv" in (tmp_path / "run" / "config.yaml").read_text()
    assert not (tmp_path / "run" / "bad_videos.csv").exists()


@pytest.mark.parametrize(
    "override",
    ["run.log_every=7", "run.checkpoint_every_minutes=1", "run.keep_checkpoints=5",
     "run.compile=true", "run.device=cpu", "run.resume=some.pt", "data.num_workers=0",
     "data.max_bad_fraction=0.5", "data.root=/elsewhere", "data.batch_size=16",
     "optim.accumulation=2", "run.collective_timeout_s=5"],
)  # fmt: skip
def test_what_does_not_change_results_may_change(tmp_path: Path, override: str) -> None:
    _claim(_config(tmp_path / "run"))
    config = _config(tmp_path / "run", override)
    _claim(config)
    assert load_config(PretrainConfig, tmp_path / "run" / "config.yaml") == config


def test_a_moved_folder_is_still_the_run(tmp_path: Path) -> None:
    _claim(_config(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    _claim(_config(tmp_path / "moved"))


def test_paths_that_were_moved_with_the_run_are_the_same(tmp_path: Path) -> None:
    def settings(home: Path, init: str, epochs: int = 300) -> PretrainConfig:
        words = (f"model.init={home / init}", f"data.manifest={tmp_path}/a.csv")
        return _config(home / "fine", *words, f"optim.epochs={epochs}")

    folder = _claim(settings(tmp_path / "study", "pre"))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last").symlink_to("step_00000001.pt")
    unlock_folder(folder)
    (tmp_path / "study").rename(tmp_path / "elsewhere")
    check_run_folder(settings(tmp_path / "elsewhere", "pre"))
    for changed, key in (
        (settings(tmp_path / "elsewhere", "other"), "model.init"),
        (settings(tmp_path / "elsewhere", "pre", epochs=200), "optim.epochs"),
    ):
        with pytest.raises(ValueError, match=rf"other settings \({key}\)"):
            check_run_folder(changed)


def test_folders_that_are_not_for_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run.output_dir \(null\) must name a folder"):
        check_run_folder(_config(None))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file\) is a file: must be a folder"):
        check_run_folder(_config(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"lies under a file \(.*file\): must be a folder"):
        check_run_folder(_config(tmp_path / "file" / "run"))
    with pytest.raises(ValueError, match="holds other files"):
        check_run_folder(_config(tmp_path))
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_claim_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ValueError, match=r"config.yaml cannot be written: killed"):
            _claim(_config(tmp_path / "run"))
    unlock_folder(tmp_path / "run")
    assert set(os.listdir(tmp_path / "run")) == {"run.lock"}
    (tmp_path / "run" / ".config.yaml.123.tmp").touch()  # as SIGKILL leaves it
    _claim(_config(tmp_path / "run"))
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "run.lock").mkdir(parents=True)  # permissions do not stop everybody
    with pytest.raises(ValueError, match=r"run/run.lock must be a regular file, but is a folder"):
        _claim(_config(tmp_path / "run"))


def test_a_start_that_read_an_older_checkpoint_than_the_last_is_refused(tmp_path: Path) -> None:
    """Another process saved, and let go, while this one was reading."""
    folder = _claim(_config(tmp_path / "run"))
    unlock_folder(folder)
    state = {"kind": "pretrain", "config": {}, "model": {}}
    save_checkpoint(folder / "checkpoints", {**state, "step": 1}, keep=1)
    read = linked_checkpoint(folder)
    save_checkpoint(folder / "checkpoints", {**state, "step": 2}, keep=1)
    for last in (read, None):
        with pytest.raises(
            ValueError, match="was continued by another process while this one started"
        ):
            claim_run_folder(folder, _config(folder), ALONE, last=last)
    claim_run_folder(folder, _config(folder), ALONE, last="step_00000002.pt")


@pytest.mark.parametrize("where", ["load_optimizer", "forget_weights"])
def test_an_error_after_the_claim_lets_the_folder_go(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("does not fit")

    monkeypatch.setattr(Start, where, fail)
    with pytest.raises(ValueError, match="does not fit"):
        main(pretrain_arguments(tmp_path / "run"))
    assert (tmp_path / "run" / "run.lock").read_text() == ""


HOLDER = """
import os, sys, time
from pathlib import Path
import torch
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.runtime.distributed import World
from hpm_video.train.run.folder import claim_run_folder
settings = [f"run.output_dir={sys.argv[1]}", "data.manifest=a.csv"]
config = load_config(PretrainConfig, None, settings)
claim_run_folder(Path(sys.argv[1]), config, World(0, 1, torch.device("cpu")), last=None)
child = os.fork()  # as the loader's workers are
if child:
    print(os.getpid(), child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Another process, with a child, that has claimed a folder."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    parent, child = map(int, process.stdout.readline().split())
    assert parent == process.pid
    try:
        yield folder, process
        os.kill(child, 0)  # it was alive all the time
    finally:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_folder_in_use_is_refused_and_left_as_it_is(
    holder: tuple[Path, subprocess.Popen[str]],
) -> None:
    folder, process = holder
    before = (folder / "config.yaml").read_bytes()
    for _ in range(2):
        with pytest.raises(ValueError, match="is in use by another process") as caught:
            _claim(_config(folder, "run.log_every=3"))
        assert f"run.output_dir ({folder})" in str(caught.value)
        assert f"(process {process.pid} on {socket.gethostname()})" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (folder / "config.yaml").read_bytes() == before


def test_other_processes_of_the_same_job_do_not_lock(
    holder: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "gather_objects", lambda value, world: [None, value])
    _claim(_config(holder[0]), World(1, 2, torch.device("cpu")))


def test_a_killed_process_leaves_no_lock(holder: tuple[Path, subprocess.Popen[str]]) -> None:
    """Not even for as long as its orphaned workers live."""
    folder, process = holder
    process.kill()
    process.wait()
    _claim(_config(folder))


def test_a_folder_is_free_after_its_run(tmp_path: Path) -> None:
    folder = _claim(_config(tmp_path / "run"))
    claim = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", claim, str(folder / "run.lock")]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    _claim(_config(tmp_path / "run"))  # once more by this process: still its own
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    unlock_folder(folder)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    _claim(_config(tmp_path / "run"))


@pytest.mark.parametrize(
    ("mine", "theirs"), [(FinetuneConfig, PretrainConfig), (PretrainConfig, FinetuneConfig)]
)
def test_a_folder_of_another_job_is_named_as_such(tmp_path: Path, mine: type, theirs: type) -> None:
    settings = [f"run.output_dir={tmp_path / 'run'}", "data.manifest=a.csv"]
    _claim(load_config(theirs, None, settings))
    with pytest.raises(ValueError) as caught:
        check_run_folder(load_config(mine, None, settings))
    jobs = {PretrainConfig: "pretrain", FinetuneConfig: "finetune"}
    assert str(caught.value) == (
        f"run.output_dir ({tmp_path / 'run'}) holds a {jobs[theirs]} run: "
        f"must be empty or hold a {jobs[mine]} run; "
        f"try run.output_dir={tmp_path / 'run'}_{jobs[mine].removesuffix('e')}ed"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_writes_after_all_have_looked_and_before_any_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    folder = tmp_path / "run"
    found: list[bool] = []

    def gather(value: object, world: World) -> list[object]:
        found.append(folder.exists())
        return [None, None]

    monkeypatch.setattr(run_folder, "gather_objects", gather)
    _claim(_config(folder), World(rank, 2, torch.device("cpu")))
    assert found == [False, rank == 0]


@pytest.mark.parametrize("content", [b"optim: {epochs", b"just words", b"", b"- 1\n", b"\xff\xfe"])
def test_a_broken_config_in_the_folder_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.yaml does not hold the settings of a run"):
        check_run_folder(_config(tmp_path / "run"))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == content


def test_config_files_are_plain_yaml(tmp_path: Path) -> None:
    _claim(_config(tmp_path / "run"))
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert values["data"]["manifest"] == ["a.csv"]
    assert values["optim"]["betas"] == [0.9, 0.95]


SMALL = (
    *("model.width=8", "model.depth=1", "model.heads=2", "model.patch_size=4"),
    *("model.decoder_width=8", "model.decoder_heads=2", "model.decoder_depth=1"),
    *("loss.prediction=none", "masking.hard_ratio_end=0"),
)


def _model(config: PretrainConfig, value: float = 0.0) -> nn.Module:
    built = build_model(config.model, TokenGrid(2, 2, 2), predict_loss=False)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(value)
    return built


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    """Of a run in tmp_path/run, with clips of 4 frames and 8 x 8 pixels."""
    return _config(tmp_path / "run", *SMALL, "data.num_frames=4", "data.crop_size=8")


Save = Callable[..., Path]
ENCODER = ("size", "width", "depth", "heads", "patch_size", "tubelet_size")


@pytest.fixture
def save(tmp_path: Path, config: PretrainConfig) -> Save:
    """Writes the checkpoint of a step, whose weights all have its number as value."""

    def write(folder: str, step: int, **changes: Any) -> Path:
        weights = _model(config, step).state_dict()
        state = {"kind": "pretrain", "config": config_to_dict(config), "step": step}
        state |= {"model": weights, "optimizer": {}}
        return save_checkpoint(tmp_path / folder, {**state, **changes}, keep=1)

    return write


def test_start_order(tmp_path: Path, config: PretrainConfig, save: Save) -> None:
    """The run's own last, then what to resume, then weights to start from, then scratch."""

    def start(run: RunConfig, init: str | None) -> tuple[int | None, str, nn.Module]:
        fresh = _model(config)
        of = replace(config, run=run, model=replace(config.model, init=init))
        found = find_start(of, tmp_path / "run", kind="pretrain", total_steps=7)
        found.load_into(fresh)
        assert found.state is None or found.init is None
        return found.state and found.state["step"], found.line, fresh

    def value(of: nn.Module, part: str) -> float:
        return of.get_submodule(part).weight.mean().item()

    for name, step in [("init", 20), ("resume", 5)]:
        save(name, step)
    resume = replace(config.run, resume=str(tmp_path / "resume"))

    step, line, fresh = start(config.run, None)
    assert (step, line) == (None, "starts from scratch")
    assert value(fresh, "encoder.embed") == 0

    step, line, fresh = start(config.run, str(tmp_path / "init"))  # of any number of steps
    assert step is None
    assert line == f"starts with weights of step 20 of {tmp_path / 'init'}"
    assert value(fresh, "encoder.embed") == value(fresh, "reconstructor.head") == 20

    step, line, fresh = start(resume, str(tmp_path / "init"))
    assert step == 5
    assert line == f"continues after step 5 of {tmp_path / 'resume'}"
    assert value(fresh, "encoder.embed") == value(fresh, "reconstructor.head") == 5

    # From here on, neither of the others is even looked at.
    own = save("run/checkpoints", 7).with_name("last")
    for run, init in [(resume, "nowhere"), (replace(config.run, resume="nowhere"), None)]:
        step, line, fresh = start(run, init)
        end = "which is its end: to train further, set optim.epochs=801 or more"
        assert (step, line) == (7, f"continues after step 7 of {own}, {end}")
        assert value(fresh, "encoder.embed") == 7


def test_what_a_start_names_must_be_there(tmp_path: Path, config: PretrainConfig) -> None:
    for changed in (
        replace(config, run=replace(config.run, resume="nowhere")),
        replace(config, model=replace(config.model, init="nowhere")),
    ):
        with pytest.raises(FileNotFoundError, match=r"\(nowhere\) do(es)? not exist"):
            find_start(changed, tmp_path / "run", kind="pretrain", total_steps=7)


@pytest.mark.parametrize("where", ["run/checkpoints", "resume"])
def test_a_start_beyond_the_end_is_refused(
    tmp_path: Path, config: PretrainConfig, save: Save, where: str
) -> None:
    save(where, 8)
    config = replace(config, run=replace(config.run, resume=str(tmp_path / "resume")))
    with pytest.raises(
        ValueError, match=r"is from step 8, but this run has only 7 steps"
    ) as caught:
        find_start(config, tmp_path / "run", kind="pretrain", total_steps=7)
    assert str(tmp_path / where) in str(caught.value)
    if where == "resume":  # another run's last step leaves this one nothing to do
        with pytest.raises(ValueError, match=r"is from step 8, but this run has only 8 steps"):
            find_start(config, tmp_path / "run", kind="pretrain", total_steps=8)
    total = 8 if where == "run/checkpoints" else 9
    found = find_start(config, tmp_path / "run", kind="pretrain", total_steps=total)
    assert found.state is not None and found.state["step"] == 8


@pytest.mark.parametrize("where", ["run/checkpoints", "resume"])
@pytest.mark.parametrize(("kind", "other"), [("pretrain", "finetune"), ("finetune", "pretrain")])
def test_a_start_of_another_kind_is_refused(
    tmp_path: Path, config: PretrainConfig, save: Save, where: str, kind: str, other: str
) -> None:
    save(where, 3, kind=other)
    config = replace(config, run=replace(config.run, resume=str(tmp_path / "resume")))
    with pytest.raises(ValueError, match=rf"must be of kind {kind}, not {other}") as caught:
        find_start(config, tmp_path / "run", kind=kind, total_steps=7)
    assert str(tmp_path / where) in str(caught.value)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_weights_to_start_from_may_be_of_either_kind(
    tmp_path: Path, config: PretrainConfig, save: Save, kind: str
) -> None:
    changes: dict[str, Any] = {}
    if kind == "finetune":
        of, clip = FinetuneConfig(), {"num_frames": 4, "crop_size": 8}
        like = {name: getattr(config.model, name) for name in ENCODER}
        of = replace(of, data=replace(of.data, **clip), model=replace(of.model, **like))
        model = build_classifier(of.model, **clip, num_classes=3)
        changes = {"kind": kind, "config": config_to_dict(of), "num_classes": 3}
        changes["model"] = model.state_dict()
    save("init", 3, **changes)
    config = replace(config, model=replace(config.model, init=str(tmp_path / "init")))
    found = find_start(config, tmp_path / "run", kind="pretrain", total_steps=7)
    assert found.state is None
    assert found.init is not None and found.init.state["kind"] == kind


DATA = {"videos": "abc", "num_videos": 24, "videos_per_step": 8}
OTHER_DATA = [
    ({"videos": "abd", "num_videos": 23}, r"the list of videos has changed \(24 before, 23 now\)"),
    ({"videos_per_step": 4}, r"a step had 8 videos and now has 4"),
    ({"videos": "x", "videos_per_step": 4}, r"the list of videos has changed .* and a step had 8"),
]


@pytest.mark.parametrize(("changes", "words"), OTHER_DATA)
def test_other_data_are_no_part_of_a_run(
    tmp_path: Path, config: PretrainConfig, save: Save, changes: dict[str, object], words: str
) -> None:
    """Its own folder is refused; who names a checkpoint to resume wants it, and is told."""
    path = save("run/checkpoints", 3, data=DATA)

    def start(folder: str, data: dict[str, object], **run: str) -> str:
        of = replace(config, run=replace(config.run, **run))
        where = tmp_path / folder
        return find_start(of, where, kind="pretrain", total_steps=7, data=data).line

    assert start("run", DATA).endswith("/last")
    with pytest.raises(ValueError, match=rf"cannot continue after step 3, as {words}") as caught:
        start("run", {**DATA, **changes})
    assert f"run.output_dir ({tmp_path / 'run'})" in str(caught.value)
    assert "\n" not in str(caught.value)
    line = start("other", {**DATA, **changes}, resume=str(path))
    assert re.search(rf"^continues after step 3 of {path}, but {words}", line)


def test_what_makes_a_list_another_one(tmp_path: Path) -> None:
    """Names, order and labels do; where the list lies, and what else it tells of videos, do not."""

    def digest(rows: str, name: str = "list.csv") -> str:
        (tmp_path / name).write_text(f"path,label,num_frames,status\n{rows}")
        manifest = read_manifest(tmp_path / name)
        described = describe_data(manifest, mixture_of(manifest, []), videos_per_step=4)
        assert described["num_videos"] == len(manifest)
        assert described["videos_per_step"] == 4
        return str(described["videos"])

    same = digest("a.mp4,0,,\nb.mp4,1,,\n")
    assert digest("a.mp4,0,,\nb.mp4,1,,\n", "moved.csv") == same
    assert digest("a.mp4,0,50,ok\nb.mp4,1,60,ok\nc.mp4,0,,broken\n") == same
    others = ["b.mp4,1,,\na.mp4,0,,\n", "a.mp4,1,,\nb.mp4,0,,\n", "a.mp4,0,,\n"]
    others += ["a.mp4,0,,\nc.mp4,1,,\n", "a.mp4b,0,,\n.mp4,1,,\n"]
    assert len({same, *map(digest, others)}) == 6


def test_a_damaged_checkpoint_is_not_passed_over(
    tmp_path: Path, config: PretrainConfig, save: Save
) -> None:
    """Starting anew in its place would throw a run away."""
    path = save("run/checkpoints", 3)
    path.write_bytes(path.read_bytes()[:100])
    save("resume", 2)
    config = replace(config, run=replace(config.run, resume=str(tmp_path / "resume")))
    with pytest.raises(ValueError, match=r"checkpoint \(.*last\) cannot be read"):
        find_start(config, tmp_path / "run", kind="pretrain", total_steps=7)


def test_the_trained_grid(tmp_path: Path, config: PretrainConfig, save: Save) -> None:
    """Of the settings that a checkpoint was made with, unless it names an earlier one."""

    def trained_grid(key: str | None) -> TokenGrid | None:
        changes = {} if key is None else {key: str(tmp_path / "source")}
        run = replace(config.run, resume=changes.get("resume"))
        model = replace(config.model, init=changes.get("init"))
        # The settings of the run itself play no part.
        of = replace(config, run=run, model=model, data=replace(config.data, num_frames=16))
        found = find_start(of, tmp_path / "run", kind="pretrain", total_steps=7)
        return found.trained_grid()

    assert trained_grid(None) is None
    for changes, grid in [({}, (2, 2, 2)), ({"trained_grid": [8, 3, 5]}, (8, 3, 5))]:
        save("source", 3, **changes)
        assert trained_grid("init") == trained_grid("resume") == TokenGrid(*grid)


def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, config: PretrainConfig, save: Save
) -> None:
    save("source", 3)
    for changed in (
        replace(config, run=replace(config.run, resume=str(tmp_path / "source"))),
        replace(config, model=replace(config.model, init=str(tmp_path / "source"))),
    ):
        found = find_start(changed, tmp_path / "run", kind="pretrain", total_steps=7)
        wide = build_model(replace(config.model, width=16), TokenGrid(2, 2, 2), predict_loss=False)
        with pytest.raises(ValueError, match="does not fit") as caught:
            found.load_into(wide)
        assert f"({tmp_path / 'source'})" in str(caught.value)
