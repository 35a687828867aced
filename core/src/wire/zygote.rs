//! What a supervisor and its zygote say to each other: datagrams on the unix socket that the variable [`ENV`] names.
//!
//! A zygote is a process with one thread that has loaded what workers need, and forks them. It inherits its end of a socket pair and a
//! sealed memfd with its setup: `<socket>,<setup>,<bytes of the setup>`. All integers are little-endian.
//!
//! ```text
//!              0       4       8               16
//!              ├───────┼───────┼───────────────┼──────
//!              │ kind  │ a     │ token         │ …
//!              └───────┴───────┴───────────────┴──────
//!   FORK       1        flags   of the request   count (4), then so many numbers (4 each), with as many fds;
//!                                                then pairs of texts, the worker's variables: length (4), bytes
//!   READY      2        version 0                it takes requests from now on
//!   REFUSED    3        0       0                why it cannot fork: UTF-8
//!   FAILED     4        0       0                why it could not load: UTF-8; it ends
//!   STARTED    5        pid     of the request   with the pidfd of the worker, who sends this itself
//!   NO_FORK    6        errno   of the request   there is no worker, or it ends before it began
//!   EXITED     7        how     of the request   code or signal (4)
//! ```
//!
//! * `FORK` goes to the zygote, after its `READY`; all others come from it. Each `FORK` is answered by one `STARTED` or `NO_FORK`, unless
//!   the zygote dies first; the worker's end by one `EXITED`.
//! * `STARTED` comes from the worker, before it does anything else: a worker of a zygote that died meanwhile is known, or has not begun.
//! * `flags`: [`NEW_GROUP`]. `how`: [`CODE`], [`SIGNAL`], [`DUMPED`], [`UNKNOWN`]. A token is not 0.

use crate::error::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The variable of a zygote's environment that names its fds.
pub const ENV: &str = "OFFLOOP_ZYGOTE";
/// Another version is refused.
pub const VERSION: u32 = 1;
/// Longest datagram.
pub const MAX_LEN: usize = 65_536;
/// Longest text of a failure; it is cut at a character's end.
pub const MAX_TEXT: usize = 16_384;
/// Most fds of a worker.
pub const MAX_FDS: usize = 64;
/// `FORK`: the worker leads a process group of its own.
pub const NEW_GROUP: u32 = 1;
/// `EXITED`: by itself, with a code.
pub const CODE: u32 = 0;
/// `EXITED`: by a signal.
pub const SIGNAL: u32 = 1;
/// `EXITED`: by a signal, and left a core dump.
pub const DUMPED: u32 = 2;
/// `EXITED`: the zygote ignores `SIGCHLD`, and was not told.
pub const UNKNOWN: u32 = 3;

const FORK: u32 = 1;
const READY: u32 = 2;
const REFUSED: u32 = 3;
const FAILED: u32 = 4;
const STARTED: u32 = 5;
const NO_FORK: u32 = 6;
const EXITED: u32 = 7;

/// Bytes of every datagram.
pub const HEAD: usize = 16;

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Make a worker.
    Fork {
        /// Of the request; the answers name it.
        token: u64,
        /// [`NEW_GROUP`].
        flags: u32,
        /// The number that each fd has in the worker.
        numbers: Vec<i32>,
        /// Variables that are added to its environment.
        env: Vec<(OsString, OsString)>,
    },
    /// It takes requests.
    Ready {
        /// [`VERSION`] of the zygote.
        version: u32,
    },
    /// It cannot fork.
    Refused(String),
    /// It could not load.
    Failed(String),
    /// The worker is there.
    Started {
        /// Of the request.
        token: u64,
        /// Its process id.
        pid: i32,
    },
    /// There is no worker, or none that began.
    NoFork {
        /// Of the request.
        token: u64,
        /// Why.
        errno: i32,
    },
    /// The worker has ended.
    Exited {
        /// Of the request that made it.
        token: u64,
        /// [`CODE`], [`SIGNAL`], [`DUMPED`] or [`UNKNOWN`].
        how: u32,
        /// Code or signal.
        value: i32,
    },
}

fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]
}

impl Message {
    /// As bytes.
    ///
    /// # Errors
    /// `TooLarge` for more than [`MAX_LEN`], or more than [`MAX_FDS`] numbers.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let head = |kind: u32, a: u32, token: u64| {
            let mut out = Vec::with_capacity(64);
            out.extend(kind.to_le_bytes());
            out.extend(a.to_le_bytes());
            out.extend(token.to_le_bytes());
            out
        };
        let out = match self {
            Message::Fork { token, flags, numbers, env } => {
                if numbers.len() > MAX_FDS {
                    return Err(Error::new(ErrorKind::TooLarge, "worker has too many fds")
                        .with("fds", numbers.len())
                        .with("max_fds", MAX_FDS));
                }
                let mut out = head(FORK, *flags, *token);
                out.extend((numbers.len() as u32).to_le_bytes());
                numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
                for text in env.iter().flat_map(|(name, value)| [name, value]) {
                    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                    out.extend(text.as_bytes());
                }
                out
            }
            Message::Ready { version } => head(READY, *version, 0),
            Message::Refused(text) => [&head(REFUSED, 0, 0), cut(text)].concat(),
            Message::Failed(text) => [&head(FAILED, 0, 0), cut(text)].concat(),
            Message::Started { token, pid } => head(STARTED, *pid as u32, *token),
            Message::NoFork { token, errno } => head(NO_FORK, *errno as u32, *token),
            Message::Exited { token, how, value } => [&head(EXITED, *how, *token)[..], &value.to_le_bytes()].concat(),
        };
        if out.len() > MAX_LEN {
            return Err(Error::new(ErrorKind::TooLarge, "variables of a worker are too long").with("len", out.len()).with("max", MAX_LEN));
        }
        Ok(out)
    }

    /// Reads a datagram. What follows a message of a later version is ignored.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Message> {
        let corrupt = || Error::new(ErrorKind::Corrupt, "not a message of a zygote").with("len", bytes.len());
        let mut rest = bytes;
        let mut u32_of = || -> Result<u32> {
            let (first, after) = rest.split_first_chunk::<4>().ok_or_else(corrupt)?;
            rest = after;
            Ok(u32::from_le_bytes(*first))
        };
        let (kind, a) = (u32_of()?, u32_of()?);
        let token = u64::from(u32_of()?) | u64::from(u32_of()?) << 32;
        let text = || String::from_utf8_lossy(&bytes[HEAD..]).into_owned();
        Ok(match kind {
            FORK => {
                let count = u32_of()? as usize;
                if count > MAX_FDS {
                    return Err(corrupt().with("fds", count));
                }
                let numbers = (0..count).map(|_| u32_of().map(|n| n as i32)).collect::<Result<Vec<i32>>>()?;
                let mut env = Vec::new();
                while !rest.is_empty() {
                    let mut text_of = || -> Result<OsString> {
                        let (len, after) = rest.split_first_chunk::<4>().ok_or_else(corrupt)?;
                        let (text, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(corrupt)?;
                        rest = after;
                        Ok(OsString::from_vec(text.to_vec()))
                    };
                    env.push((text_of()?, text_of()?));
                }
                Message::Fork { token, flags: a, numbers, env }
            }
            READY => Message::Ready { version: a },
            REFUSED => Message::Refused(text()),
            FAILED => Message::Failed(text()),
            STARTED => Message::Started { token, pid: a as i32 },
            NO_FORK => Message::NoFork { token, errno: a as i32 },
            EXITED => Message::Exited { token, how: a, value: u32_of()? as i32 },
            _ => return Err(corrupt().with("kind", kind)),
        })
    }
}

