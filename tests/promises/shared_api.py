"""`python -m tests.promises.shared_api DESCRIPTOR`: one of several apis that accept from one listening socket."""

from __future__ import annotations

import socket
import sys

from api.app import create_app
from api.server import Server
from models.settings import settings

if __name__ == "__main__":
    chosen = settings()
    Server(create_app(chosen), chosen.host, chosen.port).run([socket.socket(fileno=int(sys.argv[1]))])
