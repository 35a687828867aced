//! Bounded queues of records in mapped memory, between threads, processes and languages, that survive `kill -9`.
//!
//! ```text
//!  RingBuffer ──┬─ producer() ─► Producer   claim → write in place → commit → (flush)
//!               └─ consumer() ─► Consumer   pop, peek, read
//!
//!   wire::ring   the bytes                       seat   who takes part, and whether it lives
//!   spsc         one lane: the protocol itself   wait   sleep and wake, without a system call while nobody sleeps
//!   raw          the mapping, pointers into it
//! ```
//!
//! The protocol, its crash points and the argument why it is right: `README.md` beside this file.
//!
//! ```
//! use offloop::ring::{ConsumerOptions, Kind, ProducerOptions, RingBuffer};
//! let ring = RingBuffer::builder(Kind::Spsc).capacity(64 << 10).create()?;
//! let mut producer = ring.producer(ProducerOptions::default())?;
//! let mut consumer = ring.consumer(ConsumerOptions::default())?;
//! assert!(producer.try_push(b"hello")?);
//! assert_eq!(consumer.pop(None)?.to_vec(), b"hello");
//! ring.close();
//! assert_eq!(consumer.pop(None).unwrap_err().kind(), offloop::ErrorKind::Closed);
//! # Ok::<(), offloop::Error>(())
//! ```

mod consumer;
mod producer;
mod raw;
mod seat;
mod spsc;
mod wait;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;

pub use crate::wire::ring::{Kind, OnFull};
pub use consumer::{Consumer, ConsumerOptions, Record};
pub use producer::{ClaimMut, Producer, ProducerOptions};
pub use raw::RecordRef;
pub use seat::Role;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::Ordering;
use crate::sys::eventfd::EventFd;
use crate::sys::{clock, cpu, fork, pidfd};
use crate::wire::ring::{CLOSED, Header, POISONED, SEAT_DEAD, max_record, ring_word, seat_word};
use raw::Map;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

/// Bytes of a lane where the maker names none: beyond a core's own cache, so that the reader finds bulk data in the shared one.
pub const DEFAULT_CAPACITY: usize = 4 << 20;
/// Participants of a ring with many of them, where the maker names no number.
pub const DEFAULT_PARTICIPANTS: usize = 16;

/// What every handle of a ring in this process has in common.
#[derive(Debug)]
struct Shared {
    map: Arc<Map>,
    /// One per seat; any participant may ring any.
    bells: Vec<EventFd>,
    pid_namespace: u32,
    /// Spinning does not take the core that the peer needs.
    spare_core: bool,
    epoch: u64,
}

impl Shared {
    fn new(map: Map, bells: Vec<EventFd>) -> Arc<Shared> {
        let spare_core = cpu::usable_cores() > 1;
        Arc::new(Shared { map: Arc::new(map), bells, pid_namespace: pidfd::namespace(), spare_core, epoch: fork::epoch() })
    }

    #[inline]
    fn is_forked(&self) -> bool {
        !fork::is_current(self.epoch)
    }

    /// The bits of `state` that this version knows.
    #[inline]
    fn state(&self) -> u32 {
        // Acquire: what was published before the ring was closed is seen by whoever sees that it is. Pairs with `set_state`.
        self.map.ring_word(ring_word::STATE).load(Ordering::Acquire) & (CLOSED | POISONED)
    }

    /// What no call survives: another process's handle, bytes that contradict themselves.
    #[inline]
    fn check(&self) -> Result<u32> {
        let state = self.state();
        if self.is_forked() || state & POISONED != 0 { self.refuse() } else { Ok(state) }
    }

    #[cold]
    fn refuse(&self) -> Result<u32> {
        if self.is_forked() {
            return Err(Error::new(ErrorKind::Forked, "ring belongs to the parent of this forked process"));
        }
        Err(Error::new(ErrorKind::Corrupt, "a participant found the ring damaged"))
    }

    fn set_state(&self, bit: u32) {
        self.map.ring_word(ring_word::STATE).fetch_or(bit, Ordering::AcqRel);
        (0..self.bells.len()).for_each(|seat| self.wake(seat));
    }

    /// Tells every participant, so that none goes on with bytes that cannot be trusted.
    #[cold]
    fn poison(&self, damage: spsc::Damage) -> Error {
        self.set_state(POISONED);
        damage.into()
    }

    /// Rings a seat's doorbell if its owner sleeps. What was published before this call is seen by it.
    #[inline]
    fn wake(&self, seat: usize) {
        if wait::claim_wake(self.map.seat_word(seat, seat_word::WAITING)) {
            crate::sys::failpoint::hit("wake.claimed");
            self.bells[seat].signal();
        }
    }

    fn members_changed(&self) {
        self.map.ring_word(ring_word::MEMBERS).fetch_add(1, Ordering::AcqRel);
        (0..self.bells.len()).for_each(|seat| self.wake(seat));
    }

    /// The owner that `status` stands for is dead.
    fn mark_dead(&self, seat: usize, status: u32) {
        let word = self.map.seat_word(seat, seat_word::STATUS);
        // Its successor, or another witness, may have been first.
        if word.compare_exchange(status, status & !3 | SEAT_DEAD, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.members_changed();
        }
    }
}

/// How a ring is made.
#[derive(Clone, Debug)]
pub struct Builder {
    kind: Kind,
    capacity: usize,
    participants: Option<usize>,
    on_full: OnFull,
}

