//! A ring's region: the mapping, the private copy of its header, and pointers into memory that a peer may write.
//!
//! Nothing here is ever a reference to bytes of a record. Words are `&AtomicU32`, because that is what every participant
//! makes of them; records are [`RecordRef`] and claims, pointer and length, copied in and out.

use super::broadcast::Overwritten;
use super::mpmc::{self, Slots};
use super::order;
use super::producer::CONSUMER_SEAT;
use super::seat::Role;
use super::spsc::{Found, Lane};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::line;
use crate::sync::mapped::{AtomicU32, AtomicU64, Ordering};
use crate::sys::mem;
use crate::wire::ring::{CLOSED, FIXED_LEN, HOLDS, Header, MAGIC, SEATS_AT, SLOT_HEADER, SLOT_SEAT_LEN, ring_word, seat_word};
use memmap2::MmapRaw;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// The mapping of a ring's file.
#[derive(Debug)]
pub(crate) struct Map {
    map: MmapRaw,
    file: OwnedFd,
    header: Header,
}

impl Map {
    /// A new ring in a sealed memfd.
    pub(crate) fn create(header: Header) -> Result<Map> {
        let len = usize::try_from(header.total_len()).expect("a header's sizes are within the limits");
        let (file, map) = mem::create_sealed(c"offloop-ring", len)?;
        let map = Map { map, file, header };
        map.write_header();
        Ok(map)
    }

    /// The ring behind a memfd that another process made.
    pub(crate) fn attach(fd: BorrowedFd<'_>) -> Result<Map> {
        let (file, map, len) = mem::attach_sealed(fd)?;
        Map::checked(file, map, len)
    }

    /// A new ring in a file that has been reserved for it.
    pub(crate) fn create_in(file: OwnedFd, header: Header) -> Result<Map> {
        let len = usize::try_from(header.total_len()).expect("a header's sizes are within the limits");
        let map = mem::map(&file, len)?;
        let map = Map { map, file, header };
        map.write_header();
        Ok(map)
    }

    /// The ring in a named file.
    pub(crate) fn attach_file(file: OwnedFd) -> Result<Map> {
        let len = Map::file_len(&file)?;
        let map = mem::map(&file, len)?;
        Map::checked(file, map, len)
    }

    /// The ring in a file, to look at: nothing may be stored.
    pub(crate) fn look_at(file: OwnedFd) -> Result<Map> {
        let len = Map::file_len(&file)?;
        let map = mem::map_to_read(&file, len)?;
        Map::checked(file, map, len)
    }

    /// An empty mapping would be an error of the system that names no reason.
    fn file_len(file: &OwnedFd) -> Result<usize> {
        let len = mem::file_len(file.as_fd())?;
        if len < FIXED_LEN {
            return Err(Error::new(ErrorKind::Corrupt, "file is too short for a ring").with("file_len", len).with("min", FIXED_LEN));
        }
        Ok(len)
    }

    fn checked(file: OwnedFd, map: MmapRaw, len: usize) -> Result<Map> {
        if len < FIXED_LEN {
            return Err(Error::new(ErrorKind::Corrupt, "file is too short for a ring").with("file_len", len).with("min", FIXED_LEN));
        }
        let words = map.as_ptr().cast::<AtomicU64>();
        // SAFETY: a mapping is page-aligned and has `FIXED_LEN` bytes, checked above; peers access these words as atomics.
        let word = |i: usize| unsafe { &*words.add(i) };
        let mut bytes = [0u8; FIXED_LEN];
        // Pairs with the Release in `write_header`: where the magic is, the rest is.
        bytes[..8].copy_from_slice(&word(0).load(Ordering::Acquire).to_le_bytes());
        for (i, part) in bytes.chunks_exact_mut(8).enumerate().skip(1) {
            part.copy_from_slice(&word(i).load(Ordering::Relaxed).to_le_bytes());
        }
        let header = Header::decode(&bytes, len as u64)?;
        Ok(Map { map, file, header })
    }

