"""From pydantic's error locations to JSON pointers (RFC 6901) into what was really sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from models.errors import FieldProblem

MAX_PROBLEMS = 50
"""A document with thousands of mistakes is answered with the first ones."""


_NOTHING = object()


def json_pointer(location: Sequence[str | int], document: Any, *, missing: bool = False) -> str:
    """Drops the parts of a location that name union branches, which are no part of the document; `missing`: nor is the
    last part, a field that should be."""
    pointer = ""
    current = document
    for index, part in enumerate(location):
        found = _inside(current, part)
        if found is _NOTHING:
            is_missing_field = index == len(location) - 1 and isinstance(current, dict)
            if not (missing and is_missing_field):
                continue
        else:
            current = found
        pointer += "/" + escape(str(part))
    return pointer


def escape(part: str) -> str:
    """A key as it stands in a pointer (RFC 6901, 3)."""
    return part.replace("~", "~0").replace("/", "~1")


def _inside(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part, _NOTHING)
    if isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value):
        return value[part]
    return _NOTHING


def _allowed(error: dict[str, Any]) -> list[str] | None:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error" | "enum":
            return re.findall(r"'([^']*)'", str(context["expected"])) or None
        case "union_tag_invalid":
            return re.findall(r"'([^']*)'", str(context["expected_tags"])) or None
    return None


def _message(error: dict[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "Unknown field; it is refused rather than ignored"
        case "missing":
            return "This field is required"
        case "union_tag_not_found":
            return f"The field {error['ctx']['discriminator']} is required"
    return str(error["msg"]).removeprefix("Value error, ")


def field_problems(errors: Sequence[Any], body: Any = None) -> tuple[FieldProblem, ...]:
    """Problems of pydantic `errors` about a JSON `body`, or about parameters: `/query/limit`, `/header/range`.

    Locations that begin with `body`, as FastAPI's do, are taken relative to it.
    """
    problems = []
    for error in list(errors)[:MAX_PROBLEMS]:
        location = list(error["loc"])
        if location and location[0] in ("query", "header", "path"):
            pointer = "/" + "/".join(str(part) for part in location)
        else:
            inside = location[1:] if location[:1] == ["body"] else location
            if error["type"] == "union_tag_invalid":
                inside = [*inside, error["ctx"]["discriminator"].strip("'")]
            pointer = json_pointer(inside, body, missing=error["type"] == "missing")
        problems.append(FieldProblem(pointer=pointer, message=_message(error), allowed=_allowed(error)))
    return tuple(problems)
