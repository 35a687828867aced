//! Bounded queues of records in mapped memory, between threads, processes and languages, that survive `kill -9`.
//!
//! ```text
//!  RingBuffer ──┬─ producer() ─► Producer   claim → write in place → commit → (flush)
//!               └─ consumer() ─► Consumer   pop, peek, read
//!
//!   wire::ring   the bytes                          seat   who takes part, and whether it lives
//!   spsc         one lane: the protocol itself      wait   sleep and wake, without a system call while nobody sleeps
//!   broadcast    one lane, many readers             bell   what a sleeper waits for
//!   mpmc         slots: many of both sides          named  a file and FIFOs, to attach by path
//!   ack          who owns what was taken from them  stat   a look from outside
//!   sleepers     who of many sleeps and is woken      held   what an object of a host keeps, until it is over
//!   input        where a consumer's records come    raw    the mapping, pointers into it
//!                from: a lane, many lanes, slots
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

mod ack;
mod bell;
mod broadcast;
mod consumer;
mod held;
mod input;
mod mpmc;
mod named;
mod producer;
mod raw;
mod seat;
mod sleepers;
mod spsc;
mod stat;
mod wait;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, loom))]
mod models_batch;
#[cfg(all(test, loom))]
mod models_mpmc;
#[cfg(all(test, loom))]
mod models_sleepers;

pub use crate::wire::ring::{Kind, OnFull};
pub use ack::{Ack, Acks};
pub use consumer::{Consumer, ConsumerOptions, Record};
pub use held::HeldRing;
pub use input::{GIVE_BACK, LOOK_AT_ALL, TURN};
pub(crate) use named::resolve as resolve_path;
pub use producer::{BATCH_BYTES, CONSUMER_SEAT, ClaimMut, Producer, ProducerOptions};
pub use raw::RecordRef;
pub use seat::Role;
pub use spsc::Cursor;
pub use stat::{LaneStat, Participant, RingStat};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::compiler_fence;
use crate::sync::mapped::{AtomicU32, AtomicU64, Ordering};
use crate::sync::modelled::fence;
use crate::sys::eventfd::EventFd;
use crate::sys::fork::PrivateFd;
use crate::sys::{clock, cpu, fork, membarrier, ofd, pidfd};
use crate::wire::ring::{CLOSED, DEFAULT_SLOT, Header, POISONED, SEAT_DEAD, ring_word, seat_word};
use bell::Bells;
use mpmc::{Popper, Pusher};
use named::Named;
use raw::{Map, MappedSlots};
use sleepers::Sleepers;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a lane where the maker names none: beyond a core's own cache, so that the reader finds bulk data in the shared one.
pub const DEFAULT_CAPACITY: usize = 4 << 20;
/// Participants of a ring with many of them, where the maker names no number.
pub const DEFAULT_PARTICIPANTS: usize = 16;

