"""Exit, signals, fork, sub-interpreters: what an interpreter does to a library with threads."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import os
import signal
import threading
import time
import traceback

import offloop
import pytest


def test_callables_are_finished_at_exit(script):
    done = script(
        """
import offloop, time
def late(text):
    time.sleep(0.2)
    print(text, flush=True)
pool = offloop.ThreadPool(2)
for n in range(4):
    pool.submit(late, "apple")
"""
    )
    assert done.stdout.split() == ["apple"] * 4


def test_shutdown_without_wait_does_not_hang_at_exit(script):
    done = script(
        """
import offloop, time
pool = offloop.ThreadPool(2)
pool.submit(lambda: (time.sleep(0.2), print("apple", flush=True)))
pool.shutdown(wait=False)
"""
    )
    assert done.stdout.split() == ["apple"]


def test_ops_in_flight_do_not_hold_the_exit_unless_somebody_will_hear_of_them(script):
    done = script(
        """
import offloop
pool = offloop.ThreadPool(2)
pool.submit("noop", sleep_ms=3_000_000)
offloop.default_pool().submit("noop", sleep_ms=3_000_000)
pool.submit("crc32", b"hello").add_done_callback(lambda f: print(f.result(), flush=True))
pool.submit("noop", bytes(1 << 20), sleep_ms=3_000_000, ignore_cancel=True)
"""
    )
    assert done.stdout.split() == ["907060870"]


def test_ops_that_a_living_thread_waits_for_are_finished_at_exit(script):
    done = script(
        """
import offloop, threading, time
pool = offloop.ThreadPool(2)
def wait(get):
    print(get(), flush=True)
for get in (
    lambda: pool.submit("noop", b"apple", sleep_ms=300).result(),
    lambda: offloop.ops.noop(b"a" * (1 << 20), sleep_ms=300) and b"apple",
):
    threading.Thread(target=wait, args=(get,)).start()
pool.submit("noop", sleep_ms=3_000_000)
while pool.stats.running < 2:
    time.sleep(0.001)
while offloop.default_pool().stats.running < 1:
    time.sleep(0.001)
"""
    )
    assert done.stdout.split() == ["b'apple'"] * 2


def test_submit_at_exit_is_refused(script):
    done = script(
        """
import atexit, offloop
pool = offloop.ThreadPool(2)
@atexit.register
def last():
    try:
        pool.submit(id, None)
    except RuntimeError as e:
        print(type(e).__name__, e)
    print(offloop.ops.crc32(b"hello"))
"""
    )
    assert "ClosedError" in done.stdout
    assert "cannot schedule new futures after interpreter shutdown" in done.stdout
    assert "907060870" in done.stdout


@pytest.mark.parametrize("wait", ["future.result()", "offloop.ops.noop(bytes(1 << 20), sleep_ms=3_000_000)", "cf.wait([future])"])
def test_a_daemon_thread_in_a_wait_does_not_break_the_exit(script, wait):
    script(
        f"""
import concurrent.futures as cf, offloop, threading, time
pool = offloop.ThreadPool(1)
future = pool.submit("noop", sleep_ms=3_000_000)
threading.Thread(target=lambda: {wait}, daemon=True).start()
class Slow:
    def __del__(self):
        for _ in range(40):
            time.sleep(0.01)
slow = Slow()
cycle = [slow]; cycle.append(cycle)
time.sleep(0.1)
"""
    )


def test_exit_with_an_event_loop_and_work_in_flight(script):
    script(
        """
import asyncio, offloop
async def main():
    tasks = [asyncio.ensure_future(offloop.ops.aio.noop(sleep_ms=3_000_000)) for _ in range(100)]
    await asyncio.sleep(0.05)
