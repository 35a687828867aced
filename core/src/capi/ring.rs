//! Rings for C.

use crate::abi::ffi::{self, Options, Out, offloop_status};
use crate::abi::handle::{self, Place};
use crate::abi::{offloop_value, value};
use crate::capi::{offloop_consumer, offloop_producer, offloop_ring, path};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::{Ack, Acks, Consumer, ConsumerOptions, Kind, OnFull, Producer, ProducerOptions, RecordRef, RingBuffer};
use std::ffi::{c_char, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// How a ring is made. 0 or NULL means the default everywhere; start from OFFLOOP_RING_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_ring_options {
    /// sizeof(offloop_ring_options).
    pub struct_size: usize,
    /// Who writes and who reads: "spsc", "mpsc", "mpmc", "broadcast". Default "spsc".
    pub kind: *const c_char,
    /// What a push does when there is no room: "wait", "reject", "overwrite" (broadcast only). Default "wait".
    pub on_full: *const c_char,
    /// Bytes of a lane, or of all slots of "mpmc", rounded up to a power of two from 4 KiB to 1 GiB. A record may take half of a lane.
    /// Default 4 MiB.
    pub capacity: usize,
    /// Producers and consumers at most, together. Default 2 for "spsc", else 16.
    pub max_participants: usize,
    /// Gives the ring a name to attach to (offloop_ring_attach_path): a file on tmpfs; without a slash below $XDG_RUNTIME_DIR/offloop. It
    /// stays until offloop_ring_remove. NULL: no name.
    pub path: *const c_char,
    /// Bytes of a slot of "mpmc", rounded up to a power of two from 64 to half of the capacity: a record and 16 bytes. Default 256. The
    /// other kinds have no slots.
    pub slot_size: usize,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_ring_options {
    const MIN_SIZE: usize = size_of::<offloop_ring_options>();
    const NAME: &'static str = "offloop_ring_options";
}

/// How a producer publishes. Start from OFFLOOP_PRODUCER_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_producer_options {
    /// sizeof(offloop_producer_options).
    pub struct_size: usize,
    /// Not 0: committed records become visible by offloop_producer_flush, after 4 KiB of them, when there is no room, and when the
    /// consumer has nothing else to do. 0: each record is published when it is committed.
    pub batch: u32,
    /// 0.
    pub reserved: u32,
    /// What a push of this producer does when there is no room; NULL: what the ring's maker chose.
    pub on_full: *const c_char,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_producer_options {
    const MIN_SIZE: usize = size_of::<offloop_producer_options>();
    const NAME: &'static str = "offloop_producer_options";
}

/// How a consumer reads. Start from OFFLOOP_CONSUMER_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_consumer_options {
    /// sizeof(offloop_consumer_options).
    pub struct_size: usize,
    /// When a record of an "mpmc" ring is dealt with: "auto", when it is let go of, or "manual", when offloop_consumer_ack is told so.
    /// Default "auto"; the other kinds know no other.
    pub ack: *const c_char,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_consumer_options {
    const MIN_SIZE: usize = size_of::<offloop_consumer_options>();
    const NAME: &'static str = "offloop_consumer_options";
}

/// What a ring is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct offloop_ring_state {
    /// sizeof(offloop_ring_state), set by the caller.
    pub struct_size: usize,
    /// "spsc", "mpsc", "mpmc" or "broadcast".
    pub kind: [c_char; 16],
    /// Bytes of a lane, or of all slots.
    pub capacity: usize,
    /// The longest record.
    pub max_record_len: usize,
    /// Bytes of a slot of "mpmc", else 0.
    pub slot_size: usize,
    /// Not 0: some participant has closed the ring.
    pub closed: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_ring_state {
    const MIN_SIZE: usize = size_of::<offloop_ring_state>();
    const NAME: &'static str = "offloop_ring_state";
}

/// The bytes of one record.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct offloop_record {
    /// The first byte. What a consumer gives lies in the ring, 8-aligned: read only, and a peer that breaks the protocol can
    /// change it meanwhile, so copy it before you check it if you do not trust the peer.
    pub data: *const c_void,
    /// Bytes.
    pub len: usize,
    /// Not 0: a consumer that died, or gave it back, may have seen this record. Ignored when pushing.
    pub redelivered: u32,
    /// 0.
    pub reserved: u32,
    /// What offloop_consumer_ack wants, with `ack` "manual"; else 0.
    pub delivery: u64,
}

