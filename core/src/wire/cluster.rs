//! What a worker of a cluster inherits, and what it asks its cluster for.
//!
//! The worker's environment has [`ENV`]: `<gate>,<listeners>[,name=fd…]`. The gate is one end of a socket pair (`SOCK_SEQPACKET`); the sockets of the
//! cluster's option `listen` are the fds from 3 on, so many, as `LISTEN_FDS` says too. What else it inherits has a name: [`CHANNEL`] is the worker's end
//! of a channel (`wire::channel`) for messages, [`PASS`] is the memfd of a cluster that accepts by itself and passes connections on. All integers are little-endian.
//!
//! ```text
//!  request   u32 seq │ u32 op = LISTEN │ i32 queue │ u32 nth │ address, UTF-8: host:port, :port, or unix:path
//!            u32 seq │ u32 op = SEAT   │ i32 index of a socket of the option listen │ u32 0
//!            u32 seq │ u32 op = COUNTER │ i32 0 │ u32 0 │ name, UTF-8
//!            u32 seq │ u32 op = LIMITER │ i32 burst │ u32 keys │ tokens per second, in decimal, a space, and the name, UTF-8
//!  reply     u32 seq │ i32 errno, or 0 │ text, UTF-8: where it listens, or why it does not          + the listening socket, the seat, or a memfd of `wire::shared`
//! ```
//!
//! One request at a time; the worker waits for the reply, and drops one to an earlier question, which it has given up. A gate that hangs up says that the cluster's process is gone.
//!
//! With [`PASS`] the reply to the first two requests has a seat in place of a listening socket: one end of another socket pair, over which the connections of
//! that one listening socket come.
//!
//! ```text
//!  connection   u64 seq                                       + the connection
//!  answer       u64 seq │ u32 TAKEN, REFUSED
//! ```
//!
//! The cluster keeps its copy of a connection until the answer. It also keeps a copy of the worker's end, and takes back over it what the worker has not
//! read: a datagram goes to one reader. A worker that takes no more hangs its end up.
//!
//! ```text
//!  page   0 magic u64 │ 64 beat u64 │ 128 closed u64
//! ```
//!
//! `beat` changes when the worker's loop turns; 0: nothing is known. `closed` counts connections that the worker had taken and that have ended. Both are
//! counters of the worker's; nothing else is published by them.

use crate::error::{Error, Result};

/// The variable of a worker's environment.
pub const ENV: &str = "OFFLOOP_CLUSTER";
/// The first of the listening sockets, as systemd has it.
pub const FIRST_FD: i32 = 3;
/// Give me a socket that listens there.
pub const LISTEN: u32 = 1;
/// Give me a seat at a socket of the option `listen`.
pub const SEAT: u32 = 2;
/// Give me the shared counter of that name.
pub const COUNTER: u32 = 3;
/// Give me the shared rate limiter of that name.
pub const LIMITER: u32 = 4;
/// The worker has the connection.
pub const TAKEN: u32 = 1;
/// It has no room for it: another worker is to have it.
pub const REFUSED: u32 = 2;
/// Bytes of an answer.
pub const ANSWER_LEN: usize = 12;
/// Of the page: `OFLPASS` and the version's digit, as bytes.
pub const PAGE_MAGIC: u64 = u64::from_le_bytes(*b"OFLPASS1");
/// Bytes of the page.
pub const PAGE_LEN: usize = 4096;
/// Where the worker's loop shows that it turns.
pub const PAGE_BEAT: usize = 64;
/// Where it counts connections that have ended.
pub const PAGE_CLOSED: usize = 128;
/// Longest datagram.
pub const MAX_LEN: usize = 1024;
/// Bytes of a request before its text.
const REQUEST: usize = 16;
/// Bytes of a reply before its text.
const REPLY: usize = 8;

/// Name of the worker's end of the channel.
pub const CHANNEL: &str = "channel";
/// Name of the memfd of counters, where connections are passed.
pub const PASS: &str = "pass";

/// What the variable says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The gate's fd.
    pub gate: i32,
    /// Listening sockets, from [`FIRST_FD`] on.
    pub listeners: usize,
    /// The fd named [`CHANNEL`].
    pub channel: Option<i32>,
    /// The fd named [`PASS`].
    pub pass: Option<i32>,
}

fn fd(text: &str) -> Option<i32> {
    text.parse().ok().filter(|n: &i32| *n >= 0)
}

/// As the variable's text.
#[must_use]
pub fn format_env(gate: i32, listeners: usize, named: &[(&str, i32)]) -> String {
    let named = named.iter().map(|(name, fd)| format!(",{name}={fd}"));
    std::iter::once(format!("{gate},{listeners}")).chain(named).collect()
}

/// Reads the variable.
///
/// # Errors
/// `Invalid` for what it is not, and for a name that this version does not know.
pub fn parse_env(text: &str) -> Result<Inherited> {
    let wrong = |what: &'static str| Error::invalid(what).with("name", ENV).with("value", text);
    let none = || wrong("variable does not name a gate and a number of sockets");
    let mut parts = text.split(',');
    let gate = parts.next().and_then(fd).ok_or_else(none)?;
    let listeners = parts.next().and_then(|count| count.parse().ok()).ok_or_else(none)?;
    let mut found = Inherited { gate, listeners, channel: None, pass: None };
    for part in parts {
        let (name, number) = part.split_once('=').ok_or_else(|| wrong("variable has a part that is not name=fd"))?;
        let number = fd(number).ok_or_else(|| wrong("variable has a name without an fd").with("fd_name", name))?;
        match name {
            CHANNEL => found.channel = Some(number),
            PASS => found.pass = Some(number),
            _ => return Err(wrong("variable names an fd that this version of offloop does not know").with("fd_name", name)),
        }
    }
    Ok(found)
}

