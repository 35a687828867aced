"""How the functions of `offloop.ops` reach the core."""

from __future__ import annotations

from typing import Any

from . import _aio, _native

call = _native._call


async def acall(name: str, inputs: tuple[Any, ...], params: dict[str, Any]) -> Any:
    started = _native._start(name, inputs, params)
    if started is None:
        started = _native._start(name, tuple(await _aio.copied(inputs)), params)
        assert started is not None, "nothing is left to copy"
    return await started
