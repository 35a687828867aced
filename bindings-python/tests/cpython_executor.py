"""CPython's own executor tests, with offloop's pools in the place of the standard library's executors.

`python cpython_executor.py KIND`, of CPython 3.11, with the folder of its `test_concurrent_futures.py` in PYTHONPATH: `test_cpython.py` gets it. What the tests name
themselves is replaced as well: `futures.ThreadPoolExecutor`, `futures.ProcessPoolExecutor`, and the imports of their scripts.

`LEFT_OUT` has every test that does not apply, and why. They are run all the same: one that passes is an error, as is a name that does
not exist.
"""

from __future__ import annotations

import os
import sys
import types
import unittest
from concurrent import futures

import offloop
import test_concurrent_futures as suite

# (class, method): reason. A class of processes stands for both start methods that are not refused.
LEFT_OUT = {
    ("ThreadPoolExecutorTest", "test_default_workers"): "the default is the usable cores, not min(32, cores + 4)",
    ("ThreadPoolExecutorTest", "test_saturation"): "looks into `_threads`; core grows by queue delay, not one thread per submit",
    ("ThreadPoolExecutorTest", "test_idle_thread_reuse"): "looks into `_threads`",
    ("ThreadPoolExecutorTest", "test_hang_global_shutdown_lock"): "asks for processes by fork, which are refused",
    ("ThreadPoolShutdownTest", "test_threads_terminate"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_context_manager_shutdown"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_del_shutdown"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_shutdown_no_wait"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_submit_after_interpreter_shutdown"): "the traceback names ClosedError, which is a RuntimeError",
    ("ThreadPoolShutdownTest", "test_thread_names_assigned"): "looks into `_threads`; test_pool.py has it",
    ("ThreadPoolShutdownTest", "test_thread_names_default"): "looks into `_threads`; the default prefix is `offloop`",
    ("ExecutorDeadlockTest", "test_error_at_task_pickle"): "the error is raised by `submit`, not kept for `result`",
    ("ExecutorDeadlockTest", "test_error_at_task_unpickle"): "fails its own task with its own error; the pool is not broken",
    ("ExecutorDeadlockTest", "test_exit_at_task_unpickle"): "fails its own task with its own error; the pool is not broken",
    ("ExecutorDeadlockTest", "test_error_during_result_unpickle_in_result_handler"): "fails its own task; the pool is not broken",
    ("ExecutorDeadlockTest", "test_exit_during_result_unpickle_in_result_handler"): "fails its own task; the pool is not broken",
    ("ExecutorDeadlockTest", "test_shutdown_deadlock_pickle"): "looks into `_executor_manager_thread`",
    (
        "FailingInitializerTest",
        "test_initializer",
    ): "initargs has a Queue, which only children by fork or spawn inherit; test_process_pool.py has it",
    ("ProcessPoolExecutorTest", "test_idle_process_reuse_multiple"): "looks into `_processes`",
    ("ProcessPoolExecutorTest", "test_idle_process_reuse_one"): "looks into `_processes`",
    ("ProcessPoolExecutorTest", "test_killed_child"): "looks into `_processes`; a lost worker does not break the pool",
    ("ProcessPoolExecutorTest", "test_max_tasks_per_child"): "looks into `_processes`; test_process_pool.py has it",
    ("ProcessPoolExecutorTest", "test_max_tasks_per_child_defaults_to_spawn_context"): "looks into `_mp_context`",
    ("ProcessPoolExecutorTest", "test_saturation"): "sends a Semaphore, which only children by fork or spawn inherit",
    ("ProcessPoolShutdownTest", "test_cancel_futures"): "what no worker has begun is cancelled, and here none is ready yet",
    ("ProcessPoolShutdownTest", "test_context_manager_shutdown"): "looks into `_processes`",
    ("ProcessPoolShutdownTest", "test_del_shutdown"): "looks into `_processes`; test_process_pool.py has it",
    ("ProcessPoolShutdownTest", "test_processes_terminate"): "sends a Semaphore, which only children by fork or spawn inherit",
    ("ProcessPoolShutdownTest", "test_shutdown_no_wait"): "looks into `_processes`; test_process_pool.py has it",
    ("ProcessPoolShutdownTest", "test_submit_after_interpreter_shutdown"): "the traceback names ClosedError, which is a RuntimeError",
}

