//! Where a consumer's records come from: one lane, a lane per producer, copies of a lane that may be overwritten, or slots.

use super::Shared;
use super::ack::{Ack, Taking};
use super::broadcast::{self, Copying, Overwritten};
use super::raw::{MappedLane, RecordRef};
use super::spsc::{Cursor, Damage, Found, Lane, Reader, publish_committed};
use crate::sync::mapped::Ordering;
use crate::wire::ring::{Kind, NEED_OVERWRITE};
use std::sync::Arc;

/// A consumer gives room back when it has let go of this part of the capacity, and of all that it has seen, and whenever it finds nothing.
pub const GIVE_BACK: u32 = 8;
/// Records that a consumer takes from one lane before it looks at the next.
pub const TURN: u32 = 32;
/// Every so many times the consumer looks at every lane, whatever the `ready` words say: they are hints.
pub const LOOK_AT_ALL: u32 = 64;

/// One lane and this consumer's place in it.
#[derive(Debug)]
pub(super) struct End {
    reader: Reader,
    lane: MappedLane,
    /// The seat of the lane's producer.
    producer: usize,
    give_back: u32,
}

impl End {
    pub(super) fn new(lane: MappedLane, reader: Reader, producer: usize, capacity: u32) -> End {
        End { reader, lane, producer, give_back: capacity / GIVE_BACK }
    }

    #[inline(never)]
    fn give_back(&mut self, shared: &Shared) {
        if self.reader.publish(&self.lane) {
            shared.wake(self.producer);
        }
    }

    #[inline(always)]
    fn release(&mut self, shared: &Shared, len: u32) {
        self.reader.release(len);
        self.give_back_if_due(shared);
    }

    #[inline(always)]
    fn give_back_if_due(&mut self, shared: &Shared) {
        // A producer that waits for room is told early. A look without a fence: who misses it now, sees it next time.
        if self.reader.unpublished() >= self.give_back || self.lane.writer_sleeps() {
            self.give_back(shared);
        } else if self.reader.has_read_all() && self.reader.publish(&self.lane) && shared.sleeps(self.producer) {
            // Of an empty ring nothing is kept back: its reader may not come again before there is a record, which may need all the room.
            // The store costs little where no producer looks; without a fence one that says that it sleeps just now finds the room by itself.
            shared.wake(self.producer);
        }
    }

    /// Would [`peek`](Self::peek) find something now?
    #[inline(always)]
    pub(super) fn sees_news(&self) -> bool {
        self.reader.sees_news(&self.lane)
    }

    fn leave(&self) {
        self.reader.leave(&self.lane);
    }

    /// The oldest record. Damage is told by the next look.
    #[inline(always)]
    pub(super) fn peek(&mut self) -> Option<Found> {
        self.reader.peek(&self.lane).unwrap_or(None)
    }

    /// Passes up to `max` records to `f`.
    #[inline(always)]
    pub(super) fn read(&mut self, shared: &Shared, max: usize, f: &mut impl FnMut(RecordRef<'_>)) -> usize {
        let mut n = 0;
        while n < max
            && shared.is_sound()
            && let Some(found) = self.peek()
        {
            f(Taken { end: self, shared, found }.payload());
            n += 1;
        }
        n
    }
}

/// A record that is let go of even if the code that looks at it panics.
struct Taken<'a> {
    end: &'a mut End,
    shared: &'a Shared,
    found: Found,
}

impl Taken<'_> {
    #[inline(always)]
    fn payload(&self) -> RecordRef<'_> {
        self.end.lane.found(self.found)
    }
}

impl Drop for Taken<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // A forked child must not speak for its parent.
        if !self.shared.is_forked() {
            self.end.release(self.shared, self.found.len);
        }
    }
}

/// The lanes of an `mpsc` ring.
#[derive(Debug)]
pub(super) struct Lanes {
    ends: Vec<End>,
    /// Bit *i*: lane *i* may have something.
    pending: u64,
    /// The lane whose turn it is, and how many records it has had.
    turn: usize,
    taken: u32,
    refills: u32,
}

impl Lanes {
    fn look(&mut self, shared: &Shared) -> Result<Option<Found>, Damage> {
        let all = u64::MAX >> (64 - self.ends.len());
        let mut looked_at_all = false;
        loop {
            if self.pending == 0 {
                if looked_at_all {
                    return Ok(None);
                }
                self.refills = self.refills.wrapping_add(1);
                // Acquire is not needed for the records: each lane's `tail` brings them.
                self.pending =
                    if self.refills.is_multiple_of(LOOK_AT_ALL) { 0 } else { shared.map.ready().swap(0, Ordering::Relaxed) & all };
                if self.pending == 0 {
                    self.pending = all;
                    looked_at_all = true;
                }
            }
            if self.taken >= TURN || self.pending >> self.turn & 1 == 0 {
                self.next_turn();
            }
            if let Some(found) = {
                let end = &mut self.ends[self.turn];
                end.reader.peek(&end.lane)?
            } {
                return Ok(Some(found));
            }
            self.ends[self.turn].give_back(shared);
            self.pending &= !(1 << self.turn);
        }
    }

