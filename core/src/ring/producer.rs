//! The handle that pushes.

use super::Shared;
use super::broadcast::{self, Overwritten};
use super::mpmc::{Pusher, Slots};
use super::raw::{MappedLane, MappedSlots};
use super::seat::{Role, Seat};
use super::spsc::{Cursor, Damage, Lane, Mark, Writer};
use super::wait::{IN_VAIN, PAUSES_IN_FULL, Sleeper};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::Ordering;
use crate::wire::ring::{CLOSED, Kind, OnFull, SEAT_LIVE, record_extent, ring_word, seat_word};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A producer with `batch` publishes by itself when this many bytes wait.
pub const BATCH_BYTES: u32 = 4096;
/// The seat of the one consumer, in `spsc` and `mpsc`.
pub const CONSUMER_SEAT: usize = 0;

/// How a producer publishes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProducerOptions {
    /// Committed records become visible together: by [`Producer::flush`], after 4 KiB of them, when there is no room, and as soon as
    /// the consumer has nothing else to do (it sleeps, or has found nothing for 20 ms). Without it each record is published when it is
    /// committed. In `mpmc` a committed record is visible to who looks, whether or not there is a `batch`.
    pub batch: bool,
    /// What [`Producer::push`] does when there is no room; `None` for what the ring's maker chose.
    pub on_full: Option<OnFull>,
}

/// Where a producer's records go.
#[derive(Debug)]
enum Output {
    Lane(Writer, MappedLane),
    /// The slots of an `mpmc` ring, and bytes that were committed since anybody was last told.
    Slots(Pusher, MappedSlots, u32),
}

/// Pushes records. One thread at a time; may move between threads.
#[derive(Debug)]
pub struct Producer {
    output: Output,
    kind: Kind,
    /// The living readers of a broadcast ring, as of this value of `members`.
    readers: (Option<u32>, Vec<usize>),
    /// Commits wait for more.
    batch: bool,
    /// Was opened with `batch`: who waits must be able to end the wait.
    shows: bool,
    on_full: OnFull,
    sleeper: Sleeper,
    shared: Arc<Shared>,
    seat: Seat,
}

impl Producer {
    pub(super) fn new(shared: &Arc<Shared>, options: ProducerOptions) -> Result<Producer> {
        let header = shared.map.header();
        let on_full = options.on_full.unwrap_or(header.on_full);
        // The readers of a ring that may be overwritten copy and check, and tell the writer nothing; others do neither.
        if (on_full == OnFull::Overwrite) != (header.on_full == OnFull::Overwrite) {
            return Err(Error::invalid("whether a ring is overwritten is decided when it is made")
                .with("on_full", on_full.as_str())
                .with("ring", header.on_full.as_str()));
        }
        let seats = header.seats as usize;
        let (own, peers, needs_peer) = match header.kind {
            Kind::Spsc | Kind::Mpsc => (1..seats, CONSUMER_SEAT..CONSUMER_SEAT + 1, true),
            Kind::Broadcast => (0..1, 1..seats, false),
            Kind::Mpmc => (0..seats, 0..seats, false),
        };
        let seat = Seat::take(shared, own, Role::Producer)?;
        if header.kind == Kind::Broadcast && on_full != OnFull::Overwrite {
            let word = |at| shared.map.seat_position(seat.number(), at);
            let published = Mark::load(word(seat_word::TAIL), Ordering::Acquire);
            broadcast::settle_gate(word(seat_word::HEAD), word(seat_word::SEEN), published, header.capacity)
                .map_err(|d| shared.poison(d))?;
        }
        let output = match &shared.slots {
            Some(slots) => Output::Slots(Pusher::new(slots, seat.number()), slots.clone(), 0),
            None => {
                let lane = MappedLane::new(&shared.map, seat.number().saturating_sub(1), seat.number(), seat.number());
                Output::Lane(Writer::resume(&lane, header.capacity).map_err(|d| shared.poison(d))?, lane)
            }
        };
        let sleeper = Sleeper::new(Arc::clone(shared), seat.number(), Role::Producer, peers, needs_peer);
        seat.enter();
        Ok(Producer {
            output,
            kind: header.kind,
            readers: (None, Vec::new()),
            batch: options.batch,
            shows: options.batch,
            on_full,
            sleeper,
            shared: Arc::clone(shared),
            seat,
        })
    }

