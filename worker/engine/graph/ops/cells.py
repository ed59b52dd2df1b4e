"""Rules of recurrent cells: one step of an LSTM, a GRU or a plain recurrent network, as a call."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from worker.engine.graph.labels import Axes, Value
from worker.engine.graph.ops.call import Call, arguments_of
from worker.engine.graph.ops.sizing import Sizing

_GATES = {"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}


def cell(call: Call) -> Value:
    """Weights [gates * hidden, inner] and [gates * hidden, hidden]: the hidden labels are tiled over the gates."""
    name = str(call.node.target).split(".")[1]
    axes = call.operand("input")
    inner, recurrent = call.operand("w_ih"), call.operand("w_hh")
    hidden = recurrent[1]
    if hidden is None:
        hidden = np.zeros(call.sizes("w_hh")[1], np.int64)
    call.tie(inner[1], axes[-1])
    biases = [bias for bias in (call.optional("b_ih"), call.optional("b_hh")) if bias is not None]
    for values in (inner, recurrent, *biases):
        call.tie(values[0], np.tile(hidden, _GATES[name]))
    states = call.operands("hx") if name == "lstm_cell" else [call.operand("hx")]
    for state in states:
        call.tie(state[-1], hidden)
    result: Axes = [*axes[:-1], hidden]
    return (result, list(result)) if name == "lstm_cell" else result


def cell_cost(node: fx.Node, sizing: Sizing) -> int:
    arguments = arguments_of(node)
    samples = math.prod(sizing.sizes(arguments["input"])[:-1])
    return samples * sum(math.prod(sizing.sizes(arguments[name])) for name in ("w_ih", "w_hh"))