/// Between a store and a look, against somebody who makes a fence everywhere between its own: a fence, unless this process has `agreed` that
/// others make it.
#[inline(always)]
fn order(agreed: bool) {
    if agreed {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// What every handle of a ring in this process has in common.
#[derive(Debug)]
struct Shared {
    map: Arc<Map>,
    /// What an `mpmc` ring has in place of lanes.
    slots: Option<MappedSlots>,
    /// One per seat; any participant may ring any.
    bells: Bells,
    /// Says that somebody is attached to a named ring.
    present: Option<PrivateFd>,
    pid_namespace: u32,
    /// Spinning does not take the core that the peer needs.
    spare_core: bool,
    /// Whoever sleeps can have a fence made in this process, which then makes none itself before it looks who does.
    agreed: bool,
    epoch: u64,
}

impl Shared {
    fn new(map: Map, bells: Bells, present: Option<PrivateFd>) -> Arc<Shared> {
        let spare_core = cpu::usable_cores() > 1;
        let map = Arc::new(map);
        let agreed = membarrier::agree();
        Arc::new(Shared {
            slots: MappedSlots::new(&map, agreed),
            map,
            bells,
            present,
            pid_namespace: pidfd::namespace(),
            spare_core,
            agreed,
            epoch: fork::epoch(),
        })
    }

    #[inline(always)]
    fn is_forked(&self) -> bool {
        !fork::is_current(self.epoch)
    }

    /// The bits of `state` that this version knows.
    #[inline(always)]
    fn state(&self) -> u32 {
        // Acquire: what was published before the ring was closed is seen by whoever sees that it is. Pairs with `set_state`.
        self.map.ring_word(ring_word::STATE).load(Ordering::Acquire) & (CLOSED | POISONED)
    }

    /// Undamaged, and this process's own.
    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.state() & POISONED == 0 && !self.is_forked()
    }

    /// Neither closed nor damaged, and this process's own.
    #[inline(always)]
    fn is_well(&self) -> bool {
        self.state() == 0 && !self.is_forked()
    }

    /// What no call survives: another process's handle, bytes that contradict themselves.
    #[inline]
    fn check(&self) -> Result<u32> {
        let state = self.state();
        if self.is_forked() || state & POISONED != 0 { self.refuse() } else { Ok(state) }
    }

    #[inline]
    fn check_fork(&self) -> Result<()> {
        if self.is_forked() { self.refuse().map(|_| ()) } else { Ok(()) }
    }

    #[cold]
    fn refuse(&self) -> Result<u32> {
        if self.is_forked() {
            return Err(forked());
        }
        Err(Error::new(ErrorKind::Corrupt, "a participant found the ring damaged"))
    }

    fn set_state(&self, bit: u32) {
        self.map.ring_word(ring_word::STATE).fetch_or(bit, Ordering::AcqRel);
        self.wake_everybody();
    }

    /// Tells every participant, so that none goes on with bytes that cannot be trusted.
    #[cold]
    fn poison(&self, damage: spsc::Damage) -> Error {
        self.set_state(POISONED);
        damage.into()
    }

    /// Between what was published and the look whether somebody sleeps: pairs with [`fence_everywhere`](Self::fence_everywhere).
    #[inline(always)]
    fn order_look(&self) {
        order(self.agreed);
    }

    /// Between saying that one sleeps and the last look. False if some participant may have missed that.
    fn fence_everywhere(&self) -> bool {
        fence(Ordering::SeqCst);
        self.map.ring_word(ring_word::UNFENCED).load(Ordering::Relaxed) == 0 || membarrier::everywhere()
    }

    /// Before the first publication by a seat: sleepers, which see it by the fence of `Seat::enter`, are asked for the fences of this process.
    fn announce_order(&self) {
        if self.agreed {
            self.map.ring_word(ring_word::UNFENCED).store(1, Ordering::Relaxed);
        }
    }

    /// Rings a seat's doorbell if its owner sleeps. What was published before this call is seen by it.
    #[inline]
    fn wake(&self, seat: usize) {
        self.order_look();
        self.wake_if_asleep(seat);
    }

    /// As [`wake`](Self::wake), for several seats behind one [`order_look`](Self::order_look).
    #[inline]
    fn wake_if_asleep(&self, seat: usize) {
        if self.sleeps(seat) {
            fence(Ordering::SeqCst);
            wait::wake(self.map.seat_word(seat, seat_word::WAITING), || self.bells.ring(seat));
        }
    }

    /// An `mpmc` ring's sleepers of a role.
    #[inline]
    fn side(&self, role: Role) -> Option<Side<'_>> {
        self.slots.as_ref().map(|slots| Side { shared: self, slots, role })
    }

    /// Wakes who of an `mpmc` ring's `role` may go on now. What was published before this call is seen by it.
    #[inline]
    fn wake_some(&self, slots: &MappedSlots, role: Role) {
        self.order_look();
        sleepers::wake_if(&Side { shared: self, slots, role }, || true);
        // The last of a closed ring's records may be what all wait for.
        if self.state() & CLOSED != 0 {
            self.wake_everybody();
        }
    }

    /// Rings another one of an `mpmc` ring's `role` if there is something for it. The caller has taken, or gives up.
    #[inline]
    fn hand_on(&self, slots: &MappedSlots, role: Role) {
        sleepers::wake_if(&Side { shared: self, slots, role }, || match role {
            Role::Producer => Pusher::has_room(slots),
            Role::Consumer => Popper::has_more(slots),
        });
    }

    /// A look without a fence.
    #[inline]
    fn sleeps(&self, seat: usize) -> bool {
        self.map.seat_word(seat, seat_word::WAITING).load(Ordering::Relaxed) != 0
    }

    /// Rings whoever sleeps, and leaves the words to them: a thread that happens to be chosen for one thing is not the only one to be told of another.
    fn wake_everybody(&self) {
        fence(Ordering::SeqCst);
        (0..self.bells.len()).filter(|seat| self.sleeps(*seat)).for_each(|seat| self.bells.ring(seat));
    }

    fn members_changed(&self) {
        self.map.ring_word(ring_word::MEMBERS).fetch_add(1, Ordering::AcqRel);
        self.wake_everybody();
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

impl Drop for Shared {
    fn drop(&mut self) {
        if let (Some(named), Some(present), false) = (self.bells.named(), self.present.take(), self.is_forked()) {
            named.left(present.as_fd(), self.bells.len());
        }
    }
}

fn forked() -> Error {
    Error::new(ErrorKind::Forked, "ring belongs to the parent of this forked process")
}

/// The sleepers of one role in an `mpmc` ring.
struct Side<'a> {
    shared: &'a Shared,
    slots: &'a MappedSlots,
    role: Role,
}

impl Sleepers for Side<'_> {
    type Bits = AtomicU64;
    type Word = AtomicU32;

    #[inline(always)]
    fn bits(&self) -> &AtomicU64 {
        self.slots.sleepers(self.role)
    }

    fn waiting(&self, seat: usize) -> &AtomicU32 {
        self.shared.map.seat_word(seat, seat_word::WAITING)
    }

    fn seats(&self) -> usize {
        self.shared.bells.len()
    }

    fn ring(&self, seat: usize) {
        self.shared.bells.ring(seat);
    }
}

