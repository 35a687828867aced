"""Spares of a Cluster: they load, listen and wait, and take the place of a worker that has ended."""

from __future__ import annotations

import os
import signal

import offloop
import pytest
from offloop import Cluster
from test_cluster import NEEDS, SERVER, THREADS, Heard, children, get, port, server, write  # noqa: F401

# Each answers with its process first.
ASGI = """
import os
import offloop

async def app(scope, receive, send):
    if scope["type"] == "http":
        body = str(os.getpid()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

options = {"log_level": "warning", "access_log": False, "lifespan": "off"}
"""
SERVED = ASGI + "offloop.current_worker().serve(app, loop=os.environ['LOOP'], **options)\n"
UNMODIFIED = ASGI + "import uvicorn\nuvicorn.run(app, port=int(os.environ['PORT']), **options)\n"
THREADED = THREADS.replace('b"ok"', "str(os.getpid()).encode()").replace(
    '"Content-Length", "2"', '"Content-Length", str(len(str(os.getpid())))'
)
BLOCKING = """
import os
import offloop

worker = offloop.current_worker()
worker.ready()
while True:
    connection, _ = worker.sockets[0].accept()
    while b"\\r\\n\\r\\n" not in connection.recv(4096):
        pass
    body = str(os.getpid()).encode()
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
    connection.close()
"""
# Its workers are forks of the process that is the cluster's worker.
FORKING = """
import os, signal, socket, socketserver, sys

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline() not in (b"\\r\\n", b""):
            pass
        body = str(os.getppid()).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))

socketserver.TCPServer.allow_reuse_address = True
server = socketserver.TCPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
if (child := os.fork()) == 0:
    server.serve_forever()
signal.signal(signal.SIGTERM, lambda *_: (os.kill(child, signal.SIGKILL), os.waitpid(child, 0), sys.exit()))
# Nobody else ends it when this process is killed.
os.system(f"(while kill -0 {os.getpid()} 2>/dev/null; do sleep 0.05; done; kill -9 {child}) > /dev/null 2>&1 &")
while True:
    signal.pause()
"""
KINDS = {
    "asyncio": (SERVER, {}),
    "uvloop": (SERVER.replace("asyncio.run", "import uvloop\nuvloop.run"), {}),
    "serve": (SERVED, {"LOOP": "asyncio"}),
    "serve-uvloop": (SERVED, {"LOOP": "uvloop"}),
    "uvicorn": (UNMODIFIED, {}),
    "threads": (THREADED, {}),
    "blocking": (BLOCKING, {}),
    "forking": (FORKING, {}),
}
ALL = [*((kind, "shared") for kind in KINDS), ("asyncio", "round-robin"), ("uvloop", "round-robin"), ("threads", "least-connections")]


@pytest.mark.parametrize(("kind", "balance"), ALL)
def test_a_spare_answers_nothing_and_takes_the_place_of_the_only_worker(server, port, kind, balance):  # noqa: F811
    for module in NEEDS.get(kind, []):
        pytest.importorskip(module)
    code, env = KINDS[kind]
    cluster = server(code, env=env, workers=1, spares=1, listen=[f"127.0.0.1:{port}"], balance=balance)
    heard = Heard(cluster, "spare", "ready")
    with cluster:
        ((spare,),) = heard.wait("spare")
        first = cluster.workers[0]
        assert (spare.slot, spare.state, list(cluster.workers)) == (1024, "spare", [0])
        assert (cluster.stats.ready, cluster.stats.live, cluster.stats.spares) == (1, 1, 1)
        assert {get(port).split()[0] for _ in range(50)} == {str(first.pid)}
        os.kill(first.pid, signal.SIGKILL)
        _, (second,) = heard.wait("ready", 2)
        assert (second.slot, second.pid, second.state) == (0, spare.pid, "ready")
        if kind != "forking":
            # There the killed one's own child still answers for a moment.
            assert get(port).split()[0] == str(spare.pid)
        assert cluster.workers[0].pid == spare.pid
        _, (third,) = heard.wait("spare", 2)
        assert third.pid != spare.pid
        if kind == "asyncio":
            # What was a spare drains as any worker.
            report = cluster.reload()
            assert (report.replaced, report.forced) == (1, 0)
    assert children() == []


TALKS = """
import asyncio, os
import offloop

worker = offloop.current_worker()
was = (worker.spare, worker.slot)
worker.on_active(lambda: worker.send(["active", worker.spare, worker.slot, os.environ["OFFLOOP_SLOT"]]))

async def main():
    worker.on_message(lambda message: message.reply([was, worker.spare, worker.slot]))
    async with await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", int(os.environ["PORT"])) as server:
        await server.serve_forever()

asyncio.run(main())
"""


def test_a_spare_is_the_same_worker_by_another_name(server):  # noqa: F811
    cluster = server(TALKS, workers=1, spares=1)
    heard = Heard(cluster, "spare", "ready", "exit", "message")
    with cluster:
        ((worker, said),) = heard.wait("message")
        assert (worker.slot, said.value) == (0, ["active", False, 0, "0"])
        ((spare,),) = heard.wait("spare")
        assert cluster.request(1024, "who") == [[True, 1024], True, 1024]
        cluster.kill(0)
        _, (worker, said) = heard.wait("message", 2)
        assert (worker.pid, said.value) == (spare.pid, ["active", False, 0, "0"])
        # It may say so before the host has heard of it: its name is the one that was told last.
        told = [what for what, who, *_ in heard.all if who.pid == spare.pid and what in ("ready", "message")]
        assert worker.slot == (0 if told[0] == "ready" else 1024)
        heard.wait("ready", 2)
        assert cluster.request(0, "who") == [[True, 1024], False, 0]
        heard.wait("spare", 2)
        cluster.kill(0)
        _, (ended, how) = heard.wait("exit", 2)
        assert (ended.slot, ended.pid, how.signal) == (0, spare.pid, signal.SIGKILL)


def test_a_new_place_is_taken_by_a_spare_and_a_failed_reload_leaves_it(server, port, write):  # noqa: F811
    cluster = server(workers=1, spares=1)
    heard = Heard(cluster, "spare")
    with cluster:
        ((spare,),) = heard.wait("spare")
        with pytest.raises(offloop.StartFailedError):
            cluster.reload(exec=write("def (:\n", "broken.py"))
        assert cluster.stats.spares == 1
        cluster.scale(2)
        assert cluster.workers[1].pid == spare.pid
        assert get(port).endswith(" 1")
    assert children() == []


def test_spares_that_cannot_be_are_refused(write):  # noqa: F811
    script = write("")
    for options, words in [
        ({"spares": -1}, "option=spares, value=-1, min=0"),
        ({"spares": "one"}, "option=spares"),
        ({"spares": True}, "option=spares"),
        ({"spares": 1023, "workers": 2}, "option=spares, value=1023, min=0, max=1022"),
        ({"spares": 1, "balance": "reuseport"}, "balance=reuseport"),
    ]:
        with pytest.raises(offloop.InvalidError, match=words):
            Cluster(script, **options)
