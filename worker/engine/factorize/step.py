"""The factorize step: choose ranks, take layers apart, and put the parts in their place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.errors import Code, Failure
from models.factors import Ranks, Way, full_ranks, parts, policy_for, saves, together, way_of, whole, why_not
from models.inspection import FactorInfo
from models.spec import FactorizeStep, Rank
from models.spec_factorize import FactorAmount, FactorQuantity
from models.statuses import Phase
from worker.engine.factorize.allocate import EXACT, NEAR, allocate, menu
from worker.engine.factorize.decompose import decompose, spectra
from worker.engine.factorize.moments import second_moments
from worker.engine.factorize.ranks import ranks_by_rule
from worker.engine.factorize.replace import replace as put_in_place
from worker.engine.graph.cost import macs, parameters
from worker.engine.graph.factorable import factorable
from worker.engine.run import Run
from worker.engine.subject import Record, Subject


@dataclass(frozen=True)
class Target:
    """A layer that may be taken apart. `squares` are its squared singular values for each rank; `rank` is a rule of its
    own, without which it has a part in the step's amount; `ranks` are those chosen, none where it stays whole."""

    name: str
    layer: FactorInfo
    way: Way
    rank: Rank | None
    squares: tuple[Tensor, ...]
    moments: Tensor | None
    ranks: Ranks | None = None


def run(subject: Subject, step: FactorizeStep, run: Run) -> dict[str, Any]:
    """Take layers of `subject.graph` apart and append the record that `replay` repeats; the report's details come back.

    Raises `Failure`: NOTHING_TO_PRUNE when no layer gets smaller, DATASET_BAD when outputs are to be fitted and values
    are not finite.
    """
    run.phase(Phase.FACTORIZING)
    subject.graph.to(run.device)
    before = _sizes(subject)
    targets, left = _targets(subject, step, run)
    chosen, why_missed = _choose(subject, step, targets, left, before)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
        raise Failure(Code.NOTHING_TO_PRUNE, f"No layer can be taken apart and get smaller ({reasons}). Ask for more.")
    rows, made = [], []
    for place, target in enumerate(chosen):
        row, record = _take_apart(subject, target)
        rows.append(row)
        made.append(record)
        run.progress(0.5 + 0.5 * (place + 1) / len(chosen))
    subject.records.append(Record("factorize", {"layers": made}))
    after = _sizes(subject)
    return {
        "fit": step.fit,
        "samples": None if step.samples is None or run.data is None else min(step.samples, len(run.data.train)),
        **_reached(step, run, before, after, why_missed),
        "layers": rows,
        "left_whole": left,
    }


def replay(subject: Subject, record: Record) -> None:
    """Put parts of the same shapes in the same places; a checkpoint carries their values."""
    for layer in record.data["layers"]:
        weights = [torch.zeros(shape) for shape in layer["shapes"]]
        put_in_place(subject, layer["name"], layer["way"], weights, layer["core"])


