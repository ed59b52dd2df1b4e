"""What routes are given: the service's parts, the caller, checked parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.auth import Caller, caller_of, is_loopback
from api.buckets import Buckets, Rate, Verdict
from api.errors import HeaderedFailure, request_id_of
from api.guesses import WrongKeys
from api.in_flight import InFlight
from api.key_use import KeyUse
from api.metrics import Metrics
from api.nudge import Nudger
from api.readiness import ReadinessCheck
from api.rules import RULES
from api.transfers import Transfers
from api.verified import VerifiedBlobs
from api.watch import Watch
from models import audit
from models.audit import Outcome
from models.blobs import Blobs
from models.database import Database, now
from models.errors import Code, Failure, FieldProblem
from models.ids import is_id
from models.scopes import stored
from models.settings import Settings

MAX_WAIT_SECONDS = 60
MAX_ITEMS = 200


@dataclass(frozen=True)
class Service:
    """The parts of this process, made once when it starts."""

    settings: Settings
    database: Database
    blobs: Blobs
    transfers: Transfers
    nudger: Nudger
    watch: Watch
    in_flight: InFlight
    verified: VerifiedBlobs
    key_use: KeyUse
    wrong_keys: WrongKeys
    buckets: Buckets
    readiness: ReadinessCheck
    metrics: Metrics


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _query_parameters(dependant: Dependant) -> set[str]:
    names = {field.alias for field in dependant.query_params}
    return names.union(*(_query_parameters(inner) for inner in dependant.dependencies))


def known_parameters(request: Request) -> None:
    """422 for a query parameter that the route does not have: a typing error must not pass as a choice."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = sorted(_query_parameters(route.dependant))
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        problems = tuple(
            FieldProblem(pointer=f"/query/{name[:100]}", message="Unknown parameter; it is refused", allowed=known)
            for name in unknown[:10]
        )
        raise Failure(Code.INVALID_REQUEST, f"There is no parameter {unknown[0][:100]!r} here.", problems=problems)


def _refuse_other_sites(request: Request) -> None:
    """Open access trusts the machine, not the web pages its browser shows."""
    host = request.headers.get("host", "")
    name = host if host.startswith("[") and host.endswith("]") else host.rpartition(":")[0] or host
    if not is_loopback(name) or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Failure(Code.FORBIDDEN, "Without keys, only requests made to this machine by name are answered.")


_BEARER = HTTPBearer(auto_error=False, bearerFormat="mp_…", description="A key; none under open access.")


def caller(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Caller:
    """Who asks, where they may. Runs before a byte of the body is read.

    Raises `Failure` with `unauthorized`, `key_expired`, `rate_limited` and `forbidden`."""
    if service.settings.open_access:
        _refuse_other_sites(request)
        found = caller_of(service.settings, service.database, None, request_id_of(request))
    else:
        found = _known(request, service, credentials.credentials if credentials else None)
    _refuse_too_many(request, service, found)
    _refuse_without_scope(request, service, found)
    known_parameters(request)
    return found


def _known(request: Request, service: Service, secret: str | None) -> Caller:
    address = request.client.host if request.client else None
    if secret is not None:
        service.wrong_keys.refuse_more(address, secret)
    try:
        found = caller_of(service.settings, service.database, secret, request_id_of(request))
    except Failure as failure:
        if secret is not None and failure.code in (Code.UNAUTHORIZED, Code.KEY_EXPIRED):
            service.wrong_keys.wrong(address, secret)
        raise
    assert secret is not None
    assert found.key_id is not None
    service.wrong_keys.right(secret)
    service.key_use.note(found.key_id, datetime.now(UTC))
    return found


def _refuse_too_many(request: Request, service: Service, caller: Caller) -> None:
    if caller.limits.requests_per_second is None:
        return
    rate = Rate(caller.limits.requests_per_second, caller.limits.request_burst)
    verdict = service.buckets.take(caller.tenant, rate)
    request.state.headers = _rate_headers(rate, verdict)
    if not verdict.is_allowed:
        raise HeaderedFailure(
            Code.RATE_LIMITED,
            f"More requests came than {rate.burst} at once and {rate.per_second:g} a second.",
            headers={"Retry-After": str(max(1, math.ceil(verdict.retry_after)))},
        )


def _rate_headers(rate: Rate, verdict: Verdict) -> dict[str, str]:
    """As draft-ietf-httpapi-ratelimit-headers-10 says: the burst, in which it is there again; what is left of it."""
    return {
        "RateLimit-Policy": f'"tenant";q={rate.burst};w={math.ceil(rate.burst * rate.interval)}',
        "RateLimit": f'"tenant";r={verdict.remaining};t={math.ceil(verdict.full_after)}',
    }


def _refuse_without_scope(request: Request, service: Service, caller: Caller) -> None:
    rule = RULES[request.scope["route"].name]
    if rule.scope is None or rule.scope in caller.scopes:
        return
    if rule.action is not None:
        named = next((value for value in request.path_params.values() if is_id(value, value[:3])), None)
        with service.database.transaction() as session:
            audit.record(session, caller, rule.action, named, now(session), Outcome.REFUSED)
    raise HeaderedFailure(
        Code.FORBIDDEN,
        f"This needs a key with the scope `{rule.scope}`; yours has: {stored(caller.scopes) or 'none'}.",
        headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{rule.scope}"'},
        where=rule.scope,
    )


_METRICS_TOKEN = HTTPBearer(
    auto_error=False, scheme_name="MetricsToken", description="MODELPRESS_METRICS_TOKEN; none under open access."
)


def metrics_reader(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_METRICS_TOKEN)],
) -> None:
    """Lets who has the token of metrics pass, which opens nothing else, as no tenant's key opens them."""
    known_parameters(request)
    if service.settings.open_access:
        _refuse_other_sites(request)
        return
    token = service.settings.metrics_token
    if token is None or credentials is None or not compare_digest(credentials.credentials.encode(), token.encode()):
        raise Failure(
            Code.UNAUTHORIZED, "Metrics want the token that the service has as MODELPRESS_METRICS_TOKEN, if it has one."
        )


ServiceDep = Annotated[Service, Depends(service_of)]
CallerDep = Annotated[Caller, Depends(caller)]
Wait = Annotated[
    int, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for a change before answering anyway.")
]
Limit = Annotated[int, Query(ge=1, le=MAX_ITEMS, description="How many to give at most.")]
After = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
