"""Texts that may come from a stranger's file, on their way to JSON, a database and a person."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_UNFIT = re.compile("[\0\ud800-\udfff]")


def fit(text: object) -> object:
    """The text with U+FFFD for NUL, which PostgreSQL does not store, and lone surrogates, which UTF-8 has none of."""
    return _UNFIT.sub("\ufffd", text) if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(fit)]
