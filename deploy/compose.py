"""Reading docker-compose.yml as Compose does, as far as ours goes: merge keys, and variables with `?`, `-` and `$$`.

For the tests and `deploy.image_test`, which run what the file says where there is no Docker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).resolve().parent.parent / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Z_]+)(?::([-?])([^}]*))?\})")


class MissingVariable(Exception):
    """Compose would not start: the variable has no value, and the file has no default for it."""


def read(variables: Mapping[str, str], file: Path = FILE) -> dict[str, Any]:
    """The whole file, merged and interpolated. Raises `MissingVariable`."""
    project: dict[str, Any] = _interpolated(yaml.safe_load(file.read_text()), variables)
    for service in project["services"].values():
        if "environment" in service:
            service["environment"] = _environment(service["environment"], variables)
    return project


def variables_of(file: Path = FILE) -> set[str]:
    """Every variable that the file takes from outside."""
    document = yaml.safe_load(file.read_text())
    passed = {
        name
        for service in document["services"].values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    return passed | {match[2] for match in _VARIABLE.finditer(yaml.safe_dump(document)) if match[2]}


def in_order(services: Mapping[str, Any]) -> list[str]:
    """Names of services, each behind those it depends on. Raises `ValueError` when that goes in circles."""
    order: list[str] = []
    while len(order) < len(services):
        free = [
            name
            for name, service in services.items()
            if name not in order and all(other in order for other in service.get("depends_on", {}))
        ]
        if not free:
            raise ValueError(f"depends_on goes in circles, or to what is not there: {set(services) - set(order)}")
        order += free
    return order


def seconds(duration: str) -> float:
    """Of a duration like `45s` or `1m`."""
    return float(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def size(text: str) -> int:
    """Bytes of a size like `64m` or `8g`."""
    return int(text[:-1]) * {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[text[-1]]


def _environment(given: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
    """A name without a value is passed on, when there is something to pass."""
    filled = {name: variables.get(name) if value is None else str(value) for name, value in given.items()}
    return {name: value for name, value in filled.items() if value is not None}


def _interpolated(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _interpolated(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_interpolated(value, variables) for value in node]
    return _VARIABLE.sub(lambda match: _value(match, variables), node) if isinstance(node, str) else node


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    dollar, name, operator, rest = match.groups()
    if dollar:
        return "$"
    value = variables.get(name, "")
    if not value and operator == "?":
        raise MissingVariable(f"{name}: {rest}")
    return value or (rest if operator == "-" else "")
