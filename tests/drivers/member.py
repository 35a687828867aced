"""The worker of the Python driver's clusters: `member.py <mode> <version> <at>`."""

import asyncio
import os
import sys
import time

import offloop

MODE, VERSION, AT = sys.argv[1:]
if MODE == "quits":
    sys.exit(3)
WORKER = offloop.current_worker()
if MODE == "broken" or (MODE == "half" and WORKER.slot > 0):
    raise ValueError("no model")
if MODE == "never":
    time.sleep(1 << 20)


async def answer(line):
    what, _, value = line.partition(" ")
    if what == "tell":
        WORKER.send(int(value))
        return "ok"
    if what == "ask":
        return f"ok int={await WORKER.arequest(int(value))}"
    if what == "count":
        return f"ok int={offloop.Counter(value).add()}"
    if what == "take":
        return f"ok allowed={int(offloop.RateLimiter(value, rate=1e-6, burst=3, keys=64).take().allowed)}"
    return f"ok slot={WORKER.slot} generation={WORKER.generation} pid={os.getpid()} version={VERSION}"


async def serve(reader, writer):
    line = (await reader.readline()).decode().strip()
    reply = await answer(line)
    WORKER.served()
    writer.write(f"{reply}\n".encode())
    writer.close()


def hear(message):
    value = message.value
    if not message.is_request:
        if value == "exit":
            os._exit(3)
        if value == "say":
            os.write(1, b"one\nhalf")
            os._exit(3)
        WORKER.send(value)
        return
    known = {"pid": os.getpid(), "slot": WORKER.slot, "generation": WORKER.generation, "version": VERSION}
    if value == "fail":
        raise TypeError("no such color")
    if value != "never":
        message.reply(2 * value if isinstance(value, int) else known[value])


async def main():
    WORKER.on_message(hear)
    if AT:
        host, _, port = AT.partition(":")
        servers = [await asyncio.start_server(serve, host, int(port))]
    else:
        servers = [await asyncio.start_server(serve, sock=sock) for sock in WORKER.sockets]
    if not servers:
        WORKER.ready()
    # The cluster ends it.
    await asyncio.gather(*(server.serve_forever() for server in servers), asyncio.Event().wait())


asyncio.run(main())
