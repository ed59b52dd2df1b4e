"""Core ATen operators read as what they were decomposed from.

`ExportedProgram.run_decompositions()`, and exports of torch 2.5, write `convolution` for `conv2d`, `addmm` with a
permuted weight for `linear`, `native_layer_norm` for `layer_norm` and so on. Each function here puts the operator with
layer and channel rules in place of one such node, and leaves the node alone where it says something else.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from worker.engine.graph.ops.call import arguments_of

aten = torch.ops.aten

_PLAIN = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
_VIEWS = (aten.view.default, aten.reshape.default)
_POOLING = {
    "max_pool2d_with_indices": aten.max_pool2d.default,
    "max_pool3d_with_indices": aten.max_pool3d.default,
}
_SOFTMAX = {"_softmax": aten.softmax.int, "_log_softmax": aten.log_softmax.int}
_SAME_ARGUMENTS = {
    "_adaptive_avg_pool2d": aten.adaptive_avg_pool2d.default,
    "_adaptive_avg_pool3d": aten.adaptive_avg_pool3d.default,
    "_unsafe_index": aten.index.Tensor,
    "_unsafe_view": aten.reshape.default,
}


def convolution(node: fx.Node) -> None:
    arguments = arguments_of(node)
    spatial = len(arguments["stride"])
    if spatial not in _PLAIN:
        return
    given = [arguments[name] for name in ("input", "weight", "bias", "stride", "padding")]
    if arguments["transposed"]:
        rest = [arguments[name] for name in ("output_padding", "groups", "dilation")]
        _replace(node, _TRANSPOSED[spatial], *given, *rest)
    else:
        _replace(node, _PLAIN[spatial], *given, arguments["dilation"], arguments["groups"])


def product(node: fx.Node) -> None:
    """`mm` and `addmm` with a transposed matrix are a linear map: `linear(x, w) = x @ w.T + b`."""
    arguments = arguments_of(node)
    left, right = (arguments[name] for name in (("mat1", "mat2") if "mat1" in arguments else ("self", "mat2")))
    weight = _untransposed(right)
    if weight is None:
        return
    if "mat1" not in arguments:
        _replace(node, aten.linear.default, left, weight)
    elif arguments["beta"] == 1 and arguments["alpha"] == 1 and len(arguments["self"].meta.get("shape", ())) == 1:
        _replace(node, aten.linear.default, left, weight, arguments["self"])


def batched_product(node: fx.Node) -> None:
    """`bmm` with one matrix spread over the batch, and the bias that is added next: `linear` of a tensor that is not
    contiguous."""
    arguments = arguments_of(node)
    weight = _untransposed(_unspread(arguments["mat2"]))
    if weight is None:
        return
    added = _added_bias(node, weight)
    bias = None if added is None else added.args[1]
    _replace(node, aten.linear.default, arguments["self"], weight, bias)
    if added is not None:
        added.replace_all_uses_with(added.args[0])  # type: ignore[arg-type]


def _unspread(value: Any) -> Any:
    """What `value` is a stack of copies of."""
    while isinstance(value, fx.Node) and value.target in (aten.expand.default, *_VIEWS):
        source = arguments_of(value)["self"]
        if source.meta.get("shape", [])[-2:] != value.meta.get("shape", [None])[-2:]:
            break
        value = source
    return value


def _added_bias(node: fx.Node, weight: fx.Node) -> fx.Node | None:
    """The addition of a vector parameter that is all the product is used for."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is aten.add.Tensor and user.args[0] is node and not user.kwargs:
            bias = user.args[1]
            outputs = weight.meta["shape"][:1]
            fits = isinstance(bias, fx.Node) and bias.op == "get_attr" and bias.meta["shape"] == outputs
            return user if fits else None
        if user.target not in _VIEWS or user.meta.get("shape", [])[-1:] != node.meta.get("shape", [None])[-1:]:
            return None
        node = user
    return None


def _untransposed(matrix: Any) -> fx.Node | None:
    if not isinstance(matrix, fx.Node) or not isinstance(matrix.target, torch._ops.OpOverload):
        return None
    arguments = arguments_of(matrix)
    name = matrix.target.overloadpacket.__name__
    turned = (
        name == "t"
        or (name == "permute" and [dim % 2 for dim in arguments["dims"]] == [1, 0])
        or (name == "transpose" and {arguments["dim0"] % 2, arguments["dim1"] % 2} == {0, 1})
    )
    source = arguments.get("self")
    return source if turned and isinstance(source, fx.Node) and source.op == "get_attr" else None


def batch_norm(node: fx.Node) -> None:
    """`_native_batch_norm_legit_no_training`."""
    arguments = arguments_of(node)
    given = [arguments[name] for name in ("input", "weight", "bias", "running_mean", "running_var")]
    _replace_first(node, aten.batch_norm.default, *given, False, arguments["momentum"], arguments["eps"], False)


