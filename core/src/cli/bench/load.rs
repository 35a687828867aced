//! The load: clients that send one request after the other on one thread, and never one again.
//!
//! ```text
//!            ┌──────────────── kept, or closed ────────────────┐
//!            ▼                                                 │
//!   Idle ─ begin ─► Queueing ─► Sending ─► Receiving ─► finish ┘
//!     ▲   (connects)  (unix,       │           │
//!     │               queue full)  └ fails ────┴► finish ─ pause ─┐
//!     └───────────────────────────────────────────────────────────┘
//! ```
//!
//! One epoll, level-triggered; a socket is a member as readable, and asks for room only while the kernel takes no more of a request. What a
//! client waits for by the clock lies in a heap; an entry whose time is no longer the client's own is void. Deadlines are looked at every 10 ms.

use super::event::{self, Ended, Event, PATIENCE, Run, Server, Windows};
use super::response::{End, Look, Response};
use super::tally::{Done, Failure, Tally};
use super::target::{Behaviour, Url};
use crate::cli::Stop;
use crate::error::Result;
use crate::sys::clock::monotonic_ns;
use crate::sys::poll::Epoll;
use crate::sys::process::{Child, Exit};
use crate::sys::stream::{self, Connect, Moved, Peer};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// A body that is sent slowly: so many pieces of so many bytes, over 50 ms.
const PIECES: usize = 8;
const PIECE: usize = 2048;
const PIECE_STEP: u64 = 50_000_000 / (PIECES as u64 - 1);
/// A response that is read slowly: pieces of 64 bytes, and after eight of them each twice the one before, 5 ms apart.
const READ: usize = 64;
const READ_STEP: u64 = 5_000_000;
const SMALL_READS: u32 = 8;
/// The receive buffer of such a connection: a server's write has to wait.
const SMALL_BUFFER: i32 = 4096;
/// How often deadlines are looked at.
const TICK: u64 = 10_000_000;
/// When a unix listener whose queue is full is asked again.
const QUEUE_STEP: u64 = 1_000_000;

/// Tokens of the epoll: below are clients, by index.
const COMMANDS: u64 = 1 << 32;
const SERVER: u64 = u64::MAX;

/// What to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) url: Url,
    pub(super) peer: Peer,
    /// Further fields of each request.
    pub(super) fields: Vec<(String, String)>,
    /// Clients of each behaviour, in the order of [`Behaviour::ALL`].
    pub(super) shares: [usize; 4],
    pub(super) duration: Option<Duration>,
    pub(super) requests: Option<u64>,
    pub(super) timeout: Duration,
    pub(super) pause: Duration,
    pub(super) failure_pause: Duration,
    pub(super) idle_limit: Duration,
    pub(super) look: Look,
    /// Answers are counted by the value of the field that is looked for.
    pub(super) counts: bool,
    pub(super) events: Vec<Event>,
    pub(super) times: Option<u64>,
    pub(super) settle: Duration,
    pub(super) interval: Option<Duration>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) tally: Tally,
    pub(super) runs: Vec<Run>,
    /// Times at which a command was due and ran still.
    pub(super) skipped: u64,
    /// Nanoseconds from the first request to the end of the last.
    pub(super) took: u64,
    /// The server ended by itself, at that time.
    pub(super) server_ended: Option<(u64, Exit)>,
}

/// What is told every interval.
pub(super) type Told<'a> = &'a mut dyn FnMut(u64, u64, &Tally) -> io::Result<()>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Queueing,
    Sending,
    Receiving,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Not,
    Read,
    Both,
}

struct Client {
    behaviour: Behaviour,
    phase: Phase,
    fd: Option<OwnedFd>,
    watch: Watch,
    /// When its own step comes, in nanoseconds since the beginning; 0: none.
    due: u64,
    /// Bytes of the request that were sent, and that may be sent by now.
    sent: usize,
    allowed: usize,
    /// The kernel has taken a byte, so there is a connection.
    connected: bool,
    /// A send failed with this; what had come before may still be read.
    lost: Option<i32>,
    reads: u32,
    response: Response,
    began: u64,
    /// From and to where its latency counts.
    from: u64,
    first_byte: u64,
    /// Requests that the connection has carried, and since when it carries none.
    carried: u64,
    idle_since: u64,
    idle: u64,
    /// Bytes came that no request had asked for.
    surplus: bool,
}

