//! One error type, one table of kinds, for every face.
//!
//! The table below is the only place that spells a kind: C statuses, Node codes, Python classes, docs and the
//! `tests/vectors/errors.json` file are generated from it or checked against it. A status is never renumbered.

use std::borrow::Cow;
use std::fmt;

/// What a caller may do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call will fail again.
    Never,
    /// The same call may succeed at once.
    Now,
    /// The same call may succeed after a pause.
    Later,
    /// It depends on whether the work may run twice.
    Maybe,
}

impl Retry {
    /// The word that every face shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Retry::Never => "never",
            Retry::Now => "now",
            Retry::Later => "later",
            Retry::Maybe => "maybe",
        }
    }
}

macro_rules! error_kinds {
    ($($(#[$doc:meta])* $kind:ident = $status:literal, $code:literal, $text:literal, $py:literal, $py_base:literal, $retry:ident;)*) => {
        /// The kind of an error: what the caller can do about it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[$doc])* $kind = $status,)* }

        /// One row of the error table.
        #[derive(Clone, Copy, Debug)]
        pub struct ErrorRow {
            /// The kind.
            pub kind: ErrorKind,
            /// The kind's name in Rust and in docs.
            pub name: &'static str,
            /// The C status, negative.
            pub status: i32,
            /// Node's `err.code`, and the C status name.
            pub code: &'static str,
            /// How a message begins.
            pub text: &'static str,
            /// The Python class.
            pub python: &'static str,
            /// The stdlib classes that the Python class also derives from, between spaces.
            pub python_base: &'static str,
            /// What the caller may do.
            pub retry: Retry,
        }

        /// Every kind, in order of its status.
        pub const ERROR_TABLE: &[ErrorRow] = &[$(ErrorRow {
            kind: ErrorKind::$kind, name: stringify!($kind), status: $status, code: $code, text: $text,
            python: $py, python_base: $py_base, retry: Retry::$retry,
        },)*];
    };
}

error_kinds! {
    /// An argument is wrong.
    Invalid = -1, "ERR_OFFLOOP_INVALID", "invalid", "InvalidError", "ValueError", Never;
    /// This platform, build or file format cannot do it.
    Unsupported = -2, "ERR_OFFLOOP_UNSUPPORTED", "unsupported", "UnsupportedError", "NotImplementedError", Never;
    /// A bounded queue has no room.
    Full = -3, "ERR_OFFLOOP_FULL", "full", "Full", "queue.Full", Now;
    /// Nothing to take.
    Empty = -4, "ERR_OFFLOOP_EMPTY", "empty", "Empty", "queue.Empty", Now;
    /// The pool or handle was closed.
    Closed = -5, "ERR_OFFLOOP_CLOSED", "closed", "ClosedError", "RuntimeError", Never;
    /// A deadline passed.
    Timeout = -6, "ERR_OFFLOOP_TIMEOUT", "timeout", "TimeoutError", "TimeoutError", Maybe;
    /// The caller cancelled.
    Cancelled = -7, "ERR_OFFLOOP_CANCELLED", "cancelled", "CancelledError", "concurrent.futures.CancelledError", Never;
    /// The bytes moved elsewhere.
    Detached = -8, "ERR_OFFLOOP_DETACHED", "detached", "DetachedError", "BufferError", Never;
    /// A size or cost is over its limit.
    TooLarge = -9, "ERR_OFFLOOP_TOO_LARGE", "too large", "TooLargeError", "ValueError", Never;
    /// Data does not have the form it claims.
    Corrupt = -10, "ERR_OFFLOOP_CORRUPT", "corrupt", "CorruptError", "", Never;
    /// Two sides speak different versions.
    Version = -11, "ERR_OFFLOOP_VERSION", "version", "VersionError", "", Never;
    /// The other side died.
    PeerDied = -12, "ERR_OFFLOOP_PEER_DIED", "peer died", "PeerDiedError", "ConnectionError", Maybe;
    /// The worker that ran the task died.
    WorkerLost = -13, "ERR_OFFLOOP_WORKER_LOST", "worker lost", "WorkerLostError", "concurrent.futures.BrokenExecutor", Maybe;
    /// The user's function failed; the user's own error is the outcome.
    TaskFailed = -14, "ERR_OFFLOOP_TASK_FAILED", "task failed", "TaskFailedError", "RuntimeError", Never;
    /// Too many workers die to go on.
    Degraded = -15, "ERR_OFFLOOP_DEGRADED", "degraded", "DegradedError", "concurrent.futures.BrokenExecutor", Later;
    /// The operating system refused; `errno` and `syscall` say what.
    Os = -16, "ERR_OFFLOOP_OS", "os", "OsError", "OSError", Maybe;
    /// A panic was caught.
    Panic = -17, "ERR_OFFLOOP_PANIC", "panic", "PanicError", "RuntimeError", Never;
    /// A live export or borrow forbids it now.
    InUse = -18, "ERR_OFFLOOP_IN_USE", "in use", "InUseError", "BufferError", Later;
    /// The handle belongs to the parent of this forked process.
    Forked = -19, "ERR_OFFLOOP_FORKED", "forked", "ForkedError", "RuntimeError", Never;
    /// No op, export, ring or file of that name.
    NotFound = -20, "ERR_OFFLOOP_NOT_FOUND", "not found", "NotFoundError", "LookupError", Never;
    /// The value cannot travel.
    Unserializable = -21, "ERR_OFFLOOP_UNSERIALIZABLE", "unserializable", "UnserializableError", "TypeError pickle.PicklingError", Never;
    /// A worker did not start.
    StartFailed = -22, "ERR_OFFLOOP_START_FAILED", "start failed", "StartFailedError", "concurrent.futures.BrokenExecutor", Later;
    /// The name is taken.
    Exists = -23, "ERR_OFFLOOP_EXISTS", "exists", "ExistsError", "FileExistsError", Never;
}

impl ErrorKind {
    /// The table row of this kind.
    #[must_use]
    pub fn row(self) -> &'static ErrorRow {
        &ERROR_TABLE[(-(self as i32) - 1) as usize]
    }

    /// The C status, negative.
    #[must_use]
    pub const fn status(self) -> i32 {
        self as i32
    }

    /// The kind of a status; `None` for a status of a newer core.
    #[must_use]
    pub fn from_status(status: i32) -> Option<ErrorKind> {
        ERROR_TABLE.iter().find(|r| r.status == status).map(|r| r.kind)
    }
}

/// The result of every fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: a kind, what happened, and the values that made it happen.
///
/// Displays as `too large: record does not fit the ring (record_len=9000, max_record_len=8184)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<Repr>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Repr {
    kind: ErrorKind,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    os: Option<(i32, &'static str)>,
}

impl Error {
    /// An error of `kind`. The message is lower case, has no full stop and does not repeat the kind.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Error {
        Error(Box::new(Repr { kind, message: message.into(), context: Vec::new(), os: None }))
    }

    /// Shorthand for [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::Invalid, message)
    }

    /// An error of the operating system; `syscall` is its name.
    #[must_use]
    pub fn os(syscall: &'static str, errno: i32) -> Error {
        let mut e = Error::new(ErrorKind::Os, std::io::Error::from_raw_os_error(errno).to_string()).with("syscall", syscall);
        e.0.os = Some((errno, syscall));
        e
    }

    /// The operating system's last error of this thread.
    #[must_use]
    pub fn last_os(syscall: &'static str) -> Error {
        Error::os(syscall, std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// Adds a value that explains the error.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Error {
        self.0.context.push((name, value.to_string()));
        self
    }

    /// The option that it is about has another name here, where `name` knows one.
    #[must_use]
    pub fn option_named(mut self, name: impl Fn(&str) -> Option<String>) -> Error {
        for (_, option) in self.0.context.iter_mut().filter(|(key, _)| *key == "option") {
            if let Some(name) = name(option) {
                *option = name;
            }
        }
        self
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The C status.
    #[must_use]
    pub fn status(&self) -> i32 {
        self.0.kind as i32
    }

    /// What happened, without kind and values.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// `(errno, syscall)` of an error of the operating system.
    #[must_use]
    pub fn errno(&self) -> Option<(i32, &'static str)> {
        self.0.os
    }

    /// The values that explain the error.
    #[must_use]
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind.row().text, self.0.message)?;
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { " (" } else { ", " })?;
        }
        if self.0.context.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl std::error::Error for Error {}

