"""asyncio: which completion queue belongs to which loop, and the copies that must not hold it."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from ._native import TransferBuffer, _Port

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from ._native import Future

T = TypeVar("T")

_SLICE = 1 << 20

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
        contextvars.Context().run(loop.add_reader, port.fileno(), port.drain)
    except NotImplementedError:
        port = _Port(weakref.ref(loop), True)
        _held[loop] = port
    _ports[loop] = weakref.ref(port)
    return port


async def await_future(future: Future[T]) -> T:
    """What `await future` does; cancelling it kills the task."""
    wrapped: asyncio.Future[T] = asyncio.wrap_future(future)
    try:
        return await wrapped
    except asyncio.CancelledError:
        future.kill()
        raise


class _Copying:
    """A call that was taken in and is submitted once its long writable inputs are copied."""

    def __init__(self, inputs: Sequence[Any], submit: Callable[..., Any], release: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.submit = submit
        self.release = release
        self.inputs: list[Any] = []
        self.slices = self._copy(inputs)
        self.submitted: Any = None
        self.refused: Exception | None = None

    def _copy(self, inputs: Sequence[Any]) -> Generator[None]:
        for data in inputs:
            if isinstance(data, (bytes, TransferBuffer)):
                self.inputs.append(data)
                continue
            with memoryview(data) as view:
                if view.nbytes <= _SLICE or not view.c_contiguous:
                    self.inputs.append(bytes(view))
                    continue
                with view.cast("B") as source:
                    buffer = TransferBuffer(len(source))
                    with memoryview(buffer) as target:
                        for at in range(0, len(source), _SLICE):
                            target[at : at + _SLICE] = source[at : at + _SLICE]
                            yield
                    self.inputs.append(buffer)

    def advance(self) -> bool:
        """Copies one slice. True once the task was submitted, or refused."""
        if self.submitted is None and self.refused is None:
            try:
                next(self.slices)
                return False
            except StopIteration:
                pass
            try:
                self.submitted = self.submit(*self.inputs)
            except Exception as e:
                self.refused = e
            self.release()
        return True

    def end(self) -> None:
        """Leaves no export and no ticket behind, wherever the copying was given up."""
        self.slices.close()
        self.release()


_copying: set[_Copying] = set()


async def copied(inputs: Sequence[Any], submit: Callable[..., Any], release: Callable[[], None]) -> Any:
    """Submits a call with its long writable inputs copied, in slices between which the loop goes on."""
    copying = _Copying(inputs, submit, release)
    _copying.add(copying)
    try:
        while not copying.advance():
            await asyncio.sleep(0)
    finally:
        _copying.discard(copying)
        copying.end()
    if copying.refused is not None:
        raise copying.refused
    return await copying.submitted


def finish_copies() -> None:
    """Submits what the loop of this thread is copying, before the thread waits for it and the loop stands still."""
    loop = asyncio._get_running_loop()
    for copying in [c for c in _copying if loop is not None and c.loop is loop]:
        while not copying.advance():
            pass
