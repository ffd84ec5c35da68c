"""Old import paths of moved modules, which still work with a DeprecationWarning.

Lists the paths that documentation and `hubconf.py` named. CHANGELOG.md says until when they work.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # whose import takes longer than that of this package

MODULES = {
    "hpm_video.backbone": "hpm_video.evaluate.frozen_encoder",
    "hpm_video.checkpoint": "hpm_video.weights.checkpoint",
    "hpm_video.data.labeled_videos": "hpm_video.data.samples.pytorchvideo",
    "hpm_video.data.toy": "hpm_video.data.prepare.toy",
    "hpm_video.feature_file": "hpm_video.evaluate.feature_file",
    "hpm_video.finetune": "hpm_video.train.finetune",
    "hpm_video.health": "hpm_video.method.diagnostics",
    "hpm_video.host_memory": "hpm_video.runtime.host_memory",
    "hpm_video.losses": "hpm_video.method.losses",
    "hpm_video.masking": "hpm_video.method.masking",
    "hpm_video.mining": "hpm_video.evaluate.mining_quality",
    "hpm_video.predictions": "hpm_video.evaluate.predictions",
    "hpm_video.pretrain": "hpm_video.train.pretrain",
    "hpm_video.pretrained": "hpm_video.evaluate.pretrained",
    "hpm_video.reconstruction": "hpm_video.evaluate.pretrained",
    "hpm_video.settings": "hpm_video.config.settings",
    "hpm_video.step": "hpm_video.method.step",
    "hpm_video.teacher": "hpm_video.method.teacher",
    "hpm_video.timm_models": "hpm_video.weights.export.timm_models",
    "hpm_video.tokens": "hpm_video.models.tokens",
    "hpm_video.weights.deployed": "hpm_video.weights.export.program",
}


class _Moved:
    """Imports the modules above from their new place: a finder and loader of the import system."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, cast("Loader", self)) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MODULES[spec.name]
        _warn(spec.name, new)
        old = ModuleType(spec.name, f"Moved to `{new}`.")
        old.__dict__.update(
            {name: value for name, value in vars(import_module(new)).items() if name[:2] != "__"}
        )
        return old

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module was executed at its new place."""


def _warn(old: str, new: str) -> None:
    # Point the warning past the import system to the importing line
    warnings.warn(f"{old} has moved to {new}", DeprecationWarning, stacklevel=3)


def names_moved(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package that used to be a module; names: old name -> new module."""

    def getattr_of_package(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"{names[name]}.{name}")
        return getattr(import_module(names[name]), name)

    return getattr_of_package


def find_moved_modules() -> None:
    """Register the old paths with the import system."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
