"""Ops and callables on one pool."""

import hashlib
import time

import offloop


def busy(n: int) -> int:
    time.sleep(0.01)
    return n * n


with offloop.ThreadPool(max_workers=4) as pool:
    data = b"some bytes " * 100_000

    # Native ops, by name, off the GIL.
    digest = pool.submit("sha256", data, encoding="hex")
    packed = pool.submit("gzip", data, level=6)

    # Any callable: the pool is a concurrent.futures.Executor.
    squares = pool.map(busy, range(8))

    assert digest.result() == hashlib.sha256(data).hexdigest()
    print(f"{len(data)} bytes packed into {len(packed.result())}")
    print(*squares)
    print(f"{pool.stats.completed} tasks, p50 {pool.stats.run.p50 * 1e6:.0f} µs")
