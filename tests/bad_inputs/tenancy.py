"""The API and its tenants: rows 89 to 108, but for those of `absent.py`."""

from __future__ import annotations

import html
import json
from typing import Any

import httpx

from models.errors import Code
from models.scopes import READ_ONLY
from models.statuses import JobStatus
from tests.api import stories, tus
from tests.api.serving import served
from tests.api.stories import problem_of
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import JSON, Call, Check, Row, row

JOB = "job_" + "0" * 26
HOSTILE = "<script>alert(1)</script>"


def submit(place: Place, spec: dict[str, Any], key: str, client: httpx.Client | None = None) -> httpx.Response:
    return (client or place.client).post("/jobs", json=spec, headers={"Idempotency-Key": key})


def another_body(place: Place) -> None:
    spec = stories.a_spec(place.api, place.client)
    assert submit(place, spec, "k").status_code == 202
    problem_of(submit(place, spec | {"seed": 1}, "k"), 422, "idempotency_mismatch")


def first_in_progress(place: Place) -> None:
    spec = stories.a_spec(place.api, place.client)
    with place.api.service.in_flight.hold(place.tenant, "k"):
        response = submit(place, spec, "k")
    problem_of(response, 409, "idempotency_in_flight")
    assert response.headers["retry-after"] == "1"


def key_of_another_tenant(place: Place) -> None:
    other = place.other()
    ids = set()
    for client in (place.client, other):
        spec = stories.a_spec(place.api, client)
        ids |= {submit(place, spec, "same", client).json()["id"] for _ in range(2)}
    assert len(ids) == 2


def foreign_job(place: Place) -> None:
    """As it is for every route in `tests/api/test_tenants.py`."""
    foreign = stories.submit(place.api, place.other())["id"]
    answers = [problem_of(place.client.get(f"/jobs/{job}"), 404, "not_found") for job in (foreign, JOB)]
    assert answers[0] | {"request_id": ""} == answers[1] | {"request_id": ""}


def malformed_ids(place: Place) -> None:
    unknown = problem_of(place.client.get(f"/jobs/{JOB}"), 404, "not_found")
    for malformed in ("x", "job_", JOB + "0", JOB.upper(), "net_" + "0" * 26, "%00", "' OR 1=1", "é" * 26, "1e9"):
        answer = problem_of(place.client.get(f"/jobs/{malformed}"), 404, "not_found")
        assert answer | {"request_id": ""} == unknown | {"request_id": ""}


def reading_key(place: Place) -> None:
    reader = place.client_of(place.tenant, READ_ONLY)
    job = stories.submit(place.api, place.client)["id"]
    assert reader.get(f"/jobs/{job}").status_code == 200
    for method, path in (
        ("POST", "/jobs"),
        ("POST", "/models"),
        ("POST", f"/jobs/{job}/cancel"),
        ("DELETE", f"/jobs/{job}"),
    ):
        problem_of(reader.request(method, path, json={}), 403, "forbidden")
    problem_of(reader.post("/uploads", headers={**tus.VERSION, "Upload-Length": "1"}), 403, "forbidden")


def tampered_cursor(place: Place) -> None:
    for _ in range(2):
        stories.submit(place.api, place.client)
    cursor = place.client.get("/jobs", params={"limit": 1}).json()["next_cursor"]
    for bad in (cursor[:-2], cursor.swapcase(), "", "é", "a" * 150, "../../etc/passwd"):
        problem_of(place.client.get("/jobs", params={"after": bad}), 400, "bad_request")


def ended_job(place: Place) -> None:
    """A cancelling or cancelled one is answered 202 again."""
    database = place.api.service.database
    for end, status in (("fail", JobStatus.FAILED), ("succeed", JobStatus.SUCCEEDED)):
        job = stories.submit(place.api, place.client)["id"]
        running = stories.start(database)
        stories.fail(database, running) if end == "fail" else stories.succeed(place.api, running)
        assert problem_of(place.client.post(f"/jobs/{job}/cancel"), 409, "already_finished")["where"] == status
    job = stories.submit(place.api, place.client)["id"]
    for _ in range(2):
        assert place.client.post(f"/jobs/{job}/cancel").status_code == 202


def upload_in_use(place: Place) -> None:
    dataset = stories.ready_dataset(place.api, place.client)
    job = stories.submit(place.api, place.client, dataset=dataset)
    for path in (f"/models/{job['spec']['model']}", f"/datasets/{dataset}"):
        problem_of(place.client.delete(path), 409, "in_use")


def too_early(place: Place) -> None:
    job = stories.submit(place.api, place.client)["id"]
    for path in ("artifacts/model.onnx", "report", "bundle"):
        response = place.client.get(f"/jobs/{job}/{path}")
        assert problem_of(response, 409, "not_ready")["where"] == "queued"
        assert int(response.headers["retry-after"]) >= 1


