"""A worker process of a ProcessPool.

`python -m offloop.worker` runs pickled functions for a ProcessPool of Python. `python -m offloop.worker script.py` makes the public
functions of the script callable by name, for pools of any language; `init(context)` and `teardown()` of the script are run at the start
and at the end.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import pickle
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from . import _pickling
from ._native import _decode_value, _WorkerProcess, _Zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType


def main(args: Sequence[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    zygote = _Zygote.attach()
    if zygote is not None:
        _hatch(zygote)
    lane = _WorkerProcess.attach()
    if lane is None:
        sys.stderr.write("offloop.worker: a ProcessPool starts this program\n")
        return 2
    # The pool says when to end: a terminal's Ctrl-C is for the host.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        exports, context, teardown = _prepare(lane.setup, args[0] if args else None)
    except BaseException as e:
        lane.fail("".join(traceback.format_exception(e)).strip())
        return 1
    lane.ready()
    _serve(lane, exports, context)
    try:
        if teardown is not None:
            teardown()
    finally:
        _flush()
        lane.drained()
    return 0


def _flush() -> None:
    """Writes what was printed. Whoever read it may be gone, or this process was started without streams: no failure of this worker."""
    for name in ("stdout", "stderr"):
        try:
            if (stream := getattr(sys, name)) is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError):
            # The interpreter would try again at its end, and fail.
            setattr(sys, name, None)


def _hatch(zygote: _Zygote) -> None:
    """Imports what workers need, and forks them: returns in each of them. The process that forks ends here, without its exit handlers:
    these are the workers'."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.pop("OFFLOOP_ZYGOTE")
    try:
        _surround(pickle.loads(zygote.setup), None)
        # Nothing of this is collected, so that the pages stay shared with the workers.
        gc.collect()
        gc.freeze()
        # What is left in a buffer would be written by each worker.
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as e:
        zygote.fail("".join(traceback.format_exception(e)).strip())
        os._exit(1)
    try:
        is_worker = zygote.serve(os.fork)
    except BaseException:
        os._exit(1)
    if not is_worker:
        os._exit(0)
    # As Python does it for `random` after a fork.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _surround(given: dict[str, Any], authkey: bytes | None) -> None:
    """Makes this process like that of the pool, and imports what is to be there first."""
    _pickling.begin_worker(given["main"], authkey)
    if given["sys_path"] is not None:
        sys.path[:] = given["sys_path"]
    if given["sys_argv"] is not None:
        sys.argv[:] = given["sys_argv"]
    for module in given["preload"]:
        if module == "__main__":
            _pickling.load_main()
        else:
            __import__(module)


def _prepare(setup: bytes, script: str | None) -> tuple[dict[str, Callable[..., Any]], Any, Callable[[], object] | None]:
    exports: dict[str, Callable[..., Any]] = {}
    context: Any = None
    teardown: Callable[[], object] | None = None
    if setup[:1] == b"\x02":
        given = pickle.loads(setup[1:])
        _surround(given, given["authkey"])
        context = _pickling.load_function(given["context"])
        if given["teardown"] is not None:
            teardown = _pickling.load_function(given["teardown"])
        if given["initializer"] is not None:
            initializer, initargs = _pickling.load_function(given["initializer"])
            initializer(*initargs)
    else:
        _pickling.begin_worker(None)
        if setup:
            # Of a pool of another language: behind the form, the context as a common value.
            context = _decode_value(setup[1:])
    if script is not None:
        exports, teardown = _load(script, context)
    return exports, context, teardown


def _load(script: str, context: Any) -> tuple[dict[str, Callable[..., Any]], Callable[[], object] | None]:
    """The public functions of a script, and its teardown."""
    path = os.path.abspath(script)
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"a worker's script is a Python file (path={path})")
    sys.path.insert(0, os.path.dirname(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    names = vars(module)
    listed = names.get("__all__")
    exports = {
        key: value
        for key, value in names.items()
        if callable(value) and (key in listed if listed is not None else _is_public(module, key, value))
    }
    init = names.get("init")
    if callable(init):
        init(context)
    teardown = names.get("teardown")
    return exports, teardown if callable(teardown) else None


def _is_public(module: ModuleType, name: str, value: Any) -> bool:
    if name.startswith("_") or name in ("init", "teardown") or isinstance(value, type):
        return False
    return getattr(value, "__module__", None) == module.__name__


def _serve(lane: _WorkerProcess, exports: dict[str, Callable[..., Any]], context: Any) -> None:
    others = [threading.Thread(target=_run, args=(lane, exports, context), name="offloop-task") for _ in range(lane.concurrency - 1)]
    for thread in others:
        thread.start()
    _run(lane, exports, context)
    for thread in others:
        thread.join()


def _run(lane: _WorkerProcess, exports: dict[str, Callable[..., Any]], context: Any) -> None:
    try:
        lane.run(exports, context)
    finally:
        _pickling.end_thread()


if __name__ == "__main__":
    sys.exit(main())
