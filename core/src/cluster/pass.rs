//! The thread that accepts for all workers, and passes each connection to one of them.
//!
//! ```text
//!  listening socket ──accept──► choose ──► seat of a worker ──► the worker ──TAKEN──► our copy is closed
//!        ▲                        │  ▲                             │
//!        └── not polled while     ▼  └────── REFUSED, unread when it drains, hangs or hangs up, unanswered when it dies
//!            nobody has room    waits
//! ```
//!
//! * A worker has a *seat* per listening socket that it takes connections from: a socket pair, whose both ends this process keeps. Over a copy of the
//!   worker's end it takes back what the worker has not read; a datagram has one reader, so a connection is never with two.
//! * At most [`WINDOW`] connections are unanswered per worker, so that one that blocks holds up no more than those; and those for no longer than
//!   [`patience`](Thread::patience), while another worker could have them.
//! * `IpHash` waits for the worker of an address while that turns; up to [`WAITING`] connections do. Everything else waits in the kernel's queue.

use super::balance::{Balance, Candidate, choose};
use super::listen::Socket;
use super::page::Page;
use super::{Event, Listener};
use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::WorkerId;
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::poll::{self, Epoll};
use crate::sys::{net, socket, thread};
use crate::wire::cluster::{ANSWER_LEN, REFUSED, TAKEN, decode_answer, decode_connection, encode_answer, encode_connection};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Connections that a worker was passed and has not answered to, at most.
pub(super) const WINDOW: usize = 1;
/// Connections that wait in this process for the worker of their address, at most.
const WAITING: usize = 64;
/// Connections of one listening socket in a row.
const BATCH: usize = 64;
/// How long nobody accepts for want of fds, and nothing goes to a worker that has no room for one.
const PAUSE: Duration = Duration::from_millis(100);

const BELL: u64 = 0;
/// Tokens of listening sockets have this bit, and their index.
const DOOR: u64 = 1 << 63;

enum Order {
    Worker(WorkerId, Page),
    Seat { id: WorkerId, socket: Arc<Socket>, own: OwnedFd, theirs: OwnedFd },
    Ready(WorkerId),
    Activate { spare: WorkerId, worker: WorkerId },
    Drain(WorkerId),
    Gone(WorkerId),
    Close,
}

/// What other threads tell the one that passes.
pub(super) struct Passer {
    bell: EventFd,
    orders: Mutex<Vec<Order>>,
}

impl Passer {
    /// Starts the thread, which ends with [`close`](Self::close). A worker's loop shows that it turns each `beat`; `None`: that is not looked at.
    pub(super) fn open(balance: Balance, beat: Option<Duration>, listener: Listener) -> Result<Arc<Passer>> {
        let passer = Arc::new(Passer { bell: EventFd::new()?, orders: Mutex::default() });
        let epoll = Epoll::new()?;
        epoll.add_tagged(passer.bell.fd(), BELL)?;
        let thread = Thread {
            shared: Arc::clone(&passer),
            balance,
            beat,
            listener,
            epoll,
            doors: Vec::new(),
            takers: Vec::new(),
            seats: HashMap::new(),
            waiting: VecDeque::new(),
            last_token: BELL,
            last_seq: 0,
            paused: None,
            failing: false,
            over: false,
        };
        let options = thread::Options { name: "offloop-pass".to_owned(), stack_size: Some(256 << 10), nice: 0 };
        drop(thread::spawn(&options, move || thread.run())?);
        Ok(passer)
    }

    fn order(&self, order: Order) {
        lock(&self.orders).push(order);
        self.bell.signal();
    }

    /// The counters that the worker `id` inherits.
    pub(super) fn add(&self, id: WorkerId) -> Result<OwnedFd> {
        let (fd, page) = Page::create()?;
        self.order(Order::Worker(id, page));
        Ok(fd)
    }

    /// A seat of `id` at `socket`: the worker's end.
    pub(super) fn seat(&self, id: WorkerId, socket: &Arc<Socket>) -> Result<OwnedFd> {
        let (own, end) = socket::pair()?;
        let theirs = poll::duplicate(end.as_fd())?;
        self.order(Order::Seat { id, socket: Arc::clone(socket), own, theirs });
        Ok(end)
    }

    /// It takes connections from now on.
    pub(super) fn ready(&self, id: WorkerId) {
        self.order(Order::Ready(id));
    }

    /// A spare has taken a worker's place, and takes connections from now on.
    pub(super) fn activate(&self, spare: WorkerId, worker: WorkerId) {
        self.order(Order::Activate { spare, worker });
    }