impl Client {
    fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Queueing | Phase::Sending | Phase::Receiving)
    }
}

struct Scheduled {
    next: u64,
    times: u64,
    running: Option<(Child, usize)>,
}

struct Load<'a> {
    plan: &'a Plan,
    epoll: Epoll,
    began: u64,
    clients: Vec<Client>,
    /// Of each behaviour, in the order of [`Behaviour::ALL`].
    messages: [Vec<u8>; 4],
    buffer: Box<[u8]>,
    steps: BinaryHeap<Reverse<(u64, usize)>>,
    issued: u64,
    busy: usize,
    stopping: bool,
    tally: Tally,
    schedule: Vec<Scheduled>,
    runs: Vec<Run>,
    skipped: u64,
    windows: Windows,
    server: Option<&'a Server>,
    server_ended: Option<(u64, Exit)>,
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// The bytes of a request.
fn message(plan: &Plan, behaviour: Behaviour) -> Vec<u8> {
    let slow_body = behaviour == Behaviour::SlowBody;
    let method = if slow_body { "POST" } else { "GET" };
    let mut fields = plan.fields.clone();
    // What was asked for stands before what is usual.
    let mut usual = |name: &str, value: &str| {
        if !plan.fields.iter().any(|(given, _)| given.eq_ignore_ascii_case(name)) {
            fields.push((name.to_owned(), value.to_owned()));
        }
    };
    usual("Host", &plan.url.authority);
    usual("User-Agent", concat!("offloop-bench/", env!("CARGO_PKG_VERSION")));
    usual("Accept", "*/*");
    if behaviour == Behaviour::New {
        usual("Connection", "close");
    }
    if slow_body {
        usual("Content-Type", "application/octet-stream");
        usual("Content-Length", &(PIECES * PIECE).to_string());
    }
    let mut text = format!("{method} {} HTTP/1.1\r\n", plan.url.path);
    fields.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    text += "\r\n";
    if slow_body {
        text += &"x".repeat(PIECES * PIECE);
    }
    text.into_bytes()
}

/// How a connect or a connection that was lost with `errno` failed.
fn connect_failure(errno: i32) -> Failure {
    match errno {
        // A unix socket whose file is not there, or is nobody's.
        libc::ECONNREFUSED | libc::ENOENT => Failure::Refused,
        libc::ECONNRESET | libc::EPIPE => Failure::Reset,
        libc::ETIMEDOUT => Failure::Timeout,
        libc::EADDRNOTAVAIL | libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAFNOSUPPORT => Failure::Local,
        _ => Failure::Unreachable,
    }
}

fn text_of(call: &str, errno: i32) -> String {
    format!("{call}: {}", io::Error::from_raw_os_error(errno))
}

/// Runs the load until its end.
pub(super) fn run(plan: &Plan, server: Option<&Server>, told: Told<'_>) -> Result<Outcome, Stop> {
    let began = monotonic_ns();
    let mut load = Load {
        plan,
        epoll: Epoll::new()?,
        began,
        clients: Vec::new(),
        messages: Behaviour::ALL.map(|b| message(plan, b)),
        buffer: vec![0; 64 << 10].into_boxed_slice(),
        steps: BinaryHeap::new(),
        issued: 0,
        busy: 0,
        stopping: false,
        tally: Tally::default(),
        schedule: plan.events.iter().map(|e| Scheduled { next: ns(e.every), times: 0, running: None }).collect(),
        runs: Vec::new(),
        skipped: 0,
        windows: Windows::new(plan.settle),
        server,
        server_ended: None,
    };
    if let Some(server) = server {
        load.epoll.add_tagged(server.child.exit_fd(), SERVER)?;
    }
    for (behaviour, share) in Behaviour::ALL.into_iter().zip(plan.shares) {
        load.clients.extend((0..share).map(|_| Client {
            behaviour,
            phase: Phase::Idle,
            fd: None,
            watch: Watch::Not,
            due: 0,
            sent: 0,
            allowed: 0,
            connected: false,
            lost: None,
            reads: 0,
            response: Response::new(),
            began: 0,
            from: 0,
            first_byte: 0,
            carried: 0,
            idle_since: 0,
            idle: 0,
            surplus: false,
        }));
    }
    for at in 0..load.clients.len() {
        load.begin(at, monotonic_ns() - began)?;
    }
    let took = load.turn(told)?;
    Ok(Outcome {
        tally: std::mem::take(&mut load.tally),
        runs: std::mem::take(&mut load.runs),
        skipped: load.skipped,
        took,
        server_ended: load.server_ended,
    })
}

