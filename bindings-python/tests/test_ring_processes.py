"""Rings between processes: order and wholeness, every way to die, SIGSTOP, fork, Ctrl-C and exit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import offloop
import pytest
from conftest import PACKAGE
from offloop import RingBuffer
from ring_peer import number, record

PEER = """
import os, signal, sys
from ring_peer import *
rings = attached()
ring = rings[0]
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a peer that has these rings; whatever is left of it is killed."""
    with ExitStack() as stack:

        def run(code: str, *rings: RingBuffer) -> subprocess.Popen[str]:
            peer = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", PEER + code, *(",".join(map(str, r.fds)) for r in rings)],
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": f"{PACKAGE}:{Path(__file__).parent}", "PATH": "/usr/bin:/bin"},
                pass_fds=[fd for r in rings for fd in r.fds],
            )
            stack.enter_context(peer)
            stack.callback(peer.kill)
            return peer

        yield run


def kill(peer):
    peer.kill()
    peer.wait()


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batched"])
def test_half_a_million_records_each_way_are_whole_and_in_order(start, batch):
    count = 500_000
    there, back = (RingBuffer.create("spsc", capacity=1 << 20) for _ in range(2))
    code = f"""
producer = rings[1].producer(batch={batch})
expect = 0
for r in ring.consumer():
    assert number(r) == expect
    expect += 1
    producer.push(r)
producer.close()
rings[1].close()
say(expect)
"""
    peer = start(code, there, back)
    producer, consumer = there.producer(batch=batch), back.consumer()
    sent = got = 0
    while got < count:
        if sent < count:
            step = min(1000, count - sent)
            producer.push_many([record(n) for n in range(sent, sent + step)]) if batch else [
                producer.push(record(n)) for n in range(sent, sent + step)
            ]
            sent += step
            if sent == count:
                producer.close()
                there.close()
        wait = sent == count or sent - got > 4000
        while got < sent and wait:
            for r in consumer.pop_many(1000):
                assert number(r) == got
                got += 1
            wait = sent == count
    assert peer.stdout.read() == f"{count}\n"
    with pytest.raises(offloop.ClosedError):
        consumer.pop()


def test_a_killed_producer_loses_nothing_that_was_published(start):
    for seed in range(5):
        ring = RingBuffer.create("spsc", capacity=8192)
        peer = start("producer = ring.producer()\nfor n in range(10**9):\n    producer.push(record(n))", ring)
        consumer = ring.consumer()
        expect = 0
        while expect < 1000 * seed + 10:
            assert number(consumer.pop()) == expect
            expect += 1
        kill(peer)
        with pytest.raises(offloop.PeerDiedError) as e:
            while True:
                assert number(consumer.pop()) == expect
                expect += 1
        assert int(e.value.context["pid"]) == peer.pid
        assert isinstance(e.value, ConnectionError)
        # A successor begins where the dead one stopped being whole.
        ring.producer().push(record(expect))
        assert number(consumer.pop()) == expect


def test_a_producer_killed_in_a_claim_leaves_no_record(start):
    ring = RingBuffer.create("spsc", capacity=8192)
    peer = start(
        """
producer = ring.producer()
producer.push(record(0))
with producer.claim(100) as view:
    view[:50] = bytes(50)
    say("claimed")
    hang()
