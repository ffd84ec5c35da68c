"""torch.compile for the parts of a training step; a part that fails to compile runs eagerly.

Parts are compiled in place, so state dict names, DDP or FSDP wrappers and copies do not change.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from hpm_video.config import RunConfig
from hpm_video.config.values import Switch
from hpm_video.models.vit import Block
from hpm_video.runtime.distributed import World
from hpm_video.runtime.files import own_folder

Say = Callable[[str], None]

# Recompilations allowed beyond one per block. Past the limit dynamo runs eagerly, almost silently.
_MOST_FORMS = 16


class CompileChoice(NamedTuple):
    """Whether to compile. why: the reason, in words; None if it was requested."""

    compile: Switch
    why: str | None


def choose_compile(
    asked: Switch, device: torch.device, *, kept: Switch | bool | None = None
) -> CompileChoice:
    """Resolve run.compile on a device.

    ``auto`` becomes the value in the checkpoint that a run continues (``kept``), else true on CUDA.
    On a CPU it is false: compiling takes longer than most runs there.
    """
    word = _word(asked)
    if word != "auto":
        return CompileChoice(word, None)
    if device.type != "cuda":
        return CompileChoice("false", "on a CPU")
    if kept is None or _word(kept) == "auto":
        return CompileChoice("true", "on CUDA")
    return CompileChoice(_word(kept), "as before")


def is_compiled(run: RunConfig, device: torch.device) -> bool:
    """Whether a run with these settings compiles its steps on a device."""
    return choose_compile(run.compile, device).compile == "true"


def compile_parts(
    parts: Mapping[str, nn.Module | None], run: RunConfig, world: World, say: Say
) -> None:
    """Compile the parts of a step if run.compile asks for it; call it after DDP or FSDP wrapping.

    ``parts``: modules by the names that ``say`` uses to report failures. Under FSDP, whose hooks
    gather weights block by block, and with activation checkpointing, each block is compiled alone.
    """
    if not is_compiled(run, world.device):
        return
    # PyTorch sets its default on import. Triton's cache lies inside this folder
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if given is None or given == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_private_cache())
    by_block = run.activation_checkpointing or (world.size > 1 and run.parallel == "fsdp")
    for name, part in parts.items():
        if part is None:
            continue
        blocks = [block for block in part.modules() if isinstance(block, Block)]
        _prepare(num_blocks=len(blocks), by_block=by_block)
        for module in blocks if by_block and blocks else [part]:
            # As `nn.Module.compile` does, whose attribute copies of a module do not keep
            module._compiled_call_impl = _OrEager(module._call_impl, name=name, say=say)


class _OrEager:
    """Calls the compiled function, or the function itself once compiling has failed."""

    def __init__(self, eager: Callable[..., Any], *, name: str, say: Say) -> None:
        self._eager, self._name, self._say = eager, name, say
        self._compiled: Callable[..., Any] | None = None
        try:
            self._compiled = torch.compile(eager)
        except RuntimeError as error:  # this Python or platform is not supported
            self._fail(error)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - takes seconds

        if self._compiled is not None:
            try:
                return self._compiled(*arguments, **named)
            except TorchDynamoException as error:  # the compilers' own errors derive from it, too
                self._fail(error)
        return self._eager(*arguments, **named)

    def _fail(self, error: Exception) -> None:
        self._compiled = None
        inner = getattr(error, "inner_exception", error)
        reason = (str(inner).strip().splitlines() or ["no reason given"])[0]
        self._say(
            f"run.compile: the {self._name} runs eagerly, as compiling it failed: "
            f"{type(inner).__name__}: {reason}"
        )


def _private_cache() -> Path:
    """A cache folder for compiled code that only this user can write to.

    PyTorch's default in the temporary folder belongs to whoever creates it first, who could plant
    code. Ours is in the temporary folder (a local disk) if it is safe there, else in the home, else
    private to this process.
    """
    shared = Path(tempfile.gettempdir())
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    for folder in (shared / f"hpm_video_{os.geteuid()}", home / "hpm_video"):
        with suppress(ValueError):
            own_folder(folder, mode=0o700)
            is_closed = not folder.stat().st_mode & 0o077
            # Otherwise other users could rename it and put theirs in its place
            above = folder.parent.stat().st_mode
            if is_closed and (not above & 0o022 or above & stat.S_ISVTX):
                return folder / "compiled"
    return Path(tempfile.mkdtemp(prefix="hpm_video_compiled_"))


def _prepare(*, num_blocks: int, by_block: bool) -> None:
    """Set PyTorch's options for compilation in this process."""
    import torch._dynamo  # noqa: PLC0415 - takes seconds
    import torch._functorch.config  # noqa: PLC0415

    dynamo = torch._dynamo.config
    # Blocks share code, but each one's stochastic depth is compiled in
    dynamo.recompile_limit = max(dynamo.recompile_limit, num_blocks + _MOST_FORMS)
    if by_block:
        # It splits a whole model's graph so that gradient averaging starts early. Blocks are short
        # already, and it does not support activation checkpointing
        dynamo.optimize_ddp = False
    # Compile the backward pass in the first call, which can still fall back to eager
    torch._functorch.config.force_non_lazy_backward_lowering = True


def _word(value: Switch | bool) -> Switch:
    """Old checkpoints store a bool, from before ``auto``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value
