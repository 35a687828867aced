//! Two-way messages between two processes, or two threads: values, buffers that move, file descriptors, requests with replies.
//!
//! ```text
//!            end A                                             end B
//!   send ──► frame ──► ring 0 ═══════════════════════════════► rx ──► inbox ──► recv
//!   recv ◄── inbox ◄── rx ◄═══════════════════════════ ring 1 ◄── frame ◄── send
//!                      │                                        │
//!                      └────────────── socket ──────────────────┘   greetings; fds of messages; hang-up
//!
//!   wire::channel  the bytes        line   rings and socket of an opened end      inbox  what arrived, and who waits for it
//!   listener       by a path        frame  values to records and back             turns  threads that wait for each other
//!                                                                                 ready  one fd for an event loop
//! ```
//!
//! **Messages** are values by the common codec, in order, each way a bounded ring: who sends faster than the other end receives waits.
//! A `TransferBuffer` in a value moves: a shared one, or one of more than [`INLINE_MAX`], travels as its memory's fd, a shorter one as a copy
//! in the record. A message that does not fit the ring is spilled into a sealed memfd and read from there; who receives sees no difference.
//! Fds go over the socket *before* the record that they belong to is published, so a record that is there has its fds; room in the ring is
//! claimed before that, so nothing is left over when a send gives up.
//!
//! **Threads.** Any thread may call anything. One thread at a time reads from the ring, for all that wait: what it finds goes to the
//! inbox, replies to whoever asked; when it has what it came for, another goes on. An inbox of [`MAX_INBOX`] messages that nobody receives
//! makes requests wait behind them: that is the back-pressure, and their timeouts end it.
//!
//! **The end.** `close` is seen by the other end as `Closed` after the last message; death (its seats in the rings are free, or its socket is
//! gone) as `PeerDied` after the last message that it published. What waits for a reply ends with the same error.
//!
//! **What is not believed**: everything that the other end wrote is copied once and checked before it is used. Damage ends the channel with
//! `Corrupt`; fds that came with it are closed; no length is allocated that the bytes at hand, or the limits in [`Options`], do not cover.
//!
//! ```
//! use offloop::{Value, channel::{Channel, Incoming, Options}};
//! let (a, b) = Channel::pair(Options::default())?;
//! let server = std::thread::spawn(move || {
//!     let Incoming::Request(request) = b.recv(None)? else { panic!("asked") };
//!     let n = request.message.value.as_int().expect("a number");
//!     b.reply(request.id, false, &mut Value::Int(n + 1), &[], None)?;
//!     Ok::<_, offloop::Error>(b)
//! });
//! assert_eq!(a.request(&mut Value::Int(41), &[], None)?.message.value.as_int(), Some(42));
//! # server.join().expect("no panic")?;
//! # Ok::<(), offloop::Error>(())
//! ```

mod frame;
mod inbox;
mod line;
mod listener;
mod ready;
mod turns;

#[cfg(all(test, not(loom)))]
mod tests;

pub use listener::Listener;

use crate::buffer::TransferBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::{Consumer, Producer};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock;
use crate::sys::socket::{self, Sent};
use crate::sys::{failpoint, fork, poll};
use crate::value::Value;
use crate::wire::channel::{FAILED, HEAD_LEN, Head, Kind, encode_fds};
use frame::{Content, Frame, Purpose};
use inbox::Inbox;
use line::Line;
use ready::{Interest, Ready};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};
use turns::{Deadline, Turns};

pub use crate::sys::socket::MAX_FDS;

/// Longest heap buffer that is copied into the record instead of a memfd: making and mapping one costs more than the copy.
pub const INLINE_MAX: usize = 64 << 10;
/// Requests of one end that wait for a reply, at most.
pub const MAX_PENDING: usize = 65_536;
/// Messages that a waiting request reads ahead for whoever receives, at most.
pub const MAX_INBOX: usize = 1024;
/// How long a connecting end waits before it looks again whether the listener has room for it.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

/// Sizes of a channel. Whoever makes the rings (`pair`, `listen`) decides on their capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the ring of each direction, rounded up to a power of two: 256 KiB. A message of more than half of them is spilled.
    pub capacity: usize,
    /// Longest message without the buffers that move by fd: 256 MiB. One that is longer is `TooLarge` to send, and ends the channel of
    /// whoever receives it.
    pub max_message: usize,
    /// Bytes that [`post`](Channel::post) queues when there is no room: 16 MiB.
    pub max_queued: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { capacity: 256 << 10, max_message: 256 << 20, max_queued: 16 << 20 }
    }
}

/// A value that arrived, with the fds that were sent along.
#[derive(Debug)]
pub struct Message {
    /// The value; buffers in it belong to the receiver now.
    pub value: Value,
    /// Close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// A message that is to be answered.
#[derive(Debug)]
pub struct Request {
    /// For [`Channel::reply`].
    pub id: u64,
    /// What is asked.
    pub message: Message,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The result, or the error.
    pub message: Message,
    /// Whoever was asked failed: the value is its error.
    pub failed: bool,
}

/// What [`Channel::recv`] gives.
#[derive(Debug)]
pub enum Incoming {
    /// A message.
    Message(Message),
    /// A message that is to be answered by [`Channel::reply`].
    Request(Request),
    /// The outcome of [`Channel::post_request`].
    Reply {
        /// What that returned.
        id: u64,
        /// `Timeout`, or what the channel ended with.
        outcome: Result<Reply>,
    },
    /// There is room again, after a call that found none.
    Drained,
}

/// Counts of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages, requests and replies that were published.
    pub sent: u64,
    /// Messages, requests and replies that arrived.
    pub received: u64,
    /// Requests without a reply so far.
    pub pending: u64,
    /// Replies that came when nobody waited for them any more.
    pub late_replies: u64,
    /// Bytes that wait for room.
    pub queued: u64,
}

