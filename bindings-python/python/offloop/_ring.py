"""asyncio: how a coroutine waits for a ring.

Nothing is taken or pushed before the wait is over, so a cancelled await loses no record. While a task waits, the handle is
its own: another caller would disarm the fd that the loop watches.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from ._native import ClosedError, Delivery

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._native import Consumer, Producer

_Record = TypeVar("_Record", bytes, Delivery)


def _wake(waiter: asyncio.Future[None]) -> None:
    # The fd is level-triggered: readable again before the task has run.
    if not waiter.done():
        waiter.set_result(None)


def _wake_from_anywhere(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    # A loop that is closed has nobody left to wake: the next caller takes the handle.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_wake, waiter)


async def _readable(handle: Producer | Consumer[bytes] | Consumer[Delivery]) -> None:
    """Waits until the fd of a handle is readable, or the handle is closed."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    fd = handle.fileno()
    waker = partial(_wake_from_anywhere, loop, waiter)
    handle._park(loop, waker)
    try:
        loop.add_reader(fd, _wake, waiter)
        await waiter
    finally:
        # Before the handle can be closed, and its number be another file's.
        if not loop.is_closed():
            loop.remove_reader(fd)
        handle._unpark(waker)


async def pop(consumer: Consumer[_Record]) -> _Record:
    if consumer._spend():
        await asyncio.sleep(0)
    while (record := consumer.try_pop()) is None:
        await _readable(consumer)
    return record


async def push(producer: Producer, record: Buffer) -> None:
    if producer._spend():
        await asyncio.sleep(0)
    while not producer._offer(record):
        await _readable(producer)


class Records(Generic[_Record]):
    """What `async for` goes through: the records of a consumer, until the ring is closed and drained."""

    __slots__ = ("_consumer",)

    def __init__(self, consumer: Consumer[_Record]) -> None:
        self._consumer: Consumer[_Record] = consumer

    def __aiter__(self) -> Records[_Record]:
        return self

    async def __anext__(self) -> _Record:
        try:
            return await pop(self._consumer)
        except ClosedError:
            raise StopAsyncIteration from None