def _sizes(subject: Subject) -> dict[str, int]:
    """Each quantity of the network as it is; sizes of all values are recorded on the way."""
    inputs = tuple(value.to(next(subject.graph.parameters()).device) for value in subject.example_inputs())
    stored = (*subject.graph.parameters(), *subject.graph.buffers())
    return {
        "parameters": parameters(subject.graph),
        "macs": sum(macs(subject.graph, inputs).values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
    }


def _targets(subject: Subject, step: FactorizeStep, run: Run) -> tuple[list[Target], dict[str, str]]:
    """The layers that may be taken apart, and for the others that multiply, why they stay whole."""
    left: dict[str, str] = {}
    ways: dict[str, tuple[FactorInfo, Way, Rank | None]] = {}
    for name, layer in factorable(subject.graph).items():
        policy = policy_for(step, name)
        reason = policy.unasked or (layer if isinstance(layer, str) else why_not(layer, policy.method, step.fit))
        if reason is not None:
            left[name] = reason
        elif isinstance(layer, FactorInfo):
            ways[name] = (layer, way_of(layer, policy.method), policy.rank)
    moments: dict[str, Tensor] = {}
    if step.samples is not None:
        inputs = {name: layer.inputs * math.prod(layer.kernel) for name, (layer, _, _) in ways.items()}
        moments = second_moments(subject, run, inputs, step.samples, lambda done: run.progress(0.3 * done))
    targets = []
    for place, (name, (layer, way, rank)) in enumerate(ways.items()):
        squares = spectra(_weight(subject, name), layer, way, moments.get(name))
        targets.append(Target(name, layer, way, rank, squares, moments.get(name)))
        run.progress(0.3 + 0.2 * (place + 1) / len(ways))
    return targets, left


def _choose(
    subject: Subject, step: FactorizeStep, targets: list[Target], left: dict[str, str], before: dict[str, int]
) -> tuple[list[Target], str | None]:
    """The layers that get smaller, with their ranks; the others are added to `left`. And where the step's amount was
    not reached, why."""
    found = []
    for target in targets:
        if target.rank is not None:
            ranks = ranks_by_rule(target.layer, target.way, target.rank, step.round_to, target.squares)
            if saves(target.layer, target.way, ranks):
                found.append(replace(target, ranks=ranks))
            else:
                full = full_ranks(target.layer, target.way)
                left[target.name] = f"rank {_shown(ranks)} of {_shown(full)} saves nothing"
    why = None
    if step.amount is not None:
        shared, why = _share(subject, step, step.amount, [each for each in targets if each.rank is None], found, before)
        free = {target.name: target for target in targets if target.rank is None}
        found += shared
        for target in shared:
            del free[target.name]
        left |= dict.fromkeys(free, "is whole at the amount asked for")
    order = [target.name for target in targets]
    return sorted(found, key=lambda target: order.index(target.name)), why


def _share(
    subject: Subject,
    step: FactorizeStep,
    amount: FactorAmount,
    free: list[Target],
    fixed: list[Target],
    before: dict[str, int],
) -> tuple[list[Target], str | None]:
    """Of the `free` layers those that get ranks so that, with the `fixed` ones, the amount is reached."""
    quantity = amount.quantity
    saving = before[quantity] - amount.left_of(before[quantity])
    for target in fixed:
        saving -= _saved(target, quantity, _item_bytes(subject, target.name))
    if not free or saving <= 0:
        return [], None
    menus = [
        menu(each.layer, each.way, each.squares, step.round_to, quantity, _item_bytes(subject, each.name))
        for each in free
    ]
    places = allocate(menus, saving, EXACT * before[quantity])
    pairs = list(zip(menus, places, strict=True))
    chosen = [
        replace(target, ranks=own.ranks[place]) for target, (own, place) in zip(free, pairs, strict=True) if place
    ]
    if all(place == len(own.costs) - 1 for own, place in pairs):
        return chosen, "every layer that may be taken apart has its lowest rank"
    return chosen, f"ranks are multiples of {step.round_to} (`round_to`), and at high ones a layer is better whole"


def _saved(target: Target, quantity: FactorQuantity, item_bytes: int) -> int:
    assert target.ranks is not None
    after, as_it_was = together(parts(target.layer, target.way, target.ranks)), whole(target.layer)
    if quantity == "macs":
        return as_it_was.macs - after.macs
    return (as_it_was.parameters - after.parameters) * (item_bytes if quantity == "bytes" else 1)


def _take_apart(subject: Subject, target: Target) -> tuple[dict[str, Any], dict[str, Any]]:
    """The layer's row in the report, and what `replay` needs."""
    assert target.ranks is not None
    factors = decompose(_weight(subject, target.name), target.layer, target.way, target.ranks, target.moments)
    names = put_in_place(subject, target.name, target.way, factors.weights, factors.core)
    before, after = whole(target.layer), together(parts(target.layer, target.way, target.ranks))
    row = {
        "name": target.name,
        "parts": names,
        "method": target.way,
        "rank_before": list(full_ranks(target.layer, target.way)),
        "rank": list(target.ranks),
        "energy": round(factors.energy, 6),
        "parameters_before": before.parameters,
        "parameters": after.parameters,
        "macs_before": before.macs,
        "macs": after.macs,
    }
    shapes = [list(weight.shape) for weight in factors.weights]
    return row, {"name": target.name, "way": target.way, "shapes": shapes, "core": factors.core}


def _reached(
    step: FactorizeStep, run: Run, before: dict[str, int], after: dict[str, int], why: str | None
) -> dict[str, Any]:
    """What went of the quantity that was asked for; a miss is said."""
    if step.amount is None:
        return {"quantity": None, "asked": None, "reached": None, "why_missed": None}
    quantity = step.amount.quantity
    size = before[quantity]
    asked, reached = 1 - step.amount.left_of(size) / size, 1 - after[quantity] / size
    missed = abs(asked - reached) > NEAR
    if missed:
        run.warn(
            "amount_not_reached",
            f"Asked to remove {asked:.1%} of the {quantity}, removed {reached:.1%}: "
            f"{why or 'layers with a rank of their own lose more than that already'}.",
        )
    return {
        "quantity": quantity,
        "asked": round(asked, 6),
        "reached": round(reached, 6),
        "why_missed": (why or "layers with a rank of their own lose more than that already") if missed else None,
    }


def _weight(subject: Subject, name: str) -> Tensor:
    return subject.graph.get_parameter(f"{name}.weight")


def _item_bytes(subject: Subject, name: str) -> int:
    return _weight(subject, name).element_size()


def _shown(ranks: Ranks) -> str:
    return " by ".join(map(str, ranks))
