"""A stock tus client, which knows nothing of this service, gets its file through whatever happens in between."""

from __future__ import annotations

import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

from models.settings import Settings
from tests.api import stories, tus
from tests.api.cutting import cutting
from tests.api.serving import Api, served_by_a_process

BODY = stories.a_pt2(random.Random(0).randbytes(6_000_000))
PATIENCE: dict[str, Any] = {"retries": 400, "retry_delay": 0.05}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "network.pt2"
    path.write_bytes(BODY)
    return path


def port_of(url: str) -> int:
    port = httpx.URL(url).port
    assert port is not None
    return port


def use(base_url: str, upload_url: str) -> dict[str, Any]:
    response = httpx.post(f"{base_url}/models", params={"upload": upload_url.rpartition("/")[2]}, timeout=60)
    assert response.status_code == 201, response.text
    row: dict[str, Any] = response.json()
    return row


@pytest.mark.parametrize("checked", [False, True])
def test_a_stock_client_completes_across_dropped_connections(api: Api, file: Path, checked: bool) -> None:
    chance = random.Random(1)
    cuts = [chance.randrange(1000, 300_000) for _ in range(15)]
    with cutting(port_of(api.base_url), cuts) as proxy:
        client = TusClient(f"{proxy.url}/uploads")
        uploader = client.uploader(
            str(file), chunk_size=2_000_000, upload_checksum=checked, metadata={"filename": "net.pt2"}, **PATIENCE
        )
        uploader.upload()
        assert cuts == []
        assert proxy.connections > 15
    row = use(api.base_url, str(uploader.url))
    assert (row["sha256"], row["name"]) == (hashlib.sha256(BODY).hexdigest(), "net.pt2")


@pytest.mark.parametrize("checked", [False, True])
def test_a_stock_client_completes_across_kills_of_the_server(
    settings: Settings, tmp_path: Path, file: Path, checked: bool
) -> None:
    environment = {
        "database_url": settings.database_url,
        "blobs": settings.blobs,
        "open_access": "true",
        "broker_url": settings.broker_url,
    }
    arrived: list[tuple[int, int]] = []
    incoming = Path(settings.blobs) / "incoming"
    with ExitStack() as running:
        process, base_url = running.enter_context(served_by_a_process(tmp_path, **environment))

        def kill_and_start_again() -> None:
            nonlocal process, base_url
            time.sleep(0.2)
            process.kill()
            process.wait(30)
            on_disk = sum(path.stat().st_size for path in incoming.iterdir())
            process, base_url = running.enter_context(served_by_a_process(tmp_path, **environment))
            path = f"/uploads/{next(incoming.iterdir()).name}"
            with httpx.Client(base_url=base_url) as probe:
                arrived.append((tus.offset(probe, path), on_disk))
            proxy.port = port_of(base_url)

        cuts = [1_500_000, 2_500_000, 1_800_000]
        with cutting(port_of(base_url), cuts, kill_and_start_again) as proxy:
            client = TusClient(f"{proxy.url}/uploads")
            uploader = client.uploader(str(file), chunk_size=3_000_000, upload_checksum=checked, **PATIENCE)
            uploader.upload()
        assert len(arrived) == 3
        if checked:
            assert all(offset == 0 < on_disk for offset, on_disk in arrived), "a part counts once its checksum is seen"
        else:
            assert all(0 < offset == on_disk for offset, on_disk in arrived), "it resumes at the byte on the disk"
            assert len({offset for offset, _ in arrived}) == 3
        row = use(base_url, str(uploader.url))
        with (Path(settings.blobs) / row["sha256"][:2] / row["sha256"][2:4] / row["sha256"]).open("rb") as stored:
            assert stored.read() == BODY


def test_a_stock_client_that_died_itself_goes_on_where_it_was(api: Api, file: Path, tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path / "urls.json"))  # type: ignore[no-untyped-call]
    client = TusClient(f"{api.base_url}/uploads")
    first = client.uploader(str(file), chunk_size=1_000_000, store_url=True, url_storage=storage)
    first.upload(stop_at=2_000_000)
    second = client.uploader(str(file), chunk_size=1_000_000, store_url=True, url_storage=storage)
    assert (second.url, second.offset) == (first.url, 2_000_000)
    second.upload()
    assert use(api.base_url, str(second.url))["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_a_big_resumable_upload_takes_no_memory(settings: Settings, tmp_path: Path) -> None:
    piece = bytes(1 << 20)
    head = stories.a_pt2(piece)
    size = len(head) + 200 * len(piece)

    def body() -> Any:
        yield head
        for _ in range(200):
            yield piece

    environment = {"database_url": settings.database_url, "blobs": settings.blobs, "open_access": "true"}
    with (
        served_by_a_process(tmp_path, broker_url=settings.broker_url, **environment) as (process, base_url),
        httpx.Client(base_url=base_url, timeout=300) as client,
    ):
        path = tus.create(client, size)
        before = psutil.Process(process.pid).memory_info().rss
        with ThreadPoolExecutor(1) as sender:
            part = sender.submit(tus.patch, client, path, 0, body())
            peak = before
            while not part.done():
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
                time.sleep(0.01)
        assert part.result().status_code == 204
        assert use(base_url, path)["size_bytes"] == size
        assert peak - before < 50 << 20
