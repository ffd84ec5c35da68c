"""Copies of the package and of a YAML beside a job: what is queued stays what was submitted."""

import hashlib
import os
import shutil
from pathlib import Path

import hpm_video
from hpm_video.config.recipe import FOLDER
from hpm_video.config.settings import find_config
from hpm_video.runtime.files import whole_file


class Snapshot:
    """The package as it is now, and a YAML, which are to be copied into a folder.

    Each has its place by its content: the same code is copied once, however often it is submitted.

    Attributes:
        code: folder for PYTHONPATH.
        config: the copy of the YAML, if there is one; of a list of variants, with the variant.
    """

    def __init__(self, folder: Path, yaml: str | Path | None = None) -> None:
        self._package = Path(hpm_video.__file__).parent
        self._files = {
            # Their contents, read through links: nothing of a copy points to what may change
            path.relative_to(self._package): path.read_bytes()
            for path in sorted(self._package.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
        # Where an installed package has them, also from a clone
        self._files |= {
            Path("config", "recipes", path.relative_to(FOLDER)): path.read_bytes()
            for path in sorted(FOLDER.rglob("*"))
            if path.is_file()
        }
        digest = hashlib.sha256()
        for name, content in self._files.items():
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        self.code = folder / "code" / digest.hexdigest()[:12]
        self.config: Path | None = None
        if yaml is not None:
            file, variant = find_config(yaml)
            self._yaml = file.read_bytes()
            key = hashlib.sha256(self._yaml).hexdigest()[:12]
            self._copy = folder / "configs" / f"{file.stem}-{key}.yaml"
            self.config = Path(f"{self._copy}:{variant}") if variant else self._copy

    def write(self) -> None:
        """Make the copies; each is there whole or not at all."""
        if not self.code.exists():
            part = self.code.with_name(f".{self.code.name}.{os.getpid()}")
            try:
                for name, content in self._files.items():
                    file = part / self._package.name / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                os.rename(part, self.code)
            except OSError:
                if not self.code.exists():  # else another submission was quicker
                    raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
        if self.config is not None and not self._copy.exists():
            with whole_file(self._copy) as copy:
                copy.write_bytes(self._yaml)
