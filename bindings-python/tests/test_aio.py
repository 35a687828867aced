"""asyncio: run, ops.aio, cancellation, several loops, loops that close early."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import os
import threading
import time
import weakref

import offloop
import pytest

try:
    import uvloop
except ImportError:
    uvloop = None


class NoReaders(asyncio.SelectorEventLoop):
    """A loop that cannot watch an fd, as Windows' proactor loop and some embedders'."""

    def add_reader(self, fd, callback, *args):
        raise NotImplementedError


LOOPS = [asyncio.SelectorEventLoop, NoReaders] + ([uvloop.new_event_loop] if uvloop else [])


@pytest.fixture(params=LOOPS, ids=lambda f: f.__name__)
def run(request):
    def run(coroutine):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run


def test_results_of_both_kinds(run, pool):
    async def main():
        assert await pool.run("crc32", b"hello") == 907060870
        assert await pool.run(int, "ff", base=16) == 255
        assert await offloop.ops.aio.sha256(b"abc", encoding="hex") == offloop.ops.sha256(b"abc", encoding="hex")
        assert await pool.run(lambda: (1, 2)) == (1, 2)
        assert isinstance(await pool.run(lambda: ValueError("a value")), ValueError)
        assert await pool.run(lambda: None) is None

    run(main())


def test_every_one_of_many_gets_its_own_result(run, pool):
    async def lane(n):
        for i in range(20):
            data = b"%d-%d" % (n, i)
            assert await pool.run("noop", data) == data
            assert await pool.run(abs, -n) == n
        return n

    async def main():
        return await asyncio.gather(*(lane(n) for n in range(200)))

    assert run(main()) == list(range(200))


def test_exceptions_and_their_tracebacks(run, pool):
    async def main():
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        with pytest.raises(offloop.CorruptError):
            await offloop.ops.aio.gunzip(b"not gzip at all")
        with pytest.raises(offloop.NotFoundError):
            await pool.run("sha999", b"")
        with pytest.raises(offloop.TimeoutError):
            await pool.options(timeout=0.01).run("noop", sleep_ms=60_000)
        assert await pool.run("noop", b"x") == b"x"

    run(main())


def test_cancelling_the_await_stops_the_task_and_raises_the_hosts_error(run, pool):
    async def main():
        looked = threading.Event()

        def look():
            while not offloop.current_task().cancelled():
                pass
            looked.set()

        for work in (("noop",), (look,)):
            options = {"sleep_ms": 60_000} if work == ("noop",) else {}
            task = asyncio.create_task(pool.run(*work, **options))
            while pool.stats.running == 0:
                await asyncio.sleep(0.001)
            task.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await task
        assert await asyncio.to_thread(looked.wait, 60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await offloop.ops.aio.noop(sleep_ms=60_000)
        assert pool.stats.cancelled == 2
        assert await pool.run("noop", b"x") == b"x"

    run(main())


def test_a_task_that_is_cancelled_before_it_awaits_never_submits(run, pool):
    async def main():
        task = asyncio.create_task(pool.run("noop"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.stats.submitted == 0

    run(main())


def test_it_is_a_coroutine_like_any_other(run, pool):
    async def main():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pool.run("noop", b"x")), group.create_task(offloop.ops.aio.noop(b"y"))]
        assert [t.result() for t in tasks] == [b"x", b"y"]
        assert await asyncio.wait_for(pool.run("noop", b"z"), 60) == b"z"
        done, _ = await asyncio.wait([asyncio.ensure_future(pool.run(abs, -n)) for n in range(5)])
        assert sorted(t.result() for t in done) == list(range(5))
        assert await asyncio.shield(pool.run(abs, -1)) == 1

    run(main())


def test_steps_run_in_the_context_of_their_task(run, pool):
    var = contextvars.ContextVar("var")

    async def one(n):
        var.set(n)
        for _ in range(10):
            await pool.run("noop")
            assert var.get() == n
            assert asyncio.current_task().get_name() == f"t{n}"

    async def main():
        await asyncio.gather(*(asyncio.create_task(one(n), name=f"t{n}") for n in range(50)))

    run(main())


def test_a_loop_keeps_no_context_of_its_first_caller(run, pool):
    class Session:
        pass

    var = contextvars.ContextVar("session")

    async def request():
        session = Session()
        var.set(session)
        await pool.run("noop")
        return weakref.ref(session)

    async def main():
        session = await asyncio.create_task(request())
        await asyncio.sleep(0)
        gc.collect()
        assert session() is None

    run(main())


def test_the_loop_goes_on_while_it_is_saturated(run, pool):
    async def main():
        stop = False
        ticks = 0

        async def lane():
            while not stop:
                await pool.run("noop")

        lanes = [asyncio.create_task(lane()) for _ in range(500)]
        for _ in range(20):
            await asyncio.sleep(0)
            ticks += 1
        stop = True
        await asyncio.gather(*lanes)
        assert ticks == 20

    run(main())


def test_a_saturated_loop_has_one_drain_waiting_at_most(pool):
    """Each drain adds its slice to the loop's delay, so drains that pile up are what users see as a blocked loop."""

    async def main():
        loop = asyncio.get_running_loop()
        stop = False
        most = 0

        async def lane():
            while not stop:
                await pool.run("noop")

        lanes = [asyncio.create_task(lane()) for _ in range(1000)]
        for _ in range(200):
            await asyncio.sleep(0)
            most = max(most, sum("_Port.drain" in repr(handle) for handle in loop._ready))
        stop = True
        await asyncio.gather(*lanes)
        assert most <= 1

    for factory in (asyncio.SelectorEventLoop, NoReaders):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())


