"""What a key may do. A closed set that a person understands; `api/rules.py` says which route wants which."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Scope(StrEnum):
    READ = "read"
    """Look at everything of the tenant, and download."""
    UPLOAD = "upload"
    """Send networks and data sets, also in parts."""
    SUBMIT = "submit"
    """Queue, clone and cancel jobs, and look after what their webhooks are told."""
    DELETE = "delete"
    """Delete networks, data sets and ended jobs."""


Scopes = frozenset[Scope]
ALL: Scopes = frozenset(Scope)
READ_ONLY: Scopes = frozenset({Scope.READ})


def stored(scopes: Iterable[Scope]) -> str:
    """As a row has them: their names in the order above, with spaces between, as OAuth writes them."""
    return " ".join(scope for scope in Scope if scope in set(scopes))


def scopes_of(text: str) -> Scopes:
    """What a row says. A name that this version does not know allows nothing."""
    return frozenset(Scope(name) for name in text.split() if name in set(Scope))
