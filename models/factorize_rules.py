"""What a `factorize` step may ask of a network, and what a network is called after one; a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from models.errors import FieldProblem
from models.factors import fewest_ranks, fixed_ranks, full_ranks, policy_for, saves, way_of, why_not
from models.globs import unmatched
from models.inspection import GroupInfo, LayerInfo, NetworkInspection
from models.spec import FactorizeStep, PruneStep, Spec, Step
from models.spec_factorize import FactorAmount

FACTORABLE_KINDS = (
    "Linear",
    *("Conv1d", "Conv2d", "Conv3d"),
    *("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
)
"""Kinds of layers that thinner ones can take the place of."""
_PARTS = 3
"""As many as take the place of one layer at most."""


def check_factorize(
    spec: Spec, step: FactorizeStep, earlier: Sequence[Step], network: NetworkInspection, pointer: str
) -> Iterable[FieldProblem]:
    """`earlier` are the steps before it; its globs are known to match something."""
    if step.fit == "outputs" and spec.data is None:
        message = (
            "Outputs are fitted on data; labels are not needed. Upload some (`POST /datasets`) and give "
            '`"data": {"dataset": "dat_…"}`, or leave `fit` out.'
        )
        yield FieldProblem(pointer=f"{pointer}/fit", message=message)
    layers = [layer for layer in network.layers if layer.kind in FACTORABLE_KINDS and layer.factors is not None]
    if not layers:
        message = (
            "No layer of this network can be taken apart: it has no linear or convolutional layer whose weight is its "
            "own and whose channels are not in groups."
        )
        yield FieldProblem(pointer=pointer, message=message)
        return
    for index, glob in unmatched([choice.match for choice in step.layers], layers):
        if not step.layers[index].skip:
            message = (
                f"{glob!r} matches no layer that can be taken apart: those are linear or convolutional, with "
                "a weight of their own and channels that are not in groups."
            )
            yield FieldProblem(pointer=f"{pointer}/layers/{index}/match", message=message)
    asked = [layer for layer in layers if policy_for(step, layer.name).unasked is None]
    if not asked:
        message = "Every layer that could be taken apart is skipped, or has no rank: skip fewer, or give `rank`."
        yield FieldProblem(pointer=f"{pointer}/layers", message=message)
        return
    if any(isinstance(before, PruneStep | FactorizeStep) for before in earlier):
        return  # Only those steps know the sizes that are left.
    if not any(_may_shrink(step, layer) for layer in asked):
        largest = max(asked, key=lambda layer: layer.parameters)
        message = (
            f"Nothing would get smaller: {_why_nothing(step, largest)}. Ask for a lower rank, or lower `round_to`."
        )
        yield FieldProblem(pointer=pointer, message=message)
    if step.amount is not None:
        yield from _check_amount(step.amount, network, pointer)


def check_names_of_parts(
    step: Step, earlier: Sequence[Step], network: NetworkInspection, pointer: str
) -> Iterable[FieldProblem]:
    """Of a step after `earlier`: a glob that means a layer has to mean what takes its place too. `network` is the one
    that was inspected."""
    choices = [choice.match for choice in getattr(step, "layers", ())]
    for number, before in enumerate(earlier):
        if not isinstance(before, FactorizeStep):
            continue
        names = [layer.name for layer in _taken_apart(before, network)]
        for index, match in enumerate(choices):
            for name in names:
                if fnmatchcase(name, match) and not any(fnmatchcase(f"{name}.0", other) for other in choices):
                    message = (
                        f"Step {number} (`factorize`) puts {name}.0, {name}.1 … in the place of {name}, and {match!r} "
                        f"does not match those: give {name + '*'!r}, another entry for {name + '.*'!r}, or skip {name} "
                        "there."
                    )
                    yield FieldProblem(pointer=f"{pointer}/layers/{index}/match", message=message)
                    break


def with_parts(network: NetworkInspection, earlier: Sequence[Step]) -> NetworkInspection:
    """`network` as later steps may name it: with what could take the place of each layer beside the layer. Parts of
    parts have no name before they are there."""
    apart: dict[str, LayerInfo] = {}
    for step in earlier:
        if isinstance(step, FactorizeStep):
            apart |= {layer.name: layer for layer in _taken_apart(step, network)}
    if not apart:
        return network
    parts = {name: [f"{name}.{number}" for number in range(_PARTS)] for name in apart}
    layers = [
        named
        for layer in network.layers
        for named in (layer, *(layer.model_copy(update={"name": name}) for name in parts.get(layer.name, ())))
    ]
    groups = []
    for group in network.groups:
        later = [name for own in group.layers for name in parts.get(own, [])[1:]]
        groups.append(group.model_copy(update={"layers": [*group.layers, *later]}))
    ranks = [
        GroupInfo(id=names[0], units=apart[name].shape[0], layers=names[:-1], consumers=names[1:])
        for name, names in parts.items()
    ]
    return network.model_copy(update={"layers": layers, "groups": [*groups, *ranks]})


def _taken_apart(step: FactorizeStep, network: NetworkInspection) -> list[LayerInfo]:
    """The layers that the step may take apart; which it does, the weights decide."""
    return [
        layer
        for layer in network.layers
        if layer.factors is not None and policy_for(step, layer.name).unasked is None and _may_shrink(step, layer)
    ]


def _may_shrink(step: FactorizeStep, layer: LayerInfo) -> bool:
    policy, info = policy_for(step, layer.name), layer.factors
    if info is None or why_not(info, policy.method, step.fit) is not None:
        return False
    way = way_of(info, policy.method)
    fixed = None if policy.rank is None else fixed_ranks(info, way, policy.rank, step.round_to)
    return saves(info, way, fixed or fewest_ranks(info, way, step.round_to))


def _why_nothing(step: FactorizeStep, layer: LayerInfo) -> str:
    policy, info = policy_for(step, layer.name), layer.factors
    assert info is not None
    if (reason := why_not(info, policy.method, step.fit)) is not None:
        return f"of {layer.name}, {reason}"
    way = way_of(info, policy.method)
    fixed = None if policy.rank is None else fixed_ranks(info, way, policy.rank, step.round_to)
    ranks = fixed or fewest_ranks(info, way, step.round_to)
    shown, full = " by ".join(map(str, ranks)), " by ".join(map(str, full_ranks(info, way)))
    return f"{layer.name} has as many parameters or multiply-accumulates at rank {shown} of {full} as whole"


def _check_amount(amount: FactorAmount, network: NetworkInspection, pointer: str) -> Iterable[FieldProblem]:
    there = {"parameters": network.parameters, "macs": network.macs}
    if amount.target is not None and amount.quantity in there and amount.left_of(0) >= there[amount.quantity]:
        message = (
            f"Nothing would be removed: the network has {there[amount.quantity]:,} {amount.quantity}, which is no more "
            "than what is to be left. Lower the target."
        )
        yield FieldProblem(pointer=f"{pointer}/amount/target/{amount.quantity}", message=message)
