"""asyncio: which completion queue belongs to which loop, and the copies that must not hold it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from . import _trio
from ._native import TransferBuffer, _Copy, _Port

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from ._native import Future

T = TypeVar("T")

# The loop's reader holds the port, so that a closed loop frees it. A loop without readers has its port held here.
_ports: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[_Port]] = weakref.WeakKeyDictionary()
_held: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Port] = weakref.WeakKeyDictionary()


def port_for(loop: asyncio.AbstractEventLoop) -> _Port:
    known = _ports.get(loop)
    port = known() if known is not None else None
    if port is not None:
        return port
    port = _Port(weakref.ref(loop), False)
    try:
        # The reader's handle keeps its context, which must not be that of whoever came first.
        contextvars.Context().run(loop.add_reader, port.fileno(), port.wake)
    except NotImplementedError:
        port = _Port(weakref.ref(loop), True)
        _held[loop] = port
    _ports[loop] = weakref.ref(port)
    return port


class _Awaited(concurrent.futures.Future[T]):
    """A future that says RuntimeError for StopIteration, which asyncio's own cannot hold before 3.12."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def add_done_callback(self, fn: Callable[..., object]) -> None:
        # Wrapped, it keeps its module, by which `Future` knows asyncio's callbacks.
        @functools.wraps(fn)
        def tell(_: object) -> None:
            fn(self)

        self._future.add_done_callback(tell)

    def cancel(self) -> bool:
        return self._future.cancel()

    def cancelled(self) -> bool:
        return self._future.cancelled()

    def done(self) -> bool:
        return self._future.done()

    def result(self, timeout: float | None = None) -> T:
        return self._future.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = self._future.exception(timeout)
        if isinstance(error, StopIteration):
            raised = RuntimeError("the task raised StopIteration")
            raised.__cause__ = error
            return raised
        return error


async def await_future(future: Future[T]) -> T:
    """What `await future` does; cancelling it kills the task."""
    if "trio" in sys.modules and _trio.is_running():
        return await _trio.await_future(future)
    wrapped: asyncio.Future[T] = asyncio.wrap_future(future if sys.version_info >= (3, 12) else _Awaited(future))
    try:
        return await wrapped
    except asyncio.CancelledError:
        future.kill()
        raise


class _Copying:
    """A call that was taken in and is submitted once its long writable inputs are copied, a slice of `_Copy` at a time.

    At the call its TransferBuffers move, and exports keep its other inputs where they are. Buffers come back if it is not submitted.
    """

    def __init__(
        self, inputs: Sequence[Any], submit: Callable[..., Any], release: Callable[[], None], line: tuple[int, str] | None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.submit = submit
        self.release = release
        self.line = None if line is None else (self.loop, *line)
        self.inputs: list[Any] = []
        self.moved: list[tuple[TransferBuffer, TransferBuffer]] = []
        self.copies: list[tuple[int, _Copy]] = []
        self.slices = self._copy()
        self.submitted: Any = None
        self.refused: Exception | None = None
        try:
            for data in inputs:
                self.inputs.append(self._take(data))
        except BaseException:
            self.end()
            raise
        _copying[self] = None
        if self.line is not None:
            _lines.setdefault(self.line, deque()).append(self)

    def _take(self, data: Any) -> Any:
        if isinstance(data, TransferBuffer):
            moved = data._move_out()
            self.moved.append((data, moved))
            return moved
        if type(data) is bytes:
            return data
        self.copies.append((len(self.inputs), _Copy(data)))
        return None

    def _copy(self) -> Generator[None]:
        for place, copy in self.copies:
            while (whole := copy.advance()) is None:
                yield
            self.inputs[place] = whole

    def advance(self) -> bool:
        """Copies one slice. True once the task was submitted, or refused."""
        if self.submitted is None and self.refused is None:
            try:
                for _ in self.slices:
                    return False
                if self.line is not None and _lines[self.line][0] is not self:
                    return False
                # `submit` may run code of the user, which must not find this call waiting.
                self._withdraw()
                self.submitted = self.submit(*self.inputs)
            except Exception as e:
                self.refused = e
            self.end()
        return True

    def _withdraw(self) -> None:
        _copying.pop(self, None)
        if self.line is not None and (line := _lines.get(self.line)) is not None and self in line:
            line.remove(self)
            if not line:
                del _lines[self.line]

    def end(self) -> None:
        """Leaves no export, no ticket and no place in the line behind, wherever the copying was given up."""
        self._withdraw()
        self.slices.close()
        for _, copy in self.copies:
            copy.release()
        if self.submitted is None:
            for given, moved in self.moved:
                given._move_back(moved)
        self.moved.clear()
        self.release()


# What all calls of one turn of a loop may copy at once, in bytes; beyond it copies are cut so that no turn holds the loop.
_AT_ONCE = 4 * _Copy.SLICE
_spent: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, int] = weakref.WeakKeyDictionary()
# Held by the call of a loop whose inputs are being copied; the others wait in the order in which they came. Its users keep it.
_turns: weakref.WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakValueDictionary()


def may_copy(cost: int) -> bool:
    """Whether a call may copy that much at once: not before those that wait, nor beyond what is left of this turn."""
    loop = asyncio.get_running_loop()
    return loop not in _turns and _spend(loop, cost)


def _spend(loop: asyncio.AbstractEventLoop, cost: int) -> bool:
    spent = _spent.get(loop, 0)
    if spent + cost > _AT_ONCE:
        return False
    if loop not in _spent:
        loop.call_soon(_spent.pop, loop, None)
    _spent[loop] = spent + cost
    return True


# In the order of their calls.
_copying: dict[_Copying, None] = {}
# The calls of one loop, pool and key, from the first one that is not submitted yet.
_lines: dict[tuple[asyncio.AbstractEventLoop, int, str], deque[_Copying]] = {}


async def copied(
    inputs: Sequence[Any], submit: Callable[..., Any], release: Callable[[], None], line: tuple[int, str] | None = None
) -> Any:
    """Submits a call with its long writable inputs copied, in slices between which the loop goes on.

    Calls of one `line` are submitted in the order in which they came.
    """
    copying = _Copying(inputs, submit, release, line)
    try:
        turn = _turns.get(copying.loop)
        if turn is None:
            turn = _turns[copying.loop] = asyncio.Lock()
        async with turn:
            while not (_spend(copying.loop, _Copy.SLICE) and copying.advance()):
                await asyncio.sleep(0)
    finally:
        copying.end()
    if copying.refused is not None:
        raise copying.refused
    return await copying.submitted


def has_line(pool: int, key: str) -> bool:
    return (asyncio._get_running_loop(), pool, key) in _lines


def finish_line(pool: int, key: str) -> None:
    """Submits what the loop of this thread is copying for a key, before a call that cannot wait is submitted."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        _finish(list(_lines.get((loop, pool, key), ())))


def finish_copies() -> None:
    """Submits what the loop of this thread is copying, before the thread waits for it and the loop stands still."""
    loop = asyncio._get_running_loop()
    _finish([c for c in list(_copying) if loop is not None and c.loop is loop])


def _finish(calls: list[_Copying]) -> None:
    for copying in calls:
        while not copying.advance():
            pass
