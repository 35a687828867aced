"""An asyncio HTTP server that packs what it is sent, while its loop stays free.

    python server.py 8080 &
    curl --data-binary @somefile http://127.0.0.1:8080/ | gunzip | cmp - somefile

A client that goes away cancels its handler, and that stops the work.
"""

import asyncio
import sys

import offloop


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = await reader.readexactly(length)
        try:
            status, answer = "200 OK", await offloop.ops.aio.gzip(body, level=6)
        except offloop.OffloopError as e:
            status, answer = "400 Bad Request", str(e).encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n".encode() + answer)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    except KeyboardInterrupt:
        pass
