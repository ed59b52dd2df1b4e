"""Every operator with a channel rule, on its own between two layers: half of the channels go, the mask check passes."""

from __future__ import annotations

import copy
import itertools
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.engine.graph.cuts import half_of
from tests.networks import randomised
from worker.engine.graph.channels import Channels, analyse
from worker.engine.graph.cut import cut
from worker.engine.graph.maskcheck import TOLERANCE, mask_check
from worker.engine.graph.ops import convolve, elementwise, matmul, normalise, reduce
from worker.engine.graph.ops.table import OPS

aten = torch.ops.aten
IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
NEEDS_BOOLEANS = ("__and__", "__or__", "__xor__", "__iand__", "__ior__", "__ixor__", "bitwise_", "logical_")
NEEDS_WHOLE_NUMBERS = ("bitwise_left_shift", "bitwise_right_shift")
NEEDS_COMPLEX = ("_conj", "imag", "real")


class Sketch:
    """A graph drawn by hand: layers `a`, `b`, `c` give images of eight positive channels, `head` takes what comes."""

    def __init__(self) -> None:
        layers = {name: nn.Conv2d(3, 8, 1) for name in "abc"}
        self.root = nn.ModuleDict({**layers, "head": nn.LazyLinear(3)})
        self.graph = fx.Graph()
        self.x = self.graph.placeholder("x")

    def layer(self, name: str) -> fx.Node:
        return self.call(aten.add.Scalar, self.call(aten.abs.default, self.graph.call_module(name, (self.x,))), 0.5)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def finish(self, value: fx.Node, flat: bool = False) -> fx.GraphModule:
        value = self.call(aten.to.dtype, value, torch.float32)
        if not flat:
            value = self.call(aten.mean.dim, value, [2, 3])
        self.graph.output(self.graph.call_module("head", (value,)))
        graph = fx.GraphModule(self.root, self.graph)
        with torch.no_grad():
            graph(IMAGE)  # gives the last layer its size
        randomised(graph)
        return graph


def halve_and_check(graph: fx.GraphModule, x: Tensor = IMAGE) -> Channels:
    before = copy.deepcopy(graph)
    channels = analyse(graph, (x,))
    removed = half_of(channels)
    cut(channels, removed)
    assert mask_check(before, channels, removed, graph, (x,)) <= TOLERANCE
    return channels


def rows_of(*rules: Any) -> list[str]:
    return [name for name, row in OPS.items() if row.channels in rules]


def target_of(name: str) -> Any:
    packet, overload = name.split(".")
    return getattr(getattr(aten, packet), overload)


def call_by_schema(sketch: Sketch, name: str) -> fx.Node:
    """Tensors are `a`, `b`, `c` in turn, everything else a plain value of its type."""
    target, layers = target_of(name), iter("abc")
    positional: list[Any] = []
    named: dict[str, Any] = {"min": 0.7} if name in ("clamp.default", "clamp_.default") else {}
    if name in ("clamp.Tensor", "clamp_.Tensor"):
        named["min"] = sketch.layer("b")
    for argument in target._schema.arguments:
        kind = str(argument.type)
        if name.startswith(("masked_fill", "fill")) and kind == "Tensor" and argument.name == "value":
            value: Any = sketch.call(aten.scalar_tensor.default, 2.0)
        elif kind == "Tensor":
            value = sketch.layer(next(layers))
            if name.startswith("float_power_") and argument.name == "self":
                value = sketch.call(aten.to.dtype, value, torch.float64)
            elif name.startswith(NEEDS_WHOLE_NUMBERS):
                value = sketch.call(aten.to.dtype, value, torch.int64)
            elif name.startswith(NEEDS_BOOLEANS) or argument.name in ("mask", "condition"):
                value = sketch.call(aten.gt.Scalar, value, 1.0)
            elif name.startswith(NEEDS_COMPLEX):
                value = sketch.call(aten.complex.default, value, value)
        elif argument.has_default_value():
            continue
        else:
            plain = {"number": 0.5, "float": 0.5, "int": 6, "bool": False, "Device": torch.device("cpu")}
            value = plain.get(kind, "floor" if "str" in kind else None)
            if argument.name == "dtype":
                value = torch.float32
            if name.startswith(NEEDS_BOOLEANS):
                value = 2 if name.startswith(NEEDS_WHOLE_NUMBERS) else True
        if argument.kwarg_only:
            named[argument.name] = value
        elif argument.name not in named:
            positional.append(value)
    return sketch.graph.call_function(target, tuple(positional), named)