impl Drop for Load<'_> {
    /// An error on the way leaves no command behind.
    fn drop(&mut self) {
        self.kill_commands();
    }
}

impl Load<'_> {
    fn now(&self) -> u64 {
        monotonic_ns() - self.began
    }

    /// The loop. Returns how long the load took.
    fn turn(&mut self, told: Told<'_>) -> Result<u64, Stop> {
        let interval = self.plan.interval.map(ns);
        let (mut looked, mut tick, mut took) = (0, 0, None);
        let mut ready = Vec::with_capacity(64);
        loop {
            let now = self.now();
            if !self.stopping && self.is_over(now) {
                self.stop();
            }
            if self.stopping && self.busy == 0 {
                let took = *took.get_or_insert(now);
                if self.schedule.iter().all(|s| s.running.is_none()) {
                    return Ok(took);
                }
                if now - took > ns(PATIENCE) {
                    self.kill_commands();
                    return Ok(took);
                }
            }
            if now >= tick {
                tick = now + TICK;
                self.expire(now)?;
                self.start_commands(now)?;
            }
            if let Some(interval) = interval
                && now >= looked + interval
            {
                told(looked, now, &self.tally)?;
                self.tally.recent = Default::default();
                looked = now;
            }
            while let Some(Reverse((due, at))) = self.steps.peek().copied()
                && due <= now
            {
                self.steps.pop();
                if self.clients[at].due == due {
                    self.clients[at].due = 0;
                    self.step(at, now)?;
                }
            }
            let until = self.steps.peek().map_or(tick, |Reverse((due, _))| (*due).min(tick));
            ready.clear();
            self.epoll.wait_for(&mut ready, Some(Duration::from_nanos(until.saturating_sub(self.now()))));
            for token in &ready {
                match *token {
                    SERVER => self.server_has_ended()?,
                    token if token >= COMMANDS => self.command_has_ended((token - COMMANDS) as usize)?,
                    token => self.ready(token as usize)?,
                }
            }
        }
    }

    /// Nothing more is to be sent.
    fn is_over(&self, now: u64) -> bool {
        let plan = self.plan;
        let open_end = plan.duration.is_none() && plan.requests.is_none();
        plan.duration.is_some_and(|d| now >= ns(d))
            || plan.requests.is_some_and(|n| self.issued >= n)
            || open_end && self.schedule.iter().all(|s| Some(s.times) >= plan.times && s.running.is_none()) && self.windows.are_over(now)
    }

    fn stop(&mut self) {
        self.stopping = true;
        for at in 0..self.clients.len() {
            if !self.clients[at].is_busy() {
                self.leave(at);
            }
        }
    }

    /// The client has done its part.
    fn leave(&mut self, at: usize) {
        self.close(at);
        self.clients[at].phase = Phase::Over;
        self.clients[at].due = 0;
    }

    fn close(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if let Some(fd) = client.fd.take()
            && std::mem::replace(&mut client.watch, Watch::Not) != Watch::Not
        {
            self.epoll.remove(fd.as_fd());
        }
        (client.surplus, client.connected) = (false, false);
    }

    fn watch(&mut self, at: usize, watch: Watch) -> Result<()> {
        let client = &mut self.clients[at];
        let before = std::mem::replace(&mut client.watch, watch);
        let Some(fd) = client.fd.as_ref().filter(|_| before != watch) else { return Ok(()) };
        let (fd, token) = (fd.as_fd(), at as u64);
        match (before, watch) {
            (_, Watch::Not) => {
                self.epoll.remove(fd);
                Ok(())
            }
            (Watch::Not, Watch::Read) => self.epoll.add_tagged(fd, token),
            (Watch::Not, Watch::Both) => self.epoll.add_tagged(fd, token).and_then(|()| self.epoll.want_room(fd, token, true)),
            (_, _) => self.epoll.want_room(fd, token, watch == Watch::Both),
        }
    }

    fn wait_until(&mut self, at: usize, due: u64) {
        // 0 is for none.
        let due = due.max(1);
        self.clients[at].due = due;
        self.steps.push(Reverse((due, at)));
    }

    /// Sends the client's next request, on its connection if it has one.
    fn begin(&mut self, at: usize, now: u64) -> Result<()> {
        if self.stopping || self.plan.requests.is_some_and(|n| self.issued >= n) {
            self.leave(at);
            return Ok(());
        }
        self.issued += 1;
        self.busy += 1;
        let client = &mut self.clients[at];
        client.response.clear();
        (client.began, client.from, client.first_byte) = (now, now, 0);
        (client.sent, client.lost, client.reads, client.due) = (0, None, 0, 0);
        client.allowed = self.messages[client.behaviour as usize].len();
        if client.behaviour == Behaviour::SlowBody {
            client.allowed -= (PIECES - 1) * PIECE;
        }
        client.phase = Phase::Sending;
        if client.fd.is_some() {
            client.idle = now - client.idle_since;
            if client.surplus {
                return self.finish(at, now, Some((Failure::Malformed, "bytes came before the request".to_owned())));
            }
            return self.send(at, now);
        }
        (client.carried, client.idle) = (0, 0);
        match stream::open(&self.plan.peer) {
            Ok(fd) => {
                if client.behaviour == Behaviour::SlowRead {
                    stream::keep_small(fd.as_fd(), SMALL_BUFFER);
                }
                client.fd = Some(fd);
                self.tally.connections += 1;
                self.connect(at, now)
            }
            Err(e) => self.finish(at, now, Some((Failure::Local, e.to_string()))),
        }
    }

    fn connect(&mut self, at: usize, now: u64) -> Result<()> {
        let Some(fd) = &self.clients[at].fd else { return Ok(()) };
        match stream::connect(fd.as_fd(), &self.plan.peer) {
            // On a loopback it is done as a rule, and the request goes at once.
            Connect::Begun => {
                self.clients[at].phase = Phase::Sending;
                self.send(at, now)
            }
            Connect::Full => {
                self.clients[at].phase = Phase::Queueing;
                self.wait_until(at, now + QUEUE_STEP);
                Ok(())
            }
            Connect::Failed(errno) => self.finish(at, now, Some((connect_failure(errno), text_of("connect", errno)))),
        }
    }

    /// Sends what may be sent by now.
    fn send(&mut self, at: usize, now: u64) -> Result<()> {
        loop {
            let client = &mut self.clients[at];
            let message = &self.messages[client.behaviour as usize];
            if client.sent == message.len() {
                client.phase = Phase::Receiving;
                if client.behaviour == Behaviour::SlowBody {
                    client.from = now;
                }
                return self.watch(at, Watch::Read);
            }
            if client.sent == client.allowed {
                client.allowed += PIECE;
                self.wait_until(at, now + PIECE_STEP);
                return self.watch(at, Watch::Read);
            }
            let Some(fd) = &client.fd else { return Ok(()) };
            match stream::send(fd.as_fd(), &message[client.sent..client.allowed]) {
                Moved::Bytes(n) => {
                    client.sent += n;
                    client.connected = true;
                }
                Moved::Later => return self.watch(at, Watch::Both),
                Moved::Failed(errno) if !client.connected => {
                    return self.finish(at, now, Some((connect_failure(errno), text_of("connect", errno))));
                }
                Moved::Failed(errno) => {
                    // An answer that came before may still be read.
                    client.lost = Some(errno);
                    client.phase = Phase::Receiving;
                    return self.watch(at, Watch::Read);
                }
                Moved::End => unreachable!("a send has no end"),
            }
        }
    }

    /// The client's own time has come.
    fn step(&mut self, at: usize, now: u64) -> Result<()> {
        match self.clients[at].phase {
            Phase::Idle => self.begin(at, now),
            Phase::Queueing => self.connect(at, now),
            Phase::Sending => self.send(at, now),
            Phase::Receiving => self.receive(at, now),
            Phase::Over => Ok(()),
        }
    }

    /// The client's socket has something to say.
    fn ready(&mut self, at: usize) -> Result<()> {
        let now = self.now();
        match self.clients[at].phase {
            Phase::Idle => self.look_at_idle(at),
            Phase::Sending => {
                // Not before its time.
                if self.clients[at].due == 0 {
                    self.send(at, now)?;
                }
                if matches!(self.clients[at].phase, Phase::Sending | Phase::Receiving) && self.clients[at].connected {
                    self.receive(at, now)?;
                }
                Ok(())
            }
            Phase::Receiving => self.receive(at, now),
            Phase::Queueing | Phase::Over => Ok(()),
        }
    }

    /// A connection that carries nothing was closed, or brings what nobody asked for.
    fn look_at_idle(&mut self, at: usize) -> Result<()> {
        let Some(fd) = &self.clients[at].fd else { return Ok(()) };
        match stream::receive(fd.as_fd(), &mut self.buffer) {
            Moved::Later => Ok(()),
            Moved::Bytes(_) => {
                self.clients[at].surplus = true;
                self.watch(at, Watch::Not)
            }
            Moved::End | Moved::Failed(_) => {
                self.tally.closed_idle += 1;
                self.close(at);
                Ok(())
            }
        }
    }

    fn receive(&mut self, at: usize, now: u64) -> Result<()> {
        loop {
            let client = &mut self.clients[at];
            let Some(fd) = &client.fd else { return Ok(()) };
            let slow = client.behaviour == Behaviour::SlowRead;
            let room = if slow { READ << client.reads.saturating_sub(SMALL_READS).min(10) } else { self.buffer.len() };
            let moved = stream::receive(fd.as_fd(), &mut self.buffer[..room]);
            let failure = match moved {
                Moved::Bytes(n) => {
                    self.tally.received += n as u64;
                    if !client.response.began() {
                        client.first_byte = now;
                    }
                    match client.response.feed(&self.plan.look, &self.buffer[..n]) {
                        Err(told) => (Failure::Malformed, told.to_owned()),
                        Ok(Some(used)) if used < n => (Failure::Malformed, "bytes came behind the response".to_owned()),
                        Ok(Some(_)) => return self.complete(at, now, false),
                        Ok(None) if slow => {
                            client.reads += 1;
                            self.watch(at, Watch::Not)?;
                            self.wait_until(at, now + READ_STEP);
                            return Ok(());
                        }
                        Ok(None) if n < room => return Ok(()),
                        Ok(None) => continue,
                    }
                }
                Moved::Later => return if slow { self.watch(at, Watch::Read) } else { Ok(()) },
                Moved::End => match (client.response.end(), client.lost) {
                    (End::Complete, _) => return self.complete(at, now, true),
                    (_, Some(errno)) => (Failure::Reset, text_of("send", errno)),
                    (End::Nothing, None) => (Failure::Closed, "connection was closed before a byte of the response".to_owned()),
                    (End::Truncated, None) => (Failure::Truncated, "connection was closed within the response".to_owned()),
                },
                Moved::Failed(libc::ETIMEDOUT) => (Failure::Timeout, text_of("recv", libc::ETIMEDOUT)),
                Moved::Failed(errno) => (Failure::Reset, text_of("recv", errno)),
            };
            return self.finish(at, now, Some(failure));
        }
    }

    /// A whole response has come.
    fn complete(&mut self, at: usize, now: u64, ended: bool) -> Result<()> {
        let client = &mut self.clients[at];
        let status = client.response.status();
        let failure = if !(200..300).contains(&status) {
            Some((Failure::Status, format!("status {status}")))
        } else if !client.response.has_text(&self.plan.look) {
            Some((Failure::Body, "body has not the text that was asked for".to_owned()))
        } else {
            if self.plan.counts {
                self.tally.answered(client.response.value(), client.carried == 0);
            }
            None
        };
        let whole = client.sent == self.messages[client.behaviour as usize].len() && client.lost.is_none();
        if ended || !whole || client.behaviour == Behaviour::New || !client.response.keeps_connection() {
            self.close(at);
        }
        self.finish(at, now, failure)
    }

    /// Counts a request, and lets the client go on.
    fn finish(&mut self, at: usize, now: u64, failure: Option<(Failure, String)>) -> Result<()> {
        let client = &mut self.clients[at];
        let lost = failure.as_ref().is_some_and(|(failure, _)| !matches!(failure, Failure::Status | Failure::Body));
        let event = if self.windows.met(client.began) { self.runs.len().checked_sub(1) } else { None };
        let ended = if client.behaviour == Behaviour::SlowRead { client.first_byte } else { now };
        let raced = client.carried > 0
            && !client.response.began()
            && client.idle >= ns(self.plan.idle_limit)
            && matches!(failure, Some((Failure::Reset | Failure::Closed, _)));
        let done = Done {
            behaviour: client.behaviour,
            began: client.began,
            ended: now,
            latency: ended.saturating_sub(client.from),
            reused: client.carried,
            idle: client.idle,
            failure: failure.as_ref().map(|(failure, detail)| (*failure, detail.as_str())),
            raced,
            event,
        };
        self.tally.count(&done);
        if let Some(run) = event.and_then(|at| self.runs.get_mut(at)) {
            run.requests += 1;
            match (failure.is_some(), raced) {
                (true, true) => run.raced += 1,
                (true, false) => run.failed += 1,
                (false, _) => run.max = run.max.max(done.latency),
            }
        }
        client.carried += 1;
        client.idle_since = now;
        client.phase = Phase::Idle;
        client.due = 0;
        self.busy -= 1;
        if lost {
            self.close(at);
        }
        if self.stopping {
            self.leave(at);
            return Ok(());
        }
        let pause = if failure.is_some() { self.plan.pause.max(self.plan.failure_pause) } else { self.plan.pause };
        if failure.is_none() && pause.is_zero() {
            return self.begin(at, now);
        }
        if self.clients[at].fd.is_some() {
            self.watch(at, Watch::Read)?;
        }
        // Later than now, also without a pause: a failure comes back here from where a request begins, and the loop has to get a turn.
        self.wait_until(at, now + ns(pause).max(1));
        Ok(())
    }

    /// Ends requests whose time is over.
    fn expire(&mut self, now: u64) -> Result<()> {
        let timeout = ns(self.plan.timeout);
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            if client.is_busy() && now - client.began >= timeout {
                let told = match client.phase {
                    _ if !client.connected => "while it connected",
                    Phase::Sending => "while the request was sent",
                    _ if client.response.began() => "within the response",
                    _ => "without a byte of the response",
                };
                self.finish(at, now, Some((Failure::Timeout, told.to_owned())))?;
            }
        }
        Ok(())
    }

    fn start_commands(&mut self, now: u64) -> Result<()> {
        if self.stopping {
            return Ok(());
        }
        for (at, event) in self.plan.events.iter().enumerate() {
            let scheduled = &mut self.schedule[at];
            if now < scheduled.next || self.plan.times.is_some_and(|n| scheduled.times >= n) {
                continue;
            }
            while scheduled.next <= now {
                scheduled.next += ns(event.every);
            }
            if scheduled.running.is_some() {
                self.skipped += 1;
                continue;
            }
            scheduled.times += 1;
            self.windows.begin();
            let run = self.runs.len();
            let mut new = Run { event: at, at: now, ended: None, requests: 0, failed: 0, raced: 0, max: 0 };
            match event::run(&event.command) {
                Ok(child) => {
                    self.epoll.add_tagged(child.exit_fd(), COMMANDS + at as u64)?;
                    scheduled.running = Some((child, run));
                }
                Err(e) => {
                    new.ended = Some((now, Ended::NotStarted(e.to_string())));
                    self.windows.end(now);
                }
            }
            self.runs.push(new);
        }
        Ok(())
    }

    fn command_has_ended(&mut self, at: usize) -> Result<()> {
        let now = self.now();
        let Some((child, run)) = &self.schedule[at].running else { return Ok(()) };
        if let Some(exit) = child.try_wait()? {
            self.epoll.remove(child.exit_fd());
            self.runs[*run].ended = Some((now, Ended::Exit(exit)));
            self.schedule[at].running = None;
            self.windows.end(now);
        }
        Ok(())
    }

    fn kill_commands(&mut self) {
        let now = self.now();
        for scheduled in &mut self.schedule {
            if let Some((child, run)) = scheduled.running.take() {
                // What cannot be ended is nobody's any more; the report says that it was to be.
                let _ = child.kill(libc::SIGKILL).and_then(|_| child.wait(None));
                if let Some(run) = self.runs.get_mut(run) {
                    run.ended = Some((now, Ended::Killed));
                }
            }
        }
    }

    fn server_has_ended(&mut self) -> Result<()> {
        let now = self.now();
        if let Some(server) = self.server
            && let Some(exit) = server.child.try_wait()?
        {
            self.epoll.remove(server.child.exit_fd());
            self.server_ended = Some((now, exit));
        }
        Ok(())
    }
}
