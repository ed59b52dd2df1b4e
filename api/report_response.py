"""A job's report as JSON or as a page, whichever the sender likes better; each with an ETag of its own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from api.artifact_response import matches
from api.negotiation import preferred
from models.report import Report
from models.report_page.page import POLICY, render_report

JSON, PAGE = "application/json", "text/html"
_OF_PAGE = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


def report_response(
    report: dict[str, Any], spec: dict[str, Any], accept: str | None, if_none_match: str | None
) -> Response:
    """`report` as it was stored. The page is made here from the checked report, never taken from an engine's file: what
    an engine wrote is not served as HTML. A report that a newer version stored is given as JSON."""
    media = preferred(accept, (JSON, PAGE))
    content = _page(report, spec) if media == PAGE else None
    if content is None:
        media, content = JSON, json.dumps(report, ensure_ascii=False, separators=(",", ":"))
    body = content.encode()
    digest = hashlib.sha256(body).hexdigest()
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache", "Vary": "Accept"}
    if if_none_match is not None and matches(digest, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media, headers=headers | (_OF_PAGE if media == PAGE else {}))


def _page(report: dict[str, Any], spec: dict[str, Any]) -> str | None:
    try:
        return render_report(Report.model_validate(report), spec)
    except ValidationError:
        return None
