"""LSTM, GRU and plain recurrent networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx

from worker.engine.ingest.onnx.known import Known, Operand, PerBatch, shape_of, shapes_of
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten
_ORDER = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
"""Where torch's gates (input, forget, cell, output; reset, update, new) are among ONNX's (iofc; zrh)."""
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_TARGETS = {"LSTM": _A.lstm.input, "GRU": _A.gru.input, "RNN": _A.rnn_tanh.input}


def recurrent(site: Site) -> list[Operand]:
    """One layer over [time, batch, features], forward, in reverse or both. Gives [time, directions, batch, hidden] and
    the last states."""
    value = site.operand(0)
    reverse, directions = _check(site, value)
    hidden = shape_of(site.operand(2))[-1]
    batches = PerBatch([sizes[1] for sizes in shapes_of(value)])
    is_lstm = site.kind == "LSTM"
    states = [_state(site, place, directions, batches, hidden) for place in ((5, 6) if is_lstm else (5,))]
    output, *last = site.emit_several(
        _TARGETS[site.kind],
        site.emit(_A.flip.default, value, [0]) if reverse else value,
        states if is_lstm else states[0],
        _weights(site, directions, hidden),
        site.optional(3) is not None,
        1,
        0.0,
        False,
        directions == 2,
        False,
    )
    output = site.emit(_A.flip.default, output, [0]) if reverse else output
    if directions == 1:
        return [site.emit(_A.unsqueeze.default, output, 1), *last]
    wide = site.reshape(output, [(*sizes[:2], 2, hidden) for sizes in shapes_of(output)])
    return [site.emit(_A.permute.default, wide, [0, 2, 1, 3]), *last]


def _check(site: Site, value: Operand) -> tuple[bool, int]:
    """Refuse the variants that torch does not have. Returns whether it runs in reverse, and how many directions."""
    direction = site.maybe_text("direction") or "forward"
    if direction not in ("forward", "reverse", "bidirectional"):
        raise site.refuse("its direction is unknown")
    directions = 2 if direction == "bidirectional" else 1
    usual = _ACTIVATIONS[site.kind] * directions
    if site.texts("activations")[: len(usual)] not in ([], usual):
        raise site.refuse("its activations are not the usual ones")
    if site.maybe_reals("activation_alpha") or site.maybe_reals("activation_beta") or site.maybe_real("clip"):
        raise site.refuse("it clips, or changes its activations")
    site.must_be("input_forget", 0)
    site.must_be("layout", 0)
    site.maybe_integer("hidden_size")
    if site.kind == "GRU" and not site.flag("linear_before_reset"):
        raise site.refuse("`linear_before_reset` is 0, which torch's GRU does not compute; export a GRU of torch")
    if site.kind == "LSTM" and site.optional(7) is not None:
        raise site.refuse("it has peepholes")
    if site.rank(value) != 3:
        raise site.refuse("its input has not three dimensions")
    lengths = site.optional(4)
    time = shape_of(value)[0]
    if lengths is not None and not (
        isinstance(lengths, Known) and all(bool((each == time).all()) for each in lengths.values)
    ):
        raise site.refuse("it has sequences of different lengths")
    return direction == "reverse", directions


def _state(site: Site, place: int, directions: int, batches: PerBatch, hidden: int) -> Operand:
    """The first state [directions, batch, hidden]; zeros where none is given, also where these are of one sample."""
    given = site.optional(place)
    if given is None or (isinstance(given, Known) and all(not bool(each.any()) for each in given.values)):
        return site.emit(_A.zeros.default, [directions, batches, hidden])
    if site.builder.fixed_batch is not None and {sizes[1] for sizes in shapes_of(given)} == {1}:
        return site.emit(_A.expand.default, given, [-1, batches, -1])
    return given


def _weights(site: Site, directions: int, hidden: int) -> list[fx.Node]:
    """torch's parameters from W [directions, gates * hidden, in], R [directions, gates * hidden, hidden] and
    B [directions, 2 * gates * hidden]."""
    order = _ORDER[site.kind]
    rows = torch.cat([torch.arange(gate * hidden, (gate + 1) * hidden) for gate in order])
    inner, recurrent_, bias = site.known(1), site.known(2), site.optional(3)
    expected = (directions, len(rows))
    if not (inner.constant and recurrent_.constant) or any(
        tuple(each.tensor.shape[:2]) != expected or each.tensor.dim() != 3 for each in (inner, recurrent_)
    ):
        raise site.refuse("its weights have not the sizes of its hidden state")
    parts: list[tuple[Known, str, Callable[..., Tensor]]] = [
        (inner, "weight_ih", lambda tensor, one: tensor[one][rows]),
        (recurrent_, "weight_hh", lambda tensor, one: tensor[one][rows]),
    ]
    if bias is not None:
        both = site.known(3)
        if not both.constant or tuple(both.tensor.shape) != (directions, 2 * len(rows)):
            raise site.refuse("its bias has not the size of its hidden state")
        parts += [
            (both, "bias_ih", lambda tensor, one: tensor[one, : len(rows)][rows]),
            (both, "bias_hh", lambda tensor, one: tensor[one, len(rows) :][rows]),
        ]
    weights: list[fx.Node] = []
    for one, suffix in enumerate(("", "_reverse")[:directions]):
        for known, kind, take in parts:
            leaf = f"{kind}_l0{suffix}"
            own = known.form(f"{site.kind} {leaf}", partial(take, one=one))
            weights.append(site.parameter(own, leaf))
    return weights
