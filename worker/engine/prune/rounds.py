"""What a prune step has done so far, round by round: enough to go on in another process, and to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from models.prune_policy import normalization
from models.report import Latency
from models.spec import PruneStep
from worker.engine.graph.channels import Channels
from worker.engine.prune.amounts import Beginning, signature
from worker.engine.prune.choose import Choice
from worker.engine.prune.groups import Member
from worker.engine.prune.latency import Timing
from worker.engine.prune.select import Candidate
from worker.engine.subject import StepState

_KEY = "pruning"
"""Of what `StepState.data` holds of this step, beside the state of the training that is under way."""


_END = ("asked", "reached", "left", "why_missed", "limit", "measured", "gradients", "left_alone")


@dataclass
class History:
    """`groups` has a row of the report for every group that may shrink, by its signature; `rounds` one for each."""

    beginning: Beginning
    groups: dict[str, dict[str, Any]]
    at_start: Timing | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, channels: Channels, members: Sequence[Member]) -> History:
        beginning = Beginning.of(channels, [member.part.group for member in members])
        rows = {
            signature(member.part.group): {
                "id": member.part.group.id,
                "units_before": len(member.part.group.units),
                "units_after": len(member.part.group.units),
                "layers": list(member.part.layers),
                "criterion": member.policy.criterion,
                "choice": member.policy.entry,
            }
            for member in members
        }
        return cls(beginning, rows)

    @property
    def removed(self) -> int:
        """Units that are gone."""
        return sum(row["units_before"] - row["units_after"] for row in self.groups.values())

    def add(self, number: int, candidates: Sequence[Candidate], choice: Choice, **facts: Any) -> None:
        """A round has cut."""
        gone = set(choice.removed)
        for candidate in candidates:
            row = self.groups.get(signature(candidate.group))
            if row is not None:
                row["units_after"] -= len(gone & set(candidate.order))
        self.rounds.append(
            {
                "round": number,
                "asked": choice.asked,
                "reached": round(choice.reached, 6),
                "left": choice.left,
                "units_removed": len(choice.removed),
                "why_missed": choice.why,
                "limit": choice.limit,
                "measured": choice.measured,
                **facts,
            }
        )

    def as_state(self, inside: StepState | None = None) -> StepState:
        """Between two rounds, or inside the training that follows one."""
        own = {
            "beginning": asdict(self.beginning),
            "groups": self.groups,
            "at_start": None if self.at_start is None else _latencies(self.at_start),
            "rounds": self.rounds,
        }
        if inside is None:
            return StepState({"epoch": None, _KEY: own}, {})
        return StepState({**inside.data, _KEY: own}, inside.tensors)

    @classmethod
    def from_state(cls, state: StepState) -> History:
        own = state.data[_KEY]
        start = own["at_start"]
        timing = None if start is None else Timing(*(Latency.model_validate(latency) for latency in start))
        return cls(Beginning(**own["beginning"]), own["groups"], timing, own["rounds"])

    def details(self, step: PruneStep, **facts: Any) -> dict[str, Any]:
        """What the report says about the step: how it ended, then every round of a schedule."""
        last = self.rounds[-1]
        end = {name: last[name] for name in _END}
        quantity = None if step.amount is None else step.amount.quantity
        return {
            "structure": step.structure,
            "criterion": step.criterion,
            "aggregate": step.aggregate,
            "normalize": normalization(step, None),
            "normalize_over": step.normalize_over,
            "quantity": quantity or "channels",
            **end,
            "mask_check": max(row["mask_check"] for row in self.rounds),
            "groups": list(self.groups.values()),
            **facts,
            **({} if step.schedule is None else {"curve": step.schedule.curve, "rounds": self.rounds}),
        }


def _latencies(timing: Timing) -> list[dict[str, Any]]:
    return [timing.network.model_dump(), timing.original.model_dump()]