impl offloop_record {
    fn of(record: RecordRef<'_>) -> offloop_record {
        offloop_record {
            data: record.as_ptr().cast(),
            len: record.len(),
            redelivered: record.is_redelivered().into(),
            reserved: 0,
            delivery: record.delivery(),
        }
    }
}

/// The object behind a handle, which one thread at a time may use: a second one is told instead of kept waiting, because the first
/// may wait for ever.
struct Exclusive<T> {
    object: Mutex<T>,
}

impl<T> Exclusive<T> {
    fn enter(&self) -> Result<MutexGuard<'_, T>> {
        match self.object.try_lock() {
            Ok(guard) => Ok(guard),
            // The object's own state is checked by its own calls.
            Err(TryLockError::Poisoned(guard)) => Ok(guard.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Error::new(ErrorKind::InUse, "another thread is in a call with this handle")),
        }
    }
}

fn ring_of(ring: *const offloop_ring) -> Result<Arc<RingBuffer>> {
    handle::shared(ring)
}

/// Runs `f` with the producer behind a handle.
fn with_producer(p: *const offloop_producer, f: impl FnOnce(&mut Producer) -> Result<()>) -> offloop_status {
    ffi::call(|| {
        let producer: Arc<Exclusive<Producer>> = handle::shared(p)?;
        f(&mut *producer.enter()?)
    })
}

/// A consumer, and whether its caller holds what the last call took.
struct Popping {
    consumer: Consumer,
    taken: bool,
}

impl Drop for Popping {
    fn drop(&mut self) {
        self.release();
    }
}

/// What a consumer's handle stands for. Its records are acknowledged from any thread, also while one waits for the next.
struct Consuming {
    popping: Exclusive<Popping>,
    acks: Option<Acks>,
}

impl Popping {
    /// Lets go of what was taken; a record that was only waited for stays.
    fn release(&mut self) {
        if std::mem::take(&mut self.taken) {
            self.consumer.release();
        }
    }

    /// Takes the oldest record, if there is one.
    fn take(&mut self, out: Out<offloop_record>) -> Result<()> {
        let record = self.consumer.peek()?.ok_or_else(empty)?;
        out.set(offloop_record::of(record));
        self.taken = true;
        Ok(())
    }
}

/// Runs `f` with the consumer behind a handle.
fn with_consumer(c: *const offloop_consumer, f: impl FnOnce(&mut Popping) -> Result<()>) -> offloop_status {
    ffi::call(|| {
        let consumer: Arc<Consuming> = handle::shared(c)?;
        f(&mut *consumer.popping.enter()?)
    })
}

/// Runs `f` with what acknowledges a consumer's records.
fn with_acks(c: *const offloop_consumer, f: impl FnOnce(&Acks) -> Result<()>) -> offloop_status {
    ffi::call(|| {
        let consumer: Arc<Consuming> = handle::shared(c)?;
        let unsupported = || Error::new(ErrorKind::Unsupported, "consumer acknowledges by itself").with("ack", Ack::Auto.as_str());
        f(consumer.acks.as_ref().ok_or_else(unsupported)?)
    })
}

/// # Safety
/// `word` is NULL or NUL-terminated.
unsafe fn parsed<T: std::str::FromStr<Err = Error>>(word: *const c_char, what: &'static str) -> Result<Option<T>> {
    if word.is_null() {
        return Ok(None);
    }
    // SAFETY: this function's contract.
    unsafe { ffi::str(word, what) }?.parse().map(Some)
}

/// Makes a ring in shared memory that is reserved in full: a bounded queue of records between threads and processes, which survives
/// the death of either side. `options` may be NULL: all defaults.
///
/// # Safety
/// `options` is NULL or as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_create(options: *const offloop_ring_options, out: *mut *mut offloop_ring) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let o = unsafe { ffi::options(options) }?;
        // SAFETY: as above.
        let mut builder = RingBuffer::builder(unsafe { parsed(o.kind, "kind") }?.unwrap_or(Kind::Spsc));
        // SAFETY: as above.
        if let Some(policy) = unsafe { parsed(o.on_full, "on_full") }? {
            builder = builder.on_full(policy);
        }
        if o.capacity != 0 {
            builder = builder.capacity(o.capacity);
        }
        if o.slot_size != 0 {
            builder = builder.slot_size(o.slot_size);
        }
        if o.max_participants != 0 {
            builder = builder.max_participants(o.max_participants);
        }
        if !o.path.is_null() {
            // SAFETY: as above.
            builder = builder.path(unsafe { path(o.path) }?);
        }
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(builder.create()?)));
        Ok(())
    })
}

