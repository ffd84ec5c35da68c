"""List known vulnerabilities of the versions pinned in the constraints files.

    python tools/audit.py                         # constraints.txt, and the oldest and newest
    python tools/audit.py constraints.txt --pip-audit .audit/bin/pip-audit

Queries PyPI through pip-audit, which must be installed separately, and installs nothing. Prints a
table for the release notes. Exit code 1 if there are vulnerabilities, or packages that could not be
checked.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILES = ("constraints.txt", "constraints-oldest.txt", "constraints-newest.txt")
INSTALL = "python -m venv .audit && .audit/bin/pip install pip-audit"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", type=Path, default=[ROOT / name for name in FILES], metavar="FILE",
        help="file of PACKAGE==VERSION lines (default: the three constraints files)",
    )  # fmt: skip
    parser.add_argument(
        "--pip-audit",
        default="pip-audit",
        metavar="PROGRAM",
        help="pip-audit to run (default: the one on the PATH)",
    )
    arguments = parser.parse_args()
    if missing := [str(file) for file in arguments.files if not file.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    if (program := shutil.which(arguments.pip_audit)) is None:
        print(
            f"audit: no program {arguments.pip_audit}: install it with `{INSTALL}`, then add "
            "`--pip-audit .audit/bin/pip-audit`",
            file=sys.stderr,
        )
        return 1
    places: dict[tuple[str, str], list[str]] = defaultdict(list)  # by package and version
    for file in arguments.files:
        for pin in pins(file):
            places[pin].append(file.name)
    try:
        answers = [answer for part in rounds(list(places)) for answer in ask(program, part)]
    except ValueError as error:
        print(f"audit: nothing was checked: pip-audit failed: {error}", file=sys.stderr)
        return 1
    unknown = [answer for answer in answers if "skip_reason" in answer]
    if len(unknown) == len(answers):
        reason = unknown[0]["skip_reason"] if unknown else "the files pin nothing"
        print(
            "audit: nothing was checked: PyPI's vulnerability service does not answer this machine "
            f"({reason})",
            file=sys.stderr,
        )
        return 1
    rows = [
        (key[0], key[1], ", ".join(places[key]), " ".join([found["id"], *found["aliases"]]),
         ", ".join(found["fix_versions"]) or "none")
        for answer in answers if "skip_reason" not in answer
        for key in [(canonical(answer["name"]), answer["version"])]
        for found in answer["vulns"]
    ]  # fmt: skip
    print("| package | version | pinned in | vulnerability | fixed in |\n|---|---|---|---|---|")
    for row in sorted(rows):
        print("|", " | ".join(row), "|")
    print(f"\n{len(answers) - len(unknown)} versions checked, {len(rows)} vulnerabilities.")
    if unknown:
        print("Not known to PyPI:", ", ".join(sorted({answer["name"] for answer in unknown})))
    return 1 if rows or unknown else 0


def pins(file: Path) -> list[tuple[str, str]]:
    """Package and version of each pin in a file, for all Python versions."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", file.read_text(), re.MULTILINE)
    return list(dict.fromkeys((canonical(name), version) for name, version in found))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def rounds(wanted: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Split pins into rounds with one version per package, the most pip-audit accepts at a time."""
    versions: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pin in wanted:
        versions[pin[0]].append(pin)
    return [[pin for pin in part if pin] for part in zip_longest(*versions.values())]


def ask(program: str, wanted: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Reports of pip-audit for the pins. Raises ValueError if it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in wanted)
        file.flush()
        command = [program, "--requirement", file.name, "--no-deps", "--disable-pip"]
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--format", "json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    try:
        answers: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError) as error:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(lines[-1].strip()) from error
    return answers


if __name__ == "__main__":
    sys.exit(main())
