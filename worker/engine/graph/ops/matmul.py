"""Rules of products: linear maps, matrix products, attention, einsum."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import numpy as np
from torch import fx

from worker.engine.graph.labels import Axes, Axis, Refusal
from worker.engine.graph.ops.call import Call, arguments_of, set_argument
from worker.engine.graph.ops.elementwise import broadcast
from worker.engine.graph.ops.sizing import Remaining, Sizing
from worker.engine.graph.shapes import Sizes, sizes_of


def linear(call: Call) -> Axes:
    """`linear` whose weight was computed or is shared in another form."""
    return linear_map(call, call.operand("input"), call.operand("weight"), call.optional("bias"))


def linear_map(call: Call, axes: Axes, weight: Axes, bias: Axes | None) -> Axes:
    """Weight [out, in]: the last dimension of the input meets `in`, the result ends in `out`."""
    call.tie(weight[1], axes[-1])
    if bias is not None:
        call.tie(weight[0], bias[0])
    return [*axes[:-1], weight[0]]


def linear_cost(node: fx.Node, sizing: Sizing) -> int:
    return math.prod(sizing.sizes(node)) * sizing.sizes(arguments_of(node)["weight"])[1]


def matmul(call: Call) -> Axes:
    """`matmul`, `mm`, `bmm`."""
    first, second = _factors(call.node)
    return _product(call, call.operand(first), call.operand(second), call.sizes(first), call.sizes(second))


def _product(call: Call, first: Axes, second: Axes, first_sizes: Sizes, second_sizes: Sizes) -> Axes:
    if len(first) == 1:
        call.tie(first[0], second[-2] if len(second) > 1 else second[0])
        return [] if len(second) == 1 else [*second[:-2], second[-1]]
    if len(second) == 1:
        call.tie(first[-1], second[0])
        return first[:-1]
    call.tie(first[-1], second[-2])
    stacks = [(first[:-2], first_sizes[:-2]), (second[:-2], second_sizes[:-2])]
    return [*broadcast(call, stacks, call.result_sizes[:-2]), first[-2], second[-1]]


def addmm(call: Call) -> Axes:
    """`addmm`, `baddbmm`: a product plus a broadcast term."""
    first, second = _factors(call.node)
    product = _product(call, call.operand(first), call.operand(second), call.sizes(first), call.sizes(second))
    sizes = call.result_sizes
    return broadcast(call, [(product, sizes), (call.operand("self"), call.sizes("self"))], sizes)


def outer(call: Call) -> Axes:
    return [call.operand("self")[0], call.operand("vec2")[0]]


def vector_product(call: Call) -> Axes:
    """`dot`, `mv`, `inner`: the last dimensions meet."""
    first, second = (call.operand(name) for name in ("self", _other(call.node)))
    call.tie(first[-1], second[-1])
    return [*first[:-1], *second[:-1]]


def vector_cost(node: fx.Node, sizing: Sizing) -> int:
    """Of a number and a tensor none: the tensor is scaled."""
    first, second = (sizing.sizes(arguments_of(node)[name]) for name in ("self", _other(node)))
    return math.prod(sizing.sizes(node)) * first[-1] if first and second else 0


def decomposition_cost(node: fx.Node, sizing: Sizing) -> int:
    """Of what works on matrices as a whole (inverse, determinant, singular values …): the leading term `m n min(m, n)`
    without its constant (Golub and Van Loan, Matrix Computations)."""
    arguments = arguments_of(node)
    sizes = sizing.sizes(arguments["A"] if "A" in arguments else arguments["self"])
    return math.prod(sizes) * min(sizes[-2:])


def tensordot(call: Call) -> Axes:
    first, second = call.operand("self"), call.operand("other")
    pairs = list(zip(call.argument("dims_self"), call.argument("dims_other"), strict=True))
    for one, other in pairs:
        call.tie(first[one], second[other])
    gone = {one % len(first) for one, _ in pairs}, {other % len(second) for _, other in pairs}
    return [
        axis for axes, dims in zip((first, second), gone, strict=True) for i, axis in enumerate(axes) if i not in dims
    ]


def tensordot_cost(node: fx.Node, sizing: Sizing) -> int:
    arguments = arguments_of(node)
    sizes = sizing.sizes(arguments["self"])
    contracted: list[int] = arguments["dims_self"]
    return math.prod(sizing.sizes(node)) * math.prod(sizes[dim] for dim in contracted)


def bilinear(call: Call) -> Axes:
    """Weight [out, first, second]."""
    first, second, weight = call.operand("input1"), call.operand("input2"), call.operand("weight")
    call.tie(weight[1], first[-1])
    call.tie(weight[2], second[-1])
    bias = call.optional("bias")
    if bias is not None:
        call.tie(weight[0], bias[0])
    sizes = call.result_sizes[:-1]
    lead = [(axes[:-1], call.sizes(name)[:-1]) for name, axes in (("input1", first), ("input2", second))]
    return [*broadcast(call, lead, sizes), weight[0]]


def bilinear_cost(node: fx.Node, sizing: Sizing) -> int:
    arguments = arguments_of(node)
    return math.prod(sizing.sizes(node)) * math.prod(sizing.sizes(arguments["weight"])[1:])


def cosine_similarity(call: Call) -> Axes:
    """Broadcast, then summed over one dimension."""
    operands = call.all_operands()
    sizes = np.broadcast_shapes(*(own for _, own in operands))
    met = broadcast(call, operands, sizes)
    del met[call.argument("dim") % len(met)]
    return met


def distances(call: Call) -> Axes:
    """`cdist`: [..., P, M] and [..., R, M] give [..., P, R]."""
    first, second = call.operand("x1"), call.operand("x2")
    call.tie(first[-1], second[-1])
    stacks = [(first[:-2], call.sizes("x1")[:-2]), (second[:-2], call.sizes("x2")[:-2])]
    return [*broadcast(call, stacks, call.result_sizes[:-2]), first[-2], second[-2]]


def _other(node: fx.Node) -> str:
    return next(name for name in ("vec", "tensor", "other") if name in arguments_of(node))


def matmul_cost(node: fx.Node, sizing: Sizing) -> int:
    return math.prod(sizing.sizes(node)) * sizing.sizes(arguments_of(node)[_factors(node)[0]])[-1]


def _factors(node: fx.Node) -> tuple[str, str]:
    names = arguments_of(node)
    for pair in (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"), ("self", "other")):
        if pair[0] in names and pair[1] in names:
            return pair
    raise Refusal("multiplies in a way that is not known")


def attention(call: Call) -> Axes:
    """Scaled dot-product attention, also with fewer key than query heads (grouped queries).

    query [..., L, D], key [..., S, D], value [..., S, V] give [..., L, V]; heads are the dimension before L.
    """
    query, key, value = call.operand("query"), call.operand("key"), call.operand("value")
    sizes, stack = call.result_sizes, call.result_sizes[:-2]
    call.tie(query[-1], key[-1])
    for axis in (query[-2], key[-2], value[-2]):
        call.freeze(axis, "is a position in a sequence")
    stacks = [(query[:-2], call.sizes("query")[:-2])]
    for name, axes in (("key", key), ("value", value)):
        heads = call.sizes(name)[:-2]
        if heads and heads[-1] != stack[-1] and call.argument("enable_gqa"):
            times = stack[-1] // heads[-1]
            axes[-3] = None if axes[-3] is None else np.repeat(axes[-3], times)
            heads = (*heads[:-1], stack[-1])
        stacks.append((axes[:-2], heads))
    mask = call.optional("attn_mask")
    if mask is not None:
        for axis in mask[-2:]:
            call.freeze(axis, "is a position in a sequence")
        stacks.append((mask[:-2], call.sizes("attn_mask")[:-2]))
    return [*broadcast(call, stacks, sizes[:-2]), None, value[-1]]


def rewrite_attention(node: fx.Node, remaining: Remaining) -> None:
    """The default scale is 1/sqrt(features): after features go, the old one has to be written down."""
    arguments = arguments_of(node)
    axis = remaining.axes(arguments["query"])[-1]
    if axis is not None and remaining.shrinks(axis) and arguments["scale"] is None:
        set_argument(node, "scale", 1 / math.sqrt(axis.size))


def attention_cost(node: fx.Node, sizing: Sizing) -> int:
    arguments = arguments_of(node)
    query, value = sizing.sizes(arguments["query"]), sizing.sizes(arguments["value"])
    return math.prod(query[:-1]) * value[-2] * (query[-1] + value[-1])


def recurrent_cost(node: fx.Node, sizing: Sizing) -> int:
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu`: every matrix once a step and sample."""
    arguments = arguments_of(node)
    steps = math.prod(sizing.sizes(arguments["input"])[:-1])
    weights = (sizing.sizes(parameter) for parameter in arguments["params"])
    return steps * sum(math.prod(sizes) for sizes in weights if len(sizes) == 2)


