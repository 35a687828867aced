//! One writer, many readers that each see every record.
//!
//! The lane is that of `spsc.rs`. What differs is who says what the writer may overwrite: the *gate*, which the writer keeps
//! itself in its seat's `head`.
//!
//! * **Lossless**: the gate is the oldest position of a living reader. A reader that comes announces itself and looks at the
//!   gate afterwards; the writer moves the gate and looks for readers afterwards. Both put a SeqCst fence between, so one
//!   of them sees the other: the writer then takes the gate back, or the reader begins further on. Only then does the writer
//!   say that the gate is *settled* (its seat's `seen`), and overwrite: a writer that died before is as if it had not moved the gate.
//! * **Overwriting**: the gate moves on as far as the writer needs, before it writes (a seqlock with positions for sequence
//!   numbers). A reader copies first and believes what it copied only if the gate is not beyond it.
//!
//! | Word                     | Written by | Read by | Ordering                                             |
//! |--------------------------|------------|---------|------------------------------------------------------|
//! | gate (writer's `head`)   | writer     | readers | before the overwriting, Release fence; after the copy, Acquire fence |
//! | settled (writer's `seen`) | writer    | its successor | Release, after the second look; read when the seat is taken |
//! | cursor (reader's `head`) | reader     | writer  | Release when it gives back, Acquire when the gate moves |

use super::spsc::{Cursor, Damage, Lane, Mark, aligned, damage, distance, half_turn};
use crate::sync::Word;
use crate::sync::atomic::Ordering;
use crate::sync::modelled::fence;
use crate::sys::failpoint;
use crate::wire::ring::{RECORD_DATA, RECORD_HEADER, RECORD_PAD, max_record, record_extent};

/// Moves the gate of a lossless lane to the oldest of `cursors`, the positions of living readers; to `published` if there
/// are none. True if it moved.
pub(super) fn move_gate<P: Word<u64>, I: Iterator<Item = Mark>>(
    gate: &P,
    settled: &P,
    published: Mark,
    capacity: u32,
    mut cursors: impl FnMut() -> I,
) -> Result<bool, Damage> {
    let now = Mark::load(gate, Ordering::Relaxed);
    let held = distance(now.at, published.at, capacity, "writer's gate is outside the lane")?;
    // A cursor behind the gate is that of a reader who is about to see that it came too late.
    let mut oldest = || {
        let behind = |m: &Mark| published.at.wrapping_sub(m.at);
        cursors().filter(|m| behind(m) <= held && behind(m).is_multiple_of(8)).max_by_key(behind).unwrap_or(published)
    };
    let first = oldest();
    if first.at == now.at {
        return Ok(false);
    }
    failpoint::hit("gate.looked");
    first.store(gate, Ordering::Release);
    failpoint::hit("gate.moved");
    // G1: pairs with the fence in `join`. Who is not seen by the second look sees the gate.
    fence(Ordering::SeqCst);
    let second = oldest();
    let back = published.at.wrapping_sub(second.at) > published.at.wrapping_sub(first.at);
    let to = if back { second } else { first };
    if back {
        to.store(gate, Ordering::Release);
    }
    // Before a byte is overwritten.
    to.store(settled, Ordering::Release);
    failpoint::hit("gate.settled");
    Ok(to.at != now.at)
}

/// For a successor: takes back a gate that its predecessor moved and died before it knew whom it passed. Nothing was overwritten by that
/// gate, and every living reader is at the settled one or further on.
pub(super) fn settle_gate<P: Word<u64>>(gate: &P, settled: &P, published: Mark, capacity: u32) -> Result<(), Damage> {
    let to = aligned(Mark::load(settled, Ordering::Acquire))?;
    distance(to.at, published.at, capacity, "writer's gate is outside the lane")?;
    to.store(gate, Ordering::Release);
    Ok(())
}

/// How often [`join`] looks. Each further look takes a writer that passed the last one meanwhile, so a sane one needs a few.
const JOIN_LOOKS: u32 = 1 << 20;

/// Puts a reader's cursor at the writer's newest position, where no gate has passed it. `enter` makes the reader known; it
/// is called at most once, after the cursor has its first value. Who is stopped meanwhile is told by `high` that positions have turned.
pub(super) fn join<P: Word<u64>, W: Word<u32>>(
    tail: &P,
    high: &W,
    gate: &P,
    cursor: &P,
    capacity: u32,
    enter: impl FnOnce(),
) -> Result<Mark, Damage> {
    let mut enter = Some(enter);
    let mut seen = (0, 0);
    for _ in 0..JOIN_LOOKS {
        let turn = high.load(Ordering::Acquire);
        let at = aligned(Mark::load(tail, Ordering::Acquire))?;
        at.store(cursor, Ordering::Release);
        if let Some(enter) = enter.take() {
            enter();
        }
        // G1: pairs with the fence in `move_gate`.
        fence(Ordering::SeqCst);
        let gate = Mark::load(gate, Ordering::Acquire);
        if at.at.wrapping_sub(gate.at) <= capacity && high.load(Ordering::Relaxed) == turn {
            return Ok(at);
        }
        seen = (gate.at, at.at);
    }
    damage("writer's gate is beyond what it published", seen.0, seen.1)
}