/// How a ring is made.
#[derive(Clone, Debug)]
pub struct Builder {
    kind: Kind,
    capacity: usize,
    slot_size: Option<usize>,
    participants: Option<usize>,
    on_full: OnFull,
    path: Option<PathBuf>,
}

impl Builder {
    /// Bytes of a lane, or of all slots of an `mpmc` ring, rounded up to a power of two from 4 KiB to 1 GiB. A record may take half
    /// of a lane. Default [`DEFAULT_CAPACITY`].
    #[must_use]
    pub fn capacity(mut self, bytes: usize) -> Builder {
        self.capacity = bytes;
        self
    }

    /// Bytes of a slot of an `mpmc` ring, rounded up to a power of two from 64 to half of the capacity: a record and 16 bytes. Default
    /// [`DEFAULT_SLOT`]. The other kinds have no slots.
    #[must_use]
    pub fn slot_size(mut self, bytes: usize) -> Builder {
        self.slot_size = Some(bytes);
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

    /// Gives the ring a name to [`attach_path`](RingBuffer::attach_path) to, instead of fds: a file on tmpfs. A name without a
    /// slash lies in `$XDG_RUNTIME_DIR/offloop/`, or in `/dev/shm/offloop-<uid>/` without that. The name stays until
    /// [`remove`](RingBuffer::remove); one that nobody is attached to is replaced, with what it holds.
    #[must_use]
    pub fn path(mut self, path: impl Into<PathBuf>) -> Builder {
        self.path = Some(path.into());
        self
    }

    /// Makes the ring, in memory that is reserved in full.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge`, `Unsupported` for options outside their limits; `Exists` while somebody is attached to a ring of that name;
    /// `Os` when memory or fds are not there.
    pub fn create(self) -> Result<RingBuffer> {
        let participants = self.participants.unwrap_or(if self.kind == Kind::Spsc { 2 } else { DEFAULT_PARTICIPANTS });
        if let (Some(slot_size), false) = (self.slot_size, self.kind == Kind::Mpmc) {
            return Err(Error::new(ErrorKind::Unsupported, "only a ring of the kind mpmc has slots")
                .with("slot_size", slot_size)
                .with("kind", self.kind.as_str()));
        }
        let slot_size = self.slot_size.unwrap_or(DEFAULT_SLOT);
        let mut header = Header::new(self.kind, self.capacity, slot_size, participants, self.on_full)?;
        header.pid = std::process::id();
        header.created_unix_ns = clock::unix_ns();
        getrandom::fill(&mut header.id).map_err(|e| Error::new(ErrorKind::Os, "no random bytes").with("error", e))?;
        let Some(path) = self.path else {
            let bells = (0..participants).map(|_| EventFd::new()).collect::<Result<Vec<_>>>()?;
            return Ok(RingBuffer { shared: Shared::new(Map::create(header)?, Bells::passed(bells), None) });
        };
        let path = named::resolve(&path, true)?;
        let named = Named::new(path.clone(), header.id);
        let len = usize::try_from(header.total_len()).expect("a header's sizes are within the limits");
        let map = Map::create_in(named::nameless(&path, len)?, header)?;
        // Before the file has its name, or a cleaner could take it for stale.
        let present = PrivateFd::open(|| ofd::reopen(map.file()))?;
        ofd::try_share(present.as_fd(), named::PRESENT)?;
        named::link(map.file(), &path)?;
        let bells = Bells::beside(named.clone(), participants).inspect_err(|_| {
            let _ = named.remove(map.file());
            named.left(present.as_fd(), participants);
        })?;
        Ok(RingBuffer { shared: Shared::new(map, bells, Some(present)) })
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
        Builder { kind, capacity: DEFAULT_CAPACITY, slot_size: None, participants: None, on_full: OnFull::Wait, path: None }
    }

    /// What another process needs to [`attach`](Self::attach): the memory, then one doorbell per seat. Valid while this ring is;
    /// hand them over by inheritance or by `SCM_RIGHTS`.
    ///
    /// # Errors
    /// `Unsupported` for a ring with a name, which is attached to by it; `Forked`.
    pub fn fds(&self) -> Result<Vec<RawFd>> {
        self.shared.check_fork()?;
        let bells = self.shared.bells.fds().ok_or_else(|| {
            let path = self.path().unwrap_or(Path::new("")).display();
            Error::new(ErrorKind::Unsupported, "a ring with a name is attached to by its name").with("path", path)
        })?;
        Ok(std::iter::once(self.shared.map.file().as_raw_fd()).chain(bells.map(|fd| fd.as_raw_fd())).collect())
    }

    /// A ring that another process made, by what its [`fds`](Self::fds) gave. They are duplicated; the caller keeps its own.
    ///
    /// # Errors
    /// `Invalid` when they are not a sealed memfd and as many eventfds as the ring has seats; `Corrupt`, `Version` and
    /// `Unsupported` when the memory is not a ring of this version; `TooLarge` when it can never be there; `Os`.
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
        Ok(RingBuffer { shared: Shared::new(map, Bells::passed(bells), None) })
    }

