"""ThreadPool: submit, bounds, options, map, batches, end."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextvars
import gc
import itertools
import os
import queue
import re
import threading
import time
import weakref
from pathlib import Path

import offloop
import pytest


def occupy(pool, gate):
    """Holds every Python worker of a pool with one."""
    future = pool.submit(gate.wait)
    while not future.running():
        time.sleep(0.001)
    return future


def test_runs_ops_by_name_and_callables(pool):
    assert pool.submit("sha256", b"abc", encoding="hex").result().startswith("ba7816bf")
    assert pool.submit(int, "ff", base=16).result() == 255
    assert isinstance(pool, cf.Executor)


def test_a_subclass_may_have_its_own_constructor():
    class Mine(offloop.ThreadPool):
        def __init__(self, n):
            super().__init__(max_workers=n)
            self.n = n

    with Mine(3) as pool:
        assert pool.n == 3
        assert pool.submit(pow, 2, 3).result() == 8


def test_a_pool_whose_init_was_not_called_says_so():
    class Bad(offloop.ThreadPool):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match="__init__"):
        Bad().submit("noop")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_workers": 0}, ["max_workers", "0"]),
        ({"max_workers": -1}, ["max_workers", "-1"]),
        ({"max_workers": 100_000}, ["max_workers", "100000", "1024"]),
        ({"max_workers": 2**40}, ["max_workers", str(2**40)]),
        ({"max_queue": 0}, ["max_queue", "0"]),
        ({"max_queue": -5}, ["max_queue", "-5"]),
        ({"max_overdue": -1}, ["max_overdue", "-1"]),
        ({"nice": 99}, ["nice", "99", "19"]),
        ({"on_full": "drop"}, ["on_full", "drop", "wait"]),
        ({"thread_name_prefix": "x" * 100}, ["name", "64"]),
    ],
)
def test_bad_options_name_the_value_and_the_limit(options, words):
    with pytest.raises(offloop.InvalidError) as e:
        offloop.ThreadPool(**options)
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize("options", [{"initializer": 3}, {"bogus": 1}])
def test_options_of_a_wrong_type_are_type_errors(options):
    with pytest.raises(TypeError):
        offloop.ThreadPool(**options)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda p: p.submit("sha999", b""), offloop.NotFoundError, ["sha999"]),
        (lambda p: p.submit("\udc80", b""), offloop.InvalidError, ["udc80"]),
        (lambda p: p.submit("sha256", b"", wrong=1), offloop.InvalidError, ["wrong", "encoding"]),
        (lambda p: p.submit("sha256", b"", encoding="base99"), offloop.InvalidError, ["encoding", "base99", "hex"]),
        (lambda p: p.submit("sha256", b"", encoding=7), offloop.InvalidError, ["encoding", "string", "int"]),
        (lambda p: p.submit("sha256"), offloop.InvalidError, ["inputs=0", "min=1"]),
        (lambda p: p.submit("sha256", b"", b""), offloop.InvalidError, ["inputs=2", "max=1"]),
        (lambda p: p.submit("sha256", "text"), offloop.InvalidError, ["str", "encode"]),
        (lambda p: p.submit("sha256", 3), offloop.InvalidError, ["int"]),
        (lambda p: p.submit("sha256", None), offloop.InvalidError, ["NoneType"]),
        (lambda p: p.submit("gzip", b"x", level=99), offloop.InvalidError, ["level", "99"]),
        (lambda p: p.submit("gzip", b"x", level=10**30), offloop.InvalidError, ["level"]),
        (lambda p: p.submit("gzip", b"x", level=object()), offloop.UnserializableError, ["object"]),
        (lambda p: p.submit(3), offloop.InvalidError, ["int"]),
        (lambda p: p.submit(None), offloop.InvalidError, ["NoneType"]),
    ],
)
def test_bad_calls_name_the_value_and_the_pool_goes_on(pool, call, kind, words):
    with pytest.raises(kind) as e:
        call(pool)
    for word in words:
        assert word in str(e.value)
    assert pool.submit("noop", b"x").result() == b"x"


@pytest.mark.parametrize(
    ("op", "data", "kind"),
    [("gunzip", b"not gzip at all", offloop.CorruptError), ("unzstd", b"\0" * 40, offloop.CorruptError)],
)
def test_bad_data_is_a_typed_error_of_the_task(pool, op, data, kind):
    error = pool.submit(op, data).exception()
    assert isinstance(error, kind)
    assert error.kind == "Corrupt"
    assert error.retry == "never"
    assert pool.submit("noop", b"x").result() == b"x"


def test_a_panic_is_an_error_of_its_task(pool):
    error = pool.submit("noop", panic=True).exception()
    assert isinstance(error, offloop.PanicError)
    assert isinstance(error, RuntimeError)
    assert pool.submit("noop", b"x").result() == b"x"


def test_submit_needs_something_to_run(pool):
    with pytest.raises(TypeError, match="at least 1 argument"):
        pool.submit()


def test_a_full_queue_rejects_and_nothing_is_lost(gate):
    with offloop.ThreadPool(max_workers=1, max_queue=2, on_full="reject") as pool:
        occupy(pool, gate)
        queued = [pool.submit(pow, 2, n) for n in range(2)]
        with pytest.raises(offloop.Full, match="max_queue=2") as e:
            pool.submit(pow, 2, 9)
        assert e.value.retry == "now"
        gate.set()
        assert [f.result() for f in queued] == [1, 2]


def test_a_full_queue_gives_a_moved_buffer_back():
    with offloop.ThreadPool(max_workers=1, max_queue=1, on_full="reject") as pool:
        futures = []
        buffer = offloop.TransferBuffer.from_bytes(b"abc")
        with pytest.raises(offloop.Full):
            for _ in range(100):
                futures.append(pool.submit("noop", sleep_ms=200))
        with pytest.raises(offloop.Full):
            while True:
                pool.submit("noop", buffer)
                buffer = offloop.TransferBuffer.from_bytes(b"abc")
        assert bytes(buffer) == b"abc"
        with pytest.raises(offloop.InvalidError):
            pool.submit("noop", buffer, nonsense=1)
        assert bytes(buffer) == b"abc"
        with pytest.raises(offloop.InvalidError):
            pool.submit("noop", buffer, 3)
        assert bytes(buffer) == b"abc"
        pool.shutdown(cancel_futures=True)


def test_submit_waits_for_room(gate):
    with offloop.ThreadPool(max_workers=1, max_queue=1) as pool:
        occupy(pool, gate)
        pool.submit(pow, 2, 1)
        threading.Timer(0.05, gate.set).start()
        assert pool.submit(pow, 2, 3).result() == 8


def test_submit_on_a_thread_with_a_running_loop_raises_full_and_run_waits(gate):
    async def main(pool):
        await asyncio.get_running_loop().run_in_executor(None, occupy, pool, gate)
        pool.submit(pow, 2, 1)
        with pytest.raises(offloop.Full):
            pool.submit(pow, 2, 2)
        waiting = [asyncio.create_task(pool.run(pow, 2, n)) for n in range(100)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*waiting) == [2**n for n in range(100)]

    with offloop.ThreadPool(max_workers=1, max_queue=1) as pool:
        asyncio.run(main(pool))


def test_a_callable_may_fill_its_own_pools_queue():
    with offloop.ThreadPool(max_workers=1, max_queue=1) as pool:
        futures = pool.submit(lambda: [pool.submit(pow, 2, n) for n in range(10)]).result()
        assert [f.result() for f in futures] == [2**n for n in range(10)]


def test_a_refused_shared_buffer_stays_shared(pool):
    buffer = offloop.TransferBuffer(100_000, shared=True)
    fd = buffer.fd
    for refused in (lambda: pool.submit("noop", buffer, nonsense=1), lambda: pool.submit_many("noop", [buffer, "no bytes"])):
        with pytest.raises(offloop.InvalidError):
            refused()
        assert buffer.fd == fd
    peer = offloop.TransferBuffer.attach(fd)
    memoryview(buffer)[7] = 9
    assert peer.nbytes == 100_000
    assert memoryview(peer)[7] == 9
    assert pool.submit("noop", buffer).result()[7] == 9
    assert buffer.detached


def test_batches_are_all_or_none(gate):
    with offloop.ThreadPool(max_workers=1, max_queue=3, on_full="reject") as pool:
        occupy(pool, gate)
        with pytest.raises(offloop.Full, match="max_queue=3, batch=4"):
            pool.submit_many(pow, range(4))
        gate.set()
    with offloop.ThreadPool(max_workers=1, max_queue=3, on_full="wait") as pool:
        for op, items in ((pow, range(4)), ("noop", [b"x"] * 4)):
            with pytest.raises(offloop.Full, match=r"longer than the pool's queue .*max_queue=3, batch=4"):
                pool.submit_many(op, items)
        assert [f.result() for f in pool.submit_many("noop", [b"x"] * 3)] == [b"x"] * 3
    with offloop.ThreadPool(max_workers=1) as pool:
        buffers = [offloop.TransferBuffer.from_bytes(b"a"), offloop.TransferBuffer.from_bytes(b"b"), "no bytes"]
        with pytest.raises(offloop.InvalidError):
            pool.submit_many("sha256", buffers)
        assert [bytes(b) for b in buffers[:2]] == [b"a", b"b"]
        assert [f.result() for f in pool.submit_many("noop", buffers[:2])] == [b"a", b"b"]
        assert [f.result() for f in pool.submit_many(int, ["11", "7"], base=8)] == [9, 7]
        assert pool.submit_many("noop", []) == []


def test_a_batch_of_nothing_is_checked_as_any_other(pool):
    with pytest.raises(offloop.NotFoundError, match="nope"):
        pool.submit_many("nope", [])
    with pytest.raises(offloop.InvalidError, match="nonsense"):
        pool.submit_many("noop", [], nonsense=1)
    with pytest.raises(offloop.InvalidError, match="int"):
        pool.submit_many(7, [])
    assert pool.submit_many("noop", iter(()), sleep_ms=1) == []
    pool.shutdown()
    with pytest.raises(offloop.ClosedError):
        pool.submit_many("noop", [])


def test_timeout_ends_the_wait_of_the_caller_and_counts(pool):
    future = pool.options(timeout=0.02).submit("noop", sleep_ms=60_000)
    assert isinstance(future.exception(), offloop.TimeoutError)
    assert pool.stats.timed_out == 1


def test_a_callable_past_its_timeout_is_overdue_until_it_returns(gate):
    with offloop.ThreadPool(max_workers=1) as pool:
        future = pool.options(timeout=0.01).submit(gate.wait)
        assert isinstance(future.exception(), offloop.TimeoutError)
        assert pool.stats.overdue == 1
        gate.set()
        assert pool.submit(pow, 2, 3).result() == 8
        while pool.stats.overdue:
            time.sleep(0.001)


def test_queue_timeout_ends_a_waiting_task(gate):
    with offloop.ThreadPool(max_workers=1) as pool:
        occupy(pool, gate)
        assert isinstance(pool.options(queue_timeout=0.01).submit(pow, 2, 3).exception(), offloop.TimeoutError)
        gate.set()


def test_priority_goes_first(gate):
    with offloop.ThreadPool(max_workers=1) as pool:
        occupy(pool, gate)
        order = []
        futures = [pool.options(priority=p).submit(order.append, p) for p in (-5, 0, 100)]
        gate.set()
        cf.wait(futures)
        assert order == [100, 0, -5]


def test_tasks_of_one_key_run_in_order():
    with offloop.ThreadPool(max_workers=4) as pool:
        order = []
        view = pool.options(key="account-7")
        cf.wait([view.submit(order.append, n) for n in range(500)])
        assert order == list(range(500))


@pytest.mark.parametrize("options", [{"priority": 128}, {"priority": -129}, {"retries": -1}])
def test_bad_call_options_are_invalid(pool, options):
    with pytest.raises(offloop.InvalidError):
        pool.options(**options)


@pytest.mark.parametrize("option", ["timeout", "queue_timeout"])
def test_a_limit_is_a_number_of_seconds(pool, option):
    bad = [
        (float("nan"), "NaN"),
        (float("-inf"), "-inf"),
        (-1, "-1"),
        (1e300, "1e300"),
        (10**400, ""),
        (2_592_001, r"2592001, min=0, max=2592000\)"),
        (True, "True"),
        ("5", "'5'"),
    ]
    for value, shown in bad:
        with pytest.raises(offloop.InvalidError, match=rf"option={option}, value={shown}"):
            pool.options(**{option: value})
    view = pool.options(**{option: 0.001}).options(**{option: float("inf")})
    assert view.submit("noop", b"x", sleep_ms=30).result() == b"x"
    assert pool.options(**{option: 2_592_000}).submit("noop", b"x").result() == b"x"


def test_views_stack_and_share_the_pool(pool):
    view = pool.options(priority=3).options(timeout=0.01)
    assert isinstance(view, offloop.ThreadPool)
    assert isinstance(view.submit("noop", sleep_ms=60_000).exception(), offloop.TimeoutError)
    assert pool.stats.submitted == 1
    view.shutdown()
    with pytest.raises(offloop.ClosedError):
        pool.submit("noop")


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda pool: offloop.ThreadPool("2"), "option=max_workers, value='2', want=an integer"),
        (lambda pool: offloop.ThreadPool(max_queue=1.5), "option=max_queue, value=1.5, want=an integer"),
        (lambda pool: offloop.ThreadPool(thread_name_prefix=5), "option=thread_name_prefix, value=5, want=text"),
        (lambda pool: offloop.ThreadPool(on_full=None), "option=on_full, value=None, want=text"),
        (lambda pool: pool.options(priority=1.5), "option=priority, value=1.5, want=an integer"),
        (lambda pool: pool.options(key=5), "option=key, value=5, want=text"),
        (lambda pool: pool.options(timeout="1"), "option=timeout, value='1', want=seconds from 0"),
        (lambda pool: pool.load(b"/x"), "option=plugin, value=b'/x', want=a path of text"),
        (lambda pool: pool.load(5), "option=plugin, value=5, want=a path of text"),
    ],
)
def test_an_option_of_the_wrong_type_is_named_with_its_value_and_what_is_wanted(pool, call, shown):
    with pytest.raises(offloop.InvalidError, match=re.escape(f"option has the wrong type ({shown})")):
        call(pool)


def test_map_is_ordered_lazy_and_takes_ops(pool):
    assert list(pool.map("noop", [b"a", b"b"])) == [b"a", b"b"]
    assert list(pool.map("sha256", [b"abc"], encoding="hex"))[0].startswith("ba7816bf")
    assert list(pool.map(pow, range(5000), itertools.repeat(2))) == [n * n for n in range(5000)]
    assert list(itertools.islice(pool.map(abs, itertools.count()), 10)) == list(range(10))
    assert sorted(pool.map(abs, range(3000), ordered=False)) == list(range(3000))
    assert list(pool.map(abs, [])) == []


def test_map_reads_an_endless_iterable_only_as_far_as_its_window(pool):
    read = itertools.count()
    results = pool.map(abs, read)
    next(results)
    assert next(read) < 5000
    results.close()


def test_map_never_raises_full():
    for on_full in ("reject", "wait"):
        with offloop.ThreadPool(max_workers=1, max_queue=4, on_full=on_full) as pool:
            assert list(pool.map(abs, range(500))) == list(range(500))
            assert list(pool.map(pow, range(100), range(100))) == [n**n for n in range(100)]
            assert sorted(pool.map("noop", [b"x"] * 300, ordered=False)) == [b"x"] * 300


def test_map_raises_where_the_error_is_and_cancels_the_rest(pool):
    results = pool.map(lambda n: 1 // n, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(offloop.InvalidError):
        pool.map(abs, [], chunksize=0)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_map_runs_every_item_before_its_pool_ends_although_nobody_reads(keep, ordered):
    for items in (range(5000), iter(range(5000))):
        ran = []
        with offloop.ThreadPool(2) as pool:
            results = pool.map(ran.append, items, ordered=ordered)
            if not keep:
                del results
        assert sorted(ran) == list(range(5000))
        if keep:
            assert list(results) == [None] * 5000


@pytest.mark.parametrize("wait", [True, False])
def test_map_that_is_being_read_gives_every_result_after_its_pool_was_shut_down(wait):
    for max_queue in (None, 8):
        pool = offloop.ThreadPool(2, max_queue=max_queue)
        one, two = pool.map(abs, range(3000)), pool.options(priority=1).map(pow, range(3000), itertools.repeat(1))
        assert [next(one), next(two)] == [0, 0]
        pool.shutdown(wait=wait)
        assert list(one) == list(two) == list(range(1, 3000))


def test_map_over_what_may_be_endless_gives_what_is_in_flight_when_its_pool_was_shut_down():
    got = []
    with offloop.ThreadPool(2) as pool:
        results = pool.map(abs, itertools.count())
        got.append(next(results))
    with pytest.raises(offloop.ClosedError):
        for result in results:
            got.append(result)
    assert len(got) >= 1024
    assert got == list(range(len(got)))


def test_map_takes_in_nothing_more_when_what_waits_is_cancelled(gate):
    started = threading.Event()
    with offloop.ThreadPool(1) as pool:
        results = pool.map(lambda _: started.set() or gate.wait(), range(5000))
        started.wait()
        pool.shutdown(wait=False, cancel_futures=True)
        gate.set()
        assert next(results)
        with pytest.raises(cf.CancelledError):
            next(results)
    assert pool.stats.submitted < 5000


def test_map_whose_iterable_shuts_its_pool_down_is_refused():
    pool = offloop.ThreadPool(1)

    def items():
        yield 1
        pool.shutdown(wait=False)
        yield 2

    with pytest.raises(offloop.ClosedError):
        pool.map(abs, items())


def test_the_exit_of_the_interpreter_runs_what_map_was_given(script):
    done = script("import offloop; pool = offloop.ThreadPool(2); results = pool.map(lambda n: print(end='.'), iter(range(3000)))")
    assert done.stdout == "." * 3000


@pytest.mark.parametrize("ordered", [True, False])
def test_map_gives_the_results_of_all_items_before_an_error_of_its_iterable(pool, ordered):
    def items():
        yield from range(3000)
        raise LookupError("the iterable's own")

    got = []
    with pytest.raises(LookupError, match="the iterable's own"):
        for result in pool.map(abs, items(), ordered=ordered):
            got.append(result)
    assert sorted(got) == list(range(3000))

    got = []
    with pytest.raises(offloop.InvalidError, match="no bytes"):
        for result in pool.map("noop", [b"x"] * 100 + [5, b"x"], ordered=ordered):
            got.append(result)
    assert got == [b"x"] * 100
    with pytest.raises(offloop.InvalidError, match="no bytes"):
        pool.map("noop", [5])


def test_map_times_out_as_the_stdlib_does(pool, gate):
    for ordered in (True, False):
        with pytest.raises(TimeoutError):
            list(pool.map(gate.wait, [None], timeout=0.01, ordered=ordered))


def test_context_variables_travel_and_current_task_is_there(pool):
    var = contextvars.ContextVar("var", default="unset")
    var.set("mine")

    def look():
        seen = var.get()
        var.set("changed")
        return seen, offloop.current_task().cancelled(), offloop.current_task().context

    assert pool.submit(look).result() == ("mine", False, None)
    assert var.get() == "mine"
    assert offloop.current_task() is None
    with offloop.ThreadPool(1, context={"a": 1}) as other:
        assert other.submit(look).result()[2] == {"a": 1}


def test_threads_are_named_and_initialised():
    local = threading.local()

    def init(value):
        local.value = value

    with offloop.ThreadPool(2, "mine", init, ("x",)) as pool:
        names = list(pool.map(lambda _: (threading.current_thread().name, local.value), range(50)))
    assert {value for _, value in names} == {"x"}
    assert all(name.startswith("mine_") for name, _ in names)


def test_a_failing_initializer_breaks_the_pool(caplog):
    def init():
        raise ValueError("no start")

    with offloop.ThreadPool(1, initializer=init) as pool:
        error = pool.submit(pow, 2, 3).exception()
        assert isinstance(error, offloop.StartFailedError)
        assert isinstance(error, cf.BrokenExecutor)
        assert "no start" in str(error)
        with pytest.raises(cf.BrokenExecutor):
            pool.submit(pow, 2, 3)
        assert pool.submit("noop", b"x").result() == b"x"


def test_percentiles_are_those_of_ops_and_callables_together(pool):
    slow = [pool.submit("noop", sleep_ms=50) for _ in range(10)]
    quick = [pool.submit(int) for _ in range(30)]
    for future in slow + quick:
        future.result()
    # The last worker counts its task a moment after the outcome is known.
    while (run := pool.stats.run).count < 40:
        threading.Event().wait(0.001)
    # A quarter of all took 50 ms, so the slow ones begin at the 75th percentile, though most tasks are of the other kind.
    assert run.p50 < 0.05 <= run.p90 * 1.02
    assert run.p90 <= run.p99 <= run.max


def test_stats_count_every_outcome(pool):
    pool.submit(pow, 2, 3).result()
    pool.submit("noop").result()
    pool.submit(int, "x").exception()
    stats = pool.stats
    assert (stats.submitted, stats.completed, stats.failed) == (3, 2, 1)
    assert stats.run.count == 3
    assert 0 <= stats.utilization <= 1
    assert 0 <= stats.run.p50 <= stats.run.max < 60


def test_resize_changes_how_many_run_at_once(gate):
    with offloop.ThreadPool(1) as pool:
        occupy(pool, gate)
        second = pool.submit(pow, 2, 3)
        pool.resize(max_workers=2)
        assert second.result(timeout=60) == 8
        with pytest.raises(offloop.InvalidError, match="max_workers"):
            pool.resize(max_workers=0)
        with pytest.raises(offloop.InvalidError, match="min_workers"):
            pool.resize(min_workers=3)
        gate.set()


def test_shutdown_finishes_what_was_submitted_and_refuses_more():
    pool = offloop.ThreadPool(1)
    futures = [pool.submit(time.sleep, 0.001) for _ in range(20)] + [pool.submit("noop", sleep_ms=1) for _ in range(20)]
    pool.shutdown()
    assert all(f.done() and f.exception() is None for f in futures)
    for call in ("noop", abs):
        with pytest.raises(offloop.ClosedError) as e:
            pool.submit(call, b"")
        assert isinstance(e.value, RuntimeError)
    with pytest.raises(offloop.ClosedError):
        pool.resize(max_workers=2)
    pool.shutdown()


def test_shutdown_can_cancel_what_waits(gate):
    pool = offloop.ThreadPool(1)
    running = occupy(pool, gate)
    queued = [pool.submit(pow, 2, 3) for _ in range(50)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(f.cancelled() for f in queued)
    gate.set()
    assert running.result() is True


def test_a_forgotten_pool_finishes_its_work_and_its_threads_leave():
    pool = offloop.ThreadPool(2, "forgotten")
    futures = [pool.submit(time.sleep, 0.001) for _ in range(20)]
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    cf.wait(futures)
    assert all(f.exception() is None for f in futures)
    for thread in threading.enumerate():
        if thread.name.startswith("forgotten"):
            thread.join(60)
            assert not thread.is_alive()


def test_async_with_waits_without_holding_the_loop():
    async def main():
        ticks = 0
        async with offloop.ThreadPool(1) as pool:
            future = pool.submit("noop", sleep_ms=100)

            async def tick():
                nonlocal ticks
                while not future.done():
                    ticks += 1
                    await asyncio.sleep(0.001)

            ticker = asyncio.create_task(tick())
        await ticker
        assert future.done()
        assert ticks > 3

    asyncio.run(main())


def test_the_default_pool_is_one_and_cannot_be_closed():
    pool = offloop.default_pool()
    assert pool is offloop.default_pool()
    assert pool.submit("noop", b"x").result() == b"x"
    assert pool.submit(pow, 2, 3).result() == 8
    with pytest.raises(offloop.InvalidError):
        pool.shutdown()
    with pool:
        pass
    assert pool.submit("noop", b"x").result() == b"x"


def test_metrics_have_both_forms():
    with offloop.ThreadPool(1, "measured") as pool:
        pool.submit("noop").result()
        assert 'pool="measured"' in offloop.metrics()
        assert "measured" in offloop.metrics("json")
    with pytest.raises(offloop.InvalidError, match="xml"):
        offloop.metrics("xml")


def test_a_thousand_pools_leave_nothing_behind():
    def cycle():
        with offloop.ThreadPool(1) as pool:
            pool.submit(pow, 2, 3).result()
            pool.submit("sha256", b"x").result()
        offloop.TransferBuffer(4096)

    def held():
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), rss

    for _ in range(100):
        cycle()
    gc.collect()
    before = held()
    for _ in range(1000):
        cycle()
    gc.collect()
    after = held()
    while held()[0] > before[0]:  # a native thread's exit is not awaited by its pool
        time.sleep(0.001)
    assert after[1] <= before[1]
    assert after[2] - before[2] < 16 << 20


def returns(function, *args, **kwargs):
    """Whether a call that might hang comes back."""
    thread = threading.Thread(target=function, args=args, kwargs=kwargs, daemon=True)
    thread.start()
    thread.join(30)
    return not thread.is_alive()


def time_out(pool, gate):
    with pytest.raises(offloop.TimeoutError):
        pool.options(timeout=0.02).submit(gate.wait).result()


def kill(pool, gate):
    assert occupy(pool, gate).kill()


def cancel_the_await(pool, gate):
    started = threading.Event()

    async def main():
        task = asyncio.create_task(pool.run(lambda: (started.set(), gate.wait())))
        while not started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("max_overdue", [0, 1, None])
@pytest.mark.parametrize("queued_first", [True, False])
@pytest.mark.parametrize("stop", [time_out, kill, cancel_the_await])
def test_a_stuck_callable_does_not_strand_what_is_behind_it(gate, stop, queued_first, max_overdue):
    pool = offloop.ThreadPool(max_workers=1, max_overdue=max_overdue)
    if queued_first:
        first = threading.Event()
        holder = occupy(pool, first)
        thread = threading.Thread(target=stop, args=(pool, gate))
        thread.start()
        while pool.stats.submitted < 2:
            time.sleep(0.001)
        behind = pool.submit(pow, 2, 3)
        first.set()
        assert holder.result(timeout=30)
        thread.join()
    else:
        stop(pool, gate)
        behind = pool.submit(pow, 2, 3)
    if max_overdue == 0:
        gate.set()
    assert behind.result(timeout=30) == 8
    gate.set()
    assert returns(pool.shutdown, wait=True)


def test_callables_behind_a_stuck_one_are_finished_at_exit(script):
    done = script(
        """
