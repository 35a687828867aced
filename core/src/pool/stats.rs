//! What a pool says of itself.

use crate::metrics::{Counter, Histogram, Snapshot};
use crate::pool::inner::Inner;
use crate::sync::atomic::Ordering;

/// Counts and times of one pool since it was made.
#[derive(Clone, Debug)]
pub struct PoolStats {
    /// Tasks that wait.
    pub queued: usize,
    /// Tasks that run and have no outcome yet.
    pub running: usize,
    /// Live workers.
    pub workers: usize,
    /// Functions that run although their task has its outcome (timeout, cancel).
    pub overdue: usize,
    /// Tasks taken in.
    pub submitted: u64,
    /// Outcomes that are results.
    pub completed: u64,
    /// Outcomes that are errors of the function.
    pub failed: u64,
    /// Outcomes `Timeout`.
    pub timed_out: u64,
    /// Outcomes `Cancelled`.
    pub cancelled: u64,
    /// Outcomes `WorkerLost`.
    pub lost: u64,
    /// Submits that were refused as `Full`.
    pub rejected: u64,
    /// Runs that were lost with their worker and done again, see [`SubmitOptions::retries`](crate::pool::SubmitOptions::retries).
    pub retried: u64,
    /// Workers that were replaced because of their tasks or their age.
    pub recycled: u64,
    /// Share of `max_workers` that was busy, 0 to 1.
    pub utilization: f64,
    /// From submit to start.
    pub wait: Histogram,
    /// From start to return.
    pub run: Histogram,
}

impl PoolStats {
    pub(super) fn of(pool: &Inner) -> PoolStats {
        let workers = pool.workers();
        let running = pool.running();
        let queued = pool.queued();
        let overdue = usize::try_from(pool.overdue.load(Ordering::Relaxed)).unwrap_or(0);
        pool.publish_gauges(queued, running, workers, overdue);
        let s = pool.metrics.snapshot();
        let capacity_ns = s.age_ns as f64 * pool.max_workers() as f64;
        PoolStats {
            queued,
            running,
            workers,
            overdue,
            utilization: if capacity_ns > 0.0 { (s.busy_ns as f64 / capacity_ns).min(1.0) } else { 0.0 },
            ..PoolStats::recorded(&s)
        }
    }

    /// Of two pools that are one to their user. The utilization is that of the busier one.
    pub(super) fn of_both(a: &Inner, b: &Inner) -> PoolStats {
        let (x, y) = (PoolStats::of(a), PoolStats::of(b));
        PoolStats {
            queued: x.queued + y.queued,
            running: x.running + y.running,
            workers: x.workers + y.workers,
            overdue: x.overdue + y.overdue,
            utilization: x.utilization.max(y.utilization),
            // Two summaries do not add up to one: the percentiles are taken of the sum.
            ..PoolStats::recorded(&a.metrics.snapshot_with(&b.metrics))
        }
    }

    /// What was recorded until now, with nothing under way.
    fn recorded(s: &Snapshot) -> PoolStats {
        PoolStats {
            queued: 0,
            running: 0,
            workers: 0,
            overdue: 0,
            submitted: s.get(Counter::Submitted),
            completed: s.get(Counter::Completed),
            failed: s.get(Counter::Failed),
            timed_out: s.get(Counter::TimedOut),
            cancelled: s.get(Counter::Cancelled),
            lost: s.get(Counter::Lost),
            rejected: s.get(Counter::Rejected),
            retried: s.get(Counter::Retried),
            recycled: s.get(Counter::Recycled),
            utilization: 0.0,
            wait: s.wait,
            run: s.run,
        }
    }
}
