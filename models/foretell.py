"""What a spec leaves of a network, from the sizes that were kept at its inspection: exactly where counts of channels do
not depend on scores, else within bounds. No torch, and nothing runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from models.criterion_rules import scaled_layers
from models.factorize_foretell import taken_off
from models.inspection import GroupInfo, NetworkInspection
from models.lowbit_policy import EIGHT_BITS
from models.lowbit_rules import codings_of
from models.prune_policy import Policy, layers_of, policy_for, removable_counts
from models.prune_search import Levels, alike, goal, nearest, own_wanted, reach
from models.schedules import gone_after
from models.sizes import QUANTITIES, Polynomials, Sizes, evaluate
from models.spec import (
    AutoStep,
    DynamicStep,
    FactorizeStep,
    FloatStep,
    LowBitStep,
    PruneStep,
    QatStep,
    QuantizeStep,
    Step,
)
from models.spec_schemes import Storage

STORED_KINDS = frozenset({"Conv1d", "Conv2d", "Conv3d", "Embedding", "Linear"})
"""Layers of one weight, whose shape is the layer's."""
_TABLE_BYTES = 1024

Units = tuple[int, ...]
"""For each group of the inspection, how many units it keeps."""


@dataclass(frozen=True)
class Bounds:
    """Of one number: equal where it is known."""

    least: int
    most: int


@dataclass(frozen=True)
class Left:
    """After one step: the units of each group, and each quantity of `models.sizes`. `asked` has, for a quantity that a
    step's amount is said in, what it leaves where it can be reached."""

    units: tuple[Bounds, ...]
    quantities: dict[str, Bounds]
    asked: dict[str, int]


@dataclass(frozen=True)
class _Counted:
    """A group that may shrink, by its place in the inspection."""

    place: int
    policy: Policy
    widths: tuple[int, ...]
    units_at_start: int
    gone: int = 0

    @property
    def choices(self) -> tuple[int, ...]:
        left = self.units_at_start - self.gone
        return tuple(removable_counts(left, self.widths, self.policy, self.units_at_start))


def foretell(steps: Sequence[Step], network: NetworkInspection) -> list[Left]:
    """One for each step; none for a network that was inspected before sizes were kept. From a step on that takes whole
    groups, since what else goes with their branches is seen when it is done, or that cuts channels where layers were
    taken apart, only what is there at most is known."""
    if network.sizes is None:
        return []
    least = most = tuple(group.units for group in network.groups)
    start = least
    shrunk = apart = open_below = False
    at_least, at_most = (dict.fromkeys(QUANTITIES, 0) for _ in range(2))  # What taking layers apart takes off.
    found: list[Left] = []
    for step in steps:
        asked: dict[str, int] = {}
        if isinstance(step, PruneStep) and not open_below:
            if least == most and network.sizes.exact and not apart:
                asked = _asked(step, network.sizes.most, most)
            if step.structure == "groups" or apart:
                open_below = True
            else:
                least, most = _after(step, network, least, most)
        if isinstance(step, FactorizeStep) and not open_below:
            asked = _asked_of_layers(step, found[-1].quantities if found else _quantities(network.sizes, least, most))
            less, more = taken_off(step, network, sizes_are_known=least == most == start and not apart)
            at_least = {name: count + less[name] for name, count in at_least.items()}
            at_most = {name: count + more[name] for name, count in at_most.items()}
            apart = True
        shrunk = shrunk or isinstance(step, QuantizeStep | QatStep | AutoStep | DynamicStep | Storage)
        units = tuple(Bounds(0 if open_below else fewest, count) for fewest, count in zip(least, most, strict=True))
        quantities = {
            name: Bounds(0 if open_below else max(0, bounds.least - at_most[name]), bounds.most - at_least[name])
            for name, bounds in _quantities(network.sizes, least, most).items()
        }
        before, whole = quantities["bytes"], least == most == start and not apart and not open_below
        if shrunk:
            quantities = _in_integers(quantities, network)
        if isinstance(step, LowBitStep):
            quantities = quantities | {"bytes": _in_codes(step, quantities, network, whole=whole)}
        if isinstance(step, Storage):
            quantities = quantities | {"bytes": _as_stored(step, before, network, whole=whole)}
        found.append(Left(units, quantities, asked))
    return found


