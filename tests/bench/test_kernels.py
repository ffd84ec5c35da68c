"""`bench kernels`: launches by PyTorch's rules, counted by hand, and totals of a step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hpm_video.bench.flops import step_cost
from hpm_video.bench.kernels import CUSTOM, KernelCounter, Operation, Rates, count_step
from hpm_video.bench.variants import plain, step_config
from hpm_video.cli.main import main
from hpm_video.train.gpu_forms import fake_tensors

SHAPE = {"size": "tiny", "frames": 4, "crop_size": 64, "batch_size": 2}


def _counted(function: Any) -> dict[str, list[Operation]]:
    counter = KernelCounter()
    with fake_tensors(as_on_gpu=True), counter:
        function()
    found: dict[str, list[Operation]] = {}
    for each in counter.operations:
        found.setdefault(each.name, []).append(each)
    return found


def test_an_operator_is_a_kernel_that_reads_and_writes_its_tensors() -> None:
    def run() -> None:
        one = torch.empty(6, 4)
        wide = torch.empty(4).expand(6, 4)  # lies in 4 numbers
        one.view(4, 6).t()  # no kernel
        _ = one + wide
        F.linear(one, torch.empty(3, 4))

    found = _counted(run)
    assert set(found) == {"add", "mm"}
    assert found["add"] == [Operation("input", "add", 1, 4 * (24 + 4 + 24))]
    (product,) = found["mm"]
    assert (product.kernels, product.flops) == (1, 2 * 6 * 4 * 3)
    assert product.bytes == 4 * (24 + 12 + 18)


def test_operators_of_many_tensors_launch_a_kernel_per_so_many_blocks() -> None:
    """Blocks are of 65,536 numbers, of which a launch has 320; of two lists it takes 64 tensors."""

    def run() -> None:
        large = [torch.empty(1000, 1000) for _ in range(50)]  # 16 blocks each, 800 in all
        torch._foreach_add_(large, 1)
        small = [torch.empty(3) for _ in range(130)]
        torch._foreach_copy_(small, [torch.empty(3) for _ in range(130)])
        torch._foreach_add_(small, 1)  # one list: 110 tensors
        scalars = [torch.empty(())] * 130
        torch._foreach_lerp_(small, small, scalars)  # no fast path

    found = _counted(run)
    assert [each.kernels for each in found["_foreach_add_"]] == [3, 2]
    assert [each.kernels for each in found["_foreach_copy_"]] == [3]
    assert [each.kernels for each in found["_foreach_lerp_"]] == [130]


def test_an_operator_takes_what_takes_longest() -> None:
    rates = Rates(600, 350, 30, 3.6, 2.5)
    assert rates.seconds(Operation("forward", "add", 3, 36)) == pytest.approx(7.5e-6)
    assert rates.seconds(Operation("forward", "add", 1, 36_000_000_000)) == pytest.approx(0.01)
    assert rates.seconds(Operation("forward", "mm", 1, 0, 6e12)) == pytest.approx(0.01)
    attention = "_scaled_dot_product_flash_attention"
    assert rates.seconds(Operation("forward", attention, 1, 0, 3.5e12)) == pytest.approx(0.01)
    backward = Operation("backward", f"{attention}_backward", 1, 0, 2.8e12)
    assert rates.seconds(backward) == pytest.approx(0.01)
    assert rates.seconds(Operation("forward", "x", 1, 0, 0, 3e11)) == pytest.approx(0.01)


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_step_has_the_products_that_bench_flops_counts(is_plain: bool) -> None:
    config = step_config(**SHAPE)  # type: ignore[arg-type]
    config = plain(config) if is_plain else config
    operations, cost = count_step(config), step_cost(config)
    assert not any("cpu" in each.name for each in operations)  # named as on a GPU
    products = {"forward": 0.0, "backward": 0.0}
    for each in operations:
        if each.flops:
            products[each.phase] += each.flops / 2 / 2  # multiply-adds of one of two clips
    assert products["forward"] == cost.student + cost.teacher
    # Fused attention makes its weights again in the backward pass; pixels get no gradient
    assert products["backward"] == pytest.approx(2 * cost.student, rel=0.05)


def test_every_operator_of_ours_is_declared() -> None:
    names = torch._C._dispatch_get_all_op_names()
    ours = {name.split("::")[1] for name in names if name.startswith("hpm_video::")}
    attention = {"blocked_attention", "blocked_attention_backward"}  # of CPUs alone
    assert ours - attention == set(CUSTOM)


def test_the_table_has_phases_and_our_operators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--size=tiny", "--frames=4", "--crop-size=64", "--batch-size=2", "--operators=1"]
    path = tmp_path / "kernels.json"
    assert main(["bench", "kernels", *shape, "--json", str(path)]) == 0
    assert "counted, not measured" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    for step in ("plain", "default"):
        table = [row for row in rows if row["step"] == step]
        whole, *others = table
        phases = [row for row in others if row["operator"] == "all"]
        assert [row["phase"] for row in phases][-2:] == (
            ["clip", "optimizer"] if step == "plain" else ["optimizer", "ema"]
        )
        for key in ("operators", "kernels", "gb", "multiply_adds_g", "modelled_ms"):
            assert sum(row[key] for row in phases) == pytest.approx(whole[key])
        listed = {row["operator"] for row in others}
        assert "hpm_video::patch_loss" in listed
        assert ("hpm_video::ranking_pairs" in listed) == (step == "default")
        theirs = listed - {"all"} - {name for name in listed if name.startswith("hpm_video::")}
        assert len(theirs) == 1


def test_rates_must_be_above_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--memory-tb-s", "0"]) == 2
    assert "--memory-tb-s (0) must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("token_ratio", [0.25, 1.0])
def test_a_target_of_features_needs_none_of_the_kernels_of_pixels(token_ratio: float) -> None:
    """And its products are those that `bench flops` counts, of all clips."""
    base = step_config(**SHAPE, target="ema")  # type: ignore[arg-type]
    config = replace(base, teacher=replace(base.teacher, token_ratio=token_ratio))
    operations = count_step(config)
    names = {each.name for each in operations}
    assert not [name for name in names if "patch_loss" in name]
    assert "_local_scalar_dense" not in names  # nobody waits for the GPU
    products = sum(each.flops for each in operations) / 2
    assert products == pytest.approx(2 * step_cost(config).step, rel=0.01)
    pixels = {each.name for each in count_step(step_config(**SHAPE))}  # type: ignore[arg-type]
    assert "hpm_video::patch_loss" in pixels
