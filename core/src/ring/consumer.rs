//! The handle that pops.

use super::Shared;
use super::ack::{Ack, Acks};
use super::input::{self, Input};
use super::producer::remaining;
use super::raw::RecordRef;
use super::seat::{Role, Seat};
use super::spsc::{Cursor, Found};
use super::wait::{IN_VAIN, PAUSES, Sleeper, spin_briefly};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::Ordering;
use crate::wire::ring::{CLOSED, Kind, POISONED, seat_word};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

/// How a consumer reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsumerOptions {
    /// When a record of an `mpmc` ring is dealt with. The other kinds know [`Ack::Auto`] only.
    pub ack: Ack,
}

/// Every so many records a consumer of an `mpmc` ring asks the clock whether to look at the others' lives: few, for one that takes a
/// record every 10 ms.
const LOOK_EVERY: u32 = 4;

/// Pops records. One thread at a time; may move between threads.
#[derive(Debug)]
pub struct Consumer {
    input: Input,
    /// The record that `peek` showed and nobody let go of.
    shown: Option<Found>,
    looks: u32,
    sleeper: Sleeper,
    shared: Arc<Shared>,
    seat: Seat,
}

impl Consumer {
    pub(super) fn new(shared: &Arc<Shared>, options: ConsumerOptions) -> Result<Consumer> {
        let header = shared.map.header();
        let seats = header.seats as usize;
        if options.ack == Ack::Manual && header.kind != Kind::Mpmc {
            return Err(Error::new(ErrorKind::Unsupported, "only a ring of the kind mpmc is acknowledged record by record")
                .with("kind", header.kind.as_str()));
        }
        // Producers of an `mpsc` or `mpmc` ring come and go; of the others there is one, whose death is news.
        let (own, peers, needs_peer) = match header.kind {
            Kind::Spsc => (0..1, 1..seats, true),
            Kind::Mpsc => (0..1, 1..seats, false),
            Kind::Broadcast => (1..seats, 0..1, true),
            Kind::Mpmc => (0..seats, 0..seats, false),
        };
        let seat = Seat::take(shared, own, Role::Consumer)?;
        let input = input::open(shared, seat.number(), options.ack, || seat.enter()).map_err(|d| shared.poison(d))?;
        let sleeper = Sleeper::new(Arc::clone(shared), seat.number(), Role::Consumer, peers, needs_peer);
        Ok(Consumer { input, shown: None, looks: 0, sleeper, shared: Arc::clone(shared), seat })
    }

    /// The number of this consumer's seat, which is where its words lie (`wire::ring`).
    #[must_use]
    pub fn seat(&self) -> usize {
        self.seat.number()
    }

    /// Finds the oldest record.
    #[inline(always)]
    fn find(&mut self) -> Result<bool> {
        if self.find_at_once() { Ok(true) } else { self.find_slowly() }
    }

    /// The part of it that asks nothing but one lane.
    #[inline(always)]
    fn find_at_once(&mut self) -> bool {
        if self.shown.is_none()
            && let Input::One(end) = &mut self.input
            && self.shared.is_sound()
        {
            self.shown = end.peek();
        }
        self.shown.is_some()
    }

    /// Spins for about as long as a peer takes that answers at once. What is done for a longer wait would make its answer wait.
    #[inline(always)]
    fn finds_soon(&mut self) -> bool {
        let Input::One(end) = &self.input else { return false };
        self.shared.spare_core && spin_briefly(|| end.sees_news()) && self.find_at_once()
    }

    #[inline(never)]
    fn find_slowly(&mut self) -> Result<bool> {
        self.shared.check()?;
        if let Some(taking) = self.input.taking() {
            // What the dead had taken comes back even while nobody is idle.
            self.looks = self.looks.wrapping_add(1);
            if taking.is_manual() || self.looks.is_multiple_of(LOOK_EVERY) {
                self.sleeper.look_if_due()?;
            }
        }
        if self.look()? { Ok(true) } else { self.find_nothing() }
    }

    #[inline]
    fn look(&mut self) -> Result<bool> {
        self.shown = self.input.look(&self.shared).map_err(|d| self.shared.poison(d))?;
        Ok(self.shown.is_some())
    }

