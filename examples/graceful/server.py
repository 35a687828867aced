"""GET /500 takes 500 ms, and then a row in the store."""

import asyncio
import sys

import offloop
from store import Store

# Seconds that a connection may be idle. A client that keeps one for longer would hold up the end.
IDLE = 5

worker = offloop.current_worker()
store = Store("rows.txt")


def say(line):
    # In one piece: other processes write there as well.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def handle(reader, writer):
    try:
        last = False
        while not last:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE)
            path = head.split()[1].decode()
            say(f"begun {path}")
            await asyncio.sleep(int(path[1:]) / 1000)
            store.add({"path": path})
            last = worker.draining
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: %s\r\n\r\ndone\n" % (b"close" if last else b"keep-alive"))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        pass  # the client has gone, or asks for nothing any more
    finally:
        writer.close()


async def main(port):
    try:
        async with await asyncio.start_server(handle, "localhost", port) as server:
            await server.serve_forever()
    finally:
        # The program of a worker that is to leave ends here, when its last connection has. A function of `worker.on_drain` would be called at once, while what has begun needs the store.
        say(f"worker {worker.slot} has closed its store, {store.close()} rows")


asyncio.run(main(int(sys.argv[1])))
