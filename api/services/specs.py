"""From a JSON body to a spec that can be queued: types, then the network and the data, then the rules."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.errors import summary
from api.pointers import field_problems
from api.services import webhooks
from api.services.devices import device_classes
from api.services.uploads import ready_dataset, ready_network
from models import rules
from models.errors import Code, Failure, FieldProblem
from models.inspection import DatasetInspection, NetworkInspection
from models.settings import Settings
from models.spec import Spec
from models.spec_train import teacher_ids

_LAYER_GLOB = re.compile(r"/steps/\d+/(layers/\d+/match|(schedule/)?distill/features/\d+/layer)")


@dataclass(frozen=True)
class CheckedSpec:
    """A spec that may be queued, with what it was checked against."""

    spec: Spec
    resolved: Spec
    network: NetworkInspection
    dataset: DatasetInspection | None


def parse_spec(document: dict[str, Any]) -> Spec:
    """Raises `Failure` with `invalid_spec` and a JSON pointer for each wrong field."""
    try:
        # Strict, as JSON is: "0.5" is no number and 1.0 no whole one.
        return Spec.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        pointed = _as_sent(error.errors(include_url=False), document)
        problems = field_problems(pointed, document)
        raise Failure(Code.INVALID_SPEC, summary(problems), problems=problems) from None


def _as_sent(errors: list[Any], document: dict[str, Any]) -> list[Any]:
    """`dataset` is short for `data.dataset`: point at what was written."""
    if "dataset" not in document:
        return errors
    return [
        {**error, "loc": error["loc"][1:]} if error["loc"][:2] == ("data", "dataset") else error for error in errors
    ]


def merge(original: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396): objects merge, everything else replaces, `null` removes.

    Beyond it: `steps` and `preset` replace each other, and `dataset` replaces `data.dataset`.
    """
    merged = _merge_objects(original, overrides)
    if overrides.get("preset") is not None and "steps" not in overrides:
        merged.pop("steps", None)
    if overrides.get("steps") is not None and "preset" not in overrides:
        merged.pop("preset", None)
    if "dataset" in merged and "data" not in overrides and isinstance(merged.get("data"), dict):
        merged["data"] = {**merged["data"], "dataset": merged.pop("dataset")}
    return merged


def _merge_objects(original: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in original.items() if value is not None}
    for key, value in overrides.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            before = merged.get(key)
            merged[key] = _merge_objects(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def check(session: Session, settings: Settings, tenant: str, document: dict[str, Any]) -> CheckedSpec:
    """Everything that can be known before a job runs. Raises `Failure` with the remedy."""
    spec = parse_spec(document)
    network = ready_network(session, tenant, spec.model, "/model")
    dataset = None
    if spec.data is not None:
        dataset = ready_dataset(
            session, tenant, spec.data.dataset, "/dataset" if "dataset" in document else "/data/dataset"
        )
    teachers = {
        each: ready_network(session, tenant, each, pointer) for each, pointer in teacher_ids(spec.steps or ()).items()
    }
    problems = [_at_what_was_sent(problem, document) for problem in rules.check(spec, network, dataset, teachers)]
    if problems:
        raise Failure(_code_of(problems), summary(problems), problems=tuple(problems))
    _check_device(session, settings, spec)
    webhooks.check(session, settings, tenant, spec)
    return CheckedSpec(spec=spec, resolved=rules.resolve(spec, network, dataset), network=network, dataset=dataset)


def _at_what_was_sent(problem: FieldProblem, document: dict[str, Any]) -> FieldProblem:
    """`dataset` is short for `data.dataset`."""
    if problem.pointer == "/data/dataset" and "dataset" in document:
        return problem.model_copy(update={"pointer": "/dataset"})
    return problem


def _code_of(problems: list[FieldProblem]) -> Code:
    """The narrowest code that fits all problems."""
    if all(_LAYER_GLOB.fullmatch(problem.pointer) for problem in problems):
        return Code.NO_LAYER_MATCHES
    if all(problem.pointer in ("/dataset", "/data/dataset") for problem in problems):
        return Code.DATASET_MISMATCH
    return Code.INVALID_SPEC


def _check_device(session: Session, settings: Settings, spec: Spec) -> None:
    if spec.device != "cuda":
        return
    registered = device_classes(session, settings)
    if "cuda" not in registered:
        problem = FieldProblem(
            pointer="/device", message="No worker with this device is registered", allowed=["auto", *registered]
        )
        raise Failure(Code.NO_SUCH_DEVICE, "No worker with a CUDA device is registered here.", problems=(problem,))
