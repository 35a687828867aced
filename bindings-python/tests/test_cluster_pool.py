"""One pool that all workers of a cluster submit to."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import offloop
import pytest
from offloop import Cluster, InvalidError, ProcessPool

# Answers a line, the name of a thing to ask for, with JSON.
SERVER = """
import asyncio, json, os
import offloop

pool = offloop.current_worker().pool

async def give_up():
    asked = asyncio.ensure_future(pool.run("holds"))
    await asyncio.sleep(0.2)
    asked.cancel()
    return await asyncio.gather(asked, return_exceptions=True)

things = {
    "none": lambda: asyncio.sleep(0, repr(pool)),
    "inherits": lambda: asyncio.sleep(0, os.environ.get("OFFLOOP_POOL")),
    "pid": lambda: pool.run("pid"),
    "add": lambda: pool.run("add", 20, b=22),
    "call": lambda: asyncio.to_thread(pool.call, "add", 1, 2),
    "priority": lambda: pool.options(priority=5, key="x").run("add", 2, 2),
    "fails": lambda: pool.run("fails", "no such user"),
    "missing": lambda: pool.run("missing"),
    "late": lambda: pool.options(timeout=0.05).run("holds"),
    "give up": give_up,
    "lambda": lambda: pool.run("answers_a_lambda"),
    "op": lambda: pool.run("sha256", b"hello", encoding="hex"),
}

async def handle(reader, writer):
    name = (await reader.readline()).decode().strip()
    try:
        if name == "leave":
            asyncio.ensure_future(pool.run("holds"))
            said = await pool.run("add", 1, 1)
        else:
            said = {"value": repr(await things[name]())}
    except Exception as e:
        said = {"error": type(e).__name__, "name": getattr(e, "name", None), "text": str(e)}
    writer.write(json.dumps([os.getpid(), said]).encode())
    writer.close()

async def main():
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        await server.serve_forever()

asyncio.run(main())
"""


def pid() -> int:
    return os.getpid()


def add(a: int, b: int) -> int:
    return a + b


def fails(why: str) -> None:
    raise LookupError(why)


def holds() -> None:
    while not offloop.current_task().cancelled():
        time.sleep(0.01)


def answers_a_lambda():
    return lambda: 0


TASKS = [pid, add, fails, holds, answers_a_lambda]


@pytest.fixture
def server(tmp_path):
    def make(**options) -> Cluster:
        script = tmp_path / "server.py"
        script.write_text(SERVER)
        env = {"PYTHONPATH": str(Path(offloop.__file__).parent.parent)}
        return Cluster(str(script), **{"workers": 2, "min_ready": 0, "env": env, **options})

    return make


def ask(cluster: Cluster, name: str):
    port = int(cluster.addresses[0].rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{name}\n".encode())
        by, said = json.loads(connection.makefile().read())
        return by, said


def until(holds) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workers_submit_to_a_pool_that_their_clusters_process_owns(server):
    with ProcessPool(max_workers=1, cancel_grace=60) as pool, server(pool=pool, tasks=TASKS) as cluster:
        workers, pids = set(), set()
        while len(workers) < 2:
            by, said = ask(cluster, "pid")
            workers.add(by)
            pids.add(int(said["value"]))
        assert pids == {pool.submit(pid).result()}, "it has one worker, for all"
        assert [ask(cluster, name)[1] for name in ("add", "call", "priority")] == [{"value": "42"}, {"value": "3"}, {"value": "4"}]
        failed = ask(cluster, "fails")[1]
        assert "LookupError" in (failed["error"], failed["name"])
        assert "no such user" in failed["text"]
        assert ask(cluster, "missing")[1]["error"] == "NotFoundError"
        assert ask(cluster, "late")[1]["error"] == "TimeoutError"
        assert ask(cluster, "lambda")[1]["error"]
        assert "CancelledError" in ask(cluster, "give up")[1]["value"]
        assert ask(cluster, "add")[1] == {"value": "42"}, "what was given up has let the one worker go"


def test_what_a_worker_leaves_behind_is_ended_and_a_reload_goes_on_with_the_same_pool(server):
    with ProcessPool(max_workers=2) as pool, server(pool=pool, tasks=TASKS, workers=1) as cluster:
        ask(cluster, "leave")
        # Its worker may be starting still.
        until(lambda: pool.stats.running == 1)
        cluster.kill(0)
        until(lambda: pool.stats.running == 0)
        until(lambda: cluster.stats.ready == 1 and cluster.stats.spawned == 2)
        assert ask(cluster, "add")[1] == {"value": "42"}
        cluster.reload()
        assert ask(cluster, "add")[1] == {"value": "42"}
        cluster.stop()
        assert pool.submit(add, 1, 2).result() == 3, "the pool is the host's"


def test_names_are_the_pools_own_where_no_tasks_are_given(server):
    with offloop.ThreadPool(max_workers=1) as pool, server(pool=pool) as cluster:
        assert ask(cluster, "op")[1] == {"value": repr(offloop.ops.sha256(b"hello", encoding="hex"))}
        assert ask(cluster, "missing")[1]["error"] == "NotFoundError"


def test_a_cluster_without_a_pool_has_none_also_in_a_worker_of_another(server, monkeypatch):
    with ProcessPool(max_workers=1) as pool:
        with server(workers=1, pool=pool) as cluster:
            assert ask(cluster, "inherits")[1] == {"value": "None"}
        with pytest.raises(InvalidError, match=r"option=pool, uid=\d+"):
            server(pool=pool, user=os.getuid() + 1)
    monkeypatch.setenv("OFFLOOP_POOL", "another")
    with server(workers=1) as cluster:
        assert ask(cluster, "none")[1] == {"value": "'None'"}


@pytest.mark.parametrize(
    "options",
    [{"pool": 4}, {"tasks": [add]}, {"pool": "own", "tasks": "add"}, {"pool": "own", "tasks": [4]}, {"pool": "own", "tasks": add}],
)
def test_what_is_no_pool_or_no_task_is_refused(server, options):
    with ProcessPool(max_workers=1) as pool, pytest.raises(InvalidError, match="option=(pool|tasks)"):
        server(**{name: pool if value == "own" else value for name, value in options.items()})