/// The sending side.
#[derive(Debug, Default)]
struct Tx {
    producer: Option<Producer>,
    /// The line's producer was taken, or there was none.
    opened: bool,
    /// Frames that found no room.
    outbox: VecDeque<Frame>,
    queued: usize,
    /// Messages with fds so far (wraps).
    with_fds: u32,
    /// The socket had no room, not the ring.
    socket_full: bool,
}

/// The receiving side.
#[derive(Debug, Default)]
struct Rx {
    consumer: Option<Consumer>,
    with_fds: u32,
}

#[derive(Debug)]
enum Door {
    /// Not opened yet: greetings wait in the socket, and whoever inherits it may open it instead.
    Shut {
        socket: OwnedFd,
        /// Connected here, to a listener: nobody else's to open.
        connected: bool,
    },
    /// The line has the socket, or nobody.
    Open,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    epoch: u64,
    door: Mutex<Door>,
    line: OnceLock<Line>,
    /// Whoever has the turn opens the line, or waits until it can.
    opening: Turns<()>,
    tx: Turns<Tx>,
    rx: Mutex<Rx>,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    ready: Mutex<Option<Ready>>,
    is_polled: AtomicBool,
    /// Somebody waits for room: frames in the outbox, or a call that found none.
    wants_room: AtomicBool,
    /// `close` was called while the outbox had frames.
    closing: AtomicBool,
    sent: AtomicU64,
    queued: AtomicU64,
}

/// One end of a channel. Cheap to clone; a clone is the same end. Dropping the last closes it.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: Arc<Inner>,
}

/// Fails now, and may work when fds or memory are there again; says nothing about the channel.
fn is_transient(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Os | ErrorKind::InUse | ErrorKind::Forked)
}

fn own_close() -> Error {
    Error::new(ErrorKind::Closed, "channel was closed")
}

/// What a loop wants to know of the socket while nobody waits for room in it. Once the other end is here, what lies in it are fds whose
/// record comes: an end that was stopped between the two must not keep a loop busy.
fn calm(line: &Line) -> Interest {
    if line.other().is_some() { Interest::HangUp } else { Interest::Readable }
}

fn wait(entry: libc::pollfd, left: Option<Duration>) {
    poll::wait_readable(&mut [entry], left);
}

impl Tx {
    fn producer(&mut self, line: &Line) -> Result<&mut Producer> {
        if !self.opened {
            self.opened = true;
            self.producer = lock(&line.producer).take();
        }
        self.producer.as_mut().ok_or_else(|| line.gone())
    }

    /// Publishes a frame; false while there is no room.
    fn offer(&mut self, line: &Line, frame: &Frame) -> Result<bool> {
        let count = self.with_fds;
        let offered = publish(self.producer(line)?, line, frame, count)?;
        self.socket_full = offered == Offered::SocketFull;
        if offered != Offered::Published {
            failpoint::hit("channel.no_room");
            return Ok(false);
        }
        if !frame.fds.is_empty() {
            self.with_fds = count.wrapping_add(1);
        }
        Ok(true)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offered {
    Published,
    RingFull,
    SocketFull,
}

fn publish(producer: &mut Producer, line: &Line, frame: &Frame, count: u32) -> Result<Offered> {
    let Some(mut claim) = producer.try_claim(frame.bytes.len()).map_err(|e| line.why(e))? else { return Ok(Offered::RingFull) };
    let fits = claim.write_at(0, &frame.bytes);
    debug_assert!(fits, "the claim is as long as the frame");
    if !frame.fds.is_empty() {
        let fds: Vec<BorrowedFd<'_>> = frame.fds.iter().map(AsFd::as_fd).collect();
        // The claim is dropped, and so given up, where the fds cannot go.
        match socket::send(line.socket(), &encode_fds(fds.len() as u16, count), &fds)? {
            Sent::Whole => failpoint::hit("channel.fds_sent"),
            Sent::Full => return Ok(Offered::SocketFull),
            Sent::Gone => return Err(line.gone()),
        }
    }
    claim.commit()?;
    Ok(Offered::Published)
}

impl Inner {
    fn new(options: Options, door: Door) -> Inner {
        Inner {
            options,
            epoch: fork::epoch(),
            door: Mutex::new(door),
            line: OnceLock::new(),
            opening: Turns::new(()),
            tx: Turns::new(Tx::default()),
            rx: Mutex::default(),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            ready: Mutex::default(),
            is_polled: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            queued: AtomicU64::new(0),
        }
    }

    #[inline]
    fn check_fork(&self) -> Result<()> {
        if fork::is_current(self.epoch) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, "channel belongs to the parent of this forked process"))
    }

    /// Nothing is sent on a channel that has ended, or is about to be closed.
    fn check_open(&self) -> Result<()> {
        self.check_fork()?;
        if let Some(e) = lock(&self.inbox).ended() {
            return Err(e.clone());
        }
        if self.closing.load(Ordering::Relaxed) { Err(own_close()) } else { Ok(()) }
    }

    // ---- opening ----

    /// The line; `None` while the other end has not offered it.
    fn open(&self) -> Result<Option<&Line>> {
        match self.line.get() {
            Some(line) => Ok(Some(line)),
            // Who waits for it takes it.
            None => self.opening.try_enter().map_or(Ok(None), |_turn| self.take_offer()),
        }
    }

