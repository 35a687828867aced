//! Keeps worker processes alive: starts them, watches them, replaces them with back-off, and ends them. It knows neither tasks nor sockets.
//!
//! ```text
//!  owner ── scale, retire, report_charged, kill, stop ──►┐                    ┌── events, on_event
//!                                                        ▼                    ▲
//!  worker ── page (memfd), lifeline (socket), pidfd ──► driver ── Input ──► plan ── Action ──┐
//!     ▲                                                  ▲  one thread        (pure)         │
//!     └──────────── spawn, signal, drain ────────────────┴───────────────────────────────────┘
//! ```
//!
//! * `plan`: the state machine of all `slots`, those of spares included, pure; `restart`: back-off and intensity, pure. Both run in a simulation with a model world.
//! * `driver`: one native thread per process for all its supervisors, started with the first and ended with the last.
//! * `forks`: the driver's zygotes, of which workers are forks where that is asked for; `zygote`: their side, [`zygote::attach`].
//! * `page`, and `wire::supervisor`: what supervisor and worker show each other.
//! * `worker`: the worker's side, which any program may use: [`worker::attach`]; `stall`: what it says of a loop that stands still.
//! * `options`, `event`: the options' table, events and counts.
//!
//! User documentation with the table of options: `docs/supervision.md`.

mod driver;
mod event;
mod forks;
mod options;
mod page;
mod plan;
mod reload;
mod restart;
mod slots;
mod stall;
#[cfg(test)]
mod tests;
pub mod worker;
pub mod zygote;

pub use event::{Cause, Ended, Event, Exits, Expiries, Expiry, FIRST_SPARE, Load, Reloaded, State, Stats, WorkerId};
pub use options::{MAX_DURATION, MAX_WORKERS, Options, ScaleDown};
pub use stall::Stall;
pub use worker::Worker;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::sys::fork::PrivateFd;
use crate::sys::process::Spec;
use crate::sys::{clock, fork};
use driver::{Hub, Order, Shared};
use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

thread_local! {
    /// In which process this thread is one that a supervisor may wait for.
    static CALLED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Calls what a supervisor may wait for, such as a function of the host: no wait for a supervisor is allowed in it. A panic in it is swallowed.
pub(crate) fn call_host(call: impl FnOnce()) {
    let before = CALLED.replace(Some(fork::epoch()));
    let _ = catch_unwind(AssertUnwindSafe(call));
    CALLED.set(before);
}

fn is_called() -> bool {
    CALLED.get().is_some_and(fork::is_current)
}

/// Whether this thread may wait for supervisors.
///
/// # Errors
/// `Invalid` in what is called by [`call_host`].
pub(crate) fn check_wait() -> Result<()> {
    if is_called() {
        return Err(Error::invalid("what hears of events or messages cannot wait for the workers"));
    }
    Ok(())
}

/// How one worker is started.
#[derive(Debug)]
pub struct Launch {
    /// The program. Two numbers that neither `fds` takes, and the variable `OFFLOOP_SUPERVISOR`, are added to it; without a `death_signal` it
    /// gets `SIGKILL` for the case that this process dies before the worker has attached. Of a worker that a zygote forks, only `new_group`
    /// counts.
    pub spec: Spec<'static>,
    /// Variables of this worker's own, which replace those of `spec`.
    pub env: Vec<(OsString, OsString)>,
    /// `(fd, number)`: fds of this worker's own, closed here once it has them.
    pub fds: Vec<(PrivateFd, RawFd)>,
}

impl From<Spec<'static>> for Launch {
    fn from(spec: Spec<'static>) -> Launch {
        Launch { spec, env: Vec::new(), fds: Vec::new() }
    }
}

/// The process that workers are forks of ([`Builder::zygote`]).
#[derive(Debug)]
pub struct Zygote {
    /// Its program, which calls [`zygote::attach`]. Workers have its directory, niceness, signal dispositions and environment. The variable
    /// `OFFLOOP_ZYGOTE` and the numbers from 3 to 33 that `fds` leaves free are added to it.
    pub launch: Launch,
    /// What it reads there.
    pub setup: Vec<u8>,
}

