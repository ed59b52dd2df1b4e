"""Why an amount was not reached, and which group is to blame."""

from __future__ import annotations

from collections.abc import Sequence

from models.prune_search import Levels, moves
from models.spec import PruneStep
from worker.engine.graph.channels import Channels, Group
from worker.engine.prune.select import Candidate, Goal, removed_by

_WORTH_NAMING = 0.001


def why_missed(
    step: PruneStep,
    channels: Channels,
    candidates: Sequence[Candidate],
    fixed: Sequence[int | None],
    levels: Levels,
    goal: Goal,
) -> tuple[str, str | None] | None:
    """In words, and the id of the group that limits, if one does; nothing when `goal` was reached."""
    removed = removed_by(candidates, levels)
    reached = goal.gone(removed)
    if abs(reached - goal.wanted) <= goal.near:
        return None
    steps = {moved: goal.gone(removed_by(candidates, moved)) - reached for moved in moves(candidates, fixed, levels)}
    towards = {moved: change for moved, change in steps.items() if (change > 0) == (reached < goal.wanted) and change}
    if towards:
        moved = min(towards, key=lambda moved: abs(towards[moved]))
        group, units = _moved(candidates, levels, moved)
        return f"the smallest step, {units} units of {group}, is {abs(towards[moved]):.1%}", group
    if reached > goal.wanted:
        return "the amounts of `layers` by themselves remove more", None
    return _what_holds(step, channels, candidates, removed, goal, reached)


def _moved(candidates: Sequence[Candidate], before: Levels, after: Levels) -> tuple[str, int]:
    for candidate, old, new in zip(candidates, before, after, strict=True):
        if old != new:
            return candidate.group.id, abs(candidate.choices[new] - candidate.choices[old])
    raise ValueError("nothing moved")


def _what_holds(
    step: PruneStep,
    channels: Channels,
    candidates: Sequence[Candidate],
    removed: Sequence[int],
    goal: Goal,
    reached: float,
) -> tuple[str, str | None]:
    """Of the groups that could lose more, were it not for the spec, the one that holds most."""
    gone = set(removed)
    most, holder = 0.0, None
    for group in channels.groups:
        rest = [unit for unit in group.units if unit not in gone]
        more = goal.gone(tuple(sorted([*gone, *rest[1:]]))) - reached if len(rest) > 1 else 0.0
        if more > most:
            most, holder = more, group
    if holder is None or most < _WORTH_NAMING:
        return "every group is at its smallest; the rest is in layers that cannot lose channels", None
    candidate = next((each for each in candidates if each.group == holder), None)
    bound = _bound(step, holder, candidate)
    return f"every group is at its smallest; {holder.id} holds most, {most:.1%}, because of {bound}", holder.id


def _bound(step: PruneStep, group: Group, candidate: Candidate | None) -> str:
    if candidate is None:
        return "what the spec skips or its criterion cannot rank"
    policy = candidate.policy
    if policy.amount is not None:
        return f"its own amount (`layers/{policy.entry}`)"
    left = len(candidate.order) - candidate.choices[-1]
    if left == policy.minimum and left > 1:
        return f"`minimum` ({policy.minimum})"
    if policy.maximum_fraction < 1 and left >= candidate.units_at_start * (1 - policy.maximum_fraction):
        return f"`maximum_fraction` ({policy.maximum_fraction:g})"
    return f"`round_to` ({policy.round_to})"
