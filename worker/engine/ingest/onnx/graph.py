"""Interpreting an ONNX graph node by node, for several sizes of the batch at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto
from onnx.defs import OpSchema
from torch import fx

from models.errors import Code, Failure
from models.inspection import TensorInfo
from worker.engine.failures import first_line, lacks_memory
from worker.engine.ingest.names import safe_name
from worker.engine.ingest.onnx.builder import Builder
from worker.engine.ingest.onnx.known import BATCHES, TRANSPOSED, Known, Operand
from worker.engine.ingest.onnx.layers import layer_of
from worker.engine.ingest.onnx.site import Inputs, Site
from worker.engine.ingest.onnx.table import TRANSLATIONS
from worker.engine.ingest.onnx.tensors import External, read_tensor
from worker.engine.ingest.rejected import rejected, shown

MAXIMUM_NODES = 50_000
MAXIMUM_DEPTH = 20
OLDEST_OPSET = 7
"""Before it, broadcasting was an attribute."""

_CONTROL = {"If": "a branch", "Loop": "a loop", "Scan": "a loop", "SequenceMap": "a loop"}
_QUANTIZED = frozenset(
    {
        "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
        "QuantizeLinear",
    }
)  # fmt: skip
_RANDOM = re.compile(r"Bernoulli|Multinomial|Random(Normal|Uniform)(Like)?")


class Interpreter:
    """`values` has what each name of the file stands for; the graph grows in `builder`."""

    def __init__(self, builder: Builder, opset: int) -> None:
        self.builder = builder
        self.values: dict[str, Operand] = {}
        self._opset = opset
        self._uses: Counter[str] = Counter()
        self._count = 0

    def run(self, graph: GraphProto, external: External | None) -> None:
        """Translate a whole graph, whose inputs are bound. Raises `Failure`."""
        self._uses.update(_used_names(graph))
        right_hand = _right_hands(graph)
        for initializer in graph.initializer:
            tensor = self.builder.widen(read_tensor(initializer, external))
            initializer.ClearField("raw_data")
            trained = tensor.is_floating_point()
            known = Known((tensor,) * len(BATCHES), initializer.name, initializer=True, trained=trained)
            known.right_hand = initializer.name in right_hand
            self._bind(initializer.name, known)
        _tie_transposes([value for value in self.values.values() if isinstance(value, Known)])
        self._body(graph.node)

    def outputs(self, graph: GraphProto, taken: set[str]) -> tuple[TensorInfo, ...]:
        """End the graph with the outputs of the file. Raises `Failure`."""
        infos, nodes = [], []
        for output in graph.output:
            value = self._lookup(output.name)
            if isinstance(value, Known):
                raise rejected(f"the output {shown(output.name)} does not depend on the inputs")
            base = name = safe_name(output.name, "output")
            while name in taken:
                name = f"{base}_{len(taken)}"
            taken.add(name)
            nodes.append(value)
            infos.append(TensorInfo(name=name, dtype="", shape=[]))
        if not nodes:
            raise rejected("the network has no output")
        self.builder.graph.output(nodes[0] if len(nodes) == 1 else tuple(nodes))
        return tuple(infos)

    def bind_input(self, name: str, node: fx.Node) -> None:
        self._bind(name, node)

    def _body(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            self._node(node)

    def _bind(self, name: str, value: Operand) -> None:
        if not name or name in self.values:
            raise rejected(f"the value {shown(name)} is defined twice, or has no name")
        self.values[name] = value

    def _lookup(self, name: str) -> Operand:
        value = self.values.get(name)
        if value is None:
            raise rejected(f"the value {shown(name)} is used before it is defined")
        return value

    def _node(self, node: NodeProto) -> None:
        self._count += 1
        layer = layer_of(node, self._count)
        schema = _schema(node, self._opset, layer)
        inputs: Inputs = [self._lookup(name) if name else None for name in node.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        site = Site(self.builder, node, schema, self._opset, inputs, layer)
        results = self._branch(site) if node.op_type == "If" else self._translate(site)
        for place, name in enumerate(node.output):
            if place < len(results):
                value = results[place]
                if isinstance(value, fx.Node):
                    value.meta["uses"] = value.meta.get("uses", 0) + self._uses[name]
                if name:
                    self._bind(name, value)
            elif name and self._uses[name]:
                raise site.refuse(
                    f"its output {shown(schema.outputs[min(place, len(schema.outputs) - 1)].name)} is not read"
                )

    def _translate(self, site: Site) -> list[Operand]:
        try:
            made = TRANSLATIONS[site.kind](site)
        except Failure:
            raise
        except Exception as error:
            if lacks_memory(error):
                raise
            raise site.refuse(first_line(error)) from error
        site.check_all_taken()
        return made if isinstance(made, list) else [made]

    def _branch(self, site: Site) -> list[Operand]:
        """A branch whose condition is known is the graph that is taken."""
        condition = site.operand(0)
        if not isinstance(condition, Known) or not condition.constant or condition.tensor.numel() != 1:
            raise site.refuse(_CONTROL_REFUSAL.format("a branch (If)"))
        taken = site.maybe_graph("then_branch" if bool(condition.tensor) else "else_branch")
        site.maybe_graph("then_branch"), site.maybe_graph("else_branch")
        if taken is None or taken.input:
            raise site.refuse("it has no such branch")
        outer, self.values = self.values, dict(self.values)
        for initializer in taken.initializer:
            tensor = self.builder.widen(read_tensor(initializer))
            self._bind(initializer.name, Known((tensor,) * len(BATCHES), initializer.name))
        self._body(taken.node)
        results = [self._lookup(output.name) for output in taken.output]
        self.values = outer
        return results


def _tie_transposes(initializers: list[Known]) -> None:
    """Exporters that fold constants write a table that is also the last layer's weight twice: as it is, and turned."""
    tables = [known for known in initializers if known.tensor.dim() == 2 and known.trained and not known.right_hand]
    for matrix in initializers:
        if matrix.right_hand and matrix.trained and matrix.tensor.dim() == 2:
            for table in tables:
                sizes = tuple(table.tensor.shape)
                if sizes == tuple(matrix.tensor.shape)[::-1] and torch.equal(table.tensor, matrix.tensor.t()):
                    matrix.forms[TRANSPOSED] = table
                    break


