"""Python channels against multiprocessing.Pipe, between two processes. Prints `R case who value`."""

import multiprocessing
import os
import sys
import time

from offloop import Channel, TransferBuffer

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SCALE = float(os.environ.get("MS", "500")) / 500
FORK = multiprocessing.get_context("fork")
SMALL = {"n": 1, "payload": bytes(100)}


def report(name, who, value):
    print(f"R {name} {who} {value}", flush=True)


def channel_sides(child, parent):
    """Seconds of `parent(end, count)`, while `child(end, count)` runs in another process."""

    def run(count):
        own, other = Channel.pair(capacity=1 << 20)
        fd = os.dup(other.fd)
        started = FORK.Process(target=lambda: child(Channel.attach(fd), count))
        started.start()
        os.close(fd)
        other.close()
        with own:
            seconds = parent(own, count)
        started.join()
        return seconds

    return run


def pipe_sides(child, parent):
    def run(count):
        own, other = FORK.Pipe()
        started = FORK.Process(target=child, args=(other, count))
        started.start()
        seconds = parent(own, count)
        started.join()
        return seconds

    return run


def send(end, count):
    for _ in range(count):
        end.send(SMALL)


def receive(end, count):
    end.recv()
    start = time.perf_counter()
    for _ in range(count - 1):
        end.recv()
    return time.perf_counter() - start


def serve(end, count):
    for _ in range(count + 200):
        message = end.recv()
        message.reply(message.value)


def answer(end, count):
    for _ in range(count + 200):
        end.send(end.recv())


def trips(ask, value):
    """Each value that comes back goes there again: the same memory, if it is a buffer."""

    def parent(end, count):
        passed = value()
        for _ in range(200):
            passed = ask(end, passed)
        start = time.perf_counter()
        for _ in range(count):
            passed = ask(end, passed)
        return time.perf_counter() - start

    return parent


def ask_pipe(end, value):
    end.send(value)
    return end.recv()


def main():
    rate, rate_pipe = channel_sides(send, receive), pipe_sides(send, receive)
    trip = channel_sides(serve, trips(Channel.request, lambda: SMALL))
    trip_pipe = pipe_sides(answer, trips(ask_pipe, lambda: SMALL))
    large = channel_sides(serve, trips(Channel.request, lambda: TransferBuffer(1 << 20, shared=True)))
    large_pipe = pipe_sides(answer, trips(ask_pipe, lambda: bytes(1 << 20)))
    many, asked, few = int(50_000 * SCALE), int(3000 * SCALE), int(300 * SCALE)
    for _ in range(ROUNDS):
        report("py.channel_100", "offloop", many / rate(many))
        report("py.channel_100", "multiprocessing.Pipe", many / rate_pipe(many))
        report("py.channel_trip", "offloop", trip(asked) / asked * 1e6)
        report("py.channel_trip", "multiprocessing.Pipe", trip_pipe(asked) / asked * 1e6)
        report("py.channel_trip_1m", "offloop", large(asked) / asked * 1e6)
        report("py.channel_trip_1m", "multiprocessing.Pipe", large_pipe(few) / few * 1e6)


if __name__ == "__main__":
    sys.exit(main())
