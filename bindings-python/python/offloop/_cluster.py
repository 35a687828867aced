"""Cluster: N copies of a server on the same sockets. The core keeps the processes, binds, reloads and drains; `_member` is the worker's side."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _broker, _native, _threads
from ._channel import PAUSE, Channel, Message, _fds, _named
from ._native import ClosedError, ForkedError, Full, InvalidError, NotFoundError, OffloopError, OsError, PeerDiedError, TimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from ._native import TransferBuffer
    from ._pool import ThreadPool
    from ._process import ProcessPool

    Path = str | os.PathLike[str]
    Id = tuple[int, int, int]

# What is told, of a worker and of the cluster; `Cluster.on` says with what.
_OF_WORKERS = ("fork", "online", "listening", "spare", "ready", "unresponsive", "responsive", "expired", "draining", "exit", "start_error")
EVENTS = (
    *_OF_WORKERS,
    "message",
    "log",
    "back_off",
    "reloading",
    "rollback",
    "reload",
    "reload_failed",
    "degraded",
    "recovered",
    "warning",
    "stopped",
)
# What the kernel calls no limit.
_UNLIMITED = 2**64 - 1
# Messages of one worker before the next one's, and that event loops were given and have not taken.
_TURN = 64
_AHEAD = 256
# Seconds that the end of a channel is waited for whose worker has ended: it is there, unless a process that the worker has left behind has its socket.
_END = 0.1
# Messages that its ring and inbox hold, at most.
_REST = 4096
_STATES = {
    "spare": "spare",
    "activated": "ready",
    "ready": "ready",
    "responsive": "ready",
    "unresponsive": "unresponsive",
    "draining": "draining",
    "exit": "exited",
}


class ClusterWorker(NamedTuple):
    """A worker's process as its cluster sees it, at one moment."""

    slot: int
    """Its place, from 0 on, which its successor has too. That of a spare is 1,024 or higher until it takes a worker's."""
    generation: int
    """The (re)load that it belongs to, from 1 on."""
    pid: int
    state: str
    """`starting`, `ready`, `spare`, `unresponsive`, `draining` or `exited`."""
    incarnation: int
    """Rises with each process of the slot."""
    served: int = 0
    """Requests that it has answered since its start: those that `max_requests` counts. Of `Cluster.workers`; else 0."""
    loop_delay: float | None = None
    """Seconds by which its event loop is late: by how much a beat is overdue, or the greatest lateness of one before, of which half is left
    after each second. Of `Cluster.workers`, from its first beat on; else None."""


class WorkerExit(NamedTuple):
    """How a worker ended."""

    exit_code: int | None
    signal: int | None
    cause: str
    """Why: `crash`, `boot`, `bootTimeout`, `blocked`, `frozen`, `corrupt`, `killed`, `scale`, `retire` (a reload) or `stop`."""
    forced: bool
    """It was signalled, because it did not finish in time."""
    oom: bool
    """The kernel ended it for want of memory."""
    text: str | None
    """Its own words: the traceback of what it did not catch."""
    uptime: float | None
    """Seconds since it was ready; None if it never was."""


class ReloadReport(NamedTuple):
    """What a reload did."""

    generation: int
    replaced: int
    """Workers."""
    forced: int
    """Old workers that did not finish within `drain_timeout`, and were signalled."""
    took: float
    """Seconds, to the end of the last old worker."""


class ClusterStats(NamedTuple):
    """Counts since the start."""

    generation: int
    wanted: int
    live: int
    ready: int
    spares: int
    """Those that wait."""
    degraded: bool
    """Too many workers fail: only one is tried from time to time."""
    spawned: int
    crashed: int
    oom: int
    forced: int
    expired: int
    """Workers that were to be replaced for their age, memory or requests."""
    unresponsive: int
    reloads: int
    reloads_failed: int
    served: int
    """Requests that workers have answered, those that have ended too."""


class _Command(NamedTuple):
    exec: Path | Sequence[Path]
    args: Sequence[str]
    env: Mapping[str, str | None] | None
    cwd: Path | None

    def check(self) -> None:
        _texts("args", self.args)
        _check_environment(self.env)
        if self.cwd is not None and (not isinstance(self.cwd, str | os.PathLike) or not os.fspath(self.cwd)):
            raise _wrong_type("cwd", self.cwd, "a path")
        if isinstance(self.exec, str | os.PathLike):
            if not os.path.isfile(script := self._script()):
                raise NotFoundError(f"not found: script is not there (exec={script})")
            return
        if not _is_list(self.exec) or not self.exec or not all(isinstance(part, str | os.PathLike) for part in self.exec):
            raise _wrong_type("exec", self.exec, "a script's path or a list of texts")
        if self.args:
            raise InvalidError("invalid: a command has its arguments in exec (option=args)")

    def _script(self) -> str:
        assert isinstance(self.exec, str | os.PathLike)
        return os.path.abspath(os.path.join(self.cwd or "", self.exec))

    def native(self) -> tuple[list[str], list[tuple[str, str | None]], str | None]:
        env = [] if self.env is None else list(self.env.items())
        cwd = None if self.cwd is None else os.fspath(self.cwd)
        if isinstance(self.exec, str | os.PathLike):
            return [*_interpreter(), self._script(), *self.args], env, cwd
        return [os.fspath(part) for part in self.exec], env, cwd


