//! Workers of loops that have done enough, by tasks, by age or by memory, and those that take their places.
//!
//! ```text
//!   worker      asked for a successor         takes nothing more          leaves
//!  ───────────────────┬──────────────────────────────┬─────────────────────►┐ place
//!                     └ start ─────────► ready ──────┘                      └► successor takes tasks
//! ```
//!
//! The successor's thread starts while the worker goes on. Once it is ready the worker takes nothing more, finishes what it has begun and
//! passes its place on: slot, keys, and what lies in its batch. A worker that has begun all the tasks of its limit passes the place on
//! without waiting, so the limit is exact; to have the successor ready by then it is asked for 5 to 10 % before. Ages are looked at when the
//! worker takes tasks, and by a timer of the pool for those that sleep.
//!
//! A successor is in `Local::successor` and counts as no worker until the place is its own. It never lies on the list of sleepers before:
//! its waker is called when it has the place, or is dismissed because the place is no more.

use crate::error::{Error, ErrorKind};
use crate::metrics::Counter;
use crate::pool::inner::{Inner, State};
use crate::pool::looped::{Hand, LoopWorker};
use crate::pool::options::PoolOptions;
use crate::pool::service;
use crate::pool::worker::Worker;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::lock;
use crate::sys::clock;
use std::sync::Arc;
use std::time::Duration;

/// When the ages are looked at again while an old worker waits for its successor, or a tenth of the age if that is less.
const AGAIN: Duration = Duration::from_secs(1);

const OWNER: u32 = 0;
const SUCCESSOR: u32 = 1;
const DISMISSED: u32 = 2;

/// When a worker has done enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// So many tasks, and its successor is asked for.
    pub(super) ask_at: u64,
    /// It begins no more than so many.
    pub(super) tasks: u64,
    /// So old, and its successor is asked for.
    pub(super) age_ns: u64,
}

impl Limits {
    /// `random` decides how much earlier than the options say, so that workers that were started together are not replaced together.
    pub(super) fn of(options: &PoolOptions, random: u64) -> Limits {
        let earlier = |limit: u64, per_mille: u64| limit - (u128::from(limit) * u128::from(per_mille) / 1000) as u64;
        let tasks = options.max_tasks_per_worker.unwrap_or(u64::MAX);
        let age_ns = options.max_worker_age.map_or(u64::MAX, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        Limits { ask_at: earlier(tasks, 50 + random % 51), tasks, age_ns: earlier(age_ns, (random >> 32) % 101) }
    }
}

/// What a hand knows of its worker's place and time.
#[derive(Debug)]
pub(super) struct Term {
    pub(super) limits: Limits,
    /// Since when it is ready; 0 before. Release by its thread, Acquire by the one whose place it takes.
    born_ns: AtomicU64,
    /// Release by who decides, Acquire by its thread.
    role: AtomicU32,
    /// It has too much memory.
    outgrown: AtomicBool,
    /// Its turn of the slot, once the place is its own.
    turn: AtomicU32,
}

impl Term {
    pub(super) fn new(limits: Limits, succeeds: bool) -> Term {
        let role = if succeeds { SUCCESSOR } else { OWNER };
        Term { limits, born_ns: AtomicU64::new(0), role: AtomicU32::new(role), outgrown: AtomicBool::new(false), turn: AtomicU32::new(0) }
    }

    fn is_ready(&self) -> bool {
        self.born_ns.load(Ordering::Acquire) != 0
    }

    /// When its age is reached; none before it is ready.
    fn old_at(&self) -> Option<u64> {
        match self.born_ns.load(Ordering::Acquire) {
            0 => None,
            born => Some(born.saturating_add(self.limits.age_ns)),
        }
    }

    fn has_limits(&self) -> bool {
        self.limits.tasks != u64::MAX || self.limits.age_ns != u64::MAX || self.outgrown.load(Ordering::Relaxed)
    }
}

impl Hand {
    /// The place is no more.
    pub(super) fn dismiss(&self) {
        self.term.role.store(DISMISSED, Ordering::Release);
        self.wake();
    }
}

/// What [`LoopWorker::place`] found.
pub(super) enum Place {
    /// Its own: it may take tasks.
    Own,
    /// Still somebody else's, or about to be.
    Later,
    /// Gone, or passed on.
    None,
}

impl LoopWorker {
    /// Notes that it is ready, and tells the one whose place it takes.
    pub(super) fn come_of_age(&mut self) {
        let pool = self.worker.pool.clone();
        self.hand.term.born_ns.store(clock::monotonic_ns().max(1), Ordering::Release);
        if self.hand.term.limits.age_ns != u64::MAX {
            pool.arm_ages(Duration::from_nanos(self.hand.term.limits.age_ns));
        }
        let predecessor = {
            let local = lock(&pool.slot(self.worker.me.slot).local);
            local.successor.as_ref().filter(|s| Arc::ptr_eq(s, &self.hand)).and(local.hand.clone())
        };
        if let Some(predecessor) = predecessor {
            predecessor.wake();
        }
    }

