"""What a bucket must survive; `test_blobs.py` has what it shares with a folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from models.blobs import Blobs
from models.errors import Code, Failure
from models.s3_blobs import S3Blobs
from models.settings import Settings
from models.storage import open_blobs
from tests.models.test_blobs import CONTENT, SHA256, put
from tests.object_store import SECRET, ObjectStore

STREAM = """
import os, resource, sys
from models.settings import Settings
from models.storage import open_blobs

piece = os.urandom(1 << 20)
with open_blobs(Settings()).writer() as writer:
    writer.write(piece)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(int(sys.argv[1])):
        writer.write(piece)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    print(writer.publish().sha256, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def stream(settings: dict[str, str], mebibytes: int, end: str) -> subprocess.CompletedProcess[str]:
    environment = {f"MODELPRESS_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-c", STREAM, str(mebibytes), end],
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def blobs(object_store: ObjectStore) -> S3Blobs:
    return object_store.blobs()


@pytest.fixture
def own_server() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.close()


def test_a_large_blob_passes_through_little_memory(object_store: ObjectStore) -> None:
    settings = object_store.settings()
    done = stream(settings, 255, "publish")
    assert done.returncode == 0, done.stderr
    sha256, grown_kib = done.stdout.split()
    assert int(grown_kib) < 100 << 10
    store = open_blobs(Settings(**settings))
    assert store.stat(sha256).size_bytes == 256 << 20
    assert store.verify(sha256)
    store.delete(sha256)


def test_a_writer_killed_after_many_parts_leaves_nothing_to_see(object_store: ObjectStore) -> None:
    settings = object_store.settings()
    assert stream(settings, 50, "die").returncode == -9
    store = open_blobs(Settings(**settings))
    assert list(store.scan()) == []
    assert store.clean(older_than_seconds=-60) == 0


def test_bytes_without_a_name_are_nobodys_and_are_cleaned_when_they_are_old(blobs: S3Blobs) -> None:
    put(blobs)
    obstore.put(blobs.store, "data/orphan", CONTENT)
    assert [stored.sha256 for stored in blobs.scan()] == [SHA256]
    assert blobs.clean(older_than_seconds=3600) == 0
    assert blobs.clean(older_than_seconds=-60) == 1
    assert blobs.verify(SHA256)


def test_of_bytes_published_twice_the_newest_stay(blobs: S3Blobs) -> None:
    put(blobs)
    put(blobs)
    newest = blobs.stat(SHA256)
    assert blobs.clean(older_than_seconds=3600) == 0
    assert blobs.clean(older_than_seconds=-60) == 1
    assert [stored.version for stored in blobs.scan()] == [newest.version]
    assert blobs.verify(SHA256)


def test_a_reader_goes_on_when_the_version_it_reads_is_deleted(blobs: S3Blobs) -> None:
    content = os.urandom(20 << 20)
    put_whole(blobs, content)
    first = blobs.stat(hashlib.sha256(content).hexdigest())
    with blobs.open(first.sha256) as file:
        assert file.read(1000) == content[:1000]
        put_whole(blobs, content)
        assert blobs.delete(first.sha256, version=first.version)
        assert file.read() == content[1000:]
    with blobs.open(first.sha256) as file:
        file.read(1000)
        blobs.delete(first.sha256)
        with pytest.raises(Failure, match="not stored any more") as missing:
            file.read()
    assert missing.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("left", [0, 8 << 20, (20 << 20) - 1])
def test_an_object_cut_short_is_damaged(blobs: S3Blobs, left: int) -> None:
    content = os.urandom(20 << 20)
    put_whole(blobs, content)
    stored = blobs.stat(hashlib.sha256(content).hexdigest())
    obstore.put(blobs.store, f"data/{stored.version.partition('-')[0]}", content[:left])
    assert not blobs.verify(stored.sha256)
    with (
        blobs.open(stored.sha256) as file,
        pytest.raises(Failure, match="damaged: it is shorter than it was") as shortened,
    ):
        file.read()
    assert shortened.value.code is Code.FILE_DAMAGED


def put_whole(store: Blobs, content: bytes) -> None:
    with store.writer() as writer:
        writer.write(content)
        writer.publish()


def test_a_file_that_changed_after_it_was_hashed_is_not_taken(blobs: S3Blobs, tmp_path: Path) -> None:
    source = tmp_path / "arrived"
    source.write_bytes(CONTENT)
    with blobs.writer() as other:
        other.write(b"other")
        blob = other.publish()
    with pytest.raises(Failure, match="has changed since it was hashed"):
        blobs.take_file(source, blob)
    assert not blobs.verify(SHA256)


def test_a_server_that_is_away_is_said(own_server: ObjectStore) -> None:
    blobs = own_server.blobs()
    put(blobs)
    with blobs.open(SHA256) as file, blobs.writer() as writer:
        writer.write(CONTENT)
        own_server.stop()
        for use in (blobs.ping, writer.publish, file.read, lambda: blobs.stat(SHA256), lambda: list(blobs.scan())):
            with pytest.raises(Failure, match="does not answer") as away:
                use()
            assert (away.value.code, away.value.retryable) == (Code.UNAVAILABLE, True)


def test_a_wrong_secret_is_refused_and_not_logged(object_store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    wrong = object_store.settings() | {"s3_secret_access_key": f"not {SECRET}"}
    with pytest.raises(Failure, match="does not answer as it should"):
        open_blobs(Settings(**wrong)).ping()
    assert "SignatureDoesNotMatch" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr(Settings(**wrong))


@pytest.mark.parametrize("blobs", ["s3://", "s3:///prefix", "gs://bucket", "s3://bucket?x=1"])
def test_a_place_that_makes_no_sense_is_refused(blobs: str) -> None:
    with pytest.raises(ValueError, match="blobs must be s3://bucket"):
        open_blobs(Settings(blobs=blobs))
