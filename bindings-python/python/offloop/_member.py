"""This process as the worker of a Cluster: its servers listen on the cluster's sockets, its event loop shows that it turns, and when it is to
leave its servers finish what they do. `_cluster` is the other side."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copyreg
import errno
import inspect
import logging
import os
import resource
import select
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any

from . import _native
from ._channel import PAUSE, Channel, _fds, _in_loop, _named
from ._hooks import after_import
from ._native import InUseError, InvalidError, NotFoundError, OsError, PeerDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._broker import ClusterPool
    from ._channel import Message
    from ._native import TransferBuffer

# Of core's environment, and what other programs know: these that a worker starts are nobody's workers.
_VARIABLES = ("OFFLOOP_CLUSTER", "OFFLOOP_SUPERVISOR", "OFFLOOP_POOL")
_LISTEN = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
# Seconds that stand for "as long as it takes" where the fd itself has to stay non-blocking; poll has 24 days.
_LONG = 20.0 * 86400
# Seconds between two looks at the connections that are left.
_LOOK = 0.02
# Fds that are looked at where the process has none left to list them with.
_MOST_FDS = 65_536
# Most frames of a loop that stands still, the innermost ones.
_FRAMES = 64

_worker: Worker | None = None
# Of a spare that shares sockets: what its servers wait for, also in processes that it forks.
_spare: _native._Member | None = None
# Of its sockets of the cluster's `listen`.
_inodes: frozenset[int] = frozenset()
# Seconds between two chances of a thread that waits to run handlers of signals.
_SLICE = 0.5


def current_worker() -> Worker | None:
    """This process as the worker of a Cluster; None in any other.

    In a script that a Cluster runs it is there from the first line on. In a program that a Cluster runs as a command the first call makes it
    one: call it on the main thread, before the servers listen.
    """
    return _enter()


def _enter(*, unmodified: bool = False) -> Worker | None:
    global _worker
    if _worker is None and "OFFLOOP_CLUSTER" in os.environ and (native := _native._Member.attach()) is not None:
        _worker = Worker(native)
        # A program that knows nothing of a cluster may look for the sockets itself; LISTEN_PID keeps them from its children.
        for name in _VARIABLES if unmodified else (*_VARIABLES, *_LISTEN):
            os.environ.pop(name, None)
        _patch()
        if native.spare:
            _wait_for_place(native)
        _worker._begin()
    return _worker


def _after_fork_in_child() -> None:
    global _worker
    _worker = None


os.register_at_fork(after_in_child=_after_fork_in_child)


class Worker:
    """This process as the worker of a Cluster."""

    def __init__(self, native: _native._Member) -> None:
        self._native = native
        self.generation = native.generation
        """The (re)load that it belongs to, from 1 on."""
        self._sockets: list[socket.socket] | None = None
        # What shows that this process goes on; without one the watching thread does.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        # Those that serve: the program need not keep them.
        self._servers: set[_Server] = set()
        # The cluster's sockets that are used here, with where they were asked for.
        self._adopted: weakref.WeakKeyDictionary[socket.socket, str] = weakref.WeakKeyDictionary()
        # Ports and paths where it listens.
        self._ends: set[int | str] = set()
        self._callbacks: list[tuple[Callable[[], object], asyncio.AbstractEventLoop | None]] = []
        self._lock = threading.Lock()
        self._is_ready = False
        # Ends the program when all is finished, where it has a way of its own.
        self._leave: Callable[[], object] | None = None
        self._channel: Channel | None = None
        self._hears: Callable[[Message], object] | None = None
        self._pool: ClusterPool | None = None
        self._pool_path = os.environ.get("OFFLOOP_POOL")
        # Requests of the cluster that were handed over; `is_request` holds until they are answered.
        self._unanswered: list[Message] = []

    # ---- what scripts use ----

    @property
    def slot(self) -> int:
        """Its place, from 0 on. That of a spare is 1,024 or higher until it takes a worker's."""
        return self._native.slot

    @property
    def spare(self) -> bool:
        """It is a spare, and waits: its servers take no connections. `on_active` says when that ends."""
        return self._native.spare

    def on_active(self, fn: Callable[[], object]) -> None:
        """Calls `fn()` when this spare takes a worker's place; at once in a worker that is none, or not any more.

        It is called in the event loop that runs where `on_active` is called, where it may be a coroutine function, or without one on a thread of
        its own.
        """
        if not callable(fn):
            raise InvalidError(f"invalid: option has the wrong type (option=fn, value={fn!r:.80}, want=a callable)")
        loop = _running_loop()
        _when_active(self._native, lambda: _called(fn, loop))

    @property
    def sockets(self) -> list[socket.socket]:
        """The sockets of the cluster's `listen`, in its order; they listen already."""
        if self._sockets is None:
            if self._native.passed:
                self._sockets = [self._own(*self._native.seat(index)) for index in range(len(self._native.fds))]
            else:
                self._sockets = [self._own(fd) for fd in self._native.fds]
        return self._sockets

    def listen(self, address: str | int, queue: int | None = None) -> socket.socket:
        """A socket that listens at `address`, which all workers that ask for it share: a port, `"host:port"` or `"unix:/path"`.

        `queue` (default 4,096): connections that wait, where this worker is the first to ask. OsError with what the bind failed with.
        """
        return self._own(*self._asked(where := str(address), queue), where)

    def ready(self) -> None:
        """Says that it takes requests. It is said by itself when the first server listens; a second time does nothing."""
        if self._is_ready:
            return
        self._is_ready = True
        loop = _running_loop()
        if loop is None:
            self._native.ready()
        else:
            self._follow(loop)
            # A turn later: what the program does now is a part of its start.
            loop.call_soon(self._native.ready)

    def served(self, n: int = 1) -> None:
        """Counts `n` requests for the cluster's `max_requests`. Those of ASGI servers and of `http.server` are counted by themselves."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InvalidError(f"invalid: requests are counted by whole numbers from 0 on (n={n!r:.80})")
        self._native.served(n)

    @property
    def draining(self) -> bool:
        """It is to finish what it has."""
        return self._native.draining

    def on_drain(self, fn: Callable[[], object]) -> None:
        """Calls `fn()` when the worker is to finish what it has; it may be a coroutine function. The end waits for it, as long as the cluster's
        `drain_timeout` allows. It is called in the event loop that runs where `on_drain` is called, or without one on a thread of its own.
        """
        if not callable(fn):
            raise InvalidError(f"invalid: option has the wrong type (option=fn, value={fn!r:.80}, want=a callable)")
        with self._lock:
            self._callbacks.append((fn, _running_loop()))

    @property
    def channel(self) -> Channel:
        """To the process of the cluster: always the same one. It ends with PeerDiedError when that is gone."""
        with self._lock:
            if self._channel is None:
                self._channel = Channel(self._native.channel())
            return self._channel

    @property
    def pool(self) -> ClusterPool | None:
        """The pool that the process of the cluster has for all workers (`pool` of its options); None where it has none."""
        # Loaded by those that use it.
        from . import _broker

        if self._pool is None and self._pool_path is not None:
            self._pool = _broker.at(self._pool_path)
        return self._pool

    def send(self, message: Any, buffers: Iterable[TransferBuffer] = (), fds: Iterable[Any] = (), *, timeout: float | None = None) -> None:
        """Sends a message to the process of the cluster; TransferBuffers in it move, fds are duplicated.

        Waits for room, `timeout` seconds at most (default: for ever). In an event loop it does not wait: what there is no room for is kept here, up
        to 16 MiB; then it is Full.
        """
        if not _in_loop():
            self.channel.send(message, buffers, fds, timeout=timeout)
        elif not self.channel._end.post(message, _named(buffers), _fds(fds)):
            self.channel._desk.expect_room()

    def request(self, message: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False) -> Any:
        """Asks the process of the cluster, and waits for its reply, which is returned, or raised if it failed."""
        return self.channel.request(message, timeout, fds=fds, with_fds=with_fds)

    async def arequest(self, message: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False) -> Any:
        """As `request`, for a coroutine. Cancelled, a later reply is dropped."""
        return await self.channel.arequest(message, timeout, fds=fds, with_fds=with_fds)

    def on_message(self, fn: Callable[[Message], object]) -> None:
        """Calls `fn` with each Message of the process of the cluster, one after the other; a request is answered by its `reply` or `fail`, and
        by what `fn` raises.

        It is called in the event loop that runs where `on_message` is called, else in the one that this worker's servers run in, and on a
        thread of its own where there is none. In an event loop it may be a coroutine function, which is waited for. It keeps no program alive: a
        worker without a server waits on its main thread, and says `ready()`. InUseError the second time.
        """
        if not callable(fn):
            raise InvalidError(f"invalid: option has the wrong type (option=fn, value={fn!r:.80}, want=a callable)")
        channel = self.channel
        with self._lock:
            if self._hears is not None:
                raise InUseError(f"in use: messages of the cluster have a listener already (fn={self._hears!r:.80})")
            self._hears = fn
        threading.Thread(target=_receive, args=(self, channel, fn, _running_loop()), name="offloop-mail", daemon=True).start()

    def serve(self, app: Any, **config: Any) -> None:
        """Runs an ASGI app with uvicorn on the cluster's sockets, until the worker is to leave and its last connection has ended.

        `config`: options of `uvicorn.Config` but where to listen. While it drains each answer says `Connection: close`; connections that are
        idle stay until their next request. NotFoundError where uvicorn is not installed, InvalidError for a cluster without `listen`.
        """
        try:
            import uvicorn
        except ImportError:
            raise NotFoundError("not found: worker.serve runs apps with uvicorn, which is not installed: pip install uvicorn") from None
        for option in ("host", "port", "uds", "fd", "workers", "reload"):
            if config.get(option):
                raise InvalidError(f"invalid: where and how many is the cluster's to say (option={option}, value={config[option]!r:.80})")
        if not self.sockets:
            raise InvalidError("invalid: the cluster listens nowhere: give it `listen`")
        server = uvicorn.Server(uvicorn.Config(app, **config))
        server.run(sockets=self.sockets)
        if not server.started:
            # As uvicorn's own command does.
            sys.exit(3)

    def __repr__(self) -> str:
        return f"<Worker slot={self.slot} generation={self.generation}>"

    # ---- sockets ----

    def _asked(self, where: str, queue: int | None) -> tuple[int, str]:
        nth = sum(sock.fileno() >= 0 and other == where for sock, other in list(self._adopted.items()))
        return self._native.listen(where, nth, queue)

    def _own(self, fd: int, at: str = "", where: str = "") -> socket.socket:
        os.set_inheritable(fd, False)
        if self._native.passed:
            family, name = _parsed(at)
            sock: socket.socket = _Passed(family, socket.SOCK_STREAM, 0, fileno=fd)
            _names[sock] = name
        else:
            sock = _Adopted(fileno=fd)
        sock.settimeout(None)
        self._note(sock, where)
        return sock

    def _note(self, sock: socket.socket, where: str) -> None:
        self._adopted[sock] = where
        end = _end_of(sock)
        if end is not None:
            self._ends.add(end)

    def _adopt(self, sock: socket.socket, where: str) -> None:
        """Makes `sock` the cluster's socket at `where`."""
        if self._native.passed and type(sock) is not socket.socket:
            # It would accept from what does not listen.
            name = type(sock).__qualname__
            raise InvalidError(f"invalid: connections that are passed need a plain socket, not one of a class of its own (class={name})")
        try:
            fd, at = self._asked(where, None)
        except OSError as e:
            if e.errno is None:
                raise
            raise OSError(e.errno, os.strerror(e.errno)) from e
        timeout = sock.gettimeout()
        try:
            os.dup2(fd, sock.fileno(), inheritable=False)
        finally:
            os.close(fd)
        if self._native.passed:
            sock.__class__ = _Passed
            _names[sock] = _parsed(at)[1]
        elif type(sock) is socket.socket:
            sock.__class__ = _Adopted
        sock.settimeout(timeout)
        self._note(sock, where)

    # ---- life ----

    def _begin(self) -> None:
        # What the program registers is called before.
        atexit.register(self._at_exit)
        self._native.turns_here()
        # What nothing comes from: a pipe whose writing end stays open. Made here, as there may be no fd left at the drain.
        self._silence, self._silent = os.pipe()
        for target, name in ((self._watch, "offloop-worker"), (self._look, "offloop-stall")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def _at_exit(self) -> None:
        if self._native.draining:
            self._native.drained()

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on `loop` shows that this process goes on."""
        if self._loop is loop:
            return
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._native.turns_here()
        self._tick(loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        # Twice as often as is looked at.
        pause = self._native.beat_interval / 2
        self._native.beat(pause)
        loop.call_later(pause, self._tick, loop)

    def _beat(self, within: float | None = None) -> None:
        """Of a program without an event loop: shows that the interpreter runs threads, and no more."""
        loop = self._loop
        if loop is None or not loop.is_running():
            self._native.beat(within)

    def _look(self) -> None:
        """Tells where a loop stands that stands still."""
        while True:
            of = self._native.stalled()
            frames = sys._current_frames()
            try:
                lines = traceback.format_stack(frames.get(of) or frames.get(threading.main_thread().ident or 0), _FRAMES)
            except Exception as error:
                # Source files are read, by whatever loads them.
                lines = [repr(error)]
            # They would keep what their variables have.
            frames.clear()
            self._native.stack(lines)

    def _watch(self) -> None:
        pause = self._native.beat_interval / 2
        while not self._native.wait_drain(pause):
            self._beat(pause)
        self._drain()

    def _drain(self) -> None:
        loop = self._loop
        in_loop = loop is not None and loop.is_running()
        if not in_loop and _has_children():
            # A server with processes of its own (gunicorn, `uvicorn --workers`) lets them finish when it is told so. What it does not end in
            # time is ended by the cluster.
            os.kill(os.getpid(), signal.SIGTERM)
            return
        for server in list(self._servers):
            with contextlib.suppress(RuntimeError):
                server._loop.call_soon_threadsafe(server._stop_accepting)
        if not in_loop:
            for sock in list(self._adopted):
                self._mute(sock)
        beat = self._native.beat_interval / 2
        called: list[threading.Event] = []
        last = time.monotonic()
        quiet = 0
        # Twice, as a thread that is about to come back from `accept` has a connection that is not seen yet.
        while quiet < 2:
            with self._lock:
                added, self._callbacks = self._callbacks, []
            called += [_called(fn, of) for fn, of in added]
            begin = time.monotonic()
            # A server that was made meanwhile, too.
            stopped = all(server._stopped or server._loop.is_closed() for server in list(self._servers))
            self._unanswered = [message for message in self._unanswered if message.is_request]
            over = (
                stopped
                and all(done.is_set() for done in called)
                and not self._callbacks
                and not self._unanswered
                and self._connections() == 0
            )
            quiet = quiet + 1 if over else 0
            now = time.monotonic()
            # Looking at many connections takes no more than a tenth of the time.
            time.sleep(max(_LOOK, (now - begin) * 10))
            if now - last > beat:
                last = now
                self._beat()
        self._end()

    def _mute(self, sock: socket.socket) -> None:
        """Nothing comes to this fd any more; whoever waits for it goes on to wait."""
        if sock.fileno() < 0:
            return
        if isinstance(sock, _Passed):
            self._native.leave(sock.fileno())
        os.dup2(self._silence, sock.fileno(), inheritable=False)

    def _connections(self) -> int:
        """Open sockets that were accepted where this worker listens, whoever has them."""
        count = 0
        fds: Iterable[int]
        try:
            fds = [int(name) for name in os.listdir("/proc/self/fd")]
        except OSError:
            # No fd is left to look with.
            fds = range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_FDS))
        for fd in fds:
            with contextlib.suppress(OSError):
                if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                    continue
                # Not by a `socket`, which `setdefaulttimeout` would make non-blocking: it is somebody else's.
                if _native._accepted_at(fd) in self._ends:
                    count += 1
        return count

    def _end(self) -> None:
        """Everything is finished: the program ends."""
        loop = self._loop
        leave = self._leave
        if loop is not None and loop.is_running() and self._loop_thread == threading.main_thread().ident:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(leave if leave is not None else _exit_loop)
                return
        # Nothing that blocks in the main thread hears of the end; what is to be done at the end is done here.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)


def _has_children() -> bool:
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                if file.read().strip():
                    return True
    except OSError:
        # Not every kernel shows them.
        pass
    return False


def _exit_loop() -> None:
    raise SystemExit(0)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _called(fn: Callable[[], object], loop: asyncio.AbstractEventLoop | None) -> threading.Event:
    """Calls `fn` where it belongs; set when it is done."""
    done = threading.Event()

    def failed() -> None:
        logging.getLogger("concurrent.futures").exception("exception calling listener %r", fn)

    async def in_loop() -> None:
        try:
            result = fn()
            if inspect.isawaitable(result):
                await result
        except Exception:
            failed()
        finally:
            done.set()

    def in_thread() -> None:
        try:
            result = fn()
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Exception:
            failed()
        finally:
            done.set()

    if loop is not None and loop.is_running():
        tasks: list[asyncio.Task[None]] = []
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(in_loop())))
            return done
    threading.Thread(target=in_thread, name="offloop-drain", daemon=True).start()
    return done


# ---- messages ----


def _receive(worker: Worker, channel: Channel, fn: Callable[[Message], object], own: asyncio.AbstractEventLoop | None) -> None:
    """Takes messages, and lets each be heard before the next one: what nobody hears holds back who says it."""
    while True:
        try:
            message = channel.recv()
        except OsError:
            # Without fds or memory nothing can be received now, and nothing is lost.
            time.sleep(PAUSE)
            continue
        except Exception:
            if channel.closed:
                return
            # One message that has no form here.
            logging.getLogger("concurrent.futures").exception("message of the cluster is lost")
            continue
        if message.is_request:
            worker._unanswered.append(message)
        loop = own or worker._loop
        if loop is None or not loop.is_running() or not _heard_in(loop, fn, message):
            _heard(fn, message, None)


def _heard_in(loop: asyncio.AbstractEventLoop, fn: Callable[[Message], object], message: Message) -> bool:
    done = threading.Event()
    tasks: list[asyncio.Task[None]] = []

    async def wait(result: Any) -> None:
        try:
            await result
        except Exception as error:
            _failed(fn, message, error)
        finally:
            done.set()

    def call() -> None:
        result = _heard(fn, message, loop)
        if inspect.isawaitable(result):
            tasks.append(loop.create_task(wait(result)))
        else:
            done.set()

    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    # A loop that has ended meanwhile hears nothing more.
    while not done.wait(1.0) and not loop.is_closed():
        pass
    return True


def _heard(fn: Callable[[Message], object], message: Message, loop: asyncio.AbstractEventLoop | None) -> object:
    try:
        result = fn(message)
        if loop is None and inspect.iscoroutine(result):
            return asyncio.run(result)
    except Exception as error:
        _failed(fn, message, error)
        return None
    return result


def _failed(fn: Callable[[Message], object], message: Message, error: Exception) -> None:
    if message.is_request:
        # Whoever asked has it.
        with contextlib.suppress(Exception):
            message.fail(error)
            return
    logging.getLogger("concurrent.futures").error("exception calling listener %r", fn, exc_info=error)


# ---- a spare ----


def _waits() -> bool:
    """Servers of this process are to take no connections yet."""
    return _spare is not None and _spare.spare


def _when_active(native: _native._Member, fn: Callable[[], object]) -> None:
    if not native.spare:
        fn()
        return

    def wait() -> None:
        while not native.wait_active(_LONG):
            pass
        if "OFFLOOP_SLOT" in os.environ:
            os.environ["OFFLOOP_SLOT"] = str(native.slot)
        fn()

    threading.Thread(target=wait, name="offloop-spare", daemon=True).start()


def _wait_for_place(native: _native._Member) -> None:
    # For its variable.
    _when_active(native, lambda: None)
    if native.passed:
        # Nothing is passed to a spare.
        return
    global _spare, _inodes
    _spare, _inodes = native, frozenset(os.fstat(fd).st_ino for fd in native.fds)
    accept = socket.socket.accept

    def held(self: socket.socket) -> tuple[socket.socket, Any]:
        if _waits() and (isinstance(self, _Adopted) or os.fstat(self.fileno()).st_ino in _inodes):
            timeout = self.gettimeout()
            if timeout == 0.0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            until = None if timeout is None else time.monotonic() + timeout
            while not native.wait_active(_SLICE if until is None else max(0.0, min(_SLICE, until - time.monotonic()))):
                if until is not None and time.monotonic() >= until:
                    raise TimeoutError("timed out")
        return accept(self)

    held.__name__ = "accept"
    socket.socket.accept = held  # type: ignore[method-assign]


# ---- sockets ----


# Bound to a port of the system's choice, which is the same one for all workers if they come to listen.
_any_port: weakref.WeakKeyDictionary[socket.socket, str] = weakref.WeakKeyDictionary()


class _Adopted(socket.socket):
    """A socket that listens, and that other processes share: whether its fd blocks is not this one's to say."""

    __slots__ = ()

    def bind(self, address: Any, /) -> None:
        # It is where it is.
        pass

    def listen(self, backlog: int = 0, /) -> None:
        if _worker is not None:
            _worker.ready()

    def settimeout(self, value: float | None, /) -> None:
        super().settimeout(_LONG if value is None else value)

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0.0)

    def gettimeout(self) -> float | None:
        timeout = super().gettimeout()
        return None if timeout == _LONG else timeout

    def getblocking(self) -> bool:
        return self.gettimeout() != 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        while True:
            try:
                return super().accept()
            except TimeoutError:
                if self.gettimeout() is not None:
                    raise
            except OSError:
                # There is nothing any more to accept from, and the program ends without this thread.
                if _worker is None or not _worker.draining or self.gettimeout() == 0.0:
                    raise
                threading.Event().wait()


