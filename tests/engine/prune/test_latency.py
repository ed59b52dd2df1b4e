"""Reaching a latency: where the search looks, what it takes, and what it writes down. No assertion depends on how long
anything took."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import Code, Failure
from models.prune_search import Levels
from models.report import Latency
from models.spec import PruneStep
from tests.engine.prune.pruning import chain
from tests.engine.subjects import run_in
from worker.engine.deliver import EXPORTERS
from worker.engine.graph.cost import macs
from worker.engine.prune.latency import MOST_CUTS, LatencyGoal, Timing, best, search
from worker.engine.prune.step import run
from worker.engine.timing import Stopwatch


def latency(p50: float) -> Latency:
    return Latency(p50=p50, p95=p50, samples=1, runtime="none", device="cpu", batch=1, threads=1, isa="none")


def look(milliseconds: Callable[[float], float], wanted: float) -> tuple[LatencyGoal, list[float], list[float]]:
    """The cuts that the search measures on a machine where a network of which `f` is gone takes `milliseconds(f)`; a
    thousand steps are possible, and 95 % can go."""
    goal = LatencyGoal(lambda timing: timing.network.p50, wanted, milliseconds(0.0))

    def levels_at(fraction: float) -> Levels:
        return (round(1000 * min(fraction, 0.95)),)

    probes = search(
        goal,
        levels_at,
        lambda levels: levels[0] / 1000,
        lambda levels: Timing(latency(milliseconds(levels[0] / 1000)), latency(milliseconds(0.0))),
    )
    return goal, [probe.macs_gone for probe in probes], [probe.value for probe in probes]


def test_a_machine_that_only_multiplies_needs_one_cut() -> None:
    _, gone, values = look(lambda f: 10 * (1 - f), 4.0)
    assert gone == [0.6]
    assert values == pytest.approx([4.0])


@pytest.mark.parametrize("floor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_overhead_and_curvature_take_a_few_cuts_more(floor: float, power: float) -> None:
    _, gone, values = look(lambda f: floor + (10 - floor) * (1 - f) ** power, 5.0)
    assert len(gone) <= MOST_CUTS
    assert min(abs(value - 5.0) for value in values) <= 0.1


def test_what_cannot_be_reached_ends_at_the_smallest_network() -> None:
    goal, gone, values = look(lambda f: 6 + 4 * (1 - f), 3.0)
    assert gone[-1] == 0.95
    assert values[-1] == min(values) > goal.wanted


def test_noise_never_makes_it_measure_more_than_the_most() -> None:
    readings = iter([7.0, 3.0, 9.0, 2.0, 8.0, 1.0, 7.0])
    _, gone, _ = look(lambda f: 10.0 if f == 0 else next(readings), 5.0)
    assert len(gone) == MOST_CUTS
    assert len(set(gone)) == MOST_CUTS


def test_the_least_cut_that_is_fast_enough_is_taken_and_else_the_fastest() -> None:
    goal = LatencyGoal(lambda timing: timing.network.p50, 5.0, 10.0)
    machine = {0.2: 8.0, 0.5: 5.05, 0.6: 4.9, 0.8: 3.0}
    probes = search(goal, lambda f: (0,), lambda levels: 0.0, lambda levels: Timing(latency(9.0), latency(10.0)))
    found = [probes[0].__class__((0,), gone, value, probes[0].timing) for gone, value in machine.items()]
    assert best(goal, found).macs_gone == 0.5, "within 2 % is fast enough"
    assert best(goal, found[:1]).macs_gone == 0.2


@pytest.mark.parametrize("amount", [{"latency": 0.3}, {"target": {"latency_ms": 1e-3}}])
def test_cuts_are_exported_and_run_and_the_report_says_what_was_measured(
    amount: dict[str, object], tmp_path: Path
) -> None:
    """A thousandth of a millisecond is out of reach anywhere."""
    subject = chain(tmp_path, 64, 64)
    before = sum(macs(subject.graph, subject.example_inputs()).values())
    step = PruneStep.model_validate({"step": "prune", "amount": amount, "round_to": 4})
    begun = run_in(tmp_path, step)
    with Stopwatch(subject, begun, 1, "pt2", EXPORTERS["pt2"]) as begun.latency:
        details = run(subject, step, begun)
        assert list(tmp_path.glob("timing-*/original.pt2"))
    assert details["quantity"] == "latency"
    assert 1 <= len(details["measured"]) <= MOST_CUTS
    for row in details["measured"]:
        for side in ("latency_ms", "original_latency_ms"):
            assert row[side]["runtime"].startswith("torch ")
            assert (row[side]["batch"], row[side]["threads"], row[side]["device"]) == (1, 1, "cpu")
            assert row[side]["p50"] > 0
    left = sum(macs(subject.graph, subject.example_inputs()).values())
    gone = 1 - left / before
    assert gone in [pytest.approx(row["macs_removed"], abs=1e-6) for row in details["measured"]], "a measured cut"
    chosen = next(row for row in details["measured"] if row["macs_removed"] == pytest.approx(gone, abs=1e-6))
    assert details["left"] == chosen["latency_ms"]["p50"]
    if "target" in amount:
        assert details["why_missed"].startswith(("every group is at its smallest", "of the "))
        assert details["asked"] > 0.9
    assert not list(tmp_path.glob("timing-*")), "nothing is left behind"


def test_a_network_that_is_fast_enough_is_refused(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8)
    step = PruneStep.model_validate({"step": "prune", "amount": {"target": {"latency_ms": 1e6}}, "round_to": 1})
    begun = run_in(tmp_path, step)
    with (
        Stopwatch(subject, begun, 1, "pt2", EXPORTERS["pt2"]) as begun.latency,
        pytest.raises(Failure, match=r"on this machine, which is no more than the 1e\+06 ms asked for") as raised,
    ):
        run(subject, step, begun)
    assert raised.value.code is Code.NOTHING_TO_PRUNE
