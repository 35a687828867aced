//! The consumer's side of an `mpmc` ring: what it has taken, and who says that it is dealt with.
//!
//! With [`Ack::Auto`] a record is dealt with when it is let go of, as in every other kind of ring. With [`Ack::Manual`] it is in
//! flight until its [delivery](super::RecordRef::delivery) is acknowledged, from whatever thread, or comes back.

use super::mpmc::{Held, Popper, Run, Slots};
use super::raw::{Map, MappedSlots, RecordRef};
use super::seat::Role;
use super::spsc::{Damage, Found};
use super::{Shared, forked};
use crate::error::{Error, Result};
use crate::sync::lock;
use crate::sync::mapped::Ordering;
use crate::sys::fork;
use crate::wire::ring::{HOLDS, hold_state};
use std::sync::{Arc, Mutex};

/// When a record that a consumer of an `mpmc` ring took is dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// When it is let go of.
    #[default]
    Auto,
    /// When [`Consumer::ack`](super::Consumer::ack) is told so.
    Manual,
}

impl Ack {
    /// The word that every face shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Ack::Auto => "auto",
            Ack::Manual => "manual",
        }
    }
}

impl std::str::FromStr for Ack {
    type Err = Error;

    fn from_str(s: &str) -> Result<Ack> {
        [Ack::Auto, Ack::Manual]
            .into_iter()
            .find(|a| a.as_str() == s)
            .ok_or_else(|| Error::invalid("no such way to acknowledge").with("ack", s).with("known", "auto, manual"))
    }
}

/// Holds of a seat that say nothing.
fn free_holds(slots: &MappedSlots, seat: usize) -> Vec<u8> {
    let is_free = |i: &usize| slots.hold(seat, *i).load(Ordering::Acquire) == hold_state::NONE;
    (0..HOLDS).rev().filter(is_free).map(|i| i as u8).collect()
}

/// The records that a consumer has taken and that nobody has acknowledged.
#[derive(Debug)]
struct Table {
    free: Vec<u8>,
    /// By hold: the delivery's number, and the record.
    taken: Vec<Option<(u64, Held)>>,
    count: usize,
    serial: u64,
    /// As long as its consumer is there: whoever has a delivery of one that left keeps no fds and no memory with it.
    ring: Option<Ring>,
}

#[derive(Debug)]
struct Ring {
    shared: Arc<Shared>,
    slots: MappedSlots,
}

#[derive(Debug)]
struct Ledger {
    epoch: u64,
    seat: usize,
    table: Mutex<Table>,
}

impl Ledger {
    /// Ends it, and tells one of `role` that waits for what that makes free.
    fn end(&self, delivery: u64, role: Role, how: impl FnOnce(&MappedSlots, &Held) -> Result<(), Damage>) -> Result<()> {
        // Before the lock, which a thread may have had that the forked child lacks.
        if !fork::is_current(self.epoch) {
            return Err(forked());
        }
        let table = &mut *lock(&self.table);
        let hold = (delivery % HOLDS as u64) as usize;
        let (held, Ring { shared, slots }) = match (table.taken[hold], &table.ring) {
            (Some((number, held)), Some(ring)) if number == delivery => (held, ring),
            _ => return Err(Error::invalid("no such delivery: it was acknowledged or given back before").with("delivery", delivery)),
        };
        table.taken[hold] = None;
        table.count -= 1;
        // A consumer that has as many as it may waits for this.
        let was_full = table.free.is_empty();
        how(slots, &held).map_err(|d| shared.poison(d))?;
        if slots.hold(self.seat, hold).load(Ordering::Relaxed) == hold_state::NONE {
            table.free.push(hold as u8);
        }
        // Under the lock: a clone of `shared` that outlives it would count where `HeldRing::settle` looks whether any handle is left.
        if was_full {
            shared.wake(self.seat);
        }
        shared.wake_some(slots, role);
        Ok(())
    }

    fn ack(&self, delivery: u64) -> Result<()> {
        self.end(delivery, Role::Producer, |slots, held| held.free(slots, self.seat))
    }

    fn nack(&self, delivery: u64) -> Result<()> {
        self.end(delivery, Role::Consumer, |slots, held| {
            held.give_up(slots, self.seat);
            Ok(())
        })
    }
}

/// Acknowledges what a consumer took, from any thread.
#[derive(Clone, Debug)]
pub struct Acks(Arc<Ledger>);

