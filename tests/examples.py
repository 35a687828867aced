"""Runs the examples of several processes as `examples/README.md` prints them, and what it says of them: `examples.py [NAME]…`.

The examples are copied to an empty folder, in which `offloop` is what this checkout has built: `make examples` builds it and runs this. Each must
print what the README shows; `…` stands for anything. Then each is put through what its text promises.
"""

import csv
import hashlib
import http.client
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
PREFIX = TARGET / "dist/c"
README = (ROOT / "examples/README.md").read_text()
LIMIT = 120  # seconds after which something hangs
PPOLL = 271 if os.uname().machine == "x86_64" else 73


def blocks(name, lang):
    """The blocks of that language in that section of the README."""
    section = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", README, re.S | re.M)
    found = section and re.findall(rf"^```{lang}\n(.*?)^```", section[1], re.S | re.M)
    if not found:
        sys.exit(f"examples/README.md has no {lang} block under {name}")
    return "".join(found)


def environment(folder, **more):
    path = f"{ROOT / '.venv/bin'}:{ROOT / 'bindings-python/python/offloop/_bin'}:{os.environ['PATH']}"
    library = {"PKG_CONFIG_PATH": str(PREFIX / "lib/pkgconfig"), "LD_LIBRARY_PATH": str(PREFIX / "lib")}
    return {**os.environ, **library, "PATH": path, "PORT": str(free_port()), "XDG_RUNTIME_DIR": str(folder), **more}


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def printed(name, folder, in_order=True):
    """Runs the commands as printed, and holds what they print to what the README shows; without `in_order` the lines of each command
    may come in any, as those of several processes do."""
    env = environment(folder)
    commands, wanted = (block.replace("3000", env["PORT"]) for block in (blocks(name, "sh"), blocks(name, "text")))
    # Where one of them fails, those that run beside it are ended, or they would be waited for.
    script = f"trap 'kill $(jobs -p) 2> /dev/null || :' EXIT\n{commands}wait"
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT)
    # A server that was told to end has nothing to add, whichever way it ends.
    assert run.returncode in (0, 128 + signal.SIGTERM), f"status {run.returncode}\n{run.stdout}{run.stderr}"
    assert not run.stderr, run.stderr
    expected, lines = (text.splitlines() if not in_order else [text] for text in (wanted, run.stdout))
    for part in expected:
        pattern = ".*".join(map(re.escape, part.split("…")))
        found = next((line for line in lines if re.fullmatch(pattern, line)), None)
        assert found is not None, f"printed:\n{run.stdout}instead of:\n{wanted}"
        lines.remove(found)
    assert not lines, f"printed:\n{run.stdout}instead of:\n{wanted}"
    return run.stdout


def logs(folder, _shown):
    """Each writer's lines are there once, whole and in order, up to where it was killed."""
    numbers = {"python": [], "node": [], "c": []}
    for line in (folder / "app.log").read_text().splitlines(keepends=True):
        who, n = line.split(" ", 2)[:2]
        assert line == f"{who} {n} answered in {int(n) * 7919 % 1000} us\n", line
        numbers[who].append(int(n))
    for who, of in numbers.items():
        assert of == list(range(len(of))), who
    assert len(numbers["python"]) == len(numbers["node"]) == 20_000
    assert 5_000 <= len(numbers["c"]) < 20_000, "killed in the middle"


def frames(_folder, shown):
    for seen, lost in re.findall(r"(\d+) seen, (\d+) lost", shown):
        assert int(seen) + int(lost) == 300, shown


@contextmanager
def server(folder, script):
    """A server of an example; gives a connection and a function that reads its next line."""
    env = environment(folder)
    with running(["node", script], folder, env) as process:
        process.stdout.readline()  # it listens
        yield connection_to(env["PORT"]), process.stdout.readline
    assert process.returncode == 0, process.returncode


@contextmanager
def service(folder, place):
    """As `server`, of an application for uvicorn."""
    env = environment(folder)
    port = env["PORT"]
    with running(["uvicorn", "--app-dir", place, "app:app", "--port", port, "--log-level", "warning"], folder, env) as process:
        until("it listens", lambda: listens(process, port))
        yield connection_to(port)
    # It ends what it has, and then by the signal.
    assert process.returncode in (0, -signal.SIGTERM), process.returncode


