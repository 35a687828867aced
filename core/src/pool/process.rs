//! [`ProcessPool`]: functions in worker processes, kept alive by the supervisor, over one [lane](super::lane) each.
//!
//! ```text
//!  submit ─► scheduler ─► LoopWorker ─► lane ─► process         a *seat* is a process and its lane; a ready one gets
//!     ▲                       ▲           │                      a worker of the pool, which feeds it
//!     └── outcome ◄── feed ◄──┘◄── bell ──┘
//! ```
//!
//! Whoever submits feeds the lanes that its submit woke, on its own thread, so that a request is one wake away from its worker. One native
//! thread per pool (`offloop-lanes`) sleeps on the bell that all workers ring, collects what has ended and feeds what runs low.
//!
//! The pool asks for workers when it has work, and for so many processes; the supervisor keeps them alive. A process that is ready
//! without a worker of the pool (it was replaced, and there is no work) is a spare, and leaves after `idle_timeout`.
//!
//! | Pair                                        | Release                              | Acquire                      |
//! |---------------------------------------------|--------------------------------------|------------------------------|
//! | "it is over" and the supervisor             | fences (SeqCst) in `Host::stop` and `Host::start`, between store and look |
//! | "look again" and "I have the seat's worker" | fences (SeqCst) in `Host::feed`, after the store of `again` and after the lock was given back |

use crate::error::{Error, ErrorKind, Result};
use crate::pool::lane::{Lane, Payloads, Request, SharedPart, Streamed};
use crate::pool::looped::{Fed, Given, LANE_AHEAD, LoopHost, LoopOptions, LoopWorker, held_at_once};
use crate::pool::options::{PoolOptions, SubmitOptions};
use crate::pool::task::{Task, Work};
use crate::pool::thread::{SubmitError, ThreadPool};
use crate::supervisor::{self, Cause, Ended, Event, Launch, Supervisor, WorkerId, Zygote};
use crate::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, fence};
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::fork::PrivateFd;
use crate::sys::process::{self, Spec};
use crate::sys::{clock, fork, poll, thread};
use crate::value::Value;
use crate::wire::lane::{POOL_BELL, WAITER_BELL};
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// What a worker process has for its `teardown` when the pool is done with it.
const TEARDOWN: Duration = Duration::from_secs(5);
/// How often lanes are looked at that nobody rings for: a worker may write over the word by which it knows that it has to.
const RELOOK: Duration = Duration::from_secs(1);
/// How often the memory of the processes is looked at.
const WEIGH: Duration = Duration::from_secs(1);
/// The numbers that a lane's fds have in a worker, from this one on.
const FIRST_FD: RawFd = 10;

type Launcher = Box<dyn FnMut(WorkerId) -> Result<Spec<'static>> + Send>;
type Listener = Box<dyn FnMut(&Event) + Send>;
type ZygoteLauncher = Box<dyn FnMut() -> Result<Spec<'static>> + Send>;

/// What the pool's owner has given for its supervisor.
struct Starter {
    launch: Mutex<Launcher>,
    listener: Mutex<Option<Listener>>,
    /// With what it reads.
    zygote: Option<(Mutex<ZygoteLauncher>, Vec<u8>)>,
}

/// Makes a [`ProcessPool`].
pub struct ProcessPoolBuilder {
    options: PoolOptions,
    concurrency: usize,
    cancel_grace: Duration,
    setup: Vec<u8>,
    supervision: supervisor::Options,
    listener: Option<Listener>,
    zygote: Option<(ZygoteLauncher, Vec<u8>)>,
}

impl fmt::Debug for ProcessPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPoolBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl ProcessPoolBuilder {
    /// Workers, queue, name: as of every pool.
    #[must_use]
    pub fn options(mut self, options: PoolOptions) -> Self {
        self.options = options;
        self
    }