    /// Takes the place if it has been passed on. False if it never will be.
    fn adopt(&mut self) -> Option<bool> {
        match self.hand.term.role.load(Ordering::Acquire) {
            OWNER => {
                if self.succeeds {
                    self.succeeds = false;
                    self.worker.me.turn = self.hand.term.turn.load(Ordering::Relaxed);
                }
                Some(true)
            }
            SUCCESSOR => None,
            _ => Some(false),
        }
    }

    /// Whether it may take tasks, or is to pass its place on.
    pub(super) fn place(&mut self) -> Place {
        match self.adopt() {
            None => return Place::Later,
            Some(false) => {
                self.worker.gone = true;
                return Place::None;
            }
            Some(true) => {}
        }
        if !self.hand.term.has_limits() {
            return Place::Own;
        }
        let Limits { ask_at, tasks, .. } = self.hand.term.limits;
        let begun = self.hand.begun();
        let term = &self.hand.term;
        let old = || term.outgrown.load(Ordering::Relaxed) || term.old_at().is_some_and(|at| clock::monotonic_ns() >= at);
        if begun < ask_at && !old() {
            return Place::Own;
        }
        let pool = self.worker.pool.clone();
        pool.ask_for_successor(self.worker.me.slot, &self.hand);
        let spent = begun >= tasks;
        let successor = lock(&pool.slot(self.worker.me.slot).local).successor.clone();
        if !spent && !successor.is_some_and(|s| s.term.is_ready()) {
            return Place::Own;
        }
        if self.hand.holds() {
            return Place::Later;
        }
        pool.metrics.add(Counter::Recycled, 1);
        self.pass_on();
        // Without a successor, because none could be had, the place is free once the thread has ended.
        Place::None
    }

    fn pass_on(&mut self) -> bool {
        let pool = self.worker.pool.clone();
        let passed_on = pool.pass_on(&mut lock(&pool.state), &mut self.worker, &self.hand);
        if passed_on {
            pool.wake_owner(self.worker.me.slot);
        }
        passed_on
    }

    /// Passes the place on if its successor is ready: then that one is idle in its place.
    pub(super) fn hand_over(&mut self) -> bool {
        let ready = lock(&self.worker.pool.slot(self.worker.me.slot).local).successor.as_ref().is_some_and(|s| s.term.is_ready());
        let passed_on = ready && self.pass_on();
        if passed_on {
            self.worker.pool.metrics.add(Counter::Recycled, 1);
        }
        passed_on
    }

    /// Its process has too much memory: it is replaced, as one that is too old. May be said again while that lasts.
    pub(super) fn outgrow(&self) {
        if self.hand.term.is_ready() && self.hand.term.role.load(Ordering::Acquire) == OWNER {
            self.hand.term.outgrown.store(true, Ordering::Relaxed);
            self.worker.pool.ask_for_successor(self.worker.me.slot, &self.hand);
        }
    }

    /// For the end of its thread: true if the place was never its own, and nothing is left to be done.
    pub(super) fn renounce(&mut self) -> bool {
        {
            // Under the lock under which places are passed on.
            let mut local = lock(&self.worker.pool.slot(self.worker.me.slot).local);
            if local.successor.as_ref().is_some_and(|s| Arc::ptr_eq(s, &self.hand)) {
                local.successor = None;
                self.hand.term.role.store(DISMISSED, Ordering::Release);
            }
        }
        if self.adopt() == Some(true) {
            return false;
        }
        self.worker.disarm();
        true
    }
}

impl Inner {
    pub(super) fn limits(&self, slot: usize, succeeds: bool) -> Term {
        // Any number that differs from the slot's last one.
        let turn = clock::monotonic_ns();
        Term::new(Limits::of(&self.config.options, self.config.random(slot, turn)), succeeds)
    }

