"""The report as JSON and as a page: who gets which, and what protects who looks at it."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from models.report import Report
from models.report_page.page import POLICY, render_report
from models.tables import Job
from tests.api import stories
from tests.api.serving import Api
from tests.models.reports import a_report

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.fixture
def url(api: Api) -> str:
    job_id = stories.submit(api, name="<b>edge</b>")["id"]
    stories.succeed(api, stories.start(api.service.database))
    with api.service.database.transaction() as session:
        report = a_report(6, "</style><script>{}").model_dump(mode="json")
        session.execute(update(Job).where(Job.id == job_id).values(report=report))
    return f"/jobs/{job_id}/report"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html", "text/html"),
        ("TEXT/HTML; charset=utf-8", "text/html"),
        (BROWSER, "text/html"),
        ("application/json;q=0.5, text/html;q=0.9", "text/html"),
        ("application/json, text/html", "application/json"),
        ("text/html;q=0.5, application/*", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("application/json;q=0, */*;q=0.1", "text/html"),
        ("text/xml", "application/json"),
        (";;q=,,", "application/json"),
        ("text/html;q=7", "text/html"),
    ],
)
def test_accept_decides(api: Api, url: str, accept: str | None, expected: str) -> None:
    if accept is None:
        del api.client.headers["Accept"]
    response = api.client.get(url, headers={} if accept is None else {"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == expected
    assert response.headers["vary"] == "Accept"


def test_the_page_is_made_of_the_stored_report_and_spec_under_a_strict_policy(api: Api, url: str) -> None:
    response = api.client.get(url, headers={"Accept": "text/html"})
    report = Report.model_validate(api.client.get(url).json())
    spec = api.client.get(url.removesuffix("/report")).json()["resolved_spec"]
    assert response.text == render_report(report, spec)
    assert "&lt;b&gt;edge&lt;/b&gt;" in response.text
    assert "<script" not in response.text
    policy = response.headers["content-security-policy"]
    assert policy.startswith(POLICY)
    assert policy.endswith("frame-ancestors 'none'; sandbox")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_each_form_has_an_etag_of_its_own(api: Api, url: str) -> None:
    tags = {}
    for media in ("application/json", "text/html"):
        response = api.client.get(url, headers={"Accept": media})
        tags[media] = response.headers["etag"]
        again = api.client.get(url, headers={"Accept": media, "If-None-Match": tags[media]})
        assert (again.status_code, again.content, again.headers["vary"]) == (304, b"", "Accept")
    assert tags["application/json"] != tags["text/html"]
    other = api.client.get(url, headers={"Accept": "text/html", "If-None-Match": tags["application/json"]})
    assert other.status_code == 200


def test_a_report_of_a_newer_version_is_json_for_everybody(api: Api, url: str) -> None:
    with api.service.database.transaction() as session:
        newer = a_report().model_dump(mode="json") | {"schema_version": 9, "more": True}
        session.execute(update(Job).where(Job.id == url.split("/")[2]).values(report=newer))
    response = api.client.get(url, headers={"Accept": "text/html"})
    assert response.json()["schema_version"] == 9


def test_a_page_that_is_not_there_is_a_problem_document(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    response = api.client.get(f"/jobs/{job_id}/report", headers={"Accept": BROWSER})
    stories.problem_of(response, 409, "not_ready")
    stories.problem_of(api.client.get("/jobs/x/report", headers={"Accept": BROWSER}), 404, "not_found")