def einsum(call: Call) -> Axes:
    """Dimensions with the same letter meet."""
    inputs, result = _letters(call.argument("equation"), [len(sizes_of(node)) for node in call.argument("tensors")])
    met: dict[str, Axis] = {}
    fixed: set[str] = set()
    for axes, letters in zip(call.operands("tensors"), inputs, strict=True):
        for axis, letter in zip(axes, letters, strict=True):
            if axis is None:
                fixed.add(letter)
            else:
                met[letter] = call.tie(met[letter], axis) if letter in met else axis
    for letter in fixed & met.keys():
        call.tie(None, met[letter])
    return [met.get(letter) for letter in result]


def einsum_cost(node: fx.Node, sizing: Sizing) -> int:
    arguments = arguments_of(node)
    inputs, _ = _letters(arguments["equation"], [len(sizes_of(operand)) for operand in arguments["tensors"]])
    sizes = {
        letter: size
        for operand, letters in zip(arguments["tensors"], inputs, strict=True)
        for letter, size in zip(letters, sizing.sizes(operand), strict=True)
    }
    return math.prod(sizes.values())


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result. An ellipsis takes letters that the equation has not used."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    inputs = operands.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = max((rank - len(own) + 3 for own, rank in zip(inputs, ranks, strict=True) if "..." in own), default=0)
    dots = "".join(free[:hidden])
    filled = [
        own.replace("...", dots[hidden - (rank - len(own) + 3) :]) for own, rank in zip(inputs, ranks, strict=True)
    ]
    if not arrow:
        everything = "".join(inputs).replace(".", "")
        result = ("..." if hidden else "") + "".join(
            sorted(letter for letter in set(everything) if everything.count(letter) == 1)
        )
    return filled, result.replace("...", dots)
