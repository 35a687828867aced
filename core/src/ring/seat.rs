//! A participant's place in a ring.
//!
//! The lock is the seat: whoever holds the OFD lock on byte *i* of the file owns seat *i*, and the kernel takes the lock
//! away when its holder dies. The words of the seat only tell others where to look.

use super::raw::{Map, MappedSlots};
use super::{Shared, mpmc};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::Ordering;
use crate::sys::fork::PrivateFd;
use crate::sys::pidfd::{self, Opened};
use crate::sys::{clock, failpoint, ofd};
use crate::wire::ring::{CONSUMER, PRODUCER, SEAT_FREE, SEAT_LIVE, seat_word};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The byte whose lock elects who settles the dead of an `mpmc` ring; beyond every seat and `PRESENT`.
const ELECTION: u64 = 1 << 33;
/// How long a newcomer tries to settle its predecessor, before it tries another seat: a living participant is in the way for a few
/// instructions, one that is stopped there, or holds that a peer scribbled, for ever.
const TRIES_NS: u64 = 100_000_000;

/// What a participant does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// Pushes.
    Producer = PRODUCER,
    /// Pops.
    Consumer = CONSUMER,
}

impl Role {
    /// The word that every face shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Producer => "producer",
            Role::Consumer => "consumer",
        }
    }
}

/// Who sits on a seat, as far as this process can know.
#[derive(Debug)]
pub(super) enum Owner {
    /// This process.
    Here,
    /// A process that is watched by its pidfd, or (`None`) by its lock alone: another pid namespace, a seccomp policy.
    Alive(Option<OwnedFd>),
    /// Its process has ended, or gave the seat up.
    Dead,
}

/// Looks who owns a seat that says *live*.
pub(super) fn owner(map: &Map, seat: usize, own_namespace: u32) -> Result<Owner> {
    let word = |at| map.seat_word(seat, at).load(Ordering::Relaxed);
    let pidfd = if word(seat_word::PID_NS) == own_namespace {
        match pidfd::open(word(seat_word::PID))? {
            // A child that was forked past the atfork handler may still have a copy of the lock.
            Opened::Gone => return Ok(Owner::Dead),
            Opened::Process(fd) => Some(fd),
            Opened::Denied => None,
        }
    } else {
        None
    };
    // Alive after the fd was opened, so the number was not another process's by then.
    if !is_alive(map, seat, pidfd.as_ref())? {
        return Ok(Owner::Dead);
    }
    let here = word(seat_word::PID_NS) == own_namespace && word(seat_word::PID) == std::process::id();
    Ok(if here { Owner::Here } else { Owner::Alive(pidfd) })
}

/// The owner of a seat lives. A pidfd that says otherwise is believed over the lock, which a child that was forked past the atfork
/// handler keeps: if the number was another process's by the time the fd was opened, the owner had ended even before.
pub(super) fn is_alive(map: &Map, seat: usize, pidfd: Option<&OwnedFd>) -> Result<bool> {
    Ok(!pidfd.is_some_and(|fd| pidfd::has_ended(fd.as_fd())) && ofd::is_locked(map.file(), seat as u64)?)
}

/// A seat that this handle owns until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    shared: Arc<Shared>,
    number: usize,
    generation: u32,
    /// Holds the lock. A forked child closes it, so that its parent's death is seen.
    _lock: PrivateFd,
}