    fn take_offer(&self) -> Result<Option<&Line>> {
        let mut door = lock(&self.door);
        if let Door::Shut { socket, .. } = &*door {
            match Line::take(socket) {
                Ok(None) => return Ok(None),
                Ok(Some(line)) => {
                    if let Some(ready) = &mut *lock(&self.ready) {
                        ready.forget_socket(socket.as_fd());
                        // The next look makes the rings members instead.
                        ready.ring();
                    }
                    let _ = self.line.set(line);
                    *door = Door::Open;
                }
                Err(e) if is_transient(&e) => return Err(e),
                Err(e) => {
                    drop(door);
                    self.end(&e);
                    return Err(e);
                }
            }
        }
        Ok(self.line.get())
    }

    fn wait_open(&self, deadline: Deadline) -> Result<&Line> {
        loop {
            self.check_open()?;
            if let Some(line) = self.open()? {
                return Ok(line);
            }
            self.wait_offer(deadline)?;
        }
    }

    /// Opens, or waits once until something is in the socket; may end early.
    fn wait_offer(&self, deadline: Deadline) -> Result<()> {
        let _turn = self.opening.enter(deadline, "other end did not offer its rings")?;
        if self.take_offer()?.is_some() {
            return Ok(());
        }
        let left = deadline.left("other end did not offer its rings")?;
        let socket = match &*lock(&self.door) {
            // Another thread may close it meanwhile.
            Door::Shut { socket, .. } => poll::duplicate(socket.as_fd())?,
            Door::Open => return Ok(()),
        };
        wait(poll::readable(socket.as_raw_fd()), left);
        Ok(())
    }

    // ---- sending ----

    fn offer(&self, tx: &mut Tx, line: &Line, frame: &Frame) -> Result<bool> {
        tx.offer(line, frame).map_err(|e| self.why(e))
    }

    /// A channel that has ended closed its rings itself, so they do not say why.
    fn why(&self, e: Error) -> Error {
        if is_transient(&e) { e } else { lock(&self.inbox).ended().cloned().unwrap_or(e) }
    }

    fn frame(&self, line: &Line, purpose: Purpose, value: &Value, fds: &[BorrowedFd<'_>]) -> Result<Frame> {
        frame::build(purpose, value, fds, &self.options, line.send_ring.max_record_len())
    }

    fn is_sent(&self, value: &mut Value, buffers: usize) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if buffers > 0 {
            value.each_buffer_mut(&mut TransferBuffer::detach);
        }
    }

