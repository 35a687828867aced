//! The worker's side of its lane: [`Worker::attach`], [`Worker::ready`], then take jobs and finish them.

use super::arena::{Arena, Span};
use super::{Place, word32, word64};
use crate::buffer::TransferBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::looped::word::{CANCELLED, CLAIMED, DONE, FAILED, LATE, READY};
use crate::supervisor;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::lock;
use crate::sync::mapped::AtomicU32;
use crate::sys::eventfd::EventFd;
use crate::sys::mem::{self, Access};
use crate::sys::{clock, fork, poll};
use crate::wire::lane::{CELL, ENV, FDS, FIXED_LEN, Header, Map, PLACE, SHORT, STOP, TICKETS, WAITER_BELL, parse_env, reply, request};
use memmap2::MmapRaw;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Results that the pool has not been told of are worth a wake when they are so old: a wake costs it a few microseconds.
const UNTOLD_NS: u64 = 50_000;
/// With so many tasks left ahead, or that part of those that were when the last ones came, the pool is told even if it could wait: more come
/// before these are done.
const LOW: u64 = 8;
const LOW_PART: u64 = 4;

/// Long requests that a worker may keep where they lie; further ones are copied.
pub const MAX_KEPT: usize = TICKETS / 2;

/// How long a result waits for room before it is an error.
const FULL: Duration = Duration::from_secs(30);

/// Why [`Worker::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There may be a job.
    Work,
    /// No more jobs come: finish what there is, call [`Worker::drained`], and end the process. In a forked child always: its jobs are its
    /// parent's.
    Drain,
    /// The time is over, or a signal handler ran.
    Timeout,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Sent,
    /// The one before it was not taken yet.
    NotYet,
    /// Nobody takes any more: the job is to end.
    Stopped,
}

/// This process as a worker of a process pool. Copies of the handle are the same worker; any thread may use it. A forked child, which a
/// function may leave behind that comes back twice, is no worker: it gets no job, and nothing that it says is heard.
#[derive(Clone, Debug)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    supervisor: supervisor::Worker,
    header: Header,
    map: Map,
    requests: MmapRaw,
    replies: Arc<MmapRaw>,
    payloads: MmapRaw,
    shared_fd: OwnedFd,
    /// Mapped when a request first refers to it.
    shared: OnceLock<MmapRaw>,
    bell: EventFd,
    pool_bell: EventFd,
    waiter_bell: EventFd,
    taking: Mutex<Taking>,
    /// With so many tasks left ahead, the pool is told.
    low: AtomicU64,
    /// When a job ended last, ns.
    ended_ns: AtomicU64,
    replying: Mutex<Replying>,
    /// Long requests that are still in use.
    kept: AtomicUsize,
    epoch: u64,
}

#[derive(Debug)]
struct Taking {
    head: u64,
    /// What `tail` was at the last look.
    tail: u64,
}

#[derive(Debug)]
struct Replying {
    results: Arc<Arena>,
    /// By ticket: the reply that the pool may read.
    out: Vec<Option<Span>>,
    uses: Vec<u32>,
    free: Vec<u32>,
    /// When the first result that the pool was not told of was there.
    untold_since: Option<u64>,
}

/// What a job's request says: bytes that lie in the pool's memory until this is dropped. The pool may reuse them afterwards.
#[derive(Debug)]
pub struct Payload {
    inner: Arc<Inner>,
    ptr: *mut u8,
    len: usize,
    /// The word of its ticket in `replies`.
    returned: usize,
}

// SAFETY: plain memory of a mapping that `inner` keeps; nobody else in this process has this part.
unsafe impl Send for Payload {}
// SAFETY: as above; `&Payload` only reads.
unsafe impl Sync for Payload {}

impl Payload {
    /// First byte. It may be written: what is written is seen by this process alone.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: inside of the mapping, as was checked; the pool, which is this process's parent, does not write it before it was returned.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if fork::is_current(self.inner.epoch) {
            self.inner.kept.fetch_sub(1, Ordering::Relaxed);
            // Pages that were written here are copies of this process's own: the next payload there is not to be hidden by them.
            mem::forget_private(self.ptr, self.len);
            // Release: what this process read or wrote there is done. Pairs with the Acquire of `Lane::sweep`.
            word32(&self.inner.replies, self.returned).fetch_add(1, Ordering::Release);
        }
    }
}

