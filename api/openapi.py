"""The OpenAPI document: what FastAPI derives, and the schemas of what routes read or write by themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from api.rules import RULES
from models.events import EngineEvent, StatusEvent
from models.spec import Spec

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
_EVENT: TypeAdapter[Any] = TypeAdapter(EngineEvent | StatusEvent)


def build(app: FastAPI) -> dict[str, Any]:
    """Cached by the app. Every route with a key also lists 401, 403 and 422; all of them problem documents."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            webhooks=app.webhooks.routes,
            separate_input_output_schemas=False,
        )
        schemas = document["components"]["schemas"]
        _, spec = models_json_schema([(Spec, "validation")], ref_template=_REFERENCE)
        schemas.update(spec["$defs"])
        event = _EVENT.json_schema(ref_template=_REFERENCE)
        schemas.update(event.pop("$defs"))
        schemas["JobEvent"] = event
        for sent in document["webhooks"].values():
            # It is their receivers that answer, as they like.
            sent["post"]["responses"] = {
                "2XX": {"description": "Taken"},
                "410": {"description": "Never send here again"},
            }
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        _refer(schemas)
        for path in document["paths"].values():
            for operation in path.values():
                _add_common_problems(operation)
                _add_rule(operation)
        app.openapi_schema = document
    return app.openapi_schema


def _refer(schema: Any) -> None:
    """Turn `x-schema: Name`, which models cannot say as a reference, into one."""
    if isinstance(schema, dict):
        name = schema.pop("x-schema", None)
        if name is not None:
            # Beside a reference a title says nothing, and keeps generators from seeing the reference.
            schema.pop("title", None)
            schema["$ref"] = _REFERENCE.format(model=name)
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _refer(inner)


def _add_rule(operation: dict[str, Any]) -> None:
    """Under `security` OpenAPI 3.1 lists what a bearer of any kind must be allowed to do."""
    rule = RULES.get(operation["operationId"])
    if rule is None:
        return
    limited = operation["responses"].setdefault("429", {"description": "", "content": _PROBLEM})
    limited["description"] = ", ".join(filter(None, [limited["description"], "`rate_limited`"]))
    limited["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    if rule.scope is not None:
        operation["security"] = [{scheme: [rule.scope.value]} for asked in operation["security"] for scheme in asked]
        operation["responses"]["403"]["description"] += f": the key lacks the scope `{rule.scope}`"


def _add_common_problems(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    if not isinstance(responses.get("422"), dict) or "application/json" in responses["422"].get("content", {}):
        responses["422"] = {"description": "`invalid_request`", "content": _PROBLEM}
    if "security" in operation:
        responses.setdefault("401", {"description": "`unauthorized`, `key_expired`", "content": _PROBLEM})
        responses.setdefault("403", {"description": "`forbidden`", "content": _PROBLEM})
        responses.setdefault("503", {"description": "`unavailable`", "content": _PROBLEM})
    for response in responses.values():
        content = response.get("content", {})
        if "application/problem+json" in content:
            content.pop("application/json", None)
