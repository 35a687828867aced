//! What a supervisor tells: events of each transition with their cause, and counts of them.

use super::options::MAX_WORKERS;
use crate::error::Error;
use crate::sys::process::Exit;
use std::fmt;
use std::time::Duration;

/// The slot of the first spare; those of workers are below.
pub const FIRST_SPARE: u32 = MAX_WORKERS as u32;

/// One process in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId {
    /// The place, from 0 on; a restart keeps it. From [`FIRST_SPARE`] on: that of a spare, which gets another when it takes over ([`Event::Activated`]).
    pub slot: u32,
    /// Of the (re)load that it belongs to, from 1 on ([`Supervisor::reload`](super::Supervisor::reload)).
    pub generation: u32,
    /// Goes up with each process of the slot, from 1 on.
    pub incarnation: u64,
}

impl WorkerId {
    /// It waits for a worker to end, and takes its place then.
    #[must_use]
    pub const fn is_spare(self) -> bool {
        self.slot >= FIRST_SPARE
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.incarnation)
    }
}

/// Where a slot, or one of its processes, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// No process, and none wanted.
    Empty,
    /// Started; has said nothing yet.
    Spawned,
    /// Attached to its supervisor; loads its program.
    Starting,
    /// Takes work.
    Ready,
    /// Its loop has shown nothing for `hang_timeout`.
    Suspect,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// `SIGABRT` was sent.
    Aborting,
    /// `SIGTERM` or `SIGKILL` was sent.
    Killing,
    /// Ended; what that means is being settled.
    Dead,
    /// Waits for its next start.
    BackOff,
    /// Not started while the supervisor is degraded.
    Quarantined,
}

/// Why a worker ended, or is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// It ended by itself after it had been ready.
    Crash,
    /// It ended by itself before it was ready.
    Boot,
    /// It was not ready within `boot_timeout`.
    BootTimeout,
    /// Its loop stood still while its native thread went on.
    Blocked,
    /// Loop and native thread stood still: stopped, or starved.
    Frozen,
    /// It wrote what no worker may write into its page.
    Corrupt,
    /// It ended over a task, as the owner says.
    Charged,
    /// The owner killed it.
    Killed,
    /// Fewer workers are wanted.
    Scale,
    /// It was replaced.
    Retire,
    /// The supervisor stops.
    Stop,
}

impl Cause {
    /// As hosts show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Crash => "crash",
            Cause::Boot => "boot",
            Cause::BootTimeout => "bootTimeout",
            Cause::Blocked => "blocked",
            Cause::Frozen => "frozen",
            Cause::Corrupt => "corrupt",
            Cause::Charged => "charged",
            Cause::Killed => "killed",
            Cause::Scale => "scale",
            Cause::Retire => "retire",
            Cause::Stop => "stop",
        }
    }

    /// Ended by request: nothing went wrong.
    #[must_use]
    pub const fn is_asked(self) -> bool {
        matches!(self, Cause::Scale | Cause::Retire | Cause::Stop)
    }
}

/// Why a worker that works is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expiry {
    /// It was ready for `max_age`.
    Age,
    /// It had more than `max_memory` at three looks in a row.
    Memory,
    /// It has served `max_requests`.
    Requests,
}

impl Expiry {
    /// As hosts show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Expiry::Age => "age",
            Expiry::Memory => "memory",
            Expiry::Requests => "requests",
        }
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Code or signal; neither where the system cannot tell.
    pub exit: Exit,
    /// The kernel killed it because the control group's memory ran out.
    pub oom: bool,
}

