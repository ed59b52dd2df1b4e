"""P34: the collector runs all the while that jobs, uploads and artifacts come and go."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.models.collecting import QUICK, machine_on
from tests.promises.outcome import Outcome
from tests.promises.place import Place


def collector_races_jobs(place: Place, injections: int) -> Outcome:
    """Orders of events, each drawn anew: collections whole and step by step, between all that names bytes or forgets
    them. After every event, whatever a row names is there; in the end, what none names is not."""
    machine = machine_on(place.fleet.database)
    outcome = Outcome(injections, seconds=machine.seconds)
    try:
        run_state_machine_as_test(machine, settings=settings(QUICK, max_examples=injections))
    except AssertionError as error:
        outcome.lost += 1
        outcome.broken.append(str(error))
    return outcome
