"""ProcessPool: Python functions in worker processes, or another program's exports; a concurrent.futures.Executor."""

from __future__ import annotations

import collections.abc
import contextlib
import itertools
import math
import operator
import os
import shutil
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

from . import _pickling, _progress, _threads, _trio
from ._native import InvalidError, NotFoundError, TooLargeError, _encode_value, _ProcessPool
from ._pool import _Mapping, chunk_size
from ._stats import Histogram, PoolStats
from ._stream import Stream
from ._trace import name_of, tracer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    import numpy

    from ._pool import _Source
    from ._trace import TaskTrace


class ProcessPool(_ProcessPool, _Mapping):
    """Runs functions in worker processes. Drop-in for ProcessPoolExecutor.

    `pool.submit(fn, *args, **kwargs)` pickles a function by its name; lambdas, closures and what `python -c`, stdin and notebooks define
    need `cloudpickle`. Arrays travel through shared memory, and arrive writable and without a copy of their own.

    Workers are started when there is work, by exec and never by a fork of this process, and replaced when they end. `max_workers`
    (default: usable cores) and `min_workers` (default 0, kept when idle) bound them; one that is idle for `idle_timeout` (default 30 s)
    leaves. `max_tasks_per_child`, `max_worker_age` (seconds) and `max_worker_memory` (bytes of its proportional set size, looked at each
    second) replace them by use, age and size (default: no limit); what one runs goes on. `concurrency` (default 1): tasks at once per worker, on threads. `max_queue` (default 65,536) bounds what waits; when it is full, `submit` waits
    for room (`on_full="wait"`) or raises Full (`"reject"`; and always on a thread with a running event loop).

    `initializer(*initargs)` runs in each worker before its first task, `teardown()` after its last. `preload`: names of modules;
    workers are forks of one process that has imported them, starts with the pool and has no threads (default: none; each worker is
    started by exec). `"__main__"` is this program's script. `context`: what `current_task().context` is there; of workers of another program,
    which also get it in `init(context)`, a value that crosses languages. `env`: variables that are added to this process's, or removed by
    None. `nice` (default 0) is added to the niceness. `name`: in metrics. `cancel_grace` (default 1 s): what a running task has to see
    that it was killed, or that its timeout has passed, before its worker is ended and replaced. `trace`: as of a ThreadPool.

    Workers run this interpreter, or `python`, the path of another one that has offloop. `node=FILE` and `command=[…]` start workers of
    another program, which are called by the names of their exports: `pool.submit("render", html)`, `pool.exports.render(html)`.

    A worker that ends loses the task that it ran, whose outcome is WorkerLostError, and no other. What was submitted is finished at
    interpreter exit. In a forked child the pool raises ForkedError.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        min_workers: int | None = None,
        python: str | os.PathLike[str] | None = None,
        node: str | os.PathLike[str] | None = None,
        command: Sequence[str | os.PathLike[str]] | None = None,
        teardown: Callable[[], object] | None = None,
        max_worker_age: float | None = None,
        max_worker_memory: int | None = None,
        idle_timeout: float | None = None,
        concurrency: int | None = None,
        max_queue: int | None = None,
        on_full: str = "wait",
        cancel_grace: float | None = None,
        preload: Iterable[str] = (),
        env: Mapping[str, str | None] | None = None,
        context: Any = None,
        nice: int = 0,
        name: str = "",
        trace: Callable[[TaskTrace], object] | None = None,
    ) -> None:
        if _pickling.is_loading_main():
            raise InvalidError(
                "invalid: a worker imports the main module, which must not make a pool then: put that under `if __name__ == '__main__':`"
            )
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if teardown is not None and not callable(teardown):
            raise TypeError("teardown must be a callable")
        _check_start_method(mp_context)
        programs = {"python": python, "node": node, "command": command}
        given = [option for option, value in programs.items() if value is not None]
        if len(given) > 1:
            raise InvalidError(f"invalid: options exclude each other (options={' '.join(given)})")
        by_name = node is not None or command is not None
        modules = _modules(preload)
        if by_name and (initializer is not None or teardown is not None or modules):
            raise InvalidError("invalid: workers of another program have no initializer, no teardown and no modules of this one's")
        if command is not None:
            started = [os.fspath(part) for part in command]
        elif node is not None:
            started = _node_command(os.fspath(node))
        else:
            started = _python_command(python)
        own = (initializer, tuple(initargs), teardown, context, modules)
        setup = _common_setup(context) if by_name else _setup(python is not None, *own)
        options = {
            "max_workers": max_workers,
            "min_workers": min_workers,
            "max_tasks_per_child": max_tasks_per_child,
            "max_worker_age": max_worker_age,
            "max_worker_memory": max_worker_memory,
            "idle_timeout": idle_timeout,
            "concurrency": concurrency,
            "max_queue": max_queue,
            "on_full": on_full,
            "cancel_grace": cancel_grace,
            "nice": nice,
            "name": name,
            "tracer": tracer_of(trace, name or "processes"),
        }
        zygote = _zygote_setup(python is not None, modules) if modules else None
        self._open(started, _environment(env), setup, zygote, by_name, options)
        self._sources: set[weakref.ref[_Source]] = set()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
        _threads.process_pools.add(self)

    async def run(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a function and returns its result. Cancelling the await stops the task.

        Never raises Full: the caller waits anyway, so the task is taken in beyond `max_queue`.
        """
        if "trio" in sys.modules and _trio.is_running():
            return await _trio.await_future(self._admit(fn, *args, **kwargs))
        return await self._start(fn, *args, **kwargs)

    def map(
        self,
        fn: Any,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Calls a function with items of the iterables, as `map` does, and yields the results.

        Tasks are sent in batches by themselves. `chunksize` (default: none) makes one task of so many calls, of which the first error
        is the outcome, as ProcessPoolExecutor has it; many chunks are in flight. Everything else is as in `ThreadPool.map`.
        """
        chunksize = chunk_size(chunksize)
        if chunksize is None or chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, ordered=ordered, progress=progress, **kwargs)
        bar = _progress.bar_of(iterables) if progress else None
        lengths = [len(i) for i in iterables if isinstance(i, collections.abc.Sized)]
        rows = zip(*iterables)
        chunks = _SizedChunks(rows, chunksize, min(lengths)) if lengths else _Chunks(rows, chunksize)
        calls = _Calls(name_of(fn))
        results = _Flat(super().map(calls, itertools.repeat(fn), chunks, itertools.repeat(kwargs), timeout=timeout, ordered=ordered))
        return results if bar is None else _progress.Shown(results, bar)

    def options(
        self,
        *,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        priority: int | None = None,
        key: str | None = None,
        retries: int | None = None,
    ) -> Self:
        """A view of this pool whose calls have these options; it shares workers, queue and end with the pool.

        `timeout`: seconds from start to outcome; the worker of a function that runs on is ended after `cancel_grace`. `queue_timeout`:
        longest wait from submit to start, in seconds. `priority`: -128 to 127, higher first. `key`: tasks with one key run on one worker,
        in order. `retries` (default 0): re-runs after the loss of the worker; it says that a second run does no harm.
        """
        view = self.__class__.__new__(self.__class__)
        view._sources = self._sources
        view._streams = self._streams
        view._view(self, timeout=timeout, queue_timeout=queue_timeout, priority=priority, key=key, retries=retries)
        return view

    def stream(self, fn: Any, /, *args: Any, **kwargs: Any) -> Stream:
        """Calls a generator function, or one that returns another iterable, synchronous or not: what it yields is an iterator here.

        For `for` and for `async for`. The function is ahead of the reader by what fits two batches, up to 64 values or 64 KiB each, and
        waits then. Leaving the loop cancels it: it ends at its next value, or with its worker after `cancel_grace`. `timeout` of `options`
        counts from its start to its end, whoever is slow; with `retries` a function that is run again begins anew. `shutdown` does not wait
        for readers: streams that are open are closed, and end with ClosedError.
        """
        stream = Stream(self._stream(fn, *args, **kwargs), self)
        self._streams.add(stream)
        return stream

    def _close(self) -> None:
        self._leave_out_streams()
        super()._close()

    def _leave_out_streams(self) -> None:
        for stream in list(self._streams):
            stream._leave_out()

    def array(self, shape: int | Sequence[int], dtype: Any = float) -> numpy.ndarray[Any, Any]:
        """An array of numpy, all 0, in memory that this process and the workers share.

        As an argument of this pool, at any depth, it and its views and slices are sent by reference: nothing is copied, and what one
        process writes the others see. Nothing orders such writes but the begin and the end of tasks. In a result it is a copy, as it is
        for another pool.

        Pages of it take memory when they are first written, as those of `numpy.zeros`. It is free when the last array over it is gone,
        here, in tasks and in workers. TooLargeError for more than a pool can share, Full when others have it; a worker that keeps 128
        arguments gets no further shared array (Full, of its task).
        """
        try:
            import numpy
        except ImportError:
            raise NotFoundError("not found: pool.array makes arrays of numpy, which is not installed: pip install numpy") from None
        kind = numpy.dtype(dtype)
        if kind.hasobject:
            raise InvalidError(f"invalid: Python objects do not lie in shared memory (option=dtype, value={kind})")
        sizes = [operator.index(n) for n in (shape if hasattr(shape, "__iter__") else (shape,))]
        if any(n < 0 for n in sizes):
            raise InvalidError(f"invalid: option is out of range (option=shape, value={shape!r}, min=0)")
        length = math.prod(sizes) * kind.itemsize
        try:
            # No dimension is longer, of an array without elements either.
            memory = self._share(min(max([length, *(n for n in sizes if n > sys.maxsize)]), sys.maxsize))
        except TooLargeError as e:
            context = {"shape": tuple(sizes), "dtype": str(kind), "len": length, "max": e.context["max"]}
            about = ", ".join(f"{name}={value}" for name, value in context.items())
            raise TooLargeError(f"too large: array is longer than the memory that a pool shares ({about})") from None
        return numpy.ndarray(sizes, kind, memoryview(memory))

    def broadcast(self, fn: Any, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls a function once in each live worker, and in one at least, and returns the results in the order of the workers.

        The first error is raised after all have ended. A worker that is replaced meanwhile leaves its call to its successor.
        """
        futures = self._submit_to_each(fn, *args, **kwargs)
        for future in futures:
            future.exception()
        return [future.result() for future in futures]

    @property
    def exports(self) -> Exports:
        """The functions of workers of another program: `pool.exports.render(html)` is `pool.submit("render", html)`."""
        return Exports(self)

    def resize(self, *, min_workers: int | None = None, max_workers: int | None = None) -> None:
        """Changes how many workers stay when idle, and how many there may be. Surplus ones leave when free."""
        self._resize(min_workers, max_workers)

    @property
    def stats(self) -> PoolStats:
        """Counts, and times in seconds, since the pool was made."""
        d: dict[str, Any] = self._stats()
        d["wait"] = Histogram(*d["wait"])
        d["run"] = Histogram(*d["run"])
        return PoolStats(**d)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuses new tasks; with `wait` returns when what was submitted is done and no process is left. Ctrl-C ends the wait."""
        try:
            if not cancel_futures:
                self._take_in(wait=wait)
        finally:
            self._close()
        if cancel_futures:
            self._cancel_queued()
        if wait:
            self._wait_closed(cancels=cancel_futures)

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        # A terminal's Ctrl-C reaches the workers of ProcessPoolExecutor too; these are in groups of their own, and end by this.
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self.terminate()
        self.shutdown(wait=True)

    def terminate(self) -> None:
        """Cancels every task, started or not, and ends the processes now. Streams that are open end with ClosedError."""
        self._leave_out_streams()
        self._terminate()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"max_workers={self._max_workers}"
        return f"<ProcessPool {state}>"


class Exports:
    """The functions of a pool's workers, by attribute."""

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._pool.submit(name, *args, **kwargs)

        call.__name__ = name
        return call


def _check_start_method(mp_context: Any) -> None:
    if mp_context is None:
        return
    method = mp_context if isinstance(mp_context, str) else getattr(mp_context, "get_start_method", lambda: None)()
    if method == "fork":
        raise InvalidError(
            "invalid: workers are never forks of this process, whose threads and locks a fork would take along half: use spawn or "
            "forkserver, or leave mp_context out (option=mp_context, value=fork)"
        )
    if method not in ("spawn", "forkserver"):
        raise InvalidError(
            f"invalid: option is not one of its words (option=mp_context, value={method or repr(mp_context)}, want=spawn forkserver)"
        )


# The package may have been found by a change of `sys.path` that a new interpreter does not know.
_BOOT = "import sys; sys.path.insert(0, {path!r}); from offloop.worker import main; sys.exit(main([]))"


def _python_command(python: str | os.PathLike[str] | None) -> list[str]:
    program = sys.executable if python is None else os.fspath(python)
    if not program:
        raise InvalidError("invalid: this program has no Python interpreter to start workers with: give `python` (option=python)")
    found = shutil.which(program)
    if found is None:
        raise NotFoundError(f"not found: there is no such Python interpreter (option=python, value={program})")
    flags = subprocess._args_from_interpreter_flags() if python is None else []  # type: ignore[attr-defined]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [found, *flags, "-c", _BOOT.format(path=root)]


def _node_command(script: str) -> list[str]:
    """Node.js, the worker's program of the npm package `offloop` that the script would import, and the script."""
    if not os.path.isfile(script):
        raise NotFoundError(f"not found: there is no such script (option=node, value={script})")
    path = os.path.abspath(script)
    found = shutil.which("node")
    if found is None:
        raise NotFoundError("not found: there is no `node` in PATH (option=node)")
    place = os.path.dirname(path)
    while True:
        program = os.path.join(place, "node_modules", "offloop", "lib", "worker-main.cjs")
        if os.path.isfile(program):
            return [found, program, path]
        if (above := os.path.dirname(place)) == place:
            raise NotFoundError(f"not found: the npm package offloop is in no node_modules above the script (option=node, value={script})")
        place = above


def _environment(env: Mapping[str, str | None] | None) -> list[tuple[str, str]] | None:
    if env is None:
        return None
    if not isinstance(env, collections.abc.Mapping):
        raise InvalidError(f"invalid: option has the wrong type (option=env, value={env!r}, want=a mapping)")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str | None):
            want = "texts by names, None to remove one"
            raise InvalidError(f"invalid: option has the wrong type (option=env, name={name!r}, value={value!r}, want={want})")
    # As core does it for an environment that nobody adds to: an entry without a name, which some shells leave, is no program's.
    own = {name: value for name, value in os.environ.items() if name}
    whole: dict[str, str | None] = {**own, **env}
    return [(name, value) for name, value in whole.items() if value is not None]


