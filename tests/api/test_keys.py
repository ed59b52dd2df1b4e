"""Keys, made and revoked as their operator does: by a command on the server's machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.auth import NotStarting, create_key, prepare_access
from api.keys import list_keys, revoke_key
from api.services import events
from models.database import Database
from models.settings import Settings
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of


def manage(settings: Settings, *words: str, program: str = "api", folder: Path | None = None) -> Any:
    """`python -m api keys …`, or the same through `modelpress keys …`."""
    command = (
        [sys.executable, "-P", "-m", "api"] if program == "api" else [str(Path(sys.executable).with_name(program))]
    )
    return subprocess.run(
        [*command, "keys", *words],
        env={**os.environ, "MODELPRESS_DATABASE_URL": settings.database_url},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def add_key(settings: Settings, tenant: str) -> str:
    database = Database(settings.database_url)
    with database.transaction() as session:
        secret = create_key(session, tenant, "key")
    database.close()
    return secret


def revoke_all(settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.transaction() as session:
        for key in list_keys(session):
            revoke_key(session, key.id)
    database.close()


@pytest.mark.parametrize("program", ["api", "modelpress"])
def test_a_key_is_made_listed_and_revoked(settings: Settings, serve: Callable[..., Api], program: str) -> None:
    made = manage(settings, "create", "--tenant", "a", "--name=--laptop", "--read-only", program=program)
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    add_key(settings, "b")
    [key] = json.loads(manage(settings, "list", "--json", "--tenant", "a", program=program).stdout)
    assert (key["tenant"], key["name"], key["rights"], key["revoked_at"]) == ("a", "--laptop", "read", None)
    api = serve(open_access=False)
    with api.with_key(secret) as client:
        assert client.get("/jobs").status_code == 200
        problem_of(client.post("/jobs", json={}), 403, "forbidden")
        revoked = manage(settings, "revoke", key["id"], program=program)
        assert (revoked.returncode, key["id"] in revoked.stdout) == (0, True)
        problem_of(client.get("/jobs"), 401, "unauthorized")
    shown = manage(settings, "list", program=program)
    assert len(shown.stdout.splitlines()) == 3
    assert secret not in made.stderr + shown.stdout + shown.stderr + json.dumps(key)


def test_revoking_twice_changes_nothing_and_an_unknown_key_is_said(settings: Settings, database: Database) -> None:
    with database.transaction() as session:
        create_key(session, "a", "mine")
        [key] = list_keys(session)
        first = revoke_key(session, key.id)
        assert first is not None
        at = first.revoked_at
        again = revoke_key(session, key.id)
        assert again is not None
        assert (at is not None, again.revoked_at) == (True, at)
        assert revoke_key(session, "key_x") is None
    unknown = manage(settings, "revoke", "key_x")
    assert (unknown.returncode, "There is no key key_x" in unknown.stderr) == (2, True)


def test_the_command_works_beside_a_folder_of_the_same_name(settings: Settings, tmp_path: Path) -> None:
    for name in ("api", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('wrong package')")
    made = manage(settings, "create", program="modelpress", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("mp_")


def test_no_secret_is_in_the_database(settings: Settings) -> None:
    secrets = [add_key(settings, tenant) for tenant in "ab"]
    stored = b"".join(
        path.read_bytes() for path in Path(settings.database_url.removeprefix("sqlite:///")).parent.glob("*")
    )
    for secret in secrets:
        assert len(secret) >= len("mp_") + 27  # 160 bits and more
        assert secret.encode() not in stored
        assert secret.removeprefix("mp_").encode() not in stored


def test_nothing_starts_when_every_key_is_revoked_and_the_first_one_does_not_come_back(settings: Settings) -> None:
    bootstrap = settings.model_copy(update={"open_access": False, "bootstrap_key": "mp_" + "k" * 40})
    database = Database(settings.database_url)
    prepare_access(bootstrap, database)
    revoke_all(settings)
    with pytest.raises(NotStarting, match="Every key is revoked"):
        prepare_access(bootstrap, database)
    with database.read() as session:
        assert [key.name for key in list_keys(session)] == ["bootstrap"]
    database.close()


def test_an_open_stream_ends_when_its_key_is_revoked(
    settings: Settings, serve: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(events, "KEY_SECONDS", 0.1)
    secret = add_key(settings, "a")
    api = serve(open_access=False)
    with api.with_key(secret) as client:
        job = stories.submit(api, client)
        started = threading.Event()
        with client.stream("GET", f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}) as response:
            for line in response.iter_lines():
                if line == ": keep-alive" and not started.is_set():
                    started.set()
                    revoke_all(settings)
    assert started.is_set()
