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
    assert why is not None and "would take float32" in why and "no bfloat16 units" in why


@pytest.mark.parametrize("others", [["float32", "bfloat16"], ["bfloat16", "float32"]])
def test_all_ranks_take_what_each_of_them_computes_fast(
    others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [Choice(other, f"rank {rank}") for rank, other in enumerate(others)]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "gather_objects", lambda value, world: choices)
    slow = others.index("float32")
    assert choose_precision("auto", ALONE) == Choice("float32", f"rank {slow}")
