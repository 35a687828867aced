//! The worker's side: [`attach`], then [`Worker::listen`] or the sockets that it inherited, [`Worker::channel`] for messages, and what every supervised process does.

use super::listen::{Address, QUEUE};
use super::page::Page;
use super::pass;
use crate::channel::{Channel, Options};
use crate::error::{Error, ErrorKind, Result};
use crate::shared::{Counter, Limit, RateLimiter};
use crate::supervisor;
use crate::sync::lock;
use crate::sys::fork::{self, ForkCell};
use crate::sys::{net, poll, socket};
use crate::wire::cluster::{
    Asked, COUNTER, ENV, FIRST_FD, Inherited, LIMITER, LISTEN, MAX_LEN, SEAT, decode_reply, encode_request, parse_env,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a worker waits for its cluster's answer, which comes from a thread that has nothing else to do.
const ANSWER: Duration = Duration::from_secs(30);

static CURRENT: ForkCell<Mutex<Option<Worker>>> = ForkCell::new();

/// What [`attach`] has made of this process.
pub(super) fn current() -> Option<Worker> {
    lock(CURRENT.get(Mutex::default)).clone()
}

/// This process as a worker of a cluster. Copies of the handle are the same worker.
#[derive(Clone, Debug)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    supervised: supervisor::Worker,
    gate: Mutex<Gate>,
    sockets: usize,
    post: Mutex<Post>,
    /// Of a cluster that passes connections.
    page: Option<Page>,
    epoch: u64,
}

/// Where it asks the cluster for things, and how often it has.
#[derive(Debug)]
struct Gate {
    fd: OwnedFd,
    asked: u32,
}

/// The way to the cluster's process.
#[derive(Debug)]
enum Post {
    /// Nobody has asked for it yet.
    Shut(OwnedFd),
    Open(Channel),
    None,
}

/// Makes this process the worker that its cluster started: see [`supervisor::worker::attach`]. `None` when it is none. The sockets that it inherited are kept from the programs that it starts.
///
/// # Errors
/// Those of [`supervisor::worker::attach`]; `Invalid` when the variable or the fds are not what a cluster leaves.
pub fn attach() -> Result<Option<Worker>> {
    let Some(text) = std::env::var_os(ENV) else { return Ok(None) };
    // First: a program that a worker starts inherits the variables and none of the fds.
    let Some(supervised) = supervisor::worker::attach()? else { return Ok(None) };
    let Inherited { gate, listeners: sockets, channel, pass } = parse_env(&text.to_string_lossy())?;
    let missing = |fd: i32| Error::invalid("fd of the cluster is not there").with("fd", fd);
    for fd in (FIRST_FD..).take(sockets).chain([gate]).chain(channel).chain(pass) {
        if !net::close_on_exec(fd) {
            return Err(missing(fd));
        }
    }
    // SAFETY: it is open, as was seen, and was inherited for this purpose.
    let gate = unsafe { net::take_over(gate) };
    // SAFETY: as above.
    let post = channel.map_or(Post::None, |fd| Post::Shut(unsafe { net::take_over(fd) }));
    // SAFETY: as above; it is mapped, and then closed.
    let page = pass.map(|fd| Page::attach(unsafe { net::take_over(fd) }.as_fd())).transpose()?;
    socket::check_kind(gate.as_fd())?;
    socket::adopt(gate.as_fd())?;
    let worker = Worker(Arc::new(Inner {
        supervised,
        gate: Mutex::new(Gate { fd: gate, asked: 0 }),
        sockets,
        post: Mutex::new(post),
        page,
        epoch: fork::epoch(),
    }));
    *lock(CURRENT.get(Mutex::default)) = Some(worker.clone());
    Ok(Some(worker))
}

impl Worker {
    /// Slot, generation, beats, readiness, draining.
    #[must_use]
    pub fn supervisor(&self) -> &supervisor::Worker {
        &self.0.supervised
    }

    /// Shows that the loop turns: [`supervisor::Worker::beat`], and to who chooses the worker of a connection.
    pub fn beat(&self) {
        self.beat_within(self.0.supervised.beat_interval());
    }

    /// As [`beat`](Self::beat), from a timer that comes again after `next`: [`supervisor::Worker::beat_within`].
    pub fn beat_within(&self, next: Duration) {
        self.0.supervised.beat_within(next);
        if let Some(page) = &self.0.page {
            page.beat();
        }
    }

