"""A Starlette app, one of several on the same port: GET / says which process answers. It knows of a cluster only what it shows."""

import os
from contextlib import asynccontextmanager

import offloop
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

# None where uvicorn runs it alone.
worker = offloop.current_worker()


async def hello(request):
    sent = len(await request.body())
    generation = worker.generation if worker else 0
    text = f"hello from process {os.getpid()} of generation {generation}\n" if request.method == "GET" else f"{sent} bytes\n"
    return PlainTextResponse(text, headers={"x-worker": str(os.getpid())})


@asynccontextmanager
async def lifespan(_app):
    # What the app needs is opened here, once in each process, and closed when its last request is answered.
    yield


app = Starlette(routes=[Route("/", hello, methods=["GET", "POST"])], lifespan=lifespan)

if __name__ == "__main__":
    worker.serve(app, log_level="warning")