/// A task that has begun. It must be finished.
#[derive(Debug)]
pub struct Job {
    /// Its number, for [`Worker::finish`] and the others; another job has it later.
    pub index: usize,
    /// When it began.
    pub started_ns: u64,
    /// The request where it was short.
    short: Vec<u8>,
    /// The request where it was long.
    long: Option<Payload>,
}

impl Job {
    /// The request.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        self.long.as_ref().map_or(&self.short, AsRef::as_ref)
    }

    /// The memory of a long request, for whoever reads it after the job has ended; `None` for a short one.
    pub fn take_payload(&mut self) -> Option<Payload> {
        self.long.take()
    }
}

/// Writes all parts, one after the other.
///
/// # Safety
/// There is room for all of them, which is this thread's alone.
unsafe fn write(mut to: *mut u8, parts: &[&[u8]]) {
    for part in parts {
        // SAFETY: as above; a part lies in memory of this process, not there.
        unsafe {
            to.copy_from_nonoverlapping(part.as_ptr(), part.len());
            to = to.add(part.len());
        }
    }
}

impl Worker {
    /// Makes this process the worker that its pool started. `None` when no pool did. See [`supervisor::worker::attach`].
    ///
    /// # Errors
    /// `Invalid` when the variables or the fds are not what a pool leaves, `Corrupt`, `Version`, `InUse` at a second call, `Os`.
    pub fn attach() -> Result<Option<Worker>> {
        let Some(text) = std::env::var_os(ENV) else { return Ok(None) };
        let numbers = parse_env(&text.to_string_lossy())?;
        let Some(supervisor) = supervisor::worker::attach()? else { return Ok(None) };
        // The pool's callers get the reason.
        let told = supervisor.clone();
        Worker::attach_at(supervisor, numbers).inspect_err(|e| told.fail(&e.to_string())).map(Some)
    }

