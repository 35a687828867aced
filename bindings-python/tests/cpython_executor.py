"""CPython's own executor tests, with offloop.ThreadPool in the place of ThreadPoolExecutor.

Run by an interpreter whose stdlib ships `test.test_concurrent_futures` as a package (CPython 3.12 and later).
What is left out, and why, is `LEFT_OUT`; a name there that does not exist any more is an error.
"""

import sys
import unittest

import offloop
from test.test_concurrent_futures import (
    executor,
    test_as_completed,
    test_init,
    test_shutdown,
    test_thread_pool,
    test_wait,
)
from test.test_concurrent_futures.util import BaseTestCase, ThreadPoolMixin

# (class, method): reason
LEFT_OUT = {
    ("ThreadPoolExecutorTest", "test_default_workers"): "the default is the usable cores, not min(32, cores + 4)",
    ("ThreadPoolExecutorTest", "test_saturation"): "looks into `_threads`; core grows by queue delay, not one thread per submit",
    ("ThreadPoolExecutorTest", "test_idle_thread_reuse"): "looks into `_threads`",
    ("ThreadPoolExecutorTest", "test_hang_global_shutdown_lock"): "names ThreadPoolExecutor itself",
    ("ThreadPoolShutdownTest", "test_threads_terminate"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_context_manager_shutdown"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_del_shutdown"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_shutdown_no_wait"): "looks into `_threads`",
    ("ThreadPoolShutdownTest", "test_cancel_futures_wait_false"): "its script imports the executor from concurrent.futures",
    ("ThreadPoolShutdownTest", "test_interpreter_shutdown"): "as above; tests/test_lifecycle.py has it",
    ("ThreadPoolShutdownTest", "test_submit_after_interpreter_shutdown"): "as above; tests/test_lifecycle.py has it",
    ("ThreadPoolShutdownTest", "test_hang_gh83386"): "as above; tests/test_lifecycle.py has it",
    ("ThreadPoolShutdownTest", "test_hang_gh94440"): "for process pools",
    ("ThreadPoolShutdownTest", "test_thread_names_assigned"): "looks into `_threads`; tests/test_pool.py has it",
    ("ThreadPoolShutdownTest", "test_thread_names_default"): "looks into `_threads`; the default prefix is `offloop`",
    ("ThreadPoolWaitTests", "test_pending_calls_race"): "runs on a ThreadPoolExecutor of its own",
}


class Adapted:
    executor_type = offloop.ThreadPool


def adapt(name, *bases):
    cls = type(name, (Adapted, *bases), {})
    for owner, method in LEFT_OUT:
        if owner == name:
            if not hasattr(cls, method):
                if sys.version_info < (3, 14):
                    sys.stderr.write(f"note: {owner}.{method} is not in this CPython\n")
                continue
            setattr(cls, method, unittest.skip(LEFT_OUT[owner, method])(getattr(cls, method)))
    return cls


ThreadPoolExecutorTest = adapt("ThreadPoolExecutorTest", test_thread_pool.ThreadPoolExecutorTest)
ThreadPoolShutdownTest = adapt("ThreadPoolShutdownTest", test_shutdown.ThreadPoolShutdownTest)
ThreadPoolWaitTests = adapt("ThreadPoolWaitTests", test_wait.ThreadPoolWaitTests)
ThreadPoolAsCompletedTest = adapt("ThreadPoolAsCompletedTest", ThreadPoolMixin, test_as_completed.AsCompletedTests, BaseTestCase)
ThreadPoolInitializerTest = adapt("ThreadPoolInitializerTest", test_init.InitializerMixin, BaseTestCase)
ThreadPoolFailingInitializerTest = adapt("ThreadPoolFailingInitializerTest", test_init.FailingInitializerMixin, BaseTestCase)

assert executor.ExecutorTest in ThreadPoolExecutorTest.__mro__

if __name__ == "__main__":
    unittest.main(verbosity=2)
