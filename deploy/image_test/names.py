"""The name server that Docker has at 127.0.0.11, for the names of the services. nginx asks no other way."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Mapping

ADDRESS = ("127.0.0.11", 53)
_HEADER = struct.Struct(">6H")
_ANSWER = struct.Struct(">3HIH")
_TYPE_A, _CLASS_IN, _SECONDS = 1, 1, 5


def serve(addresses: Mapping[str, str]) -> None:
    """Answer in the background for as long as this process lives. RFC 1035, as little of it as nginx needs."""
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.bind(ADDRESS)

    def answer_all() -> None:
        while True:
            question, sender = line.recvfrom(512)
            line.sendto(answer(question, addresses), sender)

    threading.Thread(target=answer_all, daemon=True).start()


def answer(question: bytes, addresses: Mapping[str, str]) -> bytes:
    """To one question. A name that nobody has is NXDOMAIN; one without an address of the wanted type has no answers."""
    number, _, _, _, _, _ = _HEADER.unpack_from(question)
    at, labels = _HEADER.size, []
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    wanted, _ = struct.unpack_from(">2H", question, at + 1)
    asked = question[_HEADER.size : at + 5]
    address = addresses.get(".".join(labels).lower())
    if address is None:
        return _HEADER.pack(number, 0x8183, 1, 0, 0, 0) + asked
    if wanted != _TYPE_A:
        return _HEADER.pack(number, 0x8180, 1, 0, 0, 0) + asked
    record = _ANSWER.pack(0xC000 | _HEADER.size, _TYPE_A, _CLASS_IN, _SECONDS, 4) + socket.inet_aton(address)
    return _HEADER.pack(number, 0x8180, 1, 1, 0, 0) + asked + record