@contextmanager
def running(command, folder, env):
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
            process.terminate()
        except BaseException:
            process.kill()
            raise


def connection_to(port):
    return http.client.HTTPConnection("localhost", int(port), timeout=LIMIT)


def listens(process, port):
    assert process.poll() is None, f"it ended with {process.returncode}"
    try:
        socket.create_connection(("localhost", int(port))).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(client, method, path, body=None):
    client.request(method, path, body)
    answer = client.getresponse()
    return answer.status, answer.read().decode()


def until(what, condition):
    """Waits for something that has no event; without end is a failure."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


def sleeps_in_ring(pid):
    """Where a push waits for room."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split(" ")[0] == str(PPOLL)
    except FileNotFoundError:
        raise AssertionError("the process that makes rows ended, as if nobody slowed it down") from None


def rows(folder, _shown):
    many = 500_000  # more than all buffers between the two hold
    with server(folder, "examples/rows/server.mjs") as (client, line):
        # A client that does not read: the maker of rows waits, and goes on when the client does.
        client.request("GET", "/?" + urlencode({"rows": many}))
        maker = int(line().split()[-1])
        answer = client.getresponse()
        until("the ring is full", lambda: sleeps_in_ring(maker))
        assert answer.read() == b"".join(b'{"row":%d,"square":%d}\n' % (n, n * n) for n in range(many))
        # A client that leaves ends the maker.
        client.request("GET", "/?" + urlencode({"rows": 10**12}))
        maker = int(line().split()[-1])
        client.getresponse().read(100)
        client.close()
        until("the maker of rows ends when nobody reads", lambda: gone(maker))
        assert line() == "/?rows=1000000000000: the client has left\n"
        # A maker that is killed: whole rows, the reason, and no end that looks like one.
        client.request("GET", "/?" + urlencode({"rows": 10**12}))
        maker = int(line().split()[-1])
        answer = client.getresponse()
        got = [answer.readline() for _ in range(100)]
        os.kill(maker, signal.SIGKILL)
        try:
            while row := answer.readline():
                got.append(row)
        except http.client.IncompleteRead as cut:
            got += cut.partial.splitlines(keepends=True)
        else:
            assert not answer.isclosed() or answer.chunk_left is not None, "a response that was cut short"
        assert [json.loads(row)["row"] for row in got[:-1]] == list(range(len(got) - 1))
        assert json.loads(got[-1]) == {"error": f"rows end after {len(got) - 1}: their process ended with SIGKILL"}
        client.close()
        # Without a single row there is still a status to say it with.
        client.request("GET", "/?rows=many")
        line()
        answer = client.getresponse()
        assert (answer.status, json.load(answer)) == (502, {"error": "rows end after 0: their process ended with 1"})


def words(folder, _shown):
    with server(folder, "examples/words/server.mjs") as (client, _line):
        assert ask(client, "POST", "/", "again again") == (200, '{"again":2}\n')


def hashes(folder, _shown):
    with server(folder, "examples/hashes/server.mjs") as (client, _line):

        def stats():
            client.request("GET", "/")
            return json.load(client.getresponse())

        # Others are answered while hashes run and wait, and what clients have left behind ends.
        leaving = [http.client.HTTPConnection("localhost", client.port, timeout=LIMIT) for _ in range(8)]
        for one in leaving:
            one.request("POST", "/hash", "x")
        until("hashes run", lambda: stats()["running"] > 0)
        for one in leaving:
            one.close()
        until("nothing is left of them", lambda: stats()["running"] + stats()["queued"] == 0)
        assert stats()["cancelled"] > 0, stats()


