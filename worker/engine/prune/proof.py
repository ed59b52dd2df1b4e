"""Cutting with a proof: the cut network must be the uncut one with the removed units silenced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, fx

from models.errors import Code, Failure
from worker.engine.graph.channels import Channels, analyse
from worker.engine.graph.copies import sharing_copy
from worker.engine.graph.maskcheck import TOLERANCE, prove

CutUnits = Callable[[Channels, Sequence[int]], Tensor]


def cut_and_prove(
    channels: Channels, removed: Sequence[int], inputs: tuple[Tensor, ...], cut: CutUnits
) -> tuple[Tensor, float]:
    """Cut `channels.graph` in place. The removed ids, and the largest relative difference to the masked network.

    Raises `Failure(VERIFICATION_FAILED)` that names the group when they are not the same.
    """
    before = sharing_copy(channels.graph)  # a cut makes tensors anew, and changes none
    record = cut(channels, removed)
    difference = prove(before, channels, removed, channels.graph, inputs)
    if not difference <= TOLERANCE:
        group = _culprit(before, channels, removed, inputs, cut)
        raise Failure(
            Code.VERIFICATION_FAILED,
            f"The network without the channels of {group} is not the one with these channels silenced: outputs differ "
            f"by {difference:.1e} of their size, {TOLERANCE:.0e} is allowed. Skip its layers and report this network.",
            where=group,
        )
    return record, difference


def _culprit(
    before: fx.GraphModule, channels: Channels, removed: Sequence[int], inputs: tuple[Tensor, ...], cut: CutUnits
) -> str:
    """The first group that fails when it is cut alone."""
    for group in channels.groups:
        own = sorted(set(group.units) & set(removed))
        if own:
            graph = copy.deepcopy(before)
            again = analyse(graph, inputs)
            cut(again, own)
            if not prove(before, again, own, graph, inputs) <= TOLERANCE:
                return group.id
    return "several groups together"
