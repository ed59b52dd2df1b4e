"""Layers of 8-bit weights whose inputs become 8-bit integers at run time, with the range they then have.

Each is an operator of our own with the arithmetic of the ONNX Runtime kernel it is written as: DynamicQuantizeLinear
with MatMulInteger, and DynamicQuantizeLSTM. The range is that of the whole tensor, so a sample's result depends a
little on the samples beside it, here as there. Weights are unsigned integers around 128: on a CPU without VNNI the
kernels for signed ones saturate their sums of two products, those for unsigned ones are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

LARGEST = 255
MIDDLE = 128
"""The zero point of every weight."""

_EXACT_INPUTS = 2**24 // (LARGEST * MIDDLE)
"""Sums of so many products are exact in single precision."""


def to_integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` as integers less their zero point (in floats, between -255 and 255), and their scale.

    ONNX DynamicQuantizeLinear: `scale = (max - min) / 255` with the range widened to hold zero, `zero_point =
    round(-min / scale)`, ties to even. A tensor that is all zero has scale 1.
    """
    low, high = torch.aminmax(x)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / LARGEST
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / scale).clamp(0, LARGEST)
    return torch.clamp(torch.round(x / scale) + zero_point, 0, LARGEST) - zero_point, scale


def dynamic_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [..., in] with `weight` uint8 [in, out] and `scale` [out]. Products are summed exactly."""
    integers, own = to_integers(x)
    dtype = torch.float32 if weight.shape[0] <= _EXACT_INPUTS else torch.float64
    product = (integers.to(dtype) @ (weight.to(dtype) - MIDDLE)).to(torch.float32) * (own * scale)
    return product if bias is None else product + bias


def dynamic_lstm(
    x: Tensor,
    hidden: Tensor | None,
    cell: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    state_weight: Tensor,
    state_scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of an LSTM, its gates in the order of ONNX: input, output, forget, cell.

    `x` [time, batch, in]; `hidden` and `cell` [directions, batch, size], or zeros; `weight` uint8 [directions, in,
    4 size] and `state_weight` [directions, size, 4 size] with scales [directions, 4 size]; `bias` [directions, 8 size],
    for the inputs and for the states. The inputs of all steps share one range, the states of each step another: those
    of the whole batch with one thread, while ONNX Runtime gives each of its threads a part of the batch.
    Returns [time, directions, batch, size] and the last `hidden` and `cell`.
    """
    sides = weight.shape[0]
    zeros = x.new_zeros(sides, x.shape[1], state_weight.shape[1])
    results = [
        _one_direction(
            x if side == 0 else x.flip(0),
            zeros[side] if hidden is None else hidden[side],
            zeros[side] if cell is None else cell[side],
            (weight[side], scale[side]),
            (state_weight[side], state_scale[side]),
            None if bias is None else bias[side].reshape(2, -1).sum(0),
        )
        for side in range(sides)
    ]
    outputs = [found if side == 0 else found.flip(0) for side, (found, _, _) in enumerate(results)]
    return torch.stack(outputs, 1), torch.stack([h for _, h, _ in results]), torch.stack([c for _, _, c in results])


