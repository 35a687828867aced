"""Lines of workers as events of their cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading

import offloop
import pytest
from offloop import Cluster

# Prints so many lines, is ready, and does once what ONCE says.
SAYS = """
import os, signal, sys, time
import offloop

for i in range(int(os.environ.get("TIMES", "0"))):
    print("line", i)
sys.stdout.flush()
offloop.current_worker().ready()
try:
    os.rename(os.environ["ONCE"], os.environ["ONCE"] + ".done")
except OSError:
    time.sleep(600)
os.write(1, b"one\\n\\ntw\\xff\\nhalf a li")
os.write(2, "schlimm \\u00e4\\n".encode())
os.kill(os.getpid(), signal.SIGKILL)
"""
QUICK = {"min_ready": 0.05, "drain_timeout": 0.1, "kill_grace": 0.1}


@pytest.fixture
def says(tmp_path):
    """A cluster of that program, not started, and what makes one worker print and die."""
    path = tmp_path / "says.py"
    path.write_text(SAYS)
    once = tmp_path / "once"

    def make(env: dict[str, str] | None = None, **options) -> Cluster:
        own = {"PYTHONPATH": os.path.dirname(os.path.dirname(offloop.__file__)), "ONCE": str(once)}
        return Cluster(path, **{"workers": 1, "env": own | (env or {}), **QUICK, **options})

    return make, once


def test_lines_are_heard_whole_in_order_and_before_the_end_of_their_worker(says, capfd):
    make, once = says
    once.touch()
    cluster = make()
    heard: list[tuple] = []
    ended, stopped = threading.Event(), []
    cluster.on("log", lambda worker, stream, line: heard.append((worker.pid, worker.slot, stream, line)))
    cluster.on("exit", lambda worker, how: (heard.append((worker.pid, worker.slot, "exit", how.signal)), ended.set()))
    cluster.on("stopped", lambda: stopped.append(len(heard)))
    with cluster:
        assert ended.wait(60)
    assert stopped == [len(heard)]
    [pid, slot, *_] = heard[0]
    mine = [said[2:] for said in heard if said[0] == pid]
    assert [line for stream, line in mine if stream == "stdout"] == ["one", "", "tw\ufffd", "half a li"]
    assert [line for stream, line in mine if stream == "stderr"] == ["schlimm \u00e4"]
    assert mine[-1] == ("exit", signal.SIGKILL)
    assert slot == 0
    assert capfd.readouterr() == ("", "")


def test_no_worker_waits_for_a_loop_that_waits_for_it_and_what_is_left_out_is_counted(says):
    make, _ = says
    workers, each = 2, 25_000
    heard: list[tuple] = []

    async def main() -> None:
        cluster = make({"TIMES": str(each)}, workers=workers)
        cluster.on("log", lambda worker, stream, line: heard.append((stream, line)))
        cluster.on("warning", lambda error: heard.append(("warning", error)))
        # In the loop that is to hear of the lines.
        cluster.start()
        assert cluster.reload().replaced == workers
        assert heard == []
        try:
            while count() < 2 * workers * each:
                await asyncio.sleep(0.01)
        finally:
            await cluster.astop(0)

    def count() -> int:
        return sum(int(re.search(r"lines=(\d+), max_bytes=1048576", str(said))[1]) if what == "warning" else 1 for what, said in heard)

    asyncio.run(asyncio.wait_for(main(), 100))
    assert count() == 2 * workers * each
    first = next(i for i, (what, _) in enumerate(heard) if what == "warning")
    assert isinstance(heard[first][1], offloop.Full)
    assert sum(len(line) + 64 for _, line in heard[:first]) <= 1 << 20


def test_a_listener_that_throws_hears_the_next_line(says, caplog):
    make, once = says
    once.touch()
    cluster = make()
    heard: list[str] = []

    def hear(_worker, _stream, line):
        heard.append(line)
        raise RuntimeError("mine")

    ended = threading.Event()
    cluster.on("log", hear)
    cluster.on("exit", lambda *_: ended.set())
    with cluster:
        assert ended.wait(60)
    assert len(heard) == 5
    assert caplog.text.count("RuntimeError: mine") == 5


def test_who_listens_later_hears_what_goes_where_log_says(says, tmp_path):
    make, once = says
    log = tmp_path / "log"
    heard: list[str] = []
    ended = threading.Event()
    cluster = make({"TIMES": "1"}, log=log)
    cluster.on("exit", lambda *_: ended.set())
    with cluster:
        cluster.on("log", lambda worker, stream, line: heard.append(f"[{worker.slot}:{worker.pid}] {line}"))
        once.touch()
        cluster.kill(0)
        assert ended.wait(60)
        ended.clear()
        assert ended.wait(60)
    lines = log.read_bytes().decode(errors="replace").splitlines()
    assert re.fullmatch(r"\[0:\d+\] line 0", lines.pop(0))
    assert set(heard) == set(lines)
    assert len(heard) >= 6


def test_a_fork_hears_nothing_and_lets_go_of_what_waits(says):
    make, _ = says

    async def main() -> None:
        cluster = make({"TIMES": "100"})
        cluster.on("log", lambda *_: None)
        cluster.start()
        loop = asyncio.get_running_loop()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                loop._ready.clear()  # each has the room of a line
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        await cluster.astop(0)

    asyncio.run(asyncio.wait_for(main(), 60))
