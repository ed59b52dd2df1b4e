"""What a `factorize` step takes off a network, as far as that is known before weights are seen."""

from __future__ import annotations

from collections.abc import Sequence

from models.factors import fewest_ranks, fixed_ranks, parts, policy_for, saves, together, way_of, whole, why_not
from models.inspection import LayerInfo, NetworkInspection
from models.spec import FactorizeStep

_ITEM_BYTES = 4
"""Networks are taken in float32."""


def taken_off(
    step: FactorizeStep, network: NetworkInspection, *, sizes_are_known: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """By quantity, what goes at least and at most: the same where counts and ratios fix every rank and the sizes of all
    layers are still those of the inspection."""
    found = [_of_layer(step, layer, sizes_are_known) for layer in network.layers if layer.factors is not None]
    least, most = (
        [sum(each) for each in zip(*(ends[side] for ends in found), strict=True)] or [0, 0] for side in (0, 1)
    )
    return _by_quantity(*least), _by_quantity(*most)


def _of_layer(step: FactorizeStep, layer: LayerInfo, sizes_are_known: bool) -> Sequence[tuple[int, int]]:
    """Parameters and multiply-accumulates that go at least, and at most."""
    policy, info = policy_for(step, layer.name), layer.factors
    assert info is not None
    if policy.unasked is not None or why_not(info, policy.method, step.fit) is not None:
        return (0, 0), (0, 0)
    before, way = whole(info), way_of(info, policy.method)
    if not sizes_are_known:
        return (0, 0), (before.parameters, before.macs)
    fixed = None if policy.rank is None else fixed_ranks(info, way, policy.rank, step.round_to)
    ranks = fixed or fewest_ranks(info, way, step.round_to)
    if not saves(info, way, ranks):
        return (0, 0), (0, 0)
    after = together(parts(info, way, ranks))
    gone = (before.parameters - after.parameters, before.macs - after.macs)
    return (gone if fixed is not None else (0, 0)), gone


def _by_quantity(parameters: int, macs: int) -> dict[str, int]:
    return {"parameters": parameters, "macs": macs, "bytes": parameters * _ITEM_BYTES}
