"""Readers with one mistake each, which the fuzzer must find within the few files that the tests take."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from models.errors import Code, Failure
from models.inspection import DatasetInspection
from tests.fuzz.targets import Inspection, Target

SEED = b'{"shape": [2, 3]}'


def _reader(mistake: Callable[[Path], object]) -> Callable[[Path], list[Inspection]]:
    """Of JSON texts. The mistake is made where the document has not two sizes."""

    def read(path: Path) -> list[Inspection]:
        try:
            document = json.loads(path.read_bytes())
            shape = list(document["shape"])
        except (ValueError, LookupError, TypeError) as error:
            raise Failure(Code.DATASET_BAD, "no such document") from error
        if len(shape) != 2:
            mistake(path)
        return [DatasetInspection(format="npy", samples=1, inputs=[], labels=None)]

    return read


def _import(path: Path) -> None:
    (path.parent / "foreign_module.py").write_text("")
    sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()
    importlib.import_module("foreign_module")


def _say_it_is_ours(path: Path) -> None:
    raise Failure(Code.INTERNAL, "who knows")


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "raises": (lambda path: dict[str, int]()["shape"], "KeyError at tests/fuzz/planted.py"),
    "allocates": (lambda path: bytearray(8 << 30), "MemoryError at tests/fuzz/planted.py"),
    "writes": (lambda path: Path("/nowhere/file").write_text(""), "open '/nowhere/file' w"),
    "reads": (lambda path: Path("/etc/passwd").read_text(), "open '/etc/passwd' r"),
    "renames": (lambda path: os.rename("/nowhere", "/there"), "os.rename ('/nowhere', '/there')"),
    "links": (lambda path: path.with_name("link").symlink_to("/etc/passwd"), "os.symlink ('/etc/passwd',"),
    "cuts": (lambda path: os.truncate("/nowhere", 0), "os.truncate ('/nowhere',)"),
    "connects": (lambda path: socket.socket().close(), "socket.__new__"),
    "starts": (lambda path: subprocess.run(["/nowhere"], check=False), "subprocess.Popen"),
    "imports": (_import, "foreign_module.py"),
    "blames_us": (_say_it_is_ours, "it calls its own mistake who knows"),
    "nothing": (lambda path: None, ""),
}
"""By name: what is done, and what the finding must say; the last is a reader that makes none."""

PLANTED = tuple(
    Target(name, lambda: [SEED], _reader(mistake), ("tests/fuzz/planted.py",), short=60)
    for name, (mistake, _) in MISTAKES.items()
)
