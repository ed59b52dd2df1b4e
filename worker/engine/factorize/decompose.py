"""Weights as products of thinner ones: the singular value decomposition, and Tucker's and CP for kernels.

Everything is computed in double precision on the CPU: there the same weights give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.factors import Ranks, Way
from models.inspection import FactorInfo

_ITERATIONS = 50
_SETTLED = 1e-9
"""Sweeps of Tucker end once the energy kept grows by less than this share."""
_CP_SWEEPS, _CP_SETTLED = 200, 1e-6
_PROXIMAL = 1e-8
"""How much CP keeps to the factor of the sweep before, in shares of the mean of the equations' diagonal: it may have
more columns than a factor has rows, and then they have no single solution."""
_RIDGE = 1e-6
"""Added to second moments, in shares of their mean: what samples never show is not thrown away for nothing."""


@dataclass(frozen=True)
class Factors:
    """`weights` are those of the layers that take the place, in the order they run; the one at `core` has the kernel,
    or (`spatial`) the first part of it. `energy` is the share of the sum of squares that is left, of the weights or,
    weighed by moments, of the outputs."""

    weights: tuple[Tensor, ...]
    core: int
    energy: float


def matrix_of(weight: Tensor, way: Way) -> Tensor:
    """The matrix whose rank is lowered, [later side, earlier side]: outputs by inputs (and positions of the kernel), or
    [outputs and columns, inputs and rows] of a kernel that is taken apart into those."""
    if way == "spatial":
        return weight.permute(0, 3, 1, 2).reshape(weight.shape[0] * weight.shape[3], -1)
    return weight.flatten(1)


def spectra(weight: Tensor, layer: FactorInfo, way: Way, moments: Tensor | None = None) -> tuple[Tensor, ...]:
    """The squared singular values, largest first, for each rank there is to choose: of the matrix (times the root of
    `moments`), or of the kernel laid out by inputs and by outputs (De Lathauwer et al., 2000). CP has none."""
    weight = weight.detach().cpu().double()
    if way == "cp":
        return ()
    if way == "tucker":
        kernel = _outputs_first(weight, layer)
        return tuple(torch.linalg.svdvals(_laid_out(kernel, dim)).square() for dim in (1, 0))
    matrix = matrix_of(weight, way)
    return (torch.linalg.svdvals(matrix if moments is None else matrix @ root_of(moments)).square(),)


def decompose(weight: Tensor, layer: FactorInfo, way: Way, ranks: Ranks, moments: Tensor | None = None) -> Factors:
    """`weight` as torch has it, [outputs, inputs, *kernel] and the first two swapped when transposed; the weights that
    come back are laid out so too. `moments`, [inputs, inputs] with all positions of a kernel in `inputs`, are the
    second moments of what the layer reads."""
    weight = weight.detach().cpu().double()
    if way == "tucker":
        return _tucker(weight, layer, ranks)
    if way == "cp":
        return _cp(weight, layer, ranks[0])
    matrix = matrix_of(weight, way)
    first, second, energy = truncated(matrix, ranks[0], moments)
    if way == "spatial":
        rows, columns = layer.kernel
        column = first.reshape(-1, layer.inputs, rows, 1)
        row = second.reshape(layer.outputs, columns, 1, -1).permute(0, 3, 2, 1)
        return Factors((column, row.contiguous()), 0, energy)
    ones = [1] * len(layer.kernel)
    return Factors((first.reshape(-1, *weight.shape[1:]), second.reshape(layer.outputs, -1, *ones)), 0, energy)


def truncated(matrix: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
    """(first [rank, columns], second [rows, rank], energy): second @ first is the matrix of that rank nearest to
    `matrix` (Eckart and Young, 1936), or whose products with inputs of these second moments are: with moments = L Lᵀ,
    (matrix - nearest) L is smallest when nearest L is the truncation of matrix L (DRONE, Chen et al., NeurIPS 2021;
    SVD-LLM, Wang et al., ICLR 2025). Each factor has the root of the singular values, so that both are of one size."""
    root = None if moments is None else root_of(moments)
    left, values, right = torch.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
    energies = values.square()
    scale = values[:rank].sqrt()
    first = scale[:, None] * right[:rank]
    if root is not None:
        first = torch.linalg.solve_triangular(root, first, upper=False, left=False)
    return first, left[:, :rank] * scale, _share(energies[:rank].sum(), energies.sum())


def root_of(moments: Tensor) -> Tensor:
    """The lower triangle L with L Lᵀ = `moments`, a little lifted on the diagonal."""
    lifted = moments.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny) * _RIDGE
    root: Tensor = torch.linalg.cholesky(moments + lifted * torch.eye(len(moments), dtype=moments.dtype))
    return root


def _tucker(weight: Tensor, layer: FactorInfo, ranks: Ranks) -> Factors:
    """Tucker-2 (Kim et al., ICLR 2016): begun by the singular vectors of the kernel laid out by inputs and by outputs,
    then each in turn made best for the other (HOOI, De Lathauwer et al., 2000) until nothing is gained."""
    kernel = _outputs_first(weight, layer)
    inputs, outputs = ranks
    by_input, by_output = _leading(kernel, 1, inputs), _leading(kernel, 0, outputs)
    whole, kept = kernel.square().sum(), kernel.new_zeros(())
    for _ in range(_ITERATIONS):
        by_output = _leading(torch.einsum("oi...,ir->or...", kernel, by_input), 0, outputs)
        by_input = _leading(torch.einsum("oi...,or->ri...", kernel, by_output), 1, inputs)
        core = torch.einsum("oi...,or,is->rs...", kernel, by_output, by_input)
        before, kept = kept, core.square().sum()
        if kept - before <= _SETTLED * whole:
            break
    ones = [1] * len(layer.kernel)
    if inputs == layer.inputs:  # A square of orthogonal columns turns the inputs, and the core can do that itself.
        core = torch.einsum("rs...,is->ri...", core, by_input)
    if outputs == layer.outputs:
        core = torch.einsum("rs...,or->os...", core, by_output)
    weights = [core.transpose(0, 1).contiguous() if layer.transposed else core]
    if inputs < layer.inputs:
        weights.insert(0, by_input.T.reshape(inputs, layer.inputs, *ones))
    if outputs < layer.outputs:
        weights.append(by_output.reshape(layer.outputs, outputs, *ones))
    return Factors(tuple(weights), int(inputs < layer.inputs), _share(kept, whole))


def _cp(weight: Tensor, layer: FactorInfo, rank: int) -> Factors:
    """The kernel, [outputs, inputs, positions], as a sum of `rank` products of three vectors (Harshman, 1970; Lebedev
    et al., ICLR 2015), by alternating least squares (Kolda and Bader, 2009, section 3.4) from the leading singular
    vectors of each side and random ones. Each solution keeps a little to the one before, so that no sweep loses more
    than that did (proximal, Li et al., 2013). In the end the three vectors of a product are of one length."""
    length = weight.norm()
    kernel = weight.flatten(2) / length.clamp_min(torch.finfo(torch.float64).tiny)
    generator = torch.Generator().manual_seed(0)
    sides = [_columns(kernel, dim, rank, generator) for dim in range(3)]
    lost = kernel.new_full((), torch.inf)
    for _ in range(_CP_SWEEPS):
        for dim, equation in enumerate(("oik,ir,kr->or", "oik,or,kr->ir", "oik,or,ir->kr")):
            one, other = (side for place, side in enumerate(sides) if place != dim)
            square = (one.T @ one) * (other.T @ other)
            right = torch.einsum(equation, kernel, one, other)
            near = _PROXIMAL * square.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
            lifted = square + near * torch.eye(rank, dtype=square.dtype)
            sides[dim] = torch.cholesky_solve((right + near * sides[dim]).T, torch.linalg.cholesky(lifted)).T
        before, lost = lost, _difference(kernel, sides)
        if before - lost <= _CP_SETTLED:
            break
    lengths = torch.stack([side.norm(dim=0) for side in sides])
    even = (lengths.prod(0) * length).pow(1 / 3)
    by_output, by_input, by_position = (
        side * torch.where(own > 0, even / own, 0.0) for side, own in zip(sides, lengths, strict=True)
    )
    ones = [1] * len(layer.kernel)
    weights = (
        by_input.T.reshape(rank, layer.inputs, *ones),
        by_position.T.reshape(rank, 1, *layer.kernel),
        by_output.reshape(layer.outputs, rank, *ones),
    )
    return Factors(weights, 1, 1 - float(lost) if float(length) > 0 else 1.0)


def _difference(kernel: Tensor, sides: Sequence[Tensor]) -> Tensor:
    """The squares of what the sum of products leaves of `kernel`. One side after the other: all three at once would
    need the kernel `rank` times."""
    by_output, by_input, by_position = sides
    total = torch.zeros((), dtype=kernel.dtype)
    for place in range(kernel.shape[2]):
        total += (kernel[:, :, place] - (by_output * by_position[place]) @ by_input.T).square().sum()
    return total


def _columns(kernel: Tensor, dim: int, count: int, generator: torch.Generator) -> Tensor:
    found = _leading(kernel, dim, min(count, kernel.shape[dim]))
    more = torch.randn(len(found), count - found.shape[1], generator=generator, dtype=found.dtype)
    return torch.cat([found, more / len(found) ** 0.5], 1)


def _outputs_first(weight: Tensor, layer: FactorInfo) -> Tensor:
    return weight.transpose(0, 1) if layer.transposed else weight


def _laid_out(kernel: Tensor, dim: int) -> Tensor:
    """A matrix with a row for each index of `dim`."""
    return kernel.transpose(0, dim).flatten(1)


def _leading(kernel: Tensor, dim: int, count: int) -> Tensor:
    """The first `count` left singular vectors of `kernel` laid out by `dim`, as columns."""
    matrix = _laid_out(kernel, dim)
    if len(matrix) > matrix.shape[1]:
        vectors: Tensor = torch.linalg.svd(matrix, full_matrices=False)[0]
    else:  # The vectors of the small square are the same, and a kernel's other side is long.
        vectors = torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)
    return vectors[:, :count]


def _share(part: Tensor, total: Tensor) -> float:
    return float(part / total) if float(total) > 0 else 1.0