import offloop, threading, time
pool = offloop.ThreadPool(1)
stuck = pool.submit(time.sleep, 0.3)
while not stuck.running():
    time.sleep(0.001)
for n in range(3):
    pool.submit(print, "apple", flush=True)
stuck.kill()
"""
    )
    assert done.stdout.split() == ["apple"] * 3


def test_keyed_callables_run_although_one_worker_takes_them_in():
    for turn in range(12):
        pool = offloop.ThreadPool(max_workers=4)
        assert pool.submit(pow, 2, 1).result(timeout=30) == 2
        futures = [pool.options(key=f"account-{turn}-{n}").submit(pow, 2, n) for n in range(8)]
        assert [f.result(timeout=30) for f in futures] == [2**n for n in range(8)]
        assert returns(pool.shutdown, wait=True)


def test_a_done_callback_may_wait_for_a_callable():
    with offloop.ThreadPool(max_workers=4) as pool:
        pool.submit(pow, 2, 1).result()
        told = threading.Event()

        def on_done(_):
            for n in range(8):
                pool.options(key=str(n)).submit(pow, 2, n).result(timeout=30)
            told.set()

        pool.submit("noop", sleep_ms=10).add_done_callback(on_done)
        assert told.wait(60)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: offloop.ThreadPool(max_workers=10**30), ["max_workers", str(10**30)]),
        (lambda p: offloop.ThreadPool(max_queue=10**30), ["max_queue", str(10**30)]),
        (lambda p: offloop.ThreadPool(max_overdue=-(10**30)), ["max_overdue", str(-(10**30))]),
        (lambda p: offloop.ThreadPool(nice=10**20), ["nice", str(10**20)]),
        (lambda p: p.options(priority=10**30), ["priority", str(10**30)]),
        (lambda p: p.resize(max_workers=10**30), ["max_workers", str(10**30)]),
        (lambda p: p.options(key="\udc80"), ["key", "udc80"]),
        (lambda p: p.options(retries=True), ["retries", "True"]),
        (lambda p: offloop.ThreadPool(1, "\udc80"), ["name", "udc80"]),
        (lambda p: offloop.ThreadPool(1, on_full="\udc80"), ["on_full", "udc80"]),
        (lambda p: p.load("\ud800"), ["path", "ud800"]),
        (lambda p: offloop.metrics("\udc80"), ["format", "udc80"]),
        (lambda p: offloop.revoke_token("\udc80"), ["token", "udc80"]),
        (lambda p: offloop.TransferBuffer.receive("\udc80"), ["token", "udc80"]),
        (lambda p: p.submit("sha256", b"", encoding="\udc80"), ["text", "udc80"]),
        (lambda p: p.submit("sha256", b"", **{"\udc80": 1}), ["text", "udc80"]),
        (lambda p: offloop.TransferBuffer.attach(2**40), ["fd", str(2**40)]),
    ],
)
def test_values_beyond_their_type_are_named(pool, call, words):
    with pytest.raises(offloop.InvalidError) as e:
        call(pool)
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize("how", ["callable", "with", "callback"])
def test_a_callable_that_waits_for_the_end_of_its_own_pool_is_told(how):
    pool = offloop.ThreadPool(1)
    told = queue.SimpleQueue()

    def end(_=None):
        try:
            if how == "with":
                with pool:
                    pass
            else:
                pool.shutdown(wait=True)
        except offloop.InvalidError as e:
            told.put(str(e))

    if how == "callback":
        go = threading.Event()
        pool.submit(go.wait).add_done_callback(end)  # runs on the worker, which was not done when it was added
        go.set()
    else:
        pool.submit(end)
    assert "the pool that runs it" in told.get()
    pool.shutdown(wait=True)
