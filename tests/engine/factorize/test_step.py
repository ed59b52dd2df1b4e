"""The factorize step on lifted networks: what it takes apart, what it says, what it leaves, and its replay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.factorize_rules import FACTORABLE_KINDS
from models.factors import resolve_factorize
from models.foretell import Bounds, foretell
from models.spec import FactorizeStep, PruneStep
from tests.engine.factorize.products import multiplied_out
from tests.engine.prune.pruning import prune
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from tests.networks import NETWORKS
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.factorize.step import replay, run
from worker.engine.graph.cost import macs, parameters
from worker.engine.graph.describe import describe_network
from worker.engine.measure.metrics import as_outputs
from worker.engine.subject import Subject

SWEEPS = os.environ.get("MODELPRESS_SWEEPS") == "full"


def step(**fields: Any) -> FactorizeStep:
    return FactorizeStep.model_validate({"step": "factorize", **fields})


def factorized(subject: Subject, folder: Path, **fields: Any) -> dict[str, Any]:
    asked = resolve_factorize(step(**fields))
    data = dataset_for(subject, folder) if asked.fit == "outputs" else None
    return run(subject, asked, run_in(folder, asked, data=data))


def sizes(subject: Subject) -> dict[str, int]:
    stored = [*subject.graph.parameters(), *subject.graph.buffers()]
    return {
        "parameters": parameters(subject.graph),
        "macs": sum(macs(subject.graph, subject.example_inputs()).values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
    }


class Stack(nn.Module):
    """One layer of each kind that could be meant, and those that are left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.mix = nn.Conv2d(24, 32, 1)
        self.wide = nn.Conv2d(32, 40, 3, stride=2, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(40, 24, 2, 2)
        self.fc = nn.Linear(24, 20)
        self.tied = nn.Linear(20, 20)
        self.also = nn.Linear(20, 20)
        self.also.weight = self.tied.weight
        self.last = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.mix(self.depthwise(self.enter(x))))
        x = torch.relu(self.up(torch.relu(self.wide(x)))).mean((2, 3))
        x = self.also(torch.relu(self.tied(self.fc(x))))
        y: Tensor = self.last(x)
        return y


def stack(folder: Path) -> Subject:
    torch.manual_seed(0)
    return lifted(Stack(), (torch.randn(2, 3, 12, 12),), folder)


def test_layers_get_parts_under_names_that_can_be_guessed(tmp_path: Path) -> None:
    subject = stack(tmp_path)
    bias = subject.graph.get_parameter("up.bias")
    details = factorized(subject, tmp_path, rank={"count": 6})
    names = {name for name, module in subject.graph.named_modules() if type(module).__name__ in FACTORABLE_KINDS}
    parts = {row["name"]: row["parts"] for row in details["layers"]}
    assert parts == {
        "enter": ["enter.0", "enter.1"],
        "mix": ["mix.0", "mix.1"],
        "wide": ["wide.0", "wide.1", "wide.2"],
        "up": ["up.0", "up.1", "up.2"],
        "fc": ["fc.0", "fc.1"],
    }
    assert {name for own in parts.values() for name in own} | {"depthwise", "tied", "also", "last"} == names
    assert details["left_whole"] == {
        "depthwise": "its channels are in groups, which have little rank to spare",
        "tied": "its parameters are those of also too",
        "also": "its parameters are those of tied too",
        "last": "rank 4 of 4 saves nothing",
    }
    assert subject.graph.get_parameter("up.2.bias") is bias
    assert subject.renames["up.bias"] == "up.2.bias"
    strides = [subject.graph.get_submodule(name).stride for name in ("wide.0", "wide.1", "wide.2")]
    assert strides == [(1, 1), (2, 2), (1, 1)]
    for row in details["layers"]:
        own = [subject.graph.get_parameter(f"{name}.weight").numel() for name in row["parts"]]
        assert row["parameters"] == sum(own) < row["parameters_before"]
        assert row["macs"] < row["macs_before"]
        assert 0 < row["energy"] < 1
    counted = macs(subject.graph, subject.example_inputs())
    assert all(row["macs"] == sum(counted[name] for name in row["parts"]) for row in details["layers"])