    /// The number of this producer's seat, which is where its words lie (`wire::ring`).
    #[must_use]
    pub fn seat(&self) -> usize {
        self.seat.number()
    }

    /// The longest record.
    #[must_use]
    pub fn max_record_len(&self) -> usize {
        self.shared.map.header().max_record() as usize
    }

    /// Spins; true when there may be room.
    fn spin(&mut self) -> bool {
        // The sleeper is apart while the others are looked at.
        let Some(mut spin) = self.sleeper.take_spin() else { return false };
        let came = spin.wait(PAUSES_IN_FULL, || self.sees_news());
        self.sleeper.put_spin(spin);
        came
    }

    /// What [`push`](Self::push) does when there is no room.
    #[must_use]
    pub fn on_full(&self) -> OnFull {
        self.on_full
    }

    /// Committed records wait to be published together ([`ProducerOptions::batch`]).
    #[must_use]
    pub fn is_batch(&self) -> bool {
        self.batch
    }

    /// Changes that, for a run of records: who was not opened with `batch` and does not turn it off again holds them back for good. Turned off, it
    /// publishes what waits.
    ///
    /// # Errors
    /// `Closed` as of [`flush`](Self::flush), `Forked`.
    pub fn set_batch(&mut self, batch: bool) -> Result<()> {
        self.batch = batch;
        if batch {
            return Ok(());
        }
        let flushed = self.flush();
        if let (Output::Lane(writer, lane), true, false) = (&self.output, self.shows, self.shared.is_forked()) {
            writer.hide(lane);
        }
        flushed
    }

    #[inline]
    fn check(&self) -> Result<()> {
        if self.shared.check()? & CLOSED != 0 {
            return Err(Error::new(ErrorKind::Closed, "ring was closed"));
        }
        Ok(())
    }

    #[cold]
    fn refuse_len(&self, len: usize) -> Error {
        let refused = Error::new(
            ErrorKind::TooLarge,
            match self.output {
                Output::Lane(..) => "record does not fit the ring",
                Output::Slots(..) => "record does not fit a slot; a buffer's transfer token does",
            },
        );
        let refused = refused.with("record_len", len).with("max_record_len", self.max_record_len());
        if self.kind == Kind::Mpmc { refused.with("slot_size", self.shared.map.header().slot_len) } else { refused }
    }

    /// Bytes of the open claim.
    fn claimed(&self) -> Option<u32> {
        match &self.output {
            Output::Lane(writer, _) => writer.claimed(),
            Output::Slots(pusher, ..) => pusher.claimed(),
        }
    }

    /// Claims room, if there is some.
    #[inline]
    fn room(&mut self, len: u32) -> Result<Option<NonNull<u8>>> {
        let claimed = match &mut self.output {
            Output::Lane(writer, lane) => writer.claim(lane, len).map(|offset| offset.map(|offset| lane.payload(offset, len))),
            Output::Slots(pusher, slots, _) => pusher.claim(slots, len).map(|slot| {
                slot.map(|slot| {
                    // One waker rings one sleeper; whoever finds room hands the ring on.
                    self.shared.hand_on(slots, Role::Producer);
                    slots.payload(slot)
                })
            }),
        };
        let claimed = claimed.map_err(|d| self.shared.poison(d))?;
        if claimed.is_none() && self.claimed().is_some() {
            // The ring was closed before the claim was made.
            self.abort_claim();
            self.check()?;
        }
        Ok(claimed)
    }