    fn attach_at(supervisor: supervisor::Worker, numbers: [RawFd; FDS]) -> Result<Worker> {
        for fd in numbers {
            // SAFETY: a plain query.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(Error::last_os("fcntl(F_SETFD)").with("fd", fd));
            }
        }
        // SAFETY: all are open, as was seen, and what was inherited for this purpose has no other owner.
        let [requests_fd, replies_fd, payloads_fd, shared_fd, bell, pool_bell, waiter_bell] =
            numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let (requests, requests_len) = mem::attach_inherited(&requests_fd, Access::Read)?;
        let (replies, replies_len) = mem::attach_inherited(&replies_fd, Access::Write)?;
        // A function may write into its argument: that is its own copy, page by page, and a task that runs again sees none of it.
        let (payloads, payloads_len) = mem::attach_inherited(&payloads_fd, Access::Private)?;
        if requests_len < FIXED_LEN {
            return Err(Error::new(ErrorKind::Corrupt, "memfd is shorter than the fixed part of a lane").with("len", requests_len));
        }
        let mut fixed = [0; FIXED_LEN];
        // SAFETY: the mapping is longer than the fixed part.
        unsafe { fixed.as_mut_ptr().copy_from_nonoverlapping(requests.as_ptr(), FIXED_LEN) };
        let header = Header::decode(&fixed, [requests_len, replies_len, payloads_len])?;
        let map = header.map();
        let replies = Arc::new(replies);
        let results = Arc::new(Arena::new(Arc::clone(&replies), replies_fd, map.results, header.results as usize));
        let replying = Replying {
            results,
            out: (0..=TICKETS).map(|_| None).collect(),
            uses: vec![0; TICKETS + 1],
            free: (1..=TICKETS as u32).rev().collect(),
            untold_since: None,
        };
        Ok(Worker(Arc::new(Inner {
            supervisor,
            header,
            map,
            requests,
            replies,
            payloads,
            shared_fd,
            shared: OnceLock::new(),
            bell: EventFd::attach(bell.as_fd())?,
            pool_bell: EventFd::attach(pool_bell.as_fd())?,
            waiter_bell: EventFd::attach(waiter_bell.as_fd())?,
            taking: Mutex::new(Taking { head: 0, tail: 0 }),
            low: AtomicU64::new(LOW),
            ended_ns: AtomicU64::new(0),
            replying: Mutex::new(replying),
            kept: AtomicUsize::new(0),
            epoch: fork::epoch(),
        })))
    }

    /// What the pool says to each of its workers, once.
    #[must_use]
    pub fn setup(&self) -> Vec<u8> {
        let map = &self.0.map;
        // SAFETY: the setup lies inside of the mapping, which is as long as the header says; it does not change.
        unsafe { std::slice::from_raw_parts(self.0.requests.as_ptr().add(map.setup), map.requests - map.setup) }.to_vec()
    }

    /// Jobs that it may run at once.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.0.header.concurrency as usize
    }

    /// Slot and generation, and the supervisor's side of being a worker.
    #[must_use]
    pub fn supervisor(&self) -> &supervisor::Worker {
        &self.0.supervisor
    }

    /// This is a forked child of the worker's process.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        !fork::is_current(self.0.epoch)
    }

    fn check_fork(&self) -> Result<()> {
        if self.is_forked() {
            return Err(Error::new(ErrorKind::Forked, "worker is the parent of this forked process"));
        }
        Ok(())
    }

    /// Says that the program is loaded: jobs come from now on.
    pub fn ready(&self) {
        if !self.is_forked() {
            self.0.supervisor.beat();
            self.0.supervisor.ready();
        }
    }

    /// Leaves the reason why this worker cannot start, for the pool's caller; the process is to end afterwards.
    pub fn fail(&self, text: &str) {
        if !self.is_forked() {
            self.0.supervisor.fail(text);
        }
    }

    /// The `len` bytes that lie `at` in the memory that the pool shares with all of its workers. They stay while the [`Payload`] of the
    /// request that referred to them lives. Every process may write them at any time.
    ///
    /// # Errors
    /// `Corrupt` for what does not lie there, `Os`.
    pub fn shared(&self, at: u64, len: u64) -> Result<*mut u8> {
        let inner = &*self.0;
        let max = inner.header.shared;
        if len > max || at > max - len {
            return Err(Error::new(ErrorKind::Corrupt, "request refers to memory outside of the pool's")
                .with("at", at)
                .with("len", len)
                .with("max", max));
        }
        let map = match inner.shared.get() {
            Some(map) => map,
            None => {
                let (map, len) = mem::attach_inherited(&inner.shared_fd, Access::Write)?;
                if len as u64 != max {
                    return Err(Error::new(ErrorKind::Corrupt, "lane and memfds differ in size").with("shared", len).with("want", max));
                }
                inner.shared.get_or_init(|| map)
            }
        };
        // SAFETY: inside of the mapping, which is as long as the header says.
        Ok(unsafe { map.as_mut_ptr().add(at as usize) })
    }

    /// As [`shared`](Self::shared), as a buffer that keeps the request that referred to it.
    ///
    /// # Errors
    /// As [`shared`](Self::shared).
    pub fn shared_buffer(&self, at: u64, len: u64, payload: Arc<Payload>) -> Result<TransferBuffer> {
        let ptr = self.shared(at, len)?;
        // SAFETY: the payload keeps these bytes, as `shared` says, and the mapping.
        Ok(unsafe { TransferBuffer::from_mapped(ptr, len as usize, Box::new(payload)) })
    }

    /// What the pool finds bytes of [`shared`](Self::shared) by; `None` for other memory.
    #[must_use]
    pub fn shared_at(&self, ptr: *const u8) -> Option<u64> {
        let map = self.0.shared.get()?;
        (ptr as usize).checked_sub(map.as_ptr() as usize).filter(|at| *at < map.len()).map(|at| at as u64)
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: `tasks` words lie there, aligned; both sides access them as atomics.
        unsafe { std::slice::from_raw_parts(self.0.replies.as_mut_ptr().add(reply::WORDS).cast(), self.0.map.tasks) }
    }

    fn tail(&self) -> u64 {
        word64(&self.0.requests, request::TAIL).load(Ordering::Acquire)
    }

    /// The next job, if there is one now.
    #[must_use]
    pub fn try_take(&self) -> Option<Job> {
        self.take(clock::monotonic_ns)
    }

    /// As [`try_take`](Self::try_take), without a look at the clock, by a thread that has ended a job a moment ago: the next one begins when
    /// that ended.
    #[must_use]
    pub fn try_take_next(&self) -> Option<Job> {
        self.take(|| self.0.ended_ns.load(Ordering::Relaxed))
    }

    fn take(&self, now: impl Fn() -> u64) -> Option<Job> {
        // Before any lock: another thread of the parent may have had it.
        if self.is_forked() {
            return None;
        }
        let inner = &*self.0;
        let mut taking = lock(&inner.taking);
        loop {
            let tail = self.tail();
            if taking.head == tail {
                return None;
            }
            if std::mem::replace(&mut taking.tail, tail) != tail {
                inner.low.store((tail.wrapping_sub(taking.head) / LOW_PART).max(LOW), Ordering::Relaxed);
            }
            let slot = taking.head as usize & (inner.map.order_len - 1);
            let index = word32(&inner.requests, request::ORDER + 4 * slot).load(Ordering::Relaxed) as usize;
            let job = (index < inner.map.tasks).then(|| self.begin(index, &now)).flatten();
            taking.head += 1;
            // Release: the request was copied, or its ticket says when it is read. Pairs with the Acquire of `Lane::has_passed`.
            word64(&inner.replies, reply::HEAD).store(taking.head, Ordering::Release);
            if job.is_some() {
                return job;
            }
            // Taken back, or cancelled: its number is free, and the pool may have nothing else to wait for. It hears of it at the latest
            // when this worker sleeps.
            let mut replying = lock(&inner.replying);
            replying.untold_since.get_or_insert_with(clock::monotonic_ns);
        }
    }

    fn begin(&self, index: usize, now: &impl Fn() -> u64) -> Option<Job> {
        let inner = &*self.0;
        let word = &self.words()[index];
        match word.compare_exchange(READY, CLAIMED, Ordering::AcqRel, Ordering::Acquire) {
            // The pool hands out what has a deadline as begun.
            Ok(_) | Err(CLAIMED) => {}
            Err(CANCELLED | LATE) => {
                // Nobody waits for it. A reply without bytes, so that the pool knows that it did not run on; what is long is not read.
                let asked = Place::load(&inner.requests, inner.map.request_places + PLACE * index).ticket as usize;
                if (1..=TICKETS).contains(&asked) {
                    word32(&inner.replies, inner.map.returned + 4 * asked).fetch_add(1, Ordering::Release);
                }
                Place { at: 0, len: 0, ticket: 0 }.store(&inner.replies, inner.map.reply_places + PLACE * index);
                word.store(FAILED, Ordering::Release);
                lock(&inner.replying).untold_since.get_or_insert(clock::monotonic_ns());
                return None;
            }
            Err(_) => return None,
        }
        let place = Place::load(&inner.requests, inner.map.request_places + PLACE * index);
        let len = place.len as usize;
        let mut job = Job { index, started_ns: now(), short: Vec::new(), long: None };
        if place.ticket == 0 && len <= CELL {
            let cell = inner.map.request_cells + CELL * index;
            // SAFETY: the cell lies inside of the mapping; the pool does not write it before this task has ended.
            job.short = unsafe { std::slice::from_raw_parts(inner.requests.as_ptr().add(cell), len) }.to_vec();
        } else {
            assert!(
                (1..=TICKETS as u32).contains(&place.ticket)
                    && place.len <= inner.header.payloads
                    && place.at <= inner.header.payloads - place.len,
                "the pool gives places inside of its payloads"
            );
            // SAFETY: inside of the mapping, as asserted.
            let ptr = unsafe { inner.payloads.as_mut_ptr().add(place.at as usize) };
            let returned = inner.map.returned + 4 * place.ticket as usize;
            let payload = Payload { inner: Arc::clone(&self.0), ptr, len, returned };
            if inner.kept.fetch_add(1, Ordering::Relaxed) < MAX_KEPT {
                job.long = Some(payload);
            } else {
                // Whoever keeps so many may keep them for good, and the pool has no more tickets than these twice.
                job.short = payload.as_ref().to_vec();
            }
        }
        // What a predecessor of this index said last.
        word64(&inner.replies, inner.map.reply_cells + CELL * index).store(0, Ordering::Release);
        Some(job)
    }

    /// Why nobody waits for this job any more: `Cancelled`, `Timeout`; `None` while somebody does.
    #[must_use]
    pub fn is_cancelled(&self, index: usize) -> Option<ErrorKind> {
        match self.words()[index].load(Ordering::Relaxed) {
            CANCELLED => Some(ErrorKind::Cancelled),
            LATE => Some(ErrorKind::Timeout),
            _ => None,
        }
    }

    /// Tells the caller how far a job is. Only the latest value counts.
    ///
    /// # Errors
    /// `TooLarge` above [`SHORT`], `Forked`.
    pub fn progress(&self, index: usize, bytes: &[u8]) -> Result<()> {
        self.check_fork()?;
        if bytes.len() > SHORT {
            return Err(Error::new(ErrorKind::TooLarge, "progress is longer than the limit").with("len", bytes.len()).with("max", SHORT));
        }
        let inner = &*self.0;
        let mut replying = lock(&inner.replying);
        if self.words()[index].load(Ordering::Relaxed) >= DONE {
            return Ok(()); // it has ended
        }
        let cell = inner.map.reply_cells + CELL * index;
        let sequence = word64(&inner.replies, cell);
        let before = sequence.load(Ordering::Relaxed);
        sequence.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        word64(&inner.replies, cell + 8).store(bytes.len() as u64, Ordering::Relaxed);
        // SAFETY: the cell lies inside of the mapping; a reader sees by the sequence that it is being written.
        unsafe { inner.replies.as_mut_ptr().add(cell + 16).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        sequence.store(before + 2, Ordering::Release);
        self.tell(&mut replying);
        Ok(())
    }

    /// Somebody takes what this job says while it runs.
    #[must_use]
    pub fn is_streamed(&self, index: usize) -> bool {
        self.taken(index) & STOP == 0 && self.is_cancelled(index).is_none() && !self.is_forked()
    }

    fn taken(&self, index: usize) -> u32 {
        // Acquire: pairs with the Release of `Lane::answer`.
        word32(&self.0.requests, self.0.map.taken + 4 * index).load(Ordering::Acquire)
    }

    /// The last frame was taken: the next one can be sent.
    #[must_use]
    pub fn is_taken(&self, index: usize) -> bool {
        self.taken(index) & !STOP == word32(&self.0.replies, self.0.map.frames + 4 * index).load(Ordering::Relaxed)
    }

    /// Sends a frame, the bytes of `parts` one after the other, if the one before it was taken.
    ///
    /// # Errors
    /// As [`finish`](Self::finish): nothing was sent.
    pub fn try_frame(&self, index: usize, parts: &[&[u8]]) -> Result<Sent> {
        let inner = &*self.0;
        if !self.is_streamed(index) {
            return Ok(Sent::Stopped);
        }
        if !self.is_taken(index) {
            return Ok(Sent::NotYet);
        }
        let frames = word32(&inner.replies, inner.map.frames + 4 * index);
        let sent = frames.load(Ordering::Relaxed);
        let (place, ptr) = self.long(parts.iter().map(|p| p.len()).sum())?;
        // SAFETY: `long` gave room for all parts.
        unsafe { write(ptr, parts) };
        place.store(&inner.replies, inner.map.frame_places + PLACE * index);
        // Release: the frame and its place come first. Pairs with the Acquire of `Lane::read_frame`.
        frames.store((sent + 1) & !STOP, Ordering::Release);
        self.tell(&mut lock(&inner.replying));
        Ok(Sent::Sent)
    }

    /// Waits until a frame can be sent; false if nobody takes one any more. One thread at a time may wait.
    #[must_use]
    pub fn wait_taken(&self, index: usize) -> bool {
        loop {
            self.listen();
            if !self.is_streamed(index) {
                return false;
            }
            if self.is_taken(index) {
                return true;
            }
            poll::wait_readable(&mut [poll::readable(self.0.bell.fd().as_raw_fd())], None);
            self.0.bell.clear();
        }
    }

    /// Ends a job: with the result that `parts` are, one after the other, or, with `failed`, with an error of the function.
    ///
    /// # Errors
    /// `TooLarge`, `Full`, `Os`: there is no memory for so long a reply; the job has not ended. `Forked`.
    pub fn finish(&self, job: &Job, failed: bool, parts: &[&[u8]]) -> Result<()> {
        let len = parts.iter().map(|p| p.len()).sum();
        let reserved = self.reserve(job.index, len)?;
        // SAFETY: `reserve` gave room for all parts.
        unsafe { write(reserved, parts) };
        self.commit(job.index, job.started_ns, failed);
        Ok(())
    }

    /// Room for a reply of `len` bytes, to be written before [`commit`](Self::commit).
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn reserve(&self, index: usize, len: usize) -> Result<*mut u8> {
        self.check_fork()?;
        let inner = &*self.0;
        assert!(index < inner.map.tasks, "an index of a job");
        let place_at = inner.map.reply_places + PLACE * index;
        let cell = inner.map.reply_cells + CELL * index;
        let sequence = word64(&inner.replies, cell);
        // Odd: what lies there is no progress any more. The fence pairs with the one in `Lane::progress`.
        sequence.store(sequence.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        if len <= SHORT {
            Place { at: 0, len: len as u64, ticket: 0 }.store(&inner.replies, place_at);
            // SAFETY: the cell lies inside of the mapping.
            return Ok(unsafe { inner.replies.as_mut_ptr().add(cell + 16) });
        }
        let (place, ptr) = self.long(len)?;
        place.store(&inner.replies, place_at);
        Ok(ptr)
    }

    /// Room for `len` bytes under a ticket.
    fn long(&self, len: usize) -> Result<(Place, *mut u8)> {
        let inner = &*self.0;
        let until = Instant::now() + FULL;
        let (mut replying, ticket, span) = loop {
            let mut replying = lock(&inner.replying);
            self.sweep(&mut replying);
            let room = match replying.free.last().copied() {
                None => Err(Error::new(ErrorKind::Full, "the pool's process keeps too many long results").with("max", TICKETS)),
                Some(ticket) => replying.results.alloc(len).map(|span| (ticket, span)),
            };
            match room {
                Ok((ticket, span)) => break (replying, ticket, span),
                // The pool's thread takes results whether anybody asks for them or not.
                Err(e) if e.kind() == ErrorKind::Full && Instant::now() < until => self.tell(&mut replying),
                Err(e) => return Err(e),
            }
            drop(replying);
            std::thread::sleep(Duration::from_micros(200));
        };
        replying.free.pop();
        let ptr = span.as_ptr();
        let place = Place { at: span.at() as u64, len: len as u64, ticket };
        replying.uses[ticket as usize] = replying.uses[ticket as usize].wrapping_add(1);
        replying.out[ticket as usize] = Some(span);
        Ok((place, ptr))
    }

    /// Takes back what the pool has read.
    fn sweep(&self, replying: &mut Replying) {
        if replying.free.len() == TICKETS {
            return;
        }
        for ticket in 1..=TICKETS {
            // Acquire: pairs with the Release of the pool's `Reply::drop`.
            let freed = word32(&self.0.requests, self.0.map.freed + 4 * ticket).load(Ordering::Acquire);
            if replying.out[ticket].is_some() && freed == replying.uses[ticket] {
                replying.out[ticket] = None;
                replying.free.push(ticket as u32);
            }
        }
    }

    /// Ends a job that began at `started_ns` and whose reply was written to what [`reserve`](Self::reserve) gave.
    pub fn commit(&self, index: usize, started_ns: u64, failed: bool) {
        if self.is_forked() {
            return;
        }
        let inner = &*self.0;
        let now = clock::monotonic_ns();
        inner.ended_ns.store(now, Ordering::Relaxed);
        word64(&inner.replies, inner.map.run + 8 * index).store(now.saturating_sub(started_ns), Ordering::Relaxed);
        // Release: reply, place and run time come first. Pairs with the Acquire of `Hand::collect`.
        self.words()[index].store(if failed { FAILED } else { DONE }, Ordering::Release);
        let mut replying = lock(&inner.replying);
        let since = *replying.untold_since.get_or_insert(now);
        // Not under `taking`: another thread may take meanwhile, and then it tells.
        let ahead = self.tail().wrapping_sub(word64(&inner.replies, reply::HEAD).load(Ordering::Relaxed));
        if ahead == 0 || ahead == inner.low.load(Ordering::Relaxed) || now.saturating_sub(since) > UNTOLD_NS {
            self.tell(&mut replying);
        }
    }

    /// Wakes the pool if it sleeps. (Fence: either the pool's look after it said that it sleeps sees what was stored here, or this sees that it does.)
    fn tell(&self, replying: &mut Replying) {
        let inner = &*self.0;
        replying.untold_since = None;
        fence(Ordering::SeqCst);
        let sleeps = word32(&inner.replies, reply::POOL_SLEEPS);
        if sleeps.load(Ordering::Relaxed) != 0 {
            match sleeps.swap(0, Ordering::AcqRel) {
                0 => {}
                WAITER_BELL => inner.waiter_bell.signal_shared(),
                _ => inner.pool_bell.signal_shared(),
            }
        }
    }

    /// Waits until there may be a job, at most `timeout` (`None`: without end). One thread at a time may wait.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> Woken {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            if self.is_forked() {
                return Woken::Drain;
            }
            if !self.arm() {
                return Woken::Work;
            }
            if self.0.supervisor.is_draining() {
                return Woken::Drain;
            }
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                return Woken::Timeout;
            }
            let mut fds = [poll::readable(self.0.bell.fd().as_raw_fd()), poll::readable(self.0.supervisor.drain_fd().as_raw_fd())];
            poll::wait_readable(&mut fds, left);
            let woken = fds.iter().any(poll::is_ready);
            self.0.bell.clear();
            if !woken {
                return Woken::Timeout;
            }
        }
    }

    /// The fd that is readable when a worker that has [armed](Self::arm) is to look; for an event loop, beside
    /// [`drain_fd`](supervisor::Worker::drain_fd).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.bell.fd()
    }

    /// Says that this worker sleeps; false if there is something to look at already. [`clear`](Self::clear) follows the wake.
    #[must_use]
    pub fn arm(&self) -> bool {
        {
            let mut replying = lock(&self.0.replying);
            if replying.untold_since.is_some() {
                self.tell(&mut replying);
            }
        }
        word32(&self.0.replies, reply::WORKER_SLEEPS).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let head = lock(&self.0.taking).head;
        if self.tail() == head {
            return true;
        }
        word32(&self.0.replies, reply::WORKER_SLEEPS).store(0, Ordering::Relaxed);
        false
    }

    /// Says that this worker wants to hear of the jobs that it runs, whatever there is to take: [`fd`](Self::fd) tells of the next cancel or
    /// deadline of one of them, and of jobs that are sent. Look at [`is_cancelled`](Self::is_cancelled) after this call.
    pub fn listen(&self) {
        word32(&self.0.replies, reply::WORKER_SLEEPS).store(1, Ordering::Relaxed);
        // Pairs with the look of `Lane::wake`, after the store of what it tells: either it rings, or the caller sees that.
        fence(Ordering::SeqCst);
    }

    /// Makes [`fd`](Self::fd) unreadable until the next wake.
    pub fn clear(&self) {
        self.0.bell.clear();
    }

    /// Says that all jobs are finished; the process is to end by itself now.
    pub fn drained(&self) {
        if !self.is_forked() {
            self.0.supervisor.drained();
        }
    }
}
