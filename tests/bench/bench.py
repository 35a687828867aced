"""Python: ours and the host's own in turns. Prints `R case who value`; the runner knows units and goals.

usage: bench.py [await] [submit] [bytes] [image] [csv] [json] [transfer] [processes] [starts] [memory]; all by default.
"""

import asyncio
import functools
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from offloop import ProcessPool, ThreadPool, TransferBuffer, ops

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")).resolve() / "bench"
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = float(os.environ.get("MS", "500")) / 1e3
IN_FLIGHT = 1000
WORKERS = len(os.sched_getaffinity(0))
IDLE_THREADS = 64
KILOBYTE = bytes(1024)


def report(name, who, value):
    print(f"R {name} {who} {value}", flush=True)


def duel(name, sides, measure):
    """Every side once per round, so that all of them see the same weather."""
    for _ in range(ROUNDS):
        for who, side in sides.items():
            report(name, who, measure(side))


def median_ms(call, times=9):
    call()
    took = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1e3)
    return statistics.median(took)


def noop():
    return None


# ---- asyncio ----


async def saturate(call, lanes):
    """Awaits per second with so many in flight, and the p99 of how late a 1 ms timer comes meanwhile."""
    done = 0
    late = []
    start = time.perf_counter()
    end = start + SECONDS

    async def lane():
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    async def timer():
        while (due := time.perf_counter() + 1e-3) < end:
            await asyncio.sleep(1e-3)
            late.append(time.perf_counter() - due)

    tasks = [asyncio.ensure_future(lane()) for _ in range(lanes)]
    # The first round of all lanes is a burst of submits, which is the caller's and not the pool's.
    await asyncio.sleep(0)
    await asyncio.gather(timer(), *tasks)
    return done / (time.perf_counter() - start), sorted(late)[int(len(late) * 0.99)] * 1e3


async def await_cases():
    pool = ThreadPool(max_workers=WORKERS)
    # `asyncio.run` shuts its default executor down at its end: one of its own.
    stdlib = ThreadPoolExecutor(WORKERS)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(stdlib)

    def digest():
        return hashlib.sha256(KILOBYTE).digest()

    no_ops = {
        "offloop": lambda: pool.run("noop"),
        "to_thread": lambda: asyncio.to_thread(noop),
        "run_in_executor": lambda: loop.run_in_executor(stdlib, noop),
    }
    digests = {"offloop": lambda: pool.run("sha256", KILOBYTE), "to_thread+hashlib": lambda: asyncio.to_thread(digest)}
    for name, lanes, sides in (
        ("py.await_noop", IN_FLIGHT, no_ops),
        ("py.await_noop_1", 1, no_ops),
        ("py.await_sha256_1k", IN_FLIGHT, digests),
    ):
        for _ in range(ROUNDS):
            for who, call in sides.items():
                rate, late = await saturate(call, lanes)
                report(name, who, rate)
                if lanes > 1:
                    report(f"{name}.loop_p99", who, late)
    pool.shutdown()


# ---- submit and result ----


def batches(submit):
    """Submitted and collected per second, a thousand at a time."""
    done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for future in submit():
            future.result()
        done += IN_FLIGHT
    return done / (time.perf_counter() - start)


def submit_cases():
    thousand = [KILOBYTE] * IN_FLIGHT
    with ThreadPool(max_workers=WORKERS) as pool, ThreadPoolExecutor(WORKERS) as stdlib:

        def digests():
            return [stdlib.submit(lambda b=b: hashlib.sha256(b).digest()) for b in thousand]

        no_ops = {
            "offloop": lambda: [pool.submit("noop") for _ in thousand],
            "ThreadPoolExecutor": lambda: [stdlib.submit(noop) for _ in thousand],
        }
        duel("py.submit_noop", no_ops, batches)
        singles = {"offloop": lambda: [pool.submit("sha256", b) for b in thousand], "ThreadPoolExecutor+hashlib": digests}
        duel("py.submit_sha256_1k", singles, batches)
        many = {"offloop": lambda: pool.submit_many("sha256", thousand), "ThreadPoolExecutor+hashlib": digests}
        duel("py.submit_many_sha256_1k", many, batches)


