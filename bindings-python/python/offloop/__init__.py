"""Keeps event loops free: native pools, transferable buffers and native ops.

>>> import offloop
>>> offloop.ops.sha256(b"hello", encoding="hex")[:8]
'2cf24dba'
>>> with offloop.ThreadPool(max_workers=2) as pool:
...     pool.submit("crc32", b"hello").result()
907060870
"""

from __future__ import annotations

from . import ops
from ._channel import Channel, Listener, Message
from ._cluster import Cluster, ClusterStats, ClusterWorker, ReloadReport, WorkerExit
from ._member import Worker, current_worker
from ._native import (
    CancelledError,
    ClosedError,
    Consumer,
    CorruptError,
    DegradedError,
    Delivery,
    DetachedError,
    Empty,
    ExistsError,
    ForkedError,
    Full,
    Future,
    InUseError,
    InvalidError,
    NotFoundError,
    OffloopError,
    OsError,
    PanicError,
    PeerDiedError,
    Producer,
    RingBuffer,
    StartFailedError,
    Task,
    TaskFailedError,
    TimeoutError,
    TooLargeError,
    TransferBuffer,
    UnserializableError,
    UnsupportedError,
    VersionError,
    WorkerLostError,
    __version__,
    current_task,
    metrics,
    revoke_token,
)
from ._pool import ThreadPool, default_pool
from ._process import ProcessPool
from ._shared import Counter, RateLimiter, Taken
from ._stats import Histogram, PoolStats
from ._stream import Stream
from ._trace import TaskTrace

__all__ = [
    "CancelledError",
    "Channel",
    "ClosedError",
    "Cluster",
    "ClusterStats",
    "ClusterWorker",
    "Consumer",
    "CorruptError",
    "Counter",
    "DegradedError",
    "Delivery",
    "DetachedError",
    "Empty",
    "ExistsError",
    "ForkedError",
    "Full",
    "Future",
    "Histogram",
    "InUseError",
    "InvalidError",
    "Listener",
    "Message",
    "NotFoundError",
    "OffloopError",
    "OsError",
    "PanicError",
    "PeerDiedError",
    "PoolStats",
    "ProcessPool",
    "Producer",
    "RateLimiter",
    "ReloadReport",
    "RingBuffer",
    "StartFailedError",
    "Stream",
    "Taken",
    "Task",
    "TaskFailedError",
    "TaskTrace",
    "ThreadPool",
    "TimeoutError",
    "TooLargeError",
    "TransferBuffer",
    "UnserializableError",
    "UnsupportedError",
    "VersionError",
    "Worker",
    "WorkerExit",
    "WorkerLostError",
    "__version__",
    "current_task",
    "current_worker",
    "default_pool",
    "metrics",
    "ops",
    "revoke_token",
]

for _name in __all__:
    # Names that users see are the package's, in tracebacks and in pickles.
    if getattr(globals()[_name], "__module__", "").startswith("offloop."):
        globals()[_name].__module__ = "offloop"
del _name
