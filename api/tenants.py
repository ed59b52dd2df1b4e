"""`python -m api tenants …`: what each tenant may keep, queue and send, and what it has; on the server's machine."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import select, union
from sqlalchemy.orm import Session

from api.operate import Refused, actions_of, table
from models import audit, quotas
from models.audit import Action, Actor
from models.database import now
from models.quotas import LIMITS, Limits, limits_of
from models.settings import Settings
from models.tables import Dataset, Job, Key, Network, Tenant

_BYTES = re.compile(r"([0-9]{1,18})(?:([KMGTP])iB)?")
_DEFAULT = "default"


def add_commands(parser: argparse.ArgumentParser) -> None:
    add = actions_of(parser)
    listing = add("list", "list tenants: their limits, and beside each what counts towards it", _list)
    listing.add_argument("--json", action="store_true")
    change = add("set", "give a tenant limits of its own", _set)
    change.add_argument("tenant")
    for name, (text, read) in _OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        change.add_argument(option, type=_or_default(read), metavar=text, help=f"or `{_DEFAULT}`: as the settings say")


def _bytes(text: str) -> int:
    found = _BYTES.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 5000000, 512GiB, 2TiB")
    return int(found[1]) << (10 * " KMGTP".index(found[2] or " "))


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def _at_least_one(text: str) -> int:
    if _count(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.001 <= rate <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0.001 and 1000000")
    return rate


_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "stored_bytes": ("512GiB", _bytes),
    "open_uploads": ("N", _count),
    "queued_jobs": ("N", _count),
    "running_jobs": ("N", _count),
    "requests_per_second": ("N", _rate),
    "request_burst": ("N", _at_least_one),
}
"""Each limit, how its value looks and how it is read; a test holds that these are `quotas.LIMITS`."""


def _or_default(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: _DEFAULT if text == _DEFAULT else read(text)


def _set(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    given = {name: value for name in LIMITS if (value := getattr(options, name)) is not None}
    if not given:
        raise Refused("Say which limit to set; `modelpress tenants set --help` lists them.")
    quotas.lock_tenant(session, options.tenant)
    row = session.get(Tenant, options.tenant) or Tenant(name=options.tenant)
    session.add(row)
    for name, value in given.items():
        setattr(row, name, None if value == _DEFAULT else value)
    audit.record(session, Actor(options.tenant), Action.TENANT_CHANGED, options.tenant, now(session))
    session.flush()
    return table(_COLUMNS, [_shown(session, settings, options.tenant)])


def _list(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    named = union(select(Tenant.name), *(select(each.tenant) for each in (Key, Network, Dataset, Job)))
    tenants = sorted({settings.tenant, *session.scalars(named)})
    if not options.json:
        return table(_COLUMNS, [_shown(session, settings, tenant) for tenant in tenants])
    rows = []
    for tenant in tenants:
        limits, used = _look(session, settings, tenant)
        rows.append({"tenant": tenant, "limits": asdict(limits), "used": used})
    return json.dumps(rows, indent=1)


_COLUMNS = ("tenant", *LIMITS)


def _look(session: Session, settings: Settings, tenant: str) -> tuple[Limits, dict[str, int]]:
    limits = limits_of(settings, session.get(Tenant, tenant))
    return limits, quotas.used(session, tenant, now(session))


def _shown(session: Session, settings: Settings, tenant: str) -> dict[str, str | None]:
    """`2 of 10` where something is kept, `10` where not."""
    limits, used = _look(session, settings, tenant)
    shown: dict[str, str | None] = {"tenant": tenant}
    for name, limit in asdict(limits).items():
        allowed = "any" if limit is None else f"{limit:g}" if isinstance(limit, float) else str(limit)
        shown[name] = f"{used[name]} of {allowed}" if name in used else allowed
    return shown
