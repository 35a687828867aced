//! One lane: a bounded stream of records with one writer and one reader.
//!
//! Design: Lamport's queue with cached indices (as in MCRingBuffer) over variable-size records. Protocol and argument:
//! `README.md`. Neither side trusts the other: what it reads of the other's words is checked before it is used.
//!
//! | Word   | Written by | Read by         | Ordering                                      |
//! |--------|------------|-----------------|-----------------------------------------------|
//! | `tail` | writer     | reader          | Release at P1, Acquire at C1                  |
//! | `committed` | writer | reader, successor | Release at P0, Acquire at C3; while it publishes in batches |
//! | `head` | reader     | writer          | Release at C2, Acquire at P2 (cache miss)     |
//! | `seen` | reader     | its successor   | Relaxed: read only after the reader's death   |
//! | records| writer     | reader          | plain, before P1 / after C1; freed by C2 / P2 |
//!
//! Positions, capacity and offsets of this file are private copies; the words above are the only shared ones.

use crate::error::{Error, ErrorKind};
use crate::sync::Word;
use crate::sync::atomic::Ordering;
use crate::sync::line;
use crate::sys::failpoint;
use crate::wire::ring::{ALIGN, COMMITTED, RECORD_DATA, RECORD_HEADER, RECORD_PAD, max_record, record_extent, record_word};

const LINE: u32 = line::LEN as u32;

/// The shared words of a lane, wherever they lie: mapped memory, or a model's.
pub(crate) trait Lane {
    type Position: Word<u64>;
    type Word: Word<u32>;
    fn tail(&self) -> &Self::Position;
    fn committed(&self) -> &Self::Position;
    fn high(&self) -> &Self::Word;
    fn head(&self) -> &Self::Position;
    fn seen(&self) -> &Self::Word;
    /// One 8-byte load of the record word at `offset`, which is a multiple of 8 below the capacity.
    fn record(&self, offset: u32) -> u64;
    /// One 8-byte store.
    fn set_record(&self, offset: u32, word: u64);
    /// A hint: what lies at `offset` is written next.
    fn will_write(&self, _offset: u32) {}
}

/// A position, and the number of records before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) at: u32,
    pub(crate) count: u32,
}

impl Mark {
    #[inline]
    pub(crate) fn load(word: &impl Word<u64>, order: Ordering) -> Mark {
        let word = word.load(order);
        Mark { at: word as u32, count: (word >> 32) as u32 }
    }

    #[inline]
    pub(crate) fn store(self, word: &impl Word<u64>, order: Ordering) {
        word.store(u64::from(self.at) | u64::from(self.count) << 32, order);
    }

    #[inline]
    pub(super) fn advance(&mut self, bytes: u32, records: u32) {
        self.at = self.at.wrapping_add(bytes);
        self.count = self.count.wrapping_add(records);
    }
}

/// Bytes that contradict themselves: a peer wrote what the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) what: &'static str,
    pub(crate) value: u64,
    pub(crate) limit: u64,
}

impl From<Damage> for Error {
    fn from(d: Damage) -> Error {
        Error::new(ErrorKind::Corrupt, d.what).with("value", d.value).with("limit", d.limit)
    }
}

#[cold]
pub(super) fn damage<T>(what: &'static str, value: impl Into<u64>, limit: impl Into<u64>) -> Result<T, Damage> {
    Err(Damage { what, value: value.into(), limit: limit.into() })
}

/// Bytes between two positions of a lane, if they can be that.
pub(super) fn distance(from: u32, to: u32, capacity: u32, what: &'static str) -> Result<u32, Damage> {
    let bytes = to.wrapping_sub(from);
    if bytes > capacity || !bytes.is_multiple_of(ALIGN) { damage(what, bytes, capacity) } else { Ok(bytes) }
}

/// A position of a peer, if records can begin there.
pub(super) fn aligned(mark: Mark) -> Result<Mark, Damage> {
    if mark.at.is_multiple_of(ALIGN) { Ok(mark) } else { damage("position is not aligned", mark.at, ALIGN) }
}

/// The half-turn of a position that is in `high`, or in the one before.
pub(super) fn half_turn(high: u32, at: u32) -> u32 {
    high.wrapping_sub((high ^ at >> 31) & 1)
}

