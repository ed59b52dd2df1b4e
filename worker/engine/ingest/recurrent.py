"""Sizes of recurrent operators: torch does not check them all, and finds those of results step by step."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload

_GATES = {"lstm.input": 4, "gru.input": 3, "rnn_tanh.input": 1, "rnn_relu.input": 1}


def run_on_shapes(target: OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """What `target` gives for fake tensors. Of a recurrent operator they make one call a step, so that long sequences
    would take minutes and gigabytes; the first two steps tell the sizes of all.

    Raises `ValueError` for sizes on which native code would write out of bounds.
    """
    named = {parameter.name: value for parameter, value in zip(target._schema.arguments, arguments, strict=False)}
    named |= keywords
    if (name := f"{target.overloadpacket.__name__}.{target._overloadname}") not in _GATES:
        return target(*arguments, **keywords)
    if (wrong := check_recurrent(name, named)) is not None:
        raise ValueError(wrong)
    sequence: Tensor = named["input"]
    time = 1 if named["batch_first"] else 0
    output, *states = target(**named | {"input": sequence[:, :2] if time else sequence[:2]})
    sizes = list(output.shape)
    sizes[time] = sequence.shape[time]
    return output.new_empty(sizes), *states


def check_recurrent(name: str, arguments: dict[str, Any]) -> str | None:
    """What is wrong with the sizes of a recurrent operator's tensors; None when nothing is, or it is another operator.
    torch does not check them all, and its native code then writes out of bounds.

    The rules are those of `nn.LSTM`: input [batch, time, inner] or [time, batch, inner], states
    [layers * directions, batch, state], and for each layer and direction weights [gates * hidden, inner],
    [gates * hidden, state], two biases [gates * hidden] and, where an LSTM projects its state, [state, hidden].
    """
    gates = _GATES.get(name)
    if gates is None:
        return None
    source: Tensor = arguments["input"]
    weights: list[Tensor] = list(arguments["params"])
    states: list[Tensor] = list(arguments["hx"]) if name == "lstm.input" else [arguments["hx"]]
    layers, directions = int(arguments["num_layers"]), 2 if arguments["bidirectional"] else 1
    if source.dim() != 3 or len(states) != (2 if name == "lstm.input" else 1):
        return "the input must have three dimensions and the states must be complete"
    runs, plain = layers * directions, 4 if arguments["has_biases"] else 2
    each = plain + 1 if name == "lstm.input" and len(weights) == runs * (plain + 1) else plain
    if layers < 1 or len(weights) != runs * each:
        return f"{len(weights)} weights are given for {layers} layers"
    if weights[0].dim() != 2 or weights[1].dim() != 2:
        return "the weights must have two dimensions"
    batch = source.shape[0 if arguments["batch_first"] else 1]
    hidden = weights[0].shape[0] // gates
    size = weights[1].shape[1] if each > plain else hidden
    for state, own in zip(states, (size, hidden), strict=False):
        if tuple(state.shape) != (runs, batch, own):
            return f"a state has the shape {tuple(state.shape)}, not {(runs, batch, own)}"
    for index, weight in enumerate(weights):
        inner = source.shape[2] if index < directions * each else size * directions
        kind = index % each
        expected = {0: (gates * hidden, inner), 1: (gates * hidden, size), plain: (size, hidden)}
        if tuple(weight.shape) != expected.get(kind, (gates * hidden,)):
            return f"weight {index} has the shape {tuple(weight.shape)}, not {expected.get(kind, (gates * hidden,))}"
    if len({tensor.dtype for tensor in (source, *states, *weights)}) > 1:
        return "input, states and weights have different element types"
    return None
