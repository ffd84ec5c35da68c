"""tools/audit.py: what pip-audit says of all pinned versions, with a program in its place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "audit.py"

# Answers from a table; fails where a package comes twice, as pip-audit does
STAND_IN = f"""#!{sys.executable}
import json, sys
from pathlib import Path
assert {{"--no-deps", "--disable-pip"}} <= set(sys.argv)
lines = Path(sys.argv[sys.argv.index("--requirement") + 1]).read_text().splitlines()
pins = dict(line.split("==") for line in lines)
assert len(pins) == len(lines)
known = json.loads(Path(__file__).with_name("known.json").read_text())
answers = [{{"name": n, "version": v, "vulns": []}} | known.get(f"{{n}}=={{v}}", {{}})
           for n, v in pins.items()]
print(json.dumps({{"dependencies": answers, "fixes": []}}))
"""
BAD = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": "bad"}


def _audit(folder: Path, *words: str) -> tuple[int, str, str]:
    command = [sys.executable, str(TOOL), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program = tmp_path / "pip-audit"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (tmp_path / "known.json").write_text("{}")
    (tmp_path / "one.txt").write_text("# comment\na==1.0\nB_c==3\n")
    (tmp_path / "other.txt").write_text(
        'a==1.0 ; python_version == "3.10"\na==1.5 ; python_version == "3.11"\n'
    )
    return tmp_path


WORDS = ("one.txt", "other.txt", "--pip-audit", "./pip-audit")


def test_each_version_is_checked_once(folder: Path) -> None:
    assert _audit(folder, *WORDS)[:2] == (
        0,
        "| package | version | pinned in | vulnerability | fixed in |\n|---|---|---|---|---|\n\n"
        "3 versions checked, 0 vulnerabilities.\n",
    )


def test_vulnerabilities_are_a_table(folder: Path) -> None:
    known = {"a==1.0": {"vulns": [BAD]}, "b-c==3": {"skip_reason": "not on PyPI"}}
    (folder / "known.json").write_text(json.dumps(known))
    code, out, _ = _audit(folder, *WORDS)
    assert code == 1
    assert "| a | 1.0 | one.txt, other.txt | PYSEC-1 CVE-1 | 2.0 |" in out.splitlines()
    assert "2 versions checked, 1 vulnerabilities." in out and "Not known to PyPI: b-c" in out


@pytest.mark.parametrize("how", ["no answers", "fails", "missing"])
def test_what_was_not_checked_does_not_pass(folder: Path, how: str) -> None:
    if how == "no answers":
        skipped = {"skip_reason": "not found on PyPI"}
        known = {"a==1.0": skipped, "a==1.5": skipped, "b-c==3": skipped}
        (folder / "known.json").write_text(json.dumps(known))
    elif how == "fails":
        (folder / "pip-audit").write_text("#!/bin/sh\necho trace >&2; echo no network >&2; exit 1")
    else:
        (folder / "pip-audit").unlink()
    code, out, error = _audit(folder, *WORDS)
    said = {"no answers": "does not answer", "fails": "no network", "missing": "install it with"}
    assert code == 1 and out == "" and error.count("\n") == 1
    assert said[how] in error