# The package may have been found by a change of `sys.path` that a new interpreter does not know.
_BOOT = "import sys; sys.path.insert(0, {path!r}); from offloop._member import run; run()"


def _interpreter() -> list[str]:
    if not sys.executable:
        raise InvalidError("invalid: this program has no Python interpreter to start workers with: give a command (option=exec)")
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [sys.executable, *flags, "-c", _BOOT.format(path=root)]


def _wrong_type(option: str, value: object, want: str) -> InvalidError:
    return InvalidError(f"invalid: option has the wrong type (option={option}, value={value!r:.80}, want={want})")


def _is_list(value: object) -> bool:
    return isinstance(value, collections.abc.Sequence) and not isinstance(value, str | bytes | bytearray)


def _texts(option: str, value: Any) -> None:
    if not _is_list(value) or not all(isinstance(text, str) for text in value):
        raise _wrong_type(option, value, "a list of texts")


def _check_environment(env: Any) -> None:
    if env is None:
        return
    if not isinstance(env, collections.abc.Mapping):
        raise _wrong_type("env", env, "a mapping")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str | None):
            raise _wrong_type("env", (name, value), "texts by names, None to remove one")


_LISTEN = "a list of ports, addresses, (host, port) or sockets"


def _address(listen: Any, option: str = "listen", want: str = _LISTEN) -> str:
    """Where to listen, as text."""
    if isinstance(listen, str) or (isinstance(listen, int) and not isinstance(listen, bool)):
        return str(listen)
    if isinstance(listen, tuple) and len(listen) == 2 and isinstance(listen[0], str) and isinstance(listen[1], int):
        host, port = listen
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(listen, socket.socket):
        if listen.fileno() < 0:
            raise InvalidError(f"invalid: socket is closed (option={option})")
        return f"fd:{listen.fileno()}"
    raise _wrong_type(option, listen, want)


def _owner(user: Any, group: Any) -> dict[str, int]:
    """Numbers of a user and a group, which may be names."""
    owner = {}
    if isinstance(user, str):
        import pwd

        try:
            found = pwd.getpwnam(user)
        except KeyError:
            raise NotFoundError(f"not found: the system knows no such user (user={user!r:.80})") from None
        owner = {"uid": found.pw_uid, "gid": found.pw_gid}
    elif user is not None:
        owner = {"uid": user}
    if isinstance(group, str):
        import grp

        try:
            owner["gid"] = grp.getgrnam(group).gr_gid
        except KeyError:
            raise NotFoundError(f"not found: the system knows no such group (group={group!r:.80})") from None
    elif group is not None:
        owner["gid"] = group
    return owner


def _limits(limits: Any) -> list[tuple[str, int]]:
    if limits is None:
        return []
    if not isinstance(limits, collections.abc.Mapping):
        raise _wrong_type("limits", limits, "numbers by names")
    for name, value in limits.items():
        whole = value == math.inf or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _UNLIMITED)
        if not isinstance(name, str) or not whole:
            raise _wrong_type("limits", {name: value}, "whole numbers from 0, or inf, by names")
    return [(name, _UNLIMITED if value == math.inf else value) for name, value in limits.items()]


def _heartbeat(heartbeat: Any) -> dict[str, Any]:
    if heartbeat is None:
        return {}
    if heartbeat is False:
        return {"hang": 0}
    if not _is_list(heartbeat) or len(heartbeat) != 2:
        raise _wrong_type("heartbeat", heartbeat, "(interval, timeout) or False")
    return {"beat": heartbeat[0], "hang": heartbeat[1]}


class _HostEnd(Channel):
    """What is answered on it waits for nobody: a worker that does not receive must not hold up the cluster's thread."""

    __slots__ = ("line",)

    line: _Line | None

    def _answer(self, number: int, failed: bool, value: Any, fds: Iterable[Any], timeout: float | None) -> None:
        if not self._end.post_reply(number, failed, value, _fds(fds)) and self.line is not None:
            self.line.watch()


