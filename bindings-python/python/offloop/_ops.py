"""How the functions of `offloop.ops` reach the core."""

from __future__ import annotations

from typing import Any

from . import _aio, _native

call = _native._call


async def acall(name: str, inputs: tuple[Any, ...], params: dict[str, Any]) -> Any:
    started = _native._start(name, inputs, params)
    if started is None:
        return await _aio.copied(inputs, lambda *copies: _native._start(name, copies, params), lambda: None)
    return await started