/// Attaches to a ring that another process made, by what its offloop_ring_fds gave. The fds are duplicated and stay the caller's.
/// OFFLOOP_ERR_INVALID when they are not a ring's, OFFLOOP_ERR_CORRUPT and OFFLOOP_ERR_VERSION when the memory is not a ring of this version.
///
/// # Safety
/// `fds` points at `count` numbers, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_attach(fds: *const i32, count: usize, out: *mut *mut offloop_ring) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let fds = unsafe { ffi::slice(fds, count, "fds") }?;
        if let Some(bad) = fds.iter().find(|fd| **fd < 0) {
            return Err(Error::invalid("fd is negative").with("fd", bad));
        }
        // SAFETY: not -1; a number that is not open is refused by the first call on it.
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(RingBuffer::attach(&fds)?)));
        Ok(())
    })
}

/// Attaches to a ring that was made with a name. OFFLOOP_ERR_NOT_FOUND without one; OFFLOOP_ERR_INVALID when the file is another user's, open
/// to others, or not a plain file; OFFLOOP_ERR_CORRUPT and OFFLOOP_ERR_VERSION when it is not a ring of this version; OFFLOOP_ERR_IN_USE
/// when another process has been removing it for a second (it was stopped meanwhile).
///
/// # Safety
/// `name` is NUL-terminated, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_attach_path(name: *const c_char, out: *mut *mut offloop_ring) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        // SAFETY: this function's contract.
        out.set(place.fill_shared(Arc::new(RingBuffer::attach_path(unsafe { path(name) }?)?)));
        Ok(())
    })
}

/// Takes a ring's name away; who is attached stays so. OFFLOOP_ERR_UNSUPPORTED for a ring without a name.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_remove(ring: *mut offloop_ring) -> offloop_status {
    ffi::call(|| ring_of(ring)?.remove())
}

/// Looks at a named ring without attaching to it, and only reads: a map of kind, capacity, slot_size, max_participants, on_full,
/// creator_pid, created_unix_ns, closed, poisoned, returned, participants (maps of seat, role, pid, alive, asleep, in_flight) and lanes
/// (maps of tail, pushed, head, popped: bytes and records, which wrap at 2^32; used, records: what lies between). The caller frees it.
///
/// # Safety
/// `name` is NUL-terminated, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_inspect(name: *const c_char, out: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let stat = RingBuffer::inspect(unsafe { path(name) }?)?;
        out.set(value::give(stat.to_value())?);
        Ok(())
    })
}

/// Gives what another process needs to attach, to be inherited or sent by SCM_RIGHTS: the memory, then one doorbell per participant.
/// `*count` is how many there are; at most `max` are written, so ask with 0 first. They are the ring's: valid while it or one
/// of its producers and consumers is.
///
/// # Safety
/// `fds` has room for `max` numbers, `count` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_fds(ring: *mut offloop_ring, fds: *mut i32, max: usize, count: *mut usize) -> offloop_status {
    ffi::call(|| {
        let count = ffi::out(count, "count")?;
        // SAFETY: this function's contract; checked for NULL, alignment and length only.
        unsafe { ffi::slice(fds.cast_const(), max, "fds") }?;
        let own = ring_of(ring)?.fds()?;
        for (i, fd) in own.iter().take(max).enumerate() {
            // SAFETY: `i` is below `max`, for which there is room by this function's contract.
            unsafe { fds.add(i).write(*fd) };
        }
        count.set(own.len());
        Ok(())
    })
}

/// Tells kind, sizes and whether the ring is closed. The caller sets `state_io->struct_size`.
///
/// # Safety
/// `state_io` is as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_info(ring: *mut offloop_ring, state_io: *mut offloop_ring_state) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let place = unsafe { ffi::filled(state_io) }?;
        let ring = ring_of(ring)?;
        let mut kind = [0; 16];
        for (to, from) in kind.iter_mut().zip(ring.kind().as_str().bytes().take(15)) {
            *to = from as c_char;
        }
        let struct_size = place.struct_size;
        let (capacity, max_record_len, slot_size) = (ring.capacity(), ring.max_record_len(), ring.slot_size());
        let closed = ring.is_closed().into();
        place.set(offloop_ring_state { struct_size, kind, capacity, max_record_len, slot_size, closed, reserved: 0 });
        Ok(())
    })
}

