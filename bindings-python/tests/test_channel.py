"""Channels between threads: values, buffers, fds, requests, ends, and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import offloop
import pytest
from offloop import Channel, TransferBuffer, _channel, _native


@pytest.fixture
def ends():
    a, b = Channel.pair()
    with a, b:
        yield a, b


def served(channel, answer):
    """Answers every request of a channel on a thread, until it ends."""

    def serve():
        for message in channel:
            answer(message)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_values_go_both_ways_as_they_are(ends):
    a, b = ends
    values = [None, True, 1.5, 2**70, "text", b"bytes", {"a": [1, {"b": None}]}, datetime(2020, 1, 2, tzinfo=UTC), {1: 2}]
    for there, back in [(a, b), (b, a)]:
        for value in values:
            there.send(value)
        for value in values:
            message = back.recv()
            assert (message.value, message.fds, message.is_request) == (value, [], False)


def test_arrays_and_exceptions_arrive(ends):
    a, b = ends
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    a.send(array)
    assert np.array_equal(b.recv().value, array)
    a.send(ValueError("wrong"))
    error = b.recv().value
    assert isinstance(error, offloop.TaskFailedError)
    assert error.message == "wrong"


def test_two_threads_send_and_receive_at_once():
    a, b = Channel.pair(capacity=4096)
    count = 3000

    def run(out, inn):
        sender = threading.Thread(target=lambda: [out.send([n, "x" * (n % 400)]) for n in range(count)])
        sender.start()
        for n in range(count):
            assert inn.recv().value == [n, "x" * (n % 400)]
        sender.join()

    with a, b, ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, a, b), pool.submit(run, b, a)]:
            done.result()


def test_buffers_move(ends):
    a, b = ends
    shared, short = TransferBuffer(100_000, shared=True), TransferBuffer.from_bytes(b"abc")
    memoryview(shared)[99_999] = 7
    gc.collect()
    a.send({"list": [shared, short]}, [shared, short])
    assert shared.detached
    assert short.detached
    one, two = b.recv().value["list"]
    assert memoryview(one)[99_999] == 7
    assert bytes(two) == b"abc"
    assert one.fd is not None


def test_what_only_rounds_to_a_number_is_unserializable(ends):
    a, b = ends
    numbers = [np.float32(1.5), np.int16(3), np.float64(0.1), np.array(7)]
    for number in numbers:
        a.send(number)
        assert b.recv().value == number
    for bad in [Decimal("1.1"), Fraction(1, 3), np.zeros(2, "f2"), np.zeros(2, "c8"), np.array([None]), np.zeros(2, ">i4")]:
        with pytest.raises(offloop.UnserializableError):
            a.send(bad)
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(offloop.TooLargeError, match="depth=129, max_depth=128"):
        a.send(deep)


def test_a_send_that_fails_moves_nothing(ends):
    a, _ = ends
    buffer = TransferBuffer.from_bytes(b"abc")
    for bad, error in [
        ([buffer, object()], offloop.UnserializableError),
        ([buffer, buffer], offloop.DetachedError),
        ([buffer, [[[]]] * 300_000], offloop.TooLargeError),
    ]:
        with pytest.raises(error):
            a.send(bad)
        assert not buffer.detached
    with memoryview(buffer), pytest.raises(offloop.InUseError):
        a.send(buffer)
    with pytest.raises(offloop.InvalidError):
        a.send(buffer, fds=[-1])
    with pytest.raises(TypeError):
        a.send(buffer, [b"no buffer"])
    with pytest.raises(offloop.InvalidError, match="not in the value"):
        a.send([buffer], [buffer, TransferBuffer(1)])
    assert bytes(buffer) == b"abc"


def test_a_message_longer_than_the_ring_and_one_beyond_the_limit():
    a, b = Channel.pair(capacity=4096, max_message=1_000_100)
    with a, b:
        a.send(bytes(1_000_000))
        assert b.recv().value == bytes(1_000_000)
        with pytest.raises(offloop.TooLargeError, match="max"):
            a.send(bytes(1_000_200))


def test_fds_go_along(ends):
    a, b = ends
    read, write = os.pipe()
    with os.fdopen(write, "wb") as file:
        a.send("take", fds=[file])
    message = b.recv()
    assert message.value == "take"
    os.write(message.fds[0], b"hello")
    os.close(message.fds[0])
    assert os.read(read, 100) == b"hello"
    assert os.read(read, 100) == b""
    os.close(read)
    with pytest.raises(offloop.TooLargeError, match="max_fds=253"):
        a.send(None, fds=[0] * 254)


def test_requests_get_their_replies_or_the_error(ends):
    a, b = ends

    def answer(message):
        if message.value == 3:
            message.fail(KeyError("three"))
        else:
            message.reply(message.value * 2)

    server = served(b, answer)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(a.request, [1, 2, 4])) == [2, 4, 8]
    with pytest.raises(offloop.TaskFailedError, match="three"):
        a.request(3)
    a.close()
    server.join()


def test_a_request_is_answered_once(ends):
    a, b = ends

    def answer(message):
        assert message.is_request
        message.reply()
        assert not message.is_request
        with pytest.raises(offloop.InvalidError):
            message.reply()

    server = served(b, answer)
    assert a.request(1) is None
    a.close()
    server.join()


def test_a_reply_that_cannot_be_sent_leaves_the_request_open(ends):
    a, b = ends

    def answer(message):
        for bad, error in [(object(), offloop.UnserializableError), ([[[]]] * 300_000, offloop.TooLargeError)]:
            with pytest.raises(error):
                message.reply(bad)
            assert message.is_request
        with pytest.raises(offloop.InvalidError):
            message.reply(1, fds=[-1])
        message.fail(KeyError("none travels"))
        assert not message.is_request

    server = served(b, answer)
    with pytest.raises(offloop.TaskFailedError, match="none travels"):
        a.request(1, timeout=10)
    a.close()
    server.join()


def test_a_reply_that_found_no_room_leaves_the_request_open(gate):
    async def ask(a):
        asking = asyncio.create_task(a.arequest(1, 60))
        await asyncio.sleep(0)
        gate.wait()  # nobody reads while the loop does not turn
        return await asking

    a, b = Channel.pair(capacity=4096)
    with a, b, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as last:
        last.callback(gate.set)
        asking = pool.submit(lambda: asyncio.run(ask(a)))
        message = b.recv()
        with pytest.raises(offloop.TimeoutError):
            while True:
                b.send(bytes(500), timeout=0)
        with pytest.raises(offloop.TimeoutError):
            message.reply(bytes(500), timeout=0)
        assert message.is_request
        gate.set()
        message.reply("late")
        assert asking.result() == "late"


def test_fds_of_a_reply(ends):
    a, b = ends
    server = served(b, lambda message: message.reply("here", fds=[0]))
    value, fds = a.request(None, with_fds=True)
    assert value == "here"
    os.close(fds[0])
    before = len(os.listdir("/proc/self/fd"))
    assert a.request(None) == "here"
    # The other thread may not have let go of its own yet.
    while len(os.listdir("/proc/self/fd")) > before:
        time.sleep(0)
    a.close()
    server.join()


def test_an_end_that_was_closed_keeps_no_fds():
    def use(kept):
        a, b = Channel.pair()
        a.send(1)
        b.send(2)
        assert (b.recv().value, a.recv().value) == (1, 2)

        def told():
            with pytest.raises(offloop.ClosedError):
                b.recv()

        waiting = threading.Thread(target=told)
        waiting.start()
        b.close()
        waiting.join()
        # One is closed here, the other finds that.
        with pytest.raises(offloop.ClosedError):
            a.recv()
        kept += [a, b]

    use([])
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for _ in range(10):
        use(kept)
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(end.stats["received"] == 1 for end in kept)


def test_a_request_that_times_out_drops_its_reply(ends):
    a, b = ends
    with pytest.raises(offloop.TimeoutError):
        a.request(1, timeout=0.01)
    b.recv().reply("late")
    b.send("next")
    assert a.recv().value == "next"
    assert a.stats["late_replies"] == 1


def test_waits_end_at_their_timeouts(ends):
    a, b = ends
    for timeout in (0.01, -1, float("-inf")):
        with pytest.raises(offloop.TimeoutError):
            a.recv(timeout)
    with pytest.raises(offloop.InvalidError, match="timeout=NaN"):
        a.recv(float("nan"))
    assert a.try_recv() is None
    b.send(0)
    assert a.recv().value == 0
    b.send(1)
    assert a.recv(timeout=0).value == 1
    small, other = Channel.pair(capacity=4096)
    with small, other, pytest.raises(offloop.TimeoutError, match="no room"):
        while True:
            small.send(bytes(500), timeout=0.01)


def test_close_is_told_after_the_last_message(ends):
    a, b = ends
    a.send(1)
    a.send(2)
    a.close()
    assert [m.value for m in b] == [1, 2]
    with pytest.raises(offloop.ClosedError, match="other end closed the channel"):
        b.recv()
    with pytest.raises(offloop.ClosedError):
        b.send(3)
    assert a.closed
    assert b.closed


def test_close_wakes_a_thread_that_waits(ends):
    a, b = ends
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(a.recv), pool.submit(a.request, 1)]
        assert b.recv().is_request
        a.close()
        for wait in waits:
            with pytest.raises(offloop.ClosedError):
                wait.result()


def test_a_channel_that_is_dropped_is_closed():
    a, b = Channel.pair()
    a.send(1)
    assert b.recv().value == 1
    del a
    gc.collect()
    with pytest.raises(offloop.ClosedError):
        b.recv()


def test_fileno_is_readable_while_there_is_something(ends):
    import select

    a, b = ends
    poll = select.poll()
    poll.register(b.fileno(), select.POLLIN)
    assert b.try_recv() is None
    a.send(1)
    a.send(2)
    got = []
    while len(got) < 2:
        assert poll.poll()
        if (message := b.try_recv()) is not None:
            got.append(message.value)
    assert got == [1, 2]


def test_a_listener_gives_channels(tmp_path):
    path = tmp_path / "listen"
    with Channel.listen(path) as listener:
        with pytest.raises(offloop.ExistsError):
            Channel.listen(path)
        with ThreadPoolExecutor(1) as pool:
            connecting = pool.submit(Channel.connect, path)
            with listener.accept() as own, connecting.result() as other:
                own.send("hello")
                assert other.recv().value == "hello"
                assert other.peer_pid == os.getpid()
    assert not path.exists()
    with pytest.raises(offloop.NotFoundError):
        Channel.connect(path)


def test_a_listener_serves_each_channel_on_a_thread(tmp_path):
    def serve(channel):
        for message in channel:
            message.reply([message.value])

    with Channel.listen(tmp_path / "serve", serve):
        channels = [Channel.connect(tmp_path / "serve") for _ in range(3)]
        assert [c.request(n) for n, c in enumerate(channels)] == [[0], [1], [2]]
        for channel in channels:
            channel.close()


def full(listener):
    """Fills the queue of a listener; what does it."""
    with socket.socket(fileno=os.dup(listener.fileno())) as same:
        same.listen(0)
    waiting = []
    with pytest.raises(offloop.Full):
        while True:
            waiting.append(_native._Channel.connect(listener.path, None, None))
    return waiting


def test_connect_ends_at_its_timeout_while_the_queue_is_full(tmp_path):
    with Channel.listen(tmp_path / "full") as listener:
        waiting = full(listener)
        for timeout in [0.02, 0, -1]:
            with pytest.raises(offloop.TimeoutError, match=f"timeout_ms={timeout * 1000:.0f}"):
                Channel.connect(listener.path, timeout)
        with pytest.raises(offloop.InvalidError):
            Channel.connect(listener.path, float("nan"))
        with ThreadPoolExecutor(1) as pool:
            for timeout in [None, float("inf"), 60]:
                connecting = pool.submit(Channel.connect, listener.path, timeout)
                for _ in range(len(waiting) + 1):
                    listener.accept().close()
                connecting.result().close()
                waiting = full(listener)


def test_a_thread_that_cannot_be_started_loses_no_channel(tmp_path, monkeypatch):
    real, left = threading.Thread.start, [RuntimeError("can't start new thread"), MemoryError()]

    def start(self):
        if self.name == "offloop-channel" and left:
            raise left.pop()
        real(self)

    def serve(channel):
        for message in channel:
            message.reply([message.value])

    monkeypatch.setattr(threading.Thread, "start", start)
    with Channel.listen(tmp_path / "serve", serve):
        for n in range(2):
            with Channel.connect(tmp_path / "serve") as channel:
                assert channel.request(n) == [n]
    assert not left


def test_bad_arguments_are_named(ends):
    a, _ = ends
    for bad in [-1, 2**70, "much", 1.5]:
        with pytest.raises(offloop.InvalidError, match="capacity"):
            Channel.pair(capacity=bad)
    for bad in [2**31, -1, 2**70, "x", None]:
        with pytest.raises(offloop.InvalidError, match="fd"):
            a.send(1, fds=[bad])
    with pytest.raises(offloop.InvalidError, match="zero byte"):
        Channel.listen("/tmp/a\0b")
    with pytest.raises(offloop.InvalidError, match="zero byte"):
        offloop.RingBuffer.inspect("/tmp/a\0b")
    with pytest.raises(TypeError):
        Channel(1)
    with pytest.raises(offloop.InvalidError):
        Channel.attach(-1)
    with open("/dev/null") as null, pytest.raises(offloop.InvalidError):
        Channel.attach(null.fileno())
    assert a.fd > 2
    a.send(1)
    with pytest.raises(offloop.InUseError):
        _ = a.fd
    with pytest.raises(offloop.UnserializableError):
        __import__("pickle").dumps(a)


# ---- asyncio ----


def test_coroutines_exchange_messages_and_requests():
    async def main():
        a, b = Channel.pair(capacity=4096)

        async def serve():
            async for message in b:
                if message.is_request:
                    message.reply(message.value + 1)
                else:
                    await b.asend(message.value)

        async with a:
            server = asyncio.create_task(serve())

            async def echo():
                for n in range(2000):
                    assert (await a.arecv()).value == [n, "x" * 100]

            receiving = asyncio.create_task(echo())
            for n in range(2000):
                await a.asend([n, "x" * 100])
            await receiving
            assert await asyncio.gather(*(a.arequest(n) for n in range(100))) == list(range(1, 101))
        await server

    asyncio.run(main())


def test_a_coroutine_that_waits_holds_up_nobody():
    async def main():
        a, b = Channel.pair()
        waiting = asyncio.create_task(a.arecv())
        for _ in range(100):
            await asyncio.sleep(0)
        b.send("now")
        assert (await waiting).value == "now"
        a.close()
        b.close()

    asyncio.run(main())


def test_a_cancelled_await_loses_no_message():
    async def main():
        a, b = Channel.pair()
        for n in range(50):
            waiting = asyncio.create_task(a.arecv())
            await asyncio.sleep(0)
            b.send(n)
            if n % 2:
                await asyncio.sleep(0.001)
            waiting.cancel()
            try:
                assert (await waiting).value == n
            except asyncio.CancelledError:
                assert (await a.arecv()).value == n
        asking = asyncio.create_task(a.arequest("drop"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        message = await b.arecv()
        message.reply("late")
        b.send("next")
        assert (await a.arecv()).value == "next"
        assert a.stats["late_replies"] == 1
        a.close()
        b.close()

    asyncio.run(main())


def test_waits_in_a_loop_end_with_the_channel_and_at_timeouts():
    async def main():
        a, b = Channel.pair(capacity=4096)
        with pytest.raises(offloop.TimeoutError):
            await a.arequest(1, timeout=0.01)
        waits = [asyncio.create_task(a.arecv()), asyncio.create_task(a.arequest(2))]
        sending = asyncio.create_task(_fill(b))
        await asyncio.sleep(0.01)
        b.close()
        for wait in waits:
            with pytest.raises(offloop.ClosedError):
                while True:
                    await wait
                    wait = asyncio.create_task(a.arecv())
        with pytest.raises(offloop.ClosedError):
            await sending

    async def _fill(channel):
        while True:
            await channel.asend(bytes(1000))

    asyncio.run(main())


def test_a_listener_in_a_loop(tmp_path):
    async def main():
        async def serve(channel):
            async for message in channel:
                message.reply([message.value])

        with Channel.listen(tmp_path / "loop", serve):
            channels = [await Channel.aconnect(tmp_path / "loop") for _ in range(3)]
            assert await asyncio.gather(*(c.arequest(n) for n, c in enumerate(channels))) == [[0], [1], [2]]
            for channel in channels:
                channel.close()
            await asyncio.sleep(0)

    asyncio.run(main())


def test_coroutines_that_accept_get_one_channel_each(tmp_path):
    async def main():
        with Channel.listen(tmp_path / "each") as listener:
            accepting = [asyncio.create_task(listener.aaccept()) for _ in range(4)]
            await asyncio.sleep(0)
            accepting[0].cancel()
            others = [await Channel.aconnect(listener.path) for _ in range(3)]
            accepted = await asyncio.gather(*accepting[1:])
            for channel in accepted:
                await channel.asend("hello")
            for channel in others:
                assert (await channel.arecv()).value == "hello"
            for channel in accepted + others:
                channel.close()
            assert accepting[0].cancelled()

    asyncio.run(main())


@pytest.mark.parametrize("by_thread", [False, True])
def test_a_listener_that_closes_ends_coroutines_that_accept(tmp_path, by_thread):
    async def main():
        listener = Channel.listen(tmp_path / "closed")
        accepting = [asyncio.create_task(listener.aaccept()) for _ in range(2)]
        await asyncio.sleep(0)
        if by_thread:
            await asyncio.to_thread(listener.close)
        else:
            listener.close()
        for one in accepting:
            with pytest.raises(offloop.ClosedError):
                await one
        with pytest.raises(offloop.ClosedError):
            await listener.aaccept()

    asyncio.run(main())


@contextlib.contextmanager
def no_fds():
    """For its time, nobody in this process can open a file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_coroutine_that_finds_no_fd_to_wait_with_looks_again(tmp_path, monkeypatch):
    real, left = select.epoll, [OSError(errno.EMFILE, "too many open files")]

    def epoll(*args):
        if left:
            raise left.pop()
        return real(*args)

    async def main():
        with Channel.listen(tmp_path / "fds") as listener:
            monkeypatch.setattr(_channel.select, "epoll", epoll)
            accepting = asyncio.create_task(listener.aaccept())
            await asyncio.sleep(0)
            assert not left
            with await Channel.aconnect(listener.path), await accepting:
                pass

    asyncio.run(main())


