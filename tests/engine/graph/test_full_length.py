"""Operators that need channels at full length get them back, scales of fixed size lose them, tables of positions are
written anew."""

# mypy: disable-error-code="no-any-return, operator, index"
from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.graph.cuts import difference, halve, halve_and_prove
from tests.engine.graph.test_traps import Net, conv, head
from tests.engine.subjects import lifted
from tests.networks import randomised
from worker.engine.graph.channels import analyse
from worker.engine.graph.cut import cut
from worker.engine.graph.maskcheck import TOLERANCE, prove

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def _convolved_channels(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    gate = net.along(y.mean((2, 3))[:, None]).sigmoid().view(y.shape[0], -1, 1, 1)
    return net.head(y * gate.expand_as(y))


def _pooled_channels(net: Net, x: Tensor) -> Tensor:
    return net.head(F.local_response_norm(net.a(x), 5))


def _running_product(net: Net, x: Tensor) -> Tensor:
    return net.head(net.b(net.a(x).sigmoid().cumprod(1)))


def _places(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(y * y.argmax(1, keepdim=True))


def _scaled_by_input(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(net.b(y) * torch.cat([x, x.exp(), x[:, :2]], 1))


def _beside_constants(net: Net, x: Tensor) -> Tensor:
    waves = torch.sin(torch.arange(8, dtype=torch.float32))
    return net.head(net.a(x) + waves.view(1, -1, 1, 1))


def _rolled(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(net.b(y) + y.roll(3, 1))


def _written_slices(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = torch.zeros_like(y)
    z[:, :2, :, 1:] = y[:, :2, :, :-1]
    z[:, 2:] = y[:, 2:]
    return net.head(net.b(z))


def _every_other(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    even, odd = y[:, ::2], y[:, 1::2]
    return net.head(torch.cat([even, odd + net.b(even)], 1))


def _mirrored(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(net.b(y.flip(1)) + y[:, :6].flip((1, 2)))


def _largest(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(y * torch.max(y, 1, keepdim=True)[0])


def _kernels_of_samples(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    weight = net.gain(y.mean((2, 3)))[:, :, None, None, None] * net.mix
    z = F.conv2d(y.reshape(1, -1, 8, 8), weight.flatten(0, 1), padding=1, groups=y.shape[0])
    return net.head(z.view(y.shape[0], -1, 8, 8))


SHAPED: dict[str, tuple[Net, int]] = {
    "a convolution along channels": (
        Net(_convolved_channels, a=conv(3, 8), along=nn.Conv1d(1, 1, 3, padding=1), head=head(8)),
        8,
    ),
    "pooling along channels": (Net(_pooled_channels, a=conv(3, 8), head=head(8)), 8),
    "a running product": (Net(_running_product, a=conv(3, 8), b=conv(8, 6), head=head(6)), 14),
    "positions of channels": (Net(_places, a=conv(3, 8), head=head(8)), 8),
    "a scale from the input": (Net(_scaled_by_input, a=conv(3, 8), b=conv(8, 8), head=head(8)), 16),
    "a computed constant": (Net(_beside_constants, a=conv(3, 8), head=head(8)), 8),
    "slices written to": (Net(_written_slices, a=conv(3, 8), b=conv(8, 6), head=head(6)), 14),
    "every other channel": (Net(_every_other, a=conv(3, 8), b=conv(4, 4), head=head(8)), 8),
    "channels mirrored": (Net(_mirrored, a=conv(3, 8), b=conv(8, 6), head=head(6)), 8),
    "the largest channel": (Net(_largest, a=conv(3, 8), head=head(8)), 8),
    "a kernel a sample": (
        Net(
            _kernels_of_samples,
            a=conv(3, 8),
            gain=nn.Linear(8, 6),
            mix=nn.Parameter(torch.ones(6, 8, 3, 3)),
            head=head(6),
        ),
        14,
    ),
}


@pytest.mark.parametrize("name", SHAPED)
def test_every_channel_can_go_and_the_result_is_the_masked_one(name: str, tmp_path: Path) -> None:
    net, units = SHAPED[name]
    subject = lifted(randomised(net), (IMAGE,), tmp_path)
    halved = halve_and_prove(subject.graph, (IMAGE,))
    assert sum(len(group.units) for group in halved.channels.groups) == units
    five = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert difference(halved.after(five)[:2], halved.after(five[:2])) < 1e-5


@pytest.mark.parametrize("name", ["a convolution along channels", "pooling along channels", "a scale from the input"])
def test_a_cut_network_can_be_cut_again(name: str, tmp_path: Path) -> None:
    net, _ = SHAPED[name]
    subject = lifted(randomised(net), (IMAGE,), tmp_path)
    halve(subject.graph, (IMAGE,))
    again = halve_and_prove(lifted(subject.graph, (IMAGE,), tmp_path).graph, (IMAGE,))
    assert sum(len(group.units) for group in again.channels.groups) == SHAPED[name][1] // 2


@pytest.mark.parametrize("name", ["a convolution along channels", "every other channel", "a scale from the input"])
def test_round_after_round_can_be_cut(name: str, tmp_path: Path) -> None:
    net, units = SHAPED[name]
    graph = lifted(randomised(net), (IMAGE,), tmp_path).graph
    left = []
    for _ in range(2):
        left.append(sum(len(group.units) for group in halve_and_prove(graph, (IMAGE,)).channels.groups))
    assert left == [units, units // 2]


def test_channels_that_a_transposed_convolution_spreads_as_places_stay(tmp_path: Path) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        return net.head(net.spread(net.a(x).mean((2, 3))[:, None])[:, :, :, None])

    net = Net(function, a=conv(3, 8), spread=nn.ConvTranspose1d(1, 6, 2, 2), head=head(6))
    subject = lifted(randomised(net), (IMAGE,), tmp_path)
    channels = analyse(subject.graph, (IMAGE,))
    assert channels.groups == ()
    frozen = next(layer for layer in channels.layers if layer.name == "a").frozen
    assert frozen == "feeds layer spread, which spreads channels as places"


def test_zeros_of_the_size_of_an_image_leave_its_channels_alone(tmp_path: Path) -> None:
    """What repeats one value has any size; it must not pass for channels where an image's height is."""

    def function(net: Net, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 8, 8, 8)
        for _ in range(2):
            y = net.a(torch.cat([x, state], 1))
            state = y.sigmoid() * state + y.tanh()
        return net.b(state)

    subject = lifted(randomised(Net(function, a=conv(11, 8, 3), b=conv(8, 1))), (IMAGE,), tmp_path)
    halved = halve_and_prove(subject.graph, (IMAGE,))
    assert [len(group.units) for group in halved.channels.groups] == [8]


def test_rolled_channels_go_with_what_they_meet(tmp_path: Path) -> None:
    subject = lifted(randomised(Net(_rolled, a=conv(3, 9), b=conv(9, 9), head=head(9))), (IMAGE,), tmp_path)
    halved = halve_and_prove(subject.graph, (IMAGE,))
    assert [(group.layers, len(group.units)) for group in halved.channels.groups] == [(("a", "b"), 9)]


def test_every_other_channel_of_a_tensor_that_is_written_to_stays(tmp_path: Path) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        y[:, ::2] *= 2.0
        return net.head(y)

    subject = lifted(randomised(Net(function, a=conv(3, 8), head=head(8))), (IMAGE,), tmp_path)
    frozen = next(layer for layer in analyse(subject.graph, (IMAGE,)).layers if layer.name == "a").frozen
    assert frozen is not None
    assert frozen.endswith("which shows every other channel of a tensor that is written to")


def test_an_operator_in_place_along_channels_keeps_them(tmp_path: Path) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        return net.head(net.a(x).mul_(torch.cat([x, x, x[:, :2]], 1)).cumsum(1))

    subject = lifted(randomised(Net(function, a=conv(3, 8), head=head(8))), (IMAGE,), tmp_path)
    halve_and_prove(subject.graph, (IMAGE,))


def test_what_is_added_from_the_input_keeps_its_channels(tmp_path: Path) -> None:
    """The sum would lose more than the removed units."""

    def function(net: Net, x: Tensor) -> Tensor:
        return net.head(net.a(x) + torch.cat([x, x, x[:, :2]], 1))

    subject = lifted(randomised(Net(function, a=conv(3, 8), head=head(8))), (IMAGE,), tmp_path)
    channels = analyse(subject.graph, (IMAGE,))
    assert channels.groups == ()
    assert next(layer for layer in channels.layers if layer.name == "a").frozen == (
        "is combined with a tensor of fixed size by operator add (add_tensor)"
    )


def table_network(order: Tensor, how: str = "index_select") -> Net:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.head(net.b(y.index_select(1, net.order) if how == "index_select" else y[:, net.order]))

    return Net(function, a=conv(3, 8), b=conv(len(order), 6), order=order, head=head(6))


@pytest.mark.parametrize("how", ["index_select", "index"])
@pytest.mark.parametrize("order", [[7, 2, 0, 5, 1, 3, 6, 4], [0, 0, 3, 3, 5], [6, 1]])
def test_a_table_of_channels_is_written_anew(order: list[int], how: str, tmp_path: Path) -> None:
    subject = lifted(randomised(table_network(torch.tensor(order), how)), (IMAGE,), tmp_path)
    halved = halve_and_prove(subject.graph, (IMAGE,))
    assert [len(group.units) for group in halved.channels.groups if "b" in group.layers] == [6]


def test_any_channels_of_a_table_may_go(tmp_path: Path) -> None:
    order = torch.tensor([7, 2, 0, 5, 1, 3, 6, 4])
    subject = lifted(randomised(table_network(order)), (IMAGE,), tmp_path)
    channels = analyse(subject.graph, (IMAGE,))
    group = next(group for group in channels.groups if "a" in group.layers)
    before = copy.deepcopy(subject.graph)
    removed = [group.units[index] for index in (0, 1, 5)]
    cut(channels, removed)
    assert prove(before, channels, removed, subject.graph, (IMAGE,)) <= TOLERANCE
    tables = {name: value.tolist() for name, value in subject.graph.named_buffers() if "positions" in name}
    # Channels 2, 3, 4, 6 and 7 stay and are 0 … 4 now; the table asks for 7, 2, 3, 6 and 4.
    assert list(tables.values()) == [[4, 0, 1, 3, 2]]


def _halves_of_a_batch(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    first, second = y.flatten(0, 1).chunk(2, 0)
    return net.head(torch.cat([second, first]).view_as(y))


def _without_the_first(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(F.pad(y.flatten(0, 1)[1:], (0, 0, 0, 0, 1, 0)).view_as(y))


def _scaled_over_samples(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    scale = torch.cat([x, x, x[:, :2]], 1).flatten(0, 1)
    return net.head((y.flatten(0, 1) * scale).view_as(y))


@pytest.mark.parametrize("function", [_halves_of_a_batch, _without_the_first, _scaled_over_samples])
def test_no_places_are_written_down_along_channels_of_all_samples(
    function: Callable[[Net, Tensor], Tensor], tmp_path: Path
) -> None:
    """They would be right for the example's two samples only."""
    subject = lifted(randomised(Net(function, a=conv(3, 8), head=head(8))), (IMAGE,), tmp_path)
    channels = analyse(subject.graph, (IMAGE,))
    assert channels.groups == ()


def test_all_of_a_dimension_that_grows_with_the_batch_is_taken_as_it_was(tmp_path: Path) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.head(net.along(y.flatten(0, 1)[:, None]).view_as(y))

    net = Net(function, a=conv(3, 8), along=conv(1, 1, 3), head=head(8))
    subject = lifted(randomised(net), (IMAGE,), tmp_path)
    halved = halve_and_prove(subject.graph, (IMAGE,))
    assert prove(halved.before, halved.channels, halved.removed, halved.after, (IMAGE,)) <= TOLERANCE
    assert [len(group.units) for group in halved.channels.groups] == [8]


def test_a_constant_that_holds_for_one_batch_size_only_is_no_proof(tmp_path: Path) -> None:
    subject = lifted(randomised(nn.Sequential(conv(3, 8), nn.Flatten(0, 1))), (IMAGE,), tmp_path)
    before = copy.deepcopy(subject.graph)
    flat = next(node for node in subject.graph.graph.nodes if "flatten" in node.name)
    with subject.graph.graph.inserting_after(flat):
        part = subject.graph.graph.call_function(torch.ops.aten.slice.Tensor, (flat, 0, 0, 16))
    flat.replace_all_uses_with(part, delete_user_cb=lambda user: user is not part)
    subject.graph.recompile()
    channels = analyse(before, (IMAGE,))
    assert prove(before, channels, [], subject.graph, (IMAGE,)) == float("inf")


def test_a_call_that_a_rule_does_not_expect_keeps_its_channels(tmp_path: Path) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        return net.head(net.a(x).roll(x.shape[0], 1))

    subject = lifted(randomised(Net(function, a=conv(3, 8), head=head(8))), (IMAGE,), tmp_path)
    frozen = next(layer for layer in analyse(subject.graph, (IMAGE,)).layers if layer.name == "a").frozen
    assert frozen == "feeds operator roll (roll_default), which is called in a way that its channel rule does not know"


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: y.softmax(1),
        lambda y: y.argmax(1),
        lambda y: y.topk(2, 1)[1],
        lambda y: y.cumsum(1),
        lambda y: (y.softmax(1) * torch.arange(8.0)).sum(1),
    ],
)
def test_scores_that_decide_the_output_keep_all_of_their_classes(
    answer: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        return answer(net.b(net.a(x).mean((2, 3))))

    subject = lifted(randomised(Net(function, a=conv(3, 8), b=nn.Linear(8, 8))), (IMAGE,), tmp_path)
    channels = analyse(subject.graph, (IMAGE,))
    assert [(group.id, len(group.units)) for group in channels.groups] == [("a", 8)]
    frozen = next(layer for layer in channels.layers if layer.name == "b").frozen
    assert frozen is not None
    assert "the output of the network" in frozen