    /// Room for a payload of `len`: its first byte, or `None` while the ring is full.
    fn place(&mut self, len: usize) -> Result<Option<NonNull<u8>>> {
        self.check()?;
        if self.claimed().is_some() {
            return Err(Error::new(ErrorKind::InUse, "a claim is neither committed nor aborted"));
        }
        if len > self.max_record_len() {
            return Err(self.refuse_len(len));
        }
        let len = len as u32;
        match self.room(len)? {
            Some(ptr) => Ok(Some(ptr)),
            None => self.place_in_full(len),
        }
    }

    #[cold]
    fn place_in_full(&mut self, len: u32) -> Result<Option<NonNull<u8>>> {
        // Idle: what waits in the batch may be what the consumer waits for.
        self.flush()?;
        if self.kind == Kind::Broadcast {
            self.make_room(len).map_err(|d| self.shared.poison(d))?;
            if let Some(ptr) = self.room(len)? {
                return Ok(Some(ptr));
            }
        }
        if self.sleeper.is_polled() {
            self.sleeper.arm_polled()?;
        } else {
            self.sleeper.look_if_due()?;
        }
        let dead = self.sleeper.peer_is_dead();
        if self.kind == Kind::Broadcast {
            self.make_room(len).map_err(|d| self.shared.poison(d))?;
        }
        if let Some(ptr) = self.room(len)? {
            if self.sleeper.is_polled() {
                self.sleeper.ring_own();
            }
            return Ok(Some(ptr));
        }
        if dead {
            return Err(Error::new(ErrorKind::PeerDied, "consumer died and the ring is full")
                .with("pid", self.shared.map.seat_word(CONSUMER_SEAT, seat_word::PID).load(Ordering::Relaxed)));
        }
        Ok(None)
    }

    /// The cursors of a broadcast ring's living readers.
    fn cursors(&self) -> impl Iterator<Item = Mark> {
        self.living_readers().map(|seat| Mark::load(self.shared.map.seat_position(seat, seat_word::HEAD), Ordering::Acquire))
    }

    /// Moves the gate of a broadcast ring. Everything committed is published.
    fn make_room(&mut self, len: u32) -> Result<(), Damage> {
        let Output::Lane(writer, lane) = &self.output else { return Ok(()) };
        let (published, capacity) = (writer.tail(), self.shared.map.header().capacity);
        if self.on_full == OnFull::Overwrite {
            return broadcast::overwrite(lane, published, capacity, writer.needs(len));
        }
        let settled = self.shared.map.seat_position(self.seat.number(), seat_word::SEEN);
        broadcast::move_gate(lane.gate(), settled, published, capacity, || self.cursors()).map(|_| ())
    }

    /// A consumer has read on, or come, or gone: a full ring may have room.
    fn sees_news(&self) -> bool {
        match &self.output {
            // The gate stands where the oldest living reader stood.
            Output::Lane(_, lane) if self.kind == Kind::Broadcast => {
                let gate = Mark::load(lane.head(), Ordering::Relaxed).at;
                self.cursors().all(|cursor| cursor.at != gate)
            }
            Output::Lane(writer, lane) => writer.sees_news(lane),
            Output::Slots(pusher, slots, _) => pusher.sees_news(slots),
        }
    }

    /// As [`place`](Self::place), and waits for room.
    fn wait_place(&mut self, len: usize, timeout: Option<Duration>) -> Result<NonNull<u8>> {
        let placed = self.wait_place_or_give_up(len, timeout);
        if let (Err(_), Output::Slots(_, slots, _)) = (&placed, &self.output) {
            // It may have been woken for room that another one can use.
            self.shared.hand_on(slots, Role::Producer);
        }
        placed
    }

