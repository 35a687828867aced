"""ProcessPool: functions in worker processes, and what becomes of them."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipapp
from collections import deque
from collections.abc import Callable, Iterator
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


# ---- what workers run ----


def echo(*args: Any, **kwargs: Any) -> Any:
    if kwargs:
        return args, kwargs
    return args[0] if len(args) == 1 else args


def inc(n: int) -> int:
    return n + 1


def pid() -> int:
    return os.getpid()


def slow_pid(_: int) -> int:
    time.sleep(0.02)
    return os.getpid()


def end(code: int) -> None:
    os._exit(code)


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


class Weird(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} of {two}")


class Rich(Exception):
    pass


def fail(kind: str) -> None:
    if kind == "rich":
        error = Rich("bad", 7)
        error.row = 3  # type: ignore[attr-defined]
        error.add_note("look here")
        raise error
    if kind == "weird":
        raise Weird(1, 2)
    if kind == "exit":
        raise SystemExit(3)
    raise LookupError(kind)


def give(what: str) -> Any:
    if what == "lock":
        return threading.Lock()
    if what == "lambda":
        return lambda: 1
    return Brittle()


class Brittle:
    def __reduce__(self) -> Any:
        return (fail, ("on the way back",))


class Stubborn:
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


kept: list[Any] = []


def keep(array: Any) -> float:
    kept.append(array)
    return float(array.sum())


def kept_sums() -> list[float]:
    return [float(a.sum()) for a in kept]


def double_in_place(array: Any) -> Any:
    array *= 2
    return array


def facts_of(array: Any) -> tuple[bool, bool, int]:
    return array.flags.writeable, array.flags.owndata, array.ctypes.data % 64


def busy(path: str | None = None) -> None:
    if path is not None:
        Path(path).touch()
    while True:
        pass


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def touch(path: str, seconds: float = 0) -> None:
    time.sleep(seconds)
    Path(path).touch()


def append(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


def watched(path: str) -> str:
    task = offloop.current_task()
    assert task is not None
    Path(path).touch()
    while not task.cancelled():
        time.sleep(0.001)
    Path(path + ".saw").touch()
    return "saw it"


def tell(n: int) -> tuple[Any, Any]:
    task = offloop.current_task()
    assert task is not None
    task.progress({"done": n})
    while not task.cancelled():
        time.sleep(0.001)
    return None, None


def context_here() -> Any:
    task = offloop.current_task()
    return None if task is None else task.context


started: list[Any] = []


def start(*args: Any) -> None:
    started.extend(args)


def started_with() -> list[Any]:
    return started


def start_badly() -> None:
    raise RuntimeError("no model file")


def nested(n: int) -> int:
    with offloop.ProcessPool(max_workers=1) as pool:
        return pool.submit(inc, n).result(60)


def nth_thread() -> int:
    barrier.wait(60)
    return threading.get_ident()


barrier = threading.Barrier(2)


def ignores_sigint() -> bool:
    os.kill(os.getpid(), signal.SIGINT)
    return os.getpgid(0) == os.getpid()


def eventually(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.002)


# ---- values ----


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        2**63,
        1.5,
        float("inf"),
        "",
        "text ü€🙂",
        "lone \ud800",
        b"",
        b"short",
        b"x" * 4095,
        b"x" * 4096,
        b"x" * 3_000_000,
        "long" * 10_000,
        (),
        (1, "two", [3.0, {4: b"5"}]),
        {"a": {1, 2}, "b": frozenset({"c"})},
        bytearray(b"mutable"),
        complex(1, 2),
        int,
        inc,
    ],
    ids=lambda v: repr(v)[:20],
)
def test_values_arrive_as_they_were_sent(processes: offloop.ProcessPool, value: Any) -> None:
    back = processes.submit(echo, value).result(60)
    assert back == value
    assert type(back) is type(value)


def test_arguments_are_passed_as_a_call_has_them(processes: offloop.ProcessPool) -> None:
    assert processes.submit(echo, 1, "b", b"c").result(60) == (1, "b", b"c")
    assert processes.submit(echo, 1, key=[2]).result(60) == ((1,), {"key": [2]})
    assert processes.submit(echo, *range(300)).result(60) == tuple(range(300))
    assert processes.submit(pow, 2, 10).result(60) == 1024
    assert processes.submit("a{}c".format, "b").result(60) == "abc"
    assert processes.submit(echo, b"x" * 5000, b"y" * 9000, 3).result(60) == (b"x" * 5000, b"y" * 9000, 3)


def test_a_bound_method_is_sent_as_it_is_now(processes: offloop.ProcessPool) -> None:
    items = [1]
    count = items.count
    assert processes.submit(count, 1).result(60) == 1
    items.append(1)
    assert processes.submit(count, 1).result(60) == 2


@pytest.mark.parametrize("length", [1, 100, 1000, 100_000, 2_000_000])
def test_arrays_go_in_and_out_writable(processes: offloop.ProcessPool, length: int) -> None:
    array = np.arange(length, dtype="f8")
    back = processes.submit(double_in_place, array).result(60)
    assert (back == array * 2).all()
    assert back.flags.writeable
    back += 1
    assert array[-1] == length - 1


def test_an_array_in_a_worker_is_a_view_of_shared_memory(processes: offloop.ProcessPool) -> None:
    assert processes.submit(facts_of, np.zeros(100_000)).result(60) == (True, False, 0)
    readonly = np.zeros(1000)
    readonly.flags.writeable = False
    assert processes.submit(facts_of, readonly).result(60)[0] is False


def test_arrays_that_are_kept_stay_as_they_are_on_both_sides() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        for i in range(100):
            assert pool.submit(keep, np.full(1000, i)).result(60) == i * 1000
        results = [pool.submit(double_in_place, np.full(1000, i)).result(60) for i in range(200)]
        assert pool.submit(kept_sums).result(60) == [i * 1000 for i in range(100)]
        assert all((r == 2 * i).all() for i, r in enumerate(results))
    assert all((r == 2 * i).all() for i, r in enumerate(results))


# ---- errors ----


def test_an_exception_arrives_with_its_class_arguments_notes_and_remote_traceback(processes: offloop.ProcessPool) -> None:
    with pytest.raises(Rich) as caught:
        processes.submit(fail, "rich").result(60)
    error = caught.value
    assert (error.args, error.row, error.__notes__) == (("bad", 7), 3, ["look here"])  # type: ignore[attr-defined]
    assert type(error.__cause__).__name__ == "_RemoteTraceback"
    assert "in fail" in str(error.__cause__)


def test_what_is_no_exception_of_exception_comes_too(processes: offloop.ProcessPool) -> None:
    with pytest.raises(SystemExit) as caught:
        processes.submit(fail, "exit").result(60)
    assert caught.value.code == 3


def test_an_exception_that_cannot_be_rebuilt_fails_its_own_task_only(processes: offloop.ProcessPool) -> None:
    good = [processes.submit(inc, i) for i in range(50)]
    with pytest.raises(offloop.TaskFailedError, match="Weird: 1 of 2") as caught:
        processes.submit(fail, "weird").result(60)
    assert caught.value.name == "Weird"  # type: ignore[attr-defined]
    assert "in fail" in caught.value.stack  # type: ignore[attr-defined]
    assert [f.result(60) for f in good] == list(range(1, 51))


@pytest.mark.parametrize(("what", "named"), [("lock", "type=lock"), ("lambda", "type=function"), ("brittle", "rebuilt")])
def test_a_result_that_cannot_travel_fails_its_own_task_only(processes: offloop.ProcessPool, what: str, named: str) -> None:
    with pytest.raises(offloop.UnserializableError, match=named):
        processes.submit(give, what).result(60)
    assert processes.submit(inc, 1).result(60) == 2


def test_an_argument_that_cannot_be_pickled_is_refused_by_submit(processes: offloop.ProcessPool) -> None:
    with pytest.raises(offloop.UnserializableError, match="argument.*RuntimeError: no"):
        processes.submit(echo, Stubborn())
    with pytest.raises(offloop.UnserializableError, match="argument"):
        processes.submit_many(echo, [1, Stubborn()])
    assert processes.submit(inc, 1).result(60) == 2


def test_what_is_no_callable_is_refused(processes: offloop.ProcessPool) -> None:
    with pytest.raises(offloop.InvalidError, match="type=str"):
        processes.submit("inc", 1)
    with pytest.raises(TypeError):
        processes.submit()  # type: ignore[call-arg]


# ---- lost workers ----


@pytest.mark.parametrize(
    ("fn", "arg", "code", "number"),
    [(end, 3, 3, None), (signal_self, signal.SIGKILL, None, 9), (signal_self, signal.SIGSEGV, None, 11)],
    ids=["exit", "kill", "segfault"],
)
def test_a_worker_that_ends_loses_its_own_task_only(
    processes: offloop.ProcessPool, fn: Any, arg: int, code: int | None, number: int | None
) -> None:
    before = [processes.submit(inc, i) for i in range(50)]
    dies = processes.submit(fn, arg)
    after = [processes.submit(inc, i) for i in range(50)]
    with pytest.raises(offloop.WorkerLostError) as caught:
        dies.result(60)
    assert isinstance(caught.value, cf.BrokenExecutor)
    assert (caught.value.exit_code, caught.value.signal, caught.value.oom) == (code, number, False)
    for futures in (before, after):
        assert [f.result(60) for f in futures] == list(range(1, 51))


def test_what_callers_of_the_standard_library_catch_is_caught() -> None:
    code = """