/// Publishes for a writer what it has committed and holds back for its batch. True if there was something. For a reader that has nothing else
/// to do: each look takes the line from the writer, who stores to it once per record.
pub(super) fn publish_committed<L: Lane>(lane: &L, capacity: u32) -> bool {
    let word = lane.tail().load(Ordering::Acquire);
    // C3: what lies before it is whole. Pairs with the Release at P0.
    let committed = lane.committed().load(Ordering::Acquire);
    if unpublished(word, committed, capacity) == 0 {
        return false;
    }
    failpoint::hit("committed.seen");
    // P1, in the writer's place. The writer publishes nothing less later on, because it came to P0 before; what it published meanwhile stays.
    let published = lane.tail().compare_exchange(word, committed & !u64::from(ALIGN - 1), Ordering::Release).is_ok();
    failpoint::hit("committed.published");
    published
}

/// Bytes that a writer has committed and not published, by its words `tail` and `committed`.
#[inline]
pub(super) fn unpublished(tail: u64, committed: u64, capacity: u32) -> u32 {
    let bytes = (committed as u32 & !(ALIGN - 1)).wrapping_sub(tail as u32);
    // A word that is older than `tail`, by a batch at most, is nearly a turn of 2^32 away from it.
    if committed & u64::from(COMMITTED) == 0 || bytes > capacity { 0 } else { bytes }
}

/// Where a handle stands in a lane: its private words, for a face that writes or reads the lane itself (JavaScript does).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Behind the last record that was committed, or let go of.
    pub at: u32,
    /// Records before `at`.
    pub count: u32,
    /// What the lane's own word holds: `tail` for a producer, `head` for a consumer.
    pub published: u32,
    /// The other side's word when it was last looked at.
    pub peer: u32,
    /// Consumer: bytes from `at` on that a dead one has looked at.
    pub again: u32,
    /// Consumer of a ring that overwrites: the half-turn of a position not before `at`'s last one that was known to be in the lane.
    pub high: u32,
}

impl Cursor {
    /// The positions in the order that they must have, from the lane's begin to its end.
    fn check(&self, positions: [u32; 3], capacity: u32) -> Result<(), Damage> {
        let [low, middle, high] = positions;
        let known = distance(low, high, capacity, "cursor does not fit the lane")?;
        distance(low, middle, known, "cursor does not fit the lane")?;
        if self.at.is_multiple_of(ALIGN) { Ok(()) } else { damage("position is not aligned", self.at, ALIGN) }
    }
}

/// The writer's private side.
#[derive(Debug)]
pub(crate) struct Writer {
    capacity: u32,
    /// Behind the last committed record.
    tail: Mark,
    /// What `tail` of the lane holds.
    published: u32,
    /// What `head` of the lane held when it was last looked at.
    head: u32,
    /// The 64-bit position `tail`, shifted right by 31.
    high: u32,
    /// Padding and payload room of the claim that is being written.
    claim: Option<(u32, u32)>,
}