    fn wait_place_or_give_up(&mut self, len: usize, timeout: Option<Duration>) -> Result<NonNull<u8>> {
        let (mut until, mut in_vain) = (None, 0);
        loop {
            if let Some(ptr) = self.place(len)? {
                return Ok(ptr);
            }
            if self.on_full == OnFull::Reject {
                return Err(Error::new(ErrorKind::Full, "ring is full")
                    .with("record_len", len)
                    .with("capacity", self.shared.map.header().capacity));
            }
            if self.spin() && in_vain < IN_VAIN {
                in_vain += 1;
                continue;
            }
            let left = remaining(&mut until, timeout, "no room in the ring")?;
            let slept = self.sleeper.arm().and_then(|()| {
                // W2 of the wake protocol.
                let sleeps = !self.sees_news() && self.shared.state() == 0 && !self.sleeper.peer_is_dead();
                if sleeps { self.sleeper.sleep(left) } else { Ok(()) }
            });
            self.sleeper.disarm();
            slept?;
        }
    }

    #[inline]
    fn wake_readers(&mut self) {
        if let Output::Slots(_, slots, _) = &self.output {
            return self.shared.wake_some(slots, Role::Consumer);
        }
        if self.kind != Kind::Broadcast {
            return self.shared.wake(CONSUMER_SEAT);
        }
        self.shared.order_look();
        // After that: a reader that came and sleeps already is in the list, or has seen what was published.
        let members = self.shared.map.ring_word(ring_word::MEMBERS).load(Ordering::Relaxed);
        if self.readers.0 != Some(members) {
            self.readers = (Some(members), self.living_readers().collect());
        }
        self.readers.1.iter().for_each(|seat| self.shared.wake_if_asleep(*seat));
    }

    fn living_readers(&self) -> impl Iterator<Item = usize> {
        let map = &self.shared.map;
        // Acquire: pairs with `Seat::enter`, so that a living reader has its cursor.
        (1..map.header().seats as usize).filter(|s| map.seat_word(*s, seat_word::STATUS).load(Ordering::Acquire) & 3 == SEAT_LIVE)
    }

    /// A sleeping consumer gains nothing from waiting for more. After [`hold_back`](Self::hold_back), either this sees that it sleeps, or it
    /// finds by itself what was committed.
    #[inline]
    fn reader_sleeps(&self) -> bool {
        match &self.output {
            Output::Slots(_, slots, _) => slots.sleepers(Role::Consumer).load(Ordering::Relaxed) != 0,
            // Who has come meanwhile may sleep already.
            Output::Lane(..) if self.kind == Kind::Broadcast => {
                self.readers.0 != Some(self.shared.map.ring_word(ring_word::MEMBERS).load(Ordering::Relaxed))
                    || self.readers.1.iter().any(|seat| self.shared.sleeps(*seat))
            }
            Output::Lane(_, lane) => lane.consumer_sleeps(),
        }
    }

    fn finish(&mut self, len: u32) -> Result<()> {
        let waiting = match &mut self.output {
            Output::Lane(writer, lane) => {
                writer.commit(lane, len);
                writer.unpublished()
            }
            Output::Slots(pusher, slots, untold) => {
                pusher.commit(slots, len);
                *untold += record_extent(len);
                *untold
            }
        };
        self.flush_if_due(waiting)
    }

    /// Before the look at who sleeps: P0.
    #[inline(always)]
    fn hold_back(&self) {
        if !self.shows {
            return;
        }
        if let Output::Lane(writer, lane) = &self.output {
            writer.show(lane);
        }
        self.shared.order_look();
    }

    /// Tells of what was committed, unless it may wait for more.
    #[inline(always)]
    fn flush_if_due(&mut self, waiting: u32) -> Result<()> {
        if self.batch {
            self.hold_back();
            if waiting < BATCH_BYTES && !self.reader_sleeps() {
                return Ok(());
            }
        }
        self.flush()
    }

