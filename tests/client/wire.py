"""A TCP line between client and service that breaks, or changes bytes, when a test says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Wire:
    """Forwards a free port to `port`. `cut_after`: the answer is cut after so many bytes, once. `garble`: a byte far
    into each answer is changed. `refusing`: connections are closed at once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut_after: int | None = None
        self.cuts = 0
        self.garble = False
        self.refusing = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.break_all()

    def break_all(self) -> None:
        """Every connection there is ends, as when a service is killed."""
        for connection in list(self._open):
            self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {near, far}
            threading.Thread(target=self._forward, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(far, near, True), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        done = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_answer and self.garble and done < 60_000 <= done + len(data):
                    place = 60_000 - done
                    data = data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
                done += len(data)
                if is_answer and self.cut_after is not None and done > self.cut_after:
                    self.cut_after = None
                    self.cuts += 1
                    break
                sink.sendall(data)
        self._end(source)
        self._end(sink)
