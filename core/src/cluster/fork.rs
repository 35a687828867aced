//! Workers that are started one by one: which command belongs to which start.

use super::launch::Resolved;
use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::{Event, MAX_WORKERS, Supervisor, WorkerId};
use crate::sync::lock;
use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long the supervisors' thread may take to start a process: it has nothing else to do.
const START: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Asked {
    /// That the next start is for.
    command: Option<Resolved>,
    /// The start of that, until it is known how it went.
    launched: Option<WorkerId>,
    outcome: Option<Result<(WorkerId, i32)>>,
    /// Workers that were asked for, and have not ended.
    known: HashSet<WorkerId>,
}

/// One start at a time.
#[derive(Default)]
pub(super) struct Forks {
    turn: Mutex<()>,
    asked: Mutex<Asked>,
    changed: Condvar,
}

impl Forks {
    pub(super) fn start(&self, supervisor: &Supervisor, command: Resolved) -> Result<(WorkerId, i32)> {
        // Before any lock: a forked child has none.
        let wanted = || supervisor.stats().map(|stats| stats.wanted);
        wanted()?;
        let _turn = lock(&self.turn);
        // Those that have ended meanwhile are not wanted any more, so it may become one start more than was asked for: that one has no command.
        let wanted = wanted()? + 1;
        if wanted > MAX_WORKERS {
            return Err(Error::new(ErrorKind::Full, "cluster has too many workers").with("workers", wanted - 1).with("max", MAX_WORKERS));
        }
        {
            let mut asked = lock(&self.asked);
            (asked.command, asked.launched, asked.outcome) = (Some(command), None, None);
        }
        supervisor.scale(wanted)?;
        let waited = self.changed.wait_timeout_while(lock(&self.asked), START, |asked| asked.outcome.is_none());
        let mut asked = waited.unwrap_or_else(PoisonError::into_inner).0;
        asked.command = None;
        asked.outcome.take().unwrap_or_else(|| Err(Error::new(ErrorKind::Timeout, "worker was not started")))
    }

    /// What the worker `id` runs.
    pub(super) fn launch(&self, id: WorkerId) -> Result<Resolved> {
        let mut asked = lock(&self.asked);
        let command = asked.command.take().ok_or_else(|| Error::new(ErrorKind::NotFound, "nobody has asked for another worker"))?;
        asked.launched = Some(id);
        asked.known.insert(id);
        Ok(command)
    }

    /// Whether the host is to hear of it.
    pub(super) fn answer(&self, event: &Event) -> bool {
        let mut asked = lock(&self.asked);
        let (id, outcome) = match event {
            Event::Spawned { worker, pid } => (*worker, Some(Ok((*worker, *pid)))),
            Event::SpawnFailed { worker, error } => (*worker, Some(Err(error.clone()))),
            Event::Exited { worker, .. } => return asked.known.remove(worker),
            Event::Stopped => {
                asked.outcome.get_or_insert_with(|| Err(Error::new(ErrorKind::Closed, "the cluster has ended")));
                self.changed.notify_all();
                return true;
            }
            _ => return true,
        };
        let known = asked.known.contains(&id);
        if matches!(outcome, Some(Err(_))) {
            asked.known.remove(&id);
        }
        if asked.launched == Some(id) {
            asked.launched = None;
            asked.outcome = outcome;
            self.changed.notify_all();
        }
        known
    }
}
