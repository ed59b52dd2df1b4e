"""Big files get through lines that break and services that are killed, and are sent once."""

from __future__ import annotations

import hashlib
import random
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from modelpress import Client
from modelpress.outcomes import ApiError
from modelpress.transport import RESUMABLE_BYTES
from tests.api import stories
from tests.api.cutting import cutting
from tests.api.serving import Api, served_by_a_process

BODY = stories.a_pt2(random.Random(0).randbytes(RESUMABLE_BYTES))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    path.write_bytes(BODY)
    return path


def test_a_big_file_goes_on_where_the_line_broke(api: Api, file: Path) -> None:
    done: list[int] = []
    cuts = [3_000_000, 1, 5_000_000, 200_000, 4_000_000]
    once_more = sum(cuts) // 2
    with cutting(httpx.URL(api.base_url).port or 0, cuts) as line, Client(line.url) as client:
        network = client.models.upload(file, wait=False, progress=lambda at, size: done.append(at))
        assert cuts == []
    assert network.sha256 == hashlib.sha256(BODY).hexdigest()
    assert (network.name, done[-1]) == ("net.pt2", len(BODY))
    again = [later for earlier, later in pairwise(done) if later < earlier]
    assert again == sorted(again), "what had arrived was sent again"
    assert len(BODY) <= line.sent < len(BODY) + once_more, "what had arrived was sent again"


def test_a_big_file_outlives_kills_of_the_service(sqlite_url: str, tmp_path: Path, file: Path) -> None:
    environment = {"database_url": sqlite_url, "blobs": tmp_path / "blobs", "open_access": "true"}
    environment["broker_url"] = "redis://127.0.0.1:1/0"
    with ExitStack() as running:
        process, base_url = running.enter_context(served_by_a_process(tmp_path, **environment))

        def kill_and_start_again() -> None:
            nonlocal process
            time.sleep(0.2)
            process.kill()
            process.wait(30)
            process, url = running.enter_context(served_by_a_process(tmp_path, **environment))
            line.port = httpx.URL(url).port or 0

        cuts = [6_000_000, 5_000_000]
        with cutting(httpx.URL(base_url).port or 0, cuts, kill_and_start_again) as line, Client(line.url) as client:
            network = client.models.upload(file, wait=False)
            assert cuts == []
            assert network.sha256 == hashlib.sha256(BODY).hexdigest()
            assert [each.id for each in client.models.list()] == [network.id]


def test_a_big_file_over_the_limit_says_so_before_it_is_sent(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "huge.pt2"
    with file.open("wb") as sparse:
        sparse.truncate(api.service.settings.max_dataset_bytes + 1)
    with Client(api.base_url) as client, pytest.raises(ApiError) as refused:
        client.models.upload(file)
    assert (refused.value.code, refused.value.status) == ("too_large", 413)


def test_a_service_that_stays_away_ends_the_sending(api: Api, file: Path) -> None:
    with cutting(httpx.URL(api.base_url).port or 0, [3_000_000]) as line:

        def goes_away() -> None:
            line.port = 1

        line.on_cut = goes_away
        with Client(line.url, patience=0.5) as client, pytest.raises(ApiError) as refused:
            client.models.upload(file)
    assert refused.value.code == "unreachable"