    /// Starts the one that takes the place of the worker with `hand`, unless there is one or no worker may be started now.
    pub(super) fn ask_for_successor(self: &Arc<Inner>, slot: usize, hand: &Arc<Hand>) {
        let Some(looped) = &self.config.looped else { return };
        if self.backing_off.load(Ordering::SeqCst) > 0 {
            return;
        }
        let Some(worker) = LoopWorker::succeeding(self, slot, looped, hand) else { return };
        if let Err(worker) = looped.host.start(worker) {
            let error = Error::new(ErrorKind::StartFailed, "the host has no thread for a worker");
            lock(&self.state).start_error = Some(error);
            self.back_off();
            // It may have got the place meanwhile, which it then leaves.
            drop(worker);
        }
    }

    /// Makes the successor the owner of the worker's place, with all that waits there. False if there is none.
    pub(super) fn pass_on(&self, state: &mut State, worker: &mut Worker, hand: &Arc<Hand>) -> bool {
        let place = self.slot(worker.me.slot);
        let mut local = lock(&place.local);
        if !worker.owns_slot() || !local.hand.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, hand)) {
            return false;
        }
        let Some(successor) = local.successor.take() else { return false };
        worker.pass_on(state);
        let turn = worker.me.turn.wrapping_add(1);
        place.turn.store(turn, Ordering::SeqCst);
        place.park.store(0, Ordering::SeqCst);
        successor.term.turn.store(turn, Ordering::Relaxed);
        successor.term.role.store(OWNER, Ordering::Release);
        local.hand = Some(successor);
        true
    }

    /// A place has a new owner, which looks for work.
    pub(super) fn wake_owner(&self, slot: usize) {
        if let Some(hand) = self.hand_of(self.slot(slot)) {
            hand.wake();
        }
    }

    /// Has the ages looked at after so long, if they are not already. Those that come later are not older by then than the options allow.
    fn arm_ages(self: &Arc<Inner>, after: Duration) {
        if !self.age_armed.swap(true, Ordering::SeqCst) {
            self.look_at_ages_after(after);
        }
    }

    fn look_at_ages_after(self: &Arc<Inner>, after: Duration) {
        let pool = Arc::downgrade(self);
        service::run_after(
            after,
            Box::new(move || {
                let Some(pool) = pool.upgrade() else { return };
                match pool.look_at_ages() {
                    Some(after) => pool.look_at_ages_after(after),
                    None => {
                        pool.age_armed.store(false, Ordering::SeqCst);
                        // Who became ready meanwhile saw it armed.
                        if let Some(after) = pool.look_at_ages() {
                            pool.arm_ages(after);
                        }
                    }
                }
            }),
        );
    }

    /// Asks for successors of those that are old. After how long to look again, if there is anybody.
    fn look_at_ages(self: &Arc<Inner>) -> Option<Duration> {
        let now = clock::monotonic_ns();
        let mut next: Option<u64> = None;
        for (at, slot) in self.slots().enumerate() {
            let hands = {
                let local = lock(&slot.local);
                [local.hand.clone(), local.successor.clone()]
            };
            for hand in hands.iter().flatten() {
                let Some(old_at) = hand.term.old_at() else { continue };
                let mut again = old_at;
                if old_at <= now {
                    self.ask_for_successor(at, hand);
                    again = now.saturating_add((hand.term.limits.age_ns / 10).min(AGAIN.as_nanos() as u64));
                }
                next = Some(next.map_or(again, |n| n.min(again)));
            }
        }
        next.map(|next| Duration::from_nanos(next.saturating_sub(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_is_asked_for_up_to_ten_per_cent_before_the_limit_by_the_random_number() {
        let limits = |tasks, age_ms: Option<u64>, random| {
            let options =
                PoolOptions { max_tasks_per_worker: tasks, max_worker_age: age_ms.map(Duration::from_millis), ..PoolOptions::default() };
            Limits::of(&options, random)
        };
        assert_eq!(limits(None, None, 7).tasks, u64::MAX);
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..2000u64 {
            let random = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let Limits { ask_at, tasks, age_ns } = limits(Some(1000), Some(1000), random);
            assert_eq!(tasks, 1000);
            assert!((900..=950).contains(&ask_at), "{ask_at}");
            assert!((900_000_000..=1_000_000_000).contains(&age_ns), "{age_ns}");
            seen.insert((ask_at, age_ns));
            // The same number, the same limits.
            assert_eq!(limits(Some(1000), Some(1000), random), Limits { ask_at, tasks, age_ns });
        }
        assert!(seen.len() > 1000, "{} different ones of 2000", seen.len());
        for (tasks, at) in [(1, 1), (3, 3), (9, 9), (20, 19)] {
            assert_eq!(limits(Some(tasks), None, 0).ask_at, at);
        }
    }
}
