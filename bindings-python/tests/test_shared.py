"""Counter and RateLimiter: what workers of a cluster count, and let through, together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import offloop
import pytest
from offloop import Cluster, Counter, InvalidError, RateLimiter

SERVER = """
import asyncio, os
from offloop import Counter, RateLimiter

hits = Counter("hits")
few = RateLimiter("few", rate=1e-6, burst=10)

async def handle(reader, writer):
    taken = few.take(await reader.readline())
    hits.add()
    writer.write(f"{os.getpid()} {taken.allowed} {taken.remaining}".encode())
    writer.close()

async def main():
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        await server.serve_forever()

asyncio.run(main())
"""


def ask(port: int, key: str = "") -> list[str]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{key}\n".encode())
        return connection.makefile().read().split()


def test_a_counter_counts_for_all_who_have_its_name():
    one, two = Counter("one"), Counter("one")
    assert (one.add(), two.add(-3), one.value) == (1, -2, -2)
    assert (two.set(2**63 - 1), one.add(1)) == (-2, -(2**63))
    assert repr(Counter("another")) == "Counter('another', value=0)"


def test_a_bucket_empties_comes_back_and_says_when():
    limiter = RateLimiter("waits", rate=100, burst=2)
    assert limiter.take("a", 0) == offloop.Taken(allowed=True, remaining=2, retry_after=0.0)
    assert limiter.take("a", 2)
    assert not limiter.take(b"a", 2), "text is its UTF-8"
    assert limiter.take("b").remaining == 1
    slow = RateLimiter("slow", rate=0.5)
    assert slow.take()
    assert 1 < slow.take().retry_after <= 2
    until = time.monotonic() + 60
    while not limiter.take("a", 2):
        assert time.monotonic() < until
    assert RateLimiter("a second", rate=2.5).take(cost=0).remaining == 3, "the tokens of one second, rounded up"


def test_all_workers_count_together_and_what_they_have_counted_outlives_them(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    env = {"PYTHONPATH": str(Path(offloop.__file__).parent.parent)}
    with Cluster(str(script), workers=2, min_ready=0, env=env) as cluster:
        port = int(cluster.addresses[0].rsplit(":", 1)[1])
        seen, answers = set(), []
        while len(seen) < 2 or len(answers) < 20:
            answers.append(ask(port))
            seen.add(answers[-1][0])
        assert sum(allowed == "True" for _, allowed, _ in answers) == 10
        assert ask(port, "another")[2] == "9"
        hits = Counter("hits", cluster=cluster)
        assert hits.value == len(answers) + 1
        few = RateLimiter("few", rate=1e-6, burst=10, cluster=cluster)
        assert not few.take("\n")
        assert few.take("another\n").remaining == 8
        cluster.reload()
        ask(port)
        assert hits.value == len(answers) + 2
        assert Counter("hits").value == 0, "this process has its own"
    assert hits.value == len(answers) + 2, "the handle lasts"


def test_a_forked_child_counts_with_its_parent():
    counter = Counter("forked")
    pid = os.fork()
    if pid == 0:
        counter.add(5)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert counter.value == 5


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Counter(""), ["name"]),
        (lambda: Counter("x" * 129), ["129", "max=128"]),
        (lambda: Counter("x\n"), ["control"]),
        (lambda: Counter("x").add(2**63), [str(2**63)]),
        (lambda: RateLimiter("x", rate=0), ["option=rate", "value=0"]),
        (lambda: RateLimiter("x", rate=float("nan")), ["option=rate"]),
        (lambda: RateLimiter("x", rate=1, burst=0), ["option=burst", "min=1"]),
        (lambda: RateLimiter("x", rate=1, burst=2**40), ["option=burst", "max=1048576"]),
        (lambda: RateLimiter("x", rate=1, keys=7), ["option=keys", "min=8"]),
        (lambda: RateLimiter("checked", rate=1, burst=5) and RateLimiter("checked", rate=2, burst=5), ["rate 1 ", "rate 2 "]),
        (lambda: RateLimiter("checked", rate=1, burst=5).take("", 6), ["cost=6", "burst=5"]),
        (lambda: RateLimiter("checked", rate=1, burst=5).take("", -1), ["cost=-1"]),
        (lambda: RateLimiter("checked", rate=1, burst=5).take(7), ["key"]),
    ],
)
def test_names_limits_and_amounts_that_cannot_be_are_refused(make, parts):
    with pytest.raises(InvalidError) as refused:
        make()
    assert all(part in str(refused.value) for part in parts), str(refused.value)


def test_a_cluster_that_was_not_started_has_none():
    with pytest.raises(offloop.ClosedError):
        Counter("x", cluster=Cluster([sys.executable, "-c", "pass"]))


def test_a_process_has_so_many_names():
    code = "import offloop\nfor i in range(257): offloop.Counter(str(i))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Full: " in done.stderr, done.stderr
    assert "max=256" in done.stderr, done.stderr
