"""The application of the WSGI peers: reads the body, answers with as many bytes as the path says, names its process in `x-worker`."""

import os


def app(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    length = int(environ["PATH_INFO"][1:] or 2)
    start_response("200 OK", [("content-length", str(length)), ("x-worker", str(os.getpid()))])
    return [b"x" * length]
