"""Any protobuf message as a tree of its fields, to be changed and written again with the right lengths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fuzz.mutate import Mutator

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
MAXIMUM_DEPTH = 12


@dataclass
class Field:
    """`value` of a varint is a number, of a message its fields, of anything else its bytes."""

    number: int
    wire: int
    value: int | bytes | list[Field]


def changed(content: bytes, mutator: Mutator) -> bytes:
    """One field of the message, or of one in it: its value, its number, its place, or whether it is there."""
    choose, root = mutator.choose, parsed(content)
    lists = [root, *_lists(root)]
    fields = choose.choice([each for each in lists if each])
    place = choose.randrange(len(fields))
    field = fields[place]
    match choose.randrange(10):
        case 0:
            del fields[place]
        case 1:
            fields.insert(choose.randrange(len(fields) + 1), field)
        case 2:
            field.number = choose.choice((field.number + 1, max(1, field.number - 1), choose.randint(1, 40)))
        case 3:
            fields[place] = choose.choice(choose.choice([each for each in lists if each]))
        case 4:
            fields[place] = Field(field.number, VARINT, mutator.extreme() % 2**64)
        case _:
            match field.value:
                case int():
                    small = choose.choice((0, 1, field.value + 1, choose.randint(0, 20)))
                    field.value = choose.choice((mutator.extreme(), small)) % 2**64
                case bytes() if field.wire == LENGTH:
                    field.value = mutator.bytes_changed(field.value)
                case bytes():
                    field.value = mutator.number(len(field.value))
                case list():
                    field.value = mutator.bytes_changed(written(field.value))
    return written(root)


def _lists(fields: list[Field]) -> Iterator[list[Field]]:
    for field in fields:
        if isinstance(field.value, list):
            yield field.value
            yield from _lists(field.value)


def parsed(content: bytes, depth: int = 0) -> list[Field]:
    """Raises ValueError for what is no message. Texts that read as one are taken for one, which does no harm here."""
    fields, position = [], 0
    while position < len(content):
        key, position = _varint(content, position)
        number, wire = key >> 3, key & 7
        value: int | bytes | list[Field]
        if wire == VARINT:
            value, position = _varint(content, position)
        else:
            size = 8 if wire == EIGHT_BYTES else 4
            if wire == LENGTH:
                size, position = _varint(content, position)
            value = content[position : position + size]
            if wire not in (EIGHT_BYTES, FOUR_BYTES, LENGTH) or len(value) != size or not number:
                raise ValueError("no message")
            position += size
            if wire == LENGTH and value and depth < MAXIMUM_DEPTH:
                with contextlib.suppress(ValueError):
                    value = parsed(value, depth + 1)
        fields.append(Field(number, wire, value))
    return fields


def written(fields: list[Field]) -> bytes:
    return b"".join(map(_written, fields))


def _written(field: Field) -> bytes:
    key = _encoded(field.number << 3 | field.wire)
    if isinstance(field.value, int):
        return key + _encoded(field.value)
    content = written(field.value) if isinstance(field.value, list) else field.value
    return key + (_encoded(len(content)) if field.wire == LENGTH else b"") + content


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("no number")


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