/// Letters to be changed, added or taken away until `a` is `b` (Levenshtein).
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let changed = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

/// Which of `names` was probably meant by `name`: case aside, it differs in no more than a third of the letters.
#[must_use]
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A name is not as long, and the work grows with the length.
    let plain: String = name.chars().take(80).collect::<String>().to_lowercase();
    let far = |other: &str| distance(&plain, &other.to_lowercase());
    let (found, far) = names.map(|other| (other, far(other))).min_by_key(|(_, far)| *far)?;
    (far <= (plain.chars().count().max(found.chars().count()) / 3)).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_dense_and_in_order() {
        for (i, row) in ERROR_TABLE.iter().enumerate() {
            assert_eq!(row.status, -(i as i32) - 1);
            assert_eq!(row.kind.row().name, row.name);
            assert_eq!(ErrorKind::from_status(row.status), Some(row.kind));
        }
        assert_eq!(ErrorKind::from_status(-24), None);
    }

    #[test]
    fn message_names_the_values() {
        let e = Error::new(ErrorKind::TooLarge, "record does not fit the ring").with("record_len", 9000).with("max_record_len", 8184);
        assert_eq!(e.to_string(), "too large: record does not fit the ring (record_len=9000, max_record_len=8184)");
    }

    #[test]
    fn os_errors_keep_errno() {
        let e = Error::os("memfd_create", 24);
        assert_eq!(e.errno(), Some((24, "memfd_create")));
        assert_eq!(e.kind(), ErrorKind::Os);
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (a, b, n) in [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("name", "name", 0)] {
            assert_eq!((distance(a, b), distance(b, a)), (n, n));
        }
    }

    #[test]
    fn what_was_meant_is_near() {
        let known = || "maxWorkers minWorkers workers listen timeout key".split(' ');
        for (name, meant) in [
            ("worker", Some("workers")),
            ("wrokers", Some("workers")),
            ("timeOut", Some("timeout")),
            ("max_workers", Some("maxWorkers")),
            ("threads", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known()), meant, "{name}");
        }
        assert_eq!(nearest("x", std::iter::empty()), None);
    }

    #[test]
    fn an_option_gets_the_name_that_it_has_where_it_is_read() {
        let e = Error::invalid("option is out of range").with("option", "max_age").with("value", "max_age");
        let named = e.clone().option_named(|name| (name == "max_age").then(|| "--max-age".to_owned()));
        assert_eq!(named.to_string(), "invalid: option is out of range (option=--max-age, value=max_age)");
        assert_eq!(e.clone().option_named(|_| None), e);
    }
}