/// Ends the ring for everybody: nothing more is pushed, consumers get what is there, and OFFLOOP_ERR_CLOSED after it. Wakes all who wait.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_close(ring: *mut offloop_ring) -> offloop_status {
    ffi::call(|| {
        ring_of(ring)?.close();
        Ok(())
    })
}

/// Frees the handle; the ring stays open, and its producers and consumers go on. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_ring_free(ring: *mut offloop_ring) {
    if !ring.is_null() {
        ffi::call(|| handle::free(ring));
    }
}

/// Makes a producer, for one thread at a time. OFFLOOP_ERR_IN_USE while others take every place of one; a dead process takes none.
/// `options` may be NULL: all defaults.
///
/// # Safety
/// `options` is NULL or as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_new(
    ring: *mut offloop_ring,
    options: *const offloop_producer_options,
    out: *mut *mut offloop_producer,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let o = unsafe { ffi::options(options) }?;
        // SAFETY: as above.
        let on_full: Option<OnFull> = unsafe { parsed(o.on_full, "on_full") }?;
        ffi::unused("reserved", o.reserved)?;
        let ring = ring_of(ring)?;
        let place = Place::new()?;
        let object = Mutex::new(ring.producer(ProducerOptions { batch: o.batch != 0, on_full })?);
        out.set(place.fill_shared(Arc::new(Exclusive { object })));
        Ok(())
    })
}

/// Pushes a copy of `len` bytes; waits for room at most `timeout_ns` (below 0: for ever), unless the policy is "reject", which gives
/// OFFLOOP_ERR_FULL. OFFLOOP_ERR_PEER_DIED when the ring is full and its consumer dead.
///
/// # Safety
/// `data` points at `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_push(
    producer: *mut offloop_producer,
    data: *const c_void,
    len: usize,
    timeout_ns: i64,
) -> offloop_status {
    with_producer(producer, |p| {
        // SAFETY: this function's contract.
        p.push(unsafe { ffi::slice(data.cast::<u8>(), len, "data") }?, ffi::forever_or(timeout_ns))
    })
}

/// What a `try_` call says instead of waiting.
#[cold]
fn full() -> Error {
    Error::new(ErrorKind::Full, "ring is full")
}

/// Pushes a copy of `len` bytes, or nothing: OFFLOOP_ERR_FULL while there is no room.
///
/// # Safety
/// `data` points at `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_try_push(producer: *mut offloop_producer, data: *const c_void, len: usize) -> offloop_status {
    with_producer(producer, |p| {
        // SAFETY: this function's contract.
        if p.try_push(unsafe { ffi::slice(data.cast::<u8>(), len, "data") }?)? { Ok(()) } else { Err(full()) }
    })
}

/// Pushes copies of at most `count` records in one call: waits for room for the first like offloop_producer_push, then pushes as many
/// more as fit. `*pushed` is how many, at least 1; what stops a later one is told by the call that begins with it.
///
/// # Safety
/// `records` points at `count` records, each of which points at its bytes; `pushed` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_push_many(
    producer: *mut offloop_producer,
    records: *const offloop_record,
    count: usize,
    timeout_ns: i64,
    pushed: *mut usize,
) -> offloop_status {
    with_producer(producer, |p| {
        let pushed = ffi::out(pushed, "pushed")?;
        // SAFETY: this function's contract.
        let records = unsafe { ffi::slice(records, count, "records") }?;
        // SAFETY: as above.
        let bytes = |r: &offloop_record| unsafe { ffi::slice(r.data.cast::<u8>(), r.len, "data") };
        let Some((first, rest)) = records.split_first() else {
            return Err(Error::invalid("there is no record to push").with("count", 0));
        };
        p.push(bytes(first)?, ffi::forever_or(timeout_ns))?;
        let more = rest.iter().take_while(|r| bytes(r).and_then(|b| p.try_push(b)).unwrap_or(false)).count();
        pushed.set(1 + more);
        Ok(())
    })
}