# Where those listen whose connections are passed.
_names: weakref.WeakKeyDictionary[socket.socket, Any] = weakref.WeakKeyDictionary()


def _parsed(at: str) -> tuple[socket.AddressFamily, Any]:
    """Family and name of a socket, of what the cluster says of it."""
    if at.startswith("unix:"):
        return socket.AF_UNIX, at[5:]
    host, port = at.rsplit(":", 1)
    if not host or ":" in host:
        return socket.AF_INET6, (host.strip("[]") or "::", int(port), 0, 0)
    return socket.AF_INET, (host, int(port))


class _Passed(_Adopted):
    """Stands for a socket that listens in the cluster's process, which passes its connections: they come over this fd, one at a time."""

    __slots__ = ()

    def getsockname(self) -> Any:
        return _names[self]

    def accept(self) -> tuple[socket.socket, Any]:
        timeout = self.gettimeout()
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            taken = self._take()
            if taken is not None:
                return taken
            if timeout == 0.0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            left = _LONG if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            poll = select.poll()
            poll.register(self.fileno(), select.POLLIN)
            poll.poll(left * 1000)

    def _take(self) -> tuple[socket.socket, Any] | None:
        assert _worker is not None
        try:
            fd = _worker._native.take(self.fileno())
        except OSError as error:
            is_over = _worker.draining or isinstance(error, PeerDiedError)
            if is_over and self.gettimeout() != 0.0:
                # There is nothing any more to take from, and the program ends without this thread.
                threading.Event().wait()
            if isinstance(error, PeerDiedError):
                return None
            raise
        if fd is None:
            return None
        connection = _Connection(fileno=fd)
        try:
            address = connection.getpeername()
        except OSError:
            # Reset before anybody has seen it.
            connection.close()
            return None
        connection.settimeout(socket.getdefaulttimeout())
        return connection, address

    def close(self) -> None:
        if self.fileno() >= 0 and _worker is not None:
            _worker._native.leave(self.fileno())
        super().close()


