//! Layout of a ring: one region of mapped memory that processes of any language read and write.
//!
//! A region is a header, one *seat* per participant, and the data of one or more lanes. A lane is a stream of records
//! with one writer. All integers are little-endian. Positions are free-running byte counts that wrap at 2^32, so that
//! JavaScript handles them with an `Int32Array` and `>>> 0`; a position's place in its lane is `position & (capacity - 1)`.
//!
//! ```text
//!  region      0         SEATS_AT              header_len            +capacity            total_len
//!              ├─ fixed ─┼─ seat 0 ─ seat 1 ─ … ─┼── lane 0 ───────────┼─ lane 1 … ─────────┤
//!
//!  fixed       0       4       8   10  12  14  16              24              32
//!              ├───────┴───────┼───┼───┼───┼───┼───────────────┼───────────────┤
//!            0 │ magic         │maj│min│knd│nee│ layout        │ total_len     │
//!              ├───────┬───────┼───┴───┼───┴───┼───────┬───────┼───────┬───────┤
//!           32 │hdr_len│ seats │seat_ln│ cap   │ lanes │slot_ln│on_full│ pid   │
//!              ├───────┴───────┴───────┴───────┼───────┴───────┼───────┴───────┤
//!           64 │ id                            │ created_unix  │ 0             │
//!              ├───────────────────────────────┴───────────────┼───────────────┤
//!           96 │ 0                                             │ check         │
//!              ├───────┬───────┬───────────────────────────────┴───────────────┤
//!          128 │ state │members│ 0                                             │  any participant, atomics
//!          160 │unfencd│ 0                                                     │
//!          256 │ ready: one bit per lane, 2 × u32, then 0 … 512                │  mpsc
//!              └───────────────────────────────────────────────────────────────┘
//!
//!  in `mpmc`   128     132     136             144             152     156
//!              ├───────┴───────┼───────────────┼───────────────┼───────┴───────┤
//!          128 │ state, members│ consumers     │ producers     │returnd│ moves │  who sleeps: one bit per seat
//!          160 │unfencd│ 0                                                     │
//!          256 │ tail: the next position that is claimed, u64                  │  producers
//!          384 │ head: the next position that is taken, u64, then 0 … 512      │  consumers
//!              └───────────────────────────────────────────────────────────────┘
//!
//!  seat        0       4       8       12      16
//!            0 │ status│ role  │ pid   │ pid_ns│ 0                               the owner, `status` last
//!          128 │ tail  │ count │ high  │ 0                                       the lane's writer
//!          256 │ head  │ count │ 0                                               the lane's reader; in broadcast see below
//!          384 │ seen  │ 0                                                       the lane's reader; in broadcast see below
//!          512 │waiting│ 0                                                       the owner sets, whoever wakes it clears
//!          640 │ committed: position, count, 0 … SEAT_LEN                      the lane's writer
//!
//!  in `mpmc`, seats are SLOT_SEAT_LEN long, and instead of positions have
//!          640 │ claim: what the producer is about to own, or owns, u64, then 0
//!          768 │ holds: what the consumer is about to own, or owns, HOLDS × u64, then 0 … SLOT_SEAT_LEN
//!
//!  record      0       4   6   8
//!              │ len   │knd│flg│ payload, then up to a multiple of 8
//!
//!  slot        0               8       12      16
//!  (`mpmc`)    │ word          │ len   │ lap   │ payload … slot_len
//! ```
//!
//! * `magic` is stored last, with Release: a region that shows it is complete. The fixed part never changes afterwards; each
//!   participant keeps one private copy and reads no size from shared memory again.
//! * `need` holds flags that a participant must know; an unknown one is refused.
//! * `layout` is [`LAYOUT`], `check` is FNV-1a over bytes 8…119.
//! * Which seat is whose: `spsc` and `mpsc`: seat 0 is the consumer, seat *i* ≥ 1 the producer of lane *i* − 1. `broadcast`:
//!   seat 0 is the producer of lane 0, the others are consumers.
//! * `status` is `generation << 2 | status`; a seat's owner holds an exclusive OFD lock on the byte of the file whose offset
//!   is the seat's number, and the lock, not the word, is the truth about its life.
//! * Records never wrap: one that does not fit before the lane's end comes after a padding record, which fills the lane up to
//!   its end and is published with its successor. `tail` is published after the records; what lies behind it does not exist.
//! * `seen` is the reader's private position, for its successor: `head ≤ seen ≤ tail`.
//! * `tail` and `head` are positions, each with the number of records before it; the pair is written as one 8-byte word by native
//!   code, and by everybody where the ring overwrites. Elsewhere the numbers are for diagnostics and may be stored separately,
//!   before the position.
//! * `committed` is where the writer stands, with [`COMMITTED`] in its lowest bit, while it publishes in batches, else 0: stored before it looks
//!   whether a reader sleeps. What lies between `tail` and it is whole; a reader that would sleep puts `tail` there, if that is still where it was.
//! * `unfenced` (`unfencd`) is not 0 as soon as some participant leaves out the fence between what it publishes and its look at who sleeps:
//!   whoever goes to sleep calls for it (membarrier).
//! * `high` is the writer's position in 64 bits, shifted right by 31; stored before `committed` and `tail`.
//! * In `mpmc` the one lane is slots of `slot_len` bytes. Positions are 64-bit numbers of claims; position *p* is slot
//!   `p % slots` in lap `p / slots`. `word` is `lap << 2 |` [`slot_state`]; `claim` and a hold are `position << 2 |`
//!   [`claim_state`] or [`hold_state`]. Zeroed memory is an empty ring. Protocol: `core/src/ring/README.md`.
//! * In `broadcast` each reader's `head` is on its own seat, and the writer's `head` is the oldest record that it will not
//!   overwrite: stored before it does. Where it loses nothing, the writer's `seen` (64 bits, as `head`) is the last of these that
//!   it knew to have passed no reader.

