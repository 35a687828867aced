"""As worker.mjs, on asyncio."""

import asyncio
import os
import signal
import time

import offloop

worker = offloop.current_worker()


def block():
    while True:
        pass


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, block)
    worker.ready()
    while "BUSY" in os.environ:
        until = time.monotonic() + 0.005
        while time.monotonic() < until:
            pass
        await asyncio.sleep(0)
    await asyncio.Event().wait()


asyncio.run(main())