    /// It gets no more.
    pub(super) fn drain(&self, id: WorkerId) {
        self.order(Order::Drain(id));
    }

    /// It has ended, or was not started.
    pub(super) fn gone(&self, id: WorkerId) {
        self.order(Order::Gone(id));
    }

    pub(super) fn close(&self) {
        self.order(Order::Close);
    }
}

/// A listening socket.
struct Door {
    /// It stays open only as long as its cluster has it.
    socket: Weak<Socket>,
    token: u64,
    /// It is polled.
    heard: bool,
    /// The slot that had its last connection.
    last: Option<u32>,
}

struct Connection {
    fd: OwnedFd,
    client: Option<IpAddr>,
    door: usize,
}

/// A worker.
struct Taker {
    id: WorkerId,
    /// What it was started as.
    started: WorkerId,
    page: Page,
    ready: bool,
    draining: bool,
    seats: Vec<Seat>,
    unanswered: Vec<Passed>,
    /// Connections that it has been given and has not given back.
    given: u64,
    /// What its loop has shown, and since when.
    beats: (u64, Instant),
    /// Nothing goes to it before.
    rests: Option<Instant>,
}

struct Seat {
    token: u64,
    door: usize,
    own: OwnedFd,
    theirs: OwnedFd,
}

struct Passed {
    seq: u64,
    token: u64,
    at: Instant,
    connection: Connection,
}

struct Thread {
    shared: Arc<Passer>,
    balance: Balance,
    beat: Option<Duration>,
    listener: Listener,
    epoll: Epoll,
    doors: Vec<Door>,
    takers: Vec<Taker>,
    seats: HashMap<u64, WorkerId>,
    /// In the order in which they came.
    waiting: VecDeque<Connection>,
    last_token: u64,
    last_seq: u64,
    /// Nobody accepts before.
    paused: Option<Instant>,
    /// The last try to accept failed for want of fds.
    failing: bool,
    over: bool,
}

impl Taker {
    fn rests(&self, now: Instant) -> bool {
        self.rests.is_some_and(|until| now < until)
    }

    /// Its loop turns, as far as is known.
    fn turns(&mut self, now: Instant, patience: Option<Duration>) -> bool {
        let beats = self.page.beats();
        if beats != self.beats.0 {
            self.beats = (beats, now);
        }
        // A program that shows no beats is none that blocks.
        beats == 0 || patience.is_none_or(|patience| now.duration_since(self.beats.1) <= patience)
    }

    fn serves(&self, door: usize) -> bool {
        self.ready && !self.draining && self.seats.iter().any(|seat| seat.door == door)
    }

    fn load(&self) -> u64 {
        self.given.saturating_sub(self.page.closed())
    }

    /// Takes what it was passed and has not answered to out of its hands: all, or what came over one seat.
    fn take_back(&mut self, token: Option<u64>) -> Vec<Connection> {
        let (back, rest) = std::mem::take(&mut self.unanswered).into_iter().partition(|passed| token.is_none_or(|t| passed.token == t));
        self.unanswered = rest;
        let back: Vec<Passed> = back;
        self.given -= back.len() as u64;
        back.into_iter().map(|passed| passed.connection).collect()
    }

    /// Takes back what it has not read: the worker does not get it any more.
    fn take_unread(&mut self) -> Vec<Connection> {
        let mut back = Vec::new();
        for seat in &self.seats {
            let mut bytes = [0; 8];
            while let Ok(socket::Received::Datagram(len, _copy)) = socket::receive(seat.theirs.as_fd(), &mut bytes) {
                let seq = decode_connection(&bytes[..len.min(8)]);
                let Some(at) = self.unanswered.iter().position(|passed| Some(passed.seq) == seq) else { continue };
                back.push(self.unanswered.remove(at).connection);
                self.given -= 1;
            }
        }
        back
    }
}

impl Thread {
    fn run(mut self) {
        let mut ready = Vec::with_capacity(64);
        while !self.over {
            self.epoll.wait_for(&mut ready, self.rest());
            let now = Instant::now();
            let mut knocked = Vec::new();
            for token in ready.drain(..) {
                match token {
                    BELL => self.obey(now),
                    door if door & DOOR != 0 => knocked.push((door & !DOOR) as usize),
                    seat => self.hear(seat, now),
                }
            }
            self.look(now);
            for _ in 0..self.waiting.len() {
                let Some(connection) = self.waiting.pop_front() else { break };
                if let Some(connection) = self.give(connection, now) {
                    self.waiting.push_back(connection);
                }
            }
            for door in knocked {
                self.open_door(door, now);
            }
            self.watch_doors(now);
        }
    }

