"""Uploads over HTTP: raw bodies, refusals, waiting for the inspection, nothing left behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.formats import LEGACY_TORCH
from models.settings import Settings
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of

PICKLE = b"\x80\x04\x95\x1d" + bytes(7) + b"\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."


def staged(settings: Settings) -> list[Path]:
    return list((Path(settings.blobs) / "staging").iterdir())


def stored(settings: Settings) -> list[Path]:
    return [path for path in Path(settings.blobs).rglob("[!.]*") if path.is_file()]


def soon(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    ("path", "prefix", "body"),
    [("/models", "net_", stories.a_pt2(b"a" * 3_000_000)), ("/datasets", "dat_", stories.an_npz())],
)
def test_an_upload_is_stored_under_its_hash_and_waits_for_inspection(
    api: Api, settings: Settings, path: str, prefix: str, body: bytes
) -> None:
    response = api.client.post(path, params={"name": "mine"}, content=body)
    assert response.status_code == 201
    row = response.json()
    sha256 = hashlib.sha256(body).hexdigest()
    assert row["id"].startswith(prefix)
    assert response.headers["location"] == f"{path}/{row['id']}"
    assert (row["name"], row["sha256"], row["size_bytes"], row["status"]) == ("mine", sha256, len(body), "inspecting")
    with api.service.blobs.open(sha256) as stored:
        assert stored.read() == body
    assert staged(settings) == []
    shown = api.client.get(response.headers["location"]).json()
    assert {key: shown[key] for key in row} == row


def test_a_network_shows_what_inspection_found_with_its_layers_only_in_full(api: Api) -> None:
    network_id = stories.ready_network(api)
    shown = api.client.get(f"/models/{network_id}").json()
    assert (shown["status"], shown["format"], shown["macs"]) == ("ready", "pt2", 1_000_000)
    assert [layer["name"] for layer in shown["layers"]] == ["conv1", "fc"]
    assert shown["layers"][1]["reason"] == "output"
    assert shown["groups"][0]["units"] == 32
    [listed] = api.client.get("/models").json()["data"]
    assert listed["id"] == network_id
    assert set(shown) - set(listed) == {"layers", "groups"}


def test_the_shapes_of_inputs_are_kept_with_the_network_and_checked_first(api: Api) -> None:
    shapes = ["ids:1,128", "mask:1,128"]
    response = api.client.post("/models", params={"input_shape": shapes}, content=stories.a_pt2())
    assert response.json()["read_options"] == {"input_shape": shapes, "arch": None, "num_classes": None}
    shown = api.client.get(response.headers["location"]).json()
    assert shown["read_options"] == {"input_shape": shapes, "arch": None, "num_classes": None}
    wrong = api.client.post("/models", params={"input_shape": ["3x224x224"]}, content=stories.a_pt2())
    problem = problem_of(wrong, 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/query/input_shape/0"
    assert "`1,3,224,224`" in problem["errors"][0]["message"]
    two = api.client.post("/models", params={"input_shape": ["1,3", "1,4"]}, content=stories.a_pt2())
    assert problem_of(two, 422, "invalid_request")["errors"][0]["pointer"] == "/query/input_shape"


def _weights() -> bytes:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + bytes(4)


def test_weights_are_taken_with_the_name_of_their_network_and_only_then(api: Api) -> None:
    response = api.client.post("/models", params={"arch": "timm/resnet18", "num_classes": "10"}, content=_weights())
    assert response.status_code == 201
    assert response.json()["read_options"] == {"input_shape": [], "arch": "timm/resnet18", "num_classes": 10}
    refused = api.client.post("/models", content=_weights())
    assert "?arch=timm/resnet18" in problem_of(refused, 422, "unknown_format")["detail"]


@pytest.mark.parametrize("arch", ["resnet18", "timm/", "timm/hf_hub:x", "timm/../x", "transformers/os.x", "x/y"])
def test_the_name_of_a_network_is_a_name(api: Api, arch: str) -> None:
    refused = api.client.post("/models", params={"arch": arch}, content=_weights())
    problem = problem_of(refused, 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/query/arch"
    assert "timm/resnet18" in problem["errors"][0]["message"]


@pytest.mark.parametrize("arch", [None, "transformers"])
def test_classes_are_counted_for_networks_of_timm_alone(api: Api, arch: str | None) -> None:
    params = {"num_classes": "10"} | ({"arch": arch} if arch else {})
    problem = problem_of(api.client.post("/models", params=params, content=_weights()), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/query/num_classes"


@pytest.mark.parametrize("content", [b"\x08\x08\x12\x07pytorch" + bytes(60), stories.a_pt2()], ids=["onnx", "pt2"])
def test_a_file_that_holds_its_network_is_not_named(api: Api, content: bytes) -> None:
    refused = api.client.post("/models", params={"arch": "timm/resnet18"}, content=content)
    assert problem_of(refused, 422, "invalid_request")["errors"][0]["pointer"] == "/query/arch"


def test_a_state_dict_from_before_torch_1_6_is_refused_with_the_way_out(api: Api) -> None:
    refused = api.client.post("/models", params={"arch": "timm/resnet18"}, content=LEGACY_TORCH + bytes(60))
    assert "1.6" in problem_of(refused, 422, "legacy_format")["detail"]


def test_a_rejected_upload_says_why_and_what_to_do(api: Api) -> None:
    network_id = stories.upload_network(api.client)
    stories.inspect_next(api.service.database, None)
    shown = api.client.get(f"/models/{network_id}").json()
    assert shown["status"] == "rejected"
    assert shown["error"]["code"] == "unsupported_op"
    assert "aten::made_up" in shown["error"]["message"]
    problem = problem_of(
        api.client.post("/jobs", json={"model": network_id, "preset": "half"}), 422, "network_rejected"
    )
    assert problem["errors"][0]["pointer"] == "/model"
    assert "aten::made_up" in problem["detail"]


def test_a_wait_ends_when_the_inspection_does(api: Api) -> None:
    dataset_id = stories.upload_dataset(api.client)
    assert api.client.get(f"/datasets/{dataset_id}", params={"wait": 1}).json()["status"] == "inspecting"
    threading.Timer(0.7, stories.inspect_next, args=[api.service.database, stories.DATASET]).start()
    shown = api.client.get(f"/datasets/{dataset_id}", params={"wait": 50}).json()
    assert (shown["status"], shown["samples"], shown["labels"]["classes"]) == ("ready", 100, 10)


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("/models", b"", "empty_file", "empty"),
        ("/models", b"x", "unknown_format", "short"),
        ("/models", PICKLE, "unsafe_pickle", "posix.system"),
        ("/models", b"\x7fELF" + bytes(2_000_000), "unknown_format", "ELF"),
        ("/models", b"7z\xbc\xaf\x27\x1c" + bytes(100), "unknown_format", "7z"),
        ("/datasets", b"\x1f\x8b\x08" + bytes(200), "unknown_format", "gzip"),
    ],
)
def test_what_the_first_bytes_show_is_refused_at_once_and_nothing_stays(
    api: Api, settings: Settings, path: str, body: bytes, code: str, words: str
) -> None:
    problem = problem_of(api.client.post(path, content=body), 422, code)
    assert words in problem["detail"]
    assert stored(settings) == []
    assert api.client.get(path).json()["data"] == []


def test_a_name_that_lies_about_the_content_is_refused(api: Api) -> None:
    response = api.client.post("/models", params={"name": "net.safetensors"}, content=stories.a_pt2())
    assert "zip" in problem_of(response, 422, "format_mismatch")["detail"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/cron.d/x", "../../etc/cron.d/x"),
        ("a\x00b\r\nc", "a\ufffdb\ufffd\ufffdc"),
        ("\u202etxt.a", "\ufffdtxt.a"),
        ("n" * 5000, "n" * 255),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("", "unnamed"),
    ],
)
def test_a_name_is_only_for_people(api: Api, settings: Settings, name: str, shown: str) -> None:
    response = api.client.post("/models", params={"name": name}, content=stories.a_pt2())
    assert response.json()["name"] == shown
    [file] = stored(settings)
    assert file.name == response.json()["sha256"]
    assert api.client.get("/models").json()["data"][0]["name"] == shown


def test_a_form_and_a_compressed_body_are_refused_with_what_to_send_instead(api: Api, settings: Settings) -> None:
    form = problem_of(api.client.post("/models", files={"file": b"x"}), 415, "use_raw_body")
    assert "curl -T" in form["hint"]
    packed = api.client.post("/models", content=stories.a_pt2(), headers={"Content-Encoding": "gzip"})
    problem_of(packed, 415, "unsupported_media_type")
    assert stored(settings) == []


def test_a_body_beyond_the_limit_is_cut_off_whether_its_length_was_said_or_not(
    serve: Callable[..., Api], settings: Settings
) -> None:
    api = serve(max_model_bytes=100_000)

    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield stories.a_pt2(bytes(10_000))

    for body in (stories.a_pt2(bytes(200_000)), endless()):
        response = api.client.post("/models", content=body)
        problem_of(response, 413, "too_large")
        assert response.headers["upload-limit"] == "max-size=100000"
    assert stored(settings) == []
    assert api.client.post("/models", content=stories.a_pt2(bytes(50_000))).status_code == 201


def raw_upload(api: Api, declared: int, sent: bytes) -> socket.socket:
    """A client that declares more than it sends."""
    url = httpx.URL(api.base_url)
    connection = socket.create_connection((url.host, url.port or 80), timeout=30)
    connection.sendall(
        f"POST /models HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nContent-Length: {declared}\r\n\r\n".encode() + sent
    )
    return connection


def test_a_silent_sender_gets_408_and_nothing_of_it_stays(serve: Callable[..., Api], settings: Settings) -> None:
    api = serve(body_idle_seconds=0.5)
    with raw_upload(api, 10_000_000, stories.a_pt2(bytes(2_000_000))) as connection:
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer or b"body_timeout" in connection_rest(answer)
    assert soon(lambda: stored(settings) == [])


def connection_rest(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_a_trickling_sender_gets_408(serve: Callable[..., Api], settings: Settings) -> None:
    api = serve(body_idle_seconds=0.5)
    with raw_upload(api, 10_000_000, stories.a_pt2()) as connection:
        connection.settimeout(0.05)
        answer = b""
        deadline = time.monotonic() + 30
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"x")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert soon(lambda: stored(settings) == [])


def test_an_upload_that_the_client_breaks_off_leaves_nothing(api: Api, settings: Settings) -> None:
    connection = raw_upload(api, 10_000_000, stories.a_pt2(bytes(3_000_000)))
    assert soon(lambda: any(path.stat().st_size for path in staged(settings)))
    connection.close()
    assert soon(lambda: stored(settings) == [])
    assert api.client.get("/models").json()["data"] == []
    assert api.client.post("/models", content=stories.a_pt2()).status_code == 201


def test_a_full_disk_is_507_and_uploads_go_on_once_there_is_room(api: Api, settings: Settings) -> None:
    blobs: Any = api.service.blobs
    keep = blobs.keep_free_bytes
    blobs.keep_free_bytes = 1 << 60
    problem_of(api.client.post("/models", content=stories.a_pt2()), 507, "disk_full")
    assert stored(settings) == []
    blobs.keep_free_bytes = keep
    assert api.client.post("/models", content=stories.a_pt2()).status_code == 201


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("how", [["-T", "FILE"], ["--data-binary", "@FILE"]])
def test_curl_uploads_as_people_type_it(api: Api, tmp_path: Path, how: list[str]) -> None:
    file = tmp_path / "network.pt2"
    file.write_bytes(stories.a_pt2(bytes(3_000_000)))
    arguments = [argument.replace("FILE", str(file)) for argument in how]
    command = ["curl", "-sS", "--fail-with-body", *arguments, f"{api.base_url}/models?name=network.pt2"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert answer["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_network_still_in_inspection_is_not_ready_for_a_job(api: Api) -> None:
    network_id = stories.upload_network(api.client)
    response = api.client.post("/jobs", json={"model": network_id, "preset": "half"})
    problem = problem_of(response, 409, "not_ready")
    assert problem["errors"][0]["pointer"] == "/model"
    assert int(response.headers["retry-after"]) >= 1


def test_lists_of_uploads_go_on_behind_their_cursor(api: Api) -> None:
    ids = [stories.upload_dataset(api.client) for _ in range(3)]
    first = api.client.get("/datasets", params={"limit": 2}).json()
    second = api.client.get("/datasets", params={"limit": 2, "after": first["next_cursor"]}).json()
    assert [row["id"] for row in first["data"] + second["data"]] == sorted(ids, reverse=True)
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
