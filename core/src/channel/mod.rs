//! Two-way messages between two processes, or two threads: values, buffers that move, file descriptors, requests with replies.
//!
//! ```text
//!            end A                                             end B
//!   send ──► frame ──► ring 0 ═══════════════════════════════► rx ──► inbox ──► recv
//!   recv ◄── inbox ◄── rx ◄═══════════════════════════ ring 1 ◄── frame ◄── send
//!                      │                                        │
//!                      └────────────── socket ──────────────────┘   greetings; fds of messages; hang-up
//!
//!   wire::channel  the bytes        line     rings and socket of an opened end    inbox      what arrived, and who waits for it
//!   listener       by a path        opening  how an end begins and ends           sending    frames into the ring, in order
//!   ready          a loop's one fd  frame    values to records and back           receiving  records out of it, for all that wait
//!                                                                                 turns      threads that wait for each other
//! ```
//!
//! **Messages** are values by the common codec, in order, each way a bounded ring: who sends faster than the other end receives waits.
//! A `TransferBuffer` in a value moves: a shared one, or one of more than [`INLINE_MAX`], travels as its memory's fd, a shorter one as a copy
//! in the record. A message that does not fit the ring is spilled into a sealed memfd and read from there; who receives sees no difference.
//! Fds go over the socket *before* the record that they belong to is published, so a record that is there has its fds; room in the ring is
//! claimed before that, so nothing is left over when a send gives up.
//!
//! **Threads.** Any thread may call anything. One thread at a time reads from the ring, for all that wait: what it finds goes to the
//! inbox, replies to whoever asked; when it has what it came for, another goes on. An inbox is full with [`MAX_INBOX`] messages that nobody
//! receives, or with [`Options::max_queued`] bytes or [`MAX_INBOX_FDS`] fds of them: the next one stays in the ring, and the other end is held
//! back. Replies are never held back themselves, but may lie behind such a message. A request then waits until another thread receives; it fails where that could
//! only be the thread that waits.
//!
//! **The end.** `close` is seen by the other end as `Closed` after the last message; death (its seats in the rings are free, or its socket is
//! gone) as `PeerDied` after the last message that it published. What waits for a reply ends with the same error. Fds and mappings go with the
//! end, not with the object; a thread that uses a part of them lets go of it when it is done.
//!
//! **What is not believed**: everything that the other end wrote is copied once and checked before it is used. Damage ends the channel with
//! `Corrupt`; fds that came with it are closed; no length is allocated that the bytes at hand, or the limits in [`Options`], do not cover.
//! What is missing now (fds, memory) is asked for again; a message that the machine, or this process, can never hold is `TooLarge`.
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
mod opening;
mod ready;
mod receiving;
mod sending;
mod turns;

#[cfg(all(test, not(loom)))]
mod tests;

pub use listener::Listener;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock;
use crate::sys::fork::{self, PrivateFd};
use crate::sys::{poll, socket};
use crate::value::Value;
use crate::wire::channel::{FAILED, Kind};
use frame::Purpose;
use inbox::{Inbox, Want};
use line::{Line, Seated};
use opening::Door;
use ready::{Interest, Ready};
use receiving::Rx;
use sending::{Behind, Tx};
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
/// Messages that are read ahead for whoever receives, at most; see also [`Options::max_queued`].
pub const MAX_INBOX: usize = 1024;
/// Fds that these have, those of their buffers included, before no more are read ahead; one message alone may have more.
pub const MAX_INBOX_FDS: usize = 64;
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
    /// Bytes that wait in this process, each way: what [`post`](Channel::post) queues when there is no room, and what is read ahead for whoever
    /// receives. Whole messages count, spilled or not, with the buffers that move; one alone may be longer: 16 MiB.
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

/// What a call found that looks without waiting.
#[derive(Debug)]
pub enum Found {
    /// What it looked for.
    Incoming(Incoming),
    /// Something else, which is kept for whoever it is for: look again.
    More,
    /// Nothing now.
    Nothing,
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
    /// Bytes that wait for room, as [`Options::max_queued`] counts them.
    pub queued: u64,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    epoch: u64,
    /// The socket of an end that is not open yet; then the line has it, or nobody.
    door: Mutex<Option<Arc<Door>>>,
    /// From its opening until the channel ends. A call keeps it until it returns.
    line: Mutex<Option<Arc<Line>>>,
    /// The channel has ended: whoever uses a part of the line lets go of it.
    over: AtomicBool,
    /// The process at the other end of a line that was let go of.
    last_peer: OnceLock<u32>,
    /// Whoever has the turn opens the line, or waits until it can.
    opening: Turns<()>,
    tx: Turns<Tx>,
    behind: Mutex<Behind>,
    /// Locked by the thread that reads for all, and by none while there is none such.
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

fn wait(entry: libc::pollfd, left: Option<Duration>) {
    poll::wait_readable(&mut [entry], left);
}

impl Channel {
    fn shut(options: Options, door: Door) -> Channel {
        Channel { inner: Arc::new(Inner::new(options, Some(door))) }
    }

