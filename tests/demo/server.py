"""An asyncio server that does real work: `python server.py inline|offload DIR`. It prints its port and serves until it is killed."""

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

from offloop import ThreadPool, ops

mode, directory = sys.argv[1], Path(sys.argv[2])
photos = itertools.cycle([(directory / name).read_bytes() for name in ("china.jpg", "flower.jpg")])
table = (directory / "table.csv").read_bytes()
text = (directory / "text.csv").read_bytes()
movies = (directory / "movies.json").read_bytes()

# `nice` lets the loop go first when cores are short.
pool = ThreadPool(nice=10)

# Offloaded: the loop goes on meanwhile.
offloaded = {
    "/thumbnail": lambda: pool.run("image.thumbnail", next(photos), width=200),
    "/password": lambda: pool.run("password.hash", b"correct horse battery staple", algorithm="argon2id"),
    "/gzip": lambda: pool.run("gzip", text, level=6),
    "/csv": lambda: pool.run("csv.to_arrow", table),
    "/json": lambda: pool.run("json.query", movies, path='$[?@["IMDB Rating"] > 8.5].Title'),
}

# Inline: the same op on the loop's own thread.
inline = {
    "/thumbnail": lambda: ops.image.thumbnail(next(photos), width=200),
    "/password": lambda: ops.password.hash(b"correct horse battery staple", algorithm="argon2id"),
    "/gzip": lambda: ops.gzip(text, level=6),
    "/csv": lambda: ops.csv.to_arrow(table),
    "/json": lambda: ops.json.query(movies, path='$[?@["IMDB Rating"] > 8.5].Title'),
}

late: list[float] = []  # lateness of a 1 ms timer, in milliseconds


async def tick():
    loop = asyncio.get_running_loop()
    due = loop.time() + 0.001

    def fire():
        nonlocal due
        now = time.monotonic()
        late.append(max(0.0, (now - due) * 1e3))
        due = now + 0.001
        loop.call_at(due, fire)

    loop.call_at(due, fire)


async def answer(path):
    if path == "/health":
        return "ok"
    if path == "/late":
        body = "\n".join(f"{ms:.3f}" for ms in late)
        late.clear()
        return body
    if mode == "inline":
        return inline[path]()
    return await offloaded[path]()


async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            status, path = 200, head.split(b" ", 2)[1].decode()
            try:
                body = await answer(path)
            except Exception as error:  # noqa: BLE001  a server answers
                status, body = 500, f"{type(error).__name__}: {error}"
            if not isinstance(body, (bytes, bytearray, memoryview)):
                body = (body if isinstance(body, str) else json.dumps(body)).encode()
            writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
            writer.write(body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await tick()
    await server.serve_forever()


asyncio.run(main())
