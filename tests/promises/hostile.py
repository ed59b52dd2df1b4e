"""P30: files made to run code where they are read, and an engine that does."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from models.errors import Code
from models.statuses import JobStatus
from tests.engine.ingest.archives import good_archive
from tests.engine.ingest.corpus import CORPUS
from tests.engine.ingest.named.checkpoints import CHECKPOINTS
from tests.promises.outcome import Outcome
from tests.promises.place import Place
from tests.worker import escapes
from tests.worker.aims import PROGRAM, REFUSED, WORKS, Aims, found

PATIENCE = 240.0
UNDER_A_NAME = {"arch": "timm/resnet10t"}


class Hostile(NamedTuple):
    """`make` gets a folder to write in and the path of a canary that nothing may create. No `code`: what it carries is
    never read, and the rest is taken."""

    name: str
    code: Code | None
    make: Callable[[Path, Path], bytes]
    params: dict[str, str]


FILES = [
    *(
        Hostile(each.name, each.code, lambda folder, canary, each=each: _written(each, folder, canary), {})  # type: ignore[misc]
        for each in CORPUS
    ),
    *(
        Hostile(each.name, each.code, lambda _, canary, each=each: each.make(canary), UNDER_A_NAME)  # type: ignore[misc]
        for each in CHECKPOINTS
    ),
]


def _written(crafted: Any, folder: Path, canary: Path) -> bytes:
    path: Path = crafted.write(folder / f"{crafted.name}.pt2", canary)
    return path.read_bytes()


def hostile_files(place: Place, injections: int) -> Outcome:
    """As many of the corpus, evenly spread, sent to the whole service with its own engines. Each is refused with its
    code, or taken without what it carried; no canary is touched, nor what others have stored."""
    sent = [FILES[number * len(FILES) // injections] for number in range(min(injections, len(FILES)))]
    outcome = Outcome(len(sent))
    place.fleet.start("control", program="worker")
    canaries = place.folder / "canaries"
    canaries.mkdir()
    with httpx.Client(base_url=place.serve(), timeout=60, trust_env=False) as client:
        good = client.post("/models", content=good_archive().write(place.folder / "good.pt2").read_bytes()).json()
        outcome.require(_inspected(client, good["id"])["status"] == "ready", "a good file is refused")
        before = _hashes(place)
        waiting = list[tuple[Hostile, str]]()
        for each in sent:
            content = each.make(place.folder, canaries / each.name)
            answer = client.post("/models", params=each.params, content=content)
            if answer.status_code == 201:
                waiting.append((each, answer.json()["id"]))
            else:
                refused = 400 <= answer.status_code < 500 and answer.json()["code"] in (each.code, "format_mismatch")
                outcome.require(refused, f"{each.name}: {answer.text}")
        outcome.require(len(waiting) > len(sent) // 3, "the first bytes gave most of them away")
        for each, network_id in waiting:
            began = time.monotonic()
            row = _inspected(client, network_id)
            outcome.seconds.append(time.monotonic() - began)
            ended = (row["status"], (row["error"] or {}).get("code"))
            wanted = ("rejected", each.code) if each.code else ("ready", None)
            outcome.require(ended == wanted, f"{each.name}: {row['status']}, {row['error']}")
    outcome.broken += [f"{path.name} was written" for path in (*canaries.iterdir(), Path("/tmp/xzz")) if path.exists()]
    after = _hashes(place)
    outcome.lost += sum(after.get(name) != digest for name, digest in before.items())
    outcome.require(not place.fleet.runs_on_disk(), "something of an inspection is left on the disk")
    return outcome


def _hashes(place: Place) -> dict[str, str]:
    blobs = (place.folder / "blobs").glob("??/??/*")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs}


def _inspected(client: httpx.Client, network_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        row: dict[str, Any] = client.get(f"/models/{network_id}", params={"wait": 30}).json()
        if row["status"] != "inspecting":
            return row
    raise AssertionError(f"{network_id} is still being inspected")


def engine_tries_to_get_out(place: Place, injections: int) -> Outcome:
    """What if code of a file did run: an engine that tries every way there is to the network, to secrets, to what
    others have stored and to other processes. All are closed, and what it needs works."""
    outcome = Outcome()
    outcome.require(len(escapes.WAYS) > 50, f"only {len(escapes.WAYS)} ways are tried")
    worker = place.fleet.start("device", SUBJECT=PROGRAM.name)
    aims = Aims(place.folder / "place")
    try:
        others = {
            "blob": str(next((place.folder / "blobs").glob("??/??/*"))),
            "database": str(place.fleet.database.engine.url.database),
            "socket": str(place.valkey.socket),
            "worker": str(worker.pid),
        }
        for _ in range(injections):
            began = time.monotonic()
            job_id = place.fleet.submit_spec(place.fleet.spec("all", aims.aims | others))
            place.account(outcome, [job_id], JobStatus.FAILED)
            outcome.seconds.append(time.monotonic() - began)
            answers = found(place.fleet.log(job_id))
            ways = [way for way in escapes.WAYS if answers[way] not in REFUSED]
            outcome.require(not ways, f"open: {ways}")
            outcome.require(answers["works"] == WORKS, f"what it needs: {answers['works']}")
            outcome.injections += len(escapes.WAYS)
        outcome.require(aims.is_untouched(), "it changed what is not its own")
    finally:
        aims.close()
    return outcome