""",
        ring,
    )
    assert peer.stdout.readline() == "claimed\n"
    consumer = ring.consumer()
    assert number(consumer.pop()) == 0
    kill(peer)
    with pytest.raises(offloop.PeerDiedError):
        consumer.pop()
    ring.producer().push(record(1))
    assert number(consumer.pop()) == 1


def test_a_killed_consumer_is_known_and_its_record_comes_again(start):
    ring = RingBuffer.create("spsc", capacity=8192)
    peer = start('consumer = ring.consumer()\nconsumer.pop()\nconsumer.read(1, lambda view: (say("seen", number(view)), hang()))', ring)
    producer = ring.producer()
    producer.push_many(record(n) for n in range(3))
    assert peer.stdout.readline() == "seen 1\n"
    kill(peer)
    pushed = 3
    with pytest.raises(offloop.PeerDiedError):
        while True:
            producer.push(record(pushed))
            pushed += 1
    consumer = ring.consumer()
    taken = [(number(consumer.pop()), consumer.redelivered) for _ in range(pushed)]
    assert [n for n, _ in taken] == list(range(taken[0][0], taken[0][0] + pushed))[:pushed]
    assert taken[0][0] <= 1
    assert [again for n, again in taken] == [n <= 1 for n, _ in taken]
    assert consumer.try_pop() is None
    producer.push(b"the successor makes room")


def test_a_waiting_peer_is_woken_by_a_death(start):
    ring = RingBuffer.create("spsc", capacity=8192)
    peer = start('producer = ring.producer()\nproducer.push(b"first")\nsay("there")\nsys.stdin.close()\nhang()', ring)
    consumer = ring.consumer()
    assert consumer.pop() == b"first"
    peer.stdout.readline()
    watcher = subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -9 {peer.pid}"])
    with pytest.raises(offloop.PeerDiedError):
        consumer.pop()
    watcher.wait()


def test_a_stopped_producer_is_not_a_dead_one(start):
    ring = RingBuffer.create("spsc", capacity=8192)
    peer = start(
        """
producer = ring.producer()
producer.push(record(0))
os.kill(os.getpid(), signal.SIGSTOP)
producer.push(record(1))
hang()
""",
        ring,
    )
    consumer = ring.consumer()
    assert number(consumer.pop()) == 0
    os.waitid(os.P_PID, peer.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(offloop.TimeoutError):
        consumer.pop(timeout=0.3)
    with pytest.raises(offloop.InUseError):
        ring.producer()
    peer.send_signal(signal.SIGCONT)
    assert number(consumer.pop()) == 1


def test_a_stopped_consumer_is_not_a_dead_one(start):
    ring = RingBuffer.create("spsc", capacity=8192)
    peer = start('consumer = ring.consumer()\nsay("there")\nos.kill(os.getpid(), signal.SIGSTOP)\nfor r in consumer: say(number(r))', ring)
    peer.stdout.readline()
    os.waitid(os.P_PID, peer.pid, os.WSTOPPED | os.WNOWAIT)
    producer = ring.producer()
    n = 0
    while producer.try_push(record(n)):
        n += 1
    with pytest.raises(offloop.TimeoutError):
        producer.push(record(n), timeout=0.3)
    peer.send_signal(signal.SIGCONT)
    producer.push(record(n))
    ring.close()
    assert peer.stdout.read() == "".join(f"{i}\n" for i in range(n + 1))


# ---- fork ----


def in_child(check: Callable[[], None]) -> None:
    """Runs `check` in a forked child."""
    pid = os.fork()
    if pid == 0:
        try:
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_forked_child_is_refused_and_harms_nobody():
    ring = RingBuffer.create("spsc", capacity=8192)
    producer, consumer = ring.producer(batch=True), ring.consumer()
    producer.push(b"apple")
    producer.flush()
    producer.push(b"held back")
    claimed = producer.claim(5)
    calls = [
        lambda: producer.try_push(b"x"),
        lambda: producer.push(b"x"),
        lambda: producer.push_many([b"x"]),
        lambda: claimed.__enter__(),
        producer.flush,
        producer.fileno,
        consumer.try_pop,
        consumer.pop,
        lambda: consumer.pop_many(1),
        lambda: consumer.read(1, print),
        lambda: next(consumer),
        consumer.fileno,
        ring.producer,
        ring.consumer,
        lambda: ring.fds,
    ]

    def child() -> None:
        nonlocal producer, consumer, ring, claimed
        for call in calls:
            with pytest.raises(offloop.ForkedError):
                call()
        for handle in (producer, consumer, ring):
            handle.close()
            with handle:
                pass
        calls.clear()
        del producer, consumer, ring, claimed, call, handle

    in_child(child)
    assert not ring.closed
    assert ring.stat()["lanes"][0]["pushed"] == 1, "the child published nothing"
    assert consumer.pop() == b"apple"
    producer.push(b"pear")
    producer.flush()
    assert [consumer.pop(), consumer.pop()] == [b"held back", b"pear"]
    with pytest.raises(offloop.InUseError):
        ring.producer()


def test_a_child_forked_from_a_call_is_refused():
    ring = RingBuffer.create("spsc", capacity=8192)
    producer, consumer = ring.producer(), ring.consumer()
    producer.push(b"apple")

    def child() -> None:
        with pytest.raises(offloop.ForkedError):
            consumer.try_pop()
        consumer.close()

    assert consumer.read(1, lambda _view: in_child(child)) == 1
    producer.push(b"pear")
    assert consumer.pop() == b"pear"


def test_a_forked_child_attaches_anew():
    ring = RingBuffer.create("spsc", capacity=8192)
    fds = ring.fds
    in_child(lambda: RingBuffer.attach(fds).producer().push(b"from the child"))
    assert ring.consumer().pop() == b"from the child"


def test_the_death_of_a_parent_is_seen_in_spite_of_its_children(start):
    ring = RingBuffer.create("spsc", capacity=8192)
    peer = start('producer = ring.producer()\nproducer.push(b"x")\nif os.fork() == 0:\n    hang()\nsay(os.getpid())\nhang()', ring)
    consumer = ring.consumer()
    assert consumer.pop() == b"x"
    group = int(peer.stdout.readline())
    child = int(subprocess.check_output(["cat", f"/proc/{group}/task/{group}/children"]))
    try:
        kill(peer)
        with pytest.raises(offloop.PeerDiedError):
            consumer.pop()
    finally:
        os.kill(child, signal.SIGKILL)


# ---- signals and exit ----

WAITS = {
    "pop": "consumer.pop()",
    "pop_many": "consumer.pop_many(5)",
    "wait": "consumer.wait()",
    "next": "next(consumer)",
    "push": "producer.push(bytes(1000))",
    "push_many": "producer.push_many([bytes(1000)] * 99)",
    "claim": "producer.claim(1000).__enter__()",
    "apop": "asyncio.run(wait(consumer.apop))",
    "apush": "asyncio.run(wait(lambda: producer.apush(bytes(1000))))",
}
FULL_AND_EMPTY = """
import asyncio, offloop, os, signal, threading
full, empty = (offloop.RingBuffer.create("spsc", capacity=4096) for _ in range(2))
producer, consumer = full.producer(), empty.consumer()
while producer.try_push(bytes(1000)):
    pass