def _reduced(sock: Any) -> Any:
    """For a server that hands its socket to processes of its own by multiprocessing (hypercorn, `uvicorn --workers`): there it is a plain one."""
    if isinstance(sock, _Passed):
        raise InvalidError(
            "invalid: connections are passed to this process, and it cannot pass them on: a server with processes of its own needs balance=shared"
        )
    from multiprocessing import reduction

    return _rebuilt, (reduction.DupFd(sock.fileno()), sock.family, sock.type, sock.proto)


def _rebuilt(fd: Any, *kind: int) -> socket.socket:
    family, type, proto = kind
    return socket.socket(family, type, proto, fd.detach())


for _kind in (_Adopted, _Passed):
    copyreg.pickle(_kind, _reduced)


class _Connection(socket.socket):
    """A connection that was passed. The cluster counts those that are open; one that is detached counts as ended."""

    __slots__ = ("_is_counted",)

    def _ended(self) -> None:
        if not getattr(self, "_is_counted", False):
            self._is_counted = True
            if _worker is not None:
                _worker._native.closed()

    def _real_close(self, *args: Any) -> None:
        self._ended()
        super()._real_close(*args)  # type: ignore[misc]

    def detach(self) -> int:
        self._ended()
        return super().detach()

    def __del__(self) -> None:
        self._ended()