    /// Tasks that one worker may run at once. Default 1.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// How long a task that nobody waits for may go on before its worker is ended. Default 1 s.
    #[must_use]
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.cancel_grace = grace;
        self
    }

    /// What each worker reads when it starts ([`Worker::setup`](super::lane::Worker::setup)). Default: nothing.
    #[must_use]
    pub fn setup(mut self, setup: Vec<u8>) -> Self {
        self.setup = setup;
        self
    }

    /// How workers are kept alive. `workers` is the pool's business; a worker whose loop stands still is not ended, because a task may take
    /// long, unless `hang_timeout` is set here.
    #[must_use]
    pub fn supervision(mut self, options: supervisor::Options) -> Self {
        self.supervision = options;
        self
    }

    /// Called with each event of a worker process, in order, on the supervisors' thread: it must be short and may not wait for the pool.
    #[must_use]
    pub fn on_event(mut self, listener: impl FnMut(&Event) + Send + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Makes workers forks of one process ([`supervisor::zygote`]), which starts with the pool, loads what they need, and lives as long as the
    /// pool. `launch` says what to run, on the supervisors' thread; `setup` is what it reads. Default: each worker is started by exec.
    #[must_use]
    pub fn zygote(mut self, setup: Vec<u8>, launch: impl FnMut() -> Result<Spec<'static>> + Send + 'static) -> Self {
        self.zygote = Some((Box::new(launch), setup));
        self
    }

    /// Checks the options and makes the pool. `launch` says what to start for each worker, on the supervisors' thread; no process and no
    /// thread starts before the first task, but for those of a zygote.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits; `Os` when there is no fd or memory for the pool, or no thread for its zygote.
    pub fn build(self, launch: impl FnMut(WorkerId) -> Result<Spec<'static>> + Send + 'static) -> Result<ProcessPool> {
        self.supervision.check()?;
        let idle_timeout = self.options.idle_timeout;
        let max_memory = self.options.max_worker_memory;
        let has_zygote = self.zygote.is_some();
        let host = Arc::new_cyclic(|me| Host {
            me: me.clone(),
            name: self.options.name.clone(),
            nice: self.options.nice,
            concurrency: self.concurrency,
            cancel_grace: self.cancel_grace,
            idle_timeout,
            max_memory,
            setup: self.setup,
            payloads: OnceLock::new(),
            bells: OnceLock::new(),
            leading: AtomicBool::new(false),
            supervision: self.supervision,
            starter: Mutex::new(Some(Arc::new(Starter {
                launch: Mutex::new(Box::new(launch)),
                listener: Mutex::new(self.listener),
                zygote: self.zygote.map(|(launch, setup)| (Mutex::new(launch), setup)),
            }))),
            supervisor: OnceLock::new(),
            seats: Mutex::default(),
            last_tag: AtomicU64::new(0),
            timed: AtomicBool::new(false),
            over: AtomicBool::new(false),
            epoch: fork::epoch(),
        });
        let looped = LoopOptions { host: host.clone(), concurrency: self.concurrency, cancel_grace: self.cancel_grace };
        let pool = ThreadPool::builder().options(self.options).looped(looped).build()?;
        // Limits are checked; now what is needed before anything can be submitted.
        let _ = host.payloads.set(Payloads::new()?);
        let _ = host.bells.set([EventFd::new()?, EventFd::new()?]);
        if has_zygote {
            host.ensure_supervisor()?;
        }
        Ok(ProcessPool(Arc::new(Handle { pool, host })))
    }
}

/// A pool of worker processes. Clones are handles on the same pool; when the last is dropped, what is queued still runs.
#[derive(Clone)]
pub struct ProcessPool(Arc<Handle>);

struct Handle {
    pool: ThreadPool,
    host: Arc<Host>,
}

impl fmt::Debug for ProcessPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessPool").field(&self.0.pool).finish()
    }
}

impl ProcessPool {
    /// Begins one with default options.
    #[must_use]
    pub fn builder() -> ProcessPoolBuilder {
        let supervision = supervisor::Options { hang_timeout: Duration::ZERO, workers: 0, ..supervisor::Options::default() };
        ProcessPoolBuilder {
            options: PoolOptions::default(),
            concurrency: 1,
            cancel_grace: Duration::from_secs(1),
            setup: Vec::new(),
            supervision,
            listener: None,
            zygote: None,
        }
    }

