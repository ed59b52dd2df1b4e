"""What a dry run shows beside the resolved spec."""

from __future__ import annotations

from collections.abc import Sequence

from api.services.specs import CheckedSpec
from models.foretell import Bounds, Left, foretell
from models.inspection import GroupInfo
from models.prune_policy import layers_of, policy_for
from models.spec import PruneStep
from models.tables import dump
from models.views import DryRun, DryRunGroup, ExpectedSize, ExpectedStep, ExpectedUnits


def preview(checked: CheckedSpec) -> DryRun:
    steps = checked.resolved.steps or []
    prunes = [step for step in steps if isinstance(step, PruneStep)]
    foretold = foretell(steps, checked.network)
    unknown = len(steps) - len(foretold)
    ends: Sequence[Bounds | None] = [None] * len(checked.network.groups) if unknown else foretold[-1].units
    groups = [
        DryRunGroup(
            **group.model_dump(),
            skipped=bool(prunes) and all(_is_skipped(step, group) for step in prunes),
            units_left=None if end is None else ExpectedUnits(least=end.least, most=end.most),
        )
        for group, end in zip(checked.network.groups, ends, strict=True)
    ]
    rows: Sequence[Left | None] = [*foretold, *[None] * unknown]
    return DryRun(
        resolved_spec=dump(checked.resolved),
        groups=groups,
        steps=[
            ExpectedStep(
                index=index,
                step=step.step,
                parameters=_size(left, "parameters"),
                macs=_size(left, "macs"),
                bytes=_size(left, "bytes"),
            )
            for index, (step, left) in enumerate(zip(steps, rows, strict=True))
        ],
    )


def _size(left: Left | None, quantity: str) -> ExpectedSize | None:
    if left is None:
        return None
    bounds = left.quantities[quantity]
    return ExpectedSize(least=bounds.least, most=bounds.most, asked=left.asked.get(quantity))


def _is_skipped(step: PruneStep, group: GroupInfo) -> bool:
    layers = layers_of(step, group)
    return not layers or policy_for(step, layers).skip
