"""Python: ours and the host's own in turns. Prints `R case who value`; the runner knows units and goals."""

import asyncio
import gzip
import hashlib
import io
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.csv
import pyarrow.ipc
import zstandard
from offloop import ThreadPool, ops

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = float(os.environ.get("MS", "500")) / 1e3
IN_FLIGHT = 1000
WORKERS = os.cpu_count()


def report(name, who, value):
    print(f"R {name} {who} {value}", flush=True)


def noop():
    return None


async def saturate(call):
    """Awaits per second with so many in flight."""
    done = 0
    start = time.perf_counter()
    end = start + SECONDS

    async def one():
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - start)


def batches(submit):
    """Submitted and collected per second, a thousand at a time."""
    done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for future in submit():
            future.result()
        done += IN_FLIGHT
    return done / (time.perf_counter() - start)


def median_ms(call, times=9):
    call()
    took = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1e3)
    return statistics.median(took)


async def asyncio_cases(pool):
    # `asyncio.run` shuts its default executor down at its end: one of its own.
    stdlib = ThreadPoolExecutor(WORKERS)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(stdlib)
    sides = {
        "py.await_noop": {
            "offloop": lambda: pool.run("noop"),
            "to_thread": lambda: asyncio.to_thread(noop),
            "run_in_executor": lambda: loop.run_in_executor(stdlib, noop),
        },
        "py.await_sha256_1k": {
            "offloop": lambda: pool.run("sha256", KILOBYTE),
            "to_thread+hashlib": lambda: asyncio.to_thread(lambda: hashlib.sha256(KILOBYTE).digest()),
        },
    }
    for name, duel in sides.items():
        for _ in range(ROUNDS):
            for who, call in duel.items():
                report(name, who, await saturate(call))


def text():
    """A megabyte that compresses about as CSV does."""
    out = io.StringIO()
    x = 12345
    i = 0
    while out.tell() < 1 << 20:
        x = (x * 1103515245 + 12345) % 2**32
        out.write(f"{i},{x % 1000},station-{x % 97},{x / 2**32:.6f},ok\n")
        i += 1
    return out.getvalue().encode()[: 1 << 20]


KILOBYTE = bytes(1024)
MEGABYTE = text()
TABLE = b"id,value,station,share,state\n" + MEGABYTE * 8


def arrow():
    table = pyarrow.csv.read_csv(io.BytesIO(TABLE))
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def main():
    pool = ThreadPool(max_workers=WORKERS)
    stdlib = ThreadPoolExecutor(WORKERS)
    asyncio.run(asyncio_cases(pool))
    thousand = [KILOBYTE] * IN_FLIGHT
    throughput = {
        "py.submit_noop": {
            "offloop": lambda: [pool.submit("noop") for _ in thousand],
            "ThreadPoolExecutor": lambda: [stdlib.submit(noop) for _ in thousand],
        },
        "py.submit_many_sha256_1k": {
            "offloop": lambda: pool.submit_many("sha256", thousand),
            "ThreadPoolExecutor": lambda: [stdlib.submit(lambda b=b: hashlib.sha256(b).digest()) for b in thousand],
        },
    }
    for name, duel in throughput.items():
        for _ in range(ROUNDS):
            for who, submit in duel.items():
                report(name, who, batches(submit))
    compressor = zstandard.ZstdCompressor(level=3)
    times = {
        "py.sha256_1m": {"offloop": lambda: ops.sha256(MEGABYTE), "hashlib": lambda: hashlib.sha256(MEGABYTE).digest()},
        "py.gzip_1m": {"offloop": lambda: ops.gzip(MEGABYTE, level=6), "zlib": lambda: gzip.compress(MEGABYTE, 6)},
        "py.zstd_1m": {"offloop": lambda: ops.zstd(MEGABYTE, level=3), "zstandard": lambda: compressor.compress(MEGABYTE)},
        "py.csv_8m": {"offloop": lambda: ops.csv.to_arrow(TABLE), "pyarrow": arrow},
    }
    for name, duel in times.items():
        for _ in range(ROUNDS):
            for who, call in duel.items():
                report(name, who, median_ms(call))
        if name in ("py.gzip_1m", "py.zstd_1m"):
            for who, call in duel.items():
                report(f"{name}.bytes", who, len(call()))
    pool.shutdown()
    stdlib.shutdown()


if __name__ == "__main__":
    sys.exit(main())
