"""Which groups a prune step may shrink, each with its policy, and why it leaves the others alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from models.errors import Code, Failure
from models.prune_policy import Policy, policy_for
from models.spec import PruneStep
from worker.engine.graph.channels import Channels
from worker.engine.prune.structure import Part, parts_of
from worker.engine.score.units import Scoring, unscorable


@dataclass(frozen=True)
class Member:
    """A group that may shrink, and what the spec asks of it."""

    part: Part
    policy: Policy

    def scoring(self, step: PruneStep) -> Scoring:
        return Scoring(self.policy.criterion, step.aggregate, self.policy.normalize, step.normalize_over)


@dataclass(frozen=True)
class LeftAlone:
    """A group that no criterion can rank."""

    id: str
    reason: str


def free_groups(channels: Channels, step: PruneStep) -> tuple[list[Member], list[LeftAlone]]:
    """Raises `Failure`: `nothing_to_prune`, or `no_layer_matches` for a glob that no layer's name matches."""
    if not channels.groups:
        reasons = sorted({f"{layer.name} {layer.frozen}" for layer in channels.layers if layer.frozen})[:5]
        raise Failure(Code.NOTHING_TO_PRUNE, "No channel of this network can be removed: " + "; ".join(reasons) + ".")
    _check_globs(step, [layer.name for layer in channels.layers])
    parts = parts_of(channels, step.structure)
    if not parts:
        whole = " as a whole" if step.structure == "groups" else ""
        raise Failure(Code.NOTHING_TO_PRUNE, f"The network has no {step.structure} that can be removed{whole}.")
    members = [Member(part, policy_for(step, part.layers)) for part in parts]
    free = [member for member in members if not member.policy.skip]
    if not free:
        raise Failure(Code.NOTHING_TO_PRUNE, "Every group of channels has a layer that `layers` skips.")
    return _scorable(channels, free, step)


def _check_globs(step: PruneStep, names: Sequence[str]) -> None:
    for choice in step.layers:
        if not any(fnmatchcase(name, choice.match) for name in names):
            near = difflib.get_close_matches(choice.match, names, n=3, cutoff=0.0)
            raise Failure(
                Code.NO_LAYER_MATCHES,
                f"`{choice.match}` matches no layer. The nearest names are {', '.join(near)}.",
                where=choice.match,
            )


def _scorable(channels: Channels, free: Sequence[Member], step: PruneStep) -> tuple[list[Member], list[LeftAlone]]:
    """One ranking passes over groups that its criterion cannot rank; the same fraction of every group, or a group's
    own amount, cannot be had without them."""
    left, alone = [], []
    for member in free:
        if reason := unscorable(channels, member.part.scored, member.policy.criterion):
            alone.append((member, LeftAlone(member.part.group.id, reason)))
        else:
            left.append(member)
    wanted = [why for member, why in alone if step.scope == "layer" or member.policy.amount is not None]
    if wanted or not left:
        what = "; ".join(f"{why.id} {why.reason}" for _, why in alone[:5])
        remedy = 'use another criterion, such as "l2"'
        if left:
            remedy += ', skip their layers, or use `"scope": "global"`, which leaves them alone'
        raise Failure(
            Code.NOTHING_TO_PRUNE, f"There are groups of channels that cannot be ranked: {what}. To go on, {remedy}."
        )
    return left, [why for _, why in alone]
