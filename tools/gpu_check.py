"""Check hpm_video on a GPU in at most nine minutes: correctness, speed and bottlenecks.

    python tools/gpu_check.py --clips FOLDER_OF_VIDEOS
    python tools/gpu_check.py --device cpu --tiny       # only shows that the script works

Every stage runs in a subprocess with a time limit. It appends its results to a file of JSON lines;
the end prints them as one table. A failed stage does not stop the others. Exit code 1 if anything
failed or the check was interrupted, 2 for a mistake on the command line. docs/gpu.md explains the
table.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Planned seconds of each stage, in order.
STAGES = {
    "ground": 45, "correct": 50, "step": 100, "compile": 80, "parts": 30, "resume": 90,
    "loader": 40, "world": 30, "useful": 40, "memory": 35,
}  # fmt: skip
LEFT_OUT_FIRST = ("memory", "useful", "parts")  # when time is short
TOTAL_S, LAST_START_S = 540, 500
MOST_LINES, WIDTH = 60, 140
_SPARE_S = 5  # seconds between the last start of work in a stage and its limit

Record = dict[str, Any]

# Imported once by the fork server; stages fork from it before CUDA is initialised.
_PRELOADED = [
    *("hpm_video.bench.train", "hpm_video.bench.memory", "hpm_video.train.finetune"),
    *("hpm_video.evaluate.features", "hpm_video.evaluate.classification"),
    *("torch._dynamo", "torch._inductor.compile_fx", "gpu_stages.stage"),
]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="device (default cuda)"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="use sizes that a CPU runs in two minutes"
    )
    text = f"stages to run, by number or name: {', '.join(STAGES)} (default all)"
    parser.add_argument("--stages", nargs="+", metavar="STAGE", default=list(STAGES), help=text)
    text = "folder of videos, ideally with a folder per class (default: makes toy videos)"
    parser.add_argument("--clips", metavar="DIR", help=text)
    text = "append JSON lines to FILE, and the output of stages to FILE.log (default %(default)s)"
    default = "outputs/gpu_check.jsonl"
    parser.add_argument("-o", "--output", metavar="FILE", default=default, help=text)
    asked = parser.parse_args(words)
    try:
        stages = chosen_stages(asked.stages)
        check_options(asked)
    except ValueError as error:
        sys.stderr.write(f"gpu_check: error: {error}\n")
        return 2
    output, is_whole = Path(asked.output).absolute(), True
    with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        given = {
            "kind": asked.device, "tiny": asked.tiny, "folder": folder, "output": str(output),
            "clips": asked.clips and os.path.abspath(asked.clips),
            "run_name": datetime.now().isoformat(timespec="seconds"),
        }  # fmt: skip
        try:
            run_stages(stages, given)
        except ValueError as error:
            sys.stderr.write(f"gpu_check: error: {error}\n")
            return 2
        except KeyboardInterrupt:
            is_whole = False
            sys.stderr.write("gpu_check: interrupted; the results so far:\n")
    records = records_of(output, given["run_name"])
    sys.stdout.write("\n".join([*table(records), f"all figures: {output}"]) + "\n")
    return int(not is_whole or any(is_failure(record) for record in records))


def chosen_stages(words: Sequence[str]) -> list[str]:
    """Stage names, in order, from names and numbers; raises ValueError for any other word."""
    names = list(STAGES)
    numbered = {str(number): name for number, name in enumerate(names, start=1)}
    found = [numbered.get(word, word) for word in words]
    if wrong := [word for word in found if word not in STAGES]:
        raise ValueError(
            f"--stages ({' '.join(wrong)}) must be numbers from 1 to {len(names)} or names: "
            f"{', '.join(names)}"
        )
    return [name for name in names if name in found]


def check_options(asked: argparse.Namespace) -> None:
    """Raise ValueError for options that cannot work, before any stage starts."""
    wrong = []
    if asked.device == "cpu" and not asked.tiny:
        wrong.append("--device (cpu) must come with --tiny: full sizes would take hours")
    if asked.clips is not None and not Path(asked.clips).is_dir():
        wrong.append(f"--clips ({asked.clips}) must be an existing folder of videos")
    if fault := fault_of_output(Path(asked.output), make=not wrong):
        wrong.append(f"--output ({asked.output}) must be {fault}")
    if wrong:
        raise ValueError("; ".join(wrong))


def fault_of_output(output: Path, *, make: bool) -> str:
    """The rule that an output file violates, for a message; "" if JSON lines can be appended to it.

    make: create a missing file, and its folder.
    """
    if output.is_dir():
        return "a file, but is a folder"
    log = output.with_suffix(".log")
    if output == log:
        return "a file that does not end in .log: the output of stages goes to FILE.log"
    try:
        if output.exists():
            text = output.read_text(encoding="utf-8", errors="replace")
            # A killed check may have left an incomplete line
            if text.strip() and not text.lstrip().startswith('{"run":'):
                return "a new file or that of an earlier check: this file holds something else"
            with open(output, "a", encoding="utf-8") as file:
                file.write("" if text.endswith("\n") or not text else "\n")
        elif make:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.touch()
        if make:
            open(log, "a", encoding="utf-8").close()
    except OSError as error:
        return f"a writable file: {error.strerror} ({error.filename})"
    return ""


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Handle SIGTERM (timeout, scancel) and SIGHUP like Ctrl-C, unless they are ignored.

    The stage is killed, the table printed, and the temporary folder removed.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def run_stages(stages: Sequence[str], given: Mapping[str, Any]) -> None:
    """Run stages one by one; each adds its records, and this process adds how the stage ended.

    Raises ValueError if there is no such device.
    """
    # Forks inherit sys.path; their subprocesses inherit PYTHONPATH
    sys.path[:0] = own = [str(ROOT), str(ROOT / "tools")]
    paths = [*own, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Detect GPUs through the driver, because an initialised CUDA does not survive a fork
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(_PRELOADED)
    log = Path(given["output"]).with_suffix(".log")
    start = time.monotonic()
    ours, theirs = forks.Pipe(duplex=False)
    process = forks.Process(target=send_device_fault, args=(given["kind"], theirs))
    process.start()
    theirs.close()
    try:
        fault = ours.recv()
    except EOFError:
        fault = "hpm_video cannot be imported: see the error above"
    process.join()
    if fault:
        raise ValueError(fault)
    for place, name in enumerate(stages):
        begin = time.monotonic()
        if why := why_not_now(stages[place:], begin - start):
            add(given, name, "left out", why)
            continue
        left = start + TOTAL_S - begin
        # A stage may use time that earlier ones left, but not the share of later ones
        others = sum(STAGES[other] for other in planned(stages[place:], left) if other != name)
        limit_s = min(max(STAGES[name], left - others), 2 * STAGES[name])
        settings = {**given, "name": name, "end_s": begin + limit_s - _SPARE_S}
        process = forks.Process(target=be_stage, args=(settings, str(log)))
        sys.stderr.write(f"{name}: at most {limit_s:.0f} s\n")
        process.start()
        try:
            process.join(limit_s)
        finally:
            if is_late := process.is_alive():
                kill_group(process.pid)
            process.join()
        seconds = time.monotonic() - begin
        if is_late:
            add(given, name, "failed", f"killed after {seconds:.0f} s, its time limit", seconds)
        elif process.exitcode:
            add(given, name, "failed", why_ended(process.exitcode, log), seconds)
        else:
            add(given, name, "done", "", seconds)


def planned(stages: Sequence[str], left_s: float) -> list[str]:
    """Those of the coming stages that fit into ``left_s`` seconds.

    If time is short, memory, useful and parts are left out, in this order.
    """
    kept = list(stages)
    for name in LEFT_OUT_FIRST:
        if sum(STAGES[stage] for stage in kept) <= left_s:
            break
        if name in kept:
            kept.remove(name)
    return kept


def why_not_now(stages: Sequence[str], elapsed_s: float) -> str:
    """Reason to leave out the first of the coming stages; "" to run it."""
    if elapsed_s > LAST_START_S:
        return f"no stage starts after {LAST_START_S} s"
    if stages[0] not in planned(stages, TOTAL_S - elapsed_s):
        return "the time left is reserved for other stages"
    return ""


def be_stage(settings: Mapping[str, Any], log: str) -> None:
    """Main function of a stage's process."""
    os.setsid()  # own process group, killed as a whole
    threading.Thread(target=end_with_check, daemon=True).start()
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.write(f"\n== {settings['name']}, {settings['run_name']}\n")
    sys.stdout.flush()
    stage = import_module("gpu_stages.stage").Stage(**settings)
    with stage.measuring("the stage"):
        import_module(f"gpu_stages.{stage.name}").run(stage)


