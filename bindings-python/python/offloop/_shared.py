"""Counter and RateLimiter: what the workers of a Cluster count, and let through, together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from . import _native
from ._member import current_worker

if TYPE_CHECKING:
    from ._cluster import Cluster


def _native_of(cluster: Cluster | None) -> _native._Cluster | None:
    if cluster is None:
        # Whose worker this process is decides whose names are meant.
        current_worker()
        return None
    return cluster._check()


class Counter:
    """A signed number of 64 bits that the workers of a cluster count together, by name; it lasts as long as the cluster.

    In a worker it is that of its cluster, in the cluster's process with `cluster` too; else one of this process alone. Make it once: a worker waits for its cluster's answer.
    `name` has 1 to 128 bytes of UTF-8; a cluster has 256 counters and limiters at most. A worker that dies leaves what it has counted.
    """

    def __init__(self, name: str, *, cluster: Cluster | None = None) -> None:
        self._native = _native._Counter(_native_of(cluster), name)
        self.name = name

    def add(self, n: int = 1) -> int:
        """Adds `n`, which may be negative; what it is then. It wraps."""
        return self._native.add(n)

    @property
    def value(self) -> int:
        return self._native.get()

    def set(self, value: int) -> int:
        """Makes it `value`; what it was."""
        return self._native.set(value)

    def __repr__(self) -> str:
        return f"Counter({self.name!r}, value={self.value})"


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """What became of `RateLimiter.take`; true if it was allowed."""

    allowed: bool
    #: Whole tokens that are there now.
    remaining: int
    #: Seconds until as many are there as were wanted, if nobody else takes some; 0.0 when they were.
    retry_after: float

    def __bool__(self) -> bool:
        return self.allowed


class RateLimiter:
    """Token buckets, one per key, from which the workers of a cluster take together; by name, as `Counter`.

    `rate`: tokens per second that come back, 0.000001 to 1,000,000. `burst`: tokens of a full bucket, 1 to 1,048,576; default: those of one second. `keys`: keys whose buckets are known at a
    time, 8 to 16,777,216; default 16,384. A name stands for one limit: another is an `InvalidError`.
    """

    def __init__(
        self, name: str, *, rate: float, burst: int | None = None, keys: int | None = None, cluster: Cluster | None = None
    ) -> None:
        self._native = _native._Limiter(_native_of(cluster), name, rate, burst, keys)
        self.name = name

    def take(self, key: str | bytes = "", cost: int = 1) -> Taken:
        """Takes `cost` tokens from the bucket of `key`, all or none; 0 looks only. A cost above the burst is an `InvalidError`."""
        return Taken(*self._native.take(key, cost))