def instance_norm(node: fx.Node) -> None:
    """`_native_batch_norm_legit.no_stats` over [1, batch * channels, …] between two views, weights repeated."""
    arguments = arguments_of(node)
    before, (after,) = arguments["input"], _only_views(node) or (None,)
    weight, bias = _unrepeated(arguments["weight"]), _unrepeated(arguments["bias"])
    if after is None or not _is_view(before) or (weight is None) != (arguments["weight"] is None):
        return
    source = arguments_of(before)["self"]
    if source.meta.get("shape") != after.meta.get("shape") or (bias is None) != (arguments["bias"] is None):
        return
    with node.graph.inserting_before(after):
        given = (source, weight, bias, None, None, True, arguments["momentum"], arguments["eps"], False)
        made = node.graph.call_function(aten.instance_norm.default, given)
    made.meta = dict(after.meta)
    after.replace_all_uses_with(made)


def _only_views(node: fx.Node) -> tuple[fx.Node] | None:
    """The view of the first result, when nothing else is used."""
    items = [item for item in node.users if item.users]
    views = list(items[0].users) if len(items) == 1 and items[0].args[1] == 0 else []
    return (views[0],) if len(views) == 1 and _is_view(views[0]) else None


def _is_view(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in _VIEWS


def _unrepeated(value: Any) -> fx.Node | None:
    if not isinstance(value, fx.Node) or value.target is not aten.repeat.default:
        return None
    source = arguments_of(value)["self"]
    return source if isinstance(source, fx.Node) and len(arguments_of(value)["repeats"]) == 1 else None


def layer_norm(node: fx.Node) -> None:
    arguments = arguments_of(node)
    given = [arguments[name] for name in ("input", "normalized_shape", "weight", "bias", "eps")]
    _replace_first(node, aten.layer_norm.default, *given)


def group_norm(node: fx.Node) -> None:
    arguments = arguments_of(node)
    given = [arguments[name] for name in ("input", "group", "weight", "bias", "eps")]
    _replace_first(node, aten.group_norm.default, *given)


def rms_norm(node: fx.Node) -> None:
    arguments = arguments_of(node)
    given = [arguments[name] for name in ("input", "normalized_shape", "weight", "eps")]
    _replace_first(node, aten.rms_norm.default, *given)


def pooling(node: fx.Node) -> None:
    """Maximum pooling whose positions nobody uses."""
    _replace_first(node, _POOLING[_name(node)], *arguments_of(node).values())


def softmax(node: fx.Node) -> None:
    arguments = arguments_of(node)
    if not arguments["half_to_float"]:
        _replace(node, _SOFTMAX[_name(node)], arguments["self"], arguments["dim"])


def attention(node: fx.Node) -> None:
    """The kernels of `scaled_dot_product_attention`, without dropout."""
    arguments = arguments_of(node)
    if arguments["dropout_p"] != 0:
        return
    mask = arguments.get("attn_mask", arguments.get("attn_bias"))
    given = (arguments["query"], arguments["key"], arguments["value"], mask, 0.0, arguments["is_causal"])
    _replace_first(node, aten.scaled_dot_product_attention.default, *given, scale=arguments["scale"])


def constant_pad(node: fx.Node) -> None:
    arguments = arguments_of(node)
    _replace(node, aten.pad.default, arguments["self"], arguments["pad"], "constant", arguments["value"])


def conversion(node: fx.Node) -> None:
    """`_to_copy`, also where it converts nothing."""
    arguments = arguments_of(node)
    layout = arguments["memory_format"]
    if arguments["dtype"] is None:
        _replace(node, aten.clone.default, arguments["self"], memory_format=layout)
    else:
        _replace(node, aten.to.dtype, arguments["self"], arguments["dtype"], False, True, layout)


def renamed(node: fx.Node) -> None:
    """Another name for an operator that takes the same arguments."""
    _replace(node, _SAME_ARGUMENTS[_name(node)], *arguments_of(node).values())


def _name(node: fx.Node) -> str:
    assert isinstance(node.target, torch._ops.OpOverload)
    return str(node.target.overloadpacket.__name__)


def _replace(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args, kwargs)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)


def _replace_first(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    """`target` gives the first of the results of `node`; nothing is done when another one is used."""
    items = [user for user in node.users if user.target is operator.getitem]
    if len(items) != len(node.users) or any(item.args[1] != 0 for item in items if item.users):
        return
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args, kwargs)
    made.meta = {"layer": node.meta.get("layer")}
    for item in items:
        if item.args[1] == 0:
            made.meta = {**item.meta, **made.meta}
            item.replace_all_uses_with(made)
