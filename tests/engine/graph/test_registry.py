"""Every row of the registry is whole: its operator exists, and its rules are what such an operator needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._ops import OpOverload

from models.errors import Failure
from worker.engine.graph.labels import Value
from worker.engine.graph.ops import expand, normalise, reshape, select, table
from worker.engine.graph.ops.call import Call
from worker.engine.graph.ops.table import OPS
from worker.engine.ingest.operators import CHECKS, resolve

SIZED: dict[Callable[[Call], Value], str] = {
    expand.expand: "size",
    expand.factory: "size",
    reshape.view: "size",
    reshape.unflatten: "sizes",
    normalise.last_dims: "normalized_shape",
    normalise.group_norm: "num_groups",
    select.split: "dim",
    select.narrow: "length",
    select.slice_: "end",
    select.pad: "pad",
}
"""Channel rules of operators whose arguments are sizes: after a cut the sizes have to be mended."""
MULTIPLIES = (
    "conv",
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "einsum",
    "scaled_dot_product",
    "lstm",
    "gru",
)


def overload_of(name: str) -> OpOverload:
    packet, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, packet), overload)
    assert isinstance(found, OpOverload)
    return found


@pytest.mark.parametrize("name", OPS)
def test_a_row_is_whole(name: str) -> None:
    row, operator = OPS[name], overload_of(name)
    assert operator.__name__ == row.name == name
    arguments = {argument.name for argument in operator._schema.arguments}
    sized = SIZED.get(row.channels) if row.channels is not None else None
    if sized is not None:
        assert row.rewrite is not None, "the sizes it is given stay those of the uncut network"
        assert sized in arguments or "shape" in arguments or "indices" in arguments or "sections" in arguments
    if row.rewrite is not None:
        assert row.channels is not None, "a cut never reaches it"
    # What `Call` is not asked for freezes, so a rule of an operator without tensors has nothing to say.
    takes_tensors = any("Tensor" in str(argument.type) for argument in operator._schema.arguments)
    assert takes_tensors or row.channels is None or row.channels in (expand.factory, expand.fixed) or row.layer is None


def test_no_row_is_there_twice() -> None:
    names = [row.name for row in table._ROWS]
    assert sorted(names) == sorted(set(names))


def test_what_multiplies_has_a_cost() -> None:
    """Directly, or as what it is composed to or lifted from."""
    without = [
        name
        for name, row in OPS.items()
        if name.lstrip("_").split(".")[0].startswith(MULTIPLIES) and row.cost is None and row.compose is None
    ]
    assert without == []


def test_the_reader_lets_in_what_has_a_row_and_nothing_else() -> None:
    for name in OPS:
        assert resolve(f"torch.ops.aten.{name}", None) is overload_of(name)
    every = {f"{packet}.default" for packet in dir(torch.ops.aten) if not packet.startswith("__")}
    for name in sorted(every - set(OPS) - CHECKS):
        with pytest.raises(Failure):
            resolve(f"torch.ops.aten.{name}", None)
