"""Where engines work: a folder of this worker, one folder in it for each run, and none of it left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO

from models.errors import Code, Failure

_LOCK = ".lock"
_PREFIX = "worker-"


@dataclass(frozen=True)
class RunFolder:
    """Of one run: `inputs` are given, `job` is the engine's to write, `scratch` is its HOME and TMPDIR."""

    root: Path

    @property
    def request(self) -> Path:
        return self.root / "request.json"

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def job(self) -> Path:
        return self.root / "job"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"


class Workplace:
    """The folder `parent/worker-NAME`, locked while this process lives. Entering it clears up after dead workers."""

    def __init__(self, parent: Path, name: str) -> None:
        self._parent, self._folder = parent.resolve(), parent.resolve() / f"{_PREFIX}{name}"
        self._lock = -1

    def __enter__(self) -> Workplace:
        # Where root serves, engines may be users of their own: let those pass to their folders, and look at none.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        self._parent.mkdir(parents=True, exist_ok=True, mode=mode)
        # One at a time: a folder that exists but is not locked yet must not look like an orphan.
        with _locked(self._parent / _LOCK, block=True):
            for folder in self._parent.iterdir():
                if folder.name.startswith(_PREFIX) and folder.is_dir() and _is_abandoned(folder):
                    _remove(folder)
            self._folder.mkdir(mode=mode)
            self._lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self._folder)
        os.close(self._lock)

    @contextlib.contextmanager
    def run_folder(self) -> Iterator[RunFolder]:
        """A fresh folder, gone afterwards whatever the engine did to it."""
        folder = RunFolder(Path(tempfile.mkdtemp(prefix="run-", dir=self._folder)))
        try:
            for part in (folder.inputs, folder.job, folder.scratch):
                part.mkdir(mode=0o700)
            yield folder
        finally:
            _remove(folder.root)


def take_out(folder: Path, name: str, max_bytes: int) -> BinaryIO:
    """Open the file `name` that the engine says it wrote in `folder`, trusting nothing.

    It must be a regular file with one link and at most `max_bytes`, reached without links. Raises `Failure`.
    """
    parts = PurePosixPath(name).parts
    if not parts or any(part in ("..", "/", "") for part in parts) or "\0" in name:
        raise Failure(Code.ENGINE_CRASHED, "the engine named a file outside the job folder", where=name[:200])
    try:
        descriptor = _open_below(folder, parts)
    except OSError as error:
        message = f"the engine named a file that cannot be read: {error.strerror}"
        raise Failure(Code.ENGINE_CRASHED, message, where=name[:200]) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise Failure(Code.ENGINE_CRASHED, "the engine named what is not a plain file", where=name[:200])
    if status.st_size > max_bytes:
        os.close(descriptor)
        message = f"the engine wrote a file of {status.st_size} bytes, more than {max_bytes}"
        raise Failure(Code.ENGINE_CRASHED, message, where=name[:200])
    return os.fdopen(descriptor, "rb")


def _open_below(folder: Path, parts: tuple[str, ...]) -> int:
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = below
        # A FIFO opened for reading would wait for a writer; with O_NONBLOCK it is opened, and then refused.
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)


def _is_abandoned(folder: Path) -> bool:
    """Nobody holds its lock: the kernel drops a lock with the process that took it, however that ended."""
    try:
        with _locked(folder / _LOCK, block=False):
            return True
    except BlockingIOError:
        return False


@contextlib.contextmanager
def _locked(path: Path, *, block: bool) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a tree, also where the engine took away the right to."""

    def allow(
        remove: Callable[..., Any], path: str, _: tuple[type[BaseException], BaseException, TracebackType]
    ) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.chmod(os.path.dirname(path), 0o700)
            if os.path.isdir(path) and not os.path.islink(path):
                os.chmod(path, 0o700)
                shutil.rmtree(path)
            else:
                os.unlink(path)

    shutil.rmtree(folder, onerror=allow)