    fn write_header(&self) {
        let bytes = self.header.encode();
        // SAFETY: the mapping is at least a header long, page-aligned, and nobody else has seen the file yet.
        unsafe { ptr::copy_nonoverlapping(bytes[8..].as_ptr(), self.map.as_mut_ptr().add(8), FIXED_LEN - 8) };
        // SAFETY: as above.
        let magic = unsafe { &*self.map.as_ptr().cast::<AtomicU64>() };
        magic.store(MAGIC, Ordering::Release);
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// A word of the fixed part or of a seat.
    #[inline]
    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= self.header.header_len as usize && at.is_multiple_of(4), "word is outside the header");
        // SAFETY: inside the mapping and aligned, checked above; every participant accesses these words as atomics.
        unsafe { &*self.map.as_ptr().add(at).cast() }
    }

    /// One of [`ring_word`](crate::wire::ring::ring_word). `at` is a constant, so the check costs nothing.
    #[inline(always)]
    pub(crate) fn ring_word(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= SEATS_AT && at.is_multiple_of(4), "word is outside the fixed part");
        // SAFETY: inside the mapping, which is at least a header long, and aligned, checked above; every participant uses it as an atomic.
        unsafe { &*self.map.as_ptr().add(at).cast() }
    }

    /// One of [`seat_word`] of a seat.
    #[inline]
    pub(crate) fn seat_word(&self, seat: usize, at: usize) -> &AtomicU32 {
        self.word(SEATS_AT + seat * self.header.kind.seat_len() + at)
    }

    /// One of the 64-bit words of a seat.
    #[inline]
    pub(crate) fn seat_position(&self, seat: usize, at: usize) -> &AtomicU64 {
        self.ring_position(SEATS_AT + seat * self.header.kind.seat_len() + at)
    }

    /// One of the 64-bit words of the fixed part or of a seat.
    #[inline]
    pub(crate) fn ring_position(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.header.header_len as usize && at.is_multiple_of(8), "position is outside the header");
        // SAFETY: inside the mapping and aligned, checked above; every participant accesses these words as atomics.
        unsafe { &*self.map.as_ptr().add(at).cast() }
    }

    /// Bit *i*: lane *i* of an `mpsc` ring may have something new.
    #[inline]
    pub(crate) fn ready(&self) -> &AtomicU64 {
        const { assert!(ring_word::READY + 8 <= SEATS_AT && ring_word::READY.is_multiple_of(8)) };
        // SAFETY: inside the mapping, which is at least a header long, and aligned; every participant uses it as an atomic.
        unsafe { &*self.map.as_ptr().add(ring_word::READY).cast() }
    }

    /// Offset of a lane's data in the region.
    pub(crate) fn data_at(&self, lane: usize) -> usize {
        self.header.header_len as usize + lane * self.header.capacity as usize
    }
}

/// A lane in a mapping. The words are found once, so that the hot path adds no offsets.
#[derive(Debug)]
pub(crate) struct MappedLane {
    tail: NonNull<AtomicU64>,
    committed: NonNull<AtomicU64>,
    high: NonNull<AtomicU32>,
    head: NonNull<AtomicU64>,
    seen: NonNull<AtomicU32>,
    /// `head` of the writer's own seat, which only a broadcast ring uses.
    gate: NonNull<AtomicU64>,
    /// `waiting` of the writer, and of the consumer's seat, which is the reader's where there is one reader.
    waiting: [NonNull<AtomicU32>; 2],
    data: NonNull<u8>,
    capacity: u32,
    /// Keeps what the pointers point into.
    _map: Arc<Map>,
}

// SAFETY: pointers to atomics and to memory that is only accessed through raw pointers by the lane's one writer or reader.
unsafe impl Send for MappedLane {}

impl MappedLane {
    /// The lane whose writer publishes on seat `writer`, and whose reader gives back on seat `reader`.
    pub(crate) fn new(map: &Arc<Map>, lane: usize, writer: usize, reader: usize) -> MappedLane {
        assert!(lane < map.header.lanes as usize, "the header has this lane");
        // SAFETY: a lane lies inside the mapping: header_len + lanes * capacity == file size, by `Header::decode`.
        let data = unsafe { NonNull::new_unchecked(map.base().add(map.data_at(lane))) };
        MappedLane {
            tail: NonNull::from(map.seat_position(writer, seat_word::TAIL)),
            committed: NonNull::from(map.seat_position(writer, seat_word::COMMITTED_AT)),
            high: NonNull::from(map.seat_word(writer, seat_word::HIGH)),
            head: NonNull::from(map.seat_position(reader, seat_word::HEAD)),
            seen: NonNull::from(map.seat_word(reader, seat_word::SEEN)),
            gate: NonNull::from(map.seat_position(writer, seat_word::HEAD)),
            waiting: [writer, CONSUMER_SEAT].map(|seat| NonNull::from(map.seat_word(seat, seat_word::WAITING))),
            data,
            capacity: map.header.capacity,
            _map: Arc::clone(map),
        }
    }

