"""How a step's cost grows: the exponents, the bench, and the picture of it."""

import json
import runpy
from pathlib import Path

import pytest

from hpm_video.bench import growth
from hpm_video.bench.growth import exponent
from hpm_video.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"


def test_exponents() -> None:
    assert exponent(None, 3, None, 2) is None
    assert exponent(5, 20, 1, 2) == pytest.approx(2)
    assert exponent(5, 20, 2, 1) == pytest.approx(-2)


def test_bench_growth_and_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {
        "frames": (2, 4),
        "crop_size": (32, 64),
        "mask_ratio": (0.75, 0.5),
        "batch_size": (1, 3),
    }
    monkeypatch.setattr(growth, "_BASE", {"frames": 2, "crop_size": 32, "mask_ratio": 0.75})
    # Counted in tests/test_bench_memory.py; here quadratic in the pixels of a batch
    monkeypatch.setattr(
        growth,
        "modelled_bytes",
        lambda setting, variant, as_on_gpu: float(setting.frames.numel() ** 2),
    )
    function = growth.bench_growth
    monkeypatch.setattr(growth, "bench_growth", lambda **settings: function(**settings, grid=grid))
    file = tmp_path / "growth.json"
    words = ["--rounds=1", "--batch-size=1", "--device=cpu", f"--json={file}"]
    assert main(["bench", "growth", *words]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["varied"], row["value"]) for row in rows] == [
        (name, value) for name, values in grid.items() for value in values
    ]
    assert [row["tokens"] for row in rows] == [4, 8, 4, 16, 4, 4, 4, 4]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["seconds_exponent"] is None and second["seconds_exponent"] is not None
    exponents = [row["memory_exponent"] for row in rows[1::2]]
    assert exponents == pytest.approx([2, 2, 0, 2])
    # Three clips are three times the products of one
    assert rows[7]["multiply_adds_exponent"] == pytest.approx(1)
    assert rows[7]["multiply_adds_g"] == pytest.approx(3 * rows[6]["multiply_adds_g"])

    path = runpy.run_path(str(DOCS / "growth.py"))["draw"](file, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