    /// A ring that was made with a name ([`Builder::path`]).
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when the file is another user's, open to others, or not a plain file; `Corrupt`, `Version` and
    /// `Unsupported` when it is not a ring of this version; `InUse` when another process has been removing it for a second (it was stopped
    /// meanwhile); `Os`.
    pub fn attach_path(path: impl AsRef<Path>) -> Result<RingBuffer> {
        let path = named::resolve(path.as_ref(), false)?;
        let (file, present) = named::attach(&path)?;
        let map = Map::attach_file(file.into())?;
        let (named, seats) = (Named::new(path, map.header().id), map.header().seats as usize);
        Ok(RingBuffer { shared: Shared::new(map, Bells::beside(named, seats)?, Some(present)) })
    }

    /// Takes a ring's name away; who is attached stays so. Done by nobody on its own: records wait in a named ring for
    /// whoever attaches next.
    ///
    /// # Errors
    /// `Unsupported` for a ring without a name, `Forked`.
    pub fn remove(&self) -> Result<()> {
        self.shared.check_fork()?;
        let Some(named) = self.shared.bells.named() else {
            return Err(Error::new(ErrorKind::Unsupported, "the ring has no name"));
        };
        named.remove(self.shared.map.file())
    }

    /// Removes a named ring that nobody is attached to; false if somebody is, or there is none.
    ///
    /// # Errors
    /// `Exists` when the file is not a ring, `Invalid` when it is not this user's alone, `Os`.
    pub fn remove_stale(path: impl AsRef<Path>) -> Result<bool> {
        named::remove_stale(&named::resolve(path.as_ref(), false)?)
    }