_CONTROL_REFUSAL = (
    "the network has {} that depends on its data; export it without, or with sizes that are fixed, so that every "
    "operator always runs"
)


def check_nodes(graph: GraphProto, depth: int = 0) -> int:
    """Refuse what cannot be read whatever its arguments are, before anything is done. Returns the count of nodes."""
    if depth > MAXIMUM_DEPTH:
        raise rejected("graphs are nested too deeply")
    if graph.sparse_initializer:
        raise rejected("the file holds sparse tensors, which are not read; save them as plain ones")
    count = len(graph.node)
    for place, node in enumerate(graph.node, 1):
        _check_operator(node, layer_of(node, place))
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                raise rejected(f"the attribute {shown(attribute.name)} refers to a function's", layer_of(node, place))
            if attribute.type == AttributeProto.GRAPH:
                count += check_nodes(attribute.g, depth + 1)
    if count > MAXIMUM_NODES:
        raise rejected(f"the network has more than {MAXIMUM_NODES} operations")
    return count


def _check_operator(node: NodeProto, layer: str) -> None:
    kind = node.op_type
    quantized = kind in _QUANTIZED or kind.startswith(
        ("QLinear", "QGemm", "QAttention", "MatMulNBits", "DynamicQuantize")
    )
    if quantized:
        raise rejected(
            f"the network is quantized already: {shown(kind)} in {shown(layer)} works on integers, which are neither "
            "cut nor trained; send the network from before it was quantized",
            layer,
        )
    if node.domain not in ("", "ai.onnx") or node.overload:
        raise Failure(
            Code.UNSUPPORTED_OP,
            f"operator {shown(kind)} of the domain {shown(node.domain)} is not one of ONNX's own; it is used in "
            f"{shown(layer)}. Export without optimizing for one runtime",
            where=layer,
        )
    if kind in _CONTROL and kind != "If":
        raise rejected(_CONTROL_REFUSAL.format(f"{_CONTROL[kind]} ({kind})"), layer)
    if _RANDOM.fullmatch(kind):
        raise rejected(
            f"the network draws random numbers ({kind} in {shown(layer)}); export it in inference mode", layer
        )
    if kind not in TRANSLATIONS and kind != "If":
        raise Failure(
            Code.UNSUPPORTED_OP, f"operator {shown(kind)} is not supported; it is used in {shown(layer)}", where=layer
        )


def _schema(node: NodeProto, opset: int, layer: str) -> OpSchema:
    """The operator as this opset has it; the node's names, kinds and counts are checked against it."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise Failure(
            Code.UNSUPPORTED_OP,
            f"opset {opset} has no operator {shown(node.op_type)}; it is used in {shown(layer)}",
            where=layer,
        ) from error
    what = f"operator {node.op_type} in {shown(layer)}"
    if not schema.min_input <= len(node.input) <= schema.max_input or not (
        schema.min_output <= len(node.output) <= schema.max_output
    ):
        raise rejected(f"{what} has {len(node.input)} inputs and {len(node.output)} outputs", layer)
    if len({attribute.name for attribute in node.attribute}) != len(node.attribute):
        raise rejected(f"{what} has the same attribute twice", layer)
    for attribute in node.attribute:
        formal = schema.attributes.get(attribute.name)
        if formal is None or attribute.type != _type_number(formal.type):
            raise rejected(f"{what}: opset {opset} has no such attribute {shown(attribute.name)}", layer)
    for name, formal in schema.attributes.items():
        if formal.required and all(attribute.name != name for attribute in node.attribute):
            raise rejected(f"{what} lacks its attribute `{name}`", layer)
    return schema


def _type_number(kind: Any) -> int:
    """onnx's enumeration is declared without its `value`."""
    number: int = kind.value
    return number


def _used_names(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _used_names(attribute.g)
    for output in graph.output:
        yield output.name


def _right_hands(graph: GraphProto) -> set[str]:
    """Values that are used as the right-hand matrix of products, and as nothing else."""
    plain: Counter[str] = Counter()
    for node in graph.node:
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if len(node.input) > 1 and (node.op_type == "MatMul" or (node.op_type == "Gemm" and not turned)):
            plain[node.input[1]] += 1
    uses = Counter(_used_names(graph))
    return {name for name, count in plain.items() if uses[name] == count}
