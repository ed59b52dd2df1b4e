"""What native code would read past its end with or never end on, and how large what recurrent operators give is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.errors import Code, Failure
from tests.engine.ingest.archives import Archive
from tests.networks import export_pt2, lstm
from worker.engine.ingest.native import run_on_shapes
from worker.engine.ingest.read import read_network


def test_recurrent_weights_of_a_wrong_size_are_refused_before_native_code_sees_them(tmp_path: Path) -> None:
    archive = Archive.of(export_pt2(*lstm(), tmp_path / "lstm.pt2").read_bytes())
    meta = archive.weights["config"]["lstm.weight_hh_l1"]["tensor_meta"]
    assert [size["as_int"] for size in meta["sizes"]] == [128, 32]
    meta["sizes"] = [{"as_int": 8}, {"as_int": 32}]
    with pytest.raises(Failure) as caught:
        read_network(archive.write(tmp_path / "x.pt2"))
    assert "weight 9 has the shape (8, 32), not (128, 32)" in caught.value.message


@pytest.mark.parametrize(
    ("layer", "is_read"),
    [
        (nn.ConvTranspose1d(4, 4, 3, stride=8000), False),
        (nn.ConvTranspose1d(4, 4, 4000, stride=8000), False),
        (nn.ConvTranspose1d(4, 4, 3, stride=40, dilation=20), True),
        (nn.ConvTranspose1d(4, 4, 1, stride=16), True),
        (nn.ConvTranspose1d(4, 4, 512, stride=256), True),
    ],
)
def test_a_transposed_convolution_on_which_native_code_crashes_is_refused(
    layer: nn.Module, is_read: bool, tmp_path: Path
) -> None:
    path = export_pt2(layer, (torch.randn(2, 4, 16),), tmp_path / "x.pt2")
    if is_read:
        read_network(path)
        return
    with pytest.raises(Failure, match="leaves gaps") as caught:
        read_network(path)
    assert caught.value.code is Code.NETWORK_REJECTED


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
    expected = target(*given)
    assert [tuple(each.shape) for each in found] == [tuple(each.shape) for each in expected]
    assert found[0].stride() == expected[0].stride()
