"""What the workers of host.py run."""

import gc
import os
import time

from offloop import current_task


def echo(value):
    return value


def hold(_value):
    """Says who runs it, and never ends."""
    current_task().progress(os.getpid())
    while True:
        time.sleep(60)


def sleep(ms):
    task, until = current_task(), time.monotonic() + ms / 1e3
    while time.monotonic() < until and not task.cancelled():
        time.sleep(0.001)
    return ms


def fail(n):
    raise IndexError(f"no row {n}")


def collect():
    gc.collect()
