"""ProcessPool.stream: what generators in a worker yield."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import offloop
import pytest

PACKAGE = Path(offloop.__file__).parent.parent


@pytest.fixture(scope="module")
def processes() -> Iterator[offloop.ProcessPool]:
    with offloop.ProcessPool(max_workers=2) as pool:
        yield pool


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Runs a program from a file, which is to end well and in silence on stderr, and gives what it prints."""

    def run(text: str) -> str:
        script = tmp_path / "program.py"
        script.write_text(text)
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(PACKAGE)})
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def eventually(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.002)


# ---- what workers run ----


def inc(n: int) -> int:
    return n + 1


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def count_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        if i % 10 == 0:
            await asyncio.sleep(0)
        yield i


def give(*values: Any) -> list[Any]:
    return list(values)


def arrays(n: int, length: int) -> Iterator[Any]:
    for i in range(n):
        yield np.full(length, i)


def then_fail(n: int) -> Iterator[int]:
    yield from range(n)
    raise LookupError("no more")


async def then_fail_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i
    raise LookupError("no more")


def then_end(n: int) -> Iterator[int]:
    yield from range(n)
    time.sleep(0.3)
    os._exit(7)


def then_unpicklable() -> Iterator[Any]:
    yield 1
    yield threading.Lock()


def returns(n: int) -> Any:
    yield from range(n)
    return "the end", n


def endless(path: str) -> Iterator[int]:
    """Writes down how far it came when it ends."""
    i = 0
    try:
        while True:
            yield i
            i += 1
    finally:
        Path(path).write_text(str(i))


async def endless_async(path: str) -> AsyncIterator[int]:
    i = 0
    try:
        while True:
            yield i
            i += 1
    finally:
        await asyncio.sleep(0)
        Path(path).write_text(str(i))


def burst_and_pause(path: str) -> Iterator[int]:
    yield from range(10)
    while not os.path.exists(path):
        time.sleep(0.005)
    yield 10


def block(path: str, values: int) -> Iterator[int]:
    """Gives so many values and then none for long; `path` has its process once it gives no more."""
    yield from range(values)
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
    yield values


async def block_async(path: str, values: int) -> AsyncIterator[int]:
    for i in range(values):
        yield i
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
    yield values


def look(path: str) -> Iterator[int]:
    """Gives one value, and looks then whether anybody wants another."""
    yield 0
    task = offloop.current_task()
    assert task is not None
    while not task.cancelled():
        time.sleep(0.001)
    Path(path).write_text(str(os.getpid()))


def plain(n: int) -> int:
    return n


def progress_too(n: int) -> Iterator[int]:
    task = offloop.current_task()
    assert task is not None
    for i in range(n):
        task.progress(i)
        yield i


# ---- values ----


@pytest.mark.parametrize("fn", [count, count_async])
@pytest.mark.parametrize("n", [0, 1, 64, 65, 20_000])
def test_values_come_in_order_and_then_the_end(processes: offloop.ProcessPool, fn: Any, n: int) -> None:
    stream = processes.stream(fn, n)
    assert list(stream) == list(range(n))
    assert list(stream) == []


def test_values_of_every_kind_arrive_as_they_were_given(processes: offloop.ProcessPool) -> None:
    values = [None, True, 1, 2**70, 1.5, "ü", b"x" * 5000, (1, [2]), {"a": {3}}, np.arange(5.0), np.arange(100_000), b"", ()]
    back = list(processes.stream(give, *values))
    assert len(back) == len(values)
    for got, want in zip(back, values, strict=True):
        assert type(got) is type(want)
        assert np.array_equal(got, want) if isinstance(want, np.ndarray) else got == want


def test_arrays_are_writable_and_stay_as_they_are(processes: offloop.ProcessPool) -> None:
    kept = []
    for i, array in enumerate(processes.stream(arrays, 600, 3000)):
        assert (array == i).all()
        array += 1
        kept.append(array)
    assert all((array == i + 1).all() for i, array in enumerate(kept))


