"""How much of an amount is gone after each round of a schedule."""

from __future__ import annotations

from models.spec_prune import Schedule


def gone_after(schedule: Schedule | None, number: int, amount: float) -> float:
    """The part of `amount` (a fraction of what there was) that is gone after round `number`, counted from 1.

    The cubic curve is equation 1 of Zhu and Gupta (2017) with pruning at every round; the exponential one removes the
    same fraction of what is left in each (Frankle and Carbin, 2019). Without a schedule the one round has it all.
    """
    if schedule is None or number >= schedule.rounds:
        return amount
    done = number / schedule.rounds
    if schedule.curve == "linear":
        return amount * done
    if schedule.curve == "cubic":
        return float(amount - amount * (1 - done) ** 3)
    return float(1 - (1 - amount) ** done)
