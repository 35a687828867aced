//! One pool in one process: intake, waking, deadlines, lending, the end. What a worker does is in `worker`.
//!
//! **Waking** (lessons measured for this design: a wake per submit costs 0.9 µs, several spinning workers starve the
//! submitter): at most one worker is *searching*. A submit that finds nobody searching claims one sleeper, which thereby
//! becomes the searcher, and wakes it; every later submit sees a searcher and pays nothing. A searcher that finds work
//! stops searching and, if more is queued, claims the next sleeper.
//!
//! | Pair                                  | Why no wake-up is lost                                                      |
//! |---------------------------------------|-----------------------------------------------------------------------------|
//! | submit: push, fence, read `searching`, `sleepers` | worker: write `searching`/`sleepers`, fence, look for work: one of the two sees the other |
//! | worker leaves work: `ready`, fence, read `sleepers` | the same worker side                                            |
//! | `tick_armed`                          | swapped to false, then work is looked for again                             |

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{Counter, Gauge, PoolMetrics};
use crate::pool::HostedWorker;
use crate::pool::config::Config;
use crate::pool::options::{MAX_WORKERS, OnFull};
use crate::pool::sched::{Place, Sched};
use crate::pool::service::{self, Due};
use crate::pool::task::{ByInject, Core, Ended, RUNNING};
use crate::pool::worker::{self, Turn};
use crate::sync::atomic::{AtomicBool, AtomicIsize, AtomicU32, AtomicUsize, Ordering, fence};
use crate::sync::lock;
use crate::sync::stack::Stack;
use crate::sys::{self, clock, fork, futex};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long a cancelled function may go on before its thread is replaced.
const OVERDUE_GRACE: Duration = Duration::from_millis(10);
/// A sweep is worth its time above so many tombstones.
const SWEEP_FROM: isize = 1024;
const CHUNK: usize = 32;

/// A worker's place.
pub(super) struct Slot {
    /// 0 asleep or never slept, otherwise a token: [`TOKEN`] or [`TOKEN_SEARCH`].
    pub(super) park: AtomicU32,
    /// Which worker owns the place; a replaced worker finds another number.
    pub(super) turn: AtomicU32,
    pub(super) local: Mutex<Local>,
    /// Length of `local.batch`, to look without the lock.
    pub(super) batch_len: AtomicUsize,
    /// Tasks that only this slot may take, to look without the lock.
    pub(super) keyed: AtomicUsize,
}

/// What a worker took and has not finished.
#[derive(Default)]
pub(super) struct Local {
    pub(super) batch: VecDeque<Arc<Core>>,
    pub(super) current: Option<Arc<Core>>,
}

pub(super) const TOKEN: u32 = 1;
pub(super) const TOKEN_SEARCH: u32 = 2;

pub(super) struct State {
    pub(super) sched: Sched<Arc<Core>>,
    /// By slot: has a live worker.
    pub(super) alive: Vec<bool>,
    pub(super) workers: usize,
    /// Workers that hold tasks.
    pub(super) busy: usize,
    /// Threads lent to ops.
    pub(super) lent: usize,
    /// Threads that lost their slot and have not returned.
    pub(super) replaced: usize,
    pub(super) on_closed: Vec<Box<dyn FnOnce() + Send>>,
    pub(super) closed: bool,
}

impl State {
    pub(super) fn is_alive(&self, slot: usize) -> bool {
        self.alive.get(slot).copied().unwrap_or(false)
    }
}

