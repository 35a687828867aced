"""A Starlette service that keeps passwords: POST /users and /login with {"name": …, "password": …}.

A hash takes 19 MiB and some 20 ms on purpose. It is made on a native thread without the GIL, so the loop and all cores stay of use; as many
wait as the queue takes, and the next one hears of it at once.
"""

from contextlib import asynccontextmanager

import offloop
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

MOST_WAITING = 200
users = {}
pool = offloop.ThreadPool()


async def credentials(request):
    if pool.stats.queued >= MOST_WAITING:
        raise HTTPException(503, headers={"retry-after": "1"})
    try:
        body = await request.json()
        return str(body["name"]), body["password"].encode()
    except (ValueError, LookupError, TypeError, AttributeError):
        raise HTTPException(400) from None


async def register(request):
    name, password = await credentials(request)
    if name in users:
        return PlainTextResponse("taken\n", 409)
    users[name] = None  # nobody else takes the name meanwhile, and nobody can log in yet
    users[name] = await pool.run("password.hash", password)
    return PlainTextResponse("welcome\n", 201)


async def login(request):
    name, password = await credentials(request)
    # An unknown name takes as long as a known one.
    known = users.get(name) or request.app.state.nobody
    matches = await pool.run("password.verify", password, hash=known)
    return PlainTextResponse("hello\n") if matches and users.get(name) else PlainTextResponse("no\n", 401)


async def health(request):
    return JSONResponse({"users": len(users), "running": pool.stats.running, "queued": pool.stats.queued})


@asynccontextmanager
async def lifespan(app):
    app.state.nobody = await pool.run("password.hash", b"nobody's")
    async with pool:
        yield


routes = [Route("/users", register, methods=["POST"]), Route("/login", login, methods=["POST"]), Route("/", health)]
app = Starlette(routes=routes, lifespan=lifespan)
