"""A Starlette service whose pages are made by templates in JavaScript: GET /?title=…. An error over there arrives with its name and its stack."""

from contextlib import asynccontextmanager
from pathlib import Path

import offloop
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route

ITEMS = [{"name": "chair <oak>", "price": 40}, {"name": "desk", "price": 120.5}]


async def catalogue(request):
    title = request.query_params.get("title", "Catalogue")
    return HTMLResponse(await request.app.state.pool.run("catalogue", {"title": title, "items": ITEMS}))


async def broken(request):
    return HTMLResponse(await request.app.state.pool.run("catalogue", {"title": "no items"}))


async def failed(request, error):
    # `error.stack` names the line of the template.
    return PlainTextResponse(f"{error.name}: {error.message}\n", 500)


@asynccontextmanager
async def lifespan(app):
    async with offloop.ProcessPool(2, node=Path(__file__).with_name("render.mjs")) as app.state.pool:
        yield


routes = [Route("/", catalogue), Route("/broken", broken)]
app = Starlette(routes=routes, exception_handlers={offloop.TaskFailedError: failed}, lifespan=lifespan)