    fn check_fork(&self) -> Result<()> {
        if fork::is_current(self.0.host.epoch) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, "process pool belongs to this process's parent").with("pool", &self.0.host.name))
    }

    /// A request of the bytes of `parts`, one after the other: copied, so that the caller may change them afterwards.
    ///
    /// # Errors
    /// `TooLarge` for more than the pool's shared memory, `Full` when that is in use, `Os` (`ENOMEM`, `ENOSPC`), `Forked`.
    pub fn request(&self, parts: &[&[u8]]) -> Result<Request> {
        self.check_fork()?;
        self.0.host.payloads().request(parts, Vec::new())
    }

    /// As [`request`](Self::request), of bytes that say where something lies in memory of [`share`](Self::share): it stays there while the
    /// task or its worker's [`Payload`](crate::pool::Payload) of this request lives.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub fn request_with(&self, parts: &[&[u8]], shared: Vec<SharedPart>) -> Result<Request> {
        self.check_fork()?;
        self.0.host.payloads().request(parts, shared)
    }

    /// `len` bytes, all 0, of memory that this process and the workers write. Pages take memory when they are first written; where there is
    /// none left by then, that ends the process which writes.
    ///
    /// # Errors
    /// `TooLarge` for more than the pool can share, `Full` when that is in use, `Forked`.
    pub fn share(&self, len: usize) -> Result<SharedPart> {
        self.check_fork()?;
        self.0.host.payloads().share(len)
    }

    /// The part of [`share`](Self::share) that has the `len` bytes from `ptr` on, and what a worker finds these by; `None` for other memory.
    ///
    /// # Errors
    /// `Forked`.
    pub fn shared_at(&self, ptr: *const u8, len: usize) -> Result<Option<(SharedPart, u64)>> {
        self.check_fork()?;
        Ok(self.0.host.payloads().shared(ptr, len))
    }

    /// Submits one task. Its result is `Bytes`, or a `Buffer` where it is long: what the worker replied, an error of the function included.
    ///
    /// # Errors
    /// As [`ThreadPool::submit`]; `Forked`.
    pub fn submit(&self, request: Request, options: SubmitOptions) -> Result<Task, SubmitError> {
        self.submitting(vec![Work::hosted(Box::new(request))], |mut work| self.0.pool.submit(work.remove(0), options))
    }

    /// Submits several tasks with one wake: all or none.
    ///
    /// # Errors
    /// As [`ThreadPool::submit_many`]; `Forked`.
    pub fn submit_many(&self, requests: Vec<Request>, options: &SubmitOptions) -> Result<Vec<Task>, SubmitError> {
        let work = requests.into_iter().map(|request| Work::hosted(Box::new(request))).collect();
        self.submitting(work, |work| self.0.pool.submit_many(work, options))
    }

    /// Submits a task whose function says something while it runs: one record after the other, see [`Streamed::next`].
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn stream(&self, request: Request, options: SubmitOptions) -> Result<Streamed, SubmitError> {
        Streamed::new(|stream| self.submit(request.streaming(stream), options))
    }

    /// As [`submit`](Self::submit) of prepared work, by any of the pool's own submits: `submit` is called with it.
    ///
    /// # Errors
    /// Of `submit`; `Forked`.
    pub fn submitting<T>(&self, work: Vec<Work>, submit: impl FnOnce(Vec<Work>) -> Result<T, SubmitError>) -> Result<T, SubmitError> {
        if let Err(error) = self.check_fork() {
            return Err(SubmitError { error, work });
        }
        let feeding = Feeding::begin();
        let submitted = submit(work);
        if feeding.end() {
            self.0.host.feed_poked();
        }
        submitted
    }

    /// The pool's queue and scheduler: `stats`, `resize`, `close`, and submits that deliver elsewhere, inside of
    /// [`submitting`](Self::submitting).
    #[must_use]
    pub fn pool(&self) -> &ThreadPool {
        &self.0.pool
    }

    /// Counts of the worker processes; `None` before the first task.
    #[must_use]
    pub fn processes(&self) -> Option<supervisor::Stats> {
        self.0.host.supervisor.get().and_then(|s| s.stats().ok())
    }

    /// Refuses new tasks, waits until what is queued has run, at most for `grace` (`None`: without end), then cancels the rest and ends the
    /// processes. No process is left when it returns, but one in an uninterruptible call.
    ///
    /// # Errors
    /// `Invalid` inside a function of this pool without a limit, `Forked`.
    pub fn shutdown(&self, grace: Option<Duration>) -> Result<()> {
        self.check_fork()?;
        self.0.pool.close();
        self.0.host.bell().signal();
        self.0.pool.shutdown(grace)?;
        let stats = self.0.pool.stats();
        // What runs on has been cancelled, and nobody waits for it.
        self.0.host.stop(if stats.running + stats.overdue > 0 { Duration::ZERO } else { TEARDOWN });
        if let Some(supervisor) = self.0.host.supervisor.get() {
            let supervision = &self.0.host.supervision;
            supervisor.wait_stopped(Some(TEARDOWN + supervision.kill_grace + Duration::from_secs(5)))?;
        }
        Ok(())
    }

    /// As [`ThreadPool::close_within`]; `on_closed` is called when every task has its outcome, and the processes end meanwhile: those of a
    /// pool in which a cancelled task goes on within `cancel_grace`.
    ///
    /// # Errors
    /// As [`ThreadPool::close_within`]; `Forked`.
    pub fn close_within(&self, grace: Option<Duration>, on_closed: Box<dyn FnOnce() + Send>) -> Result<()> {
        self.check_fork()?;
        let (host, pool) = (self.0.host.clone(), self.0.pool.clone());
        let ended = Box::new(move || {
            let stats = pool.stats();
            // What runs on has been cancelled, and nobody waits for it.
            host.stop(if stats.running + stats.overdue > 0 { host.cancel_grace.min(TEARDOWN) } else { TEARDOWN });
            on_closed();
        });
        self.0.pool.close_within(grace, ended)?;
        self.0.host.bell().signal();
        Ok(())
    }

    /// Waits until every accepted task of a closing pool has its outcome, at most so long; true if so. A forked child waits for nothing: the
    /// tasks are its parent's.
    #[must_use]
    pub fn wait_closed(&self, timeout: Option<Duration>) -> bool {
        if self.check_fork().is_err() {
            return true;
        }
        // Whoever waits for a process may have nothing to do by now: what it was for was cancelled.
        self.0.host.bell().signal();
        self.0.pool.wait_closed(timeout)
    }

    /// Cancels everything that has no outcome yet, refuses new tasks, and kills the processes.
    ///
    /// # Errors
    /// `Forked`.
    pub fn terminate(&self) -> Result<()> {
        self.check_fork()?;
        self.0.pool.terminate();
        self.0.host.stop(Duration::ZERO);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !fork::is_current(self.host.epoch) {
            return;
        }
        // What is queued still runs; the processes end after it.
        let host = self.host.clone();
        if self.pool.close_within(None, Box::new(move || host.stop(TEARDOWN))).is_err() {
            self.host.stop(Duration::ZERO);
        }
        self.host.bell().signal();
    }
}

