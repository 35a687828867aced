//! What a worker of a cluster inherits, and what it asks its cluster for.
//!
//! The worker's environment has [`ENV`]: `<gate>,<listeners>[,name=fd…]`. The gate is one end of a socket pair (`SOCK_SEQPACKET`); the sockets of the
//! cluster's option `listen` are the fds from 3 on, so many, as `LISTEN_FDS` says too. What else it inherits has a name: [`CHANNEL`] is the worker's end
//! of a channel (`wire::channel`) for messages. All integers are little-endian.
//!
//! ```text
//!  request   u32 op = LISTEN │ i32 queue │ u32 nth │ address, UTF-8: host:port, :port, or unix:path
//!  reply     i32 errno, or 0 │ text, UTF-8: where it listens, or why it does not          + the listening socket
//! ```
//!
//! One request at a time; the worker waits for the reply. A gate that hangs up says that the cluster's process is gone.

use crate::error::{Error, Result};

/// The variable of a worker's environment.
pub const ENV: &str = "OFFLOOP_CLUSTER";
/// The first of the listening sockets, as systemd has it.
pub const FIRST_FD: i32 = 3;
/// Give me a socket that listens there.
pub const LISTEN: u32 = 1;
/// Longest datagram.
pub const MAX_LEN: usize = 1024;
/// Bytes of a request before its text.
const REQUEST: usize = 12;
/// Bytes of a reply before its text.
const REPLY: usize = 4;

/// Name of the worker's end of the channel.
pub const CHANNEL: &str = "channel";

/// What the variable says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The gate's fd.
    pub gate: i32,
    /// Listening sockets, from [`FIRST_FD`] on.
    pub listeners: usize,
    /// The fd named [`CHANNEL`].
    pub channel: Option<i32>,
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
    let mut found = Inherited { gate, listeners, channel: None };
    for part in parts {
        let (name, number) = part.split_once('=').ok_or_else(|| wrong("variable has a part that is not name=fd"))?;
        let number = fd(number).ok_or_else(|| wrong("variable has a name without an fd").with("fd_name", name))?;
        match name {
            CHANNEL => found.channel = Some(number),
            _ => return Err(wrong("variable names an fd that this version of offloop does not know").with("fd_name", name)),
        }
    }
    Ok(found)
}

fn head<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// As bytes; the text is cut where the datagram would be too long. `nth`: how many sockets of that address the worker has already.
#[must_use]
pub fn encode_request(op: u32, queue: i32, nth: u32, address: &str) -> Vec<u8> {
    let mut out = [op.to_le_bytes(), queue.to_le_bytes(), nth.to_le_bytes()].concat();
    out.extend_from_slice(&address.as_bytes()[..address.floor_char_boundary(MAX_LEN - REQUEST)]);
    out
}

/// `(op, queue, nth, address)`; `None` for what is no request.
#[must_use]
pub fn decode_request(bytes: &[u8]) -> Option<(u32, i32, u32, &str)> {
    let text = std::str::from_utf8(bytes.get(REQUEST..)?).ok()?;
    Some((u32::from_le_bytes(head(bytes, 0)?), i32::from_le_bytes(head(bytes, 4)?), u32::from_le_bytes(head(bytes, 8)?), text))
}

/// As bytes; the text is cut where the datagram would be too long.
#[must_use]
pub fn encode_reply(errno: i32, text: &str) -> Vec<u8> {
    let mut out = errno.to_le_bytes().to_vec();
    out.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(MAX_LEN - REPLY)]);
    out
}

/// `(errno, text)`; `None` for what is no reply.
#[must_use]
pub fn decode_reply(bytes: &[u8]) -> Option<(i32, &str)> {
    let text = std::str::from_utf8(bytes.get(REPLY..)?).ok()?;
    Some((i32::from_le_bytes(head(bytes, 0)?), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_these_bytes() {
        assert_eq!(encode_request(LISTEN, 511, 2, ":3000"), b"\x01\0\0\0\xff\x01\0\0\x02\0\0\0:3000");
        assert_eq!(decode_request(b"\x01\0\0\0\xff\x01\0\0\x02\0\0\0:3000"), Some((LISTEN, 511, 2, ":3000")));
        assert_eq!(encode_reply(98, "taken"), b"b\0\0\0taken");
        assert_eq!(decode_reply(b"b\0\0\0taken"), Some((98, "taken")));
        let long = "ü".repeat(MAX_LEN);
        assert!(encode_request(1, 0, 0, &long).len() <= MAX_LEN && encode_reply(0, &long).len() <= MAX_LEN);
    }

    #[test]
    fn what_is_no_message_is_none() {
        for bad in [&b""[..], b"\x01\0\0\0\0\0\0\0\0\0\0", b"\x01\0\0\0\0\0\0\0\0\0\0\0\xff"] {
            assert_eq!(decode_request(bad), None);
        }
        for bad in [&b""[..], b"\0\0\0", b"\0\0\0\0\xff"] {
            assert_eq!(decode_reply(bad), None);
        }
    }

    #[test]
    fn the_variable_names_a_gate_a_count_and_what_else_there_is() {
        let of = |gate, listeners, channel| Inherited { gate, listeners, channel };
        assert_eq!(parse_env("7,2").expect("valid"), of(7, 2, None));
        let text = format_env(7, 2, &[(CHANNEL, 8)]);
        assert_eq!((text.as_str(), parse_env(&text).expect("valid")), ("7,2,channel=8", of(7, 2, Some(8))));
        for bad in ["", "7", "7,", ",2", "-1,2", "7,-2", "7,2,", "7,2,3", "7,2,channel=", "7,2,channel=-1", "7,2,=8"] {
            assert!(parse_env(bad).is_err(), "{bad}");
        }
        let e = parse_env("7,2,channel=8,later=9").expect_err("unknown");
        assert!(e.to_string().contains("fd_name=later"), "{e}");
    }
}
