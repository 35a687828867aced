//! How tasks end from outside (deadlines, cancelling, lost threads), and how a pool does.

use crate::error::{Error, ErrorKind};
use crate::pool::callbacks;
use crate::pool::inner::{Inner, Slot, State};
use crate::pool::service::{self, Due};
use crate::pool::task::{Core, Ended};
use crate::pool::trace::{Ending, Outcome};
use crate::pool::worker::Turn;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sys::{clock, futex};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

/// How long a cancelled function may go on before its thread is replaced.
const OVERDUE_GRACE: Duration = Duration::from_millis(10);
/// A sweep is worth its time above so many tombstones.
const SWEEP_FROM: isize = 1024;

impl Inner {
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
        let outcome = match error.kind() {
            ErrorKind::Timeout => Outcome::TimedOut,
            ErrorKind::Cancelled => Outcome::Cancelled,
            _ => Outcome::Failed,
        };
        self.metrics.add(outcome.counter(), 1);
        match ended {
            Ended::Queued(work) => {
                self.bury();
                core.note(outcome, Ending::Unstarted);
                core.publish(Err(error), false);
                drop(work);
            }
            Ended::Running => {
                let hand = self.hand_of(self.slot(Turn::of(core).slot));
                if let Some(payload) = hand.as_ref().and_then(|hand| hand.revoke_one(core)) {
                    // It was handed out and has not begun.
                    core.returned.store(true, Ordering::SeqCst);
                    core.note(outcome, Ending::Unstarted);
                    core.publish(Err(error), false);
                    drop(payload);
                    return true;
                }
                let kind = error.kind();
                self.overdue.fetch_add(1, Ordering::SeqCst);
                core.note(outcome, Ending::Running);
                core.publish(Err(error), false);
                if let Some(hand) = hand {
                    hand.tell(core, kind);
                }
                let grace = self.config.looped.as_ref().map_or(OVERDUE_GRACE, |looped| looped.cancel_grace);
                service::arm(Due::Replace, core, clock::monotonic_ns(), grace);
            }
        }
        true
    }

    /// A started task will never be finished by its worker.
    pub(super) fn lose(&self, core: &Arc<Core>, error: Error) {
        if core.claim_finish() {
            self.metrics.add(Outcome::Lost.counter(), 1);
            core.note(Outcome::Lost, Ending::Running);
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
            // It rings: between the two steps, and to who read `queued` before and `tombstones` after them, the queue looked fuller than it was.
            self.release_space(dropped);
        }
    }

    /// A deadline of `limit` passed; called by the service thread.
    pub(super) fn on_due(self: &Arc<Inner>, due: Due, limit: Duration, core: &Arc<Core>) {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let late = |what: &'static str| Error::new(ErrorKind::Timeout, what).with("limit_ms", ms(limit));
        match due {
            // It has started, if its worker was lost since.
            Due::QueueTimeout if core.ran_before() => {}
            Due::QueueTimeout => {
                let waited = Duration::from_nanos(clock::monotonic_ns().saturating_sub(core.submitted_ns));
                self.end_queued(core, late("the task waited too long in the queue").with("waited_ms", ms(waited)));
            }
            Due::Timeout if core.is_late(clock::monotonic_ns(), limit) => {
                let claimed = core.claim_end_running(ErrorKind::Timeout);
                self.settle(core, claimed, late("the task ran too long"));
            }
            // Of an earlier run.
            Due::Timeout => {}
            Due::Replace => match &self.config.looped {
                Some(looped) => self.end_loop(core, &*looped.host),
                None => self.replace(core),
            },
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
            callbacks::run(f);
        }
        self.closed.store(1, Ordering::SeqCst);
        futex::wake(&self.closed, u32::MAX);
    }

    /// Takes everything that no worker has started out of the scheduler and out of the workers' batches.
    fn take_waiting(&self, mut state: MutexGuard<'_, State>) -> Vec<Arc<Core>> {
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
            taken.extend(local.hand.as_ref().map(|hand| self.take_ahead(hand)).unwrap_or_default());
        }
        drop(state);
        self.forget_tombstones(dropped);
        self.release_space(queued);
        taken
    }

    /// Cancels what is not started. Returns how many tasks that ended.
    pub(super) fn cancel_queued(self: &Arc<Inner>, why: &str) -> usize {
        let error = Error::new(ErrorKind::Cancelled, why.to_owned()).with("pool", &self.config.options.name);
        let ended = self.end_waiting(lock(&self.state), &error);
        self.wake_all(); // workers of a closing pool look whether there is anything left
        ended
    }

    /// Ends what is not started with `error`. Returns how many tasks that ended.
    pub(super) fn end_waiting(self: &Arc<Inner>, state: MutexGuard<'_, State>, error: &Error) -> usize {
        let mut ended = 0;
        for core in self.take_waiting(state) {
            ended += usize::from(self.end_unqueued(&core, error.clone()));
        }
        ended
    }

    /// Ends a task that waits and is in no queue any more. False if somebody else did.
    pub(super) fn end_unqueued(self: &Arc<Inner>, core: &Arc<Core>, error: Error) -> bool {
        let ended = self.end_queued(core, error);
        // Buried before or here: either way it is a tombstone that nobody will find in the queue.
        self.tombstones.fetch_sub(1, Ordering::SeqCst);
        ended
    }

    /// Cancels everything that is left.
    pub(super) fn terminate(self: &Arc<Inner>) {
        const WHY: &str = "the pool was shut down";
        self.close();
        self.cancel_queued(WHY);
        let of_slot = |slot: &Slot| {
            let local = lock(&slot.local);
            local.hand.as_ref().map_or_else(|| local.current.iter().cloned().collect(), |hand| hand.all())
        };
        let running: Vec<Arc<Core>> = self.slots().flat_map(of_slot).collect();
        for core in &running {
            self.end(core, Error::new(ErrorKind::Cancelled, WHY).with("pool", &self.config.options.name));
        }
        self.wake_all();
        self.mark_closed(&mut lock(&self.state));
    }
}
