//! A rolling reload: which slot gets its new process next, and when all go back. Pure.
//!
//! ```text
//!              canary ready, for `min_ready`          each slot ready, for `min_ready`
//!  reload ──► slot 0: new beside old ──► old drains ──► slot 1 … ──► Reloaded
//!                │ it fails                               │ it fails, and twice again
//!                ▼                                        ▼
//!          ReloadFailed, nothing was changed        RollingBack: the same road with the old generation ──► ReloadFailed
//! ```

use super::event::WorkerId;
use crate::error::Error;
use std::collections::VecDeque;

/// How often a slot is tried again before all go back. The first slot is not: its process is the canary.
const RETRIES: u32 = 2;

/// One that is under way.
pub(super) struct Reload {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) began: u64,
    /// Workers that had to be signalled, before it began.
    pub(super) forced: u64,
    /// Slots whose process is of another generation than the one that is wanted.
    queue: VecDeque<u32>,
    /// The new process of the first of them, until it has proved itself.
    step: Option<WorkerId>,
    /// How often that slot has failed.
    tries: u32,
    pub(super) replaced: usize,
    /// Why it goes back.
    failed: Option<Error>,
    /// Slots that could not go back.
    pub(super) stuck: usize,
}

/// What a failure leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The slot is tried again.
    Retry,
    /// All slots of the new generation are to go back.
    GoBack,
    /// It is over.
    Over,
    /// The slot is left as it is.
    Stuck,
}

impl Reload {
    pub(super) fn new(from: u32, to: u32, slots: impl Iterator<Item = u32>, now: u64, forced: u64) -> Reload {
        Reload { from, to, began: now, forced, queue: slots.collect(), step: None, tries: 0, replaced: 0, failed: None, stuck: 0 }
    }

    /// The slot that is to get a new process, if none is getting one.
    pub(super) fn next(&self) -> Option<u32> {
        self.queue.front().copied().filter(|_| self.step.is_none())
    }

    pub(super) fn is_over(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn is_going_back(&self) -> bool {
        self.failed.is_some()
    }

    /// The generation that slots get.
    pub(super) fn target(&self) -> u32 {
        if self.is_going_back() { self.from } else { self.to }
    }

    /// The process that has to prove itself.
    pub(super) fn step(&self) -> Option<WorkerId> {
        self.step
    }

    pub(super) fn begin_step(&mut self, id: WorkerId) {
        self.step = Some(id);
    }

    /// The slot waits for its next try.
    pub(super) fn is_retrying(&self, slot: u32) -> bool {
        self.tries > 0 && self.next() == Some(slot)
    }

    /// A slot that has to be started anyway may be started with [`target`](Self::target): the canary is past, and it is still to come.
    pub(super) fn takes(&self, slot: u32) -> bool {
        (self.replaced > 0 || self.is_going_back()) && self.queue.contains(&slot)
    }

    /// The slot's process has proved itself, or the slot was started otherwise.
    pub(super) fn done(&mut self, slot: u32) {
        self.forget(slot);
        self.replaced += usize::from(!self.is_going_back());
    }

    /// The slot is not wanted any more.
    pub(super) fn forget(&mut self, slot: u32) {
        if self.queue.front() == Some(&slot) {
            (self.step, self.tries) = (None, 0);
        }
        self.queue.retain(|s| *s != slot);
    }

    /// A slot that is wanted from now on.
    pub(super) fn add(&mut self, slot: u32) {
        if !self.is_going_back() {
            self.queue.push_back(slot);
        }
    }

    /// The process of the step has failed.
    pub(super) fn step_failed(&mut self) -> Failed {
        self.step = None;
        if self.replaced == 0 && !self.is_going_back() {
            return Failed::Over;
        }
        self.tries += 1;
        if self.tries <= RETRIES {
            return Failed::Retry;
        }
        self.tries = 0;
        if !self.is_going_back() {
            return Failed::GoBack;
        }
        self.queue.pop_front();
        self.stuck += 1;
        Failed::Stuck
    }

    /// From here on these slots get the old generation.
    pub(super) fn go_back(&mut self, error: Error, slots: impl Iterator<Item = u32>) {
        (self.step, self.tries, self.failed) = (None, 0, Some(error));
        self.queue = slots.collect();
    }

    /// Why it failed, if it did.
    pub(super) fn into_error(self) -> Option<Error> {
        self.failed
    }
}
