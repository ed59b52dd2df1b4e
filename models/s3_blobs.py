"""Blobs in an S3 bucket, through `obstore`.

Bytes stream to `data/<id>` in parts; then an empty object `names/<sha256>/<id>-<size>` names them. That name is
what publishes: it is there or not, and of any size (S3 copies no object above 5 GB in one step). Publishing the same
bytes again writes a data object and a name of its own, so a delete that names one can never hit a newer one, which S3
could not promise of one key. The newest counts; `clean` removes the others. Parts of uploads that were killed half-way
are visible to nobody but the bucket: give it a lifecycle rule that aborts incomplete multipart uploads.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from models.blobs import CHUNK_BYTES, Blob, StoredBlob, copy_in, gone, reads_back, require_sha256
from models.errors import Code, Failure
from models.settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Config

PART_BYTES = 16 << 20
"""S3 takes 10,000 parts, so a blob may have 160 GiB. A writer holds three at most: two on their way, one filling."""
PARTS_ON_THEIR_WAY = 2
READ_BYTES = 8 << 20
"""One request: none lasts as long as a slow client takes to read what it brought."""
RETRIES = 3
RETRY_SECONDS = 20
REQUEST_SECONDS = 120
_BEYOND_THE_END = "status code: 416 "
"""`obstore` has no error of its own for it."""

_logger = logging.getLogger(__name__)


class S3Blobs:
    """Blobs below a prefix of a bucket."""

    def __init__(self, store: S3Store) -> None:
        self.store = store

    @classmethod
    def of(cls, settings: Settings) -> S3Blobs:
        """The store that `blobs`, `s3://bucket/prefix`, names. What the `s3_…` settings leave open comes from where
        AWS clients look: `AWS_…` variables, a web identity, the machine's role. Raises `ValueError`."""
        place = urlsplit(settings.blobs)
        if place.scheme != "s3" or not place.netloc or place.query or place.fragment:
            raise ValueError(f"blobs must be s3://bucket or s3://bucket/prefix, not {settings.blobs!r}")
        config: S3Config = {}
        if settings.s3_endpoint is not None:
            config["endpoint"] = settings.s3_endpoint
        if settings.s3_region is not None:
            config["region"] = settings.s3_region
        if settings.s3_access_key_id is not None:
            config["access_key_id"] = settings.s3_access_key_id
        if settings.s3_secret_access_key is not None:
            config["secret_access_key"] = settings.s3_secret_access_key
        return cls(
            S3Store(
                place.netloc,
                prefix=place.path.strip("/") or None,
                config=config,
                client_options={
                    "allow_http": (settings.s3_endpoint or "").startswith("http://"),
                    "timeout": timedelta(seconds=REQUEST_SECONDS),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )
        )

    def writer(self, *, expected_bytes: int | None = None) -> S3Writer:
        return S3Writer(self.store)

    def put_file(self, path: Path, *, max_bytes: int | None = None) -> Blob:
        return copy_in(self, path, max_bytes)

    def take_file(self, path: Path, blob: Blob) -> Blob:
        with path.open("rb") as source, self.writer() as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
            if target.sha256() != blob.sha256:
                raise Failure(Code.INTERNAL, "The file has changed since it was hashed.", where=path.name)
            published = target.publish()
        path.unlink()
        return published

    def stat(self, sha256: str) -> StoredBlob:
        found = max(self._named(sha256), key=_age, default=None)
        if found is None:
            raise gone(sha256)
        return found

    def open(self, sha256: str) -> BinaryIO:
        return io.BufferedReader(_S3Reader(self, sha256), CHUNK_BYTES)

    def verify(self, sha256: str, seen: Callable[[bytes], object] = bytes) -> bool:
        return reads_back(self, sha256, seen)

    def delete(self, sha256: str, *, version: str | None = None) -> bool:
        removed = False
        with _no_answer_is_a_failure():
            for found in list(self._named(sha256)):
                if version in (None, found.version):
                    self._remove(found)
                    removed = True
        return removed

    def scan(self) -> Iterator[StoredBlob]:
        newest: StoredBlob | None = None
        for found in self._names("names"):  # in the order of names, so those of one hash come together
            if newest is not None and found.sha256 != newest.sha256:
                yield newest
                newest = None
            newest = found if newest is None else max(newest, found, key=_age)
        if newest is not None:
            yield newest

    def clean(self, *, older_than_seconds: float) -> int:
        limit = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        # Data first, names second: what gets its name in between is seen to have one.
        unnamed = {f"data/{name}" for name, at in self._list("data") if at < limit}
        outdated: list[StoredBlob] = []
        newest: StoredBlob | None = None
        for found in self._names("names"):
            unnamed.discard(_data(found.version))
            if newest is not None and newest.sha256 == found.sha256:
                older, newest = sorted((newest, found), key=_age)
                if older.published_at < limit:
                    outdated.append(older)
            else:
                newest = found
        with _no_answer_is_a_failure():
            for each in outdated:
                self._remove(each)
            for path in unnamed:
                obstore.delete(self.store, path)
        return len(outdated) + len(unnamed)

    def ping(self) -> None:
        with _no_answer_is_a_failure():
            obstore.put(self.store, "ready", b"", use_multipart=False)

    def _remove(self, blob: StoredBlob) -> None:
        # The name first: killed in between, it leaves data that nobody can see, and `clean` finds.
        obstore.delete(self.store, _name(blob.sha256, blob.version))
        obstore.delete(self.store, _data(blob.version))

    def _named(self, sha256: str) -> Iterator[StoredBlob]:
        return self._names(f"names/{require_sha256(sha256)}")

    def _names(self, prefix: str) -> Iterator[StoredBlob]:
        for path, at in self._list(prefix):
            sha256, _, version = path.rpartition("/")
            size = int(version.partition("-")[2])
            yield StoredBlob(sha256 or prefix.rpartition("/")[2], size, version, at)

    def _list(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Paths below `prefix`, in order, and when they were written."""
        with _no_answer_is_a_failure():
            for batch in obstore.list(self.store, prefix):
                for item in batch:
                    yield item["path"].removeprefix(f"{prefix}/"), item["last_modified"]


class S3Writer:
    """One blob on its way into an `S3Blobs`. Not for use by several threads at once."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        # The time first: S3 dates to the second, and of two in one second the later one should count.
        self._data = f"data/{time.time_ns() // 1000:016x}{uuid4().hex}"
        self._digest = hashlib.sha256()
        self._is_published = False
        self.size_bytes = 0
        self._file = obstore.open_writer(store, self._data, buffer_size=PART_BYTES, max_concurrency=PARTS_ON_THEIR_WAY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_published or self.size_bytes < PART_BYTES:
            return  # nothing, or nothing yet, was sent that should go
        try:
            # Parts that were sent stay in the bucket until the upload ends, and only then can they be removed.
            if not self._file.closed():
                self._file.close()
            obstore.delete(self._store, self._data)
        except (BaseError, OSError) as problem:
            _logger.warning("%s was not published and stays until it is cleaned: %s", self._data, problem)

    def write(self, chunk: bytes) -> None:
        with _no_answer_is_a_failure():
            self._file.write(chunk)
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def publish(self) -> Blob:
        version = f"{self._data.removeprefix('data/')}-{self.size_bytes}"
        with _no_answer_is_a_failure():
            self._file.close()
            obstore.put(self._store, _name(self.sha256(), version), b"", use_multipart=False)
        self._is_published = True
        return Blob(self.sha256(), self.size_bytes)


class _S3Reader(io.RawIOBase):
    """Reads in requests of `READ_BYTES`. A version that is collected meanwhile is followed by the newest one."""

    def __init__(self, blobs: S3Blobs, sha256: str) -> None:
        self._blobs = blobs
        self._blob = blobs.stat(sha256)
        self._position = 0
        self._start, self._bytes = 0, memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        target = memoryview(buffer).cast("B")
        if self._position >= self._blob.size_bytes or not target:
            return 0
        if not self._start <= self._position < self._start + len(self._bytes):
            self._start, self._bytes = self._position, self._fetch()
        piece = self._bytes[self._position - self._start :][: len(target)]
        target[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self) -> memoryview:
        end = min(self._position + READ_BYTES, self._blob.size_bytes)
        with _no_answer_is_a_failure():
            try:
                return self._range(end)
            except FileNotFoundError:
                self._blob = self._blobs.stat(self._blob.sha256)
            try:
                return self._range(end)
            except FileNotFoundError:
                raise gone(self._blob.sha256) from None

    def _range(self, end: int) -> memoryview:
        try:
            found = obstore.get_range(self._blobs.store, _data(self._blob.version), start=self._position, end=end)
        except BaseError as error:
            if _BEYOND_THE_END not in str(error):
                raise
            raise self._shortened() from error
        if len(found) < end - self._position:
            raise self._shortened()
        return memoryview(found)

    def _shortened(self) -> Failure:
        message = "The stored file is damaged: it is shorter than it was."
        return Failure(Code.FILE_DAMAGED, message, where=self._blob.sha256)


def _data(version: str) -> str:
    return f"data/{version.partition('-')[0]}"


def _name(sha256: str, version: str) -> str:
    return f"names/{sha256}/{version}"


def _age(blob: StoredBlob) -> tuple[datetime, str]:
    return blob.published_at, blob.version


@contextmanager
def _no_answer_is_a_failure() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        _logger.warning("the blob store: %s", str(error).partition("\n\nDebug source")[0][:1000])
        raise Failure(Code.UNAVAILABLE, "The blob store does not answer as it should.") from error
