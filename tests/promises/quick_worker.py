"""`python -m worker` with `quick_engine.py`; a worker can be given another engine only in code."""

from __future__ import annotations

import sys
from pathlib import Path

from worker.start import main

COMMAND = (sys.executable, "-I", "-S", str(Path(__file__).with_name("quick_engine.py")))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], COMMAND))
