"""Channels: messages of what the core's channel brings, and how coroutines wait for them.

In an event loop one reader takes what comes, for all: messages for `arecv`, replies for whoever asked. It stops reading when
nobody waits, so that the other end is held back, and reads ahead of a waiting request no further than READ_AHEAD messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from . import _native
from ._native import ClosedError, Full, InvalidError, OffloopError, OsError, TaskFailedError, TransferBuffer, UnserializableError
from ._ring import _wake

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from typing import Self, SupportsInt

    from ._native import _Event

READ_AHEAD = 1024
# Seconds until the next attempt after fds or memory were missing; nothing is lost meanwhile.
PAUSE = 0.1
# Seconds until a listener whose queue is full is asked again.
CONNECT_RETRY = 0.005
# Messages that one wake of the loop takes.
BUDGET = 64


def _fd(item: Any) -> int:
    return item if isinstance(item, int) else item.fileno()


def _fds(fds: Iterable[Any]) -> list[int]:
    return [_fd(item) for item in fds]


def _check_buffers(buffers: Iterable[object]) -> None:
    for item in buffers:
        if not isinstance(item, TransferBuffer):
            msg = f"only a TransferBuffer moves between processes, not {type(item).__name__}; other bytes are copied"
            raise TypeError(msg)


def _outcome(event: _Event, with_fds: bool) -> Any:
    _, _, failed, value, fds = event
    if failed or not with_fds:
        for fd in fds:
            os.close(fd)
    if not failed:
        return (value, fds) if with_fds else value
    raise value if isinstance(value, BaseException) else TaskFailedError(value)


class Message:
    """What came: `value`, and `fds` that were sent along, which are the receiver's to close.

    A request is answered once; an answer that was not sent (it cannot travel, there was no room) leaves it open.
    """

    __slots__ = ("_channel", "_id", "fds", "value")

    def __init__(self, channel: Channel, event: _Event) -> None:
        kind, number, _, self.value, self.fds = event
        self._channel = channel
        self._id = number if kind == "request" else 0

    @property
    def is_request(self) -> bool:
        """Whether somebody waits for `reply` or `fail`."""
        return self._id != 0

    def _answer(self, failed: bool, value: Any, fds: Iterable[Any], timeout: float | None) -> None:
        number, self._id = self._id, 0
        if number == 0:
            msg = "message is no request, or was answered before"
            raise InvalidError(msg)
        try:
            self._channel._answer(number, failed, value, fds, timeout)
        except BaseException:
            self._id = number
            raise

    def reply(self, value: Any = None, *, fds: Iterable[Any] = (), timeout: float | None = None) -> None:
        """Answers; waits for room. In a coroutine of an event loop it is queued where there is no room."""
        self._answer(False, value, fds, timeout)

    def fail(self, error: BaseException) -> None:
        """Answers with an exception, which whoever asked gets."""
        self._answer(True, error, (), None)

    def __repr__(self) -> str:
        return f"Message(value={self.value!r}, fds={self.fds!r}, is_request={self.is_request})"


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Channel:
    """One end of a two-way connection between two processes, or threads: values, buffers that move, fds, requests.

    Any thread may call anything. `for message in channel` and `async for message in channel` go on until the other end
    closes; its death raises PeerDiedError.
    """

    __slots__ = ("__weakref__", "_aio", "_end")

    def __init__(self, end: _native._Channel) -> None:
        if not isinstance(end, _native._Channel):
            msg = "a Channel is made by pair, listen, connect or attach"
            raise TypeError(msg)
        self._end = end
        self._aio: _Reader | None = None

    @classmethod
    def pair(cls, *, capacity: int | None = None, max_message: int | None = None, max_queued: int | None = None) -> tuple[Self, Self]:
        """Two ends. Either may be used here, or by a child process that inherits its `fd` and calls `attach`."""
        a, b = _native._Channel.pair(capacity, max_message, max_queued)
        return cls(a), cls(b)

    @classmethod
    def attach(cls, fd: int, *, max_message: int | None = None, max_queued: int | None = None) -> Self:
        """The end of a pair whose `fd` this process inherited; the fd belongs to the channel from now on."""
        return cls(_native._Channel.attach(fd, max_message, max_queued))

    @classmethod
    def connect(
        cls, path: str | os.PathLike[str], timeout: float | None = None, *, max_message: int | None = None, max_queued: int | None = None
    ) -> Self:
        """Connects to who listens at `path`; waits until it accepts."""
        while True:
            try:
                end = _native._Channel.connect(path, max_message, max_queued)
            except Full:
                threading.Event().wait(CONNECT_RETRY)
                continue
            end.wait_open(timeout)
            return cls(end)

    @classmethod
    async def aconnect(cls, path: str | os.PathLike[str], *, max_message: int | None = None, max_queued: int | None = None) -> Self:
        """As `connect`, for a coroutine."""
        while True:
            try:
                end = _native._Channel.connect(path, max_message, max_queued)
                break
            except Full:
                await asyncio.sleep(CONNECT_RETRY)
        while not end.try_open():
            await _readable(end.fileno())
        return cls(end)

    @staticmethod
    def listen(
        path: str | os.PathLike[str],
        fn: Callable[[Channel], object] | None = None,
        *,
        capacity: int | None = None,
        max_message: int | None = None,
        max_queued: int | None = None,
    ) -> Listener:
        """Listens at `path`, a file or a name below $XDG_RUNTIME_DIR/offloop, for this user's processes.

        `fn` is called with each channel: in the running event loop, where it may be a coroutine function, or without one on
        a thread of its own. Without `fn` the listener's `accept` gives them.
        """
        return Listener(_native._Listener(path, capacity, max_message, max_queued), fn)

    @property
    def fd(self) -> int:
        """The socket of an end that was not used yet, for a child to inherit (`pass_fds`)."""
        return self._end.socket()

    @property
    def closed(self) -> bool:
        """Whether the channel has ended."""
        return self._end.closed

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end, once it is known."""
        return self._end.peer_pid

    @property
    def stats(self) -> dict[str, int]:
        """Counts: sent, received, pending, late_replies, queued."""
        return self._end.stats

    def send(self, value: Any, buffers: Iterable[TransferBuffer] = (), fds: Iterable[Any] = (), *, timeout: float | None = None) -> None:
        """Sends a value; TransferBuffers in it move, fds are duplicated. Waits for room.

        `buffers` may name what moves, as a check: each has to be a TransferBuffer.
        """
        _check_buffers(buffers)
        self._end.send(value, _fds(fds), timeout)

    def recv(self, timeout: float | None = None) -> Message:
        """The next message; after the last one ClosedError or PeerDiedError."""
        while True:
            event = self._end.recv(timeout)
            if event[0] in ("message", "request"):
                return Message(self, event)

    def request(self, value: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False) -> Any:
        """Sends a request and waits for its reply, which is returned, or raised if the other end failed."""
        return _outcome(self._end.request(value, _fds(fds), timeout), with_fds)

    async def asend(self, value: Any, buffers: Iterable[TransferBuffer] = (), fds: Iterable[Any] = ()) -> None:
        """As `send`, for a coroutine."""
        _check_buffers(buffers)
        reader = self._reader()
        while reader.queued:
            await reader.drained()
        if not self._end.post(value, _fds(fds)):
            await reader.drained()

    async def arecv(self) -> Message:
        """As `recv`, for a coroutine. A cancelled await loses no message."""
        return await self._reader().recv()

    async def arequest(self, value: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False) -> Any:
        """As `request`, for a coroutine. Cancelled, a later reply is dropped."""
        reader = self._reader()
        return _outcome(await reader.ask(self._end.post_request(value, _fds(fds), timeout)), with_fds)

    def _answer(self, number: int, failed: bool, value: Any, fds: Iterable[Any], timeout: float | None) -> None:
        if _in_loop():
            if not self._end.post_reply(number, failed, value, _fds(fds)):
                self._reader().expect_room()
        else:
            self._end.reply(number, failed, value, _fds(fds), timeout)

    def _reader(self) -> _Reader:
        loop = asyncio.get_running_loop()
        if self._aio is None or self._aio.loop is not loop:
            self._aio = _Reader(self, loop, self._aio)
        return self._aio

    def fileno(self) -> int:
        """An fd that is readable when `try_recv` may have something to give. Level-triggered."""
        return self._end.fileno()

    def try_recv(self) -> Message | None:
        """As `recv` without waiting; None when there is nothing now, which arms `fileno()`."""
        while (event := self._end.next()) is not None:
            if event[0] in ("message", "request"):
                return Message(self, event)
        return None

    def close(self) -> None:
        """Ends the channel for both ends; the other one gets what was sent, and ClosedError after it."""
        self._end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        try:
            return self.recv()
        except ClosedError:
            raise StopIteration from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.arecv()
        except ClosedError:
            raise StopAsyncIteration from None

    def __reduce__(self) -> Any:
        msg = "a Channel is passed by its fd; see attach"
        raise UnserializableError(msg)