def cuts_nothing(step: PruneStep, network: NetworkInspection) -> bool:
    """Whether it is known that no unit of a network that nothing was cut from goes: counts decide it, or of all that
    can go the least is more than twice what is asked for, so that nothing comes nearest."""
    if step.structure == "groups":
        return False
    start = tuple(group.units for group in network.groups)
    if _is_decided_by_counts(step, network):
        return _simulated(step, network, start) == start
    candidates, amount = _free(step, network, start), step.amount
    exact = network.sizes is not None and network.sizes.exact
    known = ("channels", *QUANTITIES) if exact else ("channels",)
    if amount is None or amount.quantity not in known or any(each.policy.amount is not None for each in candidates):
        return False
    count = partial(_count, str(amount.quantity), network, candidates)
    whole = count(start)
    fraction, _ = goal(amount, whole)

    def gone(place: int, units: int) -> float:
        left = list(start)
        left[place] -= units
        return 1 - count(left) / whole

    return all(fraction < gone(each.place, each.choices[1]) / 2 for each in candidates if len(each.choices) > 1)


def _asked_of_layers(step: FactorizeStep, before: dict[str, Bounds]) -> dict[str, int]:
    if step.amount is None or before[step.amount.quantity].least != before[step.amount.quantity].most:
        return {}
    quantity = step.amount.quantity
    return {quantity: round(min(step.amount.left_of(before[quantity].most), before[quantity].most))}


def _quantities(sizes: Sizes, least: Units, most: Units) -> dict[str, Bounds]:
    smaller = sizes.least or sizes.most
    return {
        name: Bounds(evaluate(getattr(smaller, name), least), evaluate(getattr(sizes.most, name), most))
        for name in QUANTITIES
    }


def _in_integers(quantities: dict[str, Bounds], network: NetworkInspection) -> dict[str, Bounds]:
    """BatchNorm may be folded into the layer before it, and a weight takes one byte where it becomes an integer: which
    do is seen when it is done."""
    foldable = sum(layer.parameters for layer in network.layers if layer.kind.startswith("BatchNorm"))
    parameters = quantities["parameters"]
    fewer = max(0, parameters.least - foldable)
    return quantities | {
        "parameters": Bounds(fewer, parameters.most),
        "bytes": Bounds(fewer, quantities["bytes"].most),
    }


def _in_codes(step: LowBitStep, quantities: dict[str, Bounds], network: NetworkInspection, *, whole: bool) -> Bounds:
    """Exactly what is stored of the `whole` network, before anything is deflated, unless layers share a weight or a
    floor may give some 8 bits; else no more than now, and no less than if every weight took as few bits as any."""
    before = quantities["bytes"]
    codings = codings_of(step, network)
    layers = [layer for layer in network.layers if layer.name in codings]
    shared = sum(layer.parameters for layer in network.layers) > network.parameters
    if whole and not shared and before.least == before.most:
        few = [codings[layer.name].stored_bytes(layer.shape) for layer in layers]
        more = few
        if step.floor is not None:  # Which layers take 8 bits is seen when it is done.
            more = [max(least, EIGHT_BITS.stored_bytes(layer.shape)) for least, layer in zip(few, layers, strict=True)]
        floats = sum(4 * math.prod(layer.shape) for layer in layers)
        return Bounds(before.least - floats + sum(few), before.most - floats + sum(more))
    fewest = min((coding.bits / coding.dimension for coding in codings.values()), default=32.0)
    return Bounds(math.floor(before.least * min(1.0, fewest / 32)), before.most)


def _as_stored(step: Storage, before: Bounds, network: NetworkInspection, *, whole: bool) -> Bounds:
    """At least as if everything were stored so and each BatchNorm folded; of a network nothing was cut from, at most as
    if the weights of layers whose shapes say all were, unless some share one."""
    size = 2 if isinstance(step, FloatStep) else 1
    norms = 8 * sum(layer.parameters for layer in network.layers if layer.kind.startswith("BatchNorm"))
    fewest = math.floor(max(0, before.least - norms) * size / 4)
    skipped = {layer.name for layer in network.layers for each in step.layers if fnmatchcase(layer.name, each.match)}
    shared = sum(layer.parameters for layer in network.layers) > network.parameters
    if not whole or shared:
        return Bounds(fewest, before.most)
    shapes = [layer.shape for layer in network.layers if layer.kind in STORED_KINDS and layer.name not in skipped]
    scales = 0 if size == 2 else sum(4 * shape[0] + _TABLE_BYTES for shape in shapes)
    return Bounds(fewest, before.most + scales - sum((4 - size) * math.prod(shape) for shape in shapes))


def _asked(step: PruneStep, polynomials: Polynomials, units: Units) -> dict[str, int]:
    amount = step.amount
    if amount is None or amount.quantity not in QUANTITIES:
        return {}
    before = evaluate(getattr(polynomials, amount.quantity), units)
    fraction, _ = goal(amount, before)
    return {amount.quantity: round(before * (1 - max(0.0, fraction)))}


