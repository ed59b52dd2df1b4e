"""`python -m worker` with the engines of `children.py`, or of the file beside it that SUBJECT names.

A worker can be given another engine only in code.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from worker.start import main

COMMAND = (sys.executable, "-P", str(Path(__file__).with_name(os.environ.get("SUBJECT", "children.py"))))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], COMMAND))
