"""Python rings against multiprocessing.Queue and faster-fifo, between two processes. Prints `R case who value`.

A child produces, this process consumes. Each round counts records from the first one that arrived to the last.
"""

import multiprocessing
import os
import queue
import sys
import time

import faster_fifo
from offloop import RingBuffer

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SCALE = float(os.environ.get("MS", "500")) / 500
FORK = multiprocessing.get_context("fork")
SMALL = bytes(100)
LARGE = bytes(64 << 10)
BATCH = 256


def report(name, who, value):
    print(f"R {name} {who} {value}", flush=True)


def between(produce, consume, count):
    """Seconds that the consumer needs for `count` records."""
    child = FORK.Process(target=produce, args=(count,))
    child.start()
    seconds = consume(count)
    child.join()
    assert child.exitcode == 0
    return seconds


def ring_sides(capacity, send, receive, batch=False):
    def run(count):
        ring = RingBuffer.create("spsc", capacity=capacity)
        fds = ring.fds

        def produce(n):
            with RingBuffer.attach(fds).producer(batch=batch) as producer:
                send(producer, n)

        def consume(n):
            with ring.consumer() as consumer:
                consumer.pop()
                start = time.perf_counter()
                receive(consumer, n - 1)
                return time.perf_counter() - start

        return between(produce, consume, count)

    return run


def push_each(record):
    def send(producer, n):
        push = producer.push
        for _ in range(n):
            push(record)

    return send


def pop_each(consumer, n):
    pop = consumer.pop
    for _ in range(n):
        pop()


def push_batches(producer, n):
    records = [SMALL] * BATCH
    for _ in range(n // BATCH):
        producer.push_many(records)


def pop_batches(consumer, n):
    while n:
        n -= len(consumer.pop_many(BATCH))


def queue_sides(make):
    def run(count):
        q = make()

        def produce(n):
            for _ in range(n):
                q.put(SMALL)

        def consume(n):
            q.get()
            start = time.perf_counter()
            for _ in range(n - 1):
                while True:
                    try:
                        q.get()
                        break
                    except queue.Empty:
                        pass
            return time.perf_counter() - start

        return between(produce, consume, count)

    return run


def main():
    one_by_one = ring_sides(1 << 20, push_each(SMALL), pop_each)
    mp_queue = queue_sides(FORK.Queue)
    fifo = queue_sides(lambda: faster_fifo.Queue(max_size_bytes=1 << 20))
    batched = ring_sides(1 << 20, push_batches, pop_batches)
    large = ring_sides(4 << 20, push_each(LARGE), pop_each)
    few, many = int(30_000 * SCALE), int(400_000 * SCALE)
    for _ in range(ROUNDS):
        rate = many / one_by_one(many)
        report("py.ring_100", "offloop", rate)
        report("py.ring_100_fifo", "offloop", rate)
        report("py.ring_100", "multiprocessing.Queue", few / mp_queue(few))
        report("py.ring_100_fifo", "faster-fifo", few / fifo(few))
        whole = many * 2 // BATCH * BATCH
        report("py.ring_100_batched", "offloop", whole / batched(whole))
        pages = int(20_000 * SCALE)
        report("py.ring_64k", "offloop", pages * len(LARGE) / large(pages) / 1e9)


if __name__ == "__main__":
    sys.exit(main())