use super::fnv::{check_sum, layout_of};
use crate::error::{Error, ErrorKind, Result};

/// `OFLRING` and the major version's digit, as bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"OFLRING1");
/// Another major version is refused.
pub const MAJOR: u16 = 1;
/// Grows when words that were 0 get a meaning that may be ignored.
pub const MINOR: u16 = 0;
/// Bytes of the fixed part.
pub const FIXED_LEN: usize = 128;
/// Where the seats begin.
pub const SEATS_AT: usize = 512;
/// Bytes from one seat to the next.
pub const SEAT_LEN: usize = 1024;
/// The same in `mpmc`.
pub const SLOT_SEAT_LEN: usize = 2048;
/// Seats of a ring at most: the `ready` words have a bit per lane, and one message carries every doorbell's fd.
pub const MAX_SEATS: usize = 65;
/// The same in `mpmc`, where the words of who sleeps have a bit per seat.
pub const MAX_SLOT_SEATS: usize = 64;
/// Records that one consumer of an `mpmc` ring holds at most.
pub const HOLDS: usize = 128;
/// Smallest slot.
pub const MIN_SLOT: usize = 64;
/// Slot where the maker names no size.
pub const DEFAULT_SLOT: usize = 256;
/// Bytes before a slot's payload.
pub const SLOT_HEADER: u32 = 16;
/// The data begins on a page.
pub const PAGE: usize = 4096;
/// Smallest lane.
pub const MIN_CAPACITY: usize = 4096;
/// Largest lane: differences of 32-bit positions stay exact, and fit JavaScript's small integers.
pub const MAX_CAPACITY: usize = 1 << 30;
/// Bytes before a record's payload.
pub const RECORD_HEADER: u32 = 8;
/// Records and positions are multiples of this.
pub const ALIGN: u32 = 8;

/// Byte offsets of the words that any participant changes, from the region's begin.
pub mod ring_word {
    /// [`CLOSED`](super::CLOSED) and [`POISONED`](super::POISONED).
    pub const STATE: usize = 128;
    /// Goes up when a seat is taken, left, or found dead.
    pub const MEMBERS: usize = 132;
    /// Bit *i* of the two words: lane *i* has news for the consumer.
    pub const READY: usize = 256;
    /// `mpmc`, 64 bits: bit *i* is set before the consumer on seat *i* sleeps.
    pub const CONSUMERS: usize = 136;
    /// `mpmc`: the same for producers.
    pub const PRODUCERS: usize = 144;
    /// `mpmc`: not 0 when some hold may be [`RETURNED`](super::hold_state::RETURNED).
    pub const RETURNED: usize = 152;
    /// `mpmc`: goes up before a returned record changes hands.
    pub const MOVES: usize = 156;
    /// 1: some participant publishes without a fence.
    pub const UNFENCED: usize = 160;
    /// `mpmc`, 64 bits: the next position that is claimed.
    pub const SLOT_TAIL: usize = 256;
    /// `mpmc`, 64 bits: the next position that is taken.
    pub const SLOT_HEAD: usize = 384;
}

