"""From a flat ATen graph to a network of real `nn` modules: same numbers in eval, trainable, layers under their names.

Every call that works on parameters becomes a module named by its parameter's path (sturdier than the export's module
stack); same parameters and configuration give one module called several times; tied parameters stay one object. All
else stays an ATen call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from models.errors import Code, Failure
from worker.engine.graph.layers.lifter import Arguments, Lifter
from worker.engine.graph.ops.op import operator_name
from worker.engine.graph.ops.table import OPS
from worker.engine.ingest.program import Program
from worker.engine.subject import Subject

_CLONE = torch.ops.aten.clone.default


def lift(program: Program) -> Subject:
    """The network of `program`, ready for steps. `program` is left as it is; its tensors are those of the original.

    Raises `Failure` (network_rejected) when names of the file cannot be laid out as modules.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    _guard_inputs(graph)
    lifter = Lifter(graph, program.tensors)
    for node in list(graph.nodes):
        if isinstance(node.target, OpOverload):
            rule = OPS[operator_name(node.target)].layer
            if rule is not None:
                rule(lifter, node, complete_arguments(node))
    remove_dead_code(graph)
    tensors = _beside_layers(graph, lifter, program.tensors)
    module = fx.GraphModule(_tree(graph, lifter, tensors), graph, "Network")
    graph.lint()
    _check_names(module, lifter.layers, tensors)
    subject = Subject.of(module, program.inputs, program.outputs)
    subject.renames.update(_renames(program, module, lifter))
    return subject


def compose(graph: fx.Graph) -> None:
    """Put what they were decomposed from in the place of core ATen operators."""
    composed = False
    for node in list(graph.nodes):
        if isinstance(node.target, OpOverload):
            rule = OPS[operator_name(node.target)].compose
            if rule is not None:
                _compose(node, rule)
                composed = True
    if composed:
        remove_dead_code(graph)


def _compose(node: fx.Node, rule: Callable[[fx.Node], None]) -> None:
    """Raises `Failure` (NETWORK_REJECTED) for a call that is none of those the operator knows."""
    try:
        rule(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Failure(
            Code.NETWORK_REJECTED, f"{node.name} calls {node.target} in a way that is not read", where=node.name
        ) from error


def complete_arguments(node: fx.Node) -> Arguments:
    """A node's arguments by schema name, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    complete: Arguments = {}
    for position, parameter in enumerate(node.target._schema.arguments):
        default = parameter.default_value if parameter.has_default_value() else None
        positional = position < len(node.args) and not parameter.kwarg_only
        complete[parameter.name] = node.args[position] if positional else node.kwargs.get(parameter.name, default)
    return complete


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove nodes nobody uses, but never one that writes into a tensor: `relu_` works by its effect."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            continue
        graph.erase_node(node)


def _guard_inputs(graph: fx.Graph) -> None:
    """Copy an input that an in-place operator writes to, so that the caller's tensor stays as it is."""
    for node in list(graph.nodes):
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            source = _source(node.args[0])
            if source is not None and source.op == "placeholder":
                with graph.inserting_after(source):
                    copy = graph.call_function(_CLONE, (source,))
                copy.meta = dict(source.meta)
                source.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)  # type: ignore[misc]


def _source(value: object) -> fx.Node | None:
    """The node whose storage `value` is a view of, or may be."""
    while isinstance(value, fx.Node) and isinstance(value.target, OpOverload) and value.args:
        if not any(argument.alias_info is not None for argument in value.target._schema.arguments):
            break
        value = value.args[0]
    return value if isinstance(value, fx.Node) else None


def _beside_layers(graph: fx.Graph, lifter: Lifter, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by name, with other names for those used on their own that would lie inside a layer.

    A graph that adds `fc.bias` itself has a layer `fc` without a bias, which must not find one; and the rules of a
    layer know its own tensors only.
    """
    named = dict(tensors)
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, leaf = node.target.rpartition(".")
            layer = lifter.layers.get(path)
            own = {} if layer is None else {**layer._parameters, **layer._buffers}
            if layer is not None and own.get(leaf) is not tensors[node.target]:
                name = f"{path}_{leaf}"
                while name in named or name in lifter.layers:
                    name = f"{name}_"
                named[name] = tensors[node.target]
                node.target = name
    return named


def _tree(graph: fx.Graph, lifter: Lifter, tensors: dict[str, Tensor]) -> nn.Module:
    """The modules and tensors the graph uses, laid out by their dotted names."""
    root = nn.Module()
    for name in sorted(lifter.layers, key=lambda name: name.count(".")):
        folder, leaf = _folder(root, name)
        folder._modules[leaf] = lifter.layers[name]
    for node in graph.nodes:
        if node.op == "get_attr":
            folder, leaf = _folder(root, node.target)
            tensor = tensors[node.target]
            if isinstance(tensor, nn.Parameter):
                folder._parameters[leaf] = tensor
            else:
                folder._buffers[leaf] = tensor
    return root


def _folder(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        root = root._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
    return root, leaf


def _check_names(module: fx.GraphModule, layers: dict[str, nn.Module], tensors: dict[str, Tensor]) -> None:
    for node in module.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        found: object = module
        for part in node.target.split("."):
            found = getattr(found, part, None)
        if found is not (layers[node.target] if node.op == "call_module" else tensors[node.target]):
            raise Failure(
                Code.NETWORK_REJECTED,
                f"the name {node.target} clashes with another; rename that layer",
                where=node.target,
            )


def _renames(program: Program, module: fx.GraphModule, lifter: Lifter) -> dict[str, str]:
    """Parameter names of the file that have another name in the network."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    original = {safe: name for name, safe in program.renames.items()}
    renames = {}
    for name in sorted(program.parameters):
        tensor = lifter.replaced.get(id(program.tensors[name]), program.tensors[name])
        found = names.get(id(tensor), [])
        if found and (name not in found or name in original):
            renames[original.get(name, name)] = name if name in found else found[0]
    return renames