    /// Pushes a copy of `record` where nothing stands against it, in a ring with which all is well: into a slot that is free, or a lane with
    /// room that is known of. `None`, and nothing done, otherwise.
    #[inline(always)]
    fn put(&mut self, record: &[u8]) -> Option<Result<()>> {
        if !self.shared.is_well() {
            return None;
        }
        let len = record.len();
        match &mut self.output {
            Output::Lane(writer, lane) => {
                let fill = |offset| {
                    // SAFETY: the writer gave room for `len` bytes, which only this handle writes and which no reference points to.
                    unsafe { ptr::copy_nonoverlapping(record.as_ptr(), lane.payload(offset, len as u32).as_ptr(), len) };
                };
                if !writer.put(&*lane, len, fill) {
                    return None;
                }
                let waiting = writer.unpublished();
                Some(self.flush_if_due(waiting))
            }
            Output::Slots(pusher, slots, untold) => {
                if pusher.claimed().is_some() || len > slots.max_len() as usize {
                    return None;
                }
                let here = slots.borrowed();
                let fill = |slot| {
                    // SAFETY: the slot is longer than `len`, and this handle's until it is a record; no reference points to it.
                    unsafe { ptr::copy_nonoverlapping(record.as_ptr(), here.payload(slot).as_ptr(), len) };
                };
                if !pusher.put(&here, len as u32, fill) {
                    // Claimed, if the ring was closed meanwhile; which is told next.
                    self.abort_claim();
                    return None;
                }
                // One waker rings one sleeper; whoever finds room hands the ring on.
                self.shared.hand_on(slots, Role::Producer);
                *untold += record_extent(len as u32);
                let waiting = *untold;
                Some(self.flush_if_due(waiting))
            }
        }
    }

    /// Pushes a copy of `record`; false while the ring is full.
    ///
    /// # Errors
    /// `TooLarge`, `Closed`, `PeerDied` when the ring is full and its consumer dead, `Corrupt`, `Forked`.
    #[inline]
    pub fn try_push(&mut self, record: &[u8]) -> Result<bool> {
        match self.put(record) {
            Some(done) => done.map(|()| true),
            None => self.try_push_slowly(record),
        }
    }

    #[inline(never)]
    fn try_push_slowly(&mut self, record: &[u8]) -> Result<bool> {
        match self.place(record.len())? {
            Some(ptr) => self.fill(ptr, record).map(|()| true),
            None => Ok(false),
        }
    }

    /// Pushes a copy of `record`; waits for room at most `timeout` (`None`: without end), unless the policy is
    /// [`OnFull::Reject`].
    ///
    /// # Errors
    /// `Timeout`, `Full`, and those of [`try_push`](Self::try_push).
    #[inline]
    pub fn push(&mut self, record: &[u8], timeout: Option<Duration>) -> Result<()> {
        match self.put(record) {
            Some(done) => done,
            None => self.push_slowly(record, timeout),
        }
    }

    #[inline(never)]
    fn push_slowly(&mut self, record: &[u8], timeout: Option<Duration>) -> Result<()> {
        let ptr = self.wait_place(record.len(), timeout)?;
        self.fill(ptr, record)
    }

    fn fill(&mut self, ptr: NonNull<u8>, record: &[u8]) -> Result<()> {
        // SAFETY: `place` gave room for `record.len()` bytes, which only this handle writes and which no reference points to.
        unsafe { ptr::copy_nonoverlapping(record.as_ptr(), ptr.as_ptr(), record.len()) };
        self.finish(record.len() as u32)
    }

