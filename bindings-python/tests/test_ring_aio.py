"""Rings in event loops: waits that hold no thread, cancellation, fairness."""

from __future__ import annotations

import asyncio
import random
import threading

import offloop
import pytest
import uvloop
from offloop import RingBuffer

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS.values(), ids=LOOPS.keys())
def run(request):
    """Runs a coroutine function on a loop of either kind."""

    def go(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main())

    return go


@pytest.fixture
def ring():
    with RingBuffer.create("spsc", capacity=4096) as ring:
        yield ring


def sender(ring, records):
    def send():
        with ring, ring.producer() as producer:
            for record in records:
                producer.push(record)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


async def parked(handle):
    """Until a task waits for the handle."""
    while True:
        try:
            handle.fileno()
        except offloop.InUseError:
            return
        await asyncio.sleep(0)


def test_async_for_ends_with_the_ring(ring, run):
    sent = [b"%d" % n * (n % 9) for n in range(20_000)]
    thread = sender(ring, sent)

    async def main():
        return [record async for record in ring.consumer()]

    assert run(main) == sent
    thread.join()


def test_both_sides_in_one_loop(ring, run):
    async def main():
        producer, consumer = ring.producer(), ring.consumer()

        async def send():
            for n in range(5000):
                await producer.apush(b"%d" % n)
            ring.close()

        task = asyncio.create_task(send())
        got = [int(record) async for record in consumer]
        await task
        return got

    assert run(main) == list(range(5000))


def test_a_cancelled_await_loses_no_record(ring, run):
    sent = [b"%d" % n for n in range(3000)]
    go = threading.Semaphore(0)

    def send():
        with ring, ring.producer() as producer:
            for n, record in enumerate(sent):
                if n % 10 == 0:
                    go.acquire()
                producer.push(record)

    thread = threading.Thread(target=send)
    thread.start()
    rng = random.Random(5)

    async def main():
        consumer, got, cancelled = ring.consumer(), [], 0
        while True:
            task = asyncio.create_task(consumer.apop())
            go.release()
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                got.append(await task)
            except asyncio.CancelledError:
                cancelled += 1
            except offloop.ClosedError:
                return got, cancelled

    got, cancelled = run(main)
    assert got == sent
    assert cancelled > 10
    thread.join()


def test_timeouts_are_those_of_asyncio(ring, run):
    async def main():
        producer, consumer = ring.producer(), ring.consumer()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await consumer.apop()
        while producer.try_push(bytes(1000)):
            pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await producer.apush(bytes(1000))
        waiting = asyncio.create_task(producer.apush(b"late" * 250))
        await parked(producer)
        full = consumer.pop_many(100)
        await waiting
        assert set(full) == {bytes(1000)}
        assert await consumer.apop() == b"late" * 250

    run(main)


def test_others_run_while_records_are_plenty(run):
    ring = RingBuffer.create("spsc", capacity=1 << 20)
    producer, consumer = ring.producer(), ring.consumer()
    count = 5000

    async def main():
        turns = 0

        async def others():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        for _ in range(count):
            await producer.apush(b"x")
        assert turns >= count // 300, "apush gives way"
        turns = 0
        for _ in range(count):
            await consumer.apop()
        assert turns >= count // 300, "apop gives way"
        producer.push_many([b"x"] * count)
        ring.close()
        turns = 0
        async for _ in consumer:
            pass
        assert turns >= count // 300, "async for gives way"
        task.cancel()

    run(main)


def test_one_task_waits_at_a_time(ring, run):
    async def main():
        producer, consumer = ring.producer(), ring.consumer()
        first = asyncio.create_task(consumer.apop())
        await parked(consumer)
        with pytest.raises(offloop.InUseError, match="a task that awaits it"):
            await consumer.apop()
        with pytest.raises(offloop.InUseError):
            consumer.try_pop()
        producer.push(b"apple")
        assert await first == b"apple"
        assert consumer.try_pop() is None

    run(main)


def test_closing_ends_a_wait(ring, run):
    async def main():
        consumer = ring.consumer()
        waiting = asyncio.create_task(consumer.apop())
        await parked(consumer)
        consumer.close()
        with pytest.raises(offloop.ClosedError, match="this handle was closed"):
            await waiting
        consumer = ring.consumer()
        waiting = asyncio.create_task(anext(aiter(consumer), "end"))
        await parked(consumer)
        threading.Thread(target=consumer.close).start()
        assert await waiting == "end"
        consumer = ring.consumer()
        waiting = asyncio.create_task(anext(aiter(consumer), "end"))
        await parked(consumer)
        ring.close()
        assert await waiting == "end"

    run(main)