@pytest.mark.parametrize("name", rows_of(elementwise.elementwise, elementwise.arithmetic, elementwise.same_as_input))
def test_what_an_elementwise_operator_brings_together_goes_together(name: str) -> None:
    sketch = Sketch()
    channels = halve_and_check(sketch.finish(call_by_schema(sketch, name)))
    tied = {group.id: {layer for layer in group.layers if layer in "abc"} for group in channels.groups}
    used = {str(node.target) for node in channels.graph.graph.nodes if node.op == "call_module"} - {"head"}
    lends_its_type = name in ("type_as.default", "to.other")
    assert list(tied.values()) == ([{layer} for layer in sorted(used)] if lends_its_type else [used])


@pytest.mark.parametrize("name", rows_of(reduce.reduction))
@pytest.mark.parametrize("over_channels", [False, True])
def test_a_reduction_runs_over_the_channels_that_stay(name: str, over_channels: bool) -> None:
    sketch, target = Sketch(), target_of(name)
    value, given = sketch.layer("a"), {argument.name for argument in target._schema.arguments}
    whole, takes_one = "dim" not in given, name in ("prod.dim_int", "any.dim", "all.dim")
    dim: Any = 1 if over_channels else [2, 3]
    order = {"p": 2} if name.startswith("norm.") else {}
    if whole:
        reduced = sketch.call(target, value, **order, **({"dtype": torch.float32} if name.endswith("_dtype") else {}))
    elif takes_one:
        reduced = sketch.call(target, value, 1 if over_channels else 2, True)
    else:
        reduced = sketch.call(target, value, dim=[dim] if isinstance(dim, int) else dim, keepdim=True, **order)
    if "_mean." in name:
        reduced = sketch.graph.call_function(operator.getitem, (reduced, 0))
    scaled = sketch.call(aten.div.Tensor, sketch.layer("b"), reduced)
    channels = halve_and_check(sketch.finish(scaled))
    apart = over_channels or whole
    assert {group.id: len(group.units) for group in channels.groups} == ({"a": 8, "b": 8} if apart else {"a": 8})


@pytest.mark.parametrize("name", rows_of(reduce.pool1d, reduce.pool2d, reduce.pool3d))
def test_pooling_passes_channels(name: str) -> None:
    sketch, value, spatial = Sketch(), None, int(re.findall(r"\d(?=d)", name)[0])
    value = sketch.layer("a")
    if spatial == 1:
        value = sketch.call(aten.reshape.default, value, [2, 8, 36])
    if spatial == 3:
        value = sketch.call(aten.unsqueeze.default, value, 2)
    if name.startswith("upsample") and name.endswith(".default"):
        value = sketch.call(target_of(name), value, [12] * spatial, *([] if "nearest" in name else [False]))
    elif "upsample_nearest" in name:
        value = sketch.call(target_of(name), value, None, [2.0] * spatial)
    elif "upsample" in name:
        value = sketch.call(target_of(name), value, None, False, [2.0] * spatial)
    else:
        size = [2] * spatial if spatial < 3 else [1, 2, 2]
        if "_pad" in name:
            size = [0, 1] * spatial if spatial < 3 else [0, 1, 0, 1, 0, 0]
        value = sketch.call(target_of(name), value, size)
        if name.startswith("adaptive_max") or "with_indices" in name:
            value = sketch.graph.call_function(operator.getitem, (value, 0))
    value = sketch.call(aten.flatten.using_ints, value, 1)
    assert [len(group.units) for group in halve_and_check(sketch.finish(value, flat=True)).groups] == [8]


