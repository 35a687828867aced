"""trio, and anyio on it: futures wake its tasks by callbacks. Nothing here imports trio: what does not run is not there."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from ._native import TimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ._native import Future

T = TypeVar("T")


def is_running() -> bool:
    """A task of trio runs on this thread, and not one of asyncio below it (guest mode)."""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    asyncio = sys.modules.get("asyncio")
    return asyncio is None or asyncio._get_running_loop() is None or asyncio.current_task() is None


def _caller(trio: Any) -> Callable[..., None]:
    """What calls a function on this run's own thread, from any other."""
    token = trio.lowlevel.current_trio_token()

    def call(fn: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(fn, *args)

    return call


async def await_future(future: Future[T]) -> T:
    """What `await future` does; cancelling it kills the task."""
    trio = sys.modules["trio"]
    lowlevel = trio.lowlevel
    try:
        await lowlevel.checkpoint_if_cancelled()
    except BaseException:
        future.kill()
        raise
    if future.done():
        await lowlevel.cancel_shielded_checkpoint()
        return future.result(0)
    task, call, waits = lowlevel.current_task(), _caller(trio), True

    def wake() -> None:
        if waits:
            lowlevel.reschedule(task)

    def abort(_: object) -> Any:
        nonlocal waits
        waits = False
        future.kill()
        return lowlevel.Abort.SUCCEEDED

    future.add_done_callback(lambda _: call(wake))
    await lowlevel.wait_task_rescheduled(abort)
    return future.result(0)


async def in_thread(fn: Callable[[], T]) -> T:
    return await sys.modules["trio"].to_thread.run_sync(fn)  # type: ignore[no-any-return]


async def amap(
    submit: Callable[..., Future[Any]], rows: AsyncGenerator[tuple[Any, ...]], window: int, timeout: float | None, ordered: bool
) -> AsyncGenerator[Any]:
    """`amap` of a pool whose `submit` takes a task in beyond its bound."""
    trio = sys.modules["trio"]
    call = _caller(trio)
    # In the order of their calls.
    running: dict[Future[Any], None] = {}
    finished: list[Future[Any]] = []
    news, room = trio.Event(), trio.Event()
    scope = trio.CancelScope()
    is_fed = False
    error: Exception | None = None

    def on_done(future: Future[Any]) -> None:
        if future in running:
            finished.append(future)
            news.set()

    async def feed() -> None:
        nonlocal is_fed, error, room
        with scope:
            try:
                async with contextlib.aclosing(rows):
                    async for args in rows:
                        future = submit(*args)
                        running[future] = None
                        future.add_done_callback(lambda future: call(on_done, future))
                        while len(running) >= window:
                            room = trio.Event()
                            await room.wait()
                        await trio.lowlevel.checkpoint()
            except Exception as e:
                error = e
        is_fed = True
        news.set()

    until = None if timeout is None else trio.current_time() + timeout
    # A nursery may not be left and entered again around a `yield`. As a system task it may wait longer than this iterator is looked at.
    trio.lowlevel.spawn_system_task(feed, name="offloop-amap", context=contextvars.copy_context())
    try:
        while True:
            with trio.CancelScope(deadline=float("inf") if until is None else until) as late:
                while True:
                    due = next(iter(running), None) if ordered else (finished.pop(0) if finished else None)
                    if due is not None and due.done():
                        break
                    if is_fed and not running:
                        # An error of an iterable comes after the results of the items before it.
                        if error is not None:
                            raise error
                        return
                    news = trio.Event()
                    await news.wait()
                await trio.lowlevel.checkpoint()
            if late.cancelled_caught:
                raise TimeoutError("timeout: the results are not there yet")
            del running[due]
            room.set()
            result = [due.result(0)]
            del due
            yield result.pop()
    finally:
        scope.cancel()
        for future in running:
            future.kill()
