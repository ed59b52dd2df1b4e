"""What a dry run shows beside the resolved spec."""

from __future__ import annotations

from api.services.specs import CheckedSpec
from models.inspection import GroupInfo
from models.prune_policy import layers_of, policy_for
from models.spec import PruneStep, Quantity, Spec
from models.tables import dump
from models.views import DryRun, DryRunGroup, ExpectedStep


def preview(checked: CheckedSpec) -> DryRun:
    prunes = [step for step in checked.resolved.steps or () if isinstance(step, PruneStep)]
    groups = [
        DryRunGroup(
            **group.model_dump(),
            skipped=bool(prunes) and all(_is_skipped(step, group) for step in prunes),
        )
        for group in checked.network.groups
    ]
    return DryRun(
        resolved_spec=dump(checked.resolved),
        groups=groups,
        steps=_expected(checked.resolved, checked.network.macs, checked.network.parameters),
    )


def _is_skipped(step: PruneStep, group: GroupInfo) -> bool:
    layers = layers_of(step, group)
    return not layers or policy_for(step, layers).skip


def _left(step: PruneStep, quantity: Quantity, before: int | None) -> int | None:
    """Of a quantity, where the amount is said in it."""
    amount = step.amount
    if amount is None or amount.quantity != quantity:
        return None
    if amount.left is not None:
        return round(amount.left)
    return None if before is None or amount.fraction is None else round(before * (1 - amount.fraction))


def _expected(spec: Spec, macs: int | None, parameters: int | None) -> list[ExpectedStep]:
    """Pruning one quantity fixes that one and leaves the others unknown; the other steps change none."""
    expected = []
    for index, step in enumerate(spec.steps or ()):
        if isinstance(step, PruneStep):
            macs = _left(step, "macs", macs)
            parameters = _left(step, "parameters", parameters)
        expected.append(ExpectedStep(index=index, step=step.step, macs=macs, parameters=parameters))
    return expected
