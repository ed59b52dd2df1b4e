"""Embedding bags: read as look-ups and a reduction where they are rows of indices, refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import Code, Failure
from tests.engine.graph.cuts import halve_and_prove
from tests.engine.subjects import lifted
from tests.networks import randomised
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network

BATCH = torch.export.Dim.AUTO


class Bags(nn.Module):
    """Two features, each a few entries of a table: reduced, and weighed."""

    def __init__(self, mode: str, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(20, 8, mode=mode, padding_idx=padding)
        self.weighed = nn.EmbeddingBag(20, 8, mode="sum", padding_idx=padding)
        self.head = nn.Linear(8, 3)

    def forward(self, entries: Tensor, weights: Tensor) -> Tensor:
        both = self.table(entries) + self.weighed(entries, per_sample_weights=weights)
        scores: Tensor = self.head(both)
        return scores


def drawn(batch: int, length: int) -> tuple[Tensor, Tensor]:
    entries = torch.randint(0, 20, (batch, length))
    entries[0] = 2  # a bag of nothing but what `padding` is in some tests
    return entries, torch.rand(batch, length)


def written(module: nn.Module, args: tuple[Tensor, ...], path: Path, *, decomposed: bool = False) -> Path:
    program = torch.export.export(module.eval(), args, dynamic_shapes=tuple({0: BATCH} for _ in args))
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_rows_of_indices_give_what_the_bag_gives(
    mode: str, padding: int | None, length: int, decomposed: bool, tmp_path: Path
) -> None:
    module = randomised(Bags(mode, padding))
    path = written(module, drawn(3, length), tmp_path / "n.pt2", decomposed=decomposed)
    graph = lift(read_network(path)).graph
    for batch in (3, 4):
        given = drawn(batch, length)
        torch.testing.assert_close(graph(*given), module(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_tables_of_bags_are_embeddings_that_are_cut(mode: str, padding: int | None, tmp_path: Path) -> None:
    args = drawn(3, 5)
    subject = lifted(randomised(Bags(mode, padding)), args, tmp_path)
    layers = {name for name, layer in subject.graph.named_modules() if isinstance(layer, nn.Embedding)}
    assert layers == {"table", "weighed"}
    (group,) = halve_and_prove(subject.graph, args).channels.groups
    assert set(group.layers) == {"table", "weighed"}


class Begun(nn.Module):
    """Bags that begin where `offsets` says, or a range up to `until` before the end."""

    def __init__(self, offsets: list[int] | None = None, until: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 16))
        self.until = until
        self.register_buffer("offsets", None if offsets is None else torch.tensor(offsets))

    def forward(self, x: Tensor) -> Tensor:
        begins: Any = self.offsets
        if begins is None:
            begins = torch.arange(0, x.numel() - self.until, x.shape[1])
        bags: Tensor = F.embedding_bag(x.reshape(-1), self.weight, begins, mode="sum")
        return bags.sum(0, keepdim=True).expand(x.shape[0], 16)


@pytest.mark.parametrize(
    "module",
    [Begun([0, -(10**12), 3]), Begun([0, 3, 1]), Begun([0, 5, 10]), Begun(until=5)],
    ids=["far before the table", "backwards", "in order", "one bag fewer"],
)
def test_bags_that_begin_elsewhere_are_refused_before_anything_runs(module: nn.Module, tmp_path: Path) -> None:
    """Its native code reads wherever the offsets point."""
    path = written(module, (torch.randint(0, 8, (3, 5)),), tmp_path / "n.pt2")
    with pytest.raises(Failure, match="no rows of indices of one length") as caught:
        read_network(path)
    assert caught.value.code == Code.UNSUPPORTED_OP