@pytest.mark.parametrize(
    ("name", "arguments", "units"),
    [
        ("softmax.int", (2,), 8),
        ("softmax.int", (1,), 8),
        ("log_softmax.int", (3,), 8),
        ("cumsum.default", (1,), 8),
        ("cumsum.default", (2,), 8),
        ("roll.default", ([1], [2]), 8),
        ("roll.default", ([3], [1]), 8),
        ("roll.default", ([1, 1], [1, 2]), 8),
        ("flip.default", ([2, 3],), 8),
        ("flip.default", ([1],), 8),
        ("tril.default", (), 8),
        ("triu.default", (), 8),
        ("argmax.default", (1, True), 8),
        ("argmax.default", (2, True), 8),
        ("channel_shuffle.default", (2,), 4),
        ("repeat.default", ([1, 2, 1, 1],), 8),
        ("tile.default", ([2, 1, 1],), 8),
        ("repeat_interleave.self_int", (3, 1), 8),
        ("pad.default", ([1, 1, 1, 1],), 8),
        ("pad.default", ([1, 1, 1, 1], "reflect"), 8),
        ("pad.default", ([0, 0, 0, 0, 1, 1], "constant", 1.0), 0),
        ("pad.default", ([0, 0, 0, 0, -1, 0],), 0),
        ("movedim.int", (1, 1), 8),
        ("swapaxes.default", (2, 3), 8),
        ("slice.Tensor", (1, 2, 7), 8),  # five that are used, three that nobody reads
        ("slice.Tensor", (1, 1, 8, 3), 8),
        ("narrow.default", (1, 3, 5), 8),
        ("diff.default", (1, 1), 0),
        ("topk.default", (2, 1), 8),
        ("kthvalue.default", (2, 1, True), 8),
        ("kthvalue.default", (2, 2, True), 8),
        ("mode.default", (1, True), 8),
        ("nanmedian.dim", (1, True), 8),
    ],
)
def test_an_operator_frees_or_keeps_the_channels_it_works_on(name: str, arguments: Any, units: int) -> None:
    sketch = Sketch()
    value = sketch.call(target_of(name), sketch.layer("a"), *arguments)
    if len(target_of(name)._schema.returns) > 1:
        value = sketch.graph.call_function(operator.getitem, (value, 0))
    channels = halve_and_check(sketch.finish(value))
    assert sum(len(group.units) for group in channels.groups if "a" in group.layers) == units


@pytest.mark.parametrize("name", ["max.dim", "min.dim"])
def test_a_maximum_runs_over_the_channels_that_stay(name: str) -> None:
    for dim, asked in itertools.product((1, 2), (0, 1)):  # the values, the positions
        sketch = Sketch()
        both = sketch.call(target_of(name), sketch.layer("a"), dim, True)
        value = sketch.graph.call_function(operator.getitem, (both, asked))
        assert sum(len(group.units) for group in halve_and_check(sketch.finish(value)).groups) == 8


def test_unbinding_and_selecting_keep_their_dimension() -> None:
    for dim, units in ((1, 0), (2, 8)):
        sketch = Sketch()
        parts = sketch.call(aten.unbind.int, sketch.layer("a"), dim)
        part = sketch.graph.call_function(operator.getitem, (parts, 1))
        chosen = sketch.call(aten.select.int, sketch.layer("a"), dim, 0)
        value = sketch.call(aten.flatten.using_ints, sketch.call(aten.add.Tensor, part, chosen), 1)
        channels = halve_and_check(sketch.finish(value, flat=True))
        assert sum(len(group.units) for group in channels.groups) == units


def test_indexing_keeps_the_indexed_dimension_and_frees_the_others() -> None:
    for place, units in ((1, 0), (2, 8)):
        sketch = Sketch()
        sketch.root.register_buffer("chosen", torch.tensor([[0, 2], [1, 3]]))
        chosen = sketch.graph.get_attr("chosen")
        indices = [None, None, chosen] if place == 2 else [None, chosen]
        value = sketch.call(aten.index.Tensor, sketch.layer("a"), indices)
        value = sketch.call(aten.flatten.using_ints, value, 1)
        channels = halve_and_check(sketch.finish(value, flat=True))
        assert sum(len(group.units) for group in channels.groups) == units
        sketch = Sketch()
        sketch.root.register_buffer("chosen", torch.tensor([0, 2]))
        value = sketch.call(aten.index_select.default, sketch.layer("a"), place, sketch.graph.get_attr("chosen"))
        channels = halve_and_check(sketch.finish(value))
        assert sum(len(group.units) for group in channels.groups) == 8


CONSTANTS: tuple[Callable[[Sketch], fx.Node], ...] = (
    lambda s: s.call(aten.zeros.default, [2, 8, 6, 6]),
    lambda s: s.call(aten.ones.default, [8, 1, 1]),
    lambda s: s.call(aten.full.default, [1, 8, 1, 1], 0.5),
    lambda s: s.call(aten.new_zeros.default, s.x, [2, 8, 6, 6]),
    lambda s: s.call(aten.new_ones.default, s.x, [8, 1, 1]),
    lambda s: s.call(aten.new_full.default, s.x, [8, 1, 1], 2.0),
    lambda s: s.call(aten.expand.default, s.call(aten.ones.default, [1]), [2, 8, 6, 6]),
    lambda s: s.call(aten.expand_as.default, s.call(aten.ones.default, [1]), s.layer("b")),
    lambda s: s.call(aten.reshape_as.default, s.call(aten.ones.default, [2, 288]), s.layer("b")),
)


