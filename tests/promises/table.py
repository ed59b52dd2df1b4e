"""Every row: the promise, its fault, how often it is brought about, and on which clocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.promises import (
    any_request,
    collector,
    crowd,
    disks,
    engines,
    guessing,
    host,
    hostile,
    rolling,
    rot,
    stolen,
    submitting,
    training,
    uploading,
    webhooks,
    workers,
)
from tests.promises.outcome import Outcome
from tests.promises.place import Place

FAST = 0.05


@dataclass(frozen=True)
class Row:
    """`short` and `full` are how many faults; `timed` says what the seconds are. `disk_megabytes`: blobs lie on a file
    system of that size, in memory. `names_hosts`: workers run on hosts with names of their own."""

    promise: str
    fault: str
    run: Callable[[Place, int], Outcome]
    short: int
    full: int
    timed: str
    scale: float = FAST
    on_postgres: bool = False
    disk_megabytes: int | None = None
    names_hosts: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        where = " on PostgreSQL" if self.on_postgres else ""
        return f"{self.promise} {self.fault}{where}" + (" at full clocks" if self.scale == 1 else "")

    def hindrance(self) -> str | None:
        """Why it cannot be run here, by this user."""
        if self.disk_megabytes is not None and os.geteuid() != 0:
            return "only root may mount a small disk"
        if self.names_hosts and not host.may_be_named():
            return "no host may be named here"
        return None

    def measure(self, injections: int) -> Outcome:
        where = Place(self.scale, on_postgres=self.on_postgres, disk_megabytes=self.disk_megabytes, **self.environment)
        with where as place:
            return self.run(place, injections)


_AGAIN = "kill to claimed again"
_STALL = {"MODELPRESS_STALL_SECONDS": "1"}
_MEMORY = {"MODELPRESS_ENGINE_MEMORY_BYTES": str(256 << 20)}
_STATES = {"MODELPRESS_CHECKPOINT_SECONDS": "5", "MODELPRESS_MAX_STRIKES": "1000"}
_SCALED = (
    Row("P4", "broker flushed, or restarted empty", submitting.broker_forgets, 2, 200, "flush to claimed"),
    Row("P8", "worker killed mid-job", workers.worker_killed, 1, 20, _AGAIN),
    Row(
        "P9",
        "worker stopped past its lease, woken",
        workers.worker_sleeps_and_wakes,
        1,
        20,
        "stop to claimed again",
        on_postgres=True,  # of SQLite, a process frozen inside a write holds all of it until it goes on
    ),
    Row(
        "P11", "database away for leases, ten minutes", workers.database_away, 1, 20, "back to served", on_postgres=True
    ),
)
_QUEUED = (
    Row("P25", "10,000 queued: claim", crowd.claim_among_ten_thousand, 20, 500, "a claim"),
    Row("P25", "10,000 queued: list fifty", crowd.list_among_ten_thousand, 5, 500, "a page"),
    Row("P25", "10,000 queued: submit", crowd.submit_among_ten_thousand, 5, 500, "submit to answer"),
)
CROWDS = (
    *_QUEUED,
    *(replace(row, on_postgres=True) for row in _QUEUED),
    Row("P25", "watchers of one job", crowd.many_watch_one_job, 50, 1000, "end to heard"),
    Row("P26", "one tenant floods two workers", crowd.one_tenant_floods, 3, 20, "first start to its starts"),
)
_STOLEN = Row("P32", "database dump stolen", stolen.dump_is_stolen, 3, 200, "dumping it")
_RACING = Row("P34", "collector races jobs", collector.collector_races_jobs, 6, 100, "a collection")
ROWS = (
    Row("P1", "api killed at any moment", submitting.api_killed_at_any_moment, 3, 200, "kill to serving again"),
    Row(
        "P1",
        "api killed between commit and nudge",
        submitting.api_killed_between_commit_and_nudge,
        3,
        200,
        "kill to claimed",
        on_postgres=True,
    ),
    Row("P2", "32 clients, one key, api killed", submitting.many_clients_with_one_key, 2, 200, "sent to all answered"),
    Row("P3", "broker hung, then gone", submitting.broker_hung_or_gone, 4, 200, "submit to answer"),
    Row("P7", "engine dies once", engines.engine_dies_once, 4, 200, "death to claimed again"),
    Row("P7", "engine dies each time", engines.engine_always_dies, 3, 200, "death to seen"),
    Row(
        "P7", "engine takes all memory", engines.engine_takes_all_memory, 1, 20, "submit to failed", environment=_MEMORY
    ),
    *_SCALED,
    *(replace(row, scale=1.0, short=0, full=3) for row in _SCALED),
    Row("P10", "engine frozen", engines.engine_freezes, 2, 20, "freeze to ended", environment=_STALL),
    Row("P13", "disk full on upload", disks.upload_to_a_full_disk, 4, 200, "space to stored", disk_megabytes=96),
    Row(
        "P13", "disk full on checkpoint, artifact", disks.job_on_a_full_disk, 2, 20, "space to done", disk_megabytes=96
    ),
    Row("P15", "killed while publishing", disks.killed_while_publishing, 8, 200, "clearing up", on_postgres=True),
    Row("P16", "a stored bit flips", rot.a_bit_flips, 4, 200, "flip to judged"),
    Row("P18", "cancel against success", engines.cancel_against_success, 5, 1000, "asked to cancelled"),
    Row("P18", "cancel of one that defies", engines.cancel_of_one_that_defies, 1, 20, "asked to all gone"),
    Row("P21", "worker told to stop", workers.worker_stops, 0, 20, "told to claimed again"),
    Row(
        "P21",
        "rolling restart under load",
        rolling.rolling_restart,
        3,
        60,
        "told to gone",
        scale=0.2,  # under load a beat may be late, and only a lease that ran out is a strike
        on_postgres=True,
    ),
    Row("P23", "engine killed in training (bytes)", training.engine_killed, 0, 20, _AGAIN, environment=_STATES),
    Row(
        "P23",
        "host lost in training (bytes)",
        training.host_lost,
        1,
        10,
        _AGAIN,
        environment=_STATES,
        names_hosts=True,
    ),
    *CROWDS,
    Row("P28", "upload drops, or api killed", uploading.upload_drops, 4, 200, "asked to told"),
    Row("P30", "hostile network file", hostile.hostile_files, 8, len(hostile.FILES), "sent to judged"),
    Row("P30", "engine that tries to get out", hostile.engine_tries_to_get_out, 1, 20, "submit to ended"),
    Row("P31", "guessed ids of another tenant", guessing.ids_of_another_tenant, 1, 2000, "three answers"),
    *(replace(_STOLEN, on_postgres=on_postgres) for on_postgres in (False, True)),
    Row("P33", "webhook's receiver away for days", webhooks.receiver_away_for_days, 2, 200, "sending it once"),
    *(replace(_RACING, on_postgres=on_postgres) for on_postgres in (False, True)),
    Row("P35", "drawn requests", any_request.drawn_requests, any_request.SHORT, 10_000, "an answer"),
)
"""Lease faults at full clocks cost minutes each, so the short table has none of them."""
OUTAGES = tuple(row for row in ROWS if row.promise in {"P1", "P2", "P3", "P4", "P8", "P9", "P11", "P21"})
"""Of api, broker, database and workers."""
