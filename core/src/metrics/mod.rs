//! Counters in a mapped region, histograms, Prometheus text.
//!
//! ```text
//!   submitter threads ── PoolMetrics::add ──► shard 0        fetch_add
//!   worker thread k ──── Writer ────────────► shard k+1      load + store: one writer, no locked instruction
//!                                              │
//!   stats, export ────── PoolMetrics::snapshot ┤ sums the shards
//!   another process ──── Reader::open ─────────┘ the same, over a read-only mapping of the memfd
//!   … of several ─────── Collector::look          finds them by /proc, and sums them
//! ```
//!
//! The layout is in [`crate::wire::metrics`]. A reader takes no lock and stops no writer: each number is exact and never
//! runs backwards, but two numbers of one snapshot may be some tasks apart.

mod collector;
mod export;
mod histogram;
mod pool;
mod reader;
#[cfg(test)]
mod tests;

pub use collector::Collector;
pub use export::{Format, export};
pub(crate) use export::{escape_label, head, json_string};
pub use histogram::{Histogram, Totals, bucket_of, bucket_range};
pub use pool::{PoolMetrics, Snapshot, Writer};
pub use reader::Reader;

macro_rules! table {
    ($(#[$doc:meta])* $type:ident { $($name:ident = $key:literal, $metric:literal, $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $type { $(#[doc = $help] $name,)* }

        impl $type {
            /// Every row, in the order of the layout. The list only grows at its end.
            pub const ALL: &[$type] = &[$($type::$name,)*];
            /// How many there are.
            pub const COUNT: usize = $type::ALL.len();

            /// The key in JSON and in every face's `stats`.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self { $($type::$name => $key,)* }
            }

            /// The name in the Prometheus text.
            #[must_use]
            pub const fn metric(self) -> &'static str {
                match self { $($type::$name => $metric,)* }
            }

            /// What it counts, in one line.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $($type::$name => $help,)* }
            }
        }
    };
}

table! {
    /// What a pool counts. A counter never decreases while its pool lives.
    Counter {
        Submitted = "submitted", "offloop_tasks_submitted_total", "Tasks that the pool accepted.";
        Completed = "completed", "offloop_tasks_completed_total", "Tasks that ended with a result.";
        Failed = "failed", "offloop_tasks_failed_total", "Tasks that ended with an error of their own, panics included.";
        TimedOut = "timed_out", "offloop_tasks_timed_out_total", "Tasks that ended at a deadline, queued or running.";
        Cancelled = "cancelled", "offloop_tasks_cancelled_total", "Tasks that were cancelled, queued or running.";
        Lost = "lost", "offloop_tasks_lost_total", "Tasks that ended because their worker died.";
        Rejected = "rejected", "offloop_tasks_rejected_total", "Submissions that the pool refused because its queue was full.";
        Retried = "retried", "offloop_tasks_retried_total", "Runs that were lost with their worker and done again.";
        Recycled = "recycled", "offloop_workers_recycled_total", "Workers that were replaced because of their tasks or their age.";
    }
}

table! {
    /// What a pool measures now.
    Gauge {
        Queued = "queued", "offloop_tasks_queued", "Tasks that wait for a worker.";
        Running = "running", "offloop_tasks_running", "Tasks that a worker runs.";
        Workers = "workers", "offloop_workers", "Workers that live.";
        MaxWorkers = "max_workers", "offloop_workers_max", "Workers that the pool may have.";
        Overdue = "overdue", "offloop_tasks_overdue", "Tasks past their deadline that still occupy a worker.";
    }
}

const _: () = assert!(Counter::COUNT <= crate::wire::metrics::COUNTER_SLOTS);
const _: () = assert!(Gauge::COUNT <= crate::wire::metrics::GAUGE_SLOTS);
