"""Runs jobs in containers: pyxis if the cluster's srun has it, else apptainer or singularity."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpm_video.slurm.options import check_line

_PROGRAMS = ("apptainer", "singularity")
_IMAGE_FILES = (".sif", ".sqsh", ".squashfs", ".img")
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Container:
    """How to run tasks in an image.

    image: in the runtime's notation. runtime: pyxis, apptainer or singularity. mounts: SRC:DST or
    SRC:DST:FLAGS.
    """

    image: str
    runtime: str
    mounts: tuple[str, ...]

    def srun_options(self, folder: str) -> list[str]:
        """Options for srun; tasks start in ``folder``."""
        if self.runtime != "pyxis":
            return []
        return [
            f"--container-image={self.image}",
            f"--container-mounts={','.join(self.mounts)}",
            f"--container-workdir={folder}",
        ]

    def command(self, folder: str) -> list[str]:
        """The prefix that runs a command inside the container, in ``folder``; empty for pyxis."""
        if self.runtime == "pyxis":
            return []
        # --nv only warns on a node without GPUs
        binds = ["--bind", ",".join(self.mounts)]
        return [self.runtime, "exec", "--nv", *binds, "--pwd", folder, self.image]


def make_container(
    image: str, mounts: Sequence[str], needed: Iterable[str], *, must_exist: bool
) -> Container:
    """The container of a job.

    Args:
        image: a file, or a name in a registry in the runtime's notation.
        mounts: SRC, SRC:DST or SRC:DST:FLAGS; one text may hold several, separated by commas.
        needed: files and folders that the job reads or writes, mounted at the same path.
        must_exist: whether an image file must exist now.

    Raises ValueError if the cluster has no runtime or a path cannot be mounted, and
    FileNotFoundError if the image file does not exist.
    """
    if os.path.exists(image):
        image = os.path.abspath(image)
    elif must_exist and (image.startswith(("/", "./", "../")) or image.endswith(_IMAGE_FILES)):
        raise FileNotFoundError(f"slurm.container ({image}) does not exist")
    own = [_spelled_out(mount) for text in mounts for mount in text.split(",")]
    # The user's own mounts take precedence
    taken = {mount.split(":")[1] for mount in own}
    folders = [folder for folder in _folders(needed) if folder not in taken]
    for folder in folders:
        check_line("path to mount", folder)
        if "," in folder or ":" in folder:
            raise ValueError(
                f"slurm.container ({image}) must not be used with {folder}: containers cannot "
                "mount a path with a comma or a colon; rename the folder"
            )
    return Container(image, _runtime(image), (*(f"{f}:{f}" for f in folders), *own))


def _runtime(image: str) -> str:
    """The container runtime of this machine; raises ValueError if there is none."""
    try:
        answer = subprocess.run(
            ["srun", "--help"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if "--container-image" in answer.stdout:
            return "pyxis"
    except (OSError, subprocess.TimeoutExpired):
        pass
    for program in _PROGRAMS:
        if shutil.which(program) is not None:
            return program
    raise ValueError(
        f"slurm.container ({image}) needs pyxis, apptainer or singularity: srun --help does not "
        "show --container-image (pyxis), and neither apptainer nor singularity is on the PATH; "
        "load one first, for example with `module load apptainer`, and the job inherits it"
    )


def _spelled_out(mount: str) -> str:
    """A mount as SRC:DST[:FLAGS], with absolute paths."""
    source, _, rest = mount.partition(":")
    target, _, flags = rest.partition(":")
    if not source:
        raise ValueError(
            f"slurm.container_mounts ({mount}) must be SRC, SRC:DST or SRC:DST:FLAGS, for example "
            "/data/videos or /data/videos:/videos:ro"
        )
    source = os.path.abspath(source)
    return ":".join(filter(None, [source, target or source, flags]))


def _folders(paths: Iterable[str]) -> list[str]:
    """The fewest existing folders (never /) that hold all paths and the targets of links."""
    folders: set[str] = set()
    for path in paths:
        for place in (os.path.abspath(path), os.path.realpath(path)):
            folder = place
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            folders.add(folder)
    kept: list[str] = []
    for folder in sorted(folders - {"/"}):
        if not any(os.path.commonpath([folder, other]) == other for other in kept):
            kept.append(folder)
    return kept