    /// How long there is nothing to look at by itself.
    fn rest(&self) -> Option<Duration> {
        let idle = self.waiting.is_empty()
            && self.paused.is_none()
            && self.takers.iter().all(|t| t.unanswered.is_empty() && t.rests.is_none())
            && self.doors.iter().enumerate().all(|(at, door)| door.heard || !self.takers.iter().any(|taker| taker.serves(at)));
        if idle { None } else { Some(PAUSE) }
    }

    /// How long a connection is left with a worker that does not read it, and a loop that shows nothing is taken for one that turns.
    fn patience(&self) -> Option<Duration> {
        // It shows itself twice as often as it has to.
        self.beat.map(|beat| beat * 3 / 2)
    }

    fn taker(&mut self, id: WorkerId) -> Option<&mut Taker> {
        self.takers.iter_mut().find(|taker| taker.id == id)
    }

    /// First come, first served: those that were passed already came before those that wait.
    fn put_back(&mut self, back: Vec<Connection>) {
        for connection in back.into_iter().rev() {
            self.waiting.push_front(connection);
        }
    }

    fn obey(&mut self, now: Instant) {
        self.shared.bell.clear();
        let orders = std::mem::take(&mut *lock(&self.shared.orders));
        for order in orders {
            match order {
                Order::Worker(id, page) => self.takers.push(Taker {
                    id,
                    started: id,
                    page,
                    ready: false,
                    draining: false,
                    seats: Vec::new(),
                    unanswered: Vec::new(),
                    given: 0,
                    beats: (0, now),
                    rests: None,
                }),
                Order::Seat { id, socket, own, theirs } => self.add_seat(id, &socket, own, theirs),
                Order::Ready(id) => {
                    if let Some(taker) = self.taker(id) {
                        taker.ready = true;
                        taker.beats.1 = now;
                    }
                }
                Order::Activate { spare, worker } => {
                    if let Some(taker) = self.taker(spare) {
                        (taker.id, taker.ready, taker.beats.1) = (worker, true, now);
                    }
                    self.seats.values_mut().filter(|id| **id == spare).for_each(|id| *id = worker);
                }
                Order::Drain(id) => {
                    if let Some(taker) = self.taker(id) {
                        taker.draining = true;
                        let back = taker.take_unread();
                        self.put_back(back);
                    }
                }
                Order::Gone(id) => self.remove(id),
                Order::Close => self.over = true,
            }
        }
    }

    fn add_seat(&mut self, id: WorkerId, socket: &Arc<Socket>, own: OwnedFd, theirs: OwnedFd) {
        let known = self.doors.iter().position(|door| std::ptr::eq(door.socket.as_ptr(), Arc::as_ptr(socket)));
        let door = known.unwrap_or_else(|| {
            let token = DOOR | self.doors.len() as u64;
            // Polled when somebody can have what comes.
            let heard = false;
            if let Err(e) = self.epoll.add_silent(socket.fd.as_fd(), token) {
                self.listener.tell(&Event::Warning(e.with("listen", &socket.bound)));
            }
            self.doors.push(Door { socket: Arc::downgrade(socket), token, heard, last: None });
            self.doors.len() - 1
        });
        self.last_token += 1;
        let token = self.last_token;
        // It may have asked for it as a spare.
        let Some(taker) = self.takers.iter_mut().find(|taker| taker.id == id || taker.started == id) else { return };
        if let Err(e) = self.epoll.add_tagged(own.as_fd(), token) {
            self.listener.tell(&Event::Warning(e.with("worker", id)));
            return;
        }
        taker.seats.push(Seat { token, door, own, theirs });
        self.seats.insert(token, taker.id);
    }

    /// A worker that has ended. What it has answered to ended with it; the rest is for the others.
    fn remove(&mut self, id: WorkerId) {
        let Some(at) = self.takers.iter().position(|taker| taker.id == id) else { return };
        let mut taker = self.takers.swap_remove(at);
        for seat in &taker.seats {
            self.epoll.remove(seat.own.as_fd());
            self.seats.remove(&seat.token);
            let mut bytes = [0; ANSWER_LEN];
            while let Ok(socket::Received::Datagram(len, _)) = socket::receive(seat.own.as_fd(), &mut bytes) {
                if let Some((seq, TAKEN)) = decode_answer(&bytes[..len.min(ANSWER_LEN)]) {
                    taker.unanswered.retain(|passed| passed.seq != seq);
                }
            }
        }
        let back = taker.take_back(None);
        self.put_back(back);
    }

