"""Multiply-accumulates and parameters, by hand and against PyTorch's own counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.engine.graph.test_traps import CASES
from tests.engine.subjects import lifted, subject_of
from tests.networks import NETWORKS, export_pt2
from worker.engine.graph.cost import macs, parameters
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.ingest.trace import trace

RECURRENT = {"lstm", "gru"}


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - RECURRENT))
def test_the_total_is_half_of_what_pytorch_counts_as_operations(name: str) -> None:
    module, inputs = NETWORKS[name]()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    counted = macs(subject_of(name).graph, inputs)
    assert sum(counted.values()) * 2 * inputs[0].shape[0] == counter.get_total_flops()


@pytest.mark.parametrize("name", ["vit", "bert", "mobilenet_v3", "two_towers", "tied_language_model"])
def test_the_trial_counts_operators_as_pytorch_does(name: str, tmp_path: Path) -> None:
    """The rows of the registry, before calls become layers."""
    module, inputs = NETWORKS[name]()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    program = read_network(export_pt2(module, inputs, tmp_path / "x.pt2"))
    assert trace(program, inputs[0].shape[0]).macs * 2 == counter.get_total_flops()


def test_the_trial_counts_recurrent_operators(tmp_path: Path) -> None:
    for name in sorted(RECURRENT):
        module, inputs = NETWORKS[name]()
        program = read_network(export_pt2(module, inputs, tmp_path / "x.pt2"))
        layers = macs(lift(program).graph, inputs)
        assert trace(program, inputs[0].shape[0]).macs == sum(layers.values()) * inputs[0].shape[0]


@pytest.mark.parametrize("name", ["grouped_convolution", "depthwise_transposed_convolution", "grouped_queries"])
def test_odd_layers_count_as_pytorch_counts_them(name: str, tmp_path: Path) -> None:
    make, x, _ = CASES[name]
    module = make().eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(x)
    counted = macs(lifted(module, (x,), tmp_path).graph, (x,))
    assert sum(counted.values()) * 2 * x.shape[0] == counter.get_total_flops()


def test_a_recurrent_layer_counts_its_matrices_at_every_step() -> None:
    _, inputs = NETWORKS["lstm"]()
    steps, gates, hidden, features = 10, 4, 32, 24
    first = 2 * gates * hidden * (features + hidden)
    second = 2 * gates * hidden * (2 * hidden + hidden)
    assert macs(subject_of("lstm").graph, inputs) == {"lstm": steps * (first + second), "fc": 64 * 5}


def test_a_layer_called_twice_counts_twice() -> None:
    _, inputs = NETWORKS["two_towers"]()
    assert macs(subject_of("two_towers").graph, inputs)["shared"] == 2 * 24 * 24


def test_macs_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    graph = lifted(nn.Sequential(nn.Linear(6, 5)), (torch.zeros(2, 6),), tmp_path).graph
    assert macs(graph, (torch.zeros(2, 6),)) == macs(graph, (torch.zeros(7, 6),)) == {"0": 30}


def test_shared_parameters_count_once() -> None:
    module, _ = NETWORKS["tied_language_model"]()
    assert parameters(subject_of("tied_language_model").graph) == sum(p.numel() for p in module.parameters())
