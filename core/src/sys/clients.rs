//! Clients of a loop that waits for nobody: one that is slow, silent or mad is dropped, and harms nobody else.

use super::poll::Epoll;
use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind as Io, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// What a client may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at one time.
    pub clients: usize,
    /// What one more is told, and closed.
    pub refusal: &'static str,
    /// Bytes that a client may send.
    pub input: usize,
    /// Bytes that may wait for a client to be read.
    pub output: usize,
    /// How long a client may take to say what it wants.
    pub patience: Duration,
    /// How long it may take to read its answer and to hang up; `None`: as long as it likes, and it is hung up on when it has got all.
    pub reading: Option<Duration>,
}

#[derive(Debug)]
struct Client<S> {
    stream: S,
    since: Instant,
    input: Vec<u8>,
    /// What it has sent after it had said what it wants.
    more: usize,
    output: VecDeque<u8>,
    /// It has said what it wants.
    asked: bool,
    /// It gets nothing more than what is in `output`.
    over: bool,
}

/// The clients of a loop, by their tokens. Each asks once. Their streams are non-blocking sockets.
#[derive(Debug)]
pub struct Clients<S> {
    limits: Limits,
    all: HashMap<u64, Client<S>>,
    last: u64,
}

impl<S: Read + Write + AsFd> Clients<S> {
    /// None yet; they will have the tokens above `token`.
    #[must_use]
    pub fn new(limits: Limits, token: u64) -> Clients<S> {
        Clients { limits, all: HashMap::new(), last: token }
    }

    /// One more, unless there are too many.
    pub fn add(&mut self, mut stream: S, epoll: &Epoll) {
        if self.all.len() >= self.limits.clients {
            // As much as fits a socket that is new: all of it.
            let _ = stream.write(self.limits.refusal.as_bytes());
            return;
        }
        self.last += 1;
        if epoll.add_tagged(stream.as_fd(), self.last).is_ok() {
            let (input, output) = (Vec::new(), VecDeque::new());
            self.all.insert(self.last, Client { stream, since: Instant::now(), input, more: 0, output, asked: false, over: false });
        }
    }

    /// A client's fd is ready: what `parse` makes of all that it has sent, once that is something.
    pub fn ready<T>(&mut self, token: u64, epoll: &Epoll, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        let client = self.all.get_mut(&token)?;
        let mut bytes = [0; 4096];
        let over = match client.stream.read(&mut bytes) {
            Ok(0) => true,
            Ok(n) if client.asked => {
                client.more += n;
                false
            }
            Ok(n) => {
                client.input.extend_from_slice(&bytes[..n]);
                false
            }
            Err(e) => !matches!(e.kind(), Io::WouldBlock | Io::Interrupted),
        };
        if over || client.input.len() + client.more > self.limits.input {
            self.remove(token, epoll);
            return None;
        }
        self.flush(token, epoll);
        let client = self.all.get_mut(&token).filter(|client| !client.asked)?;
        let asked = parse(&client.input)?;
        (client.asked, client.since) = (true, Instant::now());
        Some(asked)
    }

    /// Bytes for a client; `last`: there will be no more.
    pub fn say(&mut self, token: u64, bytes: impl IntoIterator<Item = u8>, last: bool, epoll: &Epoll) {
        let Some(client) = self.all.get_mut(&token) else { return };
        client.output.extend(bytes);
        client.over |= last;
        self.flush(token, epoll);
    }

    /// It has got all.
    pub fn end(&mut self, token: u64, epoll: &Epoll) {
        self.say(token, [], true, epoll);
    }

    /// It is still there.
    #[must_use]
    pub fn has(&self, token: u64) -> bool {
        self.all.contains_key(&token)
    }

    fn limit(&self, client: &Client<S>) -> Option<Instant> {
        let patience = if client.asked { self.limits.reading } else { Some(self.limits.patience) };
        patience.map(|patience| client.since + patience)
    }

