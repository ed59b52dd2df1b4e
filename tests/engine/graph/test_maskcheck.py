"""The mask check must find every way in which a cut can be wrong."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from tests.engine.graph.cuts import difference, halve
from tests.engine.graph.test_traps import CASES
from tests.engine.subjects import lifted, subject_of
from tests.networks import NETWORKS, randomised
from worker.engine.graph.channels import analyse
from worker.engine.graph.labels import Labels
from worker.engine.graph.maskcheck import TOLERANCE, mask_check, prove
from worker.engine.graph.ops.call import Call
from worker.engine.graph.ops.table import OPS


@pytest.mark.parametrize("name", ["resnet18", "densenet", "convnext", "vit", "bert", "lstm", "two_towers"])
def test_any_weight_that_is_wrong_after_a_cut_is_found(name: str) -> None:
    subject, (_, inputs) = subject_of(name), NETWORKS[name]()
    halved = halve(subject.graph, inputs)
    assert prove(halved.before, halved.channels, halved.removed, halved.after, inputs) <= TOLERANCE
    right, before = halved.after(*inputs), copy.deepcopy(halved.before.state_dict())
    found = []
    for parameter in halved.after.parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.add_(torch.randn(kept.shape, generator=torch.Generator().manual_seed(0)) * 0.5)
            matters = difference(right, halved.after(*inputs)) > 1e-3
            far = mask_check(halved.before, halved.channels, halved.removed, halved.after, inputs)
            parameter.copy_(kept)
        if matters:  # a bias before a softmax over keys, for one, does not
            found.append(far > TOLERANCE)
    assert len(found) >= 0.7 * len(list(halved.after.parameters()))
    assert all(found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in halved.before.state_dict().items())


def test_a_cut_of_other_units_is_found() -> None:
    subject, (_, inputs) = subject_of("resnet18"), NETWORKS["resnet18"]()
    halved = halve(subject.graph, inputs)
    other = [unit + 1 for unit in halved.removed]
    assert prove(halved.before, halved.channels, other, halved.after, inputs) > 1e-2


def test_a_constant_that_was_not_rewritten_is_found(tmp_path: Path) -> None:
    make, x, _ = CASES["attention"]
    subject = lifted(randomised(make()), (x,), tmp_path)
    halved = halve(subject.graph, (x,), attention="features")
    (attention,) = (node for node in halved.after.graph.nodes if "scaled_dot" in node.name)
    attention.kwargs = {}
    halved.after.recompile()
    assert prove(halved.before, halved.channels, halved.removed, halved.after, (x,)) > 1e-3


def test_an_operand_cut_on_its_own_is_found(tmp_path: Path) -> None:
    """Seen once: a normalisation whose weight lost channels that its input kept ran, and was wrong."""
    make, x, _ = CASES["instance_norm"]
    subject = lifted(randomised(make()), (x,), tmp_path)
    halved = halve(subject.graph, (x,))
    whole = dict(halved.before.named_parameters())["1.weight"]
    wrong = copy.deepcopy(halved.after)
    wrong.get_submodule("1").weight = nn.Parameter(whole[-8:].clone())  # the removed are every other one
    assert prove(halved.before, halved.channels, halved.removed, wrong, (x,)) > 1e-3


def test_a_cut_network_that_does_not_run_is_infinitely_far(tmp_path: Path) -> None:
    make, x, _ = CASES["attention"]
    subject = lifted(randomised(make()), (x,), tmp_path)
    halved = halve(subject.graph, (x,))
    halved.after.get_submodule("head").weight = nn.Parameter(torch.zeros(3, 5))
    assert prove(halved.before, halved.channels, halved.removed, halved.after, (x,)) == math.inf


def test_rounding_that_a_network_magnifies_is_no_mistake(tmp_path: Path) -> None:
    class Wild(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 256), nn.Linear(256, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(3000 * self.b(torch.tanh(self.a(x))))

    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    subject = lifted(randomised(Wild()), (x,), tmp_path)
    halved = halve(subject.graph, (x,))
    single = mask_check(copy.deepcopy(halved.before), halved.channels, halved.removed, halved.after, (x,))
    assert single > TOLERANCE
    assert prove(halved.before, halved.channels, halved.removed, halved.after, (x,)) < 1e-8


def test_a_rule_that_overlooks_an_operand_is_refused() -> None:
    graph = fx.Graph()
    first, second = graph.placeholder("first"), graph.placeholder("second")
    node = graph.call_function(torch.ops.aten.add.Tensor, (first, second))
    for source in (first, second, node):
        source.meta["sizes"] = (2, 4)
    labels = Labels()
    call = Call(node, labels, {first: [None, labels.fresh(4)], second: [None, labels.fresh(4)]}, lambda _: [], "heads")
    call.operand("self")
    assert call.untaken() == ["other"]


def test_every_registered_rule_belongs_to_an_operator_that_exists() -> None:
    for name, row in OPS.items():
        packet, overload = name.split(".")
        assert hasattr(getattr(torch.ops.aten, packet), overload), name
        assert row.rewrite is None or row.channels is not None, name


@pytest.mark.parametrize("name", ["resnet18", "vit", "lstm"])
def test_analysis_takes_batches_of_any_size(name: str) -> None:
    subject, (_, inputs) = subject_of(name), NETWORKS[name]()
    three = tuple(torch.cat([tensor, tensor[:1]]) for tensor in inputs)
    expected = [(group.id, len(group.units)) for group in analyse(subject.graph, inputs).groups]
    assert [(group.id, len(group.units)) for group in analyse(subject.graph, three).groups] == expected