def _end_of(sock: socket.socket) -> int | str | None:
    """What sockets that are accepted from `sock` have in common with it."""
    # By what the name is: a socket of a number that was given may be taken for one of another family (`uvicorn --fd`).
    name = sock.getsockname()
    if isinstance(name, tuple):
        return int(name[1]) if sock.family != socket.AF_VSOCK else None
    return os.fsdecode(name) if name else None


def _address_of(sock: socket.socket, address: Any) -> str | None:
    """Where a stream socket is to be bound, as a cluster writes it; None for what each worker has for itself."""
    if not sock.type & socket.SOCK_STREAM:
        return None
    if sock.family == socket.AF_UNIX:
        path = os.fsdecode(address)
        return None if not path or path.startswith("\0") else f"unix:{os.path.abspath(path)}"
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple) or len(address) < 2:
        return None
    host, port = address[:2]
    if sock.family == socket.AF_INET6:
        if len(address) > 3 and address[3]:
            return None
        ip = socket.getaddrinfo(host or "::", port, socket.AF_INET6, socket.SOCK_STREAM)[0][4][0]
        whole = ip == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return f":{port}" if whole else f"[{ip}]:{port}"
    return f"{socket.gethostbyname(host or '0.0.0.0')}:{port}"


# ---- event loops ----


