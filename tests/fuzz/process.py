"""`python -m tests.fuzz.process FOLDER TARGET…`: see `tests.fuzz.session`; what it imports is followed."""

from __future__ import annotations

import sys

from tests.fuzz.coverage import follow

follow()

from tests.fuzz.session import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