    fn send(&self, purpose: Purpose, value: &mut Value, fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<()> {
        let line = self.wait_open(deadline)?;
        let frame = self.frame(line, purpose, value, fds)?;
        let mut tx = self.tx.enter(deadline, "other threads send on the channel")?;
        let sent = self.push_in_order(&mut tx, line, &frame, deadline);
        drop(tx);
        // Who waits for room takes the wakes of the producer's fd, and sends what the loop waits for: it has to look itself.
        if self.wants_room.load(Ordering::Relaxed) {
            self.ring();
        }
        sent?;
        self.is_sent(value, frame.buffers);
        Ok(())
    }

    /// As [`push`](Self::push), behind those that were queued.
    fn push_in_order(&self, tx: &mut Tx, line: &Line, frame: &Frame, deadline: Deadline) -> Result<()> {
        while let Some(first) = tx.outbox.pop_front() {
            let sent = self.push(tx, line, &first, deadline);
            if sent.is_err() {
                tx.outbox.push_front(first);
                return sent;
            }
            self.unqueue(tx, &first);
        }
        self.push(tx, line, frame, deadline)
    }

    /// Publishes, and waits for room.
    fn push(&self, tx: &mut Tx, line: &Line, frame: &Frame, deadline: Deadline) -> Result<()> {
        loop {
            if self.offer(tx, line, frame)? {
                return Ok(());
            }
            let left = deadline.left("no room in the channel")?;
            if tx.socket_full {
                wait(poll::writable(line.socket().as_raw_fd()), left);
            } else if line.other().is_none() {
                // An end that was closed meanwhile says so itself, below.
                if let Err(e) = line.wait_greeted(deadline) {
                    self.check_open()?;
                    return Err(e);
                }
            } else {
                let producer = tx.producer(line)?;
                match producer.claim_ptr(frame.bytes.len(), left) {
                    Ok(_) => producer.abort_claim(),
                    // The deadline says so itself.
                    Err(e) if e.kind() == ErrorKind::Timeout => {}
                    Err(e) => return Err(self.why(line.why(e))),
                }
            }
            self.check_open()?;
        }
    }

    /// True: published. False: it waits for room, behind those that do.
    fn post(&self, purpose: Purpose, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.check_open()?;
        let line = self.open()?.ok_or_else(|| Error::new(ErrorKind::Full, "other end has not offered its rings yet"))?;
        let frame = self.frame(line, purpose, value, fds)?;
        let busy = || Error::new(ErrorKind::Full, "another thread waits for room in the channel");
        let mut tx = self.tx.try_enter().ok_or_else(busy)?;
        let (len, buffers) = (frame.bytes.len(), frame.buffers);
        let sent = self.flush(&mut tx, line)? && self.offer(&mut tx, line, &frame)?;
        if !sent {
            // No second look here: one that found room now would leave nobody to say so.
            self.wants_room.store(true, Ordering::Relaxed);
            self.watch_room(&mut tx, line)?;
            if tx.queued + len > self.options.max_queued {
                return Err(Error::new(ErrorKind::Full, "too much waits to be sent")
                    .with("queued", tx.queued)
                    .with("len", len)
                    .with("max_queued", self.options.max_queued));
            }
            tx.queued += len;
            self.queued.fetch_add(len as u64, Ordering::Relaxed);
            tx.outbox.push_back(frame);
        }
        drop(tx);
        self.is_sent(value, buffers);
        Ok(sent)
    }

    fn try_send(&self, purpose: Purpose, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.check_open()?;
        let Some(line) = self.open()? else { return Ok(false) };
        let frame = self.frame(line, purpose, value, fds)?;
        // Those that wait were first.
        let Some(mut tx) = self.tx.try_enter() else { return Ok(false) };
        if !tx.outbox.is_empty() || !self.offer(&mut tx, line, &frame)? {
            self.wants_room.store(true, Ordering::Relaxed);
            self.watch_room(&mut tx, line)?;
            return Ok(false);
        }
        drop(tx);
        self.is_sent(value, frame.buffers);
        Ok(true)
    }

    fn unqueue(&self, tx: &mut Tx, frame: &Frame) {
        tx.queued -= frame.bytes.len();
        self.queued.fetch_sub(frame.bytes.len() as u64, Ordering::Relaxed);
    }

    /// Publishes what waits, as far as there is room. True when nothing waits any more.
    fn flush(&self, tx: &mut Tx, line: &Line) -> Result<bool> {
        while let Some(first) = tx.outbox.pop_front() {
            match self.offer(tx, line, &first) {
                Ok(true) => self.unqueue(tx, &first),
                Ok(false) => {
                    tx.outbox.push_front(first);
                    self.watch_room(tx, line)?;
                    return Ok(false);
                }
                Err(e) => {
                    let lost = !is_transient(&e);
                    tx.outbox.push_front(first);
                    if lost {
                        while let Some(frame) = tx.outbox.pop_front() {
                            self.unqueue(tx, &frame);
                        }
                    }
                    return Err(e);
                }
            }
        }
        Ok(true)
    }

    /// The loop's fd tells when there is room again where there was none. The producer's fd was armed by the call that found none; one
    /// that is made here is readable until the next look.
    fn watch_room(&self, tx: &mut Tx, line: &Line) -> Result<()> {
        let mut ready = lock(&self.ready);
        let Some(ready) = &mut *ready else { return Ok(()) };
        let socket_full = tx.socket_full;
        let room = tx.producer(line)?.fd()?;
        // One of the two: where there is room already is no news.
        if socket_full {
            ready.forget_room(room);
            return ready.watch_socket(line.socket(), Interest::Writable);
        }
        ready.watch_socket(line.socket(), calm(line))?;
        ready.watch_room(room)
    }

    /// For a loop: sends what waits, and says once when there is room again.
    fn look_for_room(&self, line: &Line) -> Result<bool> {
        if !self.wants_room.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(mut tx) = self.tx.try_enter() else { return Ok(false) };
        if !self.flush(&mut tx, line)? {
            return Ok(false);
        }
        if tx.socket_full {
            let mut entry = [poll::writable(line.socket().as_raw_fd())];
            poll::wait_readable(&mut entry, Some(Duration::ZERO));
            if !poll::is_ready(&entry[0]) {
                return Ok(false);
            }
            tx.socket_full = false;
        } else {
            let producer = tx.producer(line)?;
            // Room for a message that is not spilled, or the next one may find none again at once.
            let half = producer.max_record_len() / 2;
            if producer.try_claim_ptr(half).map_err(|e| line.why(e))?.is_none() {
                // Not a member yet if the fd was asked for after the call that found no room.
                self.watch_room(&mut tx, line)?;
                return Ok(false);
            }
            producer.abort_claim();
        }
        if let (Some(ready), Some(producer)) = (&mut *lock(&self.ready), &mut tx.producer) {
            ready.forget_room(producer.fd()?);
            ready.watch_socket(line.socket(), calm(line))?;
        }
        self.wants_room.store(false, Ordering::Relaxed);
        Ok(true)
    }

    // ---- receiving ----

    /// The oldest record, if there is one. Says so when there will be none any more.
    fn take(&self, rx: &mut Rx) -> Result<Option<(Head, Message)>> {
        let Some(line) = self.open()? else { return Ok(None) };
        if rx.consumer.is_none() {
            rx.consumer = lock(&line.consumer).take();
        }
        let Rx { consumer: Some(consumer), with_fds } = rx else { return Err(own_close()) };
        if self.is_polled.load(Ordering::Relaxed) {
            self.watch(consumer, line)?;
        }
        let found = match consumer.peek() {
            Ok(found) => found.is_some(),
            // A ring that was closed before the other end said anything was closed by it all the same.
            Err(e) => return Err(line.why(e)),
        };
        if !found {
            if line.is_greeted()? != Some(true) {
                return Ok(None);
            }
            // In this order: what was published before the other end went is there at the second look.
            if !socket::is_hung_up(line.socket()) || consumer.peek().map_err(|e| line.why(e))?.is_some() {
                return Ok(None);
            }
            return Err(line.gone());
        }
        let damaged = |what| Error::new(ErrorKind::Corrupt, what);
        // Whoever publishes has greeted.
        match line.is_greeted()? {
            Some(true) => {}
            Some(false) => return Err(damaged("a record came before the greeting")),
            None => return Ok(None),
        }
        let Some(record) = consumer.peek().map_err(|e| line.why(e))? else { return Ok(None) };
        let mut head = [0; HEAD_LEN];
        if !record.read_at(0, &mut head) {
            return Err(damaged("record is shorter than its head").with("len", record.len()));
        }
        let head = Head::decode(&head)?;
        let payload = record.tail_to_vec(HEAD_LEN);
        let fds = if head.fds > 0 { line.fds(head.fds, *with_fds)? } else { Vec::new() };
        // What is missing now (fds, memory) may be there at the next call, which finds the record and its fds again.
        let Content { value, fds } = frame::read(&head, payload, fds, &self.options)?;
        failpoint::hit("channel.fds_seen");
        if head.fds > 0 {
            line.forget_fds();
            *with_fds = with_fds.wrapping_add(1);
        }
        consumer.release();
        Ok(Some((head, Message { value, fds })))
    }

    /// As [`take`](Self::take), and waits so long; may end early.
    fn take_or_wait(&self, rx: &mut Rx, left: Option<Duration>) -> Result<Option<(Head, Message)>> {
        let deadline = Deadline::new(left);
        let too_soon = |e: Error| if e.kind() == ErrorKind::Timeout { Ok(()) } else { Err(e) };
        match (self.open()?, &mut rx.consumer) {
            (None, _) => self.wait_offer(deadline).or_else(too_soon).map(|()| None),
            // What it finds, and every end but a timeout, is told by `take`.
            (Some(line), Some(consumer)) if line.other().is_some() => match consumer.wait(left) {
                Err(e) if e.kind() == ErrorKind::Timeout => Ok(None),
                _ => self.take(rx),
            },
            (Some(line), _) => match self.take(rx)? {
                None if line.other().is_none() => line.wait_greeted(deadline).map(|_| ()).or_else(too_soon).map(|()| None),
                taken => Ok(taken),
            },
        }
    }

    /// Lets the loop's fd follow the ring, from when there is one.
    fn watch(&self, consumer: &mut Consumer, line: &Line) -> Result<()> {
        let mut ready = lock(&self.ready);
        let Some(ready) = &mut *ready else { return Ok(()) };
        if !ready.has_consumer {
            ready.watch_consumer(consumer.fd().map_err(|e| line.why(e))?)?;
        }
        // The sending side's wait for room for fds goes on: an end that has yet to greet is heard of by it, too.
        if ready.awaits_room_for_fds() { Ok(()) } else { ready.watch_socket(line.socket(), calm(line)) }
    }

    /// Puts what was found where it belongs. What a later call finds again is the caller's error, and nobody else's.
    fn deliver(&self, inbox: &mut Inbox, found: Result<Option<(Head, Message)>>) -> Result<()> {
        let ended = match found {
            Ok(None) => return Ok(()),
            Ok(Some((head, message))) => inbox.arrive(&head, message).err(),
            Err(e) if is_transient(&e) => return Err(e),
            Err(e) => Some(e),
        };
        if let Some(e) = ended {
            self.end_with(inbox, &e);
        }
        Ok(())
    }

    /// The loop's fd is readable until the next look.
    fn ring(&self) {
        if let Some(ready) = &mut *lock(&self.ready) {
            ready.ring();
        }
    }

    /// What is left in the inbox is for the loop, too.
    fn ring_for(&self, inbox: &Inbox) {
        if inbox.len() > 0 && self.is_polled.load(Ordering::Relaxed) {
            self.ring();
        }
    }

    /// Waits until `take` finds what it looks for in the inbox.
    fn wait_for<T>(&self, deadline: Deadline, asks: bool, mut take: impl FnMut(&mut Inbox) -> Result<Option<T>>) -> Result<T> {
        let what = if asks { "no reply in time" } else { "no message on the channel" };
        let mut inbox = lock(&self.inbox);
        let mut looked = false;
        loop {
            self.check_fork()?;
            if let Some(found) = take(&mut inbox)? {
                // Those that followed this thread may go on, or find that there is more.
                if inbox.followers > 0 {
                    self.arrived.notify_all();
                }
                return Ok(found);
            }
            if let Some(e) = inbox.ended() {
                return Err(e.clone());
            }
            if self.closing.load(Ordering::Relaxed) {
                return Err(own_close());
            }
            let busy = inbox.pumping || (asks && inbox.len() >= MAX_INBOX);
            // What is there is given to a call that must not wait, too.
            let left = match deadline.left(what) {
                Err(_) if !busy && !looked => Some(Duration::ZERO),
                left => left?,
            };
            looked = true;
            if busy {
                inbox.followers += 1;
                inbox = turns::sleep(&self.arrived, inbox, left);
                inbox.followers -= 1;
                continue;
            }
            inbox.pumping = true;
            drop(inbox);
            let found = self.take_or_wait(&mut lock(&self.rx), left);
            inbox = lock(&self.inbox);
            inbox.pumping = false;
            let delivered = self.deliver(&mut inbox, found);
            self.ring_for(&inbox);
            if inbox.followers > 0 {
                self.arrived.notify_all();
            }
            delivered?;
        }
    }

    fn try_recv(&self) -> Result<Option<Incoming>> {
        self.check_fork()?;
        let mut inbox = lock(&self.inbox);
        if let Some(incoming) = inbox.pop() {
            return Ok(Some(incoming));
        }
        if inbox.next_deadline().is_some() {
            inbox.expire(Instant::now());
        }
        if inbox.len() == 0 && inbox.ended().is_none() {
            // Before the look: what happens from here on may be missed by it, and rings.
            if let Some(ready) = &mut *lock(&self.ready) {
                ready.quiet();
            }
            let pumps = !std::mem::replace(&mut inbox.pumping, true);
            drop(inbox);
            let (drained, found) = self.look(pumps);
            inbox = lock(&self.inbox);
            if pumps {
                inbox.pumping = false;
            }
            let delivered = self.deliver(&mut inbox, found);
            if drained {
                inbox.drained();
            }
            if inbox.followers > 0 {
                self.arrived.notify_all();
            }
            if let Err(e) = delivered {
                self.ring_for(&inbox);
                return Err(e);
            }
        }
        if let Some(incoming) = inbox.pop() {
            self.ring_for(&inbox);
            return Ok(Some(incoming));
        }
        if let Some(ready) = &mut *lock(&self.ready) {
            ready.set_timer(inbox.next_deadline())?;
        }
        inbox.ended().map_or(Ok(None), |e| Err(e.clone()))
    }

    /// One look without waiting: whether there is room again, and what came. With `pumps` this thread reads for all.
    fn look(&self, pumps: bool) -> (bool, Result<Option<(Head, Message)>>) {
        let mut drained = false;
        if let Some(line) = self.line.get() {
            match self.look_for_room(line) {
                Ok(room) => drained = room,
                Err(e) if is_transient(&e) => return (false, Err(e)),
                // What the other end sent before it went is still to be received.
                Err(_) => self.wants_room.store(false, Ordering::Relaxed),
            }
        }
        if self.closing.load(Ordering::Relaxed) {
            let done = drained || !self.wants_room.load(Ordering::Relaxed);
            if done {
                return (false, Err(own_close()));
            }
        }
        if !pumps {
            return (drained, Ok(None));
        }
        let found = self.take(&mut lock(&self.rx));
        if self.closing.load(Ordering::Relaxed) {
            // Nobody receives any more; what ends the channel still does.
            return (false, found.map(|_| None));
        }
        (drained, found)
    }

    // ---- ending ----

    fn end(&self, why: &Error) {
        let mut inbox = lock(&self.inbox);
        self.end_with(&mut inbox, why);
    }

    fn end_with(&self, inbox: &mut Inbox, why: &Error) {
        if !inbox.end(why) {
            return;
        }
        if let Some(line) = self.line.get() {
            line.close();
        }
        self.arrived.notify_all();
        self.ring();
    }

    fn close(&self) {
        if !fork::is_current(self.epoch) {
            return;
        }
        if let (Some(line), Some(mut tx)) = (self.line.get(), self.tx.try_enter())
            && !tx.outbox.is_empty()
            && matches!(self.flush(&mut tx, line), Ok(false))
        {
            // `try_recv` closes when they are sent.
            self.closing.store(true, Ordering::Relaxed);
            self.arrived.notify_all();
            return;
        }
        self.close_now();
    }

    fn close_now(&self) {
        let mut inbox = lock(&self.inbox);
        self.end_with(&mut inbox, &own_close());
        inbox.drop_unread();
        drop(inbox);
        // An end that was never opened is another process's to open: nothing but this fd ends.
        let mut door = lock(&self.door);
        if let Door::Shut { socket, connected } = &*door {
            if let Some(ready) = &mut *lock(&self.ready) {
                ready.forget_socket(socket.as_fd());
            }
            if *connected {
                socket::hang_up(socket.as_fd());
            }
        }
        *door = Door::Open;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if fork::is_current(self.epoch) {
            self.close_now();
        }
    }
}

impl Channel {
    fn shut(options: Options, socket: OwnedFd, connected: bool) -> Channel {
        Channel { inner: Arc::new(Inner::new(options, Door::Shut { socket, connected })) }
    }

