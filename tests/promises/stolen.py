"""P32: somebody steals a dump of the database."""

from __future__ import annotations

import base64
import hashlib
import sqlite3
import time
from contextlib import closing, suppress

import httpx

from api.auth import PREFIX
from api.keys import GRACE, list_keys, revoke_key, rotate_key
from tests.api.stories import PRUNE
from tests.promises.outcome import Outcome
from tests.promises.place import Place

BOOTSTRAP = "mp_" + "B00tstrapS3cret" * 3
METRICS_TOKEN = "M3tricsS3cretOfPrometheus"
WEBHOOK_SECRET = "W3bhookS3cretOfTheWholeDeployment"
KEY_BITS = 160


def dump_is_stolen(place: Place, injections: int) -> Outcome:
    """Keys that are used, also where they do not belong, rotated and revoked; secrets of webhooks, shown and rotated.
    Nothing of them is in the dump, but the SHA-256 of every key, which is too long to be found from it."""
    outcome = Outcome(injections)
    api = place.served(bootstrap_key=BOOTSTRAP, metrics_token=METRICS_TOKEN, webhook_secret=WEBHOOK_SECRET)
    secrets = place.keys(*(f"tenant-{number % 7}" for number in range(injections)))
    with place.fleet.database.transaction() as session:
        for number, row in enumerate(list_keys(session)[1:]):
            if number % 3 == 1:
                secrets.append(rotate_key(session, row.id, GRACE).secret)
            elif number % 3 == 2:
                revoke_key(session, row.id)
    keys = [BOOTSTRAP, *secrets]
    signing = set[str]()
    for secret in keys:
        with api.with_key(secret) as client:
            signing |= _use(client, secret)
    outcome.require(len(signing) >= 2, "there were no secrets of webhooks")
    bearer = {"Authorization": f"Bearer {METRICS_TOKEN}"}
    metrics = httpx.get(f"{api.base_url}/metrics", headers=bearer, trust_env=False)
    outcome.require(metrics.status_code == 200, metrics.text[:200])

    began = time.monotonic()
    dump = _dump(place)
    outcome.seconds.append(time.monotonic() - began)
    for secret in {*keys, *signing, METRICS_TOKEN, WEBHOOK_SECRET}:
        outcome.lost += any(form in dump for form in _forms(secret))
    for secret in keys:
        outcome.require(hashlib.sha256(secret.encode()).hexdigest().encode() in dump.lower(), "a key has no hash")
    outcome.require(_varying_bits(secrets) >= KEY_BITS, f"a key has fewer than {KEY_BITS} random bits")
    return outcome


def _use(client: httpx.Client, secret: str) -> set[str]:
    """Ask with it, and put it wherever somebody might by mistake; the secrets of webhooks that it is shown."""
    client.get("/jobs", headers={"X-Request-Id": secret, "Idempotency-Key": secret})
    client.get(f"/jobs/{secret}")
    client.delete(f"/models/{secret}")
    client.post("/jobs", json={"model": secret, "steps": [PRUNE]}, headers={"Idempotency-Key": "x"})
    client.post("/webhooks/secrets", params={"overlap_hours": 1})
    shown = client.get("/webhooks/secrets")
    return {each["secret"] for each in shown.json()["data"]} if shown.is_success else set()


def _dump(place: Place) -> bytes:
    """As its own tool writes it; of SQLite also the files as they are, which hold what was deleted, too."""
    if not place.url_of_database.startswith("sqlite"):
        return place.postgres.dump("promises").encode()
    path = place.folder / "modelpress.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        lines = "\n".join(connection.iterdump()).encode()
    return b"\n".join([lines, *(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))])


def _forms(secret: str) -> list[bytes]:
    """How it could stand in a dump: as it is, without its prefix, decoded, in base64 and in hexadecimal digits."""
    bare = secret.removeprefix(PREFIX).removeprefix("whsec_")
    forms = [secret.encode(), bare.encode()]
    with suppress(ValueError):  # one that somebody chose
        forms.append(base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4)))
    return [*forms, *(base64.b64encode(form).rstrip(b"=") for form in forms), *(form.hex().encode() for form in forms)]


def _varying_bits(keys: list[str]) -> int:
    """In how many bits keys that the service made differ; of few keys, one or two by chance do not."""
    numbers = [int.from_bytes(base64.urlsafe_b64decode(key.removeprefix(PREFIX) + "=")) for key in keys]
    varying = 0
    for number in numbers:
        varying |= number ^ numbers[0]
    return varying.bit_count()
