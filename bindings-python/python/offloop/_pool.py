"""ThreadPool: native ops by name, or any callable; a concurrent.futures.Executor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import operator
import os
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from . import _aio, _progress, _threads, _trio
from ._native import ClosedError, Full, InvalidError, TimeoutError, _Pool, current_task
from ._stats import Histogram, PoolStats
from ._trace import tracer_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from ._native import Future
    from ._trace import TaskTrace

T = TypeVar("T")

# Tasks that `map` keeps in flight, per worker and at least: enough that no worker waits for the consumer, few enough that
# an endless iterable is read only as far as needed.
_WINDOW_PER_WORKER = 64
_WINDOW_MIN = 1024
_BATCH = 64


def chunk_size(given: Any) -> int | None:
    """The option `chunksize` of `map`."""
    if given is None:
        return None
    try:
        size = operator.index(given)
    except TypeError:
        raise InvalidError(f"invalid: option has the wrong type (option=chunksize, value={given!r}, want=an integer)") from None
    if size < 1:
        raise InvalidError(f"invalid: chunksize is out of range (option=chunksize, value={given!r}, min=1)")
    return size


class _Mapping(concurrent.futures.Executor):
    """What both kinds of pools do with many calls, and at their end."""

    if TYPE_CHECKING:
        _sources: set[weakref.ref[_Source]]

        @property
        def _max_workers(self) -> int: ...
        def _close(self) -> None: ...
        def _wait_closed(self) -> None: ...
        def _admit(self, *args: Any, **kwargs: Any) -> Future[Any]: ...
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]: ...
        def submit_many(self, fn: Any, items: Iterable[Any], /, **kwargs: Any) -> list[Future[Any]]: ...
        async def run(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any: ...

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
        """Calls an op or a callable with items of the iterables, as `map` does, and yields the results.

        A bounded window of tasks is in flight: it starts to fill now and goes on as results are taken, so an endless
        iterable is fine and Full is never raised. Nothing of it is lost, as with ThreadPoolExecutor: the rest of the items is taken
        in when the iterator is dropped before its first step, and by `shutdown` without `cancel_futures`. Only a source without a
        length, which may be endless, is not read any more by `shutdown` once its results are being read: these end with ClosedError.

        `ordered=False` yields results as they come. `timeout` counts seconds from this call to each result. `chunksize` is accepted
        for ProcessPoolExecutor's sake; batching is automatic. Keyword arguments go to every call. An error of an iterable comes after
        the results of the items before it. Closing the iterator cancels what was not started. `progress=True` shows a bar of tqdm or
        rich, whichever is installed, that counts the results that were taken; NotFoundError when neither is.
        """
        chunk_size(chunksize)
        bar = _progress.bar_of(iterables) if progress else None
        end = None if timeout is None else time.monotonic() + timeout
        source = _Source(self, fn, zip(*iterables), kwargs, any(hasattr(i, "__len__") for i in iterables))
        source.fill()
        if source.error is not None and not source.futures:
            raise source.error
        # Weak: only the iterator keeps it.
        self._sources.add(weakref.ref(source, self._sources.discard))
        results = _Results(source, source.ordered(end) if ordered else source.as_completed(end))
        return results if bar is None else _progress.Shown(results, bar)

    def amap(
        self,
        fn: Any,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        ordered: bool = True,
        progress: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """`map` for `async for`: over plain and async iterables. Leaving the loop cancels what is in flight.

        A task of its own reads the items, so that a result comes as soon as it is due, however long the next item takes. An error of
        an iterable comes after the results of the items before it.

        `timeout` counts seconds from the first step to each result; a result that is late raises TimeoutError at the step that
        waits for it. `progress=True` shows a bar, as `map` does.
        """
        bar = _progress.bar_of(iterables) if progress else None
        results = self._amap(fn, iterables, timeout, ordered, kwargs)
        return results if bar is None else _progress.shown(results, bar)

    async def _amap(
        self,
        fn: Any,
        iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
        timeout: float | None,
        ordered: bool,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[Any]:
        if "trio" in sys.modules and _trio.is_running():
            submit = functools.partial(self._admit, fn, **kwargs)
            results = _trio.amap(submit, _azip(iterables), self._window(), timeout, ordered)
            async with contextlib.aclosing(results):
                async for result in results:
                    yield result
            return
        window = self._window()
        running: deque[asyncio.Task[Any]] = deque()
        finished: deque[asyncio.Task[Any]] = deque()
        # Rung for the one who reads the results, and for the one who reads the items.
        wake, room = asyncio.Event(), asyncio.Event()

        def on_done(task: asyncio.Task[Any]) -> None:
            if not task.cancelled():
                task.exception()  # whoever leaves early leaves no error unretrieved
            if not ordered:
                finished.append(task)
                wake.set()

        async def feed() -> None:
            async for args in _azip(iterables):
                task = asyncio.ensure_future(self.run(fn, *args, **kwargs))
                running.append(task)
                task.add_done_callback(on_done)
                wake.set()
                if len(running) % _BATCH == 0:
                    await asyncio.sleep(0)
                while len(running) >= window:
                    room.clear()
                    await room.wait()

        until = None if timeout is None else asyncio.get_running_loop().time() + timeout
        feeder = asyncio.ensure_future(feed())
        feeder.add_done_callback(lambda _: wake.set())
        due = running if ordered else finished
        try:
            while True:
                # One for each result and none around the `yield`: it would cancel whoever holds this iterator (PEP 789).
                scope = asyncio.timeout_at(until)
                try:
                    async with scope:
                        while not due:
                            if feeder.done() and not running:
                                # An error of an iterable comes after the results of the items before it.
                                feeder.result()
                                return
                            wake.clear()
                            await wake.wait()
                        task = due.popleft()
                        if not ordered:
                            running.remove(task)
                        room.set()
                        result = await task
                except builtin_timeout:
                    if not scope.expired():
                        raise  # a task's own
                    raise TimeoutError("timeout: the results are not there yet") from None
                yield result
        finally:
            feeder.cancel()
            if feeder.done() and not feeder.cancelled():
                feeder.exception()
            for task in running:
                task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Shuts down without holding the loop."""
        try:
            self._take_in(wait=False)
        finally:
            self._close()
        if "trio" in sys.modules and _trio.is_running():
            await _trio.in_thread(self._wait_closed)
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def wait() -> None:
            self._wait_closed()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(resolve)

        def resolve() -> None:
            if not done.done():
                done.set_result(None)

        threading.Thread(target=wait, name="offloop-shutdown", daemon=True).start()
        await done

    def _take_in(self, *, wait: bool) -> None:
        """Submits what `map` owes, before the pool is closed. `wait`: for room in the queue."""
        for reference in list(self._sources):
            source = reference()
            if source is not None and (source.finite or not source.is_read):
                source.take_in(wait=wait)

    def _window(self) -> int:
        return max(_WINDOW_MIN, _WINDOW_PER_WORKER * self._max_workers)


