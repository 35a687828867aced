"""A function of one's own, inline and offloaded. One line each: name=value parts."""

import asyncio
import sys
import time

import offloop

CALLS, N = map(int, sys.argv[1:])


def primes(n):
    """Primes below n, the slow way."""
    count = 0
    for i in range(2, n):
        d = 2
        while d * d <= i and i % d:
            d += 1
        count += d * d > i
    return count


async def show(name, work):
    """How long `work` takes, and how late a 1 ms timer is meanwhile, at worst."""
    late = 0.0
    last = time.perf_counter()

    async def ticks():
        nonlocal late, last
        while True:
            await asyncio.sleep(0.001)
            late, last = max(late, time.perf_counter() - last - 0.001), time.perf_counter()

    timer = asyncio.create_task(ticks())
    await asyncio.sleep(0)
    start = time.perf_counter()
    result = await work()
    ms = (time.perf_counter() - start) * 1e3
    late = max(late, time.perf_counter() - last - 0.001)
    timer.cancel()
    print(f"way={name} ms={ms} late_ms={late * 1e3} result={result}", flush=True)


async def inline():
    return [primes(N) for _ in range(CALLS)][-1]


async def main():
    await show("inline", inline)
    with offloop.ProcessPool() as pool:

        async def offloaded(n=N):
            return (await asyncio.gather(*(pool.run(primes, n) for _ in range(CALLS))))[-1]

        await offloaded(2)
        await show("ProcessPool", offloaded)


if __name__ == "__main__":
    asyncio.run(main())