@pytest.mark.parametrize("make", CONSTANTS)
def test_constants_beside_channels_shrink_with_them(make: Callable[[Sketch], fx.Node]) -> None:
    sketch = Sketch()
    value = sketch.call(aten.add.Tensor, sketch.layer("a"), make(sketch))
    channels = halve_and_check(sketch.finish(value))
    assert sum(len(group.units) for group in channels.groups) == 8


def test_values_that_are_no_constants_beside_channels_leave_them_free() -> None:
    sketch = Sketch()
    value = sketch.call(aten.mul.Tensor, sketch.layer("a"), sketch.call(aten.arange.default, 6))
    value = sketch.call(aten.add.Tensor, value, sketch.call(aten.scalar_tensor.default, 2.0))
    assert sum(len(group.units) for group in halve_and_check(sketch.finish(value)).groups) == 8


@pytest.mark.parametrize("name", rows_of(matmul.matmul, matmul.addmm, matmul.outer, matmul.linear, matmul.einsum))
def test_products_of_two_values_tie_what_they_contract(name: str) -> None:
    sketch = Sketch()
    first = sketch.call(aten.flatten.using_ints, sketch.layer("a"), 2)
    second = sketch.call(aten.flatten.using_ints, sketch.layer("b"), 2)
    third = sketch.call(aten.flatten.using_ints, sketch.layer("c"), 2)
    gram = sketch.call(aten.transpose.int, second, 1, 2)
    one, other = (sketch.call(aten.select.int, node, 0, 0) for node in (first, gram))
    value = {
        "matmul.default": lambda: sketch.call(aten.matmul.default, gram, first),
        "bmm.default": lambda: sketch.call(aten.bmm.default, gram, first),
        "baddbmm.default": lambda: sketch.call(aten.baddbmm.default, sketch.call(aten.ones.default, [36]), gram, first),
        "mm.default": lambda: sketch.call(aten.mm.default, other, one),
        "addmm.default": lambda: sketch.call(aten.addmm.default, sketch.call(aten.ones.default, [36]), other, one),
        "outer.default": lambda: sketch.call(
            aten.outer.default, sketch.call(aten.select.int, other, 0, 0), sketch.call(aten.select.int, one, 1, 0)
        ),
        "linear.default": lambda: sketch.call(aten.linear.default, gram, sketch.call(aten.t.default, one)),
        "einsum.default": lambda: sketch.call(aten.einsum.default, "bsc,...ct->...st", [gram, first]),
    }[name]()
    dims = [[1]] if name == "outer.default" else []
    value = sketch.call(aten.sum.dim_IntList if dims else aten.sum.default, value, *dims)
    value = sketch.call(aten.mul.Tensor, sketch.call(aten.sum.dim_IntList, third, [2]), value)
    channels = halve_and_check(sketch.finish(value, flat=True))
    groups = {group.id: len(group.units) for group in channels.groups}
    assert groups == ({"a": 8, "b": 8} if name == "outer.default" else {"a": 8, "c": 8})


@pytest.mark.parametrize(
    "name", rows_of(convolve.convolution, normalise.per_channel, normalise.group_norm, normalise.last_dims)
)
def test_layers_written_as_calls_shrink_like_layers(name: str) -> None:
    sketch = Sketch()
    value = sketch.layer("a")
    packet = name.split(".")[0]

    def raw(*sizes: int) -> fx.Node:
        place = f"raw{len(dict(sketch.root.named_parameters(recurse=False)))}"
        sketch.root.register_parameter(place, nn.Parameter(torch.ones(*sizes)))
        return sketch.graph.get_attr(place)

    if packet.startswith("conv"):
        spatial = int(packet[4]) if packet[4].isdigit() else int(packet[14])
        if spatial == 1:
            value = sketch.call(aten.flatten.using_ints, value, 2)
        if spatial == 3:
            value = sketch.call(aten.unsqueeze.default, value, 2)
        kernel = [1] * spatial
        value = sketch.call(target_of(name), value, raw(8, 1, *kernel), raw(8), groups=8)  # depthwise
        dense = raw(8, 12, *kernel) if "transpose" in packet else raw(12, 8, *kernel)
        value = sketch.call(target_of(name), value, dense, raw(12))
        graph = sketch.finish(sketch.call(aten.flatten.using_ints, value, 1), flat=True)
    else:
        if packet == "batch_norm":
            value = sketch.call(aten.batch_norm.default, value, raw(8), raw(8), None, None, True, 0.1, 1e-5, False)
        elif packet == "instance_norm":
            value = sketch.call(aten.instance_norm.default, value, raw(8), raw(8), None, None, True, 0.1, 1e-5, False)
        elif packet == "prelu":
            value = sketch.call(aten.prelu.default, sketch.call(aten.neg.default, value), raw(8))
        elif packet == "group_norm":
            value = sketch.call(aten.group_norm.default, value, 2, raw(8), raw(8))
        else:
            value = sketch.call(aten.permute.default, value, [0, 2, 3, 1])
            rest = (raw(8), raw(8)) if packet == "layer_norm" else (raw(8),)
            value = sketch.call(target_of(name), value, [8], *rest)
            value = sketch.call(aten.permute.default, value, [0, 3, 1, 2])
        graph = sketch.finish(value)
    units = {group.id: len(group.units) for group in halve_and_check(graph).groups}
    expected = {"a": 4} if packet == "group_norm" else {"a": 8}
    assert {name: count for name, count in units.items() if name == "a"} == expected
    assert sum(units.values()) == expected["a"] + (12 if packet.startswith("conv") else 0)