    /// The next lane after this one that may have something.
    fn next_turn(&mut self) {
        self.taken = 0;
        let after = self.pending & (u64::MAX << self.turn << 1);
        let from = if after != 0 { after } else { self.pending };
        self.turn = from.trailing_zeros() as usize;
    }
}

#[derive(Debug)]
pub(super) enum Input {
    /// `spsc`, and a lossless `broadcast`.
    One(End),
    /// `mpsc`.
    Many(Lanes),
    /// A `broadcast` that overwrites.
    Copied(Copying, MappedLane),
    /// `mpmc`.
    Slots(Taking),
}

impl Input {
    pub(super) fn many(ends: Vec<End>) -> Input {
        Input::Many(Lanes { ends, pending: 0, turn: 0, taken: 0, refills: 0 })
    }

    /// Finds the oldest record.
    #[inline]
    pub(super) fn look(&mut self, shared: &Shared) -> Result<Option<Found>, Damage> {
        match self {
            Input::One(end) => end.reader.peek(&end.lane),
            Input::Many(lanes) => lanes.look(shared),
            Input::Copied(copying, lane) => Ok(copying.take(lane)?.map(|len| Found { offset: 0, len, redelivered: false })),
            Input::Slots(taking) => taking.look(shared),
        }
    }

    /// The record that [`look`](Self::look) found last.
    #[inline]
    pub(super) fn record(&self, found: Found) -> RecordRef<'_> {
        match self {
            Input::One(end) => end.lane.found(found),
            Input::Many(lanes) => lanes.ends[lanes.turn].lane.found(found),
            Input::Copied(copying, _) => RecordRef::copied(copying.copied(), found.len),
            Input::Slots(taking) => taking.record(),
        }
    }

    /// Lets go of it. Within a run of records the producers are told at its end, by [`give_back_if_due`](Self::give_back_if_due).
    #[inline]
    pub(super) fn release(&mut self, shared: &Shared, len: u32, in_run: bool) -> Result<(), Damage> {
        match self {
            Input::One(end) => end.release(shared, len),
            Input::Many(lanes) => {
                lanes.taken += 1;
                lanes.ends[lanes.turn].release(shared, len);
            }
            Input::Copied(copying, _) => copying.release(len),
            Input::Slots(taking) => {
                taking.release()?;
                if !in_run {
                    taking.told(shared);
                }
            }
        }
        Ok(())
    }

    /// The record behind the one that [`look`](Self::look) found and that was let go of. Gives no room back, so that one stays
    /// readable; `None` where that cannot be had.
    pub(super) fn look_behind(&mut self, shared: &Shared) -> Result<Option<Found>, Damage> {
        match self {
            Input::One(end) => end.reader.peek(&end.lane),
            Input::Many(lanes) if lanes.taken < TURN => {
                let end = &mut lanes.ends[lanes.turn];
                end.reader.peek(&end.lane)
            }
            Input::Slots(taking) => taking.look(shared),
            Input::Many(_) | Input::Copied(..) => Ok(None),
        }
    }

    /// [`release`](Self::release) without giving room back.
    pub(super) fn let_go(&mut self, len: u32) {
        match self {
            Input::One(end) => end.reader.release(len),
            Input::Many(lanes) => {
                lanes.taken += 1;
                lanes.ends[lanes.turn].reader.release(len);
            }
            Input::Copied(copying, _) => copying.release(len),
            Input::Slots(taking) => taking.let_go(),
        }
    }

    /// Gives the last `n` records that were let go of, and of which no room was given back, to others; only slots can.
    pub(super) fn give_up_last(&mut self, shared: &Shared, n: usize) {
        if let Input::Slots(taking) = self {
            taking.give_up_last(shared, n);
        }
    }

    /// Gives room back if enough was let go, or the producer sleeps.
    #[inline]
    pub(super) fn give_back_if_due(&mut self, shared: &Shared) -> Result<(), Damage> {
        match self {
            Input::One(end) => end.give_back_if_due(shared),
            Input::Many(lanes) => lanes.ends[lanes.turn].give_back_if_due(shared),
            Input::Copied(..) => {}
            Input::Slots(taking) => {
                taking.give_back()?;
                taking.told(shared);
            }
        }
        Ok(())
    }

    /// Gives all room back that was let go.
    pub(super) fn give_back(&mut self, shared: &Shared) -> Result<(), Damage> {
        match self {
            Input::One(end) => end.give_back(shared),
            Input::Many(lanes) => lanes.ends.iter_mut().for_each(|end| end.give_back(shared)),
            Input::Copied(..) => {}
            Input::Slots(taking) => {
                if taking.give_back()? {
                    taking.told(shared);
                }
            }
        }
        Ok(())
    }

    /// Publishes what producers with `batch` have committed and hold back. True if there was something: the next look finds it.
    pub(super) fn publish_committed(&self, shared: &Shared) -> bool {
        let capacity = shared.map.header().capacity;
        match self {
            Input::One(end) => publish_committed(&end.lane, capacity),
            // All of them, whatever the first says.
            Input::Many(lanes) => lanes.ends.iter().filter(|end| publish_committed(&end.lane, capacity)).count() > 0,
            Input::Copied(_, lane) => publish_committed(lane, capacity),
            // What is committed is there for whoever looks.
            Input::Slots(_) => false,
        }
    }

    /// A closed ring in which nothing is found has ended.
    pub(super) fn is_drained(&self) -> bool {
        match self {
            Input::Slots(taking) => taking.is_drained(),
            Input::Copied(copying, _) => !copying.has_passed(),
            Input::One(_) | Input::Many(_) => true,
        }
    }

    /// The records that are in flight until somebody acknowledges them.
    pub(super) fn taking(&self) -> Option<&Taking> {
        if let Input::Slots(taking) = self { Some(taking) } else { None }
    }

    /// Would [`look`](Self::look) find something now?
    #[inline]
    pub(super) fn sees_news(&self) -> bool {
        match self {
            Input::One(end) => end.sees_news(),
            Input::Many(lanes) => lanes.ends.iter().any(End::sees_news),
            Input::Copied(copying, lane) => copying.sees_news(lane),
            Input::Slots(taking) => taking.sees_news(),
        }
    }

    /// There may be something that a writer which overwrites was too fast for.
    pub(super) fn has_passed(&self) -> bool {
        matches!(self, Input::Copied(copying, _) if copying.has_passed())
    }

    pub(super) fn leave(&mut self, shared: &Shared) {
        match self {
            Input::One(end) => end.leave(),
            Input::Many(lanes) => lanes.ends.iter().for_each(End::leave),
            Input::Copied(..) => {}
            Input::Slots(taking) => taking.leave(shared),
        }
    }

    /// Where the reader of a lane stands; in slots nobody can go on.
    pub(super) fn cursor(&self, lane: usize) -> Option<Cursor> {
        match self {
            Input::One(end) => (lane == 0).then(|| end.reader.cursor()),
            Input::Many(lanes) => lanes.ends.get(lane).map(|end| end.reader.cursor()),
            Input::Copied(copying, _) => (lane == 0).then(|| copying.cursor()),
            Input::Slots(_) => None,
        }
    }

    /// False where [`cursor`](Self::cursor) gives nothing.
    pub(super) fn set_cursor(&mut self, lane: usize, to: Cursor) -> Result<bool, Damage> {
        match self {
            Input::One(end) if lane == 0 => end.reader.set_cursor(to)?,
            Input::Copied(copying, _) if lane == 0 => copying.set_cursor(to)?,
            Input::Many(lanes) if lane < lanes.ends.len() => lanes.ends[lane].reader.set_cursor(to)?,
            Input::One(_) | Input::Many(_) | Input::Copied(..) | Input::Slots(_) => return Ok(false),
        }
        Ok(true)
    }

    /// The lane that is looked at next, where there are several.
    pub(super) fn turn_to(&mut self, lane: usize) {
        if let Input::Many(lanes) = self
            && lane < lanes.ends.len()
        {
            (lanes.turn, lanes.taken) = (lane, 0);
            lanes.pending |= 1 << lane;
        }
    }

    pub(super) fn lost(&self) -> u64 {
        if let Input::Copied(copying, _) = self { copying.lost() } else { 0 }
    }
}

