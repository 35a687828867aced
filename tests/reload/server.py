"""As tests/bench/cluster/server.mjs, on asyncio's streams: it knows of its cluster only to say which answer is a connection's last."""

import asyncio
import os

import offloop

worker = offloop.current_worker()


async def handle(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
            await reader.readexactly(length)
            last = worker.draining or "connection: close" in head
            kept = b"close" if last else b"keep-alive"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: %s\r\nX-Worker: %d\r\n\r\nok" % (kept, os.getpid()))
            await writer.drain()
            if last:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has gone
    finally:
        writer.close()


async def main():
    async with await asyncio.start_server(handle, "127.0.0.1", int(os.environ["PORT"])) as server:
        await server.serve_forever()


asyncio.run(main())
