"""Columns and heads: which groups they mean, by what they are ranked, whose names they go by."""

# mypy: disable-error-code="index, operator"
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models.errors import Code, Failure
from tests.engine.prune.pruning import chain, prune
from tests.engine.subjects import lifted, subject_of
from tests.networks import NETWORKS
from worker.engine.graph.channels import analyse
from worker.engine.graph.roles import consumers, head_units
from worker.engine.prune.structure import parts_of


def test_columns_are_ranked_by_the_weights_that_read_them(tmp_path: Path) -> None:
    """Rows say that unit 0 matters least, columns that unit 2 does."""
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 1.0], [50.0, 50.0], [90.0, 90.0]]))
        network[2].weight.copy_(torch.tensor([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0]]))
    by = {}
    for structure in ("channels", "columns"):
        subject = lifted(network, (torch.zeros(2, 2),), tmp_path)
        prune(subject, tmp_path, structure=structure, amount={"channels": 0.34}, criterion="l1", round_to=1)
        by[structure] = subject.graph.get_submodule("2").weight[0].tolist()
    assert by == {"channels": [5.0, 1.0], "columns": [9.0, 5.0]}


def test_columns_go_by_the_names_of_the_layers_that_read_them(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8, 8)
    details = prune(
        subject, tmp_path, structure="columns", round_to=1, layers=[{"match": "4", "amount": {"channels": 0.5}}]
    )
    assert [(row["id"], row["layers"]) for row in details["groups"]] == [("2", ["4"])]
    assert subject.graph.get_submodule("4").in_features == 4


@pytest.mark.parametrize(
    ("name", "count"), [("vit", 2), ("bert", 2), ("resnet18", 0), ("lstm", 0), ("tied_language_model", None)]
)
def test_heads_are_the_units_that_stack_products_of_activations(name: str, count: int | None) -> None:
    channels = analyse(subject_of(name).graph, NETWORKS[name]()[1])
    heads = head_units(channels)
    found = [group for group in channels.groups if group.units[0] in heads]
    assert all(unit in heads for group in found for unit in group.units)
    assert all("attn" in group.id or "attention" in group.id or "self_attn" in group.id for group in found), found
    if count is not None:
        assert len(found) == count


def test_only_heads_go_when_heads_are_asked_for(tmp_path: Path) -> None:
    subject = subject_of("vit")
    before = {name: parameter.shape for name, parameter in subject.graph.named_parameters()}
    details = prune(subject, tmp_path, structure="heads", amount={"channels": 0.5}, round_to=1)
    assert {row["units_before"] for row in details["groups"]} == {4}
    assert sum(row["units_after"] for row in details["groups"]) == 4
    changed = {name for name, shape in before.items() if dict(subject.graph.named_parameters())[name].shape != shape}
    assert changed
    assert all("attn" in name for name in changed), changed


def test_a_network_without_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="The network has no heads that can be removed") as raised:
        prune(subject_of("resnet18"), tmp_path, structure="heads", amount={"channels": 0.5})
    assert raised.value.code is Code.NOTHING_TO_PRUNE


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_that_reads_a_group_loses_input_features_with_it(name: str) -> None:
    channels = analyse(subject_of(name).graph, NETWORKS[name]()[1])
    for part in parts_of(channels, "columns"):
        assert part.layers == consumers(channels, part.group) != ()
        assert {member.parameter.rpartition(".")[0] for member in part.scored.members} == set(part.layers)
