"""The server of server.py on all cores: SIGHUP reloads it, SIGTERM and Ctrl-C end it when its requests are answered."""

import asyncio
import signal
import sys
from pathlib import Path

import offloop


async def main(port):
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    # Before the first worker listens: who finds it there may reload it.
    again = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, again.set)
    async with offloop.Cluster(Path(__file__).with_name("server.py"), args=[port]) as cluster:
        cluster.on(
            "exit",
            lambda worker, how: how.text and print(f"worker {worker.slot}:", how.text, file=sys.stderr),
        )
        reloads = asyncio.create_task(reload_on(again, cluster))
        await end.wait()
        reloads.cancel()


async def reload_on(again, cluster):
    while await again.wait():
        again.clear()
        try:
            await cluster.areload()
        except offloop.OffloopError as error:
            # What did not come up; the workers of before go on.
            print("not reloaded:", error, file=sys.stderr)


asyncio.run(main(sys.argv[1]))