def cookies(place: Place) -> None:
    """Nothing sets a cookie, one opens nothing, and without keys no other site's page may ask."""
    for path in place.client.get("/openapi.json").json()["paths"]:
        if "{" not in path and path != "/readyz":
            assert "set-cookie" not in place.client.get(path).headers
    secret = place.client.headers["authorization"].removeprefix("Bearer ")
    with httpx.Client(base_url=place.api.base_url) as nobody:
        for name in ("authorization", "key", "session"):
            problem_of(nobody.get("/jobs", headers={"Cookie": f"{name}={secret}"}), 401, "unauthorized")
    with served(place.api.service.settings.model_copy(update={"open_access": True})) as trusting:
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Origin": "https://evil.example", "Cookie": "session=1"}
            problem_of(trusting.client.post("/jobs", json={}, headers=headers), 403, "forbidden")
        problem_of(trusting.client.get("/jobs", headers={"Host": "evil.example"}), 403, "forbidden")


def hostile_names(place: Place) -> None:
    """JSON as it is, HTML escaped; there is no CSV."""
    for name in (HOSTILE, "=cmd|' /C calc'!A0"):
        job = stories.submit(place.api, place.client, name=name)
        assert job["name"] == name
        stories.succeed(place.api, stories.start(place.api.service.database))
        page = place.client.get(f"/jobs/{job['id']}/report", headers={"Accept": "text/html"})
        assert page.headers["content-type"].startswith("text/html")
        assert html.escape(name, quote=False) in page.text.replace("&#x27;", "'").replace("&#39;", "'")
        assert HOSTILE not in page.text
        assert "<script" not in page.text
    assert "csv" not in json.dumps(place.client.get("/openapi.json").json()["paths"])


def flood(place: Place) -> None:
    limit = place.api.service.settings.max_open_uploads
    answers = [place.client.post("/uploads", headers={**tus.VERSION, "Upload-Length": "1"}) for _ in range(3 * limit)]
    assert [answer.status_code for answer in answers] == [201] * limit + [429] * 2 * limit
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[limit:])


def body(content: bytes, says: str) -> Call:
    return Call("POST /jobs", 422, Code.INVALID_REQUEST, says=says, content=content, headers=JSON)


def other_methods(place: Place) -> None:
    for path in place.client.get("/openapi.json").json()["paths"]:
        for method in ("HEAD", "OPTIONS", "TRACE", "CONNECT"):
            answer = place.client.request(method, path, headers=tus.VERSION if "uploads" in path else {})
            assert answer.status_code in (204, 404, 405), (method, path)
            assert answer.status_code != 405 or answer.headers["allow"]


def accepted(*wanted: str) -> tuple[Check, ...]:
    def check(place: Place) -> None:
        for accept in wanted:
            found = place.client.get("/jobs", headers={"Accept": accept})
            assert (found.status_code, found.json()["data"]) == (200, [])
            problem_of(place.client.get(f"/jobs/{JOB}", headers={"Accept": accept}), 404, "not_found")

    return (check,)


ROWS: tuple[Row, ...] = (
    row(89, "idempotency key with another body", another_body),
    row(90, "idempotency key in progress", first_in_progress),
    row(
        91,
        "idempotency key that is none",
        *(
            Call(
                "POST /jobs",
                400,
                Code.BAD_REQUEST,
                "/header/idempotency-key",
                json={"model": "net_x", "preset": "half"},
                headers={"Idempotency-Key": key},
            )
            for key in ("", "k" * 256, "cl\u00e9", "a\tb")
        ),
    ),
    row(92, "idempotency key of another tenant", key_of_another_tenant),
    row(93, "job of another tenant", foreign_job),
    row(94, "malformed id", malformed_ids),
    row(95, "reading key that writes", reading_key),
    row(96, "tampered cursor", tampered_cursor),
    row(
        97,
        "limit out of bounds",
        *(
            Call(f"GET {path}", 422, Code.INVALID_REQUEST, "/query/limit", params={"limit": limit})
            for path in ("/jobs", "/models", "/datasets")
            for limit in ("-1", "0", "1000000000", "x", "1e9")
        ),
    ),
    row(
        98,
        "injection in a filter",
        Call("GET /jobs", 422, Code.INVALID_REQUEST, "/query/status/0", params={"status": "' OR 1=1 --"}),
        Call("GET /jobs", 422, Code.INVALID_REQUEST, "/query/name", params={"name": "' OR 1=1 --"}),
        Call("GET /jobs", 400, Code.BAD_REQUEST, "/query/after", params={"after": "'; DROP TABLE jobs"}),
        Call("GET /models/' OR '1'='1", 404, Code.NOT_FOUND),
    ),
    row(99, "cancelling an ended job", ended_job),
    row(100, "deleting what a job uses", upload_in_use),
    row(101, "download before the end", too_early),
    row(103, "cookies and other sites", cookies),
    row(104, "names that would be code elsewhere", hostile_names),
    row(105, "flood beyond a quota", flood),
    row(
        106,
        "JSON that parsers read in two ways",
        body(b'{"model": "\\ud800"}', "surrogates"),
        body(b'{"model": "\\u0000"}', "NUL"),
        body(b'\xef\xbb\xbf{"model": "x"}', "BOM"),
        body(b'{"seed": NaN}', "NaN"),
        body(b'{"model": "\xff"}', "UTF-8"),
        body(b'{"model": "a", "model": "b"}', "twice"),
    ),
    row(107, "Accept of another type", *accepted("text/xml", "application/json;q=0", "x")),
    row(108, "HEAD and OPTIONS everywhere", other_methods),
)
