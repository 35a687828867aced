"""ProcessPool: `async def` functions, which a worker runs to their end."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import offloop
import pytest

PACKAGE = Path(offloop.__file__).parent.parent
seen: contextvars.ContextVar[int] = contextvars.ContextVar("seen", default=0)


@pytest.fixture(scope="module")
def processes() -> Iterator[offloop.ProcessPool]:
    with offloop.ProcessPool(max_workers=1) as pool:
        yield pool


async def double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


class Doubler:
    async def __call__(self, n: int) -> int:
        return await double(n)


def made(n: int) -> Any:
    """No `async def` itself."""
    return double(n)


async def fail(text: str) -> None:
    await asyncio.sleep(0)
    raise LookupError(text)


async def cancel_itself() -> None:
    raise asyncio.CancelledError("of its own")


async def leave() -> None:
    raise SystemExit(3)


async def loop_and_variable() -> tuple[int, int]:
    before = seen.get()
    seen.set(before + 1)
    return id(asyncio.get_running_loop()), before


kept: list[asyncio.Queue[int]] = []


async def keep() -> None:
    kept.append(asyncio.Queue())
    # The queue is of this loop from here on.
    getter = asyncio.ensure_future(kept[0].get())
    await asyncio.sleep(0)
    kept[0].put_nowait(5)
    await getter


async def use_kept() -> int:
    getter = asyncio.ensure_future(kept[0].get())
    await asyncio.sleep(0)
    kept[0].put_nowait(6)
    return await getter


async def meet(path: str, mine: str, other: str) -> int:
    (Path(path) / mine).touch()
    while not (Path(path) / other).exists():
        await asyncio.sleep(0.001)
    return id(asyncio.get_running_loop())


async def several(n: int) -> list[int]:
    return list(range(n))


async def inner(path: str) -> AsyncIterator[int]:
    try:
        while True:
            yield 1
    finally:
        Path(path).touch()


async def first_of_inner(path: str) -> int:
    async for one in inner(path):
        return one
    raise AssertionError


async def wait_for_end(path: str) -> None:
    try:
        await asyncio.sleep(600)
    finally:
        Path(path).write_text("ended")


async def leave_a_task(path: str) -> None:
    kept_tasks.append(asyncio.ensure_future(wait_for_end(path)))
    await asyncio.sleep(0)


kept_tasks: list[asyncio.Task[None]] = []


async def watched(path: str) -> str:
    task = offloop.current_task()
    assert task is not None
    Path(path).touch()
    while not task.cancelled():
        await asyncio.sleep(0.001)
    return "saw it"


async def through_a_thread() -> int:
    return await asyncio.to_thread(os.getpid)


def fork() -> None:
    """Comes back twice; the worker ends the child."""
    if child := os.fork():
        os.waitpid(child, 0)


async def hang(path: str) -> None:
    Path(path).touch()
    await asyncio.sleep(600)


@pytest.mark.parametrize("fn", [double, Doubler(), made], ids=["function", "object", "wrapper"])
def test_a_coroutine_is_run_to_its_end(processes: offloop.ProcessPool, fn: Any) -> None:
    assert processes.submit(fn, 3).result(60) == 6
    assert processes.submit(fn, n=4).result(60) == 8
    assert list(processes.map(fn, range(3))) == [0, 2, 4]
    assert list(processes.map(fn, range(5), chunksize=2)) == [0, 2, 4, 6, 8]

    async def main() -> None:
        assert await processes.run(fn, 5) == 10
        assert [n async for n in processes.amap(fn, range(3))] == [0, 2, 4]

    asyncio.run(main())


def test_what_a_coroutine_raises_is_raised(processes: offloop.ProcessPool) -> None:
    with pytest.raises(LookupError, match="no row") as caught:
        processes.submit(fail, "no row").result(60)
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(asyncio.CancelledError):
        processes.submit(cancel_itself).result(60)
    with pytest.raises(SystemExit):
        processes.submit(leave).result(60)
    assert processes.submit(double, 1).result(60) == 2


def test_a_thread_keeps_its_loop_and_each_call_has_its_own_variables(processes: offloop.ProcessPool) -> None:
    calls = [processes.submit(loop_and_variable).result(60) for _ in range(3)]
    assert len({loop for loop, _ in calls}) == 1
    assert [before for _, before in calls] == [0, 0, 0]
    processes.submit(keep).result(60)
    assert processes.submit(use_kept).result(60) == 6


def test_tasks_at_once_have_loops_of_their_own(tmp_path: Path) -> None:
    with offloop.ProcessPool(1, concurrency=2) as pool:
        futures = [pool.submit(meet, str(tmp_path), *names) for names in (("a", "b"), ("b", "a"))]
        assert len({f.result(60) for f in futures}) == 2


def test_a_stream_takes_what_a_coroutine_returns(processes: offloop.ProcessPool) -> None:
    assert list(processes.stream(several, 100)) == list(range(100))


def test_a_generator_that_a_coroutine_drops_is_closed(processes: offloop.ProcessPool, tmp_path: Path) -> None:
    assert processes.submit(first_of_inner, str(tmp_path / "closed")).result(60) == 1
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_what_is_left_on_a_loop_is_cancelled_at_the_end_of_the_worker(tmp_path: Path, concurrency: int) -> None:
    with offloop.ProcessPool(1, concurrency=concurrency) as pool:
        pool.submit(leave_a_task, str(tmp_path / "left")).result(60)
        assert not (tmp_path / "left").exists()
    assert (tmp_path / "left").read_text() == "ended"


def test_a_child_that_a_function_forks_leaves_the_loop_as_it_is() -> None:
    with offloop.ProcessPool(1) as pool:
        worker = pool.submit(through_a_thread).result(60)
        pool.submit(fork).result(60)
        assert pool.options(timeout=30).submit(through_a_thread).result(60) == worker


def await_start(future: offloop.Future[Any], path: Path) -> None:
    while not path.exists():
        assert not future.done(), future.exception()
        time.sleep(0.001)


def test_a_coroutine_sees_that_it_was_killed_or_ends_with_its_worker(tmp_path: Path) -> None:
    with offloop.ProcessPool(1, cancel_grace=60) as pool:
        future = pool.submit(watched, str(tmp_path / "watched"))
        await_start(future, tmp_path / "watched")
        future.kill()
        assert pool.submit(double, 1).result(60) == 2
        assert pool.stats.lost == 0
    with offloop.ProcessPool(1, cancel_grace=0) as pool:
        future = pool.submit(hang, str(tmp_path / "hang"))
        await_start(future, tmp_path / "hang")
        future.kill()
        assert pool.submit(double, 1).result(60) == 2


def test_exports_of_another_program_may_be_coroutines(tmp_path: Path) -> None:
    script = tmp_path / "scoring.py"
    script.write_text(
        "import asyncio\n"
        "async def double(n):\n    await asyncio.sleep(0)\n    return {'n': 2 * n}\n"
        "async def fail():\n    raise LookupError('no row')\n"
        "async def several(n):\n    return list(range(n))\n"
    )
    command = [sys.executable, "-m", "offloop.worker", str(script)]
    with offloop.ProcessPool(1, command=command, env={"PYTHONPATH": str(PACKAGE)}) as pool:
        assert pool.submit("double", 3).result(60) == {"n": 6}
        with pytest.raises(offloop.TaskFailedError, match="no row"):
            pool.submit("fail").result(60)
        assert list(pool.stream("several", 3)) == [0, 1, 2]