impl Writer {
    /// Goes on where the lane's last writer published. What that one committed in a batch is published first: a reader may be doing it just now.
    pub(crate) fn resume<L: Lane>(lane: &L, capacity: u32) -> Result<Writer, Damage> {
        publish_committed(lane, capacity);
        lane.committed().store(0, Ordering::Relaxed);
        let tail = aligned(Mark::load(lane.tail(), Ordering::Acquire))?;
        let head = Mark::load(lane.head(), Ordering::Acquire).at;
        distance(head, tail.at, capacity, "positions of a lane contradict each other")?;
        // A predecessor that died in a commit may have counted a half-turn that its tail did not come to.
        let high = half_turn(lane.high().load(Ordering::Relaxed), tail.at);
        lane.high().store(high, Ordering::Relaxed);
        Ok(Writer { capacity, tail, published: tail.at, head, high, claim: None })
    }

    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { at: self.tail.at, count: self.tail.count, published: self.published, peer: self.head, again: 0, high: 0 }
    }

    /// Goes on where a face stands that has written the lane itself.
    pub(crate) fn set_cursor<L: Lane>(&mut self, lane: &L, to: Cursor) -> Result<(), Damage> {
        to.check([to.peer, to.published, to.at], self.capacity)?;
        let high = lane.high().load(Ordering::Relaxed);
        let tail = Mark { at: to.at, count: to.count };
        *self = Writer { capacity: self.capacity, tail, published: to.published, head: to.peer, high, claim: None };
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn max_len(&self) -> u32 {
        max_record(self.capacity)
    }

    /// Bytes that a claim of `len` needs behind what is committed, padding included.
    #[inline(always)]
    pub(crate) fn needs(&self, len: u32) -> u32 {
        let (extent, room) = (record_extent(len), self.capacity - (self.tail.at & (self.capacity - 1)));
        if extent > room { room + extent } else { extent }
    }

    /// Behind the last committed record, which is the last published one after [`publish`](Self::publish).
    pub(crate) fn tail(&self) -> Mark {
        self.tail
    }

    /// Makes a whole record of `len` bytes, whose payload `fill` writes at the offset that it gets, where nothing stands against it: the length is
    /// one that records have, no claim is open, and there is room that is known of. False, and nothing done, otherwise.
    ///
    /// What a writer waits for is the reader's cache giving up the lines that it writes, and the processor queues its stores meanwhile. So this
    /// stores the record and where it ends, and nothing else.
    #[inline(always)]
    pub(crate) fn put<L: Lane>(&mut self, lane: &L, len: usize, fill: impl FnOnce(u32)) -> bool {
        if self.claim.is_some() || len > self.max_len() as usize {
            return false;
        }
        let (len, needed) = (len as u32, self.needs(len as u32));
        if self.capacity - self.tail.at.wrapping_sub(self.head) < needed {
            return false;
        }
        let pad = needed - record_extent(len);
        failpoint::hit("claim.made");
        fill((self.tail.at.wrapping_add(pad) & (self.capacity - 1)) + RECORD_HEADER);
        self.make(lane, pad, len);
        true
    }

    /// Room for a payload of `len` (at most [`max_len`](Self::max_len)): its offset, or `None` while the lane is full.
    #[inline]
    pub(crate) fn claim<L: Lane>(&mut self, lane: &L, len: u32) -> Result<Option<u32>, Damage> {
        debug_assert!(self.claim.is_none() && len <= self.max_len());
        let offset = self.tail.at & (self.capacity - 1);
        let needed = self.needs(len);
        if !self.has_room(lane, needed)? {
            return Ok(None);
        }
        let pad = needed - record_extent(len);
        self.claim = Some((pad, len));
        failpoint::hit("claim.made");
        let at = (offset + pad) & (self.capacity - 1);
        Ok(Some(at + RECORD_HEADER))
    }

    #[inline]
    fn has_room<L: Lane>(&mut self, lane: &L, bytes: u32) -> Result<bool, Damage> {
        if self.capacity - self.tail.at.wrapping_sub(self.head) >= bytes {
            return Ok(true);
        }
        // P2: what the reader has given back. Pairs with the Release at C2, so that its loads are over before this writes.
        let head = Mark::load(lane.head(), Ordering::Acquire).at;
        let read = distance(self.head, head, self.tail.at.wrapping_sub(self.head), "reader's position is outside what it may read")?;
        if read > self.published.wrapping_sub(self.head) {
            // It has published for itself what waited here.
            self.published = head;
        }
        self.head = head;
        Ok(self.capacity - self.tail.at.wrapping_sub(head) >= bytes)
    }

    /// Makes the claimed record whole, with the first `len` bytes of its payload. It is published by [`publish`](Self::publish).
    #[inline]
    pub(crate) fn commit<L: Lane>(&mut self, lane: &L, len: u32) {
        let (pad, claimed) = self.claim.take().expect("a record was claimed");
        debug_assert!(len <= claimed);
        self.make(lane, pad, len);
    }

    #[inline(always)]
    fn make<L: Lane>(&mut self, lane: &L, pad: u32, len: u32) {
        let mask = self.capacity - 1;
        if pad > 0 {
            lane.set_record(self.tail.at & mask, record_word(RECORD_PAD, pad - RECORD_HEADER));
            failpoint::hit("commit.padded");
        }
        lane.set_record(self.tail.at.wrapping_add(pad) & mask, record_word(RECORD_DATA, len));
        let from = self.tail.at;
        self.tail.advance(pad + record_extent(len), 1);
        if (self.tail.at ^ from) >> 31 != 0 {
            self.high = self.high.wrapping_add(1);
            lane.high().store(self.high, Ordering::Relaxed);
        }
        failpoint::hit("commit.written");
    }

    /// Says how far it has committed, for a reader that finds nothing and for a successor, until [`hide`](Self::hide). From the first
    /// call on every commit calls it: a word that is more than a batch old could be taken for a new one.
    #[inline(always)]
    pub(crate) fn show<L: Lane>(&self, lane: &L) {
        // P0: everything before it is whole. Pairs with the Acquire at C3.
        let Mark { at, count } = self.tail;
        lane.committed().store(u64::from(at) | u64::from(count) << 32 | u64::from(COMMITTED), Ordering::Release);
        failpoint::hit("committed.shown");
    }

    /// What was committed is published, and what will be is published at once.
    pub(crate) fn hide<L: Lane>(&self, lane: &L) {
        debug_assert!(self.unpublished() == 0);
        lane.committed().store(0, Ordering::Release);
    }

    /// Gives the claim up. The lane does not know that there was one.
    #[inline]
    pub(crate) fn abort(&mut self) {
        self.claim = None;
    }

    /// Room of the claim that is being written.
    pub(crate) fn claimed(&self) -> Option<u32> {
        self.claim.map(|(_, len)| len)
    }

    /// Committed and not published.
    #[inline]
    pub(crate) fn unpublished(&self) -> u32 {
        self.tail.at.wrapping_sub(self.published)
    }

    /// Publishes what is committed; false when there is nothing.
    #[inline]
    pub(crate) fn publish<L: Lane>(&mut self, lane: &L) -> bool {
        if self.tail.at == self.published {
            return false;
        }
        failpoint::hit("publish.before");
        // P1: everything before `tail` is whole. Pairs with the Acquire at C1.
        self.tail.store(lane.tail(), Ordering::Release);
        self.published = self.tail.at;
        failpoint::hit("publish.after");
        // While the reader is busy with this, the next line comes back that it read a lap ago. The one that the next record begins in it may be reading.
        lane.will_write(self.tail.at.wrapping_add(LINE - 1) & (self.capacity - 1) & !(LINE - 1));
        true
    }

    /// Would [`claim`](Self::claim) find room now? For the look after a writer has said that it will sleep.
    pub(crate) fn sees_news<L: Lane>(&self, lane: &L) -> bool {
        Mark::load(lane.head(), Ordering::Relaxed).at != self.head
    }
}