def _one_direction(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight: tuple[Tensor, Tensor],
    state_weight: tuple[Tensor, Tensor],
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    for step in dynamic_linear(x, *weight, None):
        gates = step + dynamic_linear(hidden, *state_weight, None)
        into, out, forget, new = (gates if bias is None else gates + bias).chunk(4, 1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
        hidden = torch.sigmoid(out) * torch.tanh(cell)
        found.append(hidden)
    return torch.stack(found), hidden, cell


def _lstm_shapes(
    x: Tensor, hidden: Any, cell: Any, weight: Tensor, scale: Any, state_weight: Tensor, *rest: Any
) -> Any:
    sides, size = weight.shape[0], state_weight.shape[1]
    last = (sides, x.shape[1], size)
    return x.new_empty(x.shape[0], sides, x.shape[1], size), x.new_empty(last), x.new_empty(last)


_LIBRARY: Any = torch.library.Library("modelpress", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("dynamic_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")
_LIBRARY.define(
    "dynamic_lstm(Tensor x, Tensor? hidden, Tensor? cell, Tensor weight, Tensor scale, Tensor state_weight, "
    "Tensor state_scale, Tensor? bias) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("dynamic_linear", dynamic_linear, "CompositeExplicitAutograd")
_LIBRARY.impl("dynamic_lstm", dynamic_lstm, "CompositeExplicitAutograd")
_LIBRARY.impl("dynamic_lstm", _lstm_shapes, "Meta")
DYNAMIC_LINEAR = torch.ops.modelpress.dynamic_linear.default
DYNAMIC_LSTM = torch.ops.modelpress.dynamic_lstm.default


class DynamicLayer(nn.Module):
    """A layer that ranges its inputs at run time. `plain`: in operators that any torch knows."""

    plain = False


class DynamicLinear(DynamicLayer):
    """Of `nn.Linear`; its weight is stored inputs first."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", _unsigned(layer.weight, scale))
        self.register_buffer("weight_scale", scale.to(layer.weight.device).clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = (dynamic_linear if self.plain else DYNAMIC_LINEAR)(
            x, self.weight, self.weight_scale, self.bias
        )
        return product


class DynamicLSTM(DynamicLayer):
    """Of `nn.LSTM` without projections. In plain operators it computes in floating point from the same weights:
    rounding the states would unroll time."""

    def __init__(self, layer: nn.LSTM, scales: Mapping[str, Tensor]) -> None:
        """`scales` by the names of the weights."""
        super().__init__()
        self.batch_first, self.layers, self.sides = layer.batch_first, layer.num_layers, 1 + layer.bidirectional
        for index in range(layer.num_layers):
            names = [f"l{index}{side}" for side in ("", "_reverse")[: self.sides]]
            for kind in ("weight_ih", "weight_hh"):
                rows = [(getattr(layer, f"{kind}_{name}"), scales[f"{kind}_{name}"]) for name in names]
                weights = [_in_order(_unsigned(weight, scale), 1) for weight, scale in rows]
                steps = [_in_order(scale.to(weight.device), 0) for weight, scale in rows]
                self.register_buffer(f"{kind}_l{index}", torch.stack(weights))
                self.register_buffer(f"{kind}_l{index}_scale", torch.stack(steps))
            biases = [
                torch.cat([_in_order(getattr(layer, f"{kind}_{name}").detach(), 0) for kind in ("bias_ih", "bias_hh")])
                for name in names
                if layer.bias
            ]
            self.register_buffer(f"bias_l{index}", torch.stack(biases) if biases else None)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `nn.LSTM` does for a batch."""
        if self.plain:
            return self._in_floats(x, hx)
        y = x.transpose(0, 1) if self.batch_first else x
        hidden, cell = [], []
        for index in range(self.layers):
            own = slice(index * self.sides, (index + 1) * self.sides)
            h, c = (None, None) if hx is None else (hx[0][own], hx[1][own])
            y, h, c = DYNAMIC_LSTM(y, h, c, *self._stored(index))
            y = y.transpose(1, 2).flatten(2)
            hidden.append(h)
            cell.append(c)
        return y.transpose(0, 1) if self.batch_first else y, (torch.cat(hidden), torch.cat(cell))

    def _stored(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        names = ("weight_ih_l{}", "weight_ih_l{}_scale", "weight_hh_l{}", "weight_hh_l{}_scale", "bias_l{}")
        weight, scale, state_weight, state_scale, bias = (getattr(self, name.format(index)) for name in names)
        return weight, scale, state_weight, state_scale, bias

    def _in_floats(self, x: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        weights: list[Tensor] = []
        for index in range(self.layers):
            weight, scale, state_weight, state_scale, bias = self._stored(index)
            for side in range(self.sides):
                for integers, step in ((weight, scale), (state_weight, state_scale)):
                    floats = (integers[side].to(torch.float32) - MIDDLE) * step[side]
                    weights.append(_in_order(floats, 1, _BACK).t())
                if bias is not None:
                    weights += [_in_order(part, 0, _BACK) for part in bias[side].chunk(2)]
        if hx is None:
            batch, size = x.shape[0 if self.batch_first else 1], self._stored(0)[2].shape[1]
            zeros = x.new_zeros(self.layers * self.sides, batch, size)
            hx = (zeros, zeros)
        has_bias = self._stored(0)[4] is not None
        y, hidden, cell = torch.lstm(
            x, hx, weights, has_bias, self.layers, 0.0, False, self.sides == 2, self.batch_first
        )
        return y, (hidden, cell)


_THERE, _BACK = (0, 3, 1, 2), (0, 2, 3, 1)
"""torch has the gates input, forget, cell, output; ONNX has input, output, forget, cell."""


def _in_order(tensor: Tensor, dim: int, order: tuple[int, ...] = _THERE) -> Tensor:
    gates = tensor.chunk(4, dim)
    return torch.cat([gates[place] for place in order], dim)


def _unsigned(weight: Tensor, scale: Tensor) -> Tensor:
    """`weight` [out, in] on the grid of `scale` [out]: uint8 [in, out]."""
    integers = torch.round(weight.detach() / scale.to(weight.device)[:, None]).clamp(1 - MIDDLE, MIDDLE - 1)
    return (integers + MIDDLE).to(torch.uint8).t().contiguous()


def use_dynamic_layers(network: fx.GraphModule, scales: Mapping[str, Tensor]) -> None:
    """Put the layers whose weights `scales` names, by parameter, in the place of float ones. Their calls carry their
    name in `node.meta["int8_layer"]`."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, scale in scales.items():
        owner, _, weight = name.rpartition(".")
        layers.setdefault(owner, {})[weight] = scale
    for name, own in layers.items():
        layer = network.get_submodule(name)
        new = DynamicLSTM(layer, own) if isinstance(layer, nn.LSTM) else DynamicLinear(layer, own["weight"])  # type: ignore[arg-type]
        for child_name, child in layer.named_children():
            new.add_module(child_name, child)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, new)
    for node in network.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            node.meta["int8_layer"] = node.target
