# mypy: disable-error-code="no-any-return"
"""Operators that are read as others: the same numbers, and channels that can go."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from models.errors import Code, Failure
from tests.engine.graph.cuts import halve_and_prove
from tests.engine.subjects import lifted
from tests.networks import randomised
from worker.engine.graph.lift import compose
from worker.engine.graph.ops.spelled import SPELLED
from worker.engine.graph.ops.table import OPS

IMAGE = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
VECTOR = IMAGE[0, 0, 0].clone()
CALLS: dict[str, list[tuple[Any, ...]]] = {
    "aminmax.default": [(IMAGE,)],
    "atleast_1d.Sequence": [([VECTOR[0], VECTOR],)],
    "atleast_1d.default": [(VECTOR[0],), (IMAGE,)],
    "atleast_2d.Sequence": [([VECTOR, VECTOR[0]],)],
    "atleast_2d.default": [(VECTOR[0],), (VECTOR,), (IMAGE,)],
    "atleast_3d.Sequence": [([IMAGE[0, 0], VECTOR],)],
    "atleast_3d.default": [(VECTOR[0],), (VECTOR,), (IMAGE[0, 0],), (IMAGE,)],
    "chain_matmul.default": [([IMAGE[0, 0], IMAGE[0, 1].T, IMAGE[0, 2]],), ([IMAGE[0, 0]],)],
    "column_stack.default": [([IMAGE, IMAGE + 1],)],
    "count_nonzero.dim_IntList": [(IMAGE.relu(), [1, 3])],
    "dist.default": [(IMAGE, IMAGE + 1), (IMAGE, IMAGE.square(), 1.0)],
    "dsplit.array": [(IMAGE, [1, 4])],
    "dsplit.int": [(IMAGE, 3)],
    "dstack.default": [([IMAGE, IMAGE + 1],)],
    "fliplr.default": [(IMAGE,)],
    "flipud.default": [(IMAGE,)],
    "hsplit.array": [(IMAGE, [1])],
    "hsplit.int": [(IMAGE, 2)],
    "hstack.default": [([IMAGE, IMAGE + 1],)],
    "linalg_multi_dot.default": [([IMAGE[0, 0], IMAGE[0, 1].T],), ([VECTOR, IMAGE[0, 1].T, IMAGE[0, 2], VECTOR],)],
    "linalg_norm.default": [(IMAGE,), (IMAGE, 1, [1], True), (IMAGE, None, [2, 3])],
    "max.default": [(IMAGE,)],
    "min.default": [(IMAGE,)],
    "ravel.default": [(IMAGE,)],
    "rot90.default": [(IMAGE, quarters, [2, 3]) for quarters in (-1, 0, 1, 2)],
    "row_stack.default": [([IMAGE, IMAGE + 1],)],
    "rrelu.default": [(IMAGE, 0.1, 0.5)],
    "squeeze_.default": [(IMAGE[:1],)],
    "squeeze_.dim": [(IMAGE[:1], 0)],
    "squeeze_.dims": [(IMAGE[:1], [0])],
    "swapaxes_.default": [(IMAGE, 0, 2)],
    "swapdims_.default": [(IMAGE, 0, 2)],
    "t_.default": [(IMAGE[0, 0],)],
    "transpose_.default": [(IMAGE, 1, -1)],
    "unsqueeze_.default": [(IMAGE, 1)],
    "vsplit.array": [(IMAGE, [1])],
    "vsplit.int": [(IMAGE, 2)],
    "vstack.default": [([IMAGE, IMAGE + 1],)],
}
OTHERWISE: dict[str, tuple[Any, ...]] = {
    "column_stack.default": ([VECTOR, VECTOR],),
    "hsplit.int": (VECTOR, 2),
    "linalg_norm.default": (IMAGE[0, 0], 2, [0, 1]),
    "rrelu.default": (IMAGE, 0.1, 0.5, True),
    "vstack.default": ([VECTOR, VECTOR],),
}
"""Calls that say something else."""


def composed(name: str, args: tuple[Any, ...]) -> tuple[fx.Graph, list[Tensor]]:
    """A graph that gives the call's first result, after composition, and what its inputs are."""
    graph, tensors = fx.Graph(), list[Tensor]()

    def placed(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        tensors.append(argument.clone())
        node = graph.placeholder(f"x{len(tensors)}")
        node.meta["shape"] = list(argument.shape)
        return node

    given = tree_map(placed, args)
    target = overload(name)
    node = graph.call_function(target, given)
    graph.output(graph.call_function(operator.getitem, (node, 0)) if gives_several(target) else node)
    compose(graph)
    return graph, tensors


def gives_several(target: Any) -> bool:
    return len(target._schema.returns) > 1 or str(target._schema.returns[0].type).startswith("List")


def overload(name: str) -> Any:
    packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def called(graph: fx.Graph) -> set[str]:
    return {node.target.__name__ for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)}