/// What [`ENV`] names: socket, setup, bytes of the setup.
///
/// # Errors
/// `Invalid`.
pub fn parse_env(text: &str) -> Result<(i32, i32, usize)> {
    let invalid = || Error::invalid("variable does not name two fds and a length").with("name", ENV).with("value", text);
    let mut parts = text.split(',');
    let mut number = || parts.next().and_then(|s| s.parse().ok()).filter(|n: &i32| *n >= 0);
    let (socket, setup) = number().zip(number()).filter(|(a, b)| a != b).ok_or_else(invalid)?;
    let len = parts.next().and_then(|s| s.parse().ok()).ok_or_else(invalid)?;
    if parts.next().is_some() {
        return Err(invalid());
    }
    Ok((socket, setup, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        let env = vec![("OFFLOOP_LANE".into(), "10,11".into()), ("EMPTY".into(), OsString::new())];
        vec![
            Message::Fork { token: 1 << 40 | 7, flags: NEW_GROUP, numbers: vec![0, 3, 10], env },
            Message::Fork { token: 8, flags: 0, numbers: vec![], env: vec![] },
            Message::Ready { version: VERSION },
            Message::Refused("two threads".into()),
            Message::Failed("Traceback …".into()),
            Message::Started { token: 7, pid: 4242 },
            Message::NoFork { token: 7, errno: libc::EAGAIN },
            Message::Exited { token: 7, how: DUMPED, value: libc::SIGSEGV },
            Message::Exited { token: 7, how: CODE, value: -1 },
        ]
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        for message in samples() {
            let bytes = message.encode().expect("short");
            assert_eq!(Message::decode(&bytes).expect("valid"), message);
        }
    }

    #[test]
    fn messages_have_these_bytes() {
        let fork = Message::Fork { token: 0x0102, flags: 1, numbers: vec![3], env: vec![("A".into(), "bc".into())] };
        let want = b"\x01\0\0\0\x01\0\0\0\x02\x01\0\0\0\0\0\0\x01\0\0\0\x03\0\0\0\x01\0\0\0A\x02\0\0\0bc";
        assert_eq!(fork.encode().expect("short"), want);
        let exited = Message::Exited { token: 5, how: SIGNAL, value: 9 };
        assert_eq!(exited.encode().expect("short"), b"\x07\0\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x09\0\0\0");
    }

    #[test]
    fn what_is_cut_short_or_lies_is_corrupt() {
        for message in samples() {
            let bytes = message.encode().expect("short");
            for len in 0..bytes.len() {
                match Message::decode(&bytes[..len]) {
                    // Texts, and a request without its last variables, have no length of their own.
                    Ok(Message::Refused(_) | Message::Failed(_) | Message::Fork { .. }) => assert!(len >= HEAD),
                    Ok(other) => panic!("{len}: {other:?}"),
                    Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt),
                }
            }
        }
        for (kind, count) in [(0u32, 0u32), (8, 0), (FORK, 65), (FORK, u32::MAX)] {
            let mut bytes = vec![0; 20];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes[16..].copy_from_slice(&count.to_le_bytes());
            assert_eq!(Message::decode(&bytes).expect_err("a lie").kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn what_is_too_long_is_refused_and_texts_are_cut() {
        let env = vec![("A".into(), "x".repeat(MAX_LEN).into())];
        let long = Message::Fork { token: 1, flags: 0, numbers: vec![], env };
        assert_eq!(long.encode().expect_err("long").kind(), ErrorKind::TooLarge);
        let many = Message::Fork { token: 1, flags: 0, numbers: vec![0; MAX_FDS + 1], env: vec![] };
        assert!(many.encode().expect_err("many").to_string().contains("fds=65, max_fds=64"));
        let Message::Failed(text) = Message::decode(&Message::Failed("ü".repeat(MAX_TEXT)).encode().expect("cut")).expect("valid") else {
            panic!("another message")
        };
        assert_eq!(text, "ü".repeat(MAX_TEXT / 2));
    }

    #[test]
    fn the_variable_names_two_numbers_and_a_length() {
        assert_eq!(parse_env("32,33,0").expect("valid"), (32, 33, 0));
        for bad in ["", "3", "3,4", "3,4,", "3,3,1", "-1,4,1", "3,4,5,6", "3,4,-1", "3,4, 5"] {
            assert_eq!(parse_env(bad).expect_err(bad).kind(), ErrorKind::Invalid);
        }
    }
}