class _Line:
    """The way to one worker's process."""

    __slots__ = ("ahead", "channel", "cluster", "id", "lock", "stalled", "worker")

    def __init__(self, cluster: _native._Cluster, worker: ClusterWorker) -> None:
        self.cluster = cluster
        self.worker = worker
        self.id: Id = (worker.slot, worker.generation, worker.incarnation)
        self.channel = _HostEnd(cluster.channel(self.id))
        self.channel.line = self
        self.lock = threading.Lock()
        # Messages that event loops have not taken yet, and whether it is because of those that no more are received.
        self.ahead = 0
        self.stalled = False

    def watch(self) -> None:
        """The cluster's thread looks at it once something comes, or there is room for what waits."""
        try:
            self.cluster.watch(self.id, self.channel._end)
        except OsError:
            # Without fds or memory nothing can be received now, and nothing is lost.
            threading.Timer(PAUSE, self.watch).start()
        except OffloopError:
            # It has ended.
            pass


class Cluster:
    """Runs `workers` copies of a server on the same sockets, keeps them alive, and reloads them without losing a request.

    `exec` is a Python script, which needs to know nothing of this: what it listens at is the cluster's socket, it is ready when it
    listens, and at its end its servers finish what they do. `current_worker()` is for those that want to say more. As a list it is a
    command of any program, in which `{fd}` is the number of the first listening socket (and `LISTEN_FDS` says so, too); such a worker
    has to say itself that it is ready.

    `args` of the script; `env`: variables that are added to this process's, or removed by None; `cwd`: default this process's.
    `workers`: 1 to 1,024, default `"auto"`, the usable cores. `spares` (default 0): workers beside those that load, listen and wait without a
    connection: when a worker has ended, a spare takes its place at once, and another is started; with the workers no more than 1,024, and not
    with `"reuseport"`. `listen`: sockets that are bound before the first worker starts: ports,
    `"host:port"`, `"unix:/path"`, `(host, port)`; port 0 is one that the system chooses; a `socket.socket` that listens, or `"fd:3"`, of which `start`
    makes a copy: it is made non-blocking, and stays its owner's, to be closed by them after `start`; one that is none is InvalidError. `balance`: how connections come to workers:
    `"shared"` (default), whoever accepts first; `"round-robin"`, `"least-connections"`, `"ip-hash"`, the cluster accepts and chooses;
    `"reuseport"`, the kernel chooses, and a reload may lose connections. `ready_timeout` (default 30 s): longest start of a worker. `min_ready` (default 1 s): how long a new worker has to be ready before the old one is asked to finish.
    `drain_timeout` (default 30 s): what that one has to finish. `kill_grace` (default 2 s): from SIGTERM to SIGKILL after that.
    `heartbeat`: `(interval, timeout)`, default `(1.0, 10.0)` s: a worker whose event loop does not turn for `timeout` is replaced; at
    least four intervals. False: none is.
    `max_age` (seconds, from 1), `max_memory` (bytes, PSS, at three looks in a row, one a second) and `max_requests` (those of ASGI and
    `http.server`, and what a worker says by `served`): a worker that reaches one of them is replaced, its successor first; age and
    requests ±10 %. Default: none is.
    `metrics`: where a thread of this process answers HTTP requests, as an item of `listen`: `/metrics` for Prometheus, `/status` as JSON, `/` a page
    that shows them as they change. Whoever can connect reads them: `"127.0.0.1:9464"`. Default: nowhere.
    `log`: where what workers print goes, as whole lines: `"prefixed"` (to this process's outputs, each line as `[slot:pid] line`), `"raw"`, `"none"`, or the path of a file,
    with the prefix; one that would grow beyond `log_size` (bytes, default 10 MiB) becomes `FILE.1`, of which `log_keep` (default 5, up to 1,000) are kept. Default: to this
    process's outputs, unread; where somebody listens for `log` when the cluster starts, lines go to that listener alone.

    `nice` is added to the niceness of the workers; `pin_cpus`: each runs on one core, by its slot. `user`, `group` (names or numbers; a user's name brings its group): whose they are, without
    supplementary groups. `limits`: soft and hard ones by the names of `prlimit` (`{"nofile": 1024, "core": 0}`; `math.inf`: none). `oom_score`, -1000 to 1000: how much rather than others they are
    killed when memory runs out. What takes privileges that this process does not have is StartFailedError of `start`.

    `pool`: a ProcessPool or ThreadPool that all workers submit to (`current_worker().pool`); it stays this process's own, and the cluster does not shut it down. `tasks`: the functions that workers may
    name, as a list or by name; without it a name is the pool's own: of a native op, or of a function of a program in another language.

    What cannot be is InvalidError with the option, its value and its limits; a script that is not there is NotFoundError. In a forked child
    everything raises ForkedError.
    """

    def __init__(
        self,
        exec: Path | Sequence[Path],
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        workers: int | str | None = None,
        spares: int = 0,
        listen: Iterable[int | str | tuple[str, int] | socket.socket] = (),
        balance: str = "shared",
        ready_timeout: float = 30.0,
        min_ready: float = 1.0,
        drain_timeout: float = 30.0,
        kill_grace: float = 2.0,
        heartbeat: tuple[float, float] | bool | None = None,
        max_age: float | None = None,
        max_memory: int | None = None,
        max_requests: int | None = None,
        nice: int = 0,
        pin_cpus: bool = False,
        user: int | str | None = None,
        group: int | str | None = None,
        limits: Mapping[str, float] | None = None,
        oom_score: int | None = None,
        pool: ThreadPool | ProcessPool | None = None,
        tasks: Mapping[str, Callable[..., Any]] | Iterable[Callable[..., Any]] | None = None,
        metrics: int | str | tuple[str, int] | socket.socket | None = None,
        log: Path | None = None,
        log_size: int | None = None,
        log_keep: int | None = None,
    ) -> None:
        # By generation: what runs, and what is to.
        self._commands = {1: _Command(exec, args, env, cwd)}
        self._commands[1].check()
        # A signal's handler may reload, too.
        self._reloading = threading.RLock()
        if isinstance(workers, str) and workers != "auto":
            raise _wrong_type("workers", workers, "a number or 'auto'")
        if isinstance(listen, str | bytes) or not isinstance(listen, collections.abc.Iterable):
            raise _wrong_type("listen", listen, _LISTEN)
        given = {"max_age": max_age, "max_memory": max_memory, "max_requests": max_requests, "nice": nice, "oom_score": oom_score}
        given |= {"log_size": log_size, "log_keep": log_keep}
        owner = _owner(user, group)
        options = {
            "spares": spares,
            "balance": balance,
            "ready_timeout": ready_timeout,
            "min_ready": min_ready,
            "drain_timeout": drain_timeout,
            "kill_grace": kill_grace,
            **_heartbeat(heartbeat),
            "pin_cpus": pin_cpus,
            "limits": _limits(limits),
            **owner,
            **{name: value for name, value in given.items() if value is not None},
            **({} if workers in (None, "auto") else {"workers": workers}),
            **({} if log is None else {"log": os.fspath(log) if isinstance(log, os.PathLike) else log}),
            **({} if metrics is None else {"metrics": _address(metrics, "metrics", "a port, an address, (host, port) or a socket")}),
        }
        # Sockets among them stay open until `start` has made copies.
        listen = tuple(listen)
        self._sockets = (listen, metrics)
        self._native = _native._Cluster(options, [_address(item) for item in listen])
        self._logs = log is not None
        self._pool = pool
        self._tasks = _broker.check(pool, tasks, owner.get("uid"))
        # Where workers find it.
        self._served: _broker.Served | None = None
        self._drain_timeout = drain_timeout
        self._pid = os.getpid()
        self._state = "new"
        # When it has ended.
        self._last: ClusterStats | None = None
        self._thread: threading.Thread | None = None
        self._listeners: dict[str, list[tuple[Callable[..., object], asyncio.AbstractEventLoop | None]]] = {}
        self._waits: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = set()
        # Every process that has not ended, in the order of their starts; changed by the cluster's thread alone.
        # By what each was started as.
        self._lines: dict[Id, _Line] = {}
        self._spares: dict[Id, Id] = {}
        self._states: dict[Id, str] = {}
        # By process id, which a spare keeps.
        self._pids: dict[int, _Line] = {}

    def _check(self) -> _native._Cluster:
        if os.getpid() != self._pid:
            raise ForkedError("forked: cluster belongs to this process's parent")
        if self._state == "new" or self._last is not None:
            raise ClosedError(f"closed: the cluster {'was not started' if self._state == 'new' else 'has ended'}")
        return self._native

    def _given(self, command: _Command) -> tuple[list[str], list[tuple[str, str | None]], str | None]:
        """What native code takes of a command."""
        args, env, cwd = command.native()
        env = [*env, (_broker.VARIABLE, None if self._served is None else self._served.path)]
        return args, env, cwd

    def _unserve(self) -> None:
        if self._served is not None:
            self._served.close()

    # ---- start ----

    def _begin(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("forked: cluster belongs to this process's parent")
        if self._state == "stopped":
            raise ClosedError("closed: the cluster has ended")
        if self._state == "started":
            return
        if self._pool is not None:
            self._served = _broker.Served(self._pool, self._tasks)
        listens = bool(self._listeners.get("log"))
        try:
            self._native.start(self._given(self._commands[1]), listens if listens or self._logs else None)
        except BaseException:
            self._unserve()
            raise
        self._sockets = ((), None)
        self._state = "started"
        _threads.clusters.add(self)
        self._thread = threading.Thread(target=self._hear, name="offloop-cluster", daemon=True)
        self._thread.start()

    def start(self, timeout: float | None = None) -> Self:
        """Binds, starts the workers, and returns when all are ready. Ctrl-C ends the wait, and the cluster.

        StartFailedError with the worker's own words when none comes up, OsError for a socket that cannot be bound, TimeoutError after
        `timeout` seconds (default: none): then no process is left.
        """
        self._begin()
        try:
            if not self._native.wait_ready(timeout):
                raise TimeoutError(f"timeout: workers are not ready (timeout={timeout})")
        except BaseException:
            self._kill_all()
            self._native.wait_stopped(None)
            self._ended()
            raise
        return self

    async def astart(self) -> Self:
        """As `start`, for a coroutine."""
        self._begin()
        try:
            await self._until(lambda: self._native.wait_ready(0.0))
        except BaseException:
            self._kill_all()
            await self._until(lambda: self._native.wait_stopped(0.0))
            self._ended()
            raise
        return self

    # ---- what happens ----

    def on(self, event: str, fn: Callable[..., object]) -> None:
        """Calls `fn` whenever something happens: in the event loop that runs where `on` is called, or without one on the cluster's thread.

        With a ClusterWorker: `fork`, `online` (it has begun), `listening` (and where), `spare` (it waits), `ready` (also of a spare that has taken a place), `unresponsive` (and why, and the stack
        of where its loop blocks, or None), `responsive`,
        `expired` (and why: `age`, `memory` or `requests`), `draining` (and why), `exit` (and a WorkerExit), `start_error` (and the error), `message` (and a Message of Channel; one that is a
        request is answered by its `reply` or `fail`, and by what `fn` raises. What a worker has said before its end comes before its
        `exit`, and nothing after that; while nobody listens for messages they wait, and hold their worker back), `log` (and `"stdout"` or `"stderr"`, and a line that it has printed, without the
        newline; what is no UTF-8 is U+FFFD, and a line beyond 64 KiB comes in parts. Before its `exit`, but for what processes print that it has left behind. Without the option `log` the listener has to be there at
        the start. Workers wait for no listener: beyond 1 MiB of lines that nobody has heard yet lines are left out, and a `warning` with Full says how many). Of the cluster: `back_off` (slot, seconds),
        `reloading` (generation), `rollback` and `reload_failed` (generation, error), `reload` (a ReloadReport), `degraded` (failures),
        `recovered`, `warning` (an error: something is not as it should be, and the cluster goes on), `stopped`.
        """
        if event not in EVENTS:
            raise InvalidError(f"invalid: there is no such event (event={event!r}, want={' '.join(EVENTS)})")
        if not callable(fn):
            raise _wrong_type("fn", fn, "a callable")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self._listeners.setdefault(event, []).append((fn, loop))
        if event == "message":
            for line in list(self._lines.values()):
                line.watch()
        if event == "log":
            self._native.hear_lines()

    def _hear(self) -> None:
        while (events := self._native.events()) is not None:
            events.reverse()
            while events:
                # Nobody else has the room of a line, which is free again when all have heard it.
                name, values, error, room = events.pop()
                if name == "log":
                    self._print(values, room)
                    continue
                if name == "mail":
                    self._receive(tuple(values))
                    continue
                if name == "fork":
                    self._connect(values)
                elif name == "activated":
                    self._activate(values)
                    name, values = "ready", values[:4]
                elif name != "exit" and name in _STATES and (key := self._key(values)) in self._states:
                    resumed = name == "responsive" and self._lines[key].worker.state == "spare"
                    self._states[key] = "spare" if resumed else _STATES[name]
                if name == "exit":
                    self._disconnect(self._key(values))
                self._tell(name, values, error)
            self._wake()
        self._last = ClusterStats(**self._native.stats())
        self._unserve()
        self._native.release()
        _threads.clusters.discard(self)
        self._wake()

    def _wake(self) -> None:
        for loop, future in list(self._waits):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future)

    # ---- messages ----

    def _connect(self, values: list[Any]) -> None:
        slot, generation, incarnation, pid = values
        worker = ClusterWorker(slot, generation, pid, "starting", incarnation)
        line = _Line(self._native, worker)
        self._states[line.id] = "starting"
        self._lines = {**self._lines, line.id: line}
        self._pids[pid] = line
        if self._listeners.get("message"):
            line.watch()

    def _key(self, values: list[Any]) -> Id:
        """What the worker was started as."""
        slot, generation, incarnation = values[:3]
        return self._spares.get((slot, generation, incarnation), (slot, generation, incarnation))

    def _activate(self, values: list[Any]) -> None:
        slot, generation, incarnation, _, *was = values
        key: Id = (was[0], was[1], was[2])
        self._spares = {**self._spares, (slot, generation, incarnation): key}
        line = self._lines[key]
        line.worker = line.worker._replace(slot=slot, incarnation=incarnation)
        self._states[key] = "ready"

    def _disconnect(self, key: Any) -> None:
        """The worker has ended: what it has said comes before that is told."""
        line = self._lines[key]
        self._native.unwatch(line.id)
        # To the channel's end. A thread that waits for a reply may be reading.
        with contextlib.suppress(OffloopError):
            waited = 0.0
            # As many as the ring and the inbox hold. A process that the worker has left behind may go on to send.
            for _ in range(_REST):
                begin = time.monotonic()
                event = line.channel._end.recv(max(_END - waited, 0))
                waited += time.monotonic() - begin
                if event is None:
                    break
                if self._listeners.get("message"):
                    self._deliver(line, event)
        self._lines = {id: other for id, other in self._lines.items() if other is not line}
        del self._states[key]
        del self._pids[line.worker.pid]
        self._spares = {now: was for now, was in self._spares.items() if was != key}
        line.channel._end.close_dead()
        # Two that know each other would keep the channel's fds until the collector comes.
        line.channel.line = None

    def _print(self, values: list[Any], room: _native._Room | None) -> None:
        slot, generation, incarnation, pid, stream, text = values
        # What processes print that it has left behind comes after its end.
        worker = ClusterWorker(slot, generation, pid, "exited", incarnation)
        if (line := self._pids.get(pid)) is not None:
            worker = line.worker._replace(state=self._states[line.id])
        self._call_all("log", [worker, stream, text], room)

    def _receive(self, key: Any) -> None:
        """Takes what a worker says, and sends what waits for room, for one turn."""
        line = self._lines.get(key)
        if line is None:
            return
        end, desk = line.channel._end, line.channel._desk
        try:
            while (event := end.outcome()) is not None:
                if event[0] != "more":
                    desk._place(event)
            if self._listeners.get("message"):
                for _ in range(_TURN):
                    with line.lock:
                        line.stalled = line.ahead >= _AHEAD
                        if line.stalled:
                            return
                    if (event := end.message()) is None:
                        break
                    self._deliver(line, event)
                else:
                    self._native.look(line.id)
                    return
        except OsError:
            # As of `watch`.
            threading.Timer(PAUSE, line.watch).start()
            return
        except OffloopError as why:
            # Its traceback has this frame, and so the channel whose desk keeps it.
            desk._end(why.with_traceback(None))
            return
        line.watch()

    def _deliver(self, line: _Line, event: _native._Event) -> None:
        try:
            message = line.channel._message(event)
        except Exception:
            logging.getLogger("concurrent.futures").exception("message of worker %r is lost", line.worker)
            return
        worker = line.worker._replace(state=self._states[line.id])
        for fn, loop in list(self._listeners["message"]):
            if loop is None:
                _hand_over(fn, worker, message)
                continue
            with line.lock:
                line.ahead += 1
            try:
                loop.call_soon_threadsafe(self._in_loop, line, fn, worker, message)
            except RuntimeError:
                # A loop that is closed hears nothing.
                with line.lock:
                    line.ahead -= 1

    def _in_loop(self, line: _Line, fn: Callable[..., object], worker: ClusterWorker, message: Message) -> None:
        with line.lock:
            line.ahead -= 1
            wakes = line.stalled and line.ahead < _AHEAD // 2
            if wakes:
                line.stalled = False
        if wakes:
            with contextlib.suppress(OffloopError):
                self._native.look(line.id)
        _hand_over(fn, worker, message)

    def _at(self, slot: int) -> _Line:
        """Whom a slot means: the ready worker that was started last, else one that starts, else one that drains."""
        self._check()
        lines = [line for line in self._lines.values() if line.worker.slot == slot]
        if not lines:
            raise NotFoundError(f"not found: slot has no worker (slot={slot!r})")
        standing = ("draining", "starting", "unresponsive", "spare", "ready")
        return max(lines, key=lambda line: (standing.index(self._states.get(line.id, "draining")), line.worker.incarnation))

    def send(self, slot: int, message: Any, buffers: Iterable[TransferBuffer] = (), fds: Iterable[Any] = ()) -> None:
        """Sends a message to the worker of `slot`: the ready one that was started last, else one that starts, else one that drains.

        TransferBuffers in it move, fds are duplicated. Does not wait: what the worker has no room for (it has not received the 64 KiB that were
        sent before) is kept here, up to 16 MiB; then it is Full. NotFoundError for a slot without a worker, which it names.
        """
        line = self._at(slot)
        if not line.channel._end.post(message, _named(buffers), _fds(fds)):
            line.watch()

    def broadcast(self, message: Any, fds: Iterable[Any] = ()) -> list[tuple[ClusterWorker, OffloopError]]:
        """Sends a copy of a message to every worker that lives, those that start or drain and spares included; does not wait.

        Returns those that did not get it, and why: too much waits for them already (Full), or they are about to end. The others did. A
        TransferBuffer in it is InvalidError: it moves to one worker.
        """
        self._check()
        numbers = _fds(fds)
        missed: list[tuple[ClusterWorker, OffloopError]] = []
        for line in list(self._lines.values()):
            try:
                if not line.channel._end.post_copy(message, numbers):
                    line.watch()
            except (Full, ClosedError, PeerDiedError) as why:
                missed.append((line.worker._replace(state=self._states.get(line.id, "exited")), why))
        return missed

    def request(self, slot: int, message: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False) -> Any:
        """Asks the worker of `slot`, as `send` means it, and waits for its reply, which is returned, or raised if it failed."""
        return self._at(slot).channel.request(message, timeout, fds=fds, with_fds=with_fds)

    async def arequest(
        self, slot: int, message: Any, timeout: float | None = None, *, fds: Iterable[Any] = (), with_fds: bool = False
    ) -> Any:
        """As `request`, for a coroutine. Cancelled, a later reply is dropped."""
        return await self._at(slot).channel.arequest(message, timeout, fds=fds, with_fds=with_fds)

    def _tell(self, name: str, values: list[Any], error: BaseException | None) -> None:
        told = self._listeners.get(name)
        if not told:
            return
        args: list[Any] = values
        if name in _OF_WORKERS:
            slot, generation, incarnation, pid, *rest = values
            worker = ClusterWorker(slot, generation, pid, _STATES.get(name, "starting"), incarnation)
            args = [worker, WorkerExit(*rest)] if name == "exit" else [worker, *rest]
            if name == "ready":
                args = [worker]
        elif name == "reload":
            args = [ReloadReport(*values)]
        if error is not None:
            args = [*args, error]
        self._call_all(name, args)

    def _call_all(self, name: str, args: list[Any], room: _native._Room | None = None) -> None:
        for fn, loop in list(self._listeners.get(name, ())):
            if loop is None:
                try:
                    _call(fn, args)
                except BaseException:
                    # The others are to hear of it, too.
                    logging.getLogger("concurrent.futures").exception("exception calling listener %r", fn)
            else:
                # A loop that is closed hears nothing.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_call, fn, args, room)

    async def _until(self, poll: Callable[[], Any]) -> Any:
        """What `poll` gives, once it is true. It is asked after each event."""
        loop = asyncio.get_running_loop()
        while True:
            wait = (loop, loop.create_future())
            self._waits.add(wait)
            try:
                if found := poll():
                    return found
                await wait[1]
            finally:
                self._waits.discard(wait)

    # ---- reload, scale, stop ----

    def _begin_reload(self, changes: dict[str, Any]) -> int:
        native = self._check()
        # Until what is begun is known by its number.
        with self._reloading:
            runs = self.stats.generation
            command = self._commands[runs]._replace(**{name: value for name, value in changes.items() if value is not None})
            command.check()
            generation = native.reload(runs, self._given(command))
            # One that failed is never asked for.
            self._commands = {known: one for known, one in self._commands.items() if known >= runs} | {generation: command}
        return generation

    def reload(
        self,
        *,
        exec: Path | Sequence[Path] | None = None,
        args: Sequence[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        timeout: float | None = None,
    ) -> ReloadReport:
        """Replaces all workers by a new generation, one after the other, without being fewer at any time. Returns when the old ones have ended.

        What is given is that of the new one, and of later ones; the rest stays. The first new worker is tried beside the old ones: if it
        does not come up, nothing was changed, and its own error is raised (StartFailedError with its words). If a later one fails,
        those that were replaced are replaced back. InUseError while another reload is under way. TimeoutError after `timeout` seconds
        (default: none) leaves it going on.
        """
        generation = self._begin_reload({"exec": exec, "args": args, "env": env, "cwd": cwd})
        done = self._native.wait_reload(generation, timeout)
        if done is None:
            raise TimeoutError(f"timeout: the reload is not over (timeout={timeout}, generation={generation})")
        return ReloadReport(*done)

    async def areload(
        self,
        *,
        exec: Path | Sequence[Path] | None = None,
        args: Sequence[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> ReloadReport:
        """As `reload`, for a coroutine. Cancelling the await leaves it going on."""
        generation = self._begin_reload({"exec": exec, "args": args, "env": env, "cwd": cwd})
        done = await self._until(lambda: self._native.wait_reload(generation, 0.0))
        return ReloadReport(*done)

    def scale(self, workers: int, timeout: float | None = None) -> None:
        """So many workers from now on, 1 to 1,024; returns when they are ready, and those that leave have ended.

        TimeoutError after `timeout` seconds (default: none) leaves it going on.
        """
        self._check().scale(workers)
        if not self._native.wait_scaled(workers, timeout):
            raise TimeoutError(f"timeout: workers are not where they were waited for (timeout={timeout}, workers={workers})")

    async def ascale(self, workers: int) -> None:
        """As `scale`, for a coroutine."""
        self._check().scale(workers)
        await self._until(lambda: self._native.wait_scaled(workers, 0.0))

    def _begin_stop(self, grace: float | None) -> bool:
        """Whether there is something to wait for."""
        if os.getpid() != self._pid:
            raise ForkedError("forked: cluster belongs to this process's parent")
        if self._state == "new":
            self._state = "stopped"
        if self._thread is None or self._last is not None:
            return False
        self._native.stop(None if grace == 0 else self._drain_timeout if grace is None else grace)
        self._state = "stopped"
        return True

    def _kill_all(self) -> None:
        self._state = "stopped"
        self._native.stop(None)

    def stop(self, grace: float | None = None) -> None:
        """Ends all workers, which have `grace` seconds to finish what they do (default: `drain_timeout`; 0: none), and returns when no
        process is left. Ctrl-C ends them at once. A second call does nothing, or shortens the time.
        """
        if not self._begin_stop(grace):
            return
        try:
            self._native.wait_stopped(None)
        except BaseException:
            self._kill_all()
            self._native.wait_stopped(None)
            raise
        finally:
            self._ended()

    async def astop(self, grace: float | None = None) -> None:
        """As `stop`, for a coroutine. Cancelling the await leaves it going on."""
        if not self._begin_stop(grace):
            return
        await self._until(lambda: self._native.wait_stopped(0.0))
        self._ended()

    def _ended(self) -> None:
        # Who waits has heard of all of it; a listener may be who waits.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def kill(self, slot: int) -> None:
        """Ends the ready worker of `slot` with SIGKILL; another takes its place. NotFoundError if there is none."""
        native = self._check()
        worker = self.workers.get(slot)
        if worker is None:
            raise NotFoundError(f"not found: slot has no ready worker (slot={slot!r})")
        native.kill((worker.slot, worker.generation, worker.incarnation))

    # ---- what there is ----

    @property
    def workers(self) -> dict[int, ClusterWorker]:
        """The workers that take requests, by slot."""
        rows = self._check().workers()
        all_of_them = (
            ClusterWorker(slot, generation, pid, state, incarnation, served, delay)
            for slot, generation, incarnation, pid, state, served, delay in rows
        )
        return {worker.slot: worker for worker in all_of_them if worker.state in ("ready", "unresponsive")}

    @property
    def addresses(self) -> list[str]:
        """Where it listens: what `listen` names, then what workers have asked for."""
        return self._check().addresses()

    @property
    def metrics_address(self) -> str | None:
        """Where `metrics` are to be had, port 0 resolved; None without that option."""
        return self._check().metrics_address()

    @property
    def stats(self) -> ClusterStats:
        """Counts since the start."""
        return self._last or ClusterStats(**self._check().stats())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        await self.astop()

    def __repr__(self) -> str:
        return f"<Cluster {self._state}>"


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _hand_over(fn: Callable[..., object], worker: ClusterWorker, message: Message) -> None:
    try:
        fn(worker, message)
    except Exception as error:
        if message.is_request:
            # Whoever asked has it.
            with contextlib.suppress(Exception):
                message.fail(error)
                return
        logging.getLogger("concurrent.futures").exception("exception calling listener %r", fn)


def _call(fn: Callable[..., object], args: list[Any], room: _native._Room | None = None) -> None:
    """`room` is that of a line, which is heard then."""
    try:
        fn(*args)
    except Exception:
        logging.getLogger("concurrent.futures").exception("exception calling listener %r", fn)
