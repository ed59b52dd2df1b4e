# mypy: disable-error-code="no-any-return"
"""Core ATen programs are read as what they were decomposed from: same layers, same bits, same channels."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from tests.engine.graph.cuts import halve_and_prove
from tests.networks import NETWORKS, export_pt2, randomised
from worker.engine.graph.channels import analyse
from worker.engine.graph.lift import compose, lift
from worker.engine.graph.ops import plain
from worker.engine.graph.ops.spelled import SPELLED
from worker.engine.graph.ops.table import OPS
from worker.engine.ingest.read import read_network
from worker.engine.subject import Subject

aten = torch.ops.aten
IMAGE = torch.randn(2, 8, 6, 6)
SEQUENCE = torch.randn(2, 6, 8)


def decomposed(module: nn.Module, args: tuple[Tensor, ...]) -> ExportedProgram:
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in args)
    owned = tuple(argument.clone() for argument in args)
    return torch.export.export(module.eval(), owned, dynamic_shapes=dynamic).run_decompositions()


def targets(graph: fx.Graph) -> set[str]:
    return {node.target.__name__ for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)}


@pytest.mark.parametrize("name", ["resnet18", "convnext", "vit", "bert", "two_towers"])
def test_a_decomposed_network_has_the_layers_and_groups_of_the_original(name: str, tmp_path: Path) -> None:
    module, args = NETWORKS[name]()
    program = decomposed(module, args)
    torch.export.save(program, tmp_path / "core.pt2")
    core = lift(read_network(tmp_path / "core.pt2"))
    plain = lift(read_network(export_pt2(module, args, tmp_path / "plain.pt2")))
    inputs = core.example_inputs(3)
    with torch.no_grad():
        for left, right in zip(_leaves(program.module()(*inputs)), _leaves(core.graph(*inputs)), strict=True):
            torch.testing.assert_close(
                left, right, rtol=1e-6, atol=1e-6
            )  # a linear map may have been a bmm: other sums
    assert layers(core) == layers(plain)
    found, wanted = (analyse(subject.graph, args).groups for subject in (core, plain))
    # Attention decomposed sees the same units; only which layer gives a group its name may differ.
    assert sorted((len(g.units), sorted(m.parameter for m in g.members)) for g in found) == sorted(
        (len(g.units), sorted(m.parameter for m in g.members)) for g in wanted
    )


def layers(subject: Subject) -> dict[str, str]:
    """Layers with parameters of their own, and their settings."""
    return {name: repr(layer) for name, layer in subject.graph.named_modules() if hasattr(layer, "weight")}


def _leaves(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


class Applies(nn.Module):
    """Two convolutions and a head around what is tried, so that channels could go."""

    def __init__(self, middle: nn.Module | Callable[[Tensor], Tensor], flat: bool = False) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(8, 8) if flat else nn.Conv2d(8, 8, 3, padding=1)
        self.middle = middle
        self.last: nn.Module = nn.Linear(8, 8) if flat else nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


CASES: dict[str, tuple[nn.Module | Callable[[Tensor], Tensor], bool, int]] = {
    # What is between the layers, whether they are linear, and how many of the eight channels between can go.
    "transposed convolution": (nn.ConvTranspose2d(8, 8, 2, 2), False, 16),
    "grouped convolution": (nn.Conv2d(8, 8, 3, padding=1, groups=8), False, 8),
    "pooling": (nn.MaxPool2d(2), False, 8),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(3), False, 8),
    "batch norm": (nn.BatchNorm2d(8), False, 8),
    "group norm": (nn.GroupNorm(2, 8), False, 4),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), False, 8),
    "instance norm without weights": (nn.InstanceNorm2d(8), False, 8),
    "prelu": (nn.PReLU(8), False, 8),
    "softmax over positions": (lambda x: torch.softmax(x, 2), False, 8),
    "log softmax over positions": (lambda x: torch.log_softmax(x, 3), False, 8),
    "zero padding": (lambda x: F.pad(x, (1, 1, 0, 1)), False, 8),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), False, 8),
    "conversion": (lambda x: x.double().float(), False, 8),
    "layer norm": (nn.LayerNorm(8), True, 8),
    "rms norm": (nn.RMSNorm(8), True, 8),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), True, 8),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_decomposed_can_still_be_cut(case: str, tmp_path: Path) -> None:
    middle, flat, units = CASES[case]
    module, args = randomised(Applies(middle, flat)), (SEQUENCE if flat else IMAGE,)
    program = decomposed(module, args)
    torch.export.save(program, tmp_path / "core.pt2")
    graph = lift(read_network(tmp_path / "core.pt2")).graph
    with torch.no_grad():
        assert torch.equal(graph(*args), program.module()(*args))
    halved = halve_and_prove(graph, args)
    assert sum(len(group.units) for group in halved.channels.groups) == units


def composition(target: Any, *args: Any) -> tuple[fx.Graph, fx.Node]:
    """A graph with one call whose first result, or only one, is the output, and that output after composition."""
    graph = fx.Graph()
    placed = [_placed(graph, argument) for argument in args]
    node = graph.call_function(target, tuple(placed))
    several = len(target._schema.returns) > 1
    graph.output(graph.call_function(operator.getitem, (node, 0)) if several else node)
    compose(graph)
    (output,) = (node for node in graph.nodes if node.op == "output")
    return graph, output.all_input_nodes[0]


def _placed(graph: fx.Graph, argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    node = graph.placeholder(f"x{len(graph.nodes)}")
    node.meta["shape"] = list(argument.shape)
    return node


HEADS = torch.randn(2, 2, 6, 4)
CALLS: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "_adaptive_avg_pool3d": (aten._adaptive_avg_pool3d.default, (IMAGE, [2, 2, 2]), "adaptive_avg_pool3d.default"),
    "_fused_rms_norm": (aten._fused_rms_norm.default, (SEQUENCE, [8], torch.ones(8), 1e-5), "rms_norm.default"),
    "_scaled_dot_product_flash_attention_for_cpu": (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        (HEADS, HEADS, HEADS, 0.0, True),
        "scaled_dot_product_attention.default",
    ),
    "_unsafe_index": (aten._unsafe_index.Tensor, (SEQUENCE, [None, torch.tensor([0, 2])]), "index.Tensor"),
    "_unsafe_view": (aten._unsafe_view.default, (SEQUENCE, [2, 48]), "reshape.default"),
    "max_pool3d_with_indices": (
        aten.max_pool3d_with_indices.default,
        (IMAGE, [2, 2, 2]),
        "max_pool3d.default",
    ),
    "_to_copy": (aten._to_copy.default, (SEQUENCE,), "clone.default"),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_forms_that_older_versions_write_give_the_same_numbers(name: str) -> None:
    target, args, expected = CALLS[name]
    graph, made = composition(target, *args)
    assert made.target.__name__ == expected  # type: ignore[union-attr]
    tensors = [tensor for arg in args for tensor in ([arg] if isinstance(arg, Tensor) else []) if tensor is not None]
    result = target(*args)
    result = result[0] if isinstance(result, tuple) else result
    if name == "_unsafe_index":
        return  # the positions are in a list, which the graph has as they are
    found = fx.GraphModule(nn.Module(), graph)(*tensors)
    torch.testing.assert_close(found, result, rtol=1e-6, atol=1e-6)


def test_positions_of_a_maximum_that_are_used_keep_the_operator() -> None:
    graph = fx.Graph()
    both = graph.call_function(aten.max_pool2d_with_indices.default, (graph.placeholder("x"), [2, 2]))
    graph.output([graph.call_function(operator.getitem, (both, index)) for index in (0, 1)])
    compose(graph)
    assert targets(graph) == {"max_pool2d_with_indices.default"}


def test_every_operator_that_is_composed_has_a_case_here() -> None:
    tried: set[str] = {target.__name__ for target, _, _ in CALLS.values()}
    for middle, flat, _ in CASES.values():
        tried |= targets(decomposed(Applies(middle, flat), (SEQUENCE if flat else IMAGE,)).graph)
    on_gpus = {name for name in OPS if name.startswith("_scaled_dot_product_") and not name.endswith("_cpu.default")}
    of_bags = {name for name in OPS if "embedding_bag" in name}
    elsewhere = {*SPELLED, *of_bags, "mm.default"}
    assert {
        name for name, row in OPS.items() if row.compose not in (None, plain.renamed)
    } - tried - on_gpus <= elsewhere
