//! What a worker does: take a batch, run it, search, sleep, leave.

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Writer;
use crate::ops::{OpCtx, Params};
use crate::pool::idle::{Idle, TOKEN_SEARCH};
use crate::pool::inner::{Inner, State};
use crate::pool::sched::Take;
use crate::pool::service::{self, Due};
use crate::pool::stuck;
use crate::pool::task::{Core, WorkKind};
use crate::pool::trace::{Ending, Outcome};
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sys::{clock, futex};
use crate::value::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Longest batch.
const MAX_BATCH: usize = 32;
/// A batch is worth about this much work, so that what is behind it waits no longer.
const BATCH_NS: u64 = 20_000;
/// What a task is taken to cost before one was measured.
const UNKNOWN_NS: u64 = 100_000;
/// How long the searcher looks before it sleeps; about one wake-up's latency.
const SPINS: u32 = 2_000;

/// A worker and its right to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(super) slot: usize,
    pub(super) turn: u32,
}

impl Turn {
    pub(super) fn pack(self) -> u64 {
        (self.slot as u64) << 32 | u64::from(self.turn)
    }

    pub(super) fn of(core: &Core) -> Turn {
        let packed = core.ran_by.load(Ordering::Acquire);
        Turn { slot: (packed >> 32) as usize, turn: packed as u32 }
    }
}

pub(super) enum Refill {
    /// Tasks lie in the slot's batch.
    Some,
    /// Nothing for this slot now.
    Empty,
    /// Work waits, but every permit is lent to a splitting op.
    NoPermit,
    /// This worker leaves.
    Leave,
}

/// Why [`Worker::next`] returned.
pub(super) enum Found {
    Task(Arc<Core>),
    /// A signal handler ran while it slept.
    Interrupted,
    Leave,
}

/// One worker's own state.
pub(super) struct Worker {
    pub(super) pool: Arc<Inner>,
    pub(super) me: Turn,
    pub(super) writer: Writer,
    /// Counted in `State::busy`.
    busy: bool,
    pub(super) searching: bool,
    /// Moving average of what a task costs.
    pub(super) cost_ns: u64,
    /// Key of the task that ran last, until the scheduler hears of it.
    key_done: Option<u64>,
    /// Consecutive searches that found nothing.
    misses: u32,
    pub(super) now_ns: u64,
    /// It left, or the slot has a new owner: it must neither take nor leave again.
    pub(super) gone: bool,
}

/// The body of a native worker's thread.
pub(super) fn run(pool: Arc<Inner>, me: Turn, searching: bool) {
    let mut worker = Worker::new(pool, me, searching);
    loop {
        match worker.next() {
            Found::Task(core) => worker.run_native(core),
            Found::Interrupted => {}
            Found::Leave => return,
        }
    }
}

impl Worker {
    pub(super) fn new(pool: Arc<Inner>, me: Turn, searching: bool) -> Worker {
        let writer = pool.metrics.writer(me.slot);
        Worker { pool, me, writer, busy: false, searching, cost_ns: UNKNOWN_NS, key_done: None, misses: 0, now_ns: 0, gone: false }
    }

    /// The next task, already taken off the queue but not started.
    pub(super) fn next(&mut self) -> Found {
        if self.gone {
            return Found::Leave;
        }
        loop {
            if let Some(core) = self.pop_local() {
                return Found::Task(core);
            }
            match self.refill() {
                Refill::Some => self.now_ns = clock::monotonic_ns(),
                Refill::Leave => {
                    self.gone = true;
                    return Found::Leave;
                }
                wait @ (Refill::Empty | Refill::NoPermit) => {
                    if self.idle(matches!(wait, Refill::NoPermit)) {
                        return Found::Interrupted;
                    }
                    self.now_ns = clock::monotonic_ns();
                }
            }
        }
    }

    /// The next task if there is one now.
    pub(super) fn try_next(&mut self) -> Option<Arc<Core>> {
        if self.gone {
            return None;
        }
        if let Some(core) = self.pop_local() {
            return Some(core);
        }
        match self.refill() {
            Refill::Some => {
                self.now_ns = clock::monotonic_ns();
                self.pop_local()
            }
            Refill::Leave => {
                self.gone = true;
                None
            }
            Refill::Empty | Refill::NoPermit => None,
        }
    }

