"""The wheel, installed away from the clone: it is whole, and nothing of the clone is used."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpm_video

ROOT = Path(__file__).parents[1]
SHIPPED = ("toy_model.safetensors", "toy_clip.mp4")  # what the demo shows
_BUILD = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"
# Of the clone: what is too large to copy, or made by tools
_NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "outputs", "build", "dist", "*.egg-info", "docs"
)


def _clean() -> dict[str, str]:
    """The environment without what leads to the clone."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _build(kind: str, source: Path, place: Path) -> Path:
    command = [sys.executable, "-W", "error::UserWarning", "-c", _BUILD.format(kind), str(place)]
    done = subprocess.run(
        command, cwd=source, env=_clean(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = [path for path in place.iterdir() if path.is_file()]
    return built


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone: a build leaves folders where it runs."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("clone") / "source"
    shutil.copytree(ROOT, place, ignore=_NOT_COPIED)
    return place


@pytest.fixture(scope="module")
def sdist(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", clone, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", clone, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an environment that has the wheel, and this environment's dependencies."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    inside = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    # Paths of a .pth file come last, and .pth files there, as of an editable clone, do not count
    lines = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (place / inside / "dependencies.pth").write_text("\n".join(sorted(lines)) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], env=_clean(), check=True, timeout=300)
    yield place
    shutil.rmtree(place)


def _run(installed: Path, folder: Path, *words: str) -> str:
    """What a command of the environment prints; none of the files it imports is the clone's."""
    environment = {**_clean(), "OMP_NUM_THREADS": "1", "PYTHONVERBOSE": "1"}
    done = subprocess.run(
        [str(installed / "bin" / "hpm-video"), *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{installed}/lib" in done.stderr and str(ROOT / "hpm_video") not in done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_its_recipes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for place, inside in (("hpm_video", "hpm_video"), ("configs", "hpm_video/config/recipes")):
            for path in (ROOT / place).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    name = f"{inside}/{path.relative_to(ROOT / place)}"
                    assert archive.read(name) == path.read_bytes(), name
                    names.discard(name)
    assert names and all(".dist-info/" in name for name in names), names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    shipped = [ROOT / "hpm_video" / "cli" / "assets" / name for name in SHIPPED]
    assert sum(path.stat().st_size for path in shipped) < 1.5e6


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert source.name == f"hpm_video-{hpm_video.__version__}"
    files = sorted(path.name for path in ROOT.glob("constraints*.txt"))
    assert len(files) == 3
    for name in ("LICENSE", "README.md", "CHANGELOG.md", *files, "configs"):
        assert (source / name).exists(), name
    assert not (source / "tests").exists()
    (tmp_path / "built").mkdir()

    def contents(file: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    assert contents(_build("wheel", source, tmp_path / "built")) == contents(wheel)


def test_it_says_its_versions(installed: Path, tmp_path: Path) -> None:
    said = dict(line.split(None, 1) for line in _run(installed, tmp_path, "--version").splitlines())
    assert said["hpm-video"] == hpm_video.__version__
    assert said["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"\d\S+, built (for CUDA [\d.]+|without CUDA)", said["torch"])
    assert re.search(r"PyAV \d.*decord2 (\d|not installed).*torchcodec", said["decoders"])


def test_its_recipes_have_names(installed: Path, tmp_path: Path) -> None:
    said = _run(installed, tmp_path, "recipes")
    for path in (ROOT / "configs").glob("*/*.yaml"):
        assert path.stem in said, path
    assert str(installed) in said.splitlines()[-1]  # where the files are
    said = _run(installed, tmp_path, "recipes", "pretrain/ssv2_base")
    assert said == (ROOT / "configs" / "pretrain" / "ssv2_base.yaml").read_text()
    assert "optim.total_batch" in _run(installed, tmp_path, "pretrain", "ssv2_base", "--help")
    words = ("bench", "plan", "ssv2_base", "--videos", "168913", "--gpus", "64")
    assert "64" in _run(installed, tmp_path, *words)
    assert not list(tmp_path.iterdir())


def test_its_demo_shows_the_shipped_clip(installed: Path, tmp_path: Path) -> None:
    page = tmp_path / _run(installed, tmp_path, "demo").splitlines()[-1]
    assert page == tmp_path / "outputs" / "demo" / "clip" / "toy_clip.html"
    assert "data:image/jpeg" in page.read_text()


def test_its_whole_demo_runs(installed: Path, tmp_path: Path) -> None:
    page = tmp_path / _run(installed, tmp_path, "demo", "--quick").splitlines()[-1]
    assert page == tmp_path / "outputs" / "demo_quick" / "index.html"
    links = re.findall(r'href="([^"]+)"', page.read_text())
    for name in ("pictures/index.html", "pictures/training.html", "evaluation/scratch/index.html"):
        assert name in links
    for link in links:
        assert (page.parent / link).is_file(), link
