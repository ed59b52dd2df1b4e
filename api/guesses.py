"""Wrong keys, counted by the address they come from: who guesses is answered 429 before the database is asked.

A key that was right lately is let through whatever its neighbours send: an address may be that of a whole office, and a
limit that locks it out would be an attack of its own. The counts are of this process alone.
"""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import OrderedDict

from api.auth import hash_of
from api.buckets import OwnBuckets, Rate
from api.errors import HeaderedFailure
from models.errors import Code

KEYS_KNOWN = 10_000
IPV6_PREFIX = 64
"""One customer of a provider has so many bits to change addresses with."""


class WrongKeys:
    """`rate`: how many wrong keys an address may send. Safe to use from several threads."""

    def __init__(self, rate: Rate, buckets: OwnBuckets | None = None) -> None:
        self._rate, self._buckets = rate, buckets or OwnBuckets()
        self._lock = threading.Lock()
        self._right: OrderedDict[bytes, None] = OrderedDict()

    def refuse_more(self, address: str | None, secret: str) -> None:
        """Raises `Failure` with `rate_limited` where too many wrong keys came from; before a key is looked for."""
        with self._lock:
            if hash_of(secret) in self._right:
                return
        verdict = self._buckets.look(_network(address), self._rate)
        if not verdict.is_allowed:
            raise HeaderedFailure(
                Code.RATE_LIMITED,
                "Too many unknown keys came from this address.",
                headers={"Retry-After": str(max(1, math.ceil(verdict.retry_after)))},
            )

    def right(self, secret: str) -> None:
        with self._lock:
            digest = hash_of(secret)
            self._right[digest] = None
            self._right.move_to_end(digest)
            if len(self._right) > KEYS_KNOWN:
                self._right.popitem(last=False)

    def wrong(self, address: str | None, secret: str) -> None:
        """Also of a key that was right until it ended or was revoked."""
        with self._lock:
            self._right.pop(hash_of(secret), None)
        self._buckets.take(_network(address), self._rate)


def _network(address: str | None) -> str:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"  # a socket file, or a proxy that tells no address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