async def wait(what):
    await what()
"""


def test_ctrl_c_ends_every_wait(script):
    code = FULL_AND_EMPTY
    for name, wait in WAITS.items():
        code += f"""
timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
try:
    timer.start()
    {wait}
except KeyboardInterrupt:
    print("{name}", flush=True)
"""
    code += "\nassert producer.try_push(b'') in (True, False) and consumer.try_pop() is None\n"
    assert script(code).stdout.split() == list(WAITS)


def test_daemon_threads_in_a_wait_do_not_break_the_exit(script):
    waits = ["consumer.pop()", "producer.push(bytes(1000))"]
    code = FULL_AND_EMPTY + "".join(f"threading.Thread(target=lambda: {w}, daemon=True).start()\n" for w in waits)
    script(
        code
        + """
import time
class Slow:
    def __del__(self):
        for _ in range(40):
            time.sleep(0.01)
slow = Slow()
cycle = [slow]; cycle.append(cycle)
for handle, call in ((consumer, consumer.try_pop), (producer, producer.flush)):
    while True:
        try:
            call()
        except offloop.InUseError:
            break
"""
    )


def test_exit_with_a_task_in_a_wait(script):
    script(
        FULL_AND_EMPTY
        + """
loop = asyncio.new_event_loop()
tasks = [loop.create_task(consumer.apop()), loop.create_task(producer.apush(bytes(1000)))]
loop.run_until_complete(asyncio.sleep(0.01))
for task in tasks:
    task.cancel()
loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
tasks = [loop.create_task(consumer.apop())]
loop.run_until_complete(asyncio.sleep(0.01))
tasks[0]._log_destroy_pending = False
loop.close()
"""
    )
