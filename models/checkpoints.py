"""Which stored state stands for which finished steps: the engine names what it saved, the worker looks it up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.spec import Spec

_SOURCES = Path(__file__).resolve().parent.parent


@lru_cache
def code_version() -> str:
    """SHA-256 over the sources of the engine and of `models`: a changed one never resumes what an older one saved."""
    digest = hashlib.sha256()
    engine = _SOURCES / "worker" / "engine"
    for path in [*sorted(engine.rglob("*.py")), *sorted((_SOURCES / "models").glob("*.py"))]:
        body = path.read_bytes()
        digest.update(f"{path.relative_to(_SOURCES).as_posix()} {len(body)}\n".encode())
        digest.update(body)
    return digest.hexdigest()


def checkpoint_key(
    network_sha256: str,
    dataset_sha256: str | None,
    spec: Spec,
    step_index: int,
    teachers: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """SHA-256 (64 hex digits) of everything the state after step `step_index` (from 0) is a result of.

    That is the network, the data and how they are read, the steps so far, the seed, and the code. Ids, names, limits,
    exports and the device do not count, so a clone, or a host of another kind, resumes too. `spec.steps` must be set.
    `teachers` has, for the id of each network that `distill.from` names, what identifies it.
    """
    if spec.steps is None:
        raise ValueError("a spec with a preset has no steps yet: resolve it first")
    content = {
        "network": network_sha256,
        "dataset": dataset_sha256,
        "data": spec.data.model_dump(mode="json", exclude={"dataset"}) if spec.data else None,
        "steps": [_identified(step.model_dump(mode="json"), teachers) for step in spec.steps[: step_index + 1]],
        "seed": spec.seed,
        "code": code_version(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checkpoint_keys(
    network_sha256: str,
    dataset_sha256: str | None,
    spec: Spec,
    teachers: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """The keys after the first step, after the second, … of `spec`."""
    return [
        checkpoint_key(network_sha256, dataset_sha256, spec, index, teachers) for index in range(len(spec.steps or []))
    ]


def _identified(step: dict[str, Any], teachers: Mapping[str, str]) -> dict[str, Any]:
    """The step with what a teacher is in place of its id."""
    changed = dict(step)
    for name, value in step.items():
        if name == "distill" and isinstance(value, dict):
            changed[name] = value | {"from": teachers.get(value["from"], value["from"])}
        elif name == "schedule" and isinstance(value, dict):
            changed[name] = _identified(value, teachers)
    return changed


def inside_key(key: str) -> str:
    """Of the newest state inside the step whose end has `key`."""
    return hashlib.sha256(f"inside {key}".encode()).hexdigest()


def in_order(keys: list[str]) -> list[str]:
    """Of `checkpoint_keys`, every key there is, in the order of progress: inside the first step, after it, inside …"""
    return [each for key in keys for each in (inside_key(key), key)]
