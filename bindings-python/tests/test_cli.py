"""The command of the package: that it is there, and how it ends. What it prints is tested in the core."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import offloop


def command(*args):
    return [sys.executable, "-m", "offloop", *map(str, args)]


def run(*args):
    done = subprocess.run(command(*args), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_ring_stat_looks_at_a_ring_that_others_use(tmp_path):
    path = tmp_path / "ring"
    ring = offloop.RingBuffer.create("spsc", path=path)
    producer = ring.producer()
    assert producer.try_push(b"123")
    status, out, err = run("ring", "stat", path, "--json")
    assert (status, err) == (0, "")
    stat = json.loads(out)
    assert (stat["kind"], stat["lanes"][0]["records"]) == ("spsc", 1)
    assert stat["participants"][0]["pid"] == os.getpid()
    assert stat == offloop.RingBuffer.inspect(path)


def test_its_exit_status_and_outputs_are_those_of_a_command():
    assert run("--version") == (0, f"offloop {offloop.__version__}\n", "")
    status, out, err = run("ring", "stat", "/nowhere/at-all")
    assert (status, out) == (1, "")
    assert err.startswith("offloop: not found: ")
    assert "/nowhere/at-all" in err
    assert run("rong")[0] == 2


def test_ctrl_c_ends_it(tmp_path):
    ring = offloop.RingBuffer.create("spsc", path=tmp_path / "ring")
    tail = subprocess.Popen(command("ring", "tail", ring.path, "--json", "--interval", "0.01"), stdout=subprocess.PIPE)
    assert tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    assert tail.wait() == -signal.SIGINT
    tail.stdout.close()


def test_run_tells_of_a_blocked_loop_with_its_stack(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, time

        def stands():
            time.sleep(600)

        async def handle(reader, writer):
            stands()

        async def main():
            async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
                await server.serve_forever()

        asyncio.run(main())
        """)
    )
    args = command("run", "--json", "-w", 1, "--hang-timeout", 0.4, "--", sys.executable, script)
    cluster = subprocess.Popen(args, stderr=subprocess.PIPE, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    try:
        said = (json.loads(line) for line in cluster.stderr)
        started = next(event for event in said if event["event"] == "started")
        host, port = started["listen"][0].rsplit(":", 1)
        with socket.create_connection((host, int(port))):
            told = next(event for event in said if event["event"] == "unresponsive")
        lines = told["stack"].split("\n")
        assert (told["cause"], lines[0]) == ("blocked", "Stack (most recent call last):")
        assert lines[-2:] == [f'  File "{script}", line 5, in stands', "    time.sleep(600)"]
    finally:
        cluster.kill()
        cluster.wait()
        cluster.stderr.close()