/// One pool in one process.
pub(crate) struct Inner {
    epoch: u64,
    pub(super) config: Arc<Config>,
    pub(super) metrics: Arc<PoolMetrics>,
    pub(super) injector: Stack<Core, ByInject>,
    /// Submitted and not yet taken by a worker, tombstones included.
    pub(super) queued: AtomicUsize,
    pub(super) tombstones: AtomicIsize,
    /// Length of the part of the scheduler that any worker may take.
    pub(super) ready: AtomicUsize,
    pub(super) searching: AtomicBool,
    pub(super) sleepers: AtomicUsize,
    pub(super) sleeping: Mutex<Vec<usize>>,
    pub(super) tick_armed: AtomicBool,
    pub(super) overdue: AtomicIsize,
    pub(super) workers: AtomicUsize,
    pub(super) state: Mutex<State>,
    slots: [OnceLock<Box<[Slot]>>; MAX_WORKERS / CHUNK],
    space: AtomicU32,
    pub(super) space_waiters: AtomicU32,
    pub(super) closing: AtomicBool,
    pub(super) closed: AtomicU32,
    rayon: OnceLock<Option<rayon::ThreadPool>>,
}

impl Inner {
    pub(super) fn new(config: Arc<Config>) -> Arc<Inner> {
        let kind = if config.hosted.is_some() { "hosted" } else { "thread" };
        let max = config.max_workers.load(Ordering::Relaxed);
        Arc::new(Inner {
            epoch: fork::epoch(),
            metrics: PoolMetrics::create(kind, &config.options.name, MAX_WORKERS),
            injector: Stack::new(),
            queued: AtomicUsize::new(0),
            tombstones: AtomicIsize::new(0),
            ready: AtomicUsize::new(0),
            searching: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleeping: Mutex::default(),
            tick_armed: AtomicBool::new(false),
            overdue: AtomicIsize::new(0),
            workers: AtomicUsize::new(0),
            state: Mutex::new(State {
                sched: Sched::new(max),
                alive: Vec::new(),
                workers: 0,
                busy: 0,
                lent: 0,
                replaced: 0,
                on_closed: Vec::new(),
                closed: false,
            }),
            slots: [const { OnceLock::new() }; MAX_WORKERS / CHUNK],
            space: AtomicU32::new(0),
            space_waiters: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicU32::new(0),
            rayon: OnceLock::new(),
            config,
        })
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn slot(&self, at: usize) -> &Slot {
        let chunk = self.slots[at / CHUNK].get_or_init(|| {
            (0..CHUNK)
                .map(|_| Slot {
                    park: AtomicU32::new(0),
                    turn: AtomicU32::new(0),
                    local: Mutex::default(),
                    batch_len: AtomicUsize::new(0),
                    keyed: AtomicUsize::new(0),
                })
                .collect()
        });
        &chunk[at % CHUNK]
    }

    /// The slots that were ever used.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().map_while(|c| c.get()).flat_map(|c| c.iter())
    }

    pub(super) fn max_workers(&self) -> usize {
        self.config.max_workers.load(Ordering::Relaxed)
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.load(Ordering::Relaxed)
    }

    pub(super) fn running(&self) -> usize {
        self.slots().filter(|s| lock(&s.local).current.as_ref().is_some_and(|c| c.state.load(Ordering::Relaxed) == RUNNING)).count()
    }

    /// Live tasks that no function runs for: in the queue or in a worker's batch.
    pub(super) fn queued(&self) -> usize {
        let batches: usize = self.slots().map(|s| s.batch_len.load(Ordering::Relaxed)).sum();
        let queued = self.queued.load(Ordering::Relaxed) as isize - self.tombstones.load(Ordering::Relaxed);
        usize::try_from(queued).unwrap_or(0) + batches
    }

    pub(super) fn publish_gauges(&self, queued: usize, running: usize, workers: usize, overdue: usize) {
        for (gauge, value) in [
            (Gauge::Queued, queued),
            (Gauge::Running, running),
            (Gauge::Workers, workers),
            (Gauge::MaxWorkers, self.max_workers()),
            (Gauge::Overdue, overdue),
        ] {
            self.metrics.set(gauge, value as u64);
        }
    }

    pub(super) fn has_waiting_work(&self) -> bool {
        !self.injector.is_empty() || self.ready.load(Ordering::Relaxed) > 0
    }

    // ---- intake -------------------------------------------------------------------------------------------------