def test_what_a_generator_returns_is_the_value_of_the_end(processes: offloop.ProcessPool) -> None:
    def outer() -> Any:
        return (yield from processes.stream(returns, 3))

    steps = outer()
    assert [next(steps) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StopIteration) as ended:
        next(steps)
    assert ended.value.value == ("the end", 3)


def test_several_streams_and_tasks_go_at_once(processes: offloop.ProcessPool) -> None:
    with offloop.ProcessPool(max_workers=1, concurrency=3) as pool:
        for each in (processes, pool):
            one, two = each.stream(count, 3000), each.stream(count_async, 3000)
            assert list(zip(one, two, strict=True)) == [(i, i) for i in range(3000)]
        streams = [pool.stream(count, 3000), pool.stream(count_async, 3000)]
        assert next(streams[0]) == next(streams[1]) == 0
        assert pool.submit(inc, 1).result(60) == 2
        assert [sum(stream) for stream in streams] == [sum(range(3000))] * 2


# ---- async ----


def test_event_loops_read_streams(processes: offloop.ProcessPool) -> None:
    async def main() -> None:
        assert [i async for i in processes.stream(count, 5000)] == list(range(5000))
        assert [i async for i in processes.stream(count_async, 100)] == list(range(100))
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticker = asyncio.ensure_future(tick())
        async with processes.stream(count, 50_000) as stream:
            assert sum([i async for i in stream]) == sum(range(50_000))
        ticker.cancel()
        assert ticks > 100
        with pytest.raises(LookupError):
            async for _ in processes.stream(then_fail, 3):
                pass

    asyncio.run(main())
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_one_task_at_a_time_waits_and_a_cancelled_wait_closes_the_stream(processes: offloop.ProcessPool, tmp_path: Path) -> None:
    path = tmp_path / "go"

    async def main() -> None:
        stream = processes.stream(burst_and_pause, str(path))
        assert [await anext(stream) for _ in range(10)] == list(range(10))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        path.touch()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())


# ---- back-pressure ----


@pytest.mark.parametrize("fn", [endless, endless_async])
def test_a_function_waits_for_its_reader(processes: offloop.ProcessPool, tmp_path: Path, fn: Any) -> None:
    path = tmp_path / "ended"
    stream = processes.stream(fn, str(path))
    assert [next(stream) for _ in range(10)] == list(range(10))
    time.sleep(0.2)
    assert not path.exists()
    stream.close()
    eventually(path.exists)
    eventually(lambda: path.read_text() != "")
    assert 10 <= int(path.read_text()) < 1000


def test_values_do_not_wait_for_the_next_one(processes: offloop.ProcessPool, tmp_path: Path) -> None:
    path = tmp_path / "go"
    stream = processes.stream(burst_and_pause, str(path))
    # The function goes on only when all that it gave before has arrived.
    assert [next(stream) for _ in range(10)] == list(range(10))
    path.touch()
    assert list(stream) == [10]


def test_a_value_that_waits_for_room_holds_up_no_other_task_of_its_worker(program: Callable[[str], str]) -> None:
    program(
        "import numpy as np, offloop, resource, time\n"
        "LONG = 40 << 20\n"
        "def long():\n    return np.ones(LONG, 'u1')\n"
        "def go():\n    yield 'begin'\n    yield np.ones(LONG, 'u1')\n"
        "if __name__ == '__main__':\n"
        # With so little room for results, one of them is as much as there may be.
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 20, 100 << 20))\n"
        "    with offloop.ProcessPool(1, concurrency=2) as pool:\n"
        "        kept = pool.submit(long).result(60)\n"
        "        stream = pool.stream(go)\n"
        "        assert next(stream) == 'begin'\n"
        "        for _ in range(20):\n            pool.submit(time.sleep, 0.02).result(60)\n"
        "        assert not stream._native._future.done()\n"
        "        del kept\n"
        "        assert len(next(stream)) == LONG\n"
        "        assert list(stream) == []\n"
    )