    /// Two ends that are connected. Either may be used here, or opened by a child process instead, which inherits its
    /// [`socket`](Self::socket) and calls [`attach`](Self::attach).
    ///
    /// # Errors
    /// `Invalid`, `TooLarge` for a capacity outside the limits of rings; `Os`.
    pub fn pair(options: Options) -> Result<(Channel, Channel)> {
        let (a, b) = line::pair(&options)?;
        Ok((Channel::shut(options, a, false), Channel::shut(options, b, false)))
    }

    /// The end of a pair whose socket this process inherited. The socket belongs to the channel from now on; it is given back on error.
    ///
    /// # Errors
    /// `Invalid` when `fd` is no such socket, or another user's; `Corrupt`, `Version` when nothing of this version waits in it; `PeerDied`
    /// when the other end is gone; `InUse` when another process has opened it; `Os`.
    pub fn attach(fd: OwnedFd, options: Options) -> Result<Channel, (Error, OwnedFd)> {
        if let Err(e) = socket::check_kind(fd.as_fd()).and_then(|()| line::check_user(fd.as_fd())).and_then(|()| socket::adopt(fd.as_fd()))
        {
            return Err((e, fd));
        }
        match Line::take(&fd) {
            Ok(Some(line)) => Ok(Channel::opened(options, line)),
            Ok(None) => Err((Error::invalid("nobody offers a channel on that socket").with("fd", fd.as_raw_fd()), fd)),
            Err(e) => Err((e, fd)),
        }
    }

