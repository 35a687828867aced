//! The connection of an opened end: two rings, and the socket that carries greetings and fds.
//!
//! ```text
//!  pair      made with a greeting in each direction that carries both rings: an end is opened by whoever reads its own
//!  listen    the acceptor makes the rings, sits in them and greets; the connector reads that
//!  opening   checks the greeting, attaches, takes both seats, says HERE
//! ```
//!
//! Before the other end has said HERE its life is known by the socket; from then on by its seats in the rings, and where pids do not
//! reach by the socket still.

use super::Options;
use super::turns::{Deadline, Turns};
use crate::buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::{Consumer, ConsumerOptions, Kind, OnFull, Producer, ProducerOptions, RingBuffer};
use crate::sys::fork::PrivateFd;
use crate::sys::socket::{self, Received, Sent};
use crate::sys::{failpoint, poll};
use crate::wire::channel::{FDS_LEN, Greeting, HERE, RINGS, VERSION_MAX, VERSION_MIN, encode_fds};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock};

#[derive(Debug)]
pub(super) struct Line {
    socket: PrivateFd,
    pub(super) send_ring: RingBuffer,
    pub(super) recv_ring: RingBuffer,
    /// For the thread that sends first; without one the other end closed before this one was opened.
    pub(super) producer: Mutex<Option<Producer>>,
    /// For the thread that receives first.
    pub(super) consumer: Mutex<Option<Consumer>>,
    other: OnceLock<Greeting>,
    /// Whoever has the turn reads the greeting, or waits for it: a thread that waited without would not see that another has read it.
    greeting: Turns<()>,
}

fn ring(options: &Options) -> Result<RingBuffer> {
    RingBuffer::builder(Kind::Spsc).capacity(options.capacity).on_full(OnFull::Wait).create()
}

fn greet(socket: BorrowedFd<'_>, flags: u32, side: u32, rings: Option<&[RingBuffer; 2]>) -> Result<()> {
    let greeting =
        Greeting { min: VERSION_MIN, max: VERSION_MAX, flags, features: 0, instance: buffer::instance()?, pid: std::process::id(), side };
    let mut fds = Vec::new();
    for ring in rings.into_iter().flatten() {
        // SAFETY: the ring keeps its fds open for the call.
        fds.extend(ring.fds()?.into_iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }));
    }
    match socket::send(socket, &greeting.encode(), &fds)? {
        // One that is gone is found out by whoever reads.
        Sent::Whole | Sent::Gone => Ok(()),
        Sent::Full => Err(Error::os("sendmsg", libc::EAGAIN)),
    }
}

/// Two sockets with the same two rings on their way to either.
pub(super) fn pair(options: &Options) -> Result<(OwnedFd, OwnedFd)> {
    let rings = [ring(options)?, ring(options)?];
    let (a, b) = socket::pair()?;
    // What is sent by one end is read by the other.
    greet(b.as_fd(), RINGS, 0, Some(&rings))?;
    greet(a.as_fd(), RINGS, 1, Some(&rings))?;
    Ok((a, b))
}

/// Writable memory is shared with this user alone, and with the system's, from whom nothing is hidden: a cluster of root has workers of other users.
pub(super) fn check_user(socket: BorrowedFd<'_>) -> Result<()> {
    let (other, own) = (socket::peer(socket)?, socket::own_uid());
    if other.uid != own && other.uid != 0 {
        return Err(Error::invalid("other end of the channel belongs to another user").with("uid", other.uid).with("own_uid", own));
    }
    Ok(())
}

/// A ring that a stranger sent may be anything.
fn damage(e: Error) -> Error {
    if e.kind() == ErrorKind::Invalid {
        return Error::new(ErrorKind::Corrupt, "greeting carries no rings").with("error", e);
    }
    e
}

/// The rings of an end with both of its seats in them, before they have their socket.
#[derive(Debug)]
pub(super) struct Seated {
    send_ring: RingBuffer,
    recv_ring: RingBuffer,
    producer: Option<Producer>,
    consumer: Consumer,
    other: Option<Greeting>,
}

impl Seated {
    fn sit(rings: [RingBuffer; 2], side: usize) -> Result<Seated> {
        let [zero, one] = rings;
        let (send_ring, recv_ring) = if side == 0 { (zero, one) } else { (one, zero) };
        let consumer = recv_ring.consumer(ConsumerOptions::default())?;
        let producer = match send_ring.producer(ProducerOptions::default()) {
            Ok(producer) => Some(producer),
            // The other end closed already; what it sent before is read all the same.
            Err(e) if e.kind() == ErrorKind::Closed => None,
            Err(e) => return Err(e),
        };
        failpoint::hit("channel.opened");
        Ok(Seated { send_ring, recv_ring, producer, consumer, other: None })
    }

