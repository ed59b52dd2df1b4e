"""The quantize step of `"method": "dynamic"`: 8-bit weights now, the range of what they multiply at run time.

No calibration, and no chain of integers between layers: for linear layers and LSTMs, where moving the weights is what
takes the time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from worker.engine.quantize.placement import shares_weight, weighted_layers
from worker.engine.run import Run
from worker.engine.subject import Record, Subject

_SQNR_SAMPLES = 8


def run(subject: Subject, step: DynamicStep, run: Run) -> dict[str, Any]:
    """Quantize `subject` in place; details for the report: layers made 8-bit, layers kept float and why, and with data
    the SQNR in dB of each.

    Raises `Failure(UNSUPPORTED_OP)` when the network cannot be folded or nothing in it can be 8-bit.
    """
    run.phase(Phase.QUANTIZING)
    exact = fold(subject.graph.to("cpu"), subject.example_inputs())
    kept_float = why_not_dynamic(exact, [choice.match for choice in step.layers])
    layers = [name for name in weighted_layers(exact) if name not in kept_float]
    if not layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(kept_float.items())[:5])
        raise Failure(Code.UNSUPPORTED_OP, f"no layer can be made 8-bit ({reasons or 'no linear layer or LSTM'})")
    subject.graph = copy.deepcopy(exact)
    quantization = make_dynamic(subject, layers, kept_float, exact, run)
    return {
        "scheme": step.scheme,
        "method": step.method,
        "int8_layers": len(layers),
        "kept_float": kept_float,
        "lowest_sqnr_db": min(quantization.sqnr_db.values(), default=None),
        "sqnr_db": dict(quantization.sqnr_db),
    }


def make_dynamic(
    subject: Subject, layers: Sequence[str], kept_float: Mapping[str, str], exact: fx.GraphModule, run: Run
) -> Quantization:
    """Let `layers` of the folded `subject.graph` range their inputs at run time, beside what is quantized already.
    `exact` is the float network, for the noise of all 8-bit layers, which is measured where there is data."""
    scales = {name: scale for layer in layers for name, scale in _grids(subject.graph, layer).items()}
    before = subject.quantization or Quantization({}, {}, {}, {})
    _round(subject.graph, scales)
    found = replace(before, kept_float=kept_float, dynamic_scales=scales)
    if run.data is not None:
        inputs = run.data.val.sample(_SQNR_SAMPLES, run.spec.seed).inputs
        found = replace(found, sqnr_db=layer_sqnr_db(exact, integer_network(subject.graph, found), inputs))
    subject.quantization = found
    subject.records.append(_record(found))
    return found


def replay(subject: Subject, record: Record) -> None:
    """Quantize `subject` as `record` says."""
    subject.graph = fold(subject.graph, subject.example_inputs())
    scales = dict(record.tensors)
    _round(subject.graph, scales)
    before = subject.quantization or Quantization({}, {}, {}, {})
    subject.quantization = replace(before, **record.data, dynamic_scales=scales)


def _record(quantization: Quantization) -> Record:
    """The scales are kept: weights already on the grid must be read with the same one."""
    data = {"kept_float": dict(quantization.kept_float), "sqnr_db": dict(quantization.sqnr_db)}
    return Record("quantize dynamic", data, quantization.dynamic_scales)


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


def why_not_dynamic(graph: fx.GraphModule, skip: Sequence[str]) -> dict[str, str]:
    """Every layer with a weight that cannot range its inputs at run time, or is skipped, and why."""
    reasons: dict[str, str] = {}
    for name in weighted_layers(graph):
        if any(fnmatchcase(name, pattern) for pattern in skip):
            reasons[name] = "skipped by `layers`"
        elif (reason := _why_float(graph.get_submodule(name))) is not None:
            reasons[name] = reason
        elif shares_weight(graph, name):
            reasons[name] = "its weight is shared with another layer"
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