    /// For a worker that never ran: its place and its role are given back by whoever wanted to start it.
    pub(super) fn disarm(&mut self) {
        self.gone = true;
        self.searching = false;
    }

    pub(super) fn owns_slot(&self) -> bool {
        self.pool.slot(self.me.slot).turn.load(Ordering::Acquire) == self.me.turn
    }

    fn pop_local(&mut self) -> Option<Arc<Core>> {
        let slot = self.pool.slot(self.me.slot);
        if slot.batch_len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // Dropped after the lock: the last owner of a task may run a user's free function.
        let _finished;
        let mut local = lock(&slot.local);
        if !self.owns_slot() {
            return None;
        }
        let core = local.batch.pop_front()?;
        slot.batch_len.store(local.batch.len(), Ordering::Relaxed);
        _finished = local.current.replace(core.clone());
        core.ran_by.store(self.me.pack(), Ordering::Release);
        Some(core)
    }

    fn depth(&self, ready: usize, workers: usize) -> usize {
        let by_cost = (BATCH_NS / self.cost_ns.max(1)).clamp(1, MAX_BATCH as u64) as usize;
        let by_share = ready.div_ceil(workers.max(1)).max(1);
        // A small queue is bounded exactly: batches are not counted in it.
        let by_bound = 1 + self.pool.config.options.max_queue / 64;
        by_cost.min(by_share).min(by_bound)
    }

    pub(super) fn refill(&mut self) -> Refill {
        let pool = self.pool.clone();
        let slot = pool.slot(self.me.slot);
        // Dropped after the locks: the last owner of a task may run a user's free function.
        let mut _finished = None;
        let mut state = lock(&pool.state);
        if !self.owns_slot() {
            return Refill::Leave; // the slot's new owner holds its counts
        }
        let pinned = pool.take_injected(&mut state);
        if let Some(key) = self.key_done.take() {
            state.sched.key_done(key);
        }
        let max = pool.max_workers();
        let mut taken = 0;
        // A worker of a loop may look for more while it runs some.
        let mut holds = false;
        let mut no_permit = false;
        if !self.busy && state.busy + state.lent >= max && state.lent > 0 {
            no_permit = state.sched.len() > 0;
        } else {
            let depth = self.depth(state.sched.free_len(), state.workers);
            let mut local = lock(&slot.local);
            _finished = local.current.take();
            holds = local.hand.as_ref().is_some_and(|hand| hand.holds());
            while taken < depth {
                match state.sched.take(self.me.slot) {
                    Take::Nothing => break,
                    Take::Free(core) => {
                        local.batch.push_back(core);
                        taken += 1;
                    }
                    Take::Keyed(core) => {
                        local.batch.push_back(core);
                        taken += 1;
                        break;
                    }
                }
            }
            slot.batch_len.store(local.batch.len(), Ordering::SeqCst);
        }
        let dropped = state.sched.take_dropped();
        let ready = state.sched.free_len();
        pool.ready.store(ready, Ordering::SeqCst);
        slot.keyed.store(state.sched.keyed_len(self.me.slot), Ordering::SeqCst);
        let busy = taken > 0 || holds;
        match (self.busy, busy) {
            (false, true) => state.busy += 1,
            (true, false) => state.busy -= 1,
            _ => {}
        }
        self.busy = busy;
        let surplus = self.me.slot >= max && state.sched.keyed_len(self.me.slot) == 0;
        // What only other slots may run is theirs; the pool ends when the last worker has left.
        let mine = state.sched.free_len() + state.sched.keyed_len(self.me.slot);
        // Nor does a worker leave who can help another one.
        let over = mine == 0 && pool.closing.load(Ordering::SeqCst) && pool.injector.is_empty() && !pool.has_batches();
        let leave = !busy && (surplus || over);
        if leave {
            self.end_search();
            pool.leave(&mut state, self.me.slot);
        }
        drop(state);

        pool.forget_tombstones(dropped);
        if taken > 0 {
            pool.release_space(taken);
        }
        for slot in pinned {
            if slot != self.me.slot {
                pool.wake_slot(slot);
            }
        }
        if taken > 0 {
            self.misses = 0;
            self.share(ready + taken - 1);
            return Refill::Some;
        }
        if leave {
            // Work may have come for somebody else between the look and the leaving.
            Idle::publish();
            if pool.has_waiting_work() {
                pool.wake_one();
            }
            return Refill::Leave;
        }
        if no_permit { Refill::NoPermit } else { Refill::Empty }
    }

