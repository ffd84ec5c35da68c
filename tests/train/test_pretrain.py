"""Pre-training from end to end, on toy videos: what a run leaves, and that nothing but its
settings decides what comes out: no kill, no signal, no number of processes."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import children_of, run_together
from runs import assert_same_run, tensors, untimed

from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.runtime import lock as run_lock
from hpm_video.train.run import loop
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]
# A new interpreter that runs this checkout's package, with as many threads as the tests have.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; from hpm_video.cli.main import main; sys.exit(main())",
]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}

RECORD = [
    *("step", "epoch", "hard_ratio", "momentum", "lr"),
    *("loss", "reconstruction_loss", "prediction_loss", "grad_norm", "grad_norm_max"),
    *("rank_accuracy", "spearman", "hard_share", "hard_loss", "random_loss"),
    *("feature_variation", "effective_rank", "ema_distance"),
    *("skipped_steps", "clips_per_second", "data_wait_fraction"),
]


def test_a_run_leaves_exactly_its_files(pretrained: Path) -> None:
    assert sorted(os.listdir(pretrained)) == [
        *("checkpoints", "config.yaml", "log.txt", "metrics.jsonl", "run.lock", "tensorboard")
    ]
    assert pretrained.resolve() not in run_lock._locks  # others may go on with it
    assert sorted(os.listdir(pretrained / "checkpoints")) == [
        "history", "last", "step_00000012.pt",
    ]  # fmt: skip
    assert len(os.listdir(pretrained / "tensorboard")) == 1
    config = load_config(PretrainConfig, pretrained / "config.yaml")
    assert config.model.width == 32
    assert config.optim.weight_decay == PretrainConfig().optim.weight_decay  # resolved
    log = (pretrained / "log.txt").read_text()
    assert "starts from scratch" in log
    assert "24 videos, 6 steps per epoch, 12 steps in all" in log
    assert "4 videos, 4 clips per step: lr 0.064 * 4 / 256 = 0.001" in log


def test_records_have_the_names_that_others_rely_on(pretrained: Path) -> None:
    records = read_records(pretrained)
    assert [record["step"] for record in records] == [2, 4, 6, 8, 10, 12]
    assert [record["epoch"] for record in records] == pytest.approx(
        [2 / 6, 4 / 6, 1, 8 / 6, 10 / 6, 2], abs=1e-4
    )
    for record in records:
        assert list(record) == RECORD
        # The mask becomes hard all through: at the end no tube of it is random.
        missing = ["random_loss"] if record["step"] == 12 else []
        assert [name for name, value in record.items() if value is None] == missing
        assert all(math.isfinite(value) for value in record.values() if value is not None)
        total = record["reconstruction_loss"] + record["prediction_loss"]
        assert record["loss"] == pytest.approx(total, rel=1e-5)
        assert record["hard_ratio"] == pytest.approx(record["step"] / 12)
        assert 0 <= record["rank_accuracy"] <= 1
        assert 0 <= record["data_wait_fraction"] <= 1
        progress = record["step"] / 12
        momentum = 0.999 + 0.0009 * min(progress / 0.125, 1)
        assert record["momentum"] == pytest.approx(momentum)
        step = record["step"] - 1  # the rate is set before a step, by the number of those done
        low, peak = 1e-5 * 4 / 256, 0.064 * 4 / 256
        lr = low + (peak - low) * (1 + math.cos(math.pi * step / 12)) / 2
        assert record["lr"] == pytest.approx(lr)


def test_a_checkpoint_holds_plain_data(pretrained: Path) -> None:
    state = torch.load(pretrained / "checkpoints" / "last", weights_only=True)
    assert state["kind"] == "pretrain"
    assert state["step"] == 12
    assert state["window"] == [[]]  # of the one process, no step since the last record
    assert "reconstructor.head.weight" in state["model"]
    assert not [name for name in state["teacher"] if name.startswith("reconstructor.")]
    assert state["teacher"].keys() < state["model"].keys()


def test_a_finished_run_stays_as_it_is(pretrained: Path, pretrain_arguments: Arguments) -> None:
    before = (pretrained / "metrics.jsonl").read_bytes()
    assert main(pretrain_arguments(pretrained)) == 0
    assert (pretrained / "metrics.jsonl").read_bytes() == before
    assert "continues after step 12" in (pretrained / "log.txt").read_text()


VARIANTS = {
    "plain VideoMAE": ["loss.prediction=none", "masking.hard_ratio_end=0"],
    "prediction only": ["masking.hard_ratio_end=0"],
    "full": [],
    "full at once": ["masking.hard_ratio_start=1"],
    "absolute": ["loss.prediction=absolute"],
    "units": ["loss.ranking_level=unit"],
    "single tokens": ["masking.tube_length=1"],
    "literal": ["teacher.token_ratio=1"],
    "from pixels": ["model.predictor_input=pixels"],
    "from pixels, units": [
        *("model.predictor_input=pixels", "loss.ranking_level=unit", "teacher.token_ratio=1"),
    ],
    "both": ["model.predictor_input=both", "teacher.token_ratio=0.25"],
    "both, units": [
        *("model.predictor_input=both", "loss.ranking_level=unit", "teacher.token_ratio=1"),
    ],
    "both, decoder masking": [
        *("model.predictor_input=both", "teacher.token_ratio=0.5"),
        "masking.decoder_mask_ratio=0.5",
    ],
    "both, waits": [
        *("model.predictor_input=both", "teacher.token_ratio=0.25", "masking.ramp=competence"),
    ],
    "waits": ["masking.ramp=competence"],
    "sparse teacher": ["teacher.token_ratio=0.5"],
    "sparse teacher, tokens": ["teacher.token_ratio=0.2", "teacher.view=tokens", "teacher.draws=2"],
    "sparse teacher, tubes": ["teacher.token_ratio=0.5", "teacher.view=tubes"],
    "sparse teacher, frames": ["teacher.token_ratio=0.5", "teacher.view=frames"],
    "decoder masking": ["masking.decoder_mask_ratio=0.5"],
    "decoder masking at random": [
        *("masking.decoder_mask_ratio=0.5", "masking.decoder_mask=random"),
    ],
    "decoder masking of VideoMAE V2": [
        *("masking.decoder_mask_ratio=0.5", "masking.decoder_mask=videomae_v2"),
        "data.num_frames=8",
    ],
    "motion": ["masking.source=motion"],
    "motion without prediction": ["masking.source=motion", "loss.prediction=none"],
    "motion, waits": ["masking.source=motion", "masking.ramp=competence"],
    "measured": ["masking.source=measured", "model.drop_path=0.2"],
    "measured, tokens, waits": [
        *("masking.source=measured", "masking.pattern=tokens", "masking.ramp=competence"),
        "masking.decoder_mask_ratio=0.5",
    ],
    "no source": ["masking.source=none"],
    "blocks": ["masking.pattern=blocks"],
    "blocks by motion": ["masking.pattern=blocks", "masking.source=motion"],
    "windows": ["masking.pattern=windows", "masking.tube_length=2", "data.num_frames=8"],
    "repeats": ["data.repeats=2"],
    "pixels": ["loss.normalize_targets=false"],
    "bfloat16": ["run.precision=bfloat16", "model.drop_path=0.1", "optim.clip_grad=1.0"],
    "float16": ["run.precision=float16", "model.drop_path=0.1", "optim.clip_grad=1.0"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns(tmp_path: Path, pretrain_arguments: Arguments, variant: str) -> None:
    settings = ["optim.epochs=3", "run.log_every=6", *VARIANTS[variant]]
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    records = read_records(tmp_path / "run")
    assert len(records) == 3
    losses = [record["reconstruction_loss"] for record in records]
    assert losses[2] < losses[1] < losses[0]
    state = load_checkpoint(tmp_path / "run")
    has_predictor = variant not in ("plain VideoMAE", "motion without prediction")
    sources = [setting for setting in VARIANTS[variant] if setting.startswith("masking.source=")]
    has_teacher = variant not in ("plain VideoMAE", "prediction only") and not sources
    assert any(name.startswith("predictor.") for name in state["model"]) == has_predictor
    assert (state["teacher"] is not None) == has_teacher
    for record in records:
        assert (record["prediction_loss"] > 0) == has_predictor
        assert (record["rank_accuracy"] is not None) == has_predictor
        assert (record["momentum"] is not None) == (state["teacher"] is not None)
        for name in ("pixel_prediction_loss", "pixel_rank_accuracy"):
            assert (name in record) == variant.startswith("both"), name
        assert ("competence" in record) == variant.endswith("waits")


def test_the_seed_decides(pretrained: Path, tmp_path: Path, pretrain_arguments: Arguments) -> None:
    assert main(pretrain_arguments(tmp_path / "same")) == 0
    assert main(pretrain_arguments(tmp_path / "other", "run.seed=1")) == 0
    assert_same_run(tmp_path / "same", pretrained)
    assert untimed(tmp_path / "other") != untimed(pretrained)


# Six steps per epoch; a record every five, so that most steps are inside a period.
LONG = ("optim.epochs=12", "run.log_every=5", "model.drop_path=0.2", "teacher.token_ratio=0.5")
EVERY_STEP = ("run.checkpoint_every_minutes=0",)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(pretrain_arguments(folder, *LONG)) == 0
    return folder


def _last_step(folder: Path) -> int:
    with contextlib.suppress(OSError):
        found = re.fullmatch(r"step_(\d+)\.pt", os.readlink(folder / "checkpoints" / "last"))
        return int(found[1]) if found else 0
    return 0


def _num_records(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def _is_inside(step: int) -> bool:
    """Whether a step is inside an epoch and inside a period of records."""
    return step % 6 not in (0, 5) and step % 5 not in (0, 4)


def test_a_killed_run_continues_as_if_nothing_had_happened(
    tmp_path: Path, pretrain_arguments: Arguments, uninterrupted: Path
) -> None:
    folder = tmp_path / "run"
    arguments = pretrain_arguments(folder, *LONG, *EVERY_STEP)
    with subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                if _num_records(folder) >= 3 and _is_inside(_last_step(folder)):
                    process.send_signal(signal.SIGSTOP)  # hold it to look again
                    if _is_inside(_last_step(folder)):
                        break
                    process.send_signal(signal.SIGCONT)
                time.sleep(0.002)
            assert process.poll() is not None or main(arguments) == 2  # while the first still lives
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    killed_at = _last_step(folder)
    assert 15 <= killed_at < 72
    assert _is_inside(killed_at)
    # What a kill may leave besides: a record that is too new, and half a line.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": killed_at + 1, "loss": 0.0}) + '\n{"step": ')

    assert main(arguments) == 0
    assert f"continues after step {killed_at} of" in (folder / "log.txt").read_text()
    assert_same_run(folder, uninterrupted)


@contextlib.contextmanager
def _signal_self_when(condition: Callable[[], bool], number: signal.Signals):
    """Send this process a signal, once, as soon as a condition holds."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            if condition():
                os.kill(os.getpid(), number)
                return

    missed: list[int] = []  # a handler of ours, lest a run that has none ends the tests
    before = signal.signal(number, lambda number, frame: missed.append(number))
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield missed
    finally:
        stop.set()
        watcher.join()
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_stops_a_run_after_the_step_and_it_continues(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    uninterrupted: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    arguments = pretrain_arguments(folder, *LONG)
    with _signal_self_when(lambda: _num_records(folder) >= 2, number) as missed:
        assert main(arguments) == 1
        assert signal.getsignal(number)(number, None) is None  # ours is back in its place
    assert missed == [number]  # from the line above, and not from the run
    stopped_at = _last_step(folder)
    assert 10 <= stopped_at < 72
    said = f"{number.name}: stopped and saved after step {stopped_at} of 72"
    assert said in capsys.readouterr().out
    assert said in (folder / "log.txt").read_text()

    assert main(arguments) == 0
    assert_same_run(folder, uninterrupted)


def test_a_signal_to_the_data_workers_too_stops_a_run_cleanly(
    tmp_path: Path, pretrain_arguments: Arguments, uninterrupted: Path
) -> None:
    """As when a job is cancelled: then every one of its processes is told to end."""
    folder = tmp_path / "run"
    arguments = pretrain_arguments(folder, *LONG, "data.num_workers=2")
    before = set(children_of(os.getpid()))

    def tell_workers() -> bool:
        if _num_records(folder) < 2:
            return False
        workers = set(children_of(os.getpid())) - before
        assert len(workers) >= 2
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)  # long enough for the run to miss workers that ended
        return True

    with _signal_self_when(tell_workers, signal.SIGTERM):
        assert main(arguments) == 1
    assert 10 <= _last_step(folder) < 72
    assert main(arguments) == 0
    assert_same_run(folder, uninterrupted)