    /// Counts `n` more queued tasks; false (and nothing counted) if the bound would be passed.
    pub(super) fn reserve(&self, n: usize) -> bool {
        let max = self.config.options.max_queue as isize;
        let fits = |queued: usize| ((queued + n) as isize - self.tombstones.load(Ordering::Relaxed) <= max).then_some(queued + n);
        // One step: a count that overshoots for a moment would turn others away, and nobody would wake them.
        self.queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    /// Counts as many of `n` more queued tasks as the bound allows; returns how many.
    pub(super) fn reserve_some(&self, n: usize) -> usize {
        let max = self.config.options.max_queue as isize;
        let mut fits = 0;
        let _ = self.queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |queued| {
            let room = max - (queued as isize - self.tombstones.load(Ordering::Relaxed));
            fits = n.min(usize::try_from(room).unwrap_or(0));
            (fits > 0).then_some(queued + fits)
        });
        fits
    }

    pub(super) fn full(&self) -> Error {
        Error::new(ErrorKind::Full, "the pool's queue is full")
            .with("pool", &self.config.options.name)
            .with("queued", self.queued())
            .with("max_queue", self.config.options.max_queue)
    }

    pub(super) fn admit(&self, n: usize, on_full: OnFull) -> Result<()> {
        if self.reserve(n) {
            return Ok(());
        }
        match on_full {
            OnFull::Admit => {
                self.queued.fetch_add(n, Ordering::SeqCst);
                Ok(())
            }
            OnFull::Reject => Err(self.full()),
            OnFull::Wait(_) if n > self.config.options.max_queue => Err(self.full().with("batch", n)),
            OnFull::Wait(timeout) => {
                let end = timeout.and_then(|t| Instant::now().checked_add(t));
                self.space_waiters.fetch_add(1, Ordering::SeqCst);
                let admitted = loop {
                    let seen = self.space.load(Ordering::SeqCst);
                    if self.closing.load(Ordering::SeqCst) {
                        break Err(closed(&self.config.options.name));
                    }
                    if self.reserve(n) {
                        break Ok(());
                    }
                    let left = end.map(|e| e.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|l| l.is_zero()) {
                        break Err(self.full());
                    }
                    if futex::wait(&self.space, seen, left) == futex::Wake::Interrupted {
                        // A host looks at its signals and calls again.
                        break Err(self.full().with("interrupted", true));
                    }
                };
                self.space_waiters.fetch_sub(1, Ordering::SeqCst);
                admitted
            }
        }
    }

    /// `n` queued tasks have left the queue.
    pub(super) fn release_space(&self, n: usize) {
        self.queued.fetch_sub(n, Ordering::SeqCst);
        self.ring_space();
    }

    pub(super) fn ring_space(&self) {
        if self.space_waiters.load(Ordering::SeqCst) > 0 {
            self.space.fetch_add(1, Ordering::SeqCst);
            futex::wake(&self.space, u32::MAX);
        }
    }

    pub(super) fn after_push(self: &Arc<Inner>) {
        // Pairs with the fence of a worker that goes to sleep: it sees the push, or this sees it asleep.
        fence(Ordering::SeqCst);
        if self.closing.load(Ordering::Relaxed) {
            self.refuse_late();
        }
        if !self.searching.load(Ordering::Relaxed) {
            self.wake_one();
        }
    }