    /// After taking work: stop being the searcher, and get help if `left` tasks are worth a wake-up.
    fn share(&mut self, left: usize) {
        self.end_search();
        let pool = &self.pool;
        let left = left + usize::from(!pool.injector.is_empty());
        if left == 0 || !pool.idle.may_wake(pool) {
            return;
        }
        if left as u64 * self.cost_ns > BATCH_NS {
            pool.wake_one();
        } else {
            // Done here sooner than a sleeper is awake; unless a task takes longer than they did so far.
            pool.arm_tick();
        }
    }

    /// Takes tasks over from another worker, if there are any.
    pub(super) fn steal_some(&mut self) -> bool {
        let stolen = self.steal();
        if stolen > 0 {
            self.share(stolen - 1);
        }
        stolen > 0
    }

    /// Gives the role of searcher back; a look for work must follow.
    pub(super) fn end_search(&mut self) {
        self.pool.idle.end_search(std::mem::take(&mut self.searching));
    }

    /// Takes half of another worker's batch. Returns how many tasks.
    fn steal(&mut self) -> usize {
        let pool = self.pool.clone();
        for (at, victim) in pool.slots().enumerate() {
            let ahead = || self.pool.hand_of(victim).filter(|hand| hand.ahead() > 0);
            if at == self.me.slot || (victim.batch_len.load(Ordering::Relaxed) == 0 && ahead().is_none()) {
                continue;
            }
            // Under the lock from permit to batch: a task is never in a thief's hands while its permit is in doubt.
            let mut state = lock(&pool.state);
            if !self.owns_slot() || (!self.busy && state.busy + state.lent >= pool.max_workers()) {
                return 0;
            }
            let mut stolen = {
                let mut local = lock(&victim.local);
                let keep = local.batch.len() / 2;
                // Tasks with a key, and those of one worker, stay.
                let from = (keep..local.batch.len()).find(|i| !local.batch.range(*i..).any(|c| c.is_bound()));
                let stolen = from.map(|i| local.batch.split_off(i)).unwrap_or_default();
                victim.batch_len.store(local.batch.len(), Ordering::SeqCst);
                stolen
            };
            // What a loop has in hand is older than the rest of its batch.
            if stolen.is_empty()
                && let Some(hand) = ahead()
            {
                stolen.extend(pool.steal_ahead(&hand));
            }
            if stolen.is_empty() {
                continue;
            }
            if !std::mem::replace(&mut self.busy, true) {
                state.busy += 1;
            }
            let taken = stolen.len();
            let mine = pool.slot(self.me.slot);
            let mut local = lock(&mine.local);
            local.batch.extend(stolen);
            mine.batch_len.store(local.batch.len(), Ordering::SeqCst);
            return taken;
        }
        0
    }

    /// Searches, then sleeps. True if a signal handler ended the sleep.
    fn idle(&mut self, no_permit: bool) -> bool {
        if !no_permit && self.search() {
            return false;
        }
        self.end_search();
        self.sleep(no_permit)
    }

    /// Looks for work for a while. True if there is some, or it has some; otherwise it gives the role of searcher back before it
    /// looks once more, when it lies down.
    pub(super) fn search(&mut self) -> bool {
        let pool = self.pool.clone();
        // A search that keeps finding nothing is given up for a while: every 8th sleep tries again.
        let worth = self.misses < 4 || self.misses.is_multiple_of(8);
        self.searching = self.searching || (worth && pool.idle.begin_search());
        if self.searching {
            for _ in 0..if worth { SPINS } else { 1 } {
                if pool.has_waiting_work() {
                    return true; // still the searcher; `refill` ends that
                }
                std::hint::spin_loop();
            }
            self.misses = self.misses.wrapping_add(1);
        }
        self.steal_some()
    }