import offloop, os, pickle
pool = offloop.ProcessPool(1)
future = pool.submit(os._exit, 3)
from concurrent.futures.process import BrokenProcessPool
try:
    future.result(60)
except BrokenProcessPool as e:
    assert type(e) is offloop.WorkerLostError and e.exit_code == 3
assert issubclass(offloop.StartFailedError, BrokenProcessPool) and issubclass(offloop.DegradedError, BrokenProcessPool)
assert type(pickle.loads(pickle.dumps(offloop.WorkerLostError("a")))) is offloop.WorkerLostError
try:
    pool.submit(len, os.scandir())
except pickle.PicklingError as e:
    assert isinstance(e, TypeError)
pool.shutdown()
print("fine")
"""
    assert program(["-c", code], blocked=True).stdout == "fine\n"


def test_proxies_of_a_manager_work_in_a_worker(processes: offloop.ProcessPool) -> None:
    with multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.dict()
        assert processes.submit(put, shared, "a", 1).result(60) is None
        assert shared["a"] == 1


def put(where: Any, key: str, value: int) -> None:
    where[key] = value


def test_a_task_that_kills_each_worker_is_poison_after_its_retries() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        with pytest.raises(offloop.WorkerLostError) as caught:
            pool.options(retries=1).submit(end, 1).result(60)
        assert caught.value.poison is True
        assert pool.submit(inc, 1).result(60) == 2


def test_an_initializer_that_raises_fails_the_tasks_with_its_text() -> None:
    with offloop.ProcessPool(max_workers=1, initializer=start_badly) as pool:
        with pytest.raises(cf.BrokenExecutor, match="no model file") as caught:
            pool.submit(inc, 1).result(60)
        assert isinstance(caught.value, offloop.StartFailedError | offloop.WorkerLostError | offloop.DegradedError)


# ---- options ----


def test_each_worker_runs_initializer_and_teardown_and_has_the_context(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pool = offloop.ProcessPool(
        max_workers=1, initializer=start, initargs=(1, "b"), teardown=Teardown(str(log)), context={"model": 3}, preload=["wave"]
    )
    with pool:
        assert pool.submit(started_with).result(60) == [1, "b"]
        assert pool.submit(context_here).result(60) == {"model": 3}
        assert pool.submit(has_module, "wave").result(60)
    assert log.read_text() == "down\n"


class Teardown:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> None:
        append(self.path, "down")


def has_module(name: str) -> bool:
    return name in sys.modules


def test_no_process_is_forked_and_that_is_said() -> None:
    for method in ("spawn", "forkserver"):
        with offloop.ProcessPool(1, multiprocessing.get_context(method)) as pool:
            assert pool.submit(inc, 1).result(60) == 2
    with pytest.raises(offloop.InvalidError, match="never forks.*value=fork"):
        offloop.ProcessPool(1, multiprocessing.get_context("fork"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_workers": 0}, "max_workers must be greater than 0"),
        ({"max_workers": -1}, "max_workers must be greater than 0"),
        ({"max_workers": 1, "min_workers": 2}, "min_workers"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_tasks_per_child": 0}, "max_tasks_per_child"),
        ({"max_worker_age": 0}, "max_worker_age"),
        ({"max_worker_memory": 0}, "max_worker_memory"),
        ({"concurrency": 0}, "concurrency"),
        ({"cancel_grace": -1}, "cancel_grace"),
        ({"on_full": "drop"}, "on_full"),
        ({"nice": 40}, "nice"),
        ({"preload": [3]}, "preload"),
        ({"node": "a.mjs", "python": "python3"}, "exclude"),
        ({"command": []}, "command is empty"),
        ({"mp_context": 5}, "option=mp_context, value=5, want=spawn forkserver"),
        ({"mp_context": "thread"}, "option=mp_context, value=thread, want=spawn forkserver"),
        ({"env": {"A": 5}}, "option=env, name='A', value=5"),
        ({"env": {5: "A"}}, "option=env, name=5, value='A'"),
        ({"env": ["A=5"]}, "option=env, value=.'A=5'., want=a mapping"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_bad_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(offloop.InvalidError, match=named):
        offloop.ProcessPool(**options)


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(offloop.NotFoundError, match="python9"):
        offloop.ProcessPool(python="python9")
    with pytest.raises(offloop.NotFoundError, match=r"render\.mjs"):
        offloop.ProcessPool(node="render.mjs")


def test_another_interpreter_runs_functions_of_its_own_modules(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    with offloop.ProcessPool(1, python=other) as pool:
        assert pool.submit(os.path.basename, "a/b").result(60) == "b"
        assert pool.submit(os.readlink, "/proc/self/exe").result(60) == os.path.realpath(sys.executable)


def test_workers_are_replaced_after_so_many_tasks() -> None:
    with offloop.ProcessPool(max_workers=1, max_tasks_per_child=2) as pool:
        pids = [pool.submit(pid).result(60) for _ in range(6)]
    assert len(set(pids)) >= 3


def test_a_worker_runs_as_many_tasks_at_once_as_it_may() -> None:
    with offloop.ProcessPool(max_workers=1, concurrency=2) as pool:
        one, two = pool.submit(nth_thread), pool.submit(nth_thread)
        assert one.result(60) != two.result(60)


def test_a_full_queue_rejects_or_waits(tmp_path: Path) -> None:
    with offloop.ProcessPool(max_workers=1, max_queue=1, on_full="reject") as pool:
        with pytest.raises(offloop.Full):
            for _ in range(1000):
                pool.submit(sleep, 0.2)
        pool.shutdown(cancel_futures=True)
    with offloop.ProcessPool(max_workers=1, max_queue=1) as pool:
        assert [f.result(60) for f in [pool.submit(inc, i) for i in range(200)]] == list(range(1, 201))


def test_ctrl_c_of_the_terminal_does_not_reach_workers(processes: offloop.ProcessPool) -> None:
    assert processes.submit(ignores_sigint).result(60) is True


# ---- futures ----


def test_futures_are_those_of_the_standard_library(processes: offloop.ProcessPool) -> None:
    futures = [processes.submit(inc, i) for i in range(20)]
    done, waiting = cf.wait(futures, timeout=60)
    assert len(done) == 20
    assert not waiting
    assert {f.result() for f in cf.as_completed([processes.submit(inc, i) for i in range(20)], timeout=60)} == set(range(1, 21))
    heard: list[Any] = []
    future = processes.submit(inc, 1)
    future.add_done_callback(lambda f: heard.append(f.result()))
    eventually(lambda: heard == [2])


def test_map_has_the_order_of_its_items(processes: offloop.ProcessPool) -> None:
    assert list(processes.map(pow, range(100), range(100))) == [i**i for i in range(100)]
    assert list(processes.map(inc, range(100), chunksize=7)) == list(range(1, 101))
    assert sorted(processes.map(inc, range(100), ordered=False)) == list(range(1, 101))
    assert list(processes.map(inc, [])) == []
    with pytest.raises(LookupError):
        list(processes.map(fail, ["x"], chunksize=2))
    assert sorted(processes.map(inc, range(100), chunksize=7, ordered=False)) == list(range(1, 101))
    with pytest.raises(offloop.InvalidError, match="chunksize"):
        processes.map(inc, [1], chunksize=0)
    assert [f.result(60) for f in processes.submit_many(inc, range(10))] == list(range(1, 11))


@pytest.mark.parametrize("make", [offloop.ThreadPool, offloop.ProcessPool])
@pytest.mark.parametrize(
    ("size", "named"), [("x", "value='x', want=an integer"), (1.5, r"value=1\.5, want=an integer"), (0, "value=0, min=1")]
)
def test_a_bad_chunksize_is_named(make: Any, size: Any, named: str) -> None:
    with make(1) as pool, pytest.raises(offloop.InvalidError, match=f"option=chunksize, {named}"):
        pool.map(inc, [1, 2], chunksize=size)


@pytest.mark.parametrize("ordered", [True, False])
def test_several_chunks_of_a_map_run_at_once(ordered: bool) -> None:
    with offloop.ProcessPool(max_workers=2) as pool:
        pool.broadcast(pid)
        eventually(lambda: len(set(pool.map(slow_pid, range(8)))) == 2)
        # Each chunk waits for the other one.
        assert sorted(pool.map(meet, [(1, 2), (1, 2), (2, 1), (2, 1)], [meeting()] * 4, chunksize=2, ordered=ordered)) == [1, 1, 2, 2]


def meeting() -> str:
    import tempfile

    return tempfile.mkdtemp()


def meet(me_and_other: tuple[int, int], place: str) -> int:
    me, other = me_and_other
    Path(place, str(me)).touch()
    eventually(Path(place, str(other)).exists)
    return me


def test_a_pool_that_closes_reads_a_chunked_map_to_its_end() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        results = pool.map(inc, range(5000), chunksize=2)
        assert next(results) == 1
    assert list(results) == list(range(2, 5001))


def test_closing_a_chunked_map_cancels_what_was_not_started() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        results = pool.map(slow_pid, range(1000), chunksize=2)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert list(results) == []
        pool.shutdown()
        assert pool.stats.completed < 500


def test_one_thread_with_many_calls_in_flight_never_waits_for_a_worker_that_sleeps(processes: offloop.ProcessPool) -> None:
    flying: deque[offloop.Future[Any]] = deque()
    for _i in range(200_000):
        if len(flying) == 1000:
            assert flying.popleft().result(60) is None
        flying.append(processes.submit(echo, None))
    while flying:
        assert flying.popleft().result(60) is None


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_event_loops_await_tasks(processes: offloop.ProcessPool, loop: str) -> None:
    factory = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    async def main() -> None:
        assert await processes.run(inc, 1) == 2
        assert await processes.submit(inc, 2) == 3
        assert await asyncio.wrap_future(processes.submit(inc, 3)) == 4
        assert await asyncio.get_running_loop().run_in_executor(processes, inc, 4) == 5
        assert [x async for x in processes.amap(inc, range(50))] == list(range(1, 51))
        back = await processes.run(double_in_place, np.arange(300_000))
        assert back[-1] == 2 * 299_999
        assert await processes.run(echo, b"z" * 3_000_000) == b"z" * 3_000_000
        with pytest.raises(Rich):
            await processes.run(fail, "rich")

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_cancelling_an_await_stops_the_function(tmp_path: Path) -> None:
    path = str(tmp_path / "started")

    async def main(pool: offloop.ProcessPool) -> None:
        task = asyncio.ensure_future(pool.run(watched, path))
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with offloop.ProcessPool(max_workers=1, cancel_grace=60) as pool:
        asyncio.run(main(pool))
        eventually(lambda: os.path.exists(path + ".saw"))


def test_a_busy_function_is_killed_with_its_worker_and_nothing_else_is(tmp_path: Path) -> None:
    path = str(tmp_path / "busy")
    with offloop.ProcessPool(max_workers=1, cancel_grace=0.05) as pool:
        first = pool.submit(pid).result(60)
        future = pool.submit(busy, path)
        behind = [pool.submit(inc, i) for i in range(20)]
        eventually(lambda: os.path.exists(path))
        assert future.cancel() is False
        assert future.kill() is True
        with pytest.raises(offloop.CancelledError):
            future.result(60)
        assert [f.result(60) for f in behind] == list(range(1, 21))
        assert pool.submit(pid).result(60) != first


def test_a_timeout_ends_a_function() -> None:
    with offloop.ProcessPool(max_workers=1, cancel_grace=0.05) as pool:
        with pytest.raises(offloop.TimeoutError):
            pool.options(timeout=0.2).submit(busy).result(60)
        assert pool.submit(inc, 1).result(60) == 2


def test_a_running_function_tells_how_far_it_is() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        future = pool.submit(tell, 3)
        said: list[Any] = []

        def heard() -> bool:
            if (now := future.take_progress()) is not None:
                said.append(now)
            return bool(said)

        eventually(heard)
        assert said == [{"done": 3}]
        future.kill()


# ---- the end ----


def test_shutdown_finishes_what_was_submitted_and_leaves_no_process() -> None:
    pool = offloop.ProcessPool(max_workers=2)
    futures = [pool.submit(inc, i) for i in range(500)]
    worker = pool.submit(pid)
    pool.shutdown()
    assert [f.result(0) for f in futures] == list(range(1, 501))
    assert not os.path.exists(f"/proc/{worker.result(0)}")
    with pytest.raises(offloop.ClosedError):
        pool.submit(inc, 1)


def test_shutdown_without_waiting_finishes_too() -> None:
    pool = offloop.ProcessPool(max_workers=1)
    future = pool.submit(sleep, 0.3)
    worker = pool.submit(pid)
    pool.shutdown(wait=False)
    assert future.result(60) == 0.3
    eventually(lambda: not os.path.exists(f"/proc/{worker.result(60)}"))


def test_shutdown_cancels_what_waits_when_asked_to() -> None:
    pool = offloop.ProcessPool(max_workers=1)
    running = pool.submit(sleep, 0.5)
    eventually(running.running)
    waiting = [pool.submit(sleep, 0.01) for _ in range(200)]
    pool.shutdown(cancel_futures=True)
    assert running.result(0) == 0.5
    assert sum(f.cancelled() for f in waiting) > 0
    assert all(f.done() for f in waiting)


def test_terminate_ends_what_runs() -> None:
    pool = offloop.ProcessPool(max_workers=1)
    worker = pool.submit(pid).result(60)
    future = pool.submit(busy)
    eventually(future.running)
    pool.terminate()
    with pytest.raises(offloop.CancelledError):
        future.result(60)
    eventually(lambda: not os.path.exists(f"/proc/{worker}"))


def test_a_worker_can_have_a_pool(processes: offloop.ProcessPool) -> None:
    assert processes.submit(nested, 5).result(120) == 6


def test_a_broadcast_runs_once_in_each_worker() -> None:
    with offloop.ProcessPool(max_workers=2) as pool:
        assert pool.broadcast(echo, 1) == [1]
        eventually(lambda: len(set(pool.map(slow_pid, range(8)))) == 2)
        pids = pool.broadcast(pid)
        assert len(pids) == 2
        assert len(set(pids)) == 2
        with pytest.raises(LookupError):
            pool.broadcast(fail, "x")
        with pytest.raises(offloop.InvalidError, match="option=key"):
            pool.options(key="a").broadcast(pid)


def test_stats_count_tasks() -> None:
    with offloop.ProcessPool(max_workers=1, name="counted") as pool:
        for i in range(5):
            pool.submit(inc, i).result(60)
        with pytest.raises(LookupError):
            pool.submit(fail, "x").result(60)
        stats = pool.stats
        assert (stats.submitted, stats.completed, stats.failed, stats.workers) == (6, 5, 1, 1)
        assert 'pool="counted"' in offloop.metrics()


# ---- programs ----

BODY = """
import offloop, os, sys