    /// Room for a record to be written in place; `None` while the ring is full.
    ///
    /// # Errors
    /// Those of [`try_push`](Self::try_push).
    pub fn try_claim(&mut self, len: usize) -> Result<Option<ClaimMut<'_>>> {
        Ok(self.place(len)?.map(|ptr| ClaimMut { producer: self, ptr, len }))
    }

    /// As [`try_claim`](Self::try_claim), and waits for room like [`push`](Self::push).
    ///
    /// # Errors
    /// Those of [`push`](Self::push).
    pub fn claim(&mut self, len: usize, timeout: Option<Duration>) -> Result<ClaimMut<'_>> {
        let ptr = self.wait_place(len, timeout)?;
        Ok(ClaimMut { producer: self, ptr, len })
    }

    /// Would a push of `len` bytes find room now? If not, an fd that is polled has been armed.
    ///
    /// # Errors
    /// Those of [`try_push`](Self::try_push); `InUse` while a claim is open.
    pub fn has_room(&mut self, len: usize) -> Result<bool> {
        if let Output::Slots(pusher, slots, _) = &self.output
            && pusher.claimed().is_none()
            && len <= self.max_record_len()
            && Pusher::has_room(slots)
        {
            return self.check().map(|()| true);
        }
        let room = self.place(len)?.is_some();
        self.abort_claim();
        Ok(room)
    }

    /// [`try_claim`](Self::try_claim) for a caller that cannot hold a borrow: the room stays claimed until
    /// [`commit_claim`](Self::commit_claim) or [`abort_claim`](Self::abort_claim).
    ///
    /// # Errors
    /// Those of [`try_push`](Self::try_push); `InUse` while a claim is open.
    pub fn try_claim_ptr(&mut self, len: usize) -> Result<Option<NonNull<u8>>> {
        self.place(len)
    }

    /// [`claim`](Self::claim) for a caller that cannot hold a borrow.
    ///
    /// # Errors
    /// Those of [`push`](Self::push); `InUse` while a claim is open.
    pub fn claim_ptr(&mut self, len: usize, timeout: Option<Duration>) -> Result<NonNull<u8>> {
        self.wait_place(len, timeout)
    }

    /// Commits the open claim with the first `len` bytes of its room.
    ///
    /// # Errors
    /// `Invalid` without a claim or when `len` is more than was claimed; the claim then stays open. `Closed` as of [`flush`](Self::flush).
    /// `Forked`.
    pub fn commit_claim(&mut self, len: usize) -> Result<()> {
        if self.shared.is_forked() {
            self.shared.refuse()?;
        }
        match self.claimed() {
            Some(room) if len <= room as usize => self.finish(len as u32),
            Some(room) => Err(Error::invalid("commit is longer than its claim").with("len", len).with("claimed", room)),
            None => Err(Error::invalid("nothing is claimed")),
        }
    }

    /// Gives the open claim up, if there is one.
    pub fn abort_claim(&mut self) {
        match &mut self.output {
            Output::Lane(writer, _) => writer.abort(),
            // The slot cannot be used before its turn comes again: whoever waits for this position is told, and whoever waits for room that
            // was behind it.
            Output::Slots(pusher, slots, _) => {
                if !self.shared.is_forked() && pusher.abort(slots) {
                    self.shared.wake_some(slots, Role::Consumer);
                    self.shared.wake_some(slots, Role::Producer);
                }
            }
        }
    }

    /// Publishes what was committed, and wakes the consumer if it sleeps.
    ///
    /// # Errors
    /// `Closed` when the ring was closed meanwhile: a consumer that is still draining gets the records, one that has ended does not.
    /// `Forked`.
    pub fn flush(&mut self) -> Result<()> {
        if self.shared.is_forked() {
            self.shared.refuse()?;
        }
        let published = match &mut self.output {
            Output::Lane(writer, lane) => writer.publish(lane),
            Output::Slots(_, _, untold) => std::mem::take(untold) > 0,
        };
        if published {
            if self.kind == Kind::Mpsc {
                // A hint: the consumer looks at every lane before it sleeps.
                let bit = 1 << (self.seat.number() - 1);
                if self.shared.map.ready().load(Ordering::Relaxed) & bit == 0 {
                    self.shared.map.ready().fetch_or(bit, Ordering::Relaxed);
                }
            }
            self.wake_readers();
            self.check_end()?;
        }
        Ok(())
    }

    /// After publishing, and the look of the wake: a consumer that was told the end of the ring before may not have seen it. One that is
    /// told from here on looks once more, behind a fence everywhere. In `mpmc` a claim looks at this, and the end waits for what is claimed.
    #[inline]
    fn check_end(&self) -> Result<()> {
        if let Output::Lane(writer, lane) = &self.output
            && self.shared.state() & CLOSED != 0
            && Mark::load(lane.head(), Ordering::Acquire).at != writer.tail().at
        {
            return Err(Error::new(
                ErrorKind::Closed,
                "ring was closed before the record was published; its consumer may have ended without it",
            ));
        }
        Ok(())
    }

    /// Where this handle stands, for a face that writes the lane itself through [`RingBuffer::mapping`](super::RingBuffer::mapping);
    /// `None` where there are slots.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        if let Output::Lane(writer, _) = &self.output { Some(writer.cursor()) } else { None }
    }

    /// Goes on where such a face stands. It has given its claim up.
    ///
    /// # Errors
    /// `Corrupt` when the positions cannot be, `Unsupported` where there is no cursor.
    pub fn set_cursor(&mut self, to: Cursor) -> Result<()> {
        match &mut self.output {
            Output::Lane(writer, lane) => Ok(writer.set_cursor(lane, to)?),
            Output::Slots(..) => Err(Error::new(ErrorKind::Unsupported, "producer has no single place in the ring")),
        }
    }

    /// Wakes the consumers that sleep: for such a face, after it has published.
    pub fn wake(&mut self) {
        self.wake_readers();
    }

    /// An fd that is readable when a full ring may have room again, for an event loop. From the first call on a `try_` call
    /// that finds the ring full has armed it.
    ///
    /// # Errors
    /// `Os` with `EMFILE`, `Forked`.
    pub fn fd(&mut self) -> Result<BorrowedFd<'_>> {
        self.shared.check()?;
        self.sleeper.fd()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Committed is promised to be seen. In a forked child this does nothing.
        let _ = self.set_batch(false);
        self.abort_claim();
        if !self.shared.is_forked() {
            self.sleeper.disarm();
        }
    }
}