/// Low bits of a slot's word.
pub mod slot_state {
    /// Free for the claim of this lap.
    pub const FREE: u64 = 0;
    /// Has the record of this lap.
    pub const FULL: u64 = 1;
    /// Has the record of this or an earlier lap, which a consumer keeps: this lap's position is passed over.
    pub const HELD: u64 = 2;
}

/// Low bits of a claim.
pub mod claim_state {
    /// Nothing; the word is 0.
    pub const NONE: u64 = 0;
    /// The position may become this seat's.
    pub const WANTED: u64 = 1;
    /// The position is this seat's.
    pub const OWNED: u64 = 2;
}

/// Low bits of a hold.
pub mod hold_state {
    /// Nothing; the word is 0.
    pub const NONE: u64 = 0;
    /// The record may become this seat's.
    pub const WANTED: u64 = 1;
    /// The record is this seat's.
    pub const HELD: u64 = 2;
    /// The record is whoever's takes it: a consumer gave it up, or died.
    pub const RETURNED: u64 = 3;
}

/// Byte offsets of the words of a seat, from the seat's begin.
pub mod seat_word {
    /// `generation << 2 | status`.
    pub const STATUS: usize = 0;
    /// [`PRODUCER`](super::PRODUCER) or [`CONSUMER`](super::CONSUMER).
    pub const ROLE: usize = 4;
    /// Process id in its own pid namespace.
    pub const PID: usize = 8;
    /// Low half of the pid namespace's inode; 0 is unknown.
    pub const PID_NS: usize = 12;
    /// Where the lane's writer is: position (low half) and number of records (high half).
    pub const TAIL: usize = 128;
    /// The writer's 64-bit position, shifted right by 31.
    pub const HIGH: usize = 136;
    /// What the lane's reader has given back: position and number of records.
    pub const HEAD: usize = 256;
    /// How far the lane's reader has looked.
    pub const SEEN: usize = 384;
    /// 0 while the owner is awake. Else the low two bits say how it sleeps, 1 a thread, 2 an event loop, and the others are the sleep's number.
    pub const WAITING: usize = 512;
    /// Lanes: how far the writer has committed, as `TAIL`, with [`COMMITTED`](super::COMMITTED); 0 without batches.
    pub const COMMITTED_AT: usize = 640;
    /// `mpmc`: the producer's claim, 64 bits.
    pub const CLAIM: usize = 640;
    /// `mpmc`: the consumer's holds, [`HOLDS`](super::HOLDS) times 64 bits.
    pub const HOLDS_AT: usize = 768;
}

/// `state`: nothing more is pushed.
pub const CLOSED: u32 = 1;
/// `state`: a participant saw bytes that contradict themselves.
pub const POISONED: u32 = 2;

/// `committed`: the word says where the writer stands. Positions are multiples of [`ALIGN`].
pub const COMMITTED: u32 = 1;

/// `status`: nobody's.
pub const SEAT_FREE: u32 = 0;
/// `status`: taken.
pub const SEAT_LIVE: u32 = 1;
/// `status`: its owner died without leaving.
pub const SEAT_DEAD: u32 = 2;

/// `role` of a seat that pushes.
pub const PRODUCER: u32 = 1;
/// `role` of a seat that pops.
pub const CONSUMER: u32 = 2;

/// `need`: the writer overwrites what slow readers have not read.
pub const NEED_OVERWRITE: u16 = 1;
/// Every flag of `need` that this version knows.
pub const NEED_KNOWN: u16 = NEED_OVERWRITE;

/// Kind of a record that carries a payload.
pub const RECORD_DATA: u16 = 1;
/// Kind of a record that fills a lane up to its end.
pub const RECORD_PAD: u16 = 2;