    /// When somebody has taken too long.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.all.values().filter_map(|client| self.limit(client)).min()
    }

    /// Drops those.
    pub fn expire(&mut self, epoll: &Epoll) {
        let now = Instant::now();
        let is_late = |client: &Client<S>| self.limit(client).is_some_and(|at| at <= now);
        let late: Vec<u64> = self.all.iter().filter(|(_, client)| is_late(client)).map(|(token, _)| *token).collect();
        for token in late {
            self.remove(token, epoll);
        }
    }

    fn flush(&mut self, token: u64, epoll: &Epoll) {
        let Some(client) = self.all.get_mut(&token) else { return };
        let mut lost = client.output.len() > self.limits.output;
        let waited = !client.output.is_empty();
        while !lost && !client.output.is_empty() {
            match client.stream.write(client.output.as_slices().0) {
                Ok(n) => drop(client.output.drain(..n)),
                Err(e) if e.kind() == Io::WouldBlock => break,
                Err(e) if e.kind() == Io::Interrupted => {}
                Err(_) => lost = true,
            }
        }
        let done = client.over && client.output.is_empty();
        if lost || (done && self.limits.reading.is_none()) {
            self.remove(token, epoll);
            return;
        }
        let waits = !client.output.is_empty();
        let _ = epoll.want_room(client.stream.as_fd(), token, waits);
        if done && waited {
            // A close with something unread would take from the client what it has not read.
            // SAFETY: a plain call.
            unsafe { libc::shutdown(client.stream.as_fd().as_raw_fd(), libc::SHUT_WR) };
        }
    }

    fn remove(&mut self, token: u64, epoll: &Epoll) {
        if let Some(client) = self.all.remove(&token) {
            epoll.remove(client.stream.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const LIMITS: Limits = Limits {
        clients: 2,
        refusal: "full",
        input: 100,
        output: 1 << 20,
        patience: Duration::from_millis(50),
        reading: Some(Duration::from_millis(50)),
    };

    fn whole(input: &[u8]) -> Option<usize> {
        input.ends_with(b"\n").then_some(input.len())
    }

    struct Loop {
        epoll: Epoll,
        clients: Clients<UnixStream>,
    }

    impl Loop {
        fn new(limits: Limits) -> Loop {
            Loop { epoll: Epoll::new().expect("epoll"), clients: Clients::new(limits, 7) }
        }

        /// The other end of a new client, whose token is the next one.
        fn client(&mut self) -> UnixStream {
            let (own, theirs) = UnixStream::pair().expect("pair");
            own.set_nonblocking(true).expect("non-blocking");
            theirs.set_read_timeout(Some(Duration::from_secs(60))).expect("a watchdog");
            self.clients.add(own, &self.epoll);
            theirs
        }

        fn ready(&mut self, token: u64) -> Option<usize> {
            self.clients.ready(token, &self.epoll, whole)
        }

        /// Waits until none is left that takes too long.
        fn expire(&mut self) {
            while let Some(at) = self.clients.deadline() {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                self.clients.expire(&self.epoll);
            }
        }
    }

    #[test]
    fn a_client_asks_once_is_answered_and_hangs_up() {
        let mut l = Loop::new(LIMITS);
        let (mut a, mut b) = (l.client(), l.client());
        let mut refused = String::new();
        l.client().read_to_string(&mut refused).expect("closed");
        assert_eq!(refused, "full", "one too many");
        a.write_all(b"hel").expect("write");
        assert_eq!(l.ready(8), None);
        a.write_all(b"lo\n").expect("write");
        assert_eq!((l.ready(8), l.ready(9)), (Some(6), None));
        l.clients.say(8, *b"answer", true, &l.epoll);
        a.write_all(b"more\n").expect("write");
        assert_eq!(l.ready(8), None, "it has asked");
        let mut answer = String::new();
        a.read_to_string(&mut answer).expect("to the end");
        assert_eq!((answer.as_str(), l.clients.has(8)), ("answer", true), "it is to hang up");
        drop(a);
        assert_eq!((l.ready(8), l.clients.has(8)), (None, false));
        b.write_all(&[b'x'; 101]).expect("write");
        assert_eq!((l.ready(9), l.clients.has(9)), (None, false), "it says too much");
        // One that is hung up on.
        let mut l = Loop::new(Limits { reading: None, ..LIMITS });
        let mut a = l.client();
        a.write_all(b"\n").expect("write");
        assert_eq!((l.ready(8), l.clients.deadline()), (Some(1), None));
        l.clients.end(8, &l.epoll);
        assert_eq!((a.read(&mut [0; 1]).expect("the end"), l.clients.has(8)), (0, false));
    }

    #[test]
    fn who_is_silent_or_does_not_read_is_dropped() {
        let mut l = Loop::new(LIMITS);
        let (mut silent, mut deaf) = (l.client(), l.client());
        deaf.write_all(b"\n").expect("write");
        assert_eq!(l.ready(9), Some(1));
        l.clients.say(9, vec![b'x'; 1 << 20], true, &l.epoll);
        assert!(l.clients.has(8) && l.clients.has(9));
        l.expire();
        assert!(!l.clients.has(8) && !l.clients.has(9));
        assert_eq!(silent.read(&mut [0; 1]).expect("closed"), 0);
        let mut l = Loop::new(LIMITS);
        let _deaf = l.client();
        l.clients.say(8, vec![b'x'; (1 << 20) + 1], false, &l.epoll);
        assert!(!l.clients.has(8), "more waits for it than may");
    }
}
