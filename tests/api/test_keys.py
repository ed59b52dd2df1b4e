"""Keys, made and revoked as their operator does: by a command on the server's machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from api import operate
from api.__main__ import parser
from api.auth import NotStarting, create_key, prepare_access
from api.key_use import KeyUse
from api.keys import list_keys, revoke_key, rotate_key
from api.operate import Refused
from api.services import events
from models.database import Database, now
from models.settings import Settings
from models.tables import Key
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of


def manage(
    settings: Settings, *words: str, program: str = "api", folder: Path | None = None, command: str = "keys"
) -> Any:
    """`python -m api keys …`, or the same through `modelpress keys …`."""
    start = [sys.executable, "-P", "-m", "api"] if program == "api" else [str(Path(sys.executable).with_name(program))]
    return subprocess.run(
        [*start, command, *words],
        env={**os.environ, "MODELPRESS_DATABASE_URL": settings.database_url},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def operated(settings: Settings, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command for operators prints, run in this process."""
    options = parser().parse_args(words)
    assert operate.run(options.act, options, settings) == 0
    return capsys.readouterr().out


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
    assert (key["tenant"], key["name"], key["scopes"], key["revoked_at"]) == ("a", "--laptop", "read", None)
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


def test_a_rotated_key_opens_until_its_grace_is_over_beside_its_successor(
    settings: Settings, serve: Callable[..., Api], capsys: pytest.CaptureFixture[str]
) -> None:
    made = operated(settings, capsys, "keys", "create", "--tenant=a", "--scopes=read,submit", "--expires=90d")
    old = made.strip()
    [key] = json.loads(operated(settings, capsys, "keys", "list", "--json"))
    assert (key["scopes"], key["last_used_at"], key["successor"]) == ("read,submit", None, None)
    new = operated(settings, capsys, "keys", "rotate", key["id"], "--grace", "1h").strip()
    assert new.startswith("mp_")
    before, after = json.loads(operated(settings, capsys, "keys", "list", "--json"))
    assert before["successor"] == after["id"]
    assert before["expires_at"] < after["expires_at"]
    assert [after[field] for field in ("tenant", "name", "scopes")] == [key[f] for f in ("tenant", "name", "scopes")]
    api = serve(open_access=False)
    with api.with_key(old) as before_client, api.with_key(new) as after_client:
        for client in (before_client, after_client):
            assert client.get("/jobs").status_code == 200
        with api.service.database.transaction() as session:
            session.execute(update(Key).where(Key.id == before["id"]).values(expires_at=now(session)))
        response = before_client.get("/jobs")
        problem = stories.problem_of(response, 401, "key_expired")
        assert "successor" in problem["hint"]
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert after_client.get("/jobs").status_code == 200
        problem_of(after_client.delete("/jobs/job_x"), 403, "forbidden")
    api.service.key_use.write()
    used = {row["id"]: row["last_used_at"] for row in json.loads(operated(settings, capsys, "keys", "list", "--json"))}
    assert used.keys() == {before["id"], after["id"]}
    assert all(used.values())


def test_a_rotation_keeps_lifetime_and_end_and_is_done_once(database: Database) -> None:
    day = timedelta(days=1)
    with database.transaction() as session:
        create_key(session, "a", "short", expires_at=now(session) + day)
        create_key(session, "a", "endless")
        short, endless = list_keys(session)
        end = short.expires_at
        assert end is not None
        rotated = rotate_key(session, short.id, 7 * day)
        assert rotated.ends_at == end, "a grace never makes a key live longer"
        expires_at = rotated.successor.expires_at
        assert expires_at is not None
        assert abs(expires_at - rotated.successor.created_at - day) < timedelta(seconds=1)
        assert rotate_key(session, endless.id, day).successor.expires_at is None
    for key_id, words in ((short.id, "was rotated to"), ("key_x", "no key key_x"), (endless.id, "rotate that one")):
        with pytest.raises(Refused, match=words), database.transaction() as session:
            rotate_key(session, key_id, day)
    with database.transaction() as session:
        revoke_key(session, rotated.successor.id)
    with pytest.raises(Refused, match="revoked or expired"), database.transaction() as session:
        rotate_key(session, rotated.successor.id, day)
    with database.read() as session:
        assert len(list_keys(session)) == 4, "what was refused left no key behind"


def test_the_last_use_only_moves_forward_and_waits_for_a_database_that_is_away(
    settings: Settings, database: Database
) -> None:
    with database.transaction() as session:
        create_key(session, "a", "key")
        [key] = list_keys(session)
        moment = now(session)
    late, early = KeyUse(database), KeyUse(database)
    late.note(key.id, moment)
    early.note(key.id, moment - timedelta(minutes=5))
    late.write()
    early.write()
    with database.read() as session:
        assert [row.last_used_at for row in list_keys(session)] == [moment]


def test_scopes_and_durations_that_make_no_sense_are_refused(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (("create", "--scopes", "read,write"), "'write' is none of read, upload, submit, delete"),
        (("create", "--expires", "soon"), "write 30m, 24h, 90d"),
        (("create", "--scopes", "read", "--read-only"), "not allowed with"),
    ):
        with pytest.raises(SystemExit):
            parser().parse_args(["keys", *words])
        assert said in capsys.readouterr().err


def test_a_key_that_expired_lets_nobody_start_the_service(settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.transaction() as session:
        create_key(session, "a", "old", expires_at=now(session))
    with pytest.raises(NotStarting, match="revoked or expired"):
        prepare_access(settings.model_copy(update={"open_access": False}), database)
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
