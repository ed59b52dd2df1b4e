"""What an error's hint tells a person to write must exist."""

from __future__ import annotations

import json
import re

import pytest

from models.errors import HINTS, Code
from models.spec import Spec

SCHEMA = json.dumps(Spec.model_json_schema())
PATTERNS = (r'"(\w+)":', r"`(?:\w+\.)?(\w+_\w+)`", r"`(limits|require|layers)`")
"""How hints name fields of a spec: `"device": …`, `limits.timeout_s`, `batch_size`."""


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_hint_and_it_names_only_fields_that_exist(code: Code) -> None:
    for pattern in PATTERNS:
        for field in re.findall(pattern, HINTS[code]):
            assert f'"{field}"' in SCHEMA, f"the hint of {code} names {field}"


def test_hints_that_name_fields_are_recognised() -> None:
    named = {field for hint in HINTS.values() for pattern in PATTERNS for field in re.findall(pattern, hint)}
    assert {"batch_size", "device", "timeout_s", "require"} <= named