/// A transition. Events of one supervisor come in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A process was started.
    Spawned {
        /// Which.
        worker: WorkerId,
        /// Its process id.
        pid: i32,
    },
    /// No process could be started, or none that is wanted still.
    SpawnFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        error: Error,
    },
    /// It has attached.
    Starting {
        /// Which.
        worker: WorkerId,
    },
    /// It takes work from now on.
    Ready {
        /// Which.
        worker: WorkerId,
        /// Time since its start.
        after: Duration,
    },
    /// A spare is loaded, and waits.
    Spare {
        /// Which.
        worker: WorkerId,
        /// Time since its start.
        after: Duration,
    },
    /// A spare has taken the place of a worker that has ended, or that was missing: it takes work from now on.
    Activated {
        /// What it was.
        spare: WorkerId,
        /// What it is from now on.
        worker: WorkerId,
    },
    /// No spare is started while a worker runs whose program knows nothing of its supervisor: such a program cannot wait.
    SpareRefused {
        /// Which.
        worker: WorkerId,
    },
    /// It hangs.
    Suspect {
        /// Which.
        worker: WorkerId,
        /// [`Cause::Blocked`] or [`Cause::Frozen`].
        cause: Cause,
        /// Where its loop stands, in lines, as the worker says itself; `None` where it does not, or not within 750 ms. 4,096 bytes of its own at most.
        stack: Option<String>,
    },
    /// A suspect goes on.
    Resumed {
        /// Which.
        worker: WorkerId,
    },
    /// It is to be replaced; it goes on until its successor is there.
    Expired {
        /// Which.
        worker: WorkerId,
        /// Why.
        why: Expiry,
    },
    /// It takes no work from now on.
    Draining {
        /// Which.
        worker: WorkerId,
        /// Why.
        cause: Cause,
    },
    /// A signal that is to end it was sent.
    Signalled {
        /// Which.
        worker: WorkerId,
        /// The signal.
        signal: i32,
        /// Why.
        cause: Cause,
    },
    /// It has ended. An owner that finds a task to blame calls `report_charged` from here.
    Exited {
        /// Which.
        worker: WorkerId,
        /// Why, as far as is known before the owner was heard.
        cause: Cause,
        /// How.
        ended: Ended,
        /// It was to finish its work and had to be signalled.
        forced: bool,
        /// Its own last words.
        text: Option<String>,
        /// Time since it was ready, if it was.
        uptime: Option<Duration>,
    },
    /// The slot rests before its next start.
    BackOff {
        /// Which.
        slot: u32,
        /// For so long.
        delay: Duration,
    },
    /// The slot is not started again while the supervisor is degraded.
    Quarantined {
        /// Which.
        slot: u32,
    },
    /// The replacement of a worker that was to retire did not start; the old one goes on.
    RetireFailed {
        /// Which.
        slot: u32,
    },
    /// All workers are replaced by a new generation, one after the other.
    Reloading {
        /// The new one.
        generation: u32,
    },
    /// They were.
    Reloaded(Reloaded),
    /// The first one came up and a later one did not: those that were replaced are replaced back.
    RollingBack {
        /// The new one.
        generation: u32,
        /// Why.
        error: Error,
    },
    /// The reload failed; all workers are of the old generation, which goes on.
    ReloadFailed {
        /// The new one.
        generation: u32,
        /// Why: the worker's own error, if it has left any.
        error: Error,
        /// Slots that could not go back; they are started with the old generation when they end.
        stuck: usize,
    },
    /// Each wanted worker failed to start, and none ever was ready. Starting goes on.
    StartFailed {
        /// The last worker's own error.
        error: Error,
    },
    /// Too many unstable exits: only one worker is tried from time to time.
    Degraded {
        /// How many.
        failures: usize,
        /// Within so long.
        window: Duration,
    },
    /// A worker was stable: all are started again.
    Recovered,
    /// The supervisor itself was held up; nobody is judged by what was missed.
    Skipped {
        /// For so long.
        late: Duration,
    },
    /// The process that workers are forked from was started.
    ZygoteStarted {
        /// Its process id.
        pid: i32,
    },
    /// It forks workers from now on.
    ZygoteReady {
        /// Its process id.
        pid: i32,
        /// Time since its start.
        after: Duration,
    },
    /// It has ended. Its workers go on; the next one gets another zygote.
    ZygoteEnded {
        /// Its process id.
        pid: i32,
        /// How.
        exit: Exit,
        /// Its own last words.
        text: Option<String>,
    },
    /// It cannot fork: workers are started by exec.
    ZygoteRefused {
        /// Why.
        text: String,
    },
    /// The last event: no process is left.
    Stopped,
}

impl Event {
    /// The process that it is about.
    pub(super) fn worker(&self) -> Option<WorkerId> {
        match self {
            Event::Spawned { worker, .. }
            | Event::SpawnFailed { worker, .. }
            | Event::Starting { worker }
            | Event::Ready { worker, .. }
            | Event::Spare { worker, .. }
            | Event::Activated { worker, .. }
            | Event::Suspect { worker, .. }
            | Event::Resumed { worker }
            | Event::Expired { worker, .. }
            | Event::Draining { worker, .. }
            | Event::Signalled { worker, .. }
            | Event::Exited { worker, .. } => Some(*worker),
            _ => None,
        }
    }
}