def jobs_node(folder, _shown):
    with server(folder, "examples/jobs-node/server.mjs") as (client, _line):

        def job(path):
            status, body = ask(client, "GET", path)
            assert status == 200, status
            return json.loads(body)

        def start(below):
            return ask(client, "POST", "/jobs", json.dumps({"below": below}))

        # More jobs than threads, each longer than anybody waits: they run, or wait, and are cancelled either way.
        long = [start(10**12) for _ in range(os.cpu_count() + 1)]
        assert [status for status, _ in long] == [202] * len(long), long
        first, *_, last = paths = [f"/jobs/{identity.strip()}" for _, identity in long]
        until("a job runs and says how far it is", lambda: job(first)["state"] == "running" and job(first)["progress"] > 0)
        assert job(last) == {"state": "queued", "progress": 0}
        for path in reversed(paths):
            assert ask(client, "DELETE", path) == (202, "")
        for path in paths:
            until("it is cancelled", lambda path=path: job(path)["state"] == "cancelled")
        # The threads are free again.
        _, identity = start(100)
        until("a job is done", lambda: job(f"/jobs/{identity.strip()}") == {"state": "done", "progress": 1, "result": 25})
        _, identity = start("x")
        until("a job fails", lambda: job(f"/jobs/{identity.strip()}") == {"state": "failed", "progress": 0, "error": "below is no integer"})
        assert ask(client, "POST", "/jobs", "no JSON")[0] == 400
        assert [ask(client, method, "/jobs/none")[0] for method in ("GET", "DELETE")] == [404, 404]


def logins(folder, _shown):
    def user(name, password):
        return json.dumps({"name": name, "password": password})

    with service(folder, "examples/logins") as client:
        assert ask(client, "POST", "/users", user("ada", "one"))[0] == 201
        assert ask(client, "POST", "/users", user("ada", "two"))[0] == 409
        assert ask(client, "POST", "/login", user("nobody", "one"))[0] == 401
        assert [ask(client, "POST", "/login", body)[0] for body in ("no JSON", "[]", '{"name":"ada"}')] == [400] * 3
        # Others are answered while hashes are made and wait.
        many = [connection_to(client.port) for _ in range(4 * os.cpu_count())]
        for i, one in enumerate(many):
            one.request("POST", "/login", user("ada", "one" if i % 2 == 0 else "two"))
        until("hashes are made", lambda: json.loads(ask(client, "GET", "/")[1])["running"] > 0)
        assert [one.getresponse().status for one in many] == [200, 401] * (len(many) // 2)


def scores(folder, shown):
    sys.path.insert(0, str(folder / "examples/scores"))
    import model

    model.init({"seed": 1, "features": 4})

    def expected(rows):
        return [["chair", "desk", "lamp"][scores.argmax()] for scores in model.predict(rows)]

    assert json.loads(shown.splitlines()[1]) == expected([[1, 2, 3, 4], [4, 3, 2, 1], [0, 0, 1, 0]])
    many = [[i % 7 - 3, i % 5 - 2, i % 3 - 1, i / 100] for i in range(1000)]
    assert len(set(expected(many))) == 3, "each class is somewhere"
    with server(folder, "examples/scores/server.mjs") as (client, _line):
        status, body = ask(client, "POST", "/", json.dumps(many))
        assert (status, json.loads(body)) == (200, expected(many))
        assert [ask(client, "POST", "/", body)[0] for body in ("no JSON", "[[1,2]]", "{}")] == [400] * 3


def pages(folder, _shown):
    with service(folder, "examples/pages") as client:
        assert "<title>a &#38; b</title>" in ask(client, "GET", "/?title=a%20%26%20b")[1]
        status, text = ask(client, "GET", "/broken")
        assert status == 500, status
        assert text.startswith("TypeError: Cannot read properties of undefined"), text


def cluster_node(folder, _shown):
    """A reload while a client asks loses nothing: neither on its kept connection nor on new ones, nor of what workers have said."""
    want = hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 150_000, 16).hex()
    hashes = []

    def is_right(text):
        hashes.append(text)
        return text.split()[0] == want

    def are_counted(client):
        until("all are counted", lambda: ask(client, "GET", "/")[1] == f"{len(hashes)} hashes\n")

    reloaded(folder, ["node", "examples/cluster-node/main.mjs"], "POST", "secret", is_right, then=are_counted)


