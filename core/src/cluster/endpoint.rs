//! The metrics endpoint: a thread that answers HTTP requests for the cluster's numbers, and for a page that shows them.
//!
//! It reads only: nothing can be changed by it, and it asks nobody who he is. So it is for this machine, behind a loopback address or a unix socket.

use super::Inner;
use super::listen::{Address, QUEUE, Socket};
use super::status::Status;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::sys::clients::{Clients, Limits};
use crate::sys::eventfd::EventFd;
use crate::sys::poll::Epoll;
use crate::sys::{net, thread};
use httparse::{EMPTY_HEADER, Request};
use std::fmt::Write as _;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BELL: u64 = 0;
const LISTENER: u64 = 1;
/// Longest head of a request.
const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
const LIMITS: Limits = Limits {
    clients: 32,
    refusal: "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    // A body that nobody has asked for is read, and dropped, so that the answer arrives.
    input: 64 << 10,
    output: 4 << 20,
    patience: Duration::from_secs(10),
    reading: Some(Duration::from_secs(10)),
};
/// How long one look at the workers does for all who ask.
const FRESH: Duration = Duration::from_millis(200);
/// Without a description it cannot accept, and would be told of the next connection at once.
const REST: Duration = Duration::from_millis(100);

const PAGE: &str = include_str!("page.html");
/// Stands in the page for what allows its script and style to run.
const NONCE: &str = "{nonce}";

/// The socket, and the thread once it was started.
pub(super) struct Endpoint {
    address: Address,
    bell: EventFd,
    thread: Mutex<State>,
}

enum State {
    Bound(Socket),
    Runs(JoinHandle<()>),
    Over,
}