METHODS = ("tucker", "channels", "spatial", "cp")
SAMPLE = [*(("stack", method) for method in METHODS), ("vit", "tucker"), ("gru", "channels")]
FULL = [(name, method) for name in ("stack", *NETWORKS) for method in METHODS]


@pytest.mark.parametrize(("name", "method"), FULL if SWEEPS else SAMPLE)
def test_the_network_is_the_one_with_the_product_in_each_layers_place(name: str, method: str, tmp_path: Path) -> None:
    subject, twin = (stack(tmp_path) if name == "stack" else subject_of(name) for _ in range(2))
    details = factorized(subject, tmp_path, method=method, rank={"ratio": 0.1 if method == "cp" else 0.3}, round_to=1)
    with torch.no_grad():
        for row in details["layers"]:
            layer = twin.graph.get_submodule(row["name"])
            weights = [subject.graph.get_parameter(f"{part}.weight") for part in row["parts"]]
            product = multiplied_out(layer, weights, row["method"])
            lost = (layer.weight - product).square().sum() / layer.weight.square().sum()  # type: ignore[operator]
            assert float(1 - lost) == pytest.approx(row["energy"], abs=1e-5)
            layer.weight.copy_(product)  # type: ignore[operator]
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        networks = (twin.graph, subject.graph, subject.original)
        (expected, found, before) = (as_outputs(network(*inputs))[0] for network in networks)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(expected, before, atol=1e-3)
    assert parameters(subject.graph) < parameters(twin.graph)


@pytest.mark.parametrize("method", ["tucker", "channels", "spatial"])
def test_every_layer_keeps_the_energy_that_is_asked_for_with_the_fewest_ranks(method: str, tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    details = factorized(subject, tmp_path, method=method, rank={"energy": 0.6}, round_to=2)
    assert details["layers"]
    for row in details["layers"]:
        assert row["energy"] >= 0.6
        assert all(rank % 2 == 0 or rank == full for rank, full in zip(row["rank"], row["rank_before"], strict=True))
    matrices = [row for row in details["layers"] if row["method"] != "tucker"]
    for row in matrices:
        weight = subject.original.get_parameter(f"{row['name']}.weight").double()
        matrix = weight.permute(0, 3, 1, 2).flatten(2) if row["method"] == "spatial" else weight
        squares = torch.linalg.svdvals(
            matrix.reshape(-1, matrix.shape[-1]) if row["method"] == "spatial" else matrix.flatten(1)
        ).square()
        shares = squares.cumsum(0) / squares.sum()
        assert row["energy"] == pytest.approx(float(shares[row["rank"][0] - 1]), abs=1e-5)
        assert row["rank"][0] <= 2 or float(shares[row["rank"][0] - 3]) < 0.6


AMOUNTS: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"amount": {"parameters": 0.4}, "round_to": 2}),
    ("resnet18", {"amount": {"macs": 0.3}, "method": "spatial", "round_to": 1}),
    ("vgg", {"amount": {"bytes": 0.5}, "method": "channels", "round_to": 2}),
    ("vit", {"amount": {"macs": 0.35}, "round_to": 2}),
    ("bert", {"amount": {"target": {"parameters": 15_000}}, "round_to": 1}),
    ("unet", {"amount": {"macs": 0.4}, "round_to": 2, "layers": [{"match": "enter.*", "rank": {"ratio": 0.5}}]}),
]