def queue(folder, _shown):
    """A client has its limit whichever worker it asks; who is killed takes nothing of others along; an end answers what is under way."""
    env = environment(folder)
    with running(["node", "examples/queue/main.mjs"], folder, env) as process:
        until("it listens", lambda: listens(process, env["PORT"]))
        assert ask(connection_to(env["PORT"]), "GET", "/10") == (200, "4 primes\n")
        # Each on a connection of its own, so by either worker.
        allowed = 0
        while ask(connection_to(env["PORT"]), "GET", "/100")[0] == 200:
            allowed += 1
            assert allowed < 1000
        assert allowed >= 19, allowed
        # A token comes back each second.
        until("it may ask again", lambda: ask(connection_to(env["PORT"]), "GET", "/100")[0] == 200)
        time.sleep(1.1)
        last = connection_to(env["PORT"])
        last.request("GET", "/30000000")
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        response = last.getresponse()
        assert (response.status, response.read()) == (200, b"1857859 primes\n")
        last.close()
        process.wait(LIMIT)
    assert process.returncode == 0, process.returncode


def reloaded(folder, command, method, body, is_right, port=None, then=lambda client: None):
    env = environment(folder)
    env["PORT"] = port or env["PORT"]
    with running(command, folder, env) as process:
        until("it listens", lambda: listens(process, env["PORT"]))
        kept, seen = connection_to(env["PORT"]), set()

        def all_new():
            answers = [ask(client, method, "/", body) for client in (kept, connection_to(env["PORT"]))]
            assert all(status == 200 and is_right(text) for status, text in answers), answers
            seen.update(text.split()[-1] for _, text in answers)
            return all("generation 2" in text for _, text in answers)

        all_new()
        process.send_signal(signal.SIGHUP)
        until("the new ones answer", all_new)
        assert seen == {"1", "2"}, seen
        then(kept)
        # An idle connection would be waited for.
        kept.close()
    assert process.returncode == 0, process.returncode


def cluster_python(folder, _shown):
    """As of `cluster_node`."""
    port = environment(folder)["PORT"]
    reloaded(folder, ["python3", "examples/cluster-python/main.py", port], "GET", None, lambda text: text.startswith("hello"), port)


class WebSocket:
    """A client of RFC 6455, as far as short texts go."""

    def __init__(self, port, source):
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT, (source, 0))
        self.file = self.socket.makefile("rb")
        asks = [
            "GET / HTTP/1.1",
            "Host: localhost",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
        ]
        self.socket.sendall("\r\n".join([*asks, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]).encode())
        assert self.file.readline().startswith(b"HTTP/1.1 101 ")
        while self.file.readline() != b"\r\n":
            pass

    def say(self, text):
        # Masked by zeros, as they are.
        self.socket.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode())

    def hears(self):
        """A text, the number that the server closes with, or None at the end."""
        head = self.file.read(2)
        if not head:
            return None
        data = self.file.read(head[1])
        return data.decode() if head[0] == 0x81 else int.from_bytes(data[:2], "big")

    def close(self):
        self.file.close()
        self.socket.close()


def chat(folder, _shown):
    """Everybody hears what anybody says, under the name that is known to one worker alone, also after a reload."""
    env = environment(folder)

    def connect(n):
        client = WebSocket(int(env["PORT"]), f"127.0.0.{n}")
        return client, client.hears()

    with running(["node", "examples/chat/main.mjs"], folder, env) as process:
        # With one of them only, that one would have all clients.
        assert process.stdout.readline() == f"listening on :{env['PORT']}, 2 workers\n"
        numbers = range(2, 14)
        for n in numbers:
            # On a connection of its own: stickiness is not that of a connection.
            client, _ = connect(n)
            client.say(f"/name client{n}")
            client.close()
        # In another order than that in which they got their names.
        clients = {n: connect(n) for n in reversed(numbers)}
        assert {worker for _, worker in clients.values()} == {"worker 0", "worker 1"}, clients
        for n in numbers:
            clients[n][0].say("hello")
            for client, _ in clients.values():
                assert (said := client.hears()) == f"client{n}: hello", said
        process.send_signal(signal.SIGHUP)
        # One worker after the other.
        for client, _ in sorted(clients.values(), key=lambda client: client[1]):
            assert (code := client.hears()) == 1012, code
            client.close()
        clients = {n: connect(n) for n in numbers}
        clients[2][0].say("/name again")
        clients[2][0].say("still here")
        for client, _ in clients.values():
            assert (said := client.hears()) == "again: still here", said
            client.close()
    assert process.returncode == 0, process.returncode