def test_a_table_of_vectors_shrinks_where_it_is_looked_up() -> None:
    sketch = Sketch()
    sketch.root.register_parameter("table", nn.Parameter(torch.ones(4, 8)))
    sketch.root.register_buffer("places", torch.tensor([[0, 3], [1, 2]]))
    vectors = sketch.call(aten.embedding.default, sketch.graph.get_attr("table"), sketch.graph.get_attr("places"))
    value = sketch.call(aten.add.Tensor, vectors, sketch.call(aten.mean.dim, sketch.layer("a"), [2, 3]))
    channels = halve_and_check(sketch.finish(sketch.call(aten.mean.dim, value, [0]), flat=True))
    assert [(group.layers, len(group.units)) for group in channels.groups] == [(("table", "a"), 8)]


def test_the_rules_of_this_file_and_of_the_traps_are_all_there_are() -> None:
    """A new rule needs a test: it must be one of those exercised above, in test_spelled.py or in test_traps.py."""
    exercised = """
        gather take_along scatter index_put slice_scatter select_scatter image_to_columns columns_to_image unfold
        grid_sample spectrum complex_from_pairs pairs_from_complex several_fixed cell vector_product tensordot bilinear
        cosine_similarity distances diagonal broadcast_tensors
        elementwise arithmetic same_as_input reduction pool1d pool2d pool3d whole triangle position channel_shuffle
        repeat repeat_interleave pad roll flip along move_dims slice_ narrow unbind select index index_select factory
        expand expand_as view_as fixed matmul addmm outer linear einsum convolution per_channel group_norm last_dims
        view flatten unflatten pixel_shuffle pixel_unshuffle unsqueeze squeeze cat stack split glu attention weight_norm
        embedding index_add index_fill unpool
    """
    assert {row.channels.__name__ for row in OPS.values() if row.channels is not None} == set(exercised.split())


@pytest.mark.parametrize(("name", "given"), [("default", ()), ("dim", (1,)), ("dims", ([1, 3],))])
def test_a_dimension_of_which_one_channel_is_left_is_not_squeezed_away(name: str, given: tuple[Any, ...]) -> None:
    sketch = Sketch()
    squeezed = sketch.call(target_of(f"squeeze.{name}"), sketch.layer("a"), *given)
    graph = sketch.finish(squeezed)
    before, channels = copy.deepcopy(graph), analyse(graph, (IMAGE,))
    removed = [unit for group in channels.groups for unit in group.units[1:]]
    assert len(removed) == 7
    cut(channels, removed)
    assert mask_check(before, channels, removed, graph, (IMAGE,)) <= TOLERANCE


def test_no_dimension_is_none_for_any_and_all() -> None:
    for name in ("any.dims", "all.dims"):
        sketch = Sketch()
        truths = sketch.call(target_of(name), sketch.call(aten.gt.Scalar, sketch.layer("a"), 1.0), [])
        value = sketch.call(aten.mul.Tensor, sketch.layer("b"), truths)
        (group,) = halve_and_check(sketch.finish(value)).groups
        assert set(group.layers) >= {"a", "b"}


def test_every_operator_that_works_value_by_value_has_its_form_in_place() -> None:
    """By what torch has: the same packet with an underscore, told apart by what it takes."""
    for name in ("add_.Scalar", "pow_.Scalar", "pow_.Tensor", "floor_divide_.Tensor", "float_power_.Tensor"):
        assert name in OPS, name
    assert "ldexp_.default" in OPS
    absent = {
        f"{packet}.{overload}"
        for packet in {f"{name.split('.')[0]}_" for name in rows_of(elementwise.elementwise)}
        if hasattr(aten, packet)
        for overload in getattr(aten, packet).overloads()
        if overload != "t" and f"{packet}.{overload}" not in OPS  # `t` is of lists
    }
    assert absent == set()
