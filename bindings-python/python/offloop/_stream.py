"""Stream: what a generator in a worker yields, for `for` and for `async for`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from . import _trio
from ._native import ClosedError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ._native import _Stream
    from ._process import ProcessPool

# Values after which other tasks of an event loop have their turn.
_TURN = 64


class Stream:
    """The values of one call, in order: an iterator, and an asynchronous one. `ProcessPool.stream` makes it.

    An error of the function comes after the values before it. Closed (by any thread), dropped, left by `with`, or with an `await` of its
    next value that was cancelled, it is at its end, and whoever waits for a value sees that: a call that was not started never is, and one
    that runs is cancelled. `current_task().cancelled()` says so to the function at once, and its generator gets `close()` at its next value,
    whose `finally` is run there; if it has not returned after the pool's `cancel_grace`, its worker is ended and replaced. One thread or
    task reads at a time.
    """

    def __init__(self, native: _Stream, pool: ProcessPool) -> None:
        self._native = native
        # A pool that nobody refers to is closed.
        self._pool = pool
        self._closed = False
        self._waits = False
        self._count = 0
        self._left_out = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        try:
            return next(self._native)
        except StopIteration:
            self._check()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._closed:
            raise StopAsyncIteration
        if self._waits:
            raise RuntimeError("another task waits for the next value of this stream")
        self._waits = True
        try:
            taken = await self._taken()
        except Exception:
            raise
        except BaseException:
            # Cancelled: as an asynchronous generator, it does not go on.
            self.close()
            raise
        finally:
            self._waits = False
        if taken:
            return taken[0]
        self._check()
        raise StopAsyncIteration

    async def _taken(self) -> tuple[Any, ...]:
        native, trio = self._native, _trio.is_running()
        self._count += 1
        if trio:
            await sys.modules["trio"].lowlevel.checkpoint()
        elif self._count % _TURN == 0:
            await asyncio.sleep(0)
        while (taken := native._take()) is None:
            fd = native.fileno()
            native._clear()
            # After the fd can tell, and before anybody sleeps.
            if (taken := native._take()) is not None:
                break
            await (sys.modules["trio"].lowlevel.wait_readable(fd) if trio else _readable(fd))
        return taken

    def _check(self) -> None:
        if self._left_out and not self._closed:
            self._closed = True
            raise ClosedError("closed: the pool was closed before this stream was read to its end")

    def close(self) -> None:
        """Ends it. What was not read is dropped."""
        self._closed = True
        self._native._stop()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def _leave_out(self) -> None:
        """The pool closes, and does not wait for whoever reads: as `close`, with an error for them."""
        if not self._closed and not self._native._future.done():
            self._left_out = True
            self._native._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(fd, _wake, waiter)
    except NotImplementedError:
        # A loop that watches no fds.
        await asyncio.sleep(0.001)
        return
    try:
        await waiter
    finally:
        loop.remove_reader(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
