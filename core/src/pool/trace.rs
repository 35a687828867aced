//! What became of one task, for those who watch single tasks: `SubmitOptions::trace`.

use crate::metrics::Counter;
use crate::pool::task::Core;
use crate::pool::worker::Turn;
use crate::sys::clock;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has a result.
    Completed,
    /// Its function failed, or it could not be run.
    Failed,
    /// It was queued or ran for too long.
    TimedOut,
    /// It was cancelled, by its caller or with the pool.
    Cancelled,
    /// Its worker ended before it did.
    Lost,
}

impl Outcome {
    /// The word that every face has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::TimedOut => "timeout",
            Outcome::Cancelled => "cancelled",
            Outcome::Lost => "lost",
        }
    }

    /// What the pool counts it as.
    pub(super) fn counter(self) -> Counter {
        match self {
            Outcome::Completed => Counter::Completed,
            Outcome::Failed => Counter::Failed,
            Outcome::TimedOut => Counter::TimedOut,
            Outcome::Cancelled => Counter::Cancelled,
            Outcome::Lost => Counter::Lost,
        }
    }
}

/// What is known of the run of a task that ends.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// It never ran.
    Unstarted,
    /// It ran for so many ns, as its worker has measured.
    Ran(u64),
    /// It runs, or ran until now.
    Running,
}

/// What became of one task; see [`Task::trace`](crate::pool::Task::trace).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// When it was submitted, in ns since the Unix epoch: what the wall clock said at its end, less the time that has passed.
    pub submitted_unix_ns: u64,
    /// From submit to outcome, without the last run: in the queue, with a worker that was busy, on its way there and back, in runs that were lost.
    pub queue_ns: u64,
    /// How long its function ran, the last time; 0 when it never did. Of a task that was stopped or lost: since a worker was given it.
    pub run_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The place of the worker that ran it, from 0; `None` when none did.
    pub worker: Option<usize>,
}

impl Trace {
    pub(super) fn new(core: &Core, started_ns: u64, outcome: Outcome, ending: Ending) -> Trace {
        let now = clock::monotonic_ns();
        let whole = now.saturating_sub(core.submitted_ns);
        let run_ns = match ending {
            Ending::Unstarted => 0,
            // A worker in another process says what it likes.
            Ending::Ran(ns) => ns.min(whole),
            Ending::Running => now.saturating_sub(started_ns).min(whole),
        };
        Trace {
            submitted_unix_ns: clock::unix_ns().saturating_sub(whole),
            queue_ns: whole - run_ns,
            run_ns,
            outcome,
            worker: (!matches!(ending, Ending::Unstarted)).then(|| Turn::of(core).slot),
        }
    }
}
