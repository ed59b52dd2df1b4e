"""Sizes of recurrent operators. torch does not check them all, and its native code then writes out of bounds."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_GATES = {"lstm.input": 4, "gru.input": 3, "rnn_tanh.input": 1}


def check_recurrent(name: str, arguments: dict[str, Any]) -> str | None:
    """What is wrong with the sizes of a recurrent operator's tensors; None when nothing is, or it is another operator.

    The rules are those of `nn.LSTM`: input [batch, time, inner] or [time, batch, inner], states
    [layers * directions, batch, hidden], and for each layer and direction weights [gates * hidden, inner],
    [gates * hidden, hidden] and two biases [gates * hidden].
    """
    gates = _GATES.get(name)
    if gates is None:
        return None
    source: Tensor = arguments["input"]
    weights: list[Tensor] = list(arguments["params"])
    states: list[Tensor] = list(arguments["hx"]) if name == "lstm.input" else [arguments["hx"]]
    layers, directions = int(arguments["num_layers"]), 2 if arguments["bidirectional"] else 1
    each = 4 if arguments["has_biases"] else 2
    if source.dim() != 3 or len(states) != (2 if name == "lstm.input" else 1):
        return "the input must have three dimensions and the states must be complete"
    if layers < 1 or len(weights) != layers * directions * each:
        return f"{len(weights)} weights are given for {layers} layers (projections are not supported)"
    batch = source.shape[0 if arguments["batch_first"] else 1]
    hidden = weights[1].shape[-1]
    for state in states:
        if tuple(state.shape) != (layers * directions, batch, hidden):
            return f"a state has the shape {tuple(state.shape)}, not {(layers * directions, batch, hidden)}"
    for index, weight in enumerate(weights):
        layer, kind = index // (directions * each), index % each
        inner = (source.shape[2] if layer == 0 else hidden * directions) if kind == 0 else hidden
        expected = (gates * hidden, inner) if kind < 2 else (gates * hidden,)
        if tuple(weight.shape) != expected:
            return f"weight {index} has the shape {tuple(weight.shape)}, not {expected}"
    if len({tensor.dtype for tensor in (source, *states, *weights)}) > 1:
        return "input, states and weights have different element types"
    return None
