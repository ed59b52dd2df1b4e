from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.architectures.table import ARCHITECTURES, SAMPLE
from tests.networks import export_pt2
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network


@pytest.mark.parametrize("name", SAMPLE)
def test_a_real_architecture_is_read_and_lifted_to_the_same_bits(name: str, tmp_path: Path) -> None:
    module, args = ARCHITECTURES[name]()
    subject = lift(read_network(export_pt2(module, args, tmp_path / "network.pt2")))
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        expected = module(*inputs)
        assert torch.equal(subject.graph(*inputs), expected)
    assert expected.std() > 1e-3
    assert {subject.renames.get(path, path) for path, _ in module.named_parameters()} == {
        path for path, _ in subject.graph.named_parameters()
    }
    subject.graph.train()
    subject.graph(*inputs).square().sum().backward()
    assert [path for path, value in subject.graph.named_parameters() if value.grad is None] == []
