"""The Triton kernels on machines without a GPU: by the interpreter, and by the compiler."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import run_interpreted

from hpm_video.runtime import gpu_kernels

FLOAT, LOW, BYTES, COUNTS, PLACES = "*fp32", "*bf16", "*u8", "*i32", "*i64"
NUMBER = "i32"

# Module, kernel, its constants, and what its pointers point to unless float32. All else is int32.
KERNELS = [
    (
        *("models.residual_triton", "_forward"),
        {"WIDTH": 768, "BLOCK": 1024, "ROWS": 1, "HAS_BRANCH": True},
        {"branch_ptr": LOW, "normed_ptr": LOW, "eps": "fp32"},
    ),
    (
        *("models.residual_triton", "_backward"),
        {"WIDTH": 384, "BLOCK": 512, "ROWS": 2, "HAS_RESIDUAL": True, "HAS_BRANCH": True},
        {"gradient_ptr": LOW, "of_branch_ptr": LOW},
    ),
    (
        *("models.projections_triton", "_gelu_backward"),
        {"ROWS": 8, "BLOCK": 128},
        {"gradient_ptr": LOW, "inner_ptr": LOW, "of_inner_ptr": LOW},
    ),
    (
        *("models.projections_triton", "_join"),
        {"ROWS": 8, "BLOCK": 128},
        {"q_ptr": LOW, "k_ptr": LOW, "v_ptr": LOW, "joined_ptr": LOW},
    ),
    ("models.column_sums_triton", "_add_up", {"ROWS": 32, "BLOCK": 32}, {"total_ptr": LOW}),
    (
        *("models.pixels_triton", "_standardize", {"BLOCK": 1024}),
        {"bytes_ptr": BYTES, "result_ptr": LOW},
    ),
    (
        *("method.patch_triton", "_backward"),
        {"VALUES": 1536, "BLOCK": 2048, "CHANNELS": 3, "NORMALIZE": True, "BYTES": True},
        {"reconstruction_ptr": LOW, "patches_ptr": BYTES, "index_ptr": PLACES, "gradient_ptr": LOW},
    ),
    (
        *("method.patch_triton", "_forward"),
        {"VALUES": 1176, "BLOCK": 2048, "CHANNELS": 3, "NORMALIZE": False, "BYTES": False},
        {"reconstruction_ptr": LOW, "index_ptr": PLACES},
    ),
    ("method.ranking_triton", "_compare", {"ROWS": 32, "COLUMNS": 64}, {"pairs_ptr": COUNTS}),
    ("method.ranking_triton", "_mean", {"CLIPS": 32, "BLOCKS": 64}, {"pairs_ptr": COUNTS}),
    (
        *("method.ranking_triton", "_right_order", {"ROWS": 32, "COLUMNS": 64}),
        {"pairs_ptr": COUNTS, "right_ptr": COUNTS},
    ),
    ("runtime.triton_trial", "_double", {"BLOCK": 16}, {"values": FLOAT}),
]


@pytest.mark.parametrize("file", ["models/interpreted_kernels.py", "method/interpreted_losses.py"])
def test_kernels_compute_the_formulas_under_the_interpreter(file: str) -> None:
    run_interpreted(Path(__file__).parents[1] / file)


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
@pytest.mark.parametrize(("module", "name", "constants", "types"), KERNELS)
def test_kernels_compile_for_gpus(
    module: str, name: str, constants: dict[str, Any], types: dict[str, str]
) -> None:
    """To machine code of an A100, which takes no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(pytest.importorskip(f"hpm_video.{module}"), name)
    plain = {each: FLOAT if each.endswith("_ptr") else NUMBER for each in kernel.arg_names}
    signature = {**plain, **types, **dict.fromkeys(constants, "constexpr")}
    places = {(kernel.arg_names.index(each),): value for each, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 1000


def test_where_triton_fails_it_is_said_once_and_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = torch.device("cuda")
    gpu_kernels._is_able.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "hpm_video.runtime.triton_trial", None)
    with pytest.warns(RuntimeWarning, match="Triton cannot run on cuda .*gcc") as warned:
        assert not gpu_kernels.runs_triton(gpu)
        assert not gpu_kernels.runs_triton(gpu)
    assert len(warned) == 1
    assert not gpu_kernels.runs_triton(torch.device("cpu"))
    gpu_kernels._is_able.cache_clear()
