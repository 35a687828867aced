//! Sleeping and waking across processes, without a system call while nobody sleeps.
//!
//! ```text
//!  sleeper                                   waker
//!  ───────                                   ─────
//!  W1 waiting = how | a number of its own    P1 publishes (tail, head, state, members)
//!     fence SeqCst                              fence SeqCst
//!  W2 looks again: anything? ── yes ─► awake  W3 w = waiting; w != 0? ── no ─► done
//!  sleeps on doorbell and peers' pidfds          rings the doorbell
//!                                                waiting = 0, if it is still w
//! ```
//!
//! In `mpmc` each side has many: see `sleepers.rs`.
//!
//! A fence after a store that another core waits for costs more than all else of a push. So wakers leave it out, and a sleeper calls for it
//! in all their processes (`sys::membarrier`) between W1 and W2: it pays for a system call anyway. A waker that sees a sleeper has a fence
//! before it looks closer. Where the system has no such call, wakers have their fence.
//!
//! Either the sleeper sees what was published at W2, or the waker sees `waiting` at W3: the two fences are in some order
//! (Dekker). The word is cleared by the waker, so a burst costs one system call; and only after the doorbell rang, so a waker that
//! is stopped or dies before it leaves the sleeper to the next one. Each sleep has a number, so one that comes late with
//! clearing does not clear the word of another sleep. Whatever is lost all the same (a waker that died before the doorbell, when nobody comes
//! after it; one of two sleepers that is stopped with the only wake) is found by the sleeper itself, within [`RELOOK`].
//!
//! The same eventfd serves a blocked thread (`ppoll`) and an event loop (`epoll`), so there is one wake path.