type Listener = Box<dyn FnMut(&Event) + Send>;
type Launcher = Box<dyn FnMut(WorkerId) -> Result<Launch> + Send>;
type ZygoteLauncher = Box<dyn FnMut() -> Result<Zygote> + Send>;

/// Makes a [`Supervisor`].
#[must_use]
pub struct Builder {
    options: Options,
    listener: Option<Listener>,
    zygote: Option<ZygoteLauncher>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Builder {
    /// All options at once.
    pub fn options(mut self, options: Options) -> Builder {
        self.options = options;
        self
    }

    /// Workers from the start on. Default 1.
    pub fn workers(mut self, workers: usize) -> Builder {
        self.options.workers = workers;
        self
    }

    /// Workers that wait, loaded, for another to end ([`Event::Activated`]). Default 0.
    pub fn spares(mut self, spares: usize) -> Builder {
        self.options.spares = spares;
        self
    }

    /// Most workers that start at once. Default: usable cores.
    pub fn max_starting(mut self, n: usize) -> Builder {
        self.options.max_starting = Some(n);
        self
    }

    /// Unstable exits within `window` after which it is degraded. Default 5, or twice the workers.
    pub fn max_failures(mut self, n: usize) -> Builder {
        self.options.max_failures = Some(n);
        self
    }

    /// Sent to a suspect, whose runtime writes its stacks. Default: none.
    pub fn dump_signal(mut self, signal: i32) -> Builder {
        self.options.dump_signal = Some(signal);
        self
    }

    /// A worker that was ready for so long, ±10 %, is replaced, its successor first. At least 1 s. Default: none is.
    pub fn max_age(mut self, age: Duration) -> Builder {
        self.options.max_age = Some(age);
        self
    }

    /// A worker that has more memory (bytes, PSS) at three looks in a row, one a second, is replaced, its successor first. At least 1 MiB.
    /// Default: none is.
    pub fn max_memory(mut self, bytes: u64) -> Builder {
        self.options.max_memory = Some(bytes);
        self
    }

    /// A worker that has served so many requests ([`Worker::served`]), ±10 %, is replaced, its successor first. Default: none is.
    pub fn max_requests(mut self, requests: u64) -> Builder {
        self.options.max_requests = Some(requests);
        self
    }

    /// A worker that lives for so long without having attached is taken as ready, is not judged by beats, and is asked to finish by `SIGTERM`.
    /// Default: none is.
    pub fn ready_after(mut self, after: Duration) -> Builder {
        self.options.ready_after = Some(after);
        self
    }

    /// Which workers leave first. Default: the youngest.
    pub fn scale_down(mut self, order: ScaleDown) -> Builder {
        self.options.scale_down = order;
        self
    }

    /// Makes workers forks of one process that has loaded what they need: a zygote, which starts with the supervisor and is started again,
    /// when it has died, for the next worker. `launch` says what to run, on the supervisors' thread. The workers' own program is what the
    /// zygote goes on with after [`serve`](zygote::Zygote::serve); `boot_timeout` includes what the zygote has left to load.
    ///
    /// Where it refuses to fork (it has threads) or pidfds are denied, workers are started by exec, and the event is `ZygoteRefused`; so is one
    /// worker whose fds have other numbers than 0 to 31, or that has more than 64. How a worker ended is known from its zygote; if that died
    /// before, it may be unknown.
    pub fn zygote(mut self, launch: impl FnMut() -> Result<Zygote> + Send + 'static) -> Builder {
        self.zygote = Some(Box::new(launch));
        self
    }

    /// Called with each event, in order, on the supervisors' thread and under no lock. It may call any method of the supervisor but those
    /// that wait. All supervisors of this process wait for it, so it is short; a panic in it is swallowed.
    pub fn on_event(mut self, listener: impl FnMut(&Event) + Send + 'static) -> Builder {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Starts the supervisor, which starts its workers. `launch` is called on the supervisors' thread for each start and says what to run.
    ///
    /// # Errors
    /// `Invalid` for an option, `Os` when an fd or the thread cannot be made.
    pub fn build(self, launch: impl FnMut(WorkerId) -> Result<Launch> + Send + 'static) -> Result<Supervisor> {
        self.options.check()?;
        if self.zygote.is_some() && self.options.ready_after.is_some() {
            return Err(Error::invalid("forks of a zygote say themselves when they are ready").with("option", "ready_after"));
        }
        let shared = Arc::new(Shared::new());
        let hub = driver::add(&self.options, Box::new(launch), self.zygote, self.listener, &shared)?;
        Ok(Supervisor(Arc::new(Handle { shared, hub, epoch: fork::epoch() })))
    }
}

/// Keeps workers alive. Copies of the handle are the same supervisor; when the last is dropped, its workers are killed.
#[derive(Clone)]
pub struct Supervisor(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    epoch: u64,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("forked", &!fork::is_current(self.0.epoch)).finish_non_exhaustive()
    }
}

/// How long a drop waits for killed processes to be gone. Only one in an uninterruptible call takes longer.
const DROP_WAIT: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Begins one with default options.
    pub fn builder() -> Builder {
        Builder { options: Options::default(), listener: None, zygote: None }
    }

