"""Recurrent operators: what native code would read past its end with, and how large what they give is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.errors import Failure
from tests.engine.ingest.archives import Archive
from tests.networks import export_pt2, lstm
from worker.engine.ingest.read import read_network
from worker.engine.ingest.recurrent import run_on_shapes


def test_recurrent_weights_of_a_wrong_size_are_refused_before_native_code_sees_them(tmp_path: Path) -> None:
    archive = Archive.of(export_pt2(*lstm(), tmp_path / "lstm.pt2").read_bytes())
    meta = archive.weights["config"]["lstm.weight_hh_l1"]["tensor_meta"]
    assert [size["as_int"] for size in meta["sizes"]] == [128, 32]
    meta["sizes"] = [{"as_int": 8}, {"as_int": 32}]
    with pytest.raises(Failure) as caught:
        read_network(archive.write(tmp_path / "x.pt2"))
    assert "weight 9 has the shape (8, 32), not (128, 32)" in caught.value.message


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"batch_first": True, "bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_sizes_from_two_steps_are_those_of_all(kind: Any, settings: dict[str, Any], length: int) -> None:
    layer, batch_first = kind(3, 5, **settings), settings.get("batch_first", False)
    inputs = torch.randn(4, length, 3) if batch_first else torch.randn(length, 4, 3)
    runs = layer.num_layers * (1 + layer.bidirectional)
    states = [torch.zeros(runs, 4, 5)] * (2 if kind is nn.LSTM else 1)
    name = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[kind]
    options = (True, layer.num_layers, 0.0, False, layer.bidirectional, batch_first)
    given = (inputs, states if kind is nn.LSTM else states[0], layer._flat_weights, *options)
    target = getattr(torch.ops.aten, name).input
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = run_on_shapes(target, given, {})
    assert [tuple(each.shape) for each in found] == [tuple(each.shape) for each in target(*given)]