use super::seat::{self, Owner, Role, settle_dead};
use super::{Shared, sleepers};
use crate::error::Result;
use crate::sync::Word;
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use crate::sys::{clock, failpoint, poll};
use crate::wire::ring::{SEAT_DEAD, SEAT_LIVE, ring_word, seat_word};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// W1. What was published before the fence that comes before [`wake`] is seen by loads after this call, or the waker sees the word.
pub(super) fn announce_sleep(waiting: &impl Word<u32>, how: u32) {
    waiting.store(how, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// W3, after publishing and a SeqCst fence: rings if somebody sleeps. True if this call has woken that sleep, false if another did too, or
/// there is none.
#[inline]
pub(super) fn wake(waiting: &impl Word<u32>, ring: impl FnOnce()) -> bool {
    let sleep = waiting.load(Ordering::Relaxed);
    sleep != 0 && wake_from(waiting, sleep, ring)
}

#[cold]
fn wake_from(waiting: &impl Word<u32>, sleep: u32, ring: impl FnOnce()) -> bool {
    failpoint::hit("wake.seen");
    ring();
    failpoint::hit("wake.rung");
    waiting.compare_exchange(sleep, 0, Ordering::Relaxed).is_ok()
}

/// Low bits of `waiting` of a thread that blocks.
pub(super) const BLOCKED: u32 = 1;
/// Low bits of `waiting` of a handle whose fd an event loop watches.
pub(super) const POLLED: u32 = 2;
/// What one sleep's number is apart from the next one's.
const SLEEP: u32 = 4;

/// A thread blocks.
pub(super) fn is_blocked(waiting: u32) -> bool {
    waiting & (SLEEP - 1) == BLOCKED
}

/// Looks that a spinning waiter makes at most: about as long as waking a thread takes.
const SPIN_MAX: u32 = 2000;
/// Looks of a waiter whose last waits ended in sleep.
const SPIN_MIN: u32 = 64;
/// Every so many sleeps the waiter spins in full again, or two sides that both sleep would never find out that they need not.
const SPIN_RETRY: u32 = 16;
/// How often what tells nobody of its change is looked at: a peer without a pidfd (another pid namespace, a seccomp policy), the
/// dead of an `mpmc` ring whom a living participant keeps from being settled, what producers with `batch` have committed for a consumer that
/// never sleeps.
const LOOK: Duration = Duration::from_millis(20);

/// Pauses between the looks of a consumer.
pub(super) const PAUSES: u32 = 1;
/// The same of a producer that finds no room. The consumer has a whole ring to read, and each look takes a line from it that it needs to go on.
pub(super) const PAUSES_IN_FULL: u32 = 16;

/// How often a wait goes on without a look at its clock when a spin saw something that the next look did not find: others were faster, or one
/// that breaks the protocol changes words without end.
pub(super) const IN_VAIN: u32 = 64;

/// Looks of [`spin_briefly`].
const BRIEF: u32 = 32;

/// A few looks; true when one saw something.
#[inline(always)]
pub(super) fn spin_briefly(mut ready: impl FnMut() -> bool) -> bool {
    (0..BRIEF).any(|_| {
        let came = ready();
        if !came {
            std::hint::spin_loop();
        }
        came
    })
}

/// The longest sleep without a look at everything: what was published and not told, and locks of peers that live on as another program
/// (`exec`), of which their pidfds say nothing.
const RELOOK: Duration = Duration::from_secs(1);

/// Spins where that has paid lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spin {
    budget: u32,
    sleeps: u32,
}

impl Spin {
    /// Looks with so many pauses between.
    #[inline]
    pub(super) fn wait(&mut self, pauses: u32, mut ready: impl FnMut() -> bool) -> bool {
        let budget = if self.sleeps.is_multiple_of(SPIN_RETRY) { SPIN_MAX } else { self.budget };
        for _ in 0..budget.div_ceil(pauses) {
            if ready() {
                self.budget = (self.budget * 2).min(SPIN_MAX);
                return true;
            }
            (0..pauses).for_each(|_| std::hint::spin_loop());
        }
        self.budget = (self.budget / 2).max(SPIN_MIN);
        self.sleeps = self.sleeps.wrapping_add(1);
        false
    }
}

/// A peer whose death ends a sleep.
#[derive(Debug)]
struct Watched {
    seat: usize,
    /// The seat's status word when its owner was seen alive.
    status: u32,
    /// `None`: looked at every [`LOOK`].
    pidfd: Option<OwnedFd>,
}

/// One handle's way to sleep: its doorbell, and the peers that may die meanwhile.
#[derive(Debug)]
pub(super) struct Sleeper {
    shared: Arc<Shared>,
    seat: usize,
    role: Role,
    peers: Range<usize>,
    /// There is one peer, and nothing goes on without it.
    needs_peer: bool,
    watched: Vec<Watched>,
    /// The value of `members` that `watched` stands for.
    members: Option<u32>,
    /// The value of `members` up to which the dead of an `mpmc` ring are settled.
    settled: Option<u32>,
    looked_ns: u64,
    /// The number of the last sleep, in the bits above [`SLEEP`]'s; begins where no predecessor on this seat was lately.
    sleep: u32,
    spin: Spin,
    /// Some may not see that this one sleeps.
    unheard: bool,
    epoll: Option<(poll::Epoll, poll::Timer)>,
}

impl Sleeper {
    pub(super) fn new(shared: Arc<Shared>, seat: usize, role: Role, peers: Range<usize>, needs_peer: bool) -> Sleeper {
        Sleeper {
            shared,
            seat,
            role,
            peers,
            needs_peer,
            watched: Vec::new(),
            members: None,
            settled: None,
            looked_ns: 0,
            sleep: (clock::monotonic_ns() as u32) & !(SLEEP - 1),
            spin: Spin { budget: SPIN_MAX, sleeps: 0 },
            unheard: false,
            epoll: None,
        }
    }

    fn waiting(&self) -> &impl Word<u32> {
        self.shared.map.seat_word(self.seat, seat_word::WAITING)
    }

    /// How to spin, where spinning makes sense. The caller gives it back by [`put_spin`](Self::put_spin).
    pub(super) fn take_spin(&self) -> Option<Spin> {
        self.shared.spare_core.then_some(self.spin)
    }

    /// What was learnt.
    pub(super) fn put_spin(&mut self, spin: Spin) {
        self.spin = spin;
    }

    /// Says that this side will sleep, and brings the list of peers up to date. The caller looks once more before it does, and
    /// [disarms](Self::disarm) whatever this says.
    pub(super) fn arm(&mut self) -> Result<()> {
        self.arm_as(BLOCKED)
    }

    fn arm_as(&mut self, how: u32) -> Result<()> {
        self.announce(how);
        failpoint::hit("wait.armed");
        self.refresh()?;
        self.settle()
    }

    fn announce(&mut self, how: u32) {
        self.sleep = self.sleep.wrapping_add(SLEEP);
        let how = self.sleep | how;
        match self.shared.side(self.role) {
            Some(side) => sleepers::announce(&side, self.seat, how),
            None => announce_sleep(self.waiting(), how),
        }
        // The fence of wakers that have none.
        self.unheard = !self.shared.fence_everywhere();
    }

    /// This side is awake. Where a side has one sleeper this needs no fence: a look that comes too early only sends it to sleep again, and
    /// that begins with a fence and a look. Where there are many, the wake may be another's, see `sleepers.rs`.
    pub(super) fn disarm(&self) {
        match self.shared.side(self.role) {
            Some(side) => sleepers::awake(&side, self.seat),
            None => self.waiting().store(0, Ordering::Relaxed),
        }
    }

    /// A peer that is watched no more. Its pidfd has copies in forked children, which would keep the loop's fd readable for ever.
    fn unwatch(epoll: Option<&(poll::Epoll, poll::Timer)>, peer: &Watched) {
        if let (Some((epoll, _)), Some(fd)) = (epoll, &peer.pidfd) {
            epoll.remove(fd.as_fd());
        }
    }

    /// Somebody's change has to be looked for.
    fn must_look(&self) -> bool {
        let has_dead = self.shared.slots.is_some() && self.settled != self.members;
        self.unheard || has_dead || self.watched.iter().any(|w| w.pidfd.is_none())
    }

    /// Puts in order what the dead of an `mpmc` ring left, as far as they are known.
    fn settle(&mut self) -> Result<()> {
        let Some(slots) = &self.shared.slots else { return Ok(()) };
        let members = self.shared.map.ring_word(ring_word::MEMBERS).load(Ordering::Acquire);
        if self.settled != Some(members) && settle_dead(&self.shared, slots)? {
            self.settled = Some(members);
        }
        Ok(())
    }

    /// For a caller that is busy, or polls instead of sleeping: a look at the others every [`LOOK`]. Counts time, not calls, because a
    /// caller may come once per frame as well as without a pause. True when it was due.
    pub(super) fn look_if_due(&mut self) -> Result<bool> {
        let due = self.is_look_due();
        if due {
            self.look()?;
        }
        Ok(due)
    }

    /// True once per [`LOOK`] at most.
    fn is_look_due(&mut self) -> bool {
        let now = clock::coarse_ns();
        let due = now.saturating_sub(self.looked_ns) >= LOOK.as_nanos() as u64;
        if due {
            self.looked_ns = now;
        }
        due
    }

    fn look(&mut self) -> Result<()> {
        self.refresh()?;
        self.bury()?;
        self.settle()
    }

    /// Sleeps until the doorbell rings, a peer dies or `timeout` passes. May end early, and does after [`RELOOK`].
    pub(super) fn sleep(&mut self, timeout: Option<Duration>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let bell = shared.bells.get(self.seat);
        let mut fds = vec![poll::readable(bell.as_fd().as_raw_fd())];
        fds.extend(self.watched.iter().filter_map(|w| w.pidfd.as_ref()).map(|fd| poll::readable(fd.as_raw_fd())));
        let blind = self.must_look();
        let bound = if blind { LOOK } else { RELOOK };
        poll::wait_readable(&mut fds, Some(timeout.map_or(bound, |t| t.min(bound))));
        failpoint::hit("wait.woken");
        let rang = poll::is_ready(&fds[0]);
        if rang {
            bell.clear();
        }
        if blind || fds[1..].iter().any(poll::is_ready) || (!rang && self.is_look_due()) {
            self.bury()?;
        }
        Ok(())
    }

    /// Follows the seats that were taken, left or found dead since the last look.
    fn refresh(&mut self) -> Result<()> {
        // Pairs with the fetch_add after a seat's status was stored.
        let members = self.shared.map.ring_word(ring_word::MEMBERS).load(Ordering::Acquire);
        if self.members == Some(members) {
            return Ok(());
        }
        let map = Arc::clone(&self.shared.map);
        let status = |seat: usize| map.seat_word(seat, seat_word::STATUS).load(Ordering::Acquire);
        self.watched.retain(|w| {
            let stays = status(w.seat) == w.status;
            if !stays {
                Sleeper::unwatch(self.epoll.as_ref(), w);
            }
            stays
        });
        for seat in self.peers.clone() {
            let now = status(seat);
            if now & 3 != SEAT_LIVE || self.watched.iter().any(|w| w.seat == seat) {
                continue;
            }
            match seat::owner(&map, seat, self.shared.pid_namespace)? {
                Owner::Here => {} // does not die without this process
                Owner::Dead => self.shared.mark_dead(seat, now),
                Owner::Alive(pidfd) => {
                    if let (Some((epoll, _)), Some(fd)) = (&self.epoll, &pidfd) {
                        epoll.add(fd.as_fd())?;
                    }
                    self.watched.push(Watched { seat, status: now, pidfd });
                }
            }
        }
        self.members = Some(members);
        Ok(())
    }

    /// Looks at the lives of the peers and marks the seats of the dead.
    fn bury(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut failed = None;
        self.watched.retain(|w| match seat::is_alive(&shared.map, w.seat, w.pidfd.as_ref()) {
            Ok(true) => true,
            Ok(false) => {
                shared.mark_dead(w.seat, w.status);
                Sleeper::unwatch(self.epoll.as_ref(), w);
                false
            }
            Err(e) => {
                failed = Some(e);
                true
            }
        });
        failed.map_or(Ok(()), Err)
    }

    /// A peer that the others cannot do without is dead.
    pub(super) fn peer_is_dead(&self) -> bool {
        let status = |seat| self.shared.map.seat_word(seat, seat_word::STATUS).load(Ordering::Acquire);
        self.needs_peer && status(self.peers.start) & 3 == SEAT_DEAD
    }

    pub(super) fn first_peer(&self) -> usize {
        self.peers.start
    }

    /// One fd that is readable when there may be something to do: the doorbell rang, or a peer died. Level-triggered.
    pub(super) fn fd(&mut self) -> Result<BorrowedFd<'_>> {
        if self.epoll.is_none() {
            let (epoll, timer) = (poll::Epoll::new()?, poll::Timer::new()?);
            epoll.add(self.shared.bells.get(self.seat).as_fd())?;
            epoll.add(timer.as_fd())?;
            self.members = None;
            self.watched.clear();
            self.epoll = Some((epoll, timer));
            if let Err(e) = self.refresh() {
                // Half of it would neither ring nor be armed: the next call begins anew.
                self.epoll = None;
                return Err(e);
            }
            // What is there already was not announced: the first look finds out.
            self.ring_own();
        }
        Ok(self.epoll.as_ref().expect("made above").0.as_fd())
    }

    /// The fd is in some loop's hands, so whoever finds nothing must arm.
    pub(super) fn is_polled(&self) -> bool {
        self.epoll.is_some()
    }

    /// Makes the fd unreadable and arms. The caller looks once more, and calls [`ring_own`](Self::ring_own) if there is something.
    pub(super) fn arm_polled(&mut self) -> Result<()> {
        let armed = self.try_arm_polled();
        if armed.is_err() {
            // The loop comes again: there may be something, and nobody else who was told of it.
            self.ring_own();
        }
        armed
    }

    fn try_arm_polled(&mut self) -> Result<()> {
        // What is found about the peers now is told by this call, and need not ring.
        self.disarm();
        self.refresh()?;
        let mut fds: Vec<_> = self.watched.iter().filter_map(|w| w.pidfd.as_ref()).map(|fd| poll::readable(fd.as_raw_fd())).collect();
        if !fds.is_empty() {
            poll::wait_readable(&mut fds, Some(Duration::ZERO));
        }
        if fds.len() < self.watched.len() || fds.iter().any(poll::is_ready) || self.is_look_due() {
            self.bury()?;
        }
        self.shared.bells.get(self.seat).clear();
        self.arm_as(POLLED)?;
        // A peer without a pidfd rings nothing when it dies.
        let bound = if self.must_look() { LOOK } else { RELOOK };
        if let Some((_, timer)) = &mut self.epoll {
            timer.set(Some(bound));
        }
        Ok(())
    }

    /// Leaves the fd readable: there is something to do already.
    pub(super) fn ring_own(&self) {
        self.disarm();
        self.shared.bells.get(self.seat).signal();
    }
}
