"""The application of the ASGI peers: reads the body, answers with as many bytes as the path says, names its process in `x-worker`."""

import os

WORKER = (b"x-worker", str(os.getpid()).encode())


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    length = int(scope["path"][1:] or 2)
    headers = [(b"content-length", str(length).encode()), WORKER]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * length})
