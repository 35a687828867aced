//! The workers of a pool as a whole: waking, starting, leaving, lending. Who is woken when is decided by [`Idle`](super::idle).

use crate::error::{Error, ErrorKind};
use crate::pool::HostedWorker;
use crate::pool::idle::{Crew, Idle, TOKEN};
use crate::pool::inner::{Inner, Slot, State};
use crate::pool::looped::{Hand, LoopWorker};
use crate::pool::service;
use crate::pool::task::Core;
use crate::pool::worker::{self, Turn};
use crate::sync::atomic::{Ordering, fence};
use crate::sync::lock;
use crate::sys::{self, clock, futex};
use std::sync::Arc;

impl Crew for Arc<Inner> {
    fn has_work(&self) -> bool {
        self.has_waiting_work()
    }

    fn may_grow(&self) -> bool {
        self.workers() < self.max_workers() && (self.config.looped.is_none() || self.may_start_loop())
    }

    fn grow(&self) -> bool {
        let turn = {
            let mut state = lock(&self.state);
            let max = self.max_workers();
            let free = (0..max).find(|s| !state.is_alive(*s));
            match free {
                Some(slot) if state.workers < max => self.reserve_slot(&mut state, slot),
                _ => return false,
            }
        };
        let started = self.start(turn, true);
        if started && self.config.looped.is_some() {
            // Its thread needs as long to start as many tasks to run: others search meanwhile. It will look, or say that it cannot.
            self.idle.end_search(true);
            // Unless it has looked already and is asleep or lost: who queued work since saw the role taken.
            if self.has_waiting_work() && self.starting.load(Ordering::SeqCst) == 0 {
                self.arm_tick();
            }
        }
        started
    }

    fn give_up(&self) {
        self.end_stranded();
    }

    fn hand(&self, slot: usize, token: u32) {
        self.hand_token(slot, token);
    }
}

impl Inner {
    /// Gets one more worker going, if nobody is searching: a sleeper, or a new thread below the limit. The caller has made
    /// the work visible and passed a fence.
    pub(super) fn wake_one(self: &Arc<Inner>) {
        self.idle.wake_one(self);
    }

    /// Gets the worker of one slot going.
    pub(super) fn wake_slot(self: &Arc<Inner>, slot: usize) {
        // `keyed` was stored before, and is looked at after `Idle::lie_down`.
        Idle::publish();
        if self.idle.claim(slot) {
            self.hand_token(slot, TOKEN);
            return;
        }
        let turn = {
            let mut state = lock(&self.state);
            if state.is_alive(slot) || self.backing_off.load(Ordering::SeqCst) > 0 {
                return;
            }
            self.reserve_slot(&mut state, slot)
        };
        self.start(turn, false);
    }

    /// The Release pairs with the Acquire of `Worker::sleep`.
    fn hand_token(&self, slot: usize, token: u32) {
        let park = &self.slot(slot).park;
        park.store(token, Ordering::Release);
        futex::wake(park, 1);
        if let Some(hand) = self.hand_of(self.slot(slot)) {
            hand.wake();
        }
    }

    /// What the worker of a loop has in its hands.
    pub(super) fn hand_of(&self, slot: &Slot) -> Option<Arc<Hand>> {
        self.config.looped.as_ref()?;
        lock(&slot.local).hand.clone()
    }

    /// The worker of a loop has the task and has not begun it.
    pub(super) fn has_ahead(&self, core: &Arc<Core>) -> bool {
        self.hand_of(self.slot(Turn::of(core).slot)).is_some_and(|hand| hand.has_ahead(core))
    }

    /// A worker of a loop takes long to start: no more at a time than tasks wait, and none soon after one that did not.
    fn may_start_loop(&self) -> bool {
        let starting = self.starting.load(Ordering::SeqCst);
        self.backing_off.load(Ordering::SeqCst) == 0 && (starting == 0 || starting < self.queued.load(Ordering::SeqCst))
    }