/// A record that a reader may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where the payload begins.
    pub(crate) offset: u32,
    pub(crate) len: u32,
    /// A reader that died may have seen it.
    pub(crate) redelivered: bool,
}

/// The reader's private side.
#[derive(Debug)]
pub(crate) struct Reader {
    capacity: u32,
    /// The next record.
    head: Mark,
    /// What `head` of the lane holds.
    published: u32,
    /// What `tail` of the lane held when it was last looked at.
    tail: u32,
    /// Bytes from `head` on that a dead reader has looked at.
    again: u32,
}

impl Reader {
    /// Goes on where the lane's last reader gave back.
    pub(crate) fn resume<L: Lane>(lane: &L, capacity: u32) -> Result<Reader, Damage> {
        let head = aligned(Mark::load(lane.head(), Ordering::Acquire))?;
        let tail = Mark::load(lane.tail(), Ordering::Acquire).at;
        let used = distance(head.at, tail, capacity, "positions of a lane contradict each other")?;
        let again = distance(head.at, lane.seen().load(Ordering::Relaxed), used, "a reader has seen what was never published")?;
        Ok(Reader { capacity, head, published: head.at, tail, again })
    }

    /// Begins at a position that no writer overwrites.
    pub(crate) fn begin(at: Mark, capacity: u32) -> Reader {
        Reader { capacity, head: at, published: at.at, tail: at.at, again: 0 }
    }

    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { at: self.head.at, count: self.head.count, published: self.published, peer: self.tail, again: self.again, high: 0 }
    }

    /// Goes on where a face stands that has read the lane itself.
    pub(crate) fn set_cursor(&mut self, to: Cursor) -> Result<(), Damage> {
        to.check([to.published, to.at, to.peer], self.capacity)?;
        let head = Mark { at: to.at, count: to.count };
        *self = Reader { capacity: self.capacity, head, published: to.published, tail: to.peer, again: to.again };
        Ok(())
    }

    /// The oldest record, which stays where it is; `None` while the lane is empty.
    #[inline(always)]
    pub(crate) fn peek<L: Lane>(&mut self, lane: &L) -> Result<Option<Found>, Damage> {
        if self.head.at == self.tail && !self.refresh(lane)? {
            return Ok(None);
        }
        let mask = self.capacity - 1;
        // C0: one load of the record's word; it is never read again.
        let mut word = lane.record(self.head.at & mask);
        if word >> 32 == u64::from(RECORD_PAD) {
            self.skip_padding(word as u32)?;
            word = lane.record(0);
        }
        let (len, offset) = (word as u32, self.head.at & mask);
        let ready = self.tail.wrapping_sub(self.head.at).min(self.capacity - offset);
        if word >> 32 != u64::from(RECORD_DATA) {
            return damage("record is of an unknown kind", word >> 32, RECORD_DATA);
        }
        if len > max_record(self.capacity) || record_extent(len) > ready {
            return damage("record claims more than was published", len, ready.saturating_sub(RECORD_HEADER));
        }
        // From here on the record may have had effects, which the reader's successor should know. What a dead predecessor saw
        // stays seen if this reader dies as well.
        if record_extent(len) > self.again {
            lane.seen().store(self.head.at.wrapping_add(record_extent(len)), Ordering::Relaxed);
        }
        failpoint::hit("pop.shown");
        Ok(Some(Found { offset: offset + RECORD_HEADER, len, redelivered: self.again > 0 }))
    }

    #[cold]
    fn skip_padding(&mut self, len: u32) -> Result<(), Damage> {
        let room = self.capacity - (self.head.at & (self.capacity - 1));
        // A padding record fills the lane up to its end and was published together with its successor.
        if len != room - RECORD_HEADER || room == self.capacity || room >= self.tail.wrapping_sub(self.head.at) {
            return damage("bad padding record", len, room - RECORD_HEADER);
        }
        self.advance(room, 0);
        Ok(())
    }

    fn refresh<L: Lane>(&mut self, lane: &L) -> Result<bool, Damage> {
        // C1: what the writer has published. Pairs with the Release at P1.
        let tail = Mark::load(lane.tail(), Ordering::Acquire).at;
        distance(self.head.at, tail, self.capacity, "writer's position is outside the lane")?;
        self.tail = tail;
        Ok(tail != self.head.at)
    }

    #[inline(always)]
    fn advance(&mut self, bytes: u32, records: u32) {
        self.head.advance(bytes, records);
        self.again = self.again.saturating_sub(bytes);
    }

    /// Lets go of the record that [`peek`](Self::peek) showed, whose payload has `len` bytes.
    #[inline]
    pub(crate) fn release(&mut self, len: u32) {
        self.advance(record_extent(len), 1);
        failpoint::hit("pop.released");
    }

    /// Nothing was published behind what was let go of, as far as this reader has looked.
    #[inline]
    pub(crate) fn has_read_all(&self) -> bool {
        self.head.at == self.tail
    }

    /// Let go and not given back.
    #[inline]
    pub(crate) fn unpublished(&self) -> u32 {
        self.head.at.wrapping_sub(self.published)
    }

    /// Gives back what was let go; false when there is nothing.
    #[inline]
    pub(crate) fn publish<L: Lane>(&mut self, lane: &L) -> bool {
        if self.head.at == self.published {
            return false;
        }
        failpoint::hit("head.before");
        // C2: nothing before `head` is read any more. Pairs with the Acquire at P2.
        self.head.store(lane.head(), Ordering::Release);
        self.published = self.head.at;
        failpoint::hit("head.after");
        true
    }

    /// Ends in peace, with everything given back: a successor has nothing to expect twice but what a dead predecessor saw and this
    /// reader did not come to.
    pub(crate) fn leave<L: Lane>(&self, lane: &L) {
        lane.seen().store(self.published.wrapping_add(self.again), Ordering::Relaxed);
    }

    /// Would [`peek`](Self::peek) find something now? For the look after a reader has said that it will sleep.
    pub(crate) fn sees_news<L: Lane>(&self, lane: &L) -> bool {
        Mark::load(lane.tail(), Ordering::Relaxed).at != self.head.at
    }
}