def inc(n):
    return n + 1

class Pair:
    def __init__(self, a):
        self.a = a

def pair(a):
    return Pair(a)

def main():
    with offloop.ProcessPool(1) as pool:
        assert pool.submit(inc, 1).result(60) == 2
        assert pool.submit(pair, Pair(4)).result(60).a.a == 4
        assert type(pool.submit(pair, 4).result(60)) is Pair
    print("fine")

if __name__ == "__main__":
    main()
"""


def program(args: list[str], *, stdin: str | None = None, blocked: bool = False, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(PACKAGE), "PATH": os.environ["PATH"]}
    if blocked:
        env["PYTHONPATH"] = str(Path(__file__).parent / "no_cloudpickle") + ":" + env["PYTHONPATH"]
    done = subprocess.run([sys.executable, *args], input=stdin, capture_output=True, text=True, timeout=120, env=env)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def test_functions_of_a_script_work(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(BODY)
    assert program([str(script)], blocked=True).stdout == "fine\n"
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "prog.py").write_text(BODY)
    done = subprocess.run(
        [sys.executable, "-m", "pkg.prog"], cwd=tmp_path, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(PACKAGE)}
    )
    assert done.stdout == "fine\n", done.stderr


def main_py(directory: Path, body: str) -> Path:
    """A package `app` whose `__main__.py` has this."""
    package = directory / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "other.py").write_text("def say(text):\n    return text\n")
    (package / "__main__.py").write_text(body)
    return package


@pytest.mark.parametrize("how", ["package", "directory", "archive"])
@pytest.mark.parametrize("preload", ["", "preload=['__main__']"], ids=["exec", "zygote"])
def test_functions_of_a_main_py_work(tmp_path: Path, how: str, preload: str) -> None:
    package = main_py(tmp_path, BODY.replace("ProcessPool(1)", f"ProcessPool(1, {preload})"))
    if how == "archive":
        zipapp.create_archive(package, tmp_path / "app.pyz")
        shutil.rmtree(package)
    args = {"package": ["-m", "app"], "directory": ["app"], "archive": ["app.pyz"]}[how]
    env = {"PYTHONPATH": f"{Path(__file__).parent / 'no_cloudpickle'}:{PACKAGE}"}
    done = subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout == "fine\n", done.stderr


def test_a_main_py_without_a_guard_runs_in_a_worker_only_for_its_functions(tmp_path: Path) -> None:
    main_py(
        tmp_path,
        """
