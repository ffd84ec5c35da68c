"""A step in which less learns: what `bench finetune` counts."""

import json
from typing import Any

import pytest

from hpm_video.cli.main import main

WORDS = ["--frames=4", "--crop-size=32", "--batch-size=2", "--rounds=1", "--device=cpu"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("bench") / "rows.json"
    settings = ["--size=tiny", "--precision=float32", "--lora-rank=3"]
    assert main(["bench", "finetune", *settings, *WORDS, "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_parameters_are_those_that_learn(report: dict[str, Any]) -> None:
    rows = {row["learns"]: row for row in report["rows"]}
    width, depth, classes = 192, 12, 174
    head = width * classes + classes + 2 * width  # and the norm before it
    layers = {"qkv": (width, 3 * width), "proj": (width, width)}
    layers |= {"fc1": (width, 4 * width), "fc2": (4 * width, width)}

    def adapters(*targets: str) -> int:
        return depth * sum(3 * sum(layers[name]) for name in targets)

    counted = {name: round(row["parameters_m"] * 1e6) for name, row in rows.items()}
    assert counted["model.freeze=encoder"] == head
    assert counted["model.lora_rank=3"] == head + adapters(*layers)
    assert counted["model.lora_rank=3 model.lora_targets=[qkv]"] == head + adapters("qkv")
    # A block: four layers with biases, of which keys have none, and two norms
    block = sum(a * b + b for a, b in layers.values()) - width + 4 * width
    assert counted["model.freeze=6"] == head + 6 * block


def test_less_learns_in_less_memory(report: dict[str, Any]) -> None:
    rows = {row["learns"]: row for row in report["rows"]}
    assert next(iter(rows)) == "all" and rows["all"]["ratio"] == 1 and rows["all"]["share"] == 1
    order = ["model.freeze=encoder", "model.freeze=6", "all"]
    for name in ("peak_gb", "cuda_fixed_gb", "cuda_clip_mb"):
        values = [rows[each][name] for each in order]
        assert values == sorted(values) and 0 < values[0] < values[-1], name


@pytest.mark.parametrize("option", ["--rounds", "--batch-size", "--lora-rank"])
def test_numbers_of_nothing_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in WORDS if not word.startswith(option)]
    assert main(["bench", "finetune", "--size=tiny", *words, f"{option}=0"]) == 2
    assert f"{option} (0) must be at least 1" in capsys.readouterr().err