    /// Puts itself on the list of sleepers. True if it must look for work before it sleeps.
    pub(super) fn lie_down(&mut self, no_permit: bool) -> bool {
        self.end_search();
        let pool = &self.pool;
        let slot = pool.slot(self.me.slot);
        pool.idle.lie_down(self.me.slot);
        if pool.has_batches() {
            // Whoever took it may have seen this worker awake, and armed nothing.
            pool.arm_tick();
        }
        let work = pool.has_waiting_work() || slot.keyed.load(Ordering::SeqCst) > 0;
        let lent = no_permit && lock(&pool.state).lent > 0;
        // A worker of a loop that runs something looks when that has ended.
        let holds = pool.hand_of(slot).is_some_and(|hand| hand.holds());
        (!lent && (work || (!holds && pool.closing.load(Ordering::SeqCst) && !pool.has_batches())))
            || (!holds && self.me.slot >= pool.max_workers())
            || slot.turn.load(Ordering::SeqCst) != self.me.turn
    }

    fn sleep(&mut self, no_permit: bool) -> bool {
        let pool = self.pool.clone();
        let slot = pool.slot(self.me.slot);
        let must_look = self.lie_down(no_permit);
        let options = &pool.config.options;
        let min = pool.config.min_workers.load(Ordering::Relaxed);
        let timeout = (pool.workers() > min).then_some(options.idle_timeout);
        let mut interrupted = false;
        let token = loop {
            let token = slot.park.load(Ordering::Acquire);
            if token != 0 {
                break token;
            }
            let woke = if must_look { futex::Wake::TimedOut } else { futex::wait(&slot.park, 0, timeout) };
            if matches!(woke, futex::Wake::TimedOut | futex::Wake::Interrupted) {
                // Either this worker takes itself off the list, or somebody has claimed it and the token is coming.
                if pool.idle.claim(self.me.slot) {
                    interrupted = woke == futex::Wake::Interrupted;
                    if woke == futex::Wake::TimedOut && !must_look {
                        self.retire();
                    }
                    break 0;
                }
                while slot.park.load(Ordering::Acquire) == 0 {
                    futex::wait(&slot.park, 0, None);
                }
            }
        };
        // Without a token this worker took itself off the list, and the slot may have a new owner by now.
        if token != 0 {
            slot.park.store(0, Ordering::Release);
        }
        self.searching = token == TOKEN_SEARCH;
        interrupted
    }

    /// Leaves after `idle_timeout`, unless that would go below `min_workers` or work has come.
    pub(super) fn retire(&mut self) {
        let pool = self.pool.clone();
        let mut state = lock(&pool.state);
        let min = pool.config.min_workers.load(Ordering::Relaxed);
        if !self.owns_slot()
            || state.workers <= min
            || lock(&pool.slot(self.me.slot).local).successor.is_some()
            || state.sched.keyed_len(self.me.slot) > 0
            || !pool.injector.is_empty()
            || state.sched.free_len() > 0
        {
            return;
        }
        // The counts of this slot are given up here; the next `refill` sees that the slot has another owner.
        if std::mem::take(&mut self.busy) {
            state.busy -= 1;
        }
        let place = pool.slot(self.me.slot);
        place.turn.store(self.me.turn.wrapping_add(1), Ordering::SeqCst);
        pool.leave(&mut state, self.me.slot);
        drop(state);
        Idle::publish();
        if pool.has_waiting_work() {
            pool.wake_one();
        }
    }

    /// Gives up its counts, for a worker that takes its place: the caller holds the lock and changes the owner.
    pub(super) fn pass_on(&mut self, state: &mut State) {
        if let Some(key) = self.key_done.take() {
            state.sched.key_done(key);
        }
        if std::mem::take(&mut self.busy) {
            state.busy -= 1;
        }
        self.gone = true;
    }

    /// Starts a task: its work, and when it started. `None` if it already has its outcome.
    pub(super) fn start(&mut self, core: &Arc<Core>) -> Option<(WorkKind, u64)> {
        let started = self.now_ns;
        let Some(work) = core.start(started) else {
            self.pool.tombstones.fetch_sub(1, Ordering::SeqCst);
            self.key_done = core.key;
            return None;
        };
        if let Some(limit) = core.timeout {
            service::arm(Due::Timeout, core, started, limit);
        }
        Some((work, started))
    }

