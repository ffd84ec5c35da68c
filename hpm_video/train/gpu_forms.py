"""Fake tensors that follow CUDA's code path on a machine without a GPU.

The tensors have shapes but no contents and claim to be on the CPU, where autocast, attention and
optimizers work without a driver. Our own choices by device are made as for CUDA.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad

from hpm_video.method import patch_kernel
from hpm_video.models import vit
from hpm_video.runtime import gpu_kernels


@contextmanager
def fake_tensors(*, as_on_gpu: bool) -> Iterator[None]:
    """A context in which tensors take no memory and operators compute nothing."""
    with warnings.catch_warnings(), ExitStack() as contexts:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        if as_on_gpu:
            for name in ("is_eager_gpu", "runs_triton"):
                contexts.enter_context(patch.object(gpu_kernels, name, lambda device: True))
            contexts.enter_context(patch.object(vit, "attention", F.scaled_dot_product_attention))
            contexts.enter_context(patch.dict(patch_kernel.CLIPS_AT_ONCE, clear=True))
            # PyTorch uses foreach operators for CUDA tensors only
            for name in ("_has_foreach_support", "_device_has_foreach_support"):
                contexts.enter_context(patch.object(clip_grad, name, lambda *_: True))
        contexts.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield
