"""`tools/gpu_check.py`: all of it at a tiny size, and what it does when something goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from processes import is_gone, until
from torch import Tensor

from hpm_video.data.samples.device_crops import FrameReader
from hpm_video.method import losses
from hpm_video.train import pretrain as pretraining

TOOLS = Path(__file__).parents[2] / "tools"
CPU = torch.device("cpu")
Found = dict[str, Any]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports the script or one of its stages."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return import_module


@pytest.fixture
def stage(tool: Callable[[str], ModuleType], tmp_path: Path) -> Any:
    """A tiny stage on the CPU, with all the time that it wants."""
    return tool("gpu_stages.stage").Stage(
        "correct", "cpu", True, None, str(tmp_path), str(tmp_path / "found.jsonl"), "test", 1e12
    )


def found_by(stage: Any) -> dict[str, Found]:
    lines = Path(stage.output).read_text().splitlines()
    return {record["what"]: record for record in map(json.loads, lines)}


def test_all_stages_at_a_tiny_size(tmp_path: Path, tool: Callable[[str], ModuleType]) -> None:
    output = tmp_path / "check" / "found.jsonl"
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "--device", "cpu", "--tiny"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "-o", str(output)], cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    log = output.with_suffix(".log")
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
    records = [json.loads(line) for line in output.read_text().splitlines()]
    stages = list(tool("gpu_check").STAGES)
    ends = {record["stage"]: record["status"] for record in records if "status" in record}
    assert ends == dict.fromkeys(stages, "done")
    lines = done.stdout.splitlines()
    assert len(lines) <= 60 and "nothing failed" in lines[0]
    titles = [line.split()[:2] for line in lines if line[:1].isdigit()]
    assert titles == [[str(number), name] for number, name in enumerate(stages, start=1)]
    # What a CPU cannot show says so; everything else has figures
    unmeasured = {record["what"]: record["note"] for record in records if record.get("note")}
    assert all("CUDA" in note or "transformers" in note for note in unmeasured.values()), unmeasured
    judged = {record["what"] for record in records if record.get("ok") is not None}
    expected = ("masks of the same noise", "a step with a NaN", "two whole runs", "ddp, gloo")
    assert judged >= {*expected, "float32 against float64", "features, GPU and CPU"}


STAGES = {
    "breaks": 'raise RuntimeError("it is broken\\nin two lines")',
    "lacks": "import no_such_package",
    "hangs": """
    import os, subprocess, time
    child = subprocess.Popen(["sleep", "1000"]).pid
    stage.row("child", pid=child, stage=os.getpid())
    time.sleep(1000)""",
    "dies": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "works": """
    with stage.measuring("a part"):
        raise ValueError("only this part")
    stage.row("the other part", value=1.0)""",
}


def _with_stages(tmp_path: Path, output: str, seconds: dict[str, int]) -> dict[str, Any]:
    """How to start a check of stages of our own, as arguments of a subprocess."""
    folder = tmp_path / "tools" / "gpu_stages"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "stage.py"):
        shutil.copy(TOOLS / "gpu_stages" / name, folder)
    for name in seconds:
        (folder / f"{name}.py").write_text(f"def run(stage):\n    {STAGES[name]}\n")
    code = f"""