def _modules(preload: Iterable[str]) -> list[str]:
    modules = [preload] if isinstance(preload, str) else list(preload)
    for module in modules:
        if not isinstance(module, str):
            raise InvalidError(f"invalid: option has the wrong type (option=preload, value={module!r}, want=names of modules)")
    return modules


def _surroundings(elsewhere: bool, modules: list[str]) -> dict[str, Any]:
    path = list(sys.path)
    # The empty entry is the working directory of this process now. One that was removed holds no modules.
    with contextlib.suppress(FileNotFoundError):
        path = [entry or os.getcwd() for entry in path]
    return {
        "main": _pickling.main_of_host(),
        "sys_path": None if elsewhere else path,
        "sys_argv": None if elsewhere else list(sys.argv),
        "preload": modules,
    }


def _zygote_setup(elsewhere: bool, modules: list[str]) -> bytes:
    """What the process reads that workers are forked from."""
    import pickle

    return pickle.dumps(_surroundings(elsewhere, modules), 5)


def _setup(
    elsewhere: bool,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    teardown: Callable[[], object] | None,
    context: Any,
    modules: list[str],
) -> bytes:
    """What each worker reads at its start. `elsewhere`: another interpreter, which has modules of its own."""
    import pickle
    from multiprocessing.process import current_process

    given = {
        **_surroundings(elsewhere, modules),
        # A worker is a child of this process to multiprocessing's managers and connections.
        "authkey": bytes(current_process().authkey),
        "context": _pickling.dump_setup("context", context),
        "initializer": None if initializer is None else _pickling.dump_setup("initializer", (initializer, initargs)),
        "teardown": None if teardown is None else _pickling.dump_setup("teardown", teardown),
    }
    return b"\x02" + pickle.dumps(given, 5)


