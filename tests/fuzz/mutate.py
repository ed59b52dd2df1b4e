"""Bytes changed at random: as bytes, or, where they are a format that is known here, one part of that."""

from __future__ import annotations

import contextlib
import random
import re
import struct
from collections.abc import Callable, Sequence

MAXIMUM_BYTES = 256 << 10
AS_BYTES = 0.2
"""The share of changes that take no notice of what the bytes are."""
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
_DIGITS = re.compile(rb"\d+")

Change = Callable[[bytes, "Mutator"], bytes]


class Mutator:
    """`words` are texts that the readers look for; `others` are whole files to take parts from; `structures` gives the
    way to change a file of a known format, None for any other."""

    def __init__(
        self,
        choose: random.Random,
        words: Sequence[bytes],
        others: Sequence[bytes],
        structures: Callable[[bytes], Change | None],
    ) -> None:
        self.choose, self.words, self.others, self._structure_of = choose, words, others, structures

    def mutated(self, content: bytes) -> bytes:
        """One change, or a few."""
        while True:
            content = self._once(content)[:MAXIMUM_BYTES]
            if self.choose.random() < 0.6:
                return content

    def _once(self, content: bytes) -> bytes:
        change = None if self.choose.random() < AS_BYTES else self._structure_of(content)
        if change is not None:
            with contextlib.suppress(Exception):  # broken by an earlier change: what is left are bytes
                return change(content, self)
        return self.bytes_changed(content)

    def bytes_changed(self, content: bytes) -> bytes:
        changed = bytearray(content)
        place = self.choose.randrange(len(changed) + 1)
        length = self.choose.choice((1, 2, 4, 8, self.choose.randint(1, 64)))
        match self.choose.randrange(10):
            case 0 if place < len(changed):
                changed[place] ^= 1 << self.choose.randrange(8)
            case 1:
                changed[place : place + 1] = bytes([self.choose.randrange(256)])
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length] * self.choose.choice((1, 2, 100))
            case 4:
                changed[place : place + length] = self.number(self.choose.choice((1, 2, 4, 8)))
            case 5:
                word = self.word()
                changed[place : place + self.choose.choice((0, len(word)))] = word
            case 6:
                del changed[place:]
            case 7 if found := list(_DIGITS.finditer(content)):
                digits = self.choose.choice(found)
                changed[digits.start() : digits.end()] = str(self.extreme()).encode()
            case 8:
                other = self.other()
                begin = self.choose.randrange(len(other) + 1)
                changed[place : place + self.choose.choice((0, length))] = other[begin:][: 8 * length]
            case _:
                changed[place : place + length] = bytes(length)
        return bytes(changed)

    def number(self, size: int) -> bytes:
        """In `size` bytes of either order."""
        return (self.extreme() % (1 << 8 * size)).to_bytes(size, self.choose.choice(("little", "big")))

    def extreme(self) -> int:
        return self.choose.choice(EXTREMES) + self.choose.choice((0, 0, 0, -1, 1))

    def word(self) -> bytes:
        return self.choose.choice(self.words) if self.words else b"\0"

    def other(self) -> bytes:
        return self.choose.choice(self.others) if self.others else b""


def rearranged(parts: list[bytes], mutator: Mutator, change: Callable[[bytes], bytes]) -> list[bytes]:
    """One part changed, left out, repeated, or two of them swapped."""
    parts, choose = list(parts), mutator.choose
    first, second = choose.randrange(len(parts)), choose.randrange(len(parts))
    match choose.randrange(8):
        case 0:
            del parts[first]
        case 1:
            parts.insert(second, parts[first])
        case 2:
            parts[first], parts[second] = parts[second], parts[first]
        case _:
            parts[first] = change(parts[first])
    return parts


def length_before(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content
