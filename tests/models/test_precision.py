"""Which precision ``auto`` is, on simulated machines."""

import pytest
import torch

from hpm_video.models import precision as module
from hpm_video.models.precision import Choice, choose_precision
from hpm_video.runtime import machine
from hpm_video.runtime.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
ZEN3 = "processor: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 fma f16c\n"
COOPER_LAKE = ZEN3.replace("avx2", "avx2 avx512f avx512_bf16")
SAPPHIRE_RAPIDS = ZEN3.replace("avx2", "avx2 amx_bf16 amx_tile")
GRAVITON3 = "processor: 0\nFeatures\t: fp asimd sve bf16 i8mm\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (ZEN3, "float32"),
        (ZEN3.replace("f16c", "avx512f avx512bw avx512_vnni"), "float32"),
        ("", "float32"),
        (COOPER_LAKE, "bfloat16"),
        (SAPPHIRE_RAPIDS, "bfloat16"),
        (GRAVITON3, "bfloat16"),
    ],
)
def test_a_cpu_takes_bfloat16_only_where_it_has_units_for_it(
    cpuinfo: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: cpuinfo)
    chosen, why = choose_precision("auto", ALONE)
    assert chosen == expected
    assert why is not None and "bfloat16 units" in why


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: ZEN3)
    assert choose_precision("bfloat16", ALONE, kept="float32") == Choice("bfloat16", None)


def test_a_continued_run_keeps_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: ZEN3)
    assert choose_precision("auto", ALONE, kept="float32") == Choice("float32", "as before")
    chosen, why = choose_precision("auto", ALONE, kept="bfloat16")
    assert chosen == "bfloat16"
    assert why is not None and "would use float32" in why and "no bfloat16 units" in why


@pytest.mark.parametrize(
    "others",
    [["float32", "bfloat16"], ["bfloat16", "float32"], ["float16", "bfloat16", "float16"]],
)
def test_all_ranks_take_what_each_of_them_computes_fast(
    others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [Choice(other, f"rank {rank}") for rank, other in enumerate(others)]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "gather_objects", lambda value, world: choices)
    slowest = "float32" if "float32" in others else "float16"
    expected = Choice(slowest, f"rank {others.index(slowest)}")  # type: ignore[arg-type]
    assert choose_precision("auto", ALONE) == expected


def _gpu(monkeypatch: pytest.MonkeyPatch, *, has_units: bool) -> World:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_units)
    return World(0, 1, torch.device("cuda"))


def test_a_gpu_without_bfloat16_takes_float16_and_refuses_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = _gpu(monkeypatch, has_units=False)
    chosen, why = choose_precision("auto", world)
    assert chosen == "float16" and why == "Tesla V100 has no bfloat16 units"
    assert choose_precision("float32", world) == Choice("float32", None)
    for asked, kept in (("bfloat16", None), ("auto", "bfloat16")):
        with pytest.raises(
            ValueError, match=r"precision \(bfloat16\) must be float16 on Tesla V100"
        ):
            choose_precision(asked, world, kept=kept, setting="precision")  # type: ignore[arg-type]


def test_other_gpus_take_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _gpu(monkeypatch, has_units=True)
    assert choose_precision("auto", world).precision == "bfloat16"
    assert choose_precision("bfloat16", world) == Choice("bfloat16", None)
