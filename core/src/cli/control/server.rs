//! The run process's end. Nothing here waits: a client that is slow, silent or mad is dropped, and harms nobody else.

use super::{MAX_REQUEST, place};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::clients::{Clients, Limits};
use crate::sys::net;
use crate::sys::poll::Epoll;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The listener's token; clients have those above.
pub(in crate::cli) const LISTENER: u64 = 8;
/// Until the next attempt after fds were missing.
const REST: Duration = Duration::from_millis(50);
/// What one client more is told.
const REFUSAL: &str =
    "{\"ok\":false,\"error\":{\"code\":\"ERR_OFFLOOP_FULL\",\"text\":\"full: 64 commands are connected to this cluster already\"}}\n";
const LIMITS: Limits =
    Limits { clients: 64, refusal: REFUSAL, input: MAX_REQUEST, output: 4 << 20, patience: Duration::from_secs(10), reading: None };

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Request {
    Status,
    Metrics,
    Reload,
    Scale(usize),
    Stop { fast: bool },
    Events,
    Logs { lines: usize, follow: bool },
}

impl Request {
    fn parse(line: &[u8]) -> Result<Request> {
        let wrong = |what: &'static str| Error::invalid(what);
        let value: Value = serde_json::from_slice(line).map_err(|_| wrong("request is no JSON"))?;
        match value["do"].as_str() {
            Some("status") => Ok(Request::Status),
            Some("metrics") => Ok(Request::Metrics),
            Some("reload") => Ok(Request::Reload),
            Some("scale") => {
                let workers = value["workers"].as_u64().and_then(|n| usize::try_from(n).ok());
                workers.map(Request::Scale).ok_or_else(|| wrong("scale needs a number of workers"))
            }
            Some("stop") => Ok(Request::Stop { fast: value["fast"].as_bool().unwrap_or(false) }),
            Some("events") => Ok(Request::Events),
            Some("logs") => {
                let lines = value["lines"].as_u64().map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
                Ok(Request::Logs { lines, follow: value["follow"].as_bool().unwrap_or(false) })
            }
            Some(other) => Err(wrong("there is no such request").with("do", other)),
            None => Err(wrong("request does not say what to do")),
        }
    }
}

/// The socket and its clients.
pub(in crate::cli) struct Server {
    listener: UnixListener,
    path: PathBuf,
    file: Option<(u64, u64)>,
    clients: Clients<UnixStream>,
    /// Those that hear of events.
    listening: HashSet<u64>,
}

impl Server {
    /// Takes the name.
    ///
    /// # Errors
    /// `InUse` when a cluster of this name runs; `Invalid` for a directory that is not the user's alone, and where something is in the way that is no socket; `Os`.
    pub(in crate::cli) fn open(name: &str, epoll: &Epoll) -> Result<Server> {
        let path = place::to_make(name)?;
        let listener = net::listen_unix(&path, 64).map_err(|e| match e.errno() {
            Some((libc::EADDRINUSE, _)) if net::is_other(&path) => place::taken(&path),
            Some((libc::EADDRINUSE, _)) => {
                Error::new(ErrorKind::InUse, "a cluster of this name runs; --name gives this one another").with("name", name)
            }
            _ => e.with("path", path.display()),
        })?;
        let file = net::file_at(&path);
        // The directory is closed to others; the socket need not be open to them either.
        let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
        epoll.add_tagged(listener.as_fd(), LISTENER)?;
        Ok(Server { listener: listener.into(), path, file, clients: Clients::new(LIMITS, LISTENER), listening: HashSet::new() })
    }

    /// Somebody connects.
    pub(in crate::cli) fn accept(&mut self, epoll: &Epoll) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.clients.add(stream, epoll);
                    }
                }
                // No fd is left, and who waits makes the listener ready at once: not more often than that.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => return std::thread::sleep(REST),
                Err(_) => return,
            }
        }
    }

    /// A client's fd is ready: what it wants, if it has said so by now.
    pub(in crate::cli) fn ready(&mut self, token: u64, epoll: &Epoll) -> Option<Request> {
        let whole = |input: &[u8]| input.iter().position(|b| *b == b'\n').map(|end| Request::parse(&input[..end]));
        match self.clients.ready(token, epoll, whole)? {
            Ok(request) => {
                if request == Request::Events {
                    self.listening.insert(token);
                }
                Some(request)
            }
            Err(e) => {
                self.fail(token, &e, "", epoll);
                None
            }
        }
    }

    /// A line for a client; `last`: there will be no more.
    pub(in crate::cli) fn say(&mut self, token: u64, line: &Value, last: bool, epoll: &Epoll) {
        self.clients.say(token, format!("{line}\n").into_bytes(), last, epoll);
    }

    /// It has got all.
    pub(in crate::cli) fn end(&mut self, token: u64, epoll: &Epoll) {
        self.clients.end(token, epoll);
    }

    /// Its request has failed; `words` go behind the error's own.
    pub(in crate::cli) fn fail(&mut self, token: u64, error: &Error, words: &str, epoll: &Epoll) {
        let told = json!({"code": error.kind().row().code, "text": format!("{error}{words}")});
        self.say(token, &json!({"ok": false, "error": told}), true, epoll);
    }

    /// A line for all who hear of events.
    pub(in crate::cli) fn tell(&mut self, line: &Value, epoll: &Epoll) {
        for token in self.listening.clone() {
            self.say(token, line, false, epoll);
        }
    }

    /// It is still there.
    pub(in crate::cli) fn has(&self, token: u64) -> bool {
        self.clients.has(token)
    }

    pub(in crate::cli) fn is_heard(&mut self) -> bool {
        self.listening.retain(|token| self.clients.has(*token));
        !self.listening.is_empty()
    }

    /// When somebody has been silent for too long.
    pub(in crate::cli) fn deadline(&self) -> Option<Instant> {
        self.clients.deadline()
    }

    /// Drops those.
    pub(in crate::cli) fn expire(&mut self, epoll: &Epoll) {
        self.clients.expire(epoll);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Another may have taken its place.
        if self.file.is_some() && net::file_at(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_nonsense_is_refused() {
        for (line, request) in [
            (r#"{"do":"status"}"#, Request::Status),
            (r#"{"do":"scale","workers":3}"#, Request::Scale(3)),
            (r#"{"do":"stop","fast":true}"#, Request::Stop { fast: true }),
            (r#"{"do":"stop"}"#, Request::Stop { fast: false }),
            (r#"{"do":"logs","lines":5}"#, Request::Logs { lines: 5, follow: false }),
            (r#"{"do":"logs","follow":true}"#, Request::Logs { lines: usize::MAX, follow: true }),
        ] {
            assert_eq!(Request::parse(line.as_bytes()).expect(line), request);
        }
        for bad in
            ["", "x", "[]", "{}", r#"{"do":7}"#, r#"{"do":"dance"}"#, r#"{"do":"scale"}"#, r#"{"do":"scale","workers":-1}"#, "\u{ff}"]
        {
            assert_eq!(Request::parse(bad.as_bytes()).expect_err(bad).kind(), ErrorKind::Invalid);
        }
    }
}