@pytest.mark.parametrize("name", SPELLED)
def test_what_is_read_in_its_place_gives_the_same_numbers(name: str) -> None:
    for args in CALLS[name]:
        graph, tensors = composed(name, args)
        assert name not in called(graph)
        assert all(OPS[found].channels is not None for found in called(graph))
        expected = overload(name)(*tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, args))
        expected = expected[0] if gives_several(overload(name)) else expected
        found = fx.GraphModule(nn.Module(), graph)(*tensors)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_says_something_else_stays_as_it_is(name: str) -> None:
    graph, _ = composed(name, OTHERWISE[name])
    assert called(graph) == {name}


def test_a_view_in_place_stays_when_its_source_is_used_later() -> None:
    graph = fx.Graph()
    source = graph.placeholder("x")
    view = graph.call_function(torch.ops.aten.unsqueeze_.default, (source, 0))
    graph.output((view, source))
    compose(graph)
    assert called(graph) == {"unsqueeze_.default"}


class Spelled(nn.Module):
    """Encoder and decoder that remember where maxima were (SegNet, Badrinarayanan et al., 2017), in other words."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("rows", torch.tensor([3, 0, 5]))

    def forward(self, image: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(F.rrelu(self.down(image)), 2, return_indices=True)
        y = F.max_unpool2d(self.up(pooled), places, [2, 2])
        y = self.mix(torch.hstack([y, y.rot90(2, (2, 3))]))
        y = y / torch.linalg.norm(y, dim=3, keepdim=True) + y.index_add(2, self.rows, y[:, :, :3])
        return self.head(y - torch.fliplr(y.transpose(1, 2)).transpose(1, 2))


def test_a_network_in_other_words_is_lifted_and_cut(tmp_path: Path) -> None:
    args = (torch.randn(2, 3, 8, 8),)
    module = randomised(Spelled())
    subject = lifted(module, args, tmp_path)
    more = subject.example_inputs(3)
    with torch.no_grad():
        assert torch.equal(module(*more), subject.graph(*more))
    halved = halve_and_prove(subject.graph, args)
    sizes = {layer.name: layer.frozen for layer in halved.channels.layers}
    assert [name for name, frozen in sizes.items() if frozen] == ["head"]


def test_a_chain_of_products_is_taken_in_the_order_that_multiplies_least() -> None:
    column = IMAGE[0, 0, :, :1]
    graph, tensors = composed("linalg_multi_dot.default", ([column, column.T, column],))
    first = next(node for node in graph.nodes if node.target is torch.ops.aten.matmul.default)
    assert first.meta["shape"] == [1, 1]
    found = fx.GraphModule(nn.Module(), graph)(*tensors)
    torch.testing.assert_close(found, column @ (column.T @ column))


def test_a_call_that_makes_no_sense_is_refused() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.ops.aten.linalg_multi_dot.default, ([],)))
    with pytest.raises(Failure) as caught:
        compose(graph)
    assert caught.value.code == Code.NETWORK_REJECTED
