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
    from ._pool import ThreadPool

pools: weakref.WeakSet[ThreadPool] = weakref.WeakSet()
_workers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start_worker(worker: _native._Worker, name: str) -> None:
    thread = threading.Thread(target=worker.run, name=name)
    thread.start()
    _workers.add(thread)


def _exit() -> None:
    """Ends every pool before the interpreter finalizes, as ThreadPoolExecutor does.

    Callables that were submitted are finished. Ops are finished when somebody will hear of them by a callback, and
    cancelled otherwise: nobody is left to take their results.
    """
    _native._exiting()
    open_pools = list(pools)
    for pool in open_pools:
        pool._close()
    for thread in list(_workers):
        thread.join()
    while _native._callbacks_pending():
        time.sleep(0.001)
    for pool in open_pools:
        pool._terminate_ops()


# Runs before the interpreter joins its threads; `atexit` would be too late for them. ThreadPoolExecutor uses it too.
getattr(threading, "_register_atexit", atexit.register)(_exit)
# Runs last: only daemon threads are left, and from here on they do not come back from native code.
atexit.register(_native._leaving)


def _after_fork_in_child() -> None:
    _native._after_fork_in_child()
    _workers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