class _Server(asyncio.AbstractServer):
    """A server of an event loop, which can be asked to accept no more and to leave everything else as it is: `close` of the loops' own ends
    `serve_forever`, and with it programs whose connections are not finished."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._stopped = False
        # Of a spare: it is to serve as soon as that takes a place.
        self._is_held = False
        self._beginning: asyncio.Task[None] | None = None
        self._forever: asyncio.Future[None] | None = None

    def _stop_accepting(self) -> None:
        if not isinstance(self._loop, asyncio.SelectorEventLoop):
            self._shut()
            return
        # asyncio makes the transport of a connection a turn after it has accepted it, and cannot for a server that is closed by then: the
        # connection would be nobody's.
        for sock in self._inner.sockets:
            self._loop.remove_reader(sock.fileno())
        self._loop.call_soon(self._loop.call_soon, self._shut)

    def _shut(self) -> None:
        self._stopped = True
        self._inner.close()

    def _show_ready(self) -> None:
        if _worker is None or not self.is_serving():
            return
        for sock in self._inner.sockets:
            end = _end_of(sock)
            if end is not None:
                _worker._ends.add(end)
        _worker._follow(self._loop)
        _worker.ready()
        if _worker.draining:
            self._stop_accepting()

    def close(self) -> None:
        self._stopped = True
        if _worker is not None:
            _worker._servers.discard(self)
        self._inner.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()

    def is_serving(self) -> bool:
        return (self._is_held and not self._stopped) or bool(self._inner.is_serving())

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    async def start_serving(self) -> None:
        if self._is_held:
            return
        if _spare is not None and _waits():
            self._is_held = True
            _when_active(_spare, self._when_active)
        else:
            await self._inner.start_serving()
        self._show_ready()

    def _when_active(self) -> None:
        # A loop that is closed serves nobody.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._is_held = False
        if not self._stopped:
            self._beginning = self._loop.create_task(self._inner.start_serving())

    async def serve_forever(self) -> None:
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if not self._stopped:
            await self.start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            try:
                self.close()
                await self.wait_closed()
            finally:
                raise
        finally:
            self._forever = None

    async def wait_closed(self) -> None:
        await self._inner.wait_closed()

    def close_clients(self) -> None:
        self._inner.close_clients()

    def abort_clients(self) -> None:
        self._inner.abort_clients()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return repr(self._inner)


class _Pump:
    """A server on a loop whose own accept by the fd (uvloop): each connection that is passed is given to the loop when it is there."""

    def __init__(self, loop: Any, sockets: list[socket.socket], factory: Any, ssl: dict[str, Any]) -> None:
        self._loop = loop
        self.sockets = sockets
        self._factory = factory
        self._ssl = ssl
        self._is_serving = False
        # Connections that are becoming transports.
        self._tasks: set[asyncio.Task[None]] = set()

    def _accept(self, sock: socket.socket) -> None:
        try:
            connection, _ = sock.accept()
        except OSError:
            # None, or no room for one: another worker has it.
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._connected(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection, **self._ssl)
        except Exception as error:
            connection.close()
            if not isinstance(error, OSError):
                self._loop.call_exception_handler({"message": "error on a connection that was passed", "exception": error})

    def is_serving(self) -> bool:
        return self._is_serving

    def get_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._loop
        return loop

    async def start_serving(self) -> None:
        if self._is_serving:
            return
        self._is_serving = True
        for sock in self.sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def close(self) -> None:
        self._is_serving = False
        sockets, self.sockets = self.sockets, []
        for sock in sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()

    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _pumped(
    loop: Any,
    protocol_factory: Any,
    host: Any = None,
    port: int | None = None,
    *,
    sock: socket.socket | None = None,
    family: int = socket.AF_UNSPEC,
    flags: int = socket.AI_PASSIVE,
    ssl: Any = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    **_: Any,
) -> _Pump:
    """As `create_server` of a loop."""
    if sock is not None and not isinstance(sock, _Passed):
        raise InvalidError("invalid: this loop takes connections that are passed of sockets of the cluster only (option=sock)")
    sockets: list[socket.socket] = [] if sock is None else [sock]
    hosts = [] if sock is not None else [host or None] if host is None or isinstance(host, str) else list(host)
    try:
        for name in hosts:
            for af, kind, proto, _name, address in await loop.getaddrinfo(
                name, port or 0, family=family, type=socket.SOCK_STREAM, flags=flags
            ):
                listening = socket.socket(af, kind, proto)
                sockets.append(listening)
                if af == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
                listening.setblocking(False)
                listening.bind(address)
                # A port of the system's choice is the cluster's now.
                listening.listen()
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    for listening in sockets:
        listening.setblocking(False)
    times = {"ssl_handshake_timeout": ssl_handshake_timeout, "ssl_shutdown_timeout": ssl_shutdown_timeout}
    server = _Pump(loop, sockets, protocol_factory, {} if ssl is None else {"ssl": ssl, **times})
    if start_serving:
        await server.start_serving()
    return server


def _patch_loop(cls: Any) -> None:
    create_server, create_unix_server = cls.create_server, cls.create_unix_server

    def served(loop: Any, inner: Any) -> Any:
        # uvloop makes one of the two by the other.
        if isinstance(inner, _Server) or (_worker is None and not _waits()):
            return inner
        server = _Server(inner, loop)
        if _worker is not None:
            _worker._servers.add(server)
        server._show_ready()
        return server

    async def made(loop: Any, make: Any, *args: Any, **kwargs: Any) -> Any:
        if not _waits():
            return served(loop, await make(loop, *args, **kwargs))
        server = served(loop, await make(loop, *args, **{**kwargs, "start_serving": False}))
        if kwargs.get("start_serving", True):
            await server.start_serving()
        return server

    # asyncio accepts by the socket's own `accept`; other loops by its fd.
    by_fd = not issubclass(cls, asyncio.SelectorEventLoop)

    async def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        if by_fd and _worker is not None and _worker._native.passed:
            return served(self, await _pumped(self, *args, **kwargs))
        return await made(self, create_server, *args, **kwargs)

    async def create_unix(self: Any, protocol_factory: Any, path: Any = None, **kwargs: Any) -> Any:
        # The loops remove the socket that is there, which is the one of all workers.
        if _worker is not None and path is not None and kwargs.get("sock") is None:
            text = os.fsdecode(path)
            if text and not text.startswith("\0"):
                path, kwargs["sock"] = None, _worker.listen(f"unix:{os.path.abspath(text)}", kwargs.get("backlog"))
        if by_fd and _worker is not None and _worker._native.passed and isinstance(kwargs.get("sock"), _Passed):
            return served(self, await _pumped(self, protocol_factory, **kwargs))
        return await made(self, create_unix_server, protocol_factory, path, **kwargs)

    create.__name__, create_unix.__name__ = "create_server", "create_unix_server"
    cls.create_server, cls.create_unix_server = create, create_unix


def _patch() -> None:
    """Servers of this process listen on the cluster's sockets."""
    bind = socket.socket.bind

    def adopt(self: socket.socket, address: Any, /) -> None:
        where = None if _worker is None else _address_of(self, address)
        if _worker is None or where is None:
            bind(self, address)
        elif where.endswith(":0"):
            # Not every such socket is to listen.
            bind(self, address)
            _any_port[self] = where
        else:
            _worker._adopt(self, where)

    listen = socket.socket.listen

    def adopt_any(self: socket.socket, *args: int) -> None:
        where = _any_port.pop(self, None)
        if _worker is None or where is None:
            listen(self, *args)
        else:
            _worker._adopt(self, where)
            _worker.ready()

    getsockopt = socket.socket.getsockopt

    def asked(self: socket.socket, level: int, option: int, *args: int) -> Any:
        value = getsockopt(self, level, option, *args)
        if _worker is not None and (level, option) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and value:
            # Who finds that it listens already does not say so any more (gunicorn).
            _worker.ready()
        return value

    adopt.__name__, adopt_any.__name__, asked.__name__ = "bind", "listen", "getsockopt"
    socket.socket.getsockopt = asked  # type: ignore[assignment,method-assign]
    socket.socket.listen = adopt_any  # type: ignore[assignment,method-assign]
    socket.socket.bind = adopt  # type: ignore[assignment,method-assign]
    _patch_loop(asyncio.SelectorEventLoop)
    after_import("uvloop", lambda module: _patch_loop(module.Loop))
    after_import("uvicorn.server", _patch_uvicorn)
    after_import("http.server", _patch_http_server)


