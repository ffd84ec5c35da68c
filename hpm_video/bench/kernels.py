"""Kernels, bytes and multiply-adds of a pre-training step on a GPU, counted without a GPU.

The step runs in eager mode on tensors without contents that follow CUDA's code path (see
`hpm_video.train.gpu_forms`). For each operator that PyTorch dispatches we record

- the kernels it launches: one, unless `_LAUNCHES` or `CUSTOM` says otherwise;
- the bytes of its inputs and outputs, each counted once;
- the multiply-adds of its matrix products, counted by PyTorch's `flop_registry`.

An operator takes as long as the slowest of its products, its bytes and its launches, at assumed
rates. Not modelled: time of the host, workspaces of operators, the second kernel of split-K matrix
products, and `memset` launches.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.steps import Phase, build_student, random_frames, step_on
from hpm_video.bench.variants import LITERAL, plain, step_config
from hpm_video.config import PretrainConfig
from hpm_video.config.limits import at_least
from hpm_video.config.values import Size
from hpm_video.runtime.gpu_kernels import PARTS
from hpm_video.train.gpu_forms import fake_tensors

StepVariant = Literal["plain", "default", "literal", "pixels", "both"]


@dataclass(frozen=True)
class Operation:
    """One call of an operator.

    flops: floating-point operations of its matrix products. arithmetic: other floating-point
    operations, for operators that are not bound by memory.
    """

    phase: Phase
    name: str
    kernels: int
    bytes: int
    flops: float = 0
    arithmetic: float = 0


@dataclass(frozen=True)
class Rates:
    """Assumed rates of a GPU in 10^12 per second; a multiply-add is two operations.

    product_tflops: matrix products. attention_tflops: fused attention; its backward pass reaches
    0.8 of it. arithmetic_tflops: arithmetic of our own operators. memory_tb_s: memory bandwidth.
    launch_us: minimum time of a kernel.
    """

    product_tflops: float
    attention_tflops: float
    arithmetic_tflops: float
    memory_tb_s: float
    launch_us: float

    def seconds(self, operation: Operation) -> float:
        """Modelled time of an operation."""
        products = self.product_tflops
        if "scaled_dot_product" in operation.name:
            products = self.attention_tflops * (0.8 if "backward" in operation.name else 1)
        return max(
            operation.flops / (products * 1e12),
            operation.arithmetic / (self.arithmetic_tflops * 1e12),
            operation.bytes / (self.memory_tb_s * 1e12),
            operation.kernels * self.launch_us * 1e-6,
        )


def _multi_tensor_launches(lists: Sequence[Sequence[Tensor]], *, per_tensor: int = 0) -> int:
    """Launches of PyTorch's ``multi_tensor_apply`` (ATen/native/cuda) over lists of tensors.

    4 KB of kernel arguments limit the number of tensors and of blocks of 65,536 elements per
    launch. Builds for CUDA 13 have 32 KB and need fewer launches.
    """
    most_tensors, most_blocks = (110, 64, 48, 36, 30)[len(lists) - 1], 320
    launches = tensors = blocks = 0
    for tensor in lists[0]:
        tensors += 1
        left = -(-tensor.numel() // 65536)
        while left > 0:
            taken = min(left, most_blocks - blocks)
            blocks, left = blocks + taken, left - taken
            if blocks == most_blocks or (tensors == most_tensors and left == 0):
                launches, blocks, tensors = launches + 1, 0, int(left > 0)
    return launches + (blocks > 0)


def _foreach(arguments: Sequence[Any]) -> int:
    lists = [each for each in arguments if isinstance(each, list | tuple) and each]
    lists = [each for each in lists if isinstance(each[0], Tensor)]
    shapes = [[tensor.shape for tensor in each] for each in lists]
    if any(each != shapes[0] for each in shapes):  # no fast path: one kernel per tensor
        return len(lists[0])
    return _multi_tensor_launches(lists)


def _fused_adamw(arguments: Sequence[Any]) -> int:
    return _multi_tensor_launches(arguments[:4])  # parameters, gradients, two moments


def _fused_sgd(arguments: Sequence[Any]) -> int:
    return _multi_tensor_launches(arguments[:2])  # averages and values (see `move_average`)


def _foreach_norm(arguments: Sequence[Any]) -> int:
    tensors = arguments[0]  # kernels: zero the block sums, compute them, reduce them
    return 1 + _multi_tensor_launches([tensors]) + -(-len(tensors) // 400)


def _layer_norm_backward(arguments: Sequence[Any]) -> int:
    # One kernel for the input, one for weight and bias, and two more sums for many short rows
    tensor, shape = arguments[1], arguments[2]
    rows, width = tensor.numel() // shape[0], shape[0]
    return 4 if rows > 65536 and width // 32 < 66 else 2


def _sort(arguments: Sequence[Any]) -> int:
    # Up to 4,096 elements per row: arange, two copies, and the in-place sort
    return 4


# PyTorch operators that do not launch exactly one kernel on CUDA
_LAUNCHES: dict[str, Callable[[Sequence[Any]], int]] = {
    "_fused_adamw_": _fused_adamw,
    "_fused_sgd_": _fused_sgd,
    "_foreach_norm": _foreach_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "sort": _sort,
    # Flash attention: dot products of gradients and outputs, gradients of k and v, gradient of q
    "_scaled_dot_product_flash_attention_for_cpu_backward": lambda arguments: 3,
    # Not in place: a copy, then the in-place kernel
    "masked_fill": lambda arguments: 2,
    "scatter": lambda arguments: 2,
    "scatter_add": lambda arguments: 2,
}


@dataclass(frozen=True)
class _Custom:
    """One of our own operators.

    own_bytes: memory traffic of its workspace. arithmetic: operations besides matrix products, if
    they may dominate.
    """

    kernels: int
    own_bytes: Callable[[Sequence[Any]], int] = lambda arguments: 0
    arithmetic: Callable[[Sequence[Any]], int] = lambda arguments: 0


# A pair in the ranking loss takes about 30 operations: exponential, logarithm, two divisions
CUSTOM = {
    "standardize": _Custom(1),
    "add_norm": _Custom(1),
    "add_norm_backward": _Custom(2, lambda given: 8 * 2 * PARTS * 2 * given[0].shape[-1]),
    "gelu_backward_sum": _Custom(2, lambda given: 8 * PARTS * given[0].shape[-1]),
    "join_sum": _Custom(2, lambda given: 8 * PARTS * 3 * given[0].shape[-1]),
    "patch_loss": _Custom(1),
    "patch_loss_backward": _Custom(1),
    "ranking_pairs": _Custom(1, arithmetic=lambda given: 30 * _pairs(given[0])),
    "ranking_mean": _Custom(1),
    "right_order": _Custom(1, arithmetic=lambda given: 5 * _pairs(given[0])),
}


def _pairs(values: Tensor) -> int:
    clips, tokens = values.shape
    return clips * tokens**2


# PyTorch's counts of floating-point operations. Older versions lack the fused attention operators
# that fake tensors on a CPU dispatch to.
_ATEN = torch.ops.aten
_FLASH = _ATEN._scaled_dot_product_flash_attention
_FLASH_BACKWARD = _ATEN._scaled_dot_product_flash_attention_backward
_COUNTS: dict[Any, Callable[..., float]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_FLASH],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[_FLASH_BACKWARD],
    **flop_registry,
}

# Operators that launch no kernel although their schema is not that of a view
_NOTHING = {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh"),
    *("_unsafe_view", "_reshape_alias", "resize_", "set_", "detach", "alias", "is_same_size"),
}


class KernelCounter(TorchDispatchMode):
    """Records every operator that runs in this context, with the current phase."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._phase: Phase = "input"

    def enter(self, phase: Phase) -> None:
        """Start a phase."""
        self._phase = phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args, kwargs or {}
        result = func(*args, **given[1])
        namespace, name = func._schema.name.split("::")
        flops, arithmetic, moved = 0.0, 0, 0
        if namespace == "hpm_video":
            custom = CUSTOM[name]
            kernels, arithmetic, moved = (
                custom.kernels,
                custom.arithmetic(args),
                custom.own_bytes(args),
            )
            name = f"hpm_video::{name}"
        elif namespace == "aten" and not func.is_view and name not in _NOTHING:
            kernels = _kernels(name, args)
            if count := _COUNTS.get(func._overloadpacket):
                flops = count(*args, **given[1], out_val=result)
        else:
            return result
        moved += _bytes_moved(name, given, result)
        # Fake tensors are on the CPU; the CUDA operator has the same name without this suffix
        name = name.replace("_for_cpu", "")
        self.operations.append(Operation(self._phase, name, kernels, moved, flops, arithmetic))
        return result


