"""Reading a result, which may run code of the user: what else may happen meanwhile, and what becomes of the task."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import offloop
import pytest

PACKAGE = Path(offloop.__file__).parent.parent

# How long something may take that must happen: a test fails then instead of hanging.
LIMIT = 60

# What reading a `Told` calls, by its name. Only the host has any.
on_read: dict[str, Callable[[], Any]] = {}


def read(name: str) -> Any:
    return on_read[name]()


class Told:
    """Its pickle calls a function of the test as it is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return read, (self.name,)


def told(name: str) -> Told:
    return Told(name)


def told_with(name: str, length: int) -> Any:
    return [np.arange(length), Told(name)]


def told_after(gate: str, name: str) -> Told:
    with open(gate) as pipe:
        pipe.read()
    return Told(name)


def yields(name: str) -> Iterator[Any]:
    yield 1
    yield Told(name)
    yield 3
    return Told(name)


def leave(code: int) -> None:
    raise SystemExit(code)


@pytest.fixture(scope="module")
def processes() -> Iterator[offloop.ProcessPool]:
    with offloop.ProcessPool(max_workers=2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    on_read.clear()


def done(future: Any) -> Any:
    """Waits for a task without reading what it came to."""
    event = threading.Event()
    future.add_done_callback(lambda _: event.set())
    assert event.wait(LIMIT)
    return future


class Held:
    """Another thread that reads `future`, and does not go on before it is let."""

    def __init__(self, future: Any, name: str) -> None:
        self.began, self.let_go = threading.Event(), threading.Event()
        self.was_let = False

        def hold() -> int:
            self.began.set()
            self.was_let = self.let_go.wait(LIMIT)
            return 5

        on_read[name] = hold
        self.results: list[Any] = []
        self.thread = threading.Thread(target=lambda: self.results.append(future.result()))
        self.thread.start()
        assert self.began.wait(LIMIT)

    def end(self) -> Any:
        self.let_go.set()
        self.thread.join(LIMIT)
        assert self.was_let
        return self.results[0]


def interrupts_once(value: Any = 5, number: int = signal.SIGINT) -> Callable[[], Any]:
    left = [number]

    def hook() -> Any:
        if left:
            signal.raise_signal(left.pop())
        return value

    return hook


def panics() -> None:
    with pytest.raises(offloop.OffloopError):
        offloop.ThreadPool(max_workers=-1)
    raise next(c for c in BaseException.__subclasses__() if c.__name__ == "PanicException")("broken")


# ---- interrupted ----


@pytest.mark.parametrize("length", [0, 1000, 1_000_000])
def test_ctrl_c_while_a_result_is_read_is_raised_to_who_waits_and_loses_nothing(processes, length):
    on_read["once"] = interrupts_once()
    future = processes.submit(told_with, "once", length)
    with pytest.raises(KeyboardInterrupt):
        future.result(LIMIT)
    assert future.done()
    assert not future.cancelled()
    assert future._state == "FINISHED"
    array, five = future.result(LIMIT)
    assert (array == np.arange(length)).all()
    assert five == 5
    assert future.exception() is None
    assert future.result() is future.result()


def test_system_exit_of_a_signal_handler_is_not_the_outcome_either(processes):
    before = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
    try:
        on_read["once"] = interrupts_once(number=signal.SIGUSR1)
        future = processes.submit(told, "once")
        with pytest.raises(SystemExit):
            future.exception(LIMIT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert future.exception(LIMIT) is None
    assert future.result() == 5


def test_what_a_task_raises_is_its_outcome_whatever_it_is(processes):
    future = processes.submit(leave, 7)
    assert isinstance(future.exception(LIMIT), SystemExit)
    assert future.exception() is future.exception()
    with pytest.raises(SystemExit):
        future.result()


def test_ctrl_c_while_an_event_loop_reads_a_result_loses_nothing(processes):
    on_read["once"] = interrupts_once()
    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(processes.run(told_with, "once", 100_000))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        array, five = loop.run_until_complete(asyncio.wait_for(task, LIMIT))
        assert len(array) == 100_000
        assert five == 5
    finally:
        loop.close()


def test_ctrl_c_while_a_value_of_a_stream_is_read_loses_nothing(processes):
    on_read["once"] = interrupts_once()
    stream = processes.stream(yields, "once")
    values: list[Any] = [next(stream)]
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    values += [next(stream), next(stream)]
    assert values == [1, 5, 3]
    # And what its function returns.
    on_read["once"] = interrupts_once()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == 5


# ---- two at once ----


def test_who_waits_for_another_thread_to_read_waits_as_long_as_it_likes(processes):
    future = done(processes.submit(told, "held"))
    held = Held(future, "held")
    for wait in (future.result, future.exception):
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError, match="the result is not read yet"):
                wait(timeout)
    assert future.done()
    assert not future.cancelled()
    assert not future.cancel()
    assert not future.running()
    assert future._state == "FINISHED"
    assert "finished" in repr(future)
    results: list[Any] = []
    other = threading.Thread(target=lambda: results.append(future.result(LIMIT)))
    other.start()
    assert held.end() == 5
    other.join(LIMIT)
    assert results == [5]
    assert "finished returned int" in repr(future)


def test_ctrl_c_ends_the_wait_for_another_thread_that_reads(processes):
    future = done(processes.submit(told, "held"))
    held = Held(future, "held")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        future.result()
    timer.join()
    assert held.end() == 5
    assert future.result(LIMIT) == 5


def test_code_that_reading_a_result_runs_cannot_have_that_result(processes):
    seen: list[Any] = []

    def look() -> int:
        for wait in (future.result, lambda: future.result(30), lambda: future.exception(0)):
            with pytest.raises(offloop.InvalidError, match="read by this very thread"):
                wait()
        assert future.done()
        assert not future.cancelled()
        assert not future.cancel()
        assert future._state == "FINISHED"
        assert "finished" in repr(future)
        assert cf.wait([future], timeout=30).done == {future}
        future.add_done_callback(seen.append)
        return 5

    on_read["look"] = look
    future = done(processes.submit(told, "look"))
    assert future.result(LIMIT) == 5
    assert seen == [future]


def test_a_signal_handler_that_asks_for_what_is_read_does_not_hang(processes):
    raised: list[BaseException] = []

    def handler(*_: Any) -> None:
        try:
            future.result(timeout=1)
        except BaseException as e:
            raised.append(e)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        on_read["once"] = interrupts_once(number=signal.SIGUSR1)
        future = done(processes.submit(told, "once"))
        assert future.result(LIMIT) == 5
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(e) for e in raised] == [offloop.InvalidError]


