"""docs/scale.md: its tables are those that its script prints, and their arithmetic is right."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "scale.py"))


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_page_has_the_tables_of_its_script() -> None:
    text = (DOCS / "scale.md").read_text()
    for table in SCRIPT["main"]([]).split("\n\n"):
        assert table in text


def test_a_row_worked_out_by_hand() -> None:
    """SSv2 on 8 GPUs of 500 TFLOP/s, half used, with 10 cores each."""
    options = ["--teraflops=500", "--utilisation=0.5", "--cores=10", "--storage-gb-s=2"]
    recipes, models = SCRIPT["main"](options).split("\n\n")
    row = dict(zip(_rows(recipes)[0], _rows(recipes)[3], strict=True))
    clips_per_s = 250e12 / (2 * 134.0e9)  # of one GPU; multiply-adds of docs/performance.md
    hours = 800 * 164 * 1024 / (8 * clips_per_s) / 3600
    assert (row["recipe"], row["GPUs"], row["videos per step"]) == ("SSv2", "8", "1,024")
    assert float(row["lr"]) == pytest.approx(1.5e-4 * 4)
    assert row["steps"] == f"{800 * 164:,}"
    near = {"rel": 0.05}  # two digits are shown
    assert float(row["hours"]) == pytest.approx(hours, **near)
    assert float(row["ms per step"]) == pytest.approx(128 / clips_per_s * 1000, **near)
    raw, encoded = row["loader cores per GPU"].split(" / ")
    assert float(raw) == pytest.approx(clips_per_s / 37.4, **near)
    assert float(encoded) == pytest.approx(clips_per_s / 74.5, **near)
    slower, _ = row["hours with 10 of them"].split(" / ")
    assert float(slower) == pytest.approx(hours * clips_per_s / 37.4 / 10, **near)
    assert float(row["GB/s read"].split(" / ")[1]) == pytest.approx(
        8 * clips_per_s * 155e-6, **near
    )

    row = dict(zip(_rows(models)[0], _rows(models)[2], strict=True))
    parameters = float(row["M parameters"]) / 1000
    assert row["size"] == "base" and 0.09 < parameters < 0.1
    teacher = parameters - 0.0077  # all but the reconstructor
    checkpoint, state = 12 * parameters + 4 * teacher, 16 * parameters + 4 * teacher
    assert float(row["checkpoint, GB"]) == pytest.approx(checkpoint, rel=0.05)
    assert float(row["GB on each GPU, ddp"]) == pytest.approx(state, rel=0.05)
    assert float(row["fsdp on 8"]) == pytest.approx(state / 8, rel=0.05)
    assert float(row["8 nodes"]) == pytest.approx(checkpoint / 16, rel=0.05)