/// Changes with any offset of lanes and records, so that a layout that was changed without a new version is refused all the same.
pub const LAYOUT: u64 = layout_of(&[
    FIXED_LEN,
    SEATS_AT,
    SEAT_LEN,
    PAGE,
    RECORD_HEADER as usize,
    ALIGN as usize,
    ring_word::STATE,
    ring_word::MEMBERS,
    ring_word::READY,
    ring_word::UNFENCED,
    seat_word::STATUS,
    seat_word::ROLE,
    seat_word::PID,
    seat_word::PID_NS,
    seat_word::TAIL,
    seat_word::HIGH,
    seat_word::HEAD,
    seat_word::SEEN,
    seat_word::WAITING,
    seat_word::COMMITTED_AT,
]);

/// The same of seats with holds, and slots.
pub const SLOT_LAYOUT: u64 = layout_of(&[
    FIXED_LEN,
    SEATS_AT,
    SLOT_SEAT_LEN,
    PAGE,
    SLOT_HEADER as usize,
    HOLDS,
    ring_word::STATE,
    ring_word::MEMBERS,
    ring_word::CONSUMERS,
    ring_word::PRODUCERS,
    ring_word::RETURNED,
    ring_word::MOVES,
    ring_word::UNFENCED,
    ring_word::SLOT_TAIL,
    ring_word::SLOT_HEAD,
    seat_word::STATUS,
    seat_word::ROLE,
    seat_word::PID,
    seat_word::PID_NS,
    seat_word::WAITING,
    seat_word::CLAIM,
    seat_word::HOLDS_AT,
]);

/// Who writes and who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum Kind {
    /// One producer, one consumer.
    Spsc = 1,
    /// Many producers, one consumer: a lane each.
    Mpsc = 2,
    /// One producer, many consumers that each see every record.
    Broadcast = 3,
    /// Many producers, many consumers: each record goes to one of them, and again to another if it dies.
    Mpmc = 4,
}

impl Kind {
    /// The word that every face shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Spsc => "spsc",
            Kind::Mpsc => "mpsc",
            Kind::Broadcast => "broadcast",
            Kind::Mpmc => "mpmc",
        }
    }

    const ALL: [Kind; 4] = [Kind::Spsc, Kind::Mpsc, Kind::Mpmc, Kind::Broadcast];

    fn from_u16(n: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| *k as u16 == n)
    }

    /// Bytes from one seat of such a ring to the next.
    #[must_use]
    pub const fn seat_len(self) -> usize {
        match self {
            Kind::Mpmc => SLOT_SEAT_LEN,
            Kind::Spsc | Kind::Mpsc | Kind::Broadcast => SEAT_LEN,
        }
    }

    /// Seats of such a ring at most.
    #[must_use]
    pub const fn max_seats(self) -> usize {
        match self {
            Kind::Spsc => 2,
            Kind::Mpmc => MAX_SLOT_SEATS,
            Kind::Mpsc | Kind::Broadcast => MAX_SEATS,
        }
    }

    const fn layout(self) -> u64 {
        match self {
            Kind::Mpmc => SLOT_LAYOUT,
            Kind::Spsc | Kind::Mpsc | Kind::Broadcast => LAYOUT,
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Kind> {
        Kind::ALL
            .into_iter()
            .find(|k| k.as_str() == s)
            .ok_or_else(|| Error::invalid("no such kind of ring").with("kind", s).with("known", "spsc, mpsc, mpmc, broadcast"))
    }
}

/// What a producer does when there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum OnFull {
    /// `push` waits.
    #[default]
    Wait = 0,
    /// `push` fails with `Full`.
    Reject = 1,
    /// `push` overwrites the oldest records (broadcast only).
    Overwrite = 2,
}

impl OnFull {
    /// The word that every face shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            OnFull::Wait => "wait",
            OnFull::Reject => "reject",
            OnFull::Overwrite => "overwrite",
        }
    }
}

impl std::str::FromStr for OnFull {
    type Err = Error;

    fn from_str(s: &str) -> Result<OnFull> {
        [OnFull::Wait, OnFull::Reject, OnFull::Overwrite]
            .into_iter()
            .find(|p| p.as_str() == s)
            .ok_or_else(|| Error::invalid("no such policy for a full ring").with("on_full", s).with("known", "wait, reject, overwrite"))
    }
}

/// The first word of a record.
#[must_use]
pub const fn record_word(kind: u16, len: u32) -> u64 {
    len as u64 | (kind as u64) << 32
}

/// Bytes that a record with a payload of `len` takes. `len` is at most [`max_record`] of some capacity.
#[must_use]
pub const fn record_extent(len: u32) -> u32 {
    (RECORD_HEADER + len + (ALIGN - 1)) & !(ALIGN - 1)
}