    #[cold]
    fn find_nothing(&mut self) -> Result<bool> {
        self.give_back()?;
        let idle = if self.sleeper.is_polled() {
            self.sleeper.arm_polled()?;
            self.stand_back();
            true
        } else {
            self.sleeper.look_if_due()?
        };
        // In this order: what was published before the ring was closed, or its producer died, is there at the second look.
        let closed = self.shared.check()? & CLOSED != 0;
        let dead = self.sleeper.peer_is_dead();
        if closed {
            // Either this look sees a record, or its producer sees after it that the ring is closed.
            self.shared.fence_everywhere();
        }
        if idle || closed || dead {
            self.input.publish_committed(&self.shared);
        }
        if self.look()? {
            if self.sleeper.is_polled() {
                self.sleeper.ring_own();
            }
            return Ok(true);
        }
        if closed && self.input.is_drained() {
            return Err(Error::new(ErrorKind::Closed, "ring was closed and is drained"));
        }
        if self.input.has_passed() && self.sleeper.is_polled() {
            self.sleeper.ring_own();
        }
        if dead {
            return Err(Error::new(ErrorKind::PeerDied, "producer died and the ring is drained")
                .with("pid", self.shared.map.seat_word(self.sleeper.first_peer(), seat_word::PID).load(Ordering::Relaxed)));
        }
        Ok(false)
    }

    /// As [`find`](Self::find), and waits.
    fn wait_find(&mut self, timeout: Option<Duration>) -> Result<()> {
        let found = self.wait_find_or_give_up(timeout);
        if let (Err(_), Some(taking)) = (&found, self.input.taking()) {
            // It may have been woken for a record that another one can take.
            taking.hand_on(&self.shared);
        }
        found
    }

    fn wait_find_or_give_up(&mut self, timeout: Option<Duration>) -> Result<()> {
        let (mut until, mut in_vain) = (None, 0);
        loop {
            if self.find_at_once() || self.finds_soon() || self.find_slowly()? {
                return Ok(());
            }
            if let Some(mut spin) = self.sleeper.take_spin() {
                let came = spin.wait(PAUSES, || self.input.sees_news());
                self.sleeper.put_spin(spin);
                if came && in_vain < IN_VAIN {
                    in_vain += 1;
                    continue;
                }
            }
            let left = remaining(&mut until, timeout, "no record in the ring")?;
            let slept = self.sleeper.arm().and_then(|()| {
                self.stand_back();
                // W2 of the wake protocol.
                let sleeps = !self.input.publish_committed(&self.shared)
                    && !self.input.sees_news()
                    && !self.may_end()
                    && !self.sleeper.peer_is_dead();
                if sleeps { self.sleeper.sleep(left) } else { Ok(()) }
            });
            self.sleeper.disarm();
            slept?;
        }
    }

    /// After arming: a consumer that may take no more is not to be woken for records.
    fn stand_back(&self) {
        if let Some(taking) = self.input.taking() {
            taking.stand_back();
        }
    }

    /// The next call has something to tell.
    fn may_end(&self) -> bool {
        let state = self.shared.state();
        state & POISONED != 0 || (state & CLOSED != 0 && self.input.is_drained())
    }