    fn opened(options: Options, line: Line) -> Channel {
        let inner = Inner::new(options, Door::Open);
        let set = inner.line.set(line);
        debug_assert!(set.is_ok(), "a new channel has no line");
        Channel { inner: Arc::new(inner) }
    }

    /// A listener of channels at `path`, which only this user's processes can connect to. A name without a slash lies in
    /// `$XDG_RUNTIME_DIR/offloop/`, or in `/dev/shm/offloop-<uid>/` without that. What a listener that died left there is replaced.
    ///
    /// # Errors
    /// `Exists` while somebody listens there, or a file is there that is no socket; `TooLarge` for a path that no socket can have;
    /// `Invalid`, `Os`.
    pub fn listen(path: impl AsRef<Path>, options: Options) -> Result<Listener> {
        Listener::bind(path.as_ref(), options)
    }

    /// Connects to who listens at `path`, and waits at most `timeout` until the connection was accepted.
    ///
    /// # Errors
    /// `NotFound` when nobody listens there; `Timeout`; `PeerDied` when the listener went away; `Invalid` when it is another user's;
    /// `Corrupt`, `Version`, `Os`.
    pub fn connect(path: impl AsRef<Path>, timeout: Option<Duration>, options: Options) -> Result<Channel> {
        let deadline = Deadline::new(timeout);
        let channel = loop {
            match Channel::begin_connect(path.as_ref(), options) {
                Err(e) if e.kind() == ErrorKind::Full => {
                    let left = deadline.left("listener did not accept")?;
                    std::thread::sleep(left.map_or(CONNECT_RETRY, |left| left.min(CONNECT_RETRY)));
                }
                done => break done?,
            }
        };
        channel.inner.wait_open(deadline)?;
        Ok(channel)
    }

