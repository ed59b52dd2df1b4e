"""A strict reader of one protobuf message, `tf.train.Example`: named lists of bytes, floats or int64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from worker.engine.data.npy import Array

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
MAX_FEATURES = 1024
KINDS: dict[int, Literal["bytes", "float", "int64"]] = {1: "bytes", 2: "float", 3: "int64"}
"""By the field's number in `Feature`."""


@dataclass(frozen=True)
class Feature:
    """`strings` are (start, length) in the file; `numbers` one array, float32 or int64, of the other kinds."""

    kind: Literal["bytes", "float", "int64"]
    numbers: Array
    strings: list[tuple[int, int]] = field(default_factory=list)


Features = dict[str, Feature]
NOTHING: Array = np.empty(0, np.float32)


def read_example(content: bytes, at: int) -> Features:
    """The features by name; `at` is where in the file `content` lies. Raises ValueError for what is no Example."""
    found: Features = {}
    for number, start, end in _messages(content, 0, len(content)):
        if number != 1:
            raise ValueError(f"it has a field {number}")
        for _, first, last in _messages(content, start, end):
            name, feature = _entry(content, first, last, at)
            if name in found:
                raise ValueError(f"the feature {name!r} is there twice")
            found[name] = feature
            if len(found) > MAX_FEATURES:
                raise ValueError(f"it has more than {MAX_FEATURES} features")
    if not found:
        raise ValueError("it has no features")
    return found


def _entry(content: bytes, start: int, end: int, at: int) -> tuple[str, Feature]:
    parts = {number: (first, last) for number, first, last in _messages(content, start, end)}
    if set(parts) != {1, 2}:
        raise ValueError("a feature has no name or no value")
    name = content[slice(*parts[1])].decode()
    values = list(_messages(content, *parts[2]))
    if len(values) != 1 or values[0][0] not in KINDS:
        raise ValueError(f"the feature {name[:100]!r} has no list, or two")
    number, first, last = values[0]
    if KINDS[number] == "bytes":
        return name, Feature("bytes", NOTHING, [(at + a, b - a) for n, a, b in _messages(content, first, last)])
    return name, Feature(KINDS[number], _numbers(content, first, last, KINDS[number]))


def _numbers(content: bytes, start: int, end: int, kind: str) -> Array:
    """Packed, or one by one as old writers do."""
    pieces = []
    for number, wire, value in _fields(content, start, end):
        if number != 1:
            raise ValueError(f"a list has a field {number}")
        if wire == LENGTH:
            first, last = value
            if kind == "float":
                pieces.append(np.frombuffer(content[first:last], "<f4"))
            else:
                pieces.append(_varints(content[first:last]))
        elif wire == FOUR_BYTES and kind == "float":
            pieces.append(np.frombuffer(content[value : value + 4], "<f4"))
        elif wire == VARINT and kind == "int64":
            pieces.append(np.array([value], np.uint64).view(np.int64))
        else:
            raise ValueError("a list holds what is no number")
    if not pieces:
        return np.empty(0, np.float32 if kind == "float" else np.int64)
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _varints(content: bytes) -> Array:
    """int64 of packed base-128 numbers, the least significant seven bits first."""
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if not len(data):
        return np.empty(0, np.int64)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise ValueError("a number is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("a number has more than 64 bits")
    result = np.zeros(len(starts), np.uint64)
    for place in range(int(lengths.max())):
        there = lengths > place
        result[there] |= (data[starts[there] + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
    return result.view(np.int64)


def _messages(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of the length-delimited fields; there may be no others."""
    for number, wire, value in _fields(content, start, end):
        if wire != LENGTH:
            raise ValueError(f"the field {number} is no message")
        yield number, *value


def _fields(content: bytes, position: int, end: int) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value): a number, (start, end), or where a fixed value begins."""
    while position < end:
        key, position = _varint(content, position, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(content, position, end)
            yield number, wire, value
        elif wire == LENGTH:
            length, position = _varint(content, position, end)
            if position + length > end:
                raise ValueError("a field reaches past the end")
            yield number, wire, (position, position + length)
            position += length
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if wire == EIGHT_BYTES else 4
            if position + size > end:
                raise ValueError("a field reaches past the end")
            yield number, wire, position
            position += size
        else:
            raise ValueError(f"it has the wire type {wire}")


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("a number is cut short")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise ValueError("a number has more than 64 bits")
