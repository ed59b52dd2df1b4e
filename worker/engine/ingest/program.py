"""From the typed JSON to an `fx.Graph` over registry operators. No text of the file is evaluated."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from models.inspection import NetworkFormat, Notice, TensorInfo
from worker.engine.ingest import schema
from worker.engine.ingest.names import safe_name, safe_path
from worker.engine.ingest.operators import REGIONS, accepts, check_inference_mode, resolve
from worker.engine.ingest.rejected import rejected, shown
from worker.engine.ingest.weights import DTYPES

MAXIMUM_NODES = 50_000
MAXIMUM_REGION_DEPTH = 20

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_TEXT = re.compile(r"[A-Za-z0-9_,.\-> ]{0,64}")
_SYMBOL = re.compile(r"(?:Symbol\('([su]\d+)'[a-zA-Z=, ]*\)|([su]\d+))")


@dataclass(frozen=True)
class Program:
    """A network as read from a file, nothing run yet.

    `graph` has placeholders (one a user input, in call order), get_attr nodes into `tensors`, calls of registry
    operators and size arithmetic, and an output of the person's own structure. Node metadata: `shape` (list of int,
    None where it varies), `dtype`, `layer` (path of the module that made the call).
    `tensors` is by safe name; `parameters`, `buffers` and `constants` are its names; tied parameters are one object.
    `renames` maps names of the file to safe names where they differ. `format` is the file's.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    parameters: frozenset[str]
    buffers: frozenset[str]
    constants: frozenset[str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    renames: dict[str, str]
    warnings: tuple[Notice, ...] = ()
    format: NetworkFormat = "pt2"


Shape = list[int | None]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class GraphBuilder:
    """Translates nodes; `values` maps the file's value names to nodes of `graph`, `notices` is what people are told.

    What the file computes in one of the element types `widened` is computed in float32.
    """

    def __init__(self, widened: frozenset[torch.dtype] = frozenset()) -> None:
        self.graph = fx.Graph()
        self.notices: list[Notice] = []
        self._widened = widened
        self.values: dict[str, fx.Node] = {}
        self._tensor_values: dict[str, schema.TensorMeta] = {}
        self._count = 0

    def placeholder(self, name: str, meta: schema.TensorMeta) -> fx.Node:
        node = self.graph.placeholder(safe_name(name, "input"))
        self._describe(node, meta)
        self._bind(name, node)
        return node

    def tensor(self, name: str, target: str, tensor: Tensor) -> None:
        """Let `name` stand for the parameter, buffer or constant `target`."""
        node = self.graph.get_attr(target)
        node.meta.update(shape=list(tensor.shape), dtype=tensor.dtype)
        self._bind(name, node)

    def body(self, graph: schema.Graph, depth: int = 0) -> None:
        """Append every node of `graph`."""
        if depth > MAXIMUM_REGION_DEPTH:
            raise rejected("regions are nested too deeply")
        self._tensor_values.update(graph.tensor_values)
        for node in graph.nodes:
            self._count += 1
            if self._count > MAXIMUM_NODES:
                raise rejected(f"the network has more than {MAXIMUM_NODES} operations")
            if node.target in REGIONS:
                self._inline(node, depth)
            else:
                self._call(node)

    def output_value(self, argument: schema.Argument) -> fx.Node | None:
        """A user output: a tensor, or None."""
        if argument.kind == "as_none":
            return None
        if argument.kind != "as_tensor":
            raise rejected(f"an output is {argument.kind[3:]}, not a tensor; return tensors only")
        node: fx.Node = self._value(argument)
        return node

    def _dtype(self, number: int) -> torch.dtype:
        dtype: torch.dtype = _known(DTYPES, number, "element type")
        return torch.float32 if dtype in self._widened else dtype

    def _describe(self, node: fx.Node, meta: schema.TensorMeta) -> None:
        node.meta["shape"] = [size.as_int for size in meta.sizes]
        node.meta["dtype"] = self._dtype(meta.dtype)

    def _bind(self, name: str, node: fx.Node) -> None:
        if name in self.values:
            raise rejected(f"the value {shown(name)} is defined twice")
        self.values[name] = node

    def _lookup(self, name: str) -> fx.Node:
        node = self.values.get(name)
        if node is None:
            raise rejected(f"the value {shown(name)} is used before it is defined")
        return node

    def _tensor(self, name: str) -> fx.Node:
        node = self._lookup(name)
        if "size" in node.meta or "several" in node.meta:
            raise rejected(f"the value {shown(name)} is used as a tensor and is none")
        return node

    def _size(self, name: str) -> fx.Node:
        node = self._lookup(name)
        if "size" not in node.meta:
            raise rejected(f"the value {shown(name)} is used as a size and is none")
        return node

    def _value(self, argument: schema.Argument) -> Any:
        """What the argument stands for, as fx wants it."""
        kind, value = argument.kind, argument.value
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return self._tensor(value.name)
            case "as_tensors":
                return [self._tensor(item.name) for item in value]
            case "as_optional_tensor":
                return self._optional(value)
            case "as_optional_tensors":
                return [self._optional(item) for item in value]
            case "as_int" | "as_float" | "as_bool" | "as_ints" | "as_floats" | "as_bools":
                return value
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return self._number(value)
            case "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
                return [self._number(item) for item in value]
            case "as_string":
                if not _TEXT.fullmatch(value):
                    raise rejected(f"the text argument {shown(value)} is none that an operator takes")
                return value
            case "as_scalar_type":
                return self._dtype(value)
            case "as_memory_format":
                return _known(_MEMORY_FORMATS, value, "memory format")
            case "as_layout":
                return _known({7: torch.strided}, value, "layout")
            case "as_device":
                return torch.device("cpu")  # the file's device is where it was exported, not where it runs
        raise rejected(f"an argument of kind {kind[3:]} is not let in")

    def _optional(self, item: schema.OptionalTensor) -> fx.Node | None:
        return self._tensor(item.value.name) if item.kind == "as_tensor" else None

    def _number(self, item: schema.IntOrName | schema.FloatOrName | schema.BoolOrName) -> Any:
        return self._size(item.value) if item.kind == "as_name" else item.value

    def _call(self, node: schema.Node) -> None:
        layer = layer_of(node)
        function = resolve(node.target, layer)
        if function is None:
            return
        if isinstance(function, OpOverload):
            args, kwargs = self._arguments(function, node, layer)
        else:
            args, kwargs = self._size_arguments(node), {}
        made = self.graph.call_function(function, args, kwargs)
        made.meta["layer"] = layer
        self._outputs(made, function, node.outputs)

    def _arguments(
        self, overload: OpOverload, node: schema.Node, layer: str | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments checked against the operator's schema: names, kinds, none missing."""
        name = node.target.removeprefix("torch.ops.aten.")
        given = {item.name: item.arg for item in node.inputs}
        if len(given) != len(node.inputs):
            raise rejected(f"{name} is given the same argument twice", layer)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        complete: dict[str, Any] = {}
        positional = True
        for parameter in overload._schema.arguments:
            argument = given.pop(parameter.name, None)
            if argument is None:
                if not parameter.has_default_value():
                    raise rejected(f"{name} is not given `{parameter.name}`", layer)
                complete[parameter.name] = parameter.default_value
                positional = False
                continue
            if not accepts(str(parameter.real_type), argument.kind, argument.value):
                raise rejected(f"{name} is given a {argument.kind[3:]} as `{parameter.name}`", layer)
            complete[parameter.name] = self._value(argument)
            if positional and not parameter.kwarg_only:
                args.append(complete[parameter.name])
            else:
                kwargs[parameter.name] = complete[parameter.name]
        if given:
            raise rejected(f"{name} has no argument {shown(next(iter(given)))}", layer)
        check_inference_mode(name, complete, layer)
        return tuple(args), kwargs

    def _size_arguments(self, node: schema.Node) -> tuple[Any, ...]:
        kinds = ("as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool")
        if not 1 <= len(node.inputs) <= 3 or any(item.arg.kind not in kinds for item in node.inputs):
            raise rejected(f"{node.target} is given something else than numbers")
        return tuple(self._value(item.arg) for item in node.inputs)

    def _outputs(
        self, made: fx.Node, function: OpOverload | Callable[..., Any], outputs: list[schema.Argument]
    ) -> None:
        returns = (
            [str(item.real_type) for item in function._schema.returns] if isinstance(function, OpOverload) else ["int"]
        )
        kinds = [output.kind for output in outputs]
        if returns == ["Tensor"] and kinds == ["as_tensor"]:
            self._bind_tensor(outputs[0].value.name, made)
        elif returns == ["List[Tensor]"] and kinds == ["as_tensors"]:
            self._bind_items(made, [item.name for item in outputs[0].value])
        elif 1 < len(returns) == len(kinds) and {"as_tensor"} <= set(kinds):
            self._bind_items(made, [output.value.name if output.kind == "as_tensor" else None for output in outputs])
        elif returns == ["int"] and len(kinds) == 1 and kinds[0] in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            if outputs[0].value.kind != "as_name":
                raise rejected(f"the result of {made.name} has no name")
            made.meta["size"] = True
            self._bind(outputs[0].value.value, made)
        else:
            raise rejected(f"the results of {made.name} are not those of its operator")

    def _bind_tensor(self, name: str, node: fx.Node) -> None:
        meta = self._tensor_values.get(name)
        if meta is not None:
            self._describe(node, meta)
        self._bind(name, node)

    def _bind_items(self, made: fx.Node, names: list[str | None]) -> None:
        """A result without a name is one that no network of ours uses, such as the state of a random generator."""
        made.meta["several"] = True
        for index, name in enumerate(names):
            if name is not None:
                self._bind_tensor(name, self.graph.call_function(operator.getitem, (made, index)))

    def _inline(self, node: schema.Node, depth: int) -> None:
        """Put the sub-graph of a no_grad or autocast region in place of the region."""
        position = REGIONS[node.target]
        arguments = [item.arg for item in node.inputs]
        if len(arguments) <= position or arguments[position].kind != "as_graph":
            raise rejected(f"{node.target} has no sub-graph where it must be")
        if "autocast" in node.target and (arguments[2].kind != "as_bool" or arguments[2].value):
            self._tell_of_autocast()
        graph: schema.Graph = arguments[position].value.graph
        actual = [self._value(argument) for argument in arguments[position + 1 :]]
        if len(actual) != len(graph.inputs):
            raise rejected(f"{node.target} is given {len(actual)} values for {len(graph.inputs)}")
        outer = self.values
        self.values = {_result_name(formal): value for formal, value in zip(graph.inputs, actual, strict=True)}
        self.body(graph, depth + 1)
        results = [self._value(output) for output in graph.outputs]
        self.values = outer
        names = [name for output in node.outputs for name in _result_names(output)]
        if len(names) != len(results) or not all(isinstance(result, fx.Node) for result in results):
            raise rejected(f"the results of {node.target} are not those of its sub-graph")
        for name, result in zip(names, results, strict=True):
            self._bind(name, result)

    def _tell_of_autocast(self) -> None:
        message = "Regions under autocast are computed in float32, and exported so: run them under autocast again."
        notice = Notice(code="autocast_left_out", message=message)
        if notice not in self.notices:
            self.notices.append(notice)


def _result_name(argument: schema.Argument) -> str:
    (name,) = _result_names(argument) or [""]
    return name


def _result_names(argument: schema.Argument) -> list[str]:
    if argument.kind == "as_tensor":
        return [argument.value.name]
    if argument.kind == "as_tensors":
        return [item.name for item in argument.value]
    if argument.kind in ("as_sym_int", "as_sym_float", "as_sym_bool") and argument.value.kind == "as_name":
        return [argument.value.value]
    raise rejected(f"a region takes or gives a {argument.kind[3:]}; only tensors and sizes are let in")


def _known(table: dict[int, Any], number: int, what: str) -> Any:
    if number not in table:
        raise rejected(f"{what} {number} is not read")
    return table[number]


def layer_of(node: schema.Node) -> str | None:
    """The path of the module that made the call, from the export's notes; shown to people and used to name dropouts."""
    parts = node.metadata.get("nn_module_stack", "").split(";")[-1].split(",")
    return safe_path(parts[1][:512]) if len(parts) >= 2 else None


def symbol(size: schema.SymbolicInt) -> str | None:
    """The name of a size that is one bare symbol."""
    match = _SYMBOL.fullmatch(size.as_expr.expr_str) if size.as_expr else None
    return (match[1] or match[2]) if match else None