def cluster_logs(folder, _shown):
    """What a worker has printed before it answered is there, though it was killed."""
    env = environment(folder)
    command = ["offloop", "run", "--name", "killed", "-w", "2", "--", "node", "examples/cluster-logs/server.mjs"]
    with running(command, folder, env) as process:
        until("it listens", lambda: listens(process, env["PORT"]))
        answered = {}
        for n in range(300):
            status, text = ask(connection_to(env["PORT"]), "GET", f"/{n}")
            line, pid = map(int, re.fullmatch(r"line (\d+) of process (\d+)\n", text).groups())
            answered[pid] = max(line, answered.get(pid, 0))
            assert status == 200, status
            if n == 150:
                os.kill(pid, signal.SIGKILL)
                killed = pid
        process.terminate()
        printed = process.stdout.read()
    assert process.returncode == 0, process.returncode
    lines = {}
    for pid, text in re.findall(r"^\[\d+:(\d+)\] (.*)$", printed, re.M):
        lines.setdefault(int(pid), []).append(json.loads(text)["line"])
    assert sum(map(len, lines.values())) == len(printed.splitlines()) >= 300, printed
    assert all(of == list(range(len(of))) for of in lines.values()), lines
    assert killed in answered
    assert all(len(lines[pid]) == last + 1 for pid, last in answered.items()), answered


def graceful(folder, shown):
    """Requests that run at SIGTERM are answered, as is the next one of a kept connection, and are in the store; nothing is begun after that."""
    rows = folder / "rows.txt"
    # The store is closed after the last answer, and the process ends after that.
    for part in shown.split("listening")[1:]:
        ends = [re.sub(r" \d+", "", line) for line in part.splitlines() if line.startswith("worker")]
        assert len(ends) == 4, part
    for command in ("node", "main.mjs"), ("python3", "main.py"):
        rows.unlink()
        env = environment(folder)
        with running([command[0], f"examples/graceful/{command[1]}", env["PORT"]], folder, env) as process:
            assert process.stdout.readline().startswith("listening"), command
            kept = connection_to(env["PORT"])
            assert ask(kept, "GET", "/0") == (200, "done\n")
            slow = [connection_to(env["PORT"]) for _ in range(8)]
            for n, client in enumerate(slow):
                client.request("GET", f"/{1500 + n}")
            begun = {process.stdout.readline() for _ in range(9)}
            assert begun == {"begun /0\n"} | {f"begun /{1500 + n}\n" for n in range(8)}, begun
            process.send_signal(signal.SIGTERM)
            for client in slow:
                answer = client.getresponse()
                assert (answer.status, answer.read(), answer.getheader("connection")) == (200, b"done\n", "close"), (command, answer.status)
            kept.request("GET", "/1")
            answer = kept.getresponse()
            assert (answer.status, answer.read(), answer.getheader("connection")) == (200, b"done\n", "close"), (command, answer.status)
            kept.close()
            said = process.stdout.read().splitlines()
            process.wait(LIMIT)
        assert process.returncode == 0, (command, process.returncode)
        assert "begun /1" in said, said
        for worker in "01":
            own = [line for line in said if line.startswith(f"worker {worker}")]
            assert re.fullmatch(rf"worker {worker} has closed its store, \d+ rows\nworker {worker} ended: 0", "\n".join(own)), said
        wanted = ["/0", "/1", *(f"/{1500 + n}" for n in range(8))]
        assert sorted(json.loads(row)["path"] for row in rows.read_text().splitlines()) == wanted, command


