"""Who writes to which resumable upload in this process, and the running hash of what it wrote."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from api.bodies import CHUNK_BYTES
from api.digests import Checksum
from models.errors import Code, Failure
from models.incoming import Incoming, IncomingFile

TAKE_SECONDS = 3.0
QUIET_SECONDS = 0.5
"""A sender that says nothing for so long is ended when somebody asks about its upload anew."""
MAX_HASHES = 4096


class Transfer:
    """An upload that this request holds. `sha256` is `None` where another process, or one that died, wrote a part."""

    def __init__(self, file: IncomingFile, digest: Any) -> None:
        self.file = file
        self.digest = digest
        self.released = asyncio.Event()
        self._guard: asyncio.Timeout | None = None
        self._heard = time.monotonic()

    def sha256(self) -> str | None:
        return None if self.digest is None else str(self.digest.hexdigest())

    def interrupt_if_quiet(self) -> None:
        """End `receive`, if that is where it is and nothing comes: a sender who asks anew has lost that connection."""
        if self._guard is not None and time.monotonic() - self._heard > QUIET_SECONDS:
            guard, self._guard = self._guard, None
            guard.reschedule(asyncio.get_running_loop().time())

    def go_back(self, size_bytes: int, digest: Any = None) -> None:
        """Drop what came behind `size_bytes`; `digest` is the one of what stays, if it is known."""
        self.file.truncate(size_bytes)
        self.digest = digest if size_bytes else hashlib.sha256()

    async def receive(self, pieces: AsyncGenerator[bytes], checksums: list[Checksum]) -> None:
        """Append a body. What came of one that breaks off stays, unless a checksum speaks of all of it.

        Raises as `bodies.stream` does; `Failure` with `disk_full`, `checksum_mismatch`, `upload_busy`.
        """
        start, digest = self.file.size_bytes, self.digest and self.digest.copy()
        try:
            try:
                self._heard = time.monotonic()
                async with asyncio.timeout(None) as self._guard:
                    await self._append_all(pieces, checksums)
            except TimeoutError:
                raise Failure(Code.UPLOAD_BUSY, "Another request about this upload came and took over.") from None
            finally:
                self._guard = None
            for checksum in checksums:
                checksum.check()
        except BaseException:
            if checksums:
                self.go_back(start, digest)
            raise

    async def _append_all(self, pieces: AsyncGenerator[bytes], checksums: list[Checksum]) -> None:
        """Receives a chunk while the one before is hashed and written in another thread."""
        buffer = bytearray()
        writing: asyncio.Task[None] | None = None
        try:
            async for piece in pieces:
                self._heard = time.monotonic()
                buffer += piece
                if len(buffer) >= CHUNK_BYTES:
                    if writing is not None:
                        await _ended(writing)
                    writing = self._start(bytes(buffer), checksums)
                    buffer.clear()
        finally:
            # A chunk that failed raises again here: nothing is ever written behind a gap.
            if writing is not None:
                await _ended(writing)
            if buffer:
                await _ended(self._start(bytes(buffer), checksums))

    def _start(self, chunk: bytes, checksums: list[Checksum]) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.to_thread(self._append, chunk, checksums))

    def _append(self, chunk: bytes, checksums: list[Checksum]) -> None:
        try:
            self.file.append(chunk)
        except Failure:
            self.digest = None
            raise
        if self.digest is not None:
            self.digest.update(chunk)
        for checksum in checksums:
            checksum.update(chunk)


class Transfers:
    """The uploads that requests of this process hold. A later request about an upload ends an earlier one to which
    nothing comes any more."""

    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self._held: dict[str, Transfer] = {}
        self._hashes: OrderedDict[str, tuple[tuple[int, ...], Any]] = OrderedDict()

    @asynccontextmanager
    async def hold(self, upload_id: str) -> AsyncIterator[Transfer]:
        """Raises `Failure` with `upload_busy` when another process holds the upload, or this one works on it."""
        file = await self._take(upload_id)
        known = self._hashes.pop(upload_id, None)
        digest = known[1] if known is not None and known[0] == file.state() else None
        transfer = Transfer(file, digest if file.size_bytes else hashlib.sha256())
        self._held[upload_id] = transfer
        try:
            yield transfer
        finally:
            del self._held[upload_id]
            if transfer.digest is not None:
                self._remember(upload_id, file.state(), transfer.digest)
            file.close()
            transfer.released.set()

    async def settle(self, upload_id: str) -> None:
        """Let a request of this process end that still waits for bytes, so that the offset stands. One to which bytes
        do come is waited for a moment, and goes on."""
        deadline = time.monotonic() + TAKE_SECONDS
        while (held := self._held.get(upload_id)) is not None and time.monotonic() < deadline:
            held.interrupt_if_quiet()
            await _within(held.released.wait(), QUIET_SECONDS / 5)

    def forget(self, upload_id: str) -> None:
        self._hashes.pop(upload_id, None)

    async def _take(self, upload_id: str) -> IncomingFile:
        deadline = time.monotonic() + TAKE_SECONDS
        while True:
            await self.settle(upload_id)
            file = self.incoming.hold(upload_id)
            if file is not None:
                return file
            if time.monotonic() > deadline:
                raise Failure(Code.UPLOAD_BUSY, "Another request about this upload is being answered.")
            await asyncio.sleep(0.05)

    def _remember(self, upload_id: str, state: tuple[int, ...], digest: Any) -> None:
        self._hashes[upload_id] = (state, digest)
        if len(self._hashes) > MAX_HASHES:
            self._hashes.popitem(last=False)


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait without ending the task when the waiting is ended: its thread would write on."""
    await asyncio.wait({task})
    task.result()


async def _within(event: Any, seconds: float) -> None:
    try:
        await asyncio.wait_for(event, seconds)
    except TimeoutError:
        return