    /// So many workers from now on. More are started at once, as many as `max_starting` allows; who is one too many finishes its work.
    ///
    /// # Errors
    /// `Invalid` above [`MAX_WORKERS`], `Closed` after `stop`, `Forked`.
    pub fn scale(&self, workers: usize) -> Result<()> {
        options::check_workers(workers)?;
        self.check_fork()?;
        lock(&self.0.shared.board).scaling += 1;
        let ordered = self.order(Order::Scale(workers));
        if ordered.is_err() {
            lock(&self.0.shared.board).scaling -= 1;
        }
        ordered
    }

    /// One worker less from now on, and it is this one: it finishes its work. If it has ended, its slot is not started
    /// again; nothing happens once the slot has another worker.
    ///
    /// # Errors
    /// `Closed` after `stop`, `Forked`.
    pub fn release(&self, worker: WorkerId) -> Result<()> {
        self.order(Order::Release(worker))
    }

    /// Replaces the ready worker of `slot`: the new one first, then the old one finishes its work. One slot at a time; a slot without a ready
    /// worker is left alone.
    ///
    /// # Errors
    /// `Closed` after `stop`, `Forked`.
    pub fn retire(&self, slot: u32) -> Result<()> {
        self.order(Order::Retire(slot))
    }

    /// Replaces all workers by a new generation, whose number is returned, without being fewer at any time: the new worker of a slot starts
    /// beside the old one, and when it was ready for `min_ready` the old one finishes its work; one slot after the other. What `launch` gives for the new [`generation`](WorkerId::generation) is what runs.
    /// The first new worker is the canary: if it fails, nothing was changed. If a later one fails three times, or too many workers fail, those
    /// that were replaced are replaced back. Workers of a zygote are still its forks.
    ///
    /// # Errors
    /// `InUse` while a reload is under way, `Closed` after `stop`, `Forked`.
    pub fn reload(&self) -> Result<u32> {
        Ok(self.reload_from(None)?.1)
    }

    /// As [`reload`](Self::reload), and also the generation that ran until then; `InUse` where that is another than `of`.
    pub(crate) fn reload_from(&self, of: Option<u32>) -> Result<(u32, u32)> {
        self.check_fork()?;
        let mut board = lock(&self.0.shared.board);
        if board.closing {
            return Err(Error::new(ErrorKind::Closed, "supervisor was stopped"));
        }
        if board.reloading {
            return Err(Error::new(ErrorKind::InUse, "a reload is under way").with("generation", board.generation));
        }
        let runs = board.stats.generation;
        if of.is_some_and(|of| of != runs) {
            return Err(Error::new(ErrorKind::InUse, "another reload has ended meanwhile").with("generation", runs));
        }
        board.generation += 1;
        board.reloading = true;
        let generation = board.generation;
        drop(board);
        self.0.hub.order(&self.0.shared, Order::Reload(generation));
        Ok((runs, generation))
    }

