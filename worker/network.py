"""A network of an engine's own, with nothing in it but loopback (network_namespaces(7)): what its processes talk over.

The standard library alone: the guard runs this before there is anything else.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_REQUEST = struct.Struct("16sh22x")
"""`struct ifreq` with flags."""


def leave_network() -> bool:
    """Take this process, and all that comes of it, into a network of its own. Takes CAP_SYS_ADMIN; `False` without."""
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        return False
    _raise_loopback()
    return True


def leave_network_as_user() -> None:
    """The same by way of a user namespace, which needs no capability where the system lets users have one.

    Every capability inside that namespace comes with it, to be dropped. Raises OSError.
    """
    uid, gid = os.getuid(), os.getgid()
    _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _raise_loopback()


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        _, flags = _REQUEST.unpack(fcntl.ioctl(asks, _SIOCGIFFLAGS, _REQUEST.pack(b"lo", 0)))
        fcntl.ioctl(asks, _SIOCSIFFLAGS, _REQUEST.pack(b"lo", flags | _IFF_UP))