# ---- ops on bytes ----


@functools.cache
def megabyte():
    """A megabyte that compresses about as CSV does, in whole lines."""
    out = io.StringIO()
    x = 12345
    i = 0
    while out.tell() < 1 << 20:
        x = (x * 1103515245 + 12345) % 2**32
        out.write(f"{i},{x % 1000},station-{x % 97},{x / 2**32:.6f},ok\n")
        i += 1
    return out.getvalue().encode()


def byte_cases():
    import zstandard

    data = megabyte()
    compressor = zstandard.ZstdCompressor(level=3)
    cases = {
        "py.sha256_1m": {"offloop": lambda: ops.sha256(data), "hashlib": lambda: hashlib.sha256(data).digest()},
        "py.gzip_1m": {"offloop": lambda: ops.gzip(data, level=6), "zlib": lambda: gzip.compress(data, 6)},
        "py.zstd_1m": {"offloop": lambda: ops.zstd(data, level=3), "zstandard": lambda: compressor.compress(data)},
    }
    for name, sides in cases.items():
        duel(name, sides, median_ms)
        if name != "py.sha256_1m":
            for who, call in sides.items():
                report(f"{name}.bytes", who, len(call()))


# ---- image ----


def image_cases():
    import numpy as np
    from PIL import Image

    sys.path.insert(0, str(HERE / "image"))
    from ssim import ssim

    photo = TARGET / "photo.jpg"
    if not photo.exists():
        photo.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, HERE / "image/make_photo.py", photo], check=True)
    data = photo.read_bytes()

    def pillow(format="JPEG"):
        image = Image.open(io.BytesIO(data))
        image.thumbnail((200, 200), Image.Resampling.LANCZOS, reducing_gap=2.0)
        out = io.BytesIO()
        image.save(out, format, quality=80)
        return out.getvalue()

    def luma(encoded):
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("L"), dtype=np.float64)

    sides = {"offloop": lambda: ops.image.thumbnail(data, width=200, format="jpeg", quality=80), "pillow": pillow}
    duel("py.thumbnail", sides, median_ms)
    ours, theirs = luma(ops.image.thumbnail(data, width=200, format="png")), luma(pillow("PNG"))
    report("py.thumbnail.ssim", "offloop", ssim(ours, theirs))
    report("py.thumbnail.ssim", "pillow", 1)


# ---- tables and documents ----


def csv_cases():
    import pandas
    import pyarrow.csv
    import pyarrow.ipc

    table = b"id,value,station,share,state\n" + megabyte() * 8

    def arrow(read):
        table = read()
        sink = io.BytesIO()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    sides = {
        "offloop": lambda: ops.csv.to_arrow(table),
        "pyarrow": lambda: arrow(lambda: pyarrow.csv.read_csv(io.BytesIO(table))),
        "pandas": lambda: arrow(lambda: pyarrow.Table.from_pandas(pandas.read_csv(io.BytesIO(table)), preserve_index=False)),
    }
    ours, theirs = (pyarrow.ipc.open_stream(sides[who]()).read_all() for who in ("offloop", "pyarrow"))
    assert ours.equals(theirs), "two readers of one table agree"
    duel("py.csv_8m", sides, median_ms)

    aggregates = {"n": "count", "total": {"fn": "sum", "column": "value"}, "top": {"fn": "max", "column": "share"}}

    def grouped():
        frame = pandas.read_csv(io.BytesIO(table))
        groups = frame.groupby("station", sort=False).agg(n=("id", "size"), total=("value", "sum"), top=("share", "max"))
        return groups.reset_index().to_dict("records")

    sides = {
        "offloop": lambda: json.loads(ops.csv.aggregate(table, group_by=["station"], aggregates=aggregates, format="json")),
        "pandas": grouped,
    }
    assert sides["offloop"]() == sides["pandas"](), "two groupings of one table agree"
    duel("py.csv_aggregate_8m", sides, median_ms)