/// The longest payload: half the lane, so that a record fits wherever the writer stands.
#[must_use]
pub const fn max_record(capacity: u32) -> u32 {
    capacity / 2 - RECORD_HEADER
}

/// Where the data begins.
#[must_use]
pub const fn data_at(kind: Kind, seats: usize) -> usize {
    (SEATS_AT + seats * kind.seat_len()).next_multiple_of(PAGE)
}

/// The fixed part of a ring's region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor layout version of the creator.
    pub minor: u16,
    /// Who writes and who reads.
    pub kind: Kind,
    /// Flags that a participant must know.
    pub need: u16,
    /// Bytes before the data.
    pub header_len: u32,
    /// Participants at most.
    pub seats: u32,
    /// Bytes of a lane.
    pub capacity: u32,
    /// Lanes.
    pub lanes: u32,
    /// Bytes of a slot in `mpmc`, else 0.
    pub slot_len: u32,
    /// What a producer does when there is no room, unless it was told otherwise.
    pub on_full: OnFull,
    /// The process that made the ring.
    pub pid: u32,
    /// Random.
    pub id: [u8; 16],
    /// Nanoseconds since the Unix epoch.
    pub created_unix_ns: u64,
}

impl Header {
    /// A header of this version. `capacity`, and in `mpmc` `slot_len`, are rounded up to a power of two, `seats` is the number of
    /// participants.
    ///
    /// # Errors
    /// `Invalid` and `TooLarge` for sizes outside the limits.
    pub fn new(kind: Kind, capacity: usize, slot_len: usize, seats: usize, on_full: OnFull) -> Result<Header> {
        if capacity > MAX_CAPACITY {
            return Err(Error::new(ErrorKind::TooLarge, "capacity is over the limit").with("capacity", capacity).with("max", MAX_CAPACITY));
        }
        if capacity == 0 {
            return Err(Error::invalid("capacity is 0").with("min", MIN_CAPACITY));
        }
        if !(2..=kind.max_seats()).contains(&seats) {
            return Err(Error::invalid("bad number of participants").with("participants", seats).with("max", kind.max_seats()));
        }
        if on_full == OnFull::Overwrite && kind != Kind::Broadcast {
            return Err(Error::invalid("only a broadcast ring may overwrite").with("kind", kind.as_str()));
        }
        let capacity = capacity.next_power_of_two().max(MIN_CAPACITY);
        let slot_len = if kind == Kind::Mpmc {
            if slot_len == 0 {
                return Err(Error::invalid("slot size is 0").with("min", MIN_SLOT));
            }
            if slot_len > capacity / 2 {
                return Err(Error::new(ErrorKind::TooLarge, "slot is over half of the capacity")
                    .with("slot_size", slot_len)
                    .with("max", capacity / 2));
            }
            slot_len.next_power_of_two().max(MIN_SLOT) as u32
        } else {
            0
        };
        Ok(Header {
            minor: MINOR,
            kind,
            need: if on_full == OnFull::Overwrite { NEED_OVERWRITE } else { 0 },
            header_len: data_at(kind, seats) as u32,
            seats: seats as u32,
            capacity: capacity as u32,
            lanes: if kind == Kind::Mpsc { seats as u32 - 1 } else { 1 },
            slot_len,
            on_full,
            pid: 0,
            id: [0; 16],
            created_unix_ns: 0,
        })
    }

    /// The longest record.
    #[must_use]
    pub const fn max_record(&self) -> u32 {
        if self.slot_len != 0 { self.slot_len - SLOT_HEADER } else { max_record(self.capacity) }
    }

