"""`python -m tests.promises.host NAME KIND`: `python -m worker KIND` on a machine that calls itself NAME."""

from __future__ import annotations

import ctypes
import os
import socket
import sys

from worker.start import main

_CLONE_NEWUTS = 0x04000000

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUTS) != 0:
        sys.exit(f"no host name of its own: {os.strerror(ctypes.get_errno())}")
    socket.sethostname(name)
    sys.exit(main(arguments))
