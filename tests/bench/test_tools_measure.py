"""The scripts of tools/measure: each runs at its smallest, and what they compare is the same."""

import importlib.util
import json
import math
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from numbered_videos import Recipe, write_video

ROOT = Path(__file__).parents[2]
TINY = ["--size=tiny", "--frames=4", "--crop-size=64", "--batch-size=2", "--device=cpu"]

Script = Callable[..., ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Loads a script as a module, which will find these words on its command line."""

    def load(name: str, *words: str) -> ModuleType:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--rounds=1", *words])
        path = ROOT / "tools" / "measure" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"measure_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize(
    ("name", "words", "rows"),
    [
        ("attention", ["--batch-size=1", "--device=cpu"], 10),
        ("checkpoint", ["--size=tiny", "--device=cpu"], 2),
        ("motion_vectors", ["--videos=2"], 5),
        ("pictures", [*TINY, "--precision=float32"], 2),
    ],
)
def test_a_script_prints_a_table(
    script: Script, capsys: pytest.CaptureFixture[str], name: str, words: list[str], rows: int
) -> None:
    script(name, *words).main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"bench {name}: processor ")
    assert len(lines) >= 3 + rows


def test_views_are_read_as_the_same_bytes(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That they are is asserted by the script itself."""
    module = script("views", "--videos=1", "--crop-size=16", "--decoder=pyav")
    small = [replace(kind, size=(48, 64), num_frames=70) for kind in module.KINDS]
    monkeypatch.setattr(module, "KINDS", small)
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:]] == [*3 * ["k400"], *2 * ["ssv2"]]


def test_pixels_are_the_published_ones_where_they_are_said_to_be(
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Moves to the bit, crops of pre-training to rounding; no test views without OpenCV."""
    for number, size in enumerate(((90, 160), (120, 160), (48, 64))):
        write_video(tmp_path / f"{number}", Recipe("mp4", "libx264", 20, size))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    monkeypatch.setitem(sys.modules, "cv2", None)
    script("pixels", f"--source={tmp_path}", "--crop-size=56", "--shorter=60").main()
    said = capsys.readouterr().out
    assert "OpenCV (cv2) is missing" in said and "\ntest views" not in said
    # 160 * 56 / 90 = 99.6, 160 * 56 / 120 = 74.7; the third is too small
    assert "In 2 of 2 videos, rounding to nearest makes the longer side one pixel longer" in said
    words = [line.split() for line in said.splitlines()]
    for name in ("rotate", "shear_x", "shear_y", "move_x", "move_y"):
        assert [row[-2:] for row in words if row and row[0] == name] == [["0", "0"]], name
    of_crops = {tuple(row[:-2]): float(row[-2]) for row in words if row and row[0] == "crop,"}
    means = {a: of_crops["crop,", "pre-training", "Pillow", f"antialias={a}"] for a in
             ("true", "false")}  # fmt: skip
    assert means["true"] < 0.1 < means["false"]
    with pytest.raises(SystemExit, match="must hold readable videos with a short side above 500"):
        script("pixels", f"--source={tmp_path}", "--shorter=500").main()


def test_growth_and_its_picture(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "growth.json"
    module = script("growth", "--batch-size=1", "--device=cpu", f"--json={file}")
    varied = {
        "frames": (2, 4),
        "crop_size": (32, 64),
        "mask_ratio": (0.75, 0.5),
        "batch_size": (1, 3),
    }
    monkeypatch.setattr(module, "VARIED", varied)
    monkeypatch.setattr(module, "BASE", {"frames": 2, "crop_size": 32, "mask_ratio": 0.75})
    # Counted in test_bench_memory.py; here quadratic in the pixels of a batch
    monkeypatch.setattr(
        module,
        "modelled_bytes",
        lambda config, as_on_gpu: float(module.random_frames(config).numel() ** 2),
    )
    module.main()
    rows = json.loads(file.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [4, 8, 4, 16, 4, 4, 4, 4]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["seconds_exponent"] is None and second["seconds_exponent"] is not None
    exponents = [row["memory_mb_exponent"] for row in rows[1::2]]
    assert exponents == pytest.approx([2, 2, 0, 2])
    # Three clips are three times the products of one
    assert rows[7]["multiply_adds_g_exponent"] == pytest.approx(1)
    assert math.isclose(rows[7]["multiply_adds_g"], 3 * rows[6]["multiply_adds_g"])
    path = runpy.run_path(str(ROOT / "docs" / "growth.py"))["draw"](file, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_videos_in_tars_are_timed_against_files(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    """That all are readable is asserted by the script itself."""
    script("shards", "--rounds=2", "--videos=2").main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "2 videos, 2 rounds"
    assert len([line for line in lines if line.startswith("pyav, ")]) == 4
    assert all("in a tar; ratio of rounds: median" in line for line in lines)


def test_an_epoch_from_a_slow_store_ends(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With each failure named."""
    monkeypatch.setenv("HPM_VIDEO_CACHE", "")
    module = script("urls", "--videos=20", "--latency-s=0.02", "--failures=0.1")
    monkeypatch.setattr(sys, "argv", sys.argv[:1] + sys.argv[2:])  # it has no rounds
    module.main()
    lines = capsys.readouterr().out.splitlines()
    speeds, counts = (*lines[1:4], *lines[5:7]), (lines[4], lines[7])
    assert [line.partition(": ")[0] for line in speeds] == ["videos per second"] * 5
    for line in counts:
        num_requests, named, unreadable = map(int, re.findall(r"(\d+) \w", line)[-3:])
        # Of each video and of the list one about it and one for it; of what is not beside it, one
        assert num_requests >= 2 * 21 + 2 + named
        assert named > 0 and unreadable == 0


def test_plateau_correlates_each_epoch_with_the_end(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs in the order of their accuracy at the first probe, in the other order at the last; a
    variant's level says nothing within it."""
    ends = {"a": (0.1, 0.2, 0.3), "b": (0.7, 0.8, 0.9)}
    rows = [
        {"variant": name, "balanced_accuracy": end, "probe_epochs": [0, 4, 8],
         "rank_accuracy_curve": [end, (name == "b") + place % 2, -end]}
        for name, each in ends.items() for place, end in enumerate(each)
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    module = script("plateau")
    sys.argv = ["plateau.py", str(tmp_path / "rows.json")]
    module.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["0", "4", "8"]
    assert lines[0][1:] == ["1.00", "1.00"] and lines[2][1:] == ["-1.00", "-1.00"]
    assert float(lines[1][1]) > 0.5 and abs(float(lines[1][2])) < 0.3