import offloop, sys
from app.other import say

def own(n):
    return n

print("runs", flush=True)
if __name__ != "__main__":
    sys.exit(3)
with offloop.ProcessPool(1) as pool:
    assert pool.submit(say, "__main__").result(60) == "__main__"
    assert pool.submit(say, ["__main__"]).result(60) == ["__main__"]
    print("said", flush=True)
    try:
        pool.submit(own, 1).result(60)
    except offloop.InvalidError as e:
        print(e)
""",
    )
    env = {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run([sys.executable, "-m", "app"], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["runs", "said", "runs"]
    assert "if __name__ == '__main__':" in lines[3]


def test_a_program_whose_directory_was_removed_has_workers() -> None:
    code = """
import math, os, sys, tempfile
import offloop

gone = tempfile.mkdtemp()
os.chdir(gone)
os.rmdir(gone)
sys.path.insert(0, "")
for preload in [], ["json"]:
    with offloop.ProcessPool(1, preload=preload) as pool:
        assert pool.submit(math.sqrt, 9).result(60) == 3
try:
    offloop.ProcessPool(node="render.mjs")
except offloop.NotFoundError as e:
    print(e)
"""
    assert program(["-c", code]).stdout == "not found: there is no such script (option=node, value=render.mjs)\n"


def test_functions_of_a_command_line_and_of_stdin_work_with_cloudpickle() -> None:
    pytest.importorskip("cloudpickle")
    assert program(["-c", BODY]).stdout == "fine\n"
    assert program(["-"], stdin=BODY).stdout == "fine\n"


def test_functions_of_a_command_line_without_cloudpickle_are_a_clear_error() -> None:
    done = program(["-c", BODY], blocked=True, check=False)
    assert "UnserializableError" in done.stderr
    assert "install cloudpickle" in done.stderr


def test_lambdas_and_closures_work_with_cloudpickle(processes: offloop.ProcessPool) -> None:
    pytest.importorskip("cloudpickle")
    n = 5
    assert processes.submit(lambda x: x + n, 1).result(60) == 6
    calls: list[int] = []

    def count() -> int:
        calls.append(1)
        return len(calls)

    # What it refers to is sent anew with each call.
    assert [processes.submit(count).result(60) for _ in range(3)] == [1, 1, 1]


def test_an_open_file_is_refused_with_cloudpickle_too(processes: offloop.ProcessPool, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    path = tmp_path / "rows"
    path.write_text("1\n")
    with path.open() as text, path.open("rb") as raw:
        for file in (text, raw):
            for argument in (file, [file, inc]):
                with pytest.raises(offloop.UnserializableError, match=f"cannot pickle .*{type(file).__name__}"):
                    processes.submit(echo, argument)

        def read() -> str:
            return text.read()

        with pytest.raises(offloop.UnserializableError, match="cannot pickle"):
            processes.submit(read)
    with pytest.raises(offloop.UnserializableError, match="TextIOWrapper"):
        processes.submit(lambda: open(path)).result(60)
    # The process's own streams are known by their names.
    assert sys.__stderr__ is not None
    assert processes.submit(lambda own=sys.__stderr__: own is sys.stderr).result(60)


def test_a_script_without_a_guard_says_what_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(BODY.replace('if __name__ == "__main__":\n    main()', "main()"))
    done = program([str(script)], check=False)
    assert "InvalidError" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr


def test_the_interpreters_exit_finishes_what_was_submitted(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import offloop, sys, time\n"
        "def write(path):\n    time.sleep(0.2)\n    open(path, 'w').close()\n"
        "if __name__ == '__main__':\n    pool = offloop.ProcessPool(1)\n"
        "    pool.submit(write, sys.argv[1])\n    pool.submit(write, sys.argv[2])\n"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert program([str(script), str(one), str(two)]).stderr == ""
    assert one.exists()
    assert two.exists()


def test_the_interpreters_exit_finishes_what_a_pool_has_that_nobody_refers_to(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import gc, offloop, sys, time\n"
        "def write(path):\n    time.sleep(0.1)\n    open(path, 'w').close()\n"
        "def go():\n    pool = offloop.ProcessPool(1)\n    for path in sys.argv[1:]:\n        pool.submit(write, path)\n"
        "if __name__ == '__main__':\n    go()\n    go()\n    gc.collect()\n"
    )
    paths = [tmp_path / str(i) for i in range(4)]
    assert program([str(script), *map(str, paths)]).stderr == ""
    assert all(path.exists() for path in paths)


def test_a_host_that_forks_keeps_its_pool_and_the_child_is_told() -> None:
    code = """
