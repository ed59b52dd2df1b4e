"""LSTM, GRU and plain recurrent networks over a batch of sequences."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from worker.engine.graph.layers.lifter import Arguments, Lifter

_ZEROS = (
    torch.ops.aten.zeros.default,
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.zeros_like.default,
)


def lift_lstm(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    return _lift(lifter, node, arguments, nn.LSTM, 4)


def lift_gru(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    return _lift(lifter, node, arguments, nn.GRU, 3)


def lift_rnn_tanh(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    return _lift(lifter, node, arguments, nn.RNN, 1)


def lift_rnn_relu(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    return _lift(lifter, node, arguments, nn.RNN, 1, nonlinearity="relu")


def _lift(
    lifter: Lifter,
    node: fx.Node,
    arguments: Arguments,
    kind: type[nn.LSTM | nn.GRU | nn.RNN],
    gates: int,
    **settings: Any,
) -> bool:
    """A start state of zeros is left to the module."""
    weights = [lifter.parameter(value) for value in arguments["params"]]
    layers, directions = arguments["num_layers"], 2 if arguments["bidirectional"] else 1
    projected = len(weights) == layers * directions * (5 if arguments["has_biases"] else 3)
    names = _names(layers, directions, arguments["has_biases"], projected)
    if any(weight is None for weight in weights) or len(weights) != len(names):
        return False
    first, second = weights[:2]
    assert first is not None
    assert second is not None
    inner, hidden = first.shape[1], first.shape[0] // gates
    if projected:
        settings["proj_size"] = second.shape[1]

    def make() -> nn.Module:
        module = kind(
            inner,
            hidden,
            layers,
            bias=arguments["has_biases"],
            batch_first=arguments["batch_first"],
            dropout=arguments["dropout"] if layers > 1 else 0.0,
            bidirectional=directions == 2,
            device="meta",
            **settings,
        )
        for name, weight in zip(names, weights, strict=True):
            setattr(module, name, weight)
        return module

    flags = (arguments["batch_first"], arguments["dropout"], arguments["has_biases"])
    configuration = (kind, layers, directions, *flags, *settings.items())
    name = lifter.module(node, arguments["params"][0], weights, configuration, make)
    call = lifter.call(node, name, arguments["input"], *_start(arguments["hx"]))
    _hand_over_results(lifter, node, call, kind is nn.LSTM)
    return True


def _names(layers: int, directions: int, biases: bool, projected: bool) -> list[str]:
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biases else ()), *(("weight_hr",) * projected))
    suffixes = ("", "_reverse")[:directions]
    return [f"{kind}_l{layer}{suffix}" for layer in range(layers) for suffix in suffixes for kind in kinds]


def _start(state: Any) -> tuple[Any, ...]:
    states = tuple(state) if isinstance(state, list | tuple) else (state,)
    if all(isinstance(value, fx.Node) and value.target in _ZEROS for value in states):
        return ()
    return (states,) if isinstance(state, list | tuple) else states


def _hand_over_results(lifter: Lifter, node: fx.Node, call: fx.Node, is_lstm: bool) -> None:
    """ATen gives (output, hidden[, cell]); the module gives (output, hidden) or (output, (hidden, cell))."""
    call.meta.pop("shape", None)
    for user in list(node.users):
        index = user.args[1]
        with lifter.graph.inserting_before(user):
            if is_lstm and index != 0:
                states = lifter.graph.call_function(operator.getitem, (call, 1))
                result = lifter.graph.call_function(operator.getitem, (states, int(str(index)) - 1))
            else:
                result = lifter.graph.call_function(operator.getitem, (call, index))
        result.meta = dict(user.meta)
        user.replace_all_uses_with(result)
        lifter.graph.erase_node(user)
    lifter.graph.erase_node(node)
