"""Channels: messages of what the core's channel brings, and how coroutines wait for them.

Messages stay in the core until `recv` or `arecv` of any thread or loop takes one. What a coroutine asked for (a reply, room) is found by
whichever loop looks first, which gives it to the loop where somebody waits for it. A loop looks while one of its coroutines waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import select
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from . import _native
from ._native import ClosedError, Full, InvalidError, OffloopError, OsError, TaskFailedError, TransferBuffer, UnserializableError
from ._ring import _wake
from ._threads import ends

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from typing import Self, SupportsInt

    from ._native import _Event

# Seconds until the next attempt after fds or memory were missing; nothing is lost meanwhile.
PAUSE = 0.1
# Seconds until a listener whose queue is full is asked again.
CONNECT_RETRY = 0.005
# Seconds that what is queued has to be sent after `close`.
GRACE = 5.0
# Seconds of a loop's turn that what comes on channels may take, with the code that waits for it.
TURN = 0.0005


def _fd(item: Any) -> int:
    if isinstance(item, int):
        return item
    fileno = getattr(item, "fileno", None)
    if fileno is None:
        msg = f"fds has an item that is neither a number nor has fileno(): {item!r:.80}"
        raise InvalidError(msg)
    number: int = fileno()
    return number


def _fds(fds: Iterable[Any]) -> list[int]:
    return [_fd(item) for item in fds]


def _named(buffers: Iterable[object]) -> list[TransferBuffer]:
    named: list[TransferBuffer] = []
    for item in buffers:
        if not isinstance(item, TransferBuffer):
            msg = f"only a TransferBuffer moves between processes, not {type(item).__name__}; other bytes are copied"
            raise TypeError(msg)
        named.append(item)
    return named


def _outcome(event: _Event, with_fds: bool) -> Any:
    # Fds that are not taken are closed with the event.
    _, _, failed, value, fds = event
    if not failed:
        return (value, fds.take() if fds is not None else []) if with_fds else value
    raise value if isinstance(value, BaseException) else TaskFailedError(value)


class Message:
    """What came: `value`, and `fds` that were sent along, which are the receiver's to close.

    A request is answered once; an answer that was not sent (it cannot travel, there was no room) leaves it open.
    """

    __slots__ = ("_channel", "_id", "fds", "value")

    def __init__(self, channel: Channel, event: _Event) -> None:
        kind, number, _, self.value, fds = event
        self.fds: list[int] = fds.take() if fds is not None else []
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

    __slots__ = ("__weakref__", "_desk", "_end")

    def __init__(self, end: _native._Channel) -> None:
        if not isinstance(end, _native._Channel):
            msg = "a Channel is made by pair, listen, connect or attach"
            raise TypeError(msg)
        self._end = end
        self._desk = _Desk(end)
        ends[id(self)] = self

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
        if timeout is not None and math.isnan(timeout):
            msg = "invalid: number of seconds is not a number (timeout=NaN)"
            raise InvalidError(msg)
        left, until = timeout, None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                end = _native._Channel.connect(path, max_message, max_queued)
                break
            except Full as full:
                if timeout is not None and left is not None and left <= 0:
                    msg = f"timeout: listener did not accept (timeout_ms={timeout * 1000:.0f})"
                    raise _native.TimeoutError(msg) from full
            threading.Event().wait(CONNECT_RETRY if left is None else min(CONNECT_RETRY, left))
            left = None if until is None else until - time.monotonic()
        end.wait_open(left)
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

        `buffers` may name what moves, as a check: each has to be a TransferBuffer in the value.
        """
        self._end.send(value, _named(buffers), _fds(fds), timeout)

    def recv(self, timeout: float | None = None) -> Message:
        """The next message; after the last one ClosedError or PeerDiedError.

        A message whose value has no Python form is lost with its error (Unsupported), and the next call gives the next one.
        """
        return self._message(self._end.recv(timeout))

    def _message(self, event: _Event) -> Message:
        kind, number, _, value, _ = event
        if kind != "unreadable":
            return Message(self, event)
        if number != 0:
            # Nobody else can answer it.
            with contextlib.suppress(OffloopError):
                self._answer(number, True, value, (), 0)
        raise value

    def request(self, value: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False) -> Any:
        """Sends a request and waits for its reply, which is returned, or raised if the other end failed."""
        return _outcome(self._end.request(value, _fds(fds), timeout), with_fds)

    async def asend(self, value: Any, buffers: Iterable[TransferBuffer] = (), fds: Iterable[Any] = ()) -> None:
        """As `send`, for a coroutine. Cancelled, it may have sent the message all the same."""
        desk = self._desk
        while desk.queued:
            await desk.drained()
        if not self._end.post(value, _named(buffers), _fds(fds)):
            await desk.drained()

    async def arecv(self) -> Message:
        """As `recv`, for a coroutine. A cancelled await loses no message."""
        return self._message(await self._desk.recv())

    async def arequest(self, value: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False) -> Any:
        """As `request`, for a coroutine. Cancelled, a later reply is dropped."""
        return _outcome(await self._desk.ask(value, _fds(fds), timeout), with_fds)

    def _answer(self, number: int, failed: bool, value: Any, fds: Iterable[Any], timeout: float | None) -> None:
        if _in_loop():
            if not self._end.post_reply(number, failed, value, _fds(fds)):
                self._desk.expect_room()
        else:
            self._end.reply(number, failed, value, _fds(fds), timeout)

    def fileno(self) -> int:
        """An fd that is readable when `try_recv` may have something to give. Level-triggered."""
        return self._end.fileno()

    def try_recv(self) -> Message | None:
        """As `recv` without waiting; None when there is nothing now, which arms `fileno()`."""
        event = self._end.message()
        return None if event is None else self._message(event)

    def close(self, grace: float | None = GRACE) -> None:
        """Ends the channel for both ends; the other one gets what was sent, and ClosedError after it.

        What coroutines have queued is sent first, for at most `grace` seconds (None: for ever), and then dropped. In an event loop that
        goes on after this call. Of an end of a pair that was never used only the socket is closed, for a child may have it; if none has, the
        other end gets PeerDiedError.
        """
        if self._end.close(grace):
            return
        if _in_loop():
            self._desk.drop_after(grace)
        else:
            self._end.wait_closed(grace)

    async def aclose(self, grace: float | None = GRACE) -> None:
        """As `close`, for a coroutine, and waits until what was queued is sent or dropped. Cancelled, it drops the rest."""
        if self._end.close(grace):
            return
        try:
            with contextlib.suppress(OffloopError, TimeoutError):
                async with asyncio.timeout(_bounded(grace)):
                    # That there is room may have been told for what was queued before.
                    while self._end.stats["queued"] > 0:
                        await self._desk.drained()
        finally:
            self._end.close_now()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

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

    def _leave(self) -> None:
        """The interpreter ends: as `close`, for which nobody waits."""
        self._end.close_now()

    def __reduce__(self) -> Any:
        msg = "a Channel is passed by its fd; see attach"
        raise UnserializableError(msg)


