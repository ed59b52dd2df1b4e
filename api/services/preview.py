"""What a dry run shows beside the resolved spec."""

from __future__ import annotations

from fnmatch import fnmatchcase

from api.services.specs import CheckedSpec
from models.spec import PruneStep, Spec
from models.tables import dump
from models.views import DryRun, DryRunGroup, ExpectedStep


def preview(checked: CheckedSpec) -> DryRun:
    prunes = [step for step in checked.resolved.steps or () if isinstance(step, PruneStep)]
    groups = [
        DryRunGroup(
            **group.model_dump(),
            skipped=bool(prunes) and all(_is_skipped(group.layers, step) for step in prunes),
        )
        for group in checked.network.groups
    ]
    return DryRun(
        resolved_spec=dump(checked.resolved),
        groups=groups,
        steps=_expected(checked.resolved, checked.network.macs, checked.network.parameters),
    )


def _is_skipped(layers: list[str], step: PruneStep) -> bool:
    return any(fnmatchcase(layer, choice.match) for layer in layers for choice in step.layers)


def _expected(spec: Spec, macs: int | None, parameters: int | None) -> list[ExpectedStep]:
    """Pruning one quantity fixes that one and leaves the others unknown; the other steps change none."""
    expected = []
    for index, step in enumerate(spec.steps or ()):
        if isinstance(step, PruneStep):
            kept = 1 - step.amount.fraction
            quantity = step.amount.quantity
            macs = round(macs * kept) if macs is not None and quantity == "macs" else None
            parameters = round(parameters * kept) if parameters is not None and quantity == "parameters" else None
        expected.append(ExpectedStep(index=index, step=step.step, macs=macs, parameters=parameters))
    return expected
