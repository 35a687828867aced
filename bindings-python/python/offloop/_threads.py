"""Worker threads of callables, the exit of the interpreter, and fork."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from . import _native

if TYPE_CHECKING:
    from ._channel import Channel, Listener
    from ._cluster import Cluster
    from ._pool import ThreadPool
    from ._process import ProcessPool

pools: weakref.WeakSet[ThreadPool] = weakref.WeakSet()
process_pools: weakref.WeakSet[ProcessPool] = weakref.WeakSet()
# Those that run: they are kept until they are stopped.
clusters: set[Cluster] = set()
# Channels and listeners of this process. By number: their references are listed in one step, whatever other threads add meanwhile.
ends: weakref.WeakValueDictionary[int, Channel | Listener] = weakref.WeakValueDictionary()
# A plain set: other threads add to it while the exit looks at it.
_workers: set[threading.Thread] = set()


def start_worker(worker: _native._Worker, name: str) -> None:
    thread = threading.Thread(target=_work, args=(worker,), name=name)
    _workers.add(thread)
    try:
        thread.start()
    except BaseException:
        _workers.discard(thread)
        raise


def _work(worker: _native._Worker) -> None:
    try:
        worker.run()
    finally:
        _workers.discard(threading.current_thread())


def _exit() -> None:
    """Ends every pool before the interpreter finalizes, as ThreadPoolExecutor does.

    Callables that were submitted are finished, and ops of which somebody will hear by a callback. What else is under way
    goes on as long as the interpreter waits for threads that are no daemons: they may wait for it.
    """
    try:
        for cluster in list(clusters):
            cluster.stop()
        for pool in [*pools, *process_pools]:
            pool._take_in(wait=True)
    finally:
        _native._exiting()
        for pool in [*pools, *process_pools]:
            pool._close()
    for pool in list(process_pools):
        pool._wait_closed()
    _native._finish_dropped()
    _finish()


def _finish() -> None:
    # A worker that ends may leave its place to another, whose thread is not started yet.
    while _workers or _native._pending():
        for thread in list(_workers):
            if thread.is_alive():
                thread.join()
        time.sleep(0.001)


def _leave() -> None:
    """Only daemon threads are left: cancels their ops, whose results nobody takes, and closes channels and listeners."""
    _finish()
    # From here on daemon threads do not come back from native code. One that waits for an op would get CancelledError and
    # print it into the end of the program.
    _native._leaving()
    for pool in list(pools):
        pool._terminate_ops()
    # A daemon thread that uses one keeps it from being dropped, and its peer would take the exit for a death.
    for ref in ends.valuerefs():
        end = ref()
        if end is not None:
            end._leave()


# Runs last, after the interpreter joined the threads that are no daemons.
atexit.register(_leave)
# Runs before it joins them; `atexit` would be too late for workers. ThreadPoolExecutor uses it too.
getattr(threading, "_register_atexit", atexit.register)(_exit)


def _after_fork_in_child() -> None:
    _native._after_fork_in_child()
    _workers.clear()
    process_pools.clear()
    for cluster in clusters:
        cluster._native.forget()
    clusters.clear()
    ends.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