    /// A worker says something.
    fn hear(&mut self, token: u64, now: Instant) {
        let Some(id) = self.seats.get(&token).copied() else { return };
        let Some(taker) = self.takers.iter_mut().find(|taker| taker.id == id) else { return };
        let Some(at) = taker.seats.iter().position(|seat| seat.token == token) else { return };
        let mut bytes = [0; ANSWER_LEN];
        match socket::receive(taker.seats[at].own.as_fd(), &mut bytes) {
            Ok(socket::Received::Datagram(len, _)) => {
                let Some((seq, what)) = decode_answer(&bytes[..len.min(ANSWER_LEN)]) else { return };
                // Another number is no answer.
                let Some(passed) = taker.unanswered.iter().position(|passed| passed.seq == seq && passed.token == token) else { return };
                let passed = taker.unanswered.swap_remove(passed);
                if what == REFUSED {
                    taker.given -= 1;
                    taker.rests = Some(now + PAUSE);
                    self.put_back(vec![passed.connection]);
                }
            }
            Ok(socket::Received::Nothing) => {}
            Ok(socket::Received::End) | Err(_) => self.close_seat(id, at),
        }
    }

    /// The worker has hung up: whatever it has taken it has answered to before.
    fn close_seat(&mut self, id: WorkerId, at: usize) {
        let Some(taker) = self.takers.iter_mut().find(|taker| taker.id == id) else { return };
        let seat = taker.seats.swap_remove(at);
        self.epoll.remove(seat.own.as_fd());
        self.seats.remove(&seat.token);
        let back = taker.take_back(Some(seat.token));
        self.put_back(back);
    }

    /// Takes back what lies with workers that do not read it.
    fn look(&mut self, now: Instant) {
        let Some(patience) = self.patience() else { return };
        let mut back = Vec::new();
        for taker in &mut self.takers {
            taker.rests = taker.rests.filter(|until| now < *until);
            let Some(oldest) = taker.unanswered.iter().map(|passed| passed.at).min() else { continue };
            let turns = taker.turns(now, Some(patience));
            if !turns || now.duration_since(oldest) > patience {
                let unread = taker.take_unread();
                if !unread.is_empty() && turns {
                    // It turns, and does not look: others first.
                    taker.rests = Some(now + PAUSE);
                }
                back.extend(unread);
            }
        }
        self.put_back(back);
    }

    /// Who could have a connection that came to `door`, and where in `takers`: of a slot the latest worker.
    fn candidates(&mut self, door: usize, now: Instant) -> Vec<(Candidate, usize)> {
        let patience = self.patience();
        let mut all: Vec<(Candidate, usize)> = Vec::with_capacity(self.takers.len());
        for at in 0..self.takers.len() {
            let taker = &mut self.takers[at];
            if !taker.serves(door) || taker.rests(now) || !taker.turns(now, patience) {
                continue;
            }
            let candidate = Candidate { slot: taker.id.slot, has_room: taker.unanswered.len() < WINDOW, load: taker.load() };
            let incarnation = taker.id.incarnation;
            match all.iter_mut().find(|(other, _)| other.slot == candidate.slot) {
                Some(found) if self.takers[found.1].id.incarnation < incarnation => *found = (candidate, at),
                Some(_) => {}
                None => all.push((candidate, at)),
            }
        }
        all
    }

    /// Gives a connection to a worker; what comes back has to wait.
    fn give(&mut self, connection: Connection, now: Instant) -> Option<Connection> {
        loop {
            let all = self.candidates(connection.door, now);
            let choices: Vec<Candidate> = all.iter().map(|(candidate, _)| *candidate).collect();
            let last = self.doors[connection.door].last;
            let Some(chosen) = choose(self.balance, &choices, last, connection.client).filter(|i| choices[*i].has_room) else {
                return Some(connection);
            };
            let taker = &mut self.takers[all[chosen].1];
            let id = taker.id;
            // The last one that it has asked for is the one that it looks at.
            let at = taker.seats.iter().rposition(|seat| seat.door == connection.door).expect("candidates have a seat there");
            let seat = &taker.seats[at];
            self.last_seq += 1;
            let sent = socket::send(seat.own.as_fd(), &encode_connection(self.last_seq), &[connection.fd.as_fd()]);
            match sent {
                Ok(socket::Sent::Whole) => {
                    self.doors[connection.door].last = Some(id.slot);
                    taker.given += 1;
                    taker.unanswered.push(Passed { seq: self.last_seq, token: seat.token, at: now, connection });
                    return None;
                }
                Ok(socket::Sent::Gone) => self.close_seat(id, at),
                // Too many fds are on their way, of all processes of this user.
                Ok(socket::Sent::Full) | Err(_) => taker.rests = Some(now + PAUSE),
            }
        }
    }