def test_a_full_ring_that_rejects_raises(run):
    ring = RingBuffer.create("spsc", capacity=4096, on_full="reject")

    async def main():
        producer = ring.producer()
        with pytest.raises(offloop.Full):
            while True:
                await producer.apush(bytes(1000))

    run(main)


def test_bad_records_are_refused(ring, run):
    async def main():
        with pytest.raises(offloop.InvalidError):
            await ring.producer().apush("text")

    run(main)


def test_several_loops_each_with_a_ring(run):
    rings = [RingBuffer.create("spsc", capacity=4096) for _ in range(3)]
    sent = [[b"%d %d" % (at, n) for n in range(3000)] for at in range(3)]
    got = [None] * 3

    def loop(at):
        async def main():
            return [record async for record in rings[at].consumer()]

        got[at] = run(main)

    threads = [threading.Thread(target=loop, args=(at,)) for at in range(3)]
    threads += [sender(ring, records) for ring, records in zip(rings, sent)]
    for thread in threads[:3]:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == sent


def test_a_consumer_moves_between_loops_and_threads(ring, run):
    producer, consumer = ring.producer(), ring.consumer()
    for n in range(5):

        async def main(n=n):
            waiting = asyncio.create_task(consumer.apop())
            await parked(consumer)
            producer.push(b"%d" % n)
            return await waiting

        assert run(main) == b"%d" % n
        thread = threading.Thread(target=producer.push, args=(b"blocking",))
        thread.start()
        assert consumer.pop() == b"blocking"
        thread.join()


def test_a_loop_that_died_in_a_wait_gives_the_consumer_back(ring):
    producer, consumer = ring.producer(), ring.consumer()
    loop = asyncio.new_event_loop()
    task = loop.create_task(consumer.apop())
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    with pytest.raises(offloop.InUseError):
        consumer.try_pop()
    task._log_destroy_pending = False
    loop.close()
    task.get_coro().close()
    producer.push(b"apple")
    assert consumer.try_pop() == b"apple"


def left_waiting(make_loop, wait):
    """The coroutine of a task that waits in a loop which was closed."""
    loop = make_loop()
    coroutine = wait()
    task = loop.create_task(coroutine)
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False
    loop.close()
    return coroutine


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS.keys())
def test_a_handle_is_free_when_the_loop_of_its_task_was_closed(ring, make_loop):
    producer, consumer = ring.producer(), ring.consumer()
    lost = left_waiting(make_loop, consumer.apop)
    producer.push(b"apple")
    assert consumer.pop(timeout=10) == b"apple"

    async def main():
        waiting = asyncio.create_task(consumer.apop())
        await parked(consumer)
        lost.close()
        with pytest.raises(offloop.InUseError):
            consumer.try_pop()
        producer.push(b"pear")
        assert await waiting == b"pear"

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())

    lost = left_waiting(make_loop, consumer.apop)
    consumer.close()
    consumer = ring.consumer()
    lost.close()
    while producer.try_push(bytes(1000)):
        pass
    lost = left_waiting(make_loop, lambda: producer.apush(bytes(1000)))
    producer.close()
    producer.close()
    ring.producer()
    lost.close()


def test_fileno_works_in_any_poll_loop(ring):
    import select

    producer, consumer = ring.producer(), ring.consumer()
    poll = select.poll()
    poll.register(consumer.fileno(), select.POLLIN)
    assert consumer.try_pop() is None
    assert poll.poll(0) == []
    producer.push(b"apple")
    producer.push(b"pear")
    assert poll.poll(0), "readable at once"
    assert consumer.try_pop() == b"apple"
    assert poll.poll(0), "as long as there is something"
    assert consumer.try_pop() == b"pear"
    assert consumer.try_pop() is None
    assert poll.poll(0) == []
    poll.register(producer.fileno(), select.POLLIN)
    while producer.try_push(bytes(1000)):
        pass
    consumer.try_pop()
    while consumer.try_pop() is not None:
        pass
    assert producer.fileno() in [fd for fd, _ in poll.poll(0)]


def test_a_dead_peer_ends_a_wait(run):
    import os
    import signal

    ring = RingBuffer.create("spsc", capacity=4096)
    fds = ring.fds
    pid = os.fork()
    if pid == 0:
        producer = RingBuffer.attach(fds).producer()
        producer.push(b"apple")
        signal.pause()
        os._exit(0)

    async def main():
        consumer = ring.consumer()
        assert await consumer.apop() == b"apple"
        waiting = asyncio.create_task(consumer.apop())
        await parked(consumer)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(offloop.PeerDiedError):
            await waiting

    try:
        run(main)
    finally:
        os.waitpid(pid, 0)
