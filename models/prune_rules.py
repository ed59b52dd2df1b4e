"""What a `prune` step may ask of a network and its data; a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from models.criteria import UnitCriterion, needs_gradients
from models.criterion_rules import check_batch_norm, check_differentiation, check_gradients
from models.errors import FieldProblem
from models.foretell import cuts_nothing
from models.globs import check_globs
from models.inspection import DatasetInspection, GroupInfo, NetworkInspection
from models.prune_policy import Policy, first_match, layers_of, mixes_criteria, policy_for, removable_counts
from models.spec import PruneStep, Spec
from models.train_rules import check_schedule

_STRUCTURES = {
    "columns": "input features to remove",
    "heads": "attention heads that can be removed",
    "groups": "branches that could go as a whole",
}


@dataclass(frozen=True)
class _Free:
    """A group that may shrink."""

    group: GroupInfo
    policy: Policy

    @property
    def counts(self) -> list[int]:
        """How many of its units may go."""
        return removable_counts(self.group.units, self.group.widths, self.policy)


def check_prune(
    spec: Spec,
    step: PruneStep,
    network: NetworkInspection,
    dataset: DatasetInspection | None,
    pointer: str,
    *,
    first: bool,
) -> Iterable[FieldProblem]:
    """`first`: nothing was cut before, so that sizes are known."""
    yield from check_schedule(spec, network, dataset, step.schedule, pointer)
    field = f"{pointer}/criterion" if spec.steps is not None else pointer
    yield from check_gradients(spec, network, step.criterion, field)
    yield from check_differentiation(spec, network, dataset, _differentiated(step), step, pointer)
    for index, choice in enumerate(step.layers):
        if choice.criterion is not None:
            where = f"{pointer}/layers/{index}/criterion"
            yield from check_gradients(spec, network, choice.criterion, where)
    if not network.groups:
        reasons = [f"{layer.name} {layer.reason}" for layer in network.layers if layer.reason is not None]
        because = f": {'; '.join(reasons[:3])}" if reasons else ""
        yield FieldProblem(pointer=pointer, message=f"No channels of this network can be removed{because}.")
    problems = list(check_globs([choice.match for choice in step.layers], network.layers, pointer))
    problems = problems or list(_check_structure(step, network, pointer))
    problems = problems or list(_check_choices(step, network, pointer))
    yield from problems
    if problems or not network.groups or not first:
        return
    policies = [_Free(group, policy_for(step, layers_of(step, group))) for group in _groups(step, network)]
    free = [each for each in policies if not each.policy.skip]
    if not free:
        message = "Every group of channels has a layer that is skipped, so nothing would be removed: skip fewer."
        yield FieldProblem(pointer=f"{pointer}/layers", message=message)
        return
    problems = list(_check_bare_groups(step, network, free, pointer))
    if step.structure != "groups":
        problems = problems or list(_check_room(step, free, pointer))
    elif step.scope == "global" and mixes_criteria(step):
        message = (
            "Whole groups are ranked by their scores as they are, and those of several criteria do not compare: use "
            "one `criterion`, or give layers with another an `amount` of their own."
        )
        problems.append(FieldProblem(pointer=f"{pointer}/layers", message=message))
    problems = problems or list(_check_amounts(step, network, free, pointer))
    if not problems and cuts_nothing(step, network):
        message = (
            f"Nothing would be removed: channels go so many at a time (`round_to` is {step.round_to}), and none at all "
            "come nearest to what is asked for. Ask for more or lower `round_to`."
        )
        where = f"{pointer}/amount" if spec.steps is not None and step.amount is not None else pointer
        problems = [FieldProblem(pointer=where, message=message)]
    yield from problems


def _differentiated(step: PruneStep) -> UnitCriterion:
    """A criterion of the step that needs gradients, if it has any."""
    criteria = [step.criterion, *(choice.criterion or step.criterion for choice in step.layers)]
    return next(filter(needs_gradients, criteria), step.criterion)


def _groups(step: PruneStep, network: NetworkInspection) -> list[GroupInfo]:
    """Those that the structure means."""
    return [group for group in network.groups if layers_of(step, group)]


def _check_structure(step: PruneStep, network: NetworkInspection, pointer: str) -> Iterable[FieldProblem]:
    if network.groups and not _groups(step, network):
        message = f'This network has no {_STRUCTURES[step.structure]}: use `"structure": "channels"`.'
        yield FieldProblem(pointer=f"{pointer}/structure", message=message)
    elif step.structure == "columns":
        chosen = [(step.criterion, "criterion")]
        chosen += [(c.criterion, f"layers/{i}/criterion") for i, c in enumerate(step.layers) if c.criterion is not None]
        for criterion, where in chosen:
            if criterion == "bn_gamma":
                message = (
                    "`columns` are ranked by the weights that read them, and those have no BatchNorm of their own."
                )
                yield FieldProblem(pointer=f"{pointer}/{where}", message=f"{message} Use another criterion.")


def _check_choices(step: PruneStep, network: NetworkInspection, pointer: str) -> Iterable[FieldProblem]:
    """A choice that no layer, or no group of channels, would follow; each matches some layer."""
    names = [layer.name for layer in network.layers]
    groups = [(group, policy_for(step, layers_of(step, group)).entry) for group in _groups(step, network)]
    for index, choice in enumerate(step.layers):
        matched = [name for name in names if fnmatchcase(name, choice.match)]
        earlier = {first_match(step.layers, name) for name in matched}
        if index not in earlier:
            before = ", ".join(
                repr(step.layers[place].match) for place in sorted(place for place in earlier if place is not None)
            )
            message = f"This never counts: {before} before it matches the same layers, and the first that does counts."
            yield FieldProblem(pointer=f"{pointer}/layers/{index}/match", message=f"{message} Put this one first.")
        elif not choice.skip and all(entry != index for _, entry in groups):
            yield FieldProblem(
                pointer=f"{pointer}/layers/{index}/match",
                message=f"This changes nothing: {_why_without_effect(step, network, matched)}.",
            )


def _why_without_effect(step: PruneStep, network: NetworkInspection, matched: Sequence[str]) -> str:
    for group in _groups(step, network):
        names = layers_of(step, group)
        shared = [name for name in matched if name in names]
        if shared:
            entry = policy_for(step, names).entry
            assert entry is not None
            others = [name for name in names if first_match(step.layers, name) == entry]
            return f"{shared[0]} shrinks together with {others[0]}, which {step.layers[entry].match!r} matches"
    if step.structure == "columns":
        return f"no input features of {matched[0]} can be removed"
    layer = next(layer for layer in network.layers if layer.name == matched[0])
    return f"{layer.name} {layer.reason or f'has no {step.structure} that can be removed'}"


def _check_bare_groups(
    step: PruneStep, network: NetworkInspection, free: Sequence[_Free], pointer: str
) -> Iterable[FieldProblem]:
    """A criterion that needs a BatchNorm, in groups without one."""
    for entry in {each.policy.entry for each in free}:
        groups = [each for each in free if each.policy.entry == entry]
        own = groups[0].policy
        choice = step.layers[entry] if entry is not None else None
        chosen = choice is not None and choice.criterion is not None
        where = f"{pointer}/layers/{entry}/criterion" if chosen else f"{pointer}/criterion"
        scope = "layer" if own.amount is not None else step.scope
        yield from check_batch_norm(network, [each.group for each in groups], own.criterion, scope, where)


def _check_room(step: PruneStep, free: Sequence[_Free], pointer: str) -> Iterable[FieldProblem]:
    """Whether any group can shrink at all."""
    if any(len(each.counts) > 1 for each in free):
        return
    widest = max(each.group.units * max(each.group.widths, default=1) for each in free)
    if widest <= step.round_to:
        message = (
            f"Nothing would be removed: no group has more than {widest} channels, and `round_to` keeps multiples "
            f"of {step.round_to}. Lower `round_to`."
        )
        yield FieldProblem(pointer=f"{pointer}/round_to", message=message)
        return
    message = (
        "Nothing would be removed: `round_to`, `minimum` and `maximum_fraction` together let no group shrink "
        f"(the widest that may has {widest} channels). Relax them."
    )
    yield FieldProblem(pointer=pointer, message=message)


def _check_amounts(
    step: PruneStep, network: NetworkInspection, free: Sequence[_Free], pointer: str
) -> Iterable[FieldProblem]:
    """Amounts that remove nothing, or more than a layer may lose."""
    for index, choice in enumerate(step.layers):
        own = [each for each in free if each.policy.entry == index]
        target = choice.amount.target if choice.amount is not None else None
        if target is None or not own:
            continue
        where = f"{pointer}/layers/{index}/amount/target/channels"
        largest = max(each.group.units for each in own)
        if target.channels >= largest:
            message = f"Nothing would be removed: no group that this is for has more than {largest} channels."
            yield FieldProblem(pointer=where, message=message)
        elif target.channels < own[0].policy.minimum:
            message = f"`minimum` keeps {own[0].policy.minimum} at least. Raise this or lower that."
            yield FieldProblem(pointer=where, message=message)
    amount = step.amount
    if amount is None:
        return
    units = sum(each.group.units for each in free)
    if amount.channels is not None and amount.channels * units < 1:
        message = (
            f"Nothing would be removed: {amount.channels:g} of {units} channels is less than one. "
            f"Ask for at least {1 / units:.2g}."
        )
        yield FieldProblem(pointer=f"{pointer}/amount/channels", message=message)
    there = {"channels": units, "parameters": network.parameters, "macs": network.macs}
    if amount.left is not None and amount.quantity in there and amount.left >= there[amount.quantity]:
        message = (
            f"Nothing would be removed: the network has {there[amount.quantity]:,} {amount.quantity}, which is no more "
            "than what is to be left. Lower the target."
        )
        yield FieldProblem(pointer=f"{pointer}/amount/target/{amount.quantity}", message=message)
