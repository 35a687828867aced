//! The pool's side of a lane.

use super::arena::{Arena, Span};
use super::shared::{SharedPart, Table};
use super::stream::Stream;
use super::{Place, word32, word64};
use crate::buffer::TransferBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::looped::Shared;
use crate::sync::atomic::{AtomicUsize, Ordering, fence};
use crate::sync::lock;
use crate::sync::mapped::AtomicU32;
use crate::sys::eventfd::EventFd;
use crate::sys::{fork, mem};
use crate::value::Value;
use crate::wire::lane::{
    CELL, ENV, FDS, FIXED_LEN, Header, MAX_SETUP, MAX_TASKS, MINOR, Map, PLACE, POOL_BELL, SHORT, STOP, TICKETS, reply, request,
};
use memmap2::MmapRaw;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

/// Addresses for long payloads and for shared memory of one pool, and for long results of one lane: what a process may have at most at once. Memory is taken
/// as far as it is used.
const PAYLOADS: usize = 32 << 30;
const SHARED: usize = 32 << 30;
const RESULTS: usize = 8 << 30;
/// Long replies of one worker that may be kept where they lie; further ones are copied.
const MAX_KEPT: usize = TICKETS / 2;
/// Frames up to this length are copied, so that nobody has to give their memory back.
const COPIED: usize = 16 << 10;
/// A reply that is longer is looked at: whether there is so much memory at all.
const HOLE: usize = 64 << 10;
/// With less than this no lane can be made.
const LEAST: usize = 64 << 20;

