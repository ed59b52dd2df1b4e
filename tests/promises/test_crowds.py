"""The rows about many jobs, watchers and requests; apart from the others, so that two cores share the work."""

from __future__ import annotations

import pytest

from tests.promises.table import CROWDS, Row


@pytest.mark.slow
@pytest.mark.parametrize("row", CROWDS, ids=lambda row: row.name)
def test_the_promise_holds_in_a_crowd(row: Row) -> None:
    outcome = row.measure(row.short)
    assert outcome.holds, outcome