thread_local! {
    /// This thread feeds the lanes that it wakes itself, when it is done with what wakes them.
    static FEEDING: Cell<bool> = const { Cell::new(false) };
}

/// As long as it lives, this thread feeds; also when what it does panics.
struct Feeding {
    before: bool,
}

impl Feeding {
    fn begin() -> Feeding {
        Feeding { before: FEEDING.replace(true) }
    }

    /// True if nobody further up on this thread feeds.
    fn end(self) -> bool {
        !self.before
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        FEEDING.set(self.before);
    }
}

/// One process with its lane.
struct Seat {
    id: WorkerId,
    tag: u64,
    lane: Arc<Lane>,
    /// 0 before it is known.
    pid: AtomicI32,
    /// The pool's worker that feeds it.
    worker: Mutex<Option<LoopWorker>>,
    /// Somebody wants it fed.
    again: AtomicBool,
    /// Its worker was woken.
    poked: AtomicBool,
    /// When it began to have nothing to do, ns; 0: it has.
    idle_since: AtomicU64,
}

#[derive(Default)]
struct Seats {
    /// Workers that wait for a process.
    pending: VecDeque<LoopWorker>,
    all: HashMap<WorkerId, Arc<Seat>>,
    /// Ready, and without a worker.
    spare: Vec<WorkerId>,
    /// Processes that have a worker.
    bound: usize,
    /// Processes that the supervisor was asked for.
    wanted: usize,
    /// Why no process is to be had.
    degraded: Option<Error>,
    /// The thread runs.
    pumping: bool,
}

impl Seats {
    /// Why no worker will get a process, if so.
    fn hopeless(&self) -> Option<Error> {
        self.degraded.clone().filter(|_| self.bound == 0 && self.spare.is_empty())
    }
}

/// A terminal's Ctrl-C is the host's; so is its input. An output that the host has closed leads nowhere: no fd of the lane, and no file that
/// a function opens, is to get its number.
fn apart(spec: &mut Spec<'static>, nice: i32) -> Result<Vec<(PrivateFd, RawFd)>> {
    spec.confine.nice = nice;
    spec.new_group = true;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null: OwnedFd = null.map_err(|e| Error::os("open", e.raw_os_error().unwrap_or(0)).with("path", "/dev/null"))?.into();
    let mut fds = Vec::new();
    for number in [1, 2] {
        // SAFETY: a plain query.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            fds.push((PrivateFd::new(poll::duplicate(null.as_fd())?), number));
        }
    }
    fds.push((PrivateFd::new(null), 0));
    Ok(fds)
}

/// The pool's processes.
struct Host {
    me: Weak<Host>,
    name: String,
    nice: i32,
    concurrency: usize,
    cancel_grace: Duration,
    idle_timeout: Duration,
    /// Bytes.
    max_memory: Option<u64>,
    setup: Vec<u8>,
    payloads: OnceLock<Payloads>,
    /// The thread's, and that of a waiter who does its work meanwhile.
    bells: OnceLock<[EventFd; 2]>,
    /// There is such a waiter.
    leading: AtomicBool,
    supervision: supervisor::Options,
    /// Until the supervisor has it.
    starter: Mutex<Option<Arc<Starter>>>,
    supervisor: OnceLock<Supervisor>,
    seats: Mutex<Seats>,
    last_tag: AtomicU64,
    /// The thread sleeps until something is due, at the longest.
    timed: AtomicBool,
    over: AtomicBool,
    epoch: u64,
}

impl LoopHost for Host {
    fn has_lanes(&self) -> bool {
        true
    }

    fn start(&self, worker: LoopWorker) -> Result<(), LoopWorker> {
        // Before any lock, which a thread of the parent may have held.
        if !fork::is_current(self.epoch) {
            worker.not_started(Error::new(ErrorKind::Forked, "process pool belongs to this process's parent").with("pool", &self.name));
            return Ok(());
        }
        if self.over.load(Ordering::SeqCst) {
            return Err(worker);
        }
        if let Err(error) = self.ensure_started() {
            worker.not_started(error);
            return Ok(());
        }
        // Either this sees that the pool was stopped meanwhile, or `stop` sees the supervisor.
        fence(Ordering::SeqCst);
        if self.over.load(Ordering::SeqCst) {
            self.stop(Duration::ZERO);
            return Err(worker);
        }
        let mut seats = lock(&self.seats);
        if let Some(error) = seats.hopeless() {
            drop(seats);
            worker.refused(error);
            return Ok(());
        }
        if let Some(seat) = seats.spare.pop().and_then(|id| seats.all.get(&id).cloned()) {
            seats.bound += 1;
            drop(seats);
            self.bind(&seat, worker);
            return Ok(());
        }
        seats.pending.push_back(worker);
        self.want(&mut seats);
        Ok(())
    }

