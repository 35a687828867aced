//! Workers whose threads belong to the host (Python), because only its own threads may run its functions.

use crate::error::{Error, ErrorKind, Result};
use crate::ops::Control;
use crate::pool::inner::Inner;
use crate::pool::stuck;
use crate::pool::task::{Core, WorkKind};
use crate::pool::worker::{Found, Turn, Worker};
use crate::value::Value;
use std::any::Any;
use std::sync::Arc;

/// Starts one more thread of the host, which runs the worker it is given; gives the worker back if it cannot.
pub(crate) type Spawner = Arc<dyn Fn(HostedWorker) -> Result<(), HostedWorker> + Send + Sync>;

/// A worker to be run by one thread of the host: `next` → the host's function → `finish`, until `Exit`.
///
/// Dropping it gives its place and what it had taken back to the pool.
pub struct HostedWorker(Worker);

impl std::fmt::Debug for HostedWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostedWorker(slot {})", self.0.me.slot)
    }
}

/// What [`HostedWorker::next`] found.
#[derive(Debug)]
pub enum Next {
    /// A task, started: it must be finished.
    Task(HostedTask),
    /// A signal handler ran; the host looks at its signals and calls again.
    Interrupted,
    /// The thread ends.
    Exit,
}

/// One started call. Dropped unfinished, its outcome is `WorkerLost`.
pub struct HostedTask {
    core: Arc<Core>,
    started: u64,
    payload: Option<Box<dyn Any + Send>>,
    finished: bool,
}

impl std::fmt::Debug for HostedTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostedTask")
    }
}

impl HostedWorker {
    pub(super) fn new(pool: Arc<Inner>, me: Turn, searching: bool) -> HostedWorker {
        HostedWorker(Worker::new(pool, me, searching))
    }

    /// Takes the duty to leave the pool away from a worker that never ran: whoever wanted to start it does that.
    pub(super) fn disarm(mut self) {
        self.0.disarm();
    }

    /// The number of its place, from 0.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.0.me.slot
    }

    /// The next task; sleeps until there is one.
    #[allow(clippy::should_implement_trait, reason = "the word of the field; an iterator could not say why it stopped")]
    pub fn next(&mut self) -> Next {
        loop {
            match self.0.next() {
                Found::Task(core) => {
                    if let Some(task) = self.begin(core) {
                        return Next::Task(task);
                    }
                }
                Found::Interrupted => return Next::Interrupted,
                Found::Leave => return Next::Exit,
            }
        }
    }

    /// The next task if there is one now; never sleeps, so it may be called with the interpreter's lock held.
    pub fn try_next(&mut self) -> Option<HostedTask> {
        while let Some(core) = self.0.try_next() {
            if let Some(task) = self.begin(core) {
                return Some(task);
            }
        }
        None
    }

    fn begin(&mut self, core: Arc<Core>) -> Option<HostedTask> {
        let (work, started) = self.0.start(&core)?;
        match work {
            WorkKind::Hosted(payload) => {
                stuck::running(Some((&*core.pool, self.0.me)));
                Some(HostedTask { core, started, payload: Some(payload), finished: false })
            }
            _ => {
                self.0.finish(
                    &core,
                    started,
                    Err(Error::new(ErrorKind::Unsupported, "a pool of host threads runs the host's functions only")),
                );
                None
            }
        }
    }

    /// Ends a task. A result that came too late (timeout, cancel) is dropped.
    pub fn finish(&mut self, mut task: HostedTask, result: Result<Value>) {
        task.finished = true;
        stuck::running(None);
        self.0.finish(&task.core, task.started, result);
    }
}

impl HostedTask {
    /// What was submitted; once.
    pub fn take_payload(&mut self) -> Option<Box<dyn Any + Send>> {
        self.payload.take()
    }

    /// `Err(Cancelled)` or `Err(Timeout)` once nobody waits.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        self.core.check()
    }

    /// Tells the caller how far the task is.
    pub fn progress(&self, value: Value) {
        self.core.progress(value);
    }

    /// A handle that outlives the task, for `check` and `progress` from the host's function.
    #[must_use]
    pub fn control(&self) -> Arc<dyn Control + Send> {
        self.core.clone()
    }
}

impl Drop for HostedTask {
    fn drop(&mut self) {
        if !self.finished {
            let lost = Error::new(ErrorKind::WorkerLost, "the host's thread ended before the task did");
            self.core.pool.clone().lose(&self.core, lost);
        }
    }
}
