"""What the other process of a test has: rings by the fds in its arguments, and numbered records with a check sum."""

from __future__ import annotations

import signal
import struct
import sys
import zlib

from offloop import RingBuffer

BODY = bytes(range(256)) * 8


def record(n: int) -> bytes:
    body = BODY[n % 256 : n % 256 + n % 97]
    return struct.pack("<II", n, zlib.crc32(body, n)) + body


def number(record: bytes | memoryview) -> int:
    """The number of a record that is whole."""
    n, crc = struct.unpack_from("<II", record)
    assert zlib.crc32(record[8:], n) == crc, f"record {n} is torn"
    return n


def attached() -> list[RingBuffer]:
    return [RingBuffer.attach([int(fd) for fd in fds.split(",")]) for fds in sys.argv[1:]]


def say(*words: object) -> None:
    print(*words, flush=True)


def hang() -> None:
    while True:
        signal.pause()
