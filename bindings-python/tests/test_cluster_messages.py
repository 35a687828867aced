"""Messages between a Cluster and its workers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import textwrap
import threading
import time
from pathlib import Path

import offloop
import pytest
from offloop import Cluster, TransferBuffer

# Answers what it hears; in slot DEAF it hears nothing.
TALKS = """
import os, sys, threading
import offloop

worker = offloop.current_worker()

def hear(message):
    if message.is_request:
        if not isinstance(message.value, int):
            raise ValueError(f"not a number: {message.value}")
        message.reply(message.value + 1)
        return
    match message.value:
        case "ask":
            worker.send({"told": worker.request(20)})
        case {"buffer": buffer}:
            os.write(message.fds[0], bytes(buffer))
            os.close(message.fds[0])
        case "go":
            for n in range(1, 301):
                worker.send(n)
            os._exit(3)
        case "fill":
            try:
                while True:
                    worker.send("x" * 1000, timeout=0.05)
            except offloop.TimeoutError:
                os._exit(4)
        case other:
            worker.send({"slot": worker.slot, "heard": other, "thread": threading.current_thread().name})

if os.environ.get("DEAF") != str(worker.slot):
    worker.on_message(hear)
worker.send({"hello": worker.slot, "generation": worker.generation})
worker.ready()
threading.Event().wait()
"""

# The same, in an event loop.
LOOPS = """
import asyncio, threading
import offloop

worker = offloop.current_worker()

async def hear(message):
    await asyncio.sleep(0)
    if message.is_request:
        message.reply(await worker.arequest(message.value))
    elif message.value == "burst":
        # More than the ring has room for: it waits in this process.
        for n in range(1000):
            worker.send({"n": n, "of": "x" * 1000})
    else:
        worker.send({"heard": message.value, "in_loop": threading.current_thread() is threading.main_thread()})

async def main():
    REGISTER
    worker.ready()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def talking(tmp_path):
    def make(code: str = TALKS, **options) -> Cluster:
        script = tmp_path / "talks.py"
        script.write_text(textwrap.dedent(code))
        env = {"PYTHONPATH": str(Path(offloop.__file__).parent.parent), **options.pop("env", {})}
        return Cluster(str(script), **{"workers": 2, "min_ready": 0, "env": env, **options})

    return make


