"""Ranks for a target over the whole network: where the least energy is lost for what is saved.

Every layer has a menu of ranks, each with what it costs and the share of the layer's energy that it loses at most.
Along the lower convex hull of a menu the loss for each thing saved only grows, so taking the cheapest steps of all
hulls first is the best allocation for each cost that it passes through (Shoham and Gersho, 1988, for bits); what is
missing to the target then comes from one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.factors import Part, Ranks, Way, fewest_ranks, full_ranks, parts, possible, saves, together, whole
from models.inspection import FactorInfo
from models.spec_factorize import FactorQuantity

NEAR = 0.02
"""How far what is left may be from what was asked for, in shares of what there was, before it is called a miss."""
EXACT = 0.002
"""Within this share of the whole the loss decides, not how near the target is."""
_FINEST = 100


@dataclass(frozen=True)
class Menu:
    """Of one layer: the layer as it is first, and then what it could be, the more it costs the earlier; a dearer entry
    that loses as much as a cheaper one is left out. `ranks` has None for the layer as it is."""

    ranks: tuple[Ranks | None, ...]
    costs: tuple[int, ...]
    losses: tuple[float, ...]


def menu(
    layer: FactorInfo, way: Way, squares: Sequence[Tensor], round_to: int, quantity: FactorQuantity, item_bytes: int
) -> Menu:
    """Every rank that is a multiple of `round_to` and saves parameters and multiply-accumulates."""
    kept = [_lost(own) for own in squares]
    found: dict[Ranks, tuple[int, float]] = {}
    for ranks in _choices(layer, way, round_to):
        if saves(layer, way, ranks):
            loss = min(1.0, sum(float(own[rank]) for own, rank in zip(kept, ranks, strict=True)))
            found[ranks] = (_cost(together(parts(layer, way, ranks)), quantity, item_bytes), loss)
    rows: list[tuple[Ranks | None, int, float]] = []
    least = float("inf")
    for ranks, (cost, loss) in sorted(found.items(), key=lambda row: (row[1], row[0])):
        if loss < least:
            rows.append((ranks, cost, loss))
            least = loss
    rows = [(None, _cost(whole(layer), quantity, item_bytes), 0.0), *reversed(rows)]
    return Menu(tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows))


def allocate(menus: Sequence[Menu], saving: float, exact: float) -> list[int]:
    """The place in each menu so that the costs fall by `saving` together, or as near to that as they come; of what is
    within `exact` of it, the one that loses least."""
    places = [0] * len(menus)
    steps = sorted((slope, number, place) for number, own in enumerate(menus) for slope, place in _hull(own))
    saved = 0
    for _, number, place in steps:
        own = menus[number]
        more = own.costs[places[number]] - own.costs[place]
        if saved + more > saving:
            break
        places[number], saved = place, saved + more
    for _ in menus:
        before = list(places)
        saved = _fill_up(menus, places, saving, saved, exact)
        if places == before:
            break
    return places


def _fill_up(menus: Sequence[Menu], places: list[int], saving: float, saved: int, exact: float) -> int:
    """One layer goes elsewhere in its menu, in `places`, where that comes nearer; what is saved then comes back."""
    best = (*_judged(saving - saved, 0.0, exact), -1, 0, saved)
    for number, own in enumerate(menus):
        here = places[number]
        for place in range(len(own.costs)):
            reached = saved + own.costs[here] - own.costs[place]
            lost = own.losses[place] - own.losses[here]
            best = min(best, (*_judged(saving - reached, lost, exact), number, place, reached))
    if best[2] >= 0:
        places[best[2]] = best[3]
    return best[4]


def _judged(missing: float, lost: float, exact: float) -> tuple[float, float]:
    distance = abs(missing)
    return (0.0 if distance <= exact else distance, lost)


def _hull(own: Menu) -> list[tuple[float, int]]:
    """The corners of the lower convex hull behind the layer as it is, by their place in the menu, each with what is
    lost for one thing more that is saved than at the corner before."""
    costs, losses = np.asarray(own.costs, dtype=np.float64), np.asarray(own.losses)
    here, corners = 0, []
    while here < len(costs) - 1:
        slopes = (losses[here + 1 :] - losses[here]) / (costs[here] - costs[here + 1 :])
        place = int(np.flatnonzero(slopes == slopes.min())[-1])
        here += 1 + place
        corners.append((float(slopes[place]), here))
    return corners


def _choices(layer: FactorInfo, way: Way, round_to: int) -> set[Ranks]:
    """Every rank; of Tucker, whose pairs are many, ranks at a distance of a hundredth or so of the full one."""
    full = full_ranks(layer, way)
    found = {fewest_ranks(layer, way, round_to)}
    if way != "tucker":
        return found | {(rank,) for rank in range(round_to, full[0] + 1, round_to)}
    steps = [max(1, round(most / _FINEST / round_to)) * round_to for most in full]
    first, second = ({*range(step, most, step), most} for step, most in zip(steps, full, strict=True))
    return found | {possible(layer, way, (inputs, outputs)) for inputs in first for outputs in second}


def _lost(squares: Tensor) -> NDArray[np.float64]:
    """For each rank from none on, the share of the energy that goes."""
    values = squares.numpy()
    total = max(float(values.sum()), 1e-300)
    return np.append(np.cumsum(values[::-1])[::-1], 0.0) / total


def _cost(part: Part, quantity: FactorQuantity, item_bytes: int) -> int:
    return {"parameters": part.parameters, "macs": part.macs, "bytes": part.parameters * item_bytes}[quantity]
