//! The metrics endpoint: a thread that answers HTTP requests for the cluster's numbers, and for a page that shows them.
//!
//! It reads only: nothing can be changed by it, and it asks nobody who he is. So it is for this machine, behind a loopback address or a unix socket. A page of another site that a browser
//! shows has a name of that site, wherever the name leads (DNS rebinding): a request for such a name is refused.

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
use std::net::{IpAddr, Ipv6Addr, TcpStream};
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
/// Longest body, for which [`LIMITS`] have room with its head.
const MAX_BODY: usize = LIMITS.output - (1 << 10);
/// How long one look at the workers does for all who ask.
const FRESH: Duration = Duration::from_millis(200);
/// Without a description it cannot accept, and would be told of the next connection at once.
const REST: Duration = Duration::from_millis(100);

/// What this machine calls itself.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

const PLAIN: &str = "text/plain; charset=utf-8";
const FAILED: &str = "500 Internal Server Error";
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

/// What a request may call this server (`Host`), by where it listens. No `Host` is allowed: a browser sends one.
#[derive(Debug)]
enum Names {
    /// A unix socket: no browser gets there.
    All,
    /// A loopback address: an IP address, `localhost` or a name below it.
    Loopback,
    /// Another address: also a name without a dot, which no site has, and this one, which the machine has.
    Open(String),
}

impl Names {
    fn of(address: &Address) -> Names {
        match address {
            Address::Unix(_) | Address::Fd(_) => Names::All,
            Address::Tcp(at) if at.ip().to_canonical().is_loopback() => Names::Loopback,
            Address::Tcp(_) | Address::Any(_) => Names::Open(std::fs::read_to_string(HOST_NAME).unwrap_or_default().trim().to_owned()),
        }
    }

    fn allow(&self, host: &[u8]) -> bool {
        let own = match self {
            Names::All => return true,
            Names::Loopback => None,
            Names::Open(own) => Some(own),
        };
        let Ok(host) = std::str::from_utf8(host) else { return false };
        // A version 6 address has brackets.
        if let Some(rest) = host.strip_prefix('[') {
            return rest
                .split_once(']')
                .is_some_and(|(ip, port)| ip.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':')));
        }
        let name = host.split_once(':').map_or(host, |(name, _)| name);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_local = name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok();
        is_local || own.is_some_and(|own| !name.is_empty() && (!name.contains('.') || name.eq_ignore_ascii_case(own)))
    }
}

fn run(inner: &Inner, socket: &Socket, epoll: &Epoll) {
    let names = Names::of(&socket.bound);
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
                    if let Some(asked) = clients.ready(client, epoll, |input| parse(input, &names)) {
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
    Host,
    Method,
    Wrong,
    TooLong,
}

/// A request, once its head is there.
fn parse(input: &[u8], names: &Names) -> Option<Asked> {
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
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    if hosts.any(|host| !names.allow(host.value)) {
        return plain(What::Host);
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
    let (line, kind, body) = match asked.what {
        What::Page => {
            let Ok(nonce) = nonce() else { return response(FAILED, PLAIN, "", "no random number\n", asked.head) };
            let policy = format!(
                "Content-Security-Policy: default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
            );
            return response("200 OK", "text/html; charset=utf-8", &policy, &PAGE.replace(NONCE, &nonce), asked.head);
        }
        What::Metrics => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", inner.metrics_of(&status())),
        What::Status => ("200 OK", "application/json", status().json() + "\n"),
        What::Nothing => ("404 Not Found", PLAIN, "not found: there are /, /metrics and /status\n".to_owned()),
        What::Host => {
            let why = "the Host of the request is the name of another server: ask by an IP address or as localhost, and have a proxy send such a Host\n";
            ("421 Misdirected Request", PLAIN, why.to_owned())
        }
        What::Method => {
            return response("405 Method Not Allowed", PLAIN, "Allow: GET, HEAD\r\n", "method not allowed: GET or HEAD\n", asked.head);
        }
        What::Wrong => ("400 Bad Request", PLAIN, "this is no HTTP request\n".to_owned()),
        What::TooLong => {
            ("431 Request Header Fields Too Large", PLAIN, format!("the head of the request is longer than {MAX_HEAD} bytes\n"))
        }
    };
    bounded(line, kind, &body, asked.head)
}

/// Says so instead of a body that is too long to be sent.
fn bounded(line: &str, kind: &str, body: &str, head: bool) -> Vec<u8> {
    if body.len() <= MAX_BODY {
        return response(line, kind, "", body, head);
    }
    let why = format!("the answer has {} bytes, more than {MAX_BODY}: there are too many workers\n", body.len());
    response(FAILED, PLAIN, "", &why, head)
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
        let of = |text: &str| parse(text.as_bytes(), &Names::All).map(|asked| (asked.what, asked.head));
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
    fn a_name_of_another_site_is_refused() {
        let open = || Names::Open("Box.example.org".to_owned());
        for (host, loopback, other) in [
            ("127.0.0.1:9464", true, true),
            ("192.0.2.7", true, true),
            ("[::1]:9464", true, true),
            ("[::1]", true, true),
            ("localhost", true, true),
            ("LocalHost.:80", true, true),
            ("app.localhost:9464", true, true),
            ("app:9464", false, true),
            ("box.example.org:9464", false, true),
            ("evil.example.com", false, false),
            ("127.0.0.1.evil.example.com:9464", false, false),
            ("localhost.evil.example.com", false, false),
            ("notlocalhost.example", false, false),
            ("[evil.example.com]", false, false),
            ("[::1]evil.example.com", false, false),
            ("", false, false),
            (":9464", false, false),
        ] {
            let allow = [Names::Loopback, open(), Names::All].map(|names| names.allow(host.as_bytes()));
            assert_eq!(allow, [loopback, other, true], "{host}");
        }
        assert!(!open().allow(b"\xff"));
        let of = |text: &str| parse(text.as_bytes(), &Names::Loopback).map(|asked| asked.what);
        assert_eq!(of("GET /status HTTP/1.0\r\n\r\n"), Some(What::Status));
        assert_eq!(of("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"), Some(What::Status));
        assert_eq!(of("POST / HTTP/1.1\r\nhost: evil.example.com\r\n\r\n"), Some(What::Host));
        assert_eq!(of("GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example.com\r\n\r\n"), Some(What::Host), "each of them");
        let names = |text: &str| Names::of(&text.parse().expect(text));
        for text in ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1"] {
            assert!(matches!(names(text), Names::Loopback), "{text}");
        }
        assert!(matches!((names("1"), names("0.0.0.0:1"), names("unix:/x")), (Names::Open(_), Names::Open(_), Names::All)));
    }

    #[test]
    fn an_answer_that_is_too_long_says_so() {
        let text = |len| String::from_utf8(bounded("200 OK", PLAIN, &"x".repeat(len), false)).expect("text");
        let most = text(MAX_BODY);
        assert!(most.starts_with("HTTP/1.1 200 OK\r\n") && most.len() <= LIMITS.output);
        let long = text(MAX_BODY + 1);
        assert!(long.starts_with("HTTP/1.1 500 ") && long.len() < 1000 && long.contains(&format!("{} bytes", MAX_BODY + 1)), "{long}");
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
        let good = PAGE.lines().find(|line| line.starts_with("const GOOD")).expect("states that are as they should be");
        assert!(["running", "starting", "ready", "spare"].iter().all(|state| good.contains(&format!("'{state}'"))), "{good}");
        assert_ne!(nonce().expect("random"), nonce().expect("random"));
    }
}
