"""Whether a folder lies on storage that only this machine sees."""

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
    """The type of the file system below a path if other machines do not see it, else None.

    mounts: the kernel's list (proc_pid_mountinfo(5)). exports: what this machine shares by NFS
    (exports(5)); a disk that it shares is no local storage.
    """
    place = Path(os.path.realpath(path))
    found = Path("/"), "unknown"
    for line in _lines(mounts):
        mounted, dash, about = line.partition(" - ")
        if not dash:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mounted.split()[4]))
        if place.is_relative_to(point) and point.is_relative_to(found[0]):  # the last one counts
            found = point, about.split()[0]
    point, kind = found
    if kind in _MEMORY:
        return kind
    # In a temporary folder, unless something shared is mounted there
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
