"""The residual stream: add a branch, then normalise for the next branch.

Under autocast on a GPU one kernel does both in float32 and rounds the norm once to the precision of
the matrix product that follows. It replaces an addition, a norm and a cast, each of which would
read and write all tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hpm_video.runtime import gpu_kernels


def add_and_norm(
    x: Tensor, branch: Tensor | None, norm: nn.LayerNorm, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return x (B, N, D) plus the branch (B, N, D), if any, and the norm of that sum.

    ``dtype``: precision of the norm from the kernel; autocast's by default.
    """
    kind = x.device.type
    if (
        x.dtype == torch.float32
        and gpu_kernels.runs_triton(x.device)
        and torch.is_autocast_enabled(kind)
    ):
        dtype = dtype or torch.get_autocast_dtype(kind)
        total, normed = _AddNorm.apply(x, branch, norm.weight, norm.bias, norm.eps, dtype)
        return total, normed
    if branch is not None:
        x = x + branch
    return x, norm(x)


torch.library.define(
    "hpm_video::add_norm",
    "(Tensor x, Tensor? branch, Tensor weight, Tensor bias, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "hpm_video::add_norm_backward",
    "(Tensor gradient, Tensor? residual, Tensor x, Tensor weight, Tensor mean, Tensor scale,"
    " ScalarType? branch) -> (Tensor, Tensor, Tensor)",
)


# `custom_op` would cost 20 us per call, with two calls per block
@torch.library.impl("hpm_video::add_norm", ("cpu", "cuda"))
def _forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    from hpm_video.models import residual_triton  # noqa: PLC0415  # Triton is optional

    outputs = _like_forward(x, branch, weight, bias, eps, dtype)
    branch = None if branch is None else branch.contiguous()
    with torch.cuda.device_of(x):  # where Triton launches
        residual_triton.forward(x.contiguous(), branch, weight, bias, eps, outputs)
    return outputs


def _like_forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x.new_empty(0 if branch is None else x.shape)
    mean = x.new_empty(x.shape[:-1])
    return total, x.new_empty(x.shape, dtype=dtype), mean, torch.empty_like(mean)


@torch.library.impl("hpm_video::add_norm_backward", ("cpu", "cuda"))
def _backward(
    gradient: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    branch: torch.dtype | None,
) -> tuple[Tensor, ...]:
    from hpm_video.models import residual_triton  # noqa: PLC0415  # Triton is optional

    outputs = _like_backward(gradient, residual, x, weight, mean, scale, branch)
    residual = None if residual is None else residual.contiguous()
    of_branch = None if branch is None else outputs[1]
    with torch.cuda.device_of(x):  # where Triton launches
        residual_triton.backward(
            gradient.contiguous(),
            residual,
            (x.contiguous(), weight, mean, scale),
            (outputs[0], of_branch, outputs[2]),
        )
    return outputs


def _like_backward(
    gradient: Tensor,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    branch: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    of_branch = x.new_empty(0 if branch is None else x.shape, dtype=branch)
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return of_x, of_branch, x.new_empty(2, x.shape[-1])


class _AddNorm(torch.autograd.Function):
    """`add_and_norm` as one kernel forward and two backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        total, normed, mean, scale = torch.ops.hpm_video.add_norm(
            x, branch, weight, bias, eps, dtype
        )
        ctx.branch = None if branch is None else branch.dtype
        total = x if branch is None else total
        ctx.save_for_backward(total, weight, mean, scale)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        residual, gradient = grad_outputs
        if gradient is None:  # the norm was not used
            of_branch = None if ctx.branch is None or residual is None else residual.to(ctx.branch)
            return residual, of_branch, None, None, None, None
        of_x, of_branch, of_affine = torch.ops.hpm_video.add_norm_backward(
            gradient, residual, *ctx.saved_tensors, ctx.branch
        )
        of_branch = None if ctx.branch is None else of_branch
        return of_x, of_branch, *of_affine.unbind(0), None, None


torch.library.register_fake("hpm_video::add_norm", _like_forward)
torch.library.register_fake("hpm_video::add_norm_backward", _like_backward)