/// What one worker does, as its page says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// What it has served since its start ([`Worker::served`](super::Worker::served)); 0 where it does not count.
    pub served: u64,
    /// How late its loop is: by how much its next beat is overdue now, or the greatest lateness of one before, of which half is left after each second. `None` before its first beat.
    pub loop_delay: Option<Duration>,
}

/// What a reload has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// The new generation.
    pub generation: u32,
    /// Slots that have it.
    pub replaced: usize,
    /// Old workers that did not finish in time, and were signalled.
    pub forced: u64,
    /// From its beginning to the end of the last old worker.
    pub took: Duration,
}

/// Ends by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the causes have the text")]
pub struct Exits {
    pub crash: u64,
    pub boot: u64,
    pub boot_timeout: u64,
    pub blocked: u64,
    pub frozen: u64,
    pub corrupt: u64,
    pub charged: u64,
    pub killed: u64,
    pub scale: u64,
    pub retire: u64,
    pub stop: u64,
}

impl Exits {
    pub(super) fn of(&mut self, cause: Cause) -> &mut u64 {
        match cause {
            Cause::Crash => &mut self.crash,
            Cause::Boot => &mut self.boot,
            Cause::BootTimeout => &mut self.boot_timeout,
            Cause::Blocked => &mut self.blocked,
            Cause::Frozen => &mut self.frozen,
            Cause::Corrupt => &mut self.corrupt,
            Cause::Charged => &mut self.charged,
            Cause::Killed => &mut self.killed,
            Cause::Scale => &mut self.scale,
            Cause::Retire => &mut self.retire,
            Cause::Stop => &mut self.stop,
        }
    }

    /// Ends that were not by request ([`Cause::is_asked`]).
    #[must_use]
    pub fn unasked(&self) -> u64 {
        self.crash + self.boot + self.boot_timeout + self.blocked + self.frozen + self.corrupt + self.charged + self.killed
    }

    /// All ends.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.unasked() + self.scale + self.retire + self.stop
    }
}

/// Workers that were to be replaced, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the reasons have the text")]
pub struct Expiries {
    pub age: u64,
    pub memory: u64,
    pub requests: u64,
}

impl Expiries {
    /// All.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.age + self.memory + self.requests
    }

    pub(super) fn of(&mut self, why: Expiry) -> &mut u64 {
        match why {
            Expiry::Age => &mut self.age,
            Expiry::Memory => &mut self.memory,
            Expiry::Requests => &mut self.requests,
        }
    }
}

/// Counts since the supervisor was made, and where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Workers wanted.
    pub wanted: usize,
    /// Of the last (re)load that succeeded.
    pub generation: u32,
    /// Workers' processes that have not ended.
    pub live: usize,
    /// Processes that take work.
    pub ready: usize,
    /// Spares that wait.
    pub spares: usize,
    /// It is degraded.
    pub degraded: bool,
    /// Processes started.
    pub spawned: u64,
    /// … as forks of a zygote.
    pub forked: u64,
    /// Zygotes started.
    pub zygotes: u64,
    /// Starts that failed.
    pub spawn_failed: u64,
    /// Workers that became ready, and spares.
    pub became_ready: u64,
    /// Spares that took a worker's place.
    pub activated: u64,
    /// Ends by cause; the owner's word is in.
    pub exits: Exits,
    /// Ends for want of memory.
    pub oom: u64,
    /// Workers that did not finish in time when they were asked to end.
    pub forced: u64,
    /// Suspicions.
    pub suspected: u64,
    /// Suspects that went on.
    pub resumed: u64,
    /// Workers that were to be replaced, by reason; each counts once.
    pub expired: Expiries,
    /// What workers have served, those that have ended too ([`Worker::served`](super::Worker::served)).
    pub served: u64,
    /// Replacements that took over.
    pub retired: u64,
    /// Replacements that failed.
    pub retire_failed: u64,
    /// Reloads that succeeded.
    pub reloads: u64,
    /// Reloads that failed, and were rolled back.
    pub reloads_failed: u64,
    /// Times it became degraded.
    pub degradations: u64,
    /// Times it recovered.
    pub recoveries: u64,
    /// Messages about processes that were gone.
    pub late: u64,
    /// Rounds without judgement because the supervisor was held up.
    pub skipped: u64,
}
