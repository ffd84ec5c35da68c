"""torch.compile of the parts of a training step; a part for which it fails runs eagerly.

Parts are compiled in place: names in state dicts, wrappers of several processes and copies stay as
they are.
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

# Shapes and settings for which one piece of code may be compiled, beyond one for each block:
# dynamo runs it eagerly, almost in silence, once there are more.
_MOST_FORMS = 16


class CompileChoice(NamedTuple):
    """Whether to compile, and why, in words; None: it was asked for."""

    compile: Switch
    why: str | None


def choose_compile(
    asked: Switch, device: torch.device, *, kept: Switch | bool | None = None
) -> CompileChoice:
    """What ``asked`` means on a device.

    ``auto`` is what the checkpoint of a run has, if it continues one (``kept``), else true on CUDA.
    On a CPU, where compiling takes longer than most runs that one makes there, it is false.
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
    """Whether the settings of a run compile its steps on a device."""
    return choose_compile(run.compile, device).compile == "true"


def compile_parts(
    parts: Mapping[str, nn.Module | None], run: RunConfig, world: World, say: Say
) -> None:
    """Compile models, by the names under which ``say`` is told of a failure, after they are spread
    over processes. Nothing is done where the settings do not ask for it.

    Under FSDP, whose hooks gather the weights of a block just before it works, and with activation
    checkpointing, blocks are compiled one by one.
    """
    if not is_compiled(run, world.device):
        return
    # PyTorch itself sets its default when it is imported. Triton's cache is within it
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
            # What `nn.Module.compile` sets, which copies of a module do not take over
            module._compiled_call_impl = _OrEager(module._call_impl, name=name, say=say)


class _OrEager:
    """Calls what torch.compile makes of a function, or the function once that has failed."""

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
    """A folder for what is compiled, which is loaded and run, and where only this user can write.

    PyTorch's own default, in the folder of temporary files, belongs to whoever makes it first. Ours
    is there too, as disks of this machine are quick; else in the home; else one for this process.
    """
    shared = Path(tempfile.gettempdir())
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    for folder in (shared / f"hpm_video_{os.geteuid()}", home / "hpm_video"):
        with suppress(ValueError):
            own_folder(folder, mode=0o700)
            is_closed = not folder.stat().st_mode & 0o077
            # Else others may rename it, and put their own in its place
            above = folder.parent.stat().st_mode
            if is_closed and (not above & 0o022 or above & stat.S_ISVTX):
                return folder / "compiled"
    return Path(tempfile.mkdtemp(prefix="hpm_video_compiled_"))


def _prepare(*, num_blocks: int, by_block: bool) -> None:
    """Set what compilation needs beforehand, for this process."""
    import torch._dynamo  # noqa: PLC0415 - takes seconds
    import torch._functorch.config  # noqa: PLC0415

    dynamo = torch._dynamo.config
    # Blocks share code, but not their stochastic depth, which is compiled in
    dynamo.recompile_limit = max(dynamo.recompile_limit, num_blocks + _MOST_FORMS)
    if by_block:
        # Cuts one graph of a whole model up, so that averaging gradients begins early; blocks are
        # short as they are, and it refuses activation checkpointing
        dynamo.optimize_ddp = False
    # The backward pass is compiled within the first call, which can still go on eagerly
    torch._functorch.config.force_non_lazy_backward_lowering = True


def _word(value: Switch | bool) -> Switch:
    """Settings from before ``auto`` have a truth value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value