asyncio.run(main())
"""
    )


WAITS = {
    "result": 'offloop.ThreadPool(1).submit("noop", sleep_ms=3_000_000).result()',
    "exception": 'offloop.ThreadPool(1).submit("noop", sleep_ms=3_000_000).exception()',
    "ops, long": "offloop.ops.noop(bytes(1 << 20), sleep_ms=3_000_000)",
    "ops, inline": "offloop.ops.noop(b'', sleep_ms=3_000_000)",
    "wait": 'cf.wait([offloop.ThreadPool(1).submit("noop", sleep_ms=3_000_000)])',
    "map": 'list(offloop.ThreadPool(1).map("noop", [b""], sleep_ms=3_000_000))',
    "shutdown": 'p = offloop.ThreadPool(1); p.submit("noop", sleep_ms=3_000_000); p.shutdown()',
    "full queue": 'p = offloop.ThreadPool(1, max_queue=1); [p.submit("noop", sleep_ms=3_000_000) for _ in range(99)]',
    "asyncio": "asyncio.run(offloop.ops.aio.noop(sleep_ms=3_000_000))",
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_ctrl_c_ends_every_wait(script, wait):
    done = script(
        f"""
import asyncio, concurrent.futures as cf, offloop, os, signal, threading
offloop.ops.crc32(b"")
timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
timer.daemon = True
try:
    timer.start()
    {wait.replace("; ", chr(10) + "    ")}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    )
    assert done.stdout == "interrupted\n"


def test_a_thousand_forks_under_load_harm_nobody():
    with offloop.ThreadPool(2) as pool:
        pool.submit(pow, 2, 3).result()
        inherited = pool.submit("noop", sleep_ms=1)
        for n in range(1000):
            futures = [pool.submit("noop", b"x" * 100) for _ in range(4)] + [pool.submit(abs, -n)]
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    assert pool.submit("crc32", b"hello").result(timeout=60) == 907060870
                    if n % 10 == 0:
                        assert pool.submit(pow, 2, 5).result(timeout=60) == 32
                        assert offloop.ops.crc32(bytes(100_000)) is not None
                        told = []
                        f = pool.submit("noop", sleep_ms=1)
                        f.add_done_callback(told.append)
                        while not told:
                            pass
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0, n
            assert [f.result() for f in futures] == [b"x" * 100] * 4 + [n]
        assert inherited.result() == b""
        assert pool.stats.failed == 0


def test_forks_while_other_threads_start_workers_and_drop_inputs():
    """What the interpreter's lock does not cover: threads wanted by workers, and inputs that native threads release."""
    stop = threading.Event()
    long = b"x" * (32 << 10)

    def load():
        while not stop.is_set():
            with offloop.ThreadPool(4) as pool:
                futures = pool.submit_many(abs, range(-64, 0)) + pool.submit_many("crc32", [long] * 64)
                assert all(f.result() is not None for f in futures)

    with offloop.ThreadPool(4) as pool:
        loader = threading.Thread(target=load)
        loader.start()
        try:
            for n in range(1000 if "OFFLOOP_TORTURE" in os.environ else 300):
                # More than one worker is wanted, and the second one by the first.
                futures = pool.submit_many(abs, range(-16, 0))
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        signal.alarm(60)  # ends a hang; the watchdog of the parent is not the child's
                        code = pool.submit(abs, -3).result() + pool.submit("noop", long).result().count(b"y") - 3
                    finally:
                        os._exit(code)
                assert os.waitpid(pid, 0)[1] == 0, n
                assert [f.result() for f in futures] == list(range(16, 0, -1))
        finally:
            stop.set()
            loader.join()