    /// Takes the rings that wait in the socket; `None` while none do. What fails for want of fds or memory can be tried again.
    pub(super) fn take(socket: BorrowedFd<'_>) -> Result<Option<Seated>> {
        let mut bytes = [0; 256];
        let (len, fds) = match socket::peek(socket, &mut bytes)? {
            Received::Datagram(len, fds) => (len, fds),
            Received::Nothing => return Ok(None),
            Received::End => return Err(Error::new(ErrorKind::PeerDied, "other end was gone before it offered its rings")),
        };
        let greeting = Greeting::decode(&bytes[..len], fds.len())?;
        if greeting.flags & RINGS == 0 {
            return Err(Error::new(ErrorKind::Corrupt, "greeting carries no rings").with("flags", greeting.flags));
        }
        let attach = |fds: &[OwnedFd]| {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            RingBuffer::attach(&fds).map_err(damage)
        };
        let rings = [attach(&fds[..3])?, attach(&fds[3..])?];
        if let Some(ring) = rings.iter().find(|ring| ring.kind() != Kind::Spsc || ring.on_full() == OnFull::Overwrite) {
            return Err(Error::new(ErrorKind::Corrupt, "ring of a channel is of another kind").with("kind", ring.kind().as_str()));
        }
        let mut seated = Seated::sit(rings, greeting.side as usize)?;
        greet(socket, HERE, 0, None)?;
        failpoint::hit("channel.greeted");
        socket::skip(socket);
        seated.other = (greeting.flags & HERE != 0).then_some(greeting);
        Ok(Some(seated))
    }
}

impl Line {
    /// The line of an end that has taken its rings out of `socket`.
    pub(super) fn new(socket: PrivateFd, seated: Seated) -> Line {
        let Seated { send_ring, recv_ring, producer, consumer, other } = seated;
        Line {
            socket,
            send_ring,
            recv_ring,
            producer: Mutex::new(producer),
            consumer: Mutex::new(Some(consumer)),
            other: other.map_or_else(OnceLock::new, OnceLock::from),
            greeting: Turns::new(()),
        }
    }

    /// Makes the rings for a connection that was accepted.
    pub(super) fn host(socket: PrivateFd, options: &Options) -> Result<Line> {
        let rings = [ring(options)?, ring(options)?];
        let seated = Seated::sit(rings.clone(), 0)?;
        greet(socket.as_fd(), RINGS | HERE, 1, Some(&rings))?;
        failpoint::hit("channel.greeted");
        Ok(Line::new(socket, seated))
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The other end, once it has said that it is here.
    pub(super) fn other(&self) -> Option<&Greeting> {
        self.other.get()
    }

    /// True once the other end has said that it is here: it publishes nothing before. `None` while another thread waits for that, who
    /// reads it.
    pub(super) fn is_greeted(&self) -> Result<Option<bool>> {
        if self.other.get().is_some() {
            return Ok(Some(true));
        }
        self.greeting.try_enter().map(|_turn| self.read_greeting()).transpose()
    }

    /// As [`is_greeted`](Self::is_greeted), and waits for it once; may end early.
    pub(super) fn wait_greeted(&self, deadline: Deadline) -> Result<bool> {
        let _turn = self.greeting.enter(deadline, "other end was not opened")?;
        if self.read_greeting()? {
            return Ok(true);
        }
        let left = deadline.left("other end was not opened")?;
        poll::wait_readable(&mut [poll::readable(self.socket().as_raw_fd())], left);
        self.read_greeting()
    }

    fn read_greeting(&self) -> Result<bool> {
        if self.other.get().is_some() {
            return Ok(true);
        }
        let mut bytes = [0; 256];
        let greeting = match socket::peek(self.socket(), &mut bytes)? {
            Received::Datagram(len, fds) => Greeting::decode(&bytes[..len], fds.len())?,
            Received::Nothing => return Ok(false),
            Received::End => return Err(Error::new(ErrorKind::PeerDied, "other end was gone before it was opened")),
        };
        if greeting.flags != HERE {
            return Err(Error::new(ErrorKind::Corrupt, "greeting is out of place").with("flags", greeting.flags));
        }
        socket::skip(self.socket());
        let _ = self.other.set(greeting);
        Ok(true)
    }

    /// The fds of a record, which stay in the socket until [`forget_fds`](Self::forget_fds).
    pub(super) fn fds(&self, want: u16, count: u32) -> Result<Vec<OwnedFd>> {
        let mut bytes = [0; FDS_LEN + 1];
        match socket::peek(self.socket(), &mut bytes)? {
            Received::Datagram(FDS_LEN, fds) if bytes[..FDS_LEN] == encode_fds(want, count) && fds.len() == usize::from(want) => Ok(fds),
            _ => Err(Error::new(ErrorKind::Corrupt, "fds of a message are not there").with("fds", want).with("count", count)),
        }
    }

    pub(super) fn forget_fds(&self) {
        socket::skip(self.socket());
    }

    /// Why a ring ended, as the user of a channel sees it.
    pub(super) fn why(&self, e: Error) -> Error {
        match e.kind() {
            ErrorKind::Closed => Error::new(ErrorKind::Closed, "other end closed the channel"),
            ErrorKind::PeerDied => self.died(),
            _ => e,
        }
    }

    pub(super) fn died(&self) -> Error {
        let e = Error::new(ErrorKind::PeerDied, "other end died");
        if let Some(other) = self.other() { e.with("pid", other.pid) } else { e }
    }

    /// The other end's socket is gone: closed, or dead.
    pub(super) fn gone(&self) -> Error {
        if self.send_ring.is_closed() { Error::new(ErrorKind::Closed, "other end closed the channel") } else { self.died() }
    }

    /// Tells the other end, which still gets what was sent.
    pub(super) fn close(&self) {
        self.send_ring.close();
        failpoint::hit("channel.closing");
        self.recv_ring.close();
        socket::hang_up(self.socket());
    }
}
