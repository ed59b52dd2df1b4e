"""`python -m worker` with the engines of `children.py`; a worker can be given another engine only in code."""

from __future__ import annotations

import sys
from pathlib import Path

from worker.start import main

COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("children.py")))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], COMMAND))
