"""Future: the stdlib's protocol, and what goes beyond it."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import logging
import pickle
import sys
import threading
import traceback
import weakref

import offloop
import pytest


def test_result_is_the_same_object_every_time(pool):
    future = pool.submit("sha256", b"abc")
    assert future.result() is future.result()
    assert future.done()
    assert future.exception() is None
    assert not future.cancelled()
    assert not future.running()


def test_passes_for_a_future_of_the_stdlib(pool):
    future = pool.submit("noop")
    assert isinstance(future, cf.Future)
    assert type(future) is offloop.Future
    assert repr(future).startswith("<Future at 0x")


def test_a_timeout_of_the_wait_leaves_the_task_running(pool, gate):
    future = pool.submit(gate.wait)
    with pytest.raises(offloop.TimeoutError) as e:
        future.result(timeout=0.01)
    assert isinstance(e.value, cf.TimeoutError)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    assert not future.done()
    gate.set()
    assert future.result() is True


def test_a_negative_timeout_is_zero_and_nan_is_refused(pool, gate):
    future = pool.submit(gate.wait)
    with pytest.raises(TimeoutError):
        future.result(timeout=-1)
    with pytest.raises(offloop.InvalidError, match="NaN"):
        future.result(timeout=float("nan"))


def test_exceptions_come_back_whole(pool):
    def inner():
        raise KeyError("inner", 7)

    def outer():
        try:
            inner()
        except KeyError as e:
            e.add_note("a note")
            raise LookupError("outer") from e

    future = pool.submit(outer)
    with pytest.raises(LookupError, match="outer") as e:
        future.result()
    assert e.value is future.exception()
    assert e.value.__cause__.args == ("inner", 7)
    assert e.value.__cause__.__notes__ == ["a note"]
    assert "raise KeyError" in "".join(traceback.format_exception(e.value))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_base_exceptions_are_outcomes_and_the_worker_lives(pool, kind):
    def leave():
        raise kind(3)

    assert isinstance(pool.submit(leave).exception(), kind)
    assert pool.submit(pow, 2, 3).result() == 8


def test_cancel_stops_a_queued_task_only(gate):
    with offloop.ThreadPool(max_workers=1) as pool:
        running = pool.submit(gate.wait)
        while not running.running():
            threading.Event().wait(0.001)
        queued = pool.submit(pow, 2, 3)
        assert queued.cancel()
        assert queued.cancel()
        assert queued.cancelled()
        assert queued.done()
        with pytest.raises(offloop.CancelledError) as e:
            queued.result()
        assert isinstance(e.value, cf.CancelledError)
        with pytest.raises(cf.CancelledError):
            queued.exception()
        assert not running.cancel()
        gate.set()
        assert running.result() is True
        assert not running.cancel()


def test_kill_stops_a_running_op_and_a_running_callable(pool):
    op = pool.submit("noop", sleep_ms=60_000)
    seen = threading.Event()

    def look():
        while not offloop.current_task().cancelled():
            pass
        seen.set()

    callable_ = pool.submit(look)
    for future in (op, callable_):
        while not future.running():
            threading.Event().wait(0.001)
        assert future.kill()
        assert not future.kill()
        with pytest.raises(offloop.CancelledError):
            future.result()
    assert seen.wait(60)


def test_callbacks_run_once_in_order_with_the_future(pool, gate):
    future = pool.submit(gate.wait)
    told = []
    both = threading.Event()
    future.add_done_callback(lambda f: told.append((1, f)))
    future.add_done_callback(lambda f: (told.append((2, f)), both.set()))
    gate.set()
    assert both.wait(60)
    assert told == [(1, future), (2, future)]
    future.add_done_callback(lambda f: told.append((3, threading.get_ident())))
    assert told[2] == (3, threading.get_ident())


def test_a_callback_of_an_op_runs_on_the_callback_thread(pool):
    future = pool.submit("noop", sleep_ms=50)
    names = []
    done = threading.Event()
    future.add_done_callback(lambda f: (names.append(threading.current_thread().name), done.set()))
    assert done.wait(60)
    assert names == ["offloop-callbacks"]


def by_wait(future):
    return len(cf.wait([future]).done)


def by_as_completed(future):
    return len(list(cf.as_completed([future])))


def by_await(future):
    async def main():
        await future
        return 1

    return asyncio.run(main())


def by_wrap_future(future):
    async def main():
        return len(await asyncio.gather(asyncio.wrap_future(future)))

    return asyncio.run(main())


def by_result(future):
    future.result()
    return 1


@pytest.mark.parametrize("wait", [by_wait, by_as_completed, by_await, by_wrap_future, by_result])
@pytest.mark.parametrize("kind", ["op", "callable"])
def test_a_callback_may_wait_for_another_future(pool, wait, kind):
    opened = threading.Event()
    first = pool.submit("noop", sleep_ms=50) if kind == "op" else pool.submit(opened.wait)
    told = []
    done = threading.Event()
    second = None

    def callback(_):
        told.append(wait(second))
        done.set()

    # Not over before the callback waits for it.
    second = pool.submit("noop", sleep_ms=200)
    first.add_done_callback(callback)
    opened.set()
    assert done.wait(60)
    assert told == [1]


def test_a_callback_that_waits_holds_up_nobody_else(pool, gate):
    entered = threading.Event()
    first = pool.submit("noop", sleep_ms=50)
    first.add_done_callback(lambda _: (entered.set(), gate.wait()))
    assert entered.wait(60)
    # The gate opens when all of these were heard of.
    future = pool.submit("noop", b"a", sleep_ms=20)
    assert cf.wait([future], timeout=60).done == {future}

    async def main():
        assert await pool.submit("noop", b"b", sleep_ms=20) == b"b"
        assert await pool.run("noop", b"c", sleep_ms=20) == b"c"

    asyncio.run(asyncio.wait_for(main(), 60))
    later = threading.Event()
    pool.submit("noop", sleep_ms=20).add_done_callback(lambda _: later.set())
    gate.set()
    assert later.wait(60)


def test_a_callback_of_the_user_stays_off_the_thread_of_results_whatever_it_says_it_is(pool):
    class Callback:
        __module__ = "asyncio.futures"

        def __call__(self, future):
            names.append(threading.current_thread().name)
            done.set()

    names = []
    done = threading.Event()
    pool.submit("noop", sleep_ms=50).add_done_callback(Callback())
    assert done.wait(60)
    assert names == ["offloop-callbacks"]


def test_cancel_calls_the_callbacks_before_it_returns(gate):
    with offloop.ThreadPool(max_workers=1) as pool:
        pool.submit(gate.wait)
        queued = pool.submit(pow, 2, 3)
        told = []
        queued.add_done_callback(told.append)
        assert queued.cancel()
        assert told == [queued]
        gate.set()


def test_an_exception_of_a_callback_is_logged_and_stops_nobody(pool, gate, caplog):
    future = pool.submit(gate.wait)
    done = threading.Event()

    def bad(_):
        raise RuntimeError("from the callback")

    future.add_done_callback(bad)
    future.add_done_callback(lambda f: done.set())
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        gate.set()
        assert done.wait(60)
    assert "exception calling callback" in caplog.text
    assert "from the callback" in caplog.text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_wants_out_is_heard_by_its_caller(pool, gate, kind):
    def bad(_):
        raise kind

    done = pool.submit(pow, 2, 3)
    assert done.result() == 8
    with pytest.raises(kind):
        done.add_done_callback(bad)
    for _ in range(2):
        pool.submit(gate.wait)
    queued = pool.submit(pow, 2, 3)
    told = []
    queued.add_done_callback(bad)
    queued.add_done_callback(told.append)
    with pytest.raises(kind):
        queued.cancel()
    assert told == [queued]
    assert queued.cancelled()


def test_wait_and_as_completed_see_every_outcome_once(pool):
    for _ in range(50):
        futures = [pool.submit("noop") for _ in range(20)] + [pool.submit(pow, 2, 3) for _ in range(20)]
        assert set(cf.as_completed(futures, timeout=60)) == set(futures)
        done, pending = cf.wait(futures, timeout=60)
        assert (len(done), len(pending)) == (40, 0)


def test_wait_for_the_first_exception(pool, gate):
    def fail():
        raise ValueError("no")

    held = pool.submit(gate.wait)
    failing = pool.submit(fail)
    done, pending = cf.wait([held, failing], timeout=60, return_when=cf.FIRST_EXCEPTION)
    assert failing in done
    assert held in pending


def test_wait_mixes_with_futures_of_the_stdlib(pool):
    with cf.ThreadPoolExecutor(1) as other:
        futures = [pool.submit("noop"), other.submit(pow, 2, 3)]
        assert len(cf.wait(futures, timeout=60).done) == 2


def test_a_future_can_be_awaited_and_cancelling_the_await_kills_the_task(pool):
    async def main():
        assert await pool.submit("crc32", b"hello") == 907060870
        assert await pool.submit(pow, 2, 5) == 32
        assert await asyncio.wrap_future(pool.submit(pow, 2, 6)) == 64
        future = pool.submit("noop", sleep_ms=60_000)
        task = asyncio.create_task(future_of(future))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(offloop.CancelledError):
            future.result()

    async def future_of(future):
        return await future

    asyncio.run(main())


def test_progress_is_seen_by_the_future(pool, gate):
    told = threading.Event()

    def work():
        offloop.current_task().progress({"done": 3, "of": 10})
        told.set()
        gate.wait()

    future = pool.submit(work)
    assert told.wait(60)
    assert future.take_progress() == {"done": 3, "of": 10}
    assert future.take_progress() is None


def test_a_cycle_through_a_future_is_collected(pool):
    class Holder:
        pass

    holder = Holder()
    holder.future = pool.submit(lambda: None)
    holder.future.add_done_callback(lambda f, h=holder: h)
    cf.wait([holder.future])

    def fail(h):
        raise ValueError(h)

    holder.failed = pool.submit(fail, holder)
    assert isinstance(holder.failed.exception(), ValueError)
    gone = weakref.ref(holder)
    del holder
    # A worker forgets its last task when it looks for the next one.
    pool.submit(pow, 1, 1).result()
    for _ in range(100):
        gc.collect()
        if gone() is None:
            break
        threading.Event().wait(0.01)
    assert gone() is None


def test_results_and_arguments_are_released(pool):
    payload = bytes(100_000)
    before = sys.getrefcount(payload)
    for _ in range(50):
        pool.submit("crc32", payload).result()
        pool.submit(len, payload).result()
    for _ in range(1000):
        pool.submit("noop").result()
        if sys.getrefcount(payload) == before:
            break
    assert sys.getrefcount(payload) == before


def test_generic_alias_and_no_pickling(pool):
    assert str(offloop.Future[int]) == "offloop.Future[int]"
    with pytest.raises(TypeError):
        pickle.dumps(pool.submit("noop"))


def test_many_threads_wait_for_one_future(pool, gate):
    future = pool.submit(lambda: gate.wait() and "x" * 1000)
    results = []
    threads = [threading.Thread(target=lambda: results.append(future.result())) for _ in range(16)]
    for t in threads:
        t.start()
    gate.set()
    for t in threads:
        t.join()
    assert len({id(r) for r in results}) == 1