def _kernels(name: str, arguments: Sequence[Any]) -> int:
    """Number of kernels that a PyTorch operator launches on CUDA."""
    if name in _LAUNCHES:
        return _LAUNCHES[name](arguments)
    return _foreach(arguments) if name.startswith("_foreach_") else 1


def _bytes_moved(name: str, given: Any, result: Any) -> int:
    """Bytes of an operator's inputs and outputs; for `gather` only of the elements it takes."""
    inputs, outputs = (
        [_bytes(value) for value in tree_leaves(values) if isinstance(value, Tensor)]
        for values in (given, result)
    )
    if name == "gather":
        return 2 * sum(outputs)
    if name.startswith("scatter_add"):
        return inputs[0] + 2 * inputs[-1]
    return sum(inputs) + sum(outputs)


def _bytes(tensor: Tensor) -> int:
    """Bytes that a tensor occupies; expanded dimensions count once."""
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    count = tensor.element_size() if tensor.numel() else 0
    for size, stride in strides:
        count *= size if stride else 1
    return count


def count_step(config: PretrainConfig) -> list[Operation]:
    """List every operator of an optimizer step after the first, without computing anything."""
    with torch.device("meta"):
        student = build_student(config)
    counter = KernelCounter()
    with fake_tensors(as_on_gpu=True):
        student.to_empty(device="cpu")
        step = step_on(config, random_frames(config), student=student, enter=counter.enter)
        step()  # creates the optimizer state
        with counter:
            step()
    return counter.operations