def test_a_listener_that_is_closed_while_fds_are_missing_watches_nothing(tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        failed = []
        loop.set_exception_handler(lambda _loop, context: failed.append(context))
        listener = Channel.listen(tmp_path / "fds", lambda channel: channel.close())
        number = listener.fileno()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as knocking:
            knocking.connect(str(listener.path))
            with no_fds():
                while number in loop._selector.get_map():
                    await asyncio.sleep(0)
            listener.close()
            # The number is another file's.
            read, write = os.pipe()
            os.dup2(read, number)
            # Its timer comes before this one.
            await asyncio.sleep(2 * _channel.PAUSE)
            assert not loop.remove_reader(number)
            assert not failed
        for fd in {read, write, number}:
            os.close(fd)

    asyncio.run(main())


async def ask_behind_three_messages(a, b):
    """Leaves the messages read ahead in `a`, because nobody replies."""
    for n in range(3):
        b.send(n)
    with pytest.raises(offloop.TimeoutError):
        await a.arequest(None, timeout=0.01)


def test_messages_read_ahead_in_one_loop_are_received_in_the_next():
    a, b = Channel.pair()

    async def take():
        return [(await a.arecv()).value for _ in range(3)]

    asyncio.run(ask_behind_three_messages(a, b))
    assert asyncio.run(take()) == [0, 1, 2]
    a.close()
    b.close()


def test_the_other_thread_gets_the_gil_while_one_waits(ends):
    a, b = ends
    threading.Timer(0.02, b.send, ["late"]).start()
    began = time.thread_time()
    assert a.recv().value == "late"
    assert time.thread_time() - began < 1


# ---- threads and loops together ----


def test_threads_and_loops_share_a_channel():
    a, b = Channel.pair(capacity=4096)
    count = 300

    def answer(message):
        if message.is_request:
            b.send(message.value)
            message.reply(message.value)

    server = served(b, answer)
    got = []

    def take():
        for message in a:
            got.append(tuple(message.value))

    def ask(name):
        for n in range(count):
            assert a.request((name, n), timeout=30) == [name, n]

    async def aask(name):
        for n in range(count):
            assert await a.arequest((name, n), timeout=30) == [name, n]

    with ThreadPoolExecutor(5) as pool:
        taking = pool.submit(take)
        calls = [pool.submit(ask, "thread"), *(pool.submit(asyncio.run, aask(f"loop {n}")) for n in range(2))]
        for call in calls:
            call.result()
        while len(got) < 3 * count:
            time.sleep(0)
        a.close()
        taking.result()
    server.join()
    for name in ["thread", "loop 0", "loop 1"]:
        assert [n for whose, n in got if whose == name] == list(range(count))


def test_messages_are_taken_by_two_loops():
    a, b = Channel.pair()
    count = 500

    async def take():
        got = []
        async for message in a:
            if message.value is None:
                return got
            got.append(message.value)
        return got

    with a, b, ThreadPoolExecutor(2) as pool:
        takes = [pool.submit(asyncio.run, take()) for _ in range(2)]
        for n in range(count):
            b.send(n)
        for _ in takes:
            b.send(None)
        lists = [one.result(60) for one in takes]
    assert sorted(lists[0] + lists[1]) == list(range(count))


def test_a_loop_queues_behind_a_thread_that_waits_for_room():
    a, b = Channel.pair(capacity=4096)

    async def main():
        with ThreadPoolExecutor(1) as pool:
            sent = []

            def fill():
                for n in range(40):
                    a.send(["thread", n, bytes(500)])
                    sent.append(n)

            filling = pool.submit(fill)
            # It waits when nothing is added any more.
            while True:
                before = len(sent)
                await asyncio.sleep(0.02)
                if before and len(sent) == before:
                    break
            sending = [asyncio.create_task(a.asend(["loop", n])) for n in range(3)]
            asking = asyncio.create_task(a.arequest(["asked"]))
            await asyncio.sleep(0)
            got = []
            while len(got) < 44:
                message = await b.arecv()
                got.append(message.value[:2])
                if message.is_request:
                    message.reply("answered")
            assert await asking == "answered"
            await asyncio.gather(*sending)
            filling.result()
        for name, count in [("thread", 40), ("loop", 3)]:
            assert [n for whose, *rest in got if whose == name for n in rest] == list(range(count))

    with a, b:
        asyncio.run(main())


def test_messages_that_arrived_while_a_coroutine_asked_are_received_by_a_thread():
    a, b = Channel.pair()

    asyncio.run(ask_behind_three_messages(a, b))
    assert [a.recv(timeout=10).value for _ in range(3)] == [0, 1, 2]
    a.close()
    b.close()


def test_a_waiting_request_holds_the_other_end_back():
    async def main():
        a, b = Channel.pair(capacity=4096)
        asking = asyncio.create_task(a.arequest("never"))
        assert (await b.arecv()).is_request
        sending = [asyncio.create_task(b.asend(n)) for n in range(2000)]
        while a.stats["received"] < 1024:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert a.stats["received"] == 1024
        for n in range(2000):
            assert (await a.arecv()).value == n
        await asyncio.gather(*sending)
        asking.cancel()
        a.close()
        b.close()

    asyncio.run(main())


def queued():
    """An end of which a coroutine has queued more than there is room for, the other end, and how much was sent."""
    a, b = Channel.pair(capacity=4096)
    sent = 0

    async def fill():
        nonlocal sent
        while True:
            one = asyncio.create_task(a.asend(bytes(500)))
            await asyncio.sleep(0)
            sent += 1
            if not one.done():
                one.cancel()
                return

    return a, b, fill, lambda: sent


def drain(channel):
    got = 0
    with contextlib.suppress(offloop.ClosedError):
        while True:
            channel.recv(timeout=10)
            got += 1
    return got


def test_close_in_a_loop_sends_what_is_queued_until_its_grace_is_over():
    a, b, fill, sent = queued()

    async def main():
        await fill()
        with pytest.raises(offloop.InvalidError, match="grace"):
            a.close(grace=float("nan"))
        a.close(grace=0.02)
        assert not a.closed
        with pytest.raises(offloop.ClosedError):
            await a.arecv()
        assert a.closed

    asyncio.run(main())
    assert a.stats["queued"] == 0
    assert drain(b) < sent()


def test_close_of_a_thread_waits_until_what_a_loop_has_queued_is_sent():
    for grace, all_of_it in ((60, True), (None, True), (0, False), (-1, False)):
        a, b, fill, sent = queued()
        asyncio.run(fill())
        with ThreadPoolExecutor() as threads:
            reading = threads.submit(drain, b) if all_of_it else None
            a.close(grace)
            assert a.closed
            got = reading.result() if reading else drain(b)
        assert (got == sent()) is all_of_it


def test_aclose_waits_until_what_is_queued_is_sent_or_dropped():
    async def main(grace, reads):
        a, b, fill, sent = queued()
        await fill()
        reading = asyncio.create_task(asyncio.to_thread(drain, b)) if reads else None
        await a.aclose(grace)
        assert a.closed
        got = await reading if reading else drain(b)
        assert (got == sent()) is reads

    asyncio.run(main(60, True))
    asyncio.run(main(float("inf"), True))
    for grace in (0.01, -1):
        asyncio.run(main(grace, False))


def answers(channel, count):
    """Reads the answers to requests that were posted by number, as far as they come."""
    got = 0
    with contextlib.suppress(offloop.ClosedError):
        while got < count:
            event = channel._end.outcome()
            if event is None:
                select.select([channel], [], [], 10)
            elif event[0] == "reply":
                got += 1
            elif event[0] == "lost":
                break
    return got


def test_aclose_sends_answers_behind_which_there_was_room_before():
    async def main(grace, reads):
        a, b = Channel.pair(capacity=4096)
        asked = 24
        for _ in range(asked - 1):
            b._end.post_request(None, [], None)
        messages = [await a.arecv() for _ in range(asked - 1)]
        # One more than there is room for.
        while a.stats["queued"] == 0:
            messages.pop().reply(bytes(1000))
        early = 0
        while (event := b._end.outcome()) is not None:
            early += event[0] == "reply"
        # The next look finds the room and a request at once; before the loop hears of the room, more is queued.
        b._end.post_request(None, [], None)
        messages.append(a.try_recv())
        assert a.stats["queued"] == 0
        for message in messages:
            message.reply(bytes(1000))
        assert a.stats["queued"] > 0

        def read_slowly():
            time.sleep(0.02)
            return early + answers(b, asked - early)

        reading = asyncio.create_task(asyncio.to_thread(read_slowly)) if reads else None
        await a.aclose(grace)
        assert a.closed
        assert a.stats["queued"] == 0
        got = await reading if reading else early + answers(b, asked - early)
        assert (got == asked) is reads
        b.close()

    asyncio.run(main(60, True))
    asyncio.run(main(None, True))
    asyncio.run(main(0.02, False))
    asyncio.run(main(0, False))


def test_aclose_goes_on_when_another_loop_tells_late_of_room_that_is_filled_again():
    async def main():
        a, b, fill, sent = queued()
        await fill()
        closing = asyncio.create_task(a.aclose(None))
        while all(waiter.done() for waiter in a._desk.room):
            await asyncio.sleep(0)
        a._desk._place(("drained", 0, False, None, None))
        await asyncio.sleep(0.01)
        assert not closing.done()
        got = await asyncio.to_thread(drain, b)
        await closing
        assert got == sent()

    asyncio.run(main())


def test_an_aclose_that_is_cancelled_drops_the_rest_and_may_be_repeated():
    async def main():
        a, b, fill, sent = queued()
        await fill()
        closing = asyncio.create_task(a.aclose(None))
        await asyncio.sleep(0.01)
        assert not closing.done()
        assert not a.closed
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert a.closed
        assert a.stats["queued"] == 0
        await a.aclose()
        a.close()
        assert drain(b) < sent()

    asyncio.run(main())


def test_aclose_may_be_called_while_another_waits():
    async def main(reads):
        a, b, fill, sent = queued()
        await fill()
        reading = asyncio.create_task(asyncio.to_thread(drain, b)) if reads else None
        # The one with less time ends both.
        await asyncio.gather(a.aclose(None), a.aclose(60 if reads else 0.02), a.aclose(None))
        assert a.closed
        await a.aclose(None)
        got = await reading if reading else drain(b)
        assert (got == sent()) is reads

    asyncio.run(main(True))
    asyncio.run(main(False))


def test_what_a_loop_has_queued_that_is_over_is_sent_by_aclose_of_another():
    for in_aclose in (False, True):
        a, b, fill, sent = queued()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(fill())
        if in_aclose:
            # A task of the loop that will never run again waits for the same.
            lost = loop.create_task(a.aclose(None))
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        with ThreadPoolExecutor() as threads:
            reading = threads.submit(drain, b)
            asyncio.run(a.aclose(60))
            assert a.closed
            assert reading.result() == sent()
        if in_aclose:
            assert not lost.done()
            lost._log_destroy_pending = False  # it is known


def test_a_request_fails_behind_messages_that_only_it_could_receive():
    a, b = Channel.pair(max_queued=1_000_000)
    for n in range(10):
        b.send([n, bytes(300_000)])
    with pytest.raises(offloop.Full, match="max_queued=1000000"):
        a.request(None)
    assert a.stats["received"] == 4
    assert [a.recv(timeout=10).value[0] for _ in range(10)] == [*range(10)]
    a.close()
    b.close()


def test_fds_of_a_reply_that_is_cancelled_as_it_comes_are_closed():
    async def main():
        a, b = Channel.pair()
        with open("/dev/null") as null:
            asks = []
            for n in range(20):
                asks.append(asyncio.create_task(a.arequest(n, with_fds=True)))
                (await b.arecv()).reply(n, fds=[null])
            # Those that have theirs, and whose coroutine does not know yet.
            for ask in asks:
                ask.cancel()
            for outcome in await asyncio.gather(*asks, return_exceptions=True):
                for fd in outcome[1] if isinstance(outcome, tuple) else []:
                    os.close(fd)
        await asyncio.sleep(0.01)
        a.close()
        b.close()

    asyncio.run(main())
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_loop_goes_on_while_much_is_there():
    async def main():
        a, b = Channel.pair(capacity=1 << 20)
        for n in range(1000):
            b.send([n] * 100)
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for n in range(1000):
            assert (await a.arecv()).value[0] == n
        # Each turn takes what fits its time; all in one would leave none to others.
        assert turns > 2
        counting.cancel()
        a.close()
        b.close()

    asyncio.run(main())


# An array as a key: no dict can have it.
NO_FORM = {memoryview(b"abc"): 1}


def test_a_value_without_a_python_form_fails_one_message_or_reply(ends):
    a, b = ends
    no_form = pytest.raises(offloop.OffloopError, match="key that a dict cannot have")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(a.request, "bad", timeout=10)
        b.recv().reply(NO_FORM)
        with no_form:
            asking.result()
        # One that cannot be read is answered with that error.
        asking = pool.submit(a.request, NO_FORM, timeout=10)
        with no_form:
            b.recv()
        with no_form:
            asking.result()
    a.send(NO_FORM)
    a.send("next")
    with no_form:
        b.recv()
    assert b.recv().value == "next"


def test_a_value_without_a_python_form_fails_one_coroutine():
    async def main():
        a, b = Channel.pair()

        async def serve():
            while True:
                message = await b.arecv()
                if message.is_request:
                    message.reply(NO_FORM if message.value == "bad" else message.value)

        server = asyncio.create_task(serve())
        asks = [asyncio.create_task(a.arequest(value, timeout=10)) for value in [1, "bad", 2]]
        one, bad, two = await asyncio.gather(*asks, return_exceptions=True)
        assert (one, two) == (1, 2)
        assert isinstance(bad, offloop.OffloopError)
        b.send(NO_FORM)
        b.send("next")
        with pytest.raises(offloop.OffloopError, match="key that a dict cannot have"):
            await a.arecv()
        assert (await a.arecv()).value == "next"
        assert await a.arequest(3, timeout=10) == 3
        server.cancel()
        a.close()
        b.close()

    asyncio.run(main())
