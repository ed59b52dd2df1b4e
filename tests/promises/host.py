"""`python -m tests.promises.host NAME KIND`: `python -m worker KIND` on a machine that calls itself NAME.

Without arguments it only tries whether this user may have such a machine.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys

from worker.start import main

_CLONE_NEWUTS = 0x04000000


def may_be_named() -> bool:
    """Tried in a child: there is no way back to the old name."""
    return (
        subprocess.run([sys.executable, "-m", "tests.promises.host"], capture_output=True, check=False).returncode == 0
    )


if __name__ == "__main__":
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUTS) != 0:
        sys.exit(f"no host name of its own: {os.strerror(ctypes.get_errno())}")
    if sys.argv[1:]:
        name, *arguments = sys.argv[1:]
        socket.sethostname(name)
        sys.exit(main(arguments))