    /// Waits until the reload to this generation is over, at most `timeout` (`None`: without end).
    ///
    /// # Errors
    /// What made it fail: `StartFailed` with the worker's own error, `Degraded`. `NotFound` for one that a later reload has followed, or that never was; `Timeout`,
    /// `Closed` after `stop`, `Forked`.
    pub fn wait_reload(&self, generation: u32, timeout: Option<Duration>) -> Result<Reloaded> {
        self.wait(timeout, |board| {
            if let Some((_, outcome)) = board.reloaded.as_ref().filter(|(last, _)| *last == generation) {
                Some(outcome.clone())
            } else if board.closing || board.stopped {
                Some(Err(Error::new(ErrorKind::Closed, "supervisor was stopped")))
            } else {
                let under_way = board.reloading && board.generation == generation;
                (!under_way).then(|| Err(Error::new(ErrorKind::NotFound, "no such reload").with("generation", generation)))
            }
        })?
    }

    /// Says that the end of this worker, now, soon or past, is to be put down to a task that it ran: it is replaced without delay and counts
    /// neither for back-off nor for degradation. A worker that never was ready ran no task: then it is ignored.
    ///
    /// # Errors
    /// `Closed` after `stop`, `Forked`.
    pub fn report_charged(&self, worker: WorkerId) -> Result<()> {
        self.order(Order::Charged(worker))
    }

    /// Ends this worker with `SIGKILL`. It is replaced without delay and counts for nothing.
    ///
    /// # Errors
    /// `Closed` after `stop`, `Forked`.
    pub fn kill(&self, worker: WorkerId) -> Result<()> {
        self.order(Order::Kill(worker))
    }

    /// Sends a signal to this worker's process, whoever has its number by now; false when it has ended, and before it was started.
    ///
    /// # Errors
    /// `Os` with `EPERM` (it runs as another user) or `EINVAL` (no such signal), `Forked`.
    pub fn signal(&self, worker: WorkerId, signal: i32) -> Result<bool> {
        self.check_fork()?;
        let child = lock(&self.0.shared.board).children.get(&worker).cloned();
        child.map_or(Ok(false), |child| child.kill(signal))
    }

