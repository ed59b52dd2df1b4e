"""Every crafted file, uploaded to the whole service: nothing of it runs, whatever reads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.temporary import temporary_service
from tests.engine.ingest.archives import good_archive
from tests.engine.ingest.corpus import CORPUS
from tests.engine.ingest.named.checkpoints import CHECKPOINTS

PATIENCE = 240.0
FULL = os.environ.get("MODELPRESS_SWEEPS") == "full"
"""Each file costs the start of an engine; `make canaries` sends all of them."""
UPLOADED = CORPUS if FULL else CORPUS[::5]
WEIGHTS = CHECKPOINTS if FULL else CHECKPOINTS[::20]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with temporary_service(tmp_path / "data") as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("??/??/*")}


def _inspected(client: httpx.Client, network_id: str) -> dict[str, Any]:
    for _ in range(int(PATIENCE / 30)):
        row: dict[str, Any] = client.get(f"/models/{network_id}", params={"wait": 30}).json()
        if row["status"] != "inspecting":
            return row
    raise AssertionError(f"{network_id} is still being inspected")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_crafted_files_are_rejected_or_defused_and_no_canary_is_touched(client: httpx.Client, tmp_path: Path) -> None:
    canaries = tmp_path / "canaries"
    canaries.mkdir()
    blobs = tmp_path / "data" / "blobs"
    good = good_archive().write(tmp_path / "good.pt2")
    uploaded = client.post("/models", content=good.read_bytes())
    assert uploaded.status_code == 201
    assert _inspected(client, uploaded.json()["id"])["status"] == "ready"
    before = _hashes(blobs)

    waiting: dict[str, str] = {}
    for crafted in UPLOADED:
        path = crafted.write(tmp_path / f"{crafted.name}.pt2", canaries / crafted.name)
        answer = client.post("/models", params={"name": path.name}, content=path.read_bytes())
        if answer.status_code == 201:
            waiting[crafted.name] = answer.json()["id"]
        else:
            assert 400 <= answer.status_code < 500, (crafted.name, answer.text)
            assert answer.json()["code"] in (crafted.code, "format_mismatch"), crafted.name
    assert len(waiting) > len(UPLOADED) // 2
    wrong = {}
    for crafted in UPLOADED:
        if crafted.name in waiting:
            row = _inspected(client, waiting[crafted.name])
            ended = (row["status"], (row["error"] or {}).get("code"))
            if ended != (("rejected", crafted.code) if crafted.code else ("ready", None)):
                wrong[crafted.name] = row["status"], row["error"]
    assert not wrong
    assert list(canaries.iterdir()) == []
    assert not Path("/tmp/xzz").exists()
    after = _hashes(blobs)
    assert all(after[name] == digest == name for name, digest in before.items())
    assert list((tmp_path / "data" / "work").glob("worker-*/run-*")) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_crafted_weights_are_rejected_under_a_name_and_no_canary_is_touched(
    client: httpx.Client, tmp_path: Path
) -> None:
    canaries = tmp_path / "canaries"
    canaries.mkdir()
    codes: dict[str, str] = {}
    for crafted in WEIGHTS:
        content = crafted.make(canaries / crafted.name)
        answer = client.post("/models", params={"arch": "timm/resnet10t"}, content=content)
        if answer.status_code == 201:
            codes[crafted.name] = _inspected(client, answer.json()["id"])["error"]["code"]
        else:
            assert 400 <= answer.status_code < 500, (crafted.name, answer.text)
            codes[crafted.name] = answer.json()["code"]
    assert codes == {crafted.name: crafted.code for crafted in WEIGHTS}
    assert list(canaries.iterdir()) == []