class ThreadPool(_Pool, _Mapping):
    """Runs native ops by name and Python callables on threads of its own. Drop-in for ThreadPoolExecutor.

    `pool.submit("sha256", data, encoding="hex")` runs an op on a native thread, without the GIL.
    `pool.submit(fn, *args, **kwargs)` runs a callable on a Python thread, with a copy of the caller's context variables.

    The two kinds of threads are started when there is work for them. `max_workers` (default: the usable cores) bounds
    each kind: only one Python thread runs bytecode at a time, so the native ones are what uses the cores. `max_queue`
    (default 65,536) bounds what waits, for each kind. When it is full, `submit` waits for room (`on_full="wait"`) or
    raises Full (`"reject"`; and always on a thread with a running event loop, where `await pool.run(...)` waits instead).

    `max_overdue` (default: `max_workers`): most threads that replace those stuck in a function whose task has timed out
    or was killed. `nice` (default 0): niceness of native threads. `context`: what `current_task().context` is.

    `trace` (default: none) is called with a TaskTrace for each task after its outcome, with a copy of the context variables of whoever
    submitted it: on the event loop for `run`, else where a done callback of the future would be called. What it raises is logged. A call
    that was refused is no task.

    At interpreter exit submitted callables are finished, as ThreadPoolExecutor does; ops are finished if a callback waits for
    them or while threads that are no daemons live, and cancelled otherwise. A forked child begins with an empty pool; inherited
    futures that were not done are done there, with ForkedError.

    `loop.set_default_executor` takes nothing but ThreadPoolExecutor itself: pass a ThreadPool to `run_in_executor`.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_queue: int | None = None,
        on_full: str = "wait",
        max_overdue: int | None = None,
        nice: int = 0,
        context: Any = None,
        trace: Callable[[TaskTrace], object] | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._open(
            max_workers=max_workers,
            max_queue=max_queue,
            max_overdue=max_overdue,
            nice=nice,
            name=thread_name_prefix,
            on_full=on_full,
            initializer=initializer,
            initargs=tuple(initargs),
            context=context,
            tracer=tracer_of(trace, thread_name_prefix or "pool"),
        )
        self._sources: set[weakref.ref[_Source]] = set()
        _threads.pools.add(self)

    async def run(self, op_or_fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs an op or a callable and returns its result. Cancelling the await stops the task.

        Never raises Full: the caller waits anyway, so the task is taken in beyond `max_queue`.

        An op's inputs that must be copied (all but `bytes` and TransferBuffer) are copied at once up to 4 MiB per turn of the loop over
        all calls, an element that lies apart counting as 64 bytes. What is beyond is copied in slices of 1 MiB, one per turn, between
        which the loop goes on: first come, first served. Such a task counts as submitted from the call: `shutdown` waits for it, and
        what this loop runs later with its `key` comes after it; a `submit` with its key on this thread copies the rest at once.
        """
        if "trio" in sys.modules and _trio.is_running():
            return await _trio.await_future(self._admit(op_or_fn, *args, **kwargs))
        started = self._start(op_or_fn, *args, **kwargs)
        if started is None:
            ticket = self._accept()
            return await _aio.copied(args, functools.partial(ticket.start, op_or_fn, **kwargs), ticket.release, ticket.line)
        return await started

    def options(
        self,
        *,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        priority: int | None = None,
        key: str | None = None,
        retries: int = 0,
    ) -> Self:
        """A view of this pool whose calls have these options; it shares threads, queue and end with the pool.

        `timeout`: seconds from start to outcome. `queue_timeout`: longest wait from submit to start, in seconds. Infinity is no
        limit, 30 days are the longest one.
        `priority`: -128 to 127, higher first. `key`: ops with one key run in order, one at a time, and so do callables. `retries`: re-runs after
        a lost worker; threads are not lost, so it changes nothing here.
        """
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise InvalidError(f"invalid: option is out of range (option=retries, value={retries!r}, min=0)")
        view = self.__class__.__new__(self.__class__)
        view._sources = self._sources
        view._view(self, timeout=timeout, queue_timeout=queue_timeout, priority=priority, key=key)
        return view

    def load(self, plugin: str | os.PathLike[str]) -> list[str]:
        """Loads a C plugin and returns the names of the ops that it added to this pool.

        A plugin is native code: a bad one can crash the process.
        """
        # What is no path is refused by name there.
        return self._load(os.fspath(plugin) if isinstance(plugin, os.PathLike) else plugin)

    def resize(self, *, min_workers: int | None = None, max_workers: int | None = None) -> None:
        """Changes how many threads of each kind stay when idle, and how many there may be. Surplus ones leave when free."""
        self._resize(min_workers, max_workers)

    @property
    def stats(self) -> PoolStats:
        """Counts, and times in seconds, since the pool was made; ops and callables together."""
        d: dict[str, Any] = self._stats()
        d["wait"] = Histogram(*d["wait"])
        d["run"] = Histogram(*d["run"])
        return PoolStats(**d)

    @property
    def op_names(self) -> list[str]:
        """Names of the ops that this pool can run, its plugins' included."""
        return self._op_names()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuses new tasks; with `wait` returns when what was submitted is done. Ctrl-C ends the wait.

        A callable of this pool that waits for the pool's end would wait for itself: it gets an InvalidError, and the pool is
        closed.
        """
        try:
            if not cancel_futures:
                self._take_in(wait=wait)
        finally:
            self._close()
        if cancel_futures:
            self._cancel_queued()
        if wait:
            _aio.finish_copies()
            self._wait_closed()

    @property
    def _broken(self) -> bool:
        """ThreadPoolExecutor's name for: the initializer raised."""
        return self._is_broken()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"max_workers={self._max_workers}"
        return f"<ThreadPool {state}>"