def load(folder, env, *options):
    """What `offloop bench http` has counted."""
    run = subprocess.run(
        ["offloop", "bench", "http", f"http://localhost:{env['PORT']}/", "--count-header", "x-worker", "--json", *options],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert run.stdout, run.stderr
    return json.loads(run.stdout)


def asgi(folder, _shown):
    """All processes answer, also while each is replaced; no request fails."""
    port = environment(folder)["PORT"]
    main = ["python3", "examples/asgi/main.py", port]
    reloaded(folder, main, "GET", None, lambda text: text.startswith("hello"), port)
    env = environment(folder)
    seen = set()

    def both_answer():
        clients = [connection_to(env["PORT"]) for _ in range(8)]
        for client in clients:
            client.request("GET", "/", headers={"connection": "close"})
        answers = [client.getresponse() for client in clients]
        assert {answer.status for answer in answers} == {200}
        seen.update(answer.getheader("x-worker") for answer in answers)
        return len(seen) == 2

    with running([*main[:2], env["PORT"]], folder, env) as process:
        until("it listens", lambda: listens(process, env["PORT"]))
        until("both processes answer", both_answer)
    assert process.returncode == 0, process.returncode
    env = environment(folder)
    server = "offloop run --name counted -w 2 -- uvicorn --app-dir examples/asgi app:app --log-level warning --port"
    # It accepts before all workers are ready, and is reloaded when they are.
    again = "until offloop reload counted; do sleep 0.1; done"
    counted = load(folder, env, "--every", "1", "--times", "1", "--run", again, "--", *server.split(), env["PORT"])
    assert (counted["failed"], [event["ended"] for event in counted["events"]]) == (0, ["exit 0"]), counted
    assert len(counted["answers"]["values"]) == 4, counted["answers"]


def echo(folder, _shown):
    """What is sent comes back while the server is reloaded; one that is to end serves the connections that it has, and takes no other."""
    env = environment(folder)

    def connect():
        return socket.create_connection(("localhost", int(env["PORT"])), timeout=LIMIT)

    def comes_back(client, data):
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        got = bytearray()
        while len(got) < len(data) and (piece := client.recv(1 << 16)):
            got += piece
        sender.join()
        return got == data

    with running(["./host", env["PORT"], "./server"], folder, env) as process:
        assert process.stdout.readline() == f"listening on :{env['PORT']}\n"
        data = random.Random(1).randbytes(3_000_000)
        with connect() as client:
            assert comes_back(client, data)
        process.send_signal(signal.SIGHUP)
        reloading = threading.Thread(target=lambda: reports.append(process.stdout.readline()))
        reports = []
        reloading.start()
        rounds = 0
        while reloading.is_alive():
            with connect() as client:
                assert comes_back(client, data[rounds : rounds + 100_000]), rounds
            rounds += 1
        assert reports == ["generation 2: 2 workers replaced\n"], reports
        assert rounds > 10, rounds
        with connect() as client:
            assert comes_back(client, b"before")
            process.send_signal(signal.SIGTERM)
            until("it takes no other", lambda: not takes(env["PORT"]))
            assert comes_back(client, b"after")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        process.wait(LIMIT)
    assert process.returncode == 0, process.returncode


def takes(port):
    """A new connection is served."""
    try:
        with socket.create_connection(("localhost", int(port)), timeout=0.5) as client:
            client.sendall(b"?")
            return client.recv(1) == b"?"
    except OSError:
        return False


def reload(folder, _shown):
    """A server that ends in the middle is one whose failures are counted."""
    url, env = "http://localhost:{PORT}/", environment(folder)
    bench = f"offloop bench http {url.format_map(env)} --every 0.5 --run 'kill -9 {{pid}}' --times 1 --count-header x-worker --json"
    run = subprocess.run(
        ["bash", "-c", f"{bench} -- node examples/reload/server.mjs 2> said.txt | node examples/reload/report.mjs"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert run.returncode == 1, run
    shown = re.fullmatch(
        r"\d+ requests over \d+ connections, answered by 1 processes\nreloads: 1 of 1\nfailures: (\d+)\n((?:  \w+: \d+\n)+)", run.stdout
    )
    assert shown, run.stdout
    assert sum(map(int, re.findall(r"\d+", shown[2]))) == int(shown[1]) > 0, run.stdout


def child_process(_folder, shown):
    total = sum(n * n % 97 for n in range(1000))
    assert shown.startswith(f"exec: {total}\n  a call: {total}\nspawn: 1000 readings, {total}\n  a stream: 1000 readings, {total}\n"), shown
    composite = {multiple for n in range(2, 317) for multiple in range(n * n, 100_000, n)}
    assert f"fork: {99_998 - len(composite)} primes\n" in shown, shown


def photos(folder):
    """Pictures of noise and shades, and a file that is none."""
    from PIL import Image

    (folder / "photos").mkdir()
    shades = Image.linear_gradient("L")
    for name, size in {"beach.jpg": (1600, 1200), "dog.webp": (640, 640), "map.png": (900, 1400)}.items():
        Image.merge("RGB", [shades.rotate(angle).resize(size) for angle in (0, 90, 180)]).save(folder / "photos" / name)
    (folder / "photos/notes.jpg").write_text("to do: take pictures\n")


def pictures(folder, _shown):
    from PIL import Image

    sizes = {path.name: Image.open(path).size for path in (folder / "thumbnails").iterdir()}
    assert sizes == {"beach.jpg": (160, 120), "dog.jpg": (160, 160), "map.jpg": (103, 160)}, sizes


def orders(folder, shown):
    groups = {}
    with open(folder / "orders.csv", newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["country"], []).append((int(row["quantity"]), float(row["price"])))
    lines = [
        f"{country}: {len(rows)} orders, {sum(n for n, _ in rows)} items, from {min(p for _, p in rows)}, "
        f"{math.fsum(p for _, p in rows) / len(rows):.2f} each"
        for country, rows in sorted(groups.items())
    ]
    progress, *totals = shown.splitlines()
    assert totals == lines, shown
    percent = [int(n) for n in re.findall(r"(\d+)% ", progress)]
    assert percent == sorted(percent) and percent[-1] == 100, progress


def tracing(_folder, shown):
    ran = [(outcome, float(ms)) for outcome, ms in re.findall(r"^  price: (\w+), .*, ([\d.]+) ms$", shown, re.M)]
    # How long the functions sleep; a timer of JavaScript may be a millisecond early.
    least = {"completed": 29, "failed": 29, "timeout": 100}
    assert [outcome for outcome, ms in ran if ms >= least[outcome]] == ["completed", "failed", "completed", "timeout"], shown
    whole = [float(ms) for ms in re.findall(r"^order \w: ([\d.]+) ms$", shown, re.M)]
    assert whole[0] >= max(ms for _, ms in ran[:2]), "a parent is there as long as its children"
    assert whole[1] >= max(ms for _, ms in ran[2:])


tracing_node = tracing_python = tracing


def there(folder):
    """Processes that work in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(int(process.name))
    return found


def main():
    sections = re.findall(r"^## (.+)$", README, re.M)
    missing = [str(path) for path in (PREFIX / "lib/pkgconfig/offloop.pc", ROOT / ".venv/bin/python3") if not path.exists()]
    if missing or not list((ROOT / "bindings-node").glob("offloop.*.node")):
        sys.exit(f"not built: {missing or 'the Node.js library'}; run `make examples`")
    failed = False
    for name in [name for name in sections if name in sys.argv[1:] or not sys.argv[1:]]:
        folder = Path(tempfile.mkdtemp(prefix=f"offloop-example-{name}-"))
        start = time.monotonic()
        try:
            shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("node_modules"))
            (folder / "node_modules").mkdir()
            (folder / "node_modules/offloop").symlink_to(ROOT / "bindings-node")
            (folder / "examples/node_modules").symlink_to(ROOT / "examples/node_modules")
            if name == "pictures":
                photos(folder)
            shown = printed(name, folder, in_order=name not in ("frames", "graceful", "pictures"))
            if further := globals().get(name.replace("-", "_")):
                further(folder, shown)
            until(f"no process is left in {folder}", lambda folder=folder: not there(folder))
            print(f"ok    example {name} ({time.monotonic() - start:.1f} s)")
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            failed = True
            print(f"FAIL  example {name}: {type(error).__name__}: {error}")
        finally:
            for process in there(folder):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            shutil.rmtree(folder)
    return failed


if __name__ == "__main__":
    sys.exit(main())