/// What is left of `timeout`, counted from the first call. `Timeout` when nothing is.
pub(super) fn remaining(until: &mut Option<Instant>, timeout: Option<Duration>, what: &'static str) -> Result<Option<Duration>> {
    let Some(timeout) = timeout else { return Ok(None) };
    let now = Instant::now();
    let end = match until {
        Some(end) => *end,
        // Too far away for the clock is without end.
        None => match now.checked_add(timeout) {
            Some(end) => *until.insert(end),
            None => return Ok(None),
        },
    };
    let left = end.saturating_duration_since(now);
    if left.is_zero() {
        return Err(Error::new(ErrorKind::Timeout, what).with("timeout_ms", timeout.as_millis()));
    }
    Ok(Some(left))
}

/// Room for one record, to be written in place. Dropping it gives the room back: no record was made.
#[derive(Debug)]
pub struct ClaimMut<'a> {
    producer: &'a mut Producer,
    ptr: NonNull<u8>,
    len: usize,
}

impl ClaimMut<'_> {
    /// Bytes of the room.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte; [`len`](Self::len) bytes may be written until the claim is committed. What is there is old bytes of the ring.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Copies `src` to `offset`; false, and nothing written, when it does not fit.
    #[must_use]
    pub fn write_at(&mut self, offset: usize, src: &[u8]) -> bool {
        if offset.checked_add(src.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: inside the claimed room, checked above; only this handle writes it and no reference points to it.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), self.ptr.as_ptr().add(offset), src.len()) };
        true
    }

    /// Makes the room a record.
    ///
    /// # Errors
    /// `Forked`.
    pub fn commit(self) -> Result<()> {
        let len = self.len;
        self.commit_len(len)
    }

    /// Makes the first `len` bytes of the room a record.
    ///
    /// # Errors
    /// `Invalid` when `len` is more than was claimed, `Forked`; there is no record then.
    pub fn commit_len(self, len: usize) -> Result<()> {
        self.producer.commit_claim(len)
    }

    /// Makes no record. Dropping the claim does the same.
    pub fn abort(self) {}
}

impl Drop for ClaimMut<'_> {
    fn drop(&mut self) {
        // After a commit there is nothing to abort.
        self.producer.abort_claim();
    }
}