import math, offloop, os
pool = offloop.ProcessPool(1)
future = pool.submit(math.sqrt, 4)
assert future.result(60) == 2
child = os.fork()
if child == 0:
    try:
        pool.submit(math.sqrt, 9)
    except offloop.ForkedError:
        with offloop.ProcessPool(1) as own:
            os._exit(int(own.submit(math.sqrt, 9).result(60)))
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert pool.submit(math.sqrt, 16).result(60) == 4
pool.shutdown()
print("fine")
"""
    assert program(["-c", code]).stdout == "fine\n"


def test_a_child_by_fork_leaves_without_waiting_for_the_parents_pool() -> None:
    code = """
import offloop, os, sys, time
pool = offloop.ProcessPool(1)
future = pool.submit(time.sleep, 0.5)
child = os.fork()
if child == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert future.result(60) is None
"""
    program(["-c", code])


def test_a_child_by_fork_that_shuts_the_pool_down_waits_for_nothing() -> None:
    code = """
import offloop, os, sys, time
pool = offloop.ProcessPool(1)
assert pool.submit(abs, -1).result(60) == 1
for busy in (False, True):
    future = pool.submit(time.sleep, 0.5) if busy else None
    child = os.fork()
    if child == 0:
        pool.shutdown()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert future is None or future.result(60) is None