def _common_setup(context: Any) -> bytes:
    """What each worker of another program reads at its start: the context in the form that any language has."""
    return b"" if context is None else b"\x01" + _encode_value(context)


class _Chunks:
    def __init__(self, rows: Iterator[tuple[Any, ...]], size: int) -> None:
        self._rows = rows
        self._size = size

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        while chunk := list(itertools.islice(self._rows, self._size)):
            yield chunk


class _SizedChunks(_Chunks):
    """Of rows that come to an end, by which `map` knows that it may be read to there."""

    def __init__(self, rows: Iterator[tuple[Any, ...]], size: int, length: int) -> None:
        super().__init__(rows, size)
        self._length = -(-length // size)

    def __len__(self) -> int:
        return self._length


class _Calls:
    """Calls a function with several rows. Traces have the function's name for it."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = name

    # The function is an argument: what it refers to travels as arguments do.
    def __call__(self, fn: Callable[..., Any], rows: list[tuple[Any, ...]], kwargs: dict[str, Any]) -> list[Any]:
        return [_pickling.settled(fn(*row, **kwargs)) for row in rows]


class _Flat:
    """The results of chunks, one by one."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self._left: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while not self._left:
            self._left = next(self._chunks)
            self._left.reverse()
        return self._left.pop()

    def close(self) -> None:
        """Cancels what was not started."""
        self._left.clear()
        self._chunks.close()
