"""One pool for all workers of a Cluster: its process owns it (`pool`), workers submit to it (`current_worker().pool`).

Each worker has a channel for that beside the one for messages, so neither waits for the other. What travels is what lib/broker.cjs of the Node.js package sends and answers, so the two languages mix;
durations are milliseconds there.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ._channel import Channel, Message
from ._native import ClosedError, Full, InvalidError, NotFoundError, OffloopError, PeerDiedError, UnsupportedError
from ._pool import ThreadPool
from ._process import ProcessPool

#: Of a worker's environment: where its cluster's pool is.
VARIABLE = "OFFLOOP_POOL"
#: Options of a call: what travels, and what `options` of a pool calls it.
_OPTIONS = {"timeout": "timeout", "queueTimeout": "queue_timeout", "priority": "priority", "key": "key", "retries": "retries"}
_TIMES = ("timeout", "queueTimeout")
#: Seconds after which a way that was full is tried again.
_AGAIN = 0.05

_numbers = itertools.count(1)

# ---- the process that owns the pool ----


def check(pool: object, tasks: Any, uid: int | None) -> dict[str, Callable[..., Any]] | None:
    """The functions by name; None where the pool knows names itself."""
    if pool is not None and not isinstance(pool, ThreadPool | ProcessPool):
        raise InvalidError(f"invalid: option has the wrong type (option=pool, value={pool!r:.80}, want=a ProcessPool or a ThreadPool)")
    if pool is not None and uid not in (None, os.getuid()):
        raise InvalidError(f"invalid: workers of another user cannot reach the pool (option=pool, uid={uid}, own_uid={os.getuid()})")
    if tasks is None:
        return None
    if pool is None:
        raise InvalidError("invalid: tasks are run by a pool, which is not given (option=tasks)")
    if isinstance(tasks, collections.abc.Mapping):
        named = dict(tasks)
    elif isinstance(tasks, collections.abc.Iterable) and not isinstance(tasks, str | bytes):
        named = {getattr(fn, "__name__", None): fn for fn in tasks}
    else:
        named = {None: tasks}
    for name, fn in named.items():
        if not isinstance(name, str) or not callable(fn):
            raise InvalidError(f"invalid: option has the wrong type (option=tasks, value={fn!r:.80}, want=functions, or functions by name)")
    return named


class Served:
    """A pool that workers find at `path`, until `close`."""

    def __init__(self, pool: ThreadPool | ProcessPool, tasks: Mapping[str, Callable[..., Any]] | None) -> None:
        self._pool = pool
        self._tasks = tasks
        self._listener = Channel.listen(f"pool-{os.getpid()}-p{next(_numbers)}")
        self.path = os.fspath(self._listener.path)
        # Also where an event loop runs: a call of its pool may wait.
        self._listener._serve_by_threads(self._receive)

    def close(self) -> None:
        self._listener.close()

    def _receive(self, channel: Channel) -> None:
        """One worker's calls. Those that it has given up, or leaves behind, are ended."""
        running: dict[int, Any] = {}
        # A worker that does not receive holds up its own replies, and not the pool's threads.
        done: queue.SimpleQueue[tuple[Message, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=_reply, args=(done,), name="offloop-broker", daemon=True).start()
        try:
            while True:
                try:
                    message = channel.recv()
                except UnsupportedError:
                    continue
                if message.is_request:
                    self._begin(message, running, done)
                elif (future := running.get(message.value)) is not None:
                    future.kill()
        except (ClosedError, PeerDiedError):
            pass
        finally:
            for future in list(running.values()):
                future.kill()
            done.put(None)

    def _begin(self, message: Message, running: dict[int, Any], done: queue.SimpleQueue[Any]) -> None:
        try:
            asked = message.value
            call, name, args = asked["call"], asked["name"], asked["args"]
            args = args if asked["spread"] else [args]
            options = {_OPTIONS[k]: v / 1000 if k in _TIMES else v for k, v in (asked.get("options") or {}).items()}
            pool = self._pool.options(**options) if options else self._pool
            future = pool.submit(self._task(name), *args, **(asked.get("kwargs") or {}))
        except Exception as e:
            done.put((message, e))
            return
        running[call] = future

        def finished(future: Any) -> None:
            running.pop(call, None)
            done.put((message, future))

        future.add_done_callback(finished)

    def _task(self, name: str) -> Any:
        if self._tasks is None:
            return name
        if name not in self._tasks:
            raise NotFoundError(
                f"not found: the cluster has no task of this name (name={name!r:.80}, tasks={' '.join(sorted(self._tasks))})"
            )
        return self._tasks[name]


def _reply(done: queue.SimpleQueue[tuple[Message, Any] | None]) -> None:
    while (item := done.get()) is not None:
        message, future = item
        try:
            error = future if isinstance(future, BaseException) else future.exception()
            if error is None:
                message.reply(future.result())
                continue
        except (ClosedError, PeerDiedError):
            return
        except BaseException as e:
            # A result that cannot travel.
            error = e
        with contextlib.suppress(OffloopError):
            message.fail(error)


# ---- a worker ----


class ClusterPool:
    """The pool of the cluster of this process, as its workers use it.

    Arguments and results are values of a channel, copied; a TransferBuffer moves. Errors are those of the pool. Calls whose await is cancelled, and those of a worker that ends, are ended; when the
    cluster's process ends they are PeerDiedError.
    """

    def __init__(self, way: _Way, options: Mapping[str, Any]) -> None:
        self._way = way
        self._options = options

    async def run(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Runs the task `name` in the cluster's pool and returns its result."""
        # Who listens may take its time to accept.
        channel = self._way.opened if self._way.opened is not None else await asyncio.to_thread(self._way.channel)
        call, asked = self._way.asked(name, args, kwargs, self._options)
        finished = False
        try:
            result = await channel.arequest(asked)
            finished = True
            return result
        except Exception:
            finished = True
            raise
        finally:
            if not finished:
                # Cancelled.
                self._way.give_up(call)

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """As `run`, for a program without an event loop: waits."""
        channel = self._way.channel()
        call, asked = self._way.asked(name, args, kwargs, self._options)
        try:
            return channel.request(asked)
        except KeyboardInterrupt:
            self._way.give_up(call)
            raise

    def options(
        self,
        *,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        priority: int | None = None,
        key: str | None = None,
        retries: int | None = None,
    ) -> ClusterPool:
        """The same pool, with these options for each call: those of `ProcessPool.options`. Times are seconds."""
        given = {"timeout": timeout, "queueTimeout": queue_timeout, "priority": priority, "key": key, "retries": retries}
        for name in _TIMES:
            if (value := given[name]) is not None:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise InvalidError(f"invalid: option has the wrong type (option={_OPTIONS[name]}, value={value!r:.80}, want=seconds)")
                given[name] = value * 1000
        return ClusterPool(self._way, {**self._options, **{k: v for k, v in given.items() if v is not None}})


class _Way:
    """To the process that owns the pool: opened by the first call."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.opened: Channel | None = None
        self._calls = itertools.count(1)

    def channel(self) -> Channel:
        with self._lock:
            if self.opened is None:
                self.opened = Channel.connect(self._path)
            return self.opened

    def asked(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        call = next(self._calls)
        named = {"kwargs": kwargs} if kwargs else {}
        return call, {"call": call, "name": name, "args": list(args), "spread": True, "options": dict(options), **named}

    def give_up(self, call: int) -> None:
        assert self.opened is not None
        # Never waits: it is queued where there is no room, and tried again where too much is.
        try:
            self.opened._end.post(call, [], [])
        except Full:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().call_later(_AGAIN, self.give_up, call)
        except OffloopError:
            pass


def at(path: str) -> ClusterPool:
    return ClusterPool(_Way(path), {})