impl Builder {
    /// Bytes of a lane, rounded up to a power of two from 4 KiB to 1 GiB. A record may take half of them. Default
    /// [`DEFAULT_CAPACITY`].
    #[must_use]
    pub fn capacity(mut self, bytes: usize) -> Builder {
        self.capacity = bytes;
        self
    }

    /// Producers and consumers at most, together. Default 2 for `spsc`, else [`DEFAULT_PARTICIPANTS`].
    #[must_use]
    pub fn max_participants(mut self, n: usize) -> Builder {
        self.participants = Some(n);
        self
    }

    /// What a push does when there is no room.
    #[must_use]
    pub fn on_full(mut self, policy: OnFull) -> Builder {
        self.on_full = policy;
        self
    }

    /// Makes the ring, in memory that is reserved in full.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge` for options outside their limits; `Os` when memory or fds are not there.
    pub fn create(self) -> Result<RingBuffer> {
        let participants = self.participants.unwrap_or(if self.kind == Kind::Spsc { 2 } else { DEFAULT_PARTICIPANTS });
        let mut header = Header::new(self.kind, self.capacity, participants, self.on_full)?;
        if self.kind != Kind::Spsc {
            return Err(Error::new(ErrorKind::Unsupported, "this kind of ring is not built yet").with("kind", self.kind.as_str()));
        }
        header.pid = std::process::id();
        header.created_unix_ns = clock::unix_ns();
        getrandom::fill(&mut header.id).map_err(|e| Error::new(ErrorKind::Os, "no random bytes").with("error", e))?;
        let bells = (0..participants).map(|_| EventFd::new()).collect::<Result<Vec<_>>>()?;
        Ok(RingBuffer { shared: Shared::new(Map::create(header)?, bells) })
    }
}

/// A bounded queue of records that threads and processes share. Cheap to clone; a clone is the same ring.
///
/// Handles that push and pop come from [`producer`](Self::producer) and [`consumer`](Self::consumer). Dropping them leaves the
/// ring open for their successors; [`close`](Self::close) ends it for everybody.
#[derive(Clone, Debug)]
pub struct RingBuffer {
    shared: Arc<Shared>,
}

impl RingBuffer {
    /// Options of a new ring.
    #[must_use]
    pub fn builder(kind: Kind) -> Builder {
        Builder { kind, capacity: DEFAULT_CAPACITY, participants: None, on_full: OnFull::Wait }
    }

    /// What another process needs to [`attach`](Self::attach): the memory, then one doorbell per seat. Valid while this ring is;
    /// hand them over by inheritance or by `SCM_RIGHTS`.
    ///
    /// # Errors
    /// `Forked`.
    pub fn fds(&self) -> Result<Vec<RawFd>> {
        if self.shared.is_forked() {
            self.shared.refuse()?;
        }
        let bells = self.shared.bells.iter().map(|b| b.fd().as_raw_fd());
        Ok(std::iter::once(self.shared.map.file().as_raw_fd()).chain(bells).collect())
    }

    /// A ring that another process made, by what its [`fds`](Self::fds) gave. They are duplicated; the caller keeps its own.
    ///
    /// # Errors
    /// `Invalid` when they are not a sealed memfd and as many eventfds as the ring has seats; `Corrupt`, `Version` and
    /// `Unsupported` when the memory is not a ring of this version; `Os`.
    pub fn attach(fds: &[BorrowedFd<'_>]) -> Result<RingBuffer> {
        let Some((memory, bells)) = fds.split_first() else {
            return Err(Error::invalid("a ring needs fds to attach to").with("fds", 0));
        };
        let map = Map::attach(*memory)?;
        if bells.len() != map.header().seats as usize {
            return Err(Error::invalid("a ring needs one doorbell per seat")
                .with("doorbells", bells.len())
                .with("seats", map.header().seats));
        }
        let bells = bells.iter().map(|fd| EventFd::attach(*fd)).collect::<Result<Vec<_>>>()?;
        Ok(RingBuffer { shared: Shared::new(map, bells) })
    }

    /// Who writes and who reads.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.shared.map.header().kind
    }

    /// Bytes of a lane.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.map.header().capacity as usize
    }

    /// The longest record.
    #[must_use]
    pub fn max_record_len(&self) -> usize {
        max_record(self.shared.map.header().capacity) as usize
    }

    /// The first byte and the length of the mapping, for a face that follows `wire::ring` itself. It lives as long as this ring.
    #[must_use]
    pub fn mapping(&self) -> (*mut u8, usize) {
        (self.shared.map.base(), self.shared.map.len())
    }

    /// The one producer of an `spsc` or `broadcast` ring, or a further one of an `mpsc` ring.
    ///
    /// # Errors
    /// `InUse` while another lives, `Closed`, `Corrupt`, `Forked`, `Os`.
    pub fn producer(&self, options: ProducerOptions) -> Result<Producer> {
        if self.shared.check()? & CLOSED != 0 {
            return Err(Error::new(ErrorKind::Closed, "ring was closed"));
        }
        Producer::new(&self.shared, options)
    }

    /// The one consumer, or a further one of a `broadcast` ring. It goes on where its predecessor gave back.
    ///
    /// # Errors
    /// `InUse` while another lives, `Corrupt`, `Forked`, `Os`.
    pub fn consumer(&self, options: ConsumerOptions) -> Result<Consumer> {
        self.shared.check()?;
        Consumer::new(&self.shared, options)
    }

    /// Nothing more is pushed. Consumers get what is there, and `Closed` after it.
    pub fn close(&self) {
        if !self.shared.is_forked() {
            self.shared.set_state(CLOSED);
        }
    }

    /// Some participant has closed the ring.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.state() & CLOSED != 0
    }
}
