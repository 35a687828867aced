"""What a pool says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Histogram:
    """A distribution of durations, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counts and times of a pool since it was made, ops and callables together."""

    queued: int
    """Tasks that wait."""
    running: int
    """Tasks that run and have no outcome yet."""
    workers: int
    """Live threads: native ones for ops, Python ones for callables."""
    overdue: int
    """Functions that run although their task has its outcome."""
    submitted: int
    """Tasks taken in."""
    completed: int
    """Outcomes that are results."""
    failed: int
    """Outcomes that are errors of the function."""
    timed_out: int
    """Outcomes TimeoutError."""
    cancelled: int
    """Outcomes CancelledError."""
    lost: int
    """Outcomes WorkerLostError."""
    rejected: int
    """Submits that were refused as Full."""
    retried: int
    """Runs that were lost with their worker and done again."""
    recycled: int
    """Workers that were replaced because of their tasks, their age or their memory."""
    utilization: float
    """Share of `max_workers` that was busy since the pool was made, of the busier kind, 0 to 1."""
    wait: Histogram
    """From submit to start."""
    run: Histogram
    """From start to return."""