def test_data_workers_change_nothing(
    tmp_path: Path, pretrained: Path, pretrain_arguments: Arguments
) -> None:
    assert main(pretrain_arguments(tmp_path / "run", "data.num_workers=2")) == 0
    assert_same_run(tmp_path / "run", pretrained)


def _assert_close(one: Path, other: Path, tolerance: float) -> None:
    """Student and teacher weights agree within a tolerance far below what training moved.

    Left out are two biases of the predictor's end: they add the same to all predictions, so that
    the ranking loss has no gradient for them but rounding errors, which Adam scales up.
    """
    mine, theirs = tensors(one), tensors(other)
    for name in mine:
        if name.endswith(("predictor.head.bias", "predictor.norm.bias")):
            continue
        if name.startswith(("/model/", "/teacher/")):
            assert (mine[name] - theirs[name]).abs().max() < tolerance, name


# One epoch of three steps of eight clips. Hard masks from the start, and a teacher that moves.
SPLIT = (
    *("optim.epochs=1", "run.log_every=1", "masking.hard_ratio_start=0.5"),
    *("teacher.momentum_start=0.5", "teacher.momentum_end=0.5", "teacher.token_ratio=0.5"),
)
TOLERANCE = 2e-5  # three steps move weights by 1e-3 to 6e-3


