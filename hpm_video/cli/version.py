"""``hpm-video --version``: versions of this package and its dependencies, without imports."""

import argparse
import platform
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import hpm_video

_DECODERS = {"PyAV": "av", "decord2": "decord2", "torchcodec": "torchcodec"}  # name -> package
_NOT_INSTALLED = "not installed"


class ShowVersion(argparse.Action):
    """Prints the versions and exits."""

    def __init__(self, option_strings: Any, dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(versions())
        parser.exit()


def versions() -> str:
    """Versions line by line: this package, Python, PyTorch with CUDA, and the decoders.

    One more line if decord 0.6 is installed, which decord2 has replaced.
    """
    decoders = ", ".join(f"{name} {_version(package)}" for name, package in _DECODERS.items())
    lines = [
        f"hpm-video  {hpm_video.__version__}",
        f"Python     {platform.python_version()}",
        f"torch      {_version('torch')}, {_cuda()}",
        f"decoders   {decoders}",
    ]
    if _version("decord") != _NOT_INSTALLED:
        from hpm_video.data.video.readers import why_no_decord  # imports NumPy

        if reason := why_no_decord():
            lines.append(f"           {reason}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _NOT_INSTALLED


def _cuda() -> str:
    """CUDA version of PyTorch's build, read from torch/version.py because importing torch
    takes seconds."""
    torch = find_spec("torch")
    cuda = None
    if torch is not None and torch.origin is not None:
        file = Path(torch.origin).with_name("version.py")
        spec = spec_from_file_location("_version_of_torch", file)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        cuda = getattr(module, "cuda", None)
    return f"built for CUDA {cuda}" if cuda else "built without CUDA"