    /// A push that raced with `close`: either a worker is still there, or the tasks end here.
    pub(super) fn refuse_late(self: &Arc<Inner>) {
        let mut state = lock(&self.state);
        if state.workers > 0 {
            return;
        }
        self.take_injected(&mut state);
        let left = state.sched.drain_all();
        let dropped = state.sched.take_dropped();
        drop(state);
        self.release_space(left.len() + dropped);
        for core in left {
            // Buried before or here: either way it is a tombstone that nobody will find in the queue.
            self.end_queued(&core, closed(&self.config.options.name));
            self.tombstones.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Moves what was submitted into the scheduler; returns slots that have new tasks of their own.
    pub(super) fn take_injected(&self, state: &mut State) -> Vec<usize> {
        let mut pinned = Vec::new();
        for core in self.injector.take_all() {
            if let Place::Slot(slot) = state.sched.push(core) {
                self.slot(slot).keyed.store(state.sched.keyed_len(slot), Ordering::SeqCst);
                if !pinned.contains(&slot) {
                    pinned.push(slot);
                }
            }
        }
        self.ready.store(state.sched.free_len(), Ordering::SeqCst);
        pinned
    }

    // ---- waking -------------------------------------------------------------------------------------------------

    /// Gets one more worker going, if nobody is searching: a sleeper, or a new thread below the limit.
    pub(super) fn wake_one(self: &Arc<Inner>) {
        if self.sleepers.load(Ordering::Relaxed) == 0 && self.workers.load(Ordering::Relaxed) >= self.max_workers() {
            return;
        }
        if self.searching.swap(true, Ordering::SeqCst) {
            return;
        }
        let sleeper = {
            let mut sleeping = lock(&self.sleeping);
            let sleeper = sleeping.pop();
            self.sleepers.store(sleeping.len(), Ordering::SeqCst);
            sleeper
        };
        match sleeper {
            Some(slot) => self.hand_token(slot, TOKEN_SEARCH),
            None => {
                // The new worker begins as the searcher; if none can be had, nobody searches.
                if !self.spawn_free_slot() {
                    self.searching.store(false, Ordering::SeqCst);
                }
            }
        }
    }

    /// Gets the worker of one slot going.
    pub(super) fn wake_slot(self: &Arc<Inner>, slot: usize) {
        // Pairs with the fence of a worker that goes to sleep, as in `after_push`; `keyed` was stored before.
        fence(Ordering::SeqCst);
        let asleep = {
            let mut sleeping = lock(&self.sleeping);
            let at = sleeping.iter().position(|s| *s == slot);
            at.map(|at| {
                sleeping.remove(at);
                self.sleepers.store(sleeping.len(), Ordering::SeqCst);
            })
        };
        if asleep.is_some() {
            self.hand_token(slot, TOKEN);
            return;
        }
        let turn = {
            let mut state = lock(&self.state);
            if state.is_alive(slot) {
                return;
            }
            self.reserve_slot(&mut state, slot)
        };
        self.start(turn, false);
    }

    pub(super) fn hand_token(&self, slot: usize, token: u32) {
        let park = &self.slot(slot).park;
        park.store(token, Ordering::Release);
        futex::wake(park, 1);
    }

    pub(super) fn wake_all(&self) {
        let all = {
            let mut sleeping = lock(&self.sleeping);
            self.sleepers.store(0, Ordering::SeqCst);
            std::mem::take(&mut *sleeping)
        };
        for slot in all {
            self.hand_token(slot, TOKEN);
        }
    }

    pub(super) fn spawn_free_slot(self: &Arc<Inner>) -> bool {
        let turn = {
            let mut state = lock(&self.state);
            let max = self.max_workers();
            let free = (0..max).find(|s| !state.is_alive(*s));
            match free {
                Some(slot) if state.workers < max => self.reserve_slot(&mut state, slot),
                _ => return false,
            }
        };
        self.start(turn, true)
    }

    /// Takes a slot without a worker for a new one. [`start`](Self::start) must follow, without the lock: a host's
    /// spawner may need a lock of its own that another thread holds while it waits for this one.
    pub(super) fn reserve_slot(&self, state: &mut State, slot: usize) -> Turn {
        if state.alive.len() <= slot {
            state.alive.resize(slot + 1, false);
        }
        state.alive[slot] = true;
        state.workers += 1;
        self.workers.store(state.workers, Ordering::SeqCst);
        let place = self.slot(slot);
        let turn = place.turn.load(Ordering::Relaxed).wrapping_add(1);
        place.turn.store(turn, Ordering::SeqCst);
        place.park.store(0, Ordering::SeqCst);
        Turn { slot, turn }
    }

    pub(super) fn thread_options(&self, name: String) -> sys::thread::Options {
        sys::thread::Options { name, stack_size: None, nice: self.config.options.nice }
    }

    /// Starts the worker of a reserved slot. False if the system (or the host) has no thread for it now.
    pub(super) fn start(self: &Arc<Inner>, turn: Turn, searching: bool) -> bool {
        let started = match &self.config.hosted {
            Some(spawner) => spawner(HostedWorker::new(self.clone(), turn, searching)).map_err(HostedWorker::disarm).is_ok(),
            None => {
                let pool = self.clone();
                let options = self.thread_options(format!("{}-{}", self.config.options.name, turn.slot));
                sys::thread::spawn(&options, move || worker::run(pool, turn, searching)).is_ok()
            }
        };
        if !started {
            self.leave(&mut lock(&self.state), turn.slot);
        }
        started
    }

    /// A worker leaves its slot; the caller holds the lock.
    pub(super) fn leave(&self, state: &mut State, slot: usize) {
        state.alive[slot] = false;
        state.workers -= 1;
        self.workers.store(state.workers, Ordering::SeqCst);
        self.check_closed(state);
    }

    // ---- deadlines, cancelling ----------------------------------------------------------------------------------

    /// Decides the outcome of a task from outside. True if this call did.
    pub(super) fn end(self: &Arc<Inner>, core: &Arc<Core>, error: Error) -> bool {
        let claimed = core.claim_end(error.kind());
        self.settle(core, claimed, error)
    }

    /// As [`end`](Self::end), but only while queued.
    pub(super) fn end_queued(self: &Arc<Inner>, core: &Arc<Core>, error: Error) -> bool {
        let claimed = core.claim_end_queued();
        self.settle(core, claimed, error)
    }

    /// Counts first, so that whoever sees the outcome sees it counted.
    pub(super) fn settle(self: &Arc<Inner>, core: &Arc<Core>, claimed: Option<Ended>, error: Error) -> bool {
        let Some(ended) = claimed else { return false };
        self.metrics.add(
            match error.kind() {
                ErrorKind::Timeout => Counter::TimedOut,
                ErrorKind::Cancelled => Counter::Cancelled,
                _ => Counter::Failed,
            },
            1,
        );
        match ended {
            Ended::Queued(work) => {
                self.bury();
                core.publish(Err(error), false);
                drop(work);
            }
            Ended::Running => {
                self.overdue.fetch_add(1, Ordering::SeqCst);
                core.publish(Err(error), false);
                service::arm(Due::Replace, core, clock::monotonic_ns(), OVERDUE_GRACE);
            }
        }
        true
    }

    /// A started task will never be finished by its worker.
    pub(super) fn lose(&self, core: &Arc<Core>, error: Error) {
        if core.claim_finish() {
            self.metrics.add(Counter::Lost, 1);
            core.publish(Err(error), false);
        } else {
            self.overdue.fetch_sub(1, Ordering::SeqCst);
        }
        core.returned.store(true, Ordering::SeqCst);
        let Turn { slot, turn } = Turn::of(core);
        let mut state = lock(&self.state);
        if self.slot(slot).turn.load(Ordering::SeqCst) != turn && state.replaced > 0 {
            state.replaced -= 1; // `replace` has told the scheduler of the key
        } else if let Some(key) = core.key {
            state.sched.key_done(key);
        }
    }

    /// A queued task became a tombstone.
    pub(super) fn bury(self: &Arc<Inner>) {
        let dead = self.tombstones.fetch_add(1, Ordering::SeqCst) + 1;
        self.ring_space();
        if dead >= SWEEP_FROM && dead * 2 > self.queued.load(Ordering::Relaxed) as isize {
            let mut state = lock(&self.state);
            let pinned = self.take_injected(&mut state);
            state.sched.sweep();
            let dropped = state.sched.take_dropped();
            self.ready.store(state.sched.free_len(), Ordering::SeqCst);
            drop(state);
            self.forget_tombstones(dropped);
            for slot in pinned {
                self.wake_slot(slot);
            }
        }
    }

    pub(super) fn forget_tombstones(&self, dropped: usize) {
        if dropped > 0 {
            self.tombstones.fetch_sub(dropped as isize, Ordering::SeqCst);
            self.queued.fetch_sub(dropped, Ordering::SeqCst);
        }
    }

    /// A deadline passed; called by the service thread.
    pub(super) fn on_due(self: &Arc<Inner>, due: Due, core: &Arc<Core>) {
        let late = |what: &'static str, limit: Duration| Error::new(ErrorKind::Timeout, what).with("limit_ms", limit.as_secs_f64() * 1e3);
        match due {
            Due::QueueTimeout => {
                let waited = Duration::from_nanos(clock::monotonic_ns().saturating_sub(core.submitted_ns));
                self.end_queued(core, late("the task waited too long in the queue", waited));
            }
            Due::Timeout => {
                self.end(core, late("the task ran too long", core.timeout.unwrap_or_default()));
            }
            Due::Replace => self.replace(core),
        }
    }

    /// Gives the slot of a function that does not return to a new worker.
    pub(super) fn replace(self: &Arc<Inner>, core: &Arc<Core>) {
        let Turn { slot, turn } = Turn::of(core);
        let place = self.slot(slot);
        let mut state = lock(&self.state);
        let max_overdue = self.config.options.max_overdue.unwrap_or_else(|| self.max_workers());
        if core.returned.load(Ordering::SeqCst) || place.turn.load(Ordering::Relaxed) != turn || state.replaced >= max_overdue {
            return;
        }
        place.turn.store(turn.wrapping_add(1), Ordering::SeqCst);
        lock(&place.local).current = None;
        if let Some(key) = core.key {
            state.sched.key_done(key);
        }
        state.replaced += 1;
        state.busy -= 1;
        state.alive[slot] = false;
        state.workers -= 1;
        self.workers.store(state.workers, Ordering::SeqCst);
        let waits = self.has_waiting_work() || place.batch_len.load(Ordering::Relaxed) > 0 || state.sched.keyed_len(slot) > 0;
        let turn = waits.then(|| self.reserve_slot(&mut state, slot));
        self.check_closed(&mut state);
        drop(state);
        if let Some(turn) = turn {
            self.start(turn, false);
        }
    }

    /// Once per millisecond while work waits and workers sleep. True to go on.
    pub(super) fn on_tick(self: &Arc<Inner>) -> bool {
        let work = || self.has_waiting_work() || self.slots().any(|s| s.batch_len.load(Ordering::Relaxed) > 0);
        if work() {
            self.wake_one();
            return true;
        }
        self.tick_armed.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        work() && !self.tick_armed.swap(true, Ordering::SeqCst)
    }

    // ---- splitting ----------------------------------------------------------------------------------------------

    pub(super) fn spare(&self) -> usize {
        if self.max_workers() == 1 || self.has_waiting_work() {
            return 0;
        }
        let state = lock(&self.state);
        self.max_workers().saturating_sub(state.busy + state.lent)
    }

    pub(super) fn take_permits(&self, want: usize) -> usize {
        let mut state = lock(&self.state);
        let n = want.min(self.max_workers().saturating_sub(state.busy + state.lent));
        state.lent += n;
        n
    }

    pub(super) fn return_permits(&self, n: usize) {
        if n == 0 {
            return;
        }
        lock(&self.state).lent -= n;
        fence(Ordering::SeqCst);
        // A worker that found all permits lent went to sleep.
        if self.has_waiting_work() || self.slots().any(|s| s.keyed.load(Ordering::Relaxed) > 0) {
            self.wake_all();
        }
    }

    pub(super) fn rayon(&self) -> Option<&rayon::ThreadPool> {
        let build = || {
            let name = self.config.options.name.clone();
            rayon::ThreadPoolBuilder::new()
                .num_threads(self.max_workers().max(1))
                .thread_name(move |i| format!("{name}-split-{i}"))
                .spawn_handler(|thread| {
                    let options = self.thread_options(thread.name().unwrap_or("offloop-split").to_owned());
                    sys::thread::spawn(&options, move || thread.run()).map(drop).map_err(std::io::Error::other)
                })
                .build()
                .ok()
        };
        self.rayon.get_or_init(build).as_ref()
    }

    // ---- the end ------------------------------------------------------------------------------------------------

    pub(super) fn close(self: &Arc<Inner>) {
        if self.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        self.ring_space();
        self.wake_all();
        let mut state = lock(&self.state);
        // Tasks without a worker (its thread could not be started, or the host has not run it yet).
        let stranded = state.workers == 0 && (self.has_waiting_work() || state.sched.len() > 0);
        self.check_closed(&mut state);
        drop(state);
        if stranded {
            self.wake_one();
        }
    }

    /// Notes the end of a closing pool once its last worker has left and nothing waits.
    pub(super) fn check_closed(&self, state: &mut State) {
        if self.closing.load(Ordering::SeqCst) && state.workers == 0 && state.sched.len() == 0 && self.injector.is_empty() {
            self.mark_closed(state);
        }
    }

    pub(super) fn mark_closed(&self, state: &mut State) {
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        for f in state.on_closed.drain(..) {
            service::run(f);
        }
        self.closed.store(1, Ordering::SeqCst);
        futex::wake(&self.closed, u32::MAX);
    }

    /// Takes everything that no worker has started out of the scheduler and out of the workers' batches.
    pub(super) fn take_waiting(self: &Arc<Inner>) -> Vec<Arc<Core>> {
        let mut state = lock(&self.state);
        self.take_injected(&mut state);
        let mut taken = state.sched.drain_all();
        let dropped = state.sched.take_dropped();
        self.ready.store(0, Ordering::SeqCst);
        for slot in self.slots() {
            slot.keyed.store(0, Ordering::SeqCst);
        }
        let queued = taken.len();
        // Under the same lock as a thief: no task moves between two batches meanwhile.
        for slot in self.slots() {
            let mut local = lock(&slot.local);
            taken.extend(local.batch.drain(..));
            slot.batch_len.store(0, Ordering::SeqCst);
        }
        drop(state);
        self.forget_tombstones(dropped);
        self.release_space(queued);
        taken
    }

    /// Cancels what is not started. Returns how many tasks that ended.
    pub(super) fn cancel_queued(self: &Arc<Inner>, why: &str) -> usize {
        let mut ended = 0;
        for core in self.take_waiting() {
            let error = Error::new(ErrorKind::Cancelled, why.to_owned()).with("pool", &self.config.options.name);
            ended += usize::from(self.end_queued(&core, error));
            // Buried before or here: either way it is a tombstone that nobody will find in the queue.
            self.tombstones.fetch_sub(1, Ordering::SeqCst);
        }
        self.wake_all(); // workers of a closing pool look whether there is anything left
        ended
    }

    /// Cancels everything that is left.
    pub(super) fn terminate(self: &Arc<Inner>) {
        const WHY: &str = "the pool was shut down";
        self.close();
        self.cancel_queued(WHY);
        let running: Vec<Arc<Core>> = self.slots().filter_map(|slot| lock(&slot.local).current.clone()).collect();
        for core in &running {
            self.end(core, Error::new(ErrorKind::Cancelled, WHY).with("pool", &self.config.options.name));
        }
        self.wake_all();
        self.mark_closed(&mut lock(&self.state));
    }
}

pub(super) fn closed(name: &str) -> Error {
    Error::new(ErrorKind::Closed, "the pool is closed").with("pool", name)
}