@pytest.fixture(scope="module")
def double_batch(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    """One process, eight clips at once."""
    folder = tmp_path_factory.mktemp("double") / "run"
    assert main(pretrain_arguments(folder, *SPLIT, "data.batch_size=8")) == 0
    return folder


def _assert_same_losses(one: Path, other: Path) -> None:
    for mine, theirs in zip(read_records(one), read_records(other), strict=True):
        # An effective rank is that of a micro-batch of one process
        for name in mine.keys() - {"clips_per_second", "data_wait_fraction", "effective_rank"}:
            if theirs[name] is None:
                assert mine[name] is None, name
            else:
                assert mine[name] == pytest.approx(theirs[name], rel=2e-4), name


def test_accumulation_is_a_larger_batch(
    tmp_path: Path, pretrain_arguments: Arguments, double_batch: Path
) -> None:
    assert main(pretrain_arguments(tmp_path / "run", *SPLIT, "optim.accumulation=2")) == 0
    _assert_close(tmp_path / "run", double_batch, TOLERANCE)
    _assert_same_losses(tmp_path / "run", double_batch)


def test_the_tolerance_tells_runs_apart(
    tmp_path: Path, pretrain_arguments: Arguments, double_batch: Path
) -> None:
    settings = (*SPLIT, "data.batch_size=8", "run.seed=1")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    with pytest.raises(AssertionError):
        _assert_close(tmp_path / "run", double_batch, 20 * TOLERANCE)


def _launch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command in two processes that `torchrun` starts."""
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        *("--no-python", *COMMAND),
    ]
    return subprocess.run(
        [*launch, *arguments],
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=180,
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_processes_are_a_larger_batch(
    tmp_path: Path, pretrain_arguments: Arguments, double_batch: Path
) -> None:
    """Of two ranks with four clips each; masks, scores and order do not depend on the split."""
    done = _launch(pretrain_arguments(tmp_path / "run", *SPLIT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 videos, 8 clips per step") == 1  # only one process speaks
    _assert_close(tmp_path / "run", double_batch, TOLERANCE)
    _assert_same_losses(tmp_path / "run", double_batch)
    assert [record["step"] for record in read_records(tmp_path / "run")] == [1, 2, 3]


# As soon as RANK has done STEP steps, it sends itself SIGNAL.
SIGNALLED = """
import os, signal
from hpm_video.train.run import loop

done = loop.Run.is_log_step.fget
def is_log_step(run):
    if (run.world.rank, run.steps_done) == (RANK, STEP):
        os.kill(os.getpid(), signal.SIGNAL)
    return done(run)
loop.Run.is_log_step = property(is_log_step)
"""


def _signalled(rank: int, step: int, name: str) -> str:
    script = SIGNALLED.replace("RANK", str(rank)).replace("STEP", str(step))
    return script.replace("SIGNAL", name)


def test_several_processes_continue_as_if_nothing_had_happened(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """After a signal to one of them, and after the death of one, both between two records.

    Three of them, as the sum of two numbers is rounded the same in any order.
    """
    settings = ("optim.epochs=3", "data.batch_size=2", "run.log_every=5", "model.drop_path=0.2")
    settings += EVERY_STEP
    whole, folder = tmp_path / "whole", tmp_path / "run"  # of 12 steps of 6 clips
    for done in run_together(3, [pretrain_arguments(whole, *settings)]):
        assert done.returncode == 0, done.stderr

    arguments = pretrain_arguments(folder, *settings)
    ended = run_together(3, [arguments], before=_signalled(1, 3, "SIGTERM"))
    assert [done.returncode for done in ended] == [1, 1, 1]
    assert "SIGTERM: stopped and saved after step 4 of 12" in ended[0].stdout
    assert _last_step(folder) == 4
    ended = run_together(3, [arguments], before=_signalled(1, 8, "SIGKILL"))
    assert [done.returncode for done in ended] == [1, -signal.SIGKILL, 1]
    assert "continues after step 4 of" in ended[0].stdout
    assert "lost another process, which has ended" in ended[0].stderr
    assert _last_step(folder) == 8
    for done in run_together(3, [arguments]):
        assert done.returncode == 0, done.stderr
    assert "continues after step 8 of" in (folder / "log.txt").read_text()

    assert [record["step"] for record in read_records(folder)] == [5, 10, 12]
    assert_same_run(folder, whole)


# The command, as one process of several, fails after its first step and gets SIGTERM when it is
# about to say so.
FAILING = """
import os, signal
from hpm_video.cli import terminal as cli
from hpm_video.train.run import loop
from hpm_video.runtime.rendezvous import CommunicationError

def is_log_step(run):
    raise CommunicationError("lost another process")
loop.Run.is_log_step = property(is_log_step)
stop_on_signal = loop.stop_on_signal
loop.stop_on_signal = lambda is_alone, **more: stop_on_signal(is_alone=False, **more)
say_failure = cli.say_failure
def say_failure_late(job, error):
    os.kill(os.getpid(), signal.SIGTERM)
    say_failure(job, error)
cli.say_failure = say_failure_late
"""


def test_a_failure_is_said_although_the_launcher_ends_the_process(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    (done,) = run_together(1, [pretrain_arguments(tmp_path / "run")], before=FAILING)
    assert (done.returncode, done.stderr) == (1, "hpm-video pretrain: lost another process\n")


def test_two_processes_started_by_torchrun_say_what_is_wrong_last(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """Of torchrun's own report, which comes after it and is long, it is a part."""
    done = _launch(pretrain_arguments(tmp_path / "run", "masking.mask_ratio=1.5"))
    assert done.returncode != 0
    report = done.stderr.split("Root Cause", maxsplit=1)[1]
    assert "masking.mask_ratio (1.5) must be in (0, 1)" in report


def test_a_run_goes_on_with_more_processes_of_smaller_batches(
    tmp_path: Path, pretrain_arguments: Arguments, double_batch: Path
) -> None:
    """From inside a period of records, whose means are those of one process then."""
    folder = tmp_path / "run"
    settings = (*SPLIT, "run.log_every=3")
    arguments = pretrain_arguments(folder, *settings, "data.batch_size=8")
    (one,) = run_together(1, [arguments], before=_signalled(0, 1, "SIGTERM"))
    assert one.returncode == 1, one.stderr
    assert _last_step(folder) == 2
    arguments = pretrain_arguments(folder, *settings, "data.batch_size=4")
    assert main(arguments) == 2
    first, second = run_together(2, [arguments])
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "continues after step 2 of" in first.stdout
    _assert_close(folder, double_batch, TOLERANCE)
    (record,) = read_records(folder)
    losses = [record["loss"] for record in read_records(double_batch)]
    assert record["loss"] == pytest.approx(sum(losses) / 3, rel=2e-4)


def test_what_another_decoder_reads_is_said_once(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    videos = write_toy_videos(
        tmp_path / "toy", num_videos=4, size=32, num_frames=12, formats=("avi",)
    )
    assert main(pretrain_arguments(tmp_path / "run", f"data.manifest={videos}")) == 0
    said = (tmp_path / "run" / "log.txt").read_text().count("decoded with PyAV")
    assert said == 1


@pytest.mark.parametrize(("much", "num_warnings"), [(-1.0, 1), (2.0, 0)])
def test_a_run_that_waits_for_its_videos_says_so_once(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    much: float,
    num_warnings: int,
) -> None:
    monkeypatch.setattr(loop, "_MUCH_WAITING", much)
    assert main(pretrain_arguments(tmp_path / "run")) == 0
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    places = [k for k, line in enumerate(lines) if "waiting for videos" in line]
    assert len(places) == num_warnings
    for place in places:
        assert "data.num_workers" in lines[place] and "transcode" in lines[place]
        assert "step 8 " in lines[place - 1]  # not after the first record, when all has just begun


@pytest.mark.parametrize(
    ("fractions", "said"),
    [((0.9, 0.25, 0.04, 0.04, 0.04, 0.3), None), ((0.0, 0.3, 0.01, 0.4, 0.5, 0.5), "30%")],
)
def test_one_slow_record_is_no_reason_for_advice(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    fractions: tuple[float, ...],
    said: str | None,
) -> None:
    left = iter(fractions)
    rates = lambda _: {"clips_per_second": 1.0, "data_wait_fraction": next(left)}  # noqa: E731
    monkeypatch.setattr(loop.Period, "rates", rates)
    assert main(pretrain_arguments(tmp_path / "run")) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    found = re.findall(r"(\S+) of the time is spent waiting", log)
    assert found == ([] if said is None else [said])