    /// Bytes of the region.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        u64::from(self.header_len) + u64::from(self.capacity) * u64::from(self.lanes)
    }

    /// The fixed part, magic included.
    #[must_use]
    pub fn encode(&self) -> [u8; FIXED_LEN] {
        let mut out = [0u8; FIXED_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &MAJOR.to_le_bytes());
        put(10, &self.minor.to_le_bytes());
        put(12, &(self.kind as u16).to_le_bytes());
        put(14, &self.need.to_le_bytes());
        put(16, &self.kind.layout().to_le_bytes());
        put(24, &self.total_len().to_le_bytes());
        put(32, &self.header_len.to_le_bytes());
        put(36, &self.seats.to_le_bytes());
        put(40, &(self.kind.seat_len() as u32).to_le_bytes());
        put(44, &self.capacity.to_le_bytes());
        put(48, &self.lanes.to_le_bytes());
        put(52, &self.slot_len.to_le_bytes());
        put(56, &(self.on_full as u32).to_le_bytes());
        put(60, &self.pid.to_le_bytes());
        put(64, &self.id);
        put(80, &self.created_unix_ns.to_le_bytes());
        let check = checksum(&out);
        out[120..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a private copy of a fixed part; `region_len` is what `fstat` says.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no header, or contradict each other or the region; `Version` for another layout;
    /// `Unsupported` for a kind or a flag that this version does not know.
    pub fn decode(bytes: &[u8; FIXED_LEN], region_len: u64) -> Result<Header> {
        fn take<const N: usize>(bytes: &[u8; FIXED_LEN], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        let u16_at = |at| u16::from_le_bytes(take(bytes, at));
        let u32_at = |at| u32::from_le_bytes(take(bytes, at));
        let u64_at = |at| u64::from_le_bytes(take(bytes, at));
        let corrupt = |what: &'static str| Error::new(ErrorKind::Corrupt, what);

        if u64_at(0) & !(0xFF << 56) != MAGIC & !(0xFF << 56) {
            return Err(corrupt("not a ring, or not complete yet").with("magic", format_args!("{:#018x}", u64_at(0))));
        }
        if u64_at(0) != MAGIC || u16_at(8) != MAJOR {
            return Err(Error::new(ErrorKind::Version, "ring has another layout")
                .with("magic", format_args!("{:#018x}", u64_at(0)))
                .with("major", u16_at(8))
                .with("known", MAJOR));
        }
        if u64_at(120) != checksum(bytes) {
            return Err(corrupt("header does not match its check sum").with("check", u64_at(120)).with("want", checksum(bytes)));
        }
        let unsupported = |what: &'static str| Error::new(ErrorKind::Unsupported, what);
        let Some(kind) = Kind::from_u16(u16_at(12)) else {
            return Err(unsupported("ring is of an unknown kind").with("kind", u16_at(12)));
        };
        if u64_at(16) != kind.layout() {
            return Err(Error::new(ErrorKind::Version, "ring has another layout")
                .with("layout", format_args!("{:#018x}", u64_at(16)))
                .with("known", format_args!("{:#018x}", kind.layout())));
        }
        if u16_at(14) & !NEED_KNOWN != 0 {
            return Err(unsupported("ring needs what this version does not know").with("need", u16_at(14)).with("known", NEED_KNOWN));
        }
        let on_full = match u32_at(56) {
            0 => OnFull::Wait,
            1 => OnFull::Reject,
            2 => OnFull::Overwrite,
            other => return Err(corrupt("bad policy for a full ring").with("on_full", other).with("max", 2)),
        };
        let header = Header {
            minor: u16_at(10),
            kind,
            need: u16_at(14),
            header_len: u32_at(32),
            seats: u32_at(36),
            capacity: u32_at(44),
            lanes: u32_at(48),
            slot_len: u32_at(52),
            on_full,
            pid: u32_at(60),
            id: take(bytes, 64),
            created_unix_ns: u64_at(80),
        };
        let (seats, capacity) = (header.seats as usize, header.capacity as usize);
        if !(2..=kind.max_seats()).contains(&seats) {
            return Err(corrupt("bad number of seats").with("seats", seats).with("max", kind.max_seats()));
        }
        if u32_at(40) as usize != kind.seat_len() {
            return Err(corrupt("bad seat size").with("seat_len", u32_at(40)).with("want", kind.seat_len()));
        }
        if !(MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity) || !capacity.is_power_of_two() {
            return Err(corrupt("capacity is no power of two within the limits").with("capacity", capacity).with("max", MAX_CAPACITY));
        }
        let lanes = if kind == Kind::Mpsc { header.seats - 1 } else { 1 };
        if header.lanes != lanes {
            return Err(corrupt("bad number of lanes").with("lanes", header.lanes).with("want", lanes));
        }
        let slot_len = header.slot_len as usize;
        let slotted = (MIN_SLOT..=capacity / 2).contains(&slot_len) && slot_len.is_power_of_two();
        if (kind == Kind::Mpmc && !slotted) || (kind != Kind::Mpmc && slot_len != 0) {
            return Err(corrupt("bad slot size").with("slot_size", slot_len).with("kind", kind.as_str()));
        }
        if header.header_len as usize != data_at(kind, seats) {
            return Err(corrupt("bad header size").with("header_len", header.header_len).with("want", data_at(kind, seats)));
        }
        if (header.need & NEED_OVERWRITE != 0) != (on_full == OnFull::Overwrite)
            || (on_full == OnFull::Overwrite && kind != Kind::Broadcast)
        {
            return Err(corrupt("policy for a full ring contradicts the flags")
                .with("on_full", on_full.as_str())
                .with("need", header.need));
        }
        // The file's own size decides, not what the header says about it.
        if header.total_len() != region_len || u64_at(24) != region_len {
            return Err(corrupt("header and file differ in size")
                .with("total_len", u64_at(24))
                .with("computed_len", header.total_len())
                .with("file_len", region_len));
        }
        Ok(header)
    }
}

/// The `check` that fits a fixed part.
#[must_use]
pub fn checksum(bytes: &[u8; FIXED_LEN]) -> u64 {
    check_sum(&bytes[8..120])
}

const _: () = assert!(ring_word::READY + 8 <= SEATS_AT && MAX_SEATS - 1 <= 64, "a bit per lane");
const _: () = assert!(ring_word::SLOT_HEAD + 8 <= SEATS_AT && MAX_SLOT_SEATS <= 64, "a bit per seat");
const _: () = assert!(seat_word::HOLDS_AT + HOLDS * 8 <= SLOT_SEAT_LEN && SLOT_SEAT_LEN.is_multiple_of(128));
const _: () = assert!(
    seat_word::COMMITTED_AT + 128 <= SEAT_LEN
        && ring_word::UNFENCED.is_multiple_of(8)
        && SEAT_LEN.is_multiple_of(128)
        && SEATS_AT.is_multiple_of(128)
);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        let mut h = Header::new(Kind::Spsc, 5000, 0, 2, OnFull::Wait).expect("valid");
        h.pid = 0x0102_0304;
        h.id = *b"0123456789abcdef";
        h.created_unix_ns = 1_700_000_000_123_456_789;
        h
    }

    #[test]
    fn decodes_what_it_encodes() {
        for h in [
            sample(),
            Header::new(Kind::Mpsc, 1, 0, 65, OnFull::Reject).expect("valid"),
            Header::new(Kind::Broadcast, 1 << 30, 0, 3, OnFull::Overwrite).expect("valid"),
            Header::new(Kind::Mpmc, 1 << 20, 200, 64, OnFull::Wait).expect("valid"),
        ] {
            assert_eq!(Header::decode(&h.encode(), h.total_len()).expect("valid"), h);
        }
        assert_eq!(sample().capacity, 8192);
        let slots = Header::new(Kind::Mpmc, 5000, 200, 3, OnFull::Wait).expect("valid");
        assert_eq!((slots.slot_len, slots.max_record(), sample().slot_len), (256, 240, 0));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let h = sample();
        let good = h.encode();
        for at in 0..FIXED_LEN {
            for bit in 0..8 {
                let mut bad = good;
                bad[at] ^= 1 << bit;
                let e = Header::decode(&bad, h.total_len()).expect_err("flipped");
                assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Version), "{at} {bit}: {e}");
            }
        }
    }

    #[test]
    fn lies_with_a_valid_check_sum_are_refused() {
        let h = sample();
        let cases: &[(usize, &[u8], ErrorKind, &str)] = &[
            (8, &[2, 0], ErrorKind::Version, "major=2"),
            (16, &[0], ErrorKind::Version, "layout="),
            (12, &[9, 0], ErrorKind::Unsupported, "kind=9"),
            (12, &[0, 0], ErrorKind::Unsupported, "kind=0"),
            (14, &[2, 0], ErrorKind::Unsupported, "need=2"),
            (14, &[1, 0], ErrorKind::Corrupt, "need=1"),
            (24, &[0xFF; 8], ErrorKind::Corrupt, "total_len="),
            (32, &[0; 4], ErrorKind::Corrupt, "header_len=0"),
            (36, &[0; 4], ErrorKind::Corrupt, "seats=0"),
            (36, &[3, 0, 0, 0], ErrorKind::Corrupt, "seats=3"),
            (36, &[0xFF; 4], ErrorKind::Corrupt, "seats=4294967295"),
            (40, &[0; 4], ErrorKind::Corrupt, "seat_len=0"),
            (44, &[0; 4], ErrorKind::Corrupt, "capacity=0"),
            (44, &[1, 0x20, 0, 0], ErrorKind::Corrupt, "capacity=8193"),
            (44, &[0, 0, 0, 0x80], ErrorKind::Corrupt, "capacity=2147483648"),
            (44, &[0, 0x40, 0, 0], ErrorKind::Corrupt, "computed_len="),
            (48, &[2, 0, 0, 0], ErrorKind::Corrupt, "lanes=2"),
            (52, &[64, 0, 0, 0], ErrorKind::Corrupt, "slot_size=64"),
            (12, &[4, 0], ErrorKind::Version, "layout="),
            (56, &[3, 0, 0, 0], ErrorKind::Corrupt, "on_full=3"),
            (56, &[2, 0, 0, 0], ErrorKind::Corrupt, "on_full=overwrite"),
        ];
        for (at, lie, kind, text) in cases {
            let mut bad = h.encode();
            bad[*at..at + lie.len()].copy_from_slice(lie);
            let check = checksum(&bad);
            bad[120..].copy_from_slice(&check.to_le_bytes());
            let e = Header::decode(&bad, h.total_len()).expect_err(text);
            assert!(e.kind() == *kind && e.to_string().contains(text), "{at}: {e}");
        }
        assert!(Header::decode(&h.encode(), h.total_len() - 1).expect_err("short").to_string().contains("file_len="));
        let slots = Header::new(Kind::Mpmc, 4096, 256, 3, OnFull::Wait).expect("valid");
        for lie in [0u32, 63, 96, 4096] {
            let mut bad = slots.encode();
            bad[52..56].copy_from_slice(&lie.to_le_bytes());
            let check = checksum(&bad);
            bad[120..].copy_from_slice(&check.to_le_bytes());
            let e = Header::decode(&bad, slots.total_len()).expect_err("bad slot");
            assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains(&format!("slot_size={lie}")), "{e}");
        }
    }

    #[test]
    fn sizes_outside_the_limits_are_refused() {
        let kind = |r: Result<Header>| r.expect_err("refused").kind();
        assert_eq!(kind(Header::new(Kind::Spsc, MAX_CAPACITY + 1, 0, 2, OnFull::Wait)), ErrorKind::TooLarge);
        assert_eq!(kind(Header::new(Kind::Spsc, 0, 0, 2, OnFull::Wait)), ErrorKind::Invalid);
        assert_eq!(kind(Header::new(Kind::Spsc, 4096, 0, 3, OnFull::Wait)), ErrorKind::Invalid);
        assert_eq!(kind(Header::new(Kind::Mpsc, 4096, 0, 66, OnFull::Wait)), ErrorKind::Invalid);
        assert_eq!(kind(Header::new(Kind::Mpsc, 4096, 0, 1, OnFull::Wait)), ErrorKind::Invalid);
        assert_eq!(kind(Header::new(Kind::Spsc, 4096, 0, 2, OnFull::Overwrite)), ErrorKind::Invalid);
        assert_eq!(kind(Header::new(Kind::Mpmc, 4096, 0, 2, OnFull::Wait)), ErrorKind::Invalid);
        assert_eq!(kind(Header::new(Kind::Mpmc, 4096, 4096, 2, OnFull::Wait)), ErrorKind::TooLarge);
        assert_eq!(kind(Header::new(Kind::Mpmc, 4096, 256, 65, OnFull::Wait)), ErrorKind::Invalid);
        assert_eq!(kind(Header::new(Kind::Mpmc, 4096, 256, 4, OnFull::Overwrite)), ErrorKind::Invalid);
    }

    #[test]
    fn a_longest_record_fits_wherever_the_writer_stands() {
        for capacity in [4096u32, 1 << 30] {
            let extent = record_extent(max_record(capacity));
            assert_eq!(extent, capacity / 2);
            // The worst place leaves one unit less than the record needs before the lane's end.
            assert!((extent - ALIGN) + extent <= capacity);
        }
        assert_eq!((record_extent(0), record_extent(1), record_extent(8), record_extent(9)), (8, 16, 16, 24));
    }
}