    /// As [`connect`](Self::connect) without waiting: [`try_open`](Self::try_open) says when it is done, [`fd`](Self::fd) when to ask.
    ///
    /// # Errors
    /// `Full` when too many wait to be accepted, and those of [`connect`](Self::connect).
    pub fn begin_connect(path: impl AsRef<Path>, options: Options) -> Result<Channel> {
        let path = crate::ring::resolve_path(path.as_ref(), false)?;
        let full = || Error::new(ErrorKind::Full, "too many connections wait for the listener").with("path", path.display());
        let socket = socket::connect(&path)?.ok_or_else(full)?;
        line::check_user(socket.as_fd())?;
        Ok(Channel::shut(options, socket, true))
    }

    /// True once messages can be sent.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub fn try_open(&self) -> Result<bool> {
        self.inner.check_open()?;
        Ok(self.inner.open()?.is_some())
    }

    /// As [`try_open`](Self::try_open), and waits at most `timeout`; may be called again after `Timeout`.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub fn wait_open(&self, timeout: Option<Duration>) -> Result<()> {
        self.inner.wait_open(Deadline::new(timeout)).map(|_| ())
    }

    /// The socket of an end that was not used yet, for a child process to inherit. Close this end once the child is started.
    ///
    /// # Errors
    /// `InUse` once this end was used here; `Closed`, `Forked`.
    pub fn socket(&self) -> Result<RawFd> {
        self.inner.check_open()?;
        match &*lock(&self.inner.door) {
            Door::Shut { socket, .. } => Ok(socket.as_raw_fd()),
            Door::Open => Err(Error::new(ErrorKind::InUse, "this end of the channel is used by this process")),
        }
    }

    /// Sends a value, and fds, which are duplicated. Waits for room at most `timeout` (`None`: without end). Buffers in `value` are
    /// detached by a call that succeeds; after an error it is untouched.
    ///
    /// # Errors
    /// `Timeout`; `TooLarge` for a message or a number of fds over its limit; `Detached`; `Closed`, `PeerDied`, and whatever else the channel
    /// ended with; `Os`: `EMFILE`, `ENOMEM`, `ETOOMANYREFS`; `Forked`.
    pub fn send(&self, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<()> {
        self.inner.send(MESSAGE, value, fds, Deadline::new(timeout))
    }

    /// As [`send`](Self::send) without waiting; false while there is no room. [`Incoming::Drained`] tells when there is again.
    ///
    /// # Errors
    /// Those of [`send`](Self::send) but `Timeout`.
    pub fn try_send(&self, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.inner.try_send(MESSAGE, value, fds)
    }

    /// As [`send`](Self::send) for an event loop: what finds no room is queued, up to [`Options::max_queued`], and sent by later calls of
    /// [`try_recv`](Self::try_recv), which tell [`Incoming::Drained`] when the queue is empty. True if it was sent at once.
    ///
    /// # Errors
    /// `Full` when too much is queued, or another thread waits in `send`; those of [`send`](Self::send) but `Timeout`.
    pub fn post(&self, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.inner.post(MESSAGE, value, fds)
    }

    /// Sends a request and waits for its reply, at most `timeout` in all. Messages that come meanwhile are kept for
    /// [`recv`](Self::recv).
    ///
    /// # Errors
    /// `Timeout`: a later reply is dropped and counted; `Full` beyond [`MAX_PENDING`]; those of [`send`](Self::send).
    pub fn request(&self, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Reply> {
        let deadline = Deadline::new(timeout);
        let id = self.begin(value, fds, deadline)?;
        let reply = self.wait_reply(id, deadline);
        if reply.is_err() {
            self.abandon(id);
        }
        reply
    }

    fn begin(&self, value: &mut Value, fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<u64> {
        let id = lock(&self.inner.inbox).ask(false, None)?;
        let sent = self.inner.send(request(id), value, fds, deadline);
        if sent.is_err() {
            self.abandon(id);
        }
        sent.map(|()| id)
    }

    fn wait_reply(&self, id: u64, deadline: Deadline) -> Result<Reply> {
        self.inner.wait_for(deadline, true, |inbox| inbox.take_reply(id))
    }

    /// The first half of [`request`](Self::request), for a face that waits in slices: sends it, and returns its number.
    ///
    /// # Errors
    /// Those of [`request`](Self::request).
    pub fn begin_request(&self, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<u64> {
        self.begin(value, fds, Deadline::new(timeout))
    }

    /// The second half. After `Timeout` it may be called again, until [`abandon`](Self::abandon).
    ///
    /// # Errors
    /// Those of [`request`](Self::request).
    pub fn end_request(&self, id: u64, timeout: Option<Duration>) -> Result<Reply> {
        self.wait_reply(id, Deadline::new(timeout))
    }

    /// As [`request`](Self::request) for an event loop: the outcome comes as [`Incoming::Reply`] with the number that is returned.
    ///
    /// # Errors
    /// Those of [`post`](Self::post), `Full` beyond [`MAX_PENDING`].
    pub fn post_request(&self, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<u64> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let id = lock(&self.inner.inbox).ask(true, until)?;
        if let Err(e) = self.inner.post(request(id), value, fds) {
            self.abandon(id);
            return Err(e);
        }
        let inbox = lock(&self.inner.inbox);
        if let Some(ready) = &mut *lock(&self.inner.ready) {
            ready.set_timer(inbox.next_deadline())?;
        }
        Ok(id)
    }

    /// Nobody waits for that reply any more; false if it came already. One that comes is dropped and counted.
    pub fn abandon(&self, id: u64) -> bool {
        lock(&self.inner.inbox).abandon(id)
    }

    /// Answers a request. With `failed` the value is an error. A second answer is dropped by whoever asked.
    ///
    /// # Errors
    /// `Invalid` for a number that no request has; those of [`send`](Self::send).
    pub fn reply(&self, id: u64, failed: bool, value: &mut Value, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<()> {
        self.inner.send(reply(id, failed)?, value, fds, Deadline::new(timeout))
    }

    /// As [`reply`](Self::reply) for an event loop, like [`post`](Self::post).
    ///
    /// # Errors
    /// Those of [`reply`](Self::reply) and [`post`](Self::post).
    pub fn post_reply(&self, id: u64, failed: bool, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.inner.post(reply(id, failed)?, value, fds)
    }

    /// What came next; waits for it at most `timeout` (`None`: without end).
    ///
    /// # Errors
    /// `Timeout`; after the last message `Closed`, `PeerDied`, or `Corrupt`, `TooLarge`, `Version` when the channel ended for that; `Os` when
    /// fds or memory for a message are missing: the next call finds it again; `Forked`.
    pub fn recv(&self, timeout: Option<Duration>) -> Result<Incoming> {
        self.inner.wait_for(Deadline::new(timeout), false, |inbox| Ok(inbox.pop()))
    }

    /// As [`recv`](Self::recv) without waiting; `None` when there is nothing now.
    ///
    /// # Errors
    /// Those of [`recv`](Self::recv) but `Timeout`.
    pub fn try_recv(&self) -> Result<Option<Incoming>> {
        self.inner.try_recv()
    }

    /// An fd that is readable when [`try_recv`](Self::try_recv) may have something to give, for an event loop. Level-triggered: a
    /// `try_recv` that returns `None` has armed it.
    ///
    /// # Errors
    /// `Os` with `EMFILE`; `Forked`.
    pub fn fd(&self) -> Result<RawFd> {
        self.inner.check_fork()?;
        let mut ready = lock(&self.inner.ready);
        if let Some(ready) = &*ready {
            return Ok(ready.fd().as_raw_fd());
        }
        let mut made = Ready::new()?;
        // What is there already was not announced: the first look finds out, and adds the ring.
        made.ring();
        let fd = made.fd().as_raw_fd();
        *ready = Some(made);
        drop(ready);
        self.inner.is_polled.store(true, Ordering::Relaxed);
        if let (None, Door::Shut { socket, .. }) = (self.inner.line.get(), &*lock(&self.inner.door))
            && let Some(ready) = &mut *lock(&self.inner.ready)
        {
            ready.watch_socket(socket.as_fd(), Interest::Readable)?;
        }
        Ok(fd)
    }

    /// The process at the other end, by its own number, once it is known.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        self.inner.line.get().and_then(Line::other).map(|other| other.pid)
    }

    /// Why the channel ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Error> {
        lock(&self.inner.inbox).ended().cloned()
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let inbox = lock(&self.inner.inbox);
        Stats {
            sent: self.inner.sent.load(Ordering::Relaxed),
            received: inbox.received,
            pending: inbox.pending() as u64,
            late_replies: inbox.late_replies,
            queued: self.inner.queued.load(Ordering::Relaxed),
        }
    }

    /// Ends the channel for both ends. The other one gets what was sent, and `Closed` after it; what arrived here and was not received
    /// is dropped, and whoever waits here gets `Closed`. What [`post`](Self::post) queued is sent first, by `try_recv`, which says `Closed`
    /// when it is done. On an end that was never used it closes the socket only: a child that inherited it goes on.
    pub fn close(&self) {
        self.inner.close();
    }
}

const MESSAGE: Purpose = Purpose { kind: Kind::Message, flags: 0, id: 0 };

fn request(id: u64) -> Purpose {
    Purpose { kind: Kind::Request, flags: 0, id }
}

fn reply(id: u64, failed: bool) -> Result<Purpose> {
    if id == 0 {
        return Err(Error::invalid("no request has that number").with("id", id));
    }
    Ok(Purpose { kind: Kind::Reply, flags: if failed { FAILED } else { 0 }, id })
}
