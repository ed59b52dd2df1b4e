"""The log of every process: a line for people, or a JSON object a line, with the ids of what it is about.

`about` sets ids for a block; a thread begun inside has them when it is given `contextvars.copy_context().run`. Bodies,
headers, queries and keys are never logged; what looks like a key, or like the password of a URL, is starred out of
whatever line it came into, by a path that somebody asked for or in the words of a library.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["human", "json"]

_SECRET = re.compile(r"(mp_)[A-Za-z0-9_-]{16,}|(whsec_)[A-Za-z0-9+/=]{16,}|(://[^\s:/?#@\"]*:)[^\s@\"]+(?=@)")
_IDS: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039 - replaced, never changed
FIELDS = "fields"
"""`extra={FIELDS: {…}}` adds fields of one line to its JSON object."""


def without_secrets(line: str) -> str:
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or found[3]}***", line)


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Every line logged in the block carries these ids, as `request_id` or `job_id`."""
    token = _IDS.set(_IDS.get() | ids)
    try:
        yield
    finally:
        _IDS.reset(token)


def configure(log_format: Format, level: int | str = logging.INFO) -> None:
    """Send this process's log, and Python's warnings, to standard error, in place of what was set before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine() if log_format == "json" else HumanLine())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


class HumanLine(logging.Formatter):
    """Time, level, logger, message, ids. A line break in a message cannot begin another line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record).replace("\r", "\\r").replace("\n", "\n    ")
        return " ".join([line, *(f"{name}={value}" for name, value in _IDS.get().items())])


class JsonLine(logging.Formatter):
    """`at`, `level`, `logger`, `message`, the ids, the fields of the line, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_IDS.get(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line, default=str))
