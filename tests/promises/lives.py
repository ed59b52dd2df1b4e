"""`python -m tests.promises.lives`: the api, born again in a moment whenever it is killed.

Each life is a process of its own, forked before anything of the service was made, and its id is a line on stdout.
"""

from __future__ import annotations

import ctypes
import os
import signal

from api.__main__ import serve
from models.settings import settings

_PR_SET_PDEATHSIG = 1


def main() -> None:
    while True:
        life = os.fork()
        if life == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            serve(settings())
            os._exit(0)
        print(life, flush=True)
        os.waitpid(life, 0)


if __name__ == "__main__":
    main()