with pool:
    assert pool.submit(abs, -2).result(60) == 2
print("fine")
"""
    assert program(["-c", code]).stdout == "fine\n"


def test_ctrl_c_inside_of_a_with_block_ends_what_runs() -> None:
    code = """
import offloop, os, signal, threading, time
try:
    with offloop.ProcessPool(1) as pool:
        assert pool.submit(abs, -1).result(60) == 1
        futures = [pool.submit(time.sleep, 1000) for _ in range(2)]
        while not futures[0].running():
            time.sleep(0.01)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        futures[0].result()
except KeyboardInterrupt:
    assert all(f.done() for f in futures)
    print("fine")
"""
    assert program(["-c", code]).stdout == "fine\n"


# ---- workers of another program ----

SCRIPT = """
import numpy as np
import offloop

def init(context):
    global ready
    ready = True

def predict(x, scale=1):
    return {"y": x * scale, "ready": ready}

def total(array):
    return float(np.asarray(array).sum())

def fail(text):
    raise LookupError(text)

class NoRow(Exception):
    pass

class Scale:
    def __call__(self, x):
        return 10 * x

scale = Scale()

def _hidden():
    return 1
"""


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "offloop.worker", str(path)]


def test_exports_of_another_program_are_called_by_name(tmp_path: Path) -> None:
    script = tmp_path / "scoring.py"
    script.write_text(SCRIPT)
    with offloop.ProcessPool(1, command=command(script), env={"PYTHONPATH": str(PACKAGE)}) as pool:
        assert pool.submit("predict", 2.5).result(60) == {"y": 2.5, "ready": True}
        assert pool.exports.predict(2, scale=3).result(60) == {"y": 6, "ready": True}
        assert pool.submit("total", np.arange(100_000.0)).result(60) == 4999950000.0
        with pytest.raises(offloop.TaskFailedError, match="LookupError: 'no row'|LookupError: no row") as caught:
            pool.submit("fail", "no row").result(60)
        assert "in fail" in caught.value.stack  # type: ignore[attr-defined]
        assert pool.submit("scale", 4).result(60) == 40
        for name in ("_hidden", "init", "np", "NoRow", "Scale", "nothing"):
            with pytest.raises(offloop.NotFoundError, match=f"name={name}"):
                pool.submit(name).result(60)
        with pytest.raises(offloop.InvalidError, match="name of an export"):
            pool.submit(inc, 1)  # type: ignore[arg-type]
        with pytest.raises(offloop.UnserializableError):
            pool.submit("predict", object())

        async def main() -> None:
            assert await pool.run("predict", 1) == {"y": 1, "ready": True}

        asyncio.run(main())
    script.write_text(SCRIPT + '__all__ = ["NoRow", "total"]\n')
    with offloop.ProcessPool(1, command=command(script), env={"PYTHONPATH": str(PACKAGE)}) as pool:
        assert pool.submit("total", [1, 2]).result(60) == 3
        assert pool.exports.NoRow("text").result(60).name == "NoRow"
        with pytest.raises(offloop.NotFoundError, match="name=predict"):
            pool.submit("predict", 1).result(60)


CONTEXTS = """
from offloop import current_task

