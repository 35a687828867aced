//! The run process's end. Nothing here waits: a client that is slow, silent or mad is dropped, and harms nobody else.

use super::{MAX_REQUEST, place};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::net;
use crate::sys::poll::Epoll;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind as Io, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The listener's token; clients have those above.
pub(in crate::cli) const LISTENER: u64 = 8;
/// Clients at one time.
const MAX_CLIENTS: usize = 64;
/// What waits for a client to be read.
const MAX_OUTPUT: usize = 4 << 20;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

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

struct Client {
    stream: UnixStream,
    since: Instant,
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// It has said what it wants.
    asked: bool,
    /// It hears of events.
    listens: bool,
    /// It gets nothing more than what is in `output`.
    over: bool,
}

/// The socket and its clients.
pub(in crate::cli) struct Server {
    listener: UnixListener,
    path: PathBuf,
    file: Option<(u64, u64)>,
    clients: HashMap<u64, Client>,
    last: u64,
}

impl Server {
    /// Takes the name.
    ///
    /// # Errors
    /// `InUse` when a cluster of this name runs; `Invalid` for a directory that is not the user's alone; `Os`.
    pub(in crate::cli) fn open(name: &str, epoll: &Epoll) -> Result<Server> {
        let path = place::to_make(name)?;
        let listener = net::listen_unix(&path, 64).map_err(|e| match e.errno() {
            Some((libc::EADDRINUSE, _)) => {
                Error::new(ErrorKind::InUse, "a cluster of this name runs; --name gives this one another").with("name", name)
            }
            _ => e.with("path", path.display()),
        })?;
        let file = net::file_at(&path);
        // The directory is closed to others; the socket need not be open to them either.
        let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
        epoll.add_tagged(listener.as_fd(), LISTENER)?;
        Ok(Server { listener: listener.into(), path, file, clients: HashMap::new(), last: LISTENER })
    }

    /// Somebody connects.
    pub(in crate::cli) fn accept(&mut self, epoll: &Epoll) {
        while let Ok((stream, _)) = self.listener.accept() {
            // One that is over the limit is closed here.
            if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.last += 1;
            if epoll.add_tagged(stream.as_fd(), self.last).is_ok() {
                let client = Client {
                    stream,
                    since: Instant::now(),
                    input: Vec::new(),
                    output: VecDeque::new(),
                    asked: false,
                    listens: false,
                    over: false,
                };
                self.clients.insert(self.last, client);
            }
        }
    }

    /// A client's fd is ready: what it wants, if it has said so by now.
    pub(in crate::cli) fn ready(&mut self, token: u64, epoll: &Epoll) -> Option<Request> {
        let client = self.clients.get_mut(&token)?;
        let mut bytes = [0; 4096];
        match client.stream.read(&mut bytes) {
            Ok(0) => {
                self.drop_client(token, epoll);
                return None;
            }
            Ok(n) => client.input.extend_from_slice(&bytes[..n]),
            Err(e) if matches!(e.kind(), Io::WouldBlock | Io::Interrupted) => {}
            Err(_) => {
                self.drop_client(token, epoll);
                return None;
            }
        }
        if client.input.len() > MAX_REQUEST {
            self.drop_client(token, epoll);
            return None;
        }
        self.flush(token, epoll);
        let client = self.clients.get_mut(&token)?;
        if client.asked {
            return None;
        }
        let end = client.input.iter().position(|b| *b == b'\n')?;
        client.asked = true;
        match Request::parse(&client.input[..end]) {
            Ok(request) => {
                client.listens = request == Request::Events;
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
        let Some(client) = self.clients.get_mut(&token) else { return };
        client.output.extend(line.to_string().into_bytes());
        client.output.push_back(b'\n');
        client.over |= last;
        self.flush(token, epoll);
    }

    /// It has got all.
    pub(in crate::cli) fn end(&mut self, token: u64, epoll: &Epoll) {
        if let Some(client) = self.clients.get_mut(&token) {
            client.over = true;
            self.flush(token, epoll);
        }
    }

    /// Its request has failed; `words` go behind the error's own.
    pub(in crate::cli) fn fail(&mut self, token: u64, error: &Error, words: &str, epoll: &Epoll) {
        let told = json!({"code": error.kind().row().code, "text": format!("{error}{words}")});
        self.say(token, &json!({"ok": false, "error": told}), true, epoll);
    }

    /// A line for all who hear of events.
    pub(in crate::cli) fn tell(&mut self, line: &Value, epoll: &Epoll) {
        let hearing: Vec<u64> = self.clients.iter().filter(|(_, c)| c.listens).map(|(token, _)| *token).collect();
        for token in hearing {
            self.say(token, line, false, epoll);
        }
    }

    /// It is still there.
    pub(in crate::cli) fn has(&self, token: u64) -> bool {
        self.clients.contains_key(&token)
    }

    pub(in crate::cli) fn is_heard(&self) -> bool {
        self.clients.values().any(|c| c.listens)
    }

    /// When somebody has been silent for too long.
    pub(in crate::cli) fn deadline(&self) -> Option<Instant> {
        self.clients.values().filter(|c| !c.asked).map(|c| c.since + PATIENCE).min()
    }

    /// Drops those.
    pub(in crate::cli) fn expire(&mut self, epoll: &Epoll) {
        let now = Instant::now();
        let late: Vec<u64> = self.clients.iter().filter(|(_, c)| !c.asked && c.since + PATIENCE <= now).map(|(token, _)| *token).collect();
        for token in late {
            self.drop_client(token, epoll);
        }
    }

    fn flush(&mut self, token: u64, epoll: &Epoll) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let mut lost = client.output.len() > MAX_OUTPUT;
        while !lost && !client.output.is_empty() {
            match client.stream.write(client.output.as_slices().0) {
                Ok(n) => drop(client.output.drain(..n)),
                Err(e) if e.kind() == Io::WouldBlock => break,
                Err(e) if e.kind() == Io::Interrupted => {}
                Err(_) => lost = true,
            }
        }
        if lost || (client.over && client.output.is_empty()) {
            self.drop_client(token, epoll);
            return;
        }
        let waits = !client.output.is_empty();
        let _ = epoll.want_room(client.stream.as_fd(), token, waits);
    }

    fn drop_client(&mut self, token: u64, epoll: &Epoll) {
        if let Some(client) = self.clients.remove(&token) {
            epoll.remove(client.stream.as_fd());
        }
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
