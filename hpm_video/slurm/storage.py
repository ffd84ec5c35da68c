"""Detects folders on storage that only this machine can access."""

import os
import re
from pathlib import Path

_TEMPORARY = tuple(map(Path, ("/tmp", "/var/tmp", "/dev/shm", "/run")))
_MEMORY = {"tmpfs", "ramfs", "devtmpfs", "overlay", "squashfs"}
_DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs"}


def local_storage(
    path: Path,
    *,
    mounts: Path = Path("/proc/self/mountinfo"),
    exports: Path = Path("/etc/exports"),
) -> str | None:
    """The type of a path's file system if other machines cannot access it, else None.

    mounts: the kernel's list of mounts (proc_pid_mountinfo(5)). exports: folders that this machine
    shares by NFS (exports(5)), which do not count as local.
    """
    place = Path(os.path.realpath(path))
    found = Path("/"), "unknown"
    for line in _lines(mounts):
        mounted, dash, about = line.partition(" - ")
        if not dash:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mounted.split()[4]))
        if place.is_relative_to(point) and point.is_relative_to(found[0]):  # later mounts hide it
            found = point, about.split()[0]
    point, kind = found
    if kind in _MEMORY:
        return kind
    # Temporary folders are local unless another file system is mounted within
    if any(place.is_relative_to(t) and not point.is_relative_to(t) for t in _TEMPORARY):
        return kind
    if kind not in _DISKS:
        return None
    shared = [line.split()[0].strip('"') for line in _lines(exports) if line.startswith(("/", '"'))]
    return None if any(place.is_relative_to(folder) for folder in shared) else kind


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