    /// The cluster accepts, and passes connections to its workers: [`accept`](Self::accept) takes them, from what [`listen`](Self::listen) and [`seat`](Self::seat) give.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        self.0.page.is_some()
    }

    /// What connections of the socket `index` of the cluster's option `listen` are taken from, and where that listens. In a cluster whose workers share sockets it is that socket;
    /// else a seat, which is asked for: from then on connections come. Each call gives another fd; they come over the last one.
    ///
    /// # Errors
    /// `NotFound` where there is no such socket; those of [`listen`](Self::listen).
    pub fn seat(&self, index: usize) -> Result<(OwnedFd, Address)> {
        let fd = self.fds().get(index).copied().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "cluster has no such socket").with("index", index).with("sockets", self.0.sockets)
        })?;
        if self.is_passed() {
            return self.ask_for_socket((SEAT, index as i32, 0, ""));
        }
        // SAFETY: it is open for as long as the program keeps it so, which is its word.
        let fd = poll::duplicate(unsafe { BorrowedFd::borrow_raw(fd) })?;
        let at = Address::of(net::bound(fd.as_fd())?);
        Ok((fd, at))
    }

    /// A connection that waits at `from`, which [`listen`](Self::listen) or [`seat`](Self::seat) gave: non-blocking, close-on-exec. `None` when none came within `timeout`; zero: one that is
    /// there, `None`: without end. Whoever takes connections in a loop of his own polls `from` for reading. For a spare none is there before it takes a worker's place: such a loop waits for
    /// [`active_fd`](supervisor::Worker::active_fd) before it polls.
    ///
    /// # Errors
    /// `Os` with `EMFILE` when this process has no room for it: then it waits, or another worker gets it. `PeerDied` when no connections come any more, because the cluster is gone or
    /// [`leave`](Self::leave) was called.
    pub fn accept(&self, from: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<Option<OwnedFd>> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        if !self.is_passed() && !self.0.supervised.wait_active(timeout) {
            return Ok(None);
        }
        loop {
            let found = if self.is_passed() { pass::take(from)? } else { net::accept(from)?.map(|(fd, _)| fd) };
            if found.is_some() {
                return Ok(found);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            poll::wait_readable(&mut [poll::readable(from.as_raw_fd())], left);
        }
    }

    /// No more connections are taken from a seat, which is closed next: those that are on their way to it go to other workers. A shared socket needs no such word.
    pub fn leave(&self, seat: BorrowedFd<'_>) {
        if self.is_passed() {
            socket::hang_up(seat);
        }
    }

    /// A connection that [`accept`](Self::accept) gave has ended: `least-connections` counts those that have not.
    pub fn closed(&self) {
        if let Some(page) = &self.0.page {
            page.count_closed();
        }
    }

    /// The sockets of the cluster's option `listen`, in its order. They belong to whoever uses them first; closing one keeps nobody else from it. Where the cluster
    /// [passes](Self::is_passed) connections, who accepts from them takes what others were to have: use [`seat`](Self::seat).
    #[must_use]
    pub fn fds(&self) -> Vec<i32> {
        (FIRST_FD..).take(self.0.sockets).collect()
    }

    /// The channel to the cluster's process, opened by the first call: always the same end. It ends with `PeerDied` when the cluster is gone.
    ///
    /// # Errors
    /// `Unsupported` when that cluster is of a version without messages; those of [`Channel::attach`]; `Forked`.
    pub fn channel(&self) -> Result<Channel> {
        self.check_fork()?;
        let mut post = lock(&self.0.post);
        match std::mem::replace(&mut *post, Post::None) {
            Post::None => Err(Error::new(ErrorKind::Unsupported, "the cluster of this worker has no channel for messages")),
            Post::Open(channel) => {
                *post = Post::Open(channel.clone());
                Ok(channel)
            }
            Post::Shut(fd) => match Channel::attach(fd, Options::default()) {
                Ok(channel) => {
                    *post = Post::Open(channel.clone());
                    Ok(channel)
                }
                Err((e, fd)) => {
                    *post = Post::Shut(fd);
                    Err(e)
                }
            },
        }
    }

    fn check_fork(&self) -> Result<()> {
        if fork::is_current(self.0.epoch) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, "process is a child of a worker"))
    }

    /// A socket that listens at `address`, which all workers that ask for it share, and where it is: non-blocking, close-on-exec. `nth` is how many of that address this worker has open already:
    /// with a port of the system's choice (0) each is another socket, with a certain port the second one is in use. Waits for the cluster's answer.
    ///
    /// Where the cluster [passes](Self::is_passed) connections, it is a seat in place of the socket: poll it, and take from it with [`accept`](Self::accept).
    ///
    /// # Errors
    /// `Os` with what the bind failed with (`EADDRINUSE`, `EACCES` …), `Invalid` for an address that is none, `PeerDied` when the cluster is gone, `Forked`.
    pub fn listen(&self, address: &str, nth: u32, queue: Option<i32>) -> Result<(OwnedFd, Address)> {
        self.ask_for_socket((LISTEN, queue.unwrap_or(QUEUE), nth, address))
    }

    /// The counter of this name that the workers of this cluster share: a new one at 0 the first time. Waits for the cluster's answer, so ask once.
    ///
    /// # Errors
    /// `Invalid` for a name that [`Ledger::counter`](crate::shared::Ledger::counter) refuses; `PeerDied` when the cluster is gone; `Os`, `Forked`.
    pub fn counter(&self, name: &str) -> Result<Counter> {
        let (fd, _) = self.ask((COUNTER, 0, 0, name), "counter")?;
        Counter::attach(fd.as_fd())
    }

    /// The limiter of this name that the workers of this cluster share: a new one the first time. Waits for the cluster's answer, so ask once.
    ///
    /// # Errors
    /// Those of [`counter`](Self::counter); `Invalid` for a limit that is none, and where the name stands for another one.
    pub fn limiter(&self, name: &str, limit: Limit) -> Result<RateLimiter> {
        limit.check()?;
        let (fd, _) = self.ask((LIMITER, limit.burst as i32, limit.keys, &format!("{} {name}", limit.rate)), "limiter")?;
        RateLimiter::attach(fd.as_fd())
    }

    fn ask_for_socket(&self, asked: Asked<'_>) -> Result<(OwnedFd, Address)> {
        let (fd, at) = self.ask(asked, "listen")?;
        Ok((fd, at.parse()?))
    }

    /// What the cluster gives, and what it says with it.
    fn ask(&self, (op, queue, nth, name): Asked<'_>, what: &'static str) -> Result<(OwnedFd, String)> {
        self.check_fork()?;
        let gone = || Error::new(ErrorKind::PeerDied, "the cluster of this worker is gone");
        let mut gate = lock(&self.0.gate);
        gate.asked = gate.asked.wrapping_add(1);
        let seq = gate.asked;
        let gate = gate.fd.as_fd();
        if socket::send(gate, &encode_request(seq, op, queue, nth, name), &[])? != socket::Sent::Whole {
            return Err(gone());
        }
        let until = Instant::now() + ANSWER;
        let mut bytes = [0; MAX_LEN];
        let (len, mut fds) = loop {
            match socket::peek(gate, &mut bytes) {
                // Of a question that was given up.
                Ok(socket::Received::Datagram(len, _)) if decode_reply(&bytes[..len.min(MAX_LEN)]).is_some_and(|(of, ..)| of != seq) => {
                    socket::skip(gate);
                    continue;
                }
                Ok(socket::Received::Datagram(len, fds)) => break (len, fds),
                Ok(socket::Received::End) => return Err(gone()),
                Ok(socket::Received::Nothing) => {}
                Err(e) => {
                    // There is no room for the fd of the answer, which goes with it.
                    socket::skip(gate);
                    return Err(e);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Timeout, "the cluster does not answer").with(what, name));
            }
            poll::wait_readable(&mut [poll::readable(gate.as_raw_fd())], Some(left));
        };
        socket::skip(gate);
        match decode_reply(&bytes[..len.min(MAX_LEN)]) {
            Some((_, 0, text)) => match fds.pop() {
                Some(fd) => Ok((fd, text.to_owned())),
                None => Err(Error::new(ErrorKind::Corrupt, "the cluster answers without an fd")),
            },
            Some((_, libc::EINVAL, text)) => Err(Error::invalid(text.to_owned())),
            Some((_, errno, _)) => Err(Error::os(if what == "listen" { "bind" } else { "memfd" }, errno).with(what, name)),
            None => Err(Error::new(ErrorKind::Corrupt, "the cluster's answer is none")),
        }
    }
}
