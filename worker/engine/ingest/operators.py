"""From an operator's name in the file to its function: by written-out tables, never by attribute walk."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from models.errors import Code, Failure
from worker.engine.graph.ops.table import OPS
from worker.engine.ingest.rejected import rejected, shown

SIZE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.truediv": operator.truediv,
    "_operator.mod": operator.mod,
    "_operator.neg": operator.neg,
    "_operator.eq": operator.eq,
    "_operator.ne": operator.ne,
    "_operator.lt": operator.lt,
    "_operator.le": operator.le,
    "_operator.gt": operator.gt,
    "_operator.ge": operator.ge,
    "_operator.and_": operator.and_,
    "_operator.or_": operator.or_,
    "math.trunc": math.trunc,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_int": torch.sym_int,
    "torch.sym_float": torch.sym_float,
    "torch.sym_not": torch.sym_not,
    "torch.sym_ite": torch.sym_ite,
}
"""Arithmetic on sizes."""

CHECKS = frozenset(
    {
        "_assert_tensor_metadata.default",
        "_assert_scalar.default",
        "_assert_async.msg",
        "sym_constrain_range.default",
        "sym_constrain_range_for_size.default",
    }
)
"""Operators without data: they only check sizes, and are left out."""

REGIONS: dict[str, int] = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": 1,
    "torch.ops.higher_order.wrap_with_autocast": 4,
}
"""Regions whose sub-graph is inlined, with the position of the sub-graph among the arguments."""

_RANDOM = re.compile(
    r"(bernoulli|rand|randn|randint|randperm|normal|uniform|multinomial|exponential|native_dropout|rrelu_with)(_|$)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]{1,100})\.([A-Za-z0-9_]{1,100})")

ACCEPTED: dict[str, frozenset[str]] = {
    # torch lets a number stand for a tensor: `div.Tensor(x, 8.0)`.
    "Tensor": frozenset({"as_tensor", "as_int", "as_float", "as_sym_int", "as_sym_float"}),
    "List[Tensor]": frozenset({"as_tensors"}),
    "List[Optional[Tensor]]": frozenset({"as_tensors", "as_optional_tensors"}),
    "int": frozenset({"as_int", "as_sym_int"}),
    "List[int]": frozenset({"as_ints", "as_sym_ints"}),
    "float": frozenset({"as_float", "as_int", "as_sym_float", "as_sym_int"}),
    "List[float]": frozenset({"as_floats", "as_ints", "as_sym_floats"}),
    "bool": frozenset({"as_bool", "as_sym_bool"}),
    "number": frozenset({"as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool"}),
    "str": frozenset({"as_string"}),
    "ScalarType": frozenset({"as_scalar_type"}),
    "Layout": frozenset({"as_layout"}),
    "MemoryFormat": frozenset({"as_memory_format"}),
    "Device": frozenset({"as_device"}),
}
"""Kinds of argument that each type of an operator's schema takes; an `Optional[…]` also takes `as_none`."""

_LISTS = frozenset(
    {"as_tensors", "as_ints", "as_floats", "as_bools", "as_sym_ints", "as_sym_floats", "as_optional_tensors"}
)


def accepts(schema_type: str, kind: str, value: Any) -> bool:
    """Whether an argument of this kind may be given where the schema has this type."""
    if schema_type.startswith("Optional["):
        if kind in ("as_none", "as_optional_tensor"):
            return kind == "as_none" or schema_type == "Optional[Tensor]"
        schema_type = schema_type.removeprefix("Optional[").removesuffix("]")
    if schema_type.startswith("List[") and kind in _LISTS and value == []:
        return True
    return kind in ACCEPTED.get(schema_type, frozenset())


def resolve(target: str, layer: str | None) -> OpOverload | Callable[..., Any] | None:
    """The function for `target`; None for a check that is left out.

    Raises `Failure`: unsupported_op for an ATen operator outside the registry, network_rejected for anything else.
    """
    function = SIZE_FUNCTIONS.get(target)
    if function is not None:
        return function
    match = _ATEN.fullmatch(target)
    if match is None:
        if re.fullmatch(r"torch\.ops\.[A-Za-z0-9_.]{1,200}", target):
            raise Failure(
                Code.UNSUPPORTED_OP,
                f"operator {shown(target)} is not a plain ATen operator; {_place(layer)}",
                where=layer,
            )
        raise rejected(f"{shown(target)} is not an operator; only ATen operators are let in", layer)
    name = f"{match[1]}.{match[2]}"
    if name in CHECKS:
        return None
    if name not in OPS:
        if _RANDOM.match(match[1].lstrip("_")):
            raise rejected(f"the network draws random numbers ({name}); {TRAIN_MODE}", layer)
        raise Failure(
            Code.UNSUPPORTED_OP, f"operator aten.{shown(name)[1:-1]} is not supported; {_place(layer)}", where=layer
        )
    overload = getattr(getattr(torch.ops.aten, match[1]), match[2])
    if not isinstance(overload, OpOverload):
        raise rejected(f"{shown(target)} is not an operator", layer)
    return overload


TRAIN_MODE = "it was exported in training mode: call `module.eval()` before `torch.export.export`"


def _place(layer: str | None) -> str:
    return f"it is used in layer {shown(layer)}" if layer else "it is used outside any layer"


def check_inference_mode(name: str, arguments: dict[str, Any], layer: str | None) -> None:
    """Refuse a node that behaves as in training. `arguments` are by schema name, defaults filled in."""
    base = name.split(".")[0]
    training = (
        (base == "batch_norm" and arguments["training"] and arguments["running_mean"] is not None)
        or (base in ("dropout", "dropout_", "feature_dropout", "alpha_dropout") and arguments["train"])
        or (base == "rrelu" and arguments["training"])
        or (base in ("lstm", "gru", "rnn_tanh", "rnn_relu") and arguments["train"] and arguments["dropout"])
        or (base == "instance_norm" and arguments["use_input_stats"] and arguments["running_mean"] is not None)
    )
    if training:
        raise rejected(f"{base} runs in training mode; {TRAIN_MODE}", layer)
    if base == "scaled_dot_product_attention" and arguments["dropout_p"] != 0.0:
        raise rejected(f"attention drops out with probability {arguments['dropout_p']}; {TRAIN_MODE}", layer)