impl Endpoint {
    /// Binds. Connections wait until [`start`](Self::start).
    ///
    /// # Errors
    /// `Os` with the address.
    pub(super) fn bind(address: &Address) -> Result<Endpoint> {
        let socket = Socket::open(address, 0, QUEUE, false).map_err(|e| e.with("option", "metrics"))?;
        Ok(Endpoint { address: socket.bound.clone(), bell: EventFd::new()?, thread: Mutex::new(State::Bound(socket)) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Starts the thread, which ends with [`close`](Self::close), and shows `inner`, whose endpoint this is.
    ///
    /// # Errors
    /// `Os` when an fd or the thread cannot be made.
    pub(super) fn start(&self, inner: &Arc<Inner>) -> Result<()> {
        let epoll = Epoll::new()?;
        let mut state = lock(&self.thread);
        let State::Bound(socket) = std::mem::replace(&mut *state, State::Over) else { return Ok(()) };
        epoll.add_tagged(self.bell.fd(), BELL)?;
        epoll.add_tagged(socket.fd.as_fd(), LISTENER)?;
        let options = thread::Options { name: "offloop-metrics".to_owned(), stack_size: Some(256 << 10), nice: 0 };
        let inner = Arc::clone(inner);
        *state = State::Runs(thread::spawn(&options, move || run(&inner, &socket, &epoll))?);
        Ok(())
    }

    /// Waits until nobody listens any more.
    pub(super) fn close(&self) {
        let state = std::mem::replace(&mut *lock(&self.thread), State::Over);
        if let State::Runs(thread) = state {
            self.bell.signal();
            // It waits for nobody.
            let _ = thread.join();
        }
    }
}

fn run(inner: &Inner, socket: &Socket, epoll: &Epoll) {
    let mut clients = Clients::<TcpStream>::new(LIMITS, LISTENER);
    let mut ready = Vec::with_capacity(64);
    let mut last = None;
    let mut full = false;
    loop {
        let patience = clients.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let rest = full.then_some(REST);
        epoll.wait_for(&mut ready, patience.into_iter().chain(rest).min());
        if std::mem::take(&mut full) {
            let _ = epoll.hear(socket.fd.as_fd(), LISTENER, true);
        }
        for token in ready.drain(..) {
            match token {
                BELL => return,
                LISTENER => loop {
                    match net::accept(socket.fd.as_fd()) {
                        Ok(Some((fd, _))) => clients.add(TcpStream::from(fd), epoll),
                        Ok(None) => break,
                        Err(_) => {
                            full = true;
                            let _ = epoll.hear(socket.fd.as_fd(), LISTENER, false);
                            break;
                        }
                    }
                },
                client => {
                    if let Some(asked) = clients.ready(client, epoll, parse) {
                        clients.say(client, answer(&asked, inner, &mut last), true, epoll);
                    }
                }
            }
        }
        clients.expire(epoll);
    }
}

/// What somebody wants.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    what: What,
    /// Only the head of the answer (`HEAD`).
    head: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Page,
    Metrics,
    Status,
    Nothing,
    Method,
    Wrong,
    TooLong,
}

/// A request, once its head is there.
fn parse(input: &[u8]) -> Option<Asked> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    let plain = |what| Some(Asked { what, head: false });
    match request.parse(&input[..input.len().min(MAX_HEAD)]) {
        Ok(status) if status.is_partial() => {
            if input.len() < MAX_HEAD {
                return None;
            }
            return plain(What::TooLong);
        }
        Err(httparse::Error::TooManyHeaders) => return plain(What::TooLong),
        Err(_) => return plain(What::Wrong),
        Ok(_) => {}
    }
    let head = request.method == Some("HEAD");
    if !head && request.method != Some("GET") {
        return plain(What::Method);
    }
    let path = request.path.unwrap_or_default();
    let what = match path.split_once('?').map_or(path, |(path, _)| path) {
        "/" => What::Page,
        "/metrics" => What::Metrics,
        "/status" => What::Status,
        _ => What::Nothing,
    };
    Some(Asked { what, head })
}

/// The bytes of an answer. `last` is the last look at the workers.
fn answer(asked: &Asked, inner: &Inner, last: &mut Option<(Instant, Status)>) -> Vec<u8> {
    let mut status = || {
        let is_fresh = last.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
        if !is_fresh {
            *last = Some((Instant::now(), inner.status()));
        }
        last.as_ref().map(|(_, status)| status.clone()).expect("it was looked")
    };
    let plain = "text/plain; charset=utf-8";
    let (line, kind, body) = match asked.what {
        What::Page => {
            let Ok(nonce) = nonce() else { return response("500 Internal Server Error", plain, "", "no random number\n", asked.head) };
            let policy = format!(
                "Content-Security-Policy: default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
            );
            return response("200 OK", "text/html; charset=utf-8", &policy, &PAGE.replace(NONCE, &nonce), asked.head);
        }
        What::Metrics => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", inner.metrics_of(&status())),
        What::Status => ("200 OK", "application/json", status().json() + "\n"),
        What::Nothing => ("404 Not Found", plain, "not found: there are /, /metrics and /status\n".to_owned()),
        What::Method => {
            return response("405 Method Not Allowed", plain, "Allow: GET, HEAD\r\n", "method not allowed: GET or HEAD\n", asked.head);
        }
        What::Wrong => ("400 Bad Request", plain, "this is no HTTP request\n".to_owned()),
        What::TooLong => {
            ("431 Request Header Fields Too Large", plain, format!("the head of the request is longer than {MAX_HEAD} bytes\n"))
        }
    };
    response(line, kind, "", &body, asked.head)
}

/// What nobody else knows.
fn nonce() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(ErrorKind::Os, "no random number").with("error", e))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        // To a string: it cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn response(line: &str, kind: &str, more: &str, body: &str, head: bool) -> Vec<u8> {
    let mut out = format!(
        "HTTP/1.1 {line}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n{more}\r\n",
        body.len()
    );
    if !head {
        out.push_str(body);
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_what_is_none_is_told_apart() {
        let of = |text: &str| parse(text.as_bytes()).map(|asked| (asked.what, asked.head));
        for (line, what) in [
            ("GET / HTTP/1.1", What::Page),
            ("GET /?x=1 HTTP/1.1", What::Page),
            ("GET /metrics HTTP/1.0", What::Metrics),
            ("GET /metrics?name[]=x HTTP/1.1", What::Metrics),
            ("GET /status HTTP/1.1", What::Status),
            ("GET /metrics/ HTTP/1.1", What::Nothing),
            ("GET http://other/ HTTP/1.1", What::Nothing),
            ("GET /../etc/passwd HTTP/1.1", What::Nothing),
            ("POST /metrics HTTP/1.1", What::Method),
            ("DELETE / HTTP/1.1", What::Method),
        ] {
            assert_eq!(of(&format!("{line}\r\nHost: x\r\n\r\n")), Some((what, false)), "{line}");
        }
        assert_eq!(of("HEAD /status HTTP/1.1\r\n\r\n"), Some((What::Status, true)));
        for part in ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n"] {
            assert_eq!(of(part), None, "{part}");
        }
        for wrong in ["\u{1}\u{3}", "GET / HTTP/7\r\n\r\n", "hello there\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n"] {
            assert_eq!(of(wrong), Some((What::Wrong, false)), "{wrong}");
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(of(&long), Some((What::TooLong, false)));
        assert_eq!(of(&long[..MAX_HEAD - 1]), None);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(of(&many), Some((What::TooLong, false)));
    }

    #[test]
    fn the_page_is_whole_and_small_and_asks_nobody_else() {
        assert!(PAGE.len() <= 20 << 10, "{} bytes", PAGE.len());
        assert_eq!(PAGE.matches(NONCE).count(), 2, "a script and a style");
        // The one address is a name that nobody asks for.
        let page = PAGE.replace("http://www.w3.org/2000/svg", "");
        for word in ["http://", "https://", "//cdn", "@import", "src=", "style=\"", "onclick", "innerHTML", "eval("] {
            assert!(!page.contains(word), "{word}");
        }
        let head = String::from_utf8(response("200 OK", "text/html", "", PAGE, true)).expect("text");
        assert!(head.ends_with("\r\n\r\n") && head.contains(&format!("Content-Length: {}\r\n", PAGE.len())), "{head}");
        assert_ne!(nonce().expect("random"), nonce().expect("random"));
    }
}