    /// `offset..offset + len` of the data, as [`Writer::claim`](super::spsc::Writer::claim) and
    /// [`Reader::peek`](super::spsc::Reader::peek) give them.
    #[inline(always)]
    pub(crate) fn payload(&self, offset: u32, len: u32) -> NonNull<u8> {
        debug_assert!(u64::from(offset) + u64::from(len) <= u64::from(self.capacity));
        // SAFETY: inside the lane: a claim and a found record end before the lane does.
        unsafe { self.data.add(offset as usize) }
    }

    /// The lane's writer sleeps. A look without a fence.
    #[inline(always)]
    pub(crate) fn writer_sleeps(&self) -> bool {
        // SAFETY: points into `self._map`, see `new`.
        unsafe { self.waiting[0].as_ref() }.load(Ordering::Relaxed) != 0
    }

    /// The one consumer of an `spsc` or `mpsc` ring sleeps. A look without a fence.
    #[inline(always)]
    pub(crate) fn consumer_sleeps(&self) -> bool {
        // SAFETY: points into `self._map`, see `new`.
        unsafe { self.waiting[1].as_ref() }.load(Ordering::Relaxed) != 0
    }

    #[inline(always)]
    pub(crate) fn found(&self, found: Found) -> RecordRef<'_> {
        RecordRef {
            ptr: self.payload(found.offset, found.len),
            len: found.len as usize,
            redelivered: found.redelivered,
            delivery: 0,
            _lane: PhantomData,
        }
    }

    fn record_at(&self, offset: u32) -> &AtomicU64 {
        debug_assert!(offset < self.capacity && offset.is_multiple_of(8));
        // SAFETY: inside the lane and aligned: an offset is a position modulo the capacity, a power of two, or lies behind one in a
        // record that ends before the lane does. Positions are multiples of 8: one that is taken over from a peer goes through
        // `aligned`, and whatever is read later is measured against an own one by `distance`.
        unsafe { &*self.data.as_ptr().add(offset as usize).cast() }
    }
}

impl Lane for MappedLane {
    type Position = AtomicU64;
    type Word = AtomicU32;

    #[inline(always)]
    fn tail(&self) -> &AtomicU64 {
        // SAFETY: points into `self._map`, see `new`; so do the four below.
        unsafe { self.tail.as_ref() }
    }

    #[inline(always)]
    fn committed(&self) -> &AtomicU64 {
        // SAFETY: as in `tail`.
        unsafe { self.committed.as_ref() }
    }

    #[inline(always)]
    fn high(&self) -> &AtomicU32 {
        // SAFETY: as in `tail`.
        unsafe { self.high.as_ref() }
    }

    #[inline(always)]
    fn head(&self) -> &AtomicU64 {
        // SAFETY: as in `tail`.
        unsafe { self.head.as_ref() }
    }

    #[inline(always)]
    fn seen(&self) -> &AtomicU32 {
        // SAFETY: as in `tail`.
        unsafe { self.seen.as_ref() }
    }

    #[inline(always)]
    fn record(&self, offset: u32) -> u64 {
        self.record_at(offset).load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn set_record(&self, offset: u32, word: u64) {
        self.record_at(offset).store(word, Ordering::Relaxed);
    }

    #[inline(always)]
    fn will_write(&self, offset: u32) {
        line::will_write(ptr::from_ref(self.record_at(offset)).cast());
    }
}

impl Overwritten for MappedLane {
    #[inline(always)]
    fn gate(&self) -> &AtomicU64 {
        // SAFETY: points into `self._map`, see `new`.
        unsafe { self.gate.as_ref() }
    }
}

/// The slots of an `mpmc` ring in a mapping, which `M` keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MappedSlots<M = Arc<Map>> {
    base: NonNull<u8>,
    data: NonNull<u8>,
    /// A slot is `1 << slot_shift` bytes.
    slot_shift: u32,
    shift: u32,
    seats: usize,
    /// As in [`Shared`](super::Shared).
    agreed: bool,
    /// Keeps what the pointers point into.
    map: M,
}