# ---- HTTP ----


def _patch_uvicorn(module: types.ModuleType) -> None:
    """Apps answer with `Connection: close` while the worker drains, and the server ends when the last connection has."""
    config: Any = sys.modules["uvicorn.config"]
    load, main_loop = config.Config.load, module.Server.main_loop

    def loaded(self: Any) -> None:
        load(self)
        self.loaded_app = _closing(self.loaded_app)

    async def running(self: Any) -> None:
        if _worker is not None:
            _worker._leave = lambda: setattr(self, "should_exit", True)
        await main_loop(self)

    config.Config.load = loaded
    module.Server.main_loop = running


def _closing(app: Any) -> Any:
    async def closing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        if _worker is not None:
            _worker.served()

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start" and _worker is not None and _worker.draining:
                headers = [(name, value) for name, value in message.get("headers", ()) if bytes(name).lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, sent)

    return closing


def _patch_http_server(module: types.ModuleType) -> None:
    handler: Any = module.BaseHTTPRequestHandler
    end_headers, parse_request = handler.end_headers, handler.parse_request

    def counting(self: Any) -> Any:
        if _worker is not None:
            _worker.served()
        return parse_request(self)

    def closing(self: Any) -> None:
        if _worker is not None and _worker.draining and not self.close_connection:
            # It sets `close_connection`, too.
            self.send_header("Connection", "close")
        end_headers(self)

    closing.__name__, counting.__name__ = "end_headers", "parse_request"
    handler.end_headers, handler.parse_request = closing, counting