impl Acks {
    /// The record is dealt with: it is not delivered again.
    ///
    /// # Errors
    /// `Invalid` for what was acknowledged or given back before, or came from another consumer; `Corrupt`, `Forked`.
    pub fn ack(&self, delivery: u64) -> Result<()> {
        self.0.ack(delivery)
    }

    /// Gives the record back: some consumer, this one perhaps, gets it at once, marked as redelivered.
    ///
    /// # Errors
    /// Those of [`ack`](Self::ack).
    pub fn nack(&self, delivery: u64) -> Result<()> {
        self.0.nack(delivery)
    }
}

#[derive(Debug)]
enum Owner {
    /// Holds that say nothing, and records that were let go of and stay readable until the next call.
    Auto {
        free: Vec<u8>,
        let_go: Vec<Held>,
    },
    Manual(Arc<Ledger>),
}

/// A record that is let go of even if the code that looks at it panics.
struct Taken<'a> {
    shared: &'a Shared,
    slots: &'a MappedSlots<&'a Map>,
    seat: usize,
    held: Held,
}

impl Taken<'_> {
    #[inline(always)]
    fn payload(&self) -> RecordRef<'_> {
        self.slots.record(self.held, 0)
    }
}

impl Drop for Taken<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // A forked child must not speak for its parent.
        if !self.shared.is_forked()
            && let Err(damage) = self.held.free(self.slots, self.seat)
        {
            // Told by the next call.
            self.shared.poison(damage);
        }
    }
}

/// Records of a run that their consumer has not come to. If it does not, because what looks at them panics, they go to others.
struct Unseen<'a> {
    shared: &'a Shared,
    slots: &'a MappedSlots,
    seat: usize,
    /// Holds of the seat that said nothing before the run.
    free: &'a mut Vec<u8>,
    /// Of those, the one behind the next record's.
    hold: usize,
    run: Run,
}

impl Unseen<'_> {
    /// Takes a run and passes it to `f`; how many there were. `free` are holds of `seat` that say nothing.
    #[inline(always)]
    fn pass(
        popper: &Popper,
        shared: &Shared,
        slots: &MappedSlots,
        (seat, free): (usize, &mut Vec<u8>),
        max: usize,
        mut f: impl FnMut(&MappedSlots<&Map>, Held),
    ) -> usize {
        if !shared.is_sound() {
            return 0;
        }
        let borrowed = slots.borrowed();
        let hold = free.len();
        let run = popper.take_run(&borrowed, &free[hold - hold.min(max).min(RUN)..]);
        if run.len == 0 {
            return 0;
        }
        shared.hand_on(slots, Role::Consumer);
        let mut unseen = Unseen { shared, slots, seat, free, hold, run };
        let mut n = 0;
        while let Some((hold, position)) = unseen.next() {
            match popper.of_run(&borrowed, hold, position) {
                Ok(held) => f(&borrowed, held),
                Err(damage) => {
                    // Told by the next call.
                    shared.poison(damage);
                    break;
                }
            }
            n += 1;
        }
        n
    }

    /// Hold and position of the next one.
    #[inline(always)]
    fn next(&mut self) -> Option<(usize, u64)> {
        self.run.len = self.run.len.checked_sub(1)?;
        self.hold -= 1;
        let position = self.run.first;
        self.run.first = position.wrapping_add(1);
        Some((usize::from(self.free[self.hold]), position))
    }

    #[cold]
    fn give_up(&mut self) {
        while let Some((hold, position)) = self.next() {
            Held { hold, position, len: 0, passable: false, redelivered: false }.give_up(self.slots, self.seat);
        }
        // Some say something: the next look for free ones sees which.
        self.free.clear();
        self.shared.wake_some(self.slots, Role::Consumer);
    }
}

impl Drop for Unseen<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.run.len != 0 && !self.shared.is_forked() {
            self.give_up();
        }
    }
}

/// Records that one look takes at most: of a longer run the others' consumers would have to wait for this one.
const RUN: usize = 8;

/// A consumer's records of an `mpmc` ring.
#[derive(Debug)]
pub(super) struct Taking {
    popper: Popper,
    slots: MappedSlots,
    seat: usize,
    /// What was taken last, and its delivery.
    shown: Option<(Held, u64)>,
    owner: Owner,
}