def test_a_result_that_is_read_long_holds_up_nobody_elses_end(processes, tmp_path):
    """`offloop-results` tells who waits: for others at once, for this one when it was read."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    first, second, third = threading.Event(), threading.Event(), threading.Event()
    came: list[bool] = []

    def hold_the_teller() -> int:
        first.set()
        came.append(second.wait(LIMIT))
        return 1

    def read_here() -> int:
        assert threading.current_thread() is threading.main_thread()
        second.set()
        # It comes behind this one.
        came.append(third.wait(LIMIT))
        came.append(waits_for_read.done())
        return 2

    on_read.update(teller=hold_the_teller, here=read_here)
    with offloop.ProcessPool(max_workers=1) as pool, cf.ThreadPoolExecutor() as threads:
        teller = pool.submit(told_after, gate, "teller")
        here, behind = pool.submit(told, "here"), pool.submit(abs, -3)
        waits: list[cf.Future[Any]] = []
        for future in (teller, here, behind):
            _ = future._condition
            waits.append(threads.submit(cf.wait, [future], LIMIT))
            while not future._waiters:
                pass
        waits_for_read = waits[1]
        waits[2].add_done_callback(lambda _: third.set())
        with open(gate, "w"):
            pass
        assert first.wait(LIMIT)
        assert here.result(LIMIT) == 2
        assert came == [True, True, False]
        assert [w.result(LIMIT).not_done for w in waits] == [set(), set(), set()]


def test_a_child_that_is_forked_while_another_thread_reads_has_no_result(processes):
    future = done(processes.submit(told, "held"))
    held = Held(future, "held")
    child = os.fork()
    if child == 0:
        try:
            future.cancelled()
            future.result(30)
        except offloop.ForkedError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert held.end() == 5


# ---- no memory, and bugs ----


def test_a_panic_while_a_result_is_read_is_its_outcome(processes):
    on_read["panics"] = panics
    future = processes.submit(told, "panics")
    for _ in range(2):
        with pytest.raises(offloop.PanicError, match="broken"):
            future.result(LIMIT)
    assert isinstance(future.exception(0), offloop.PanicError)

    async def main() -> None:
        with pytest.raises(offloop.PanicError, match="broken"):
            await asyncio.wait_for(processes.run(told, "panics"), LIMIT)
        assert await processes.run(abs, -1) == 1

    asyncio.run(main())


TOO_LONG = """
import asyncio, resource, offloop

def text(n):
    return "x" * n

def raw(n):
    return b"x" * n

def many(n):
    return [b"x" * n, "x" * n]

def texts(n):
    yield "x" * n

async def awaits(pool, function, n):
    return await pool.run(function, n)

def tried(get):
    try:
        return f"came: {len(get())}"
    except (MemoryError, offloop.OsError) as e:
        return "no memory" if "len=" in str(e) else repr(e)

def main():
    pool = offloop.ProcessPool(max_workers=1)
    assert pool.submit(text, 3).result() == "xxx"
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20), -1))
    # No copy of the first has room, and no second one of the other.
    for n in (200 << 20, 100 << 20):
        for function in (text, raw, many):
            future = pool.submit(function, n)
            print(tried(future.result))
            print(tried(future.result))
            print(tried(lambda: asyncio.run(awaits(pool, function, n))))
        print(tried(lambda: next(pool.stream(texts, n))))
    assert pool.submit(text, 3).result() == "xxx"
    pool.shutdown()

if __name__ == "__main__":
    main()
"""


def test_a_reply_that_there_is_no_memory_for_is_an_error_of_its_task(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(TOO_LONG)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=240, env={"PYTHONPATH": str(PACKAGE)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["no memory"] * 20
