//! One pool in one process: its state, and intake. `crew` has its workers, `ending` how its tasks and itself end; what one
//! worker does is in `worker`.

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{Gauge, PoolMetrics};
use crate::pool::config::Config;
use crate::pool::idle::Idle;
use crate::pool::looped::Hand;
use crate::pool::options::{MAX_WORKERS, OnFull};
use crate::pool::sched::{Place, Sched};
use crate::pool::stuck::{self, Waits};
use crate::pool::task::{ByInject, Core, RUNNING};
use crate::sync::atomic::{AtomicBool, AtomicIsize, AtomicU32, AtomicUsize, Ordering};
use crate::sync::line::Line;
use crate::sync::lock;
use crate::sync::stack::Stack;
use crate::sys::{fork, futex};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

const CHUNK: usize = 32;

/// A worker's place. Its worker writes here for every task: apart from its neighbours.
#[repr(align(128))]
pub(super) struct Slot {
    /// 0 asleep or never slept, otherwise a token of [`idle`](super::idle).
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
    /// What the worker of a loop has, in place of `current`.
    pub(super) hand: Option<Arc<Hand>>,
    /// What the one will have that is to take the place of that worker.
    pub(super) successor: Option<Arc<Hand>>,
}

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
    /// Why the last worker that did not start did not.
    pub(super) start_error: Option<Error>,
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
    pub(super) injector: Line<Stack<Core, ByInject>>,
    /// Submitted and not yet taken by a worker, tombstones included.
    pub(super) queued: Line<AtomicUsize>,
    pub(super) tombstones: AtomicIsize,
    /// Length of the part of the scheduler that any worker may take.
    pub(super) ready: AtomicUsize,
    pub(super) idle: Idle,
    pub(super) tick_armed: AtomicBool,
    pub(super) overdue: AtomicIsize,
    pub(super) workers: AtomicUsize,
    /// A look at the ages of workers is due.
    pub(super) age_armed: AtomicBool,
    /// Workers of loops that have been asked for and are not ready.
    pub(super) starting: AtomicUsize,
    /// Those in a row that did not become ready.
    pub(super) start_failures: AtomicU32,
    /// Pauses after such a one that are not over.
    pub(super) backing_off: AtomicU32,
    pub(super) state: Line<Mutex<State>>,
    pub(super) waits: Mutex<Waits>,
    slots: [OnceLock<Box<[Slot]>>; MAX_WORKERS / CHUNK],
    space: AtomicU32,
    pub(super) space_waiters: AtomicU32,
    pub(super) closing: AtomicBool,
    pub(super) closed: AtomicU32,
    pub(super) rayon: OnceLock<rayon::ThreadPool>,
    pub(super) rayon_build: Mutex<()>,
}

impl Inner {
    pub(super) fn new(config: Arc<Config>) -> Arc<Inner> {
        let kind = match (&config.hosted, &config.looped) {
            (_, Some(_)) => "worker",
            (Some(_), None) => "hosted",
            (None, None) => "thread",
        };
        let max = config.max_workers.load(Ordering::Relaxed);
        Arc::new(Inner {
            epoch: fork::epoch(),
            metrics: PoolMetrics::create(kind, &config.options.name, MAX_WORKERS),
            injector: Line(Stack::new()),
            queued: Line(AtomicUsize::new(0)),
            tombstones: AtomicIsize::new(0),
            ready: AtomicUsize::new(0),
            idle: Idle::new(),
            tick_armed: AtomicBool::new(false),
            overdue: AtomicIsize::new(0),
            workers: AtomicUsize::new(0),
            age_armed: AtomicBool::new(false),
            starting: AtomicUsize::new(0),
            start_failures: AtomicU32::new(0),
            backing_off: AtomicU32::new(0),
            state: Line(Mutex::new(State {
                sched: Sched::new(max),
                alive: Vec::new(),
                workers: 0,
                busy: 0,
                lent: 0,
                replaced: 0,
                on_closed: Vec::new(),
                closed: false,
                start_error: None,
            })),
            waits: Mutex::default(),
            slots: [const { OnceLock::new() }; MAX_WORKERS / CHUNK],
            space: AtomicU32::new(0),
            space_waiters: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicU32::new(0),
            rayon: OnceLock::new(),
            rayon_build: Mutex::new(()),
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
        let of_slot = |slot: &Slot| {
            let local = lock(&slot.local);
            match &local.hand {
                Some(hand) => hand.running(),
                None => usize::from(local.current.as_ref().is_some_and(|c| c.state.load(Ordering::Relaxed) == RUNNING)),
            }
        };
        self.slots().map(of_slot).sum()
    }

    /// Live tasks that no function runs for: in the queue or in a worker's batch.
    pub(super) fn queued(&self) -> usize {
        let ahead = |s: &Slot| self.hand_of(s).map_or(0, |hand| hand.ahead());
        let batches: usize = self.slots().map(|s| s.batch_len.load(Ordering::Relaxed) + ahead(s)).sum();
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

    /// `n` more queued tasks would be within the bound.
    pub(super) fn has_room(&self, n: usize) -> bool {
        let queued = (self.queued.load(Ordering::SeqCst) + n) as isize - self.tombstones.load(Ordering::SeqCst);
        queued <= self.config.options.max_queue as isize
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

    /// Why `n` tasks are not taken in.
    pub(super) fn full(&self, n: usize) -> Error {
        let max = self.config.options.max_queue;
        let message = if n > max { "the batch is longer than the pool's queue" } else { "the pool's queue is full" };
        let error = Error::new(ErrorKind::Full, message)
            .with("pool", &self.config.options.name)
            .with("queued", self.queued())
            .with("max_queue", max);
        if n > 1 { error.with("batch", n) } else { error }
    }

    pub(super) fn admit(self: &Arc<Inner>, n: usize, on_full: OnFull) -> Result<()> {
        // Nothing needs no room, not even in a queue beyond its bound.
        if n == 0 || self.reserve(n) {
            return Ok(());
        }
        match on_full {
            OnFull::Admit => {
                self.queued.fetch_add(n, Ordering::SeqCst);
                Ok(())
            }
            OnFull::Reject => Err(self.full(n)),
            // There will never be room.
            OnFull::Wait(_) if n > self.config.options.max_queue => Err(self.full(n)),
            OnFull::Wait(timeout) => {
                let end = timeout.and_then(|t| Instant::now().checked_add(t));
                let _waits = if end.is_none() { stuck::begin(self, stuck::For::Room(n))? } else { None };
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
                        break Err(self.full(n));
                    }
                    futex::wait(&self.space, seen, left);
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

    /// Puts an admitted task where a worker looks.
    pub(super) fn launch(self: &Arc<Inner>, core: Arc<Core>) {
        let _ = self.injector.push(core);
        self.after_push();
    }

    pub(super) fn launch_all(self: &Arc<Inner>, cores: Vec<Arc<Core>>) {
        // A check of options, as a submit of nothing is, wakes and starts nobody.
        if cores.is_empty() {
            return;
        }
        let _ = self.injector.push_all(cores.into_iter());
        self.after_push();
    }

    pub(super) fn after_push(self: &Arc<Inner>) {
        Idle::publish();
        // The same fence: `close` sees the push, or this sees `closing`.
        if self.closing.load(Ordering::Relaxed) {
            self.refuse_late();
        }
        self.idle.wake_one(self);
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
}

pub(super) fn closed(name: &str) -> Error {
    Error::new(ErrorKind::Closed, "the pool is closed").with("pool", name)
}