impl Taking {
    pub(super) fn new(shared: &Arc<Shared>, slots: &MappedSlots, seat: usize, ack: Ack) -> Taking {
        let free = free_holds(slots, seat);
        let owner = match ack {
            Ack::Auto => Owner::Auto { free, let_go: Vec::new() },
            Ack::Manual => {
                let ring = Ring { shared: Arc::clone(shared), slots: slots.clone() };
                let table = Table { free, taken: vec![None; HOLDS], count: 0, serial: 0, ring: Some(ring) };
                Owner::Manual(Arc::new(Ledger { epoch: shared.epoch, seat, table: Mutex::new(table) }))
            }
        };
        Taking { popper: Popper::new(seat, ack == Ack::Manual), slots: slots.clone(), seat, shown: None, owner }
    }

    pub(super) fn acks(&self) -> Option<Acks> {
        if let Owner::Manual(ledger) = &self.owner { Some(Acks(Arc::clone(ledger))) } else { None }
    }

    /// Every record is acknowledged by somebody who may take long.
    pub(super) fn is_manual(&self) -> bool {
        matches!(self.owner, Owner::Manual(_))
    }

    /// Takes a record, if there is one and a hold for it.
    #[inline]
    pub(super) fn look(&mut self, shared: &Shared) -> Result<Option<Found>, Damage> {
        self.shown = self.take(shared)?;
        Ok(self.shown.map(|(held, _)| Found { offset: 0, len: held.len, redelivered: held.redelivered }))
    }

    fn take(&mut self, shared: &Shared) -> Result<Option<(Held, u64)>, Damage> {
        let taken = match &mut self.owner {
            Owner::Auto { free, .. } => {
                if free.is_empty() {
                    *free = free_holds(&self.slots, self.seat);
                }
                let taken = self.popper.take(&self.slots, free.last().map(|i| usize::from(*i)))?;
                if let Some(held) = taken
                    && free.last() == Some(&(held.hold as u8))
                {
                    free.pop();
                }
                taken.map(|held| (held, 0))
            }
            Owner::Manual(ledger) => {
                let mut table = lock(&ledger.table);
                let table = &mut *table;
                if table.free.is_empty() {
                    table.free = free_holds(&self.slots, self.seat);
                }
                let taken = self.popper.take(&self.slots, table.free.last().map(|i| usize::from(*i)))?;
                if let Some(held) = taken
                    && table.free.last() == Some(&(held.hold as u8))
                {
                    table.free.pop();
                }
                taken.map(|held| {
                    table.serial += 1;
                    let delivery = table.serial * HOLDS as u64 + held.hold as u64;
                    table.taken[held.hold] = Some((delivery, held));
                    table.count += 1;
                    (held, delivery)
                })
            }
        };
        if let Some((held, _)) = taken
            && held.passable
        {
            // Producers may pass over what was taken.
            shared.wake_some(&self.slots, Role::Producer);
        }
        // One waker rings one sleeper; whoever takes, or may not take, hands the ring on.
        self.hand_on(shared);
        Ok(taken)
    }