def init(context):
    global given
    given = context

def contexts():
    return [given, current_task().context]
"""

CONTEXTS_OF_NODE = """
import { currentTask } from 'offloop/worker'
let given
export function init (context) { given = context }
export const contexts = () => [given, currentTask().context]
"""


def of_python(directory: Path) -> dict[str, Any]:
    script = directory / "contexts.py"
    script.write_text(CONTEXTS)
    return {"command": command(script), "env": {"PYTHONPATH": str(PACKAGE)}}


def of_node(directory: Path) -> dict[str, Any]:
    package = Path(__file__).parents[2] / "bindings-node"
    if shutil.which("node") is None or not list(package.glob("*.node")):
        pytest.skip("the Node.js library is not built")
    (directory / "node_modules").mkdir()
    (directory / "node_modules" / "offloop").symlink_to(package)
    script = directory / "contexts.mjs"
    script.write_text(CONTEXTS_OF_NODE)
    return {"node": script}


@pytest.mark.parametrize("workers", [of_python, of_node])
def test_workers_of_another_program_have_the_context(tmp_path: Path, workers: Callable[[Path], dict[str, Any]]) -> None:
    options = workers(tmp_path)
    context = {"region": "eu", "limits": [1, 2.5], "key": b"\0\1"}
    for given in (context, [False], b"xy", None):
        with offloop.ProcessPool(1, **options, context=given) as pool:
            assert pool.submit("contexts").result(60) == [given, given]
    for given, named in ((object(), "type=object"), ({"f": inc}, "type=function")):
        with pytest.raises(offloop.UnserializableError, match=named):
            offloop.ProcessPool(1, **options, context=given)


def test_a_script_that_cannot_be_loaded_is_a_start_error_with_its_text(tmp_path: Path) -> None:
    script = tmp_path / "scoring.py"
    script.write_text("def predict(:\n")
    pool = offloop.ProcessPool(1, command=command(script), env={"PYTHONPATH": str(PACKAGE)})
    with pool, pytest.raises(cf.BrokenExecutor, match="SyntaxError"):
        pool.submit("predict", 1).result(60)


def test_a_program_that_is_no_worker_is_a_start_error() -> None:
    with offloop.ProcessPool(1, command=["/bin/false"]) as pool, pytest.raises(cf.BrokenExecutor):
        pool.submit("predict", 1).result(60)
    with offloop.ProcessPool(1, command=["/no/such/program"]) as pool, pytest.raises(offloop.OffloopError):
        pool.submit("predict", 1).result(60)


def test_a_worker_ends_well_when_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    # A process pool's end does not show its workers' exit codes, so the program is run with a lane that has no tasks.
    code = """