def _bounded(seconds: float | None) -> float | None:
    """What a loop's timer can hold; longer is for ever."""
    return None if seconds is None or seconds > threading.TIMEOUT_MAX else seconds


async def _readable(fd: SupportsInt) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_reader(int(fd), _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(int(fd))


# When the turn of a loop began that takes from channels.
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()


def _is_spent(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether what came on channels has used up this turn of the loop."""
    now = time.perf_counter()
    began = _turns.get(loop)
    if began is None:
        _turns[loop] = now
        loop.call_soon(_turns.pop, loop, None)
        return False
    return now - began > TURN


def _call(loop: asyncio.AbstractEventLoop, fn: Callable[..., object], *args: Any) -> bool:
    """Calls in a loop's thread; false if that loop is over."""
    if loop is asyncio._get_running_loop():
        fn(*args)
        return True
    try:
        loop.call_soon_threadsafe(fn, *args)
    except RuntimeError:
        return False
    return True


def _tell(waiter: asyncio.Future[Any], result: Any = None, error: Exception | None = None) -> bool:
    return _call(waiter.get_loop(), _settle, waiter, result, error)


def _settle(waiter: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if waiter.done():
        return
    if error is None:
        waiter.set_result(result)
    else:
        waiter.set_exception(error)


class _Reader:
    """One event loop's part: it looks for what comes while one of its coroutines waits. Used by the loop's own thread."""

    __slots__ = ("desk", "fd", "loop", "queued", "reading", "stopped", "waiting")

    def __init__(self, desk: _Desk, loop: asyncio.AbstractEventLoop) -> None:
        self.desk = desk
        self.loop = loop
        self.fd = desk.end.fileno()
        self.waiting = 0
        # Frames of this loop wait for room.
        self.queued = False
        # The channel has ended, or nothing can be received for now.
        self.stopped = False
        self.reading = False

    def update(self) -> None:
        want = (self.waiting > 0 or self.queued) and not self.stopped
        if want and not self.reading:
            self.loop.add_reader(self.fd, self.desk.read, self)
        elif not want and self.reading:
            self.loop.remove_reader(self.fd)
        self.reading = want

    def pause(self) -> None:
        self.stopped = True
        self.update()
        self.loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        self.stopped = False
        self.update()

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        self.waiting += 1
        self.update()
        try:
            yield
        finally:
            self.waiting -= 1
            self.update()


class _Desk:
    """Who waits for a channel, in all event loops. Its lock is held for moments, and never while anything is called that may wait."""

    def __init__(self, end: _native._Channel) -> None:
        self.end = end
        self.lock = threading.Lock()
        self.readers: dict[asyncio.AbstractEventLoop, _Reader] = {}
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.room: list[asyncio.Future[None]] = []
        self.asked: dict[int, asyncio.Future[_Event]] = {}
        # Calls that have sent a request, perhaps, and do not know its number yet; and replies that came so early.
        self.asking = 0
        self.early: dict[int, _Event] = {}
        # Frames wait for room, and nobody has said that they are sent.
        self.queued = False
        # What the channel ended with, once a loop has seen it.
        self.why: Exception | None = None

    def _reader(self) -> _Reader:
        loop = asyncio.get_running_loop()
        with self.lock:
            reader = self.readers.get(loop)
            if reader is None:
                # Loops that are over.
                self.readers = {loop: reader for loop, reader in self.readers.items() if not loop.is_closed()}
                reader = self.readers[loop] = _Reader(self, loop)
            return reader

    def read(self, reader: _Reader) -> None:
        """Takes what loops have asked for, and lets messages arrive, until the turn's time is used up."""
        while True:
            try:
                event = self.end.outcome()
            except OsError:
                # Without fds or memory nothing can be received now, and nothing is lost.
                reader.pause()
                return
            except OffloopError as why:
                # Requests have had theirs, and `message` tells the others after the last message.
                reader.stopped = True
                reader.update()
                self._end(why)
                return
            if event is None:
                break
            if event[0] != "more":
                self._place(event)
            elif not (self.asked or self.room or self.queued):
                break
            if _is_spent(reader.loop):
                break
        if self.end.unread:
            self._wake_one()

    def _place(self, event: _Event) -> None:
        kind, number = event[0], event[1]
        if kind == "drained":
            with self.lock:
                self.queued = False
                room, self.room = self.room, []
                readers = [reader for reader in self.readers.values() if reader.queued]
            for one in room:
                _tell(one)
            for reader in readers:
                reader.queued = False
                _call(reader.loop, reader.update)
            return
        with self.lock:
            waiter = self.asked.pop(number, None)
            if waiter is None and self.asking > 0:
                self.early[number] = event
        if waiter is not None:
            _tell(waiter, event)

    def _wake_one(self) -> None:
        while True:
            with self.lock:
                if not self.waiters:
                    return
                waiter = self.waiters.popleft()
            if not waiter.done() and _tell(waiter):
                return

    def _end(self, why: Exception) -> None:
        with self.lock:
            self.why, self.queued = why, False
            waiters = [*self.waiters]
            room, self.room = self.room, []
            self.waiters.clear()
        for waiter in waiters:
            _tell(waiter)
        for waiter in room:
            _tell(waiter, error=why)

    async def recv(self) -> _Event:
        reader = self._reader()
        try:
            while True:
                while _is_spent(reader.loop):
                    await asyncio.sleep(0)
                try:
                    event = self.end.message()
                except OsError:
                    await asyncio.sleep(PAUSE)
                    continue
                if event is not None:
                    return event
                await self._arrival(reader)
        finally:
            # A wake that came to one who was cancelled is another's, and so is the next message.
            if self.waiters and self.end.unread:
                self._wake_one()

    async def _arrival(self, reader: _Reader) -> None:
        waiter: asyncio.Future[None] = reader.loop.create_future()
        with self.lock:
            self.waiters.append(waiter)
        try:
            with reader.wait():
                # Another loop may have found it when nobody waited yet.
                if not self.end.unread:
                    await waiter
        finally:
            with self.lock, contextlib.suppress(ValueError):
                self.waiters.remove(waiter)

    async def ask(self, value: Any, fds: list[int], timeout: float | None) -> _Event:
        reader = self._reader()
        waiter: asyncio.Future[_Event] = reader.loop.create_future()
        with self.lock:
            self.asking += 1
        try:
            number = self.end.post_request(value, fds, timeout)
            with self.lock:
                event = self.early.pop(number, None)
                if event is not None:
                    return event
                self.asked[number] = waiter
        finally:
            with self.lock:
                self.asking -= 1
                if self.asking == 0:
                    self.early.clear()
        try:
            with reader.wait():
                return await waiter
        finally:
            with self.lock:
                given_up = self.asked.pop(number, None)
            if given_up is not None:
                self.end.abandon(number)

    def expect_room(self) -> None:
        """Sees to it that what was queued is sent."""
        reader = self._reader()
        self.queued = reader.queued = True
        # Another loop may have sent it already, and heard of it.
        if self.end.stats["queued"] == 0:
            self.queued = reader.queued = False
        reader.update()

    def drop_after(self, grace: float | None) -> None:
        """After `close`: what was queued is sent for so long."""
        self.expect_room()
        grace = _bounded(grace)
        if grace is not None:
            asyncio.get_running_loop().call_later(grace, self.end.close_now)

    async def drained(self) -> None:
        reader = self._reader()
        waiter: asyncio.Future[None] = reader.loop.create_future()
        with self.lock:
            if self.why is not None:
                raise self.why
            self.room.append(waiter)
        self.expect_room()
        if self.queued:
            with reader.wait():
                await waiter


class Listener:
    """Accepts channels at a path, until it is closed; channels that were accepted go on."""

    __slots__ = ("__weakref__", "_fn", "_listener", "_loop", "_tasks", "_waiters")

    def __init__(self, listener: _native._Listener, fn: Callable[[Channel], object] | None = None) -> None:
        self._listener = listener
        self._fn: Callable[[Channel], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        # Coroutines that `close` wakes.
        self._waiters: set[asyncio.Future[None]] = set()
        ends[id(self)] = self
        if fn is None:
            return
        if _in_loop():
            self._fn = fn
            self._loop = asyncio.get_running_loop()
            self._watch()
        else:
            self._serve_by_threads(fn)

    def _serve_by_threads(self, fn: Callable[[Channel], object]) -> None:
        self._fn = fn
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
            await self._knock()
        return Channel(end)

    async def _knock(self) -> None:
        """Waits until somebody waits to be accepted, or it is closed."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        # `close` of another thread finds it, or `fileno` finds out that it is closed.
        self._waiters.add(waiter)
        try:
            # A number of its own: a loop calls one reader for a number, and the listener's may be another file's after `close`.
            with select.epoll(1) as gate:
                gate.register(self._listener.fileno(), select.EPOLLIN)
                loop.add_reader(gate.fileno(), _wake, waiter)
                try:
                    await waiter
                finally:
                    if not loop.is_closed():
                        loop.remove_reader(gate.fileno())
        except OSError:
            # Without fds or memory to wait with, or closed in between: the next look tells.
            await asyncio.sleep(PAUSE)
        finally:
            self._waiters.discard(waiter)

    def fileno(self) -> int:
        """An fd that is readable while somebody waits to be accepted."""
        return self._listener.fileno()

    def close(self) -> None:
        """Ends it and takes its path away."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(ClosedError):
                self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for waiter in list(self._waiters):
            _tell(waiter)

    def _leave(self) -> None:
        """The interpreter ends; its event loop is no longer this thread's to touch."""
        self._listener.close()

    def _watch(self) -> None:
        assert self._loop is not None
        with contextlib.suppress(ClosedError):
            self._loop.add_reader(self._listener.fileno(), self._ready)

    def _ready(self) -> None:
        assert self._fn is not None
        assert self._loop is not None
        try:
            end = self._listener.try_accept()
        except OsError:
            # Who waits, waits until there are fds and memory.
            with contextlib.suppress(ClosedError):
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(PAUSE, self._watch)
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
            while True:
                try:
                    threading.Thread(target=self._fn, args=(channel,), name="offloop-channel", daemon=True).start()
                    break
                except (RuntimeError, MemoryError):
                    # Who connected, and who connects later, waits until there is room for a thread.
                    threading.Event().wait(PAUSE)

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
