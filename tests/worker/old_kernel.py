"""`python -m tests.worker.old_kernel WITHOUT MODULE …`: run a module where the kernel lacks one of `MISSING`.

A filter answers the missing system calls as a kernel without them does, which no program can tell apart.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

MISSING = {"landlock": (444, 445, 446), "seccomp": (317,), "networks": (272,)}


def forget(numbers: tuple[int, ...]) -> None:
    lines = [struct.pack("HBBI", 0x20, 0, 0, 0)]
    for number in numbers:
        lines += [struct.pack("HBBI", 0x15, 0, 1, number), struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | errno.ENOSYS)]
    lines.append(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(b"".join(lines))
    filter_ = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "no filter")


if __name__ == "__main__":
    forget(MISSING[sys.argv[1]])
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