def bench_kernels(
    *,
    size: Size,
    variants: Sequence[StepVariant],
    operators: int,
    product_tflops: float,
    attention_tflops: float,
    arithmetic_tflops: float,
    memory_tb_s: float,
    launch_us: float,
    **shape: Any,
) -> Report:
    """Rows: the whole step, its phases, all of our own operators, and the slowest of PyTorch's.

    ``operators``: number of PyTorch's to list. For the rates see `Rates`. ``shape``: other
    arguments of `step_config`.
    """
    at_least("--operators", operators, 0)
    given = (product_tflops, attention_tflops, arithmetic_tflops, memory_tb_s, launch_us)
    rates = Rates(*given)
    for name, rate in asdict(rates).items():
        if not 0 < rate < math.inf:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} ({rate:g}) must be above 0, and finite")
    rows: list[dict[str, Cell]] = []
    for variant in variants:
        config = _config(variant, step_config(size=size, **shape))
        rows += _rows(variant, count_step(config), rates, operators)
    return Report(
        "kernels",
        machine_facts(torch.device("cpu")),
        {"size": size, **shape, **asdict(rates)},
        rows,
        [
            "counted, not measured: an eager step as on CUDA; an operator takes as long as the "
            "slowest of its products, bytes and launches",
            "operators: number of calls; kernels: launches on CUDA; hpm_video:: marks ours",
        ],
    )


def _config(variant: StepVariant, base: PretrainConfig) -> PretrainConfig:
    if variant == "plain":
        return plain(base)
    if variant == "default":
        return base
    forms = {"literal": LITERAL, "pixels": ("pixels", 0.1, 1), "both": ("both", 0.25, 1)}
    predictor_input, ratio, depth = forms[variant]
    model = replace(base.model, predictor_input=predictor_input, predictor_depth=depth)
    return replace(base, model=model, teacher=replace(base.teacher, token_ratio=ratio))


def _rows(
    step: str, operations: Sequence[Operation], rates: Rates, operators: int
) -> list[dict[str, Cell]]:
    """The rows of one step."""

    def row(phase: str, name: str, part: Sequence[Operation]) -> dict[str, Cell]:
        return {
            "step": step,
            "phase": phase,
            "operator": name,
            "operators": len(part),
            "kernels": sum(each.kernels for each in part),
            "gb": sum(each.bytes for each in part) / 1e9,
            "multiply_adds_g": sum(each.flops for each in part) / 2e9,
            "modelled_ms": sum(map(rates.seconds, part)) * 1e3,
        }

    by_phase, by_operator = defaultdict(list), defaultdict(list)
    for each in operations:
        by_phase[each.phase].append(each)
        by_operator[each.phase, each.name].append(each)
    slowest = sorted(by_operator.items(), key=lambda item: -sum(map(rates.seconds, item[1])))
    ours = [item for item in slowest if item[0][1].startswith("hpm_video::")]
    theirs = [item for item in slowest if item not in ours][:operators]
    return [
        row("all", "all", operations),
        *(row(phase, "all", part) for phase, part in by_phase.items()),
        *(row(phase, name, part) for (phase, name), part in [*ours, *theirs]),
    ]