    fn lead(&self, done: &dyn Fn() -> bool, end: Option<Instant>) -> bool {
        if self.over.load(Ordering::SeqCst) || self.leading.swap(true, Ordering::AcqRel) {
            return false;
        }
        let bell = &self.bells()[1];
        let mut seats: Vec<Arc<Seat>> = Vec::new();
        while !done() {
            // Those that have something to do; another one that gets something rings the thread.
            for seat in lock(&self.seats).all.values().filter(|s| s.idle_since.load(Ordering::Relaxed) == 0) {
                // Once here, to the end: who was told to ring this one is told otherwise below.
                if !seats.iter().any(|known| Arc::ptr_eq(known, seat)) {
                    seats.push(Arc::clone(seat));
                }
            }
            seats.iter().for_each(|seat| seat.lane.sleep(WAITER_BELL));
            fence(Ordering::SeqCst);
            seats.iter().for_each(|seat| self.feed(seat));
            let slept = Instant::now();
            let left = end.map(|e| e.saturating_duration_since(slept));
            if done() || left.is_some_and(|l| l.is_zero()) {
                break;
            }
            let mut fds = [poll::readable(bell.fd().as_raw_fd())];
            poll::wait_readable(&mut fds, Some(left.map_or(RELOOK, |l| l.min(RELOOK))));
            if !poll::is_ready(&fds[0]) {
                if slept.elapsed() >= RELOOK {
                    continue;
                }
                break; // late, or a signal handler ran
            }
            bell.clear();
        }
        self.leading.store(false, Ordering::SeqCst);
        // The thread takes over: it looked away while this one led.
        seats.iter().for_each(|seat| seat.lane.sleep(POOL_BELL));
        fence(Ordering::SeqCst);
        seats.iter().for_each(|seat| self.feed(seat));
        true
    }

    fn wake_leader(&self) {
        self.bells()[1].signal();
    }

    fn end(&self, tag: u64) {
        let seat = lock(&self.seats).all.values().find(|s| s.tag == tag).cloned();
        if let (Some(seat), Some(supervisor)) = (seat, self.supervisor.get()) {
            let _ = supervisor.kill(seat.id);
        }
    }
}

impl Host {
    fn payloads(&self) -> &Payloads {
        self.payloads.get().expect("set when the pool is made")
    }

    fn bells(&self) -> &[EventFd; 2] {
        self.bells.get().expect("set when the pool is made")
    }

    fn bell(&self) -> &EventFd {
        &self.bells()[0]
    }

    fn ensure_supervisor(&self) -> Result<()> {
        let mut place = lock(&self.starter);
        let Some(starter) = place.clone() else { return Ok(()) };
        let on_launch = {
            let (me, starter) = (self.me.clone(), starter.clone());
            move |id| {
                let gone = || Error::new(ErrorKind::Closed, "the pool is gone");
                me.upgrade().ok_or_else(gone)?.launch(id, &mut **lock(&starter.launch))
            }
        };
        let on_event = {
            let (me, starter) = (self.me.clone(), starter.clone());
            move |event: &Event| {
                if let Some(host) = me.upgrade() {
                    host.on_event(event);
                }
                if let Some(listener) = &mut *lock(&starter.listener) {
                    listener(event);
                }
            }
        };
        let options = supervisor::Options { workers: 0, ..self.supervision.clone() };
        let mut builder = Supervisor::builder().options(options).on_event(on_event);
        if starter.zygote.is_some() {
            let (starter, nice) = (starter.clone(), self.nice);
            builder = builder.zygote(move || {
                let (launch, setup) = starter.zygote.as_ref().expect("as was asked");
                let mut spec = (*lock(launch))()?;
                let fds = apart(&mut spec, nice)?;
                Ok(Zygote { launch: Launch { spec, env: Vec::new(), fds }, setup: setup.clone() })
            });
        }
        // If it fails, the next worker tries again.
        let _ = self.supervisor.set(builder.build(on_launch)?);
        *place = None;
        Ok(())
    }

    /// The supervisor and the thread, at the first worker.
    fn ensure_started(&self) -> Result<()> {
        self.ensure_supervisor()?;
        let mut seats = lock(&self.seats);
        if !seats.pumping {
            let host = self.me.upgrade().expect("its pool calls");
            let options = thread::Options { name: "offloop-lanes".to_owned(), ..thread::Options::default() };
            drop(thread::spawn(&options, move || host.pump())?);
            seats.pumping = true;
        }
        Ok(())
    }

    /// Asks for as many processes as there are workers that have or want one.
    fn want(&self, seats: &mut Seats) {
        let need = seats.pending.len() + seats.bound;
        if need > seats.wanted {
            seats.wanted = need;
            if let Some(supervisor) = self.supervisor.get() {
                let _ = supervisor.scale(need);
            }
        }
    }