import sys
import offloop.worker

class Lane:
    setup, concurrency = b"", 1
    def ready(self): print("x" * 100)
    def run(self, exports, context): pass
    def drained(self): open(sys.argv[1], "w").close()

offloop.worker._WorkerProcess = type("Attached", (), {"attach": staticmethod(Lane)})
sys.exit(offloop.worker.main([]))
"""
    drained = tmp_path / "drained"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, str(drained)], stdout=writer, stderr=subprocess.PIPE, timeout=60, env={"PYTHONPATH": str(PACKAGE)}
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert drained.exists()


def test_the_worker_program_says_who_starts_it() -> None:
    done = program(["-m", "offloop.worker"], check=False)
    assert done.returncode == 2
    assert "ProcessPool" in done.stderr


def come_back_twice(how: str) -> int:
    child = os.fork()
    if child == 0 and how == "leave":
        sys.exit(0)
    if child == 0 and how == "raise":
        raise KeyError("in the child")
    return child


@pytest.mark.parametrize("how", ["return", "leave", "raise"])
def test_a_child_that_a_function_forks_is_no_worker(how: str) -> None:
    with offloop.ProcessPool(1) as pool:
        for _ in range(2):
            child = pool.submit(come_back_twice, how).result()
            assert child > 0
            assert list(pool.map(abs, range(300))) == list(range(300))
            while (stat := Path(f"/proc/{child}/stat")).exists() and ") Z " not in stat.read_text():
                time.sleep(0.01)
        assert pool.stats.workers == 1


IN_A_TERMINAL = """
import os, sys, termios
import offloop

def talk():
    print("said by the worker", flush=True)
    try:
        open("/dev/tty")
    except OSError as e:
        return e.strerror

if __name__ == "__main__":
    settings = termios.tcgetattr(0)
    settings[3] |= termios.TOSTOP
    termios.tcsetattr(0, termios.TCSANOW, settings)
    with offloop.ProcessPool(1) as pool:
        print("worker:", pool.submit(talk).result(timeout=30), flush=True)
"""


def test_a_terminal_does_not_stop_a_worker_that_writes_or_would_read_there(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(IN_A_TERMINAL)
    spawn = f"import pty; raise SystemExit(pty.spawn([{sys.executable!r}, {str(program)!r}]))"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    ran = subprocess.run([sys.executable, "-c", spawn], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert "said by the worker" in ran.stdout, ran
    assert "worker: No such device or address" in ran.stdout, ran


@pytest.mark.parametrize("options", ["", ", env={'MINE': '1'}"])
def test_a_variable_that_no_program_can_ask_for_does_not_matter(options: str) -> None:
    source = f"import offloop\nif __name__ == '__main__':\n with offloop.ProcessPool(1{options}) as p: print(p.submit(abs, -1).result())"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    ran = subprocess.run(["env", "=a=b", sys.executable, "-c", source], env=env, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "1\n", ran
