"""Landlock: the files an engine may reach, and, from ABI 4 and 6 on, ports and signals (kernel docs, userspace-api)."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_MAKE_FIFO, _MAKE_SYM, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 10, 1 << 12, 1 << 13, 1 << 14, 1 << 15
_ALL_PORTS, _ALL_SCOPES = 0b11, 0b11
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

READ = _READ_FILE | _READ_DIR
RUN = _READ_FILE | _EXECUTE
CONTROL = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
WRITE = (
    READ
    | _WRITE_FILE
    | _TRUNCATE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_FIFO
    | _MAKE_SYM
    | _REFER
)
"""No sockets, no device files, and nothing that was written can be run."""

SIGNALS_ABI = 6
"""From here on signals, and abstract sockets, do not leave the sandbox."""
NEWEST_ABI = 7
"""That this was written for; a newer one is used as this."""

_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


def abi() -> int:
    """What this kernel, and what confines this process already, offers; 0: nothing."""
    version: int = _libc().syscall(_SYS_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return max(version, 0)


def apply(rules: Iterable[tuple[int, str]], version: int, *, ports: bool = False) -> None:
    """Confine this process, and all that comes of it, to `rules`: pairs of rights and a path that exists.

    `version` is the ABI to use, at most `abi()`; with `ports` TCP is let through. Needs no_new_privs. Raises
    OSError.
    """
    files = (1 << 13) - 1
    files |= sum(right for right, since in ((_REFER, 2), (_TRUNCATE, 3), (_IOCTL_DEV, 5)) if version >= since)
    attributes = _Ruleset(
        files, _ALL_PORTS if version >= 4 and not ports else 0, _ALL_SCOPES if version >= SIGNALS_ABI else 0
    )
    size = 24 if version >= SIGNALS_ABI else 16 if version >= 4 else 8
    ruleset = _call("landlock_create_ruleset", _SYS_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    for rights, path in rules:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        kind = os.fstat(descriptor).st_mode
        beneath = _Beneath(rights & files & (-1 if stat.S_ISDIR(kind) else _OF_FILES), descriptor)
        _call("landlock_add_rule", _SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(beneath), 0)
        os.close(descriptor)
    _call("landlock_restrict_self", _SYS_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(name: str, number: int, *arguments: object) -> int:
    result: int = _libc().syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