builtin_timeout = asyncio.TimeoutError


async def _azip(iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...]) -> AsyncGenerator[tuple[Any, ...]]:
    sources = [i.__aiter__() if hasattr(i, "__aiter__") else iter(i) for i in iterables]
    while sources:
        row = []
        for source in sources:
            try:
                row.append(await source.__anext__() if hasattr(source, "__anext__") else next(source))
            except (StopIteration, StopAsyncIteration):
                return
        yield tuple(row)


def _take(future: Future[Any], end: float | None) -> Any:
    try:
        return future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()


class _Source:
    """The items of one `map`, and its tasks in flight."""

    def __init__(self, pool: _Mapping, fn: Any, rows: Iterator[tuple[Any, ...]], kwargs: dict[str, Any], finite: bool) -> None:
        self.pool = pool
        self.fn = fn
        self.rows = rows
        self.kwargs = kwargs
        self.finite = finite
        self.window = pool._window()
        self.futures: deque[Future[Any]] = deque()
        self.more = True
        # What ended the source. Raised after the results of what was taken in before.
        self.error: Exception | None = None
        self.is_read = False
        self.process = os.getpid()
        # Held while rows are read and submitted: by the reader, or by whoever shuts the pool down.
        self.lock = threading.RLock()
        self.busy = False

    def fill(self, elsewhere: int = 0) -> None:
        """Submits until the window is full. A full queue ends it, except that one task is always in flight."""
        with self._reading() as free:
            while free and self.more and (room := self.window - len(self.futures) - elsewhere) > 0:
                rows = self._read(min(_BATCH, room))
                done = self._submit(rows, self.pool.submit)
                if not done and rows and not self.futures and not elsewhere:
                    self.futures.append(self.pool._admit(self.fn, *rows[0], **self.kwargs))
                    done = 1
                if done < len(rows):
                    # Room comes with the next result.
                    self.rows = itertools.chain(rows[done:], self.rows)
                    return

    def take_in(self, *, wait: bool, keep: bool = True) -> None:
        """Submits the rest, however many there are. `wait`: for room in the queue. `keep`: somebody may read the results."""
        if self.process != os.getpid():
            return  # they are the parent's
        # A worker does not wait for a reader, who may be waiting for room in its queue.
        with self._reading(waits=current_task() is None) as free:
            while free and self.more:
                rows = self._read(_BATCH)
                self._submit(rows, self._submit_anyway if wait else self.pool._admit)
                if not keep:
                    self.futures.clear()

    @contextlib.contextmanager
    def _reading(self, waits: bool = True) -> Iterator[bool]:
        """False for a call from inside of another: the iterable itself, or a signal handler, shuts the pool down."""
        if not self.lock.acquire(blocking=waits):
            yield False
            return
        free = not self.busy
        self.busy = True
        try:
            yield free
        finally:
            if free:
                self.busy = False
            self.lock.release()

    def _read(self, count: int) -> list[tuple[Any, ...]]:
        """At most so many rows; none at the end, which an error of the iterable is too."""
        rows: list[tuple[Any, ...]] = []
        try:
            for row in itertools.islice(self.rows, count):
                rows.append(row)
        except Exception as e:
            if rows:
                self.rows = _raising(e)
            else:
                self._end(e)
        else:
            if not rows:
                self.more = False
        return rows

    def _end(self, error: Exception) -> None:
        self.more = False
        self.error = error

    def _submit(self, rows: list[tuple[Any, ...]], submit: Callable[..., Future[Any]]) -> int:
        """Submits rows until the queue is full or one is refused, which ends the source. Returns how many."""
        if rows and len(rows[0]) == 1 and submit != self.pool._admit:
            try:
                self.futures.extend(self.pool.submit_many(self.fn, [row[0] for row in rows], **self.kwargs))
                return len(rows)
            except Full:
                if submit == self.pool.submit:
                    return 0
            except Exception:
                pass  # all or none: those before the one that is refused go in below
        for done, row in enumerate(rows):
            try:
                self.futures.append(submit(self.fn, *row, **self.kwargs))
            except Full:
                return done
            except Exception as e:
                self._end(e)
                break
        return len(rows)

    def _submit_anyway(self, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return self.pool.submit(*args, **kwargs)
        except Full:
            return self.pool._admit(*args, **kwargs)

    def cancel(self) -> None:
        self.more = False
        for future in list(self.futures):
            future.cancel()

    def ordered(self, end: float | None) -> Iterator[Any]:
        self.is_read = True
        try:
            while self.futures:
                # No name here refers to the result while it is yielded, so the consumer alone keeps it.
                yield _take(self.futures.popleft(), end)
                if len(self.futures) <= self.window - _BATCH:
                    self.fill()
            if self.error is not None:
                raise self.error
        finally:
            self.cancel()

    def as_completed(self, end: float | None) -> Iterator[Any]:
        self.is_read = True
        done: deque[Future[Any]] = deque()
        bell = threading.Condition()

        def on_done(future: Future[Any]) -> None:
            with bell:
                done.append(future)
                bell.notify()

        waiting: set[Future[Any]] = set()
        try:
            while True:
                while self.futures:
                    future = self.futures.popleft()
                    waiting.add(future)
                    future.add_done_callback(on_done)
                if not waiting:
                    if self.error is not None:
                        raise self.error
                    return
                with bell:
                    left = None if end is None else end - time.monotonic()
                    if not bell.wait_for(lambda: done, left):
                        raise TimeoutError(f"timeout: the results are not there yet (waiting={len(waiting)})")
                    future = done.popleft()
                waiting.discard(future)
                result = [future.result()]
                del future
                yield result.pop()
                if len(waiting) <= self.window - _BATCH:
                    self.fill(len(waiting))
        finally:
            self.cancel()
            for future in waiting:
                future.cancel()


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield


class _Results:
    """What `map` returns. Dropped before its first step, it leaves the results to nobody and the tasks to the pool."""

    def __init__(self, source: _Source, steps: Iterator[Any]) -> None:
        self._source = source
        self._steps = steps

    def __iter__(self) -> _Results:
        return self

    def __next__(self) -> Any:
        return next(self._steps)

    def close(self) -> None:
        """Cancels what was not started."""
        self._source.cancel()
        self._steps.close()  # type: ignore[attr-defined]

    def __del__(self) -> None:
        source = self._source
        if source.more and not source.is_read:
            source.take_in(wait=True, keep=False)
            if source.error is not None and not isinstance(source.error, ClosedError):
                raise source.error


_default: tuple[int, ThreadPool] | None = None
_default_lock = threading.Lock()


def default_pool() -> ThreadPool:
    """The pool behind `offloop.ops`: one per process, with `OFFLOOP_THREADS` threads (default: usable cores). It is not closed by hand."""
    global _default
    with _default_lock:
        if _default is None or _default[0] != os.getpid():
            pool = _DefaultPool.__new__(_DefaultPool)
            pool._open_default()
            pool._sources = set()
            _threads.pools.add(pool)
            _default = (os.getpid(), pool)
        return _default[1]


class _DefaultPool(ThreadPool):
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        raise InvalidError("invalid: the default pool lives as long as its process")

    def __exit__(self, *_: object) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None