def _after(step: PruneStep, network: NetworkInspection, least: Units, most: Units) -> tuple[Units, Units]:
    if least == most and _is_decided_by_counts(step, network):
        kept = _simulated(step, network, most)
        return kept, kept
    low, high = list(least), list(most)
    for each in _free(step, network, most):
        if (kept_of_own := _own(step, each, least[each.place], most[each.place])) is not None:
            low[each.place], high[each.place] = kept_of_own
        else:
            low[each.place] = min(_fewest(each, least[each.place]), _fewest(each, most[each.place]))
    return tuple(low), tuple(high)


def _free(step: PruneStep, network: NetworkInspection, units: Units) -> list[_Counted]:
    found = []
    for place, group in enumerate(network.groups):
        layers = layers_of(step, group)
        policy = policy_for(step, layers)
        if layers and not policy.skip and _is_ranked(group, policy, network):
            found.append(_Counted(place, policy, tuple(group.widths), units[place]))
    return found


def _is_ranked(group: GroupInfo, policy: Policy, network: NetworkInspection) -> bool:
    """By the scales of BatchNorm only groups that have one."""
    return policy.criterion != "bn_gamma" or bool(scaled_layers(network).intersection(group.layers))


def _is_decided_by_counts(step: PruneStep, network: NetworkInspection) -> bool:
    """Whether scores only say which channels go, not how many of which layer."""
    free = _free(step, network, tuple(group.units for group in network.groups))
    if any(each.policy.amount is not None and not _says_a_count(each) for each in free):
        return False
    amount = step.amount
    if amount is None or all(each.policy.amount is not None for each in free):
        return True
    if step.scope != "layer" or amount.quantity in (None, "latency"):
        return False
    return amount.quantity == "channels" or (network.sizes is not None and network.sizes.exact)


def _says_a_count(each: _Counted) -> bool:
    amount = each.policy.amount
    return amount is not None and (amount.channels is not None or amount.target is not None)


def _simulated(step: PruneStep, network: NetworkInspection, units: Units) -> Units:
    """Every round, as the engine takes it."""
    kept = list(units)
    candidates = _free(step, network, units)
    for number in range(1, (step.schedule.rounds if step.schedule is not None else 1) + 1):
        levels = _levels(step, network, candidates, kept, number)
        for place, level in enumerate(levels):
            each = candidates[place]
            gone = each.gone + each.choices[level]
            candidates[place] = _Counted(each.place, each.policy, each.widths, each.units_at_start, gone)
            kept[each.place] = each.units_at_start - gone
    return tuple(kept)


def _levels(
    step: PruneStep, network: NetworkInspection, candidates: Sequence[_Counted], kept: Sequence[int], number: int
) -> Levels:
    fixed = [_own_level(step, each, number) for each in candidates]
    amount = step.amount
    if amount is None or None not in fixed:
        return tuple(level or 0 for level in fixed)
    start = list(kept)
    for each in candidates:
        start[each.place] = each.units_at_start
    count = partial(_count, str(amount.quantity), network, candidates)
    whole = count(start)

    def gone(levels: Levels) -> float:
        left = list(kept)
        for each, level in zip(candidates, levels, strict=True):
            left[each.place] -= each.choices[level]
        return 1 - count(left) / whole

    fraction, near = goal(amount, whole)
    if fraction <= 0:
        return (0,) * len(candidates)
    wanted = gone_after(step.schedule, number, fraction)
    return reach(candidates, fixed, alike(candidates, fixed), gone, wanted, near)


def _count(quantity: str, network: NetworkInspection, candidates: Sequence[_Counted], left: Sequence[int]) -> int:
    """What there is of a quantity while groups keep `left`; channels are those of the candidates."""
    if quantity == "channels":
        return sum(left[each.place] for each in candidates)
    assert network.sizes is not None
    return evaluate(getattr(network.sizes.most, quantity), left)


def _own_level(step: PruneStep, each: _Counted, number: int) -> int | None:
    if each.policy.amount is None:
        return None
    wanted = own_wanted(each.policy.amount, each.units_at_start, step.schedule, number)
    return None if wanted is None else nearest(each, wanted - each.gone)


def _own(step: PruneStep, each: _Counted, least: int, most: int) -> tuple[int, int] | None:
    """What a group with a count of its own keeps, from so few and from so many units."""
    if not _says_a_count(each):
        return None
    ends = []
    for units in (least, most):
        one = _Counted(each.place, each.policy, each.widths, units)
        for number in range(1, (step.schedule.rounds if step.schedule is not None else 1) + 1):
            level = _own_level(step, one, number) or 0
            one = _Counted(one.place, one.policy, one.widths, units, one.gone + one.choices[level])
        ends.append(units - one.gone)
    return min(ends), max(ends)


def _fewest(each: _Counted, units: int) -> int:
    return units - _Counted(each.place, each.policy, each.widths, units).choices[-1]
