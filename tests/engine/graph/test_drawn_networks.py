"""Random networks of the registry's operators, through the whole engine: lifted, cut and held against the mask."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from tests.engine.graph.drawing import Choices, Drawn, Seeded, Unfit, as_program, draw_network
from tests.engine.graph.families.table import FAMILIES, NOT_DRAWN
from tests.networks import export_pt2
from worker.engine.graph.channels import analyse
from worker.engine.graph.cost import macs, macs_after, parameters, parameters_after
from worker.engine.graph.cut import Cut, cut
from worker.engine.graph.lift import lift
from worker.engine.graph.maskcheck import TOLERANCE, prove
from worker.engine.graph.ops.table import OPS
from worker.engine.ingest.read import read_network

EXAMPLES = 5000 if os.environ.get("MODELPRESS_SWEEPS") == "full" else 40
TURNS = [sorted(FAMILIES)[start::20] for start in range(20)]
"""Every operator in one of these."""
_PRODUCTS = frozenset({"mm.default", "matmul.default", "addmm.default"})
"""Become linear layers, which may add up in another order."""

_T = TypeVar("_T")


class Hypothetical:
    """Choices that Hypothesis makes."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def pick(self, items: Sequence[_T]) -> _T:
        return self._data.draw(st.sampled_from(list(items)))


def check(graph: fx.GraphModule, network: Drawn, x: Tensor, choices: Choices) -> int:
    """Hold the lifted `graph` against the network, cut some of its units and prove it; how many units there were."""
    more = torch.cat([x, x[:1] + 0.5])
    with torch.no_grad():
        expected, found = network(more.clone()), graph(more.clone())
    exact = not any(step.target.__name__ in _PRODUCTS for step in network.steps)
    assert torch.equal(found, expected) if exact else (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    before, channels = copy.deepcopy(graph), analyse(graph, (x,))
    units = [unit for group in channels.groups for unit in group.units]
    removed = [unit for group in channels.groups for unit in group.units[1:] if choices.pick([True, False])]
    plan = Cut(channels, removed)
    foretold = parameters_after(plan), macs_after(plan)
    cut(channels, removed)
    assert prove(before, channels, removed, graph, (x,)) <= TOLERANCE
    assert (parameters(graph), sum(macs(graph, (x,)).values())) == foretold
    with torch.no_grad():
        graph(more)
    return len(units)


@pytest.mark.parametrize("names", TURNS, ids=lambda names: names[0])
def test_every_operator_has_its_turn_in_a_network_that_is_exported_and_cut(names: list[str], tmp_path: Path) -> None:
    for seed in range(12):
        choices = Seeded(seed)
        network, x, missed = draw_network(choices, FAMILIES, names, more=0)
        if len(missed) < len(names):
            graph = lift(read_network(export_pt2(network, (x,), tmp_path / "x.pt2"))).graph
            check(graph, network, x, choices)
        names = missed
        if not names:
            return
    raise AssertionError(f"no network suits {names}")


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
@given(st.data())
def test_a_network_drawn_at_random_can_be_lifted_and_cut(data: st.DataObject) -> None:
    choices = Hypothetical(data)
    try:
        network, x, _ = draw_network(choices, FAMILIES, [], more=choices.pick(range(1, 9)))
    except Unfit:
        assume(False)
    note(str(network))
    check(lift(as_program(network, x)).graph, network, x, choices)


def test_every_operator_with_a_channel_rule_is_drawn_or_it_is_said_why_not() -> None:
    ruled = {name for name, row in OPS.items() if row.channels is not None}
    assert ruled - set(FAMILIES) == {name for name in NOT_DRAWN if name in ruled}
    assert all(NOT_DRAWN.values())


def test_what_is_drawn_has_units_to_cut() -> None:
    found = 0
    for seed in range(12):
        choices = Seeded(seed)
        network, x, _ = draw_network(choices, FAMILIES, [], more=4)
        found += check(lift(as_program(network, x)).graph, network, x, choices) > 0
    assert found >= 3
