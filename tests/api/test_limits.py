"""Rates: the bucket, the broker that shares it and its failures, wrong keys, and what is answered."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.auth import create_key
from api.buckets import PATIENCE_SECONDS, OwnBuckets, Rate, SharedBuckets
from api.guesses import WrongKeys
from models.errors import Code, Failure
from tests.api.serving import Api
from tests.api.stories import problem_of
from tests.services import Valkey

GUESSES = 1000 if os.environ.get("MODELPRESS_SWEEPS") == "full" else 150


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    per_second=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=200),
)
def test_no_stretch_of_time_lets_more_through_than_the_burst_and_the_rate(
    per_second: float, burst: int, pauses: list[float]
) -> None:
    clock, rate = Clock(), Rate(per_second, burst)
    buckets = OwnBuckets(clock)
    allowed: list[float] = []
    for pause in pauses:
        clock.now += pause / per_second
        verdict = buckets.take("a", rate)
        if verdict.is_allowed:
            allowed.append(clock.now)
            assert 0 <= verdict.remaining < burst
        else:
            assert 0 < verdict.retry_after <= 1 / per_second + 1e-6
            clock.now += verdict.retry_after + 1e-6
            assert buckets.look("a", rate).is_allowed, "waiting as long as was said is enough"
    for first, begin in enumerate(allowed):
        for last, end in enumerate(allowed[first:], first):
            assert last - first + 1 <= burst + (end - begin) * per_second + 1e-3


def test_buckets_are_apart_and_fill_again() -> None:
    clock, rate = Clock(), Rate(2.0, 3)
    buckets = OwnBuckets(clock)
    assert [buckets.take("a", rate).remaining for _ in range(3)] == [2, 1, 0]
    refused = buckets.take("a", rate)
    assert (refused.is_allowed, refused.remaining, refused.retry_after, refused.full_after) == (False, 0, 0.5, 1.5)
    assert buckets.take("b", rate).is_allowed
    clock.now += 1.5
    assert [buckets.take("a", rate).is_allowed for _ in range(4)] == [True, True, True, False]


def test_processes_share_a_bucket_through_the_broker(valkey: Valkey) -> None:
    rate, processes = Rate(0.5, 4), [SharedBuckets(valkey.url, patience_seconds=30) for _ in range(2)]
    with ThreadPoolExecutor(8) as callers:
        verdicts = list(callers.map(lambda turn: processes[turn % 2].take("a", rate), range(12)))
    assert sorted(verdict.remaining for verdict in verdicts if verdict.is_allowed) == [0, 1, 2, 3]
    refused = processes[0].take("a", rate)
    assert 1.5 < refused.retry_after <= 2.0
    assert processes[1].take("b", rate).remaining == 3
    assert 0 < valkey.client().pttl("modelpress:rate:a") <= 8001
    for process in processes:
        process.close()


@pytest.mark.parametrize("fault", ["gone", "hung"])
def test_without_the_broker_each_process_counts_and_nobody_waits(valkey: Valkey, fault: str) -> None:
    buckets, rate = SharedBuckets(valkey.url), Rate(1.0, 5)
    assert buckets.take("a", rate).remaining == 4
    valkey.pause() if fault == "hung" else valkey.stop()
    started = time.monotonic()
    verdicts = [buckets.take("a", rate) for _ in range(200)]
    took = time.monotonic() - started
    if fault == "hung":
        valkey.resume()
    assert took < 100 * PATIENCE_SECONDS  # not each of them waited
    assert sum(verdict.is_allowed for verdict in verdicts) in (5, 6)
    buckets.close()


def test_a_broker_that_is_not_redis_shares_nothing_and_harms_nothing() -> None:
    buckets = SharedBuckets("amqp://localhost")
    assert [buckets.take("a", Rate(1.0, 1)).is_allowed for _ in range(2)] == [True, False]
    buckets.close()


def test_a_tenant_that_floods_is_answered_429_and_the_others_are_not(
    serve: Callable[..., Api], two_keys: tuple[str, str]
) -> None:
    api = serve(open_access=False, max_requests_per_second=2.0, max_request_burst=10)
    with api.with_key(two_keys[0]) as flood, api.with_key(two_keys[1]) as other, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: flood.get("/jobs"), range(80)))
        counted = Counter(answer.status_code for answer in answers)
        assert set(counted) == {200, 429}
        assert 10 <= counted[200] < 70
        refused = next(answer for answer in answers if answer.status_code == 429)
        problem_of(refused, 429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["ratelimit-policy"] == '"tenant";q=10;w=5'
        assert refused.headers["ratelimit"].startswith('"tenant";r=0;t=')
        calm = other.get("/jobs")
        assert (calm.status_code, calm.headers["ratelimit"]) == (200, '"tenant";r=9;t=1')
        for path in ("/healthz", "/openapi.json"):
            assert "ratelimit" not in flood.get(path).headers
        time.sleep(int(refused.headers["retry-after"]))
        assert flood.get("/jobs").status_code == 200
        upload = flood.post("/models", content=b"\x80\x04junk")
        assert upload.status_code in (422, 429)


def test_open_access_counts_no_requests(serve: Callable[..., Api]) -> None:
    api = serve(max_requests_per_second=0.001, max_request_burst=1)
    assert {api.client.get("/presets").status_code for _ in range(5)} == {200}
    assert "ratelimit" not in api.client.get("/presets").headers
    assert api.client.get("/capabilities").json()["limits"]["requests_per_second"] is None


def test_guesses_are_slowed_down_and_shut_nobody_out_who_was_right(
    serve: Callable[..., Api], two_keys: tuple[str, str]
) -> None:
    api = serve(open_access=False, max_wrong_keys=20)

    def guess(number: int) -> httpx.Response:
        headers = {"Authorization": f"Bearer mp_{number:043d}"}
        return guesser.get("/jobs", headers=headers)

    with (
        api.with_key(two_keys[0]) as known,
        api.with_key(two_keys[1]) as new,
        httpx.Client(base_url=api.base_url) as guesser,
        ThreadPoolExecutor(4) as clients,
    ):
        assert known.get("/jobs").status_code == 200
        answers = list(clients.map(guess, range(GUESSES)))
        counted = Counter(answer.status_code for answer in answers)
        assert set(counted) == {401, 429}
        assert 20 <= counted[401] < GUESSES / 2
        refused = problem_of(next(answer for answer in answers if answer.status_code == 429), 429, "rate_limited")
        assert "address" in refused["detail"]
        assert known.get("/jobs").status_code == 200
        late = new.get("/jobs")
        assert late.status_code in (200, 429)
        if late.status_code == 429:
            time.sleep(int(late.headers["retry-after"]))
            assert new.get("/jobs").status_code == 200
        assert api.client.get("/jobs").status_code == 401, "no key at all is no guess"


@pytest.mark.parametrize(
    ("addresses", "together"),
    [
        (("192.0.2.1", "192.0.2.2"), False),
        (("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"), True),
        (("2001:db8:0:1::1", "2001:db8:0:2::1"), False),
        (("::ffff:192.0.2.1", "::ffff:192.0.2.2"), False),
        (("::ffff:192.0.2.1", "192.0.2.1"), True),
        ((None, "nonsense"), True),
    ],
)
def test_an_address_is_what_one_guesser_has(addresses: tuple[str | None, str | None], together: bool) -> None:
    keys = WrongKeys(Rate(1.0, 1), OwnBuckets(Clock()))
    first, second = addresses
    keys.wrong(first, "mp_x")
    with pytest.raises(Failure) as refused:
        keys.refuse_more(first, "mp_x")
    assert refused.value.code is Code.RATE_LIMITED
    keys.right("mp_known")
    keys.refuse_more(first, "mp_known")
    if together:
        with pytest.raises(Failure):
            keys.refuse_more(second, "mp_x")
    else:
        keys.refuse_more(second, "mp_x")


def test_a_rate_of_its_own_holds_for_all_keys_of_a_tenant(serve: Callable[..., Api], two_keys: tuple[str, str]) -> None:
    api = serve(open_access=False, max_requests_per_second=0.001, max_request_burst=3)
    with api.service.database.transaction() as session:
        second = create_key(session, "a", "second")
    with api.with_key(two_keys[0]) as one, api.with_key(second) as same:
        assert [client.get("/presets").status_code for client in (one, same, one, same)] == [200, 200, 200, 429]


def test_a_key_that_was_right_and_is_no_more_is_wrong() -> None:
    keys = WrongKeys(Rate(1.0, 1), OwnBuckets(Clock()))
    keys.right("mp_known")
    keys.wrong("192.0.2.1", "mp_known")
    with pytest.raises(Failure):
        keys.refuse_more("192.0.2.1", "mp_known")
