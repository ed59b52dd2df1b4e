"""Every way to say how much goes, against a recount of the network that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import Code, Failure
from tests.engine.prune.pruning import chain, prune, widths_of
from tests.engine.subjects import subject_of
from worker.engine.graph.cost import macs, parameters
from worker.engine.subject import Subject


def count(subject: Subject, quantity: str) -> int:
    """From the network itself, with nothing of the selection."""
    if quantity == "parameters":
        return parameters(subject.graph)
    if quantity == "macs":
        return sum(macs(subject.graph, subject.example_inputs()).values())
    return sum(t.numel() * t.element_size() for t in (*subject.graph.parameters(), *subject.graph.buffers()))


@pytest.mark.parametrize("quantity", ["parameters", "macs", "bytes"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_a_target_is_reached_within_two_percent_and_the_report_says_what_is_left(
    name: str, scope: str, quantity: str, tmp_path: Path
) -> None:
    subject = subject_of(name)
    before = count(subject, quantity)
    target = 0.45 * before
    details = prune(subject, tmp_path, amount={"target": {quantity: target}}, scope=scope, round_to=1)
    left = count(subject, quantity)
    assert details["left"] == left == pytest.approx(target, rel=0.02)
    assert details["reached"] == pytest.approx(1 - left / before, abs=1e-6)
    assert details["asked"] == pytest.approx(0.55)
    assert details["why_missed"] is None


def test_bytes_count_buffers_too(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    before = count(subject, "bytes")
    details = prune(subject, tmp_path, amount={"bytes": 0.4}, round_to=1)
    assert details["left"] == count(subject, "bytes")
    assert details["reached"] == pytest.approx(1 - details["left"] / before, abs=1e-6)
    assert details["reached"] == pytest.approx(0.4, abs=0.02)


def test_a_target_of_channels_counts_units_of_all_groups(tmp_path: Path) -> None:
    subject = chain(tmp_path, 10, 6)
    details = prune(subject, tmp_path, amount={"target": {"channels": 4}}, round_to=1)
    assert sum(widths_of(subject)) == details["left"] == 4


def test_a_target_that_is_met_already_is_refused_with_the_count(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"The network has 60 macs, which is no more than the 100 that are") as raised:
        prune(chain(tmp_path, 15), tmp_path, amount={"target": {"macs": 100}}, round_to=1)
    assert raised.value.code is Code.NOTHING_TO_PRUNE


def test_units_below_a_threshold_go_and_no_other(tmp_path: Path) -> None:
    """l1 of unit k: 2 (k + 1) in its row, 2 (k + 1) in its column: 2, 4, 6, … 16."""
    subject = chain(tmp_path, 8)
    details = prune(subject, tmp_path, amount={"threshold": 7.0}, criterion="l1", round_to=1)
    assert widths_of(subject) == [5]
    assert details["reached"] == 3 / 8
    exact = chain(tmp_path, 8)
    prune(exact, tmp_path, amount={"threshold": 6.0}, criterion="l1", round_to=1)
    assert widths_of(exact) == [6], "a unit at the threshold stays"


def test_a_threshold_is_held_against_scores_that_are_not_normalised(tmp_path: Path) -> None:
    """The second layer's weights are ten times the first's; normalised, both would lose the same."""
    subject = chain(tmp_path, 8, 8, scales=(1.0, 10.0))
    rows = subject.graph.get_submodule("0").weight.abs().sum(1)  # type: ignore[operator]
    assert rows.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]
    prune(subject, tmp_path, amount={"threshold": 1100.0}, criterion="l1", round_to=1)
    first, second = widths_of(subject)
    assert first < second < 8


def test_a_threshold_never_empties_a_layer(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8, 6)
    prune(subject, tmp_path, amount={"threshold": 1e6}, criterion="l1", round_to=1)
    assert widths_of(subject) == [1, 1]
    rounded = chain(tmp_path, 8, 6)
    prune(rounded, tmp_path, amount={"threshold": 1e6}, criterion="l1", round_to=4)
    assert widths_of(rounded) == [4, 4]


def test_a_threshold_rounds_in_favour_of_units_that_score_above_it(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8)
    prune(subject, tmp_path, amount={"threshold": 13.0}, criterion="l1", round_to=4)
    assert widths_of(subject) == [4], "six units score below 13, and only four of them make a step"


def test_a_threshold_below_every_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"score below the threshold 1\. Raise it") as raised:
        prune(chain(tmp_path, 8), tmp_path, amount={"threshold": 1.0}, criterion="l1", round_to=1)
    assert raised.value.code is Code.NOTHING_TO_PRUNE


def test_a_percentile_of_each_layer_takes_the_same_share_of_each(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8, 4, scales=(1.0, 100.0))
    prune(subject, tmp_path, amount={"percentile": 50}, scope="layer", criterion="l1", round_to=1, normalize="none")
    assert widths_of(subject) == [4, 2]


def test_a_percentile_of_the_network_takes_the_lowest_scores_of_all(tmp_path: Path) -> None:
    """Raw scores of the second layer are all above those of the first."""
    subject = chain(tmp_path, 8, 4, scales=(1e-6, 1e6))
    prune(subject, tmp_path, amount={"percentile": 50}, scope="global", criterion="l1", round_to=1, normalize="none")
    assert widths_of(subject) == [2, 4], "six of twelve"


def test_a_minimum_is_kept(tmp_path: Path) -> None:
    subject = chain(tmp_path, 12, 12)
    details = prune(subject, tmp_path, amount={"channels": 0.9}, minimum=5, round_to=1)
    assert widths_of(subject) == [5, 5]
    assert details["why_missed"].endswith("because of `minimum` (5)")
    assert details["limit"] in ("0", "2")


def test_no_group_loses_more_than_the_largest_fraction(tmp_path: Path) -> None:
    subject = chain(tmp_path, 12, 7)
    details = prune(subject, tmp_path, amount={"channels": 0.9}, maximum_fraction=0.5, round_to=1)
    assert widths_of(subject) == [6, 4]
    assert details["why_missed"].endswith("because of `maximum_fraction` (0.5)")


def test_the_group_that_limits_is_named_with_what_holds_it(tmp_path: Path) -> None:
    details = prune(
        subject_of("resnet18"), tmp_path, amount={"macs": 0.9}, round_to=8, layers=[{"match": "layer1.*", "skip": True}]
    )
    assert details["limit"] == "conv1", "the first stage's channels, which a skipped layer shares, hold most"
    assert "conv1 holds most" in details["why_missed"]
    assert details["why_missed"].endswith("because of what the spec skips or its criterion cannot rank")


def test_a_step_that_is_too_large_is_named(tmp_path: Path) -> None:
    details = prune(chain(tmp_path, 32), tmp_path, amount={"channels": 0.4}, round_to=16)
    assert details["reached"] == 0.5
    assert details["why_missed"] == "the smallest step, 16 units of 0, is 50.0%"
    assert details["limit"] == "0"
