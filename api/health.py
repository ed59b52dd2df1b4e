"""`python -m api.health`: whether the API beside this process answers. A container asks it again and again.

It asks for life and not for readiness: with the database or the broker away, a new API would be no better.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from models.settings import settings

SECONDS = 5.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to ask where it listens everywhere


def problem(host: str, port: int) -> str | None:
    """What is wrong, in words."""
    host = _EVERYWHERE.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/healthz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=SECONDS):
            return None
    except (urllib.error.URLError, OSError) as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    sys.exit(problem(settings().host, settings().port))
