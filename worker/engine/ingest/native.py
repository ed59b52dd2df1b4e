"""Operators whose sizes torch does not check before its native code writes out of bounds, or takes for ever to find."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from worker.engine.graph.ops.op import operator_name

_GATES = {"lstm.input": 4, "gru.input": 3, "rnn_tanh.input": 1, "rnn_relu.input": 1}
_TRANSPOSED = {"conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input", "convolution.default"}
LONGEST_GAPPED_STRIDE = 32
"""Of a transposed convolution whose kernel does not reach from one input to the next."""


def run_on_shapes(target: OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """What `target` gives for fake tensors. Of a recurrent operator they make one call a step, so that long sequences
    would take minutes and gigabytes; the first two steps tell the sizes of all.

    Raises `ValueError` for sizes on which native code would write out of bounds.
    """
    named = {parameter.name: value for parameter, value in zip(target._schema.arguments, arguments, strict=False)}
    named |= keywords
    name = operator_name(target)
    if (wrong := check_recurrent(name, named) or check_transposed(name, named)) is not None:
        raise ValueError(wrong)
    if name not in _GATES:
        return target(*arguments, **keywords)
    sequence: Tensor = named["input"]
    time = 1 if named["batch_first"] else 0
    output, *states = target(**named | {"input": sequence[:, :2] if time else sequence[:2]})
    sizes = [sequence.shape[time], output.shape[1 - time], output.shape[2]]
    whole = output.new_empty(sizes)
    return whole.transpose(0, 1) if time else whole, *states


def check_transposed(name: str, arguments: dict[str, Any]) -> str | None:
    """What is wrong with a transposed convolution; None when nothing is, or it is another operator.

    Where kernels leave gaps between them, oneDNN's takes time that grows with the square of the stride, and crashes
    (torch 2.13: stride 64, kernel 3, 256 channels, 2048 places; stride 8000, kernel 4000, 4 channels, 16 places).
    """
    if name not in _TRANSPOSED or not arguments.get("transposed", True):
        return None
    kernel: list[int] = list(arguments["weight"].shape[2:])
    strides, dilations = (_for_each(arguments.get(key, 1), len(kernel)) for key in ("stride", "dilation"))
    for stride, length, dilation in zip(strides, kernel, dilations, strict=True):
        if stride > max(LONGEST_GAPPED_STRIDE, (length - 1) * dilation + 1):
            return f"a transposed convolution with a stride of {stride} and a kernel of {length} leaves gaps"
    return None


def _for_each(given: Any, axes: int) -> list[int]:
    """One number for each axis; one in all, or in a list, is of each."""
    numbers = list(given) if isinstance(given, (list, tuple)) else [given]
    return numbers * axes if len(numbers) == 1 else numbers


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