def end_with_check() -> None:
    """Kill a stage and all its processes if the check itself is killed."""
    check = multiprocessing.parent_process()
    assert check is not None
    check.join()
    os.killpg(0, signal.SIGKILL)


def send_device_fault(kind: str, answer: Connection) -> None:
    """Send the reason why there is no device of this kind; "" if there is one."""
    fault = ""
    try:
        import_module("hpm_video.runtime.distributed").pick_device(kind, setting="--device")
    except ValueError as error:
        fault = str(error)
    answer.send(fault)


def kill_group(pid: int | None) -> None:
    """Kill a stage's process and all its descendants."""
    assert pid is not None
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # not yet a group leader, or gone
        os.kill(pid, signal.SIGKILL)


def why_ended(code: int, log: Path) -> str:
    """Why a process ended early: a signal, or its last line of output."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; see {log}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].strip()}; see {log}"


def add(given: Mapping[str, Any], stage: str, status: str, why: str, seconds: float = 0) -> None:
    """Append a record of how a stage ended."""
    record = {"run": given["run_name"], "stage": stage, "status": status, "note": why}
    with open(given["output"], "a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "seconds": round(seconds, 1)}) + "\n")


def records_of(output: Path, run: str) -> list[Record]:
    """Records of one check, in order; incomplete lines are skipped."""
    records = []
    for line in output.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("run") == run:
                records.append(record)
    return records


def is_failure(record: Record) -> bool:
    return record.get("ok") is False or record.get("status") == "failed"


def table(records: Sequence[Record]) -> list[str]:
    """At most 60 lines, one per result; a stage starts with its name and its seconds."""
    rows: list[tuple[bool, str]] = []  # whether the line must be shown, and the line
    for number, name in enumerate(STAGES, start=1):
        found = [record for record in records if record["stage"] == name]
        if not found:
            continue
        end = found[-1] if "status" in found[-1] else {"status": "failed", "note": "cut short"}
        title = f"{number} {name}"
        seconds = f"{end.get('seconds', 0):.0f} s"
        lines = [(is_failure(r), line_of(r)) for r in found if "status" not in r]
        if end["status"] != "done":
            lines.append((True, f"{end['status'].upper()}: {end['note']}"))
        for place, (must, line) in enumerate(lines):
            head = f"{title:<10}{seconds:>6}" if place == 0 else ""
            rows.append((must or place == 0, f"{head:<18}{line}"[:WIDTH].rstrip()))
    failures = sum(map(is_failure, records))
    verdict = f"{failures} FAILED" if failures else "nothing failed"
    seconds = sum(record.get("seconds", 0) for record in records)
    lines = [f"gpu check, {records[0]['run'] if records else ''}: {verdict}, {seconds:.0f} s"]
    too_many = len(rows) - (MOST_LINES - 2)  # two lines are reserved: the first and the last
    if too_many > 0:
        for place in [k for k, (must, _) in enumerate(rows) if not must][::-1][: too_many + 1]:
            del rows[place]
        rows.append((True, f"{'':<18}more lines are in the file"))
    return lines + [line for _, line in rows]


def line_of(record: Record) -> str:
    """Text of a result: what was checked, its figures, and whether it failed."""
    verdict = {None: "", True: "ok  ", False: "FAIL  "}[record["ok"]]
    known = {name: value for name, value in record["figures"].items() if value is not None}
    figures = [f"{name} {text_of(value)}" for name, value in known.items()]
    return f"{record['what']:<26}  {verdict}{'  '.join([*figures, record['note']])}".rstrip()


def text_of(value: str | int | float) -> str:
    """A number with three digits, or as an integer if it is large."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
