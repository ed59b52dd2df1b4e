# mypy: disable-error-code="no-any-return"
"""Files exported with one batch size: set free where other sizes can be shown to give the same results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import Code, Failure
from tests.engine.graph.cuts import halve_and_prove
from tests.networks import NETWORKS, randomised, resnet18
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network


def export_fixed(module: nn.Module, args: tuple[Tensor, ...], path: Path, core: bool = False) -> Path:
    program = torch.export.export(module, args)
    torch.export.save(program.run_decompositions() if core else program, path)
    return path


def test_a_fixed_batch_is_set_free_where_other_sizes_give_the_same_results(tmp_path: Path) -> None:
    program = read_network(export_fixed(*resnet18(), tmp_path / "x.pt2"))
    assert program.inputs[0].shape == [None, 3, 32, 32]
    assert program.outputs[0].shape == [None, 10]
    assert program.warnings == ()


@pytest.mark.parametrize(
    ("name", "batch", "core"),
    [
        ("vit", 1, False),
        ("vit", 1, True),
        ("bert", 2, True),
        ("lstm", 1, False),
    ],
)
def test_sizes_written_in_a_network_are_computed_from_the_batch(
    name: str, batch: int, core: bool, tmp_path: Path
) -> None:
    module, args = NETWORKS[name]()
    some = tuple(torch.cat([arg, arg])[:batch].clone() for arg in args)
    program = read_network(export_fixed(module, some, tmp_path / "x.pt2", core))
    assert [notice.code for notice in program.warnings] == ["batch_set_free"]
    graph = lift(program).graph
    for count in (1, 2, 5):
        inputs = tuple(torch.cat([arg, arg, arg])[:count] for arg in args)
        with torch.no_grad():
            torch.testing.assert_close(graph(*inputs), module(*inputs), rtol=1e-5, atol=1e-5)
    halve_and_prove(graph, args)


class Table(nn.Module):
    """A row of a parameter for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.table


class Averages(Table):
    """Every sample sees the others."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y - y.mean(0)


class Compares(Table):
    """The last sample sees the one before it."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y + F.pad(y, (0, 0, 1, 0))[:-1]


class Splits(Table):
    """Two rows of output for a sample."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y.view(4, 2)


@pytest.mark.parametrize("kind", [Table, Averages, Compares, Splits])
def test_a_fixed_batch_that_the_network_needs_is_refused_with_the_remedy(kind: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        read_network(export_fixed(randomised(kind()), (torch.randn(2, 4),), tmp_path / "x.pt2"))
    assert caught.value.code == Code.NETWORK_REJECTED
    assert "a batch of 2" in caught.value.message
    assert "Dim.AUTO" in caught.value.message
