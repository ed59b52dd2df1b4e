"""`python -m worker control` or `python -m worker device`: one worker process, set up by `MODELPRESS_*`."""

from __future__ import annotations

import sys

from worker.start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
