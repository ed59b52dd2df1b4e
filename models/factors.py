"""What layers of low rank cost: the parts that take a layer's place, and the ranks that a rule fixes. No torch: the
engine builds by it, and a dry run foretells by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from models.inspection import FactorInfo
from models.spec_factorize import FactorAmount, FactorizeStep, FactorMethod, Fit, Rank

Way = Literal["matrix", "tucker", "channels", "spatial", "cp"]
"""How one layer is taken apart: a matrix by its singular values, a kernel by the step's method."""

_SAMPLES = 256
"""That are looked at where outputs are fitted, unless others are asked for."""

Ranks = tuple[int, ...]
"""One number; for Tucker two, of the inputs and of the outputs."""


@dataclass(frozen=True)
class Part:
    """One of the layers that take another's place, without its bias."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Policy:
    """What the step asks of one layer; without a rank it has a part in the step's amount, where there is one."""

    skip: bool
    method: FactorMethod
    rank: Rank | None
    amount: FactorAmount | None

    @property
    def unasked(self) -> str | None:
        """Why nothing is to become of the layer, where that is so."""
        if self.skip:
            return "skipped by `layers`"
        return "no rank is asked of it" if (self.rank, self.amount) == (None, None) else None


def policy_for(step: FactorizeStep, layer: str) -> Policy:
    choice = next((choice for choice in step.layers if fnmatchcase(layer, choice.match)), None)
    if choice is None:
        return Policy(False, method_of(step), step.rank, step.amount)
    return Policy(bool(choice.skip), choice.method or method_of(step), choice.rank or step.rank, step.amount)


def method_of(step: FactorizeStep) -> FactorMethod:
    return step.method or ("channels" if step.fit == "outputs" else "tucker")


def resolve_factorize(step: FactorizeStep) -> FactorizeStep:
    """`step` with every default filled in."""
    samples = (step.samples or _SAMPLES) if step.fit == "outputs" else None
    return step.model_copy(update={"method": method_of(step), "samples": samples})


def why_not(layer: FactorInfo, method: FactorMethod, fit: Fit) -> str | None:
    """Why `layer` cannot be taken apart by `method`, where that is so."""
    extents = [extent for extent in layer.kernel if extent > 1]
    if not layer.transposed and not extents:
        return None
    if layer.transposed and method != "tucker":
        return "a transposed convolution is taken apart by `tucker` alone"
    if method == "spatial" and (len(layer.kernel) != 2 or len(extents) != 2):
        return "its kernel has no rows and columns to take apart"
    if fit == "outputs" and len(layer.kernel) > 2:
        return "outputs are fitted for kernels of one or two dimensions"
    return None


def way_of(layer: FactorInfo, method: FactorMethod) -> Way:
    """How `layer`, for which `why_not` has no reason, is taken apart."""
    return method if layer.transposed or any(extent > 1 for extent in layer.kernel) else "matrix"


def full_ranks(layer: FactorInfo, way: Way) -> Ranks:
    """The ranks at which nothing is lost."""
    positions = math.prod(layer.kernel)
    match way:
        case "matrix" | "channels":
            return (min(layer.inputs * positions, layer.outputs),)
        case "spatial":
            rows, columns = layer.kernel
            return (min(layer.inputs * rows, layer.outputs * columns),)
        case "cp":
            sizes = (layer.inputs, layer.outputs, positions)
            return (math.prod(sizes) // max(sizes),)
    return (min(layer.inputs, layer.outputs * positions), min(layer.outputs, layer.inputs * positions))


def parts(layer: FactorInfo, way: Way, ranks: Ranks) -> tuple[Part, ...]:
    """What takes the place of `layer`, in the order it runs. A full rank of Tucker needs no layer of its own."""
    positions = math.prod(layer.kernel)
    if way == "tucker":
        inputs, outputs = ranks
        core = inputs * outputs * positions
        at_core = layer.input_positions if layer.transposed else layer.output_positions
        found = [Part(core, core * at_core)]
        if inputs < layer.inputs:
            found.insert(0, _part(layer.inputs * inputs, layer.input_positions))
        if outputs < layer.outputs:
            found.append(_part(outputs * layer.outputs, layer.output_positions))
        return tuple(found)
    (rank,) = ranks
    if way == "spatial":
        rows, columns = layer.kernel
        first = _part(layer.inputs * rows * rank, layer.middle_positions or 0)
        return (first, _part(rank * columns * layer.outputs, layer.output_positions))
    if way == "cp":
        first = _part(layer.inputs * rank, layer.input_positions)
        at_outputs = (rank * positions, rank * layer.outputs)
        return (first, *(_part(count, layer.output_positions) for count in at_outputs))
    first = _part(layer.inputs * positions * rank, layer.output_positions)
    return (first, _part(rank * layer.outputs, layer.output_positions))


def _part(parameters: int, positions: int) -> Part:
    return Part(parameters, parameters * positions)


def whole(layer: FactorInfo) -> Part:
    """The layer as it is."""
    at = layer.input_positions if layer.transposed else layer.output_positions
    return _part(layer.inputs * layer.outputs * math.prod(layer.kernel), at)


def together(found: tuple[Part, ...]) -> Part:
    return Part(sum(part.parameters for part in found), sum(part.macs for part in found))


def saves(layer: FactorInfo, way: Way, ranks: Ranks) -> bool:
    """Whether the parts have fewer parameters, and multiply less, than the layer."""
    after, before = together(parts(layer, way, ranks)), whole(layer)
    return after.parameters < before.parameters and after.macs < before.macs


def fixed_ranks(layer: FactorInfo, way: Way, rank: Rank, round_to: int) -> Ranks | None:
    """The ranks, where the rule alone says them; else only the weights know."""
    full = full_ranks(layer, way)
    if rank.count is not None:
        return possible(layer, way, tuple(min(rank.count, most) for most in full))
    if rank.ratio is None:
        return None
    wanted = [rank.ratio * most / round_to for most in full]
    return possible(
        layer, way, tuple(min(max(1, round(each)) * round_to, most) for each, most in zip(wanted, full, strict=True))
    )


def fewest_ranks(layer: FactorInfo, way: Way, round_to: int) -> Ranks:
    return possible(layer, way, tuple(min(round_to, most) for most in full_ranks(layer, way)))


def rounded_up(count: int, most: int, round_to: int) -> int:
    return min(math.ceil(max(count, 1) / round_to) * round_to, most)


def possible(layer: FactorInfo, way: Way, ranks: Ranks) -> Ranks:
    """No rank of Tucker's core is larger than the other leaves room for."""
    if way != "tucker":
        return ranks
    positions = math.prod(layer.kernel)
    inputs, outputs = ranks
    inputs = min(inputs, outputs * positions)
    return (inputs, min(outputs, inputs * positions))
