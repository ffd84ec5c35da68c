"""Run tests that cover every dependency, with other versions of Python and of the packages.

    python tools/try_versions.py                       # the oldest and the newest of both
    python tools/try_versions.py --python 3.12 --constraints constraints-newest.txt
    python tools/try_versions.py --update              # resolve both constraints files again

Each combination gets its own environment (about 6 GB), which is deleted afterwards. Prints a table.
Exit code 1 if a test or an installation fails, or an interpreter is missing.
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
PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # supported versions, oldest first
RESOLUTIONS = {"constraints-oldest.txt": "lowest-direct", "constraints-newest.txt": "highest"}
HEADING = "# {} of what setup.py allows. Written by tools/try_versions.py --update."
SOURCE_ONLY = ("fvcore", "iopath", "pytorchvideo")  # packages without wheels

# Tests by the dependency in setup.py that they use. Torch's cover DDP, FSDP and the optimizers
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
        "--python", nargs="+", default=ends, metavar="VERSION",
        help="versions of Python (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--constraints", nargs="+", type=Path, metavar="FILE",
        default=[ROOT / name for name in RESOLUTIONS],
        help="versions of the packages (default: oldest and newest)",
    )  # fmt: skip
    parser.add_argument(
        "--environments", type=Path, metavar="FOLDER",
        help="keep environments in this folder for later runs; delete outdated ones of the same "
        "Python and file",
    )  # fmt: skip
    parser.add_argument(
        "--skip-missing", action="store_true", help="do not fail if a Python is not installed"
    )
    parser.add_argument("--update", action="store_true", help="only write both constraints files")
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
    """Path of the environment for a Python, a constraints file and the current setup.py."""
    state = hashlib.sha256((ROOT / "setup.py").read_bytes() + file.read_bytes())
    return folder / f"hpm_video-{python}-{file.stem}-{state.hexdigest()[:16]}"


def environments(folder: Path, python: str, file: Path) -> list[Path]:
    """Environments that this script made for a Python and a constraints file, for any setup.py."""
    name = re.compile(rf"hpm_video-{re.escape(python)}-{re.escape(file.stem)}-[0-9a-f]{{16}}")
    configured = folder.glob("hpm_video-*/pyvenv.cfg")
    return [path.parent for path in configured if name.fullmatch(path.parent.name)]


def try_one(interpreter: str, file: Path, target: Path) -> tuple[bool, str]:
    """Install and test one combination; returns whether all tests passed, and a summary."""
    print(f"== {interpreter}, {file.name}", flush=True)
    own = target / "bin" / "python"
    install = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        if not own.exists():
            subprocess.run([interpreter, "-m", "venv", target], check=True)
        subprocess.run([*install, "-c", file, "-e", f"{ROOT}[test]"], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(target, ignore_errors=True)
        return False, "not tested: installation failed"
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
        return False, f"pytest ended with exit code {code} and wrote no report"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    count = {name: int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return code == 0, f"{passed} passed, {failed} failed, {count['skipped']} skipped"


def find_python(version: str) -> str | None:
    """A working interpreter of a version, from PATH or pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [f"python{version}", *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in filter(shutil.which, candidates):  # pyenv's shims may not start
        if not subprocess.run(
            [candidate, "--version"], capture_output=True, check=False
        ).returncode:
            return candidate
    return None


def update() -> None:
    """Resolve both files for each Python, using packages with wheels for Linux on x86-64."""
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
    """Requirements in setup.py, for running and for tests."""
    from distutils.core import run_setup  # comes with setuptools

    package = run_setup(str(ROOT / "setup.py"), stop_after="init")
    return [*package.install_requires, *package.extras_require["test"]]


if __name__ == "__main__":
    sys.exit(main())
