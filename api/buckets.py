"""How many requests somebody may send: token buckets by GCRA, which keeps one number a bucket, the time until it is
full again.

The buckets of tenants are in the broker, so that all api processes fill the same ones: the broker is there anyway, and
one script there is one round trip of a fraction of a millisecond, where a row in the database would be a write for each
request. A limit is no promise to keep through a fault, though, so nobody waits for the broker: where it does not answer
within `PATIENCE_SECONDS`, this process goes on with buckets of its own, and asks again after `PAUSE_SECONDS`. Meanwhile
a tenant may send as much to each process as otherwise to all of them, and no process lets more through.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE_SECONDS = 0.1
PAUSE_SECONDS = 5.0
MAX_BUCKETS = 10_000
"""In one process; who was silent longest is forgotten first, and has a full bucket again."""

logger = logging.getLogger("modelpress.api")


class Rate(NamedTuple):
    """`burst` requests at once, and `per_second` more each second."""

    per_second: float
    burst: int

    @property
    def interval(self) -> float:
        """Seconds that one request takes of the bucket."""
        return 1 / self.per_second


class Verdict(NamedTuple):
    """`remaining` requests may be sent at once; `retry_after` seconds bring the next, `full_after` all of them."""

    is_allowed: bool
    remaining: int
    retry_after: float
    full_after: float


class Buckets(Protocol):
    def take(self, name: str, rate: Rate) -> Verdict:
        """Take one request out of a bucket, if there is one."""


def _verdict(is_allowed: bool, full_after: float, rate: Rate) -> Verdict:
    remaining = math.floor(rate.burst - full_after / rate.interval + 1e-6)
    return Verdict(is_allowed, max(remaining, 0), max(full_after - rate.interval * (rate.burst - 1), 0.0), full_after)


class OwnBuckets:
    """Of this process. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, name: str, rate: Rate) -> Verdict:
        return self._look(name, rate, 1)

    def look(self, name: str, rate: Rate) -> Verdict:
        """Whether one could be taken."""
        return self._look(name, rate, 0)

    def _look(self, name: str, rate: Rate, count: int) -> Verdict:
        with self._lock:
            now = self._clock()
            full_after = max(self._full_at.get(name, now) - now, 0.0)
            is_allowed = full_after <= rate.interval * (rate.burst - 1) + 1e-9
            if is_allowed and count:
                full_after += rate.interval
                self._full_at[name] = now + full_after
                self._full_at.move_to_end(name)
                if len(self._full_at) > MAX_BUCKETS:
                    self._full_at.popitem(last=False)
            return _verdict(is_allowed, full_after, rate)


_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_after = math.max(tonumber(redis.call('GET', KEYS[1]) or now) - now, 0)
local allowed = full_after <= interval * (burst - 1)
if allowed then
  full_after = full_after + interval
  redis.call('SET', KEYS[1], string.format('%.0f', now + full_after), 'PX', math.ceil(full_after / 1000))
end
return {allowed and 1 or 0, full_after}
"""
"""The same in microseconds, by the broker's clock."""


class SharedBuckets:
    """Of all api processes with the same broker. Safe to use from several threads."""

    def __init__(self, broker_url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._own = OwnBuckets()
        self._redis = _client(broker_url, patience_seconds)
        self._script = self._redis.register_script(_TAKE) if self._redis is not None else None
        self._silent_until = 0.0

    def take(self, name: str, rate: Rate) -> Verdict:
        if self._script is None or time.monotonic() < self._silent_until:
            return self._own.take(name, rate)
        try:
            found = self._script(keys=[f"modelpress:rate:{name}"], args=[round(rate.interval * 1e6), rate.burst])
        except (redis.RedisError, OSError) as error:
            if not self._silent_until:
                logger.warning("the broker does not count requests, this process does: %s", type(error).__name__)
            self._silent_until = time.monotonic() + PAUSE_SECONDS
            return self._own.take(name, rate)
        self._silent_until = 0.0
        allowed, full_after = found
        return _verdict(bool(allowed), full_after / 1e6, rate)

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()


def _client(broker_url: str, patience_seconds: float) -> redis.Redis | None:
    """`None` for a broker that is not Redis: there is nothing to share then."""
    scheme, _, rest = broker_url.partition("://")
    if scheme not in ("redis", "rediss", "redis+socket"):
        return None
    url = f"unix://{rest.partition('?')[0]}" if scheme == "redis+socket" else broker_url
    impatient = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(
        url, socket_timeout=patience_seconds, socket_connect_timeout=patience_seconds, retry=impatient
    )
