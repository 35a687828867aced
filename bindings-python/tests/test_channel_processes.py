"""Channels between processes: what is inherited, deaths, fork, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import offloop
import pytest
from conftest import PACKAGE
from offloop import Channel, TransferBuffer

PEER = """
import os, sys, offloop
from offloop import Channel
channel = Channel.attach(int(sys.argv[1]))
"""


@pytest.fixture
def start():
    """Starts a process that has the other end."""
    started = []

    def run(code, **options):
        own, other = Channel.pair(**options)
        peer = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", PEER + code, str(other.fd)],
            env={"PYTHONPATH": str(PACKAGE), "PATH": "/usr/bin:/bin"},
            pass_fds=[other.fd],
        )
        other.close()
        started.append((own, peer))
        return own, peer

    yield run
    for own, peer in started:
        own.close()
        peer.kill()
        peer.wait()


def test_messages_requests_and_buffers_cross(start):
    own, peer = start(
        """
for message in channel:
    if message.is_request:
        memoryview(message.value)[:] = bytes(b * 2 for b in memoryview(message.value))
        message.reply(message.value)
    else:
        channel.send(message.value)
""",
        capacity=8192,
    )
    receiver = threading.Thread(target=lambda: [own.send([n, "x" * (n % 700)]) for n in range(2000)])
    receiver.start()
    for n in range(2000):
        assert own.recv().value == [n, "x" * (n % 700)]
    receiver.join()
    for shared in [False, True]:
        buffer = TransferBuffer(5000, shared=shared)
        memoryview(buffer)[:] = bytes([21]) * 5000
        assert bytes(own.request(buffer)) == bytes([42]) * 5000
    assert own.peer_pid == peer.pid
    own.close()
    assert peer.wait() == 0


def test_a_death_is_told_after_the_last_message(start):
    own, peer = start("for n in range(10): channel.send(n)\nchannel.recv()")
    got = [own.recv().value for _ in range(10)]
    assert got == list(range(10))
    peer.kill()
    with pytest.raises(offloop.PeerDiedError):
        own.recv()
    with pytest.raises(offloop.PeerDiedError):
        own.send(1)


def test_an_end_in_peace_is_a_close(start):
    own, peer = start("channel.send('bye')")
    assert [m.value for m in own] == ["bye"]
    assert peer.wait() == 0


@pytest.mark.parametrize("call", ["channel.recv", "lambda: [channel.send(bytes(1000)) for _ in iter(int, 1)]"])
def test_an_exit_is_a_close_while_daemon_threads_use_the_channel(start, call):
    own, peer = start(f"import threading\nthreading.Thread(target={call}, daemon=True).start()\nprint(channel.stats)")
    # Raises for a death.
    for _ in own:
        pass
    assert peer.wait() == 0


def test_an_exit_closes_the_channels_of_a_listener(tmp_path):
    code = """
import atexit, os, sys
from offloop import Channel
def serve(channel):
    for message in channel:
        message.reply(message.value + 1)
listener = Channel.listen(sys.argv[1], serve)
print("listens", flush=True)
input()
if os.fork() == 0:
    # An exit of a forked child closes nothing of its parent's.
    sys.exit()
os.wait()
print("forked", flush=True)
input()
# Channels are used until the last function that ends the program has run.
atexit.register(lambda: print(Channel.connect(sys.argv[1]).request(1)))
"""
    peer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "path")],
        env={"PYTHONPATH": str(PACKAGE), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert peer.stdout.readline() == "listens\n"
    with Channel.connect(tmp_path / "path") as channel:
        assert channel.request(1) == 2
        peer.stdin.write("\n")
        peer.stdin.flush()
        assert peer.stdout.readline() == "forked\n"
        assert channel.request(2) == 3
        assert peer.communicate("\n") == ("2\n", "")
        with pytest.raises(offloop.ClosedError):
            channel.recv()
    assert peer.returncode == 0


def test_ctrl_c_ends_a_wait(start):
    own, peer = start(
        """
try:
    channel.send('ready')
    channel.recv()
except KeyboardInterrupt:
    channel.send('interrupted')
"""
    )
    assert own.recv().value == "ready"
    peer.send_signal(signal.SIGINT)
    assert own.recv().value == "interrupted"


def test_a_forked_child_is_refused_and_closes_nothing():
    a, b = Channel.pair()
    a.send(1)
    assert b.recv().value == 1
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for call in [lambda: a.send(2), a.recv, a.fileno, a.try_recv]:
                try:
                    call()
                except offloop.ForkedError:
                    continue
                os._exit(2)
            a.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    a.send(3)
    assert b.recv().value == 3
    a.close()
    b.close()


def test_connect_from_another_process(tmp_path):
    path = tmp_path / "path"
    with Channel.listen(path) as listener:
        code = "import sys\nfrom offloop import Channel\nwith Channel.connect(sys.argv[1]) as c: print(c.request(20))"
        peer = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            env={"PYTHONPATH": str(PACKAGE), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            text=True,
        )
        with listener.accept() as channel:
            for message in channel:
                message.reply(message.value + 1)
        assert peer.communicate()[0] == "21\n"
