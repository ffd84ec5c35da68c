"""Copies of the package and a YAML beside a job, so that later edits do not affect queued jobs."""

import hashlib
import os
import secrets
import shutil
import stat
from pathlib import Path

import hpm_video
from hpm_video.config.recipe import FOLDER
from hpm_video.config.settings import find_config
from hpm_video.runtime.files import own_folder, owner_of_new_files, whole_file


class Snapshot:
    """The current package and a YAML, to be copied to a folder.

    Copies are named by a hash of their content, so that the same code is copied only once.

    Attributes:
        code: folder for PYTHONPATH.
        config: the copy of the YAML, if any, followed by ``:VARIANT`` for a list of variants.
    """

    def __init__(self, folder: Path, yaml: str | Path | None = None) -> None:
        self._package = Path(hpm_video.__file__).parent
        self._files = {
            # Links are followed, so that a copy does not depend on files that may change
            path.relative_to(self._package): path.read_bytes()
            for path in sorted(self._package.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
        # The recipes' place in an installed package, even if this one is a clone
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
        """Write the copies atomically.

        An existing copy of the code is reused only if it is identical and nobody else can have
        changed it. Otherwise the new copy gets another name.
        """
        own_folder(self.code.parent, mode=0o700)
        self.code.parent.chmod(0o700)  # versions before 0700 followed the umask
        there = sorted(self.code.parent.glob(f"{self.code.name}*"))
        if (copy := next(filter(self._is_intact, there), None)) is not None:
            self.code = copy
        else:
            self._write_code()
        if self.config is None:
            return
        own_folder(self._copy.parent)
        if not self._copy.is_file() or self._copy.read_bytes() != self._yaml:
            with whole_file(self._copy) as file:
                file.write_bytes(self._yaml)

    def _write_code(self) -> None:
        token = secrets.token_hex(4)
        part = self.code.with_name(f".{self.code.name}.{token}")
        try:
            part.mkdir(0o700)
            for name, content in self._files.items():
                file = part / self._package.name / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            try:
                os.rename(part, self.code)
            except OSError:
                if not os.path.lexists(self.code):
                    raise
                # The existing copy was changed, or another submission wrote it meanwhile
                self.code = self.code.with_name(f"{self.code.name}-{token}")
                os.rename(part, self.code)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _is_intact(self, copy: Path) -> bool:
        """Whether a copy holds exactly these files and their bytecode, all owned by this user, in a
        folder that is closed to others."""
        owner = owner_of_new_files(copy.parent)
        about = copy.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_mode & 0o077 or about.st_uid != owner:
            return False
        found = {}
        for path in copy.rglob("*"):
            about = path.lstat()
            is_file = stat.S_ISREG(about.st_mode)
            if about.st_uid != owner or not (is_file or stat.S_ISDIR(about.st_mode)):
                return False
            if is_file and path.parent.name != "__pycache__":
                found[path.relative_to(copy)] = path.read_bytes()
        return found == {Path(self._package.name, name): c for name, c in self._files.items()}