class Said:
    """What workers have said, in its order, with their exits."""

    def __init__(self, cluster: Cluster) -> None:
        self.all: list[tuple] = []
        self.threads: set[str] = set()
        self._changed = threading.Condition()
        cluster.on("message", lambda worker, message: self._hear(worker, message))
        cluster.on("exit", lambda worker, _: self._add(worker, "exit"))

    def _hear(self, worker, message) -> None:
        if message.is_request:
            assert isinstance(message.value, int), "a number"
            message.reply(message.value * 2)
        else:
            self._add(worker, message.value)

    def _add(self, worker, value) -> None:
        with self._changed:
            self.threads.add(threading.current_thread().name)
            self.all.append((worker, value))
            self._changed.notify_all()

    def take(self, n: int) -> list:
        """The next `n`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= n, 60), self.all
            taken, self.all = self.all[:n], self.all[n:]
            return [value for _, value in taken]

    def until_exit(self) -> list:
        with self._changed:
            assert self._changed.wait_for(lambda: any(value == "exit" for _, value in self.all), 60)
            return [value for _, value in self.all]


def test_messages_and_requests_go_both_ways(talking):
    cluster = talking()
    said = Said(cluster)
    with cluster:
        hellos = sorted(said.take(2), key=str)
        assert hellos == [{"hello": 0, "generation": 1}, {"hello": 1, "generation": 1}]
        cluster.send(1, "you")
        assert said.take(1) == [{"slot": 1, "heard": "you", "thread": "offloop-mail"}]
        assert cluster.broadcast("all") == []
        assert sorted(value["slot"] for value in said.take(2)) == [0, 1]
        assert cluster.request(0, 41) == 42
        with pytest.raises(offloop.TaskFailedError, match="ValueError: not a number: six"):
            cluster.request(0, "six")
        cluster.send(0, "ask")
        assert said.take(1) == [{"told": 40}]
        assert said.threads == {"offloop-cluster"}
        with pytest.raises(offloop.NotFoundError, match=r"slot has no worker \(slot=7\)"):
            cluster.send(7, "nobody")
        with pytest.raises(offloop.NotFoundError, match="slot=7"):
            cluster.request(7, "nobody")
    # They have ended by themselves, though they listen.
    assert (cluster.stats.live, cluster.stats.forced) == (0, 0)
    with pytest.raises(offloop.ClosedError):
        cluster.send(0, "over")
    with pytest.raises(offloop.ClosedError):
        cluster.broadcast("over")


def test_what_is_said_to_a_slot_goes_to_the_worker_that_is_ready_there(talking):
    cluster = talking(workers=1)
    said = Said(cluster)
    cluster.on("fork", lambda worker: worker.generation == 2 and cluster.send(0, "while one starts"))
    cluster.on("draining", lambda worker, why: why == "retire" and cluster.send(0, "while one drains"))
    with cluster:
        said.take(1)
        cluster.reload()
        cluster.send(0, "new one")
        heard = [(worker.generation, value["heard"]) for worker, value in said.all if value != "exit" and "heard" in value]
        while len(heard) < 3:
            time.sleep(0.01)
            heard = [(worker.generation, value["heard"]) for worker, value in said.all if value != "exit" and "heard" in value]
        assert heard == [(1, "while one starts"), (2, "while one drains"), (2, "new one")]


def test_buffers_and_files_travel_to_a_worker(talking):
    with talking(workers=1) as cluster:
        buffer = TransferBuffer.from_bytes(b"\7" * 100_000)
        with pytest.raises(offloop.InvalidError, match="a buffer moves to one worker"):
            cluster.broadcast({"buffer": buffer})
        assert not buffer.detached
        reading, writing = os.pipe()
        cluster.send(0, {"buffer": buffer}, buffers=[buffer], fds=[writing])
        os.close(writing)
        assert buffer.detached
        with os.fdopen(reading, "rb") as file:
            assert file.read() == b"\7" * 100_000


def test_a_worker_that_hears_nothing_holds_up_nobody(talking):
    cluster = talking(env={"DEAF": "0"}, drain_timeout=0.1, kill_grace=0.1)
    said = Said(cluster)
    with cluster:
        said.take(2)
        megabyte = bytes(1 << 20)
        with pytest.raises(offloop.Full, match="max_queued=16777216"):
            for _ in range(500):
                cluster.send(0, megabyte)
        missed = cluster.broadcast(megabyte)
        assert [(worker.slot, type(why)) for worker, why in missed] == [(0, offloop.Full)]
        (heard,) = said.take(1)
        assert (heard["slot"], len(heard["heard"])) == (1, 1 << 20)


def test_what_waited_for_room_is_sent_when_there_is(talking):
    cluster = talking(workers=1)
    said = Said(cluster)
    with cluster:
        said.take(1)
        # Many times the ring.
        for n in range(500):
            cluster.send(0, [n, "x" * 1000])
        assert [value["heard"][0] for value in said.take(500)] == list(range(500))


def test_what_a_worker_says_comes_before_its_exit_and_nothing_after(talking):
    cluster = talking(workers=1)
    said = Said(cluster)
    with cluster:
        said.take(1)
        # A listener that is slow: the worker is long gone when the last of it is heard.
        cluster.on("message", lambda *_: time.sleep(0.001))
        cluster.send(0, "go")
        assert said.until_exit()[:301] == [*range(1, 301), "exit"]


def test_a_request_to_a_worker_that_dies_says_so(talking):
    with talking(workers=1, env={"DEAF": "0"}) as cluster:
        for ask in (lambda: cluster.request(0, 1), lambda: asyncio.run(cluster.arequest(0, 1))) * 5:
            (line,) = cluster._lines.values()
            with concurrent.futures.ThreadPoolExecutor() as threads:
                asking = threads.submit(ask)
                while line.channel.stats["pending"] == 0:
                    time.sleep(0.001)
                cluster.kill(0)
                with pytest.raises(offloop.PeerDiedError):
                    asking.result(60)
            while 0 not in cluster.workers or cluster.workers[0].pid == line.worker.pid:
                time.sleep(0.001)


def test_messages_wait_for_a_listener_and_hold_back_who_says_more(talking):
    with talking(workers=1) as cluster:
        ended = threading.Event()
        codes = []
        cluster.on("exit", lambda _, how: (codes.append(how.exit_code), ended.set()))
        cluster.send(0, "fill")
        assert ended.wait(60)
        assert codes == [4]
        said = Said(cluster)
        # Of the one that has taken its place.
        assert said.take(1) == [{"hello": 0, "generation": 1}]


@pytest.mark.parametrize(
    "register", ["worker.on_message(hear)", "await asyncio.to_thread(worker.on_message, hear); worker._follow(asyncio.get_running_loop())"]
)
def test_in_event_loops_on_both_sides(talking, register):
    async def main() -> None:
        cluster = talking(LOOPS.replace("REGISTER", register), workers=1)
        said: list = []
        arrived = asyncio.Event()

        def hear(worker, message) -> None:
            assert asyncio.get_running_loop() is loop
            if message.is_request:
                message.reply(message.value * 2)
                return
            said.append(message.value)
            arrived.set()

        async def until(n: int) -> None:
            while len(said) < n:
                arrived.clear()
                await asyncio.wait_for(arrived.wait(), 60)

        loop = asyncio.get_running_loop()
        cluster.on("message", hear)
        async with cluster:
            cluster.send(0, "you")
            await until(1)
            assert said == [{"heard": "you", "in_loop": True}]
            assert await cluster.arequest(0, 21) == 42
            said.clear()
            cluster.send(0, "burst")
            # This loop does not turn for a while: what comes waits, bounded.
            time.sleep(0.3)
            line = next(iter(cluster._lines.values()))
            assert line.ahead <= 256
            await until(1000)
            assert [one["n"] for one in said] == list(range(1000))

    asyncio.run(main())


def test_a_listener_that_raises_is_the_askers_error(talking):
    cluster = talking(
        """
        import offloop, threading
        worker = offloop.current_worker()
        try:
            worker.request("who")
        except offloop.TaskFailedError as e:
            worker.send(str(e))
        worker.ready()
        threading.Event().wait()
        """,
        workers=1,
    )
    told = []

    def hear(_, message) -> None:
        if message.is_request:
            raise KeyError("nobody")
        told.append(message.value)

    cluster.on("message", hear)
    with cluster:
        while not told:
            time.sleep(0.01)
    assert told == ["task failed: KeyError: 'nobody'"]


def test_a_second_listener_of_a_worker_is_refused(talking):
    cluster = talking(
        """
        import offloop, threading
        worker = offloop.current_worker()
        worker.on_message(print)
        for fn in (print, None):
            try:
                worker.on_message(fn)
            except offloop.OffloopError as e:
                worker.send(type(e).__name__)
        worker.ready()
        threading.Event().wait()
        """,
        workers=1,
    )
    said = Said(cluster)
    with cluster:
        assert said.take(2) == ["InUseError", "InvalidError"]


def test_a_forked_child_sends_nothing(talking):
    with talking(workers=1) as cluster:
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(offloop.ForkedError):
                cluster.send(0, "from a child")
                code = 2
            with contextlib.suppress(offloop.ForkedError):
                cluster.broadcast("from a child")
                code = 2
            os._exit(0 if code == 1 else code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert cluster.request(0, 1) == 2


def test_ended_workers_leave_no_fd_that_waits_for_the_collector(talking):
    cluster = talking(workers=1)
    said = Said(cluster)

    def replaced() -> int:
        while 0 not in cluster.workers:
            time.sleep(0.01)
        cluster.kill(0)
        assert said.take(2) == ["exit", {"hello": 0, "generation": 1}]
        return len(os.listdir("/proc/self/fd"))

    gc.disable()
    try:
        with cluster:
            said.take(1)
            before = replaced()
            for _ in range(4):
                after = replaced()
            assert after <= before + 1
    finally:
        gc.enable()
