"""The quantize step of `"method": "dynamic"`: 8-bit weights now, the range of what they multiply at run time.

No calibration, and no chain of integers between layers: for linear layers and LSTMs, where moving the weights is what
takes the time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from models.spec import DynamicStep
from models.statuses import Phase
from worker.engine.graph.integer import Quantization, integer_network, weight_grid
from worker.engine.quantize.fold import fold
from worker.engine.quantize.observe import layer_sqnr_db
from worker.engine.quantize.placement import WEIGHTED, shares_weight
from worker.engine.run import Run
from worker.engine.subject import Record, Subject

_SQNR_SAMPLES = 8


def run(subject: Subject, step: DynamicStep, run: Run) -> dict[str, Any]:
    """Quantize `subject` in place; details for the report: layers made 8-bit, layers kept float and why, and with data
    the SQNR in dB of each.

    Raises `Failure(UNSUPPORTED_OP)` when the network cannot be folded or nothing in it can be 8-bit.
    """
    run.phase(Phase.QUANTIZING)
    graph = fold(subject.graph.to("cpu"), subject.example_inputs())
    kept_float = _kept_float(graph, [choice.match for choice in step.layers])
    exact = copy.deepcopy(graph)
    scales = {name: scale for layer in _layers(graph, kept_float) for name, scale in _grids(graph, layer).items()}
    if not scales:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(kept_float.items())[:5])
        raise Failure(Code.UNSUPPORTED_OP, f"no layer can be made 8-bit ({reasons or 'no linear layer or LSTM'})")
    _round(graph, scales)
    quantization = Quantization({}, {}, kept_float, {}, scales)
    noise: dict[str, float] = {}
    if run.data is not None:
        inputs = run.data.val.sample(_SQNR_SAMPLES, run.spec.seed).inputs
        noise = layer_sqnr_db(exact, integer_network(graph, quantization), inputs)
    subject.graph = graph
    subject.quantization = Quantization({}, {}, kept_float, noise, scales)
    subject.records.append(_record(subject.quantization))
    return {
        "scheme": step.scheme,
        "method": step.method,
        "int8_layers": len({name.rpartition(".")[0] for name in scales}),
        "kept_float": kept_float,
        "lowest_sqnr_db": min(noise.values(), default=None),
        "sqnr_db": noise,
    }


def replay(subject: Subject, record: Record) -> None:
    """Quantize `subject` as `record` says."""
    graph = fold(subject.graph, subject.example_inputs())
    scales = dict(record.tensors)
    _round(graph, scales)
    subject.graph = graph
    subject.quantization = Quantization({}, {}, record.data["kept_float"], record.data["sqnr_db"], scales)


def _record(quantization: Quantization) -> Record:
    """The scales are kept: weights already on the grid must be read with the same one."""
    data = {"kept_float": dict(quantization.kept_float), "sqnr_db": dict(quantization.sqnr_db)}
    return Record("quantize dynamic", data, quantization.dynamic_scales)


def _layers(graph: fx.GraphModule, kept_float: Mapping[str, str]) -> list[str]:
    calls = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    return [name for name in calls if isinstance(graph.get_submodule(name), WEIGHTED) and name not in kept_float]


def _grids(graph: fx.GraphModule, layer: str) -> dict[str, Tensor]:
    """By the name of each weight of `layer`, one symmetric scale a row."""
    weights = {
        name: value
        for name, value in graph.get_submodule(layer).named_parameters(recurse=False)
        if name.startswith("weight")
    }
    return {f"{layer}.{name}": weight_grid(weight, None, 1.0).cpu() for name, weight in weights.items()}


def _round(graph: fx.GraphModule, scales: Mapping[str, Tensor]) -> None:
    for name, scale in scales.items():
        weight = graph.get_parameter(name)
        with torch.no_grad():
            weight.copy_(torch.round(weight / scale[:, None]).clamp(-127, 127) * scale[:, None])


def _kept_float(graph: fx.GraphModule, skip: Sequence[str]) -> dict[str, str]:
    """Every layer with a weight that stays float, and why."""
    reasons: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or node.target in reasons:
            continue
        layer = graph.get_submodule(node.target)
        if not isinstance(layer, WEIGHTED):
            continue
        if any(fnmatchcase(node.target, pattern) for pattern in skip):
            reasons[node.target] = "skipped by `layers`"
        elif (reason := _why_float(layer)) is not None:
            reasons[node.target] = reason
        elif shares_weight(graph, node.target):
            reasons[node.target] = "its weight is shared with another layer"
    return reasons


def _why_float(layer: nn.Module) -> str | None:
    if type(layer) is nn.Linear or (type(layer) is nn.LSTM and not layer.proj_size):
        return None
    if isinstance(layer, nn.LSTM):
        return "the runtime has no 8-bit LSTM that projects its state"
    if isinstance(layer, nn.GRU | nn.RNN):
        return f"the runtime has no 8-bit {type(layer).__name__}, only an LSTM"
    if isinstance(layer, nn.Embedding):
        return "an embedding is looked up, not computed with"
    return "convolutions whose inputs are ranged at run time are slower than in floating point in the runtime"
