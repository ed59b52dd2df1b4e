"""A TCP proxy that cuts connections where a test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PIECE_BYTES = 65536


class CuttingProxy:
    """Forwards to `port`. `cuts` says after how many bytes from the client the next connections end, each once; those
    of fewer bytes, such as a HEAD, use none of them up. `on_cut` runs before the end. `sent` are the bytes from clients
    that were passed on."""

    def __init__(self, port: int, cuts: list[int], on_cut: Callable[[], None]) -> None:
        self.port = port
        self.cuts = cuts
        self.on_cut = on_cut
        self.connections = 0
        self.sent, self._counting = 0, threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        except OSError:
            client.close()
            return
        with client, server:
            back = threading.Thread(target=self._forward, args=[server, client], daemon=True)
            back.start()
            forwarded = 0
            try:
                while piece := client.recv(PIECE_BYTES):
                    if self.cuts and forwarded + len(piece) > self.cuts[0]:
                        rest = piece[: self.cuts.pop(0) - forwarded]
                        self._count(rest)
                        server.sendall(rest)
                        self.on_cut()
                        break
                    self._count(piece)
                    server.sendall(piece)
                    forwarded += len(piece)
                else:
                    server.shutdown(socket.SHUT_WR)
                    back.join(30)
                for end in (client, server):
                    end.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def _count(self, piece: bytes) -> None:
        with self._counting:
            self.sent += len(piece)

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(PIECE_BYTES):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@contextmanager
def cutting(port: int, cuts: list[int], on_cut: Callable[[], None] = lambda: None) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(port, cuts, on_cut)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(10)