/// A memfd of `head` bytes and as much of `most` as there are addresses for.
fn sparse(name: &std::ffi::CStr, head: usize, most: usize) -> Result<(OwnedFd, MmapRaw, usize)> {
    let mut rest = most;
    loop {
        match mem::create_sparse(name, head, head + rest) {
            Ok((fd, map)) => return Ok((fd, map, rest)),
            // RLIMIT_AS, RLIMIT_FSIZE.
            Err(e)
                if rest > LEAST && e.errno().is_some_and(|(n, call)| matches!(n, libc::ENOMEM | libc::EFBIG) && call != "memfd_create") =>
            {
                rest /= 2;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Memory for the long requests of a pool.
#[derive(Clone, Debug)]
pub(in crate::pool) struct Payloads {
    arena: Arc<Arena>,
    /// Apart from the others' requests: a worker maps it writable.
    sharing: Arc<Arena>,
    shared: Arc<Table>,
}

impl Payloads {
    pub(in crate::pool) fn new() -> Result<Payloads> {
        let (fd, map, len) = sparse(c"offloop-payloads", 0, PAYLOADS)?;
        let arena = Arc::new(Arena::new(Arc::new(map), fd, 0, len));
        let (fd, map, len) = sparse(c"offloop-shared", 0, SHARED)?;
        Ok(Payloads { arena, sharing: Arc::new(Arena::lazy(Arc::new(map), fd, 0, len)), shared: Arc::default() })
    }

    /// Memory that requests may refer to.
    pub(in crate::pool) fn share(&self, len: usize) -> Result<SharedPart> {
        SharedPart::new(&self.sharing, &self.shared, len)
    }

    /// What was shared and has these bytes, and where they lie among all that may be.
    pub(in crate::pool) fn shared(&self, ptr: *const u8, len: usize) -> Option<(SharedPart, u64)> {
        let at = self.sharing.place_of(ptr)?;
        Some((SharedPart::find(&self.shared, at, len)?, at as u64))
    }

    /// A request of the bytes of `parts`, one after the other, that refers to `shared`.
    pub(in crate::pool) fn request(&self, parts: &[&[u8]], shared: Vec<SharedPart>) -> Result<Request> {
        let len = parts.iter().map(|p| p.len()).sum();
        // What refers to something has a ticket, which says how long the worker does.
        if len <= CELL && shared.is_empty() {
            let body = if len <= TINY { Body::Tiny(Tiny::concat(parts)) } else { Body::Short(parts.concat().into()) };
            return Ok(Request { body, stream: None });
        }
        let span = self.arena.alloc(len)?;
        let mut at = 0;
        for part in parts {
            // SAFETY: the span is ours alone and as long as all parts.
            unsafe { span.as_ptr().add(at).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            at += part.len();
        }
        Ok(Request { body: Body::Long(Arc::new(Long { span, _shared: shared })), stream: None })
    }
}

/// What a worker process is asked to do: bytes that the caller's language and the worker's agree on.
#[derive(Clone, Debug)]
pub struct Request {
    body: Body,
    stream: Option<Stream>,
}

#[derive(Clone, Debug)]
enum Body {
    Tiny(Tiny),
    Short(Box<[u8]>),
    Long(Arc<Long>),
}

/// Requests up to this length have no memory of their own: the thread that frees it is not the one that takes the next.
const TINY: usize = 127;

#[derive(Clone, Debug)]
struct Tiny {
    len: u8,
    bytes: [u8; TINY],
}

impl Tiny {
    /// Of parts that have [`TINY`] bytes at most.
    fn concat(parts: &[&[u8]]) -> Tiny {
        let mut tiny = Tiny { len: 0, bytes: [0; TINY] };
        for part in parts {
            let at = usize::from(tiny.len);
            tiny.bytes[at..at + part.len()].copy_from_slice(part);
            tiny.len += part.len() as u8;
        }
        tiny
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[derive(Debug)]
struct Long {
    span: Span,
    /// What it refers to.
    _shared: Vec<SharedPart>,
}

impl Request {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Tiny(tiny) => tiny.len.into(),
            Body::Short(bytes) => bytes.len(),
            Body::Long(long) => long.span.len(),
        }
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the function says while it runs goes to `stream`, which no other request has.
    #[must_use]
    pub fn streaming(mut self, stream: &Stream) -> Request {
        self.stream = Some(stream.clone());
        self
    }
}

/// What is on its way.
#[derive(Debug)]
struct Sending {
    tail: u64,
    /// By index: where in `order` it was given last.
    given: Vec<u64>,
    /// By ticket, from 1 on: the payload that the worker may read.
    out: Vec<Option<Arc<Long>>>,
    /// By ticket: how often it was used.
    uses: Vec<u32>,
    free: Vec<u32>,
    /// By index: the ticket of its long request; 0 without one.
    tickets: Vec<u32>,
    /// By index: the last progress that was read.
    progress: Vec<u64>,
    /// By index: who takes its frames, and in which run of its task.
    streams: Vec<Option<(Stream, u64)>>,
    /// By index: the frames that were read, as its worker counts them.
    frames: Vec<u32>,
}

/// The fds of a lane that its worker inherits, and the variable that names them.
#[derive(Debug)]
pub(in crate::pool) struct Ends {
    fds: [OwnedFd; FDS],
}

impl Ends {
    /// The variable's name and value, and `(fd, number)`, from `first` on.
    pub(in crate::pool) fn launch(self, first: RawFd) -> ((&'static str, String), Vec<(OwnedFd, RawFd)>) {
        let numbers: Vec<String> = (first..first + FDS as RawFd).map(|n| n.to_string()).collect();
        ((ENV, numbers.join(",")), self.fds.into_iter().zip(first..).collect())
    }
}

/// One worker's lane.
#[derive(Debug)]
pub(in crate::pool) struct Lane {
    map: Map,
    requests: Arc<MmapRaw>,
    replies: Arc<MmapRaw>,
    results: usize,
    /// The memory of `replies`.
    replies_fd: OwnedFd,
    /// Long replies that are still in use.
    kept: Arc<AtomicUsize>,
    /// The worker's.
    bell: EventFd,
    sending: Mutex<Sending>,
    /// Tasks with a stream.
    streaming: AtomicUsize,
    /// Held until a frame that was seen is with its stream: nobody ends the stream in between. Taken before `sending`.
    reading: Mutex<()>,
}

impl Lane {
    pub(in crate::pool) fn new(
        tasks: usize,
        concurrency: usize,
        setup: &[u8],
        payloads: &Payloads,
        bells: [&EventFd; 2],
    ) -> Result<(Lane, Ends)> {
        if setup.len() > MAX_SETUP {
            return Err(Error::new(ErrorKind::TooLarge, "setup of workers is longer than the limit")
                .with("len", setup.len())
                .with("max", MAX_SETUP));
        }
        assert!((1..=MAX_TASKS).contains(&tasks), "a worker holds few tasks");
        let arena = &payloads.arena;
        let mut header = Header {
            minor: MINOR,
            tasks: tasks as u32,
            concurrency: concurrency as u32,
            setup: setup.len() as u64,
            payloads: arena.len() as u64,
            results: 0,
            shared: payloads.sharing.len() as u64,
        };
        let (replies_fd, replies, results) = sparse(c"offloop-replies", header.map().results, RESULTS)?;
        header.results = results as u64;
        let map = header.map();
        let (requests_fd, requests) = mem::create_for_readers(c"offloop-requests", map.requests)?;
        // SAFETY: both parts lie inside of the mapping, which nobody else has yet.
        unsafe {
            requests.as_mut_ptr().copy_from_nonoverlapping(header.encode().as_ptr(), FIXED_LEN);
            requests.as_mut_ptr().add(map.setup).copy_from_nonoverlapping(setup.as_ptr(), setup.len());
        }
        let bell = EventFd::new()?;
        let copy = |fd: BorrowedFd<'_>| crate::sys::poll::duplicate(fd);
        let own_replies_fd = copy(replies_fd.as_fd())?;
        let ends = Ends {
            fds: [
                requests_fd,
                replies_fd,
                copy(arena.fd())?,
                copy(payloads.sharing.fd())?,
                copy(bell.fd())?,
                copy(bells[0].fd())?,
                copy(bells[1].fd())?,
            ],
        };
        let sending = Sending {
            tail: 0,
            given: vec![0; tasks],
            out: (0..=TICKETS).map(|_| None).collect(),
            uses: vec![0; TICKETS + 1],
            free: (1..=TICKETS as u32).rev().collect(),
            tickets: vec![0; tasks],
            progress: vec![0; tasks],
            streams: vec![None; tasks],
            frames: vec![0; tasks],
        };
        let lane = Lane {
            map,
            requests: Arc::new(requests),
            replies: Arc::new(replies),
            results,
            replies_fd: own_replies_fd,
            kept: Arc::default(),
            bell,
            sending: Mutex::new(sending),
            streaming: AtomicUsize::new(0),
            reading: Mutex::new(()),
        };
        // Until the pool has looked at it once, its worker rings.
        lane.sleep(POOL_BELL);
        Ok((lane, ends))
    }

    /// Writes the request of a task that was handed out; [`publish`](Self::publish) follows once its word is stored. False if the worker
    /// keeps too many long payloads: nothing is written.
    pub(in crate::pool) fn put(self: &Arc<Lane>, index: usize, request: &Request) -> bool {
        let place_at = self.map.request_places + PLACE * index;
        let mut sending = lock(&self.sending);
        let place = match &request.body {
            Body::Tiny(tiny) => self.put_short(index, tiny.as_slice()),
            Body::Short(bytes) => self.put_short(index, bytes),
            Body::Long(long) => {
                let Some(ticket) = sending.free.pop() else { return false };
                sending.out[ticket as usize] = Some(Arc::clone(long));
                sending.uses[ticket as usize] = sending.uses[ticket as usize].wrapping_add(1);
                Place { at: long.span.at() as u64, len: long.span.len() as u64, ticket }
            }
        };
        place.store(&self.requests, place_at);
        let tail = sending.tail;
        let slot = tail as usize & (self.map.order_len - 1);
        word32(&self.requests, request::ORDER + 4 * slot).store(index as u32, Ordering::Relaxed);
        sending.given[index] = tail;
        sending.tickets[index] = place.ticket;
        sending.progress[index] = 0;
        self.begin_stream(&mut sending, index, request.stream.as_ref());
        sending.tail = tail + 1;
        true
    }

    /// Writes a request of at most [`CELL`] bytes.
    fn put_short(&self, index: usize, bytes: &[u8]) -> Place {
        assert!(bytes.len() <= CELL, "a short request fits a cell");
        // SAFETY: the cell lies inside of the mapping and is long enough, as asserted; the worker reads it after `tail` says so.
        unsafe {
            let cell = self.requests.as_mut_ptr().add(self.map.request_cells + CELL * index);
            cell.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        Place { at: 0, len: bytes.len() as u64, ticket: 0 }
    }

    /// The task of this number has this stream, and begins with as many frames taken as there were before it.
    fn begin_stream(self: &Arc<Lane>, sending: &mut Sending, index: usize, stream: Option<&Stream>) {
        let had = sending.streams[index].take().is_some();
        let taken = word32(&self.requests, self.map.taken + 4 * index);
        let Some(stream) = stream else {
            if had {
                self.streaming.fetch_sub(1, Ordering::Relaxed);
            }
            taken.store(STOP, Ordering::Relaxed);
            return;
        };
        if !had {
            self.streaming.fetch_add(1, Ordering::Relaxed);
        }
        let count = word32(&self.replies, self.map.frames + 4 * index).load(Ordering::Relaxed) & !STOP;
        sending.frames[index] = count;
        let (run, stopped) = stream.begin(Arc::downgrade(self), index, sending.given[index]);
        sending.streams[index] = Some((stream.clone(), run));
        taken.store(count | if stopped { STOP } else { 0 }, Ordering::Relaxed);
    }

    /// Says that the last frame of a task that was given at `given` was taken, or that nobody takes any more.
    pub(super) fn answer(&self, index: usize, given: u64, stop: bool) {
        {
            let sending = lock(&self.sending);
            if sending.given[index] != given || sending.streams[index].is_none() {
                return; // it has ended
            }
            let taken = word32(&self.requests, self.map.taken + 4 * index);
            let stopped = if stop { STOP } else { taken.load(Ordering::Relaxed) & STOP };
            taken.store(sending.frames[index] | stopped, Ordering::Release);
        }
        // Either the worker's look after `listen` sees it, or this sees that it listens.
        fence(Ordering::SeqCst);
        self.wake();
    }

    /// Gives the frames of all tasks to who takes them. False: the worker does not keep to the order.
    pub(in crate::pool) fn read_frames(&self) -> bool {
        self.streaming.load(Ordering::Relaxed) == 0 || (0..self.map.tasks).all(|index| self.read_frame(index).is_ok())
    }

    fn read_frame(&self, index: usize) -> Result<()> {
        let _reading = lock(&self.reading);
        let (stream, run) = {
            let mut sending = lock(&self.sending);
            let Some(stream) = sending.streams[index].clone() else { return Ok(()) };
            let (read, count) = (sending.frames[index], word32(&self.replies, self.map.frames + 4 * index).load(Ordering::Acquire));
            if count == read {
                return Ok(());
            }
            let taken = word32(&self.requests, self.map.taken + 4 * index).load(Ordering::Relaxed) & !STOP;
            if count != (read + 1) & !STOP || taken != read {
                return Err(Error::new(ErrorKind::Corrupt, "frame comes before the last was taken")
                    .with("frames", count)
                    .with("read", read));
            }
            sending.frames[index] = count;
            stream
        };
        let frame = self.long(Place::load(&self.replies, self.map.frame_places + PLACE * index), COPIED)?;
        stream.deliver(run, frame);
        Ok(())
    }

    /// The last frame of a task that has ended.
    fn end_stream(&self, index: usize) -> Result<()> {
        if self.streaming.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let read = self.read_frame(index);
        self.drop_stream(&mut lock(&self.sending), index);
        read
    }

    fn drop_stream(&self, sending: &mut Sending, index: usize) {
        if sending.streams[index].take().is_some() {
            self.streaming.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Shows what was put since the last call, and wakes the worker if it sleeps.
    pub(in crate::pool) fn publish(&self) {
        let tail = word64(&self.requests, request::TAIL);
        let now = lock(&self.sending).tail;
        if tail.load(Ordering::Relaxed) == now {
            return;
        }
        tail.store(now, Ordering::Release);
        fence(Ordering::SeqCst);
        self.wake();
    }

    /// Wakes the worker if it sleeps.
    pub(in crate::pool) fn wake(&self) {
        let sleeps = word32(&self.replies, reply::WORKER_SLEEPS);
        if sleeps.load(Ordering::Relaxed) != 0 && sleeps.swap(0, Ordering::AcqRel) != 0 {
            self.bell.signal_shared();
        }
    }

    /// Says whose bell is to be rung from now on ([`POOL_BELL`], or `WAITER_BELL`), unless a look after this call and a fence finds something.
    pub(in crate::pool) fn sleep(&self, bell: u32) {
        word32(&self.replies, reply::POOL_SLEEPS).store(bell, Ordering::Relaxed);
    }

    /// As [`sleep`](Self::sleep) of the pool's thread, which leaves the bell of somebody who leads as it is.
    pub(in crate::pool) fn sleep_unless(&self, leading: bool) {
        let sleeps = word32(&self.replies, reply::POOL_SLEEPS);
        if leading {
            let _ = sleeps.compare_exchange(0, POOL_BELL, Ordering::Relaxed, Ordering::Relaxed);
        } else {
            sleeps.store(POOL_BELL, Ordering::Relaxed);
        }
    }

    /// Takes payloads back that the worker reads no more. False if it says of one what cannot be.
    #[must_use]
    pub(in crate::pool) fn sweep(&self) -> bool {
        let mut back = Vec::new();
        let mut sound = true;
        {
            let mut sending = lock(&self.sending);
            if sending.free.len() == TICKETS {
                return true;
            }
            for ticket in 1..=TICKETS {
                if sending.out[ticket].is_none() {
                    continue;
                }
                let returned = word32(&self.replies, self.map.returned + 4 * ticket).load(Ordering::Acquire);
                match sending.uses[ticket].wrapping_sub(returned) {
                    0 => {
                        back.push(sending.out[ticket].take());
                        sending.free.push(ticket as u32);
                    }
                    uses => sound &= uses == 1,
                }
            }
        }
        drop(back);
        sound
    }

    /// What a running task said last, if it is news.
    pub(in crate::pool) fn progress(&self, index: usize) -> Option<Vec<u8>> {
        let cell = self.map.reply_cells + CELL * index;
        let sequence = word64(&self.replies, cell);
        let before = sequence.load(Ordering::Acquire);
        if before.is_multiple_of(2) && before != 0 && lock(&self.sending).progress[index] != before {
            let len = word64(&self.replies, cell + 8).load(Ordering::Relaxed) as usize;
            let bytes = (len <= SHORT).then(|| self.copy(cell + 16, len).ok())??;
            // Pairs with the fences of `Worker::progress` and `Worker::reserve`: what was copied is whole if the sequence is what it was.
            fence(Ordering::Acquire);
            if sequence.load(Ordering::Relaxed) == before {
                lock(&self.sending).progress[index] = before;
                return Some(bytes);
            }
        }
        None
    }

    /// What lies under a ticket; up to `copied` bytes of it are copied.
    fn long(&self, place: Place, copied: usize) -> Result<Value> {
        let (at, len) = (usize::try_from(place.at).unwrap_or(usize::MAX), usize::try_from(place.len).unwrap_or(usize::MAX));
        let ticket = place.ticket as usize;
        if ticket == 0 || ticket > TICKETS || at > self.results || len > self.results - at {
            let e = Error::new(ErrorKind::Corrupt, "reply lies outside of the worker's lane");
            return Err(e.with("offset", place.at).with("len", place.len).with("ticket", ticket));
        }
        let reply = Reply {
            replies: Arc::clone(&self.replies),
            requests: Arc::clone(&self.requests),
            freed: self.map.freed + 4 * ticket,
            kept: Arc::clone(&self.kept),
            epoch: fork::epoch(),
        };
        if len > HOLE && !mem::has_memory(&self.replies_fd, len) {
            // Reading it would fill the holes with memory of this process.
            return Err(Error::new(ErrorKind::Corrupt, "reply is longer than the memory that its worker has").with("len", len));
        }
        if self.kept.fetch_add(1, Ordering::Relaxed) >= MAX_KEPT || len <= copied {
            // Whoever keeps so many may keep them for good, and the worker has no more tickets than these twice.
            return Ok(Value::Bytes(self.copy(self.map.results + at, len)?.into()));
        }
        // SAFETY: the results lie inside of the mapping, and this reply inside of them, as checked; the guard keeps the mapping.
        let buffer = unsafe {
            let ptr = reply.replies.as_mut_ptr().add(self.map.results + at);
            TransferBuffer::from_mapped(ptr, len, Box::new(reply))
        };
        Ok(Value::Buffer(buffer))
    }

    /// A private copy of what the worker may be writing.
    ///
    /// # Errors
    /// `Os`: no memory.
    fn copy(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        assert!(at + len <= self.replies.len(), "a copy lies inside of the mapping");
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Error::os("malloc", libc::ENOMEM).with("len", len))?;
        // SAFETY: inside of the mapping, as asserted. A worker that writes meanwhile breaks its own bytes, which are judged afterwards.
        unsafe {
            std::ptr::copy_nonoverlapping(self.replies.as_ptr().add(at), bytes.as_mut_ptr(), len);
            bytes.set_len(len);
        }
        Ok(bytes)
    }
}

impl Shared for Lane {
    fn words(&self) -> &[AtomicU32] {
        // SAFETY: `tasks` words lie there, aligned; both sides access them as atomics.
        unsafe { std::slice::from_raw_parts(self.replies.as_mut_ptr().add(reply::WORDS).cast(), self.map.tasks) }
    }

    fn result(&self, index: usize) -> (u64, Result<Value>) {
        let run = word64(&self.replies, self.map.run + 8 * index).load(Ordering::Relaxed);
        let place = Place::load(&self.replies, self.map.reply_places + PLACE * index);
        if let Err(e) = self.end_stream(index) {
            return (run, Err(e));
        }
        if place.ticket == 0 && place.len <= SHORT as u64 {
            let copied = self.copy(self.map.reply_cells + CELL * index + 16, place.len as usize);
            return (run, copied.map(|bytes| Value::Bytes(bytes.into())));
        }
        (run, self.long(place, 0))
    }

    fn has_passed(&self, index: usize) -> bool {
        let mut sending = lock(&self.sending);
        if word64(&self.replies, reply::HEAD).load(Ordering::Acquire) <= sending.given[index] {
            return false;
        }
        // It was taken back: its worker did not read it, and will not say so.
        self.drop_stream(&mut sending, index);
        let ticket = std::mem::take(&mut sending.tickets[index]) as usize;
        let back = (ticket != 0).then(|| {
            sending.uses[ticket] = sending.uses[ticket].wrapping_sub(1);
            sending.free.push(ticket as u32);
            sending.out[ticket].take()
        });
        drop(sending);
        drop(back);
        true
    }
}

/// A long reply that is read where it lies.
struct Reply {
    replies: Arc<MmapRaw>,
    requests: Arc<MmapRaw>,
    /// The word of its ticket.
    freed: usize,
    kept: Arc<AtomicUsize>,
    epoch: u64,
}

impl Drop for Reply {
    fn drop(&mut self) {
        // A forked child's copy is not what the parent reads.
        if fork::is_current(self.epoch) {
            self.kept.fetch_sub(1, Ordering::Relaxed);
            // Release: whoever reads this reply has done so. One reply per use of a ticket, so nobody else counts.
            word32(&self.requests, self.freed).fetch_add(1, Ordering::Release);
        }
    }
}
