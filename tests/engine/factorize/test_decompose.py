"""Each decomposition against its formula: exact at full rank, as far off as the singular values left out say below."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from models.factors import Ranks, Way, full_ranks, parts, possible
from models.inspection import FactorInfo
from tests.engine.factorize.products import multiplied_out
from worker.engine.factorize.decompose import decompose, spectra, truncated
from worker.engine.factorize.moments import patches
from worker.engine.factorize.replace import replace
from worker.engine.subject import Subject

CONVOLUTIONS: list[tuple[type[nn.Module], Any, dict[str, Any], Way]] = [
    (nn.Conv2d, 3, {"stride": 2, "padding": 1}, "tucker"),
    (nn.Conv2d, 3, {"padding": "same", "dilation": 2, "bias": False}, "tucker"),
    (nn.Conv1d, 5, {"padding": 2}, "tucker"),
    (nn.Conv3d, 2, {"stride": (1, 2, 1)}, "tucker"),
    (nn.ConvTranspose2d, 3, {"stride": 2, "padding": 1, "output_padding": 1}, "tucker"),
    (nn.ConvTranspose1d, 1, {"stride": 2}, "tucker"),
    (nn.Conv2d, 1, {"stride": 2, "padding": 1}, "matrix"),
    (nn.Conv2d, 3, {"stride": 2, "padding": 1}, "channels"),
    (nn.Conv1d, 3, {"padding": "valid"}, "channels"),
    (nn.Conv2d, (3, 5), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}, "spatial"),
    (nn.Conv2d, (2, 3), {"padding": "same"}, "spatial"),
    (nn.Conv2d, 3, {"stride": 2, "padding": 1}, "cp"),
    (nn.Conv1d, 5, {"padding": 2, "dilation": 2, "bias": False}, "cp"),
    (nn.Conv3d, 2, {"stride": (1, 2, 1)}, "cp"),
]


def layer_of(module: Any) -> FactorInfo:
    inputs, outputs = (module.in_channels, module.out_channels)
    return FactorInfo(
        inputs=inputs,
        outputs=outputs,
        kernel=list(module.kernel_size),
        transposed=module.transposed,
        input_positions=1,
        output_positions=1,
        middle_positions=1,
    )


def product_of(graph: nn.Module) -> nn.Module:
    """The parts, one after the other."""
    return nn.Sequential(*graph.get_submodule("layer").children())


def taken_apart(module: Any, way: Way, ranks: Ranks) -> tuple[nn.Module, float]:
    layer = layer_of(module)
    graph = torch.fx.symbolic_trace(nn.Sequential())
    graph.add_module("layer", module)
    factors = decompose(module.weight, layer, way, ranks)
    subject = Subject.of(graph, (), ())
    replace(subject, "layer", way, factors.weights, factors.core)
    return product_of(subject.graph), factors.energy


@pytest.mark.parametrize(("kind", "kernel", "settings", "way"), CONVOLUTIONS)
def test_the_parts_compute_what_the_layer_does_with_the_product_of_low_rank(
    kind: Any, kernel: Any, settings: dict[str, Any], way: Way
) -> None:
    torch.manual_seed(0)
    module = kind(6, 7, kernel, **settings).double()
    dimensions = module.weight.dim() - 2
    x = torch.randn(2, 6, *[9, 8, 7][:dimensions], dtype=torch.float64)
    layer = layer_of(module)
    full = full_ranks(layer, way)
    for asked in ((3,), (5,)) if len(full) == 1 else ((3, 4), (5, 2)):
        ranks = possible(layer, way, asked)
        factors = decompose(module.weight, layer, way, ranks)
        low = multiplied_out(module, factors.weights, way)
        original = module.weight.detach().clone()
        with torch.no_grad():
            module.weight.copy_(low)
            expected = module(x)
            module.weight.copy_(original)
        made, energy = taken_apart(module, way, ranks)
        assert torch.allclose(made(x), expected, atol=1e-12)
        lost = float((original - low).square().sum() / original.square().sum())
        assert energy == pytest.approx(1 - lost, abs=1e-12)
        counted = [part.parameters for part in parts(layer, way, ranks)]
        assert counted == [int(child.weight.numel()) for child in made.children()]  # type: ignore[operator]
    made, energy = taken_apart(module, way, full)
    exact = 1e-3 if way == "cp" else 1e-12  # whose sweeps come near, and end
    assert energy == pytest.approx(1.0, abs=exact)
    assert torch.allclose(made(x), module(x), atol=0.1 if way == "cp" else 1e-12)


def test_a_matrix_loses_what_eckart_and_young_say() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 20, dtype=torch.float64, generator=generator)
    values = torch.linalg.svdvals(matrix)
    for rank in range(1, 13):
        first, second, energy = truncated(matrix, rank)
        assert (first.shape, second.shape) == ((rank, 20), (12, rank))
        off = torch.linalg.matrix_norm(matrix - second @ first)
        assert float(off) == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-10)
        assert energy == pytest.approx(float(values[:rank].square().sum() / values.square().sum()))
        assert torch.allclose(first.square().sum(1), second.square().sum(0)), "both factors are of one size"


def test_fitted_to_inputs_the_outputs_lose_what_the_singular_values_say_and_less_than_fitted_to_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(10, 16, dtype=torch.float64, generator=generator)
    mixing = torch.randn(16, 16, dtype=torch.float64, generator=generator) * torch.logspace(0, -2, 16)[:, None]
    inputs = torch.randn(500, 16, dtype=torch.float64, generator=generator) @ mixing
    moments = inputs.T @ inputs / len(inputs)
    values = torch.linalg.svdvals(matrix @ inputs.T)
    for rank in (1, 4, 7):
        off = {}
        for name, given in (("outputs", moments), ("weights", None)):
            first, second, energy = truncated(matrix, rank, given)
            off[name] = float(((matrix - second @ first) @ inputs.T).square().sum())
            if name == "outputs":
                kept = values[:rank].square().sum() / values.square().sum()
                assert energy == pytest.approx(float(kept), abs=1e-4)
        assert off["outputs"] == pytest.approx(float(values[rank:].square().sum()), rel=1e-3)
        assert off["outputs"] < 0.9 * off["weights"]


def test_inputs_that_never_vary_are_no_reason_to_fail() -> None:
    moments = torch.zeros(6, 6, dtype=torch.float64)
    moments[0, 0] = 3.0
    first, second, _ = truncated(torch.randn(4, 6, dtype=torch.float64), 2, moments)
    assert bool(torch.isfinite(second @ first).all())
    first, second, _ = truncated(torch.randn(4, 6, dtype=torch.float64), 2, torch.zeros(6, 6, dtype=torch.float64))
    assert bool(torch.isfinite(second @ first).all())


def test_tucker_is_within_the_bound_of_its_first_guess_and_settles_where_no_side_gains() -> None:
    generator = torch.Generator().manual_seed(0)
    module = nn.Conv2d(8, 10, 3)
    with torch.no_grad():
        module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
    layer, weight = layer_of(module), module.weight.detach().double()
    by_inputs, by_outputs = spectra(module.weight, layer, "tucker")
    factors = decompose(module.weight, layer, "tucker", (4, 5))
    lost = 1 - factors.energy
    tails = float(by_inputs[4:].sum()), float(by_outputs[5:].sum())
    whole = float(weight.square().sum())
    assert max(tails) / whole <= lost <= sum(tails) / whole
    first, core, last = (part.double() for part in factors.weights)
    # The projections that are left are the best ones, each for the other.
    for dim, side, other in ((1, first.flatten(1).T, last.flatten(1)), (0, last.flatten(1), first.flatten(1).T)):
        projected = torch.einsum("oi...,or->ri..." if dim == 1 else "oi...,ir->or...", weight, other)
        matrix = projected.transpose(0, dim).flatten(1)
        best = torch.linalg.svdvals(matrix)[: side.shape[1]].square().sum()
        assert float(core.square().sum()) == pytest.approx(float(best), rel=1e-6)


def test_a_kernel_of_low_rank_is_found_again_without_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    core = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=generator)
    left = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    right = torch.randn(9, 2, dtype=torch.float64, generator=generator)
    module = nn.Conv2d(9, 12, 3).double()
    with torch.no_grad():
        module.weight.copy_(torch.einsum("or,rs...,is->oi...", left, core, right))
    assert decompose(module.weight, layer_of(module), "tucker", (2, 3)).energy == pytest.approx(1.0, abs=1e-12)


def test_a_sum_of_products_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(count, 4, dtype=torch.float64, generator=generator) for count in (12, 9, 9)]
    module = nn.Conv2d(9, 12, 3).double()
    with torch.no_grad():
        module.weight.copy_(torch.einsum("or,ir,kr->oik", *sides).reshape(12, 9, 3, 3))
    factors = decompose(module.weight, layer_of(module), "cp", (4,))
    assert factors.energy == pytest.approx(1.0, abs=1e-4)
    first, middle, last = (part.flatten(1) for part in factors.weights)
    lengths = [first.norm(dim=1), middle.norm(dim=1), last.norm(dim=0)]
    assert torch.allclose(lengths[0], lengths[1])
    assert torch.allclose(lengths[0], lengths[2])
    # Up to order and sign these are the vectors it was made of (Kruskal, 1977).
    for found, side in ((last, sides[0]), (first.T, sides[1]), (middle.T, sides[2])):
        alike = torch.nn.functional.normalize(found, dim=0).T @ torch.nn.functional.normalize(side, dim=0)
        assert (alike.abs().amax(1) > 0.99).all()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_kernels_of_any_size_are_taken_apart_by_cp(size: float) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(6, 7, 3).double()
    with torch.no_grad():
        module.weight.mul_(size)
    factors = decompose(module.weight, layer_of(module), "cp", (20,))
    low = multiplied_out(module, factors.weights, "cp")
    lost = float(((module.weight - low) / (size or 1.0)).square().sum())
    whole = float((module.weight / (size or 1.0)).square().sum())
    assert lost <= (1 - factors.energy) * whole * (1 + 1e-6) + 1e-20
    assert 0.5 < factors.energy <= 1


def test_cp_is_no_better_than_the_best_matrix_and_each_rank_keeps_more() -> None:
    """A sum of so many products has, laid out by outputs or inputs, no higher rank."""
    torch.manual_seed(0)
    module = nn.Conv2d(10, 12, 3)
    energies = []
    for rank in (2, 4, 8, 16):
        energies.append(decompose(module.weight, layer_of(module), "cp", (rank,)).energy)
        for squares in spectra(module.weight, layer_of(module), "tucker"):
            assert energies[-1] <= float(squares[:rank].sum() / squares.sum()) + 1e-9
    assert energies == sorted(energies)


@pytest.mark.parametrize(("kind", "kernel", "settings", "way"), CONVOLUTIONS)
def test_patches_times_the_weight_are_the_outputs(kind: Any, kernel: Any, settings: dict[str, Any], way: Way) -> None:
    torch.manual_seed(0)
    module = kind(6, 7, kernel, **settings).double()
    dimensions = module.weight.dim() - 2
    if module.transposed or (dimensions == 3 and math.prod(module.kernel_size) > 1):
        return
    x = torch.randn(2, 6, *[9, 8, 7][:dimensions], dtype=torch.float64)
    expected = module(x).flatten(2).transpose(1, 2).flatten(0, 1)
    found = patches(module, x) @ module.weight.flatten(1).T
    assert torch.allclose(found if module.bias is None else found + module.bias, expected, atol=1e-12)