    /// Ends all workers: each has `grace` to finish its work, then `SIGTERM`, and `SIGKILL` after `kill_grace`. A second call can make the
    /// time shorter. Does not wait; the last event is `Stopped`.
    ///
    /// # Errors
    /// `Invalid` for more than [`MAX_DURATION`], `Forked`.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        options::check_duration("grace", grace, Duration::ZERO)?;
        self.end(Order::Stop(plan::nanos(grace)))
    }

    /// Ends all workers with `SIGKILL`. Does not wait.
    ///
    /// # Errors
    /// `Forked`.
    pub fn stop_now(&self) -> Result<()> {
        self.end(Order::StopNow)
    }

    fn check_fork(&self) -> Result<()> {
        if fork::is_current(self.0.epoch) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, "supervisor belongs to this process's parent"))
    }

    fn order(&self, order: Order) -> Result<()> {
        self.check_fork()?;
        if lock(&self.0.shared.board).closing {
            return Err(Error::new(ErrorKind::Closed, "supervisor was stopped"));
        }
        self.0.hub.order(&self.0.shared, order);
        Ok(())
    }

    fn end(&self, order: Order) -> Result<()> {
        self.check_fork()?;
        lock(&self.0.shared.board).closing = true;
        self.0.shared.changed.notify_all();
        self.0.hub.order(&self.0.shared, order);
        Ok(())
    }

    /// Counts. They are there before the event is told that they belong to; an end is counted when the owner was heard about it.
    ///
    /// # Errors
    /// `Forked`.
    pub fn stats(&self) -> Result<Stats> {
        self.check_fork()?;
        Ok(self.view().stats())
    }

    /// Each slot with its last incarnation and where it stands.
    ///
    /// # Errors
    /// `Forked`.
    pub fn slots(&self) -> Result<Vec<(WorkerId, State)>> {
        self.check_fork()?;
        Ok(lock(&self.0.shared.board).slots.clone())
    }

    /// What each process does that has not ended: read at this moment, from pages that the workers write.
    ///
    /// # Errors
    /// `Forked`.
    pub fn loads(&self) -> Result<Vec<(WorkerId, Load)>> {
        self.check_fork()?;
        Ok(self.view().loads())
    }

    /// Who looks on without keeping the supervisor alive.
    pub(crate) fn view(&self) -> View {
        View(Arc::clone(&self.0.shared))
    }

    /// Waits until as many workers are ready as are wanted, at most `timeout` (`None`: without end).
    ///
    /// # Errors
    /// `StartFailed` with the worker's own error when each failed at its first start and none ever was ready, `Degraded`, `Timeout`,
    /// `Closed` after `stop`, `Forked`.
    pub fn wait_ready(&self, timeout: Option<Duration>) -> Result<()> {
        self.wait(timeout, |board| {
            let stats = &board.stats;
            if board.closing || board.stopped {
                Some(Err(Error::new(ErrorKind::Closed, "supervisor was stopped")))
            } else if let Some(error) = &board.start_error {
                Some(Err(error.clone()))
            } else if stats.degraded {
                Some(Err(Error::new(ErrorKind::Degraded, "too many workers fail").with("ready", stats.ready).with("wanted", stats.wanted)))
            } else {
                (board.scaling == 0 && stats.ready >= stats.wanted).then_some(Ok(()))
            }
        })?
    }

    /// Waits until no process is left after `stop`, at most `timeout` (`None`: without end).
    ///
    /// # Errors
    /// `Timeout`, `Forked`.
    pub fn wait_stopped(&self, timeout: Option<Duration>) -> Result<()> {
        self.wait(timeout, |board| board.stopped.then_some(()))
    }

    fn wait<T>(&self, timeout: Option<Duration>, done: impl Fn(&driver::Board) -> Option<T>) -> Result<T> {
        self.check_fork()?;
        check_wait()?;
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut board = lock(&self.0.shared.board);
        loop {
            if let Some(found) = done(&board) {
                return Ok(found);
            }
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            board = match left {
                Some(left) if left.is_zero() => {
                    let s = &board.stats;
                    return Err(Error::new(ErrorKind::Timeout, "workers are not where they were waited for")
                        .with("ready", s.ready)
                        .with("live", s.live)
                        .with("wanted", s.wanted));
                }
                Some(left) => relock(self.0.shared.changed.wait_timeout(board, left).map(|(board, _)| board).map_err(|e| e.into_inner().0)),
                None => relock(self.0.shared.changed.wait(board).map_err(std::sync::PoisonError::into_inner)),
            };
        }
    }
}

/// What a supervisor shows, also when it has stopped. It is of no use in a forked child.
#[derive(Clone)]
pub(crate) struct View(Arc<Shared>);

impl View {
    /// As [`Supervisor::stats`].
    pub(crate) fn stats(&self) -> Stats {
        lock(&self.0.board).stats()
    }

    /// It was stopped, or is about to be.
    pub(crate) fn is_stopping(&self) -> bool {
        lock(&self.0.board).closing
    }

    /// As [`Supervisor::loads`].
    pub(crate) fn loads(&self) -> Vec<(WorkerId, Load)> {
        let now = clock::monotonic_ns();
        lock(&self.0.board).pages.iter().map(|(id, page)| (*id, page.load(now))).collect()
    }
}

/// A lock is never left poisoned: see `sync::lock`.
fn relock<T>(result: std::result::Result<T, T>) -> T {
    result.unwrap_or_else(|board| board)
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A forked child's workers are its parent's.
        if !fork::is_current(self.epoch) {
            return;
        }
        self.hub.order(&self.shared, Order::StopNow);
        if is_called() {
            return;
        }
        let until = Instant::now() + DROP_WAIT;
        let mut board = lock(&self.shared.board);
        while !board.stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            board = relock(self.shared.changed.wait_timeout(board, left).map(|(board, _)| board).map_err(|e| e.into_inner().0));
        }
    }
}