    /// Two ends that are connected. Either may be used here, or opened by a child process instead, which inherits its
    /// [`socket`](Self::socket) and calls [`attach`](Self::attach).
    ///
    /// # Errors
    /// `Invalid`, `TooLarge` for a capacity outside the limits of rings; `Os`.
    pub fn pair(options: Options) -> Result<(Channel, Channel)> {
        let (a, b) = line::pair(&options)?;
        Ok((Channel::shut(options, Door::offered(a)), Channel::shut(options, Door::offered(b))))
    }

    /// The end of a pair whose socket this process inherited. The socket belongs to the channel from now on; it is given back on error.
    ///
    /// # Errors
    /// `Invalid` when `fd` is no such socket, or another user's; `Corrupt`, `Version` when nothing of this version waits in it; `PeerDied`
    /// when the other end is gone; `InUse` when an end in this process has that fd, which would be closed twice ([`detach`](Self::detach) it
    /// there); `Os`.
    pub fn attach(fd: OwnedFd, options: Options) -> Result<Channel, (Error, OwnedFd)> {
        if fork::is_owned(fd.as_raw_fd()) {
            let e = Error::new(ErrorKind::InUse, "fd belongs to another end of a channel in this process");
            return Err((e.with("fd", fd.as_raw_fd()), fd));
        }
        if let Err(e) = socket::check_kind(fd.as_fd()).and_then(|()| line::check_user(fd.as_fd())).and_then(|()| socket::adopt(fd.as_fd()))
        {
            return Err((e, fd));
        }
        match Seated::take(fd.as_fd()) {
            Ok(Some(seated)) => Ok(Channel::opened(options, Line::new(PrivateFd::new(fd), seated))),
            Ok(None) => Err((Error::invalid("nobody offers a channel on that socket").with("fd", fd.as_raw_fd()), fd)),
            Err(e) => Err((e, fd)),
        }
    }

    fn opened(options: Options, line: Line) -> Channel {
        let mut inner = Inner::new(options, None);
        inner.line = Mutex::new(Some(Arc::new(line)));
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
        // Guarded before it is connected, so that no forked child keeps the connection.
        let socket = PrivateFd::open(socket::socket)?;
        if !socket::connect(socket.as_fd(), &path)? {
            return Err(Error::new(ErrorKind::Full, "too many connections wait for the listener").with("path", path.display()));
        }
        line::check_user(socket.as_fd())?;
        Ok(Channel::shut(options, Door::Connected(socket)))
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
        match lock(&self.inner.door).as_deref() {
            Some(Door::Offered(socket)) => Ok(socket.as_fd().as_raw_fd()),
            _ => Err(opening::used_here()),
        }
    }

