"""A graph as a `.pt2` file that plain torch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from worker.engine.export.dynamic import dynamic_shapes
from worker.engine.graph.coded import coded_network
from worker.engine.graph.integer import in_plain_aten
from worker.engine.graph.stored import stored_network
from worker.engine.subject import Subject

_TRACES = ("custom", "from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn")


def export_pt2(graph: fx.GraphModule, subject: Subject, path: Path) -> None:
    """Write `graph` (`subject.network()` or `subject.original`) with its parameter names.

    Sizes that may vary stay open. No stack traces, no example inputs (they would be a pickle, with whole storages).
    An integer network holds int8 weights and computes in floating point on rounded values: a file to hand on, not a
    fast one. Weights of few bits are made from their bytes at every call: a small file, and small in memory.
    """
    held = stored_network(graph.to("cpu").eval(), subject.stored if graph is not subject.original else {})
    plain = coded_network(in_plain_aten(held), subject.coded)
    with torch.no_grad():
        program = torch.export.export(plain, subject.example_inputs(), dynamic_shapes=dynamic_shapes(subject))
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                for key in _TRACES:
                    node.meta.pop(key, None)
    program.example_inputs = None
    signature = program.module_call_graph[0].signature
    assert signature is not None
    places = pytree.tree_unflatten(range(signature.out_spec.num_leaves), signature.out_spec)
    signature.out_spec = pytree.tree_structure(_plain(places))
    torch.export.save(program, path)


def _plain(value: Any) -> Any:
    """fx keeps lists and dicts in classes of its own; who loads the file gets what the network returned."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value
