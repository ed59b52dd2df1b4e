"""Dropout and stochastic depth in training: where they are put, what they do, and that nothing of them is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.spec import FinetuneStep
from tests.engine.subjects import lifted, subject_of
from tests.engine.train.test_step import patterns, small, started
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.measure.metrics import as_outputs
from worker.engine.subject import StepState, Subject
from worker.engine.train.dropout import left_out, with_noise
from worker.engine.train.state import copy_weights
from worker.engine.train.step import run


class Deep(nn.Module):
    """Two residual branches, a third around one of them, and sums that are no branches: of two layers, and with a
    power of itself (as activations are written out)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Linear(6, 8), nn.Linear(6, 8)
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x) + self.side(x)
        y = y + 0.1 * y * y
        y = y + self.first(y)
        z = self.second(y)
        found: Tensor = y + (z + self.third(z).relu())
        return found


def deep(folder: Path) -> Subject:
    torch.manual_seed(0)
    return lifted(Deep(), (torch.randn(2, 6),), folder)


def test_samples_are_left_out_whole_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    found = left_out(torch.ones(3, 4000, 2), 0.25, 1)
    assert sorted(set(found.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(found, found[:1, :, :1].expand(3, 4000, 2))
    assert found.mean().item() == pytest.approx(1.0, abs=0.05)


PLACES = {"resnet18": (1, 4), "vit": (9, 4), "bert": (10, 4), "tied_language_model": (3, 1), "lstm": (1, 0)}


@pytest.mark.parametrize("name", PLACES)
def test_places_are_found_and_the_network_stays_as_it_is(name: str) -> None:
    subject = subject_of(name)
    before = [(node.op, str(node.target), node.args, node.kwargs) for node in subject.graph.graph.nodes]
    inputs = subject.example_inputs(8)
    plain = as_outputs(subject.graph(*inputs))
    noisy = with_noise(subject.graph, inputs, 0.2, 0.2)
    assert (noisy.dropouts, noisy.branches) == PLACES[name]
    one, two = as_outputs(noisy.network(*inputs)), as_outputs(noisy.network(*inputs))
    assert not torch.equal(one[0], two[0])
    assert [(node.op, str(node.target), node.args, node.kwargs) for node in subject.graph.graph.nodes] == before
    assert torch.equal(as_outputs(subject.graph(*inputs))[0], plain[0])
    assert dict(noisy.network.named_parameters()).keys() == dict(subject.graph.named_parameters()).keys()
    assert all(a is b for a, b in zip(noisy.network.parameters(), subject.graph.parameters(), strict=True))
    still = with_noise(subject.graph, inputs, 0.0, 0.0)
    assert torch.equal(as_outputs(still.network(*inputs))[0], plain[0])


def test_later_branches_are_left_out_more_often_and_outer_ones_not_at_all(tmp_path: Path) -> None:
    subject = deep(tmp_path)
    noisy = with_noise(subject.graph, subject.example_inputs(), 0.0, 0.4)
    assert isinstance(noisy.network, fx.GraphModule)
    calls = [node for node in noisy.network.graph.nodes if node.target is left_out]
    assert [node.args[1:] for node in calls] == [(pytest.approx(0.2), 0), (pytest.approx(0.4), 0)]
    assert [str(node.args[0].target) for node in calls] == ["first", "aten.relu.default"]


def test_dropout_is_of_what_a_linear_layer_reads(tmp_path: Path) -> None:
    subject = deep(tmp_path)
    noisy = with_noise(subject.graph, subject.example_inputs(), 0.5, 0.0)
    assert noisy.dropouts == 3  # what the first two read is the input itself
    (x,) = subject.example_inputs(5)
    own = {name: subject.graph.get_submodule(name) for name in ("stem", "side", "first", "second", "third")}
    torch.manual_seed(7)
    found = noisy.network(x)
    torch.manual_seed(7)
    y = own["stem"](x) + own["side"](x)
    y = y + 0.1 * y * y
    y = y + own["first"](F.dropout(y, 0.5))
    z = own["second"](F.dropout(y, 0.5))
    assert torch.equal(found, y + (z + own["third"](F.dropout(z, 0.5)).relu()))


def test_attention_weights_are_dropped() -> None:
    subject = subject_of("vit")
    noisy = with_noise(subject.graph, subject.example_inputs(), 0.3, 0.0)
    assert isinstance(noisy.network, fx.GraphModule)
    targets = [(node, str(node.target)) for node in noisy.network.graph.nodes]
    attention = [node for node, target in targets if target == "aten.scaled_dot_product_attention.default"]
    assert [node.args[4] for node in attention] == [0.3, 0.3]


NOISY = FinetuneStep(step="finetune", epochs=3, learning_rate=3e-3, batch_size=32, dropout=0.3, drop_path=0.2)


def test_resumed_it_drops_what_it_would_have_dropped(tmp_path: Path) -> None:
    kept, path, whole = list[StepState](), tmp_path / "state.safetensors", small(tmp_path)

    def tuned(subject: Subject, state: StepState | None) -> None:
        def keep(inside: StepState) -> None:
            kept.append(inside)
            if len(kept) == 6:
                save_checkpoint(subject, [], path, inside)

        begun = started(subject, tmp_path, patterns(), NOISY)
        begun.state, begun.keep_state = state, keep
        begun.interrupts.state_due = lambda: True  # type: ignore[method-assign]
        run(subject, NOISY, begun)

    tuned(whole, None)
    again = small(tmp_path)
    _, state = restore_checkpoint(again, path)
    assert state is not None
    tuned(again, state)
    expected, got = copy_weights(whole.graph), copy_weights(again.graph)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    plain = small(tmp_path)
    without = NOISY.model_copy(update={"dropout": 0.0, "drop_path": 0.0})
    run(plain, without, started(plain, tmp_path, patterns(), without))
    other = copy_weights(plain.graph)
    assert not all(torch.equal(expected[name], other[name]) for name in expected)


def test_it_says_where_it_drops_and_that_there_is_no_place(tmp_path: Path) -> None:
    subject = small(tmp_path)
    begun = started(subject, tmp_path, patterns(), NOISY)
    details = run(subject, NOISY, begun)
    assert (details["dropouts"], details["drop_paths"]) == (1, 0)
    said = [notice.message for notice in begun.warnings if notice.code == "nothing_dropped"]
    assert said == ["The network has no place for `drop_path`: nothing is dropped by it."]