def in_child(check):
    """Runs `check` in a forked child."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(60)  # ends a hang; the watchdog of the parent is not the child's
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


async def awaited(future):
    return await future


async def wrapped(future):
    return await asyncio.wrap_future(future)


def asked_for_its_exception(future):
    if (e := future.exception()) is not None:
        raise e
    return future.result()


def told(future):
    told = []
    future.add_done_callback(told.append)
    return told.pop().result()


@pytest.mark.parametrize(
    "take",
    [
        lambda f: f.result(),
        asked_for_its_exception,
        lambda f: cf.wait([f]).done.pop().result(),
        lambda f: next(cf.as_completed([f])).result(),
        lambda f: asyncio.run(awaited(f)),
        lambda f: asyncio.run(wrapped(f)),
        told,
    ],
    ids=["result", "exception", "wait", "as_completed", "await", "wrap_future", "add_done_callback"],
)
def test_an_inherited_future_ends_with_forked_however_the_child_takes_it(take, gate):
    with offloop.ThreadPool(1) as pool:
        done = pool.submit("noop", b"before")
        assert done.result() == b"before"
        untaken = pool.submit("noop", b"untaken")
        cf.wait([untaken])
        calls = [pool.submit(gate.wait) for _ in range(2)]
        ops = [pool.submit("noop", b"apple", sleep_ms=200) for _ in range(2)]
        watched = pool.submit(gate.wait)
        told_in_parent = []
        watched.add_done_callback(lambda _: told_in_parent.append(os.getpid()))
        held = pool.submit(gate.wait)
        holds, over = threading.Event(), threading.Event()

        def hold():
            with held._condition:
                holds.set()
                over.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        holds.wait()

        def child():
            assert take(done) == b"before"
            assert take(untaken) == b"untaken"
            for future in [*calls, *ops, watched, held]:
                for _ in range(2):
                    with pytest.raises(offloop.ForkedError):
                        take(future)
                assert future.done()
                assert not (future.running())
                assert not (future.cancelled())
                assert not (future.cancel())
                assert not (future.kill())
                assert future.take_progress() is None
                assert "finished raised ForkedError" in repr(future)
            assert not told_in_parent

        try:
            in_child(child)
        finally:
            over.set()
            gate.set()
            holder.join()
        assert [f.result() for f in (*calls, watched, held)] == [True] * 4
        assert [f.result() for f in ops] == [b"apple"] * 2
        pool.submit(abs, 1).result()
    assert told_in_parent == [os.getpid()]


def test_a_result_that_another_thread_was_taking_at_the_fork_is_lost_to_the_child():
    data = bytes(128 << 20)
    with offloop.ThreadPool(1) as pool:
        future = pool.submit("noop", data)
        while not future.done():
            time.sleep(0.001)
        taker = threading.Thread(target=future.result)
        taker.start()

        def child():
            with contextlib.suppress(offloop.ForkedError):
                assert len(future.result()) == len(data)
            assert future.done()

        in_child(child)
        taker.join()
        assert len(future.result()) == len(data)


def test_multiprocessing_fork_children_use_pools(script):
    done = script(
        """
import multiprocessing, offloop
pool = offloop.ThreadPool(2)
def child(n):
    return pool.submit(pow, 2, n).result() + offloop.ops.crc32(b"") + len(pool.submit("sha256", b"").result())
print(pool.submit(pow, 2, 1).result())
with multiprocessing.get_context("fork").Pool(2) as processes:
    print(processes.map(child, range(5)))
"""
    )
    assert done.stdout.split("\n")[1] == str([1 + 32, 2 + 32, 4 + 32, 8 + 32, 16 + 32])


def test_a_sub_interpreter_is_refused(script):
    done = script(
        """
import offloop
import _xxsubinterpreters as interpreters
for isolated in (False, True):
    i = interpreters.create(isolated=isolated)
    try:
        interpreters.run_string(i, "import offloop")
        print("imported")
    except interpreters.RunFailedError as e:
        print("ImportError" in str(e))
print(offloop.ops.crc32(b"hello"))
""",
        check=False,
    )
    if "No module named" in done.stderr:
        pytest.skip("this interpreter has no _xxsubinterpreters")
    assert done.stdout.split() == ["True", "True", "907060870"], done.stderr


def test_import_starts_no_thread_and_opens_nothing(script):
    done = script(
        """
import concurrent.futures, concurrent.futures.thread, asyncio, dataclasses, os
before = os.listdir("/proc/self/task"), os.listdir("/proc/self/fd")
import offloop
print((os.listdir("/proc/self/task"), os.listdir("/proc/self/fd")) == before)
"""
    )
    assert done.stdout.split() == ["True"]
