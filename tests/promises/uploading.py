"""P28: an upload drops, at 99 % or anywhere, by its connection or by the death of the api."""

from __future__ import annotations

import hashlib
import random
import time
from datetime import timedelta
from pathlib import Path

import httpx
from sqlalchemy import func, select

from models.database import now
from models.tables import Network, ResumableUpload
from tests.api import tus
from tests.api.stories import a_pt2
from tests.promises.outcome import Outcome
from tests.promises.place import Place
from tests.promises.submitting import answered

LEAST_BYTES, MOST_BYTES = 200_000, 2_000_000
REST = timedelta(hours=24)


def upload_drops(place: Place, injections: int) -> Outcome:
    """Each file drops at 99 % and, before that, somewhere; by turns the connection breaks and the api is killed, and
    every other file comes in parts that count once their checksum was seen. It goes on at the byte that is told."""
    outcome, chance = Outcome(), random.Random(28)
    with httpx.Client(base_url=place.serve(), timeout=30, trust_env=False) as client:
        while outcome.injections < injections:
            _one(place, client, outcome, chance, checked=outcome.injections // 2 % 2 == 1)
        outcome.require(not list(_incoming(place).iterdir()), "something is left of uploads that became networks")
    return outcome


def _one(place: Place, client: httpx.Client, outcome: Outcome, chance: random.Random, *, checked: bool) -> None:
    body = a_pt2(chance.randbytes(chance.randrange(LEAST_BYTES, MOST_BYTES)))
    path = tus.create(client, len(body), Repr_Digest=tus.digest(body))
    upload = path.rpartition("/")[2]
    file, at = _incoming(place) / upload, 0
    for cut in (chance.randrange(at + 1, int(0.98 * len(body))), int(0.99 * len(body))):
        began = at
        checksum = [f"Upload-Checksum: {tus.checksum('sha256', body[at:])}"] if checked else []
        with tus.half_a_part(place.url, path, at, len(body) - at, body[at:cut], *checksum):
            time.sleep(chance.uniform(0, 0.1))
            if outcome.injections % 2:
                place.kill_api()
                place.wait_for_life()
        asked = time.monotonic()
        at = int(answered(client, "HEAD", path, headers=tus.VERSION).headers["upload-offset"])
        outcome.seconds.append(time.monotonic() - asked)
        outcome.injections += 1
        kept = file.read_bytes() if file.exists() else b""
        outcome.require(began <= at <= cut, f"{at} is told, of a part from {began} that broke off at {cut}")
        outcome.require(at == began if checked else at == len(kept), f"{at} is told, of {len(kept)} on the disk")
        outcome.lost += kept[:at] != body[:at]
        with place.fleet.database.read() as session:
            left = session.get_one(ResumableUpload, upload).expires_at - now(session)
        outcome.require(left > REST - timedelta(minutes=2), f"only {left} are left to go on")
    sent = tus.patch(client, path, at, body[at:])
    outcome.require(sent.status_code == 204, f"the rest from {at} on: {sent.status_code} {sent.text[:200]}")
    used = answered(client, "POST", "/models", params={"upload": upload}).json()
    outcome.lost += used["sha256"] != hashlib.sha256(body).hexdigest()
    outcome.lost += not place.fleet.blobs.verify(used["sha256"])
    with place.fleet.database.read() as session:
        rows = session.scalar(select(func.count()).where(Network.sha256 == used["sha256"])) or 0
    outcome.duplicated += rows - 1


def _incoming(place: Place) -> Path:
    return place.folder / "blobs" / "incoming"