# ---- ends ----


@pytest.mark.parametrize("fn", [endless, endless_async])
@pytest.mark.parametrize("how", ["close", "break", "with", "drop", "async break"])
def test_leaving_a_stream_runs_the_generators_finally(processes: offloop.ProcessPool, tmp_path: Path, fn: Any, how: str) -> None:
    path = tmp_path / "ended"

    def leave() -> None:
        if how == "break":
            for i in processes.stream(fn, str(path)):
                if i == 3:
                    break
            return
        stream = processes.stream(fn, str(path))
        if how == "with":
            with stream:
                next(stream)
            with pytest.raises(StopIteration):
                next(stream)
            return
        next(stream)
        if how == "close":
            stream.close()
            assert list(stream) == []

    async def leave_async() -> None:
        async for i in processes.stream(fn, str(path)):
            if i == 3:
                break

    if how == "async break":
        asyncio.run(leave_async())
    else:
        leave()
    gc.collect()
    eventually(path.exists)
    # Its worker is free, and was not ended.
    assert processes.stats.lost == 0
    assert processes.submit(inc, 1).result(60) == 2


def run_in(loop: str, main: Callable[[], Any]) -> None:
    if loop == "trio":
        pytest.importorskip("trio").run(main)
    elif loop == "anyio":
        pytest.importorskip("anyio").run(main, backend="asyncio")
    else:
        asyncio.run(main())


@pytest.fixture(scope="module")
def impatient() -> Iterator[offloop.ProcessPool]:
    with offloop.ProcessPool(max_workers=1, cancel_grace=0.05) as pool:
        yield pool