/// Claims room for `len` bytes, to be written in place: `*data` is valid until offloop_producer_commit or _abort, and what is there are
/// old bytes of the ring. Waits like offloop_producer_push. A producer has one claim at a time: OFFLOOP_ERR_IN_USE.
///
/// # Safety
/// `data` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_claim(
    producer: *mut offloop_producer,
    len: usize,
    timeout_ns: i64,
    data: *mut *mut c_void,
) -> offloop_status {
    with_producer(producer, |p| {
        let data = ffi::out(data, "data")?;
        data.set(p.claim_ptr(len, ffi::forever_or(timeout_ns))?.as_ptr().cast());
        Ok(())
    })
}

/// Claims room as offloop_producer_claim does, without waiting: OFFLOOP_ERR_FULL while there is none.
///
/// # Safety
/// `data` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_try_claim(producer: *mut offloop_producer, len: usize, data: *mut *mut c_void) -> offloop_status {
    with_producer(producer, |p| {
        let data = ffi::out(data, "data")?;
        data.set(p.try_claim_ptr(len)?.ok_or_else(full)?.as_ptr().cast());
        Ok(())
    })
}

/// Makes the first `len` bytes of the claim a record. OFFLOOP_ERR_INVALID without a claim, or when `len` is more than was claimed,
/// and then it stays open. OFFLOOP_ERR_CLOSED when the ring was closed meanwhile: the record is published for a consumer that is still
/// draining, which may have ended without it.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_commit(producer: *mut offloop_producer, len: usize) -> offloop_status {
    with_producer(producer, |p| p.commit_claim(len))
}

/// Gives the claim up, if there is one: no record was made.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_abort(producer: *mut offloop_producer) -> offloop_status {
    with_producer(producer, |p| {
        p.abort_claim();
        Ok(())
    })
}

/// Publishes what was committed at once, and wakes the consumer if it sleeps; only the option `batch` holds records back.
/// OFFLOOP_ERR_CLOSED when the ring was closed meanwhile, as from offloop_producer_commit.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_flush(producer: *mut offloop_producer) -> offloop_status {
    with_producer(producer, Producer::flush)
}

/// Gives an fd to poll for reading, level-triggered: readable when a full ring may have room again. A call that says OFFLOOP_ERR_FULL
/// has armed it. It is the producer's: never read it, never close it.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_fd(producer: *mut offloop_producer, out: *mut i32) -> offloop_status {
    with_producer(producer, |p| {
        let out = ffi::out(out, "out")?;
        out.set(p.fd()?.as_raw_fd());
        Ok(())
    })
}

/// Frees a producer: publishes what was committed, gives an open claim up and leaves its place to a successor. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_producer_free(producer: *mut offloop_producer) {
    if !producer.is_null() {
        ffi::call(|| handle::free(producer));
    }
}

/// Makes a consumer, for one thread at a time. It goes on where its predecessor let go: what a dead one may have seen comes again,
/// marked. OFFLOOP_ERR_IN_USE while others take every place of one; OFFLOOP_ERR_UNSUPPORTED for `ack` "manual" where the ring is not "mpmc".
/// `options` may be NULL.
///
/// # Safety
/// `options` is NULL or as long as it says, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_new(
    ring: *mut offloop_ring,
    options: *const offloop_consumer_options,
    out: *mut *mut offloop_consumer,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let o = unsafe { ffi::options(options) }?;
        // SAFETY: as above.
        let ack = unsafe { parsed(o.ack, "ack") }?.unwrap_or(Ack::Auto);
        let ring = ring_of(ring)?;
        let place = Place::new()?;
        let consumer = ring.consumer(ConsumerOptions { ack })?;
        let acks = consumer.acks().ok();
        let popping = Exclusive { object: Mutex::new(Popping { consumer, taken: false }) };
        out.set(place.fill_shared(Arc::new(Consuming { popping, acks })));
        Ok(())
    })
}

#[cold]
fn empty() -> Error {
    Error::new(ErrorKind::Empty, "ring is empty")
}

/// Takes the oldest record; waits for one at most `timeout_ns` (below 0: for ever). It stays in the ring, where `record` points, until
/// the next call with this consumer (or offloop_consumer_release), which lets go of it; a successor of a consumer that dies before that gets it
/// again, marked. With `ack` "manual" it stays, and comes again, until it is acknowledged; a consumer has 128 such records at most, and
/// then waits. When the ring is drained: OFFLOOP_ERR_CLOSED, OFFLOOP_ERR_PEER_DIED. An "mpmc" ring is drained when no other consumer
/// has a record that could come back; one that has to acknowledge some itself is not kept waiting for others.
///
/// # Safety
/// `record` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_pop(
    consumer: *mut offloop_consumer,
    timeout_ns: i64,
    record: *mut offloop_record,
) -> offloop_status {
    with_consumer(consumer, |c| {
        let record = ffi::out(record, "record")?;
        c.release();
        c.consumer.wait(ffi::forever_or(timeout_ns))?;
        c.take(record)
    })
}

