"""Recurrent layers: what their states are tied to, and that half of them can go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.graph.cuts import halve_and_prove
from tests.engine.subjects import lifted
from tests.networks import randomised

SIGNAL = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.body = kind(12, 16, batch_first=True, **settings)
        width = (settings.get("proj_size") or 16) * (2 if settings.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x)[0])
        return found


@pytest.mark.parametrize(
    ("kind", "settings", "units"),
    [
        (nn.LSTM, {"num_layers": 2}, [16]),
        (nn.LSTM, {"num_layers": 2, "proj_size": 8}, [8, 16]),
        (nn.LSTM, {"proj_size": 8, "bidirectional": True, "bias": False}, [8, 16]),
        (nn.GRU, {"bidirectional": True}, [16]),
        (nn.RNN, {"nonlinearity": "relu"}, [16]),
        (nn.RNN, {"num_layers": 2}, [16]),
    ],
)
def test_hidden_and_projected_units_of_a_recurrent_layer_are_cut(
    kind: Any, settings: dict[str, Any], units: list[int], tmp_path: Path
) -> None:
    module = randomised(Body(kind, **settings))
    subject = lifted(module, (SIGNAL,), tmp_path)
    with torch.no_grad():
        assert torch.equal(module(SIGNAL), subject.graph(SIGNAL))
    halved = halve_and_prove(subject.graph, (SIGNAL,))
    assert sorted(len(group.units) for group in halved.channels.groups) == units
    body: Any = halved.after.get_submodule("body")
    assert (body.hidden_size, body.proj_size) == (8, settings.get("proj_size", 0) // 2)
    assert {name: getattr(body, name) for name in settings} == {**settings, **_halved(settings)}


def _halved(settings: dict[str, Any]) -> dict[str, int]:
    return {"proj_size": settings["proj_size"] // 2} if "proj_size" in settings else {}