    /// The oldest record, which stays the oldest; `None` while the ring is empty.
    ///
    /// # Errors
    /// Those of [`try_pop`](Self::try_pop).
    pub fn peek(&mut self) -> Result<Option<RecordRef<'_>>> {
        Ok(if self.find()? { self.shown.map(|f| self.input.record(f)) } else { None })
    }

    /// Is there a record for this consumer? If not, an fd that is polled has been armed. In `mpmc` a record that is seen is not taken yet,
    /// and may be another's by the next call.
    ///
    /// # Errors
    /// Those of [`try_pop`](Self::try_pop).
    pub fn has_record(&mut self) -> Result<bool> {
        if self.shown.is_none() && self.input.taking().is_some_and(super::ack::Taking::may_take) {
            return self.shared.check().map(|_| true);
        }
        self.find()
    }

    /// Lets go of the record that [`peek`](Self::peek) showed, and of those of [`read_held`](Self::read_held). With [`Ack::Manual`]
    /// they stay in flight until they are acknowledged.
    #[inline]
    pub fn release(&mut self) {
        self.let_go(false);
    }

    #[inline]
    fn let_go(&mut self, in_run: bool) {
        let shown = self.shown.take();
        // A forked child must not speak for its parent.
        if self.shared.is_forked() {
            return;
        }
        let done = match shown {
            Some(found) => self.input.release(&self.shared, found.len, in_run),
            None => self.input.give_back_if_due(&self.shared),
        };
        if let Err(damage) = done {
            // Told by the next call.
            self.shared.poison(damage);
        }
    }

    pub(super) fn give_back(&mut self) -> Result<()> {
        if self.shared.is_forked() {
            return Ok(());
        }
        self.input.give_back(&self.shared).map_err(|d| self.shared.poison(d))
    }

    /// The record is dealt with, and is not delivered again ([`Ack::Manual`]).
    ///
    /// # Errors
    /// `Invalid` for a delivery that was acknowledged or given back before, or came from another consumer; `Unsupported` without
    /// [`Ack::Manual`]; `Corrupt`, `Forked`.
    pub fn ack(&self, delivery: u64) -> Result<()> {
        self.acks()?.ack(delivery)
    }

    /// Gives the record back: some consumer, this one perhaps, gets it at once, marked as redelivered.
    ///
    /// # Errors
    /// Those of [`ack`](Self::ack).
    pub fn nack(&self, delivery: u64) -> Result<()> {
        self.acks()?.nack(delivery)
    }

    /// What [`ack`](Self::ack) and [`nack`](Self::nack) do, for other threads.
    ///
    /// # Errors
    /// `Unsupported` without [`Ack::Manual`].
    pub fn acks(&self) -> Result<Acks> {
        self.input
            .taking()
            .and_then(super::ack::Taking::acks)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "consumer acknowledges by itself").with("ack", Ack::Auto.as_str()))
    }

    /// Records of an overwriting ring that were overwritten before this consumer came to them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.input.lost()
    }

    /// Takes the oldest record; `None` while the ring is empty. The record is let go of when what is returned is dropped; a
    /// successor of a consumer that dies before that gets it again, marked [`redelivered`](Record::is_redelivered).
    ///
    /// # Errors
    /// When the ring is drained: `Closed`, `PeerDied`. `Corrupt`, `Forked`.
    pub fn try_pop(&mut self) -> Result<Option<Record<'_>>> {
        Ok(if self.find()? { Some(Record { consumer: self, in_run: false }) } else { None })
    }

    /// As [`try_pop`](Self::try_pop), and waits at most `timeout` (`None`: without end).
    ///
    /// # Errors
    /// `Timeout`, and those of [`try_pop`](Self::try_pop).
    pub fn pop(&mut self, timeout: Option<Duration>) -> Result<Record<'_>> {
        self.wait_find(timeout)?;
        Ok(Record { consumer: self, in_run: false })
    }

    /// Waits until there is a record for [`peek`](Self::peek), at most `timeout` (`None`: without end).
    ///
    /// # Errors
    /// Those of [`pop`](Self::pop).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.wait_find(timeout)
    }

    /// Passes up to `max` records to `f`, oldest first, and returns how many there were. Does not wait. Of an `mpmc` ring up to 8 are taken
    /// at once: no other consumer gets one of them while `f` looks at those before it, and if `f` panics they come again, marked.
    ///
    /// # Errors
    /// Those of [`try_pop`](Self::try_pop), if there was no record before it.
    pub fn read(&mut self, max: usize, mut f: impl FnMut(RecordRef<'_>)) -> Result<usize> {
        let mut n = 0;
        while n < max {
            match self.find() {
                Ok(true) => f(Record { consumer: self, in_run: true }.payload()),
                Ok(false) => break,
                // Told again by the next call, which then has nothing else to tell.
                Err(_) if n > 0 => break,
                Err(e) => return Err(e),
            }
            n += 1;
            // What follows, as far as nothing stands against it, in fewer instructions.
            n += match &mut self.input {
                Input::One(end) => end.read(&self.shared, max - n, &mut f),
                Input::Slots(_) => self.read_slots(max - n, &mut f),
                Input::Many(_) | Input::Copied(..) => 0,
            };
        }
        if n > 0 && self.shown.is_none() && self.input.taking().is_some() {
            self.release(); // who waits for a slot is told once
        }
        Ok(n)
    }

    /// Passes up to `max` records of slots to `f`, until something stands against it.
    #[inline(always)]
    fn read_slots(&mut self, max: usize, f: &mut impl FnMut(RecordRef<'_>)) -> usize {
        let mut n = 0;
        while n < max
            && let Input::Slots(taking) = &mut self.input
        {
            let read = taking.read_run(&self.shared, max - n, f);
            n += read;
            // What the dead had taken comes back even while nobody is idle. An error is told by the next call.
            if read == 0 || self.sleeper.look_if_due().is_err() {
                break;
            }
        }
        n
    }

    /// Where this handle stands in a lane (they are numbered from 0), for a face that reads lanes itself through
    /// [`RingBuffer::mapping`](super::RingBuffer::mapping); `None` behind the last one, and where there are slots.
    #[must_use]
    pub fn cursor(&self, lane: usize) -> Option<Cursor> {
        self.input.cursor(lane)
    }

    /// Goes on where such a face stands in a lane. No record is shown any more.
    ///
    /// # Errors
    /// `Corrupt` when the positions cannot be, `Unsupported` where there is no cursor.
    pub fn set_cursor(&mut self, lane: usize, to: Cursor) -> Result<()> {
        self.shown = None;
        if self.input.set_cursor(lane, to)? {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Unsupported, "consumer has no place in such a lane").with("lane", lane))
        }
    }

    /// The lane that is looked at next, where there are several: for such a face, whose turn it is.
    pub fn turn_to(&mut self, lane: usize) {
        self.input.turn_to(lane);
    }

    /// Wakes the producer of a lane if it sleeps: for such a face, after it has given room back.
    pub fn wake(&self, lane: usize) {
        self.shared.wake(self.sleeper.first_peer() + lane);
    }

    /// As [`read`](Self::read), but all records stay where they are, readable, until the next call on this consumer: no room is
    /// given back before it.
    ///
    /// # Errors
    /// Those of [`try_pop`](Self::try_pop), if there was no record before it.
    pub fn read_held(&mut self, max: usize, mut f: impl FnMut(RecordRef<'_>)) -> Result<usize> {
        if self.shown.is_none() {
            self.release(); // those of the last call
        }
        let mut n = 0;
        while n < max {
            // Damage behind the first record is told by the next call.
            let found = if n == 0 { self.find().map(|_| self.shown.take())? } else { self.input.look_behind(&self.shared).unwrap_or(None) };
            let Some(found) = found else { break };
            f(self.input.record(found));
            self.input.let_go(found.len);
            n += 1;
            if let Input::Slots(taking) = &mut self.input {
                n += taking.hold_run(&self.shared, max - n, &mut f);
            }
        }
        Ok(n)
    }

    /// Ends a [`read_held`](Self::read_held) of an `mpmc` ring with [`Ack::Auto`]: the last `unseen` of its records go to others,
    /// marked as redelivered, the rest is let go of. In other rings all of them are let go of.
    ///
    /// # Errors
    /// `Forked`.
    pub fn end_read(&mut self, unseen: usize) -> Result<()> {
        self.shared.check_fork()?;
        self.input.give_up_last(&self.shared, unseen);
        self.release();
        Ok(())
    }

    /// An fd that is readable when there may be something to pop, or a peer has died, for an event loop. Level-triggered: from
    /// the first call on a call that finds nothing has armed it, and it stays readable until then.
    ///
    /// # Errors
    /// `Os` with `EMFILE`, `Forked`.
    pub fn fd(&mut self) -> Result<BorrowedFd<'_>> {
        self.shared.check()?;
        self.sleeper.fd()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // What cannot be given back is damaged, and everybody knows it by now.
        let _ = self.give_back();
        if !self.shared.is_forked() {
            self.sleeper.disarm();
            self.input.leave(&self.shared);
        }
    }
}

/// A record that was taken. Dropping it lets go of it; with [`Ack::Manual`] it stays in flight until its
/// [`delivery`](Self::delivery) is acknowledged.
#[derive(Debug)]
pub struct Record<'a> {
    consumer: &'a mut Consumer,
    in_run: bool,
}

impl Record<'_> {
    /// The payload, where it lies.
    #[must_use]
    pub fn payload(&self) -> RecordRef<'_> {
        let found = self.consumer.shown.expect("a taken record stays shown until it is dropped");
        self.consumer.input.record(found)
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload().len()
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A consumer that died, or gave it back, may have seen this record.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.payload().is_redelivered()
    }

    /// What [`Consumer::ack`] wants, with [`Ack::Manual`]; else 0.
    #[must_use]
    pub fn delivery(&self) -> u64 {
        self.payload().delivery()
    }

    /// Copies as much as fits to the front of `out`; returns how many bytes.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        self.payload().copy_to(out)
    }

    /// A copy.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.payload().to_vec()
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.consumer.let_go(self.in_run);
    }
}
