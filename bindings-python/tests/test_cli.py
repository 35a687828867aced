"""The command of the package: that it is there, and how it ends. What it prints is tested in the core."""

import json
import os
import signal
import subprocess
import sys

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
