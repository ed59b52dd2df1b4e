"""Scopes: every route, under a key with each of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select

from api.app import ROUTERS
from api.auth import create_key
from api.rules import RULES
from models.scopes import ALL, Scope, scopes_of, stored
from models.tables import Audit
from tests.api.serving import Api
from tests.api.stories import problem_of

WITHOUT_KEYS = {"get_health", "get_readiness", "get_metrics"}
TUS = {"Tus-Resumable": "1.0.0"}


def with_scopes(api: Api, *scopes: Scope) -> httpx.Client:
    with api.service.database.transaction() as session:
        secret = create_key(session, "a", "key", scopes=frozenset(scopes))
    return api.with_key(secret)


@pytest.fixture
def closed(serve: Callable[..., Api], two_keys: tuple[str, str]) -> Api:
    return serve(open_access=False)


def test_every_route_has_a_rule_under_the_name_that_openapi_gives_it() -> None:
    found = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    assert {route.name for route in found} - WITHOUT_KEYS == set(RULES)
    assert all(route.operation_id in (None, route.name) for route in found)
    changes = {route.name for route in found if (route.methods or set()) & {"POST", "PUT", "PATCH", "DELETE"}}
    assert not {name for name in changes if RULES[name].scope in (None, Scope.READ)}


@pytest.mark.parametrize("scope", [None, *Scope])
def test_a_key_with_one_scope_gets_a_403_that_names_what_it_lacks_everywhere_else(
    closed: Api, scope: Scope | None
) -> None:
    document = closed.client.get("/openapi.json").json()
    asked = 0
    with with_scopes(closed, *([scope] if scope else [])) as client:
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                name = operation["operationId"]
                if name in WITHOUT_KEYS:
                    continue
                asked += 1
                wanted = RULES[name].scope
                url = path.format(model_id="x", dataset_id="x", job_id="x", upload_id="x", name="x")
                answer = client.request(method, url, headers=TUS)
                assert operation["security"] == [{"HTTPBearer": [wanted] if wanted else []}]
                if wanted in (None, scope):
                    assert answer.status_code not in (401, 403), (name, answer.text)
                    continue
                assert answer.status_code == 403, name
                assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{wanted}"'
                if method != "head":
                    problem = problem_of(answer, 403, "forbidden")
                    assert problem["where"] == wanted
                    assert f"`{wanted}`" in problem["detail"]
    assert asked == len(RULES)


def test_the_other_verb_for_uploads_asks_for_the_same(closed: Api) -> None:
    with with_scopes(closed, Scope.READ, Scope.SUBMIT, Scope.DELETE) as client:
        for path in ("/models", "/datasets"):
            assert problem_of(client.put(path, content=b"x"), 403, "forbidden")["where"] == "upload"
    with with_scopes(closed, Scope.UPLOAD) as client:
        problem_of(client.put("/models", content=b"x"), 422, "unknown_format")


def test_what_was_refused_is_in_the_trail_and_looking_is_not(closed: Api) -> None:
    job_id = "job_" + "0" * 26
    with with_scopes(closed, Scope.UPLOAD) as client:
        assert client.get("/jobs").status_code == 403
        assert client.delete(f"/jobs/{job_id}", headers={"X-Request-Id": "mine"}).status_code == 403
        assert client.delete("/jobs/mp_secret").status_code == 403
    with closed.service.database.read() as session:
        refused = session.scalars(select(Audit).where(Audit.outcome == "refused").order_by(Audit.at)).all()
    shown = [(row.tenant, row.action, row.object_id) for row in refused]
    assert shown == [("a", "job.deleted", job_id), ("a", "job.deleted", None)]
    assert refused[0].request_id == "mine"
    assert refused[0].key_id is not None


def test_scopes_survive_being_stored_and_unknown_ones_allow_nothing() -> None:
    for count in range(len(ALL) + 1):
        for chosen in combinations(Scope, count):
            assert scopes_of(stored(frozenset(chosen))) == frozenset(chosen)
    assert scopes_of("read future") == {Scope.READ}
    assert scopes_of("") == frozenset()
