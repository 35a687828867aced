"""The Python worker of the pairs: README.md through the public API of the package."""

import os
import struct
import sys
import threading
import time
from zlib import crc32

import offloop

PROGRESS = 100
HEAD = struct.Struct("<IIQ")
REST = struct.Struct("<IQ")
ARGS = dict(a.split("=", 1) for a in sys.argv[1:])
SEED = int(ARGS.get("seed", 0))
BLOCK = bytes((i * 167 + (i >> 8) * 13 + SEED) & 255 for i in range(4096))


class Failure(Exception):
    """A check failed."""


def number(key):
    return int(ARGS.get(key, 0))


def say(line):
    os.write(1, f"{line}\n".encode())


def body(n):
    h = ((n ^ SEED) & 0xFFFFFFFF) * 0x9E3779B1 & 0xFFFFFFFF
    h ^= h >> 15
    h = h * 0x85EBCA77 & 0xFFFFFFFF
    h ^= h >> 13
    at = (h >> 10) % 3072
    return BLOCK[at : at + h % 1000]


def make(incarnation, n):
    rest = REST.pack(incarnation, n) + body(n)
    return crc32(rest).to_bytes(4, "little") + rest


def check(record):
    """Incarnation and number of a record that is whole."""
    if len(record) < HEAD.size:
        raise Failure(f"a record of {len(record)} bytes")
    crc, incarnation, n = HEAD.unpack_from(record)
    if crc32(record[4:]) != crc:
        raise Failure(f"record {incarnation}:{n} is torn")
    if record[HEAD.size :] != body(n):
        raise Failure(f"record {incarnation}:{n} is another one")
    return incarnation, n


def push(producer, n, record):
    while True:
        try:
            if n % 3 == 0:
                with producer.claim(len(record)) as view:
                    view[:] = record
            else:
                producer.push(record)
            return
        except offloop.PeerDiedError:
            time.sleep(0.001)


def produce(ring):
    producer = ring.producer(batch=number("batch") == 1)
    say("ready")
    count, incarnation, progress = number("count"), number("inc"), number("progress") == 1
    n = 0
    while count == 0 or n < count:
        push(producer, n, make(incarnation, n))
        n += 1
        if progress:
            os.pwrite(PROGRESS, n.to_bytes(8, "little"), 0)
    producer.flush()
    say(f"done {n}")


class Expected:
    """What a consumer expects next."""

    def __init__(self):
        self.at = (number("inc"), number("next"))
        self.again = None
        self.fresh = False
        self.took = number("took") == 1
        self.records = 0
        self.progress = number("progress") == 1

    def see(self, record, marked):
        this = check(record)
        (incarnation, n), (current, following) = this, self.at
        if this < self.at:
            again = self.again
            follows = again is None or again == (incarnation, n - 1) or (again[0] < incarnation and n == 0)
            if not marked or self.fresh or not follows:
                raise Failure(f"record {this} again, expected {self.at} ({marked=} fresh={self.fresh} {again=})")
            self.again = this
            self.took = False
            say("again")
            return
        if self.again is not None and self.again[0] == current and self.again[1] + 1 != following:
            raise Failure(f"records between {self.again} and {self.at} did not come again")
        self.again = None
        took, self.took = self.took, False
        if incarnation > current and (n == 0 or (took and n == 1)):
            say(f"inc {current} {following}")
        elif this != self.at and not (took and this == (current, following + 1)):
            raise Failure(f"record {this}, expected {self.at}")
        self.at = (incarnation, n + 1)
        self.fresh = self.fresh or not marked
        self.records += 1
        if self.progress:
            os.pwrite(PROGRESS, struct.pack("<QQ", *self.at), 16)


def consume(ring):
    consumer = ring.consumer()
    say("ready")
    expected = Expected()
    # Copies until there is none, which tells about marks; what comes later is new, and records in place are tried as well.
    fresh = False
    while True:
        try:
            if not fresh:
                record = consumer.try_pop()
                fresh = record is None
            else:
                consumer.read(64, lambda view: expected.see(bytes(view), False))
                record = consumer.pop()
            if record is not None:
                expected.see(record, consumer.redelivered)
        except offloop.ClosedError:
            break
        except offloop.PeerDiedError:
            time.sleep(0.001)
    say(f"inc {expected.at[0]} {expected.at[1]}")
    say(f"done {expected.records}")


class Talk:
    """An end of a channel: sends all, asks how many came, and answers the same question."""

    def __init__(self):
        self.channel = offloop.Channel.attach(PROGRESS + 1)
        self.next = 0
        self.failed = None
        self.died = False

    def send_all(self):
        try:
            count, n = number("count"), 0
            while count == 0 or n < count:
                payload = make(0, n)
                if n % 16 == 5:
                    buffer = offloop.TransferBuffer(len(payload), shared=n % 32 == 5)
                    with memoryview(buffer) as view:
                        view[:] = payload
                    payload = buffer
                self.channel.send([n, payload])
                n += 1
            came = self.channel.request(None)
            if came != count:
                raise Failure(f"{count} messages were sent, {came} came")
        except offloop.PeerDiedError:
            self.died = True
        except BaseException as error:  # noqa: BLE001  the runner is told of every end
            self.failed = error
            self.channel.close()

    def receive(self):
        for message in self.channel:
            if message.is_request:
                message.reply(self.next)
                return
            n, payload = message.value
            if n != self.next or check(bytes(payload)) != (0, n):
                raise Failure(f"message {n}, expected {self.next}")
            self.next += 1

    def run(self):
        say("ready")
        sending = threading.Thread(target=self.send_all, daemon=True)
        sending.start()
        try:
            self.receive()
        except offloop.PeerDiedError:
            self.died = True
        sending.join()
        if self.failed is not None:
            raise self.failed
        say(f"{'died' if self.died else 'done'} {self.next}")
        self.channel.close()


def work(ring):
    """Tasks, until the ring is closed: what came, and what was acknowledged."""
    consumer = ring.consumer(ack="manual")
    say("ready")
    done = 0
    for delivery in consumer:
        incarnation, n = check(delivery.bytes)
        say(f"got {incarnation} {n} {int(delivery.redelivered)}")
        say(f"acks {incarnation} {n}")
        delivery.ack()
        say(f"ack {incarnation} {n}")
        done += 1
    say(f"done {done}")


def main():
    if ARGS.get("role") == "hello":
        say("rings" if hasattr(offloop, "RingBuffer") else "the Python face has no RingBuffer yet")
        return 0
    try:
        if ARGS["role"] == "talk":
            Talk().run()
            return 0
        fds = list(range(PROGRESS + 1, PROGRESS + 1 + number("fds")))
        ring = offloop.RingBuffer.attach(fds)
        for fd in fds:
            os.close(fd)
        {"produce": produce, "consume": consume, "work": work}[ARGS["role"]](ring)
    except BaseException as error:  # noqa: BLE001  the runner is told of every end
        say(f"fail {type(error).__name__}: {error}".replace("\n", " | "))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
