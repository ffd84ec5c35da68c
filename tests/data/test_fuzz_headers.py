"""The script that damages headers at random: some dozens of its files, and what it finds."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "fuzz_headers.py"


def _module():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("fuzz_headers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_headers"] = module
    spec.loader.exec_module(module)
    return module


def test_some_dozens_of_damaged_headers(tmp_path: Path) -> None:
    options = ["--videos=48", "--weights=8", "--seed=1", f"--folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--decoders", "pyav", "decord"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    numbers = {" ".join(row[:-7]): list(map(int, row[-7:])) for row in table[1:]}
    assert numbers.keys() == {"check", "loader pyav", "loader decord", "weights"}
    for name, (files, readable, *wrong, _, _) in numbers.items():
        assert files == {"check": 48, "weights": 8}.get(name, 96)
        assert wrong == [0, 0, 0]
        assert readable == 0 if name == "weights" else 0 < readable < files  # weights of no model


def test_the_same_seed_is_the_same_damage() -> None:
    fuzz, source = _module(), bytes(range(256)) * 8
    one, two, other = (
        fuzz.mutated(source, b"other" * 99, np.random.default_rng((0, k))) for k in (3, 3, 4)
    )
    assert one == two != other


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Traceback: x", "unexpected"),
        ("KeyError: 'by intention'", "unexpected"),
        ("MemoryError: by intention", "unexpected"),
        ("MemoryError: reading it takes more memory than a reader may use (x)", None),
        ("took longer than 20 s", "hangs"),
        ("given up: reading took longer than data.decode_timeout_s (20)", "hangs"),
        ("crashed its decoder: its process was killed by SIGSEGV", "crashes"),
        ("given up: its reader was killed (SIGKILL)", "crashes"),
        ("is not a video, or its header is damaged", None),
        ("", None),
    ],
)
def test_what_is_counted(reason: str, kind: str | None) -> None:
    found = _module().Found("check")
    found.note("a.mp4", reason)
    counted = {name for name in ("unexpected", "hangs", "crashes") if getattr(found, name)}
    assert counted == ({kind} if kind else set())
    assert found.readable == (not reason)


def test_what_is_counted_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz = _module()
    found = fuzz.Found("check")
    assert fuzz._report([found]) == 0
    found.peak_mib = 10_000
    assert fuzz._report([found]) == 1
    found.peak_mib = 0
    found.note("a.mp4", "KeyError: 1")
    assert fuzz._report([found]) == 1
    assert "check: unexpected, 1 x, e.g. a.mp4: KeyError: 1" in capsys.readouterr().out