THREADS = "ThreadPool"
PROCESSES = ("ProcessPoolSpawn", "ProcessPoolForkserver")

named = {name: getattr(futures, name) for name in futures.__all__ if not name.endswith("PoolExecutor")}
suite.futures = types.SimpleNamespace(
    **named, process=futures.process, thread=futures.thread, ThreadPoolExecutor=offloop.ThreadPool, ProcessPoolExecutor=offloop.ProcessPool
)
# Threads that deliver results and start others live as long as the process.
suite.threading_helper.threading_cleanup = lambda *_: None


def script_ok(flag: str, code: str, run=suite.assert_python_ok):
    """`assert_python_ok` of a script that imports an executor, and functions of the suite."""
    for pool in ("ThreadPool", "ProcessPool"):
        for name in (pool + "Executor", pool):
            code = code.replace(f"from concurrent.futures import {name}\n", f"from offloop import {pool} as {name}\n")
    code = code.replace("from test.test_concurrent_futures ", "from test_concurrent_futures ")
    return run(flag, code, __isolated=False, PYTHONPATH=os.environ["PYTHONPATH"])


suite.assert_python_ok = script_ok


def is_left_out(case: type[unittest.TestCase], method: str, why: str):
    """A test that holds when that one does not."""

    def test(self: unittest.TestCase) -> None:
        this = case(method)
        try:
            this.setUp()
            getattr(this, method)()
        except unittest.SkipTest:
            self.fail("is skipped: take it out of LEFT_OUT")
        except (Exception, SystemExit) as e:
            sys.stderr.write(f"left out: {why} ({type(e).__name__}: {str(e)[:80]})\n")
        else:
            self.fail("passes: take it out of LEFT_OUT")
        finally:
            # What it left waiting is not waited for.
            if (executor := getattr(this, "executor", None)) is not None:
                executor.shutdown(wait=False, cancel_futures=True)

    return test


def kind_of(name: str) -> str | None:
    return next((kind for kind in (THREADS, *PROCESSES) if name.startswith(kind)), None)


# By these names workers find them, too.
for name, cls in list(vars(suite).items()):
    if kind_of(name) and issubclass(cls, unittest.TestCase):
        globals()[name] = type(name, (cls,), {"executor_type": offloop.ThreadPool if kind_of(name) == THREADS else offloop.ProcessPool})


def load_tests(*_: object) -> unittest.TestSuite:
    wanted = sys.argv[1]
    tests = unittest.TestSuite()
    missing = set(LEFT_OUT)
    for name, case in list(globals().items()):
        kind = kind_of(name)
        if kind is None:
            continue
        body = {}
        for method in unittest.TestLoader().getTestCaseNames(case):
            row = (name if kind == THREADS else name.removeprefix(kind), method)
            if row in LEFT_OUT:
                missing.discard(row)
                body[method] = is_left_out(case, method, LEFT_OUT[row])
            elif kind == wanted:
                tests.addTest(case(method))
        if kind == wanted:
            out = type(name, (unittest.TestCase,), body)
            tests.addTests(out(method) for method in body)
    if missing:
        raise LookupError(f"LEFT_OUT names what is not there: {sorted(missing)}")
    if wanted == "ProcessPoolFork":
        tests.addTest(Fork("test_is_refused"))
    return tests


class Fork(unittest.TestCase):
    """In the place of the tests of each class of processes by fork."""

    def test_is_refused(self) -> None:
        classes = [getattr(suite, name) for name in dir(suite) if name.startswith("ProcessPoolFork") and not name.startswith(PROCESSES)]
        classes = [cls for cls in classes if issubclass(cls, unittest.TestCase)]
        assert len(classes) >= 7, classes
        for cls in classes:
            case = type(cls.__name__, (cls,), {"executor_type": offloop.ProcessPool})
            method = next(name for name in dir(case) if name.startswith("test_"))
            # The queue of a failing initializer is pickled before the pool is made.
            with self.subTest(cls.__name__), self.assertRaisesRegex(offloop.OffloopError, "fork|Queue"):  # noqa: PT027
                case(method).setUp()


if __name__ == "__main__":
    done = unittest.main(argv=sys.argv[:1], verbosity=2, exit=False).result
    sys.stderr.flush()
    # Tests that are left out may have left threads that wait for ever.
    os._exit(0 if done.wasSuccessful() else 1)
