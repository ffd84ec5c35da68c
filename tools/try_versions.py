"""Runs tests that touch every dependency, with other versions of Python and of the packages.

    python tools/try_versions.py                       # the oldest and the newest of both
    python tools/try_versions.py --python 3.12 --constraints constraints-newest.txt
    python tools/try_versions.py --update              # resolve both constraints files again

Each combination gets an environment of its own (about 6 GB), which is deleted afterwards. Prints a
table; exits with 1 if a test fails, an installation fails or an interpreter is missing.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # supported ones, the oldest first
RESOLUTIONS = {"constraints-oldest.txt": "lowest-direct", "constraints-newest.txt": "highest"}
HEADING = "# {} of what setup.py allows. Written by tools/try_versions.py --update."
SOURCE_ONLY = ("fvcore", "iopath", "pytorchvideo")  # packages without wheels

# By dependency in setup.py, tests that use it. Torch's span its parts: DDP, FSDP, the optimizers
TESTS = {
    "aiohttp": ["tests/data/test_remote.py", "tests/data/test_remote_tars.py"],
    "av": ["tests/data/test_readers.py", "tests/data/test_encode.py"],
    "decord2": ["tests/data/test_readers.py"],
    "fsspec": ["tests/data/test_remote.py", "tests/data/test_remote_tars.py"],
    "fvcore": ["tests/train/test_optim.py"],
    "jinja2": ["tests/visualize/test_video_page.py"],
    "matplotlib": ["tests/train/test_pictures.py"],
    "numpy": ["tests/data/test_clips.py"],
    "omegaconf": ["tests/config/test_config.py"],
    "onnx": ["tests/weights/test_weights_programs.py"],
    "onnxruntime": ["tests/weights/test_weights_programs.py"],
    "onnxscript": ["tests/weights/test_weights_programs.py"],
    "pillow": ["tests/data/test_frame_folders.py"],
    "pytest": ["tests/runtime/test_workers.py"],
    "pytest-xdist": ["tests/models/test_ema.py"],
    "pytorchvideo": ["tests/models/test_baselines.py"],
    "pyyaml": ["tests/config/test_config.py"],
    "rich": ["tests/cli/test_terminal.py"],
    "safetensors": ["tests/weights/test_weights_export.py"],
    "scikit-learn": ["tests/evaluate/test_several_labels.py"],
    "scipy": ["tests/method/test_diagnostics.py"],
    "selenium": ["tests/visualize/test_video_page.py"],
    "submitit": ["tests/slurm/test_slurm_submit.py"],
    "tensorboard": ["tests/train/test_pictures.py"],
    "timm": ["tests/weights/test_timm_models.py", "tests/data/test_augment.py"],
    "torch": ["tests/models/test_parallel.py", "tests/weights/test_checkpoint.py"],
    "torchcodec": ["tests/data/test_readers.py"],
    "torchvision": ["tests/data/test_crops.py"],
    "transformers": ["tests/models/test_videomae.py", "tests/weights/test_weights_import.py"],
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ends = [PYTHONS[0], PYTHONS[-1]]
    parser.add_argument(
        "--python", nargs="+", default=ends, metavar="VERSION", help="default: %(default)s"
    )
    parser.add_argument(
        "--constraints", nargs="+", type=Path, metavar="FILE",
        default=[ROOT / name for name in RESOLUTIONS], help="default: oldest and newest",
    )  # fmt: skip
    parser.add_argument(
        "--environments", type=Path, metavar="FOLDER",
        help="keep the environments there and use them again; outdated ones of the same Python "
        "and file are deleted",
    )  # fmt: skip
    parser.add_argument(
        "--skip-missing", action="store_true", help="a Python that is not there is no failure"
    )
    parser.add_argument("--update", action="store_true", help="write both constraints files, stop")
    arguments = parser.parse_args()
    if arguments.update:
        update()
        return 0
    combinations = [(python, file) for python in arguments.python for file in arguments.constraints]
    if missing := [str(file) for file in arguments.constraints if not file.is_file()]:
        parser.error(f"--constraints: no such file: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="hpm_video-versions-") as temporary:
        folder = arguments.environments or Path(temporary)
        kept = [environment(folder, *combination) for combination in combinations]
        for combination in combinations:
            for other in set(environments(folder, *combination)) - set(kept):
                shutil.rmtree(other)
        rows, is_good = [], True
        for (python, file), target in zip(combinations, kept, strict=True):
            interpreter = find_python(python)
            if interpreter is None:
                fine, result = arguments.skip_missing, f"SKIPPED: no python{python}"
            else:
                fine, result = try_one(interpreter, file, target)
            is_good &= fine
            rows.append((python, file.name, result))
            if not arguments.environments:
                shutil.rmtree(target, ignore_errors=True)
    print("\n| Python | packages | result |\n|---|---|---|")
    for row in rows:
        print("|", " | ".join(row), "|")
    return 0 if is_good else 1


def environment(folder: Path, python: str, file: Path) -> Path:
    """The place in a folder for a Python, a constraints file and today's setup.py."""
    state = hashlib.sha256((ROOT / "setup.py").read_bytes() + file.read_bytes())
    return folder / f"hpm_video-{python}-{file.stem}-{state.hexdigest()[:16]}"


