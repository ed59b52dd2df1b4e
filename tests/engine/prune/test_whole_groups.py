"""Whole groups: which can go, that what is left is the network with them silenced, and what the step makes of it."""

# mypy: disable-error-code="index, operator, union-attr"
from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.foretell import foretell
from models.spec import PruneStep
from tests.engine.prune.pruning import prune
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from tests.networks import NETWORKS, randomised
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.bypass import Bypasses, bypass
from worker.engine.graph.channels import analyse
from worker.engine.graph.cost import macs, parameters
from worker.engine.graph.describe import describe_network
from worker.engine.graph.lift import lift
from worker.engine.graph.maskcheck import prove
from worker.engine.ingest.read import read_network
from worker.engine.prune.step import run
from worker.engine.subject import Subject
from worker.engine.train.step import run as finetune

BRANCHED = {
    "resnet18": [["layer1.0.conv1"], ["layer1.1.conv1"], ["layer2.0.conv1"]],
    "resnet50": [["layer1.0.conv1", "layer1.0.conv2"], ["layer1.1.conv1", "layer1.1.conv2"]],
    "mobilenet_v3": [["blocks.0.expand.0", "blocks.0.se.reduce"], ["blocks.0.se.reduce"]],
    "convnext": [["stage1.0.pwconv1"], ["stage1.1.pwconv1"]],
    "vit": [["blocks.0.attn.qkv"], ["blocks.0.mlp.0"]],
    "bert": [["layers.0.attention.query"], ["layers.0.intermediate"]],
}


@pytest.mark.parametrize("name", BRANCHED)
def test_groups_of_a_branch_go_together(name: str) -> None:
    channels = analyse(subject_of(name).graph, NETWORKS[name]()[1])
    found = [[group.id for group in branch.groups] for branch in Bypasses(channels).branches()]
    assert found[: len(BRANCHED[name])] == BRANCHED[name]


@pytest.mark.parametrize("name", ["vgg", "densenet", "unet", "lstm", "gru", "two_towers"])
def test_where_nothing_goes_around_a_group_it_stays(name: str) -> None:
    channels = analyse(subject_of(name).graph, NETWORKS[name]()[1])
    assert Bypasses(channels).branches() == []
    assert not Bypasses(channels).can_go(channels.groups[0].units)


@pytest.mark.parametrize("name", BRANCHED)
def test_without_its_branches_a_network_is_the_one_with_them_silenced(name: str) -> None:
    original = subject_of(name).graph
    inputs = NETWORKS[name]()[1]
    channels = analyse(original, inputs)
    found = Bypasses(channels).branches()
    expected = original(*inputs)
    for units in (found[0].units, found[-1].units, found[0].units + found[-1].units):
        graph = copy.deepcopy(original)
        again = analyse(graph, inputs)
        bypass(again, units)
        assert prove(original, again, sorted(units), graph, inputs) <= 1e-5
        assert parameters(graph) < parameters(original)
        got = graph(*inputs)
        assert (got - expected).abs().max() > 1e-3 * expected.abs().max(), "the branch made a difference"
        lost = {name for name, _ in original.named_modules()} - {name for name, _ in graph.named_modules()}
        assert lost, "its layers are gone"
        graph.train()(*inputs).sum().backward()