# ---- a script ----


def run(argv: Iterable[str] | None = None) -> None:
    """Runs a script as `python script.py` does, in a worker: what a Cluster starts."""
    # What the command put there to find this package.
    sys.path.pop(0)
    args = sys.argv[1:] if argv is None else list(argv)
    script = args[0]
    worker = _enter()
    if worker is None:
        sys.stderr.write("offloop: a Cluster starts this program\n")
        sys.exit(2)
    sys.argv = list(args)
    if not sys.flags.safe_path:
        sys.path[0:1] = [os.path.dirname(script)]
    _report(worker)
    main = types.ModuleType("__main__")
    main.__dict__.update({"__file__": script, "__builtins__": __builtins__, "__cached__": None})
    sys.modules["__main__"] = main
    try:
        with open(script, "rb") as file:
            code = compile(file.read(), script, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except SystemExit as e:
        if isinstance(e.code, str):
            worker._native.fail(e.code)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        # Without this function's own frame.
        if e.__traceback__ is not None:
            e.__traceback__ = e.__traceback__.tb_next
        sys.excepthook(type(e), e, e.__traceback__)
        sys.exit(1)


def enter_unmodified() -> None:
    """Makes a program a worker that does not ask for it, before its first line: what `offloop run` does."""
    worker = _enter(unmodified=True)
    if worker is not None:
        _report(worker)


def _report(worker: Worker) -> None:
    """What nobody catches is told to the cluster, too."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, tb: types.TracebackType | None) -> None:
        worker._native.fail("".join(traceback.format_exception(kind, error, tb)).strip())
        shown(kind, error, tb)

    sys.excepthook = hook
