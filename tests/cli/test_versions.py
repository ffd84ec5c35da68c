"""tools/try_versions.py: no dependency without a test, and files that say what setup.py says."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("try_versions", ROOT / "tools/try_versions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _dependencies(tool: ModuleType) -> dict[str, Requirement]:
    return {dependency.name: dependency for dependency in map(Requirement, tool.requirements())}


def _pins(file: str, python: str) -> dict[str, Version]:
    """Versions by package that a constraints file has for a Python."""
    lines = (ROOT / file).read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    where = {**default_environment(), "python_version": python}
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(where)]
    assert len({pin.name for pin in here}) == len(here), f"{file} pins a package twice"
    return {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in here}


def test_each_dependency_has_tests(tool: ModuleType) -> None:
    assert set(tool.TESTS) == set(_dependencies(tool))
    assert all((ROOT / test).is_file() for tests in tool.TESTS.values() for test in tests)


def test_the_files_fit_setup(tool: ModuleType) -> None:
    for name, dependency in _dependencies(tool).items():
        (bound,) = dependency.specifier
        assert bound.operator == ">="
        oldest = [_pins("constraints-oldest.txt", python)[name] for python in tool.PYTHONS]
        assert oldest[0] == Version(bound.version), f"{name}: run tools/try_versions.py --update"
        newest = [_pins("constraints-newest.txt", python)[name] for python in tool.PYTHONS]
        assert all(map(dependency.specifier.contains, map(str, [*oldest, *newest])))
    setup = (ROOT / "setup.py").read_text()
    assert f'python_requires=">={tool.PYTHONS[0]}"' in setup


@pytest.mark.parametrize(("words", "code"), [([], 1), (["--skip-missing"], 0)])
def test_a_python_that_is_not_there_is_a_failure_or_named(
    tool: ModuleType,
    words: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["try_versions.py", "--python", "9.9", *words])
    assert tool.main() == code
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert all("| 9.9 |" in row and ": no python9.9" in row for row in rows)


def test_only_its_own_environments_that_are_out_of_date_are_deleted(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (constraints := tmp_path / "new.txt").write_text("")
    folder = tmp_path / "kept"
    stale = f"hpm_video-9.9-new-{'0' * 16}"
    others = (f"hpm_video-9.8-new-{'0' * 16}", f"hpm_video-9.9-old-{'0' * 16}", "hpm_video-9.9-new")
    today = tool.environment(folder, "9.9", constraints).name
    for name in (stale, *others, today, "hpm_video-main"):
        (folder / name).mkdir(parents=True)
        (folder / name / "pyvenv.cfg").touch()
    (folder / f"hpm_video-9.9-new-{'1' * 16}").mkdir()  # no environment, whatever its name says
    before = {path.name for path in folder.iterdir()}
    words = ["--python", "9.9", "--constraints", str(constraints), "--environments", str(folder)]
    monkeypatch.setattr(sys, "argv", ["try_versions.py", *words])
    assert tool.main() == 1
    assert before - {path.name for path in folder.iterdir()} == {stale}