def test_several_loops_in_several_threads(pool):
    def one(results):
        async def main():
            return [await pool.run(abs, -n) for n in range(200)] + [await pool.run("crc32", b"hello") for _ in range(200)]

        results.append(asyncio.run(main()))

    results = []
    threads = [threading.Thread(target=one, args=(results,)) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [list(range(200)) + [907060870] * 200] * 6


@pytest.mark.parametrize("factory", LOOPS, ids=lambda f: f.__name__)
def test_a_loop_that_is_closed_with_work_in_flight_is_freed(pool, factory):
    loop = factory()

    async def start():
        asyncio.ensure_future(pool.run("noop", sleep_ms=30))  # noqa: RUF006
        await asyncio.sleep(0.001)

    loop.run_until_complete(start())
    pending = asyncio.all_tasks(loop)
    for task in pending:
        task._log_destroy_pending = False
    loop.close()
    gone = weakref.ref(loop)
    del loop, task, pending
    # The next loop of this thread takes the place of the one that was used last.
    asyncio.run(pool.run("noop"))
    gc.collect()
    if factory is not NoReaders:
        assert gone() is None
    assert pool.submit("noop", b"x").result() == b"x"


def test_many_short_loops_leave_no_fds(pool):
    import os

    for _ in range(20):
        asyncio.run(pool.run("noop"))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        asyncio.run(pool.run("noop"))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_run_outside_of_a_loop_says_so(pool):
    with pytest.raises(RuntimeError, match="no running event loop"):
        pool.run("noop").send(None)


def test_long_writable_inputs_are_copied_in_slices(run, pool):
    async def main():
        data = bytearray(b"a" * (9 << 20))
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        assert await pool.run("noop", data) == bytes(data)
        assert await offloop.ops.aio.sha256(memoryview(data)) == offloop.ops.sha256(data)
        ticker.cancel()
        assert ticks > 9
        data.append(1)  # no export is left

    run(main())


async def turns_until(done):
    """Turns of the loop until `done()`."""
    turns = 0
    while not done():
        await asyncio.sleep(0)
        turns += 1
    return turns


async def finished(pool, *inputs):
    """Awaited ops that have their results, of which the loop has not heard yet."""
    tasks = [asyncio.ensure_future(pool.run("noop", data)) for data in inputs]
    await asyncio.sleep(0)
    while pool.stats.running or pool.stats.queued:
        time.sleep(0.001)
    return tasks


def test_long_arrays_that_do_not_lie_together_are_copied_in_slices(run, pool):
    np = pytest.importorskip("numpy")

    async def main():
        for array in (np.arange(1 << 19).reshape(1 << 9, 1 << 10).T, np.ones(1 << 20, "u1")[::-2]):
            task = asyncio.ensure_future(pool.run("noop", array))
            before = pool.stats.submitted
            assert await turns_until(lambda before=before: pool.stats.submitted > before) > 9
            assert await task == array.tobytes()

    run(main())


def test_long_results_are_made_in_slices(run, pool):
    async def main():
        data = os.urandom(1 << 20) * 64

        first, second, third = await finished(pool, *[data] * 3)
        assert await turns_until(first.done) > 8
        assert await asyncio.gather(first, second, third) == [data] * 3

        first, second, third = await finished(pool, *[data] * 3)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        third.cancel()
        assert await pool.run("noop", b"short") == b"short"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == data
        with pytest.raises(asyncio.CancelledError):
            await third

    run(main())


def test_a_result_that_comes_while_a_long_one_is_made_is_not_forgotten(run, pool):
    async def main():
        for n in range(200):
            long = asyncio.ensure_future(pool.run("noop", bytes((n % 16 + 2) << 20)))
            for _ in range(n % 7):
                await asyncio.sleep(0)
            assert await pool.run("noop", b"short") == b"short"
            assert len(await long) == (n % 16 + 2) << 20

    run(main())


def test_a_loop_that_is_closed_while_a_result_is_made_frees_it(pool):
    data = bytes(256 << 20)

    async def main():
        (task,) = await finished(pool, data)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        return weakref.ref(task)

    gone = asyncio.run(main())
    gc.collect()
    assert gone() is None
    assert asyncio.run(pool.run("noop", b"next")) == b"next"


@pytest.mark.parametrize(("calls", "size", "least"), [(20, 8 << 20, 100), (30, (4 << 20) - 1, 100)])
def test_what_many_calls_copy_in_one_turn_has_one_budget(run, pool, calls, size, least):
    async def main():
        data = bytearray(os.urandom(1024)) * (size // 1024)
        digest = offloop.ops.sha256(data)
        for start in (pool.run, lambda _, data: offloop.ops.aio.sha256(data)):
            tasks = [asyncio.ensure_future(start("sha256", data)) for _ in range(calls)]
            before = pool.stats.submitted
            await asyncio.sleep(0)
            assert pool.stats.submitted - before <= 1
            turns = 0
            pending = set(tasks)
            while pending:
                await asyncio.sleep(0)
                turns += 1
                pending = {task for task in pending if not task.done()}
            assert turns >= least
            assert await asyncio.gather(*tasks) == [digest] * calls
        data.append(1)  # no export is left

    run(main())


async def _copying(pool, *, then):
    """A task of `run` whose input is being copied when `then` is called."""
    data = bytearray(b"a" * (16 << 20))
    task = asyncio.ensure_future(pool.run("sha256", data, encoding="hex"))
    await asyncio.sleep(0)
    assert not pool.stats.submitted
    then()
    return task, offloop.ops.sha256(data, encoding="hex")


@pytest.mark.parametrize("wait", [False, True])
def test_a_task_whose_input_is_being_copied_was_taken_in_by_a_pool_that_closes(run, wait):
    pool = offloop.ThreadPool(1)

    async def main():
        task, digest = await _copying(pool, then=lambda: pool.shutdown(wait=wait))
        with pytest.raises(offloop.ClosedError):
            pool.submit("noop")
        with pytest.raises(offloop.ClosedError):
            await pool.run("noop")
        with pytest.raises(offloop.ClosedError):
            await pool.run("sha256", bytearray(16 << 20))
        assert await task == digest

    run(main())
    pool.shutdown()


def test_leaving_the_pool_waits_for_a_task_whose_input_is_being_copied(run):
    async def main():
        async with offloop.ThreadPool(1) as pool:
            task, digest = await _copying(pool, then=lambda: None)
        assert pool.stats.completed == 1
        assert await task == digest

    run(main())


def test_a_copy_under_way_is_cancelled_with_what_waits_and_by_its_task(run):
    async def main():
        with offloop.ThreadPool(1) as pool:
            task, _ = await _copying(pool, then=lambda: pool.shutdown(wait=False, cancel_futures=True))
            with pytest.raises(offloop.CancelledError):
                await task
        with offloop.ThreadPool(1) as pool:
            task, _ = await _copying(pool, then=lambda: None)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pool.stats.submitted == 0

    run(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_calls_of_one_key_are_in_order_although_inputs_are_copied(run, cancelled):
    async def main():
        with offloop.ThreadPool(4) as pool:
            keyed = pool.options(key="account-7")
            order = []

            async def one(n, *args, **kwargs):
                await keyed.options(priority=1).run(*args, **kwargs)
                order.append(n)

            tasks = [asyncio.ensure_future(one(0, "noop", bytearray(16 << 20), sleep_ms=20))]
            tasks += [asyncio.ensure_future(one(n, "noop", b"x")) for n in (1, 2)]
            tasks += [asyncio.ensure_future(one(3, "noop", bytearray(8 << 20))), asyncio.ensure_future(one(4, "noop", b"x"))]
            await asyncio.sleep(0)
            if cancelled:
                tasks.pop(0).cancel()
            await asyncio.gather(*tasks)
            assert order == list(range(cancelled, 5))

    run(main())


@pytest.mark.parametrize(
    "submit",
    [
        lambda pool: pool.submit("noop", b"x").result,
        lambda pool: pool.submit_many("noop", [b"x"])[0].result,
        lambda pool: pool.map("noop", [b"x"]).__next__,
    ],
    ids=["submit", "submit_many", "map"],
)
def test_a_keyed_submit_does_not_overtake_a_run_whose_input_is_copied(run, submit):
    async def main():
        with offloop.ThreadPool(4) as pool:
            keyed = pool.options(key="account-7")
            first = asyncio.ensure_future(keyed.run("noop", bytearray(16 << 20), sleep_ms=50))
            other = asyncio.ensure_future(pool.options(key="account-8").run("noop", bytearray(64 << 20)))
            await asyncio.sleep(0)
            assert not pool.stats.submitted
            result = submit(keyed)
            assert pool.stats.submitted == 2, "a copy for another key is not hurried"
            assert result() == b"x"
            assert pool.stats.completed == 2
            await asyncio.gather(first, other)

    run(main())


def test_buffers_beside_a_long_input_move_at_the_call_and_come_back_if_it_is_refused(run, pool):
    async def main():
        shared = offloop.TransferBuffer(100_000, shared=True)
        fd = shared.fd
        for ending in ("refused", "cancelled"):
            task = asyncio.ensure_future(pool.run("sha256", bytearray(16 << 20), shared))
            await asyncio.sleep(0)
            assert not pool.stats.submitted
            assert shared.detached
            with pytest.raises(offloop.DetachedError):
                shared.transfer()
            if ending == "cancelled":
                task.cancel()
            with pytest.raises((offloop.InvalidError, asyncio.CancelledError)):
                await task
            assert shared.fd == fd
        with memoryview(shared), pytest.raises(offloop.InUseError):
            await pool.run("sha256", bytearray(16 << 20), shared)
        with pytest.raises(offloop.DetachedError):
            await pool.run("sha256", shared, shared, bytearray(16 << 20))
        assert shared.fd == fd

    run(main())


class Nesting(asyncio.SelectorEventLoop):
    """A loop that runs inside its own steps, as nest_asyncio and debuggers have it."""

    def run_inside(self, coroutine):
        outer = asyncio.current_task()
        asyncio.tasks._leave_task(self, outer)
        task = self.create_task(coroutine)
        while not task.done():
            self._run_once()
        asyncio.tasks._enter_task(self, outer)
        for _ in range(100):
            self.call_soon(int)  # the outer turn takes as many handles as it saw
        return task.result()


class NestingNoReaders(Nesting, NoReaders):
    pass


@pytest.fixture(params=[Nesting, NestingNoReaders], ids=lambda f: f.__name__)
def nest(request):
    """Runs a coroutine in a loop that nests; an error that only the loop hears of fails the test."""

    def nest(coroutine):
        errors = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, about: errors.append(about))
            result = runner.run(coroutine)
        assert not errors
        return result

    return nest


def test_a_loop_may_run_inside_a_step(nest, pool):
    async def main():
        loop = asyncio.get_running_loop()
        before = asyncio.ensure_future(pool.run("noop", b"b", sleep_ms=20))
        await pool.run("noop")

        async def inner():
            return await pool.run("noop", b"a"), await offloop.ops.aio.noop(b"c"), await before

        return loop.run_inside(asyncio.wait_for(inner(), 60))

    assert nest(main()) == (b"a", b"c", b"b")


def test_a_step_that_runs_the_loop_waits_for_tasks_that_were_drained_with_it(nest, pool):
    count = 50

    async def main():
        loop = asyncio.get_running_loop()

        async def plain(n):
            return await pool.run("noop", b"%d" % n)

        async def nesting(n):
            await plain(n)
            return loop.run_inside(asyncio.wait_for(asyncio.gather(*(asyncio.shield(t) for t in tasks[n + 1 :])), 60))

        tasks = [loop.create_task(nesting(0)), loop.create_task(nesting(1)), *(loop.create_task(plain(n)) for n in range(2, count))]
        await asyncio.sleep(0)
        while pool.stats.completed < count:  # all of them are there before the loop drains
            pass
        return await asyncio.gather(*tasks)

    rest = [b"%d" % n for n in range(2, count)]
    assert nest(main()) == [[rest, *rest], rest, *rest]


def test_what_a_copied_call_is_refused_for_is_its_own_error(run, pool):
    async def main():
        with pytest.raises(offloop.InvalidError, match="rounds"):
            await pool.run("sha256", bytearray(16 << 20), rounds=7)
        assert await pool.run("noop", b"x") == b"x"

    run(main())


def test_amap_over_plain_and_async_iterables(run, pool):
    async def numbers():
        for n in range(100):
            yield n
            await asyncio.sleep(0)

    async def main():
        assert [x async for x in pool.amap(pow, numbers(), range(100))] == [n**n for n in range(100)]
        assert sorted([x async for x in pool.amap(abs, range(3000), ordered=False)]) == list(range(3000))
        assert [x async for x in pool.amap("noop", [b"a", b"b"])] == [b"a", b"b"]
        with pytest.raises(ZeroDivisionError):
            async for _ in pool.amap(lambda n: 1 // n, [1, 0]):
                pass
        with pytest.raises(offloop.TimeoutError):
            async for _ in pool.amap("noop", [b""], timeout=0.01, sleep_ms=60_000):
                pass

    run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_amap_gives_a_result_while_it_waits_for_the_next_item(run, pool, ordered):
    async def main():
        answers = asyncio.Queue()
        answers.put_nowait(0)

        async def items():  # each but the first needs the result of the one before
            while True:
                yield await answers.get()

        got = []
        async for result in pool.amap(lambda n: n + 1, items(), ordered=ordered):
            got.append(result)
            if result == 5:
                break
            answers.put_nowait(result)
        assert got == [1, 2, 3, 4, 5]

    run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_amap_gives_the_results_of_all_items_before_an_error_of_its_iterable(run, pool, ordered):
    async def items():
        for n in range(3000):
            yield n
        raise LookupError("the iterable's own")

    async def main():
        got = []
        with pytest.raises(LookupError, match="the iterable's own"):
            async for result in pool.amap(abs, items(), ordered=ordered):
                got.append(result)
        assert sorted(got) == list(range(3000))

    run(main())


def test_amap_that_is_left_reads_no_more_and_leaves_no_error_behind(run, pool):
    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        read = itertools.count()
        with pytest.raises(ZeroDivisionError):
            async for _ in pool.amap(lambda n: 1 // (n - n), read):
                pass
        await asyncio.sleep(0)
        at = next(read)
        assert at < 5000
        assert await pool.run(abs, -1) == 1
        assert next(read) == at + 1
        gc.collect()

    run(main())
    assert not told


def test_a_stop_iteration_of_a_task_is_the_cause_of_a_runtime_error(run, pool):
    async def main():
        nothing = iter(())
        for call in (pool.run(next, nothing), asyncio.ensure_future(pool.run(next, nothing)), pool.submit(next, nothing)):
            with pytest.raises(RuntimeError, match="StopIteration") as e:
                await asyncio.wait_for(call if not isinstance(call, offloop.Future) else awaited(call), 60)
            assert isinstance(e.value.__cause__, StopIteration)
        assert isinstance(pool.submit(next, nothing).exception(), StopIteration)

    async def awaited(future):
        return await future

    run(main())


def test_amap_leaves_a_timeout_error_of_the_function_alone(run, pool):
    mine = TimeoutError("mine", 7)

    def bad(_):
        raise mine

    async def main():
        for timeout in (None, 60):
            with pytest.raises(TimeoutError) as e:
                async for _ in pool.amap(bad, [1], timeout=timeout):
                    pass
            assert e.value is mine

    run(main())


def test_ctrl_c_inside_a_step_leaves_the_loop_and_loses_nothing(pool):
    async def bad():
        await pool.run("noop")
        raise KeyboardInterrupt

    async def good(n):
        return await pool.run(abs, -n)

    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(good(n)) for n in range(50)]
    breaker = loop.create_task(bad())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.wait([breaker, *tasks]))
    assert loop.run_until_complete(asyncio.gather(*tasks)) == list(range(50))
    assert isinstance(breaker.exception(), KeyboardInterrupt)
    loop.close()


def test_the_timeout_of_amap_is_told_to_its_consumer_and_cancels_nobody(run, pool):
    late = threading.Event()

    async def consume():
        got = 0
        with pytest.raises(offloop.TimeoutError):
            async for _ in pool.amap(lambda wait: wait and late.wait(), [False, True], timeout=0.5):
                got += 1
                await asyncio.sleep(0.6)  # longer than the timeout, which runs out meanwhile
        return got

    async def main():
        task = asyncio.create_task(consume())
        assert await task == 1
        assert not task.cancelled()
        late.set()
        # Who left the loop early and holds the iterator is left alone.
        results = pool.amap("noop", [b"1", b"2"], timeout=0.5)
        assert await anext(results) == b"1"
        await asyncio.sleep(0.6)
        await results.aclose()

    run(main())
