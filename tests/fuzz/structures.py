"""The formats whose parts are changed one at a time, so that what encloses them (checksums, lengths, nesting) holds.

Each function takes whole bytes of its format and gives others; what it meets in there is changed by its own format.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from models.checksums import crc32c, masked
from tests.fuzz import protobuf
from tests.fuzz.mutate import Change, Mutator, length_before, rearranged

Way = tuple[str | int, ...]
BLOCK = 512
_TAR_FIELDS = ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
"""(start, length) of name, mode, owner, size, time, kind, link, magic and prefix."""
_SURPRISES: tuple[Any, ...] = (
    *(None, True, False, -1, 1.5, 1e-300, float("inf"), float("nan"), "", "\0", "\ud800", "a" * 300),
    *([], {}, [1, 2], [[[]]], {"as_int": 3}, {"as_none": True}, {"as_tensor": None}, {"as_ints": [1, 1]}),
)


def structure_of(content: bytes) -> Change | None:
    return next((change for recognised, change in STRUCTURES if recognised(content)), None)


def change_zip(content: bytes, mutator: Mutator) -> bytes:
    """The members, each with the checksum of what it holds now."""
    choose = mutator.choose
    members = _members(content)
    first, second = choose.randrange(len(members)), choose.randrange(len(members))
    name, method, held = members[first]
    match choose.randrange(14):
        case 0:
            del members[first]
        case 1:
            members.append((members[second][0], method, held))
        case 2:
            members[first] = (mutator.bytes_changed(name.encode()).decode(errors="replace"), method, held)
        case 3:
            members[first] = (name, choose.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)), held)
        case 4:
            members[first], members[second] = (name, method, members[second][2]), (*members[second][:2], held)
        case 5 if mutator.other().startswith(b"PK"):
            members.append(choose.choice(_members(mutator.other())))
        case _:
            members[first] = (name, method, mutator.mutated(held))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, method, held in members:
            archive.writestr(name, held, method)
    return buffer.getvalue()


def _members(content: bytes) -> list[tuple[str, int, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, info.compress_type, archive.read(info)) for info in archive.infolist()]


def change_json(content: bytes, mutator: Mutator) -> bytes:
    """One value taken out, or in its place another of the document, or a surprise."""
    choose, document = mutator.choose, json.loads(content)
    ways = list(_ways(document))
    *path, last = choose.choice(ways)
    parent = _at(document, tuple(path))
    match choose.randrange(6):
        case 0:
            del parent[last]
        case 1 | 2:
            parent[last] = copy.deepcopy(_at(document, choose.choice(ways)))
        case 3:
            parent[last] = choose.choice((mutator.extreme(), -mutator.extreme(), 10**30, choose.randint(0, 9)))
        case 4:
            parent[last] = mutator.word().decode(errors="replace")
        case _:
            parent[last] = copy.deepcopy(choose.choice(_SURPRISES))
    return json.dumps(document).encode()


def _ways(value: object, way: Way = ()) -> Iterator[Way]:
    if way:
        yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _ways(item, (*way, key))


def _at(value: Any, way: Way) -> Any:
    for key in way:
        value = value[key]
    return value


def change_safetensors(content: bytes, mutator: Mutator) -> bytes:
    """The header, with the right length before it, or the bytes behind."""
    end = 8 + int.from_bytes(content[:8], "little")
    header, body = content[8:end], content[end:]
    if mutator.choose.random() < 0.2:
        return content[:end] + mutator.bytes_changed(body)
    return length_before(mutator.mutated(header)) + body


def change_npy(content: bytes, mutator: Mutator) -> bytes:
    """The header's text, with the right length before it, or the data."""
    end = 10 + int.from_bytes(content[8:10], "little")
    if mutator.choose.random() < 0.3:
        return content[:end] + mutator.bytes_changed(content[end:])
    header = mutator.bytes_changed(content[10:end].strip())
    return content[:8] + struct.pack("<H", (len(header) + 1) % 2**16) + header + b"\n" + content[end:]


def change_pickle(content: bytes, mutator: Mutator) -> bytes:
    """Whole opcodes moved about, or the argument of one."""
    places = [place or 0 for _, _, place in pickletools.genops(content)]
    parts = [content[start:stop] for start, stop in zip(places, [*places[1:], len(content)], strict=True)]

    def change(part: bytes) -> bytes:
        if mutator.choose.random() < 0.3:
            return mutator.choose.choice(pickletools.opcodes).code.encode("latin-1") + part[1:]
        return part[:1] + mutator.bytes_changed(part[1:]) if len(part) > 1 else mutator.choose.choice(parts)

    return b"".join(rearranged(parts, mutator, change))


def change_tar(content: bytes, mutator: Mutator) -> bytes:
    """A field of a header, or a content and its size; the checksum of the header is right either way."""
    parts, position = [], 0
    while any(content[position : position + BLOCK]):
        size = int(content[position + 124 : position + 136].strip(b" \0") or b"0", 8)
        parts.append(content[position : position + BLOCK + size])
        position += BLOCK + -(-size // BLOCK) * BLOCK

    def change(part: bytes) -> bytes:
        header, held = bytearray(part[:BLOCK]), part[BLOCK:]
        if mutator.choose.random() < 0.4:
            start, length = mutator.choose.choice(_TAR_FIELDS)
            field = mutator.bytes_changed(bytes(header[start : start + length]))
            header[start : start + length] = field[:length].ljust(length, b"\0")
        else:
            held = mutator.mutated(held)
            header[124:136] = b"%011o\0" % len(held)
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
        return bytes(header) + held

    padded = (part + bytes(-len(part) % BLOCK) for part in rearranged(parts, mutator, change))
    return b"".join(padded) + content[position:]


def change_tfrecord(content: bytes, mutator: Mutator) -> bytes:
    """The records, each with its checksums."""
    records, position = [], 0
    while position < len(content):
        (size,) = struct.unpack_from("<Q", content, position)
        records.append(content[position + 12 : position + 12 + size])
        position += 16 + size
    changed = rearranged(records, mutator, lambda record: protobuf.changed(record, mutator))
    return b"".join(map(_framed, changed))


def _framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    sums = [struct.pack("<I", masked(crc32c(part))) for part in (length, record)]
    return length + sums[0] + record + sums[1]


def change_parquet(content: bytes, mutator: Mutator) -> bytes:
    """The description at the end, with the right length behind it, or the pages before."""
    size = int.from_bytes(content[-8:-4], "little")
    pages, footer = content[: -8 - size], content[-8 - size : -8]
    if mutator.choose.random() < 0.4:
        pages = mutator.bytes_changed(pages)
    else:
        footer = mutator.bytes_changed(footer)
    return pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _begins(*magics: bytes, at: int = 0) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(magics, at)


def _is_tfrecord(content: bytes) -> bool:
    return len(content) > 12 and content[8:12] == struct.pack("<I", masked(crc32c(content[:8])))


STRUCTURES: tuple[tuple[Callable[[bytes], bool], Change], ...] = (
    (_begins(b"PK\x03\x04"), change_zip),
    (_begins(b"ustar", at=257), change_tar),
    (_begins(b"\x93NUMPY"), change_npy),
    (_begins(b"\x80\x02", b"\x80\x04"), change_pickle),
    (_begins(b"PAR1"), change_parquet),
    (_is_tfrecord, change_tfrecord),
    (_begins(b"{", at=8), change_safetensors),
    (_begins(b"{", b"["), change_json),
    (_begins(b"\x08"), protobuf.changed),
)
"""How the beginning tells a format, and what then changes it."""
