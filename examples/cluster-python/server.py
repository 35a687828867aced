"""An HTTP server on asyncio's streams, one of several on the same port: `python3 server.py 3000` runs it alone."""

import asyncio
import sys

import offloop

worker = offloop.current_worker()
name = f"worker {worker.slot} of generation {worker.generation}" if worker else "a server of its own"


async def handle(reader, writer):
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            body = f"hello from {name}\n".encode()
            # It is to leave: this request is the connection's last, and the next one finds another worker.
            last = worker is not None and worker.draining
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n" % (len(body), b"close" if last else b"keep-alive")
            )
            writer.write(body)
            await writer.drain()
            if last:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has gone
    finally:
        writer.close()


async def main(port):
    async with await asyncio.start_server(handle, "localhost", port) as server:
        await server.serve_forever()


asyncio.run(main(int(sys.argv[1])))
