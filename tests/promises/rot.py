"""P16: a disk forgets a bit of what is stored, and tells nobody."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from sqlalchemy import select

from models.inspections import UploadTable
from models.statuses import JobStatus
from models.tables import Artifact, Checkpoint, Dataset, Network
from tests.api.stories import DATASET, NETWORK
from tests.promises.outcome import Outcome
from tests.promises.place import Place

BLOB_BYTES = 3_000_000
"""Some pieces of a download."""


def a_bit_flips(place: Place, injections: int) -> Outcome:
    """By turns in a network, a data set, a checkpoint and an artifact, at any byte. No job reads it, no download gives
    it out; once the bit is back, so is everything."""
    outcome, chance = Outcome(injections), random.Random(16)
    place.workers()
    with httpx.Client(base_url=place.serve(), timeout=30, trust_env=False) as client:
        for number in range(injections):
            began = time.monotonic()
            match number % 4:
                case 0:
                    _in_an_upload(place, outcome, chance, Network)
                case 1:
                    _in_an_upload(place, outcome, chance, Dataset)
                case 2:
                    _in_a_checkpoint(place, outcome, chance, 6000 + number)
                case _:
                    _in_an_artifact(place, client, outcome, chance)
            outcome.seconds.append(time.monotonic() - began)
    return outcome


@contextmanager
def _flipped(place: Place, sha256: str, chance: random.Random) -> Iterator[int]:
    """One bit of a stored file, while the block runs; size and times stay, as a disk leaves them. Yields where."""
    path = place.folder / "blobs" / sha256[:2] / sha256[2:4] / sha256
    times, at, bit = path.stat(), chance.randrange(path.stat().st_size), 1 << chance.randrange(8)

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            [byte] = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ bit]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    path.chmod(0o640)
    flip()
    try:
        yield at
    finally:
        flip()


def _in_an_upload(place: Place, outcome: Outcome, chance: random.Random, table: UploadTable) -> None:
    """The job ends with the error that says what to do; another one, with the bit back, ends well."""
    row_id = place.fleet.upload(table, chance.randbytes(200_000))
    with place.fleet.database.transaction() as session:
        row = session.get_one(table, row_id)
        assert isinstance(row, Network | Dataset)
        row.status, row.inspection = "ready", (NETWORK if table is Network else DATASET).model_dump(mode="json")
        sha256 = row.sha256
    field = "model" if table is Network else "dataset"
    with _flipped(place, sha256, chance):
        job_id = place.submit("finish", fields={field: row_id})
        place.account(outcome, [job_id], JobStatus.FAILED)
        error = place.fleet.job(job_id).error or {}
        outcome.require(error.get("code") == "file_damaged" and "again" in str(error.get("message")), str(error))
    place.account(outcome, [place.submit("finish", fields={field: row_id})])


def _in_a_checkpoint(place: Place, outcome: Outcome, chance: random.Random, seed: int) -> None:
    """The next job of the same spec begins from the start instead, and says why."""
    key = place.key(seed)
    first = place.submit("finish", seed=seed, key=key, checkpoint_bytes="200000")
    place.account(outcome, [first])
    with place.fleet.database.read() as session:
        sha256 = session.scalars(select(Checkpoint.sha256).where(Checkpoint.key == key)).one()
    with _flipped(place, sha256, chance):
        second = place.submit("finish", seed=seed, key=key)
        place.account(outcome, [second])
    log = place.fleet.log(second)
    outcome.require("damaged" in log, f"nothing is said of the checkpoint: {log[-500:]}")
    made = [event for event in place.fleet.events(second) if event["type"] == "checkpoint"]
    outcome.require(len(made) == 1, "it did not begin from the start")


def _in_an_artifact(place: Place, client: httpx.Client, outcome: Outcome, chance: random.Random) -> None:
    """Given out whole before, so that the service knows it as undamaged."""
    job_id = place.submit("finish", artifact_bytes=str(BLOB_BYTES))
    place.account(outcome, [job_id])
    url = f"/jobs/{job_id}/artifacts/model.onnx"
    whole = client.get(url).raise_for_status().content
    bundle = client.get(f"/jobs/{job_id}/bundle").raise_for_status().content
    with place.fleet.database.read() as session:
        sha256 = session.get_one(Artifact, (job_id, "model.onnx")).sha256
    with _flipped(place, sha256, chance) as at:
        first = max(0, at - chance.randrange(1000))
        asked = [
            (url, {"Range": f"bytes={first}-{at + 1000}"}, whole[first : at + 1001]),
            (url, {}, whole),
            (f"/jobs/{job_id}/bundle", {}, bundle),
        ]
        chance.shuffle(asked)
        for path, headers, true in asked:
            status, came = _given(client, path, headers)
            outcome.lost += status < 300 and not true.startswith(came)
            outcome.require(status in (200, 206, 410), f"{path} was answered {status}: {came[:300]!r}")
            outcome.require(status == 410 or len(came) < len(true), f"{path} was given out whole")
        refused = client.get(url)
        outcome.require(refused.status_code == 410 and "file_damaged" in refused.text, refused.text[:300])
    outcome.require(client.get(url).content == whole, "with the bit back, the file is not given out")


def _given(client: httpx.Client, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and all bytes that came before the answer broke off, if it did."""
    came = bytearray()
    with client.stream("GET", path, headers=headers) as answer, suppress(httpx.RemoteProtocolError):
        for piece in answer.iter_raw():
            came += piece
    return answer.status_code, bytes(came)