/// Takes the oldest record as offloop_consumer_pop does, without waiting: OFFLOOP_ERR_EMPTY while there is none.
///
/// # Safety
/// `record` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_try_pop(consumer: *mut offloop_consumer, record: *mut offloop_record) -> offloop_status {
    with_consumer(consumer, |c| {
        let record = ffi::out(record, "record")?;
        c.release();
        c.take(record)
    })
}

/// Takes at most `max` records in one call, without waiting: `*count` is how many, at least 1, else OFFLOOP_ERR_EMPTY. All of them stay
/// where they are until the next call with this consumer, and no other consumer gets one of them.
///
/// # Safety
/// `records` has room for `max` records, `count` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_read(
    consumer: *mut offloop_consumer,
    records: *mut offloop_record,
    max: usize,
    count: *mut usize,
) -> offloop_status {
    with_consumer(consumer, |c| {
        let count = ffi::out(count, "count")?;
        // SAFETY: this function's contract; checked for NULL, alignment and length only.
        unsafe { ffi::slice(records.cast_const().cast::<std::mem::MaybeUninit<offloop_record>>(), max, "records") }?;
        if max == 0 {
            return Err(Error::invalid("there is no room for a record").with("max", 0));
        }
        c.release();
        let mut written = 0;
        let n = c.consumer.read_held(max, |record| {
            // SAFETY: it is called at most `max` times, and there is room for as many by this function's contract.
            unsafe { records.add(written).write(offloop_record::of(record)) };
            written += 1;
        })?;
        if n == 0 {
            return Err(empty());
        }
        c.taken = true;
        count.set(n);
        Ok(())
    })
}

/// Waits until there is a record to take, at most `timeout_ns` (below 0: for ever). Lets go of what was taken before.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_wait(consumer: *mut offloop_consumer, timeout_ns: i64) -> offloop_status {
    with_consumer(consumer, |c| {
        c.release();
        c.consumer.wait(ffi::forever_or(timeout_ns))
    })
}

/// Lets go of what was taken, before the next call does: the producer may have the room again.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_release(consumer: *mut offloop_consumer) -> offloop_status {
    with_consumer(consumer, |c| {
        c.release();
        Ok(())
    })
}

/// Tells that a record is dealt with (`ack` "manual"): it is not delivered again. From any thread, also while another one waits with this
/// consumer. OFFLOOP_ERR_INVALID for a delivery that was acknowledged or given back before, or came from another consumer.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_ack(consumer: *mut offloop_consumer, delivery: u64) -> offloop_status {
    with_acks(consumer, |acks| acks.ack(delivery))
}

/// Gives a record back (`ack` "manual"): some consumer, this one perhaps, gets it at once, marked. Otherwise as offloop_consumer_ack.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_nack(consumer: *mut offloop_consumer, delivery: u64) -> offloop_status {
    with_acks(consumer, |acks| acks.nack(delivery))
}

/// Gives an fd to poll for reading, level-triggered: readable when there may be a record, the ring was closed, or a peer has died. A
/// call that says OFFLOOP_ERR_EMPTY (or CLOSED, PEER_DIED) has armed it: it looked once more after that, so nothing is missed. Until such a call the fd stays
/// readable. It is the consumer's: never read it, never close it.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_fd(consumer: *mut offloop_consumer, out: *mut i32) -> offloop_status {
    with_consumer(consumer, |c| {
        let out = ffi::out(out, "out")?;
        out.set(c.consumer.fd()?.as_raw_fd());
        Ok(())
    })
}

/// Gives how many records of an overwriting ring were overwritten before this consumer came to them.
///
/// # Safety
/// `count` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_lost(consumer: *mut offloop_consumer, count: *mut u64) -> offloop_status {
    with_consumer(consumer, |c| {
        let count = ffi::out(count, "count")?;
        count.set(c.consumer.lost());
        Ok(())
    })
}

/// Frees a consumer: lets go of what was taken and leaves its place to a successor. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_consumer_free(consumer: *mut offloop_consumer) {
    if !consumer.is_null() {
        ffi::call(|| handle::free(consumer));
    }
}