/// A passed connection's datagram.
#[must_use]
pub fn encode_connection(seq: u64) -> [u8; 8] {
    seq.to_le_bytes()
}

/// Its number; `None` for what is no such datagram.
#[must_use]
pub fn decode_connection(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// The answer to it: [`TAKEN`] or [`REFUSED`].
#[must_use]
pub fn encode_answer(seq: u64, what: u32) -> [u8; ANSWER_LEN] {
    let mut out = [0; ANSWER_LEN];
    out[..8].copy_from_slice(&seq.to_le_bytes());
    out[8..].copy_from_slice(&what.to_le_bytes());
    out
}

/// `(seq, what)`; `None` for what is no answer.
#[must_use]
pub fn decode_answer(bytes: &[u8]) -> Option<(u64, u32)> {
    let (seq, what) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*seq), u32::from_le_bytes(what.try_into().ok()?)))
}

fn head<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// As bytes; the text is cut where the datagram would be too long. `nth`: how many sockets of that address the worker has already.
#[must_use]
pub fn encode_request(seq: u32, op: u32, queue: i32, nth: u32, address: &str) -> Vec<u8> {
    let mut out = [seq.to_le_bytes(), op.to_le_bytes(), queue.to_le_bytes(), nth.to_le_bytes()].concat();
    out.extend_from_slice(&address.as_bytes()[..address.floor_char_boundary(MAX_LEN - REQUEST)]);
    out
}

/// `(op, queue, nth, text)` of a request.
pub type Asked<'a> = (u32, i32, u32, &'a str);

/// Its number, and what it asks for; `None` for what is no request.
#[must_use]
pub fn decode_request(bytes: &[u8]) -> Option<(u32, Asked<'_>)> {
    let text = std::str::from_utf8(bytes.get(REQUEST..)?).ok()?;
    let number = |at| head(bytes, at).map(u32::from_le_bytes);
    Some((number(0)?, (number(4)?, number(8)? as i32, number(12)?, text)))
}

/// As bytes; the text is cut where the datagram would be too long.
#[must_use]
pub fn encode_reply(seq: u32, errno: i32, text: &str) -> Vec<u8> {
    let mut out = [seq.to_le_bytes(), errno.to_le_bytes()].concat();
    out.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(MAX_LEN - REPLY)]);
    out
}

/// `(seq, errno, text)`; `None` for what is no reply.
#[must_use]
pub fn decode_reply(bytes: &[u8]) -> Option<(u32, i32, &str)> {
    let text = std::str::from_utf8(bytes.get(REPLY..)?).ok()?;
    Some((u32::from_le_bytes(head(bytes, 0)?), i32::from_le_bytes(head(bytes, 4)?), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_these_bytes() {
        assert_eq!(encode_request(9, LISTEN, 511, 2, ":3000"), b"\x09\0\0\0\x01\0\0\0\xff\x01\0\0\x02\0\0\0:3000");
        assert_eq!(decode_request(b"\x09\0\0\0\x01\0\0\0\xff\x01\0\0\x02\0\0\0:3000"), Some((9, (LISTEN, 511, 2, ":3000"))));
        assert_eq!(encode_request(1, LIMITER, 5, 8, "0.5 a b"), b"\x01\0\0\0\x04\0\0\0\x05\0\0\0\x08\0\0\x000.5 a b");
        assert_eq!(encode_reply(9, 98, "taken"), b"\x09\0\0\0b\0\0\0taken");
        assert_eq!(decode_reply(b"\x09\0\0\0b\0\0\0taken"), Some((9, 98, "taken")));
        let long = "ü".repeat(MAX_LEN);
        assert!(encode_request(1, 1, 0, 0, &long).len() <= MAX_LEN && encode_reply(1, 0, &long).len() <= MAX_LEN);
    }

    #[test]
    fn what_is_no_message_is_none() {
        for bad in [&b""[..], &[0; 15], b"\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\xff"] {
            assert_eq!(decode_request(bad), None);
        }
        for bad in [&b""[..], &[0; 7], b"\0\0\0\0\0\0\0\0\xff"] {
            assert_eq!(decode_reply(bad), None);
        }
    }

    #[test]
    fn the_variable_names_a_gate_a_count_and_what_else_there_is() {
        let of = |gate, listeners, channel, pass| Inherited { gate, listeners, channel, pass };
        assert_eq!(parse_env("7,2").expect("valid"), of(7, 2, None, None));
        let text = format_env(7, 2, &[(CHANNEL, 8), (PASS, 9)]);
        assert_eq!((text.as_str(), parse_env(&text).expect("valid")), ("7,2,channel=8,pass=9", of(7, 2, Some(8), Some(9))));
        for bad in ["", "7", "7,", ",2", "-1,2", "7,-2", "7,2,", "7,2,3", "7,2,channel=", "7,2,pass=-1", "7,2,=8"] {
            assert!(parse_env(bad).is_err(), "{bad}");
        }
        let e = parse_env("7,2,channel=8,later=9").expect_err("unknown");
        assert!(e.to_string().contains("fd_name=later"), "{e}");
    }

    #[test]
    fn a_connection_and_its_answer_have_these_bytes() {
        assert_eq!(encode_connection(0x0102), *b"\x02\x01\0\0\0\0\0\0");
        assert_eq!(encode_answer(7, REFUSED), *b"\x07\0\0\0\0\0\0\0\x02\0\0\0");
        assert_eq!(decode_connection(&encode_connection(9)), Some(9));
        assert_eq!(decode_answer(&encode_answer(9, TAKEN)), Some((9, TAKEN)));
        for bad in [&b""[..], b"\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\0\0"] {
            assert_eq!(decode_connection(bad), None);
            assert_eq!(decode_answer(bad), None);
        }
    }
}