    fn launch(&self, id: WorkerId, launch: &mut (dyn FnMut(WorkerId) -> Result<Spec<'static>> + Send)) -> Result<Launch> {
        let mut spec = launch(id)?;
        let (lane, ends) = Lane::new(
            held_at_once(self.concurrency, LANE_AHEAD),
            self.concurrency,
            &self.setup,
            self.payloads(),
            [&self.bells()[0], &self.bells()[1]],
        )?;
        let ((name, value), fds) = ends.launch(FIRST_FD);
        let env = vec![(name.into(), value.into())];
        let mut fds: Vec<_> = fds.into_iter().map(|(fd, number)| (PrivateFd::new(fd), number)).collect();
        fds.extend(apart(&mut spec, self.nice)?);
        let seat = Seat {
            id,
            tag: self.last_tag.fetch_add(1, Ordering::Relaxed) + 1,
            lane: Arc::new(lane),
            pid: AtomicI32::new(0),
            worker: Mutex::new(None),
            again: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
        };
        lock(&self.seats).all.insert(id, Arc::new(seat));
        Ok(Launch { spec, env, fds })
    }

    fn on_event(&self, event: &Event) {
        match event {
            Event::Spawned { worker, pid } => {
                if let Some(seat) = lock(&self.seats).all.get(worker) {
                    seat.pid.store(*pid, Ordering::Relaxed);
                }
            }
            Event::Ready { worker, .. } => {
                let mut seats = lock(&self.seats);
                let Some(seat) = seats.all.get(worker).cloned() else { return };
                match seats.pending.pop_front() {
                    Some(worker) => {
                        seats.bound += 1;
                        drop(seats);
                        self.bind(&seat, worker);
                    }
                    None => {
                        seat.idle_since.store(clock::monotonic_ns(), Ordering::Relaxed);
                        seats.spare.push(*worker);
                        drop(seats);
                        // Its thread knows when it is to leave.
                        self.bell().signal();
                    }
                }
            }
            Event::SpawnFailed { worker, .. } => drop(lock(&self.seats).all.remove(worker)),
            Event::Draining { worker, .. } => {
                let mut seats = lock(&self.seats);
                seats.spare.retain(|id| id != worker);
            }
            Event::Exited { worker, cause, ended, text, .. } => self.exited(*worker, *cause, ended, text.as_deref()),
            Event::StartFailed { error } => self.fail_pending(error.clone(), false),
            Event::Degraded { failures, window } => {
                let error = Error::new(ErrorKind::Degraded, "too many workers fail")
                    .with("pool", &self.name)
                    .with("failures", *failures)
                    .with("window_ms", window.as_millis());
                self.fail_pending(error, true);
            }
            Event::Recovered => lock(&self.seats).degraded = None,
            Event::Stopped => {
                self.over.store(true, Ordering::SeqCst);
                self.fail_pending(Error::new(ErrorKind::Closed, "the pool's processes were stopped").with("pool", &self.name), true);
                self.bell().signal();
            }
            _ => {}
        }
    }

    /// Workers that wait for a process will not get one.
    fn fail_pending(&self, error: Error, for_good: bool) {
        let pending = {
            let mut seats = lock(&self.seats);
            if for_good {
                seats.degraded = Some(error.clone());
            }
            std::mem::take(&mut seats.pending)
        };
        for worker in pending {
            if for_good { worker.refused(error.clone()) } else { worker.not_started(error.clone()) }
        }
    }

    fn exited(&self, id: WorkerId, cause: Cause, ended: &Ended, text: Option<&str>) {
        let seat = {
            let mut seats = lock(&self.seats);
            seats.spare.retain(|spare| *spare != id);
            seats.all.remove(&id)
        };
        let Some(seat) = seat else { return };
        let Some(worker) = lock(&seat.worker).take() else { return };
        // What it said before it ended is the caller's.
        let _ = seat.lane.read_frames();
        lock(&self.seats).bound -= 1;
        if worker.is_at_work()
            && let Some(supervisor) = self.supervisor.get()
        {
            // What it ran is to blame, and it is replaced at once. One that had begun nothing fails by itself, whatever was sent to it.
            let _ = supervisor.report_charged(id);
        }
        let mut error = Error::new(ErrorKind::WorkerLost, "the worker process ended before the task did").with("pool", &self.name);
        error = match (ended.exit.code, ended.exit.signal) {
            (Some(code), _) => error.with("exit_code", code),
            (None, Some(signal)) => error.with("signal", signal),
            (None, None) => error,
        };
        if ended.oom {
            error = error.with("oom", true);
        }
        if cause == Cause::Corrupt || cause == Cause::Blocked || cause == Cause::Frozen {
            error = error.with("cause", format_args!("{cause:?}"));
        }
        if let Some(text) = text {
            error = error.with("text", text);
        }
        worker.lost(&error);
        self.fail_hopeless();
    }

    /// The last process of a degraded pool has gone: nobody will serve who waits for one.
    fn fail_hopeless(&self) {
        let hopeless = lock(&self.seats).hopeless();
        if let Some(error) = hopeless {
            self.fail_pending(error, true);
        }
    }

    /// Gives a process its worker.
    fn bind(&self, seat: &Arc<Seat>, mut worker: LoopWorker) {
        worker.set_lane(seat.lane.clone());
        worker.set_tag(seat.tag);
        let (me, waked) = (self.me.clone(), Arc::downgrade(seat));
        worker.ready(Box::new(move || {
            if let (Some(host), Some(seat)) = (me.upgrade(), waked.upgrade()) {
                seat.poked.store(true, Ordering::SeqCst);
                // A function that runs may be told something.
                seat.lane.wake();
                if !FEEDING.get() {
                    host.bell().signal();
                }
            }
        }));
        seat.idle_since.store(0, Ordering::Relaxed);
        *lock(&seat.worker) = Some(worker);
        // It may have ended before it had a worker to lose.
        if lock(&self.seats).all.contains_key(&seat.id) {
            self.feed(seat);
        } else if let Some(worker) = lock(&seat.worker).take() {
            lock(&self.seats).bound -= 1;
            worker.lost(&Error::new(ErrorKind::WorkerLost, "the worker process ended before it had a task").with("pool", &self.name));
        }
    }

    /// Feeds the lanes whose workers were woken.
    fn feed_poked(&self) {
        let poked: Vec<Arc<Seat>> = {
            let seats = lock(&self.seats);
            seats.all.values().filter(|s| s.poked.load(Ordering::SeqCst)).cloned().collect()
        };
        poked.iter().for_each(|s| self.feed(s));
    }

    /// Collects what has ended on a lane, and gives it more. If another thread is at it, that one does it once more.
    fn feed(&self, seat: &Arc<Seat>) {
        seat.again.store(true, Ordering::SeqCst);
        loop {
            fence(Ordering::SeqCst);
            if !seat.again.load(Ordering::SeqCst) {
                return;
            }
            let Ok(mut place) = seat.worker.try_lock() else { return };
            seat.again.store(false, Ordering::SeqCst);
            // Whoever sets it from here on, and what they wanted looked at, is seen by the next round.
            fence(Ordering::SeqCst);
            let feeding = Feeding::begin();
            let leaves = match place.as_mut() {
                Some(worker) => self.feed_locked(seat, worker),
                // Woken when it had left, or is not here yet: whoever brings one feeds it.
                None => {
                    seat.poked.store(false, Ordering::SeqCst);
                    false
                }
            };
            let gone = leaves.then(|| place.take()).flatten();
            drop(place);
            if let Some(worker) = gone {
                // It has nothing any more, and the pool does not want it.
                self.release(seat, Some(worker));
            }
            if feeding.end() {
                // Whoever was woken meanwhile: other lanes, as a rule none.
                self.feed_poked_others(seat);
            }
        }
    }

    fn feed_poked_others(&self, seat: &Arc<Seat>) {
        if seat.poked.load(Ordering::SeqCst) {
            seat.again.store(true, Ordering::SeqCst);
        }
        let any = lock(&self.seats).all.values().any(|s| s.poked.load(Ordering::SeqCst));
        if any {
            self.bell().signal();
        }
    }

    /// True if the worker has left its pool.
    fn feed_locked(&self, seat: &Seat, worker: &mut LoopWorker) -> bool {
        let returns_its_own = seat.lane.sweep();
        worker.read_progress(|index| seat.lane.progress(index).map(|bytes| Value::Bytes(bytes.into())));
        let in_order = seat.lane.read_frames();
        let woken = seat.poked.swap(false, Ordering::SeqCst);
        let fed = worker.feed(woken, &mut |Given { index, payload, .. }| {
            let request = payload.downcast_ref::<Request>().expect("a process pool's tasks are requests");
            seat.lane.put(index, request)
        });
        seat.lane.publish();
        let idle_since = if fed == Fed::Asleep { clock::monotonic_ns() } else { 0 };
        let was_idle = seat.idle_since.load(Ordering::Relaxed) != 0;
        if idle_since == 0 {
            seat.idle_since.store(0, Ordering::Relaxed);
        } else if !was_idle {
            seat.idle_since.store(idle_since, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !self.timed.load(Ordering::SeqCst) {
                self.bell().signal();
            }
        }
        if (fed == Fed::Corrupt || !in_order || !returns_its_own)
            && let Some(supervisor) = self.supervisor.get()
        {
            let _ = supervisor.kill(seat.id);
        }
        fed == Fed::Leave
    }

    /// One process less is wanted, and it is this one, which has lost its `worker` or had none.
    fn release(&self, seat: &Seat, worker: Option<LoopWorker>) {
        {
            let mut seats = lock(&self.seats);
            seats.bound -= usize::from(worker.is_some());
            seats.wanted = seats.wanted.saturating_sub(1);
            if let Some(supervisor) = self.supervisor.get() {
                let _ = supervisor.release(seat.id);
            }
        }
        drop(worker);
        self.fail_hopeless();
    }

    /// Ends the processes; none has a task.
    fn stop(&self, grace: Duration) {
        if self.supervisor.get().is_none() {
            self.over.store(true, Ordering::SeqCst);
            // Pairs with the fence in `start`.
            fence(Ordering::SeqCst);
        }
        if let Some(supervisor) = self.supervisor.get() {
            drop(if grace.is_zero() { supervisor.stop_now() } else { supervisor.stop(grace) });
        }
        self.bell().signal();
    }

    /// The thread.
    fn pump(self: Arc<Host>) {
        let bell = self.bell();
        let mut weigh_at = Instant::now() + WEIGH;
        loop {
            bell.clear();
            let seats: Vec<Arc<Seat>> = lock(&self.seats).all.values().cloned().collect();
            let feed_all = || {
                seats.iter().for_each(|seat| self.feed(seat));
            };
            // Most of what there is, while nobody has to ring.
            feed_all();
            let leading = self.leading.load(Ordering::SeqCst);
            seats.iter().for_each(|seat| seat.lane.sleep_unless(leading));
            // After the store of "I sleep": what a worker stores from here on rings, what it stored before is seen.
            fence(Ordering::SeqCst);
            feed_all();
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            self.drop_needless();
            // Who gets idle from here on rings, unless this thread comes back by itself.
            self.timed.store(true, Ordering::SeqCst);
            let wait = self.retire_idle(&seats);
            self.timed.store(wait.is_some(), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // All there are by now: one that came and had nothing to do meanwhile did not ring.
            if wait.is_none() && lock(&self.seats).all.values().any(|s| s.idle_since.load(Ordering::SeqCst) != 0) {
                continue;
            }
            let wait = if seats.is_empty() { wait } else { Some(wait.map_or(RELOOK, |w| w.min(RELOOK))) };
            let wait = match self.max_memory {
                None => wait,
                Some(limit) => {
                    if Instant::now() >= weigh_at {
                        self.weigh(&seats, limit);
                        weigh_at = Instant::now() + WEIGH;
                    }
                    let left = weigh_at.saturating_duration_since(Instant::now());
                    Some(wait.map_or(left, |w| w.min(left)))
                }
            };
            poll::wait_readable(&mut [poll::readable(bell.fd().as_raw_fd())], wait);
        }
    }

    /// Has those replaced that have more than `limit` bytes.
    fn weigh(&self, seats: &[Arc<Seat>], limit: u64) {
        for seat in seats {
            let pid = seat.pid.load(Ordering::Relaxed);
            if pid == 0 || !process::memory_above(pid, limit) {
                continue;
            }
            // One that is fed at this moment is looked at the next time.
            if let Ok(place) = seat.worker.try_lock()
                && let Some(worker) = place.as_ref()
            {
                worker.outgrow();
            }
            // Whoever found the worker locked meanwhile left it to this thread.
            self.feed(seat);
        }
    }

    /// A pool that ends waits for no process to begin with nothing.
    fn drop_needless(&self) {
        let needless: VecDeque<LoopWorker> = {
            let mut seats = lock(&self.seats);
            let (drop, keep) = std::mem::take(&mut seats.pending).into_iter().partition(LoopWorker::is_needless);
            seats.pending = keep;
            drop
        };
        drop(needless);
    }

    /// Lets go of who has had nothing to do for `idle_timeout`, unless the pool keeps it; how long until the next one is due.
    fn retire_idle(&self, seats: &[Arc<Seat>]) -> Option<Duration> {
        let limit = u64::try_from(self.idle_timeout.as_nanos()).unwrap_or(u64::MAX);
        let now = clock::monotonic_ns();
        let mut next = None::<u64>;
        for seat in seats {
            let since = seat.idle_since.load(Ordering::Relaxed);
            if since == 0 {
                continue;
            }
            let due = since.saturating_add(limit);
            if due > now {
                next = Some(next.map_or(due, |n| n.min(due)));
                continue;
            }
            let mut place = lock(&seat.worker);
            let leaves = match place.as_mut() {
                Some(worker) => worker.retire(),
                None => {
                    let mut seats = lock(&self.seats);
                    let at = seats.spare.iter().position(|id| *id == seat.id);
                    at.map(|at| seats.spare.remove(at)).is_some()
                }
            };
            let worker = leaves.then(|| place.take()).flatten();
            drop(place);
            seat.idle_since.store(if leaves { 0 } else { now }, Ordering::Relaxed);
            if leaves {
                self.release(seat, worker);
            } else {
                // Whoever found the worker locked meanwhile left it to this thread.
                self.feed(seat);
                next = Some(next.map_or(now.saturating_add(limit), |n| n.min(now.saturating_add(limit))));
            }
        }
        next.map(|at| Duration::from_nanos(at.saturating_sub(now).max(1_000_000)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_seat_whose_worker_has_left_is_woken_for_nothing() {
        let pool = ProcessPool::builder().build(|_| Ok(Spec::new("/bin/true"))).expect("pool");
        let host = pool.0.host.clone();
        let id = WorkerId { slot: 0, generation: 1, incarnation: 1 };
        drop(host.launch(id, &mut |_| Ok(Spec::new("/bin/true"))).expect("launch"));
        let seat = lock(&host.seats).all.get(&id).cloned().expect("a launch makes a seat");
        seat.poked.store(true, Ordering::SeqCst);
        let (done, fed) = mpsc::channel();
        std::thread::spawn(move || {
            host.feed(&seat);
            let _ = done.send(seat.poked.load(Ordering::SeqCst));
        });
        assert_eq!(fed.recv_timeout(Duration::from_secs(60)), Ok(false));
    }
}