    /// Something that comes now need not wait here, or may.
    fn has_room(&mut self, door: usize, now: Instant) -> bool {
        if self.paused.is_some_and(|until| now < until) || self.waiting.len() >= WAITING {
            return false;
        }
        self.paused = None;
        let all = self.candidates(door, now);
        if self.balance == Balance::IpHash { !all.is_empty() } else { all.iter().any(|(candidate, _)| candidate.has_room) }
    }

    fn open_door(&mut self, door: usize, now: Instant) {
        for _ in 0..BATCH {
            if !self.has_room(door, now) {
                return;
            }
            let Some(socket) = self.doors[door].socket.upgrade() else { return };
            match net::accept(socket.fd.as_fd()) {
                Ok(Some((fd, client))) => {
                    self.failing = false;
                    if let Some(connection) = self.give(Connection { fd, client, door }, now) {
                        self.waiting.push_back(connection);
                    }
                }
                Ok(None) => return,
                Err(e) => {
                    self.paused = Some(now + PAUSE);
                    // Once, until it has worked again.
                    if !std::mem::replace(&mut self.failing, true) {
                        self.listener.tell(&Event::Warning(e.with("listen", &socket.bound)));
                    }
                    return;
                }
            }
        }
    }

    /// A listening socket that nobody accepts from is not polled: it would be readable for good.
    fn watch_doors(&mut self, now: Instant) {
        for at in 0..self.doors.len() {
            let wanted = self.has_room(at, now);
            let door = &mut self.doors[at];
            if wanted == door.heard {
                continue;
            }
            let Some(socket) = door.socket.upgrade() else { continue };
            // Tried again at the next turn.
            if self.epoll.hear(socket.fd.as_fd(), door.token, wanted).is_ok() {
                door.heard = wanted;
            }
        }
    }
}

/// What a worker does with a seat: takes a connection from it, and says so. `None`: there is none now.
///
/// # Errors
/// `PeerDied` when the cluster is gone or this end was hung up, `Os` with `EMFILE` when there is no room for it here: another worker gets it.
pub(super) fn take(seat: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let mut bytes = [0; 8];
    let (len, mut fds) = match socket::receive(seat, &mut bytes)? {
        socket::Received::Datagram(len, fds) => (len, fds),
        socket::Received::Nothing => return Ok(None),
        socket::Received::End => return Err(Error::new(ErrorKind::PeerDied, "no connections come any more")),
    };
    let seq = decode_connection(&bytes[..len.min(8)]).ok_or_else(|| Error::new(ErrorKind::Corrupt, "the cluster's message is none"))?;
    let Some(connection) = fds.pop() else {
        let _ = socket::send(seat, &encode_answer(seq, REFUSED), &[]);
        return Err(Error::os("recvmsg", libc::EMFILE));
    };
    match socket::send(seat, &encode_answer(seq, TAKEN), &[])? {
        socket::Sent::Whole => Ok(Some(connection)),
        // Who has hung up meanwhile has not got it.
        socket::Sent::Full | socket::Sent::Gone => Err(Error::new(ErrorKind::PeerDied, "no connections come any more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_has_no_room_for_a_connection_refuses_it() {
        let (own, theirs) = socket::pair().expect("pair");
        let null = std::fs::File::open("/dev/null").expect("open");
        let answer = || {
            let mut bytes = [0; ANSWER_LEN];
            let Ok(socket::Received::Datagram(len, _)) = socket::receive(own.as_fd(), &mut bytes) else { panic!("no answer") };
            decode_answer(&bytes[..len])
        };
        assert!(take(theirs.as_fd()).expect("nothing yet").is_none());
        socket::send(own.as_fd(), &encode_connection(7), &[null.as_fd()]).expect("send");
        assert!(take(theirs.as_fd()).expect("taken").is_some());
        assert_eq!(answer(), Some((7, TAKEN)));
        // As it comes where the table of fds is full.
        socket::send(own.as_fd(), &encode_connection(8), &[]).expect("send");
        let e = take(theirs.as_fd()).expect_err("no room");
        assert!(e.errno().is_some_and(|(errno, _)| errno == libc::EMFILE), "{e}");
        assert_eq!(answer(), Some((8, REFUSED)));
        socket::send(own.as_fd(), b"no", &[]).expect("send");
        assert_eq!(take(theirs.as_fd()).expect_err("no message").kind(), ErrorKind::Corrupt);
        drop(own);
        assert_eq!(take(theirs.as_fd()).expect_err("gone").kind(), ErrorKind::PeerDied);
    }
}
