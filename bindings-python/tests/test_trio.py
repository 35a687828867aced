"""Pools under trio, and under anyio on both of its backends."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import offloop
import pytest
import trio

BACKENDS = ["trio", "asyncio"]


def inc(n: int) -> int:
    return n + 1


def fail(kind: str) -> None:
    raise {"lookup": LookupError, "stop": StopIteration}[kind](kind)


def slow(n: int) -> int:
    time.sleep(0.02 * (3 - n))
    return n


def watched(path: str) -> None:
    task = offloop.current_task()
    assert task is not None
    Path(path).touch()
    while not task.cancelled():
        time.sleep(0.001)
    Path(path + ".saw").touch()


def count(n: int) -> Iterator[int]:
    yield from range(n)


@pytest.fixture(scope="module", params=["ThreadPool", "ProcessPool"])
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    with getattr(offloop, request.param)(max_workers=2) as pool:
        yield pool


def run(main: Callable[[], Any], backend: str = "trio") -> None:
    async def limited() -> None:
        with anyio.fail_after(60):
            await main()

    anyio.run(limited, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_run_returns_what_the_function_does(pool: Any, backend: str) -> None:
    async def main() -> None:
        assert await pool.run(inc, 1) == 2
        assert await pool.run(math.gcd, 12, 18) == 6
        assert await pool.options(timeout=30).run(inc, 1) == 2
        assert await pool.submit(inc, 2) == 3
        done = pool.submit(inc, 3)
        done.result(60)
        assert await done == 4
        with pytest.raises(LookupError, match="lookup"):
            await pool.run(fail, "lookup")
        results = []

        async def one(n: int) -> None:
            results.append(await pool.run(inc, n))

        async with anyio.create_task_group() as group:
            for i in range(500):
                group.start_soon(one, i)
        assert sorted(results) == list(range(1, 501))

    run(main, backend)


def test_ops_run_too() -> None:
    async def main() -> None:
        with offloop.ThreadPool(max_workers=1) as pool:
            assert await pool.run("crc32", b"hello") == 907060870
            assert await pool.run("crc32", bytearray(8 << 20)) == await pool.run("crc32", bytes(8 << 20))

    run(main)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelling_an_await_stops_the_function(pool: Any, tmp_path: Path, backend: str) -> None:
    path = str(tmp_path / "started")

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.options(timeout=60).run, watched, path)
            while not os.path.exists(path):
                await anyio.sleep(0.002)
            group.cancel_scope.cancel()
        while not os.path.exists(path + ".saw"):
            await anyio.sleep(0.002)
        with anyio.move_on_after(0) as scope:
            await anyio.sleep(0)
            await pool.run(inc, 1)
        assert scope.cancelled_caught
        assert await pool.run(inc, 1) == 2

    run(main, backend)


def test_a_call_in_a_cancelled_scope_is_not_run() -> None:
    ran = threading.Event()
    gate = threading.Event()

    async def main(pool: offloop.ThreadPool) -> None:
        pool.submit(gate.wait)
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.run(ran.set)
        assert scope.cancelled_caught

    with offloop.ThreadPool(max_workers=1) as pool:
        trio.run(main, pool)
        gate.set()
    assert not ran.is_set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_amap_yields_results_in_order_or_as_they_come(pool: Any, backend: str) -> None:
    async def items() -> AsyncIterator[int]:
        for i in range(3000):
            if i % 100 == 0:
                await anyio.sleep(0)
            yield i

    async def main() -> None:
        assert [i async for i in pool.amap(inc, range(3000))] == list(range(1, 3001))
        assert [i async for i in pool.amap(inc, items())] == list(range(1, 3001))
        async with contextlib.aclosing(items()) as rest:
            assert [i async for i in pool.amap(math.gcd, range(10), rest)] == list(range(10))
        assert sorted([i async for i in pool.amap(inc, items(), ordered=False)]) == list(range(1, 3001))
        assert [i async for i in pool.amap(slow, range(3))] == [0, 1, 2]
        assert {i async for i in pool.amap(slow, range(3), ordered=False)} == {0, 1, 2}
        assert [i async for i in pool.amap(inc, [])] == []

    run(main, backend)


@pytest.mark.parametrize("ordered", [True, False])
def test_errors_of_amap_come_where_they_are(pool: Any, ordered: bool) -> None:
    def bad() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("the source")

    async def main() -> None:
        got = []
        with pytest.raises(LookupError, match="the source"):
            async for i in pool.amap(inc, bad(), ordered=ordered):
                got.append(i)
        assert sorted(got) == [2, 3]
        with pytest.raises(LookupError, match="lookup"):
            async for _ in pool.amap(fail, ["lookup"], ordered=ordered):
                pass
        with pytest.raises(offloop.TimeoutError, match="not there yet"):
            async for _ in pool.amap(time.sleep, [0, 1], timeout=0.2, ordered=ordered):
                pass

    run(main)


def test_leaving_amap_cancels_what_is_in_flight_and_reads_no_further() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(1_000_000):
            read.append(i)
            yield i

    async def main(pool: offloop.ThreadPool) -> None:
        results = pool.amap(inc, items())
        async for i in results:
            if i == 5:
                break
        # Whoever reads slowly is read for slowly.
        await trio.sleep(0.3)
        assert len(read) < 5000
        await results.aclose()  # type: ignore[attr-defined]
        so_far = len(read)
        await trio.sleep(0.05)
        assert len(read) <= so_far + 1 < 10_000

    with offloop.ThreadPool(max_workers=1) as pool:
        trio.run(main, pool)


@pytest.mark.parametrize("backend", BACKENDS)
def test_async_with_shuts_down_without_holding_the_loop(backend: str) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.001)
                ticks += 1

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            async with offloop.ProcessPool(max_workers=1) as pool:
                future = pool.submit(slow, -7)
            assert future.result(0) == -7
            group.cancel_scope.cancel()
        assert ticks > 10

    run(main, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_are_read(backend: str) -> None:
    async def main() -> None:
        with offloop.ProcessPool(max_workers=1) as pool:
            assert [i async for i in pool.stream(count, 5000)] == list(range(5000))
            async with pool.stream(count, 1 << 60) as stream:
                assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
            with anyio.move_on_after(0.05):
                async for _ in pool.stream(count, 1 << 60):
                    await anyio.sleep(0)
            assert await pool.run(inc, 1) == 2

    run(main, backend)


def test_a_run_that_is_over_is_not_told() -> None:
    gate = threading.Event()
    with offloop.ThreadPool(max_workers=1) as pool:

        async def main() -> None:
            async def wait() -> None:
                await pool.run(gate.wait)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

        trio.run(main)
        gate.set()
        assert pool.submit(inc, 1).result(60) == 2
