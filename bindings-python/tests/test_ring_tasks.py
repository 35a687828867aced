"""Task queues: rings of the kind mpmc, whose records are acknowledged."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import offloop
import pytest
from conftest import PACKAGE
from offloop import Delivery, RingBuffer


def ring_of(**options) -> RingBuffer:
    return RingBuffer.create("mpmc", **{"capacity": 4096, "slot_size": 64, "max_participants": 6, **options})


def test_a_record_comes_again_until_it_is_acknowledged():
    ring = ring_of()
    producer, a, b, plain = ring.producer(), ring.consumer(ack="manual"), ring.consumer(ack="manual"), ring.consumer()
    assert (ring.kind, ring.slot_size, ring.max_record_len) == ("mpmc", 64, 48)
    producer.push_many([b"1", b"2", b"3"])
    one, two = a.pop(), b.try_pop()
    assert isinstance(one, Delivery)
    assert (one.bytes, one.redelivered, two.bytes, repr(one)) == (b"1", False, b"2", "Delivery(redelivered=False)")
    one.nack()
    for end in (one.ack, one.nack):
        with pytest.raises(offloop.InvalidError, match="delivery="):
            end()
    again = b.pop(timeout=10)
    assert (again.bytes, again.redelivered, b.redelivered) == (b"1", True, True)
    assert [p["in_flight"] for p in ring.stat()["participants"]] == [0, 0, 2, 0]
    again.ack()
    assert plain.pop() == b"3"
    b.close()
    with pytest.raises(offloop.InvalidError):
        two.ack()
    assert (plain.pop(), plain.redelivered) == (b"2", True)
    assert a.try_pop() is None
    assert ring.stat()["returned"] == 0
    with pytest.raises(offloop.TooLargeError, match="slot_size=64"):
        producer.push(bytes(49))


def test_deliveries_by_every_call():
    ring = ring_of()
    producer, consumer = ring.producer(), ring.consumer(ack="manual")
    producer.push_many([b"%d" % n for n in range(6)])
    assert [d.bytes for d in consumer.pop_many(2)] == [b"0", b"1"]
    seen: list[bytes] = []

    def look(delivery: Delivery) -> None:
        seen.append(delivery.bytes)
        delivery.ack()

    assert consumer.read(3, look) == 3
    assert seen == [b"2", b"3", b"4"]

    def fail(_delivery: Delivery) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        consumer.read(1, fail)
    assert ring.stat()["participants"][1]["in_flight"] == 3
    consumer.close()
    ring.close()
    with pytest.raises(offloop.ClosedError):
        for delivery in (again := ring.consumer(ack="manual")):
            assert delivery.redelivered
            delivery.ack()
        again.pop()


def open_now() -> tuple[int, int]:
    """File descriptors, and mappings of rings."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd:offloop")


@pytest.mark.parametrize("closed", [True, False])
def test_a_task_that_is_kept_keeps_no_ring_whose_consumer_has_left(closed):
    before = open_now()
    with ring_of() as ring, ring.producer() as producer:
        consumer = ring.consumer(ack="manual")
        producer.push(b"task")
        task = consumer.pop()
        task.ack()
    if closed:
        consumer.close()
    else:
        del consumer
    assert open_now() == before, "whoever still has the task and the ring"
    assert task.bytes == b"task"
    for end in (task.ack, task.nack):
        with pytest.raises(offloop.InvalidError, match="delivery="):
            end()
    assert ring.stat()["closed"]


def test_another_thread_acknowledges_while_one_waits():
    ring = ring_of(capacity=1 << 16)
    producer, consumer = ring.producer(), ring.consumer(ack="manual")
    producer.push_many([b"%d" % n for n in range(130)])
    taken = []
    while (delivery := consumer.try_pop()) is not None:
        taken.append(delivery)
    assert len(taken) == 128
    with pytest.raises(TimeoutError):
        consumer.pop(timeout=0.01)
    threading.Timer(0.01, taken[5].ack).start()
    assert consumer.pop().bytes == b"128"


def test_a_task_of_a_loop_waits_and_a_cancelled_one_takes_nothing():
    async def main():
        ring = ring_of()
        producer, consumer, other = ring.producer(), ring.consumer(ack="manual"), ring.consumer()
        waits = asyncio.ensure_future(consumer.apop())
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        producer.push(b"one")
        assert other.try_pop() == b"one"
        got = []

        async def work():
            async for delivery in consumer:
                got.append(delivery.bytes)
                await asyncio.sleep(0)
                delivery.ack()

        worker = asyncio.ensure_future(work())
        for n in range(100):
            await producer.apush(b"%d" % n)
        ring.close()
        await worker
        assert got == [b"%d" % n for n in range(100)]

    asyncio.run(main())


WORKER = """
import os, sys
import offloop
ring = offloop.RingBuffer.attach([int(fd) for fd in sys.argv[2:]])
for delivery in ring.consumer(ack="manual"):
    print(delivery.bytes.decode(), int(delivery.redelivered), flush=True)
    if sys.argv[1] == "keep":
        sys.stdin.read()
    delivery.ack()
"""


def test_a_killed_worker_loses_no_task():
    ring = ring_of()
    producer = ring.producer()
    env = {"PYTHONPATH": f"{PACKAGE}:{Path(__file__).parent}", "PATH": os.defpath}

    def start(how):
        command = [sys.executable, "-c", WORKER, how, *map(str, ring.fds)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, pass_fds=ring.fds)

    with start("keep") as victim:
        producer.push(b"0")
        assert victim.stdout.readline().split() == ["0", "0"]
        with start("work") as worker:
            for n in range(1, 50):
                producer.push(b"%d" % n)
            lines = [worker.stdout.readline().split() for _ in range(49)]
            assert [line[0] for line in lines] == [str(n) for n in range(1, 50)], "the kept task held up nobody"
            victim.send_signal(signal.SIGSTOP)
            ring.close()
            with pytest.raises(TimeoutError):
                ring.consumer().pop(timeout=0.05)  # a stopped worker is not dead
            victim.kill()
            assert worker.stdout.readline().split() == ["0", "1"]
            assert worker.wait() == 0