/// What a new consumer on `seat` reads. `enter` makes it known to the others.
pub(super) fn open(shared: &Arc<Shared>, seat: usize, ack: Ack, enter: impl FnOnce()) -> Result<Input, Damage> {
    let header = shared.map.header();

    let capacity = header.capacity;
    match header.kind {
        Kind::Mpmc => {
            let slots = shared.slots.as_ref().expect("an mpmc ring has slots");
            let taking = Taking::new(shared, slots, seat, ack);
            enter();
            Ok(Input::Slots(taking))
        }
        Kind::Spsc | Kind::Mpsc => {
            let end = |lane: usize| {
                let producer = lane + 1;
                let mapped = MappedLane::new(&shared.map, lane, producer, producer);
                let reader = Reader::resume(&mapped, capacity)?;
                Ok(End::new(mapped, reader, producer, capacity))
            };
            let mut ends = (0..header.lanes as usize).map(end).collect::<Result<Vec<_>, Damage>>()?;
            enter();
            Ok(if header.kind == Kind::Spsc { Input::One(ends.remove(0)) } else { Input::many(ends) })
        }
        Kind::Broadcast => {
            let lane = MappedLane::new(&shared.map, 0, 0, seat);
            if header.need & NEED_OVERWRITE != 0 {
                let copying = Copying::begin(&lane, capacity)?;
                enter();
                return Ok(Input::Copied(copying, lane));
            }
            let at = broadcast::join(lane.tail(), lane.high(), lane.gate(), lane.head(), capacity, enter)?;
            lane.seen().store(at.at, Ordering::Relaxed);
            let reader = Reader::begin(at, capacity);
            Ok(Input::One(End::new(lane, reader, 0, capacity)))
        }
    }
}