/// Moves the gate of an overwriting lane past the oldest records, until `needed` more bytes fit behind `published`.
pub(super) fn overwrite<L: Lane>(lane: &L, published: Mark, capacity: u32, needed: u32) -> Result<(), Damage> {
    let mut gate = Mark::load(lane.head(), Ordering::Relaxed);
    loop {
        let held = distance(gate.at, published.at, capacity, "writer's gate is outside the lane")?;
        if capacity - held >= needed {
            break;
        }
        let (offset, word) = (gate.at & (capacity - 1), lane.record(gate.at & (capacity - 1)));
        let (extent, records) = match (word >> 32, word as u32) {
            (k, len) if k == u64::from(RECORD_PAD) && len == capacity - offset - RECORD_HEADER => (capacity - offset, 0),
            (k, len) if k == u64::from(RECORD_DATA) && len <= max_record(capacity) => (record_extent(len), 1),
            _ => return damage("record that is to be overwritten is damaged", word, held),
        };
        if extent > held {
            return damage("record that is to be overwritten is damaged", extent, held);
        }
        gate.advance(extent, records);
    }
    // G2: the gate is seen to move before a byte changes. Pairs with the fence in `Copying::take`.
    gate.store(lane.head(), Ordering::Relaxed);
    fence(Ordering::Release);
    Ok(())
}

/// A reader of an overwriting lane: copies, then checks that nothing was overwritten meanwhile.
#[derive(Debug)]
pub(super) struct Copying {
    capacity: u32,
    next: Mark,
    /// The half-turn of `next` when it was last known to be there: tells a lap of 2^32 bytes from none. The writer's `high` is at most
    /// one more while `next` is in the lane.
    high: u32,
    copy: Vec<u64>,
    lost: u64,
    /// Records before `next` that were passed over for the sake of newer ones, and are read after all if no newer one comes.
    passed: u32,
}

/// The gate, and the words that a reader of an overwriting lane copies from.
pub(super) trait Overwritten: Lane {
    /// The writer's gate.
    fn gate(&self) -> &Self::Position;
}

/// Looks of [`locate`]. Each further one takes a writer that went 2 GiB on between two loads, or was replaced, so a sane one needs a few.
const LOCATE_LOOKS: u32 = 1 << 10;

/// A position of the writer's, and its half-turn.
fn locate(position: &impl Word<u64>, high: &impl Word<u32>) -> Result<(Mark, u32), Damage> {
    let mut turn = high.load(Ordering::Acquire);
    for _ in 0..LOCATE_LOOKS {
        let at = aligned(Mark::load(position, Ordering::Acquire))?;
        let now = high.load(Ordering::Acquire);
        // Within one half-turn there is one answer.
        if now == turn {
            return Ok((at, half_turn(now, at.at)));
        }
        turn = now;
    }
    damage("writer's half-turns do not stand still", turn, LOCATE_LOOKS)
}

impl Copying {
    /// Begins with the oldest record that is still there.
    pub(super) fn begin<L: Overwritten>(lane: &L, capacity: u32) -> Result<Copying, Damage> {
        let (next, high) = locate(lane.gate(), lane.high())?;
        Ok(Copying { capacity, next, high, copy: Vec::new(), lost: 0, passed: 0 })
    }

    pub(super) fn cursor(&self) -> Cursor {
        let Mark { at, count } = self.next;
        Cursor { at, count, published: at, peer: at, again: 0, high: self.high }
    }

    /// Goes on where a face stands that has copied records itself.
    pub(super) fn set_cursor(&mut self, to: Cursor) -> Result<(), Damage> {
        let to_mark = aligned(Mark { at: to.at, count: to.count })?;
        if to_mark != self.next {
            self.forget_passed();
        }
        self.next = to_mark;
        self.high = half_turn(to.high, to.at);
        Ok(())
    }