def environments(folder: Path, python: str, file: Path) -> list[Path]:
    """What this script made in a folder for a Python and a constraints file, of whatever state."""
    name = re.compile(rf"hpm_video-{re.escape(python)}-{re.escape(file.stem)}-[0-9a-f]{{16}}")
    configured = folder.glob("hpm_video-*/pyvenv.cfg")
    return [path.parent for path in configured if name.fullmatch(path.parent.name)]


def try_one(interpreter: str, file: Path, target: Path) -> tuple[bool, str]:
    """Install and test one combination; returns whether all passed, and what came out in words."""
    print(f"== {interpreter}, {file.name}", flush=True)
    own = target / "bin" / "python"
    install = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        if not own.exists():
            subprocess.run([interpreter, "-m", "venv", target], check=True)
        subprocess.run([*install, "-c", file, "-e", f"{ROOT}[test]"], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(target, ignore_errors=True)
        return False, "not tried: installation failed"
    report = target / "report.xml"
    report.unlink(missing_ok=True)
    tests = sorted({test for tests in TESTS.values() for test in tests})
    code = subprocess.run(
        [own, "-m", "pytest", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile",
         "--max-worker-restart", "0",
         "-p", "no:cacheprovider", f"--junit-xml={report}", *tests],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    ).returncode  # fmt: skip
    if not report.exists():
        return False, f"pytest ended with {code} and without a report"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    count = {name: int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return code == 0, f"{passed} passed, {failed} failed, {count['skipped']} skipped"


def find_python(version: str) -> str | None:
    """An interpreter of a version that starts: from PATH, else one that pyenv has."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [f"python{version}", *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in filter(shutil.which, candidates):  # pyenv's python3.13 may be but a stand-in
        if not subprocess.run(
            [candidate, "--version"], capture_output=True, check=False
        ).returncode:
            return candidate
    return None


def update() -> None:
    """Resolve both files for each Python, from packages with wheels for Linux on x86-64."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        own = Path(folder) / "bin" / "python"
        subprocess.run([own, "-m", "pip", "install", "--quiet", "uv"], check=True)
        sources = [word for name in SOURCE_ONLY for word in ("--no-binary", name)]
        for name, resolution in RESOLUTIONS.items():
            pythons: dict[str, list[str]] = {}  # by package==version
            for python in PYTHONS:
                pins = subprocess.run(
                    [own, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-header",
                     "--no-annotate", "--resolution", resolution, "--python-version", python,
                     "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:",
                     *sources],
                    input="\n".join(requirements()), stdout=subprocess.PIPE, text=True, check=True,
                ).stdout.split()  # fmt: skip
                for pin in pins:
                    pythons.setdefault(pin, []).append(python)
            lines = {
                pin if len(those) == len(PYTHONS) else f'{pin} ; python_version == "{python}"'
                for pin, those in pythons.items()
                for python in those
            }
            (ROOT / name).write_text("\n".join([HEADING.format(resolution), *sorted(lines)]) + "\n")


def requirements() -> list[str]:
    """What setup.py asks for to run and to test."""
    from distutils.core import run_setup  # setuptools brings it

    package = run_setup(str(ROOT / "setup.py"), stop_after="init")
    return [*package.install_requires, *package.extras_require["test"]]


if __name__ == "__main__":
    sys.exit(main())