// SAFETY: pointers to atomics, and to payloads that are only accessed through raw pointers by whoever owns the record.
unsafe impl Send for MappedSlots {}
// SAFETY: as above.
unsafe impl Sync for MappedSlots {}

impl MappedSlots {
    /// The slots of a ring that has some.
    pub(crate) fn new(map: &Arc<Map>, agreed: bool) -> Option<MappedSlots> {
        let header = &map.header;
        (header.slot_len != 0).then(|| {
            let base = NonNull::new(map.base()).expect("a mapping is not at 0");
            // SAFETY: the data lies inside the mapping, by `Header::decode`.
            let data = unsafe { base.add(map.data_at(0)) };
            let slot_shift = header.slot_len.trailing_zeros();
            let shift = header.capacity.trailing_zeros() - slot_shift;
            MappedSlots { base, data, slot_shift, shift, seats: header.seats as usize, agreed, map: Arc::clone(map) }
        })
    }

    /// The same for one function, whose stores to shared memory do not make it read them again.
    #[inline(always)]
    pub(crate) fn borrowed(&self) -> MappedSlots<&Map> {
        let MappedSlots { base, data, slot_shift, shift, seats, agreed, ref map } = *self;
        MappedSlots { base, data, slot_shift, shift, seats, agreed, map }
    }
}

impl<M> MappedSlots<M> {
    /// A word of the fixed part or of a seat: `at` is a multiple of `T`'s size and below the header's length.
    #[inline(always)]
    fn header_word<T>(&self, at: usize) -> &T {
        // SAFETY: every caller gives an offset of `wire::ring`, whose header this mapping has; peers use the words as atomics too.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    /// One bit per seat: whoever of that role sleeps there.
    #[inline(always)]
    pub(crate) fn sleepers(&self, role: Role) -> &AtomicU64 {
        self.header_word(match role {
            Role::Producer => ring_word::PRODUCERS,
            Role::Consumer => ring_word::CONSUMERS,
        })
    }

    #[inline(always)]
    fn slot_at(&self, slot: usize) -> NonNull<u8> {
        debug_assert!(slot < 1 << self.shift);
        // SAFETY: there are `1 << shift` slots of `1 << slot_shift` bytes, and `slot` is a position's low bits.
        unsafe { self.data.add(slot << self.slot_shift) }
    }

    /// The payload's place in a slot.
    #[inline]
    pub(crate) fn payload(&self, slot: usize) -> NonNull<u8> {
        // SAFETY: a slot is longer than its header.
        unsafe { self.slot_at(slot).add(SLOT_HEADER as usize) }
    }

    #[inline(always)]
    pub(crate) fn record(&self, held: mpmc::Held, delivery: u64) -> RecordRef<'_> {
        RecordRef {
            ptr: self.payload(held.slot(self)),
            len: held.len as usize,
            redelivered: held.redelivered,
            delivery,
            _lane: PhantomData,
        }
    }
}

impl<M> Slots for MappedSlots<M> {
    type Long = AtomicU64;
    type Short = AtomicU32;

    #[inline(always)]
    fn tail(&self) -> &AtomicU64 {
        self.header_word(ring_word::SLOT_TAIL)
    }

    #[inline(always)]
    fn head(&self) -> &AtomicU64 {
        self.header_word(ring_word::SLOT_HEAD)
    }

    #[inline(always)]
    fn returned(&self) -> &AtomicU32 {
        self.header_word(ring_word::RETURNED)
    }

    fn moves(&self) -> &AtomicU32 {
        self.header_word(ring_word::MOVES)
    }

    #[inline(always)]
    fn claim(&self, seat: usize) -> &AtomicU64 {
        debug_assert!(seat < self.seats);
        self.header_word(SEATS_AT + seat * SLOT_SEAT_LEN + seat_word::CLAIM)
    }

    #[inline(always)]
    fn hold(&self, seat: usize, i: usize) -> &AtomicU64 {
        debug_assert!(seat < self.seats && i < HOLDS);
        self.header_word(SEATS_AT + seat * SLOT_SEAT_LEN + seat_word::HOLDS_AT + i * 8)
    }

    #[inline(always)]
    fn word(&self, slot: usize) -> &AtomicU64 {
        // SAFETY: a slot begins with its word, 64-aligned; peers use it as an atomic too.
        unsafe { self.slot_at(slot).cast().as_ref() }
    }