    /// Copies the next record; its length, or `None` when there is none, or the writer is faster than any copy.
    pub(super) fn take<L: Overwritten>(&mut self, lane: &L) -> Result<Option<u32>, Damage> {
        // Who is lapped goes on with the oldest; who is lapped again while copying that, with what comes next. Where nothing does, the
        // writer has stopped, and what was passed over is there.
        for attempt in 0..4 {
            let tail = Mark::load(lane.tail(), Ordering::Acquire);
            // Once: a reader that is stopped after it is fooled by no later value, because that is compared with this one.
            let high = lane.high().load(Ordering::Relaxed);
            let gone = high.wrapping_sub(self.high) > 1;
            let ready = tail.at.wrapping_sub(self.next.at);
            if gone || ready > self.capacity {
                self.skip(lane, attempt)?;
                continue;
            }
            self.high = half_turn(high, self.next.at);
            if ready == 0 {
                if self.passed == 0 {
                    return Ok(None);
                }
                let oldest = Mark::load(lane.gate(), Ordering::Acquire);
                if tail.at.wrapping_sub(oldest.at) > self.capacity && Mark::load(lane.tail(), Ordering::Acquire) == tail {
                    // A writer who stands still has its gate in the lane; this is none's, and nothing that was passed over is there.
                    self.forget_passed();
                    return Ok(None);
                }
                self.go_to_oldest(lane)?;
                continue;
            }
            if !ready.is_multiple_of(8) {
                return damage("writer's position is not aligned", ready, 8u32);
            }
            let mask = self.capacity - 1;
            let mut at = self.next;
            let mut word = lane.record(at.at & mask);
            if word >> 32 == u64::from(RECORD_PAD) {
                let room = self.capacity - (at.at & mask);
                if room >= ready || word as u32 != room - RECORD_HEADER {
                    if self.is_intact(lane) {
                        return damage("bad padding record", word as u32, room - RECORD_HEADER);
                    }
                    self.skip(lane, attempt)?;
                    continue;
                }
                at.advance(room, 0);
                word = lane.record(0);
            }
            let (len, offset) = (word as u32, at.at & mask);
            let valid = word >> 32 == u64::from(RECORD_DATA)
                && len <= max_record(self.capacity)
                && record_extent(len) <= (self.capacity - offset).min(tail.at.wrapping_sub(at.at));
            if valid {
                let words = len.div_ceil(8);
                self.copy.clear();
                self.copy.extend((0..words).map(|i| lane.record(offset + RECORD_HEADER + i * 8)));
            }
            if !self.is_intact(lane) {
                self.skip(lane, attempt)?;
                continue;
            }
            if !valid {
                return damage("record claims more than was published", word, ready);
            }
            self.forget_passed();
            self.next = at;
            return Ok(Some(len));
        }
        Ok(None)
    }

    /// Nothing that was copied since `next` was checked has been overwritten.
    fn is_intact<L: Overwritten>(&self, lane: &L) -> bool {
        // G2: pairs with the fence in `overwrite`.
        fence(Ordering::Acquire);
        let gate = Mark::load(lane.gate(), Ordering::Relaxed);
        let same_lap = lane.high().load(Ordering::Relaxed).wrapping_sub(self.high) <= 1;
        same_lap && self.next.at.wrapping_sub(gate.at) <= self.capacity
    }

    fn skip<L: Overwritten>(&mut self, lane: &L, attempt: u32) -> Result<(), Damage> {
        self.go_to_oldest(lane)?;
        if attempt > 0 {
            let (to, high) = locate(lane.tail(), lane.high())?;
            self.passed = to.count.wrapping_sub(self.next.count);
            (self.next, self.high) = (to, high);
        }
        Ok(())
    }

    /// What lies before the oldest record that is there, and was not read, is lost.
    fn go_to_oldest<L: Overwritten>(&mut self, lane: &L) -> Result<(), Damage> {
        let (to, high) = locate(lane.gate(), lane.high())?;
        let read = self.next.count.wrapping_sub(std::mem::take(&mut self.passed));
        self.lost += u64::from(to.count.wrapping_sub(read));
        (self.next, self.high) = (to, high);
        Ok(())
    }

    /// A newer record came: those that were passed over are lost.
    fn forget_passed(&mut self) {
        self.lost += u64::from(std::mem::take(&mut self.passed));
    }

    /// The next look may find what was passed over.
    pub(super) fn has_passed(&self) -> bool {
        self.passed > 0
    }

    /// The copy that [`take`](Self::take) made.
    pub(super) fn copied(&self) -> *const u8 {
        self.copy.as_ptr().cast()
    }

    /// Lets go of the record that was taken.
    pub(super) fn release(&mut self, len: u32) {
        self.next.advance(record_extent(len), 1);
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn sees_news<L: Lane>(&self, lane: &L) -> bool {
        self.has_passed() || Mark::load(lane.tail(), Ordering::Relaxed).at != self.next.at
    }
}
