"""Shared by all tests: pools that end with their test, and the watch for what a test leaves behind."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import offloop
import pytest

PACKAGE = Path(offloop.__file__).parent.parent
STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    # Before anything is captured: what ends a hang ends what was captured, too.
    config.stash[STDERR] = os.dup(2)
    # A shell starts what runs in the background with SIGINT ignored, and so would everything that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends a hang with the test's name and every thread's stack. No test is measured by it."""
    faulthandler.dump_traceback_later(300, exit=True, file=request.config.stash[STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def pool() -> Iterator[offloop.ThreadPool]:
    with offloop.ThreadPool(max_workers=2) as pool:
        yield pool


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds callables that wait for it; opened at the end, so that no pool hangs."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program in an interpreter of its own."""

    def run(code: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", code, *args],
            capture_output=True,
            text=True,
            timeout=240,
            env={"PYTHONPATH": str(PACKAGE), "PATH": "/usr/bin:/bin"},
        )
        if check:
            assert done.returncode == 0, done.stderr
            assert not done.stderr
        return done

    return run