async def _readable(fd: SupportsInt) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_reader(int(fd), _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(int(fd))


class _Reader:
    """What waits for a channel in one event loop."""

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop, before: _Reader | None) -> None:
        self.channel = channel
        self.loop = loop
        self.fd = channel.fileno()
        # Messages that were read ahead in a loop that is over are still to be received.
        self.inbox: deque[Message] = before.inbox if before is not None else deque()
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.asked: dict[int, asyncio.Future[_Event]] = {}
        self.room: list[asyncio.Future[None]] = []
        self.queued = False
        self.reading = False
        self.why: Exception | None = None

    def _update(self) -> None:
        ahead = len(self.inbox) < READ_AHEAD
        want = self.why is None and bool(self.queued or self.room or (self.waiters and not self.inbox) or (self.asked and ahead))
        if want and not self.reading:
            self.loop.add_reader(self.fd, self._read)
        elif not want and self.reading:
            self.loop.remove_reader(self.fd)
        self.reading = want

    def _read(self) -> None:
        end = self.channel._end
        for _ in range(BUDGET):
            try:
                event = end.next()
            except OsError:
                # Without fds or memory nothing can be received now, and nothing is lost.
                self.loop.remove_reader(self.fd)
                self.loop.call_later(PAUSE, self._resume)
                return
            except OffloopError as why:
                self._end(why)
                return
            if event is None:
                break
            self._place(event)
            if self.asked or self.queued or self.room or (self.waiters and len(self.inbox) < len(self.waiters)):
                continue
            break
        self._update()

    def _resume(self) -> None:
        self.reading = False
        self._update()

    def _place(self, event: _Event) -> None:
        kind, number = event[0], event[1]
        if kind in ("message", "request"):
            self.inbox.append(Message(self.channel, event))
            self._wake_one()
        elif kind == "drained":
            self.queued = False
            room, self.room = self.room, []
            for one in room:
                if not one.done():
                    one.set_result(None)
        else:
            waiter = self.asked.pop(number, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(event)
            else:
                for fd in event[4]:
                    os.close(fd)

    def _wake_one(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
                return

    def _end(self, why: Exception) -> None:
        self.why = why
        self._update()
        pending: list[asyncio.Future[Any]] = [*self.waiters, *self.room, *self.asked.values()]
        for waiter in pending:
            if not waiter.done():
                waiter.set_exception(why)
        self.room.clear()
        self.asked.clear()

    async def recv(self) -> Message:
        while not self.inbox:
            if self.why is not None:
                raise self.why
            waiter: asyncio.Future[None] = self.loop.create_future()
            self.waiters.append(waiter)
            self._update()
            try:
                await waiter
            finally:
                self.waiters.remove(waiter)
                # A wake that came to one who was cancelled is another's.
                if self.inbox and waiter.cancelled():
                    self._wake_one()
                self._update()
        message = self.inbox.popleft()
        if self.inbox:
            self._wake_one()
        return message

    async def ask(self, number: int) -> _Event:
        waiter: asyncio.Future[_Event] = self.loop.create_future()
        self.asked[number] = waiter
        self._update()
        try:
            return await waiter
        finally:
            if self.asked.pop(number, None) is not None:
                self.channel._end.abandon(number)
            self._update()

    def expect_room(self) -> None:
        self.queued = True
        self._update()

    async def drained(self) -> None:
        waiter: asyncio.Future[None] = self.loop.create_future()
        self.room.append(waiter)
        self.expect_room()
        await waiter


class Listener:
    """Accepts channels at a path, until it is closed; channels that were accepted go on."""

    __slots__ = ("__weakref__", "_fn", "_listener", "_loop", "_tasks")

    def __init__(self, listener: _native._Listener, fn: Callable[[Channel], object] | None = None) -> None:
        self._listener = listener
        self._fn = fn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        if fn is None:
            return
        if _in_loop():
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(listener.fileno(), self._ready)
        else:
            threading.Thread(target=self._serve, name="offloop-listen", daemon=True).start()

    @property
    def path(self) -> os.PathLike[str]:
        """Where it listens."""
        return self._listener.path

    def accept(self, timeout: float | None = None) -> Channel:
        """The next channel."""
        return Channel(self._listener.accept(timeout))

    async def aaccept(self) -> Channel:
        """As `accept`, for a coroutine."""
        while (end := self._listener.try_accept()) is None:
            await _readable(self._listener.fileno())
        return Channel(end)

    def fileno(self) -> int:
        """An fd that is readable while somebody waits to be accepted."""
        return self._listener.fileno()

    def close(self) -> None:
        """Ends it and takes its path away."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(ClosedError):
                self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _ready(self) -> None:
        assert self._fn is not None
        assert self._loop is not None
        try:
            end = self._listener.try_accept()
        except OsError:
            # Who waits, waits until there are fds and memory.
            fd = self._listener.fileno()
            self._loop.remove_reader(fd)
            self._loop.call_later(PAUSE, lambda: self._loop and self._loop.add_reader(fd, self._ready))
            return
        if end is None:
            return
        made = self._fn(Channel(end))
        if inspect.iscoroutine(made):
            coroutine: Coroutine[Any, Any, object] = made
            task = self._loop.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _serve(self) -> None:
        assert self._fn is not None
        for channel in self:
            threading.Thread(target=self._fn, args=(channel,), name="offloop-channel", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Channel]:
        while True:
            try:
                yield self.accept()
            except ClosedError:
                return
            except OsError:
                threading.Event().wait(PAUSE)