def json_cases():
    import orjson

    rows = [line.split(",") for line in megabyte().decode().splitlines()] * 4
    document = json.dumps([{"id": int(r[0]), "value": int(r[1]), "station": r[2], "share": float(r[3])} for r in rows]).encode()
    sides = {
        "offloop": lambda: ops.json.query(document, path="$[?@.value < 10].station"),
        "json": lambda: json.dumps([row["station"] for row in json.loads(document) if row["value"] < 10]).encode(),
        "orjson": lambda: orjson.dumps([row["station"] for row in orjson.loads(document) if row["value"] < 10]),
    }
    assert json.loads(sides["offloop"]()) == json.loads(sides["json"]()), "two queries of one document agree"
    duel("py.json_query_8m", sides, median_ms)


# ---- 16 MiB to another process and back ----


def answer(pipe, fds):
    """The other process: changes the last byte of what comes and sends it back."""
    with pipe, fds:
        while (message := pipe.recv()) is not None:
            if isinstance(message, bytearray):
                message[-1] += 1
                pipe.send(message)
                continue
            _, received, _, _ = socket.recv_fds(fds, 1, 1)
            buffer = TransferBuffer.attach(received[0])
            os.close(received[0])
            with memoryview(buffer) as view:
                view[-1] += 1
            pipe.send(message)


def transfer_cases():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    here, there = socket.socketpair()
    child = context.Process(target=answer, args=(theirs, there))
    child.start()
    data = bytearray(16 << 20)
    made = TransferBuffer(len(data), shared=True)

    def by_reference(buffer=made):
        with memoryview(buffer) as view:
            last = view[-1] = 1
            ours.send("buffer")
            socket.send_fds(here, [b"x"], [buffer.fd])
            ours.recv()
            assert view[-1] == last + 1

    def by_copy():
        buffer = TransferBuffer(len(data), shared=True)
        with memoryview(buffer) as view:
            view[:] = data
        by_reference(buffer)

    def pickled():
        data[-1] = 1
        ours.send(data)
        assert ours.recv()[-1] == 2

    duel("py.transfer_16m", {"offloop": by_copy, "pipe+pickle": pickled}, median_ms)
    duel("py.reference_16m", {"offloop": by_reference, "pipe+pickle": pickled}, median_ms)
    ours.send(None)
    child.join()


# ---- worker processes ----


def same(array):
    return array


def twice(array):
    array *= 2
    return array


def touch(array):
    array[0] = array[-1] = 1


def round_trip_us(call):
    """Median of one call after another."""
    took = []
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        call()
        took.append((time.perf_counter() - start) * 1e6)
    return statistics.median(took)


def process_cases():
    import numpy as np

    context = multiprocessing.get_context("spawn")
    array = np.ones(2 << 20)
    bytes_both_ways = 2 * array.nbytes
    with (
        ProcessPool(WORKERS) as pool,
        ProcessPoolExecutor(WORKERS, mp_context=context) as executor,
        context.Pool(WORKERS) as old,
    ):
        pool.submit(noop).result(), executor.submit(noop).result(), old.apply(noop)  # they start here

        def of_old():
            handles = [old.apply_async(noop) for _ in range(IN_FLIGHT)]
            for handle in handles:
                handle.result = handle.get
            return handles

        def gigabytes(call):
            return bytes_both_ways / 1e6 / median_ms(call)

        ours = {"offloop": lambda: [pool.submit(noop) for _ in range(IN_FLIGHT)]}
        duel("py.process_noop", {**ours, "multiprocessing.Pool": of_old}, batches)
        theirs = {"ProcessPoolExecutor": lambda: [executor.submit(noop) for _ in range(IN_FLIGHT)]}
        duel("py.process_noop_executor", {**ours, **theirs}, batches)
        trips = {"offloop": lambda: pool.submit(noop).result(), "multiprocessing.Pool": lambda: old.apply(noop)}
        duel("py.process_trip", trips, round_trip_us)
        for name, function in (("py.process_array_16m", same), ("py.process_array_changed_16m", twice)):
            arrays = {
                "offloop": lambda function=function: pool.submit(function, array).result(),
                "ProcessPoolExecutor": lambda function=function: executor.submit(function, array).result(),
            }
            duel(name, arrays, gigabytes)
        shared = pool.array(array.shape)
        references = {
            "offloop": lambda: pool.submit(touch, shared).result(),
            "ProcessPoolExecutor": lambda: executor.submit(touch, array).result(),
        }
        duel("py.process_reference_16m", references, median_ms)


