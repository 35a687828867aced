//! Who sleeps in an `mpmc` ring, where each side has many: a word per role with a bit per seat.
//!
//! ```text
//!  sleeper                                        waker
//!  ───────                                        ─────
//!  W1 sets its bit, then waiting = how            publishes
//!     fence SeqCst                                fence SeqCst
//!  W2 looks again, sleeps                         W3 a bit is set: rings one blocked thread and clears its `waiting`; the next
//!  W4 waiting = 0, clears its bit                    one if another was faster; where there is none, every event loop that is armed
//!     fence SeqCst
//!     looks; takes one and sees more? ─► W3, as a waker; so does one that gives up
//! ```
//!
//! An event loop may be busy with something else, so one of them is not enough. A thread that was claimed owes a look for what was published
//! before: W4's fence makes that look see it, also when the thread woke for another reason (its timeout, an error) at the same
//! time, and makes it see who else slept by then. So as long as there is something to take and somebody sleeps, somebody is awake
//! who looks after it.

use super::wait::{announce_sleep, is_blocked, wake};
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use crate::sync::{Bits, Word};

/// The words of one role's sleepers, wherever they lie: mapped memory, or a model's.
pub(super) trait Sleepers {
    type Bits: Bits;
    type Word: Word<u32>;
    /// Bit *i*: somebody of this role sleeps on seat *i*, or is about to.
    fn bits(&self) -> &Self::Bits;
    fn waiting(&self, seat: usize) -> &Self::Word;
    fn seats(&self) -> usize;
    /// Rings a seat's doorbell.
    fn ring(&self, seat: usize);
}

/// W1. The caller looks once more before it sleeps.
pub(super) fn announce(s: &impl Sleepers, seat: usize, how: u32) {
    s.bits().fetch_or(1 << seat, Ordering::Relaxed);
    announce_sleep(s.waiting(seat), how);
}

/// W4. The caller looks again, or hands on what it may have been woken for.
pub(super) fn awake(s: &impl Sleepers, seat: usize) {
    s.waiting(seat).store(0, Ordering::Relaxed);
    s.bits().fetch_and(!(1 << seat), Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// W3, after publishing and a SeqCst fence.
#[inline]
pub(super) fn wake_some(s: &impl Sleepers) {
    let asleep = s.bits().load(Ordering::Relaxed);
    if asleep != 0 {
        wake_among(s, asleep);
    }
}

#[cold]
fn wake_among<S: Sleepers>(s: &S, asleep: u64) {
    let seats = || (0..s.seats()).filter(|seat| asleep >> seat & 1 != 0);
    for seat in seats().filter(|seat| is_blocked(s.waiting(*seat).load(Ordering::Relaxed))) {
        if wake(s.waiting(seat), || s.ring(seat)) {
            return;
        }
    }
    seats().for_each(|seat| {
        wake(s.waiting(seat), || s.ring(seat));
    });
}

/// For who has published, has taken something, or gives up: rings one that sleeps if there is `more` for it. Who sees a sleeper looks closer behind a fence.
#[inline]
pub(super) fn wake_if(s: &impl Sleepers, more: impl FnOnce() -> bool) {
    if s.bits().load(Ordering::Relaxed) != 0 && more() {
        fence(Ordering::SeqCst);
        wake_some(s);
    }
}