    #[inline(always)]
    fn meta(&self, slot: usize) -> u64 {
        // SAFETY: the second word of a slot, read as an atomic because a peer may write it at any time.
        unsafe { self.slot_at(slot).add(8).cast::<AtomicU64>().as_ref() }.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn set_meta(&self, slot: usize, meta: u64) {
        // SAFETY: as in `meta`.
        unsafe { self.slot_at(slot).add(8).cast::<AtomicU64>().as_ref() }.store(meta, Ordering::Relaxed);
    }

    #[inline(always)]
    fn will_write(&self, slot: usize) {
        // Its word, and where most payloads end: two lines.
        let at = self.slot_at(slot).as_ptr();
        line::will_write(at);
        line::will_write(at.wrapping_add(line::LEN));
    }

    fn seats(&self) -> usize {
        self.seats
    }

    fn holds(&self) -> usize {
        HOLDS
    }

    #[inline(always)]
    fn shift(&self) -> u32 {
        self.shift
    }

    #[inline(always)]
    fn max_len(&self) -> u32 {
        (1 << self.slot_shift) - SLOT_HEADER
    }

    #[inline(always)]
    fn is_closed(&self) -> bool {
        order(self.agreed);
        self.header_word::<AtomicU32>(ring_word::STATE).load(Ordering::Acquire) & CLOSED != 0
    }
}

/// A record's payload in memory that a peer may write at any time: pointer and length, never a slice.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    ptr: NonNull<u8>,
    len: usize,
    redelivered: bool,
    delivery: u64,
    _lane: PhantomData<&'a MappedLane>,
}

impl<'a> RecordRef<'a> {
    /// A private copy of a record, which `ptr` points to for as long as `'a`.
    pub(crate) fn copied(ptr: *const u8, len: u32) -> RecordRef<'a> {
        let ptr = NonNull::new(ptr.cast_mut()).expect("a vector's pointer is not null");
        RecordRef { ptr, len: len as usize, redelivered: false, delivery: 0, _lane: PhantomData }
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A consumer that died, or gave it back, may have seen this record.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.redelivered
    }

    /// What [`Consumer::ack`](super::Consumer::ack) wants, with [`Ack::Manual`](super::Ack::Manual); else 0.
    #[must_use]
    pub fn delivery(&self) -> u64 {
        self.delivery
    }

    /// The first byte. Valid for [`len`](Self::len) bytes until the record is released; a peer may change what is there.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// Copies as much as fits to the front of `out`; returns how many bytes.
    #[inline]
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let n = self.len.min(out.len());
        // SAFETY: `n` bytes are readable and writable, the record is never inside `out`; no reference to the source is made.
        unsafe { ptr::copy_nonoverlapping(self.ptr.as_ptr(), out.as_mut_ptr(), n) };
        n
    }

    /// Copies `offset..offset + out.len()`; false, and nothing copied, when that is not inside the record.
    #[must_use]
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> bool {
        if offset.checked_add(out.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: the range was checked above; as in `copy_to`.
        unsafe { ptr::copy_nonoverlapping(self.ptr.as_ptr().add(offset), out.as_mut_ptr(), out.len()) };
        true
    }

    /// A copy.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len);
        // SAFETY: `len` bytes are readable, `out` has room for them; no reference to the source is made.
        unsafe {
            ptr::copy_nonoverlapping(self.ptr.as_ptr(), out.as_mut_ptr(), self.len);
            out.set_len(self.len);
        }
        out
    }

    /// A copy of what lies behind the first `offset` bytes.
    pub(crate) fn tail_to_vec(&self, offset: usize) -> Vec<u8> {
        let len = self.len.saturating_sub(offset);
        let mut out = Vec::with_capacity(len);
        // SAFETY: `offset + len` bytes are readable where `len` is not 0, `out` has room for them; as in `to_vec`.
        unsafe {
            ptr::copy_nonoverlapping(self.ptr.as_ptr().add(self.len - len), out.as_mut_ptr(), len);
            out.set_len(len);
        }
        out
    }

    /// The payload as a slice, without a copy.
    ///
    /// # Safety
    /// No process writes the record while the slice lives: the producer is trusted to follow the protocol.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &'a [u8] {
        // SAFETY: `len` readable bytes; that they do not change is this function's contract.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}