@pytest.mark.parametrize(("name", "fields"), AMOUNTS if SWEEPS else AMOUNTS[2:4])
def test_an_amount_of_the_whole_network_is_reached(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    subject = subject_of(name)
    before = sizes(subject)
    details = factorized(subject, tmp_path, **fields)
    after = sizes(subject)
    quantity = details["quantity"]
    assert details["reached"] == pytest.approx(1 - after[quantity] / before[quantity], abs=1e-6)
    assert details["reached"] == pytest.approx(details["asked"], abs=0.02)
    assert details["why_missed"] is None


def test_an_amount_that_cannot_be_reached_is_said_with_the_reason(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    asked = step(amount={"parameters": 0.99}, round_to=4)
    begun = run_in(tmp_path, asked)
    details = run(subject, asked, begun)
    (warning,) = begun.warnings
    assert warning.code == "amount_not_reached"
    assert "Asked to remove 99.0% of the parameters, removed " in warning.message
    assert "every layer that may be taken apart has its lowest rank" in warning.message
    assert details["why_missed"] == "every layer that may be taken apart has its lowest rank"
    assert {max(row["rank"]) for row in details["layers"]} == {4}


def test_where_less_is_lost_more_goes(tmp_path: Path) -> None:
    """Of two layers of one size the one with little rank gives all that an amount asks for."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(32, 32), nn.Linear(32, 32)
            self.low.weight.data = torch.randn(32, 4) @ torch.randn(4, 32)
            self.high.weight.data = torch.linalg.qr(torch.randn(32, 32))[0]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.high(torch.relu(self.low(x)))
            return y

    torch.manual_seed(0)
    subject = lifted(Two(), (torch.randn(2, 32),), tmp_path)
    details = factorized(subject, tmp_path, amount={"parameters": 0.35}, round_to=1)
    (row,) = details["layers"]
    assert (row["name"], row["rank"]) == ("low", [4])
    assert row["energy"] == pytest.approx(1.0)
    assert details["left_whole"] == {"high": "is whole at the amount asked for"}


def test_layers_may_be_skipped_or_have_a_rank_and_a_method_of_their_own(tmp_path: Path) -> None:
    layers = [
        {"match": "enter", "skip": True},
        {"match": "wide", "rank": {"count": 5}, "method": "spatial"},
        {"match": "fc", "rank": {"ratio": 0.25}},
    ]
    details = factorized(stack(tmp_path), tmp_path, rank={"count": 3}, layers=layers, round_to=1)
    rows = {row["name"]: row for row in details["layers"]}
    assert (rows["wide"]["rank"], rows["wide"]["method"], len(rows["wide"]["parts"])) == ([5], "spatial", 2)
    assert (rows["fc"]["rank"], rows["mix"]["rank"], rows["up"]["rank"]) == ([5], [3], [3, 3])
    assert details["left_whole"]["enter"] == "skipped by `layers`"
    details = factorized(stack(tmp_path), tmp_path, layers=[{"match": "fc", "rank": {"count": 4}}])
    assert [row["name"] for row in details["layers"]] == ["fc"]
    assert details["left_whole"]["mix"] == "no rank is asked of it"


def test_noise_around_a_few_directions_is_left_out_by_vbmf(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(60, 40)
            self.fc.weight.data = torch.randn(40, 5) @ torch.randn(5, 60) + 0.3 * torch.randn(40, 60)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return y

    torch.manual_seed(0)
    subject = lifted(One(), (torch.randn(2, 60),), tmp_path)
    details = factorized(subject, tmp_path, rank={"vbmf": True}, round_to=1)
    assert details["layers"][0]["rank"] == [5]


@pytest.mark.parametrize("name", ["resnet18", "vit", "gru", "vgg"] if SWEEPS else ["vgg"])
def test_fitted_to_outputs_they_are_nearer_than_fitted_to_weights(name: str, tmp_path: Path) -> None:
    """Layer by layer: of every layer alone, on what it read of the training samples."""
    subjects = {fit: subject_of(name) for fit in ("weights", "outputs")}
    details = {
        fit: factorized(subject, tmp_path, fit=fit, method="channels", rank={"ratio": 0.3}, round_to=1, **looked_at)
        for (fit, subject), looked_at in zip(subjects.items(), ({}, {"samples": 64}), strict=True)
    }
    assert details["outputs"]["samples"] == 64
    assert [row["rank"] for row in details["outputs"]["layers"]] == [
        row["rank"] for row in details["weights"]["layers"]
    ]
    data = dataset_for(subjects["weights"], tmp_path)
    inputs = data.train.drawn(64, 0)._read(data.train.drawn(64, 0).rows).inputs
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    class Keep(torch.fx.Interpreter):
        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            result = super().call_module(target, args, kwargs)
            if target in [row["name"] for row in details["weights"]["layers"]]:
                seen[target] = (args[0].clone(), result.clone())
            return result

    with torch.no_grad():
        Keep(subjects["weights"].original).run(*inputs)
        nearer = []
        for row in details["weights"]["layers"]:
            read, wanted = seen[row["name"]]
            off = {}
            for fit, subject in subjects.items():
                value = read
                for part in row["parts"]:
                    value = subject.graph.get_submodule(part)(value)
                off[fit] = float((value - wanted).square().sum())
            assert off["outputs"] <= off["weights"] * 1.001, row["name"]
            nearer.append(off["outputs"] < 0.99 * off["weights"])
    assert any(nearer)


def test_nothing_that_gets_smaller_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        factorized(subject_of("vit"), tmp_path, rank={"energy": 0.9999})
    assert caught.value.code == Code.NOTHING_TO_PRUNE
    assert "saves nothing" in caught.value.message


SAMPLED = [("unet", "tucker"), ("two_towers", "tucker"), ("resnet18", "cp")]


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in NETWORKS for method in ("tucker", "cp")] if SWEEPS else SAMPLED
)
def test_a_replay_and_a_checkpoint_bring_the_network_back(name: str, method: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    factorized(subject, tmp_path, method=method, rank={"ratio": 0.1 if method == "cp" else 0.25}, round_to=2)
    save_checkpoint(subject, [], tmp_path / "checkpoint.safetensors")
    restored = subject_of(name)
    restore_checkpoint(restored, tmp_path / "checkpoint.safetensors")
    own, other = dict(subject.graph.named_parameters()), dict(restored.graph.named_parameters())
    assert list(own) == list(other)
    assert all(torch.equal(own[key], other[key]) for key in own)
    assert [str(node) for node in subject.graph.graph.nodes] == [str(node) for node in restored.graph.graph.nodes]
    assert subject.renames == restored.renames
    again = subject_of(name)
    replay(again, subject.records[0])
    assert {key: value.shape for key, value in again.graph.named_parameters()} == {k: v.shape for k, v in own.items()}


FIXED: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"rank": {"ratio": 0.25}, "round_to": 2}),
    ("unet", {"rank": {"count": 5}, "method": "spatial"}),
    ("convnext", {"rank": {"ratio": 0.3}, "method": "channels", "round_to": 1}),
    ("bert", {"rank": {"count": 8}}),
    ("two_towers", {"rank": {"count": 2}}),
    ("resnet18", {"rank": {"ratio": 0.1}, "method": "cp", "round_to": 2}),
    ("gru", {"layers": [{"match": "conv", "rank": {"ratio": 0.2}}], "round_to": 1}),
]


@pytest.mark.parametrize(("name", "fields"), FIXED if SWEEPS else [FIXED[1], *FIXED[4:]])
def test_where_ranks_are_fixed_the_sizes_are_foretold_exactly(
    name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    subject = subject_of(name)
    (left,) = foretell([step(**fields)], describe_network(subject, "pt2"))
    factorized(subject, tmp_path, **fields)
    assert left.quantities == {quantity: Bounds(count, count) for quantity, count in sizes(subject).items()}


@pytest.mark.parametrize("fields", [{"rank": {"energy": 0.5}}, {"rank": {"vbmf": True}}, {"amount": {"macs": 0.3}}])
def test_else_the_sizes_are_within_what_is_foretold(fields: dict[str, Any], tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    (left,) = foretell([step(round_to=2, **fields)], describe_network(subject, "pt2"))
    factorized(subject, tmp_path, round_to=2, **fields)
    for quantity, count in sizes(subject).items():
        assert left.quantities[quantity].least <= count < left.quantities[quantity].most
    if "amount" in fields:
        assert left.asked["macs"] == pytest.approx(sizes(subject)["macs"], rel=0.03)


def test_after_a_cut_of_what_was_taken_apart_the_sizes_are_foretold_from_above_alone(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    asked = {"rank": {"ratio": 0.25}}
    pruned = PruneStep.model_validate({"step": "prune", "amount": {"channels": 0.5}})
    apart, cut = foretell([step(**asked), pruned], describe_network(subject, "pt2"))
    factorized(subject, tmp_path, **asked)
    prune(subject, tmp_path, amount={"channels": 0.5})
    for name, count in sizes(subject).items():
        assert cut.quantities[name] == Bounds(0, apart.quantities[name].most)
        assert 0 < count < cut.quantities[name].most
