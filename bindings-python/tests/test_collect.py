"""What a pool was given may refer to the pool: the collector frees both."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import offloop
import pytest


class Holder:
    """Something that a cycle goes through."""


def by_its_context():
    holder = Holder()
    holder.pool = offloop.ThreadPool(1, context=holder)
    return holder


def with_idle_threads():
    holder = by_its_context()
    assert holder.pool.submit(abs, -1).result() == 1
    assert holder.pool.submit("noop").result() == b""
    return holder


def by_a_view():
    holder = Holder()
    holder.pool = offloop.ThreadPool(1, context=holder).options(priority=1)
    holder.pool.submit(abs, -1).result()
    return holder


def by_its_initializer():
    class Own(offloop.ThreadPool):
        def __init__(self):
            super().__init__(1, initializer=self.prepare, initargs=(self,))

        def prepare(self, _):
            pass

    pool = Own()
    pool.submit(abs, -1).result()
    return pool


def by_a_task_that_was_kept():
    holder = by_its_context()
    holder.task = holder.pool.submit(offloop.current_task).result()
    assert holder.task.context is holder
    return holder


def by_an_exception_that_nobody_asked_for():
    holder = Holder()
    holder.pool = offloop.ThreadPool(1)

    def fail(_holder):
        raise ValueError

    holder.future = holder.pool.submit(fail, holder)
    while not holder.future.done():
        time.sleep(0.001)
    holder.pool.submit(abs, -1).result()  # the worker has let go of the first
    return holder


def by_a_ticket():
    holder = by_its_context()
    holder.ticket = holder.pool._accept()
    return holder


def by_an_awaitable_of_a_callable():
    holder = by_its_context()

    async def main():
        holder.awaitable = holder.pool._start(abs, -1)
        assert await holder.awaitable == 1

    asyncio.run(main())
    return holder


def by_a_claim():
    holder = Holder()
    producer = offloop.RingBuffer.create("spsc", capacity=1 << 16).producer()
    holder.claim = producer.claim(8)
    holder.wake = lambda: holder
    producer._park(holder, holder.wake)
    return holder


@pytest.mark.parametrize(
    "make",
    [
        by_its_context,
        with_idle_threads,
        by_a_view,
        by_its_initializer,
        by_a_task_that_was_kept,
        by_an_exception_that_nobody_asked_for,
        by_a_ticket,
        by_an_awaitable_of_a_callable,
        by_a_claim,
    ],
    ids=lambda make: make.__name__,
)
def test_a_cycle_is_collected(make):
    gone = weakref.ref(make())
    gc.collect()
    assert gone() is None


class Waiter:
    """As the stdlib's `wait` leaves one."""

    def __init__(self, holder):
        self.holder = holder

    def add_result(self, future):
        pass


def of_a_process_by(way):
    """A future of a process pool, which the collector does not know from the beginning, in a cycle."""
    holder = Holder()
    with offloop.ProcessPool(1) as pool:
        if way == "waiters":
            holder.future = pool.submit(int)
            holder.future._waiters.append(Waiter(holder))
        elif way == "result":
            holder.future = pool.submit(list, "ab")
            holder.future.result().append(holder)
        else:
            holder.future = pool.submit(int, "x")
            holder.future.exception().holder = holder
    return holder


@pytest.mark.parametrize("way", ["waiters", "result", "exception"])
def test_a_cycle_by_a_future_of_a_process_is_collected(way):
    gone = weakref.ref(of_a_process_by(way))
    gc.collect()
    assert gone() is None


def test_a_pool_that_nobody_holds_lives_until_its_callables_ran(gate):
    holder = Holder()
    holder.pool = offloop.ThreadPool(1, context=holder)
    first = holder.pool.submit(gate.wait)
    second = holder.pool.submit(lambda: offloop.current_task().context)
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is not None
    gate.set()
    assert first.result()
    assert second.result() is gone()
    del first, second
    gc.collect()
    assert gone() is None