    /// Where a ring with a name lies.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.shared.bells.named().map(Named::path)
    }

    /// Header, participants and positions of this ring.
    ///
    /// # Errors
    /// `Forked`, `Os`.
    pub fn stat(&self) -> Result<RingStat> {
        self.shared.check_fork()?;
        stat::of(&self.shared.map)
    }

    /// As [`stat`](Self::stat), for a named ring that this process need not be attached to. Reads only.
    ///
    /// # Errors
    /// Those of [`attach_path`](Self::attach_path).
    pub fn inspect(path: impl AsRef<Path>) -> Result<RingStat> {
        stat::inspect(path.as_ref())
    }

    /// Who writes and who reads.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.shared.map.header().kind
    }

    /// Bytes of a lane, or of all slots.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.map.header().capacity as usize
    }

    /// The longest record.
    #[must_use]
    pub fn max_record_len(&self) -> usize {
        self.shared.map.header().max_record() as usize
    }

    /// Bytes of a slot of an `mpmc` ring; 0 for the other kinds.
    #[must_use]
    pub fn slot_size(&self) -> usize {
        self.shared.map.header().slot_len as usize
    }

    /// Producers and consumers at most, together.
    #[must_use]
    pub fn max_participants(&self) -> usize {
        self.shared.map.header().seats as usize
    }

    /// What a producer does when there is no room, unless it was told otherwise.
    #[must_use]
    pub fn on_full(&self) -> OnFull {
        self.shared.map.header().on_full
    }

    /// The first byte and the length of the mapping, for a face that follows `wire::ring` itself. It lives as long as this ring.
    #[must_use]
    pub fn mapping(&self) -> (*mut u8, usize) {
        (self.shared.map.base(), self.shared.map.len())
    }

    /// The one producer of an `spsc` or `broadcast` ring, or a further one of an `mpsc` or `mpmc` ring.
    ///
    /// # Errors
    /// `InUse` while another lives, `Closed`, `Corrupt`, `Forked`, `Os`.
    pub fn producer(&self, options: ProducerOptions) -> Result<Producer> {
        if self.shared.check()? & CLOSED != 0 {
            return Err(Error::new(ErrorKind::Closed, "ring was closed"));
        }
        Producer::new(&self.shared, options)
    }

    /// The one consumer, or a further one of a `broadcast` or `mpmc` ring. It goes on where its predecessor gave back.
    ///
    /// # Errors
    /// `InUse` while another lives, `Unsupported` for [`Ack::Manual`] where there is none, `Corrupt`, `Forked`, `Os`.
    pub fn consumer(&self, options: ConsumerOptions) -> Result<Consumer> {
        self.shared.check()?;
        Consumer::new(&self.shared, options)
    }

    /// Nothing more is pushed. Consumers get what is there, and `Closed` after it; in `mpmc` after what others have taken is dealt
    /// with too, because it comes back if they die.
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