    /// Ends a task that this worker ran, and counts it.
    pub(super) fn finish(&mut self, core: &Arc<Core>, started: u64, result: Result<Value>) {
        let outcome = match &result {
            Ok(_) => Outcome::Completed,
            Err(e) if e.kind() == ErrorKind::WorkerLost => Outcome::Lost,
            Err(_) => Outcome::Failed,
        };
        let now = clock::monotonic_ns();
        self.now_ns = now;
        let run = now.saturating_sub(started);
        let in_time = core.claim_finish();
        if !in_time {
            core.returned.store(true, Ordering::SeqCst);
            self.pool.overdue.fetch_sub(1, Ordering::SeqCst);
            let mut state = lock(&self.pool.state);
            if !self.owns_slot() {
                state.replaced -= 1;
                self.gone = true;
                return; // the slot's counters belong to its new owner
            }
        }
        self.key_done = core.key;
        self.writer.wait(started.saturating_sub(core.submitted_ns));
        self.writer.run(run);
        self.writer.busy(run);
        self.learn(run);
        if in_time {
            // Counted first, so that whoever sees the outcome sees it counted.
            self.writer.count(outcome.counter(), 1);
            core.note(outcome, Ending::Ran(run));
            core.publish(result, true);
        }
    }

    /// What a task cost: follows a change within a few tasks, and a long task at once.
    pub(super) fn learn(&mut self, run_ns: u64) {
        self.cost_ns = if run_ns > self.cost_ns { run_ns } else { (self.cost_ns.saturating_mul(7).saturating_add(run_ns)) / 8 };
    }

    fn run_native(&mut self, core: Arc<Core>) {
        let Some((work, started)) = self.start(&core) else { return };
        let pool = &*core.pool;
        let call = || match work {
            WorkKind::Op(op, inputs, params) => (op.run)(&mut OpCtx::new(inputs, &params, &*core, pool)),
            WorkKind::Plugin(op, inputs, params) => op.run(&mut OpCtx::new(inputs, &params, &*core, pool)),
            WorkKind::Call(f) => f(&mut OpCtx::new(Vec::new(), &Params::NONE, &*core, pool)),
            WorkKind::Function(f) => f.run(&mut OpCtx::new(Vec::new(), &Params::NONE, &*core, pool)),
            WorkKind::Hosted(_) => Err(Error::new(ErrorKind::Unsupported, "a hosted task needs a thread of its host")),
        };
        stuck::running(Some((pool, self.me)));
        let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panicked(&*panic)));
        stuck::running(None);
        self.finish(&core, started, result);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A hosted worker may be dropped by its host at any time: what it holds must not be stuck, the role least of all.
        self.end_search();
        if self.gone {
            return;
        }
        let _finished;
        let mut state = lock(&self.pool.state);
        if !self.owns_slot() || !state.is_alive(self.me.slot) {
            return;
        }
        if let Some(key) = self.key_done.take() {
            state.sched.key_done(key);
        }
        if std::mem::take(&mut self.busy) {
            state.busy -= 1;
        }
        let place = self.pool.slot(self.me.slot);
        let held: Vec<Arc<Core>> = {
            let mut local = lock(&place.local);
            _finished = local.current.take();
            place.batch_len.store(0, Ordering::SeqCst);
            local.batch.drain(..).collect()
        };
        self.pool.give_back(&mut state, self.me.slot, held);
        let keyed = state.sched.keyed_len(self.me.slot) > 0;
        place.turn.store(self.me.turn.wrapping_add(1), Ordering::SeqCst);
        self.pool.idle.claim(self.me.slot);
        self.pool.leave(&mut state, self.me.slot);
        drop(state);
        Idle::publish();
        if self.pool.has_waiting_work() {
            self.pool.wake_one();
        }
        if keyed {
            // Nobody else may take them.
            self.pool.wake_slot(self.me.slot);
            self.pool.arm_tick();
        }
    }
}

/// Keeps Rust's default message about a panic off stderr: the panic of a task is that task's error, and a library prints
/// nothing. For a face with a copy of the standard library of its own (the C library, the Node and Python modules); a
/// Rust program owns its panic hook.
pub fn silence_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    Error::new(ErrorKind::Panic, text.unwrap_or_else(|| "a task panicked".to_owned()))
}