import sys
from pathlib import Path
import gpu_check
gpu_check.STAGES, gpu_check.ROOT = {seconds}, Path({str(tmp_path)!r})
gpu_check._PRELOADED = ["gpu_stages.stage"]
sys.exit(gpu_check.main(["--device", "cpu", "--tiny", "-o", {output!r}]))
"""
    paths = [str(tmp_path / "tools"), str(TOOLS), str(TOOLS.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path)}
    return {"args": [sys.executable, "-c", code], "env": environment, "text": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_check_that_is_ended_leaves_nothing_running(
    tmp_path: Path, number: signal.Signals
) -> None:
    """After a file that another check left with half a line at its end. Only of SIGKILL no table
    comes, and the folder of temporary files stays."""
    output = tmp_path / "o.jsonl"
    output.write_text('{"run": "before", "stage": "gro')
    start = _with_stages(tmp_path, str(output), {"hangs": 1000})
    process = subprocess.Popen(**start, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert until(lambda: '"child"' in output.read_text())
        pids = json.loads(output.read_text().splitlines()[1])["figures"]
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert until(lambda: is_gone(pids["stage"]) and is_gone(pids["pid"]))
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert "child" in out and "cut short" in out
        assert not list(tmp_path.glob("gpu_check_*"))


def test_a_failed_stage_is_reported_and_the_others_run(tmp_path: Path) -> None:
    seconds = {name: 4 if name == "hangs" else 60 for name in STAGES}
    start = _with_stages(tmp_path, str(tmp_path / "o.jsonl"), seconds)
    done = subprocess.run(**start, capture_output=True, check=False, timeout=240)
    assert done.returncode == 1, done.stdout + done.stderr
    for words in (
        "FAIL  RuntimeError: it is broken",
        "No module named 'no_such_package'",
        "FAILED: killed after 8 s, its time limit",
        "FAILED: ended by SIGSEGV",
        "FAIL  ValueError: only this part",
        "the other part              value 1",
    ):
        assert words in done.stdout
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    (pid,) = (record["figures"]["pid"] for record in records if record.get("what") == "child")
    assert until(lambda: is_gone(pid))


def test_memory_useful_and_parts_are_left_out_first(tool: Callable[[str], ModuleType]) -> None:
    check = tool("gpu_check")
    every = list(check.STAGES)
    total = sum(check.STAGES.values())
    assert total == check.TOTAL_S and check.planned(every, total) == every
    without = [every]
    for left_out in ("memory", "useful", "parts"):
        without.append([name for name in without[-1] if name != left_out])
        left = sum(check.STAGES[name] for name in without[-2]) - 1
        assert check.planned(every, left) == without[-1]
    assert check.planned(every, 10) == without[-1]  # the others are tried in any case
    assert check.why_not_now(["step", "memory"], 395) == ""
    assert check.why_not_now(["memory"], 499) == ""
    assert "500 s" in check.why_not_now(["step"], 501)
    assert "other stages" in check.why_not_now(["parts", "resume", "loader", "world"], 360)


def test_the_table_has_sixty_lines_and_every_failure(tool: Callable[[str], ModuleType]) -> None:
    check = tool("gpu_check")
    records: list[Found] = []
    for name in check.STAGES:
        rows = [{"what": f"{name} {k}", "ok": k != 11, "note": ""} for k in range(12)]
        records += [{**row, "run": "now", "stage": name, "figures": {"x": 1.0}} for row in rows]
        end = {"status": "done", "note": "", "seconds": 1.0}
        records.append({**end, "run": "now", "stage": name})
    lines = check.table(records)
    assert len(lines) <= 59  # and the line that names the file
    assert lines[0].endswith("10 FAILED, 10 s")
    for number, name in enumerate(check.STAGES, start=1):
        assert any(line.startswith(f"{number} {name} ") for line in lines)
        assert any(f"{name} 11" in line and "FAIL" in line for line in lines)
    assert "more lines" in lines[-1]
    few = check.table([record for record in records if record["stage"] == "step"])
    assert len(few) == 13 and not any("more lines" in line for line in few)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--device (cpu) must come with --tiny"),
        (["--stages", "11", "world"], "--stages (11) must be numbers from 1 to 10 or names: gr"),
        (["-o", "a_file/x.jsonl"], "--output (a_file/x.jsonl) must be a writable file: "),
        (["-o", "a_file"], "--output (a_file) must be a new file or that of an earlier check"),
        (["-o", "other.jsonl"], "--output (other.jsonl) must be a new file or that of an earlier"),
        (["-o", "x.log"], "--output (x.log) must be a file that does not end in .log"),
        (["-o", "."], "--output (.) must be a file, but is a folder"),
        (["--clips", "/no/such"], "--clips (/no/such) must be an existing folder of videos"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    tool: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("a note\n")
    (tmp_path / "other.jsonl").write_text('{"stage": "ground"}\n')
    assert tool("gpu_check").main(words) == 2
    assert message in capsys.readouterr().err


def too_large(loss: Tensor) -> Tensor:
    return loss * 1.001


def gradient_too_small(loss: Tensor) -> Tensor:
    return loss.detach() + 0.999 * (loss - loss.detach())


@pytest.mark.parametrize(
    ("spoilt", "what"),
    [(too_large, "losses"), (gradient_too_small, "gradients")],
)
def test_a_wrong_loss_fails(
    stage: Any,
    tool: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    spoilt: Callable[[Tensor], Tensor],
    what: str,
) -> None:
    apply = losses.PatchLoss.apply  # of which the reference makes no use
    spoiling = SimpleNamespace(apply=lambda *given: spoilt(apply(*given)))
    monkeypatch.setattr(losses, "PatchLoss", spoiling)
    correct = tool("gpu_stages.correct")
    correct.variants(stage)
    failed = [name for name, record in found_by(stage).items() if record["ok"] is False]
    assert failed[0] == "float32 against float64"  # within bfloat16 it does not show
    figures = found_by(stage)[failed[0]]["figures"]
    assert figures[what] == pytest.approx(1e-3, rel=0.5)


def test_a_nan_that_moves_something_fails(
    stage: Any, tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "step_unless", lambda skip, optimizer: optimizer.step())
    tool("gpu_stages.correct").step_with_nan(stage)
    record = found_by(stage)["a step with a NaN"]
    assert record["ok"] is False and record["figures"]["changed"] > 0


def test_the_first_operation_that_differs_is_named(tool: Callable[[str], ModuleType]) -> None:
    repeats = tool("gpu_stages.repeats")
    noise = iter((0.0, 0.0, 1e-6))

    def make(moves: bool) -> Callable[[], Tensor]:
        leaf = torch.arange(6.0, requires_grad=True)
        added = next(noise) if moves else 0.0

        def step() -> Tensor:
            loss = (leaf * 2).add(added).exp().sum()
            loss.backward()
            return loss

        return step

    assert repeats.first_difference(lambda: make(False)).startswith("none in one step of")
    assert repeats.first_difference(lambda: make(True)).startswith("aten.add.Tensor, operation 2")
    swapped = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    assert repeats.bit_sum(swapped[0]) != repeats.bit_sum(swapped[1])


def test_crops_that_differ_fail(
    stage: Any, tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = FrameReader.crop
    monkeypatch.setattr(FrameReader, "crop", lambda *a, **how: crop(*a, **how).flip(-1))
    tool("gpu_stages.correct").crops(stage)
    assert found_by(stage)["crops on the device"]["ok"] is False


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)
