"""The `trace` hook of pools. Without one nothing here runs, and the core keeps no times."""

from __future__ import annotations

import contextvars
import functools
import inspect
import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ._native import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._native import Future, _Awaitable


@dataclass(frozen=True, slots=True)
class TaskTrace:
    """What became of one task. Times are in seconds."""

    id: int
    """Counts up with the tasks of its pool, from 1."""
    pool: str
    """The pool's name in metrics."""
    name: str
    """The op, the export, or the callable's `__qualname__`."""
    submitted: float
    """When it was submitted, since the epoch, as `time.time()` has it: what that says at its end less the time that has passed on the
    monotonic clock, so `submitted + queue_time + run_time` is its end."""
    queue_time: float
    """From submit to outcome without `run_time`: in the queue, with a worker that was busy, on its way, in runs that were lost."""
    run_time: float
    """How long its function ran, as its worker has measured; 0 when it never did. Of a task that was stopped or lost: since it was given
    to a worker."""
    outcome: Literal["completed", "failed", "timeout", "cancelled", "lost"]
    """How it ended."""
    worker: int | None
    """The place of the worker that ran it, from 0; None when none did."""
    error: BaseException | None
    """What the call raised, unless it is `completed`."""


class Tracer:
    """Tells the hook of one pool. Native code calls `begin` for each task that was submitted."""

    def __init__(self, hook: Callable[[TaskTrace], object], pool: str) -> None:
        self._hook = hook
        self._pool = pool
        self._ids = itertools.count(1)

    def begin(self, call: Any) -> Callable[[Future[Any] | _Awaitable], None]:
        """What is to be called with the future, or what `run` awaits, once it is done."""
        return functools.partial(self._tell, next(self._ids), name_of(call), contextvars.copy_context())

    def _tell(self, identity: int, name: str, context: contextvars.Context, ended: Future[Any] | _Awaitable) -> None:
        times = ended._trace()
        if times is None:
            return  # a task of this process's parent
        submitted, queue_time, run_time, outcome, worker = times
        error = None
        if outcome != "completed":
            try:
                error = ended.exception()
            except BaseException as cancelled:
                error = cancelled
        told = TaskTrace(identity, self._pool, name, submitted, queue_time, run_time, outcome, worker, error)
        try:
            context.run(self._hook, told)
        except Exception:
            logging.getLogger("offloop").exception("the trace hook of pool %r failed", self._pool)


def name_of(call: Any) -> str:
    """The op, the export, or the callable's `__qualname__`."""
    while isinstance(call, functools.partial):
        call = call.func
    if isinstance(call, str):
        return call
    name = getattr(call, "__qualname__", None)
    return name if isinstance(name, str) else type(call).__qualname__


def tracer_of(hook: Callable[[TaskTrace], object] | None, pool: str) -> Tracer | None:
    if hook is None:
        return None
    if not callable(hook):
        raise TypeError("trace must be a callable")
    if inspect.iscoroutinefunction(hook):
        raise InvalidError("invalid: a coroutine function cannot be called without an event loop (option=trace)")
    return Tracer(hook, pool)
