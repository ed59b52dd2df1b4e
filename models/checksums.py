"""CRC-32C (Castagnoli), which no standard library has; one byte at a time, for short texts."""

from __future__ import annotations


def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


CRC32C_TABLE = _table()


def crc32c(content: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in content:
        state = CRC32C_TABLE[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """As TFRecord files store it, so that the checksum of data with checksums in it differs."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