def test_a_bias_and_a_normalisation_leave_one_number_a_channel(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1)
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head(y + self.norm(self.b(self.a(y).relu())))  # type: ignore[no-any-return]

    network = randomised(Block())
    subject = lifted(network, (torch.randn(2, 1, 5, 5),), tmp_path)
    details = prune(subject, tmp_path, structure="groups", amount={"parameters": 0.5})
    assert [(row["id"], row["units_before"], row["units_after"]) for row in details["groups"]] == [("a", 4, 0)]
    assert {name for name, _ in subject.graph.named_children()} == {"stem", "head"}
    norm = network.norm
    expected = (network.b.bias - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    (left,) = (p for name, p in subject.graph.named_parameters() if name.startswith("left_by_"))
    torch.testing.assert_close(left.flatten(), expected)
    assert details["left"] == parameters(subject.graph) == (3 + 3) + (6 + 2) + 3


@pytest.mark.parametrize("quantity", ["parameters", "macs", "bytes", "channels"])
def test_the_amount_is_counted_on_the_network_itself(quantity: str, tmp_path: Path) -> None:
    subject = subject_of("resnet50")
    details = prune(subject, tmp_path, structure="groups", amount={quantity: 0.3})
    tensors = (*subject.graph.parameters(), *subject.graph.buffers())
    counts = {
        "parameters": parameters(subject.graph),
        "macs": sum(macs(subject.graph, subject.example_inputs()).values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "channels": sum(row["units_after"] for row in details["groups"]),
    }
    assert details["left"] == counts[quantity]
    assert details["mask_check"] <= 1e-5
    assert {row["units_after"] for row in details["groups"]} > {0}
    assert details["why_missed"] is None or details["why_missed"].startswith("the next step, all of ")


def test_the_branch_that_scores_least_goes_first(tmp_path: Path) -> None:
    subject = subject_of("vit")
    with torch.no_grad():
        for name, parameter in subject.graph.named_parameters():
            if name.startswith("blocks.1.mlp"):
                parameter.mul_(0.01)
    details = prune(subject, tmp_path, structure="groups", amount={"channels": 0.45}, criterion="l1")
    gone = [row["id"] for row in details["groups"] if row["units_after"] == 0]
    assert "blocks.1.mlp.0" in gone
    kept = subject_of("vit")
    skip = [{"match": "blocks.1.mlp.*", "skip": True}]
    prune(kept, tmp_path, structure="groups", amount={"channels": 0.6}, layers=skip)
    assert kept.graph.get_submodule("blocks.1.mlp.0").weight.shape[0] == 96


def test_it_is_replayed_checkpointed_trained_and_sent_again(tmp_path: Path) -> None:
    step = PruneStep.model_validate(
        {
            "step": "prune",
            "structure": "groups",
            "amount": {"channels": 0.6},
            "schedule": {"rounds": 2, "curve": "linear", "batch_size": 32, "loss": "distill"},
        }
    )
    subject = subject_of("resnet18")
    begun = run_in(tmp_path, step, data=dataset_for(subject, tmp_path, 40))
    begun.train, begun.step_index = finetune, 0
    details = run(subject, step, begun)
    assert [row["units_removed"] > 0 for row in details["rounds"]] == [True, True]
    save_checkpoint(subject, [], tmp_path / "after.safetensors")
    again = subject_of("resnet18")
    restore_checkpoint(again, tmp_path / "after.safetensors")
    inputs = subject.example_inputs(3)
    assert torch.equal(again.graph(*inputs), subject.graph(*inputs))
    export_pt2(subject.graph, subject, tmp_path / "sent.pt2")
    back: Subject = lift(read_network(tmp_path / "sent.pt2"))
    torch.testing.assert_close(back.graph(*inputs), subject.graph(*inputs))
    prune(back, tmp_path, amount={"macs": 0.3}, round_to=1)


def test_masks_of_layers_that_go_are_forgotten_and_the_others_kept(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    weights = {name: p for name, p in subject.graph.named_parameters() if p.dim() == 4}
    subject.masks = {name: torch.rand_like(weight) > 0.5 for name, weight in weights.items()}
    before = dict(subject.masks)
    prune(subject, tmp_path, structure="groups", amount={"channels": 0.5})
    there = dict(subject.graph.named_parameters())
    assert set(subject.masks) == {name for name in before if name in there} < set(before)
    assert all(torch.equal(mask, before[name]) for name, mask in subject.masks.items())


def test_sizes_after_it_are_foretold_from_above_alone(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    network = describe_network(subject, "pt2")
    assert next(group.id for group in network.groups if group.whole) == "layer1.0.conv1"
    channels = PruneStep.model_validate({"step": "prune", "amount": {"channels": 0.5}})
    groups = PruneStep.model_validate({"step": "prune", "amount": {"macs": 0.3}, "structure": "groups"})
    first, second, third = foretell([channels, groups, channels], network)
    assert {bounds.least for bounds in (*second.units, *second.quantities.values())} == {0}
    assert [bounds.most for bounds in second.units] == [bounds.most for bounds in first.units]
    assert {name: bounds.most for name, bounds in second.quantities.items()} == {
        name: bounds.most for name, bounds in first.quantities.items()
    }
    assert third == replace(second, asked={})
    (alone,) = foretell([groups], network)
    prune(subject, tmp_path, structure="groups", amount={"macs": 0.3})
    left = sum(macs(subject.graph, subject.example_inputs()).values())
    assert alone.quantities["parameters"].most > parameters(subject.graph)
    assert alone.quantities["macs"].most > left == pytest.approx(alone.asked["macs"], rel=0.1)


def test_a_network_without_branches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no groups that can be removed as a whole") as raised:
        prune(subject_of("vgg"), tmp_path, structure="groups", amount={"channels": 0.5})
    assert raised.value.code is Code.NOTHING_TO_PRUNE