def blocked_process(path: Path) -> int:
    """The process of `block`, once it blocks."""
    eventually(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("fn", [block, block_async])
@pytest.mark.parametrize("values", [0, 1])
@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_leaving_a_stream_that_blocks_ends_its_worker_after_the_grace(
    impatient: offloop.ProcessPool, tmp_path: Path, fn: Any, values: int, how: str
) -> None:
    path = tmp_path / "blocks"

    def leave() -> int:
        stream = impatient.stream(fn, str(path), values)
        with stream if how == "with" else contextlib.nullcontext():
            assert [next(stream) for _ in range(values)] == list(range(values))
            pid = blocked_process(path)
        if how == "close":
            stream.close()
            assert list(stream) == []
        return pid

    pid = leave()
    gc.collect()
    assert impatient.submit(inc, 1).result(60) == 2
    eventually(lambda: is_gone(pid))


@pytest.mark.parametrize("loop", ["asyncio", "trio", "anyio"])
@pytest.mark.parametrize("how", ["aclose", "async with", "break", "cancel", "timeout"])
def test_leaving_a_stream_that_blocks_on_an_event_loop_ends_its_worker_after_the_grace(
    impatient: offloop.ProcessPool, tmp_path: Path, loop: str, how: str
) -> None:
    path = tmp_path / "blocks"
    stream: offloop.Stream | None = impatient.stream(block, str(path), 1)

    async def wait_too_long() -> None:
        assert stream is not None
        if loop == "asyncio":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
        else:
            with (sys.modules["trio"] if loop == "trio" else pytest.importorskip("anyio")).move_on_after(0.01):
                await anext(stream)
                raise AssertionError("there is no value")

    async def wait_and_be_cancelled() -> None:
        assert stream is not None
        if loop != "trio":
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return
        trio = sys.modules["trio"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, stream)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def main() -> None:
        nonlocal stream
        assert stream is not None
        if how == "break":
            async for value in stream:
                assert value == 0
                break
            blocked_process(path)
            stream = None
            return
        assert await anext(stream) == 0
        blocked_process(path)
        if how == "aclose":
            await stream.aclose()
        elif how == "async with":
            async with stream:
                pass
        elif how == "cancel":
            await wait_and_be_cancelled()
        else:
            await wait_too_long()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    if loop == "trio":
        pytest.importorskip("trio.testing")
    run_in(loop, main)
    assert impatient.submit(inc, 1).result(60) == 2
    eventually(lambda: is_gone(blocked_process(path)))


def test_a_function_hears_at_once_that_its_stream_was_closed(tmp_path: Path) -> None:
    path = tmp_path / "heard"
    with offloop.ProcessPool(max_workers=1, cancel_grace=600) as pool:
        with pool.stream(look, str(path)) as stream:
            assert next(stream) == 0
        pid = blocked_process(path)
        assert pool.submit(os.getpid).result(60) == pid, "its worker stays"


def test_close_wakes_whoever_waits_for_a_value(impatient: offloop.ProcessPool, tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    stream = impatient.stream(block, str(path), 0)
    ended: list[Any] = []
    reader = threading.Thread(target=lambda: ended.append(list(stream)))
    reader.start()
    blocked_process(path)
    time.sleep(0.05)
    stream.close()
    reader.join(60)
    assert ended == [[]]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_close_by_another_thread_wakes_a_task_that_waits(impatient: offloop.ProcessPool, tmp_path: Path, loop: str) -> None:
    path = tmp_path / "blocks"
    stream = impatient.stream(block, str(path), 0)

    def close() -> None:
        blocked_process(path)
        time.sleep(0.05)
        stream.close()

    async def main() -> None:
        threading.Thread(target=close).start()
        assert [i async for i in stream] == []

    run_in(loop, main)


@pytest.mark.parametrize("how", ["shutdown", "cancel_futures", "terminate", "async with"])
def test_the_end_of_a_pool_does_not_wait_for_a_stream_that_blocks(tmp_path: Path, how: str) -> None:
    path = tmp_path / "blocks"
    pool = offloop.ProcessPool(max_workers=1, cancel_grace=0.05)
    stream = pool.stream(block, str(path), 1)
    assert next(stream) == 0
    pid = blocked_process(path)
    if how == "terminate":
        pool.terminate()
    if how == "async with":

        async def main() -> None:
            async with pool:
                pass

        asyncio.run(main())
    else:
        pool.shutdown(cancel_futures=how == "cancel_futures")
    assert is_gone(pid)
    with pytest.raises(offloop.ClosedError, match="before this stream was read"):
        next(stream)


@pytest.mark.parametrize("end", ["", "del stream, pool", "stream.close()", "pool.shutdown(wait=False)"])
def test_a_program_ends_although_a_stream_blocks(program: Callable[[str], str], end: str) -> None:
    printed = program(
        "import offloop, os, time\n"
        "def go():\n    yield os.getpid()\n    time.sleep(600)\n    yield 1\n"
        f"if __name__ == '__main__':\n    pool = offloop.ProcessPool(1, cancel_grace=0.05)\n"
        f"    stream = pool.stream(go)\n    print(next(stream))\n    {end}\n"
    )
    assert is_gone(int(printed))


def test_a_stream_that_was_not_started_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "ended"
    with offloop.ProcessPool(max_workers=1) as pool:
        busy = pool.submit(time.sleep, 0.2)
        eventually(busy.running)
        pool.stream(endless, str(path)).close()
        busy.result(60)
        assert pool.submit(inc, 1).result(60) == 2
        assert not path.exists()


@pytest.mark.parametrize("fn", [then_fail, then_fail_async])
def test_an_error_comes_after_the_values_before_it(processes: offloop.ProcessPool, fn: Any) -> None:
    for n in (0, 1, 200):
        stream = processes.stream(fn, n)
        got = []
        with pytest.raises(LookupError, match="no more") as caught:
            for i in stream:
                got.append(i)
        assert got == list(range(n))
        assert fn.__name__ in str(caught.value.__cause__)
        assert list(stream) == [], "the error is told once"


def test_a_lost_worker_is_told_after_the_values_before_it() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        stream = pool.stream(then_end, 5)
        got = []
        with pytest.raises(offloop.WorkerLostError) as caught:
            for i in stream:
                got.append(i)
        assert (got, caught.value.exit_code) == (list(range(5)), 7)
        assert pool.submit(inc, 1).result(60) == 2


def test_a_value_that_cannot_travel_ends_the_stream(processes: offloop.ProcessPool) -> None:
    stream = processes.stream(then_unpicklable)
    assert next(stream) == 1
    with pytest.raises(offloop.UnserializableError, match="type=lock"):
        next(stream)


def test_a_function_that_gives_no_values_is_an_error(processes: offloop.ProcessPool) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(processes.stream(plain, 1))
    with pytest.raises(offloop.InvalidError, match="type=int"):
        processes.stream(3)


def test_a_timeout_ends_a_stream() -> None:
    with offloop.ProcessPool(max_workers=1, cancel_grace=10) as pool:
        stream = pool.options(timeout=0.2).stream(endless, os.devnull)
        with pytest.raises(offloop.TimeoutError):
            for _ in stream:
                time.sleep(0.01)
        assert pool.submit(inc, 1).result(60) == 2


def test_shutdown_does_not_wait_for_readers(tmp_path: Path) -> None:
    path = tmp_path / "ended"
    with offloop.ProcessPool(max_workers=1) as pool:
        stream = pool.stream(endless, str(path))
        assert next(stream) == 0
    assert path.exists()
    with pytest.raises(offloop.ClosedError, match="before this stream was read"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_program_that_leaves_a_stream_unread_ends(program: Callable[[str], str]) -> None:
    printed = program(
        "import itertools, offloop\n"
        "def go():\n    yield from itertools.count()\n"
        "if __name__ == '__main__':\n    pool = offloop.ProcessPool(1)\n    stream = pool.stream(go)\n    print(next(stream), next(stream))\n"
    )
    assert printed == "0 1\n"


def test_a_stream_keeps_its_pool() -> None:
    stream = offloop.ProcessPool(max_workers=1).stream(count, 5000)
    gc.collect()
    assert list(stream) == list(range(5000))


def test_a_forked_child_is_told(program: Callable[[str], str]) -> None:
    program(
        "import itertools, offloop, os\n"
        "def go():\n    yield from itertools.count()\n"
        "if __name__ == '__main__':\n"
        "    pool = offloop.ProcessPool(1)\n    stream = pool.stream(go)\n    assert next(stream) == 0\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n            next(stream)\n        except offloop.ForkedError:\n            os._exit(3)\n        os._exit(1)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3\n"
        "    assert [next(stream) for _ in range(100)] == list(range(1, 101))\n"
    )


def test_progress_and_values_go_side_by_side(processes: offloop.ProcessPool) -> None:
    assert list(processes.stream(progress_too, 100)) == list(range(100))


def test_exports_of_another_program_give_streams(tmp_path: Path) -> None:
    script = tmp_path / "scoring.py"
    script.write_text(
        "def count(n):\n    yield from range(n)\n"
        "def fail(n):\n    yield from range(n)\n    raise LookupError('no more')\n"
        "async def slowly(n):\n    for i in range(n):\n        yield {'i': i}\n"
    )
    command = [sys.executable, "-m", "offloop.worker", str(script)]
    with offloop.ProcessPool(1, command=command, env={"PYTHONPATH": str(PACKAGE)}) as pool:
        assert list(pool.stream("count", 1000)) == list(range(1000))
        assert list(pool.stream("slowly", 3)) == [{"i": 0}, {"i": 1}, {"i": 2}]
        stream, got = pool.stream("fail", 2), []
        with pytest.raises(offloop.TaskFailedError, match="no more"):
            for i in stream:
                got.append(i)
        assert got == [0, 1]
        with contextlib.closing(pool.stream("count", 1 << 60)) as stream:
            assert next(stream) == 0
        assert list(pool.stream("count", 3)) == [0, 1, 2]
