"""The `trace` hook: what it is told of the tasks of each kind of pool."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import os
import signal
import sys
import threading
import time
import weakref

import offloop
import pytest

PAUSE = 0.02
who = contextvars.ContextVar("who", default="nobody")


def pause(seconds=PAUSE):
    time.sleep(seconds)
    return seconds


def fail():
    raise ValueError("of the task")


def count(n):
    yield from range(n)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def until(condition):
    """Waits for what has no event; without end is a failure."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Slow:
    """A callable whose name can be told only when the pool has nothing to do: after a submit, when it has run."""

    pool = None

    def __call__(self, *args):
        return list(args)

    def __getattr__(self, name):
        if name == "__qualname__" and self.pool is not None:
            until(lambda: (stats := self.pool.stats).queued + stats.running == 0)
            return "slow"
        raise AttributeError(name)


class Told:
    """A hook that keeps what it was told, and in which context."""

    def __init__(self):
        self.all = []
        self._more = threading.Condition()

    def __call__(self, task):
        with self._more:
            self.all.append((task, who.get()))
            self._more.notify_all()

    def first(self, n):
        """The first `n`, by their ids."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.all) >= n, 60), self.all
            return sorted((task for task, _ in self.all), key=lambda task: task.id)[:n]


@pytest.fixture(params=["ops", "callables", "processes"])
def kind(request):
    return request.param


def open_pool(kind, **options):
    return offloop.ProcessPool(1, **options) if kind == "processes" else offloop.ThreadPool(1, **options)


def waiting(kind, seconds):
    """A call that takes so long, and what it is called."""
    return (("noop",), {"sleep_ms": int(seconds * 1000)}, "noop") if kind == "ops" else ((pause, seconds), {}, "pause")


def failing(kind):
    return ("gunzip", b"no gzip") if kind == "ops" else (fail,)


def test_a_task_is_told_of_once_with_its_times_in_a_copy_of_its_submitters_context(kind):
    told = Told()
    args, kwargs, name = waiting(kind, PAUSE)
    with open_pool(kind, trace=told) as pool:
        pool.submit(*waiting(kind, 0)[0]).result()
        before, clock = time.time(), time.monotonic()
        futures = []
        for one in ("a", "b"):
            who.set(one)
            futures.append(pool.submit(*args, **kwargs))
        who.set("somebody else")
        for future in futures:
            future.result()
        took, after = time.monotonic() - clock, time.time()
        first, a, b = told.first(3)
    assert [task.id for task, _ in told.all] == [first.id, a.id, b.id] == [1, 2, 3]
    assert [context for _, context in told.all[1:]] == ["a", "b"]
    pool_name = "processes" if kind == "processes" else "pool"
    for task in (a, b):
        assert (task.pool, task.name, task.outcome, task.worker, task.error) == (pool_name, name, "completed", 0, None)
        assert task.run_time >= PAUSE
        assert task.queue_time >= 0
        assert task.queue_time + task.run_time <= took
        assert before - 0.001 <= task.submitted
        assert task.submitted + task.queue_time + task.run_time <= after + 0.001
    # A millisecond for a wall clock that is slewed.
    assert b.submitted + b.queue_time >= a.submitted + PAUSE - 0.001, "one after the other"


def test_a_task_is_told_of_however_it_ends_with_its_error(kind):
    told = Told()
    args, kwargs, _ = waiting(kind, 0.3)
    options = {"cancel_grace": 0.01} if kind == "processes" else {}
    with open_pool(kind, trace=told, **options) as pool:
        failed = pool.submit(*failing(kind))
        late = pool.options(timeout=0.03).submit(*args, **kwargs)
        with pytest.raises(offloop.TimeoutError):
            late.result()
        running = pool.submit(*args, **kwargs)
        queued = pool.submit(*args, **kwargs)
        until(running.running)
        assert queued.kill()
        assert running.kill()
        tasks = told.first(4)
        assert [task.outcome for task in tasks] == ["failed", "timeout", "cancelled", "cancelled"]
        assert [task.error for task in tasks[:2]] == [failed.exception(), late.exception()]
        assert all(isinstance(task.error, offloop.CancelledError) for task in tasks[2:])
        assert tasks[1].run_time >= 0.03
        assert (tasks[3].run_time, tasks[3].worker) == (0, None)
        if kind == "processes":
            lost = pool.submit(die)
            assert isinstance(lost.exception(), offloop.WorkerLostError)
            task = told.first(5)[4]
            assert (task.outcome, task.error) == ("lost", lost.exception())
    assert len(told.all) == (5 if kind == "processes" else 4)


def test_many_and_mapped_calls_are_told_of_each(kind):
    told = Told()
    call, items = ("crc32", [b"a", b"b", b"c"]) if kind == "ops" else (len, ["a", "bb", "ccc"])
    with open_pool(kind, trace=told) as pool:
        for future in pool.submit_many(call, items):
            future.result()
        assert len(list(pool.map(call, items))) == 3
        assert [task.name for task in told.first(6)] == ["crc32" if kind == "ops" else "len"] * 6
        if kind == "processes":
            assert pool.broadcast(os.getpid)
            assert told.first(7)[6].name == "getpid"
            assert list(pool.stream(count, 3)) == [0, 1, 2]
            with pytest.raises(ValueError, match="of the task"):
                list(pool.stream(fail))
            assert [(task.name, task.outcome) for task in told.first(9)[7:]] == [("count", "completed"), ("fail", "failed")]


def test_awaited_tasks_are_told_of_on_the_loop_in_a_copy_of_the_callers_context(kind):
    told = Told()
    threads = []

    def hook(task):
        threads.append(threading.get_ident())
        told(task)

    args, kwargs, name = waiting(kind, PAUSE)

    async def main():
        async with open_pool(kind, trace=hook) as pool:
            await pool.run(*waiting(kind, 0)[0])

            async def one(value):
                who.set(value)
                return await pool.run(*args, **kwargs)

            await asyncio.gather(one("a"), one("b"))
            # Before the code that awaits goes on.
            assert len(told.all) == 3
            with pytest.raises((offloop.OffloopError, ValueError)) as raised:
                await pool.run(*failing(kind))
            assert told.first(4)[3].error is raised.value

    asyncio.run(main())
    assert set(threads) == {threading.get_ident()}
    assert [context for _, context in told.all[1:3]] == ["a", "b"]
    assert [(task.name, task.outcome) for task in told.first(3)] == [(name, "completed")] * 3
    assert told.first(4)[3].outcome == "failed"


def test_an_await_that_is_cancelled_is_told_of_though_the_loop_ends_with_it(kind):
    told = Told()
    args, kwargs, _ = waiting(kind, 0.2)
    pool = open_pool(kind, trace=told, **({"cancel_grace": 0.01} if kind == "processes" else {}))

    async def main():
        await asyncio.wait_for(pool.run(*args, **kwargs), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    [(task, _)] = told.all
    assert task.outcome == "cancelled"
    assert isinstance(task.error, asyncio.CancelledError)
    pool.shutdown()
    assert len(told.all) == 1


def test_a_hook_that_raises_is_logged_and_the_tasks_have_their_results(kind, caplog):
    def hook(task):
        raise RuntimeError("of the hook")

    caplog.set_level(logging.ERROR, "offloop")
    with open_pool(kind, trace=hook) as pool:
        pool.submit(*waiting(kind, 0)[0]).result()
        assert asyncio.run(pool.run(*waiting(kind, 0)[0])) == (b"" if kind == "ops" else 0)
    until(lambda: len(caplog.records) == 2)
    assert [record.message for record in caplog.records] == [
        f"the trace hook of pool '{'processes' if kind == 'processes' else 'pool'}' failed"
    ] * 2
    assert str(caplog.records[0].exc_info[1]) == "of the hook"


def test_names_are_those_of_the_callables():
    class Call:
        def __call__(self):
            pass

    told = Told()
    with offloop.ThreadPool(1, "mine", trace=told) as pool:
        for call in (functools.partial(functools.partial(len), b"x"), Call(), lambda: 1):
            pool.submit(call).result()
        pool.options(priority=1).submit("crc32", b"").result()
        names = [task.name.rsplit(".", 1)[-1] for task in told.first(4)]
    assert names == ["len", "Call", "<lambda>", "crc32"]
    assert {task.pool for task in told.first(4)} == {"mine"}


def test_refused_calls_are_not_told_of(kind):
    told = Told()
    pool = open_pool(kind, trace=told)
    with pool:
        pool.submit(*waiting(kind, 0)[0]).result()
    with pytest.raises(offloop.ClosedError):
        pool.submit(*waiting(kind, 0)[0])
    told.first(1)
    assert len(told.all) == 1


def test_a_hook_is_a_callable_that_needs_no_loop():
    async def hook(task):
        pass

    for make in (offloop.ThreadPool, offloop.ProcessPool):
        with pytest.raises(TypeError, match="trace must be a callable"):
            make(1, trace="console")
        with pytest.raises(offloop.InvalidError, match="option=trace"):
            make(1, trace=hook)


def test_a_pool_that_its_hook_refers_to_is_collected(kind):
    class Owner:
        def __init__(self):
            self.pool = open_pool(kind, trace=self.hook)

        def hook(self, task):
            pass

    owner = Owner()
    owner.pool.submit(*waiting(kind, 0)[0]).result()
    owner.pool.shutdown()
    gone = weakref.ref(owner)
    del owner
    # The thread that calls the hook may be about to return from it.
    until(lambda: gc.collect() >= 0 and gone() is None)


@pytest.mark.parametrize(
    ("kind", "how"),
    [("callables", "submit"), ("processes", "submit"), ("processes", "submit_many"), ("processes", "stream"), ("processes", "broadcast")],
)
def test_a_hook_that_wants_to_end_the_program_takes_no_future_away(kind, how, monkeypatch):
    def hook(task):
        raise SystemExit(task.name)

    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: heard.append(told.exc_value.code))
    with open_pool(kind, trace=hook) as pool:
        monkeypatch.setattr(Slow, "pool", pool)
        if how == "submit":
            got = [pool.submit(Slow(), 1).result(60)]
        elif how == "submit_many":
            got = [future.result(60) for future in pool.submit_many(Slow(), [1, 1])]
        elif how == "stream":
            got = [list(pool.stream(Slow(), 1))]
        else:
            got = pool.broadcast(Slow(), 1)
    want = [1] if how == "stream" else [[1], [1]] if how == "submit_many" else [[1]]
    assert got == ([want] if how == "stream" else want)
    assert heard == ["slow"] * len(want)


def test_chunks_of_a_map_have_the_name_of_the_function():
    told = Told()
    with offloop.ProcessPool(1, trace=told) as pool:
        assert list(pool.map(pause, [0] * 5, chunksize=2)) == [0] * 5
        assert list(pool.map(functools.partial(pow, 2), [1, 2], chunksize=2)) == [2, 4]
        assert [task.name for task in told.first(4)] == ["pause", "pause", "pause", "pow"]