    pub(super) fn wake_all(&self) {
        for slot in self.idle.claim_all() {
            self.hand_token(slot, TOKEN);
        }
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

    /// Starts the worker of a reserved slot. False if the system (or the host) has no thread for it now: the workers that
    /// are there do its work, or it is tried again in a millisecond. Without any, [`end_stranded`](Self::end_stranded).
    pub(super) fn start(self: &Arc<Inner>, turn: Turn, searching: bool) -> bool {
        let refused = || Error::new(ErrorKind::StartFailed, "the host has no thread for a worker");
        let started = match (&self.config.hosted, &self.config.looped) {
            (_, Some(looped)) => looped.host.start(LoopWorker::new(self.clone(), turn, looped)).map_err(|worker| {
                worker.disarm();
                refused()
            }),
            (Some(spawner), _) => spawner(HostedWorker::new(self.clone(), turn, searching)).map_err(|worker| {
                worker.disarm();
                refused()
            }),
            (None, None) => {
                let pool = self.clone();
                let options = self.thread_options(format!("{}-{}", self.config.options.name, turn.slot));
                sys::thread::spawn(&options, move || worker::run(pool, turn, searching)).map(drop)
            }
        };
        let Err(error) = started else { return true };
        let others = {
            let mut state = lock(&self.state);
            state.start_error = Some(error.with("pool", &self.config.options.name));
            self.leave(&mut state, turn.slot);
            state.workers > 0
        };
        if others {
            self.arm_tick();
        } else if !searching {
            self.end_stranded(); // a searcher's caller does so once it has given the role back
        }
        false
    }

    /// Ends what is queued with the reason why no worker could be started, if there is none. Whoever failed to start one
    /// calls it afterwards, so that no task waits for a worker that will not come.
    pub(super) fn end_stranded(self: &Arc<Inner>) {
        if self.workers.load(Ordering::SeqCst) > 0 {
            return;
        }
        let state = lock(&self.state);
        let Some(error) = state.start_error.clone().filter(|_| state.workers == 0) else { return };
        self.end_waiting(state, &error);
        self.check_closed(&mut lock(&self.state));
    }

    /// Slots with tasks of their own whose worker could not be started.
    fn orphans(&self) -> Vec<usize> {
        let keyed = |slot: &usize| self.slot(*slot).keyed.load(Ordering::Relaxed) > 0;
        let waiting: Vec<usize> = (0..self.slots().count()).filter(keyed).collect();
        if waiting.is_empty() {
            return waiting;
        }
        let state = lock(&self.state);
        waiting.into_iter().filter(|slot| !state.is_alive(*slot)).collect()
    }

    /// A worker leaves its slot; the caller holds the lock.
    pub(super) fn leave(&self, state: &mut State, slot: usize) {
        state.alive[slot] = false;
        state.workers -= 1;
        self.workers.store(state.workers, Ordering::SeqCst);
        // Nobody is left whose place it could take.
        if let Some(successor) = lock(&self.slot(slot).local).successor.take() {
            successor.dismiss();
        }
        self.check_closed(state);
        if self.closing.load(Ordering::SeqCst) {
            // Who sleeps because this one had something left looks whether it may leave too.
            Idle::publish();
            self.wake_all();
        }
    }

    /// Some worker holds tasks that it has not started, and that another one may take over.
    pub(super) fn has_batches(&self) -> bool {
        // What is bound to its worker is the last of a batch; none is ahead in a hand, because it begins when it is handed out.
        let batch = |s: &Slot| s.batch_len.load(Ordering::Relaxed) > 0 && lock(&s.local).batch.back().is_some_and(|core| !core.is_bound());
        let ahead = |s: &Slot| self.hand_of(s).is_some_and(|hand| hand.ahead() > 0);
        self.slots().any(|s| batch(s) || ahead(s))
    }

    /// Has the pool looked at in a millisecond: the batch of a worker whose task takes longer than expected goes to others.
    pub(super) fn arm_tick(self: &Arc<Inner>) {
        if !self.tick_armed.swap(true, Ordering::SeqCst) {
            service::tick(self, clock::monotonic_ns());
        }
    }

    /// Once per millisecond while work waits and workers sleep. True to go on.
    pub(super) fn on_tick(self: &Arc<Inner>) -> bool {
        let work = || self.has_waiting_work() || self.has_batches();
        let behind = self.config.looped.is_some() && self.collect_ended();
        if behind {
            self.recall();
        }
        let orphans = self.orphans();
        for slot in &orphans {
            self.wake_slot(*slot);
        }
        if work() {
            self.wake_one();
            return true;
        }
        if behind || !orphans.is_empty() {
            return true; // until one look finds that all have started, and no result
        }
        self.tick_armed.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        work() && !self.tick_armed.swap(true, Ordering::SeqCst)
    }

    /// Puts tasks back that a worker had taken, before those that came later.
    pub(super) fn give_back(&self, state: &mut State, slot: usize, tasks: Vec<Arc<Core>>) {
        self.queued.fetch_add(tasks.len(), Ordering::SeqCst);
        for core in tasks.into_iter().rev() {
            state.sched.put_back(core);
        }
        self.ready.store(state.sched.free_len(), Ordering::SeqCst);
        self.slot(slot).keyed.store(state.sched.keyed_len(slot), Ordering::SeqCst);
    }

    // ---- lending ------------------------------------------------------------------------------------------------

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
        Idle::publish();
        // A worker that found all permits lent went to sleep.
        if self.has_waiting_work() || self.slots().any(|s| s.keyed.load(Ordering::Relaxed) > 0) {
            self.wake_all();
        }
    }

    /// The threads that ops split their work on, started at first need; `None` while the system has none for them.
    pub(super) fn rayon(&self) -> Option<&rayon::ThreadPool> {
        if let Some(threads) = self.rayon.get() {
            return Some(threads);
        }
        let _one_builds = lock(&self.rayon_build);
        if self.rayon.get().is_none() {
            let name = self.config.options.name.clone();
            let built = rayon::ThreadPoolBuilder::new()
                .num_threads(self.max_workers().max(1))
                .thread_name(move |i| format!("{name}-split-{i}"))
                .spawn_handler(|thread| {
                    let options = self.thread_options(thread.name().unwrap_or("offloop-split").to_owned());
                    sys::thread::spawn(&options, move || thread.run()).map(drop).map_err(std::io::Error::other)
                })
                .build();
            // Who comes next tries again.
            let _ = self.rayon.set(built.ok()?);
        }
        self.rayon.get()
    }
}