    /// Passes the oldest records to `f`, `max` and [`RUN`] at most, where they are dealt with when they are let go of, and none is shown. 0 where
    /// something stands against it: [`look`](Self::look) looks further.
    #[inline(always)]
    pub(super) fn read_run(&mut self, shared: &Shared, max: usize, f: &mut impl FnMut(RecordRef<'_>)) -> usize {
        let Owner::Auto { free, .. } = &mut self.owner else { return 0 };
        let seat = self.seat;
        // The holds say nothing again when `f` has seen their records.
        Unseen::pass(&self.popper, shared, &self.slots, (seat, free), max, |slots, held| f(Taken { shared, slots, seat, held }.payload()))
    }

    /// The same, but they stay readable until [`give_back`](Self::give_back).
    pub(super) fn hold_run(&mut self, shared: &Shared, max: usize, f: &mut impl FnMut(RecordRef<'_>)) -> usize {
        let Owner::Auto { free, let_go } = &mut self.owner else { return 0 };
        let were_free = free.len();
        let n = Unseen::pass(&self.popper, shared, &self.slots, (self.seat, free), max, |slots, held| {
            let_go.push(held);
            f(slots.record(held, 0));
        });
        free.truncate(were_free - n);
        n
    }

    /// A further record, if there is one, is somebody else's business.
    #[inline]
    pub(super) fn hand_on(&self, shared: &Shared) {
        shared.hand_on(&self.slots, Role::Consumer);
    }

    /// The record that [`look`](Self::look) took last.
    #[inline]
    pub(super) fn record(&self) -> RecordRef<'_> {
        let (held, delivery) = self.shown.expect("a record was taken");
        self.slots.record(held, delivery)
    }

    /// Lets go of it. Who may want the slot is told by [`told`](Self::told).
    #[inline]
    pub(super) fn release(&mut self) -> Result<(), Damage> {
        let shown = self.shown.take();
        if let (Owner::Auto { free, .. }, Some((held, _))) = (&mut self.owner, shown) {
            held.free(&self.slots, self.seat)?;
            free.push(held.hold as u8);
        }
        Ok(())
    }

    /// Lets go of it, but leaves it readable until [`give_back`](Self::give_back).
    pub(super) fn let_go(&mut self) {
        let shown = self.shown.take();
        if let (Owner::Auto { let_go, .. }, Some((held, _))) = (&mut self.owner, shown) {
            let_go.push(held);
        }
    }

    /// True if there was something.
    pub(super) fn give_back(&mut self) -> Result<bool, Damage> {
        let Owner::Auto { free, let_go } = &mut self.owner else { return Ok(false) };
        let any = !let_go.is_empty();
        for held in let_go.drain(..) {
            held.free(&self.slots, self.seat)?;
            free.push(held.hold as u8);
        }
        Ok(any)
    }

    /// Gives the last `n` of what was let go of to others.
    pub(super) fn give_up_last(&mut self, shared: &Shared, n: usize) {
        let Owner::Auto { let_go, .. } = &mut self.owner else { return };
        let unseen = let_go.split_off(let_go.len().saturating_sub(n));
        unseen.iter().for_each(|held| held.give_up(&self.slots, self.seat));
        if !unseen.is_empty() {
            shared.wake_some(&self.slots, Role::Consumer);
        }
    }

    /// Wakes a producer that waits for a slot that was freed.
    #[inline]
    pub(super) fn told(&self, shared: &Shared) {
        shared.wake_some(&self.slots, Role::Producer);
    }

    /// As many are in flight as one consumer may have.
    fn is_full(&self) -> bool {
        match &self.owner {
            Owner::Auto { .. } => false,
            Owner::Manual(ledger) => lock(&ledger.table).count >= HOLDS,
        }
    }

    /// Says to wakers that this consumer, which is about to sleep, can take no record; whoever acknowledges wakes it by its `waiting`. Were it
    /// rung for a record, it would have to hand the ring on, and two that can take none would ring each other without end.
    pub(super) fn stand_back(&self) {
        // An acknowledgement is before this look, so that there is room, or behind it and sees who waits: the table's lock is between.
        if self.is_full() {
            self.slots.sleepers(Role::Consumer).fetch_and(!(1 << self.seat), Ordering::Relaxed);
        }
    }

    /// May [`look`](Self::look) find something now?
    pub(super) fn sees_news(&self) -> bool {
        !self.is_full() && self.popper.sees_news(&self.slots)
    }

    /// Would [`look`](Self::look) take something, if nobody else does?
    pub(super) fn may_take(&self) -> bool {
        !self.is_full() && Popper::has_more(&self.slots)
    }

    /// A closed ring has ended for this consumer: nothing waits, and nothing can come back from the others. One that has records
    /// to acknowledge itself does not wait for them: they may wait for it.
    pub(super) fn is_drained(&self) -> bool {
        let owes = match &self.owner {
            Owner::Auto { .. } => false,
            Owner::Manual(ledger) => lock(&ledger.table).count > 0,
        };
        Popper::is_empty(&self.slots) && (owes || !Popper::is_awaited(&self.slots))
    }

    /// What was not dealt with goes to others.
    pub(super) fn leave(&mut self, shared: &Shared) {
        let unacked = match &mut self.owner {
            Owner::Auto { .. } => self.shown.take().map(|(held, _)| held).into_iter().collect(),
            Owner::Manual(ledger) => {
                let mut table = lock(&ledger.table);
                table.ring = None;
                table.taken.iter_mut().filter_map(|t| t.take().map(|(_, held)| held)).collect::<Vec<_>>()
            }
        };
        unacked.iter().for_each(|held| held.give_up(&self.slots, self.seat));
        shared.wake_some(&self.slots, Role::Consumer);
        // What nobody keeps in hand any more may be passed over.
        shared.wake_some(&self.slots, Role::Producer);
    }
}