def first_ms(make, pause=0.0):
    """From a pool of two that is made, or was `pause` seconds ago, to its first result: of a function of numpy."""
    import numpy as np

    start = time.perf_counter()
    pool = make()
    if pause:
        time.sleep(pause)
        start = time.perf_counter()
    futures = [pool.submit(np.sum, (1, 2)) for _ in range(2)]
    futures[0].result()
    took = (time.perf_counter() - start) * 1e3
    pool.shutdown()
    return took


def start_cases():
    spawn, server = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["numpy"])
    with ProcessPoolExecutor(1, mp_context=server) as executor:
        executor.submit(noop).result()  # its server has imported numpy from here on
    theirs = {"ProcessPoolExecutor-spawn": lambda: ProcessPoolExecutor(2, mp_context=spawn)}
    duel("py.process_first", {"offloop": lambda: ProcessPool(2), **theirs}, first_ms)
    preloaded = {"offloop": lambda: ProcessPool(2, preload=["numpy"])}
    duel("py.process_first_preload", {**preloaded, **theirs}, first_ms)
    # Long enough for the import, which nobody waits for.
    warm = {"offloop": lambda: first_ms(preloaded["offloop"], pause=1)}
    served = {"ProcessPoolExecutor-forkserver": lambda: first_ms(lambda: ProcessPoolExecutor(2, mp_context=server))}
    duel("py.process_first_warm", {**warm, **served}, lambda measure: measure())


# ---- memory ----


def resident_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def idle(who):
    """KiB per idle thread of a pool, in a process of its own."""
    pool = ThreadPool(1) if who == "offloop" else ThreadPoolExecutor(1)
    pool.submit(*(["noop"] if who == "offloop" else [noop])).result()
    before = resident_kib()
    if who == "offloop":
        big = ThreadPool(IDLE_THREADS)
        futures = [big.submit("noop", sleep_ms=200) for _ in range(IDLE_THREADS)]
    else:
        big = ThreadPoolExecutor(IDLE_THREADS)
        futures = [big.submit(time.sleep, 0.2) for _ in range(IDLE_THREADS)]
    for future in futures:
        future.result()
    threads = big.stats.workers if who == "offloop" else len(big._threads)
    print((resident_kib() - before) / threads)


def memory_cases():
    for _ in range(ROUNDS):
        for who in ("offloop", "ThreadPoolExecutor"):
            command = [sys.executable, __file__, "--idle", who]
            report("py.idle_thread", who, subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


GROUPS = {
    "await": lambda: asyncio.run(await_cases()),
    "submit": submit_cases,
    "bytes": byte_cases,
    "image": image_cases,
    "csv": csv_cases,
    "json": json_cases,
    "transfer": transfer_cases,
    "processes": process_cases,
    "starts": start_cases,
    "memory": memory_cases,
}


def main(args):
    if args[:1] == ["--idle"]:
        return idle(args[1])
    unknown = [name for name in args if name not in GROUPS]
    if unknown:
        return f"bench.py knows {' '.join(GROUPS)}, not {' '.join(unknown)}"
    for name, run in GROUPS.items():
        if not args or name in args:
            run()
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
