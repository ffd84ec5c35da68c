"""A sandbox for processes that decode files from strangers, with plain Linux means.

It needs no privileges and no packages: resource limits, Landlock (Linux 5.13) and a private
network. Features that a kernel or container lacks are left out; `describe` lists the active ones.
"""

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NEW_USERS, _NEW_NETWORK = 0x10000000, 0x40000000  # flags of unshare(2)
_NO_NEW_PRIVILEGES = 38  # option of prctl(2)
# From landlock(7): system calls, and file rights as bits
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _TRUNCATE = 1 << 0, 1 << 1, 1 << 14
_ALL_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # removing and creating
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract sockets and signals to processes outside
_PATH_BENEATH = 1


@dataclass(frozen=True)
class Limits:
    """Limits of a worker, which may never start programs or send signals to other processes."""

    memory_bytes: int  # address space, in addition to that at its start and to given files
    may_write: bool = False  # to files other than the given ones


def confine(limits: Limits, files: Sequence[int]) -> None:
    """Apply the limits to this process, irrevocably."""
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    handed = sum(os.fstat(file).st_size for file in files)
    most = pages * resource.getpagesize() + handed + limits.memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    version = landlock_version()
    if version < 1:
        return
    denied = _EXECUTE | (0 if limits.may_write else _ALL_CHANGES)
    if version >= 3 and not limits.may_write:
        denied |= _TRUNCATE
    rules = struct.pack("QQQ", denied, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    # Older kernels know only the first fields and accept zeros in the rest
    ruleset = _system_call(_CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0:
        return
    if not limits.may_write:  # native code writes its complaints there
        nowhere = os.open(os.devnull, os.O_PATH)
        allowed = struct.pack("=Qi", _WRITE_FILE, nowhere)
        _system_call(_ADD_RULE, ruleset, _PATH_BENEATH, allowed, 0)
        os.close(nowhere)
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _system_call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def leave_network() -> bool:
    """Move this process (which must have one thread) and its children into an empty network.

    Returns whether that is allowed.
    """
    if sys.platform != "linux":
        return False
    native = ctypes.CDLL(None)
    if native.unshare(_NEW_NETWORK) == 0:  # allowed for root
        return True
    user, group = os.geteuid(), os.getegid()
    # Not for root, who would lose access to other users' files in a user namespace
    if user == 0 or native.unshare(_NEW_USERS | _NEW_NETWORK) != 0:
        return False
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(line, encoding="ascii")
    return True


def landlock_version() -> int:
    """The kernel's Landlock version, from 1 on; 0 or less if it has none."""
    return _system_call(_CREATE_RULESET, None, 0, 1) if sys.platform == "linux" else 0


def describe(limits: Limits, *, is_offline: bool) -> str:
    """A log line on what workers with these limits can do."""
    version = landlock_version()
    network = "no network" if is_offline else "UDP but no TCP" if version >= 4 else "network access"
    files = "no file writes" if version >= 1 and not limits.may_write else "file writes"
    programs = "no other programs" if version >= 1 else "other programs"
    return f"{limits.memory_bytes / 2**30:g} GiB of memory each, {network}, {files}, {programs}"


def _system_call(number: int, *arguments: object) -> int:
    native = ctypes.CDLL(None, use_errno=True).syscall
    native.restype = ctypes.c_long
    return int(native(ctypes.c_long(number), *arguments))
