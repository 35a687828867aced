"""The functions of the Python driver's pools of processes: what the scenarios name as `op`, and what callers in other languages name."""

import ctypes
import os
import signal
import time

from offloop import current_task


def noop(call):
    """Gives its input back, after a while."""
    until = time.monotonic() + call.get("sleep_ms", 0) / 1e3
    task = current_task()
    while time.monotonic() < until and not task.cancelled():
        time.sleep(0.001)
    return call.get("input")


def length(call):
    return len(call["input"])


def exit(call):  # noqa: A001  the scenarios' name
    os._exit(call["code"])


def kill(call):
    os.kill(os.getpid(), call["signal"])
    signal.pause()


def fault(_call):
    ctypes.string_at(8)


def eat(_call):
    """Uses memory until there is none."""
    kept = []
    while True:
        kept.append(b"\x01" * (1 << 24))


def spin(_call):
    while True:
        pass


def fail(call):
    error = TypeError(call["text"])
    if "code" in call:
        error.code = call["code"]
    if "cause" in call:
        raise error from ValueError(call["cause"])
    raise error


def count(call):
    """Gives 0, 1, … below `n`, each after a while; then it fails, or ends its worker."""
    i = 0
    while i != call["n"]:
        time.sleep(call.get("sleep_ms", 0) / 1e3)
        yield i
        i += 1
    if "code" in call:
        exit(call)
    if "text" in call:
        fail(call)


def odd(_call):
    return time.monotonic, (x for x in ())


def echo(value):
    return value


def what(value):
    """What its argument is here."""
    return type(value).__name__


def start_fails():
    raise ValueError("no model")
