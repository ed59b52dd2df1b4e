"""What a row of the tables is made of: what is sent, and the outcome that it must have."""

from __future__ import annotations

import json as text
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import Code
from tests.api.stories import problem_of
from tests.bad_inputs.place import Place

Check = Callable[[Place], object]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Row:
    """One bad input, by its number; `checks` are its variants, all of which must have their outcome."""

    number: int
    title: str
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        return f"{self.number:03} {self.title}"


def row(number: int, title: str, *checks: Check) -> Row:
    return Row(number, title, checks)


@dataclass(frozen=True)
class File:
    """A file with a payload, if any, that makes the canary. `code`: the refusal, and `says` a part of its message.

    `at_once`: the first bytes or the length show it, so the upload is a 422; otherwise it is stored, inspected and
    `rejected`. Without `code` it is read, with `warning` where that is given, whose message then has `says` in it.
    """

    content: bytes | Callable[[Path], bytes]
    code: Code | None = None
    says: str = ""
    at_once: bool = False
    warning: str | None = None
    kind: str = "/models"
    params: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, place: Place) -> None:
        content = self.content if isinstance(self.content, bytes) else self.content(place.canary)
        if self.at_once:
            assert self.code is not None
            before = place.client.get(self.kind).json()
            problem = problem_of(place.client.post(self.kind, content=content, params=self.params), 422, self.code)
            assert self.says in problem["detail"]
            assert place.client.get(self.kind).json() == before
        else:
            shown = place.inspected(self.kind, content, **self.params)
            if self.code is None:
                assert shown["status"] == "ready", shown["error"]
                notices = {notice["code"]: notice["message"] for notice in shown["warnings"]}
                assert self.warning is None or self.says in notices[self.warning]
            else:
                assert (shown["status"], shown["error"]["code"]) == ("rejected", self.code), shown["error"]
                assert self.says in shown["error"]["message"]
        assert not place.canary.exists()


@dataclass(frozen=True)
class Call:
    """One request. `code` None: no problem document is expected. `pointer`: at least one error points there."""

    request: str
    status: int
    code: Code | None = None
    pointer: str | None = None
    says: str = ""
    content: bytes | None = None
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, place: Place) -> None:
        method, path = self.request.split(" ", 1)
        content = self.content if self.json is None else text.dumps(self.json).encode()
        given = {**(JSON if self.json is not None else {}), **self.headers}
        headers = [(name.encode(), value.encode()) for name, value in given.items()]
        response = place.client.request(method, path, content=content, params=self.params, headers=headers)
        if self.code is None:
            assert response.status_code == self.status, response.text
            return
        problem = problem_of(response, self.status, self.code)
        assert self.says in problem["detail"]
        if self.pointer is not None:
            assert self.pointer in [error["pointer"] for error in problem["errors"]], problem["errors"]
