"""Server-sent events, as the HTML standard (9.2) defines them, as far as a job's stream uses them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from modelpress.types import Event


def parse_stream(lines: Iterable[str]) -> Iterator[Event]:
    """Events from the lines of a `text/event-stream`. Comments (keep-alives) and unreadable data are passed over."""
    data: list[str] = []
    last_id = ""
    for line in lines:
        if not line:
            event = _event("\n".join(data), last_id) if data else None
            data = []
            if event:
                yield event
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "id":
                last_id = value


def _event(data: str, last_id: str) -> Event | None:
    try:
        answer = json.loads(data)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    event = Event.parse(answer)
    if not event.id and last_id.isdigit():
        event.id = int(last_id)
    return event