    /// Gives the [`socket`](Self::socket) of an end that was not used yet away: to whoever [attaches](Self::attach) it, in this process too. This
    /// end is closed by that.
    ///
    /// # Errors
    /// Those of [`socket`](Self::socket).
    pub fn detach(&self) -> Result<OwnedFd> {
        self.inner.check_open()?;
        self.inner.detach()
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
    /// `Full` when too much is queued, and on an end that is not open yet ([`try_open`](Self::try_open)); those of [`send`](Self::send) but
    /// `Timeout`.
    pub fn post(&self, value: &mut Value, fds: &[BorrowedFd<'_>]) -> Result<bool> {
        self.inner.post(MESSAGE, value, fds)
    }

    /// Sends a request and waits for its reply, at most `timeout` in all. Messages that come meanwhile are kept for
    /// [`recv`](Self::recv).
    ///
    /// # Errors
    /// `Timeout`: a later reply is dropped and counted; `Full` beyond [`MAX_PENDING`], and when the reply lies behind more messages than the
    /// inbox holds while no thread but this one has received any; those of [`send`](Self::send).
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
        let id = self.inner.inbox()?.ask(false, None)?;
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

    /// The second half. After `Timeout` or `Full` it may be called again, until [`abandon`](Self::abandon).
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
        let id = self.inner.inbox()?.ask(true, until)?;
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

    /// Nobody waits for that reply any more; false if it came already, and in a forked child. One that comes is dropped and counted.
    pub fn abandon(&self, id: u64) -> bool {
        self.inner.inbox().is_ok_and(|mut inbox| inbox.abandon(id))
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
        self.inner.wait_for(Deadline::new(timeout), false, |inbox| Ok(inbox.take(Want::All)))
    }

    /// As [`recv`](Self::recv) without waiting; `None` when there is nothing now.
    ///
    /// # Errors
    /// Those of [`recv`](Self::recv) but `Timeout`.
    pub fn try_recv(&self) -> Result<Option<Incoming>> {
        match self.inner.find(Want::All)? {
            Found::Incoming(incoming) => Ok(Some(incoming)),
            Found::More | Found::Nothing => Ok(None),
        }
    }

    /// As [`recv`](Self::recv) for messages and requests only. Replies to [`post_request`](Self::post_request) that it finds wait for the
    /// loop whose request it was, and make its [`fd`](Self::fd) readable.
    ///
    /// # Errors
    /// Those of [`recv`](Self::recv).
    pub fn recv_message(&self, timeout: Option<Duration>) -> Result<Incoming> {
        self.inner.wait_for(Deadline::new(timeout), false, |inbox| Ok(inbox.take(Want::Messages)))
    }

    /// As [`recv_message`](Self::recv_message) without waiting.
    ///
    /// # Errors
    /// Those of [`try_recv`](Self::try_recv).
    pub fn try_message(&self) -> Result<Option<Incoming>> {
        loop {
            match self.inner.find(Want::Messages)? {
                Found::Incoming(incoming) => return Ok(Some(incoming)),
                Found::More => {}
                Found::Nothing => return Ok(None),
            }
        }
    }

    /// What a loop waits for when nobody receives messages: replies, and that there is room. Messages wait for
    /// [`try_message`](Self::try_message), up to [`MAX_INBOX`], [`MAX_INBOX_FDS`] and [`Options::max_queued`]; then no more are read, and the
    /// other end is held back. Those that wait do not make [`fd`](Self::fd) readable.
    ///
    /// # Errors
    /// Those of [`try_recv`](Self::try_recv); the channel's end is told even while messages wait.
    pub fn try_outcome(&self) -> Result<Found> {
        self.inner.find(Want::Outcomes)
    }

    /// Messages and requests that arrived and that nobody has received yet; 0 in a forked child.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.inner.inbox().map_or(0, |inbox| inbox.unread())
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
        if let Some(door) = &*lock(&self.inner.door)
            && let Some(ready) = &mut *lock(&self.inner.ready)
        {
            ready.watch_socket(door.as_fd(), Interest::Readable)?;
        }
        Ok(fd)
    }

    /// The process at the other end, by its own number, once it is known; `None` in a forked child.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        self.inner.check_fork().ok()?;
        let of_line = self.inner.line().and_then(|line| line.other().map(|other| other.pid));
        of_line.or_else(|| self.inner.last_peer.get().copied())
    }

    /// Why the channel ended, if it has: in a forked child it has, with `Forked`.
    #[must_use]
    pub fn ended(&self) -> Option<Error> {
        self.inner.inbox().map_or_else(Some, |inbox| inbox.ended().cloned())
    }

    /// Counts; all 0 in a forked child.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Ok(inbox) = self.inner.inbox() else { return Stats::default() };
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
    /// when it is done. On an end that was never used it closes the socket only: a child that inherited it goes on, and where there is none
    /// the other end gets `PeerDied`.
    ///
    /// Its fds and memory go with that, whoever has closed it, or as soon as calls that are under way return; but for what [`fd`](Self::fd)
    /// gave, which stays readable. In a forked child a close does nothing, neither here nor in the parent.
    pub fn close(&self) {
        self.inner.close();
    }

    /// As [`close`](Self::close), and waits at most `grace` (`None`: without end) until what [`post`](Self::post) queued is sent. What is not
    /// by then is dropped: an end that does not read keeps nobody.
    pub fn shutdown(&self, grace: Option<Duration>) {
        self.close();
        let _ = self.wait_closed(grace);
        self.close_now();
    }

    /// The second half of [`shutdown`](Self::shutdown), for a face that waits in slices: once `close` was called, sends what it left queued.
    ///
    /// # Errors
    /// `Timeout`, after which it may be called again; `Forked`.
    pub fn wait_closed(&self, timeout: Option<Duration>) -> Result<()> {
        self.inner.wait_closed(Deadline::new(timeout))
    }

    /// As [`close`](Self::close) at once: what [`post`](Self::post) queued is dropped.
    pub fn close_now(&self) {
        if fork::is_current(self.inner.epoch) {
            self.inner.close_now();
        }
    }

    /// As [`close_now`](Self::close_now), by who knows that the process at the other end is no more: whoever waits here gets `PeerDied`.
    pub fn close_dead(&self) {
        if fork::is_current(self.inner.epoch) {
            self.inner.close_with(&Error::new(ErrorKind::PeerDied, "other end died"));
        }
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