impl Seat {
    /// Takes the first seat of `candidates` that nobody alive owns. [`enter`](Self::enter) makes it known.
    pub(super) fn take(shared: &Arc<Shared>, candidates: Range<usize>, role: Role) -> Result<Seat> {
        let lock = PrivateFd::open(|| ofd::reopen(shared.map.file()))?;
        for number in candidates.clone() {
            if ofd::try_lock(lock.as_fd(), number as u64)? {
                failpoint::hit("seat.locked");
                if !settle_predecessor(shared, number)? {
                    ofd::unlock(lock.as_fd(), number as u64)?;
                    continue;
                }
                let word = |at| shared.map.seat_word(number, at);
                let generation = (word(seat_word::STATUS).load(Ordering::Relaxed) >> 2).wrapping_add(1);
                word(seat_word::ROLE).store(role as u32, Ordering::Relaxed);
                word(seat_word::PID).store(std::process::id(), Ordering::Relaxed);
                word(seat_word::PID_NS).store(shared.pid_namespace, Ordering::Relaxed);
                word(seat_word::WAITING).store(0, Ordering::Relaxed);
                shared.announce_order();
                return Ok(Seat { shared: Arc::clone(shared), number, generation, _lock: lock });
            }
        }
        Err(Error::new(ErrorKind::InUse, "every seat of the ring for this role is taken")
            .with("role", role.as_str())
            .with("kind", shared.map.header().kind.as_str())
            .with("seats", candidates.len()))
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Tells the others, who then watch this process.
    pub(super) fn enter(&self) {
        self.set_status(SEAT_LIVE);
        failpoint::hit("seat.taken");
        self.shared.members_changed();
    }

    fn set_status(&self, status: u32) {
        // Pairs with the Acquire loads of the status in `Sleeper`: a live seat has its owner's pid.
        self.shared.map.seat_word(self.number, seat_word::STATUS).store(self.generation << 2 | status, Ordering::Release);
    }
}

/// The lock that elects, if nobody else has it. Its holder may die: the kernel drops it then.
fn elect(shared: &Shared) -> Result<Option<PrivateFd>> {
    let lock = PrivateFd::open(|| ofd::reopen(shared.map.file()))?;
    Ok(ofd::try_lock(lock.as_fd(), ELECTION)?.then_some(lock))
}

fn has_leftovers(shared: &Shared, slots: &MappedSlots, seat: usize) -> bool {
    let bit = 1u64 << seat;
    let sleeps = |role| slots.sleepers(role).load(Ordering::Relaxed) & bit != 0;
    shared.sleeps(seat) || sleeps(Role::Producer) || sleeps(Role::Consumer) || mpmc::is_unsettled(slots, seat)
}

/// The seat has no living owner. Only the elected asks: a newcomer to a seat that was not left in peace waits for the election before
/// it writes a word of its own, so the pid of such a seat is its last owner's.
fn is_dead(shared: &Shared, seat: usize) -> Result<bool> {
    if !ofd::is_locked(shared.map.file(), seat as u64)? {
        return Ok(true);
    }
    match shared.map.seat_word(seat, seat_word::STATUS).load(Ordering::Acquire) & 3 {
        SEAT_FREE => Ok(false), // its next owner has the lock
        _ => Ok(matches!(owner(&shared.map, seat, shared.pid_namespace)?, Owner::Dead)),
    }
}

/// Only the elected calls it, of a seat whose owner is dead.
fn settle_seat(shared: &Shared, slots: &MappedSlots, seat: usize) -> bool {
    shared.map.seat_word(seat, seat_word::WAITING).store(0, Ordering::Relaxed);
    for role in [Role::Producer, Role::Consumer] {
        slots.sleepers(role).fetch_and(!(1 << seat), Ordering::Relaxed);
    }
    // An owner is asked for once, however many words ask for it. A newcomer changes the status before it says what it wants, and who
    // sees that sees the status. Who cannot be asked is taken to live: somebody looks again.
    let mut known = vec![None; shared.bells.len()];
    mpmc::settle(slots, seat, &mut |other| {
        let status = shared.map.seat_word(other, seat_word::STATUS).load(Ordering::Acquire);
        match known[other] {
            Some((then, dead)) if then == status => dead,
            _ => {
                let dead = matches!(is_dead(shared, other), Ok(true));
                known[other] = Some((status, dead));
                dead
            }
        }
    })
}

/// Puts in order what the last owner of a seat left, whose lock the caller has. False: a living participant is in the way.
fn settle_predecessor(shared: &Shared, seat: usize) -> Result<bool> {
    let Some(slots) = &shared.slots else { return Ok(true) };
    let status = shared.map.seat_word(seat, seat_word::STATUS);
    // Who left in peace left nothing, and nobody is settling its seat.
    if status.load(Ordering::Acquire) & 3 == SEAT_FREE {
        return Ok(true);
    }
    let until = clock::monotonic_ns() + TRIES_NS;
    loop {
        if let Some(_elected) = elect(shared)?
            && settle_seat(shared, slots, seat)
        {
            mpmc::hint_at_returned(slots);
            // As if it had left in peace, while the election is still held: nobody settles what the newcomer does.
            status.store(status.load(Ordering::Relaxed) & !3 | SEAT_FREE, Ordering::Release);
            return Ok(true);
        }
        if clock::monotonic_ns() >= until {
            return Ok(false);
        }
        std::thread::yield_now();
    }
}

/// Puts in order what every dead participant of an `mpmc` ring left. False: not all of it could be, look again soon.
pub(super) fn settle_dead(shared: &Shared, slots: &MappedSlots) -> Result<bool> {
    let Some(_elected) = elect(shared)? else { return Ok(false) };
    let (mut all, mut any) = (true, false);
    for seat in 0..shared.bells.len() {
        let status = shared.map.seat_word(seat, seat_word::STATUS).load(Ordering::Acquire);
        // A seat without an owner cannot get one before this is over, see `settle_predecessor`.
        if status & 3 != SEAT_FREE && is_dead(shared, seat)? && has_leftovers(shared, slots, seat) {
            any = true;
            all &= settle_seat(shared, slots, seat);
        }
    }
    // Who returned something may have died before it said so.
    mpmc::hint_at_returned(slots);
    if any {
        shared.wake_everybody();
    }
    Ok(all)
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.shared.is_forked() {
            return; // the seat is the parent's
        }
        failpoint::hit("seat.leaving");
        self.set_status(SEAT_FREE);
        failpoint::hit("seat.left");
        self.shared.members_changed();
    }
}
