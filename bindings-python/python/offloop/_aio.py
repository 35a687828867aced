"""asyncio: which completion queue belongs to which loop, and the copies that must not hold it."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from ._native import TransferBuffer, _Port

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        loop.add_reader(port.fileno(), port.drain)
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


async def copied(inputs: Sequence[Any]) -> list[Any]:
    """The inputs with long writable ones copied, in slices between which the loop goes on."""
    out: list[Any] = []
    for data in inputs:
        if isinstance(data, (bytes, TransferBuffer)):
            out.append(data)
            continue
        with memoryview(data) as view:
            if view.nbytes <= _SLICE or not view.c_contiguous:
                out.append(bytes(view))
                continue
            with view.cast("B") as source:
                buffer = TransferBuffer(len(source))
                with memoryview(buffer) as target:
                    for at in range(0, len(source), _SLICE):
                        target[at : at + _SLICE] = source[at : at + _SLICE]
                        await asyncio.sleep(0)
                out.append(buffer)
    return out
